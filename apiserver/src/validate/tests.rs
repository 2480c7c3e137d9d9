//! Objects that are refused, each with upstream's words.

mod changes;

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::registry::Registry;

pub(super) fn served(group: &str, version: &str, resource: &str) -> Arc<Served> {
    Registry::built_in().get(group, version, resource).unwrap().clone()
}

fn told(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(|it| format!("{}: {}", it.field, it.message)).collect()
}

#[track_caller]
pub(super) fn compare(errors: &[FieldError], expected: &[&str]) {
    let got = told(errors);
    assert_eq!(got.len(), expected.len(), "{got:#?}");
    for (got, expected) in got.iter().zip(expected) {
        assert!(got.starts_with(expected), "{got}\n{expected}");
    }
}

#[track_caller]
fn check(of: (&str, &str, &str), mut it: Value, expected: &[&str]) {
    let served = served(of.0, of.1, of.2);
    crate::strategy::normalize(&served, &mut it);
    compare(&create(&served, &it), expected);
}

const PODS: (&str, &str, &str) = ("", "v1", "pods");

#[track_caller]
fn pod(spec: Value, expected: &[&str]) {
    let mut whole = json!({"containers": [{"name": "c", "image": "i"}]});
    for (field, value) in spec.as_object().unwrap() {
        whole[field] = value.clone();
    }
    check(PODS, json!({"metadata": {"name": "p"}, "spec": whole}), expected);
}

#[test]
fn metadata_is_checked() {
    let with = |metadata: Value| json!({ "metadata": metadata });
    let maps = ("", "v1", "configmaps");
    check(maps, with(json!({"name": "a.b"})), &[]);
    check(
        maps,
        with(json!({})),
        &["metadata.name: Required value: name or generateName is required"],
    );
    check(
        maps,
        with(json!({"name": "A"})),
        &["metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of"],
    );
    check(
        maps,
        with(json!({"name": "a", "labels": {"a b": "c d"}, "annotations": {"/x": ""}})),
        &[
            "metadata.labels: Invalid value: \"a b\": name part must consist of",
            "metadata.labels: Invalid value: \"c d\": a valid label must be an empty string",
            "metadata.annotations: Invalid value: \"/x\": prefix part must be non-empty",
        ],
    );
    check(
        maps,
        with(json!({"name": "a", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true},
            {"apiVersion": "v1", "kind": "Event", "name": "q", "uid": "", "controller": true},
        ], "finalizers": ["x y"]})),
        &[
            "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
            "metadata.ownerReferences: Invalid value: {",
            "metadata.ownerReferences: Invalid value: [",
            "metadata.finalizers: Invalid value: \"x y\": name part must consist of",
            "metadata.finalizers[0]: Invalid value: \"x y\": name is neither a standard finalizer name",
        ],
    );
    check(
        ("rbac.authorization.k8s.io", "v1", "roles"),
        with(json!({"name": "a/b%c"})),
        &[
            "metadata.name: Invalid value: \"a/b%c\": may not contain '/'",
            "metadata.name: Invalid value: \"a/b%c\": may not contain '%'",
        ],
    );
}

#[test]
fn pods_are_checked() {
    pod(json!({}), &[]);
    pod(json!({"containers": []}), &["spec.containers: Required value"]);
    pod(json!({"containers": [], "virtualMachine": {"image": "i"}}), &[]);
    pod(
        json!({"containers": [{"name": "A", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}]}),
        &[
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label",
            "spec.containers[0].image: Required value",
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ],
    );
    pod(
        json!({"containers": [{"name": "c", "image": " i"}, {"name": "c", "image": "i"}]}),
        &[
            "spec.containers[1].name: Duplicate value: \"c\"",
            "spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace",
        ],
    );
    pod(
        json!({"restartPolicy": "Sometimes"}),
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ],
    );
    pod(
        json!({"volumes": [{"name": "v", "emptyDir": {}, "secret": {"secretName": "s"}}]}),
        &["spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type"],
    );
    pod(
        json!({"tolerations": [{"operator": "Equal"}]}),
        &[
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty",
        ],
    );
    pod(
        json!({"activeDeadlineSeconds": 0}),
        &[
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ],
    );
    pod(
        json!({"dnsPolicy": "None"}),
        &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
    );
    pod(
        json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "No"}]}),
        &[
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            "spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty",
            "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"No\"",
        ],
    );
}

#[test]
fn containers_are_checked() {
    let container = |more: Value, expected: &[&str]| {
        let mut whole = json!({"name": "c", "image": "i"});
        for (field, value) in more.as_object().unwrap() {
            whole[field] = value.clone();
        }
        pod(json!({ "containers": [whole] }), expected);
    };
    container(
        json!({"resources": {"requests": {"cpu": "2", "memory": "-1", "x": "1"}, "limits": {"cpu": "1"}}}),
        &[
            "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
            "spec.containers[0].resources.requests[x]: Invalid value: \"x\": must be a standard resource type or fully qualified",
            "spec.containers[0].resources.requests[x]: Invalid value: \"x\": must be a standard resource for containers",
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ],
    );
    container(
        json!({"livenessProbe": {"successThreshold": 2}}),
        &[
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ],
    );
    container(
        json!({"ports": [{"containerPort": 70000, "protocol": "ICMP"}]}),
        &[
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ],
    );
    container(
        json!({"env": [{"name": "a=b"}, {"name": "c", "valueFrom": {}}]}),
        &[
            "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name",
            "spec.containers[0].env[1].valueFrom: Invalid value: \"\": must specify one of",
        ],
    );
    container(
        json!({"securityContext": {"allowPrivilegeEscalation": false, "privileged": true}}),
        &["spec.containers[0].securityContext: Invalid value: {"],
    );
    pod(
        json!({"initContainers": [{"name": "i", "image": "i", "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}]}),
        &[
            "spec.initContainers[0].lifecycle: Forbidden: may not be set for init containers without restartPolicy=Always",
        ],
    );
}

#[test]
fn workloads_are_checked() {
    let deployments = ("apps", "v1", "deployments");
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let of = |more: Value| {
        let mut spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": template});
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        json!({"metadata": {"name": "d"}, "spec": spec})
    };
    check(deployments, of(json!({})), &[]);
    check(
        deployments,
        of(json!({"selector": {}})),
        &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
    );
    check(
        deployments,
        of(json!({"selector": {"matchLabels": {"a": "c"}}})),
        &[
            "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
        ],
    );
    check(
        deployments,
        of(json!({"replicas": -1})),
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );
    check(
        deployments,
        of(json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}})),
        &[
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ],
    );
    let mut once = template.clone();
    once["spec"]["restartPolicy"] = "Never".into();
    check(
        deployments,
        of(json!({"template": once})),
        &[
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ],
    );

    let served = served("apps", "v1", "statefulsets");
    let mut old = of(json!({"serviceName": "s"}));
    crate::strategy::normalize(&served, &mut old);
    let mut new = old.clone();
    new["spec"]["serviceName"] = "t".into();
    compare(
        &update(&served, "", &old, &new),
        &["spec: Forbidden: updates to statefulset spec for fields other than"],
    );

    let cron = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * *", "jobTemplate": {"spec": {"template": once}}}});
    check(
        ("batch", "v1", "cronjobs"),
        cron,
        &["spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3"],
    );
}

#[test]
fn services_are_checked() {
    let services = ("", "v1", "services");
    let of = |spec: Value| json!({"metadata": {"name": "s"}, "spec": spec});
    check(services, of(json!({"ports": [{"port": 80}]})), &[]);
    check(services, of(json!({})), &["spec.ports: Required value"]);
    check(
        services,
        of(json!({"type": "Nowhere", "ports": [{"port": 1}]})),
        &[
            "spec.type: Unsupported value: \"Nowhere\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ],
    );
    check(
        services,
        of(json!({"ports": [{"port": 1}, {"port": 1}]})),
        &[
            "spec.ports[0].name: Required value",
            "spec.ports[1].name: Required value",
            "spec.ports[1]: Duplicate value",
        ],
    );
    check(
        services,
        of(json!({"type": "ExternalName", "externalName": ""})),
        &["spec.externalName: Required value"],
    );
    check(
        services,
        of(json!({"clusterIP": "1.2.3", "clusterIPs": ["1.2.3"], "ports": [{"port": 1}]})),
        &["spec.clusterIPs[0]: Invalid value: \"1.2.3\": must be a valid IP address"],
    );
}

#[test]
fn what_is_sealed_stays() {
    let served = served("", "v1", "configmaps");
    let old = json!({"metadata": {"name": "m"}, "data": {"a": "b"}, "immutable": true});
    let new = json!({"metadata": {"name": "m"}, "data": {"a": "c"}});
    compare(
        &update(&served, "", &old, &new),
        &[
            "immutable: Forbidden: field is immutable when `immutable` is set",
            "data: Forbidden: field is immutable when `immutable` is set",
        ],
    );
    check(
        ("", "v1", "configmaps"),
        json!({"metadata": {"name": "m"}, "data": {"a b": ""}}),
        &["data[a b]: Invalid value: \"a b\": a valid config key"],
    );
}

#[test]
fn others_are_checked() {
    check(
        ("policy", "v1", "poddisruptionbudgets"),
        json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "maxUnavailable": 1}}),
        &["spec: Invalid value: {"],
    );
    check(
        ("networking.k8s.io", "v1", "ingresses"),
        json!({"metadata": {"name": "i"}, "spec": {"rules": [{"host": "A", "http": {"paths": [{"path": "x", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {}}}}]}}]}}),
        &[
            "spec.rules[0].host: Invalid value: \"A\"",
            "spec.rules[0].http.paths[0].backend: Required value: port name or number is required",
            "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
        ],
    );
    check(
        ("autoscaling", "v1", "horizontalpodautoscalers"),
        json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 0, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}}),
        &[
            "spec.maxReplicas: Required value: must be set and greater than 0",
            "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
        ],
    );
    check(
        ("scheduling.k8s.io", "v1", "priorityclasses"),
        json!({"metadata": {"name": "system-mine"}, "value": 1}),
        &["metadata.name: Forbidden: priority class names with 'system-' prefix are reserved"],
    );
    let group = ("scheduling.k8s.io", "v1alpha2", "podgroups");
    let policy = |policy: Value| json!({"metadata": {"name": "g", "namespace": "n"}, "spec": {"schedulingPolicy": policy}});
    check(
        group,
        policy(json!({})),
        &["spec.schedulingPolicy: Invalid value: \"\": must specify one of: `basic`, `gang`"],
    );
    check(
        group,
        policy(json!({"gang": {"minCount": 0}})),
        &[
            "spec.schedulingPolicy.gang.minCount: Invalid value: 0: must be greater than or equal to 1",
        ],
    );
    check(
        group,
        policy(json!({"gang": {"minCount": 2}, "basic": {}})),
        &[
            "spec.schedulingPolicy: Invalid value: \"{`basic`, `gang`}\": must specify exactly one of: `basic`, `gang`",
        ],
    );
    check(
        ("scheduling.k8s.io", "v1alpha2", "workloads"),
        json!({"metadata": {"name": "w", "namespace": "n"}, "spec": {"podGroupTemplates": [
            {"name": "a", "schedulingPolicy": {"basic": {}}},
            {"name": "a", "schedulingPolicy": {"basic": {}}, "schedulingConstraints": {"topology": [{"key": "rack"}]}},
        ]}}),
        &[
            "spec.podGroupTemplates[1].name: Duplicate value: \"a\"",
            "spec.podGroupTemplates[1].schedulingConstraints: Forbidden: ",
        ],
    );
    check(
        ("rbac.authorization.k8s.io", "v1", "rolebindings"),
        json!({"metadata": {"name": "b"}, "roleRef": {"kind": "Mole", "name": ""}}),
        &[
            "roleRef.name: Required value",
            "roleRef.kind: Unsupported value: \"Mole\": supported values: \"Role\", \"ClusterRole\"",
        ],
    );
    check(
        ("", "v1", "persistentvolumeclaims"),
        json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["Never"]}}),
        &[
            "spec.accessModes: Unsupported value: \"Never\"",
            "spec.resources[storage]: Required value",
        ],
    );
}
