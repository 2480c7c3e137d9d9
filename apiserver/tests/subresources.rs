//! What is done to objects through the paths below them.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use harness::{Api, JSON, MERGE, STRATEGIC};
use http::Method;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

async fn account(api: &Api) {
    let account = json!({"metadata": {"name": "default"}});
    api.make("/api/v1/namespaces/default/serviceaccounts", &account).await;
}

/// A pod that runs on a node and is ready, or not.
async fn running(api: &Api, name: &str, ready: bool) -> Value {
    let pod = json!({
        "metadata": {"name": name, "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}}]},
    });
    api.make(PODS, &pod).await;
    let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n"}});
    let (code, said) = api.post(&format!("{PODS}/{name}/binding"), &binding).await;
    assert_eq!(code, 201, "{said}");
    let ready = if ready { "True" } else { "False" };
    let status =
        json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
    let (code, pod) = api.patch(&format!("{PODS}/{name}/status"), MERGE, &status).await;
    assert_eq!(code, 200, "{pod}");
    pod
}

async fn budget(api: &Api, name: &str, status: Value) {
    let selector = json!({"matchLabels": {"app": "a"}});
    let made =
        json!({"metadata": {"name": name}, "spec": {"minAvailable": 1, "selector": selector}});
    api.make(BUDGETS, &made).await;
    let (code, said) =
        api.patch(&format!("{BUDGETS}/{name}/status"), MERGE, &json!({ "status": status })).await;
    assert_eq!(code, 200, "{said}");
}

async fn evict(api: &Api, name: &str) -> (u16, Value) {
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
    api.post(&format!("{PODS}/{name}/eviction"), &eviction).await
}

#[tokio::test]
async fn a_budget_allows_so_many_evictions() {
    let api = Api::start().await;
    account(&api).await;
    for name in ["p1", "p2", "p3"] {
        running(&api, name, true).await;
    }
    budget(&api, "b", json!({"disruptionsAllowed": 1, "currentHealthy": 3, "desiredHealthy": 2, "expectedPods": 3, "observedGeneration": 1})).await;
    let (code, said) = evict(&api, "p1").await;
    assert_eq!((code, said["status"].as_str()), (201, Some("Success")), "{said}");
    let gone = api.get(&format!("{PODS}/p1")).await;
    assert!(gone["metadata"]["deletionTimestamp"].is_string());
    let conditions = gone["status"]["conditions"].as_array().unwrap();
    assert!(
        conditions
            .iter()
            .any(|it| it["type"] == "DisruptionTarget" && it["reason"] == "EvictionByEvictionAPI")
    );
    let budget = api.get(&format!("{BUDGETS}/b")).await;
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["p1"].is_string());

    let (code, said) = evict(&api, "p2").await;
    assert_eq!(code, 429, "{said}");
    assert_eq!(
        said["message"],
        "Cannot evict pod as it would violate the pod's disruption budget."
    );
    assert_eq!(
        said["details"]["causes"],
        json!([{"reason": "DisruptionBudget", "message": "The disruption budget b does not allow evicting pods currently"}])
    );
    // Whoever is ending already disrupts nobody.
    assert_eq!(evict(&api, "p1").await.0, 201);
    // A controller that is behind is waited for.
    let (code, _) =
        api.patch(&format!("{BUDGETS}/b"), MERGE, &json!({"spec": {"minAvailable": 2}})).await;
    assert_eq!(code, 200);
    let (code, said) = evict(&api, "p2").await;
    assert_eq!((code, said["details"]["retryAfterSeconds"].as_i64()), (429, Some(10)), "{said}");
}

#[tokio::test]
async fn what_is_not_healthy_is_evicted_by_policy() {
    let api = Api::start().await;
    account(&api).await;
    running(&api, "p", false).await;
    let status = json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 1, "expectedPods": 1, "observedGeneration": 1});
    budget(&api, "b", status).await;
    let (code, said) = evict(&api, "p").await;
    assert_eq!(code, 429);
    assert_eq!(
        said["details"]["causes"][0]["message"],
        "The disruption budget b needs 1 healthy pods and has 0 currently"
    );
    let policy = json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}});
    assert_eq!(api.patch(&format!("{BUDGETS}/b"), MERGE, &policy).await.0, 200);
    let body = json!({"metadata": {"name": "p"}});
    let (code, said) = api.post(&format!("{PODS}/p/eviction?dryRun=All"), &body).await;
    assert_eq!(code, 201, "{said}");
    assert_eq!(api.get(&format!("{PODS}/p")).await["metadata"].get("deletionTimestamp"), None);
    assert_eq!(evict(&api, "p").await.0, 201);
    budget(&api, "c", json!({"disruptionsAllowed": 1, "observedGeneration": 1})).await;
    running(&api, "q", true).await;
    let (code, said) = evict(&api, "q").await;
    assert_eq!(code, 500);
    assert!(said["message"].as_str().unwrap().contains("more than one PodDisruptionBudget"));
    let (code, said) =
        api.post(&format!("{PODS}/q/eviction"), &json!({"metadata": {"name": "x"}})).await;
    assert_eq!(
        (code, said["message"].as_str()),
        (400, Some("name in URL does not match name in Eviction object"))
    );
}

#[tokio::test]
async fn parts_of_pods_change_only_what_they_are_about() {
    let api = Api::start().await;
    account(&api).await;
    let before = running(&api, "p", true).await;
    assert_eq!(before["metadata"]["generation"], 1);
    let debug = json!({"metadata": {"labels": {"no": "no"}}, "spec": {"ephemeralContainers": [{"name": "d", "image": "i"}]}});
    let path = format!("{PODS}/p/ephemeralcontainers");
    let (code, pod) = api.patch(&path, STRATEGIC, &debug).await;
    assert_eq!(code, 200, "{pod}");
    assert_eq!(pod["spec"]["ephemeralContainers"][0]["terminationMessagePolicy"], "File");
    assert_eq!(pod["metadata"]["labels"], json!({"app": "a"}));
    assert_eq!(pod["metadata"]["generation"], 2);
    assert_eq!(api.get(&path).await["spec"], pod["spec"]);

    let resize = json!({"spec": {"containers": [{"name": "c", "image": "other", "resources": {"requests": {"cpu": "200m"}}}]}});
    let (code, pod) = api.patch(&format!("{PODS}/p/resize"), STRATEGIC, &resize).await;
    assert_eq!(code, 200, "{pod}");
    let container = &pod["spec"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["resources"]["requests"]["cpu"]),
        (&json!("i"), &json!("200m"))
    );
    assert_eq!(pod["metadata"]["generation"], 3);
    // The main path may not.
    let more = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "300m"}}}]}});
    let (code, _) = api.patch(&format!("{PODS}/p"), STRATEGIC, &more).await;
    assert_eq!(code, 422);
    let (code, _) = api.send(Method::DELETE, &format!("{PODS}/p/resize"), JSON, "").await;
    assert_eq!(code, 405);
}

#[tokio::test]
async fn the_old_way_of_binding() {
    let api = Api::start().await;
    account(&api).await;
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    api.make(PODS, &pod).await;
    let binding = json!({"metadata": {"name": "p", "labels": {"zone": "z"}, "annotations": {"a": "b"}}, "target": {"name": "n"}});
    let (code, said) = api.post("/api/v1/namespaces/default/bindings", &binding).await;
    assert_eq!((code, said["status"].as_str()), (201, Some("Success")), "{said}");
    let pod = api.get(&format!("{PODS}/p")).await;
    assert_eq!(pod["spec"]["nodeName"], "n");
    assert_eq!(
        (&pod["metadata"]["labels"]["zone"], &pod["metadata"]["annotations"]["a"]),
        (&json!("z"), &json!("b"))
    );
    let (code, said) = api.post(&format!("{PODS}/p/binding"), &binding).await;
    assert_eq!(code, 409);
    assert!(said["message"].as_str().unwrap().contains("is already assigned to node"));
}

#[tokio::test]
async fn a_certificate_request_is_approved_and_then_answered() {
    const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let api = Api::start().await;
    let request = base64_request();
    let made = api
        .make(
            REQUESTS,
            &json!({"metadata": {"name": "r"}, "spec": {"request": request, "signerName": "example.com/s",
                "usages": ["client auth"], "username": "somebody else"}, "status": {"certificate": "bm8="}}),
        )
        .await;
    assert_eq!(made["spec"]["username"], "tester");
    assert_eq!(made["status"], json!({}));
    let approval = json!({"status": {"certificate": "bm8=", "conditions": [{"type": "Approved", "status": "True", "reason": "R", "message": "m"}]}});
    let (code, it) = api.patch(&format!("{REQUESTS}/r/approval"), MERGE, &approval).await;
    assert_eq!(code, 200, "{it}");
    assert_eq!(it["status"].get("certificate"), None);
    assert!(it["status"]["conditions"][0]["lastTransitionTime"].is_string());
    let (code, it) = api.patch(&format!("{REQUESTS}/r"), MERGE, &approval).await;
    assert_eq!((code, it["status"].get("certificate")), (200, None));
}

/// What `openssl req -new` makes.
fn base64_request() -> String {
    use base64::Engine as _;
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::new(vec![]).unwrap().serialize_request(&key).unwrap();
    base64::engine::general_purpose::STANDARD.encode(request.pem().unwrap())
}

#[tokio::test]
async fn statuses_and_specifications_do_not_mix() {
    const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
    let api = Api::start().await;
    let made = api
        .make(
            DEPLOYMENTS,
            &json!({"metadata": {"name": "d", "labels": {"a": "b"}}, "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            }, "status": {"replicas": 7}}),
        )
        .await;
    assert_eq!((&made["status"], &made["metadata"]["generation"]), (&json!({}), &json!(1)));
    let both = json!({"metadata": {"labels": {"c": "d"}}, "spec": {"replicas": 5}, "status": {"replicas": 2}});
    let (_, it) = api.patch(&format!("{DEPLOYMENTS}/d/status"), MERGE, &both).await;
    assert_eq!((&it["spec"]["replicas"], &it["status"]["replicas"]), (&json!(1), &json!(2)));
    assert_eq!(
        (&it["metadata"]["labels"], &it["metadata"]["generation"]),
        (&json!({"a": "b"}), &json!(1))
    );
    let other = json!({"metadata": {"annotations": {"x": "y"}}, "status": {"replicas": 9}});
    let (_, it) = api.patch(&format!("{DEPLOYMENTS}/d"), MERGE, &other).await;
    assert_eq!((&it["status"]["replicas"], &it["metadata"]["generation"]), (&json!(2), &json!(2)));
}
