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

/// How long a watch may take to tell of what has happened.
const LATE: Duration = Duration::from_secs(30);

/// What a watcher saw, in order.
#[derive(Default)]
struct Seen {
    notes: Vec<Note>,
    /// The objects that there are by now.
    live: BTreeMap<String, Version>,
    /// Where to resume.
    from: Option<String>,
}

impl Seen {
    fn list(&mut self, objects: BTreeMap<String, Version>, at: String) {
        self.live.clone_from(&objects);
        self.notes.push(Note::Listed(objects));
        self.from = Some(at);
    }

    fn event(&mut self, key: String, version: Version, deleted: bool) {
        match deleted {
            true => drop(self.live.remove(&key)),
            false => drop(self.live.insert(key.clone(), version)),
        }
        self.notes.push(Note::Event { key, version, deleted });
    }
}

type Counters = insula_client::Collection<ConfigMap>;

async fn listed(all: &Counters) -> Result<(BTreeMap<String, Version>, String), Error> {
    let page = all.list(&ListOptions::labelled(LABEL)).await?;
    Ok((page.items.iter().map(|it| (key(it), version(it))).collect(), page.resource_version))
}

/// Lists and watches all counters of all tenants until told to stop, each time at the next of
/// `clients`; gives what was seen. In the end the watch itself has told of all that a list shows,
/// and has come to an end of its own once, and gone on: faults may come faster than that.
pub(crate) async fn watch(clients: Vec<Client>, stop: CancellationToken) -> Vec<Note> {
    let all: Vec<Counters> =
        clients.iter().map(|client| client.all().collection::<ConfigMap>()).collect();
    let mut seen = Seen::default();
    let mut stopped = None;
    for all in all.iter().cycle() {
        if stop.is_cancelled() {
            // Nobody counts any more.
            let since = stopped.get_or_insert_with(tokio::time::Instant::now);
            let lasted = [Note::Bookmark, Note::Resumed].iter().all(|it| seen.notes.contains(it));
            if lasted
                && let Ok((objects, _)) = listed(all).await
                && objects == seen.live
            {
                return seen.notes;
            }
            assert!(since.elapsed() < LATE, "a watch does not tell of all: {:#?}", seen.live);
        }
        if seen.from.is_none() {
            match listed(all).await {
                Ok((objects, at)) => seen.list(objects, at),
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            }
        } else {
            seen.notes.push(Note::Resumed);
        }
        let ended = follow(all, &mut seen, &stop).await;
        if ended.is_err_and(|error| error.is_expired()) {
            seen.from = None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    seen.notes
}

/// One watch, until it ends.
async fn follow(all: &Counters, seen: &mut Seen, stop: &CancellationToken) -> Result<(), Error> {
    let options = WatchOptions {
        label_selector: Some(LABEL.into()),
        resource_version: seen.from.clone(),
        // Short, so that there are many ends to resume from.
        timeout_seconds: Some(3),
        ..WatchOptions::default()
    };
    let mut watch = all.watch(&options).await?;
    let was_stopped = stop.is_cancelled();
    loop {
        let event = tokio::select! {
            event = watch.next() => event?,
            () = stop.cancelled(), if !was_stopped => return Ok(()),
        };
        let (object, deleted) = match event {
            None => return Ok(()),
            Some(WatchEvent::Bookmark { resource_version }) => {
                // One place in each partition.
                let places = resource_version.split(',').filter(|it| it.contains('=')).count();
                assert!(1 < places, "a bookmark is {resource_version}");
                seen.from = Some(resource_version);
                seen.notes.push(Note::Bookmark);
                continue;
            }
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => (object, false),
            Some(WatchEvent::Deleted(object)) => (object, true),
        };
        seen.event(key(&object), version(&object), deleted);
    }
}
