//! Lists and watches of the pods of one node, which are found without looking at all pods, show what
//! a look at all pods would.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use bytes::Bytes;
use harness::Api;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use insula_api::names::TenantName;
use insula_apiserver::identity::Identity;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

const SCOPES: [&str; 3] = [
    "/tenants/all/api/v1/pods",
    "/tenants/acme/api/v1/pods",
    "/tenants/globex/api/v1/namespaces/default/pods",
];
const NODES: [&str; 2] = ["n1", "n2"];

/// Tenants with what pods need, and no controllers.
async fn start() -> Api {
    let api = Api::start().await;
    for tenant in ["acme", "globex"] {
        let named = |name: &str| json!({"metadata": {"name": name}});
        api.make("/apis/insula.io/v1/tenants", &named(tenant)).await;
        let namespaces = format!("/tenants/{tenant}/api/v1/namespaces");
        api.make(&namespaces, &named("default")).await;
        api.make(&format!("{namespaces}/default/serviceaccounts"), &named("default")).await;
    }
    api
}

fn of(tenant: &str) -> String {
    format!("/tenants/{tenant}/api/v1/namespaces/default/pods")
}

async fn make(api: &Api, tenant: &str, name: &str, node: Option<&str>) {
    let pod = json!({
        "metadata": {"name": name, "annotations": {"nodeName": "n1"}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
    });
    api.make(&of(tenant), &pod).await;
}

fn shown(pods: &[Value]) -> Vec<String> {
    let text = |it: &Value| it.as_str().unwrap().to_owned();
    let shown = |it: &Value| {
        let metadata = &it["metadata"];
        format!(
            "{}/{}@{}",
            text(&metadata["tenant"]),
            text(&metadata["name"]),
            text(&metadata["uid"])
        )
    };
    pods.iter().map(shown).collect()
}

fn on<'a>(list: &'a Value, node: &str) -> Vec<Value> {
    let items: &'a Vec<Value> = list["items"].as_array().unwrap();
    items.iter().filter(|it| it["spec"]["nodeName"] == *node).cloned().collect()
}

/// All pages of a list.
async fn pages(api: &Api, uri: &str) -> Vec<Value> {
    let (mut pods, mut token) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("{uri}&limit=2&continue={token}")).await;
        pods.extend(page["items"].as_array().unwrap().iter().cloned());
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            return pods;
        }
    }
}

/// What a watch begins with, or goes on with.
async fn watched(api: &Api, uri: &str) -> Vec<(String, Value)> {
    let request = Request::get(format!("{uri}&watch=true&timeoutSeconds=1"));
    let request = request.body(Full::new(Bytes::new())).unwrap();
    let caller = Identity::new(TenantName::system(), "tester", &["system:masters"]);
    let response = api.server.handle_trusted(request, caller).await;
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let lines = body.split(|it| *it == b'\n').filter(|it| !it.is_empty());
    let events = lines.map(|it| serde_json::from_slice::<Value>(it).unwrap());
    events.map(|it| (it["type"].as_str().unwrap().to_owned(), it["object"].clone())).collect()
}

#[tokio::test]
async fn pods_of_a_node_are_those_that_a_look_at_all_finds() {
    let (api, mut rng) = (start().await, StdRng::seed_from_u64(7));
    // Before anything is known of nodes, and of one that has no pods.
    assert_eq!(
        api.get(&format!("{}?fieldSelector=spec.nodeName=n1", SCOPES[0])).await["items"],
        json!([])
    );
    let mut pods: Vec<(&str, String)> = Vec::new();
    let mut earlier: Vec<(String, Vec<String>)> = Vec::new();
    for step in 0..60 {
        let tenant = ["acme", "globex"][rng.random_range(0..2)];
        match rng.random_range(0..3) {
            0 if !pods.is_empty() => {
                let (tenant, name) = pods.swap_remove(rng.random_range(0..pods.len()));
                let uri = format!("{}/{name}?gracePeriodSeconds=0", of(tenant));
                assert_eq!(api.delete(&uri).await.0, 200);
            }
            _ => {
                let name = format!("p{}", rng.random_range(0..40));
                if pods.iter().any(|it| it.0 == tenant && it.1 == name) {
                    continue;
                }
                let node = [None, Some("n1"), Some("n2")][rng.random_range(0..3)];
                make(&api, tenant, &name, node).await;
                pods.push((tenant, name));
            }
        }
        for scope in SCOPES {
            let all = api.get(scope).await;
            for node in NODES {
                let wanted = shown(&on(&all, node));
                let uri = format!("{scope}?fieldSelector=spec.nodeName={node}");
                let list = api.get(&uri).await;
                assert_eq!(shown(list["items"].as_array().unwrap()), wanted, "step {step}: {uri}");
                let any = api.get(&format!("{uri}&resourceVersion=0")).await;
                assert_eq!(shown(any["items"].as_array().unwrap()), wanted, "step {step}: {uri}");
                assert_eq!(shown(&pages(&api, &uri).await), wanted, "step {step}: {uri}");
                let at = list["metadata"]["resourceVersion"].as_str().unwrap();
                let exact = format!("{uri}&resourceVersionMatch=Exact&resourceVersion={at}");
                earlier.push((exact, wanted));
            }
        }
    }
    // As it was then, whatever there is now.
    for (uri, wanted) in earlier {
        let list = api.get(&uri).await;
        assert_eq!(shown(list["items"].as_array().unwrap()), wanted, "{uri}");
    }
    let all = api.get(SCOPES[0]).await;
    let uri = format!("{}?fieldSelector=spec.nodeName=n1", SCOPES[0]);
    let began = watched(&api, &uri).await;
    assert!(began.iter().all(|(kind, _)| kind == "ADDED"), "{began:?}");
    let mut began: Vec<Value> = began.into_iter().map(|it| it.1).collect();
    began.sort_by_key(|it| shown(std::slice::from_ref(it)));
    let mut wanted = shown(&on(&all, "n1"));
    wanted.sort();
    assert_eq!(shown(&began), wanted);
}

#[tokio::test]
async fn a_watch_goes_on_where_the_list_was() {
    let api = start().await;
    make(&api, "acme", "first", Some("n1")).await;
    for scope in &SCOPES[..2] {
        let uri = format!("{scope}?fieldSelector=spec.nodeName=n1");
        let list = api.get(&uri).await;
        let at = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        let name = format!("later-{}", scope.len());
        make(&api, "acme", "elsewhere", Some("n2")).await;
        make(&api, "acme", &name, Some("n1")).await;
        api.delete(&format!("{}/elsewhere?gracePeriodSeconds=0", of("acme"))).await;
        let told = watched(&api, &format!("{uri}&resourceVersion={at}")).await;
        let told: Vec<(&str, &Value)> =
            told.iter().map(|(kind, it)| (kind.as_str(), &it["metadata"]["name"])).collect();
        assert_eq!(told, [("ADDED", &json!(name))]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_as_of_the_revision_that_it_names() {
    let api = std::sync::Arc::new(start().await);
    let writer = {
        let api = api.clone();
        tokio::spawn(async move {
            for n in 0..150 {
                make(&api, "acme", &format!("p{n}"), NODES.get(n % 3).copied()).await;
                if 20 <= n {
                    let uri = format!("{}/p{}?gracePeriodSeconds=0", of("acme"), n - 20);
                    assert_eq!(api.delete(&uri).await.0, 200);
                }
            }
        })
    };
    let mut n_lists = 0;
    while !writer.is_finished() || n_lists == 0 {
        for scope in &SCOPES[..2] {
            let list = api.get(&format!("{scope}?fieldSelector=spec.nodeName=n2")).await;
            let at = list["metadata"]["resourceVersion"].as_str().unwrap();
            let exact = format!("{scope}?resourceVersionMatch=Exact&resourceVersion={at}");
            let wanted = shown(&on(&api.get(&exact).await, "n2"));
            assert_eq!(shown(list["items"].as_array().unwrap()), wanted, "{scope} at {at}");
            n_lists += 1;
        }
    }
    writer.await.unwrap();
}
