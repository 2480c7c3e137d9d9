//! `metadata.managedFields`: who manages which paths of an object.

mod text;

use std::borrow::Cow;

use serde_json::Value;

pub use text::ManagersError;

use super::{
    compare::Comparison,
    fields,
    place::{Form, Place, form},
    set::{Set, Step},
    versions::{Elsewhere, Held},
};

/// Most managers that an object remembers for its updates; older ones become one.
pub const MAX_UPDATERS: usize = 10;
/// The manager of what older ones did.
const ANCIENT: &str = "ancient-changes";

/// How a manager came to its paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Who writes, how, and through what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity<'a> {
    pub manager: Cow<'a, str>,
    pub operation: Operation,
    pub api_version: Cow<'a, str>,
    /// Empty for the object itself.
    pub subresource: Cow<'a, str>,
}

impl Identity<'_> {
    /// Whether both write as one manager. Whoever applies is one in all versions.
    pub(super) fn is(&self, other: &Identity<'_>) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }
}

/// As messages about conflicts name it.
impl std::fmt::Display for Identity<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.manager)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        match self.operation {
            Operation::Apply => Ok(()),
            Operation::Update => write!(f, " using {}", self.api_version),
        }
    }
}

/// One manager and its paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    pub identity: Identity<'a>,
    /// As RFC 3339, whole seconds.
    pub time: Option<Cow<'a, str>>,
    pub fields: Fields<'a>,
}

/// The paths of an [`Entry`]. Most writes look into few of the entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fields<'a> {
    /// As stored, and known to be readable.
    Text(&'a str),
    Set(Set<'a>),
}

impl<'a> Fields<'a> {
    pub fn set(&self) -> Cow<'_, Set<'a>> {
        match self {
            Self::Text(text) => Cow::Owned(fields::decode_own(text).unwrap_or_default()),
            Self::Set(set) => Cow::Borrowed(set),
        }
    }

    fn set_mut(&mut self) -> &mut Set<'a> {
        if let Self::Text(text) = self {
            *self = Self::Set(fields::decode_own(text).unwrap_or_default());
        }
        match self {
            Self::Set(set) => set,
            Self::Text(_) => unreachable!("just made a set"),
        }
    }

    fn take(&mut self) -> Set<'a> {
        std::mem::take(self.set_mut())
    }

    /// Whether some path may be in both. A first look that costs a search in a text.
    fn may_meet(&self, sets: &[&Set<'_>]) -> bool {
        match self {
            Self::Set(_) => true,
            Self::Text(text) => {
                sets.iter().flat_map(|set| &set.nodes).any(|node| match &node.step {
                    Step::Field(name) => text.contains(&format!("\"f:{name}\"")),
                    Step::Item(_) => true,
                })
            }
        }
    }
}

/// All managers of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Managers<'a> {
    entries: Vec<Entry<'a>>,
}

impl<'a> Managers<'a> {
    pub fn entries(&self) -> &[Entry<'a>] {
        &self.entries
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The same managers without their times, for telling whether a write changes anything.
    pub fn is_same_but_for_times(&self, other: &Managers<'_>) -> bool {
        let held = |it: &&Entry<'_>| !it.fields.set().is_empty();
        let count = |it: &Managers<'_>| it.entries.iter().filter(held).count();
        count(self) == count(other)
            && self.entries.iter().filter(held).all(|entry| {
                other.entries.iter().any(|it| {
                    it.identity == entry.identity && *it.fields.set() == *entry.fields.set()
                })
            })
    }

    /// The paths of one manager, and their version.
    pub fn of(&self, identity: &Identity<'_>) -> Option<(Set<'a>, Cow<'a, str>)> {
        let entry = &self.entries[self.position(identity)?];
        Some((entry.fields.set().into_owned(), entry.identity.api_version.clone()))
    }

    /// The versions of all entries but those of one.
    pub fn versions_but(&self, version: &str) -> Vec<String> {
        let mut versions: Vec<String> = Vec::new();
        for entry in &self.entries {
            let it = &*entry.identity.api_version;
            if it != version && !versions.iter().any(|seen| seen == it) {
                versions.push(it.to_owned());
            }
        }
        versions
    }

    fn position(&self, identity: &Identity<'_>) -> Option<usize> {
        self.entries.iter().position(|it| it.identity.is(identity))
    }

    /// Makes `set` all that a manager has; nothing if it is empty.
    pub(super) fn set(
        &mut self,
        identity: &Identity<'a>,
        set: Set<'a>,
        time: Option<Cow<'a, str>>,
    ) {
        if let Some(at) = self.position(identity) {
            self.entries.remove(at);
        }
        if !set.is_empty() {
            self.entries.push(Entry { identity: identity.clone(), time, fields: Fields::Set(set) });
        }
    }

    pub(super) fn time_of(&self, identity: &Identity<'_>) -> Option<Cow<'a, str>> {
        self.position(identity).and_then(|at| self.entries[at].time.clone())
    }

    /// The paths that some manager has, by version.
    pub(super) fn held(&self) -> Vec<Held<'a>> {
        let mut held: Vec<Held<'a>> = Vec::new();
        for entry in &self.entries {
            let version = &*entry.identity.api_version;
            let set = entry.fields.set().into_owned();
            match held.iter_mut().find(|it| it.version == version) {
                Some(it) => it.set = std::mem::take(&mut it.set).union(set),
                None => held.push(Held { version: version.to_owned(), set }),
            }
        }
        held
    }

    /// Takes the paths that changed from every manager: by `comparison` from those of `version`,
    /// and from others by what changed in theirs.
    pub(super) fn take(
        &mut self,
        version: &str,
        comparison: &Comparison<'_>,
        elsewhere: &[Elsewhere],
        except: Option<&Identity<'_>>,
    ) {
        for entry in &mut self.entries {
            if except.is_some_and(|it| it.is(&entry.identity)) {
                continue;
            }
            let its = &*entry.identity.api_version;
            let Comparison { added, modified, removed } = match its == version {
                true => comparison,
                false => match elsewhere.iter().find(|it| it.version == its) {
                    Some(it) => &it.comparison,
                    None => continue,
                },
            };
            let sets = [added, modified, removed];
            if entry.fields.may_meet(&sets) {
                let fields = entry.fields.set_mut();
                sets.iter().for_each(|set| fields.remove(set));
            }
        }
        self.entries.retain(|it| !matches!(&it.fields, Fields::Set(set) if set.is_empty()));
    }

    /// Drops the entries of versions that are no longer known.
    pub fn keep_versions(&mut self, is_known: impl Fn(&str) -> bool) {
        self.entries.retain(|it| is_known(&it.identity.api_version));
    }

    /// What was divided when it was written and is a whole now belongs to its manager as a whole.
    pub fn reconcile<P: Place>(&mut self, root: P, object: &Value) {
        for entry in &mut self.entries {
            let set = entry.fields.set_mut();
            reconcile(Some(root), Some(object), set);
        }
    }

    /// An update by `by` at `now` made the changes of `comparison`, which are `elsewhere` in the
    /// versions of other managers.
    pub fn update(
        &mut self,
        by: &Identity<'a>,
        comparison: Comparison<'a>,
        elsewhere: &[Elsewhere],
        now: &'a str,
    ) {
        self.take(&by.api_version, &comparison, elsewhere, None);
        let Comparison { added, modified, .. } = comparison;
        let set = added.union(modified);
        if !set.is_empty() {
            self.give(by, set, Some(Cow::Borrowed(now)));
        }
        self.cap();
    }

    /// Adds paths to those of a manager.
    fn give(&mut self, identity: &Identity<'a>, set: Set<'a>, time: Option<Cow<'a, str>>) {
        match self.position(identity) {
            Some(at) => {
                let entry = &mut self.entries[at];
                let had = entry.fields.take();
                entry.fields = Fields::Set(had.union(set));
                entry.time = time;
            }
            None => {
                let identity = identity.clone();
                self.entries.push(Entry { identity, time, fields: Fields::Set(set) });
            }
        }
    }

    /// The oldest updates of one version become one manager, while there are too many.
    fn cap(&mut self) {
        let updates = |it: &Entry<'_>| it.identity.operation == Operation::Update;
        let mut count = self.entries.iter().filter(|it| updates(it)).count();
        if count <= MAX_UPDATERS {
            return;
        }
        self.entries.sort_by(|one, two| order(one).cmp(&order(two)));
        let versions: Vec<Cow<'a, str>> = {
            let mut seen: Vec<Cow<'a, str>> = Vec::new();
            for it in self.entries.iter().filter(|it| updates(it)) {
                if !seen.contains(&it.identity.api_version) {
                    seen.push(it.identity.api_version.clone());
                }
            }
            seen
        };
        for version in versions {
            let bucket = Identity {
                manager: ANCIENT.into(),
                operation: Operation::Update,
                api_version: version.clone(),
                subresource: "".into(),
            };
            // The first of a version becomes the bucket, once there is a second to put in it.
            let mut first: Option<Entry<'a>> = None;
            let mut at = 0;
            while MAX_UPDATERS < count && at < self.entries.len() {
                let it = &self.entries[at];
                if !updates(it) || it.identity.api_version != version {
                    at += 1;
                    continue;
                }
                let mut it = self.entries.remove(at);
                match &mut first {
                    None => first = Some(it),
                    Some(kept) => {
                        let had = kept.fields.take();
                        kept.fields = Fields::Set(had.union(it.fields.take()));
                        kept.time = it.time;
                        kept.identity = bucket.clone();
                        count -= 1;
                    }
                }
            }
            if let Some(mut first) = first {
                // A bucket of an earlier time that did not come first has its paths in it too.
                if let Some(at) = self.position(&first.identity) {
                    let mut it = self.entries.remove(at);
                    let had = first.fields.take();
                    first.fields = Fields::Set(had.union(it.fields.take()));
                }
                self.entries.push(first);
            }
        }
    }
}

/// What the order of entries goes by.
fn order<'e>(it: &'e Entry<'_>) -> impl Ord + use<'e> {
    let id = &it.identity;
    (
        id.operation,
        // RFC 3339 in UTC with whole seconds sorts as text; no time comes first.
        it.time.as_deref(),
        id.manager.as_ref(),
        id.api_version.as_ref(),
        id.subresource.as_ref(),
    )
}

fn reconcile<P: Place>(place: Option<P>, value: Option<&Value>, set: &mut Set<'_>) {
    for node in &mut set.nodes {
        let inner = match &node.step {
            Step::Field(name) => place.and_then(|it| it.member(name)).map(|it| it.place),
            Step::Item(_) => place.map(Place::item),
        };
        let value = match &node.step {
            Step::Field(name) => value.and_then(|it| it.get(name.as_ref())),
            Step::Item(_) => None,
        };
        let Some(place) = inner else { continue };
        let whole = match value {
            Some(value) => form(place, value) == Form::Leaf,
            None => place.division() == super::place::Division::Whole,
        };
        if whole && !node.below.is_empty() {
            node.below = Set::EMPTY;
            node.owned = true;
        } else {
            reconcile(Some(place), value, &mut node.below);
        }
    }
}

#[cfg(test)]
mod tests;
