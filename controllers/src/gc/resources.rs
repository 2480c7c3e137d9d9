//! The resources whose objects can be collected: found by discovery, each with a watch.
//!
//! Resources come and go; discovery is repeated, a new resource is watched, one that is gone is
//! no longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use insula_client::{Backoff, Change, Client, Informer, PartialObject, ResourceRef, chain};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const REFRESH: Duration = Duration::from_secs(30);

pub(super) type Handler = Arc<dyn Fn(&Arc<ResourceRef>, &Change<'_, PartialObject>) + Send + Sync>;

/// The watched resources. Cheap to clone; clones share them.
#[derive(Clone)]
pub(super) struct Resources {
    shared: Arc<Shared>,
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n_watched = self.shared.watched.lock().len();
        f.debug_struct("Resources").field("n_watched", &n_watched).finish_non_exhaustive()
    }
}

struct Shared {
    client: Client,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    watched: Mutex<BTreeMap<ResourceRef, Watched>>,
    /// Every kind that is served, in each of its versions that discovery tells.
    kinds: Mutex<BTreeMap<(String, String), ResourceRef>>,
    discovered: watch::Sender<bool>,
}

struct Watched {
    informer: Informer<PartialObject>,
    stop: CancellationToken,
}

impl Resources {
    pub(super) fn new(client: Client, tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        let shared = Shared {
            client,
            tasks,
            shutdown,
            watched: Mutex::new(BTreeMap::new()),
            kinds: Mutex::new(BTreeMap::new()),
            discovered: watch::channel(false).0,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Begins to follow discovery; `handler` hears of every change to every object.
    pub(super) fn start(&self, handler: Handler) {
        let it = self.clone();
        let follow = async move {
            let mut backoff = Backoff::new(Duration::from_millis(100), REFRESH);
            loop {
                match it.refresh(&handler).await {
                    Ok(()) => {
                        backoff.reset();
                        it.shared.discovered.send_replace(true);
                        tokio::time::sleep(REFRESH).await;
                    }
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "discovery failed");
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
            }
        };
        let shutdown = self.shared.shutdown.clone();
        self.shared.tasks.spawn(shutdown.run_until_cancelled_owned(follow));
    }

    /// Waits until all objects are known of all resources that are known by then.
    pub(super) async fn synced(&self) {
        // Cannot fail while `self` holds the sender.
        let _ = self.shared.discovered.subscribe().wait_for(|it| *it).await;
        let informers: Vec<_> =
            self.shared.watched.lock().values().map(|it| it.informer.clone()).collect();
        for informer in informers {
            informer.synced().await;
        }
    }

    /// The resource that serves a kind.
    pub(super) fn of_kind(&self, api_version: &str, kind: &str) -> Option<ResourceRef> {
        let key = (api_version.to_owned(), kind.to_owned());
        self.shared.kinds.lock().get(&key).cloned()
    }

    async fn refresh(&self, handler: &Handler) -> Result<(), insula_client::Error> {
        let discovery = self.shared.client.system().discover().await?;
        let mut found = BTreeSet::new();
        let mut kinds = BTreeMap::new();
        for it in discovery.resources {
            let kind = (it.resource.api_version(), it.resource.kind.to_string());
            kinds.entry(kind).or_insert_with(|| it.resource.clone());
            // Events own nothing, nothing owns them, and there are many.
            if it.can(&["list", "watch", "delete"]) && it.resource.plural != "events" {
                found.insert(it.resource);
            }
        }
        if !discovery.failures.is_empty() {
            // Unknown is not absent: keep what is watched until discovery is whole again.
            found.extend(self.shared.watched.lock().keys().cloned());
            kinds.extend(std::mem::take(&mut *self.shared.kinds.lock()));
        }
        *self.shared.kinds.lock() = kinds;
        let mut watched = self.shared.watched.lock();
        watched.retain(|resource, it| {
            let stays = found.contains(resource);
            if !stays {
                it.stop.cancel();
                for object in it.informer.list() {
                    let change = Change { key: &object.key(), old: Some(&object), new: None };
                    handler(&Arc::new(resource.clone()), &change);
                }
            }
            stays
        });
        for resource in found {
            watched.entry(resource).or_insert_with_key(|resource| self.watch(resource, handler));
        }
        Ok(())
    }

    fn watch(&self, resource: &ResourceRef, handler: &Handler) -> Watched {
        let stop = self.shared.shutdown.child_token();
        let objects = self.shared.client.all().resource::<PartialObject>(resource.clone());
        let informer = Informer::builder(objects)
            .trim(|object| {
                object.metadata.labels = None;
                object.metadata.annotations = None;
            })
            .start(&self.shared.tasks, stop.clone());
        let (handler, resource) = (handler.clone(), Arc::new(resource.clone()));
        informer.on_change(move |change| handler(&resource, change));
        Watched { informer, stop }
    }
}
