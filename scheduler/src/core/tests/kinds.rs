//! What is found among kinds of rows is what comes of going over all rows, and costs less.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    random::{HOST, ZONE, pick, random_node, random_pod},
    *,
};

/// Gives a pod to a replica set, or some of what else is made of many rows.
fn varied(rng: &mut StdRng, mut it: Value) -> Value {
    let app = it["metadata"]["labels"]["app"].clone();
    match rng.random_range(0..4) {
        0 => (),
        1 => it["spec"]["containers"][0]["image"] = json!(pick(rng, &["a", "b"])),
        _ => {
            let spec = it["spec"].as_object_mut().unwrap();
            spec.remove("topologySpreadConstraints");
            let owner = json!({
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": app, "uid": "u",
                "controller": true,
            });
            it["metadata"]["ownerReferences"] = json!([owner]);
        }
    }
    it["spec"]["priority"] = json!(rng.random_range(0..2));
    it
}

fn with_images(rng: &mut StdRng, name: &str) -> Node {
    let mut it = random_node(rng, name);
    let mut images = Vec::new();
    for image in ["a", "b"] {
        if rng.random_bool(0.4) {
            let size = (rng.random_range(1..4) * 200) << 20;
            images.push(json!({"names": [format!("{image}:latest")], "sizeBytes": size}));
        }
    }
    it["status"]["images"] = json!(images);
    // Two nodes of one name are one domain.
    if rng.random_bool(0.05) {
        it["metadata"]["labels"][HOST] = json!("n0");
    }
    serde_json::from_value(it).unwrap()
}

fn put_workloads(core: &mut Core, n_sets: usize) {
    for app in ["w", "x", "y", "z"].into_iter().take(n_sets) {
        let it = Tenanted {
            tenant: TenantName::parse("acme").unwrap(),
            object: serde_json::from_value(json!({
                "metadata": {"name": app, "namespace": "ns"},
                "spec": {"selector": {"matchLabels": {"app": app}}},
            }))
            .unwrap(),
        };
        core.put_replica_set(&it);
    }
}

/// The best nodes by going over all of them, in a core that has kept nothing.
fn gone_over(core: &mut Core, pod: &Tenanted<Pod>) -> std::collections::BTreeSet<String> {
    let said = look(core, pod);
    let (key, shape) = (pod.key(), core.shapes.of(pod));
    let outlook = core.outlooks.get_mut(&shape.id).map(|(_, it)| it).unwrap();
    let totals = outlook.totals(&core.profiles[0], &mut core.world, &mut core.tables, &key);
    let Some(highest) = totals.iter().map(|(_, total)| *total).max() else { return [said].into() };
    totals.into_iter().filter(|(_, it)| *it == highest).map(|(name, _)| name).collect()
}

/// Nodes, images, pods, sets and nominations come, change and go.
fn run(seed: u64) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut core = core(Vec::new());
    let (mut nodes, mut pods) = (BTreeMap::new(), BTreeMap::new());
    let templates: Vec<Value> = (0..3).map(|_| random_pod(&mut rng)).collect();
    let templates: Vec<Value> = templates.into_iter().map(|it| varied(&mut rng, it)).collect();
    let mut n_sets = 2;
    put_workloads(&mut core, n_sets);
    let mut nominated: Option<(Tenanted<Pod>, String)> = None;
    for step in 0..60 {
        let what = rng.random_range(0..12);
        if nodes.len() < 3 || what == 0 {
            let name = format!("n{}", rng.random_range(0..12));
            let node = with_images(&mut rng, &name);
            core.put_node(&name, &node);
            nodes.insert(name, node);
            continue;
        }
        match what {
            1 if rng.random_bool(0.3) => {
                let name = nodes.keys().nth(rng.random_range(0..nodes.len())).unwrap().clone();
                core.world.remove_node(&name);
                nodes.remove(&name);
                if let Some((pod, _)) = nominated.take_if(|(_, node)| *node == name) {
                    core.world.nominations.set(&pod.key(), None);
                }
                continue;
            }
            2 | 3 if !pods.is_empty() => {
                let key: ObjectKey =
                    pods.keys().nth(rng.random_range(0..pods.len())).cloned().unwrap();
                core.remove_pod(&key);
                pods.remove(&key);
                continue;
            }
            4 => {
                n_sets = 4.min(n_sets + 1);
                put_workloads(&mut core, n_sets);
                continue;
            }
            5 => {
                let node = nodes.keys().nth(rng.random_range(0..nodes.len())).unwrap().clone();
                let mut value = templates[0].clone();
                value["spec"]["priority"] = json!(1);
                let it = pod("nominated", value);
                promise(&mut core, &it, &node);
                nominated = Some((it, node));
                continue;
            }
            _ => (),
        }
        let template = &templates[rng.random_range(0..templates.len())];
        let mut it = pod(&format!("p{step}"), template.clone());
        let mut fresh = self::core(Vec::new());
        put_workloads(&mut fresh, n_sets);
        nodes.iter().for_each(|(name, node)| fresh.put_node(name, node));
        pods.values().for_each(|pod| fresh.put_pod(pod));
        if let Some((pod, node)) = &nominated {
            promise(&mut fresh, pod, node);
        }
        let (found, expected) = (best(&mut core, &it), gone_over(&mut fresh, &it));
        assert_eq!(found, expected, "seed {seed}, step {step}: {it:#?}");
        if let Ok(node) = core.place(&it) {
            it.object.spec.as_mut().unwrap().node_name = Some(node.to_string());
            pods.insert(it.key(), it);
        }
        if rng.random_bool(0.1) {
            core.sweep();
        }
    }
    core.tables.n_sorted()
}

fn promise(core: &mut Core, pod: &Tenanted<Pod>, node: &str) {
    let (row, shape) = (core.world.nodes.row(node).unwrap(), core.shapes.of(pod));
    core.world.nominations.set(&pod.key(), Some((row, shape)));
}

#[test]
fn the_best_of_the_kinds_is_the_best_of_all() {
    let n_sorted: usize = (0..120).map(run).sum();
    assert!(1000 < n_sorted, "{n_sorted}");
}

/// Nodes in ten zones, each large enough for many pods.
fn many(n_nodes: usize) -> Core {
    let mut core = core(Vec::new());
    for n in 0..n_nodes {
        let labels = json!({HOST: format!("n{n}"), ZONE: format!("z{}", n % 10)});
        core.put_node(
            &format!("n{n}"),
            &node("32", "64Gi", |it| it["metadata"]["labels"] = labels),
        );
    }
    core
}

/// A pod costs a look at the rows that changed since the last one of its kind, and no more.
#[track_caller]
fn check_looks(value: &Value, n_tenants: usize) {
    const N_NODES: usize = 500;
    const N_PODS: usize = 400;
    let mut core = many(N_NODES);
    let tenant = |n: usize| TenantName::parse(&format!("t{}", n % n_tenants)).unwrap();
    for n in 0..n_tenants {
        let set = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}},
        }));
        core.put_replica_set(&Tenanted { tenant: tenant(n), object: set.unwrap() });
    }
    for n in 0..N_PODS {
        let it = Tenanted { tenant: tenant(n), ..pod(&format!("p{n}"), value.clone()) };
        core.place(&it).unwrap();
    }
    let (n_tables, n_looks) = core.tables.counts();
    assert_eq!(n_tables, 1);
    assert!(n_looks <= N_NODES + N_PODS, "{n_looks}");
    // What each tenant reads of what others did is bounded by what it has itself.
    let n_sorted = core.tables.n_sorted();
    let limit = N_NODES + (2 + 3 * n_tenants.min(10)) * N_PODS;
    assert!(n_sorted <= limit, "{n_sorted} for {value}");
}

fn of_web(spec: Value) -> Value {
    let mut it = asking("100m", "1Mi");
    it["metadata"] = json!({"labels": {"app": "web"}});
    it["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    it
}

#[test]
fn a_pod_costs_what_has_changed_since_the_last_one() {
    let mut of_a_set = of_web(json!({}));
    of_a_set["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true,
    }]);
    check_looks(&of_a_set, 1);
    check_looks(&of_a_set, 40);
    let alike = json!({"matchLabels": {"app": "web"}});
    let term = |key: &str| json!({"topologyKey": key, "labelSelector": alike});
    for kind in ["podAffinity", "podAntiAffinity"] {
        let key = if kind == "podAffinity" { ZONE } else { HOST };
        let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": [term(key)]});
        check_looks(&of_web(json!({"affinity": {kind: required}})), 1);
        let weighed = json!([{"weight": 1, "podAffinityTerm": term(HOST)}]);
        let preferred = json!({"preferredDuringSchedulingIgnoredDuringExecution": weighed});
        check_looks(&of_web(json!({"affinity": {kind: preferred}})), 1);
    }
    for when in ["DoNotSchedule", "ScheduleAnyway"] {
        for key in [ZONE, HOST] {
            let spread = json!([{
                "maxSkew": 5, "topologyKey": key, "whenUnsatisfiable": when,
                "labelSelector": alike,
            }]);
            check_looks(&of_web(json!({"topologySpreadConstraints": spread})), 1);
        }
    }
}
