//! Groups of pods among replicas that sleep, end and are replaced: as [`crate::scheduler`] does,
//! room is asked for, reserved and confirmed, and what is agreed on stands in the pods.

use super::*;
use crate::{
    core::{Found, Member, Outcome},
    reservations::{Mark, Next, Progress},
};

/// Pods of a group, all of which have to have places.
pub(super) const PER_GANG: usize = 3;
/// For so long room is waited for.
const TIMEOUT: u64 = 80;

/// A change of what a pod says of its room.
#[derive(Debug, Clone, Copy)]
pub(super) enum Word {
    Ask,
    /// This and what follows are refused if the pod is another than this version of it.
    Reserve(u64),
    Confirm(u64),
    GiveBack(u64),
}

impl Word {
    fn mark(self) -> Option<Mark> {
        match self {
            Self::Ask => Some(Mark::Asked),
            Self::Reserve(_) => Some(Mark::Reserved),
            Self::Confirm(_) => Some(Mark::Confirmed),
            Self::GiveBack(_) => None,
        }
    }
}

/// What a replica knows of room that it asked for, or keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    node: usize,
    /// What the pod said last.
    seen: Option<Mark>,
    /// Something is on its way, by this number.
    is_writing: bool,
    number: usize,
    /// A binding is on its way: what it is for is held until it is known what came of it.
    pub(super) is_binding: bool,
    is_given_back: bool,
}

/// A replica's part in groups.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    pub(super) rooms: BTreeMap<usize, Room>,
    since: BTreeMap<usize, u64>,
}

impl Sim {
    /// What a pod says of its room changes, if whoever says it may.
    pub(super) fn says(
        &mut self,
        (pod, node): (usize, usize),
        word: Word,
        (block, epoch): (u16, u64),
        ((at, life), number): ((usize, u64), usize),
    ) {
        let counts = self.epochs[usize::from(block)] == epoch || self.without == Without::Fences;
        let current = self.pods.get(&pod).filter(|it| it.node.is_none()).cloned();
        let is_newest = |it: &Kept| match word {
            Word::Ask => true,
            Word::Reserve(seen) | Word::Confirm(seen) | Word::GiveBack(seen) => it.version == seen,
        };
        let current = current.filter(|it| counts && is_newest(it));
        if let Some(current) = &current {
            let nominated = word.mark().map(|_| node);
            let version = current.version + 1;
            let mark = word.mark();
            self.keep(pod, Some(Kept { nominated, mark, version, ..current.clone() }));
        }
        self.n_refused += usize::from(!counts);
        let replica = &mut self.replicas[at];
        if replica.life == life
            && current.is_none()
            && let Some(room) = replica.gangs.rooms.get_mut(&pod)
            // What came of something that was said before says nothing of this.
            && room.number == number
        {
            room.is_writing = false;
            // As long as the pod is this replica's to decide on, it says so again.
            room.is_given_back = false;
            if room.seen < Some(Mark::Reserved) {
                self.leave(at, pod);
            }
        }
    }

    fn say(&mut self, at: usize, pod: usize, word: Word) {
        let replica = &mut self.replicas[at];
        let from = (at, replica.life);
        let (Some(kept), Some(room)) = (replica.pods.get(&pod), replica.gangs.rooms.get_mut(&pod))
        else {
            return;
        };
        let block = match word {
            Word::Reserve(_) => block_of(&node_name(room.node)),
            _ => block_of(tenant(kept.tenant).as_str()),
        };
        let Some(epoch) = replica.adopted.get(&block).copied() else { return };
        room.is_writing = true;
        room.number = self.n_messages;
        let (node, by) = (room.node, (from, room.number));
        self.send(Message::Say { pod, node, word, block, epoch, by });
    }

    /// The room is not held for the pod any more.
    fn leave(&mut self, at: usize, pod: usize) {
        let replica = &mut self.replicas[at];
        replica.gangs.rooms.remove(&pod);
        if let Some(kept) = replica.pods.get(&pod).filter(|it| it.node.is_none()).cloned() {
            replica.core.remove_pod(&key(pod, &kept));
            replica.in_flight.remove(&pod);
        }
    }

    fn hold(
        &mut self,
        at: usize,
        pod: usize,
        kept: &Kept,
        node: usize,
        seen: Option<Mark>,
    ) -> bool {
        let replica = &mut self.replicas[at];
        let Some(row) = replica.core.world.nodes.row(&node_name(node)) else { return false };
        replica.assume(pod, kept, row);
        let room = Room {
            node,
            seen,
            is_writing: false,
            number: 0,
            is_binding: false,
            is_given_back: false,
        };
        replica.gangs.rooms.insert(pod, room);
        true
    }

    /// One turn of a replica's loop, for pods of groups.
    pub(super) fn work_for_gangs(&mut self, at: usize) {
        let all: Vec<_> = self.replicas[at].pods.clone().into_iter().collect();
        let has = |sim: &Self, name: &str| sim.replicas[at].adopted.contains_key(&block_of(name));
        // Rooms whose pods are gone, bound, or say nothing of them any more; or are others' now.
        for pod in self.replicas[at].gangs.rooms.keys().copied().collect::<Vec<_>>() {
            let room = self.replicas[at].gangs.rooms[&pod];
            let known = self.replicas[at].pods.get(&pod).cloned();
            let Some(kept) = known.filter(|it| it.node.is_none()) else {
                self.replicas[at].gangs.rooms.remove(&pod);
                continue;
            };
            let mark = kept.mark.filter(|_| kept.nominated == Some(room.node));
            if room.is_binding {
                continue;
            }
            // As when blocks change hands: all is looked at anew.
            if self.without == Without::Looking && Some(Mark::Reserved) <= mark {
                self.leave(at, pod);
                continue;
            }
            let is_ours = has(self, tenant(kept.tenant).as_str());
            let stays = is_ours || has(self, &node_name(room.node));
            // What another leader asked for counts, as this one's is refused.
            let is_elsewhere = kept.mark.is_some() && kept.nominated != Some(room.node);
            if !stays || is_elsewhere || (mark.is_none() && (room.seen.is_some() || !is_ours)) {
                self.leave(at, pod);
            } else if let Some(room) = self.replicas[at].gangs.rooms.get_mut(&pod) {
                room.is_writing &= room.seen == mark;
                room.seen = mark;
            }
        }
        // What pods say is kept is held before anything is given away.
        for (pod, kept) in &all {
            let (Some(mark), Some(node)) = (kept.mark, kept.nominated) else { continue };
            if kept.node.is_some() {
                continue;
            }
            let is_ours = has(self, tenant(kept.tenant).as_str());
            let is_to_hold = is_ours || (has(self, &node_name(node)) && Mark::Reserved <= mark);
            if is_to_hold && !self.replicas[at].gangs.rooms.contains_key(pod) {
                self.hold(at, *pod, kept, node, Some(mark));
            }
            if self.without == Without::Looking {
                self.answer(at, *pod, kept);
            }
        }
        for (pod, kept) in &all {
            if kept.gang.is_some() && kept.node.is_none() {
                self.answer(at, *pod, kept);
            }
        }
        let gangs: BTreeSet<usize> = all.iter().filter_map(|(_, it)| it.gang).collect();
        for gang in gangs {
            let members: Vec<_> =
                all.iter().filter(|(_, it)| it.gang == Some(gang)).cloned().collect();
            if has(self, tenant(members[0].1.tenant).as_str()) {
                self.lead(at, gang, &members);
            }
        }
    }

    /// As the one whose node it is: reserves what is asked for, binds to what is confirmed.
    fn answer(&mut self, at: usize, pod: usize, kept: &Kept) {
        let (Some(mark), Some(node)) = (kept.mark, kept.nominated) else { return };
        let block = block_of(&node_name(node));
        let Some(epoch) = self.replicas[at].adopted.get(&block).copied() else { return };
        let is_ours =
            self.replicas[at].adopted.contains_key(&block_of(tenant(kept.tenant).as_str()));
        if mark == Mark::Asked && !self.replicas[at].gangs.rooms.contains_key(&pod) {
            let replica = &mut self.replicas[at];
            let shape = replica.core.shapes.of(&object(pod, kept));
            let row = replica.core.world.nodes.row(&node_name(node));
            let fits = row.is_some_and(|row| replica.core.will_do(&shape, row).is_some());
            if !fits || !self.hold(at, pod, kept, node, Some(mark)) {
                return;
            }
        }
        let from = (at, self.replicas[at].life);
        let Some(room) = self.replicas[at].gangs.rooms.get_mut(&pod) else { return };
        if room.is_writing || room.is_binding || room.is_given_back {
            return;
        }
        // It was found when the node was somebody else's to give away, perhaps.
        if mark == Mark::Asked && !self.replicas[at].core.fits_where_it_is(&key(pod, kept)) {
            return;
        }
        let Some(room) = self.replicas[at].gangs.rooms.get_mut(&pod) else { return };
        match mark {
            Mark::Asked => self.say(at, pod, Word::Reserve(kept.version)),
            Mark::Confirmed if !is_ours => {
                room.is_binding = true;
                self.send(Message::Bind { pod, node, block, epoch, from });
            }
            Mark::Reserved | Mark::Confirmed => (),
        }
    }

    /// As the one whose pods they are: finds places, asks for them, confirms or gives back.
    fn lead(&mut self, at: usize, gang: usize, members: &[(usize, Kept)]) {
        let replica = &mut self.replicas[at];
        let with_room: Vec<(usize, Room)> = members
            .iter()
            .filter_map(|(pod, _)| Some((*pod, *replica.gangs.rooms.get(pod)?)))
            .collect();
        let n_bound = members.iter().filter(|(_, it)| it.node.is_some()).count();
        if with_room.is_empty() {
            return self.find(at, gang, members);
        }
        let now = self.now;
        let since = *replica.gangs.since.entry(gang).or_insert(now);
        let n_reserved = with_room.iter().filter(|(_, it)| Some(Mark::Reserved) <= it.seen).count();
        let progress = Progress {
            n_asked: with_room.len() - n_reserved,
            n_reserved,
            n_bound,
            min_count: PER_GANG,
            waited: std::time::Duration::from_secs(now - since),
            timeout: std::time::Duration::from_secs(TIMEOUT),
        };
        let next = match self.without {
            Without::Waiting => Next::Confirm,
            _ => progress.next(),
        };
        // What others take for enough room is all there until it is certain that it will not be.
        let is_certain = n_reserved == with_room.len();
        for (pod, room) in with_room {
            if room.is_given_back || room.is_binding {
                continue;
            }
            match next {
                Next::Wait => (),
                Next::Confirm if Some(Mark::Reserved) <= room.seen => {
                    if !room.is_writing {
                        self.go(at, pod, room);
                    }
                }
                // What was asked for has yet to be heard of: it would be asked for after that.
                Next::Confirm | Next::GiveBack if room.seen.is_none() => (),
                Next::GiveBack if !is_certain && Some(Mark::Reserved) <= room.seen => (),
                Next::Confirm | Next::GiveBack => {
                    let version = self.replicas[at].pods[&pod].version;
                    self.say(at, pod, Word::GiveBack(version));
                    if let Some(room) = self.replicas[at].gangs.rooms.get_mut(&pod) {
                        room.is_given_back = true;
                    }
                }
            }
        }
    }

    fn go(&mut self, at: usize, pod: usize, room: Room) {
        let from = (at, self.replicas[at].life);
        let block = block_of(&node_name(room.node));
        match self.replicas[at].adopted.get(&block).copied() {
            Some(epoch) => {
                if let Some(room) = self.replicas[at].gangs.rooms.get_mut(&pod) {
                    room.is_binding = true;
                }
                self.send(Message::Bind { pod, node: room.node, block, epoch, from });
            }
            None if room.seen == Some(Mark::Reserved) => {
                let version = self.replicas[at].pods[&pod].version;
                self.say(at, pod, Word::Confirm(version));
            }
            None => (),
        }
    }

    fn find(&mut self, at: usize, gang: usize, members: &[(usize, Kept)]) {
        let replica = &mut self.replicas[at];
        replica.gangs.since.remove(&gang);
        let all: Vec<Member> = members
            .iter()
            .filter(|(pod, it)| it.node.is_none() && !replica.in_flight.contains(pod))
            .map(|(pod, it)| {
                let shape = replica.core.shapes.of(&object(*pod, it));
                replica.core.world.gangs.wait(&key(*pod, it), &shape);
                Member { key: key(*pod, it), uid: format!("u{pod}").as_str().into(), shape }
            })
            .collect();
        if all.is_empty() || replica.core.group_to_decide(&all[0].shape).is_none() {
            return;
        }
        let decision = replica.core.decide_group(&all);
        if decision.outcome != Outcome::Fits {
            return;
        }
        for (member, found) in all.iter().zip(decision.found) {
            let Found::Place { row, .. } = found else { continue };
            let name = self.replicas[at].core.world.nodes.name_of(row);
            let pod: usize = member.key.name[1..].parse().unwrap();
            let kept = self.replicas[at].pods[&pod].clone();
            if self.hold(at, pod, &kept, name[1..].parse().unwrap(), None) {
                self.n_asked += 1;
                self.say(at, pod, Word::Ask);
            }
        }
    }

    /// When a pod of a group was bound: all of it has places that are certain, unless some of its
    /// pods or nodes are gone.
    pub(super) fn check_gang(&mut self, gang: usize) {
        let members: Vec<_> = self.pods.values().filter(|it| it.gang == Some(gang)).collect();
        let is_certain = |it: &&&Kept| it.node.is_some() || Some(Mark::Reserved) <= it.mark;
        let n_certain = members.iter().filter(is_certain).count();
        let is_whole = members.len() == PER_GANG && !self.bereft.contains(&gang);
        if is_whole && n_certain < PER_GANG {
            let now = self.now;
            self.torn.get_or_insert_with(|| format!("{n_certain} of g{gang} at {now}"));
        }
    }
}
