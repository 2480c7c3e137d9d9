//! When a partition's thread has its state written down.

use tokio::sync::oneshot;

use super::Writer;
use crate::{embedded::checkpoint::Description, store::StoreError};

impl Writer {
    pub(super) fn begin_checkpoint_if_due(&mut self) {
        let (segment, segment_bytes) = (self.wal.segment(), self.wal.segment_bytes());
        let (options, logged) = (&self.options.checkpoint, self.progress.bytes);
        // Most often nothing is due, and it takes no lock to see that.
        if logged < options.min_log_bytes && segment < 2 {
            return;
        }
        let state = self.state.totals().bytes;
        if self.plan.is_due(options, logged, state, segment, segment_bytes) {
            self.begin_checkpoint(None);
        }
    }

    pub(super) fn begin_checkpoint(
        &mut self,
        done: Option<oneshot::Sender<Result<(), StoreError>>>,
    ) {
        let description = self.describe();
        if self.checkpointer.begin(&self.plan, self.state.image(), description, done) {
            self.progress.bytes = 0;
        }
    }

    /// The state as it is now, and where the log goes on from it.
    fn describe(&mut self) -> Description {
        let applied = self.member.applied();
        let segments = &mut self.progress.segments;
        while segments.get(1).is_some_and(|(first, _)| *first <= applied.index + 1) {
            segments.pop_front();
        }
        // Where the next entry is, or will be.
        let segment = match segments.front() {
            Some((_, segment)) if applied.index < self.member.last_index() => *segment,
            _ => self.wal.segment(),
        };
        Description::new(applied, self.member.members(), segment)
    }
}
