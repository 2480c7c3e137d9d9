//! Watchers and reflectors: each event once and in order, and a store that is right again after
//! the server was away.

use std::{collections::BTreeMap, pin::pin};

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
    discovery,
    runtime::{
        WatchStreamExt as _, reflector,
        reflector::Store,
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;

use super::{
    boat::{self, Boat},
    client_of, soon,
};
use crate::harness::Cloud;

/// The two ways to begin: a list in pages and then a watch, or a watch that begins with what is.
fn ways() -> [(&'static str, watcher::Config); 2] {
    [
        ("pages", watcher::Config::default().labels("follow=yes").page_size(2)),
        ("streaming", watcher::Config::default().labels("follow=yes").streaming_lists()),
    ]
}

fn map(name: &str, follow: bool) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.into());
    let followed = if follow { "yes" } else { "no" };
    map.labels_mut().insert("follow".into(), followed.into());
    map
}

/// The next thing that a watcher tells, in short.
async fn next<K: kube::Resource>(
    events: &mut (impl Stream<Item = watcher::Result<Event<K>>> + Unpin),
) -> String {
    let event = soon("event", events.next()).await.unwrap().unwrap();
    let name = |it: &K| it.meta().name.clone().unwrap_or_default();
    match event {
        Event::Init => "init".into(),
        Event::InitApply(it) => format!("has {}", name(&it)),
        Event::InitDone => "done".into(),
        Event::Apply(it) => format!("apply {}", name(&it)),
        Event::Delete(it) => format!("delete {}", name(&it)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_are_told_everything_once() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let maps: Api<ConfigMap> = Api::default_namespaced(client_of(&acme).await);
    let short: Api<PartialObjectMeta<ConfigMap>> = Api::default_namespaced(client_of(&acme).await);
    let create = PostParams::default();
    for (way, config) in ways() {
        for name in ["a", "b", "c", "d", "e"] {
            maps.create(&create, &map(name, true)).await.unwrap();
        }
        maps.create(&create, &map("hidden", false)).await.unwrap();
        globex.ok(&["create", "configmap", &format!("theirs-{way}")]);

        let mut events = pin!(watcher(maps.clone(), config.clone()));
        for expected in ["init", "has a", "has b", "has c", "has d", "has e", "done"] {
            assert_eq!(next(&mut events).await, expected, "{way}");
        }
        let mut metadata = pin!(watcher(short.clone(), config));
        while next::<PartialObjectMeta<ConfigMap>>(&mut metadata).await != "done" {}

        maps.create(&create, &map("f", true)).await.unwrap();
        // What begins to match is new to a watcher; what ends to match is gone.
        for (name, follow) in [("hidden", "yes"), ("a", "no")] {
            let change = json!({ "metadata": { "labels": { "follow": follow } } });
            let change = Patch::Merge(change);
            maps.patch(name, &PatchParams::default(), &change).await.unwrap();
        }
        maps.delete("b", &DeleteParams::default()).await.unwrap();
        for expected in ["apply f", "apply hidden", "delete a", "delete b"] {
            assert_eq!(next(&mut events).await, expected, "{way}");
            assert_eq!(next(&mut metadata).await, expected, "{way}: metadata");
        }
        for name in ["a", "c", "d", "e", "f", "hidden"] {
            maps.delete(name, &DeleteParams::default()).await.unwrap();
        }
        for expected in ["delete c", "delete d", "delete e", "delete f", "delete hidden"] {
            assert_eq!(next(&mut events).await, expected, "{way}");
        }
    }
}

/// What a store has: owners by name.
fn owners(store: &Store<DynamicObject>) -> BTreeMap<String, String> {
    let owner = |it: &DynamicObject| it.data["spec"]["owner"].as_str().unwrap().to_owned();
    store.state().iter().map(|it| (it.name_any(), owner(it))).collect()
}

/// Follows events until a store is as it should be.
async fn follow(
    events: &mut (impl Stream<Item = watcher::Result<Event<DynamicObject>>> + Unpin),
    store: &Store<DynamicObject>,
    expected: &[(&str, &str)],
) {
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(name, owner)| ((*name).into(), (*owner).into())).collect();
    let until = async {
        while owners(store) != expected {
            events.try_next().await.unwrap().unwrap();
        }
    };
    soon("change in the store", until).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflectors_catch_up_after_a_restart() {
    let mut cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let client = client_of(&acme).await;
    boat::define(&client).await;
    let typed: Api<Boat> = Api::default_namespaced(client.clone());
    let kind = GroupVersionKind::gvk("harbour.example.com", "v1", "Boat");
    let (resource, _) = discovery::pinned_kind(&client, &kind).await.unwrap();
    let dynamic: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);

    let ways = [watcher::Config::default(), watcher::Config::default().streaming_lists()];
    let mut followed: Vec<_> = ways
        .into_iter()
        .map(|config| {
            let writer = reflector::store::Writer::new(resource.clone());
            let store = writer.as_reader();
            let events = watcher(dynamic.clone(), config).default_backoff();
            (store, reflector(writer, events).boxed())
        })
        .collect();
    let create = PostParams::default();
    typed.create(&create, &boat::boat("argo", "jason", 1)).await.unwrap();
    typed.create(&create, &boat::boat("wave", "hokusai", 3)).await.unwrap();
    for (store, events) in &mut followed {
        follow(events, store, &[("argo", "jason"), ("wave", "hokusai")]).await;
    }

    cloud.terminate();
    cloud.again();
    change_fleet(&client, &typed).await;
    for (store, events) in &mut followed {
        let events = &mut events.filter_map(|it| async { it.ok().map(Ok) }).boxed();
        follow(events, store, &[("argo", "medea"), ("raft", "thor")]).await;
    }

    // Killed, it comes back with all it had acknowledged.
    cloud.kill();
    cloud.again();
    for (store, events) in &mut followed {
        let events = &mut events.filter_map(|it| async { it.ok().map(Ok) }).boxed();
        follow(events, store, &[("argo", "medea"), ("raft", "thor")]).await;
    }
    let left =
        typed.list(&kube::api::ListParams::default().fields("spec.owner=thor")).await.unwrap();
    assert_eq!(left.items.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>(), ["raft"]);
}

/// One is made, one changed and one deleted.
async fn change_fleet(client: &Client, boats: &Api<Boat>) {
    soon("server", async { while client.apiserver_version().await.is_err() {} }).await;
    boats.create(&PostParams::default(), &boat::boat("raft", "thor", 1)).await.unwrap();
    boats.delete("wave", &DeleteParams::default()).await.unwrap();
    let change = Patch::Merge(json!({ "spec": { "owner": "medea" } }));
    boats.patch("argo", &PatchParams::default(), &change).await.unwrap();
}
