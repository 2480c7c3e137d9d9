use insula_api::names::TenantName;
use serde_json::{Value, from_value};

use super::*;

fn defaults() -> (Vec<SchemaObject>, Vec<LevelObject>) {
    let of = |kind: &str| -> Vec<Value> {
        let all = fairness::objects().into_iter();
        all.filter(|it| it["kind"] == kind)
            .map(|mut it| {
                it["metadata"]["uid"] = format!("uid of {}", it["metadata"]["name"]).into();
                it
            })
            .collect()
    };
    let schemas = of("FlowSchema").into_iter().map(|it| from_value(it).unwrap()).collect();
    let levels = of("PriorityLevelConfiguration").into_iter();
    (schemas, levels.map(|it| from_value(it).unwrap()).collect())
}

/// The schema, by its header, of a request of `user` of `groups`.
fn schema(flows: &Flows, user: &str, groups: &[&str], verb: &str, path: &str) -> String {
    let identity = Identity::new(TenantName::parse("acme").unwrap(), user, groups);
    let target = insula_api::path::parse(path).unwrap().place;
    let target = match &target {
        insula_api::path::Place::Resource(path) => Target::Resource(path),
        insula_api::path::Place::Other(path) => Target::Path(path),
    };
    let flow = flows.of(Request { identity: &identity, verb, target }).unwrap();
    let mut headers = HeaderMap::new();
    flow.tell(&mut headers);
    let told = headers.get(OF_SCHEMA).map(|it| it.to_str().unwrap()).unwrap_or_default();
    told.trim_start_matches("uid of ").trim_matches('"').to_owned()
}

#[test]
fn the_defaults_are_asked_in_order() {
    let (schemas, levels) = defaults();
    assert_eq!((DEFAULTS.0.len(), DEFAULTS.1.len()), (schemas.len(), levels.len()));
    let flows = Flows::new(&schemas, &levels, 600, &AllCounters::default(), None);
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/x";
    let pods = "/api/v1/namespaces/default/pods";
    let account = "system:serviceaccount:kube-system:job";
    for (user, groups, verb, path, expected) in [
        ("a", &["system:masters"][..], "get", pods, "exempt"),
        ("a", &[], "get", "/healthz", "probes"),
        ("a", &[], "get", "/version", "global-default"),
        ("system:kube-scheduler", &[], "update", lease, "system-leader-election"),
        ("system:kube-scheduler", &[], "update", pods, "kube-scheduler"),
        (account, &["system:serviceaccounts"], "get", lease, "system-leader-election"),
        (account, &["system:serviceaccounts"], "get", pods, "kube-system-service-accounts"),
        ("system:serviceaccount:a:b", &["system:serviceaccounts"], "get", pods, "service-accounts"),
        ("system:node:n", &["system:nodes"], "patch", "/api/v1/nodes/n/status", "system-node-high"),
        ("system:node:n", &["system:nodes"], "patch", pods, "system-nodes"),
        ("a", &[], "list", pods, "global-default"),
    ] {
        assert_eq!(schema(&flows, user, groups, verb, path), expected, "{user} {verb} {path}");
    }
}

#[test]
fn schemas_without_their_level_are_not_asked_and_say_so() {
    let (mut schemas, levels) = defaults();
    for it in &schemas {
        assert_eq!(it.dangling(&levels), None, "they begin with the condition as it should be");
    }
    let dangling = schemas.iter_mut().find(|it| it.metadata.name == "global-default").unwrap();
    dangling.spec.priority_level_configuration.name = "gone".into();
    let [status, reason, message] = dangling.dangling(&levels).unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "NotFound"));
    assert!(message.ends_with("named \"gone\" but there is no such object"), "{message}");
    let counters = AllCounters::default();
    let flows = Flows::new(&schemas, &levels, 600, &counters, None);
    assert_eq!(schema(&flows, "a", &[], "get", "/api/v1/nodes"), "catch-all");
    let none = Flows::new(&[], &[], 500, &counters, Some(&flows));
    assert_eq!(schema(&none, "a", &[], "get", "/api/v1/nodes"), "");
    assert!(!Arc::ptr_eq(&none.levels, &flows.levels));
    let same = Flows::new(&schemas[..3], &levels, 600, &counters, Some(&flows));
    assert!(Arc::ptr_eq(&same.levels, &flows.levels));
}

#[test]
fn a_tenant_has_only_so_many_queues() {
    let level = serde_json::json!({
        "metadata": {"name": "vast"},
        "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 1,
            "limitResponse": {"type": "Queue", "queuing": {
                "queues": 10_000_000, "handSize": 1, "queueLengthLimit": 2_000_000_000,
            }},
        }},
    });
    let level: LevelObject = from_value(level).unwrap();
    let queuing = level.spec().limited.unwrap().queuing.unwrap();
    assert_eq!((queuing.queues, queuing.length), (QUEUES, LENGTH));
}

#[test]
fn paths_match_below_their_prefix() {
    let rule = |url: &str| PathRule { verbs: vec!["get".into()], urls: vec![url.into()] };
    for (url, path, expected) in [
        ("*", "/version", true),
        ("/healthz", "/healthz", true),
        ("/healthz", "/healthz/etcd", true),
        ("/healthz", "/healthzz", false),
        ("/api/*", "/api/v1", true),
        ("/api/*", "/apis", false),
    ] {
        assert_eq!(rule(url).matches("get", path), expected, "{url} {path}");
        assert!(!rule(url).matches("post", path));
    }
}
