//! Many pods come to their nodes by one request.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use bytes::Bytes;
use harness::Api;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use insula_api::names::TenantName;
use insula_apiserver::identity::Identity;
use serde_json::{Value, json};

const GROUP: &str = "/apis/insula.io/v1";

async fn pod(api: &Api, tenant: &str, name: &str) -> Value {
    let pod =
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    api.make(&format!("/tenants/{tenant}/api/v1/namespaces/default/pods"), &pod).await
}

/// A tenant with what pods need, and no controllers.
async fn tenant(api: &Api, name: &str) {
    if name != "system" {
        api.make(&format!("{GROUP}/tenants"), &json!({"metadata": {"name": name}})).await;
    }
    let under = format!("/tenants/{name}/api/v1/namespaces");
    if name != "system" {
        api.make(&under, &json!({"metadata": {"name": "default"}})).await;
    }
    let account = json!({"metadata": {"name": "default"}});
    api.make(&format!("{under}/default/serviceaccounts"), &account).await;
}

async fn get(api: &Api, tenant: &str, name: &str) -> Value {
    api.get(&format!("/tenants/{tenant}/api/v1/namespaces/default/pods/{name}")).await
}

fn binding(tenant: &str, name: &str, node: &str) -> Value {
    json!({"tenant": tenant, "namespace": "default", "name": name, "node": node})
}

async fn partition(api: &Api) -> String {
    let list = api.get(&format!("{GROUP}/partitions")).await;
    let items = list["items"].as_array().unwrap();
    let mut names = items.iter().map(|it| it["metadata"]["name"].as_str().unwrap());
    // The other one is of the map.
    names.find(|name| *name != "meta").unwrap().to_owned()
}

async fn bind(api: &Api, bindings: &[Value]) -> Vec<(u64, String, String)> {
    let path = format!("{GROUP}/partitions/{}/bindings", partition(api).await);
    let (code, said) = api.post(&path, &json!({"spec": {"bindings": bindings}})).await;
    assert_eq!(code, 201, "{said}");
    let results = said["status"]["results"].as_array().unwrap().clone();
    assert_eq!(results.len(), bindings.len());
    let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
    let told =
        |it: &Value| (it["code"].as_u64().unwrap(), text(&it["reason"]), text(&it["message"]));
    results.iter().map(told).collect()
}

#[tokio::test]
async fn each_binding_is_judged_by_itself_as_a_single_one() {
    let api = Api::start().await;
    for name in ["acme", "globex"] {
        tenant(&api, name).await;
    }
    for name in ["p0", "p1", "bound", "other", "late", "twice"] {
        pod(&api, "acme", name).await;
    }
    pod(&api, "globex", "p0").await;
    assert_eq!(bind(&api, &[binding("acme", "bound", "n0")]).await[0].0, 201);

    let mut other = binding("acme", "other", "n1");
    other["uid"] = "somebody".into();
    let mut late = binding("acme", "late", "n1");
    late["fence"] = "schedulers.7=1".into();
    let mut unreadable = binding("acme", "late", "n1");
    unreadable["fence"] = "schedulers".into();
    let results = bind(
        &api,
        &[
            binding("acme", "p0", "n1"),
            binding("acme", "bound", "n1"),
            other,
            binding("acme", "none", "n1"),
            late,
            binding("acme", "twice", "n1"),
            binding("acme", "twice", "n2"),
            binding("globex", "p0", "n2"),
            binding("acme", "p1", ""),
            binding("Not A Tenant", "p1", "n1"),
            unreadable,
        ],
    )
    .await;
    let codes: Vec<_> = results.iter().map(|it| it.0).collect();
    assert_eq!(codes, [201, 409, 409, 404, 409, 201, 409, 201, 422, 400, 400], "{results:#?}");
    assert_eq!(
        results[1].2,
        "Operation cannot be fulfilled on pods/binding \"bound\": pod bound is already assigned \
         to node \"n0\""
    );
    assert!(results[2].2.contains("UID in precondition"), "{}", results[2].2);
    assert_eq!(results[4].1, "Superseded");
    assert!(results[6].2.contains("already assigned to node \"n1\""), "{}", results[6].2);

    // What a pod becomes is what a single binding makes of it.
    let of_batch = get(&api, "acme", "p0").await;
    let single = json!({"metadata": {"name": "p1"}, "target": {"kind": "Node", "name": "n1"}});
    let path = "/tenants/acme/api/v1/namespaces/default/pods/p1/binding";
    assert_eq!(api.post(path, &single).await.0, 201);
    let of_one = get(&api, "acme", "p1").await;
    assert_eq!(of_batch["spec"]["nodeName"], "n1");
    let condition = |pod: &Value| {
        let mut it = pod["status"]["conditions"][0].clone();
        it["lastTransitionTime"] = Value::Null;
        it
    };
    assert_eq!(condition(&of_batch), condition(&of_one));
    assert_eq!(condition(&of_batch)["status"], "True");
    assert_eq!(of_batch["metadata"]["managedFields"].as_array().map(Vec::len), {
        of_one["metadata"]["managedFields"].as_array().map(Vec::len)
    });
    assert_eq!(get(&api, "acme", "late").await["spec"].get("nodeName"), None);
    assert_eq!(get(&api, "globex", "p0").await["spec"]["nodeName"], "n2");
}

#[tokio::test]
async fn many_are_bound_in_one_step_and_no_more_than_may_be() {
    let api = Api::start().await;
    tenant(&api, "acme").await;
    let names: Vec<_> = (0..60).map(|n| format!("p{n}")).collect();
    for name in &names {
        pod(&api, "acme", name).await;
    }
    let bindings: Vec<_> = names.iter().map(|name| binding("acme", name, "n")).collect();
    assert!(bind(&api, &bindings).await.iter().all(|it| it.0 == 201));
    let mut revisions = Vec::new();
    for name in &names {
        let pod = get(&api, "acme", name).await;
        revisions.push(pod["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap());
    }
    let first: u64 = revisions[0];
    assert_eq!(revisions, (first..first + 60).collect::<Vec<_>>(), "they are one step");

    let path = format!("{GROUP}/partitions/{}/bindings", partition(&api).await);
    let too_many = vec![binding("acme", "p0", "n"); 513];
    let (code, said) = api.post(&path, &json!({"spec": {"bindings": too_many}})).await;
    assert_eq!(code, 422, "{said}");
    let path = format!("{GROUP}/partitions/none/bindings");
    let (code, said) = api.post(&path, &json!({"spec": {"bindings": []}})).await;
    assert_eq!(code, 404, "{said}");
}

/// Whoever asks for it has each pod that is bound told so, as if by itself.
#[tokio::test]
async fn what_is_bound_is_told_of_in_the_name_of_who_asked() {
    let api = Api::start().await;
    let mut bindings = Vec::new();
    for (own, name) in [("acme", "p0"), ("acme", "p1"), ("globex", "p0"), ("acme", "nameless")] {
        if name == "p0" {
            tenant(&api, own).await;
        }
        let pod = pod(&api, own, name).await;
        let mut it = binding(own, name, "n");
        it["uid"] = pod["metadata"]["uid"].clone();
        bindings.push(it);
    }
    // One whose uid is not said is bound, and not told of; one that is gone is neither.
    bindings[3].as_object_mut().unwrap().remove("uid");
    bindings.push(binding("acme", "gone", "n"));
    let path = format!("{GROUP}/partitions/{}/bindings", partition(&api).await);
    let spec = json!({
        "bindings": bindings,
        "reportingComponent": "default-scheduler", "reportingInstance": "s1",
    });
    let (code, said) = api.post(&path, &json!({"spec": spec})).await;
    assert_eq!(code, 201, "{said}");
    let told: Vec<_> = said["status"]["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["code"].as_u64().unwrap(), it["reported"] == true))
        .collect();
    assert_eq!(told, [(201, true), (201, true), (201, true), (201, false), (404, false)], "{said}");

    for (own, n) in [("acme", 2), ("globex", 1)] {
        let list = api.get(&format!("/tenants/{own}/api/v1/namespaces/default/events")).await;
        assert_eq!(list["items"].as_array().unwrap().len(), n, "{list}");
    }
    let list = api.get("/tenants/globex/api/v1/namespaces/default/events").await;
    let pod = get(&api, "globex", "p0").await;
    let mut event = list["items"][0].clone();
    let times = [event["firstTimestamp"].take(), event["lastTimestamp"].take()];
    assert!(times.iter().all(|it| it.as_str().is_some_and(|it| it.ends_with('Z'))), "{times:?}");
    assert!(event["metadata"]["name"].as_str().unwrap().starts_with("p0."), "{event}");
    assert!(!event["metadata"]["uid"].as_str().unwrap().is_empty());
    event["metadata"].take();
    let expected = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": null, "firstTimestamp": null, "lastTimestamp": null, "eventTime": null,
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "p0",
            "uid": pod["metadata"]["uid"], "resourceVersion": pod["metadata"]["resourceVersion"],
        },
        "type": "Normal", "reason": "Scheduled", "count": 1,
        "message": "Successfully assigned default/p0 to n",
        "source": {"component": "default-scheduler"},
        "reportingComponent": "default-scheduler", "reportingInstance": "s1",
    });
    assert_eq!(event, expected);
}

/// Only who may bind in every tenant may use it, whatever else they may.
#[tokio::test]
async fn only_who_may_bind_everywhere_may_ask() {
    let api = Api::start().await;
    tenant(&api, "acme").await;
    pod(&api, "acme", "p").await;
    let rules = json!([
        {"apiGroups": ["insula.io"], "resources": ["partitions/bindings"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["pods/binding"], "verbs": ["create"]},
    ]);
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": "binder"}, "rules": rules});
    api.make(&format!("{RBAC}/clusterroles"), &role).await;
    for (user, tenants) in [("home", None), ("some", Some("acme,system")), ("all", Some("*"))] {
        let mut binding = json!({
            "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "binder"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        });
        if let Some(tenants) = tenants {
            binding["metadata"]["annotations"] = json!({"insula.io/tenants": tenants});
        }
        api.make(&format!("{RBAC}/clusterrolebindings"), &binding).await;
    }
    let path = format!("{GROUP}/partitions/{}/bindings", partition(&api).await);
    let ask = async |tenant: &str, user: &str, is_told: bool| {
        let mut body = json!({"spec": {"bindings": [binding("acme", "p", "n")]}});
        if is_told {
            body["spec"]["reportingComponent"] = "scheduler".into();
        }
        let body = body.to_string();
        let request = Request::builder()
            .method(Method::POST)
            .uri(&path)
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let caller = Identity::new(TenantName::parse(tenant).unwrap(), user, &[]);
        let response = api.server.handle_trusted(request, caller).await;
        let code = response.status().as_u16();
        drop(response.into_body().collect().await.unwrap());
        code
    };
    assert_eq!(ask("acme", "all", false).await, 403);
    for user in ["nobody", "home", "some"] {
        assert_eq!(ask("system", user, false).await, 403, "{user}");
        assert_eq!(get(&api, "acme", "p").await["spec"].get("nodeName"), None);
    }
    assert_eq!(ask("system", "all", true).await, 403, "it may not write events");
    assert_eq!(get(&api, "acme", "p").await["spec"].get("nodeName"), None);
    assert_eq!(ask("system", "all", false).await, 201);
    assert_eq!(get(&api, "acme", "p").await["spec"]["nodeName"], "n");
}
