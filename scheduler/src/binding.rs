//! Writing down where a pod goes.

mod batches;
mod devices;
mod volumes;
mod writer;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use insula_client::{Client, Error, EventRecorder, ObjectKey, Tenanted, chain};
use k8s_openapi::api::resource::v1::ResourceClaim;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    batches::Batches,
    devices::{free, give_back},
    volumes::bind_volumes,
    writer::{Ready, Writer, fenced},
};
pub(crate) use self::{devices::DeviceClaims, volumes::Volumes};
use crate::{Observer, pod::Pod, storage::Work};

/// What may be written goes on until this is dropped.
pub(crate) use insula_membership::Permit;

/// What came of a binding, or of making room.
#[derive(Debug)]
pub(crate) struct Done {
    /// Of the order; 0 if there was none.
    pub(crate) number: u64,
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) result: Result<(), NotBound>,
}

/// Why a pod was not bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotBound {
    #[error("the server did not bind it")]
    Api(#[from] Error),
    #[error("its volumes were not bound: {0}")]
    Volumes(String),
    #[error("its claims were not given devices: {0}")]
    Devices(String),
    #[error("others were not ended for it")]
    NoRoom,
}

/// What is to be written for a pod.
#[derive(Debug)]
pub(crate) struct Order {
    /// Tells orders for the same pod apart.
    pub(crate) number: u64,
    pub(crate) pod: Arc<Tenanted<Pod>>,
    pub(crate) node: Arc<str>,
    /// Comes first.
    pub(crate) work: Work,
    /// How long volumes may take.
    pub(crate) timeout: Duration,
    pub(crate) way: Way,
}

/// How a pod comes to its node.
#[derive(Debug)]
pub(crate) enum Way {
    /// By being bound.
    Bind(Permit),
    /// By being nominated for it: the replica whose node it is binds it.
    HandOver(Permit),
    /// By being nominated for it, and by whose node it is keeping room; not yet bound.
    Ask(Permit),
    /// The room on the node is kept.
    Reserve(Permit),
    /// The pod that room is kept for may be bound.
    Confirm(Permit),
    /// The room that was asked for is not wanted any more.
    GiveBack(Permit),
}

/// Writes bindings: many by one request where the server takes them so, else each by its own.
#[derive(Debug)]
pub(crate) struct Binder {
    writer: Arc<Writer>,
    batches: Arc<OnceLock<Batches>>,
    volumes: Volumes,
    devices: DeviceClaims,
}

impl Binder {
    /// Writes in `bindings`. What it follows itself is followed until `supplies`.
    pub(crate) fn start(
        client: Client,
        events: EventRecorder,
        bindings: TaskTracker,
        results: mpsc::UnboundedSender<Done>,
        (volumes, devices): (Volumes, DeviceClaims),
        observer: Arc<dyn Observer>,
        (tasks, supplies): (&TaskTracker, &CancellationToken),
    ) -> Self {
        let writer = Arc::new(Writer::new(client, events, bindings, results, observer));
        let batches = Arc::new(OnceLock::new());
        let (found, finder) = (batches.clone(), writer.clone());
        let (followers, until) = (tasks.clone(), supplies.clone());
        let find = async move {
            if let Some(it) = Batches::find(finder, &followers, &until).await {
                // Nobody else sets it.
                let _ = found.set(it);
            }
        };
        tasks.spawn(supplies.clone().run_until_cancelled_owned(find));
        Self { writer, batches, volumes, devices }
    }

    /// Takes back that a pod was nominated, as nobody has bound it. `permit` is for its tenant.
    pub(crate) fn take_back(&self, pod: Arc<Tenanted<Pod>>, permit: Permit) {
        self.writer.take_back(pod, permit);
    }

    /// Binds a pod; the result arrives in `results`.
    pub(crate) fn bind(&self, order: Order) {
        let Order { number, pod, node, work, timeout, way } = order;
        let ready = Ready { number, pod, node, way };
        // Devices are given away by who binds.
        let gives_devices = matches!(ready.way, Way::Bind(_)) && !work.devices.is_empty();
        if work.has_no_volumes() && !gives_devices {
            return hand_on(&self.writer, &self.batches, ready);
        }
        let (writer, batches) = (self.writer.clone(), self.batches.clone());
        let (volumes, devices) = (self.volumes.clone(), self.devices.clone());
        self.writer.tasks().spawn(async move {
            let late = || NotBound::Volumes("context deadline exceeded".to_owned());
            let mut done = Ok(());
            if !work.has_no_volumes() {
                let all = Box::pin(bind_volumes(writer.client(), volumes, &work, &ready.node));
                done = tokio::time::timeout(timeout, all).await.unwrap_or_else(|_| Err(late()));
            }
            if done.is_ok() && gives_devices {
                let fence = ready.fence();
                let all = devices.give(writer.client(), &work.devices, &ready.pod, fence);
                done = Box::pin(all).await;
            }
            match done {
                Ok(()) => hand_on(&writer, &batches, ready),
                Err(error) => writer.done(&ready, Err(error)),
            }
        });
    }

    /// Takes the devices of a claim that nobody uses. `permit` is for its tenant.
    pub(crate) fn free_devices(&self, claim: Arc<Tenanted<ResourceClaim>>, permit: Permit) {
        let writer = self.writer.clone();
        self.writer.tasks().spawn(async move {
            let freed = Box::pin(free(writer.client(), &claim));
            if let Err(error) = fenced(permit.fence.as_ref(), freed).await {
                tracing::debug!(claim = %claim.key(), error = chain(&error), "keeps its devices");
            }
        });
    }

    /// Takes a pod's name off claims of devices: it was not bound.
    pub(crate) fn give_back_devices(&self, claims: Vec<ObjectKey>, uid: String) {
        let writer = self.writer.clone();
        self.writer.tasks().spawn(async move {
            if let Err(error) = Box::pin(give_back(writer.client(), &claims, &uid)).await {
                // Who looks after claims does it when the pod is gone, at the latest.
                tracing::info!(uid, error = chain(&error), "claims are still a pod's");
            }
        });
    }
}

fn hand_on(writer: &Arc<Writer>, batches: &OnceLock<Batches>, ready: Ready) {
    match ready.way {
        Way::Bind(_) => (),
        Way::HandOver(_) => return writer.hand_over(ready),
        Way::Ask(_) | Way::Reserve(_) | Way::Confirm(_) | Way::GiveBack(_) => {
            return writer.mark(ready);
        }
    }
    let left = match batches.get() {
        Some(batches) => batches.take(ready),
        None => Err(ready),
    };
    if let Err(ready) = left {
        writer.one(ready);
    }
}
