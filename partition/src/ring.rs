//! The recent changes of one collection, bounded by count and by bytes.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    store::{Revision, StoreError},
    watch::Event,
};

/// How much history a collection keeps for watchers and for reads at an exact revision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingLimits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl Default for RingLimits {
    fn default() -> Self {
        Self { events: 10_000, bytes: 32 << 20 }
    }
}

/// What an event costs beside its key and values.
const OVERHEAD: usize = 160;

/// See the module. Takes no memory before the first change.
#[derive(Debug)]
pub(crate) struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Changes at or below are gone.
    floor: Revision,
    limits: RingLimits,
}

impl Ring {
    pub(crate) fn new(floor: Revision, limits: RingLimits) -> Self {
        Self { events: VecDeque::new(), bytes: 0, floor, limits }
    }

    /// Adds the newest change and lets go of the oldest ones that no longer fit.
    pub(crate) fn push(&mut self, event: Arc<Event>) {
        self.bytes += weight(&event);
        self.events.push_back(event);
        while self.limits.events < self.events.len() || self.limits.bytes < self.bytes {
            let Some(oldest) = self.events.front().map(|event| event.revision) else { break };
            self.forget(oldest);
        }
    }

    /// Changes after `after`, oldest first, about `limit` of them: changes that share a revision
    /// stay together, or a watcher that goes on from there would miss some.
    pub(crate) fn after(
        &self,
        after: Revision,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        if after < self.floor {
            return Err(StoreError::Compacted { requested: after, oldest: self.floor });
        }
        let start = self.events.partition_point(|event| event.revision <= after);
        let mut end = self.events.len().min(start.saturating_add(limit));
        while start < end
            && end < self.events.len()
            && self.events[end].revision == self.events[end - 1].revision
        {
            end += 1;
        }
        Ok(self.events.range(start..end).cloned().collect())
    }

    /// Lets go of changes at or below `floor`.
    pub(crate) fn forget(&mut self, floor: Revision) {
        self.floor = self.floor.max(floor);
        while let Some(event) = self.events.pop_front_if(|event| event.revision <= floor) {
            self.bytes -= weight(&event);
        }
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
    }
}

/// An upper bound: values that other events share are counted with each.
fn weight(event: &Event) -> usize {
    let previous = event.previous.as_ref().map_or(0, |entry| entry.value.held());
    event.key.len() + event.entry.value.held() + previous + OVERHEAD
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::snapshot::Entry;

    fn event(revision: u64, size: usize) -> Arc<Event> {
        let revision = Revision(revision);
        let entry = Entry { value: Bytes::from(vec![0; size]).into(), modified: revision };
        Arc::new(Event { revision, key: "k".into(), entry, previous: None, deleted: false })
    }

    #[track_caller]
    fn check(ring: &Ring, after: u64, limit: usize, expected: &[u64]) {
        let events = ring.after(Revision(after), limit).unwrap();
        let revisions: Vec<_> = events.iter().map(|event| event.revision.0).collect();
        assert_eq!(revisions, expected);
    }

    #[test]
    fn hands_out_what_came_after() {
        let mut ring = Ring::new(Revision(2), RingLimits::default());
        for revision in [3, 5, 5, 5, 9] {
            ring.push(event(revision, 1));
        }
        check(&ring, 2, 10, &[3, 5, 5, 5, 9]);
        check(&ring, 3, 1, &[5, 5, 5]);
        check(&ring, 4, 0, &[]);
        check(&ring, 9, 10, &[]);
        check(&ring, 50, 10, &[]);
        assert!(matches!(ring.after(Revision(1), 10), Err(StoreError::Compacted { .. })));
    }

    #[test]
    fn is_bounded_by_count_and_by_bytes() {
        let mut ring = Ring::new(Revision(0), RingLimits { events: 3, bytes: 1_000_000 });
        (1..=5).for_each(|revision| ring.push(event(revision, 1)));
        check(&ring, 2, 10, &[3, 4, 5]);
        assert!(ring.after(Revision(1), 10).is_err());

        let mut ring = Ring::new(Revision(0), RingLimits { events: 100, bytes: 1_000 });
        (1..=5).for_each(|revision| ring.push(event(revision, 200)));
        check(&ring, 3, 10, &[4, 5]);
        ring.push(event(6, 5_000));
        assert_eq!((ring.bytes, ring.events.len()), (0, 0));
        check(&ring, 6, 10, &[]);
    }
}
