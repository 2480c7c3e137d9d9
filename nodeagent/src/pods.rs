//! All pods of this node: one worker for each, found by uid.
//!
//! Two sources keep the set right. The API says which pods should be here; the runtime says which
//! have left something here. What the runtime has of a pod that the API does not know is an orphan
//! and is removed, but only once the API has been heard in full.

use std::{collections::HashMap, sync::Arc, time::Duration};

use insula_client::Tenanted;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    node::Node,
    pod::{
        identity::PodKey,
        snapshot::Snapshot,
        worker::{Desired, Links, Worker},
    },
};

/// How long to wait before a worker that panicked is begun anew.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// The pods of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pods {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: Arc<Node>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    entries: Mutex<HashMap<Arc<str>, Entry>>,
}

#[derive(Debug)]
struct Entry {
    key: PodKey,
    desired: watch::Sender<Desired>,
    snapshot: watch::Receiver<Snapshot>,
    wake: Arc<Notify>,
}

/// One pod as those see it who serve its logs and streams.
#[derive(Debug, Clone)]
pub(crate) struct PodView {
    pub key: PodKey,
    pub pod: Arc<Tenanted<Pod>>,
    pub snapshot: watch::Receiver<Snapshot>,
}

impl Pods {
    pub(crate) fn new(node: Arc<Node>, tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        let entries = Mutex::default();
        Self { shared: Arc::new(Shared { node, tasks, shutdown, entries }) }
    }

    /// A pod is to be here, or has changed.
    pub(crate) fn set(&self, pod: Arc<Tenanted<Pod>>) {
        let Some(key) = PodKey::of(&pod.tenant, &pod) else {
            tracing::error!(name = pod.name(), "a pod without uid, namespace or name is ignored");
            return;
        };
        let shared = &self.shared;
        let mut entries = shared.entries.lock();
        if let Some(entry) = entries.get(&key.uid) {
            entry.desired.send_if_modified(|desired| {
                let is_new = desired.is_gone || *desired.pod != *pod;
                *desired = Desired { pod, is_gone: false };
                is_new
            });
            return;
        }
        let (desired, desired_seen) = watch::channel(Desired { pod, is_gone: false });
        let (snapshot, snapshot_seen) = watch::channel(Snapshot::default());
        let links = Links {
            desired: desired_seen,
            snapshot,
            wake: Arc::new(Notify::new()),
            shutdown: shared.shutdown.clone(),
        };
        let entry =
            Entry { key: key.clone(), desired, snapshot: snapshot_seen, wake: links.wake.clone() };
        entries.insert(key.uid.clone(), entry);
        shared.tasks.spawn(self.clone().work(key, links));
    }

    /// Keeps a worker at its work until it is done.
    ///
    /// One that panics is begun anew, as by a restart of the agent: without a worker the pod's
    /// containers would count as orphans.
    async fn work(self, key: PodKey, links: Links) {
        loop {
            let worker = Worker::new(self.shared.node.clone(), key.clone(), links.clone());
            match tokio::spawn(worker.run()).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::error!(pod = %key, uid = %key.uid, %error, "worker failed");
                    let pause = tokio::time::sleep(AFTER_PANIC);
                    if links.shutdown.run_until_cancelled(pause).await.is_none() {
                        break;
                    }
                }
            }
        }
        self.shared.entries.lock().remove(&key.uid);
    }

    /// The API has this pod no more.
    pub(crate) fn remove(&self, uid: &str) {
        if let Some(entry) = self.shared.entries.lock().get(uid) {
            entry
                .desired
                .send_if_modified(|desired| !std::mem::replace(&mut desired.is_gone, true));
        }
    }

    /// The uids of all pods here.
    pub(crate) fn uids(&self) -> Vec<Arc<str>> {
        self.shared.entries.lock().keys().cloned().collect()
    }

    /// The runtime has news of this pod. Returns whether there is a worker to care.
    pub(crate) fn wake(&self, uid: &str) -> bool {
        let entries = self.shared.entries.lock();
        let entry = entries.get(uid);
        if let Some(entry) = entry {
            entry.wake.notify_one();
        }
        entry.is_some()
    }

    /// The pod of that uid, if it is here.
    pub(crate) fn by_uid(&self, uid: &str) -> Option<PodView> {
        self.shared.entries.lock().get(uid).map(Entry::view)
    }

    /// The pod of that name. If an older one of the same name is still ending, the other one.
    pub(crate) fn by_name(&self, tenant: &str, namespace: &str, name: &str) -> Option<PodView> {
        let entries = self.shared.entries.lock();
        let is_it = |key: &PodKey| {
            key.tenant.as_str() == tenant && *key.namespace == *namespace && *key.name == *name
        };
        let mut found = entries.values().filter(|it| is_it(&it.key));
        let first = found.next()?;
        let best =
            found.fold(first, |best, it| if best.desired.borrow().is_gone { it } else { best });
        Some(best.view())
    }

    /// Whether the pod of that uid has a worker.
    pub(crate) fn has(&self, uid: &str) -> bool {
        self.shared.entries.lock().contains_key(uid)
    }

    pub(crate) fn len(&self) -> usize {
        self.shared.entries.lock().len()
    }
}

impl Entry {
    fn view(&self) -> PodView {
        PodView {
            key: self.key.clone(),
            pod: self.desired.borrow().pod.clone(),
            snapshot: self.snapshot.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
