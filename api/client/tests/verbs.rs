//! Each verb as it goes over the wire, and each kind of answer.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod fake;

use std::time::Duration;

use insula_api::names::TenantName;
use insula_client::{
    Api, DeleteOptions, Deleted, Error, EventRecorder, EventType, ListOptions, PartialObject,
    Patch, PatchOptions, Propagation, WriteOptions, fence::Fence,
};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::fake::{Asked, Fake, config_map, list, status};

fn acme() -> TenantName {
    TenantName::parse("acme").unwrap()
}

fn config_maps(fake: &Fake) -> Api<ConfigMap> {
    fake.client().tenant(&acme()).namespaced("ns")
}

#[track_caller]
fn check(asked: &Asked, method: &str, uri: &str, content_type: &str, body: Value) {
    let expected = (method, uri, content_type, &body);
    let got = (asked.method.as_str(), asked.uri.as_str(), asked.content_type.as_str(), &asked.body);
    assert_eq!(got, expected);
}

const ONE: &str = "/tenants/acme/api/v1/namespaces/ns/configmaps/a";
const JSON: &str = "application/json";

#[tokio::test]
async fn reads() {
    let fake = Fake::default();
    fake.answer(200, config_map("a", "ua", "3"));
    fake.answer(404, status(404, "NotFound"));
    fake.answer(200, list("7", Some("next"), &[config_map("a", "ua", "3")]));
    fake.answer(200, list("7", None, &[config_map("b", "ub", "4")]));
    let api = config_maps(&fake);
    assert_eq!(api.get("a").await.unwrap().key().to_string(), "acme/ns/a");
    assert!(api.get_opt("b").await.unwrap().is_none());
    assert_eq!(api.list_all(&ListOptions::labelled("x=y")).await.unwrap().len(), 2);
    let asked = fake.asked();
    check(&asked[0], "GET", ONE, "", Value::Null);
    let all = "/tenants/acme/api/v1/namespaces/ns/configmaps?labelSelector=x%3Dy&limit=500";
    check(&asked[2], "GET", all, "", Value::Null);
    check(&asked[3], "GET", &format!("{all}&continue=next"), "", Value::Null);
}

#[tokio::test]
async fn writes() {
    let fake = Fake::default();
    for _ in 0..6 {
        fake.answer(200, config_map("a", "ua", "3"));
    }
    let api = config_maps(&fake);
    let object = api.get("a").await.unwrap();
    let manager = WriteOptions { field_manager: Some("m".into()), dry_run: true };
    api.create_with(&object, &manager).await.unwrap();
    api.update(&object).await.unwrap();
    api.update_status(&object).await.unwrap();
    api.patch("a", &Patch::Merge(json!({"data": null}))).await.unwrap();
    let apply = PatchOptions { write: WriteOptions::default(), force: true };
    api.patch_with("a", Some("status"), &Patch::Apply(json!({"x": 1})), &apply).await.unwrap();
    let asked = fake.asked();
    let body = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": "ns", "name": "a", "uid": "ua", "resourceVersion": "3"},
    });
    let create = "/tenants/acme/api/v1/namespaces/ns/configmaps?fieldManager=m&dryRun=All";
    check(&asked[1], "POST", create, JSON, body.clone());
    check(&asked[2], "PUT", ONE, JSON, body.clone());
    check(&asked[3], "PUT", &format!("{ONE}/status"), JSON, body);
    check(&asked[4], "PATCH", ONE, "application/merge-patch+json", json!({"data": null}));
    let apply = format!("{ONE}/status?force=true");
    check(&asked[5], "PATCH", &apply, "application/apply-patch+yaml", json!({"x": 1}));
}

#[tokio::test]
async fn deletes() {
    let fake = Fake::default();
    fake.answer(200, config_map("a", "ua", "3"));
    fake.answer(200, json!({"kind": "Status", "metadata": {}, "status": "Success"}));
    let api = config_maps(&fake);
    let options = DeleteOptions::default().propagation(Propagation::Foreground).only_uid("ua");
    assert!(matches!(api.delete("a", &options).await, Ok(Deleted::Object(it)) if it.uid() == "ua"));
    let gone = api.delete("a", &DeleteOptions::default()).await;
    assert!(matches!(gone, Ok(Deleted::Status(_))));
    let body = json!({"propagationPolicy": "Foreground", "preconditions": {"uid": "ua"}});
    check(&fake.asked()[0], "DELETE", ONE, JSON, body);
}

#[tokio::test]
async fn metadata_alone_can_be_asked_for() {
    let fake = Fake::default();
    fake.answer(200, list("7", None, &[config_map("a", "ua", "3")]));
    let api: Api<PartialObject> =
        fake.client().tenant(&acme()).resource(config_maps(&fake).resource().clone(), None);
    let items = api.list_all(&ListOptions::default()).await.unwrap();
    assert_eq!((items[0].name(), items[0].kind.as_deref()), ("a", Some("ConfigMap")));
    assert!(fake.asked()[0].accept.contains("as=PartialObjectMetadataList"));
}

#[tokio::test(start_paused = true)]
async fn failures() {
    let fake = Fake::default();
    fake.answer(409, status(409, "AlreadyExists"));
    fake.answer(200, json!({"kind": "ConfigMap", "data": 7}));
    let api = config_maps(&fake).clone();
    assert!(api.create(&ConfigMap::default()).await.unwrap_err().is_already_exists());
    assert!(matches!(api.get("a").await, Err(Error::Decode { .. })), "its data is none");
    // No further answer in the script: the server hangs.
    let error = api.get("a").await.unwrap_err();
    assert_eq!(error.to_string(), format!("no answer to GET {ONE} within 40 s"));
    let nameless = api.update(&ConfigMap::default()).await.unwrap_err();
    assert_eq!(nameless.to_string(), "ConfigMap has no metadata.name");
}

#[tokio::test]
async fn repeated_events_are_counted() {
    let fake = Fake::default();
    fake.answer(200, config_map("a", "ua", "3"));
    let about = config_maps(&fake).get("a").await.unwrap();
    let event = |count: i32| {
        json!({
            "metadata": {"tenant": "acme", "namespace": "ns", "name": "a.1"},
            "involvedObject": {}, "count": count,
        })
    };
    fake.answer(201, event(1));
    fake.answer(200, event(2));
    fake.answer(404, status(404, "NotFound"));
    fake.answer(201, event(1));
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let recorder = EventRecorder::start(fake.client(), "tester", "h", &tasks, shutdown.clone());
    for _ in 0..3 {
        recorder.record(&about, EventType::Normal, "Tested", "it works");
    }
    let asked = fake.wait_asked(5).await;
    shutdown.cancel();
    tasks.close();
    tokio::time::timeout(Duration::from_secs(60), tasks.wait()).await.unwrap();

    assert_eq!(asked[1].uri, "/tenants/acme/api/v1/namespaces/ns/events");
    let created = &asked[1].body;
    assert_eq!(created["involvedObject"]["uid"], "ua");
    assert_eq!(created["involvedObject"]["kind"], "ConfigMap");
    assert_eq!(created["source"], json!({"component": "tester", "host": "h"}));
    assert_eq!((&created["type"], &created["count"]), (&json!("Normal"), &json!(1)));
    assert_eq!(asked[2].uri, "/tenants/acme/api/v1/namespaces/ns/events/a.1");
    assert_eq!((asked[2].method.as_str(), &asked[2].body["count"]), ("PATCH", &json!(2)));
    assert_eq!(asked[3].body["count"], 3);
    assert_eq!(asked[4].method, "POST", "the counted event had expired");
}

#[tokio::test]
async fn events_are_written_in_the_epoch_in_which_they_were_recorded() {
    let fake = Fake::default();
    fake.answer(200, config_map("a", "ua", "3"));
    let about = config_maps(&fake).get("a").await.unwrap();
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let recorder = EventRecorder::start(fake.client(), "tester", "", &tasks, shutdown.clone());
    let event = json!({
        "metadata": {"tenant": "acme", "namespace": "ns", "name": "a.1"}, "involvedObject": {},
    });
    fake.answer(201, event.clone());
    fake.answer(201, event);
    let fence = Fence::new("controllers.17", 4).unwrap();
    fence.around(async { recorder.record(&about, EventType::Normal, "One", "fenced") }).await;
    recorder.record(&about, EventType::Normal, "Two", "by nobody's leave");
    let asked = fake.wait_asked(3).await;
    assert_eq!((asked[1].fence.as_str(), asked[2].fence.as_str()), ("controllers.17=4", ""));
    shutdown.cancel();
}
