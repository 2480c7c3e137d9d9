//! What is made of an event once for all who are told of it: how it goes over the wire
//! ([`Frames`]), what selectors look at ([`Sights`]), and whatever else asks for it ([`PerEvent`]).
//!
//! A thousand watches of a collection are told of a change within the same moment, one after the
//! other. What the first has made lies here for the others, until another event takes its place.

use std::{
    convert::Infallible,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use insula_partition::watch::Event;
use parking_lot::Mutex;

use crate::{
    accept::{Accept, Form},
    error::Result,
    matcher::Sight,
    request::Encoding,
};

/// Of frames and sights so many are kept.
const SLOTS: usize = 64;
/// Of longer values nothing is kept, in bytes: what is kept is bounded, and of long ones the
/// making is little beside the sending.
const LONGEST: usize = 64 * 1024;

/// See the module. `K` says which of several things that are made of one event.
#[derive(Debug)]
pub(crate) struct PerEvent<K, V>(Box<[Slot<K, V>]>);

type Slot<K, V> = Mutex<Option<Kept<K, V>>>;

#[derive(Debug)]
struct Kept<K, V> {
    /// Not the event itself, which has two objects in it. While this is here, no other event has
    /// its address.
    event: Weak<Event>,
    which: K,
    made: V,
}

impl<K: Copy + PartialEq, V: Clone> PerEvent<K, V> {
    /// Keeps so many, at least one.
    pub(crate) fn new(slots: usize) -> Self {
        Self((0..slots.max(1)).map(|_| Mutex::new(None)).collect())
    }

    /// What `make` makes of `event`. `nth` tells things that are made of one event apart: they
    /// had better not push each other out.
    pub(crate) fn of<E>(
        &self,
        event: &Arc<Event>,
        (which, nth): (K, u64),
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, E> {
        // Those of one moment lie side by side, and the several that are made of one far apart.
        let slots = self.0.len() as u64;
        let at = event.revision.0.wrapping_add(nth * (slots / 4)) % slots;
        let slot = &self.0[usize::try_from(at).unwrap_or_default()];
        if let Some(kept) = &*slot.lock()
            && std::ptr::eq(kept.event.as_ptr(), Arc::as_ptr(event))
            && kept.which == which
        {
            return Ok(kept.made.clone());
        }
        let made = make()?;
        if event.entry.value.len() <= LONGEST {
            let kept = Kept { event: Arc::downgrade(event), which, made: made.clone() };
            let before = slot.lock().replace(kept);
            // Not under the lock: there may be much to free.
            drop(before);
        }
        Ok(made)
    }
}

impl<V: Clone> PerEvent<(), V> {
    /// The one thing that is made of an event.
    pub(crate) fn one(&self, event: &Arc<Event>, make: impl FnOnce() -> V) -> V {
        let made = self.of::<Infallible>(event, ((), 0), || Ok(make()));
        made.unwrap_or_else(|never| match never {})
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
#[derive(Debug)]
pub(crate) struct Frames(PerEvent<Alike, Bytes>);

impl Default for Frames {
    fn default() -> Self {
        Self(PerEvent::new(SLOTS))
    }
}

impl Frames {
    /// What `make` makes of `event` for all who see it so.
    pub(crate) fn of(
        &self,
        event: &Arc<Event>,
        alike: Alike,
        make: impl FnOnce() -> Result<Bytes>,
    ) -> Result<Bytes> {
        let nth = (alike.form as u64) ^ (alike.encoding as u64);
        self.0.of(event, (alike, nth), make)
    }
}

/// What selectors look at: the object as an event left it, and as it was before.
#[derive(Debug)]
pub(crate) struct Sights(PerEvent<(), Arc<[Sight; 2]>>);

impl Default for Sights {
    fn default() -> Self {
        Self(PerEvent::new(SLOTS))
    }
}

impl Sights {
    /// Of an object that was not there before, there is nothing to be seen as it was.
    pub(crate) fn of(&self, event: &Arc<Event>) -> Arc<[Sight; 2]> {
        self.0.one(event, || {
            let before = event.previous.as_ref().unwrap_or(&event.entry);
            Arc::new([Sight::of(&event.entry), Sight::of(before)])
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
        assert_eq!(Arc::weak_count(&it), 0);
    }

    #[test]
    fn selectors_look_once_for_all() {
        let (sights, first, other) = (Sights::default(), event(7), event(7));
        let seen = sights.of(&first);
        assert!(Arc::ptr_eq(&seen, &sights.of(&first)));
        assert!(!Arc::ptr_eq(&seen, &sights.of(&other)));
        // Who has its place by now is somebody else, though it be at the same revision.
        drop((first, other));
        assert!(!Arc::ptr_eq(&seen, &sights.of(&event(7))));
    }
}
