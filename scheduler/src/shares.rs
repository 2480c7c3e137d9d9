//! What of the work is this replica's: whose pods it decides for, and on which nodes it binds.
//!
//! Both go by blocks of slots: a tenant's pods are decided on by the one replica that holds the
//! tenant's block, and a node's room is given away by the one that holds the node's. What changes
//! hands is adopted by the loop between two looks at its copies: what it is told of before it
//! adopts a block is all that was bound in earlier epochs.
//!
//! # Invariants
//!
//! * A node is bound to in an epoch only after everything is counted that was bound in older ones.

use std::sync::Arc;

use insula_api::{
    names::TenantName,
    slots::{BLOCKS, Block},
};
use insula_membership::{HeldBlocks, Holders, Ownership as _, Permit};

/// See the [module](self).
#[derive(Debug)]
pub(crate) enum Shares {
    /// The only replica.
    Sole,
    Shared {
        held: Arc<HeldBlocks>,
        /// In which epoch each block was adopted; 0 if it was not.
        adopted: Vec<u64>,
    },
}

impl Shares {
    pub(crate) fn of(held: Option<Arc<HeldBlocks>>) -> Self {
        match held {
            Some(held) => Self::Shared { held, adopted: vec![0; usize::from(BLOCKS)] },
            None => Self::Sole,
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Shared { .. })
    }

    /// Adopts what is held now. Returns whether that is another share than before. All that copies
    /// show by now has to be looked at before anything is decided.
    pub(crate) fn adopt(&mut self) -> bool {
        let Self::Shared { held, adopted } = self else { return false };
        let mut has_changed = false;
        for (block, known) in Block::all().zip(adopted) {
            let epoch = held.epoch(block);
            has_changed |= *known != epoch;
            *known = epoch;
        }
        has_changed
    }

    fn epoch(&self, block: Block) -> Option<u64> {
        match self {
            Self::Sole => None,
            Self::Shared { adopted, .. } => {
                adopted.get(usize::from(block.number())).copied().filter(|epoch| *epoch != 0)
            }
        }
    }

    /// Whether pods of this tenant are decided on here.
    pub(crate) fn decides_for(&self, tenant: &TenantName) -> bool {
        !self.is_shared() || self.epoch(Block::of_tenant(tenant.as_str())).is_some()
    }

    /// Whether room on this node is given away here.
    pub(crate) fn has_node(&self, name: &str) -> bool {
        !self.is_shared() || self.epoch(Block::of_node(name)).is_some()
    }

    /// Who holds what among several replicas; `None` for the only one.
    pub(crate) fn holders(&self) -> Option<Arc<Holders>> {
        match self {
            Self::Sole => None,
            Self::Shared { held, .. } => Some(held.holders()),
        }
    }

    /// Begins to write for a tenant's pods, unless they are somebody else's by now.
    pub(crate) fn begin_for(&self, tenant: &TenantName) -> Option<Permit> {
        self.begin(Block::of_tenant(tenant.as_str()))
    }

    /// Begins to bind to a node, unless it is somebody else's.
    pub(crate) fn begin_on(&self, node: &str) -> Option<Permit> {
        self.begin(Block::of_node(node))
    }

    fn begin(&self, block: Block) -> Option<Permit> {
        match self {
            Self::Sole => Some(Permit::default()),
            Self::Shared { held, .. } => held.begin_in(block, self.epoch(block)?),
        }
    }

    /// A write was refused because it was somebody else's to make.
    pub(crate) fn refused(&self) {
        if let Self::Shared { held, .. } = self {
            held.refused();
        }
    }
}
