//! Lists and watches over all tenants, of those in some slots only.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use bytes::Bytes;
use harness::Api;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use insula_api::{names::TenantName, slots::Slots};
use insula_apiserver::identity::{Identity, MASTERS};
use serde_json::{Value, json};

const ALL: &str = "/tenants/all/api/v1/configmaps";
const N_TENANTS: usize = 12;
/// What each tenant has: two of ours, and what it begins with.
const THERE: [&str; 4] = [
    "a",
    "b",
    "extension-apiserver-authentication",
    "kube-apiserver-legacy-service-account-token-tracking",
];

fn tenants() -> Vec<String> {
    (0..N_TENANTS).map(|n| format!("t{n:02}")).collect()
}

/// A third of the tenants, and the slots that are theirs alone.
fn chosen() -> (Vec<String>, Slots) {
    let chosen: Vec<_> = tenants().into_iter().step_by(3).collect();
    let slots = chosen.iter().fold(Slots::none(), |slots, it| slots.with_tenant(it));
    let others = tenants().into_iter().filter(|it| !chosen.contains(it));
    others.for_each(|it| assert!(!slots.has_tenant(&it), "{it} is not told apart"));
    (chosen, slots)
}

async fn write(api: &Api, tenant: &str, name: &str, label: &str) {
    let object = json!({"metadata": {"name": name, "labels": {"colour": label}}});
    api.make(&format!("/tenants/{tenant}/api/v1/namespaces/default/configmaps"), &object).await;
}

/// Two objects in each tenant, one of each colour.
async fn world() -> Api {
    let api = Api::start().await;
    for tenant in tenants() {
        api.make("/apis/insula.io/v1/tenants", &json!({"metadata": {"name": tenant}})).await;
        let namespace = json!({"metadata": {"name": "default"}});
        api.make(&format!("/tenants/{tenant}/api/v1/namespaces"), &namespace).await;
        write(&api, &tenant, "a", "red").await;
        write(&api, &tenant, "b", "blue").await;
    }
    api
}

/// Tenant and name of an object.
fn place(it: &Value) -> String {
    let text = |field: &str| it["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("tenant"), text("name"))
}

fn places(list: &Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(place).collect()
}

fn expected(tenants: &[String], names: &[&str]) -> Vec<String> {
    tenants.iter().flat_map(|it| names.iter().map(move |name| format!("{it}/{name}"))).collect()
}

/// The events of a watch that lasts for a second, as type and place.
async fn watch(api: &Api, query: &str) -> Vec<(String, Value)> {
    let uri = format!("{ALL}?watch=1&timeoutSeconds=1&{query}");
    let request = Request::builder().method(Method::GET).uri(uri);
    let request = request.header(header::USER_AGENT, "tester/v1");
    let request = request.body(Full::new(Bytes::new())).unwrap();
    let caller = Identity::new(TenantName::system(), "tester", &[MASTERS]);
    let response = api.server.handle_trusted(request, caller).await;
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let events = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let event = |line: &[u8]| {
        let mut event: Value = serde_json::from_slice(line).unwrap();
        (event["type"].as_str().unwrap().to_owned(), event["object"].take())
    };
    events.map(event).collect()
}

fn told(events: &[(String, Value)]) -> Vec<String> {
    let told = events.iter().filter(|(kind, _)| kind != "BOOKMARK");
    told.map(|(kind, object)| format!("{kind} {}", place(object))).collect()
}

#[tokio::test]
async fn lists_are_of_the_tenants_in_the_slots() {
    let api = world().await;
    let (chosen, slots) = chosen();
    let all = places(&api.get(ALL).await);
    assert!(THERE.len() * N_TENANTS < all.len(), "the platform's are among them");
    assert_eq!(places(&api.get(&format!("{ALL}?slots={}", Slots::all())).await), all);
    let some = api.get(&format!("{ALL}?slots={slots}")).await;
    assert_eq!(places(&some), expected(&chosen, &THERE));
    // Together with selectors, by name too.
    for query in ["labelSelector=colour%3Dblue", "fieldSelector=metadata.name%3Db"] {
        let some = api.get(&format!("{ALL}?slots={slots}&{query}")).await;
        assert_eq!(places(&some), expected(&chosen, &["b"]), "{query}");
    }
    // Page by page: each is full, and how many are left is not told, as with a selector.
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("{ALL}?slots={slots}&limit=3&continue={token}")).await;
        assert!(page["metadata"]["remainingItemCount"].is_null(), "{page}");
        found.extend(places(&page));
        match page["metadata"]["continue"].as_str() {
            Some(next) if !next.is_empty() => next.clone_into(&mut token),
            _ => break,
        }
        assert_eq!(found.len() % 3, 0, "{found:?}");
    }
    assert_eq!(found, expected(&chosen, &THERE));
}

#[tokio::test]
async fn watches_are_of_the_tenants_in_the_slots() {
    let api = world().await;
    let (chosen, slots) = chosen();
    let version = api.get(ALL).await["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    for tenant in tenants() {
        write(&api, &tenant, "c", "red").await;
        let of = format!("/tenants/{tenant}/api/v1/namespaces/default/configmaps");
        assert_eq!(api.delete(&format!("{of}/b")).await.0, 200);
    }
    let query = format!("slots={slots}&resourceVersion={version}&allowWatchBookmarks=1");
    let events = watch(&api, &query).await;
    let mut wanted = Vec::new();
    for tenant in &chosen {
        wanted.extend([format!("ADDED {tenant}/c"), format!("DELETED {tenant}/b")]);
    }
    assert_eq!(told(&events), wanted);
    // A bookmark stands for others' events too: who resumes from it is told nothing again.
    let (_, mark) = events.iter().rfind(|(kind, _)| kind == "BOOKMARK").unwrap();
    let reached = mark["metadata"]["resourceVersion"].as_str().unwrap();
    let newest = api.get(ALL).await["metadata"]["resourceVersion"].clone();
    assert_eq!(newest, reached);
    let again = watch(&api, &format!("slots={slots}&resourceVersion={reached}")).await;
    assert!(again.is_empty(), "{again:?}");
    // With the state to begin with, and a selector.
    let query = format!(
        "slots={slots}&labelSelector=colour%3Dred&sendInitialEvents=true\
         &resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let added = expected(&chosen, &["a", "c"]);
    let added: Vec<_> = added.iter().map(|it| format!("ADDED {it}")).collect();
    assert_eq!(told(&watch(&api, &query).await), added);
}

/// What is the fleet's is the platform's.
#[tokio::test]
async fn what_is_the_fleets_has_the_platforms_slot() {
    let api = world().await;
    let (_, others) = chosen();
    for path in ["/api/v1/nodes", "/apis/insula.io/v1/tenants", "/apis/insula.io/v1/partitions"] {
        let node = json!({"metadata": {"name": "n"}});
        if path.ends_with("nodes") {
            api.make(path, &node).await;
        }
        let all = places(&api.get(path).await);
        assert!(!all.is_empty(), "{path}");
        let of = |slots: &Slots| format!("/tenants/all{path}?slots={slots}");
        let platforms = Slots::none().with_tenant("system");
        assert_eq!(places(&api.get(&of(&platforms)).await), all);
        assert!(places(&api.get(&of(&others)).await).is_empty(), "{path}");
    }
}

#[tokio::test]
async fn slots_are_asked_for_in_good_order_and_of_all_tenants() {
    let api = world().await;
    let many = vec!["0-0"; 257].join(",");
    for (slots, why) in [
        ("", "\"\" is no range of slots"),
        ("7", "\"7\" is no range of slots"),
        ("9-3", "\"9-3\" is no range of slots"),
        ("0-16384", "\"0-16384\" is no range of slots, FIRST-LAST, of which the last is 16383"),
        ("0-1,x-y", "\"x-y\" is no range of slots"),
        (many.as_str(), "more than 256 ranges of slots"),
    ] {
        for watch in ["", "&watch=1"] {
            let uri = format!("{ALL}?slots={slots}{watch}");
            let (code, said) = api.send(Method::GET, &uri, harness::JSON, "").await;
            let message = said["message"].as_str().unwrap();
            assert_eq!(code, 400, "{slots}: {said}");
            assert!(message.contains(why), "{slots}: {said}");
        }
    }
    for path in ["/tenants/t00/api/v1/configmaps", "/api/v1/configmaps", "/api/v1/nodes"] {
        let (code, said) =
            api.send(Method::GET, &format!("{path}?slots=0-1"), harness::JSON, "").await;
        assert_eq!(code, 400, "{path}: {said}");
        assert!(said["message"].as_str().unwrap().contains("where all tenants are"), "{said}");
    }
}
