//! Whether watchers saw every version of every object once and in order.
//!
//! Writers count in the value: each version of an object says the version before plus one, which
//! the guard of the write makes true. So a watcher's notes can be checked without knowing what
//! else happened: within one watch the count of an object grows by one from event to event; after
//! a relist it goes on from what the list said, which is never less than what was seen before.

use std::{collections::BTreeMap, fmt};

/// A version of an object as a watcher saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// How many versions the object has had, over all its lives.
    pub count: u64,
    pub revision: u64,
}

/// What a watcher noted, in the order in which it saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A list, whole. What is not in it does not exist.
    Listed(BTreeMap<String, Version>),
    /// An event: the object's new version, or the last one it had, with the delete's revision.
    Event { key: String, version: Version, deleted: bool },
    /// The watch can be resumed from here.
    Bookmark,
    /// The watch was resumed from the last bookmark, or list: what came since comes again.
    Resumed,
}

/// Why a watcher's notes are wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which note, from 0.
    pub at: usize,
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "note {}: {}", self.at, self.what)
    }
}

impl std::error::Error for Broken {}

/// What a watcher knows of an object.
#[derive(Debug, Clone, Copy)]
struct Known {
    version: Version,
    live: bool,
}

/// Goes through one watcher's notes. Returns what it knew in the end: the live objects.
///
/// `counts_on` says whether an object that comes back after a delete goes on counting; without
/// it every life begins with 1, that of an object which no list has shown as well.
pub fn check(notes: &[Note], counts_on: bool) -> Result<BTreeMap<String, Version>, Broken> {
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    let mut marked = known.clone();
    // Before the first list nothing is known of what there was.
    let mut listed = false;
    for (at, note) in notes.iter().enumerate() {
        let broken = |what: String| Err(Broken { at, what });
        match note {
            Note::Bookmark => marked.clone_from(&known),
            Note::Resumed => known.clone_from(&marked),
            Note::Listed(objects) => {
                listed = true;
                for (key, seen) in objects {
                    let before = known.get(key).map(|it| it.version);
                    if let Some(before) = before
                        && (seen.revision < before.revision
                            || seen.revision == before.revision && seen.count != before.count)
                    {
                        return broken(format!(
                            "{key} went back from {before:?} to {seen:?} in a list"
                        ));
                    }
                    known.insert(key.clone(), Known { version: *seen, live: true });
                }
                for (key, it) in &mut known {
                    it.live = objects.contains_key(key);
                }
                marked.clone_from(&known);
            }
            Note::Event { key, version, deleted } => {
                let before = known.get(key).copied();
                if let Some(it) = before
                    && version.revision <= it.version.revision
                {
                    return broken(format!("{key} came again or late: {version:?} after {it:?}"));
                }
                match before {
                    Some(Known { version: last, live: true }) => {
                        // A delete carries the last version.
                        let expected = if *deleted { last.count } else { last.count + 1 };
                        if version.count != expected {
                            return broken(format!("{key} has a gap: {version:?} after {last:?}"));
                        }
                    }
                    _ if *deleted => {
                        return broken(format!("{key} was deleted without being there"));
                    }
                    Some(Known { version: last, live: false })
                        if counts_on && version.count != last.count + 1 =>
                    {
                        return broken(format!("{key} has a gap: {version:?} after {last:?}"));
                    }
                    Some(Known { live: false, .. }) | None
                        if !counts_on && listed && version.count != 1 =>
                    {
                        return broken(format!("{key} has a gap: {version:?} begins its life"));
                    }
                    _ => {}
                }
                known.insert(key.clone(), Known { version: *version, live: !*deleted });
            }
        }
    }
    let live = known.into_iter().filter(|(_, it)| it.live);
    Ok(live.map(|(key, it)| (key, it.version)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(objects: &[(&str, u64, u64)]) -> Note {
        let version = |(key, count, revision): &(&str, u64, u64)| {
            ((*key).to_owned(), Version { count: *count, revision: *revision })
        };
        Note::Listed(objects.iter().map(version).collect())
    }

    fn event(key: &str, count: u64, revision: u64) -> Note {
        Note::Event { key: key.into(), version: Version { count, revision }, deleted: false }
    }

    fn deleted(key: &str, count: u64, revision: u64) -> Note {
        Note::Event { key: key.into(), version: Version { count, revision }, deleted: true }
    }

    #[track_caller]
    fn bad(notes: &[Note], what: &str) {
        let broken = check(notes, false).unwrap_err();
        assert!(broken.to_string().contains(what), "{broken}");
    }

    #[test]
    fn a_life_is_followed() {
        let notes = [
            listed(&[("a", 3, 7)]),
            event("a", 4, 9),
            Note::Bookmark,
            event("b", 1, 10),
            Note::Resumed,
            event("b", 1, 10),
            deleted("a", 4, 11),
            event("a", 1, 12),
            listed(&[("a", 5, 20)]),
            event("a", 6, 21),
        ];
        let live = check(&notes, false).unwrap();
        assert_eq!(
            live.into_iter().collect::<Vec<_>>(),
            [("a".to_owned(), Version { count: 6, revision: 21 })]
        );
        assert!(check(&notes, true).unwrap_err().what.contains("gap"));
    }

    #[test]
    fn what_is_wrong_is_found() {
        bad(&[event("a", 1, 1), event("a", 3, 3)], "gap");
        bad(&[event("a", 1, 1), Note::Bookmark, Note::Resumed, event("a", 1, 1)], "again");
        bad(&[event("a", 1, 5), event("a", 2, 4)], "again or late");
        bad(&[deleted("a", 1, 5)], "without being there");
        bad(&[event("a", 1, 1), event("a", 2, 3), deleted("a", 1, 4)], "gap");
        bad(&[event("a", 1, 1), event("a", 2, 3), listed(&[("a", 1, 1)])], "went back");
        bad(&[listed(&[]), event("a", 2, 3)], "begins its life");
        bad(&[listed(&[("a", 1, 1)]), deleted("a", 1, 4), event("a", 2, 6)], "begins its life");
    }
}
