//! Random clusters with everything in them that decides where a pod goes, as the objects that any
//! scheduler reads.

use serde::{Deserialize, Serialize};

use super::super::random::{HOST, ZONE, pick, random_node, random_pod};
use super::*;

/// A cluster at one moment, and pods that have no node yet. Each of them is decided on as if the
/// others were not there.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Snapshot {
    pub(super) seed: u64,
    pub(super) namespaces: Vec<Value>,
    pub(super) nodes: Vec<Value>,
    pub(super) pods: Vec<Value>,
    pub(super) services: Vec<Value>,
    pub(super) replica_sets: Vec<Value>,
    pub(super) classes: Vec<Value>,
    pub(super) volumes: Vec<Value>,
    pub(super) claims: Vec<Value>,
    pub(super) drivers: Vec<Value>,
    pub(super) budgets: Vec<Value>,
    /// Pods without nodes for which room was made on one.
    pub(super) nominated: Vec<Value>,
    pub(super) pending: Vec<Value>,
}

const IMAGES: [&str; 4] = ["app:v1", "app:v2", "registry.example/big:1", "tool"];
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

fn chance(rng: &mut StdRng, percent: u32) -> bool {
    rng.random_ratio(percent, 100)
}

fn node(rng: &mut StdRng, name: &str) -> Value {
    let mut it = random_node(rng, name);
    if chance(rng, 50) {
        it["metadata"]["labels"]["rank"] = json!(rng.random_range(1..6).to_string());
    }
    if chance(rng, 4) {
        it["spec"]["unschedulable"] = json!(true);
    }
    if chance(rng, 15) {
        let effect = pick(rng, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        let taint = json!({"key": "z", "value": pick(rng, &["1", "2"]), "effect": effect});
        it["spec"]["taints"].as_array_mut().unwrap().push(taint);
    }
    let offered = &mut it["status"]["allocatable"];
    if chance(rng, 75) {
        // Room for many.
        offered["cpu"] = json!(rng.random_range(4..20).to_string());
        offered["memory"] = json!(format!("{}Gi", rng.random_range(4..20)));
    }
    if chance(rng, 10) {
        offered["pods"] = json!(rng.random_range(0..4).to_string());
    }
    if chance(rng, 70) {
        offered["ephemeral-storage"] = json!(format!("{}Gi", rng.random_range(1..30)));
    }
    if chance(rng, 60) {
        offered["example.com/gpu"] = json!(rng.random_range(0..5).to_string());
    }
    let mut images = Vec::new();
    for (n, image) in IMAGES.iter().enumerate() {
        if chance(rng, 40) {
            // An image is as large on one node as on another.
            let bytes = [40, 350, 1_500, 90][n] * 1_000_000_u64;
            let name =
                if image.contains(':') { (*image).to_owned() } else { format!("{image}:latest") };
            images.push(json!({"names": [name], "sizeBytes": bytes}));
        }
    }
    it["status"]["images"] = json!(images);
    it
}

fn toleration(rng: &mut StdRng) -> Value {
    let effect = pick(rng, &["", "NoSchedule", "NoExecute", "PreferNoSchedule"]);
    match rng.random_range(0..4) {
        0 => json!({"operator": "Exists"}),
        1 => json!({"operator": "Exists", "effect": effect}),
        2 => json!({"key": "z", "value": pick(rng, &["1", "2"]), "effect": effect}),
        _ => json!({"key": pick(rng, &["x", "y"]), "operator": "Exists", "effect": effect}),
    }
}

fn requirement(rng: &mut StdRng) -> Value {
    match rng.random_range(0..4) {
        0 => json!({"key": "rank", "operator": pick(rng, &["Gt", "Lt"]), "values": ["3"]}),
        1 => json!({"key": "disk", "operator": pick(rng, &["Exists", "DoesNotExist"])}),
        2 => json!({"key": "rank", "operator": pick(rng, &["In", "NotIn"]), "values": ["1", "2"]}),
        _ => json!({"key": ZONE, "operator": "In", "values": ["a", "b"]}),
    }
}

fn container(rng: &mut StdRng, name: &str) -> Value {
    let mut requests = json!({});
    if chance(rng, 70) {
        requests["cpu"] = json!(format!("{}m", rng.random_range(1..12) * 100));
    }
    if chance(rng, 70) {
        requests["memory"] = json!(format!("{}Mi", rng.random_range(1..12) * 100));
    }
    if chance(rng, 10) {
        requests["ephemeral-storage"] = json!(format!("{}Gi", rng.random_range(1..8)));
    }
    if chance(rng, 10) {
        requests["example.com/gpu"] = json!("1");
    }
    let image = IMAGES[rng.random_range(0..IMAGES.len())];
    let mut it = json!({"name": name, "image": image, "resources": {"requests": requests}});
    if chance(rng, 12) {
        let address = pick(rng, &["", "0.0.0.0", "127.0.0.1", "10.0.0.1"]);
        it["ports"] = json!([{
            "containerPort": 80, "hostPort": rng.random_range(80..82), "hostIP": address,
            "protocol": pick(rng, &["TCP", "TCP", "UDP"]),
        }]);
    }
    it
}

/// Changes terms of affinity to ways of choosing pods that are rarer.
fn vary_terms(rng: &mut StdRng, affinity: &mut Value) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        for when in ["required", "preferred"] {
            let when = format!("{when}DuringSchedulingIgnoredDuringExecution");
            let Some(terms) = affinity[kind][&when].as_array_mut() else { continue };
            for term in terms {
                let term = match term.get_mut("podAffinityTerm") {
                    Some(_) => &mut term["podAffinityTerm"],
                    None => term,
                };
                match rng.random_range(0..12) {
                    0 => term["namespaceSelector"] = json!({}),
                    1 => term["namespaceSelector"] = json!({"matchLabels": {"team": "one"}}),
                    2 => term["labelSelector"] = json!({}),
                    3 => {
                        term["labelSelector"] =
                            json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]});
                    }
                    _ => (),
                }
            }
        }
        if affinity[kind].is_null() {
            affinity.as_object_mut().unwrap().remove(kind);
        }
    }
}

fn pod(rng: &mut StdRng, name: &str, snapshot: &Snapshot) -> Value {
    let mut it = random_pod(rng);
    let namespace = it["metadata"]["namespace"].clone();
    it["metadata"]["name"] = json!(name);
    it["metadata"]["uid"] = json!(format!("uid-{name}"));
    if chance(rng, 30) {
        let app = it["metadata"]["labels"]["app"].clone();
        it["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true, "uid": "u",
            "name": format!("set-{}", app.as_str().unwrap()),
        }]);
    }
    it["spec"]["priority"] = json!([0, 0, 0, 5, 10][rng.random_range(0..5)]);
    if chance(rng, 8) {
        it["spec"]["preemptionPolicy"] = json!("Never");
    }
    it["metadata"]["labels"]["tier"] = json!(pick(rng, &["front", "back"]));
    let spec = &mut it["spec"];
    spec["schedulerName"] = json!("default-scheduler");
    if chance(rng, 40) {
        let n = rng.random_range(1..4);
        let all: Vec<Value> = (0..n).map(|n| container(rng, &format!("c{n}"))).collect();
        spec["containers"] = json!(all);
    }
    if chance(rng, 15) {
        let mut first = container(rng, "i0");
        let mut second = container(rng, "i1");
        first.as_object_mut().unwrap().remove("ports");
        if chance(rng, 60) {
            second["restartPolicy"] = json!("Always");
        }
        spec["initContainers"] =
            if chance(rng, 50) { json!([first, second]) } else { json!([second, first]) };
    }
    if chance(rng, 8) {
        spec["overhead"] = json!({"cpu": "150m", "memory": "64Mi"});
    }
    if chance(rng, 6) {
        spec["resources"] = json!({"requests": {"cpu": "2", "memory": "3Gi"}});
    }
    if chance(rng, 25) {
        let n = rng.random_range(1..3);
        spec["tolerations"] = json!((0..n).map(|_| toleration(rng)).collect::<Vec<_>>());
    }
    if chance(rng, 15) {
        let n = rng.random_range(1..3);
        let terms: Vec<Value> = (0..n)
            .map(|_| {
                let mut term = json!({"matchExpressions": [requirement(rng)]});
                if chance(rng, 20) {
                    term["matchFields"] = json!([{
                        "key": "metadata.name", "operator": pick(rng, &["In", "NotIn"]),
                        "values": [format!("n{}", rng.random_range(0..4))],
                    }]);
                }
                if chance(rng, 10) {
                    term.as_object_mut().unwrap().remove("matchExpressions");
                }
                term
            })
            .collect();
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({"nodeSelectorTerms": terms});
    }
    if chance(rng, 15) {
        let weight = rng.random_range(1..100);
        spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([{"weight": weight, "preference": {"matchExpressions": [requirement(rng), requirement(rng)]}}]);
    }
    vary_terms(rng, &mut spec["affinity"]);
    if let Some(constraints) = spec["topologySpreadConstraints"].as_array_mut() {
        // Two constraints of one kind for one key are invalid.
        let mut seen = std::collections::HashSet::new();
        constraints.retain(|it| {
            seen.insert((it["topologyKey"].to_string(), it["whenUnsatisfiable"].to_string()))
        });
        for it in constraints {
            if chance(rng, 8) {
                it["labelSelector"] = json!({});
            }
            if chance(rng, 5) {
                it.as_object_mut().unwrap().remove("labelSelector");
            } else if chance(rng, 10) {
                it["matchLabelKeys"] = json!([pick(rng, &["tier", "absent"])]);
            }
        }
    }
    if chance(rng, 25) {
        let claims = snapshot.claims.iter().filter(|it| it["metadata"]["namespace"] == namespace);
        let mut names: Vec<&Value> = claims.map(|it| &it["metadata"]["name"]).collect();
        let absent = json!("absent");
        if chance(rng, 5) {
            names.push(&absent);
        }
        let mut volumes = Vec::new();
        for n in 0..rng.random_range(1..3) {
            if !names.is_empty() {
                let claim = names.swap_remove(rng.random_range(0..names.len()));
                volumes.push(
                    json!({"name": format!("v{n}"), "persistentVolumeClaim": {"claimName": claim}}),
                );
            }
        }
        if chance(rng, 10) {
            let image = json!({"reference": pick(rng, &IMAGES), "pullPolicy": "IfNotPresent"});
            volumes.push(json!({"name": "image", "image": image}));
        }
        spec["volumes"] = json!(volumes);
    }
    it
}

/// Volumes, some with claims that are bound to them, and claims that wait.
fn storage(rng: &mut StdRng, it: &mut Snapshot) {
    let class = |name: &str, mode: &str, provisioner: &str| json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
    it.classes = vec![
        class("now", "Immediate", "csi.example"),
        class("later", "WaitForFirstConsumer", "csi.example"),
        class("by-hand", "WaitForFirstConsumer", "kubernetes.io/no-provisioner"),
    ];
    if chance(rng, 50) {
        it.classes[1]["allowedTopologies"] = json!([{"matchLabelExpressions": [
            {"key": ZONE, "values": ["a", pick(rng, &["b", "c"])]},
        ]}]);
    }
    let mode = |rng: &mut StdRng| match rng.random_range(0..4) {
        0 => "ReadWriteOncePod",
        1 => "ReadWriteMany",
        _ => "ReadWriteOnce",
    };
    for n in 0..rng.random_range(0..7) {
        let name = format!("pv{n}");
        let modes = json!([mode(rng)]);
        let mut volume = json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {}},
            "spec": {
                "capacity": {"storage": format!("{}Gi", rng.random_range(1..10))},
                "accessModes": modes, "storageClassName": "by-hand", "volumeMode": "Filesystem",
                "csi": {"driver": pick(rng, &["csi.example", "other.example"]), "volumeHandle": format!("h{n}")},
            },
            "status": {"phase": "Available"},
        });
        if chance(rng, 50) {
            let (key, values) =
                if chance(rng, 50) { (ZONE, ["a", "b"]) } else { (HOST, ["n0", "n1"]) };
            let n_values = rng.random_range(1..3);
            volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": key, "operator": "In", "values": values[..n_values]}]},
            ]}});
        }
        if chance(rng, 20) {
            volume["metadata"]["labels"][ZONE] = json!(pick(rng, &["a", "b", "a__c"]));
        }
        if chance(rng, 60) {
            let claim = format!("bound{n}");
            let namespace = pick(rng, &["ns", "ns", "other"]);
            volume["spec"]["claimRef"] = json!({"namespace": namespace, "name": claim, "uid": format!("uid-{claim}"), "kind": "PersistentVolumeClaim"});
            volume["status"]["phase"] = json!("Bound");
            it.claims.push(json!({
                "metadata": {
                    "name": claim, "namespace": namespace, "uid": format!("uid-{claim}"),
                    "annotations": {"pv.kubernetes.io/bind-completed": "yes"},
                },
                "spec": {
                    "accessModes": modes, "storageClassName": "by-hand", "volumeName": name,
                    "volumeMode": "Filesystem", "resources": {"requests": {"storage": "1Gi"}},
                },
                "status": {"phase": "Bound"},
            }));
        }
        it.volumes.push(volume);
    }
    for n in 0..rng.random_range(0..4) {
        let name = format!("free{n}");
        let mut claim = json!({
            "metadata": {
                "name": name, "namespace": pick(rng, &["ns", "ns", "other"]),
                "uid": format!("uid-{name}"), "annotations": {},
            },
            "spec": {
                "accessModes": [mode(rng)],
                "storageClassName": pick(rng, &["now", "later", "later", "by-hand", "by-hand"]),
                "volumeMode": "Filesystem",
                "resources": {"requests": {"storage": format!("{}Gi", rng.random_range(1..10))}},
            },
            "status": {"phase": "Pending"},
        });
        if claim["spec"]["storageClassName"] == "later" && chance(rng, 20) {
            claim["metadata"]["annotations"][SELECTED_NODE] = json!("n0");
        }
        it.claims.push(claim);
    }
    for node in &it.nodes {
        let name = &node["metadata"]["name"];
        let mut drivers = Vec::new();
        for driver in ["csi.example", "other.example"] {
            if chance(rng, 60) {
                let mut entry = json!({"name": driver, "nodeID": name, "topologyKeys": []});
                if chance(rng, 60) {
                    entry["allocatable"] = json!({"count": rng.random_range(0..3)});
                }
                drivers.push(entry);
            }
        }
        if chance(rng, 80) {
            it.drivers.push(json!({"metadata": {"name": name}, "spec": {"drivers": drivers}}));
        }
    }
}

/// Takes claims away from a pod that are for one pod, and which another has.
fn leave_to_one(it: &Snapshot, pod: &mut Value) {
    let namespace = pod["metadata"]["namespace"].clone();
    let uses = |other: &Value, claim: &Value| {
        let mut volumes = other["spec"]["volumes"].as_array().into_iter().flatten();
        other["metadata"]["namespace"] == namespace
            && volumes.any(|it| it["persistentVolumeClaim"]["claimName"] == *claim)
    };
    let is_for_one = |claim: &Value| {
        it.claims.iter().any(|it| {
            it["metadata"]["namespace"] == namespace
                && it["metadata"]["name"] == *claim
                && it["spec"]["accessModes"][0] == "ReadWriteOncePod"
        })
    };
    if let Some(volumes) = pod["spec"]["volumes"].as_array_mut() {
        volumes.retain(|volume| {
            let claim = &volume["persistentVolumeClaim"]["claimName"];
            !is_for_one(claim) || !it.pods.iter().any(|other| uses(other, claim))
        });
    }
}

/// The cluster of a seed.
pub(super) fn snapshot(seed: u64) -> Snapshot {
    let mut rng = StdRng::seed_from_u64(seed);
    let rng = &mut rng;
    let mut it = Snapshot { seed, ..Snapshot::default() };
    for (name, team) in [("ns", "one"), ("other", "two")] {
        it.namespaces.push(json!({"metadata": {"name": name, "labels": {"team": team}}}));
        for app in ["w", "x"] {
            if chance(rng, 30) {
                it.services.push(json!({
                    "metadata": {"name": app, "namespace": name}, "spec": {"selector": {"app": app}},
                }));
            }
            it.replica_sets.push(json!({
                "metadata": {"name": format!("set-{app}"), "namespace": name},
                "spec": {"selector": {"matchLabels": {"app": app}}},
            }));
        }
    }
    let n_nodes = if chance(rng, 5) { 40 } else { rng.random_range(1..9) };
    for n in 0..n_nodes {
        let one = node(rng, &format!("n{n}"));
        it.nodes.push(one);
    }
    if chance(rng, 50) {
        storage(rng, &mut it);
    }
    let mut starts: Vec<u32> = (0..200).collect();
    for n in 0..rng.random_range(0..4 * it.nodes.len()) {
        let mut one = pod(rng, &format!("p{n}"), &it);
        let started = starts.swap_remove(rng.random_range(0..starts.len()));
        let (minute, second) = (started / 60, started % 60);
        leave_to_one(&it, &mut one);
        one["spec"]["nodeName"] = json!(format!("n{}", rng.random_range(0..it.nodes.len())));
        let has_ports = |pod: &Value| pod["spec"]["containers"].to_string().contains("hostPort");
        let mut beside =
            it.pods.iter().filter(|it| it["spec"]["nodeName"] == one["spec"]["nodeName"]);
        if beside.any(has_ports) {
            for container in one["spec"]["containers"].as_array_mut().unwrap() {
                container.as_object_mut().unwrap().remove("ports");
            }
        }
        one["status"]["startTime"] = json!(format!("2026-01-01T00:{minute:02}:{second:02}Z"));
        if chance(rng, 6) {
            one["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            // Upstream, thinking a pod away that ends already, uncounts what it never counted.
            one["spec"]["priority"] = json!(30);
        }
        it.pods.push(one);
    }
    for n in 0..rng.random_range(0..3) {
        if chance(rng, 20) {
            let mut one = pod(rng, &format!("m{n}"), &it);
            let node = format!("n{}", rng.random_range(0..it.nodes.len()));
            one["status"]["nominatedNodeName"] = json!(node);
            // Upstream leaves out of account what these would bring in that nothing else has.
            for it in ["affinity", "volumes"] {
                one["spec"].as_object_mut().unwrap().remove(it);
            }
            it.nominated.push(one);
        }
    }
    for n in 0..rng.random_range(0..3) {
        let app = pick(rng, &["w", "x", "y", "z"]);
        it.budgets.push(json!({
            "metadata": {"name": format!("b{n}"), "namespace": pick(rng, &["ns", "other"])},
            "spec": {"selector": {"matchLabels": {"app": app}}, "minAvailable": 1},
            "status": {
                "disruptionsAllowed": rng.random_range(0..3), "currentHealthy": 0,
                "desiredHealthy": 0, "expectedPods": 0,
            },
        }));
    }
    for n in 0..6 {
        let mut one = pod(rng, &format!("q{n}"), &it);
        if chance(rng, 30) {
            one["spec"]["priority"] = json!(20);
        }
        it.pending.push(one);
    }
    it
}
