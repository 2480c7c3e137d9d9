//! Raising an etcd's revisions: by how much a partition's are higher than its etcd's.
//!
//! An etcd's counter cannot be set, but what moves into a partition must get revisions that are
//! higher than those it had. So revisions here are etcd's plus an offset, which only grows:
//!
//! ```text
//! <prefix>.offsets   {"before":[{"from":0,"offset":0}],"offset":100000}
//! ```
//!
//! The newest offset counts from the revision at which this very key was written, which no writer
//! knows in advance; the next writer writes it down under `before`. The watch delivers the key in
//! its place among the changes, so everybody converts each revision in the same way.

use serde::{Deserialize, Serialize};

use crate::store::Revision;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Offsets {
    /// Ascending in both.
    steps: Vec<Step>,
    /// The key's own revision in etcd; 0 if it is not there.
    pub(super) written: i64,
}

/// From etcd's revision `from` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    from: u64,
    offset: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    before: Vec<Step>,
    offset: u64,
}

/// The stored offsets make no sense.
#[derive(Debug, thiserror::Error)]
#[error("the offsets of the partition's revisions are damaged")]
pub(super) struct Damaged;

impl Offsets {
    /// Reads the key's value, written at etcd's revision `written`.
    pub(super) fn parse(value: &[u8], written: i64) -> Result<Self, Damaged> {
        let Stored { before: mut steps, offset } =
            serde_json::from_slice(value).map_err(|_| Damaged)?;
        steps.push(Step { from: written.unsigned_abs(), offset });
        let grows = |pair: &[Step]| pair[0].from < pair[1].from && pair[0].offset <= pair[1].offset;
        if steps.windows(2).all(grows) { Ok(Self { steps, written }) } else { Err(Damaged) }
    }

    /// What to write so that the next revision is higher than `above`, if the etcd is at `now`.
    pub(super) fn raised(&self, above: Revision, now: u64) -> Vec<u8> {
        let offset = above.0.saturating_sub(now).max(self.offset_at(u64::MAX));
        let stored = Stored { before: self.steps.clone(), offset };
        // Numbers always have a JSON form.
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    fn offset_at(&self, etcd: u64) -> u64 {
        let step = self.steps.iter().rev().find(|step| step.from <= etcd);
        step.map_or(0, |step| step.offset)
    }

    /// The partition's revision for etcd's.
    pub(super) fn shown(&self, etcd: i64) -> Revision {
        let etcd = etcd.unsigned_abs();
        Revision(etcd + self.offset_at(etcd))
    }

    /// Etcd's revision for the partition's; `None` for those that were left out.
    pub(super) fn etcd(&self, shown: Revision) -> Option<i64> {
        let etcd = self.etcd_below(shown);
        (self.shown(etcd) == shown).then_some(etcd)
    }

    /// Etcd's newest revision that is shown as `shown` or lower.
    pub(super) fn etcd_below(&self, shown: Revision) -> i64 {
        let mut end = u64::MAX;
        for step in self.steps.iter().rev() {
            if step.from + step.offset <= shown.0 {
                return i64::try_from((shown.0 - step.offset).min(end)).unwrap_or(i64::MAX);
            }
            end = step.from.saturating_sub(1);
        }
        i64::try_from(shown.0.min(end)).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However often revisions are raised: all are apart, they grow, and lead back.
        #[test]
        fn revisions_grow_and_lead_back(raises in prop::collection::vec((1_u64..50, 0_u64..500), 0..8)) {
            let mut offsets = Offsets::default();
            let mut now = 0;
            let mut shown = vec![Revision(0)];
            for (writes, above) in raises {
                for _ in 0..writes {
                    now += 1;
                    shown.push(offsets.shown(now));
                }
                let above = Revision(shown.last().unwrap().0 + above);
                let value = offsets.raised(above, now.unsigned_abs());
                now += 1;
                offsets = Offsets::parse(&value, now).unwrap();
                prop_assert!(above < offsets.shown(now));
                shown.push(offsets.shown(now));
            }
            prop_assert!(shown.windows(2).all(|pair| pair[0] < pair[1]));
            for (etcd, shown) in (0..).zip(&shown) {
                prop_assert_eq!(offsets.shown(etcd), *shown);
                prop_assert_eq!(offsets.etcd(*shown), Some(etcd));
            }
            for between in 0..shown.last().unwrap().0 {
                let below = offsets.etcd_below(Revision(between));
                prop_assert!(offsets.shown(below) <= Revision(between));
                prop_assert!(Revision(between) < offsets.shown(below + 1));
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for value in ["", "{}", r#"{"before":[{"from":9,"offset":9}],"offset":3}"#] {
            assert!(Offsets::parse(value.as_bytes(), 20).is_err(), "{value}");
        }
        let stored = r#"{"before":[{"from":9,"offset":9}],"offset":30}"#;
        assert!(Offsets::parse(stored.as_bytes(), 9).is_err());
    }
}
