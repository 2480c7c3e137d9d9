//! The recent changes of one collection, bounded by count and by bytes.
//!
//! All shards share it, and each change knows the one before it in its lane: a watcher of one
//! shard walks only those, from the newest back to where it was.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    map::Shard,
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
const OVERHEAD: usize = 168;

/// Shards share this many lanes. Each costs two numbers in every collection that changes.
pub(crate) const LANES: usize = 128;

/// The lane of a shard: its changes are found, and its watchers woken, without looking at those of
/// other lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lane(u8);

impl Lane {
    pub(crate) fn of(shard: Shard<'_>) -> Self {
        Self((shard.slot().number() as usize % LANES) as u8)
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// See the module. Takes no memory before the first change.
#[derive(Debug)]
pub(crate) struct Ring {
    changes: VecDeque<Change>,
    /// How many changes have gone: the number of the first that is here.
    gone: u64,
    bytes: usize,
    /// Changes at or below are gone, of some shards.
    floor: Revision,
    /// Empty before the first change.
    lanes: Box<[Track]>,
    limits: RingLimits,
}

#[derive(Debug)]
struct Change {
    event: Arc<Event>,
    lane: Lane,
    /// The number of the change before it in its lane, plus one; 0 if there is none.
    before: u64,
}

/// What is known of a lane.
#[derive(Debug, Clone, Copy)]
struct Track {
    /// Changes at or below are gone.
    floor: Revision,
    /// The number of its newest change, plus one; 0 if there was none.
    newest: u64,
}

impl Ring {
    pub(crate) fn new(floor: Revision, limits: RingLimits) -> Self {
        let (changes, lanes) = (VecDeque::new(), Box::default());
        Self { changes, gone: 0, bytes: 0, floor, lanes, limits }
    }

    /// Adds the newest change and lets go of the oldest ones that no longer fit.
    pub(crate) fn push(&mut self, lane: Lane, event: Arc<Event>) {
        if self.lanes.is_empty() {
            self.lanes = vec![Track { floor: self.floor, newest: 0 }; LANES].into();
        }
        self.bytes += weight(&event);
        let number = self.gone + self.changes.len() as u64 + 1;
        let before = std::mem::replace(&mut self.lanes[lane.index()].newest, number);
        self.changes.push_back(Change { event, lane, before });
        while self.limits.events < self.changes.len() || self.limits.bytes < self.bytes {
            let Some(oldest) = self.changes.front().map(|it| it.event.revision) else { break };
            self.drop_until(oldest);
            self.floor = self.floor.max(oldest);
        }
    }

    /// Changes after `after`, oldest first, about `limit` of them: changes that share a revision
    /// stay together, or a watcher that goes on from there would miss some.
    pub(crate) fn after(
        &self,
        after: Revision,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        check(after, self.floor)?;
        let start = self.changes.partition_point(|it| it.event.revision <= after);
        let mut end = self.changes.len().min(start.saturating_add(limit));
        while start < end
            && end < self.changes.len()
            && self.changes[end].event.revision == self.changes[end - 1].event.revision
        {
            end += 1;
        }
        Ok(self.changes.range(start..end).map(|it| it.event.clone()).collect())
    }

    /// As [`Ring::after`], of one lane that `wants` what it says. What others of the shelf did
    /// costs nothing, and pushes nothing out of this history.
    pub(crate) fn after_in(
        &self,
        lane: Lane,
        wants: impl Fn(&Event) -> bool,
        after: Revision,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let Some(track) = self.lanes.get(lane.index()) else {
            check(after, self.floor)?;
            return Ok(Vec::new());
        };
        check(after, track.floor)?;
        let mut found = Vec::new();
        let mut number = track.newest;
        while let Some(at) = number.checked_sub(self.gone + 1)
            && let Some(change) = self.changes.get(at as usize)
            && after < change.event.revision
        {
            if wants(&change.event) {
                found.push(change.event.clone());
            }
            number = change.before;
        }
        found.reverse();
        let mut end = found.len().min(limit);
        while 0 < end && end < found.len() && found[end].revision == found[end - 1].revision {
            end += 1;
        }
        found.truncate(end);
        Ok(found)
    }

    /// Lets go of changes at or below `floor`.
    pub(crate) fn forget(&mut self, floor: Revision) {
        self.floor = self.floor.max(floor);
        self.drop_until(floor);
        self.lanes.iter_mut().for_each(|track| track.floor = track.floor.max(floor));
    }

    fn drop_until(&mut self, revision: Revision) {
        while let Some(change) = self.changes.pop_front_if(|it| it.event.revision <= revision) {
            self.gone += 1;
            self.bytes -= weight(&change.event);
            let floor = &mut self.lanes[change.lane.index()].floor;
            *floor = (*floor).max(change.event.revision);
        }
        if self.changes.is_empty() {
            self.changes = VecDeque::new();
        }
    }
}

fn check(after: Revision, floor: Revision) -> Result<(), StoreError> {
    match after < floor {
        true => Err(StoreError::Compacted { requested: after, oldest: floor }),
        false => Ok(()),
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
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::Entry;

    fn event(revision: u64, size: usize) -> Arc<Event> {
        let revision = Revision(revision);
        let entry = Entry { value: Bytes::from(vec![0; size]).into(), modified: revision };
        Arc::new(Event { revision, key: "k".into(), entry, previous: None, deleted: false })
    }

    const LANE: Lane = Lane(0);

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
            ring.push(LANE, event(revision, 1));
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
        (1..=5).for_each(|revision| ring.push(LANE, event(revision, 1)));
        check(&ring, 2, 10, &[3, 4, 5]);
        assert!(ring.after(Revision(1), 10).is_err());

        let mut ring = Ring::new(Revision(0), RingLimits { events: 100, bytes: 1_000 });
        (1..=5).for_each(|revision| ring.push(LANE, event(revision, 200)));
        check(&ring, 3, 10, &[4, 5]);
        ring.push(LANE, event(6, 5_000));
        assert_eq!((ring.bytes, ring.changes.len()), (0, 0));
        check(&ring, 6, 10, &[]);
    }

    /// What a ring may be asked to do.
    #[derive(Debug, Clone)]
    enum Step {
        /// A change, in that lane; with the revision of the one before, or a higher one.
        Push(u8, bool),
        /// What was at or below the revision, so many changes ago, is forgotten.
        Forget(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            9 => (0..4_u8, any::<bool>()).prop_map(|(lane, same)| Step::Push(lane, same)),
            1 => (0..20_u8).prop_map(Step::Forget),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn a_lane_has_what_was_in_it(steps in steps(), limit in 1..4_usize, most in 1..20_usize) {
            let mut ring = Ring::new(Revision(0), RingLimits { events: most, bytes: 1 << 20 });
            let mut all: Vec<(u8, u64)> = Vec::new();
            let (mut revision, mut forgotten) = (0, 0);
            for step in steps {
                match step {
                    Step::Push(lane, same) => {
                        revision += u64::from(!same || all.is_empty());
                        all.push((lane, revision));
                        ring.push(Lane(lane), event(revision, 1));
                    }
                    Step::Forget(ago) => {
                        forgotten = forgotten.max(revision.saturating_sub(u64::from(ago)));
                        ring.forget(Revision(forgotten));
                    }
                }
                // What has gone is what was forgotten, and what is older than what is there.
                let first = all.len() - ring.changes.len();
                for lane in 0..4 {
                    let gone = all[..first].iter().filter(|it| it.0 == lane).map(|it| it.1);
                    let floor = gone.max().unwrap_or(0).max(forgotten);
                    for after in 0..=revision + 1 {
                        let wanted = |limit| {
                            let found = ring.after_in(Lane(lane), |_| true, Revision(after), limit);
                            found.map(|it| it.iter().map(|it| it.revision.0).collect::<Vec<_>>())
                        };
                        if after < floor {
                            prop_assert!(wanted(usize::MAX).is_err());
                            continue;
                        }
                        let own = all.iter().filter(|it| it.0 == lane && after < it.1);
                        let own: Vec<u64> = own.map(|it| it.1).collect();
                        prop_assert_eq!(wanted(usize::MAX).unwrap(), own.clone());
                        let some = wanted(limit).unwrap();
                        prop_assert_eq!(&own[..some.len()], &some[..]);
                        prop_assert!(limit.min(own.len()) <= some.len());
                        prop_assert!(some.last().is_none() || own.get(some.len()) != some.last());
                    }
                }
            }
        }
    }
}
