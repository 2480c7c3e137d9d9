//! What changed between two objects, as sets of paths.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    extract::at_index,
    place::{Form, Misfit, Place, form, item_step},
    set::{Set, Step},
};

/// What is different in the newer of two objects. No path is in more than one of the sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison<'a> {
    pub added: Set<'a>,
    /// In both objects, with different values.
    pub modified: Set<'a>,
    pub removed: Set<'a>,
}

impl Comparison<'_> {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// Borrows from nothing.
    pub fn into_owned(self) -> Comparison<'static> {
        Comparison {
            added: self.added.into_owned(),
            modified: self.modified.into_owned(),
            removed: self.removed.into_owned(),
        }
    }
}

/// Compares two objects of one kind.
pub fn compare<'a, P: Place>(
    root: P,
    old: &'a Value,
    new: &'a Value,
) -> Result<Comparison<'a>, Misfit> {
    let node = node(root, Some(old), Some(new))?;
    Ok(node.below)
}

/// What is different at one path, and below it.
#[derive(Default)]
struct Difference<'a> {
    here: Option<Change>,
    below: Comparison<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Added,
    Modified,
    Removed,
}

impl<'a> Comparison<'a> {
    fn push(&mut self, step: Step<'a>, it: Difference<'a>) {
        let Difference { here, below } = it;
        // Mostly at most one of the three gets a node.
        for (set, change, below) in [
            (&mut self.added, Change::Added, below.added),
            (&mut self.modified, Change::Modified, below.modified),
            (&mut self.removed, Change::Removed, below.removed),
        ] {
            let owned = here == Some(change);
            if owned || !below.is_empty() {
                set.push(step.clone(), owned, below);
            }
        }
    }
}

fn node<'a, P: Place>(
    place: P,
    old: Option<&'a Value>,
    new: Option<&'a Value>,
) -> Result<Difference<'a>, Misfit> {
    let forms = [old, new].map(|it| it.map(|it| form(place, it)));
    match forms {
        [Some(one), Some(two)] if one != two => {
            // Something undivided became a map, or the other way round.
            let mut it = Difference { here: Some(Change::Modified), ..Difference::default() };
            it.below = map(place, old.and_then(Value::as_object), new.and_then(Value::as_object))?;
            Ok(it)
        }
        [Some(Form::Map), _] | [None, Some(Form::Map)] => {
            let maps = [old, new].map(|it| it.and_then(Value::as_object));
            if maps.iter().flatten().all(|it| it.is_empty()) {
                return Ok(leaf(old, new));
            }
            Ok(Difference { here: presence(old, new), below: map(place, maps[0], maps[1])? })
        }
        [Some(Form::List), _] | [None, Some(Form::List)] => {
            let lists = [old, new].map(|it| it.and_then(Value::as_array).map(Vec::as_slice));
            if lists.iter().flatten().all(|it| it.is_empty()) {
                return Ok(leaf(old, new));
            }
            let here = presence(old, new);
            if here.is_none() && lists[0] == lists[1] {
                return Ok(Difference::default());
            }
            let lists = lists.map(Option::unwrap_or_default);
            Ok(Difference { here, below: list(place, lists[0], lists[1])? })
        }
        _ => Ok(leaf(old, new)),
    }
}

fn presence(old: Option<&Value>, new: Option<&Value>) -> Option<Change> {
    match (old, new) {
        (None, _) => Some(Change::Added),
        (_, None) => Some(Change::Removed),
        _ => None,
    }
}

fn leaf<'a>(old: Option<&Value>, new: Option<&Value>) -> Difference<'a> {
    let changed = || (old != new).then_some(Change::Modified);
    Difference { here: presence(old, new).or_else(changed), ..Difference::default() }
}

fn map<'a, P: Place>(
    place: P,
    old: Option<&'a Map<String, Value>>,
    new: Option<&'a Map<String, Value>>,
) -> Result<Comparison<'a>, Misfit> {
    let mut out = Comparison::default();
    let mut left = old.into_iter().flatten().peekable();
    let mut right = new.into_iter().flatten().peekable();
    loop {
        let name = match (left.peek(), right.peek()) {
            (Some((one, _)), Some((two, _))) => *one.min(two),
            (Some((one, _)), None) => *one,
            (None, Some((two, _))) => *two,
            (None, None) => return Ok(out),
        };
        let old = left.next_if(|(it, _)| *it == name).map(|(_, value)| value);
        let new = right.next_if(|(it, _)| *it == name).map(|(_, value)| value);
        let step = Step::field(name);
        let member = super::extract::member(place, name, &step)?;
        let it = node(member.place, old, new).map_err(|error| error.below(&step))?;
        if it.here.is_some() || !it.below.is_empty() {
            out.push(step, it);
        }
    }
}

/// The items of one key in the older and the newer list.
#[derive(Default)]
struct Pair<'a> {
    old: Vec<&'a Value>,
    new: Vec<&'a Value>,
}

fn list<'a, P: Place>(
    place: P,
    old: &'a [Value],
    new: &'a [Value],
) -> Result<Comparison<'a>, Misfit> {
    let mut pairs: BTreeMap<Step<'static>, Pair<'a>> = BTreeMap::new();
    for (index, item) in old.iter().enumerate() {
        let step = item_step(place, item).map_err(|error| at_index(index, error))?;
        pairs.entry(step).or_default().old.push(item);
    }
    for (index, item) in new.iter().enumerate() {
        let step = item_step(place, item).map_err(|error| at_index(index, error))?;
        pairs.entry(step).or_default().new.push(item);
    }
    let item_place = place.item();
    let mut out = Comparison::default();
    for (step, Pair { old, new }) in pairs {
        let compared = |old: Option<&&'a Value>, new: Option<&&'a Value>| {
            node(item_place, old.copied(), new.copied()).map_err(|error| error.below(&step))
        };
        let it = match (old.len(), new.len()) {
            (..2, ..2) => compared(old.first(), new.first())?,
            // Items that share a key are one thing, which is as it was or not.
            (2.., 2..) => {
                let here = (old != new).then_some(Change::Modified);
                Difference { here, ..Difference::default() }
            }
            (2.., 0) => Difference { here: Some(Change::Removed), ..Difference::default() },
            (_, 2..) if old.is_empty() => {
                Difference { here: Some(Change::Added), ..Difference::default() }
            }
            // From many to one: the one is new, and the path stays.
            (2.., _) => compared(None, new.first())?,
            // From one to many: what the one had is gone, and the path stays.
            (_, _) => {
                let mut it = compared(old.first(), None)?;
                it.here = Some(Change::Added);
                it
            }
        };
        out.push(step, it);
    }
    Ok(out)
}
