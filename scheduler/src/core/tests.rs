mod capacity;
mod devices;
mod gangs;
mod hints;
mod kinds;
mod machines;
mod model;
mod random;
mod sharing;
mod upstream;

use std::collections::BTreeMap;

use insula_api::names::TenantName;
use k8s_openapi::api::core::v1::Node;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    preempting::Victim,
    requests::{CPU, MEMORY, PODS},
};

fn node(cpu: &str, memory: &str, change: impl FnOnce(&mut Value)) -> Node {
    let mut value = json!({
        "metadata": {"labels": {"zone": "a"}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": cpu, "memory": memory, "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

/// A pod of tenant `acme` in namespace `ns`, with all that `value` says of it.
fn pod(name: &str, value: Value) -> Tenanted<Pod> {
    let mut object: Pod = serde_json::from_value(value).unwrap();
    object.metadata.name = Some(name.to_owned());
    object.metadata.namespace.get_or_insert_with(|| "ns".to_owned());
    object.metadata.uid = Some(format!("uid-{name}"));
    Tenanted { tenant: TenantName::parse("acme").unwrap(), object }
}

fn asking(cpu: &str, memory: &str) -> Value {
    json!({"spec": {"containers": [
        {"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}},
    ]}})
}

fn core(all: Vec<(&str, Node)>) -> Core {
    let mut core = Core::new(vec![Profile::default()]);
    for (name, node) in all {
        core.put_node(name, &node);
    }
    core
}

/// The node that is chosen, or why there is none; without what is said of preemption.
fn look(core: &mut Core, pod: &Tenanted<Pod>) -> String {
    let shape = core.shapes.of(pod);
    match core.decide(&pod.key(), &shape) {
        Decision::Take { row, .. } => core.world.nodes.name(row).to_owned(),
        Decision::None(failure) => {
            let (said, _) =
                failure.message.split_once(" no new claims").unwrap_or((&failure.message, ""));
            said.to_owned()
        }
    }
}

/// All nodes that are equally good.
fn best(core: &mut Core, pod: &Tenanted<Pod>) -> std::collections::BTreeSet<String> {
    (0..2 * core.world.nodes.len().max(1)).map(|_| look(core, pod)).collect()
}

#[track_caller]
fn check(core: &mut Core, value: Value, expected: &str) {
    assert_eq!(look(core, &pod("p", value)), expected);
}

/// Puts a pod on a node.
fn bind(core: &mut Core, name: &str, node: &str, mut value: Value) {
    value["spec"]["nodeName"] = json!(node);
    core.put_pod(&pod(name, value));
}

#[test]
fn every_reason_is_told_in_upstreams_words() {
    check(&mut core(vec![]), asking("1", "1"), "no nodes available to schedule pods");
    let mut core = core(vec![
        ("cordoned", node("4", "4Gi", |it| it["spec"]["unschedulable"] = json!(true))),
        (
            "tainted",
            node("4", "4Gi", |it| {
                it["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
            }),
        ),
        ("silent", node("4", "4Gi", |it| it["status"]["conditions"] = json!([]))),
        ("elsewhere", node("4", "4Gi", |it| it["metadata"]["labels"] = json!({"zone": "b"}))),
        ("small", node("1", "1Gi", |_| ())),
        ("tight", node("1", "4Gi", |_| ())),
    ]);
    let mut wanted = asking("2", "2Gi");
    wanted["spec"]["nodeSelector"] = json!({"zone": "a"});
    check(
        &mut core,
        wanted,
        "0/6 nodes are available: 1 Insufficient memory, 1 node(s) didn't match Pod's node \
         affinity/selector, 1 node(s) were unschedulable, 2 Insufficient cpu, 2 node(s) had \
         untolerated taint(s).",
    );
    check(
        &mut core,
        json!({"spec": {"containers": [
            {"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}},
        ], "tolerations": [{"operator": "Exists"}]}}),
        "0/6 nodes are available: 6 Insufficient example.com/gpu.",
    );
}

#[test]
fn tolerations_and_affinity_open_the_way() {
    let mut core = core(vec![
        (
            "tainted",
            node("4", "4Gi", |it| {
                it["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoExecute"}]);
            }),
        ),
        ("b", node("4", "4Gi", |it| it["metadata"]["labels"] = json!({"zone": "b"}))),
    ]);
    let mut tolerant = asking("1", "1Gi");
    tolerant["spec"]["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
    tolerant["spec"]["nodeSelector"] = json!({"zone": "a"});
    check(&mut core, tolerant, "tainted");
    let affinity = |terms: Value| {
        let mut it = asking("1", "1Gi");
        it["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
        it["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({"nodeSelectorTerms": terms});
        it
    };
    let in_zone = |zone: &str| json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]});
    check(&mut core, affinity(json!([in_zone("b")])), "b");
    check(&mut core, affinity(json!([in_zone("c"), in_zone("a")])), "tainted");
    let named = |name: &str| {
        json!({"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": [name]},
        ]})
    };
    check(&mut core, affinity(json!([named("b")])), "b");
    check(
        &mut core,
        affinity(json!([named("c")])),
        "0/2 nodes are available: 2 node(s) didn't satisfy plugin(s) [NodeAffinity].",
    );
    check(
        &mut core,
        affinity(json!([{}])),
        "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
    );
}

#[test]
fn ports_are_had_once() {
    let mut core = core(vec![("n", node("4", "4Gi", |_| ()))]);
    let wants = json!({"spec": {"containers": [
        {"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]},
    ]}});
    check(&mut core, wants.clone(), "n");
    bind(&mut core, "other", "n", wants.clone());
    check(
        &mut core,
        wants.clone(),
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
    );
    core.remove_pod(&pod("other", json!({})).key());
    check(&mut core, wants, "n");
}

#[test]
fn the_emptier_and_the_better_balanced_node_is_preferred() {
    let mut full =
        core(vec![("full", node("4", "4Gi", |_| ())), ("empty", node("4", "4Gi", |_| ()))]);
    bind(&mut full, "other", "full", asking("2", "2Gi"));
    check(&mut full, asking("1", "1Gi"), "empty");
    let mut uneven =
        core(vec![("much-memory", node("4", "16Gi", |_| ())), ("even", node("4", "4Gi", |_| ()))]);
    check(&mut uneven, asking("1", "2Gi"), "much-memory");
}

#[test]
fn preferences_outweigh_emptiness() {
    let mut zones = core(vec![
        ("a", node("2", "2Gi", |_| ())),
        ("b", node("4", "4Gi", |it| it["metadata"]["labels"] = json!({"zone": "b"}))),
    ]);
    let mut wanted = asking("1", "1Gi");
    wanted["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([{
        "weight": 1,
        "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
    }]);
    check(&mut zones, wanted, "a");
    let mut shy = core(vec![
        (
            "shy",
            node("4", "4Gi", |it| {
                it["spec"]["taints"] = json!([{"key": "k", "effect": "PreferNoSchedule"}]);
            }),
        ),
        ("open", node("2", "2Gi", |_| ())),
    ]);
    check(&mut shy, asking("1", "1Gi"), "open");
}

#[test]
fn ties_are_broken_in_turn() {
    let mut core = core(vec![("a", node("4", "4Gi", |_| ())), ("b", node("4", "4Gi", |_| ()))]);
    let pod = pod("p", asking("1", "1Gi"));
    let taken: Vec<_> = (0..4).map(|_| look(&mut core, &pod)).collect();
    assert_ne!(taken[0], taken[1]);
    assert_eq!(taken[..2], taken[2..]);
}

#[test]
fn images_that_are_there_draw_pods() {
    let with_image = node("4", "4Gi", |it| {
        it["status"]["images"] = json!([{"names": ["big:1"], "sizeBytes": 3_000_000_000_i64}]);
    });
    let mut core = core(vec![("a", node("4", "4Gi", |_| ())), ("b", with_image)]);
    let mut wanted = asking("1", "1Gi");
    wanted["spec"]["containers"][0]["image"] = json!("big:1");
    let chosen = best(&mut core, &pod("p", wanted));
    assert_eq!(chosen.into_iter().collect::<Vec<_>>(), ["b"]);
}

/// A pod with a label, and pod affinity or anti-affinity to a label.
fn social(label: &str, kind: &str, to: &str, key: &str) -> Value {
    let mut it = asking("100m", "1Mi");
    it["metadata"] = json!({"labels": {"app": label}});
    it["spec"]["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"] = json!([{
        "topologyKey": key, "labelSelector": {"matchLabels": {"app": to}},
    }]);
    it
}

fn in_zones() -> Core {
    let zone = |zone: &str| {
        let zone = zone.to_owned();
        node("4", "4Gi", move |it| it["metadata"]["labels"] = json!({"zone": zone}))
    };
    core(vec![("a1", zone("a")), ("a2", zone("a")), ("b1", zone("b"))])
}

#[test]
fn friends_draw_and_foes_drive_away() {
    let mut core = in_zones();
    let plain = |label: &str| {
        let mut it = asking("100m", "1Mi");
        it["metadata"] = json!({"labels": {"app": label}});
        it
    };
    let needs_web = social("db", "podAffinity", "web", "zone");
    check(
        &mut core,
        needs_web.clone(),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules.",
    );
    bind(&mut core, "web", "b1", plain("web"));
    check(&mut core, needs_web, "b1");
    // The first of its kind need not wait for another.
    assert!(look(&mut core, &pod("p", social("new", "podAffinity", "new", "zone"))).len() == 2);
    // Who is there keeps others away, though they do not mind.
    bind(&mut core, "shy", "a1", social("shy", "podAntiAffinity", "web", "zone"));
    check(&mut core, plain("web"), "b1");
    bind(&mut core, "shy2", "b1", social("shy", "podAntiAffinity", "web", "zone"));
    check(
        &mut core,
        plain("web"),
        "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules.",
    );
    check(
        &mut core,
        social("x", "podAntiAffinity", "shy", "zone"),
        "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.",
    );
    // Pods of other tenants are not there for anybody.
    let mut elsewhere = pod("p", plain("web"));
    elsewhere.tenant = TenantName::parse("globex").unwrap();
    assert_eq!(look(&mut core, &elsewhere), "a2", "the emptiest node");
    // And a namespace is another one, unless it is named or selected.
    let mut other = plain("web");
    other["metadata"]["namespace"] = json!("other");
    assert!(look(&mut core, &pod("p", other.clone())).len() == 2);
    let mut wide = social("shy", "podAntiAffinity", "web", "zone");
    wide["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        [0]["namespaceSelector"] = json!({"matchLabels": {"team": "red"}});
    bind(&mut core, "wide1", "a1", wide.clone());
    bind(&mut core, "wide2", "b1", wide);
    assert!(look(&mut core, &pod("p", other.clone())).len() == 2);
    let labels = [("team".to_owned(), "red".to_owned())].into();
    let acme = TenantName::parse("acme").unwrap();
    core.world.set_namespace(&acme, &"other".into(), Some(labels));
    check(
        &mut core,
        other,
        "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules.",
    );
}

fn spread(when: &str, key: &str, more: Value) -> Value {
    let mut it = asking("100m", "1Mi");
    it["metadata"] = json!({"labels": {"app": "web"}});
    let mut constraint = json!({
        "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": "web"}},
    });
    for (name, value) in more.as_object().unwrap() {
        constraint[name] = value.clone();
    }
    it["spec"]["topologySpreadConstraints"] = json!([constraint]);
    it
}

#[test]
fn pods_are_spread() {
    let mut core = in_zones();
    let hard = spread("DoNotSchedule", "zone", json!({}));
    bind(&mut core, "w1", "a1", hard.clone());
    check(&mut core, hard.clone(), "b1");
    bind(&mut core, "w2", "b1", hard.clone());
    bind(&mut core, "w3", "b1", hard.clone());
    let chosen = best(&mut core, &pod("p", hard.clone()));
    assert!(chosen.iter().all(|it| it.starts_with('a')), "{chosen:?}");
    // Only nodes that the pod could be on count for what is the least.
    let mut only_b = hard.clone();
    only_b["spec"]["nodeSelector"] = json!({"zone": "b"});
    check(&mut core, only_b.clone(), "b1");
    only_b["spec"]["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = json!("Ignore");
    check(
        &mut core,
        only_b,
        "0/3 nodes are available: 1 node(s) didn't match pod topology spread constraints, 2 \
         node(s) didn't match Pod's node affinity/selector.",
    );
    check(
        &mut core,
        spread("DoNotSchedule", "zone", json!({"minDomains": 3})),
        "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints.",
    );
    check(
        &mut core,
        spread("DoNotSchedule", "rack", json!({})),
        "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints \
         (missing required label).",
    );
    // Whoever is ending is not counted any more.
    let mut ending = pod("w3", hard.clone());
    ending.object.spec.as_mut().unwrap().node_name = Some("b1".into());
    ending.object.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    core.put_pod(&ending);
    assert_eq!(best(&mut core, &pod("p", hard)).len(), 1, "a2 is the emptiest");
    let soft = spread("ScheduleAnyway", "zone", json!({}));
    bind(&mut core, "w4", "a1", soft.clone());
    bind(&mut core, "w5", "a2", soft.clone());
    check(&mut core, soft, "b1");
}

#[test]
fn pods_of_a_service_are_spread_by_default() {
    let zone = |name: &str, zone: &str| {
        let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone});
        node("4", "4Gi", move |it| it["metadata"]["labels"] = labels)
    };
    let mut core = core(vec![("a", zone("a", "a")), ("b", zone("b", "b"))]);
    let mut web = asking("100m", "1Mi");
    web["metadata"] = json!({"labels": {"app": "web"}});
    for n in 0..3 {
        bind(&mut core, &format!("w{n}"), "a", web.clone());
    }
    bind(&mut core, "large", "b", asking("3500m", "3Gi"));
    check(&mut core, web.clone(), "a");
    let selector = [("app".to_owned(), "web".to_owned())].into();
    let service = ObjectKey::new(&TenantName::parse("acme").unwrap(), "ns", "web");
    core.world.workloads.set_service(&service, Some(selector));
    check(&mut core, web, "b");
}

/// What comes of a pod of this priority, and who has to end for it.
fn preempt(core: &mut Core, priority: i32, cpu: &str) -> (String, Vec<String>) {
    let mut it = asking(cpu, "1Mi");
    it["spec"]["priority"] = json!(priority);
    let pod = pod("preemptor", it);
    let shape = core.shapes.of(&pod);
    match core.decide(&pod.key(), &shape) {
        Decision::Take { row, .. } => (format!("fits {}", core.world.nodes.name(row)), vec![]),
        Decision::None(failure) => match failure.promise {
            Some(crate::outlook::Promise::Here { row, victims }) => {
                let mut names: Vec<_> = victims.iter().map(|it| it.name.to_string()).collect();
                names.sort();
                (core.world.nodes.name(row).to_owned(), names)
            }
            _ => (failure.message.to_string(), vec![]),
        },
    }
}

fn bind_with(core: &mut Core, name: &str, node: &str, cpu: &str, priority: i32) {
    let mut it = asking(cpu, "1Mi");
    it["spec"]["priority"] = json!(priority);
    it["metadata"] = json!({"labels": {"app": name}});
    bind(core, name, node, it);
}

/// What is measured counts, and what came since, whatever was asked for before.
#[test]
fn nodes_that_use_less_are_preferred_if_that_is_to_count() {
    use crate::measured::Usage;
    let all = ["busy", "idle"].map(|name| (name, node("10", "10Gi", |_| ())));
    let mut core = core(all.into());
    bind(&mut core, "large", "idle", asking("4", "4Gi"));
    check(&mut core, asking("1", "1Gi"), "busy");
    core.profiles[0].scores.push((5, Arc::new(crate::plugins::LoadAware)));
    core.outlooks.clear();
    let row = |core: &Core, name: &str| core.world.nodes.row(name).unwrap();
    let (busy, idle) = (row(&core, "busy"), row(&core, "idle"));
    let usage = |cpu| Some(Usage { cpu, memory: 1 << 30 });
    core.world.nodes.measure(busy, usage(9000));
    core.world.nodes.measure(idle, usage(100));
    check(&mut core, asking("1", "1Gi"), "idle");
    for n in 0..5 {
        bind(&mut core, &format!("p{n}"), "idle", asking("1", "1Mi"));
    }
    core.world.nodes.measure(busy, usage(1000));
    check(&mut core, asking("1", "1Gi"), "busy");
}

/// Of pods of one priority the class of service decides, if it is to; else who has run longest stays.
#[test]
fn the_lower_class_ends_first_if_it_is_to_count() {
    for (honors_qos, expected) in [(false, "guaranteed"), (true, "burstable")] {
        let mut core = core(vec![("a", node("2", "4Gi", |_| ()))]);
        let post_filter = crate::plugins::DefaultPreemption { honors_qos, ..Default::default() };
        core.profiles[0].post_filter = Some(Arc::new(post_filter));
        for (name, started) in
            [("burstable", "2026-01-01T00:00:00Z"), ("guaranteed", "2026-01-02T00:00:00Z")]
        {
            let mut it = asking("1", "1Mi");
            if name == "guaranteed" {
                let resources = &mut it["spec"]["containers"][0]["resources"];
                resources["limits"] = resources["requests"].clone();
            }
            it["status"] = json!({"startTime": started});
            bind(&mut core, name, "a", it);
        }
        assert_eq!(preempt(&mut core, 5, "1"), ("a".to_owned(), vec![expected.to_owned()]));
    }
}

#[test]
fn the_fewest_and_least_important_pods_end() {
    let two = || core(vec![("a", node("4", "4Gi", |_| ())), ("b", node("4", "4Gi", |_| ()))]);
    let ended = |core: &mut Core| preempt(core, 10, "3");
    let victims = |node: &str, names: &[&str]| {
        (node.to_owned(), names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>())
    };
    // Lower priority first.
    let mut it = two();
    bind_with(&mut it, "p5", "a", "3", 5);
    bind_with(&mut it, "p4", "b", "3", 4);
    assert_eq!(ended(&mut it), victims("b", &["p4"]));
    // Then fewer, and only those that have to.
    let mut it = two();
    bind_with(&mut it, "a1", "a", "2", 1);
    bind_with(&mut it, "a2", "a", "2", 1);
    bind_with(&mut it, "b1", "b", "3", 1);
    bind_with(&mut it, "b2", "b", "500m", 1);
    assert_eq!(ended(&mut it), victims("b", &["b1"]));
    // A budget that would be broken counts for more than priority.
    let mut it = two();
    bind_with(&mut it, "guarded", "a", "3", 1);
    bind_with(&mut it, "free", "b", "3", 2);
    let budget: k8s_openapi::api::policy::v1::PodDisruptionBudget = serde_json::from_value(json!({
        "metadata": {"name": "b", "namespace": "ns"},
        "spec": {"selector": {"matchLabels": {"app": "guarded"}}},
        "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1},
    }))
    .unwrap();
    let budget = Tenanted { tenant: TenantName::parse("acme").unwrap(), object: budget };
    it.world.budgets.put(&budget.key(), Some(&budget));
    assert_eq!(ended(&mut it), victims("b", &["free"]));
    // Nobody who is as important.
    let mut it = two();
    bind_with(&mut it, "same", "a", "3", 10);
    bind_with(&mut it, "more", "b", "3", 11);
    assert_eq!(
        ended(&mut it).0,
        "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, \
         preemption: 0/2 nodes are available: 2 No \
         preemption victims found for incoming pod.",
    );
    assert_eq!(
        preempt(&mut it, 20, "5").0,
        "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, \
         preemption: 0/2 nodes are available: 2 \
         Preemption is not helpful for scheduling.",
    );
}

#[test]
fn priorities_of_a_tenant_mean_nothing_to_others() {
    let mut it = core(vec![("a", node("4", "4Gi", |_| ()))]);
    let mut theirs = asking("3", "1Mi");
    theirs["spec"]["nodeName"] = json!("a");
    let mut theirs = pod("theirs", theirs);
    theirs.tenant = TenantName::parse("globex").unwrap();
    it.put_pod(&theirs);
    let (said, victims) = preempt(&mut it, 10, "3");
    assert!(victims.is_empty() && said.contains("No preemption victims found"), "{said}");
    // The platform's own come first.
    let mut platform = pod("platform", asking("3", "1Mi"));
    platform.object.spec.as_mut().unwrap().priority = Some(1);
    platform.tenant = TenantName::system();
    let shape = it.shapes.of(&platform);
    let Decision::None(failure) = it.decide(&platform.key(), &shape) else { panic!("no room") };
    assert!(matches!(failure.promise, Some(crate::outlook::Promise::Here { .. })));
}

/// Between asking pods to end and being told that they do, nobody else is asked.
#[test]
fn nobody_is_asked_to_end_in_place_of_others_who_were() {
    let mut core = core(vec![("a", node("4", "4Gi", |_| ())), ("b", node("4", "4Gi", |_| ()))]);
    bind_with(&mut core, "first", "a", "3", 0);
    bind_with(&mut core, "other", "b", "3", 1);
    let mut important = asking("3", "1Mi");
    important["spec"]["priority"] = json!(10);
    let important = pod("preemptor", important);
    let shape = core.shapes.of(&important);
    assert_eq!(preempt(&mut core, 10, "3"), ("a".to_owned(), vec!["first".to_owned()]));
    let key = important.key();
    let first = pod("first", json!({})).key();
    let uid = core.world.held(&first).unwrap().uid.clone();
    core.world.nominations.set(&key, Some((0, shape.clone())));
    core.world.nominations.ask(&key, vec![Victim { key: first.clone(), uid }]);
    let (said, victims) = preempt(&mut core, 10, "3");
    assert!(victims.is_empty() && said.contains("terminating pod on the nominated node"), "{said}");
    // Promised the same room again, it has still asked.
    core.world.nominations.set(&key, Some((0, shape.clone())));
    assert_eq!(preempt(&mut core, 10, "3").1, Vec::<String>::new());
    // Who could not be asked is nobody to wait for.
    core.world.nominations.set(&key, None);
    assert_eq!(preempt(&mut core, 10, "3").1, ["first"]);
    core.world.nominations.set(&key, Some((0, shape)));
    core.world.release(&first);
    assert_eq!(preempt(&mut core, 10, "3").0, "fits a");
}

#[test]
fn room_that_is_promised_is_kept() {
    let mut core = core(vec![("a", node("4", "4Gi", |_| ()))]);
    let mut important = asking("3", "1Mi");
    important["spec"]["priority"] = json!(10);
    let important = pod("important", important);
    let shape = core.shapes.of(&important);
    core.world.nominations.set(&important.key(), Some((0, shape)));
    check(&mut core, asking("2", "1Mi"), "0/1 nodes are available: 1 Insufficient cpu.");
    check(&mut core, asking("1", "1Mi"), "a");
    assert_eq!(look(&mut core, &important), "a", "it is its own room");
    let mut more = asking("2", "1Mi");
    more["spec"]["priority"] = json!(11);
    check(&mut core, more, "a");
}

#[test]
fn identical_pods_that_find_nothing_share_the_work() {
    let mut core = core(vec![("a", node("1", "1Gi", |_| ()))]);
    let message = |core: &mut Core, name: &str| {
        let pod = pod(name, asking("2", "1Mi"));
        let shape = core.shapes.of(&pod);
        match core.decide(&pod.key(), &shape) {
            Decision::None(failure) => failure.message,
            Decision::Take { .. } => panic!("there is no room"),
        }
    };
    let first = message(&mut core, "p1");
    assert!(Arc::ptr_eq(&first, &message(&mut core, "p2")), "the same text, not an equal one");
    core.put_node("b", &node("1", "1Gi", |_| ()));
    assert!(message(&mut core, "p3").starts_with("0/2"));
}

/// Whether pods look again that `refused_by` keeps off all nodes, after `event`.
#[track_caller]
fn helps(core: &mut Core, wanted: &Value, refused_by: &str, event: Event, expected: bool) {
    let shape = core.shapes.of(&pod("p", wanted.clone()));
    let filters = Profile::default().filters;
    let place = filters.iter().position(|it| it.name() == refused_by).unwrap();
    let found = core.may_help(&shape, 1 << place, std::slice::from_ref(&event));
    assert_eq!(found, expected, "{refused_by}: {event:?}");
}

#[test]
fn pods_look_again_after_what_may_help_them() {
    use crate::nodes::Changed;
    let mut core = core(vec![
        ("a", node("4", "4Gi", |_| ())),
        ("b", node("1", "4Gi", |it| it["metadata"]["labels"] = json!({"zone": "b"}))),
    ]);
    let node_event = |row, changed| Event::Node { row, changed };
    let labels = Changed { labels: true, ..Changed::default() };
    let grew = Changed { grew: true, ..Changed::default() };
    let mut wanted = asking("2", "1Gi");
    wanted["spec"]["nodeSelector"] = json!({"zone": "b"});
    helps(&mut core, &wanted, "NodeAffinity", node_event(1, labels), true);
    helps(&mut core, &wanted, "NodeAffinity", node_event(0, labels), false);
    helps(&mut core, &wanted, "NodeAffinity", node_event(1, grew), false);
    helps(&mut core, &wanted, "NodeResourcesFit", node_event(0, grew), true);
    helps(&mut core, &wanted, "NodeResourcesFit", node_event(1, grew), false);
    let other = core.shapes.of(&pod("other", asking("1", "1")));
    let gone = || Event::PodGone { pod: other.clone() };
    let here = || Event::PodHere { pod: other.clone() };
    helps(&mut core, &wanted, "NodeResourcesFit", gone(), true);
    helps(&mut core, &wanted, "NodeAffinity", gone(), false);
    helps(&mut core, &wanted, "NodePorts", gone(), false);
    let friend = social("x", "podAffinity", "y", "zone");
    helps(&mut core, &friend, "InterPodAffinity", here(), true);
    helps(&mut core, &friend, "InterPodAffinity", gone(), false);
    helps(&mut core, &wanted, "VolumeBinding", Event::Storage { tenant: None }, true);
    let theirs = Some(TenantName::parse("globex").unwrap());
    helps(&mut core, &wanted, "VolumeBinding", Event::Storage { tenant: theirs }, false);
}

#[derive(Debug, Clone)]
enum Step {
    /// A pod that asks for so many millicores, mebibytes and a host port, if not 0.
    Pod(i64, i64, i32),
    /// The pod that was placed so many before the last one ends.
    End(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pod = (0..3000_i64, 0..3000_i64, prop_oneof![Just(0), 80..83]);
    let step = prop_oneof![
        3 => pod.prop_map(|(cpu, memory, port)| Step::Pod(cpu, memory, port)),
        1 => (0..10_usize).prop_map(Step::End),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    /// Whatever comes and goes, no node holds more than it offers, and no port twice; and a pod
    /// is refused only if it really fits nowhere.
    #[test]
    fn nothing_is_over_committed(
        sizes in proptest::collection::vec((500..4000_i64, 500..4000_i64, 1..6_i64), 1..6),
        steps in steps(),
    ) {
        let mut core = Core::new(vec![Profile::default()]);
        for (n, (cpu, memory, pods)) in sizes.iter().enumerate() {
            let it = node(&format!("{cpu}m"), &format!("{memory}Mi"), |it| {
                it["status"]["allocatable"]["pods"] = json!(pods.to_string());
            });
            core.put_node(&format!("n{n}"), &it);
        }
        let mut placed: Vec<ObjectKey> = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::End(back) => {
                    if back < placed.len() {
                        core.remove_pod(&placed.remove(placed.len() - 1 - back));
                    }
                }
                Step::Pod(cpu, memory, port) => {
                    let mut spec = asking(&format!("{cpu}m"), &format!("{memory}Mi"));
                    if port != 0 {
                        spec["spec"]["containers"][0]["ports"] =
                            json!([{"containerPort": 1, "hostPort": port}]);
                    }
                    let pod = pod(&format!("p{n}"), spec);
                    match core.place(&pod) {
                        Ok(_) => placed.push(pod.key()),
                        Err(_) => {
                            let nodes = &core.world.nodes;
                            let fits = |row: usize| {
                                let free = |name| nodes.resource(name).unwrap().free(row);
                                cpu <= free(CPU)
                                    && memory << 20 <= free(MEMORY)
                                    && 1 <= free(PODS)
                                    && !nodes.ports[row].iter().any(|it| it.port == port)
                            };
                            let fitting = nodes.rows().find(|row| fits(*row));
                            prop_assert_eq!(fitting, None);
                        }
                    }
                }
            }
            let nodes = &core.world.nodes;
            for column in nodes.columns() {
                for row in nodes.rows() {
                    let (held, offered) = (column.held[row], column.allocatable[row]);
                    prop_assert!(0 <= held && held <= offered, "{}: {held} of {offered}", column.name);
                }
            }
            for row in nodes.rows() {
                let mut ports: Vec<i32> = nodes.ports[row].iter().map(|it| it.port).collect();
                ports.sort_unstable();
                let n_ports = ports.len();
                ports.dedup();
                prop_assert_eq!(ports.len(), n_ports);
            }
        }
    }
}
