//! What a replica has of the cloud, and which controllers are told when it takes over tenants.

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::slots::{self, Block};
use insula_client::ObjectKey;
use insula_membership::Work;

use crate::{everything::Everything, informers::Informers, metrics::Membership as Counts};

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Copies {
    pub(crate) informers: Informers,
    pub(crate) everything: Everything,
}

impl Work for Copies {
    fn caught_up(&self) -> BoxFuture<'_, bool> {
        self.informers.caught_up().boxed()
    }

    fn begins(&self, blocks: &[Block]) {
        Counts::taken(slots::n_slots(blocks.len()));
        let which = |key: &ObjectKey| blocks.contains(&Block::of_tenant(key.tenant.as_str()));
        self.informers.retell(&which);
        self.everything.retell(&which);
    }

    fn holds(&self, n_slots: usize) {
        Counts::held(n_slots);
    }
}
