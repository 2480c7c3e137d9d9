//! Claims of devices: what is found for them, and what is said if there is nothing.

use insula_api::slots::Block;
use insula_membership::Holders;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice},
    storage::v1::StorageClass,
};
use serde::de::DeserializeOwned;

use super::*;
use crate::{devices::ClaimWork, storage::Assumed};

const DRIVER: &str = "gpus.example.com";

fn read<T: DeserializeOwned>(tenant: &str, value: Value) -> Tenanted<T> {
    let tenant = TenantName::parse(tenant).unwrap();
    Tenanted { tenant, object: serde_json::from_value(value).unwrap() }
}

/// A device with a model and an index, and what else `more` says.
fn gpu(name: &str, model: &str, more: Value) -> Value {
    let mut it = json!({
        "name": name, "attributes": {"model": {"string": model}, "bus": {"int": name.len()}},
        "capacity": {"memory": {"value": "40Gi"}},
    });
    it.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    it
}

fn put_slice(core: &mut Core, name: &str, more: Value, devices: Vec<Value>) {
    let mut spec = json!({
        "driver": DRIVER, "devices": devices,
        "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let it: ResourceSlice =
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
    core.world.devices.put_slice(&name.into(), Some(&it));
}

fn put_class(core: &mut Core, name: &str, expression: &str) {
    let class = json!({"metadata": {"name": name}, "spec": {
        "selectors": [{"cel": {"expression": expression}}],
        "config": [{"opaque": {"driver": DRIVER, "parameters": {"class": name}}}],
    }});
    let class: Tenanted<DeviceClass> = read("system", class);
    core.world.devices.put_class(&class.key(), Some(Arc::new(class)));
}

fn put_claim(core: &mut Core, name: &str, devices: Value, status: Value) {
    let claim = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")},
        "spec": {"devices": devices}, "status": status,
    });
    let claim: Tenanted<ResourceClaim> = read("acme", claim);
    core.world.devices.put_claim(&claim.key(), Some(Arc::new(claim)));
}

/// A request for so many devices of class `gpu`, with what else `more` says.
fn request(name: &str, count: i64, more: Value) -> Value {
    let mut exactly = json!({"deviceClassName": "gpu", "count": count});
    exactly.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"name": name, "exactly": exactly})
}

fn having(name: &str, claims: &[&str]) -> Tenanted<Pod> {
    let claims: Vec<Value> =
        claims.iter().map(|it| json!({"name": it, "resourceClaimName": it})).collect();
    pod(name, json!({"spec": {"containers": [{"name": "c"}], "resourceClaims": claims}}))
}

fn allocation(work: &ClaimWork) -> &AllocationResult {
    work.allocation.as_ref().unwrap()
}

/// Request and device of each result of the first claim, with the node; or what is said.
fn given(core: &mut Core, pod: &Tenanted<Pod>) -> String {
    let shape = core.shapes.of(pod);
    match core.decide(&pod.key(), &shape) {
        Decision::Take { row, work } => {
            let node = core.world.nodes.name(row).to_owned();
            let all = work.devices.iter().flat_map(|it| {
                let devices = allocation(it).devices.clone().unwrap_or_default();
                devices.results.unwrap_or_default()
            });
            let all: Vec<_> = all.map(|it| format!("{}={}", it.request, it.device)).collect();
            format!("{node}: {}", all.join(" "))
        }
        Decision::None(failure) => {
            let (said, _) = failure
                .message
                .split_once(" no new claims")
                .or_else(|| failure.message.split_once(" deallocation"))
                .unwrap_or_default();
            said.to_owned()
        }
    }
}

/// Two nodes with two devices each.
fn two_nodes() -> Core {
    let mut core = core(vec![("a", node("4", "4Gi", |_| ())), ("b", node("4", "4Gi", |_| ()))]);
    for name in ["a", "b"] {
        let devices = vec![gpu("g1", "small", json!({})), gpu("g20", "large", json!({}))];
        put_slice(&mut core, name, json!({"nodeName": name}), devices);
    }
    put_class(&mut core, "gpu", &format!("device.driver == '{DRIVER}'"));
    core
}

fn large() -> Value {
    let expression = format!("device.attributes['{DRIVER}'].model == 'large'");
    json!({"selectors": [{"cel": {"expression": expression}}]})
}

/// Gives a pod what was found for it.
fn take(core: &mut Core, pod: &Tenanted<Pod>) -> Vec<ClaimWork> {
    let shape = core.shapes.of(pod);
    let Decision::Take { row, work } = core.decide(&pod.key(), &shape) else {
        panic!("{}", given(core, pod));
    };
    let reserve = core.profiles[0].reserve.clone().unwrap();
    reserve.reserve(&mut core.world, &work, row);
    let uid = pod.uid().into();
    let held = Held { uid, shape, row, started: i64::MAX, is_assumed: true };
    core.world.hold(&pod.key(), held);
    work.devices
}

#[test]
fn each_device_is_given_once() {
    let mut core = two_nodes();
    for n in 0..3 {
        let devices = json!({"requests": [request("r", 1, large())]});
        put_claim(&mut core, &format!("c{n}"), devices, json!({}));
    }
    let mut nodes = std::collections::BTreeSet::new();
    for n in 0..2 {
        let work = take(&mut core, &having(&format!("p{n}"), &[&format!("c{n}")]));
        let allocation = allocation(&work[0]);
        let selector = json!(allocation.node_selector);
        let field = &selector["nodeSelectorTerms"][0]["matchFields"][0];
        assert_eq!(field["key"], "metadata.name");
        nodes.insert(field["values"][0].as_str().unwrap().to_owned());
        let devices = json!(allocation.devices);
        assert_eq!(devices["results"][0]["device"], "g20");
        assert_eq!(devices["config"][0]["source"], "FromClass");
        assert_eq!(devices["config"][0]["requests"], json!(["r"]));
    }
    assert_eq!(nodes.len(), 2);
    assert_eq!(core.world.devices.n_taken()[DRIVER], 2);
    assert_eq!(
        given(&mut core, &having("p2", &["c2"])),
        "0/2 nodes are available: 2 cannot allocate all claims."
    );
    // A claim that gave its device back makes room.
    let key = ObjectKey::new(&TenantName::parse("acme").unwrap(), "ns", "c0");
    core.world.devices.settle(&[key]);
    assert!(given(&mut core, &having("p2", &["c2"])).ends_with(": r=g20"));
}

/// Whether a pod that found nothing may look again because of what giving back has caused.
fn is_woken(core: &mut Core, pod: &Tenanted<Pod>, taken: &Assumed) -> bool {
    let shape = core.shapes.of(pod);
    let Decision::None(failure) = core.decide(&pod.key(), &shape) else {
        panic!("{} finds a node", pod.key());
    };
    let reserve = core.profiles[0].reserve.clone().unwrap();
    let events = reserve.unreserve(&mut core.world, &shape, taken);
    core.may_help(&shape, failure.refused_by, &events)
}

#[test]
fn who_waits_for_devices_hears_that_they_are_given_back() {
    let mut core = two_nodes();
    for n in 0..3 {
        let devices = json!({"requests": [request("r", 1, large())]});
        put_claim(&mut core, &format!("c{n}"), devices, json!({}));
    }
    let mut given = None;
    for n in 0..2 {
        let work = take(&mut core, &having(&format!("p{n}"), &[&format!("c{n}")]));
        given = work[0].allocation.clone();
    }
    let waiting = having("p2", &["c2"]);
    let claims = |n: usize| {
        let mut it = Assumed::default();
        it.devices.push(ObjectKey::new(
            &TenantName::parse("acme").unwrap(),
            "ns",
            &format!("c{n}"),
        ));
        it
    };
    // It was written down what the second one was given: nothing is free by that.
    let devices = json!({"requests": [request("r", 1, large())]});
    put_claim(&mut core, "c1", devices, json!({"allocation": given}));
    assert!(!is_woken(&mut core, &waiting, &claims(1)));
    assert!(is_woken(&mut core, &waiting, &claims(0)));
}

#[test]
fn who_waits_for_volumes_hears_that_they_are_given_back() {
    let mut core = core(vec![("a", node("4", "4Gi", |_| ()))]);
    let storage = &mut core.world.storage;
    let class: Tenanted<StorageClass> = read(
        "acme",
        json!({
            "metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        }),
    );
    storage.put_class(&class.key(), Some(&class));
    let put_volume = |core: &mut Core, claim: Value| {
        let volume: Tenanted<PersistentVolume> = read(
            "acme",
            json!({
                "metadata": {"name": "v"},
                "spec": {
                    "storageClassName": "local", "capacity": {"storage": "1Gi"},
                    "accessModes": ["ReadWriteOnce"], "claimRef": claim,
                },
                "status": {"phase": "Available"},
            }),
        );
        core.world.storage.put_volume(&volume.key(), Some(&volume));
    };
    put_volume(&mut core, Value::Null);
    let mounting = |name: &str, claim: &str| {
        let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": claim}});
        pod(name, json!({"spec": {"containers": [{"name": "c"}], "volumes": [volume]}}))
    };
    for name in ["c0", "c1"] {
        let claim: Tenanted<PersistentVolumeClaim> = read(
            "acme",
            json!({
                "metadata": {"name": name, "namespace": "ns", "uid": name},
                "spec": {
                    "storageClassName": "local", "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            }),
        );
        core.world.storage.put_claim(&claim.key(), Some(&claim));
    }
    let first = mounting("p0", "c0");
    let shape = core.shapes.of(&first);
    let Decision::Take { row, work } = core.decide(&first.key(), &shape) else {
        panic!("{}", look(&mut core, &first));
    };
    let reserve = core.profiles[0].reserve.clone().unwrap();
    let taken = reserve.reserve(&mut core.world, &work, row);
    assert!(is_woken(&mut core, &mounting("p1", "c1"), &taken));
    // It was written down whose it is: nothing is free by that.
    put_volume(&mut core, json!({"namespace": "ns", "name": "c0", "uid": "c0"}));
    assert!(!is_woken(&mut core, &mounting("p1", "c1"), &taken));
}

#[test]
fn what_pods_wait_for_is_said() {
    let mut core = two_nodes();
    let said = |core: &mut Core, pod: &Tenanted<Pod>| {
        given(core, pod).replace("0/2 nodes are available: ", "")
    };
    let pod_of_template = pod(
        "t",
        json!({"spec": {
            "containers": [], "resourceClaims": [{"name": "x", "resourceClaimTemplateName": "t"}],
        }}),
    );
    assert_eq!(said(&mut core, &pod_of_template), "pod \"ns/t\": ResourceClaim not created yet.");
    assert_eq!(
        said(&mut core, &having("p", &["c"])),
        "resourceclaim.resource.k8s.io \"c\" not found."
    );
    let other = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "none"}}]});
    put_claim(&mut core, "c", other, json!({}));
    assert_eq!(
        said(&mut core, &having("p", &["c"])),
        "request r: device class none does not exist."
    );
    let wrong = json!({"selectors": [{"cel": {"expression": "device.attributes['x.y'].z"}}]});
    put_claim(&mut core, "c", json!({"requests": [request("r", 1, wrong)]}), json!({}));
    let why = said(&mut core, &having("p", &["c"]));
    assert!(why.starts_with("2 claim ns/c: selector #0: CEL runtime error: "), "{why}");
    put_claim(&mut core, "c", json!({"requests": [request("r", 33, json!({}))]}), json!({}));
    assert_eq!(said(&mut core, &having("p", &["c"])), "2 cannot allocate all claims.");
}

#[test]
fn counts_constraints_and_choices() {
    let mut core = two_nodes();
    let mut check = |devices: Value, expected: &str| {
        put_claim(&mut core, "c", devices, json!({}));
        let found = given(&mut core, &having("p", &["c"]));
        let found =
            found.strip_prefix("a: ").or_else(|| found.strip_prefix("b: ")).unwrap_or(&found);
        assert_eq!(found, expected);
    };
    let none = "0/2 nodes are available: 2 cannot allocate all claims.";
    check(json!({"requests": [request("r", 2, json!({}))]}), "r=g1 r=g20");
    check(json!({"requests": [request("r", 3, json!({}))]}), none);
    let all = json!({"allocationMode": "All", "count": null});
    check(json!({"requests": [request("r", 0, all.clone())]}), "r=g1 r=g20");
    // The first request must leave the second what it needs.
    let both = [request("any", 1, json!({})), request("big", 1, large())];
    check(json!({"requests": both}), "any=g1 big=g20");
    let both = [request("big", 1, large()), request("any", 1, json!({}))];
    check(json!({"requests": both}), "big=g20 any=g1");
    let attribute = |name: &str, how: &str| json!([{how: format!("{DRIVER}/{name}")}]);
    let two = [request("r", 2, json!({}))];
    let alike = attribute("model", "matchAttribute");
    check(json!({"requests": two, "constraints": alike}), none);
    let differ = attribute("model", "distinctAttribute");
    check(json!({"requests": two, "constraints": differ}), "r=g1 r=g20");
    check(json!({"requests": two, "constraints": attribute("none", "matchAttribute")}), none);
    let sub =
        |name: &str, count: i64| json!({"name": name, "deviceClassName": "gpu", "count": count});
    let choices = json!([{"name": "r", "firstAvailable": [sub("four", 4), sub("two", 2)]}]);
    check(json!({"requests": choices}), "r/two=g1 r/two=g20");
    let memory = |amount: &str| json!({"capacity": {"requests": {"memory": amount}}});
    check(json!({"requests": [request("r", 1, memory("40Gi"))]}), "r=g1");
    check(json!({"requests": [request("r", 1, memory("41Gi"))]}), none);
}

#[test]
fn taints_keep_away_and_admins_look_at_all() {
    let mut core = core(vec![("a", node("4", "4Gi", |_| ()))]);
    put_class(&mut core, "gpu", "true");
    let broken = json!({"taints": [{"key": "broken", "effect": "NoSchedule"}]});
    let devices = vec![gpu("g1", "small", broken), gpu("g2", "small", json!({}))];
    put_slice(&mut core, "a", json!({"nodeName": "a"}), devices);
    let tolerations = json!({"tolerations": [{"key": "broken", "operator": "Exists"}]});
    for (name, more) in [("plain", json!({})), ("brave", tolerations), ("late", json!({}))] {
        put_claim(&mut core, name, json!({"requests": [request("r", 1, more)]}), json!({}));
    }
    let all = json!({"allocationMode": "All", "count": null, "adminAccess": true,
        "tolerations": [{"operator": "Exists"}]});
    put_claim(&mut core, "admin", json!({"requests": [request("r", 0, all)]}), json!({}));
    assert_eq!(given(&mut core, &having("p", &["plain"])), "a: r=g2");
    take(&mut core, &having("p1", &["plain"]));
    assert_eq!(given(&mut core, &having("p2", &["brave"])), "a: r=g1");
    let work = take(&mut core, &having("p2", &["brave"]));
    assert_eq!(
        json!(allocation(&work[0]).devices)["results"][0]["tolerations"][0]["key"],
        "broken"
    );
    assert!(given(&mut core, &having("p3", &["late"])).contains("cannot allocate"));
    assert_eq!(given(&mut core, &having("p4", &["admin"])), "a: r=g1 r=g2");
    take(&mut core, &having("p4", &["admin"]));
    assert_eq!(core.world.devices.n_taken()[DRIVER], 2);
}

#[test]
fn a_claim_that_has_devices_binds_its_pods_to_their_nodes() {
    let mut core = two_nodes();
    let term =
        json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]});
    let result = json!({"request": "r", "driver": DRIVER, "pool": "b", "device": "g1"});
    let status = |consumers: Vec<Value>| {
        json!({
            "allocation": {
                "devices": {"results": [result]}, "nodeSelector": {"nodeSelectorTerms": [term]},
            },
            "reservedFor": consumers,
        })
    };
    let devices = json!({"requests": [request("r", 1, json!({}))]});
    put_claim(&mut core, "c", devices.clone(), status(Vec::new()));
    let pod = having("p", &["c"]);
    let shape = core.shapes.of(&pod);
    let Decision::Take { row, work } = core.decide(&pod.key(), &shape) else { panic!() };
    assert_eq!(core.world.nodes.name(row), "b");
    assert!(work.devices[0].allocation.is_none(), "it is only noted as the pod's");
    core.put_node("b", &node("0", "0", |_| ()));
    let value = json!({"spec": {
        "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
        "resourceClaims": [{"name": "c", "resourceClaimName": "c"}],
    }});
    let pod = super::pod("q", value);
    assert_eq!(
        given(&mut core, &pod),
        "0/2 nodes are available: 1 Insufficient cpu, 1 resourceclaim not available on the node."
    );
    // Nobody uses it: it is better given other devices.
    let shape = core.shapes.of(&pod);
    let Decision::None(failure) = core.decide(&pod.key(), &shape) else { panic!() };
    assert_eq!(failure.to_free.map(|it| it.name().to_owned()).as_deref(), Some("c"));
    assert!(failure.message.contains(". deallocation of ResourceClaim completed, preemption: "));
    let one = |n: usize| json!({"resource": "pods", "name": "x", "uid": format!("u{n}")});
    put_claim(&mut core, "c", devices, status((0..256).map(one).collect()));
    assert_eq!(given(&mut core, &pod), "0/2 nodes are available: resourceclaim in use.");
}

#[test]
fn pools_are_used_whole_or_not_at_all() {
    let mut core = two_nodes();
    put_claim(&mut core, "c", json!({"requests": [request("r", 1, json!({}))]}), json!({}));
    let pool = |generation: i64, count: i64| {
        json!({"nodeName": "a", "pool": {
        "name": "a", "generation": generation, "resourceSliceCount": count}})
    };
    // Of the new generation a slice is missing.
    put_slice(&mut core, "a-2", pool(2, 2), vec![gpu("g5", "small", json!({}))]);
    assert_eq!(given(&mut core, &having("p", &["c"])), "b: r=g1");
    put_slice(&mut core, "a-3", pool(2, 2), vec![gpu("g6", "small", json!({}))]);
    core.remove_pod(&having("p", &[]).key());
    core.world.devices.put_slice(&"b".into(), None);
    assert_eq!(given(&mut core, &having("p", &["c"])), "a: r=g5");
    put_slice(&mut core, "a-3", pool(2, 2), vec![gpu("g5", "small", json!({}))]);
    let why = given(&mut core, &having("p", &["c"]));
    assert!(why.contains("1 invalid resource pools were encountered"), "{why}");
}

#[test]
fn partitions_of_a_device_share_what_it_has() {
    let mut core = core(vec![("a", node("4", "4Gi", |_| ()))]);
    put_class(&mut core, "gpu", "true");
    let pool = json!({"name": "a", "generation": 1, "resourceSliceCount": 2});
    let counters = json!([{"name": "card", "counters": {"memory": {"value": "40Gi"}}}]);
    let more = json!({"pool": pool, "nodeName": "a", "sharedCounters": counters});
    put_slice(&mut core, "counters", more, Vec::new());
    let part = |name: &str, amount: &str| {
        let consumed = json!([{"counterSet": "card", "counters": {"memory": {"value": amount}}}]);
        gpu(name, "part", json!({"consumesCounters": consumed}))
    };
    let parts = vec![part("half-1", "20Gi"), part("half-2", "20Gi"), part("whole", "40Gi")];
    put_slice(&mut core, "parts", json!({"pool": pool, "nodeName": "a"}), parts);
    let count = |count: i64| json!({"requests": [request("r", count, json!({}))]});
    put_claim(&mut core, "three", count(3), json!({}));
    put_claim(&mut core, "two", count(2), json!({}));
    put_claim(&mut core, "one", count(1), json!({}));
    assert!(given(&mut core, &having("p", &["three"])).contains("cannot allocate"));
    assert_eq!(given(&mut core, &having("p", &["two"])), "a: r=half-1 r=half-2");
    take(&mut core, &having("p", &["two"]));
    assert!(given(&mut core, &having("q", &["one"])).contains("cannot allocate"));
}

#[test]
fn what_several_nodes_reach_is_given_by_one_replica() {
    let mut core = core(vec![("a", node("4", "4Gi", |_| ())), ("b", node("4", "4Gi", |_| ()))]);
    put_class(&mut core, "gpu", "true");
    let zone = json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "zone", "operator": "In", "values": ["a"]}]}]});
    let devices = vec![gpu("g1", "net", json!({}))];
    put_slice(&mut core, "net", json!({"nodeSelector": zone}), devices);
    put_claim(&mut core, "c", json!({"requests": [request("r", 1, json!({}))]}), json!({}));
    let pod = having("p", &["c"]);
    let of_all = Block::of_tenant("system");
    for node in ["a", "b"] {
        let held = [(of_all, Arc::from("me")), (Block::of_node(node), Arc::from("me"))];
        core.world.share(Some(Arc::new(Holders::of(held))));
        assert_eq!(given(&mut core, &pod), format!("{node}: r=g1"));
    }
    core.world.share(Some(Arc::default()));
    assert!(given(&mut core, &pod).contains("2 cannot allocate all claims"));
    core.world.share(None);
    let shape = core.shapes.of(&pod);
    let row = core.world.nodes.row("a").unwrap();
    let work = core.will_do(&shape, row).unwrap();
    assert!(work.devices[0].is_shared);
    assert_eq!(json!(allocation(&work.devices[0]).node_selector), zone);
}
