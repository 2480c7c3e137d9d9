//! Which pods are assigned to this node.
//!
//! The node feed tells it, which is one request for pods, the Node object and heartbeats. A server
//! that has none for us, such as another Kubernetes, is asked by a list and a watch; it is asked
//! for a feed again from time to time, and once that has told everything, the watch ends.
//!
//! # Invariants
//!
//! * At any time one of the two is heard, never both: what one has told is not made undone by what
//!   the other had on its way.
//! * Whichever takes over tells everything first, and what it does not tell of is gone.

use std::{collections::HashSet, sync::Arc};

use insula_client::{Client, Informer, Tenanted, chain};
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    feed::{Cut, NodeFeed, Told},
    meter::Meter,
    pods::Pods,
};

/// What the feed tells of the node itself.
#[derive(Debug, Default, Clone)]
pub(crate) struct NodeNews {
    /// The Node object as it was last told.
    pub(crate) node: Option<Arc<Tenanted<Node>>>,
    /// How often it was removed.
    pub(crate) n_removals: u32,
    /// When a heartbeat was last heard by the server.
    pub(crate) beaten: Option<Instant>,
}

/// Follows the pods of all tenants that are assigned to a node.
pub(crate) struct Assigned {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) pods: Pods,
    pub(crate) news: Arc<watch::Sender<NodeNews>>,
    pub(crate) meter: Meter,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

/// Who is heard.
enum Heard {
    /// The feed, once it has told everything; these pods until then.
    Nobody(Vec<Arc<Tenanted<Pod>>>),
    Feed,
    /// The watch, until the feed has told everything; these pods until then.
    Watch(Watching, Vec<Arc<Tenanted<Pod>>>),
}

/// A watch that can be made to be heard no more.
struct Watching {
    is_heard: Arc<Mutex<bool>>,
    stop: CancellationToken,
}

impl Watching {
    fn end(self) {
        *self.is_heard.lock() = false;
        self.stop.cancel();
    }
}

impl Assigned {
    /// Starts to follow. Says whether all pods were heard of once.
    pub(crate) fn start(self) -> watch::Receiver<bool> {
        let (synced, is_synced) = watch::channel(false);
        let name = self.name.clone();
        let meter = self.meter.clone();
        let feed = NodeFeed::new(self.client.clone(), move || vec![name.clone()])
            .telling(Box::new(move || meter.take()));
        let (tasks, shutdown) = (self.tasks.clone(), self.shutdown.clone());
        let synced = Arc::new(synced);
        let mut heard = Heard::Nobody(Vec::new());
        let follow = feed.run(move |told| self.hear(&mut heard, told, &synced));
        tasks.spawn(async move { shutdown.run_until_cancelled(follow).await });
        is_synced
    }

    fn hear(&self, heard: &mut Heard, told: Told<'_>, synced: &Arc<watch::Sender<bool>>) {
        match told {
            Told::Pod(pod) => match heard {
                Heard::Feed => self.pods.set(Arc::from(pod)),
                Heard::Nobody(held) | Heard::Watch(_, held) => held.push(Arc::from(pod)),
            },
            Told::Gone(uid) => match heard {
                Heard::Feed => self.pods.remove(&uid),
                Heard::Nobody(held) | Heard::Watch(_, held) => held.retain(|it| it.uid() != uid),
            },
            Told::Only(uids) => {
                match std::mem::replace(heard, Heard::Feed) {
                    Heard::Feed => {}
                    Heard::Nobody(held) => held.into_iter().for_each(|it| self.pods.set(it)),
                    Heard::Watch(watching, held) => {
                        tracing::info!("the server has a node feed now");
                        watching.end();
                        held.into_iter().for_each(|it| self.pods.set(it));
                    }
                }
                self.pods.keep_only(&uids);
                synced.send_replace(true);
            }
            Told::Node(text) => match text.parse() {
                Ok(node) => self.tell(|news| news.node = Some(Arc::new(node))),
                Err(error) => tracing::warn!(%error, "the node cannot be read"),
            },
            Told::NoNode(_) => self.tell(|news| {
                news.node = None;
                news.n_removals += 1;
            }),
            Told::Beat { renewed, .. } => {
                if 0 < renewed {
                    self.tell(|news| news.beaten = Some(Instant::now()));
                }
            }
            Told::Cut(cut) => self.cut(heard, cut, synced),
        }
    }

    fn tell(&self, change: impl FnOnce(&mut NodeNews)) {
        self.news.send_modify(change);
    }

    fn cut(&self, heard: &mut Heard, cut: &Cut, synced: &Arc<watch::Sender<bool>>) {
        match heard {
            // It begins anew.
            Heard::Nobody(held) | Heard::Watch(_, held) => held.clear(),
            Heard::Feed => {}
        }
        if cut.is_unserved() && !matches!(heard, Heard::Watch(..)) {
            tracing::info!(why = chain(cut), "no node feed: pods are watched");
            *heard = Heard::Watch(self.watch(synced), Vec::new());
        }
    }

    /// Has the pods of this node watched.
    fn watch(&self, synced: &Arc<watch::Sender<bool>>) -> Watching {
        let (is_heard, stop) = (Arc::new(Mutex::new(true)), self.shutdown.child_token());
        let collection = self.client.all().collection::<Pod>();
        let informer = Informer::<Pod>::builder(collection)
            .field_selector(format!("spec.nodeName={}", self.name))
            .start(&self.tasks, stop.clone());
        let (pods, heard) = (self.pods.clone(), is_heard.clone());
        informer.on_change(move |change| {
            let heard = heard.lock();
            if !*heard {
                return;
            }
            // Another pod may have taken the name between two looks.
            let gone = change.old.map(|it| it.uid());
            let gone = gone.filter(|old| change.new.is_none_or(|new| new.uid() != *old));
            if let Some(old) = gone {
                pods.remove(old);
            }
            if let Some(new) = change.new {
                pods.set(new.clone());
            }
        });
        let (pods, heard, synced) = (self.pods.clone(), is_heard.clone(), synced.clone());
        self.tasks.spawn(async move {
            if !informer.synced().await {
                return;
            }
            let heard = heard.lock();
            if *heard {
                let uids = informer.list().iter().map(|it| it.uid().to_owned()).collect();
                pods.keep_only(&uids);
                synced.send_replace(true);
            }
        });
        Watching { is_heard, stop }
    }
}

impl Pods {
    /// There are no other pods than these, by their uids.
    fn keep_only(&self, uids: &HashSet<String>) {
        let others = self.uids().into_iter().filter(|it| !uids.contains(&**it));
        others.for_each(|it| self.remove(&it));
    }
}
