//! The recent changes of one collection, bounded by count and by bytes; by more of both while they
//! come so fast that a watcher which is a moment late would fall off (decision 68).
//!
//! Each lane of shards has its own, and all of them share the bounds: what does not fit pushes out
//! the oldest of its own lane, if that has more than its part, and else the oldest of the lane that
//! has most. So whoever changes much shortens its own history, and nobody's below that part. A
//! watcher of one shard looks at its lane alone; whoever watches all merges the lanes.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

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
    /// Younger changes are kept up to [`BURST`] times as much. API servers elsewhere try to keep
    /// 75 s, and clients rely on that.
    pub(crate) fresh: Duration,
}

impl Default for RingLimits {
    fn default() -> Self {
        Self { events: 10_000, bytes: 32 << 20, fresh: Duration::from_secs(75) }
    }
}

/// How many times the bounds changes may take while they are fresh.
const BURST: usize = 8;
/// What is no longer fresh goes little by little: so many for a change that comes.
const AT_ONCE: usize = 16;

/// What an event costs beside its key and values.
const OVERHEAD: usize = 168;

/// Shards share this many lanes. Each costs a few numbers in every collection that changes.
pub(crate) const LANES: usize = 128;

/// A lane keeps this part of the bounds, whatever others do, while no more than so many need it.
const PART: usize = 8;

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
    /// Empty before the first change.
    lanes: Box<[Track]>,
    /// How many changes there were, and are.
    count: u64,
    kept: usize,
    bytes: usize,
    /// Changes at or below are gone, of some lanes.
    floor: Revision,
    limits: RingLimits,
    /// What ages are counted from.
    begun: Instant,
}

/// The changes of a lane.
#[derive(Debug)]
struct Track {
    changes: VecDeque<Change>,
    bytes: usize,
    /// Changes at or below are gone.
    floor: Revision,
}

#[derive(Debug)]
struct Change {
    /// Its number among those of all lanes.
    number: u64,
    /// When it came, in milliseconds since the ring began.
    at: u64,
    weight: usize,
    event: Arc<Event>,
}

impl Track {
    /// Where those begin that are newer than `after`.
    fn start(&self, after: Revision) -> usize {
        self.changes.partition_point(|it| it.event.revision <= after)
    }

    fn is_newer(&self, after: Revision) -> bool {
        self.changes.back().is_some_and(|it| after < it.event.revision)
    }
}

impl Ring {
    pub(crate) fn new(floor: Revision, limits: RingLimits) -> Self {
        let begun = Instant::now();
        Self { lanes: Box::default(), count: 0, kept: 0, bytes: 0, floor, limits, begun }
    }

    /// Adds the newest change and lets go of old ones that no longer fit.
    pub(crate) fn push(&mut self, lane: Lane, event: Arc<Event>) {
        if self.lanes.is_empty() {
            let track = || Track { changes: VecDeque::new(), bytes: 0, floor: self.floor };
            self.lanes = (0..LANES).map(|_| track()).collect();
        }
        let at = self.now();
        let track = &mut self.lanes[lane.index()];
        let weight = weight(&event, track.floor);
        track.bytes += weight;
        track.changes.push_back(Change { number: self.count, at, weight, event });
        self.count += 1;
        self.kept += 1;
        self.bytes += weight;
        self.shrink(lane, at, AT_ONCE);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn exceeds(&self, times: usize) -> bool {
        self.limits.events * times < self.kept || self.limits.bytes * times < self.bytes
    }

    /// Lets go of what does not fit because of a change in `lane`: at once what is too much for
    /// fresh changes too, and of the rest no more than `most`.
    fn shrink(&mut self, lane: Lane, now: u64, most: usize) {
        let fresh = u64::try_from(self.limits.fresh.as_millis()).unwrap_or(u64::MAX);
        let burst = if fresh == 0 { 1 } else { BURST };
        let mut gone = 0;
        while self.exceeds(1) {
            let at = self.longest(lane);
            let Some(oldest) = self.lanes[at].changes.front() else { break };
            let is_fresh = now.saturating_sub(oldest.at) < fresh;
            if !self.exceeds(burst) && (is_fresh || most <= gone) {
                break;
            }
            let oldest = oldest.event.revision;
            gone += 1;
            self.drop_until(at, oldest);
            self.floor = self.floor.max(oldest);
        }
    }

    /// Lets go of some of what is no longer fresh. Whether there may be more.
    pub(crate) fn tidy(&mut self) -> bool {
        const MANY: usize = 512;
        let before = self.kept;
        let longest = (0..self.lanes.len()).max_by_key(|at| self.lanes[*at].changes.len());
        if let Some(longest) = longest.and_then(|it| u8::try_from(it).ok()) {
            self.shrink(Lane(longest), self.now(), MANY);
        }
        MANY <= before - self.kept
    }

    /// The lane that has to let go of something because of a change in `lane`.
    fn longest(&self, lane: Lane) -> usize {
        let own = &self.lanes[lane.index()];
        let by_bytes = self.limits.bytes < self.bytes;
        let size = |it: &Track| if by_bytes { it.bytes } else { it.changes.len() };
        let part = if by_bytes { self.limits.bytes } else { self.limits.events } / PART;
        if part < size(own) {
            return lane.index();
        }
        let longest = self.lanes.iter().enumerate().max_by_key(|(_, it)| size(it));
        longest.map_or_else(|| lane.index(), |(at, _)| at)
    }

    /// Changes after `after`, oldest first, about `limit` of them: changes that share a revision
    /// stay together, or a watcher that goes on from there would miss some.
    pub(crate) fn after(
        &self,
        after: Revision,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        check(after, self.floor)?;
        let mut found: Vec<Arc<Event>> = Vec::new();
        // The next of each lane: its number, the lane, and its place there.
        let mut next = BinaryHeap::new();
        if 0 < limit {
            for (lane, track) in self.lanes.iter().enumerate().filter(|it| it.1.is_newer(after)) {
                let at = track.start(after);
                next.push(Reverse((track.changes[at].number, lane, at)));
            }
        }
        while let Some(Reverse((_, lane, at))) = next.pop() {
            let changes = &self.lanes[lane].changes;
            let event = &changes[at].event;
            if limit <= found.len()
                && found.last().is_none_or(|last| last.revision != event.revision)
            {
                break;
            }
            found.push(event.clone());
            if let Some(change) = changes.get(at + 1) {
                next.push(Reverse((change.number, lane, at + 1)));
            }
        }
        Ok(found)
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
        let mut found: Vec<Arc<Event>> = Vec::new();
        if limit == 0 || !track.is_newer(after) {
            return Ok(found);
        }
        let newer = track.changes.range(track.start(after)..).map(|it| &it.event);
        for event in newer.filter(|it| wants(it)) {
            if limit <= found.len()
                && found.last().is_none_or(|last| last.revision != event.revision)
            {
                break;
            }
            found.push(event.clone());
        }
        Ok(found)
    }

    /// Lets go of changes at or below `floor`.
    pub(crate) fn forget(&mut self, floor: Revision) {
        self.floor = self.floor.max(floor);
        for lane in 0..self.lanes.len() {
            self.drop_until(lane, floor);
            let track = &mut self.lanes[lane];
            track.floor = track.floor.max(floor);
        }
    }

    /// Changes at or below are gone, of some lanes.
    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    /// The lowest floor of any lane: nobody can be told of what was before.
    pub(crate) fn lowest_floor(&self) -> Revision {
        self.lanes.iter().map(|it| it.floor).min().unwrap_or(self.floor)
    }

    fn drop_until(&mut self, lane: usize, revision: Revision) {
        let track = &mut self.lanes[lane];
        while let Some(change) = track.changes.pop_front_if(|it| it.event.revision <= revision) {
            let weight = change.weight;
            track.bytes -= weight;
            track.floor = track.floor.max(change.event.revision);
            self.kept -= 1;
            self.bytes -= weight;
        }
        if track.changes.is_empty() {
            track.changes = VecDeque::new();
        }
    }
}

fn check(after: Revision, floor: Revision) -> Result<(), StoreError> {
    match after < floor {
        true => Err(StoreError::Compacted { requested: after, oldest: floor }),
        false => Ok(()),
    }
}

/// What an event takes where all after `floor` is there too: what was before it is counted with the
/// change that made it, and again only if that is gone.
fn weight(event: &Event, floor: Revision) -> usize {
    let previous = event.previous.as_ref().filter(|it| it.modified <= floor);
    let previous = previous.map_or(0, |it| it.value.held());
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
        let mut ring = Ring::new(
            Revision(0),
            RingLimits { events: 3, bytes: 1_000_000, fresh: Duration::ZERO },
        );
        (1..=5).for_each(|revision| ring.push(LANE, event(revision, 1)));
        check(&ring, 2, 10, &[3, 4, 5]);
        assert!(ring.after(Revision(1), 10).is_err());

        let mut ring =
            Ring::new(Revision(0), RingLimits { events: 100, bytes: 1_000, fresh: Duration::ZERO });
        (1..=5).for_each(|revision| ring.push(LANE, event(revision, 200)));
        check(&ring, 3, 10, &[4, 5]);
        ring.push(LANE, event(6, 5_000));
        assert_eq!((ring.bytes, ring.kept), (0, 0));
        check(&ring, 6, 10, &[]);
    }

    #[test]
    fn what_is_fresh_may_take_more_for_a_while() {
        let fresh = Duration::from_millis(300);
        let mut ring = Ring::new(Revision(0), RingLimits { events: 10, bytes: 1 << 20, fresh });
        (1..=200).for_each(|revision| ring.push(LANE, event(revision, 1)));
        assert_eq!(ring.kept, 10 * BURST);
        assert!(ring.after(Revision(120), 1).is_ok() && ring.after(Revision(119), 1).is_err());
        std::thread::sleep(2 * fresh);
        // Each that comes lets some go.
        ring.push(LANE, event(201, 1));
        assert_eq!(ring.kept, 10 * BURST + 1 - AT_ONCE);
        while ring.tidy() {}
        assert_eq!(ring.kept, 10);
        check(&ring, 198, 10, &[199, 200, 201]);
    }

    #[test]
    fn a_text_that_two_changes_share_is_counted_once() {
        let mut ring = Ring::new(Revision(0), RingLimits::default());
        let mut previous = None;
        for revision in 1..=10 {
            let mut it = Arc::unwrap_or_clone(event(revision, 1000));
            it.previous = previous.replace(it.entry.clone());
            ring.push(LANE, Arc::new(it));
        }
        assert_eq!(ring.bytes, 10 * (1000 + 1 + OVERHEAD));
    }

    #[test]
    fn a_flood_in_one_lane_leaves_the_others_their_part() {
        let mut ring = Ring::new(
            Revision(0),
            RingLimits { events: 80, bytes: 1 << 20, fresh: Duration::ZERO },
        );
        let (quiet, noisy) = (Lane(1), Lane(2));
        for revision in 1..=10 {
            ring.push(quiet, event(revision, 1));
        }
        for revision in 11..=10_000 {
            ring.push(noisy, event(revision, 1));
        }
        assert_eq!(ring.kept, 80);
        let of = |lane, after| ring.after_in(lane, |_| true, Revision(after), usize::MAX);
        assert_eq!(of(quiet, 0).unwrap().len(), 10);
        assert!(of(noisy, 9_000).is_err());
        assert_eq!(of(noisy, 9_930).unwrap().len(), 70);
        assert!(ring.after(Revision(9_000), 1).is_err(), "not all of it is there");
        assert_eq!(ring.after(Revision(9_930), 100).unwrap().len(), 70);
        assert_eq!(ring.lowest_floor(), Revision(0));
        // And its part only: who was quiet and becomes noisy takes no more from others.
        for revision in 10_001..=20_000 {
            ring.push(quiet, event(revision, 1));
        }
        assert_eq!((ring.kept, of_len(&ring, quiet)), (80, 10));
    }

    fn of_len(ring: &Ring, lane: Lane) -> usize {
        ring.lanes.get(lane.index()).map_or(0, |it| it.changes.len())
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
            let mut ring = Ring::new(Revision(0), RingLimits { events: most, bytes: 1 << 20, fresh: Duration::ZERO });
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
                prop_assert!(ring.kept <= most);
                prop_assert_eq!(ring.kept, (0..4).map(|it| of_len(&ring, Lane(it))).sum::<usize>());
                // What has gone is what was forgotten, and the oldest of each lane.
                let mut lowest = 0;
                for lane in 0..4 {
                    let own: Vec<u64> =
                        all.iter().filter(|it| it.0 == lane).map(|it| it.1).collect();
                    let gone = own.len() - of_len(&ring, Lane(lane));
                    let floor = own[..gone].last().copied().unwrap_or(0).max(forgotten);
                    lowest = lowest.max(floor);
                    for after in 0..=revision + 1 {
                        let wanted = |limit| {
                            let found = ring.after_in(Lane(lane), |_| true, Revision(after), limit);
                            found.map(|it| it.iter().map(|it| it.revision.0).collect::<Vec<_>>())
                        };
                        if after < floor {
                            prop_assert!(wanted(usize::MAX).is_err());
                            continue;
                        }
                        let own: Vec<u64> =
                            own.iter().copied().filter(|it| after < *it).collect();
                        prop_assert_eq!(wanted(usize::MAX).unwrap(), own.clone());
                        let some = wanted(limit).unwrap();
                        prop_assert_eq!(&own[..some.len()], &some[..]);
                        prop_assert!(limit.min(own.len()) <= some.len());
                        prop_assert!(some.last().is_none() || own.get(some.len()) != some.last());
                    }
                }
                for after in lowest..=revision {
                    let wanted: Vec<u64> =
                        all.iter().map(|it| it.1).filter(|it| after < *it).collect();
                    let found = |limit| {
                        let found = ring.after(Revision(after), limit).unwrap();
                        found.iter().map(|it| it.revision.0).collect::<Vec<_>>()
                    };
                    prop_assert_eq!(found(usize::MAX), wanted.clone());
                    let some = found(limit);
                    prop_assert_eq!(&wanted[..some.len()], &some[..]);
                    prop_assert!(some.last().is_none() || wanted.get(some.len()) != some.last());
                }
            }
        }
    }
}
