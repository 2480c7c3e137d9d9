//! What has not changed for as long as its collection remembers changes lies packed, as what differs
//! from a neighbour.
//!
//! Most of what a large partition holds is pods and nodes that run and are left alone, and that
//! have most of their text from what made them: a set, a template, an agent. Keys of the same origin
//! lie side by side, so the neighbour is what to compare with: no kinds are known here.
//!
//! The way of a write knows nothing of it. What is written lies plain, for whoever follows and for
//! whoever changes it again, while the history holds the very same text. Once it has left the
//! history, a sweep finds it: a thread for each partition, a quarter of a core at most.
//!
//! # Invariants
//!
//! * A sweep changes how a value lies, never what it is, nor its revision.
//! * A version is tried once: what does not pack costs nothing at the next sweep.
//! * The lock is held for single map operations; packing is done outside of it.

use std::{
    io,
    ops::Bound,
    sync::{
        Arc, Weak,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::State;
use crate::{
    store::Revision,
    text::{LONG, Text},
};

/// Values below this length stay as they are, in bytes: leases and the like change too often for
/// what little they are.
const SHORT: usize = 1 << 10;
/// Entries looked at before the lock is asked for again.
const TOGETHER: usize = 512;
/// From one sweep to the next, at least.
const PAUSE: Duration = Duration::from_secs(5);
/// How many times as long as it works a sweep rests.
const REST: u32 = 3;

/// A sweep through one collection.
#[derive(Debug)]
pub(super) struct Sweep {
    shelf: usize,
    /// What changed after the first, up to the second, has not been tried yet and has left history.
    after: Revision,
    until: Revision,
    /// The key that was looked at last.
    last: Option<Arc<str>>,
    template: Option<Bytes>,
}

/// What a part of a sweep has found.
#[derive(Debug, Default)]
struct Part {
    packed: Vec<(Arc<str>, Revision, Text)>,
    /// The key that was looked at last; none at the end.
    last: Option<Arc<str>>,
}

impl State {
    /// A sweep of the first collection from the place `from` on that has something to settle.
    pub(super) fn unsettled(&self, from: usize) -> Option<Sweep> {
        let contents = self.contents.read();
        let mut shelves = contents.shelves.iter().enumerate().skip(from);
        shelves.find_map(|(shelf, it)| {
            let (after, until) = (it.settled, it.ring.floor());
            (after < until).then_some(Sweep { shelf, after, until, last: None, template: None })
        })
    }

    /// Has histories let go of what they kept while it was fresh.
    fn tidy_histories(&self) {
        let shelves = self.contents.read().shelves.len();
        for shelf in 0..shelves {
            while self.contents.write().shelves[shelf].ring.tidy() {}
        }
    }

    /// Does a part of a sweep. Whether there is more of it.
    pub(super) fn settle(&self, sweep: &mut Sweep) -> bool {
        let part = self.packed(sweep);
        self.replace(sweep, part)
    }

    /// The next values of a sweep that are worth packing, packed.
    fn packed(&self, sweep: &mut Sweep) -> Part {
        let entries = self.contents.read().shelves[sweep.shelf].entries.clone();
        let from = sweep.last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut part = Part::default();
        for (key, entry) in entries.range::<_, str>((from, Bound::Unbounded)).take(TOGETHER) {
            part.last = Some(key.clone());
            if let Some(template) = entry.value.template() {
                sweep.template = Some(template.clone());
                continue;
            }
            let plain = entry.value.as_plain().filter(|it| (SHORT..LONG).contains(&it.len()));
            let Some(plain) = plain.filter(|_| entry.modified <= sweep.until) else { continue };
            let is_new = sweep.after < entry.modified;
            let known = sweep.template.as_ref().filter(|_| is_new);
            match known.and_then(|template| Text::like(template, plain)) {
                Some(text) => part.packed.push((key.clone(), entry.modified, text)),
                None => sweep.template = Some(plain.clone()),
            }
        }
        part
    }

    /// Puts what was packed in the place of what is still the same. Whether there is more.
    fn replace(&self, sweep: &mut Sweep, Part { packed, last }: Part) -> bool {
        let mut contents = self.contents.write();
        let shelf = &mut contents.shelves[sweep.shelf];
        for (key, modified, text) in packed {
            let is_same = shelf.entries.get(&*key).is_some_and(|it| it.modified == modified);
            if let Some(entry) = shelf.entries.get_mut(&*key).filter(|_| is_same) {
                entry.value = text;
            }
        }
        if last.is_none() && shelf.settled == sweep.after {
            shelf.settled = sweep.until;
        }
        sweep.last = last;
        sweep.last.is_some()
    }
}

/// Settles a state from time to time, until this is dropped.
#[derive(Debug)]
pub(crate) struct Settler {
    _end: mpsc::Sender<()>,
}

impl Settler {
    /// # Errors
    /// The system has no thread for it.
    pub(crate) fn start(name: &str, state: &Arc<State>) -> io::Result<Self> {
        let (end, ended) = mpsc::channel();
        let state = Arc::downgrade(state);
        let thread = std::thread::Builder::new().name(format!("settle {name}"));
        thread.spawn(move || run(&state, &ended))?;
        Ok(Self { _end: end })
    }
}

fn run(state: &Weak<State>, ended: &mpsc::Receiver<()>) {
    // Whether it is still wanted after `time`.
    let rest = |time| matches!(ended.recv_timeout(time), Err(RecvTimeoutError::Timeout));
    while rest(PAUSE) {
        let Some(it) = state.upgrade() else { return };
        it.tidy_histories();
        drop(it);
        let mut next = 0;
        while let Some(mut sweep) = state.upgrade().and_then(|it| it.unsettled(next)) {
            next = sweep.shelf + 1;
            loop {
                let begun = Instant::now();
                let Some(state) = state.upgrade() else { return };
                let is_more = state.settle(&mut sweep);
                drop(state);
                if !rest(begun.elapsed() * REST) {
                    return;
                }
                if !is_more {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::*, *};
    use crate::{ring::RingLimits, state::Contents, store::Expect};

    /// As a pod is, in short.
    fn pod(name: &str, phase: &str) -> String {
        let fields =
            r#""terminationMessagePath":"/dev/termination-log","imagePullPolicy":"Always","#;
        format!(
            r#"{{"kind":"Pod","metadata":{{"resourceVersion":"","name":"{name}"}},"spec":{{{}}},"status":{{"phase":"{phase}"}}}}"#,
            fields.repeat(16)
        )
    }

    fn state(events: usize) -> Arc<State> {
        State::new(Image::default(), RingLimits { events, bytes: 1 << 20, fresh: Duration::ZERO })
    }

    fn put(state: &State, key: &str, value: &str) {
        let write = |contents: &mut Contents| {
            contents.write("core/pods", key, Expect::Anything, Some(value.as_bytes()), None, &[])
        };
        state.apply(write).unwrap();
    }

    fn all(state: &State) {
        let mut next = 0;
        while let Some(mut sweep) = state.unsettled(next) {
            next = sweep.shelf + 1;
            while state.settle(&mut sweep) {}
        }
    }

    fn snapshot(state: &State) -> Snapshot {
        state.snapshot(&Collection::new("", "pods")).unwrap()
    }

    #[test]
    fn what_has_left_the_history_lies_as_what_differs_from_a_neighbour() {
        let state = state(10);
        for n in 0..2 * TOGETHER {
            put(&state, &format!("acme/default/web-{n:04}"), &pod(&format!("web-{n}"), "Running"));
        }
        let before = snapshot(&state);
        all(&state);
        let after = snapshot(&state);
        let packed = after.range("", None).filter(|it| it.1.value.is_packed()).count();
        // But for what is in the history, and the first one.
        assert_eq!(packed, 2 * TOGETHER - 10 - 1);
        let held: usize = after.range("", None).map(|it| it.1.value.held()).sum();
        assert!(held / (2 * TOGETHER) < pod("", "").len() / 5, "{held}");
        for ((key, before), (_, after)) in before.range("", None).zip(after.range("", None)) {
            assert_eq!(before, after, "{key}");
        }
        assert_eq!(state.totals().bytes, {
            let sizes = after.range("", None).map(|(key, it)| key.len() + it.value.bytes().len());
            sizes.sum::<usize>() as u64
        });
        // What is written again is plain, and what was known of it before is told as ever.
        put(&state, "acme/default/web-0000", &pod("web-0", "Failed"));
        let entry = snapshot(&state).get("acme/default/web-0000").cloned().unwrap();
        assert!(!entry.value.is_packed());
    }

    #[test]
    fn nothing_is_swept_that_history_still_has_and_nothing_twice() {
        let state = state(100);
        put(&state, "acme/default/a", &pod("a", "Running"));
        put(&state, "acme/default/b", &pod("b", "Running"));
        all(&state);
        assert!(snapshot(&state).range("", None).all(|it| !it.1.value.is_packed()));
        let revision = state.revision();
        state.apply(|contents| contents.compact(revision)).unwrap();
        let sweep = state.unsettled(0).unwrap();
        assert_eq!((sweep.after, sweep.until), (Revision(0), revision));
        all(&state);
        assert!(snapshot(&state).get("acme/default/b").unwrap().value.is_packed());
        assert!(state.unsettled(0).is_none());
    }

    #[test]
    fn what_a_change_overtakes_stays_as_it_is_now() {
        let state = state(1);
        for name in ["a", "b", "c", "d"] {
            put(&state, &format!("acme/default/{name}"), &pod(name, "Running"));
        }
        let mut sweep = state.unsettled(0).unwrap();
        let part = state.packed(&mut sweep);
        let keys: Vec<&str> = part.packed.iter().map(|it| &*it.0).collect();
        assert_eq!(keys, ["acme/default/b", "acme/default/c"]);
        put(&state, "acme/default/b", &pod("b", "Failed"));
        let delete =
            |it: &mut Contents| it.write("core/pods", keys[1], Expect::Present, None, None, &[]);
        state.apply(delete).unwrap();
        let before = snapshot(&state);
        let part = Part { packed: part.packed.clone(), last: None };
        state.replace(&mut sweep, part);
        assert!(snapshot(&state).range("", None).eq(before.range("", None)));
        assert!(!snapshot(&state).get("acme/default/b").unwrap().value.is_packed());
    }

    proptest! {
        #[test]
        fn whatever_is_swept_when_reads_the_same(
            steps in prop::collection::vec((0..12_u8, 0..4_u8, 0..40_usize), 1..80),
        ) {
            let (swept, plain) = (state(4), state(4));
            for (key, phase, length) in steps {
                let key = format!("acme/default/{key}");
                let value = pod(&key, &"x".repeat(usize::from(phase) * length));
                put(&swept, &key, &value);
                put(&plain, &key, &value);
                if phase == 0 {
                    all(&swept);
                }
                let (one, other) = (snapshot(&swept), snapshot(&plain));
                prop_assert!(one.range("", None).eq(other.range("", None)));
                prop_assert_eq!(swept.totals().bytes, plain.totals().bytes);
            }
        }
    }
}
