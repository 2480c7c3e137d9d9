//! What a replica has of the cloud, and which controllers are told when it takes over tenants.

use std::{collections::BTreeSet, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::{
    names::TenantName,
    slots::{self, Block, Slots},
};
use insula_membership::Work;

use crate::{
    controller::Observer, everything::Everything, informers::Informers,
    metrics::Membership as Counts,
};

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Copies {
    pub(crate) informers: Informers,
    pub(crate) everything: Everything,
    pub(crate) observer: Arc<dyn Observer>,
}

impl Work for Copies {
    fn claims(&self, blocks: &BTreeSet<Block>) {
        let slots = Slots::of(blocks.iter().copied());
        self.informers.select(&slots);
        self.everything.select(&slots);
    }

    fn caught_up(&self) -> BoxFuture<'_, bool> {
        let all = async {
            let (informers, ()) =
                futures::join!(self.informers.caught_up(), self.everything.caught_up());
            informers
        };
        all.boxed()
    }

    fn begins(&self, blocks: &[Block]) {
        Counts::taken(slots::n_slots(blocks.len()));
        let which = |tenant: &TenantName| blocks.contains(&Block::of_tenant(tenant.as_str()));
        self.informers.retell(&which);
        self.everything.retell(&which);
    }

    fn holds(&self, n_slots: usize) {
        let n_objects = self.informers.n_objects() + self.everything.n_objects();
        Counts::held(n_slots, n_objects);
        self.observer.copied(n_objects);
    }
}
