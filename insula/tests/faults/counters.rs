//! Counters that writers push on, and watchers who note every step.
//!
//! Counters live in several tenants, so in several partitions; watchers watch all tenants at once.

use std::{collections::BTreeMap, time::Duration};

use insula_api::names::TenantName;
use insula_client::{
    Client, DeleteOptions, Error, ListOptions, Tenanted, WatchEvent, WatchOptions,
};
use insula_history::chain::{Note, Version};
use k8s_openapi::api::core::v1::ConfigMap;
use tokio_util::sync::CancellationToken;

use crate::subject::{config_map, revision};

const LABEL: &str = "insula.io/counter";

fn api(client: &Client, tenant: &str) -> insula_client::Api<ConfigMap> {
    client.tenant(&TenantName::parse(tenant).unwrap()).namespaced("default")
}

fn version(object: &ConfigMap) -> Version {
    let count = object.data.as_ref().unwrap()["count"].parse().unwrap();
    Version { count, revision: revision(object).unwrap() }
}

/// Counts on the counter `name` of `tenant` until told to stop; now and then starts it anew.
pub(crate) async fn count(client: Client, tenant: String, name: String, stop: CancellationToken) {
    let api = api(&client, &tenant);
    let labels = || Some([(LABEL.to_owned(), "yes".to_owned())].into());
    let mut steps = 0_u32;
    while !stop.is_cancelled() {
        let step = async {
            let Some(mut object) = api.get_opt(&name).await?.map(|it| it.object) else {
                let mut object = config_map(&name, "count", 1);
                object.metadata.labels = labels();
                return api.create(&object).await.map(drop);
            };
            if steps % 40 == 39 {
                let options =
                    DeleteOptions::default().only_version(revision(&object).unwrap().to_string());
                return api.delete(&name, &options).await.map(drop);
            }
            let next = version(&object).count + 1;
            object.data = Some([("count".to_owned(), next.to_string())].into());
            api.update(&object).await.map(drop)
        };
        let done: Result<(), Error> = step.await;
        steps += 1;
        let pause = if done.is_ok() { 2 } else { 30 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

fn key(object: &Tenanted<ConfigMap>) -> String {
    format!("{}/{}", object.tenant, object.name())
}

/// Lists and watches all counters of all tenants until told to stop; gives what was seen, ending
/// with a list.
pub(crate) async fn watch(client: Client, stop: CancellationToken) -> Vec<Note> {
    let all = client.all().collection::<ConfigMap>();
    let mut notes = Vec::new();
    let mut from: Option<String> = None;
    loop {
        let last = stop.is_cancelled();
        if from.is_none() || last {
            let options = ListOptions::labelled(LABEL);
            let listed = all.list(&options).await;
            match listed {
                Ok(page) => {
                    let objects: BTreeMap<String, Version> =
                        page.items.iter().map(|it| (key(it), version(it))).collect();
                    notes.push(Note::Listed(objects));
                    from = Some(page.resource_version);
                }
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            }
            if last {
                return notes;
            }
        } else {
            notes.push(Note::Resumed);
        }
        let ended = follow(&all, &mut from, &mut notes, &stop).await;
        if ended.is_err_and(|error| error.is_expired()) {
            from = None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One watch, until it ends.
async fn follow(
    all: &insula_client::Collection<ConfigMap>,
    from: &mut Option<String>,
    notes: &mut Vec<Note>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let options = WatchOptions {
        label_selector: Some(LABEL.into()),
        resource_version: from.clone(),
        // Short, so that there are many ends to resume from.
        timeout_seconds: Some(3),
        ..WatchOptions::default()
    };
    let mut watch = all.watch(&options).await?;
    loop {
        let event = tokio::select! {
            event = watch.next() => event?,
            () = stop.cancelled() => return Ok(()),
        };
        let (object, deleted) = match event {
            None => return Ok(()),
            Some(WatchEvent::Bookmark { resource_version }) => {
                *from = Some(resource_version);
                notes.push(Note::Bookmark);
                continue;
            }
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => (object, false),
            Some(WatchEvent::Deleted(object)) => (object, true),
        };
        notes.push(Note::Event { key: key(&object), version: version(&object), deleted });
    }
}
