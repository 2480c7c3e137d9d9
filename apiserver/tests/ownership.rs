//! Field ownership and apply, request by request: codes, messages, entries.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::sync::Arc;

use harness::{APPLY, Api, JSON, MERGE};
use http::{Method, header};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "x", "image": "i:1"}]},
            },
        },
    })
}

/// Manager, operation, subresource and fields of each entry.
fn entries(it: &Value) -> Vec<Value> {
    let list = it["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |it: &Value, field: &str| it[field].as_str().unwrap_or_default().to_owned();
    list.iter()
        .map(|it| {
            let who = ["manager", "operation", "subresource"].map(|field| text(it, field));
            json!([who.join(" ").trim_end(), it["fieldsV1"]])
        })
        .collect()
}

#[track_caller]
fn check((code, answer): (u16, Value), expected: u16, message: &str) {
    let found = answer["message"].as_str().unwrap_or_default();
    assert!(code == expected && found == message, "{code} {answer}");
}

#[tokio::test]
async fn an_apply_creates_changes_and_is_refused() {
    let api = Api::start().await;
    let map = format!("{MAPS}/c");
    let (code, made) = api.apply(&map, "a", &config_map(json!({"x": "1", "y": "1"}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(entries(&made), [json!(["a Apply", {"f:data": {"f:x": {}, "f:y": {}}}])]);
    let (code, same) = api.apply(&map, "a", &config_map(json!({"x": "1", "y": "1"}))).await;
    assert_eq!((code, &same), (200, &made), "nothing was written");
    // YAML says the same.
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  x: '1'\n  y: '1'\n";
    let uri = format!("{map}?fieldManager=a");
    let (code, same) = api.send(Method::PATCH, &uri, APPLY, yaml).await;
    assert_eq!((code, &same), (200, &made));

    let (code, refused) = api.apply(&map, "b", &config_map(json!({"x": "2"}))).await;
    assert_eq!(code, 409);
    assert_eq!(
        refused,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": "Conflict", "code": 409,
            "message": "Apply failed with 1 conflict: conflict with \"a\": .data.x",
            "details": {"causes": [{
                "reason": "FieldManagerConflict", "field": ".data.x", "message": "conflict with \"a\"",
            }]},
        })
    );
    let (code, _) = api.patch(&map, MERGE, &json!({"data": {"y": "2", "z": "2"}})).await;
    assert_eq!(code, 200);
    let (code, refused) =
        api.apply(&map, "b", &config_map(json!({"x": "3", "y": "3", "z": "3"}))).await;
    assert_eq!(code, 409);
    assert_eq!(
        refused["message"],
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .data.x\nconflicts with \"tester\" using v1:\n- .data.y\n- .data.z"
    );
    assert_eq!(refused["details"]["causes"].as_array().unwrap().len(), 3);

    let forced = format!("{map}?fieldManager=b&force=true");
    let (code, taken) = api.patch(&forced, APPLY, &config_map(json!({"x": "3"}))).await;
    assert_eq!(code, 200);
    assert_eq!(
        entries(&taken),
        [
            json!(["b Apply", {"f:data": {"f:x": {}}}]),
            json!(["tester Update", {"f:data": {"f:y": {}, "f:z": {}}}]),
        ]
    );
    // Nothing is left of the first, so nothing of what it applied is taken away with it.
    let (_, it) = api.apply(&map, "a", &config_map(json!({}))).await;
    assert_eq!(it["data"], json!({"x": "3", "y": "2", "z": "2"}));
    // Whoever gives up a field that nobody else has removes it.
    let (_, it) = api.apply(&map, "b", &config_map(json!({"w": "1"}))).await;
    assert_eq!(it["data"], json!({"w": "1", "y": "2", "z": "2"}));

    // A certain revision, and a certain object.
    let mut guarded = config_map(json!({"w": "2"}));
    guarded["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
    check(
        api.apply(&map, "b", &guarded).await,
        409,
        "Operation cannot be fulfilled on configmaps \"c\": the object has been modified; please apply your changes to the latest version and try again",
    );
    guarded["metadata"]["resourceVersion"] = it["metadata"]["resourceVersion"].clone();
    assert_eq!(api.apply(&map, "b", &guarded).await.0, 200);
    let mut other = config_map(json!({}));
    other["metadata"]["uid"] = "another".into();
    assert_eq!(api.apply(&map, "b", &other).await.0, 422);
    other["metadata"]["name"] = "gone".into();
    check(
        api.apply(&format!("{MAPS}/gone"), "b", &other).await,
        409,
        "Operation cannot be fulfilled on configmaps \"gone\": uid mismatch: the provided object specified uid another, and no existing object was found",
    );

    // A dry run of a creation.
    let mut dry = config_map(json!({}));
    dry["metadata"]["name"] = "dry".into();
    let uri = format!("{MAPS}/dry?fieldManager=a&dryRun=All");
    assert_eq!(api.patch(&uri, APPLY, &dry).await.0, 201);
    assert_eq!(api.send(Method::GET, &format!("{MAPS}/dry"), JSON, "").await.0, 404);
}

#[tokio::test]
async fn what_cannot_be_applied_is_told() {
    let api = Api::start().await;
    let map = format!("{MAPS}/c");
    let named = format!("{map}?fieldManager=a");
    let it = config_map(json!({"x": "1"}));
    check(
        api.patch(&map, APPLY, &it).await,
        422,
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
    );
    check(
        api.patch(&format!("{map}?force=true"), MERGE, &json!({})).await,
        422,
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
    );
    check(
        api.patch(&format!("{map}?fieldManager={}", "a".repeat(129)), APPLY, &it).await,
        422,
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Too long: may not be more than 128 bytes",
    );
    check(
        api.send(Method::POST, &format!("{MAPS}?fieldManager=a%07b"), JSON, &it.to_string()).await,
        422,
        "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Invalid value: \"a\\ab\": invalid character U+0007 (at position 1)",
    );
    for kind in ["application/apply-patch+cbor", "text/plain"] {
        check(api.patch(&named, kind, &it).await, 415, "415: Unsupported Media Type");
    }
    let mut other = it.clone();
    other["apiVersion"] = "v2".into();
    check(api.patch(&named, APPLY, &other).await, 400, "invalid object type: /v2, Kind=ConfigMap");
    let mut other = it.clone();
    other["metadata"]["managedFields"] = json!([]);
    check(api.patch(&named, APPLY, &other).await, 400, "metadata.managedFields must be nil");
    let mut other = it.clone();
    other["metadata"]["name"] = "b".into();
    check(
        api.patch(&named, APPLY, &other).await,
        400,
        "the name of the object (b) does not match the name on the URL (c)",
    );
    let mut other = it.clone();
    other["dat"] = json!({});
    check(
        api.patch(&named, APPLY, &other).await,
        500,
        "failed to create typed patch object (/c; /v1, Kind=ConfigMap): .dat: field not declared in schema",
    );
    assert_eq!(api.send(Method::PATCH, &named, APPLY, "[1]").await.0, 400);
    assert_eq!(api.send(Method::PATCH, &named, APPLY, ": : :").await.0, 400);
    let twice = r#"{"apiVersion":"v1","kind":"ConfigMap","data":{"a":"1","a":"2"}}"#;
    let strict = format!("{named}&fieldValidation=Strict");
    check(
        api.send(Method::PATCH, &strict, APPLY, twice).await,
        400,
        "error strict decoding YAML: duplicate field \"data.a\"",
    );
    // Nothing of this has made anything.
    assert_eq!(api.send(Method::GET, &map, JSON, "").await.0, 404);
    // Nor does a part of an object make the whole.
    let uri = format!("{DEPLOYMENTS}/d/status?fieldManager=a");
    assert_eq!(api.patch(&uri, APPLY, &deployment()).await.0, 404);
}

#[tokio::test]
async fn parts_have_managers_of_their_own() {
    let api = Api::start().await;
    let it = format!("{DEPLOYMENTS}/d");
    let (code, _) = api.apply(&it, "owner", &deployment()).await;
    assert_eq!(code, 201);
    // A status, with a specification that does not count.
    let mut status = deployment();
    status["spec"]["replicas"] = 9.into();
    status["status"] = json!({"replicas": 1, "conditions": [{"type": "A", "status": "True"}]});
    let (code, after) = api.apply(&format!("{it}/status"), "controller", &status).await;
    assert_eq!(code, 200, "{after}");
    assert_eq!(after["spec"]["replicas"], 1);
    assert_eq!(after["status"]["replicas"], 1);
    let conditions = json!({"k:{\"type\":\"A\"}": {".": {}, "f:status": {}, "f:type": {}}});
    assert_eq!(
        entries(&after)[0],
        json!(["controller Apply status", {"f:status": {"f:conditions": conditions, "f:replicas": {}}}])
    );
    // The same applier through the object itself is somebody else, and has no say in the status.
    let mut both = deployment();
    both["status"] = json!({"replicas": 5});
    let (code, after) = api.apply(&it, "owner", &both).await;
    assert_eq!((code, &after["status"]["replicas"]), (200, &json!(1)));

    // An update of the status by a controller that is known by its program.
    let (code, after) =
        api.patch(&format!("{it}/status"), MERGE, &json!({"status": {"replicas": 2}})).await;
    assert_eq!(code, 200);
    assert_eq!(
        entries(&after).last().unwrap(),
        &json!(["tester Update status", {"f:status": {"f:replicas": {}}}])
    );

    // Scale: a field of the whole, through a kind of its own.
    let scale = |replicas: u32| {
        json!({
            "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"},
            "spec": {"replicas": replicas},
        })
    };
    let at = format!("{it}/scale");
    let (code, refused) = api.apply(&at, "scaler", &scale(4)).await;
    assert_eq!(code, 409);
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"owner\": .spec.replicas"
    );
    let (code, scaled) =
        api.patch(&format!("{at}?fieldManager=scaler&force=true"), APPLY, &scale(4)).await;
    assert_eq!((code, &scaled["spec"]["replicas"]), (200, &json!(4)));
    let after = api.get(&it).await;
    assert_eq!(after["spec"]["replicas"], 4);
    assert!(
        entries(&after).contains(&json!(["scaler Apply scale", {"f:spec": {"f:replicas": {}}}]))
    );
    let of_owner = entries(&after).into_iter().find(|it| it[0] == "owner Apply").unwrap();
    assert!(of_owner[1]["f:spec"].get("f:replicas").is_none(), "{of_owner}");
    let (code, _) = api.send(Method::PUT, &at, JSON, &scale(5).to_string()).await;
    assert_eq!(code, 200);
    let after = api.get(&it).await;
    assert!(
        entries(&after).contains(&json!(["tester Update scale", {"f:spec": {"f:replicas": {}}}]))
    );
    let (_, refused) = api.apply(&at, "scaler", &scale(6)).await;
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"tester\" with subresource \"scale\" using autoscaling/v1: .spec.replicas"
    );
}

#[tokio::test]
async fn what_clients_send_of_managers_is_checked() {
    let api = Api::start().await;
    let map = format!("{MAPS}/c");
    let (code, made) =
        api.send(Method::POST, MAPS, JSON, &config_map(json!({"x": "1"})).to_string()).await;
    assert_eq!(code, 201);
    assert_eq!(entries(&made), [json!(["tester Update", {"f:data": {".": {}, "f:x": {}}}])]);
    let put = async |managed: Value| {
        let mut it = api.get(&map).await;
        it["metadata"]["managedFields"] = managed;
        let (code, it) = api.send(Method::PUT, &map, JSON, &it.to_string()).await;
        assert_eq!(code, 200, "{it}");
        it
    };
    // What cannot be read, and nothing at all, count for nothing.
    assert_eq!(put(Value::Null).await, made);
    let nonsense = json!([{"manager": "x", "operation": "Smash", "apiVersion": "v1"}]);
    assert_eq!(put(nonsense).await, made);
    // What can be read is believed, and put in order.
    let entry = |manager: &str, fields: Value| {
        json!({
            "manager": manager, "operation": "Update", "apiVersion": "v1",
            "time": "2020-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields,
        })
    };
    let sent =
        json!([entry("z", json!({"f:data": {"f:x": {}}})), entry("b", json!({"f:data": {}}))]);
    let after = put(sent).await;
    assert_eq!(
        entries(&after),
        [json!(["b Update", {"f:data": {}}]), json!(["z Update", {"f:data": {"f:x": {}}}])]
    );
    assert_ne!(after["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    // An empty list forgets, and what is forgotten stays so.
    assert_eq!(entries(&put(json!([])).await), Vec::<Value>::new());
    let (_, it) = api.patch(&map, MERGE, &json!({"data": {"x": "2"}})).await;
    assert_eq!(entries(&it), Vec::<Value>::new());
    // Until somebody applies.
    let (code, it) = api.apply(&map, "a", &config_map(json!({"y": "1"}))).await;
    assert_eq!(code, 200);
    assert_eq!(
        entries(&it),
        [
            json!(["a Apply", {"f:data": {"f:y": {}}}]),
            json!(["before-first-apply Update", {"f:data": {".": {}, "f:x": {}}}]),
        ]
    );
}

#[tokio::test]
async fn readers_see_managers_in_every_form() {
    let api = Api::start().await;
    let text = config_map(json!({"x": "1"})).to_string();
    let (_, made) = api.send(Method::POST, MAPS, JSON, &text).await;
    let managed = made["metadata"]["managedFields"].clone();
    assert_eq!(api.get(&format!("{MAPS}/c")).await["metadata"]["managedFields"], managed);
    let list = api.get(MAPS).await;
    let mine = list["items"].as_array().unwrap().iter().find(|it| it["metadata"]["name"] == "c");
    assert_eq!(mine.unwrap()["metadata"]["managedFields"], managed);
    for (kind, path) in [
        ("PartialObjectMetadata", "/metadata/managedFields"),
        ("Table", "/rows/0/object/metadata/managedFields"),
    ] {
        let accept = format!("application/json;as={kind};v=v1;g=meta.k8s.io");
        let uri = format!("{MAPS}/c");
        let it = api.ask(Method::GET, &uri, &[(header::ACCEPT, &accept)], "").await.body;
        assert_eq!(it["kind"], kind);
        assert_eq!(it.pointer(path), Some(&managed), "{it}");
    }
    // What goes slowly keeps them.
    let held = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    assert_eq!(api.patch(&format!("{MAPS}/c"), MERGE, &held).await.0, 200);
    let before = api.get(&format!("{MAPS}/c")).await;
    let (code, going) = api.send(Method::DELETE, &format!("{MAPS}/c"), JSON, "").await;
    assert_eq!(code, 200);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(entries(&going), entries(&before));
}

/// Who applied in the client is in no conflict with itself on the server.
#[tokio::test]
async fn the_annotation_of_client_side_apply_explains_conflicts() {
    const LAST: &str = "kubectl.kubernetes.io/last-applied-configuration";
    let api = Api::start().await;
    let map = format!("{MAPS}/c");
    let config = config_map(json!({"x": "1", "y": "1", "z": "1"}));
    let mut made = config.clone();
    made["metadata"]["annotations"] = json!({LAST: format!("{config}\n")});
    let uri = format!("{MAPS}?fieldManager=kubectl-client-side-apply");
    let (code, _) = api.send(Method::POST, &uri, JSON, &made.to_string()).await;
    assert_eq!(code, 201);
    let (code, _) = api.patch(&map, MERGE, &json!({"data": {"z": "9"}})).await;
    assert_eq!(code, 200);

    let next = config_map(json!({"x": "2", "y": "1", "z": "2"}));
    // Anybody else is in conflict with all of it, kubectl only with what was changed since.
    let (code, refused) = api.apply(&map, "other", &next).await;
    assert_eq!((code, refused["details"]["causes"].as_array().unwrap().len()), (409, 2));
    let (code, refused) = api.apply(&map, "kubectl", &next).await;
    assert_eq!(code, 409);
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"tester\" using v1: .data.z"
    );
    let next = config_map(json!({"x": "2", "y": "1"}));
    let (code, after) = api.apply(&map, "kubectl", &next).await;
    assert_eq!(code, 200, "{after}");
    assert_eq!(after["data"], json!({"x": "2", "y": "1", "z": "9"}));
    // The annotation says what was applied, for whoever goes back to applying in the client.
    assert_eq!(after["metadata"]["annotations"][LAST], format!("{next}\n"));
    let (_, again) = api.apply(&map, "kubectl", &next).await;
    assert_eq!(again, after, "nothing new");
}

#[tokio::test]
async fn times_change_with_what_is_managed() {
    let api = Api::start().await;
    let map = format!("{MAPS}/c");
    let text = config_map(json!({"x": "1"})).to_string();
    let (_, made) = api.send(Method::POST, MAPS, JSON, &text).await;
    // The entry is made old, so that a new time is another one. A time alone is no change.
    let mut old = made.clone();
    old["metadata"]["managedFields"][0]["time"] = "2020-01-01T00:00:00Z".into();
    let (_, same) = api.send(Method::PUT, &map, JSON, &old.to_string()).await;
    assert_eq!(same, made);
    old["metadata"]["managedFields"][0]["manager"] = "other".into();
    let (_, old) = api.send(Method::PUT, &map, JSON, &old.to_string()).await;
    let time = |it: &Value| it["metadata"]["managedFields"][0]["time"].clone();
    assert_eq!(time(&old), "2020-01-01T00:00:00Z");
    // Nothing changes, so nothing is written.
    let (_, same) = api.send(Method::PUT, &map, JSON, &old.to_string()).await;
    assert_eq!(same, old);
    // A manager's own field changes, and no set does.
    let uri = format!("{map}?fieldManager=other");
    let (_, new) = api.patch(&uri, MERGE, &json!({"data": {"x": "2"}})).await;
    assert_eq!(entries(&new), entries(&old));
    assert_ne!(time(&new), time(&old));
}

#[tokio::test]
async fn many_at_once_lose_nothing() {
    let api = Arc::new(Api::start().await);
    let map = format!("{MAPS}/c");
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let (api, map) = (api.clone(), map.clone());
            tokio::spawn(async move {
                let mut data = serde_json::Map::new();
                data.insert(format!("x{n}"), n.to_string().into());
                // As often as it takes: so many at once wear the server's own retries out.
                loop {
                    let it = config_map(data.clone().into());
                    let (code, answer) = api.apply(&map, &format!("m{n}"), &it).await;
                    match code {
                        200 | 201 => return,
                        409 => assert_eq!(answer["details"]["name"], "c", "{answer}"),
                        _ => panic!("{answer}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let it = api.get(&map).await;
    assert_eq!(it["data"].as_object().unwrap().len(), 16);
    assert_eq!(entries(&it).len(), 16);
}
