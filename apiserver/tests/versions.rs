//! Kinds that are served in two versions: one object, whichever is asked for.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use harness::{Api, JSON, MERGE};
use http::Method;
use serde_json::json;

const CORE: &str = "/api/v1/namespaces/default/events";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const V1: &str = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
const V2: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";

#[tokio::test]
async fn an_event_is_one_in_both_groups() {
    let api = Api::start().await;
    let made = api
        .make(
            EVENTS,
            &json!({
                "metadata": {"name": "e", "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
                "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "note": "hello",
                "reportingController": "tests", "reportingInstance": "one", "action": "Do",
                "reason": "Because", "type": "Normal",
            }),
        )
        .await;
    assert_eq!(
        (made["apiVersion"].as_str(), made["note"].as_str()),
        (Some("events.k8s.io/v1"), Some("hello"))
    );
    let core = api.get(&format!("{CORE}/e")).await;
    assert_eq!((&core["apiVersion"], &core["kind"]), (&json!("v1"), &json!("Event")));
    assert_eq!((&core["message"], &core["involvedObject"]["name"]), (&json!("hello"), &json!("p")));
    assert_eq!(core["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(core["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);

    // A change through one is seen through the other, in lists and under both names of a field.
    let (code, _) = api.patch(&format!("{CORE}/e"), MERGE, &json!({"message": "again"})).await;
    assert_eq!(code, 200);
    for (uri, field) in [(EVENTS, "regarding.name"), (CORE, "involvedObject.name")] {
        let list = api.get(&format!("{uri}?fieldSelector={field}=p")).await;
        assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
        assert_eq!(api.get(&format!("{uri}?fieldSelector={field}=q")).await["items"], json!([]));
    }
    assert_eq!(api.get(EVENTS).await["items"][0]["note"], "again");
    let (code, said) = api
        .send(Method::GET, &format!("{EVENTS}?fieldSelector=involvedObject.name=p"), JSON, "")
        .await;
    assert_eq!(code, 400, "{said}");
    assert_eq!(api.rows(EVENTS).await, api.rows(CORE).await);
    let (code, applied) = api
        .apply(
            &format!("{EVENTS}/e"),
            "one",
            &json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "note": "again"}),
        )
        .await;
    assert_eq!((code, applied["note"].as_str()), (200, Some("again")), "{applied}");
    let (code, gone) = api.delete(&format!("{EVENTS}/e")).await;
    assert_eq!((code, gone["status"].as_str()), (200, Some("Success")));
    assert_eq!(api.get(CORE).await["items"], json!([]));
}

#[tokio::test]
async fn an_autoscaler_loses_nothing_in_its_first_version() {
    let api = Api::start().await;
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
    let made = api
        .make(
            V1,
            &json!({"metadata": {"name": "a"}, "spec": {"scaleTargetRef": target, "maxReplicas": 3}}),
        )
        .await;
    assert_eq!(made["spec"]["targetCPUUtilizationPercentage"], 80);
    assert_eq!(made["spec"]["minReplicas"], 1);
    let second = api.get(&format!("{V2}/a")).await;
    assert_eq!(second["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);

    let memory = json!({"type": "Resource", "resource": {"name": "memory",
        "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
    let (code, _) =
        api.patch(&format!("{V2}/a"), MERGE, &json!({"spec": {"metrics": [memory]}})).await;
    assert_eq!(code, 200);
    let mut first = api.get(&format!("{V1}/a")).await;
    let kept = &first["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"];
    assert!(kept.as_str().unwrap().contains("targetAverageValue"), "{first}");
    assert_eq!(first["spec"].get("targetCPUUtilizationPercentage"), None);
    first["spec"]["maxReplicas"] = 5.into();
    let (code, written) = api.put(&format!("{V1}/a"), &first).await;
    assert_eq!(code, 200, "{written}");
    let second = api.get(&format!("{V2}/a")).await;
    assert_eq!(
        (&second["spec"]["metrics"], &second["spec"]["maxReplicas"]),
        (&json!([memory]), &json!(5))
    );
    assert_eq!(second["metadata"].get("annotations"), None);
    // The same again is no change.
    let (_, again) = api.put(&format!("{V1}/a"), &api.get(&format!("{V1}/a")).await).await;
    assert_eq!(again["metadata"]["resourceVersion"], written["metadata"]["resourceVersion"]);
    assert_eq!(api.rows(V1).await, api.rows(V2).await);
}

#[tokio::test]
async fn discovery_tells_of_both() {
    let api = Api::start().await;
    let group = api.get("/apis/autoscaling").await;
    assert_eq!(group["preferredVersion"]["version"], "v2");
    assert_eq!(group["versions"].as_array().unwrap().len(), 2);
    let document = api.get("/openapi/v3/apis/autoscaling/v1").await;
    assert!(
        document["components"]["schemas"]["io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler"]
            .is_object()
    );
    // Nothing that is off by default, but for groups of pods, which the scheduler goes by, and
    // what is measured, which has no later version.
    let groups = api.get("/apis").await;
    let versions = groups["groups"].as_array().unwrap().iter().flat_map(|group| {
        let versions = group["versions"].as_array().unwrap().iter();
        versions.map(|it| it["groupVersion"].as_str().unwrap())
    });
    let early: Vec<_> = versions.filter(|it| it.contains("alpha") || it.contains("beta")).collect();
    assert_eq!(early, ["scheduling.k8s.io/v1alpha2", "metrics.k8s.io/v1beta1"]);
}
