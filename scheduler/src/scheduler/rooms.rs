//! Groups whose pods go to nodes of several replicas: room is asked for, and bound to only when
//! enough of it is reserved ([`crate::reservations`]).
//!
//! Everything here goes by what the pods say. The replica of the tenant knows its pods as in
//! flight, each with its *room*; that of the node *keeps* what it reserved for others
//! ([`super::kept`]).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use insula_client::{ObjectKey, Tenanted, chain};
use tokio::time::Instant;

use super::{Scheduler, kept::Kept, orders::InFlight};
use crate::{
    binding::{NotBound, Order, Permit, Way},
    gangs::{GroupKey, Policy, TIMEOUT},
    grouping::{TOO_FEW, Verdict},
    informers::Source,
    pod::{Candidate, Pod},
    queue::Waiting,
    reporting::{Nominated, Report, UNSCHEDULABLE},
    reservations::{Mark, Next, Progress},
    storage::Work,
};

/// For so long a pod that may be bound waits for that. Its room is certain, and whoever takes over
/// the node binds it, so this ends only when nobody can.
const CONFIRMED: Duration = Duration::from_secs(60);
/// What a pod is told whose room was given back.
const TIMED_OUT: &str = "rejected due to timeout after waiting 10s at plugin GangScheduling";

/// The room that is asked for, for a pod in flight.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) group: GroupKey,
    row: usize,
    work: Work,
    /// What the pod says, once it has said anything.
    mark: Option<Mark>,
    /// Something is being written of it.
    is_writing: bool,
    /// The pod is being bound: it holds the room until it is certain what came of that.
    pub(super) is_binding: bool,
    /// There is enough room for the group: the pod will be bound, by whoever has its node.
    is_confirmed: bool,
    /// It is not wanted any more; kept until the pod says so.
    is_given_back: bool,
    /// The version of the pod by which it was confirmed or given back last.
    written: Option<String>,
    /// The version of the pod by which it was not: what has changed since has yet to be seen.
    refused: Option<String>,
}

impl Room {
    /// Room that is asked for just now, unless the pod says already how far that is.
    fn new(group: GroupKey, (row, work): (usize, Work), mark: Option<Mark>) -> Self {
        let is_writing = mark.is_none();
        Self {
            group,
            row,
            work,
            mark,
            is_writing,
            is_binding: false,
            is_confirmed: false,
            is_given_back: false,
            written: None,
            refused: None,
        }
    }
}

/// The pods of a group that room was asked for together.
#[derive(Debug)]
pub(super) struct Round {
    since: Instant,
    members: BTreeSet<ObjectKey>,
    /// There will not be enough room, and what was only asked for is given back.
    is_over: bool,
}

impl Scheduler {
    /// Whether pods of a group hold room that is being given back. It does not count as theirs,
    /// and so nothing is decided for the group before it is gone.
    pub(super) fn is_giving_back(&self, group: &GroupKey) -> bool {
        self.returning.contains_key(group)
    }

    /// Whether room for pods of a group is waited for.
    pub(super) fn is_asking_for(&self, group: &GroupKey) -> bool {
        self.rounds.contains_key(group)
    }

    /// Takes the row for a pod of a group, and asks whose node it is to reserve it.
    pub(super) fn ask_for_room(
        &mut self,
        (key, waiting): (ObjectKey, Waiting),
        pod: Arc<Tenanted<Pod>>,
        (row, work): (usize, Work),
        permit: Permit,
        group: GroupKey,
    ) {
        let node = self.core.world.nodes.name_of(row);
        let room = Room::new(group, (row, work), None);
        let number = self.hold_room(&key, waiting, room);
        let work = Work::default();
        let (timeout, way) = (Duration::ZERO, Way::Ask(permit));
        self.binder.bind(Order { number, pod, node, work, timeout, way });
    }

    fn hold_room(&mut self, key: &ObjectKey, waiting: Waiting, room: Room) -> u64 {
        let (shape, uid) = (waiting.candidate.shape.clone(), waiting.candidate.uid.clone());
        let profile = self.core.profile(&shape.scheduler).cloned();
        let reserve = profile.and_then(|it| it.reserve);
        let assumed = reserve.map(|it| it.reserve(&mut self.core.world, &room.work, room.row));
        self.assume(key, &uid, &shape, room.row);
        let round = self.rounds.entry(room.group.clone());
        let round = round.or_insert_with(|| Round {
            since: Instant::now(),
            members: BTreeSet::new(),
            is_over: false,
        });
        round.members.insert(key.clone());
        let in_flight = InFlight {
            number: 0,
            uid,
            shape,
            waiting: Some(waiting),
            assumed: assumed.unwrap_or_default(),
            handed_over: None,
            room: Some(room),
        };
        self.begin(key.clone(), in_flight)
    }

    /// Takes over room that an earlier replica of the tenant asked for, if the pod says so.
    pub(super) fn take_over_room(
        &mut self,
        key: &ObjectKey,
        pod: &Tenanted<Pod>,
        candidate: &Candidate,
    ) -> bool {
        let Some(group) = GroupKey::of(&candidate.shape) else { return false };
        let told = pod.status.as_ref().and_then(|it| it.nominated_node_name.as_deref());
        let Some((node, row)) = told.and_then(|it| Some((it, self.core.world.nodes.row(it)?)))
        else {
            return false;
        };
        let Some(mark) = Mark::of(pod, node) else { return false };
        let work = self.core.work_on(&candidate.shape, row);
        let candidate = Arc::new(candidate.clone());
        let waiting = Waiting { candidate, n_attempts: 0, since: Instant::now() };
        self.queue.remove(key);
        let room = Room::new(group.clone(), (row, work), Some(mark));
        self.hold_room(key, waiting, room);
        if mark == Mark::Asked {
            self.asking.push(key.clone());
        }
        // Only when all of its pods are known is it known how far the group is.
        self.unsettled.insert(group);
        true
    }

    /// Whether a pod whose room is being asked for says that it has some on another node. Then
    /// another replica was the tenant's in the meantime, and what this one asks for is refused.
    pub(super) fn has_room_elsewhere(&self, key: &ObjectKey, pod: &Pod) -> bool {
        let Some(room) = self.in_flight.get(key).and_then(|it| it.room.as_ref()) else {
            return false;
        };
        let told = pod.status.as_ref().and_then(|it| it.nominated_node_name.as_deref());
        room.mark.is_none()
            && !room.is_binding
            && told.is_some_and(|told| {
                told != &*self.core.world.nodes.name_of(room.row) && Mark::of(pod, told).is_some()
            })
    }

    /// A pod for which room was asked for has changed.
    pub(super) fn look_at_room(&mut self, key: &ObjectKey, pod: &Tenanted<Pod>) {
        let Some(room) = self.in_flight.get_mut(key).and_then(|it| it.room.as_mut()) else {
            return;
        };
        let node = self.core.world.nodes.name_of(room.row);
        let before = room.mark;
        let mark = Mark::of(pod, &node);
        match (mark, before) {
            _ if room.is_binding => return,
            (None, Some(_)) => return self.leave_room(key),
            (None, None) => return,
            (Some(_), _) => room.mark = mark,
        }
        let is_news = room.refused.take_if(|it| it != pod.resource_version()).is_some();
        if room.is_given_back {
            if before.is_none() || is_news {
                self.give_back(key);
            }
            return;
        }
        if before != mark {
            room.is_writing = false;
        }
        let (is_writing, is_confirmed) = (room.is_writing, room.is_confirmed);
        let group = room.group.clone();
        if mark == Some(Mark::Asked) && !is_writing {
            self.asking.push(key.clone());
        }
        if is_confirmed && mark == Some(Mark::Reserved) && !is_writing {
            self.confirm(key);
        }
        if mark != before || is_news {
            self.unsettled.insert(group);
        }
    }

    /// Reserves what is asked for, as far as there is room.
    pub(super) fn answer_asking(&mut self) {
        for key in std::mem::take(&mut self.asking) {
            let Some(pod) = self.informers.pods.get(&key) else { continue };
            if self.kept.contains_key(&key) {
                self.reserve_kept(&key, pod);
            } else {
                self.reserve_own(&key, pod);
            }
        }
    }

    /// Reserves room for a pod of this replica's own tenants, if the node is its own, too.
    fn reserve_own(&mut self, key: &ObjectKey, pod: Arc<Tenanted<Pod>>) {
        let in_flight = self.in_flight.get(key).filter(|it| it.uid == pod.uid());
        let Some(room) = in_flight.and_then(|it| it.room.as_ref()) else { return };
        let node = self.core.world.nodes.name_of(room.row);
        let is_asked = room.mark == Some(Mark::Asked) && Mark::of(&pod, &node) == room.mark;
        if !is_asked || room.is_writing || room.is_given_back {
            return;
        }
        let Some(permit) = self.shares.begin_on(&node) else { return };
        // It was found when the node was somebody else's to give away, perhaps.
        if !self.core.fits_where_it_is(key) {
            return;
        }
        let Some(in_flight) = self.in_flight.get_mut(key) else { return };
        let number = in_flight.number;
        if let Some(room) = &mut in_flight.room {
            room.is_writing = true;
        }
        self.order(number, pod, node, Work::default(), Way::Reserve(permit));
    }

    pub(super) fn order(
        &self,
        number: u64,
        pod: Arc<Tenanted<Pod>>,
        node: Arc<str>,
        work: Work,
        way: Way,
    ) {
        let profile = self.core.profile(crate::pod::scheduler_of(&pod));
        let timeout = profile.map_or(Duration::ZERO, |it| it.bind_timeout);
        self.binder.bind(Order { number, pod, node, work, timeout, way });
    }

    /// Confirms, or gives back, if it is time for either.
    fn advance(&mut self, group: &GroupKey) {
        let Some(round) = self.rounds.get(group) else { return };
        let (mut n_asked, mut n_reserved, mut min_count) = (0, 0, 0);
        let mut shape = None;
        for key in &round.members {
            let Some(in_flight) = self.in_flight.get(key) else { continue };
            let mark = in_flight.room.as_ref().and_then(|it| it.mark);
            n_asked += usize::from(mark < Some(Mark::Reserved));
            n_reserved += usize::from(Some(Mark::Reserved) <= mark);
            shape = Some(&in_flight.shape);
        }
        let Some(shape) = shape else {
            self.rounds.remove(group);
            return;
        };
        if let Some(Policy::Gang { min_count: it }) = self.core.world.gangs.policy(shape) {
            min_count = it;
        }
        let n_placed = self.core.world.gangs.counts(shape).0;
        let n_bound = n_placed.saturating_sub(n_asked + n_reserved);
        let waited = if round.is_over { TIMEOUT } else { round.since.elapsed() };
        let timeout = TIMEOUT;
        let progress = Progress { n_asked, n_reserved, n_bound, min_count, waited, timeout };
        let next = progress.next();
        if next == Next::Wait {
            return;
        }
        let Some(mut round) = self.rounds.remove(group) else { return };
        tracing::debug!(group = %group.key, ?progress, ?next, "room for a group");
        let was_over = std::mem::replace(&mut round.is_over, next == Next::GiveBack);
        for key in &round.members {
            let Some(in_flight) = self.in_flight.get(key) else { continue };
            let Some(room) = &in_flight.room else { continue };
            match (next, Some(Mark::Reserved) <= room.mark) {
                (Next::Confirm, true) => self.confirm(key),
                (Next::GiveBack, true) if 0 < n_asked => (),
                // Whether it is reserved has yet to be heard.
                (Next::GiveBack, false) if room.refused.is_some() => (),
                _ if room.is_given_back => (),
                _ => self.give_back(key),
            }
        }
        if next == Next::GiveBack && 0 < n_asked {
            self.rounds.insert(group.clone(), round);
        }
        if next != Next::GiveBack {
            self.tell_of(group, Verdict::scheduled());
        } else if !was_over {
            self.tell_of(group, Verdict::unschedulable(TOO_FEW));
        }
    }

    /// A pod may be bound: here, or where its node is.
    fn confirm(&mut self, key: &ObjectKey) {
        let Some(pod) = self.informers.pods.get(key) else { return };
        let Some(in_flight) = self.in_flight.get_mut(key) else { return };
        let number = in_flight.number;
        let Some(room) = &mut in_flight.room else { return };
        room.is_confirmed = true;
        if room.refused.is_some() {
            return;
        }
        let node = self.core.world.nodes.name_of(room.row);
        let work = std::mem::take(&mut room.work);
        let way = match self.shares.begin_on(&node) {
            Some(permit) => {
                (room.is_binding, room.written) = (true, None);
                Way::Bind(permit)
            }
            None => {
                room.written = Some(pod.resource_version().to_owned());
                let Some(permit) = self.shares.begin_for(&key.tenant) else { return };
                // Only what has to be done before takes that long.
                let profile = self.core.profile(&in_flight.shape.scheduler);
                let before = profile.filter(|_| !work.is_empty()).map(|it| it.bind_timeout);
                let until = Instant::now() + before.unwrap_or_default() + CONFIRMED;
                if let Some(before) = in_flight.handed_over.replace(until) {
                    self.handed_over.remove(&(before, key.clone()));
                }
                room.is_writing = true;
                self.handed_over.insert((until, key.clone()));
                Way::Confirm(permit)
            }
        };
        self.order(number, pod, node, work, way);
    }

    /// Room is not wanted any more. It is kept until the pod says so, as others believe the pod.
    pub(super) fn give_back(&mut self, key: &ObjectKey) {
        let Some(permit) = self.shares.begin_for(&key.tenant) else { return };
        let Some(in_flight) = self.in_flight.get_mut(key) else { return };
        let Some(room) = &mut in_flight.room else { return };
        if !std::mem::replace(&mut room.is_given_back, true) {
            *self.returning.entry(room.group.clone()).or_default() += 1;
        }
        if room.mark.is_none() || room.refused.is_some() {
            // It would be asked for after that: what was asked is waited for. Or else the pod.
            return;
        }
        let Some(pod) = self.informers.pods.get(key) else { return };
        room.written = Some(pod.resource_version().to_owned());
        let node = self.core.world.nodes.name_of(room.row);
        let (number, work) = (in_flight.number, Work::default());
        self.order(number, pod.clone(), node, work, Way::GiveBack(permit));
        let (message, nominated) = (TIMED_OUT.into(), Nominated::AsItIs);
        self.reporter.report(Report { pod, reason: UNSCHEDULABLE, message, nominated });
    }

    /// A pod does not ask for its room any more: it looks again.
    fn leave_room(&mut self, key: &ObjectKey) {
        let Some(in_flight) = self.in_flight.remove(key) else { return };
        self.leave_round(key, &in_flight);
        self.unreserve(&in_flight);
        self.let_go(key, &in_flight.uid);
        if let Some(waiting) = in_flight.waiting
            && self.queue.get(key).is_none()
        {
            self.retry(key, waiting, Instant::now());
        }
    }

    /// A pod for which room was asked for, or is kept, is gone.
    pub(super) fn drop_room(&mut self, key: &ObjectKey) {
        self.kept.remove(key);
        if self.in_flight.get(key).is_some_and(|it| it.room.is_some())
            && let Some(in_flight) = self.in_flight.remove(key)
        {
            self.leave_round(key, &in_flight);
            self.unreserve(&in_flight);
        }
    }

    /// Pods of the tenant are decided on elsewhere now. Room on a node of this replica is kept, as
    /// the pod says.
    pub(super) fn hand_on_room(&mut self, key: &ObjectKey) {
        let Some(in_flight) = self.in_flight.remove(key) else { return };
        self.leave_round(key, &in_flight);
        self.unreserve(&in_flight);
        let row = in_flight.room.map_or(0, |it| it.row);
        if self.shares.has_node(self.core.world.nodes.name(row)) {
            let kept = Kept { uid: in_flight.uid, reserving: None, binding: None };
            self.kept.insert(key.clone(), kept);
        } else {
            self.let_go(key, &in_flight.uid);
        }
    }

    /// A pod in flight is so no more: its group counts on it no longer.
    pub(super) fn leave_round(&mut self, key: &ObjectKey, in_flight: &InFlight) {
        if let Some(until) = in_flight.handed_over {
            self.handed_over.remove(&(until, key.clone()));
        }
        let Some(room) = &in_flight.room else { return };
        if room.is_given_back {
            self.returned(&room.group);
        }
        if let Some(round) = self.rounds.get_mut(&room.group) {
            round.members.remove(key);
            self.unsettled.insert(room.group.clone());
        }
    }

    /// A pod holds no room of its group any more that is being given back.
    fn returned(&mut self, group: &GroupKey) {
        let Some(n_pods) = self.returning.get_mut(group) else { return };
        *n_pods -= 1;
        if *n_pods == 0 {
            self.returning.remove(group);
        }
    }

    /// What was to be written of a pod's room was not.
    pub(super) fn not_written(&mut self, key: &ObjectKey, error: &NotBound) {
        tracing::info!(pod = %key, error = chain(error), "room neither reserved nor given back");
        let is_superseded = matches!(error, NotBound::Api(error) if error.is_superseded());
        if is_superseded {
            self.shares.refused();
        }
        let Some(room) = self.in_flight.get_mut(key).and_then(|it| it.room.as_mut()) else {
            return;
        };
        room.is_writing = false;
        room.is_binding = false;
        if !self.shares.decides_for(&key.tenant) {
            self.hand_on_room(key);
            return self.informers.dirty.add((Source::Pod, key.clone()));
        }
        let is_waited_for = self.rounds.get(&room.group).is_some_and(|it| it.members.contains(key));
        let is_conflict = matches!(error, NotBound::Api(error) if error.is_conflict());
        if is_conflict && let Some(version) = room.written.take() {
            // It may be reserved by now. The pod says it, or has said it already.
            room.refused = Some(version);
            if is_waited_for && std::mem::take(&mut room.is_given_back) {
                let group = room.group.clone();
                self.returned(&group);
            }
        } else if room.mark.is_none() {
            // Nobody has been asked.
            self.leave_room(key);
        } else if room.is_given_back || !(is_waited_for || is_superseded && room.is_confirmed) {
            self.give_back(key);
        }
        self.informers.dirty.add((Source::Pod, key.clone()));
    }

    /// When some group has waited long enough.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.rounds.values().filter(|it| !it.is_over).map(|it| it.since + TIMEOUT).min()
    }

    /// Goes on with groups of which a pod has changed, or that have waited long enough.
    pub(super) fn settle(&mut self) {
        let late = |round: &Round| !round.is_over && TIMEOUT <= round.since.elapsed();
        let all = self.rounds.iter().filter(|(_, round)| late(round));
        let all: Vec<_> = all.map(|(group, _)| group.clone()).collect();
        for group in std::mem::take(&mut self.unsettled).into_iter().chain(all) {
            self.advance(&group);
        }
    }
}
