//! Which blocks of slots this replica serves now, and what is under way for each.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use insula_api::{
    names::TenantName,
    slots::{BLOCKS, Block},
};
use insula_client::fence::Fence;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::{
    ownership::{Ownership, Permit},
    table::{Holders, Table},
};

/// See the module.
#[derive(Debug)]
pub struct HeldBlocks {
    /// The name of the table, for the names of tasks.
    table: &'static str,
    blocks: Vec<Arc<HeldBlock>>,
    refused: Notify,
    /// With the version of the table that says so.
    holders: Mutex<(u64, Arc<Holders>)>,
}

#[derive(Debug)]
struct HeldBlock {
    block: Block,
    /// In which it is served, as `state` says; 0 if it is not. Asked for each change of each object.
    epoch: AtomicU64,
    state: Mutex<State>,
    drained: mpsc::UnboundedSender<Block>,
}

#[derive(Debug, Default)]
struct State {
    /// With what writes are fenced, while the block is served.
    fence: Option<Fence>,
    under_way: usize,
    is_draining: bool,
}

/// A reconcile of some block, until it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<HeldBlock>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.under_way -= 1;
        self.0.tell(&mut state);
    }
}

impl HeldBlock {
    fn permit(self: &Arc<Self>, state: &mut State, fence: Fence) -> Permit {
        state.under_way += 1;
        Permit { fence: Some(fence), _under_way: Some(UnderWay(self.clone())) }
    }

    /// Tells once when nothing is under way any more.
    fn tell(&self, state: &mut State) {
        if state.is_draining && state.under_way == 0 {
            state.is_draining = false;
            // Nobody listens any more after the end.
            let _ = self.drained.send(self.block);
        }
    }
}

impl HeldBlocks {
    /// Serves none yet. The receiver is told of each block that was to be drained and is.
    pub(super) fn new(table: &'static str) -> (Arc<Self>, mpsc::UnboundedReceiver<Block>) {
        let (drained, receiver) = mpsc::unbounded_channel();
        let made = |block| HeldBlock {
            block,
            epoch: AtomicU64::new(0),
            state: Mutex::default(),
            drained: drained.clone(),
        };
        let blocks = Block::all().map(|block| Arc::new(made(block))).collect();
        (
            Arc::new(Self { table, blocks, refused: Notify::new(), holders: Mutex::default() }),
            receiver,
        )
    }

    fn block(&self, block: Block) -> &Arc<HeldBlock> {
        // There is one for each number that a block can have.
        &self.blocks[usize::from(block.number() % BLOCKS)]
    }

    fn of(&self, tenant: &TenantName) -> &Arc<HeldBlock> {
        self.block(Block::of_tenant(tenant.as_str()))
    }

    /// Lets reconciles begin, which write in this epoch.
    pub(super) fn serve(&self, block: Block, epoch: u64) {
        let it = self.block(block);
        let mut state = it.state.lock();
        state.fence = Fence::new(&block.task(self.table), epoch);
        state.is_draining = false;
        let epoch = if state.fence.is_some() { epoch } else { 0 };
        it.epoch.store(epoch, Ordering::Release);
    }

    /// Lets none begin any more.
    pub(super) fn stop(&self, block: Block) {
        let it = self.block(block);
        it.state.lock().fence = None;
        it.epoch.store(0, Ordering::Release);
    }

    /// As [`HeldBlocks::stop`], and tells when what has begun is over.
    pub(super) fn drain(&self, block: Block) {
        self.stop(block);
        let it = self.block(block);
        let mut state = it.state.lock();
        state.is_draining = true;
        it.tell(&mut state);
    }

    /// Notes who holds what, if this is news.
    pub(super) fn note(&self, table: &Table) {
        let mut known = self.holders.lock();
        if known.0 < table.version {
            let holders = table.holders();
            if *known.1 != holders {
                known.1 = Arc::new(holders);
            }
            known.0 = table.version;
        }
    }

    /// Who holds which blocks, other replicas too: the same value until that changes. Nothing may
    /// rely on it that is not fenced.
    pub fn holders(&self) -> Arc<Holders> {
        self.holders.lock().1.clone()
    }

    /// In which epoch a block is served; 0 if it is not.
    pub fn epoch(&self, block: Block) -> u64 {
        self.block(block).epoch.load(Ordering::Acquire)
    }

    /// Begins some work for a block, if it is served in exactly this epoch.
    pub fn begin_in(&self, block: Block, epoch: u64) -> Option<Permit> {
        let it = self.block(block);
        let mut state = it.state.lock();
        if it.epoch.load(Ordering::Acquire) != epoch {
            return None;
        }
        let fence = state.fence.clone()?;
        Some(it.permit(&mut state, fence))
    }

    /// The blocks for which something is under way, also such as are served no longer.
    pub(super) fn under_way(&self) -> impl Iterator<Item = Block> {
        let busy = self.blocks.iter().filter(|it| it.state.lock().under_way != 0);
        busy.map(|it| it.block)
    }

    /// Waits until some write was refused.
    pub(super) async fn was_refused(&self) {
        self.refused.notified().await;
    }
}

impl Ownership for HeldBlocks {
    fn owns(&self, tenant: &TenantName) -> bool {
        self.of(tenant).epoch.load(Ordering::Acquire) != 0
    }

    fn begin(&self, tenant: &TenantName) -> Option<Permit> {
        let it = self.of(tenant);
        let mut state = it.state.lock();
        let fence = state.fence.clone()?;
        Some(it.permit(&mut state, fence))
    }

    fn refused(&self) {
        self.refused.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_drained_when_what_began_is_over() {
        let (held, mut drained) = HeldBlocks::new("t");
        let acme = TenantName::parse("acme").unwrap();
        let block = Block::of_tenant("acme");
        assert!(!held.owns(&acme) && held.begin(&acme).is_none());
        held.serve(block, 3);
        let first = held.begin(&acme).unwrap();
        assert_eq!(first.fence, Fence::new(&format!("t.{block}"), 3));
        let second = held.begin(&acme).unwrap();
        held.drain(block);
        assert!(!held.owns(&acme) && held.begin(&acme).is_none());
        drop(first);
        assert!(drained.try_recv().is_err());
        assert!(held.under_way().eq([block]));
        drop(second);
        assert_eq!(drained.try_recv(), Ok(block));
        assert_eq!(held.under_way().count(), 0);
        held.serve(block, 4);
        held.drain(block);
        assert_eq!(drained.try_recv(), Ok(block), "nothing was under way");
        assert!(held.begin_in(block, 4).is_none() && held.epoch(block) == 0);
        held.serve(block, 5);
        assert!(held.begin_in(block, 4).is_none() && held.begin_in(block, 5).is_some());
        assert!(drained.try_recv().is_err());
    }
}
