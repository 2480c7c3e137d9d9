//! One scheduler among others.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::{kinds::SCHEDULER_INSTANCES, slots::Block};
use insula_client::{Client, EventRecorder, SchedulerInstance};
use insula_membership::{Membership, Work};
use tokio::sync::Notify;

use crate::{
    informers::Informers,
    offers::{OURS, offers},
};

/// A replica on `host`; `None` if the server knows of no replicas, and so there is only one.
pub(crate) async fn join(
    host: &str,
    client: &Client,
    events: &EventRecorder,
) -> Option<Membership<SchedulerInstance>> {
    let has_replicas = offers(client, OURS, SCHEDULER_INSTANCES).await;
    has_replicas.then(|| Membership::new(host, client, events))
}

/// What a replica has of the cloud.
#[derive(Debug)]
pub(crate) struct Copies {
    pub(crate) informers: Informers,
    /// Wakes the loop.
    pub(crate) changed: Arc<Notify>,
}

impl Work for Copies {
    fn caught_up(&self) -> BoxFuture<'_, bool> {
        self.informers.caught_up().boxed()
    }

    fn begins(&self, _blocks: &[Block]) {
        // The loop sees itself what it has, and when.
        self.changed.notify_one();
    }

    fn holds(&self, _n_slots: usize) {}
}
