//! Whether extension servers answer, as the `Available` condition of their objects says.
//!
//! Each check is done by one server: by whoever leads the partition that the tenant lives on, or,
//! where that is an etcd, by whoever leads `meta`. A partition without extension servers is only
//! watched for the first; where there are some, they are looked at when they, their services or
//! endpoints change, every [`EVERY`] while they answer, and sooner at first when they do not.
//!
//! The condition is written through the gate, like everybody's changes.

mod check;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use insula_api::names::TenantName;
use insula_partition::{
    partitions::META,
    snapshot::Snapshot,
    store::{Collection, ReadAt, Store, StoreError},
    watch::Watcher,
};
use tokio::time::Instant;

use super::{GROUP, RESOURCE};
use crate::{Server, error::chain, registry};

pub(crate) use self::check::changed;

/// How often who answers is looked at.
const EVERY: Duration = Duration::from_secs(30);
/// How soon after a failure, at first.
const SOON: Duration = Duration::from_millis(500);
/// How long to wait before watching again what could not be watched.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked who leads, while there is something to do.
const LEADER: Duration = Duration::from_secs(2);
/// Checks at the same time, of one partition.
const PARALLEL: usize = 8;

/// Follows all partitions until the server ends.
pub(crate) async fn look_after(server: Arc<Server>) {
    let mut epochs = server.partitions.subscribe();
    let mut followed: HashMap<String, tokio_util::task::AbortOnDropHandle<()>> = HashMap::new();
    loop {
        let names = server.partitions.names();
        followed.retain(|name, _| names.iter().any(|it| *it == **name));
        for name in names.iter() {
            followed.entry(name.to_string()).or_insert_with(|| {
                let (server, name) = (server.clone(), name.to_string());
                tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
                    follow(&server, &name).await;
                }))
            });
        }
        tokio::select! {
            changed = epochs.changed() => if changed.is_err() { return },
            () = server.shutdown.cancelled() => return,
        }
    }
}

async fn follow(server: &Server, name: &str) {
    loop {
        if server.partitions.is_local(name)
            && let Some(store) = server.partitions.store(name)
            && let Err(error) = Follower::new(server, name, store).run().await
        {
            tracing::debug!(partition = name, error = chain(&error), "looked at again");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// When an extension server is looked at next.
#[derive(Debug)]
struct Due {
    tenant: TenantName,
    name: String,
    /// Namespace and name.
    service: (String, String),
    /// What it was as, to tell what a change is about.
    spec: super::Spec,
    at: Instant,
    failures: u32,
}

struct Follower<'a> {
    server: &'a Server,
    partition: &'a str,
    store: Arc<dyn Store>,
    /// By key.
    due: BTreeMap<Arc<str>, Due>,
    seen: Option<Snapshot>,
}

impl<'a> Follower<'a> {
    fn new(server: &'a Server, partition: &'a str, store: Arc<dyn Store>) -> Self {
        Self { server, partition, store, due: BTreeMap::new(), seen: None }
    }

    async fn run(mut self) -> Result<(), StoreError> {
        let objects = Collection::new(GROUP, RESOURCE);
        let mut changes = self.watch(&objects)?;
        let (services, slices) = (
            Collection::new("", "services"),
            Collection::new("discovery.k8s.io", "endpointslices"),
        );
        let endpoints = Collection::new("", "endpoints");
        // Watched only while there is something to look after.
        let mut others: Vec<Watcher> = Vec::new();
        loop {
            self.read(&objects).await?;
            if self.due.is_empty() {
                others.clear();
                changes.next().await?;
                continue;
            }
            if others.is_empty() {
                for collection in [&services, &slices, &endpoints] {
                    others.push(self.watch(collection)?);
                }
            }
            if self.leads() {
                self.check().await;
            }
            let next = self.due.values().map(|it| it.at).min();
            let next = next.unwrap_or_else(Instant::now).max(Instant::now());
            let wake = if self.leads() { next } else { Instant::now() + LEADER };
            let [services, slices, endpoints] = &mut others[..] else { continue };
            let events = tokio::select! {
                changed = changes.next() => { changed?; Vec::new() }
                events = services.next() => events?,
                events = slices.next() => events?,
                events = endpoints.next() => events?,
                () = tokio::time::sleep_until(wake) => Vec::new(),
            };
            for event in events {
                self.touched(&event.key);
            }
        }
    }

    fn watch(&self, collection: &Collection) -> Result<Watcher, StoreError> {
        self.store.watch(collection, self.store.progress())
    }

    /// Whether this server does the checks.
    fn leads(&self) -> bool {
        let own = self.server.partitions.server_name();
        let stats = self.store.stats();
        match stats.backend {
            "etcd" => {
                let meta = self.server.partitions.store(META);
                meta.is_some_and(|it| it.stats().leader == own)
            }
            _ => stats.leader == own,
        }
    }

    /// Takes in what objects there are.
    async fn read(&mut self, collection: &Collection) -> Result<(), StoreError> {
        let snapshot = self.store.read(collection, ReadAt::Any).await?;
        if self.seen.as_ref().is_some_and(|it| it.is_same(&snapshot)) {
            return Ok(());
        }
        let mut known = std::mem::take(&mut self.due);
        for (key, entry) in snapshot.range("", None) {
            let Some((tenant, name)) = key.split_once("//") else { continue };
            let Ok(tenant) = TenantName::parse(tenant) else { continue };
            let read = serde_json::from_slice::<super::Object>(&entry.value.bytes());
            let Ok(spec) = read.map(|it| it.spec) else { continue };
            let Some(service) = spec.service.clone() else { continue };
            let due = match known.remove(key) {
                Some(known) if known.spec == spec => known,
                _ => Due {
                    tenant,
                    name: name.to_owned(),
                    service: (service.namespace, service.name),
                    spec,
                    at: Instant::now(),
                    failures: 0,
                },
            };
            self.due.insert(key.clone(), due);
        }
        self.seen = Some(snapshot);
        Ok(())
    }

    /// A service, or where one is, has changed.
    fn touched(&mut self, key: &str) {
        for it in self.due.values_mut() {
            let (namespace, service) = &it.service;
            let prefix = registry::key(&it.tenant, namespace, service);
            // The name of a slice begins with that of its service.
            if key.starts_with(&prefix) {
                (it.at, it.failures) = (Instant::now(), 0);
            }
        }
    }

    /// Looks at whatever is due.
    async fn check(&mut self) {
        let now = Instant::now();
        let server = self.server;
        let looking: Vec<BoxFuture<'a, (Arc<str>, bool)>> = self
            .due
            .iter()
            .filter(|(_, it)| it.at <= now)
            .map(|(key, it)| {
                let (key, tenant, name) = (key.clone(), it.tenant.clone(), it.name.clone());
                async move { (key, check::check(server, &tenant, &name).await) }.boxed()
            })
            .collect();
        let looking = stream::iter(looking).buffer_unordered(PARALLEL);
        let done: Vec<(Arc<str>, bool)> = looking.collect().await;
        tracing::trace!(partition = self.partition, n = done.len(), "extension servers looked at");
        for (key, is_well) in done {
            let Some(it) = self.due.get_mut(&key) else { continue };
            it.failures = if is_well { 0 } else { it.failures.saturating_add(1) };
            let wait = match it.failures {
                0 => EVERY,
                n => SOON.saturating_mul(1 << (n - 1).min(10)).min(EVERY),
            };
            it.at = Instant::now() + wait;
        }
    }
}
