//! Events as they go over the wire, made once for all watches that tell of them alike.
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
    request::Encoding,
};

/// So many are kept. A power of two.
const SLOTS: usize = 64;
/// Longer ones are not kept, in bytes: what is kept is bounded, and of long ones the making is
/// little beside the sending.
const LONGEST: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Frames([Mutex<Option<Kept>>; SLOTS]);

#[derive(Debug)]
struct Kept {
    event: Arc<Event>,
    alike: Alike,
    frame: Bytes,
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

impl Default for Frames {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(None)))
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
        // Those of one moment lie side by side, and so do the forms of one.
        let at = event.revision.0.wrapping_mul(4) ^ (alike.form as u64) ^ (alike.encoding as u64);
        let slot = &self.0[usize::try_from(at).unwrap_or_default() % SLOTS];
        if let Some(kept) = &*slot.lock()
            && Arc::ptr_eq(&kept.event, event)
            && kept.alike == alike
        {
            return Ok(kept.frame.clone());
        }
        let frame = make()?;
        if frame.len() <= LONGEST {
            let kept = Kept { event: event.clone(), alike, frame: frame.clone() };
            let before = slot.lock().replace(kept);
            // Not under the lock: it may be the last who knows the event.
            drop(before);
        }
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use insula_partition::{snapshot::Entry, store::Revision};

    use super::*;
    use crate::error::ApiError;

    fn event(revision: u64) -> Arc<Event> {
        Arc::new(Event {
            revision: Revision(revision),
            key: "acme/ns/a".into(),
            entry: Entry { value: Bytes::new().into(), modified: Revision(revision) },
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
    fn long_ones_are_not_kept() {
        let (frames, it) = (Frames::default(), event(1));
        let added = Alike::new("ADDED", &Accept::JSON);
        let long = || Ok(vec![b'x'; LONGEST + 1].into());
        frames.of(&it, added, long).unwrap();
        assert!(frames.of(&it, added, || Ok("short".into())).unwrap() == "short");
        assert_eq!(Arc::strong_count(&it), 2, "kept once");
    }
}
