//! Random clusters and pods: what is decided is what a plain model of upstream's rules says.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{model::Cluster, *};

pub(super) fn pick<'a, T: ?Sized>(rng: &mut StdRng, all: &[&'a T]) -> &'a T {
    all[rng.random_range(0..all.len())]
}

pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
pub(super) const HOST: &str = "kubernetes.io/hostname";

pub(super) fn random_node(rng: &mut StdRng, name: &str) -> Value {
    let mut labels = json!({HOST: name});
    if rng.random_bool(0.9) {
        labels[ZONE] = json!(pick(rng, &["a", "b", "c"]));
    }
    if rng.random_bool(0.5) {
        labels["disk"] = json!(pick(rng, &["ssd", "hdd"]));
    }
    let mut taints = Vec::new();
    if rng.random_bool(0.2) {
        let effect = pick(rng, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        taints.push(json!({"key": pick(rng, &["x", "y"]), "effect": effect}));
    }
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints},
        "status": {
            "allocatable": {
                "cpu": format!("{}m", rng.random_range(5..40) * 100),
                "memory": format!("{}Mi", rng.random_range(5..40) * 100),
                "pods": "110",
            },
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn random_term(rng: &mut StdRng) -> Value {
    let mut it = json!({
        "topologyKey": pick(rng, &[ZONE, HOST, "disk"]),
        "labelSelector": {"matchLabels": {"app": pick(rng, &["w", "x", "y", "z"])}},
    });
    if rng.random_bool(0.2) {
        it["labelSelector"] = json!({"matchExpressions": [
            {"key": "app", "operator": pick(rng, &["NotIn", "In"]), "values": ["w", "x"]},
        ]});
    }
    if rng.random_bool(0.2) {
        it["namespaces"] = json!([pick(rng, &["ns", "other"])]);
    }
    it
}

pub(super) fn random_pod(rng: &mut StdRng) -> Value {
    let mut it = json!({
        "metadata": {
            "namespace": if rng.random_bool(0.8) { "ns" } else { "other" },
            "labels": {"app": pick(rng, &["w", "x", "y", "z"])},
        },
        "spec": {"containers": [{"name": "c", "resources": {"requests": {
            "cpu": format!("{}m", rng.random_range(1..12) * 100),
            "memory": format!("{}Mi", rng.random_range(1..12) * 100),
        }}}]},
    });
    let spec = &mut it["spec"];
    if rng.random_bool(0.3) {
        spec["tolerations"] = json!([{"key": pick(rng, &["x", "y"]), "operator": "Exists"}]);
    }
    if rng.random_bool(0.15) {
        spec["nodeSelector"] = json!({"disk": pick(rng, &["ssd", "hdd"])});
    }
    let in_zones = |rng: &mut StdRng| {
        json!({"matchExpressions": [{
            "key": ZONE, "operator": pick(rng, &["In", "NotIn"]),
            "values": [pick(rng, &["a", "b", "c"])],
        }]})
    };
    let affinity = &mut spec["affinity"];
    *affinity = json!({});
    if rng.random_bool(0.15) {
        affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({"nodeSelectorTerms": [in_zones(rng), in_zones(rng)]});
    }
    if rng.random_bool(0.2) {
        affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] =
            json!([{"weight": rng.random_range(1..100), "preference": in_zones(rng)}]);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        if rng.random_bool(0.15) {
            let terms: Vec<Value> = (0..rng.random_range(1..3)).map(|_| random_term(rng)).collect();
            affinity[kind]["requiredDuringSchedulingIgnoredDuringExecution"] = json!(terms);
        }
        if rng.random_bool(0.2) {
            affinity[kind]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([
                {"weight": rng.random_range(1..100), "podAffinityTerm": random_term(rng)},
            ]);
        }
    }
    if rng.random_bool(0.4) {
        let constraints: Vec<Value> = (0..rng.random_range(1..3))
            .map(|_| {
                let hard = rng.random_bool(0.5);
                let mut it = json!({
                    "maxSkew": rng.random_range(1..4),
                    "topologyKey": pick(rng, &[ZONE, HOST, "disk"]),
                    "whenUnsatisfiable": if hard { "DoNotSchedule" } else { "ScheduleAnyway" },
                    "labelSelector": {"matchLabels": {"app": pick(rng, &["w", "x", "y", "z"])}},
                });
                if hard && rng.random_bool(0.3) {
                    it["minDomains"] = json!(rng.random_range(1..5));
                }
                if rng.random_bool(0.3) {
                    it["nodeTaintsPolicy"] = json!(pick(rng, &["Honor", "Ignore"]));
                }
                if rng.random_bool(0.3) {
                    it["nodeAffinityPolicy"] = json!(pick(rng, &["Honor", "Ignore"]));
                }
                it
            })
            .collect();
        spec["topologySpreadConstraints"] = json!(constraints);
    }
    it
}

/// One cluster in which nodes and pods come, change and go, and each pod is decided on both ways.
fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::default();
    let mut core = Core::new(vec![Profile::default()]);
    for n in 0..rng.random_range(1..7) {
        let name = format!("n{n}");
        let node: Node = serde_json::from_value(random_node(&mut rng, &name)).unwrap();
        core.put_node(&name, &node);
        cluster.nodes.insert(name, node);
    }
    for step in 0..40 {
        let name = format!("p{step}");
        match rng.random_range(0..10) {
            0 if !cluster.pods.is_empty() => {
                let gone = cluster.pods.swap_remove(rng.random_range(0..cluster.pods.len()));
                core.remove_pod(
                    &Tenanted { tenant: TenantName::parse("acme").unwrap(), object: gone }.key(),
                );
            }
            1 => {
                let names: Vec<String> = cluster.nodes.keys().cloned().collect();
                let name = names[rng.random_range(0..names.len())].clone();
                let node: Node = serde_json::from_value(random_node(&mut rng, &name)).unwrap();
                core.put_node(&name, &node);
                cluster.nodes.insert(name, node);
            }
            _ => {
                let mut pod = super::pod(&name, random_pod(&mut rng));
                let expected = cluster.look(&pod.object);
                let found = best(&mut core, &pod);
                let expected = expected.unwrap_or_else(|said| [said].into());
                assert_eq!(found, expected, "seed {seed}, step {step}: {pod:#?} in {cluster:#?}");
                // More than one look for the same pod must not change anything.
                if let Ok(node) = core.place(&pod) {
                    pod.object.spec.as_mut().unwrap().node_name = Some(node.to_string());
                    cluster.pods.push((*pod.object).clone());
                }
                core.sweep();
            }
        }
    }
}

#[test]
fn decisions_are_those_of_a_plain_model() {
    for seed in 0..400 {
        run(seed);
    }
}
