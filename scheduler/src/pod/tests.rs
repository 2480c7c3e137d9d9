use insula_api::names::TenantName;
use serde_json::json;

use super::*;

fn pod(spec: serde_json::Value) -> Tenanted<Pod> {
    let object = serde_json::from_value(json!({"spec": spec})).unwrap();
    Tenanted { tenant: TenantName::parse("acme").unwrap(), object }
}

#[test]
fn ports_on_the_host() {
    let pod = pod(json!({
        "hostNetwork": true,
        "initContainers": [
            {"name": "init", "ports": [{"containerPort": 1}]},
            {"name": "side", "restartPolicy": "Always", "ports": [{"containerPort": 2}]},
        ],
        "containers": [{"name": "c", "ports": [
            {"containerPort": 3, "hostPort": 4, "hostIP": "10.0.0.1", "protocol": "UDP"},
        ]}],
    }));
    let ports = Shape::of(&pod).ports;
    let shown: Vec<_> =
        ports.iter().map(|it| format!("{}:{}/{}", it.address, it.port, it.protocol)).collect();
    assert_eq!(shown, ["10.0.0.1:4/UDP", ":2/TCP"]);
}

#[test]
fn clashes() {
    let port = |address: &str, protocol: &str, port| HostPort {
        address: address.into(),
        protocol: protocol.into(),
        port,
    };
    assert!(port("", "TCP", 80).clashes(&port("10.0.0.1", "TCP", 80)));
    assert!(!port("10.0.0.2", "TCP", 80).clashes(&port("10.0.0.1", "TCP", 80)));
    assert!(!port("", "UDP", 80).clashes(&port("", "TCP", 80)));
    assert!(!port("", "TCP", 81).clashes(&port("", "TCP", 80)));
}

#[test]
fn whose_a_pod_is() {
    let whose = |spec| scheduler_of(&pod(spec)).to_owned();
    assert_eq!(whose(json!({"containers": []})), DEFAULT_SCHEDULER);
    assert_eq!(whose(json!({"containers": [], "schedulerName": ""})), DEFAULT_SCHEDULER);
    assert_eq!(whose(json!({"containers": [], "schedulerName": "other"})), "other");
}

#[test]
fn trimming_does_not_change_the_shape() {
    let whole = pod(json!({
        "priority": 7,
        "schedulingGates": [{"name": "wait"}],
        "nodeSelector": {"a": "b"},
        "tolerations": [{"operator": "Exists"}],
        "volumes": [
            {"name": "v", "emptyDir": {}},
            {"name": "w", "persistentVolumeClaim": {"claimName": "c"}},
            {"name": "x", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
        ],
        "containers": [{
            "name": "c", "image": "i", "env": [{"name": "A"}], "command": ["x"],
            "resources": {"requests": {"cpu": "1"}}, "ports": [{"containerPort": 1, "hostPort": 1}],
        }],
    }));
    let mut trimmed = whole.clone();
    trim(&mut trimmed.object);
    assert_eq!(Shape::of(&trimmed), Shape::of(&whole));
    assert_eq!(Shape::of(&whole).claims.len(), 2);
    assert!(trimmed.spec.as_ref().unwrap().containers[0].env.is_none());
}

#[test]
fn pods_that_are_alike_share_a_shape() {
    let mut shapes = Shapes::default();
    let spec =
        |cpu: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
    let one = shapes.of(&pod(spec("1")));
    let mut renamed = pod(spec("1"));
    renamed.object.metadata.name = Some("other".into());
    assert!(Arc::ptr_eq(&one, &shapes.of(&renamed)));
    assert_ne!(one.id, shapes.of(&pod(spec("2"))).id);
    let mut elsewhere = pod(spec("1"));
    elsewhere.tenant = TenantName::parse("globex").unwrap();
    assert_ne!(one.id, shapes.of(&elsewhere).id, "tenants share nothing");
    let mut ordered = pod(spec("1"));
    ordered.object.spec.as_mut().unwrap().tolerations = Some(vec![Toleration::default()]);
    assert_ne!(one.id, shapes.of(&ordered).id);
    for n in 0..5000 {
        drop(shapes.of(&pod(spec(&n.to_string()))));
    }
    assert!(shapes.n_known() <= 1100, "{}", shapes.n_known());
}
