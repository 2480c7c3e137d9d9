//! Shapes share what they have in common, and nothing else.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    random::{pick, random_node, random_pod},
    *,
};

/// What a pod of some tenant is when it is made of a template.
fn made(template: &Value, tenant: &str, name: &str) -> Tenanted<Pod> {
    let tenant = TenantName::parse(tenant).unwrap();
    Tenanted { tenant, ..pod(name, template.clone()) }
}

/// Says of a template what rows know nothing of, or what they do.
fn varied(rng: &mut StdRng, template: &Value, name: &str) -> Value {
    let mut it = template.clone();
    match rng.random_range(0..9) {
        0 => it["metadata"]["labels"]["own"] = json!(name),
        1 => it["spec"]["priority"] = json!(rng.random_range(0..3)),
        2 => {
            it["metadata"]["ownerReferences"] = json!([{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u",
                "controller": true,
            }]);
        }
        3 => {
            let one = json!({"key": pick(rng, &["x", "y"]), "operator": "Exists"});
            let all = [json!([{"operator": "Exists"}]), json!([one]), json!([])];
            it["spec"]["tolerations"] = all[rng.random_range(0..all.len())].clone();
        }
        4 => it["spec"]["nodeSelector"] = json!({"disk": pick(rng, &["ssd", "hdd"])}),
        5 => {
            let port = json!({"containerPort": 80, "hostPort": rng.random_range(80..82)});
            it["spec"]["containers"][0]["ports"] = json!([port]);
        }
        6 => {
            let named = json!({"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [format!("n{}", name.len())]},
            ]});
            it["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
                json!({"nodeSelectorTerms": [named]});
        }
        _ => (),
    }
    it
}

/// Nodes and pods come, change and go; each decision is compared with that of a core which knows
/// the same and has kept nothing. Returns how many shapes and how many tables there were.
fn run(seed: u64) -> (usize, usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut core = core(Vec::new());
    let (mut nodes, mut pods) = (BTreeMap::new(), BTreeMap::new());
    let templates: Vec<Value> = (0..2).map(|_| random_pod(&mut rng)).collect();
    for step in 0..40 {
        let what = rng.random_range(0..10);
        if nodes.is_empty() || what == 0 {
            let name = format!("n{}", rng.random_range(0..6));
            let node: Node = serde_json::from_value(random_node(&mut rng, &name)).unwrap();
            core.put_node(&name, &node);
            nodes.insert(name, node);
            continue;
        }
        if what == 1 && rng.random_bool(0.3) {
            let name = nodes.keys().nth(rng.random_range(0..nodes.len())).unwrap().clone();
            core.world.remove_node(&name);
            nodes.remove(&name);
            continue;
        }
        if what == 2 && !pods.is_empty() {
            let key: ObjectKey = pods.keys().nth(rng.random_range(0..pods.len())).cloned().unwrap();
            core.remove_pod(&key);
            pods.remove(&key);
            continue;
        }
        let (template, name) = (rng.random_range(0..templates.len()), format!("p{step}"));
        let value = varied(&mut rng, &templates[template], &name);
        let mut it = made(&value, pick(&mut rng, &["acme", "globex", "system"]), &name);
        let mut fresh = self::core(Vec::new());
        nodes.iter().for_each(|(name, node)| fresh.put_node(name, node));
        pods.values().for_each(|pod| fresh.put_pod(pod));
        let (found, expected) = (best(&mut core, &it), best(&mut fresh, &it));
        assert_eq!(found, expected, "seed {seed}, step {step}: {it:#?}");
        if let Ok(node) = core.place(&it) {
            it.object.spec.as_mut().unwrap().node_name = Some(node.to_string());
            pods.insert(it.key(), it);
        }
        if rng.random_bool(0.1) {
            core.sweep();
        }
    }
    (core.outlooks.len(), core.tables.counts().0)
}

#[test]
fn what_is_shared_decides_as_what_is_made_anew() {
    let (mut n_shapes, mut n_tables) = (0, 0);
    for seed in 0..300 {
        let (shapes, tables) = run(seed);
        n_shapes += shapes;
        n_tables += tables;
    }
    assert!(3 * n_tables < 2 * n_shapes, "{n_shapes} shapes have {n_tables} tables");
}

/// What many tenants make of one template costs as much as what one makes of it.
#[test]
fn tenants_with_one_template_share_the_looks_at_nodes() {
    const N_NODES: usize = 500;
    let mut core = core(Vec::new());
    for n in 0..N_NODES {
        core.put_node(&format!("n{n}"), &node("4", "4Gi", |_| ()));
    }
    let template = asking("100m", "1Mi");
    for n in 0..1000 {
        let mut value = template.clone();
        value["metadata"] =
            json!({"labels": {"statefulset.kubernetes.io/pod-name": n.to_string()}});
        core.place(&made(&value, &format!("t{}", n % 300), &format!("p{n}"))).unwrap();
    }
    let (n_tables, n_looks) = core.tables.counts();
    assert_eq!(n_tables, 1);
    assert!(n_looks <= N_NODES + 1000, "{n_looks}");
}

/// What asks for something else is looked at by itself.
#[test]
fn what_rows_are_asked_for_is_not_shared() {
    let mut core = core(vec![("a", node("1", "4Gi", |_| ())), ("b", node("4", "1Gi", |_| ()))]);
    let with = |key: &str, value: Value| {
        let mut it = asking("100m", "1Mi");
        it["spec"][key] = value;
        it
    };
    let all = [
        asking("100m", "1Mi"),
        asking("2", "1Mi"),
        asking("100m", "2Gi"),
        with("tolerations", json!([{"operator": "Exists"}])),
        with("tolerations", json!([{"key": "k", "operator": "Exists"}])),
        with("nodeSelector", json!({"zone": "a"})),
        with("virtualMachine", json!({"image": "i"})),
    ];
    for (n, value) in all.iter().enumerate() {
        for tenant in ["acme", "globex"] {
            look(&mut core, &made(value, tenant, "p"));
        }
        assert_eq!(core.tables.counts().0, n + 1, "{value}");
    }
}

/// A pod that names its node looks at no other.
#[test]
fn who_names_a_node_has_no_table() {
    let mut core = core(Vec::new());
    for n in 0..50 {
        core.put_node(&format!("n{n}"), &node("4", "4Gi", |_| ()));
    }
    for n in 0..50 {
        let mut value = asking("3", "1Mi");
        let named = json!({"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": [format!("n{n}")]},
        ]});
        value["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({"nodeSelectorTerms": [named]});
        let node = core.place(&pod(&format!("p{n}"), value.clone())).unwrap();
        assert_eq!(*node, *format!("n{n}"));
        let said = look(&mut core, &pod("q", value));
        let expected = "0/50 nodes are available: 1 Insufficient cpu, 49 node(s) didn't satisfy \
                        plugin(s) [NodeAffinity].";
        assert_eq!(said, expected);
    }
    assert_eq!(core.tables.counts(), (0, 0));
}
