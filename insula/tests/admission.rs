//! What tenants rule themselves, as kubectl sees it: webhooks that change and refuse.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{sync::mpsc, thread, time::Duration};

use base64::Engine as _;
use harness::{Cloud, create, refused, texts, webhook::Webhook};
use serde_json::{Value, json};

/// A configuration with these webhooks; what they leave out is about config maps.
fn configuration(kind: &str, name: &str, webhooks: &[Value]) -> String {
    let webhooks: Vec<Value> = webhooks
        .iter()
        .map(|it| {
            let mut whole = json!({
                "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"],
                           "resources": ["configmaps"]}],
                // What the platform makes in every namespace is not the tests' affair.
                "matchConditions": [{
                    "name": "not-the-platform",
                    "expression": "request.name != 'kube-root-ca.crt'",
                }],
            });
            for (field, value) in it.as_object().unwrap() {
                whole[field] = value.clone();
            }
            whole
        })
        .collect();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": name}, "webhooks": webhooks,
    })
    .to_string()
}

fn map(name: &str, data: Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
        .to_string()
}

fn patch(operations: Value) -> Value {
    let text = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"allowed": true, "patch": text, "patchType": "JSONPatch"})
}

#[test]
fn webhooks_refuse() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let webhook = Webhook::admitting(|_, request| {
        if request["operation"] == "DELETE" {
            let kept = request["oldObject"]["data"]["keep"] == "yes";
            return json!({"allowed": !kept, "status": {"reason": "Kept"}});
        }
        match request["object"]["data"]["bad"].as_str() {
            Some(why) => json!({
                "allowed": false, "status": {"message": why, "code": 418, "reason": "Teapot"},
                "warnings": ["it was bad"],
            }),
            None => json!({"allowed": true, "warnings": ["it was fine"]}),
        }
    });
    let hook = json!({"name": "deny.example.com", "clientConfig": webhook.by_url("/deny")});
    create(&acme, &configuration("ValidatingWebhookConfiguration", "deny", &[hook]));
    // In force with the next request.
    let said = refused(&acme, &map("a", json!({"bad": "no tea"})));
    assert!(
        said.contains(r#"admission webhook "deny.example.com" denied the request: no tea"#),
        "{said}"
    );
    assert!(said.contains("Warning: it was bad"), "{said}");
    let said = create(&acme, &map("a", json!({"keep": "yes"})));
    assert!(said.contains("Warning: it was fine"), "{said}");
    let said = acme.fails(&["patch", "cm", "a", "-p", r#"{"data":{"bad":"worse"}}"#]);
    assert!(said.contains("denied the request: worse"), "{said}");
    let said = acme.fails(&["delete", "cm", "a"]);
    assert!(
        said.contains(r#"admission webhook "deny.example.com" denied the request: Kept"#),
        "{said}"
    );
    let said = acme.fails(&["delete", "cm", "--all"]);
    assert!(said.contains("denied the request: Kept"), "{said}");
    // It does not see dry runs as something else, nor others' requests at all.
    let out =
        acme.feed(&["create", "--dry-run=server", "-f", "-"], &map("b", json!({"bad": "dry"})));
    assert!(texts(&out).1.contains("denied the request: dry"), "{out:?}");
    let asked = webhook.asked();
    create(&globex, &map("a", json!({"bad": "elsewhere"})));
    assert_eq!(webhook.asked(), asked);
    assert!(webhook.connections() < asked, "{} of {asked}", webhook.connections());
    // Its configuration is not in its own way, and without it all is well.
    acme.ok(&["delete", "validatingwebhookconfiguration", "deny"]);
    acme.ok(&["delete", "cm", "a"]);
    create(&acme, &map("a", json!({"bad": "now it may be"})));
}

#[test]
fn webhooks_change_objects() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let webhook = Webhook::admitting(|path, request| {
        let data = &request["object"]["data"];
        let seen = data.as_object().map_or(0, serde_json::Map::len);
        match path {
            // Says how much it sees, each time it is asked.
            "/count" => {
                patch(json!([{"op": "add", "path": "/data/count", "value": seen.to_string()}]))
            }
            "/add" if data.get("added").is_none() => {
                patch(json!([{"op": "add", "path": "/data/added", "value": "x"}]))
            }
            "/identity" => patch(json!([
                {"op": "replace", "path": "/metadata/uid", "value": "mine"},
                {"op": "add", "path": "/metadata/labels", "value": {"seen": "yes"}},
                {"op": "add", "path": "/unknown", "value": 1},
            ])),
            _ => json!({"allowed": true}),
        }
    });
    let hook = |name: &str, path: &str, policy: &str| {
        json!({"name": format!("{name}.example.com"), "reinvocationPolicy": policy,
               "clientConfig": webhook.by_url(path)})
    };
    create(
        &acme,
        &configuration("MutatingWebhookConfiguration", "b", &[hook("add", "/add", "Never")]),
    );
    let both = [hook("count", "/count", "IfNeeded"), hook("identity", "/identity", "Never")];
    create(&acme, &configuration("MutatingWebhookConfiguration", "a", &both));
    create(&acme, &map("a", json!({"own": "1"})));
    let found: Value = serde_json::from_str(&acme.ok(&["get", "cm", "a", "-o", "json"])).unwrap();
    // It counted one of its own, then was asked again when another had been added.
    assert_eq!(found["data"], json!({"own": "1", "added": "x", "count": "3"}));
    assert_eq!(found["metadata"]["labels"], json!({"seen": "yes"}));
    assert_ne!(found["metadata"]["uid"], "mine");
    assert!(found.get("unknown").is_none());
    // What was made is checked like what is sent.
    let bad = Webhook::admitting(|_, _| {
        patch(json!([{"op": "add", "path": "/data/not ok", "value": "x"}]))
    });
    let hook = json!({"name": "bad.example.com", "clientConfig": bad.by_url("/")});
    create(&acme, &configuration("MutatingWebhookConfiguration", "c", &[hook]));
    let said = refused(&acme, &map("b", json!({"own": "1"})));
    assert!(said.contains("data[not ok]: Invalid value"), "{said}");
}

#[test]
fn who_is_asked() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let webhook = Webhook::admitting(|_, request| {
        let message = format!("{} {}", request["operation"], request["name"]);
        json!({"allowed": false, "status": {"message": message}})
    });
    let config = webhook.by_url("/");
    let hook = |more: Value| {
        let mut hook = json!({"name": "a.example.com", "clientConfig": config});
        for (field, value) in more.as_object().unwrap() {
            hook[field] = value.clone();
        }
        configuration("ValidatingWebhookConfiguration", "a", &[hook])
    };
    let replace = |manifest: String| {
        acme.run(&["delete", "validatingwebhookconfiguration", "a", "--ignore-not-found"]);
        create(&acme, &manifest);
    };
    acme.ok(&["create", "ns", "marked"]);
    acme.ok(&["label", "ns", "marked", "guarded=yes"]);
    let guarded = json!({"matchLabels": {"guarded": "yes"}});
    replace(hook(json!({"namespaceSelector": guarded})));
    create(&acme, &map("a", json!({})));
    let said = acme.fails(&["-n", "marked", "create", "cm", "a"]);
    assert!(said.contains("denied the request"), "{said}");
    replace(hook(json!({"objectSelector": guarded})));
    acme.ok(&["-n", "marked", "create", "cm", "b"]);
    let said = acme.fails(&["label", "cm", "a", "guarded=yes"]);
    assert!(said.contains("denied the request"), "{said}");
    let conditions = json!([
        {"name": "created", "expression": "request.operation == 'CREATE'"},
        {"name": "named", "expression": "object.metadata.name.startsWith('x')"},
        {"name": "by-dev", "expression": "request.userInfo.username == 'dev' && authorizer.group('').resource('configmaps').namespace('default').check('create').allowed()"},
    ]);
    replace(hook(json!({"matchConditions": conditions})));
    create(&acme, &map("y", json!({})));
    let said = refused(&acme, &map("x", json!({})));
    assert!(said.contains(r#"denied the request: "CREATE" "x""#), "{said}");
    let failing = json!([{"name": "fails", "expression": "object.data.nothing == 'x'"}]);
    replace(hook(json!({"matchConditions": failing, "rules": [{
        "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
        "resources": ["configmaps"], "scope": "Namespaced"}]})));
    let said = refused(&acme, &map("z", json!({"a": "b"})));
    assert!(said.contains(r#"configmaps "z" is forbidden: expression 'object.data.nothing == 'x'' resulted in error: no such key: nothing"#), "{said}");
    // Another version of the same resource, and its scale.
    let rule = |version: &str, resource: &str| {
        json!([{"operations": ["*"], "apiGroups": ["autoscaling", "apps"],
                "apiVersions": [version], "resources": [resource]}])
    };
    let autoscaler = |version: &str| {
        json!({"apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler",
               "metadata": {"name": "h"},
               "spec": {"maxReplicas": 2, "scaleTargetRef": {
                   "apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}})
        .to_string()
    };
    let conditions = json!([{"name": "as-v2", "expression": "request.kind.version == 'v2' && object.apiVersion == 'autoscaling/v2'"}]);
    let hpas = "horizontalpodautoscalers";
    replace(hook(json!({"rules": rule("v2", hpas), "matchConditions": conditions})));
    let said = refused(&acme, &autoscaler("v1"));
    assert!(said.contains("denied the request"), "{said}");
    replace(hook(json!({"rules": rule("v2", hpas), "matchPolicy": "Exact"})));
    create(&acme, &autoscaler("v1"));
    acme.ok(&["create", "deployment", "d", "--image=x", "--replicas=0"]);
    let conditions = json!([{"name": "scale", "expression": "request.kind.kind == 'Scale' && oldObject.spec.replicas == 0 && object.spec.replicas == 3"}]);
    replace(hook(json!({"rules": rule("v1", "deployments/scale"), "matchConditions": conditions})));
    acme.ok(&["scale", "deployment", "d", "--replicas=0"]);
    let said = acme.fails(&["scale", "deployment", "d", "--replicas=3"]);
    assert!(said.contains(r#"denied the request: "UPDATE" "d""#), "{said}");
    // Streams are admitted before anything is looked for.
    let rules = json!([{"operations": ["CONNECT"], "apiGroups": [""], "apiVersions": ["v1"],
                        "resources": ["pods/exec"]}]);
    let conditions = json!([{"name": "sh", "expression": "request.operation == 'CONNECT' && object.kind == 'PodExecOptions' && object.command[0] == 'sh'"}]);
    replace(hook(json!({"rules": rules, "matchConditions": conditions})));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
                     "spec": {"containers": [{"name": "c", "image": "x"}]}});
    create(&acme, &pod.to_string());
    let said = acme.fails(&["exec", "p", "--", "sh"]);
    assert!(said.contains("denied the request"), "{said}");
    let said = acme.fails(&["exec", "p", "--", "true"]);
    assert!(said.contains("does not have a host assigned"), "{said}");
}

#[test]
fn what_cannot_be_asked() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let slow = Webhook::admitting(move |_, _| {
        // Nobody releases it before the time is over.
        let _ = held.lock().unwrap().recv_timeout(Duration::from_secs(20));
        json!({"allowed": true})
    });
    let replace = |hook: Value| {
        acme.run(&["delete", "validatingwebhookconfiguration", "a", "--ignore-not-found"]);
        create(&acme, &configuration("ValidatingWebhookConfiguration", "a", &[hook]));
    };
    let failed = |why: &str| {
        let said = refused(&acme, &map("a", json!({})));
        assert!(said.contains(why), "{said}");
    };
    let url = format!("https://{}:{}/slow", slow.address, slow.port);
    replace(
        json!({"name": "a.example.com", "clientConfig": slow.by_url("/slow"), "timeoutSeconds": 1}),
    );
    failed(&format!(
        r#"failed calling webhook "a.example.com": failed to call webhook: Post "{url}?timeout=1s": context deadline exceeded"#
    ));
    drop(release);
    // Nobody listens there.
    let closed = json!({"url": format!("https://{}:1/", slow.address), "caBundle": slow.bundle});
    replace(json!({"name": "a.example.com", "clientConfig": closed}));
    failed("connect: connection refused");
    replace(json!({"name": "a.example.com", "clientConfig": closed, "failurePolicy": "Ignore"}));
    create(&acme, &map("ignored", json!({})));
    // Nobody vouches for it.
    let other = Webhook::admitting(|_, _| json!({"allowed": true}));
    let mut config = other.by_url("/");
    config["caBundle"] = slow.bundle.as_str().into();
    replace(json!({"name": "a.example.com", "clientConfig": config}));
    failed("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    // The server's own host is nobody's webhook.
    let config = json!({"url": "https://127.0.0.1:6443/"});
    replace(json!({"name": "a.example.com", "clientConfig": config}));
    failed("is not an address that a tenant's server may have");
    // A service, step by step.
    let service = json!({"service": {"namespace": "default", "name": "hook", "path": "/x"},
                         "caBundle": other.bundle});
    replace(json!({"name": "a.example.com", "clientConfig": service}));
    failed(r#"Post "https://hook.default.svc:443/x?timeout=10s": service "hook" not found"#);
    let manifest = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook"},
                          "spec": {"ports": [{"port": 443, "name": "https"}]}});
    create(&acme, &manifest.to_string());
    failed(r#"no endpoints available for service "hook""#);
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
        "addressType": "IPv4", "ports": [{"name": "https", "port": other.port}],
        "endpoints": [{"addresses": [other.address.to_string()], "conditions": {"ready": true}}],
    });
    create(&acme, &slice.to_string());
    create(&acme, &map("a", json!({})));
    assert!(0 < other.asked());
}

#[test]
fn dry_runs_reach_only_who_can_take_them() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let webhook = Webhook::admitting(
        |_, request| json!({"allowed": true, "warnings": [format!("dry {}", request["dryRun"])]}),
    );
    let hook = json!({"name": "a.example.com", "clientConfig": webhook.by_url("/"),
                      "sideEffects": "NoneOnDryRun"});
    create(&acme, &configuration("ValidatingWebhookConfiguration", "a", &[hook]));
    let dry = acme.feed(&["create", "--dry-run=server", "-f", "-"], &map("a", json!({})));
    assert!(texts(&dry).1.contains("Warning: dry true"), "{dry:?}");
    acme.fails(&["get", "cm", "a"]);
    assert!(create(&acme, &map("a", json!({}))).contains("Warning: dry false"));
}

#[test]
fn many_at_once_are_asked_about() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let webhook = Webhook::admitting(|_, _| {
        patch(json!([{"op": "add", "path": "/data", "value": {"seen": "yes"}}]))
    });
    let hook = json!({"name": "a.example.com", "clientConfig": webhook.by_url("/")});
    create(&acme, &configuration("MutatingWebhookConfiguration", "a", &[hook]));
    let manifests: Vec<String> = (0..8)
        .map(|each| {
            let maps: Vec<Value> = (0..10)
                .map(|it| serde_json::from_str(&map(&format!("m{each}-{it}"), json!({}))).unwrap())
                .collect();
            json!({"apiVersion": "v1", "kind": "List", "items": maps}).to_string()
        })
        .collect();
    thread::scope(|scope| {
        for manifest in &manifests {
            scope.spawn(|| {
                let out = acme.feed(&["create", "--validate=false", "-f", "-"], manifest);
                assert!(out.status.success(), "{out:?}");
            });
        }
    });
    let seen = acme.ok(&["get", "cm", "-o", "jsonpath={.items[*].data.seen}"]);
    assert_eq!(seen.split(' ').count(), 80);
}
