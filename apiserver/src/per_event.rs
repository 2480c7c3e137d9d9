//! What is made of an event once for all watches that are told of it: how it goes over the wire
//! ([`Frames`]), and what their selectors look at ([`Sights`]).
//!
//! A thousand watches of a collection are told of a change within the same moment, one after the
//! other. What the first has made lies here for the others, until another event takes its place.

use std::sync::Arc;

use bytes::Bytes;
use insula_partition::watch::Event;
use parking_lot::Mutex;

use crate::{
    accept::{Accept, Form},
    error::Result,
    matcher::Sight,
    request::Encoding,
};

/// So many are kept. A power of two.
const SLOTS: usize = 64;
/// Of longer values nothing is kept, in bytes: what is kept is bounded, and of long ones the
/// making is little beside the sending.
const LONGEST: usize = 64 * 1024;

/// See the module. `K` says which of several things that are made of one event.
#[derive(Debug)]
struct PerEvent<K, V>([Mutex<Option<Kept<K, V>>>; SLOTS]);

#[derive(Debug)]
struct Kept<K, V> {
    event: Arc<Event>,
    which: K,
    made: V,
}

impl<K, V> Default for PerEvent<K, V> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(None)))
    }
}

impl<K: Copy + PartialEq, V: Clone> PerEvent<K, V> {
    /// What `make` makes of `event`. `nth` tells things that are made of one event apart: they
    /// had better not push each other out.
    fn of(
        &self,
        event: &Arc<Event>,
        which: K,
        nth: u64,
        make: impl FnOnce() -> Result<V>,
    ) -> Result<V> {
        // Those of one moment lie side by side, and so does what is made of one.
        let at = event.revision.0.wrapping_mul(4) ^ nth;
        let slot = &self.0[usize::try_from(at).unwrap_or_default() % SLOTS];
        if let Some(kept) = &*slot.lock()
            && Arc::ptr_eq(&kept.event, event)
            && kept.which == which
        {
            return Ok(kept.made.clone());
        }
        let made = make()?;
        if event.entry.value.len() <= LONGEST {
            let kept = Kept { event: event.clone(), which, made: made.clone() };
            let before = slot.lock().replace(kept);
            // Not under the lock: it may be the last who knows the event.
            drop(before);
        }
        Ok(made)
    }
}

/// What events look like to a watch, beyond the event itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alike {
    kind: &'static str,
    form: Form,
    meta: &'static str,
    encoding: Encoding,
}

impl Alike {
    pub(crate) fn new(kind: &'static str, accept: &Accept) -> Self {
        Self { kind, form: accept.form, meta: accept.meta, encoding: accept.encoding }
    }
}

/// Events as they go over the wire.
#[derive(Debug, Default)]
pub(crate) struct Frames(PerEvent<Alike, Bytes>);

impl Frames {
    /// What `make` makes of `event` for all who see it so.
    pub(crate) fn of(
        &self,
        event: &Arc<Event>,
        alike: Alike,
        make: impl FnOnce() -> Result<Bytes>,
    ) -> Result<Bytes> {
        let nth = (alike.form as u64) ^ (alike.encoding as u64);
        self.0.of(event, alike, nth, make)
    }
}

/// What selectors look at: the object as an event left it, and as it was before.
#[derive(Debug, Default)]
pub(crate) struct Sights(PerEvent<(), Arc<[Sight; 2]>>);

impl Sights {
    /// Of an object that was not there before, there is nothing to be seen as it was.
    pub(crate) fn of(&self, event: &Arc<Event>) -> Result<Arc<[Sight; 2]>> {
        self.0.of(event, (), 0, || {
            let before = event.previous.as_ref().unwrap_or(&event.entry);
            Ok(Arc::new([Sight::of(&event.entry), Sight::of(before)]))
        })
    }
}

#[cfg(test)]
mod tests {
    use insula_partition::{snapshot::Entry, store::Revision};

    use super::*;
    use crate::error::ApiError;

    fn event(revision: u64) -> Arc<Event> {
        event_of(revision, Bytes::new())
    }

    fn event_of(revision: u64, value: Bytes) -> Arc<Event> {
        Arc::new(Event {
            revision: Revision(revision),
            key: "acme/ns/a".into(),
            entry: Entry { value: value.into(), modified: Revision(revision) },
            previous: None,
            deleted: false,
        })
    }

    #[test]
    fn a_frame_is_made_once_for_all_who_see_it_alike() {
        let (frames, first) = (Frames::default(), event(7));
        let added = Alike::new("ADDED", &Accept::JSON);
        let made = frames.of(&first, added, || Ok("a".into())).unwrap();
        let again = frames.of(&first, added, || Err(ApiError::internal("made again"))).unwrap();
        assert_eq!(made.as_ptr(), again.as_ptr());
        let modified = Alike::new("MODIFIED", &Accept::JSON);
        assert_eq!(frames.of(&first, modified, || Ok("b".into())).unwrap(), "b");
        let partial = Accept { form: Form::PartialMetadata, ..Accept::JSON };
        let partial = Alike::new("MODIFIED", &partial);
        assert_eq!(frames.of(&first, partial, || Ok("c".into())).unwrap(), "c");
        // Of another partition.
        assert_eq!(frames.of(&event(7), modified, || Ok("d".into())).unwrap(), "d");
    }

    #[test]
    fn what_is_made_of_long_ones_is_not_kept() {
        let (frames, it) = (Frames::default(), event_of(1, vec![b'x'; LONGEST + 1].into()));
        let added = Alike::new("ADDED", &Accept::JSON);
        frames.of(&it, added, || Ok("a".into())).unwrap();
        assert_eq!(frames.of(&it, added, || Ok("b".into())).unwrap(), "b");
        assert_eq!(Arc::strong_count(&it), 1);
    }

    #[test]
    fn selectors_look_once_for_all() {
        let (sights, first, other) = (Sights::default(), event(7), event(7));
        let seen = sights.of(&first).unwrap();
        assert!(Arc::ptr_eq(&seen, &sights.of(&first).unwrap()));
        assert!(!Arc::ptr_eq(&seen, &sights.of(&other).unwrap()));
    }
}
