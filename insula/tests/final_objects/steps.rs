//! What a user does, from beginning to end.

use serde_json::{Value, json};

use crate::harness::Kubectl;

fn apply(user: &Kubectl, object: &Value) {
    let made = user.feed(&["apply", "-f", "-"], &object.to_string());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn template(app: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "image": "example/app:1", "resources": {
            "requests": {"cpu": "100m", "memory": "64Mi"},
        }}]},
    })
}

fn workload(kind: &str, name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec["template"].is_null() {
        spec["template"] = template(name);
    }
    if spec["selector"].is_null() {
        spec["selector"] = json!({"matchLabels": {"app": name}});
    }
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// A job whose pods end with a code.
fn job(name: &str, code: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["template"] = template(name);
    spec["template"]["metadata"]["annotations"] = json!({"test.insula.dev/exit-code": code});
    spec["template"]["spec"]["restartPolicy"] = json!("Never");
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})
}

fn until(user: &Kubectl, what: &str, path: &str, wanted: &str) {
    user.until(&["get", what, "-o", &format!("jsonpath={{{path}}}")], |it| it == wanted);
}

pub(crate) fn run(user: &Kubectl) {
    services(user);
    deployments(user);
    sets(user);
    jobs(user);
    owners(user);
}

/// Services of all kinds, and who may be interrupted.
fn services(user: &Kubectl) {
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    apply(user, &service("web", json!({"selector": {"app": "web"}, "ports": ports})));
    apply(
        user,
        &service("db", json!({"selector": {"app": "db"}, "clusterIP": "None", "ports": ports})),
    );
    apply(user, &service("by-hand", json!({"ports": ports})));
    apply(
        user,
        &json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "by-hand"},
            "subsets": [{
                "addresses": [{"ip": "192.0.2.10"}, {"ip": "192.0.2.11", "hostname": "second"}],
                "notReadyAddresses": [{"ip": "192.0.2.12"}],
                "ports": [{"name": "http", "port": 8080}],
            }],
        }),
    );
    apply(
        user,
        &json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
            "spec": {"minAvailable": "60%", "selector": {"matchLabels": {"app": "web"}}},
        }),
    );
    apply(
        user,
        &json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "all"},
            "spec": {"hard": {"pods": "60", "requests.cpu": "20", "services": "9", "count/jobs.batch": "9"}},
        }),
    );
}

/// Rolled, scaled, undone, paused, and one that never gets there.
fn deployments(user: &Kubectl) {
    apply(user, &workload("Deployment", "web", json!({"replicas": 3})));
    user.ok(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    user.ok(&["set", "image", "deployment/web", "c=example/app:2"]);
    user.ok(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    user.ok(&["scale", "deployment/web", "--replicas=5"]);
    user.ok(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    user.ok(&["rollout", "undo", "deployment/web"]);
    user.ok(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    apply(
        user,
        &workload(
            "Deployment",
            "fresh",
            json!({
                "replicas": 2, "strategy": {"type": "Recreate"},
            }),
        ),
    );
    user.ok(&["rollout", "status", "deployment/fresh", "--timeout=120s"]);
    user.ok(&["set", "image", "deployment/fresh", "c=example/app:2"]);
    user.ok(&["rollout", "status", "deployment/fresh", "--timeout=120s"]);
    let mut nowhere = template("stuck");
    nowhere["spec"]["nodeSelector"] = json!({"nowhere": "yes"});
    apply(
        user,
        &workload(
            "Deployment",
            "stuck",
            json!({
                "replicas": 1, "progressDeadlineSeconds": 3, "minReadySeconds": 1, "template": nowhere,
            }),
        ),
    );
    until(
        user,
        "deployment/stuck",
        ".status.conditions[?(@.type==\"Progressing\")].reason",
        "ProgressDeadlineExceeded",
    );
    apply(user, &workload("Deployment", "paused", json!({"replicas": 1, "paused": true})));
    apply(
        user,
        &json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "fresh"},
            "spec": {
                "minReplicas": 4, "maxReplicas": 6,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "fresh"},
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {
                    "type": "Utilization", "averageUtilization": 50,
                }}}],
            },
        }),
    );
    until(user, "deployment/fresh", ".status.readyReplicas", "4");
}

/// Sets of all kinds.
fn sets(user: &Kubectl) {
    let claim = json!({
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "by-hand",
            "resources": {"requests": {"storage": "1Gi"}}},
    });
    for n in 0..3 {
        apply(
            user,
            &json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("disk-{n}")},
                "spec": {
                    "capacity": {"storage": format!("{}Gi", n + 1)}, "accessModes": ["ReadWriteOnce"],
                    "storageClassName": "by-hand", "hostPath": {"path": "/nowhere"},
                    "claimRef": {"namespace": "default", "name": format!("data-db-{n}")},
                },
            }),
        );
    }
    apply(
        user,
        &workload(
            "StatefulSet",
            "db",
            json!({
                "replicas": 2, "serviceName": "db", "volumeClaimTemplates": [claim],
                "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Retain"},
            }),
        ),
    );
    user.ok(&["rollout", "status", "statefulset/db", "--timeout=120s"]);
    user.ok(&["set", "image", "statefulset/db", "c=example/app:2"]);
    user.ok(&["rollout", "status", "statefulset/db", "--timeout=120s"]);
    apply(user, &workload("DaemonSet", "agent", json!({})));
    user.ok(&["rollout", "status", "daemonset/agent", "--timeout=120s"]);
    user.ok(&["set", "image", "daemonset/agent", "c=example/app:2"]);
    user.ok(&["rollout", "status", "daemonset/agent", "--timeout=120s"]);
    apply(
        user,
        &json!({
            "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "old"},
            "spec": {"replicas": 2, "selector": {"app": "old"}, "template": template("old")},
        }),
    );
    until(user, "rc/old", ".status.readyReplicas", "2");
}

/// Jobs that end well, fail, wait, and come again.
fn jobs(user: &Kubectl) {
    apply(
        user,
        &job("all", "0", json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"})),
    );
    apply(user, &job("one", "0", json!({})));
    apply(user, &job("bad", "3", json!({"backoffLimit": 0})));
    apply(
        user,
        &job(
            "policy",
            "42",
            json!({"backoffLimit": 3, "podFailurePolicy": {"rules": [
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
            ]}}),
        ),
    );
    apply(user, &job("later", "0", json!({"suspend": true})));
    let spec = job("never", "0", json!({}))["spec"].clone();
    apply(
        user,
        &json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "never"},
            "spec": {"schedule": "0 0 29 2 *", "jobTemplate": {"spec": spec}},
        }),
    );
    for name in ["all", "one"] {
        user.ok(&["wait", "--for=condition=complete", &format!("job/{name}"), "--timeout=120s"]);
    }
    for name in ["bad", "policy"] {
        user.ok(&["wait", "--for=condition=failed", &format!("job/{name}"), "--timeout=120s"]);
    }
}

/// What belongs to what, when its owner goes.
fn owners(user: &Kubectl) {
    for name in ["orphaned", "foreground", "background"] {
        apply(user, &workload("Deployment", name, json!({"replicas": 1})));
        user.ok(&["rollout", "status", &format!("deployment/{name}"), "--timeout=120s"]);
    }
    user.ok(&["delete", "deployment", "orphaned", "--cascade=orphan"]);
    user.ok(&["delete", "deployment", "foreground", "--cascade=foreground"]);
    user.ok(&["delete", "deployment", "background", "--cascade=background"]);
    user.until(&["get", "pods,replicasets", "-o", "name"], |it| !it.contains("ground"));
    // One whose pods are there already takes them.
    apply(user, &workload("Deployment", "orphaned", json!({"replicas": 1})));
    user.ok(&["rollout", "status", "deployment/orphaned", "--timeout=120s"]);
    user.ok(&["create", "namespace", "gone"]);
    user.ok(&["create", "configmap", "kept", "-n", "gone"]);
    user.ok(&["create", "deployment", "gone", "-n", "gone", "--image=example/app:1"]);
    user.ok(&["delete", "namespace", "gone", "--timeout=120s"]);
    user.ok(&["create", "namespace", "stays"]);
    user.until(&["get", "serviceaccounts,configmaps", "-n", "stays", "-o", "name"], |it| {
        it.contains("default") && it.contains("kube-root-ca.crt")
    });
}
