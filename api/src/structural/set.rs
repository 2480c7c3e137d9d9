//! Sets of paths in an object.
//!
//! A set is a tree: each node is a step from its parent, and says whether the path that ends
//! there is in the set. Steps of one node are sorted and unique, so every operation on two sets
//! is one walk over both. Steps borrow from the object or the text that they came from.
//!
//! # Invariants
//!
//! * Nodes are sorted by step, without repetition.
//! * No node is there for nothing: it is owned or has something below it.

use std::{borrow::Cow, cmp::Ordering, fmt};

use serde_json::{Map, Value};

use super::place::Place;

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step<'a> {
    /// A field of a structure or an entry of a map.
    Field(Cow<'a, str>),
    /// An item of a list, as `FieldsV1` has it: `k:{"name":"a"}`, `v:"x"` or `i:0`. The JSON in
    /// it is canonical: no spaces, names in order.
    Item(Cow<'a, str>),
}

impl<'a> Step<'a> {
    pub fn field(name: &'a str) -> Self {
        Self::Field(Cow::Borrowed(name))
    }

    /// An item of a list that is not divided.
    pub fn index(index: usize) -> Self {
        Self::Item(Cow::Owned(format!("i:{index}")))
    }

    fn into_owned(self) -> Step<'static> {
        match self {
            Self::Field(name) => Step::Field(Cow::Owned(name.into_owned())),
            Self::Item(text) => Step::Item(Cow::Owned(text.into_owned())),
        }
    }
}

/// As messages show it: `.spec`, `[name="a"]`, `[="x"]`, `[0]`.
impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Item(text) => match text.split_once(':') {
                Some(("k", json)) => {
                    let fields: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
                    let parts: Vec<String> =
                        fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
                    write!(f, "[{}]", parts.join(","))
                }
                Some(("v", json)) => write!(f, "[={json}]"),
                Some((_, rest)) => write!(f, "[{rest}]"),
                None => write!(f, "[{text}]"),
            },
        }
    }
}

/// A node of a [`Set`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<'a> {
    pub(super) step: Step<'a>,
    /// The path that ends here is in the set.
    pub(super) owned: bool,
    pub(super) below: Set<'a>,
}

impl Node<'_> {
    fn is_for_nothing(&self) -> bool {
        !self.owned && self.below.is_empty()
    }
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set<'a> {
    pub(super) nodes: Vec<Node<'a>>,
}

impl<'a> Set<'a> {
    pub const EMPTY: Self = Self { nodes: Vec::new() };

    /// The set of paths of fields.
    pub fn of_fields(paths: &[&[&'a str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let steps: Vec<Step<'a>> = path.iter().map(|name| Step::field(name)).collect();
            set.insert(&steps);
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many paths are in the set.
    pub fn len(&self) -> usize {
        self.nodes.iter().map(|node| usize::from(node.owned) + node.below.len()).sum()
    }

    fn find(&self, step: &Step<'_>) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| node.step.cmp(step))
    }

    pub(super) fn node(&self, step: &Step<'_>) -> Option<&Node<'a>> {
        self.nodes.get(self.find(step).ok()?)
    }

    /// Whether the path is in the set.
    pub fn has(&self, path: &[Step<'_>]) -> bool {
        let Some((last, before)) = path.split_last() else { return false };
        let inner = before.iter().try_fold(self, |set, step| Some(&set.node(step)?.below));
        inner.and_then(|set| set.node(last)).is_some_and(|node| node.owned)
    }

    /// Adds a path; the empty path is nothing.
    pub fn insert(&mut self, path: &[Step<'a>]) {
        let Some((first, rest)) = path.split_first() else { return };
        let at = match self.find(first) {
            Ok(at) => at,
            Err(at) => {
                let node = Node { step: first.clone(), owned: false, below: Self::default() };
                self.nodes.insert(at, node);
                at
            }
        };
        let node = &mut self.nodes[at];
        if rest.is_empty() {
            node.owned = true;
        } else {
            node.below.insert(rest);
        }
    }

    /// A node as the last one: its step must be greater than all before.
    pub(super) fn push(&mut self, step: Step<'a>, owned: bool, below: Set<'a>) {
        if owned || !below.is_empty() {
            self.nodes.push(Node { step, owned, below });
        }
    }

    /// Restores the order after pushes in any order; nodes of one step become one.
    pub(super) fn settle(&mut self) {
        if self.nodes.is_sorted_by(|one, two| one.step < two.step) {
            return;
        }
        self.nodes.sort_by(|one, two| one.step.cmp(&two.step));
        self.nodes.dedup_by(|later, kept| {
            let same = later.step == kept.step;
            if same {
                kept.owned |= later.owned;
                let (one, two) =
                    (std::mem::take(&mut kept.below), std::mem::take(&mut later.below));
                kept.below = one.union(two);
            }
            same
        });
    }

    /// What is in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let mut nodes = Vec::with_capacity(self.nodes.len().max(other.nodes.len()));
        let (mut left, mut right) =
            (self.nodes.into_iter().peekable(), other.nodes.into_iter().peekable());
        loop {
            let order = match (left.peek(), right.peek()) {
                (Some(one), Some(two)) => one.step.cmp(&two.step),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            match order {
                Ordering::Less => nodes.extend(left.next()),
                Ordering::Greater => nodes.extend(right.next()),
                Ordering::Equal => {
                    if let (Some(one), Some(two)) = (left.next(), right.next()) {
                        nodes.push(Node {
                            step: one.step,
                            owned: one.owned || two.owned,
                            below: one.below.union(two.below),
                        });
                    }
                }
            }
        }
        Self { nodes }
    }

    /// Keeps what `keep` makes of each node and the node of the same step in `other`.
    fn walk(&mut self, other: &Set<'_>, keep: fn(&mut Node<'a>, Option<&Node<'_>>)) {
        let mut others = other.nodes.iter().peekable();
        self.nodes.retain_mut(|node| {
            while others.next_if(|it| it.step < node.step).is_some() {}
            let same = others.peek().filter(|it| it.step == node.step);
            keep(node, same.copied());
            !node.is_for_nothing()
        });
    }

    /// Takes the paths of `other` out, but not what lies below them.
    pub fn remove(&mut self, other: &Set<'_>) {
        if other.is_empty() {
            return;
        }
        self.walk(other, |node, other| {
            if let Some(other) = other {
                node.owned &= !other.owned;
                node.below.remove(&other.below);
            }
        });
    }

    /// Takes the paths of `other` out, with all that lies below them.
    pub fn remove_all_below(&mut self, other: &Set<'_>) {
        if other.is_empty() {
            return;
        }
        self.walk(other, |node, other| match other {
            Some(other) if other.owned => {
                node.owned = false;
                node.below = Set::EMPTY;
            }
            Some(other) => node.below.remove_all_below(&other.below),
            None => (),
        });
    }

    /// Keeps only the paths that are in `other` too.
    pub fn intersect(&mut self, other: &Set<'_>) {
        self.walk(other, |node, other| match other {
            Some(other) => {
                node.owned &= other.owned;
                node.below.intersect(&other.below);
            }
            None => {
                node.owned = false;
                node.below = Set::EMPTY;
            }
        });
    }

    /// Whether some path is in both.
    pub fn meets(&self, other: &Set<'_>) -> bool {
        let mut others = other.nodes.iter().peekable();
        self.nodes.iter().any(|node| {
            while others.next_if(|it| it.step < node.step).is_some() {}
            others.peek().is_some_and(|it| {
                it.step == node.step && ((node.owned && it.owned) || node.below.meets(&it.below))
            })
        })
    }

    /// Whether every path of this set is in `other` too.
    pub fn is_within(&self, other: &Set<'_>) -> bool {
        self.nodes.iter().all(|node| match other.node(&node.step) {
            Some(it) => (it.owned || !node.owned) && node.below.is_within(&it.below),
            None => false,
        })
    }

    /// Keeps only the paths that lead nowhere further.
    #[must_use]
    pub fn leaves(mut self) -> Self {
        for node in &mut self.nodes {
            node.below = std::mem::take(&mut node.below).leaves();
            node.owned &= node.below.is_empty();
        }
        self
    }

    /// Adds every field that the schema names on the way to a path. Sets leave them out, because
    /// nobody owns a structure; entries of maps and items of lists are owned.
    #[must_use]
    pub fn with_named<P: Place>(mut self, place: Option<P>) -> Self {
        for node in &mut self.nodes {
            let member = match (&node.step, place) {
                (Step::Field(name), Some(place)) => place.member(name),
                _ => None,
            };
            node.owned |= member.is_some_and(|it| it.named);
            let inner = match &node.step {
                Step::Field(_) => member.map(|it| it.place),
                Step::Item(_) => place.map(Place::item),
            };
            node.below = std::mem::take(&mut node.below).with_named(inner);
        }
        self
    }

    /// Calls `visit` with each path of the set, in order.
    pub fn each<'s>(&'s self, visit: &mut impl FnMut(&[&'s Step<'a>])) {
        fn walk<'s, 'a>(
            set: &'s Set<'a>,
            path: &mut Vec<&'s Step<'a>>,
            visit: &mut impl FnMut(&[&'s Step<'a>]),
        ) {
            for node in &set.nodes {
                path.push(&node.step);
                if node.owned {
                    visit(path);
                }
                walk(&node.below, path, visit);
                path.pop();
            }
        }
        walk(self, &mut Vec::new(), visit);
    }

    /// Each path as messages show it, in order.
    pub fn texts(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.each(&mut |path| out.push(path.iter().map(ToString::to_string).collect()));
        out
    }

    /// Borrows from nothing.
    pub fn into_owned(self) -> Set<'static> {
        let nodes = self.nodes.into_iter().map(|node| Node {
            step: node.step.into_owned(),
            owned: node.owned,
            below: node.below.into_owned(),
        });
        Set { nodes: nodes.collect() }
    }
}

#[cfg(test)]
mod tests;
