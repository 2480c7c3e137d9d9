//! The labels of all nodes as columns of numbers, and selectors over them.
//!
//! A key is a column, a value a number within it; a selector is compiled to numbers once per pod
//! and then is a comparison per node. Numbers that no node has any more are given out again, so
//! that names of nodes that come and go leave nothing behind.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

/// No label of this key.
pub(crate) const ABSENT: u32 = 0;

/// Names a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyId(usize);

/// One label of all rows.
#[derive(Debug, Default)]
struct Column {
    cells: Vec<u32>,
    numbers: HashMap<Arc<str>, u32>,
    /// By number, from 1: the value, and how many rows have it.
    values: Vec<(Arc<str>, u32)>,
    unused: Vec<u32>,
    /// Values that more than one row has.
    n_shared: usize,
}

impl Column {
    fn cell(&self, row: usize) -> u32 {
        self.cells.get(row).copied().unwrap_or(ABSENT)
    }

    fn set(&mut self, row: usize, number: u32) {
        if self.cells.len() <= row {
            self.cells.resize(row + 1, ABSENT);
        }
        let old = std::mem::replace(&mut self.cells[row], number);
        if number != ABSENT {
            let n_rows = &mut self.values[number as usize - 1].1;
            *n_rows += 1;
            self.n_shared += usize::from(*n_rows == 2);
        }
        if old != ABSENT {
            let (value, n_rows) = &mut self.values[old as usize - 1];
            *n_rows -= 1;
            self.n_shared -= usize::from(*n_rows == 1);
            if *n_rows == 0 {
                self.numbers.remove(value);
                self.unused.push(old);
            }
        }
    }

    /// A value's number, and whether it is new.
    fn number(&mut self, value: &str) -> (u32, bool) {
        if let Some(number) = self.numbers.get(value) {
            return (*number, false);
        }
        let value: Arc<str> = value.into();
        let number = match self.unused.pop() {
            Some(number) => {
                self.values[number as usize - 1] = (value.clone(), 0);
                number
            }
            None => {
                self.values.push((value.clone(), 0));
                // Values are as many as there are nodes, at most: far from 2^32.
                u32::try_from(self.values.len()).unwrap_or(u32::MAX)
            }
        };
        self.numbers.insert(value, number);
        (number, true)
    }
}

/// The labels of all rows.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    keys: HashMap<Arc<str>, KeyId>,
    columns: Vec<Column>,
    /// Grows whenever a number comes to mean something else, or it changes whether a label is of
    /// one row each; what was compiled before is void.
    version: u64,
}

impl Labels {
    /// Whether a row's labels are not these.
    pub(crate) fn differ(&self, row: usize, labels: &BTreeMap<String, String>) -> bool {
        let n_present = self.columns.iter().filter(|column| column.cell(row) != ABSENT).count();
        n_present != labels.len()
            || labels.iter().any(|(key, value)| {
                self.value(self.key(key), row) == ABSENT || self.text(key, row) != Some(value)
            })
    }

    fn text(&self, key: &str, row: usize) -> Option<&str> {
        let column = self.columns.get(self.key(key)?.0)?;
        let number = column.cell(row).checked_sub(1)?;
        column.values.get(number as usize).map(|(value, _)| &**value)
    }

    /// Sets a row's labels. Returns whether they were others before.
    pub(crate) fn set(&mut self, row: usize, labels: &BTreeMap<String, String>) -> bool {
        if !self.differ(row, labels) {
            return false;
        }
        for (key, value) in labels {
            let id = match self.keys.get(key.as_str()) {
                Some(id) => *id,
                None => {
                    let id = KeyId(self.columns.len());
                    self.columns.push(Column::default());
                    self.keys.insert(key.as_str().into(), id);
                    self.version += 1;
                    id
                }
            };
            let column = &mut self.columns[id.0];
            let (number, is_new) = column.number(value);
            let was_shared = column.n_shared != 0;
            column.set(row, number);
            self.version += u64::from(is_new || was_shared != (column.n_shared != 0));
        }
        for (key, id) in &self.keys {
            let column = &mut self.columns[id.0];
            if !labels.contains_key(&**key) && column.cell(row) != ABSENT {
                let was_shared = column.n_shared != 0;
                column.set(row, ABSENT);
                self.version += u64::from(was_shared != (column.n_shared != 0));
            }
        }
        true
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The column of a key, if any node has or had such a label.
    pub(crate) fn key(&self, key: &str) -> Option<KeyId> {
        self.keys.get(key).copied()
    }

    /// The number of a row's value; [`ABSENT`] if it has none.
    pub(crate) fn value(&self, key: Option<KeyId>, row: usize) -> u32 {
        key.and_then(|key| self.columns.get(key.0)).map_or(ABSENT, |column| column.cell(row))
    }

    /// Whether a row has such a label.
    pub(crate) fn has(&self, key: KeyId, row: usize) -> bool {
        self.value(Some(key), row) != ABSENT
    }

    /// How many values a label has.
    pub(crate) fn n_values(&self, key: KeyId) -> usize {
        self.columns.get(key.0).map_or(0, |it| it.numbers.len())
    }

    /// Whether no two rows have the same value of a label.
    pub(crate) fn is_of_one_row(&self, key: KeyId) -> bool {
        self.columns.get(key.0).is_none_or(|it| it.n_shared == 0)
    }

    /// A condition that a label has this value.
    pub(crate) fn equals(&self, key: &str, value: &str) -> Condition {
        let id = self.key(key);
        let numbers = id.and_then(|id| self.columns[id.0].numbers.get(value).copied());
        Condition { key: id, test: Test::In(numbers.into_iter().collect()) }
    }

    /// Compiles one requirement.
    pub(crate) fn requirement(&self, requirement: &NodeSelectorRequirement) -> Condition {
        let key = self.key(&requirement.key);
        let known = key.and_then(|id| self.columns.get(id.0)).map(|column| &column.numbers);
        let values = requirement.values.as_deref().unwrap_or_default();
        let numbers = || -> BTreeSet<u32> {
            let number = |value: &String| known?.get(value.as_str()).copied();
            values.iter().filter_map(number).collect()
        };
        let bound = || values.first().and_then(|value| value.parse::<i64>().ok());
        let in_range = |test: &dyn Fn(i64) -> bool| -> BTreeSet<u32> {
            let all = known.into_iter().flatten();
            let matching = all.filter(|(value, _)| value.parse::<i64>().is_ok_and(test));
            matching.map(|(_, number)| *number).collect()
        };
        let test = match requirement.operator.as_str() {
            "In" => Test::In(numbers()),
            "NotIn" => Test::NotIn(numbers()),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::Absent,
            "Gt" => Test::In(in_range(&|value| bound().is_some_and(|it| it < value))),
            "Lt" => Test::In(in_range(&|value| bound().is_some_and(|it| value < it))),
            // The API server lets no other operator pass.
            _ => Test::In(BTreeSet::new()),
        };
        Condition { key, test }
    }

    /// Compiles a term. An empty term matches nothing.
    pub(crate) fn term(&self, term: &NodeSelectorTerm) -> Term {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        Term {
            is_empty: expressions.is_empty() && fields.is_empty(),
            conditions: expressions.iter().map(|it| self.requirement(it)).collect(),
            fields: fields.to_vec(),
        }
    }
}

/// A condition on one label.
#[derive(Debug)]
pub(crate) struct Condition {
    key: Option<KeyId>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    In(BTreeSet<u32>),
    NotIn(BTreeSet<u32>),
    Exists,
    Absent,
}

impl Condition {
    pub(crate) fn holds(&self, labels: &Labels, row: usize) -> bool {
        let number = labels.value(self.key, row);
        match &self.test {
            Test::In(numbers) => numbers.contains(&number),
            Test::NotIn(numbers) => !numbers.contains(&number),
            Test::Exists => number != ABSENT,
            Test::Absent => number == ABSENT,
        }
    }
}

/// Conditions that all must hold.
#[derive(Debug)]
pub(crate) struct Term {
    is_empty: bool,
    conditions: Vec<Condition>,
    fields: Vec<NodeSelectorRequirement>,
}

impl Term {
    /// The labels that are read, each `None` if no node has it; and `None` if names are.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Option<Option<KeyId>>> + '_ {
        self.conditions.iter().map(|it| Some(it.key)).chain(self.fields.iter().map(|_| None))
    }

    pub(crate) fn matches(&self, labels: &Labels, row: usize, name: &str) -> bool {
        !self.is_empty
            && self.conditions.iter().all(|it| it.holds(labels, row))
            && self.fields.iter().all(|it| field_holds(it, name))
    }
}

/// `metadata.name` is the only field that nodes are selected by.
fn field_holds(requirement: &NodeSelectorRequirement, name: &str) -> bool {
    let is_named = requirement.values.iter().flatten().any(|it| it == name);
    match (requirement.key.as_str(), requirement.operator.as_str()) {
        ("metadata.name", "In") => is_named,
        ("metadata.name", "NotIn") => !is_named,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        };
        text.split_whitespace().map(pair).collect()
    }

    fn three() -> Labels {
        let mut it = Labels::default();
        it.set(0, &labels("zone=a size=3"));
        it.set(1, &labels("zone=b size=10"));
        it.set(2, &labels("size=big"));
        it
    }

    #[track_caller]
    fn check(key: &str, operator: &str, values: &[&str], expected: &[usize]) {
        let labels = three();
        let requirement = NodeSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: Some(values.iter().map(|it| (*it).to_owned()).collect()),
        };
        let term = NodeSelectorTerm {
            match_expressions: Some(vec![requirement]),
            ..NodeSelectorTerm::default()
        };
        let term = labels.term(&term);
        let rows: Vec<_> = (0..3).filter(|row| term.matches(&labels, *row, "n")).collect();
        assert_eq!(rows, expected, "{key} {operator} {values:?}");
    }

    #[test]
    fn operators() {
        check("zone", "In", &["a", "c"], &[0]);
        check("zone", "In", &["never"], &[]);
        check("zone", "NotIn", &["a"], &[1, 2]);
        check("zone", "Exists", &[], &[0, 1]);
        check("zone", "DoesNotExist", &[], &[2]);
        check("size", "Gt", &["5"], &[1]);
        check("size", "Lt", &["5"], &[0]);
        check("size", "Gt", &["junk"], &[]);
        check("absent", "NotIn", &["a"], &[0, 1, 2]);
        check("zone", "Unheard", &["a"], &[]);
    }

    #[test]
    fn names_are_fields_and_empty_terms_match_nothing() {
        let labels = three();
        let by_name = NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec!["n1".into()]),
            }]),
            ..NodeSelectorTerm::default()
        };
        assert!(labels.term(&by_name).matches(&labels, 0, "n1"));
        assert!(!labels.term(&by_name).matches(&labels, 0, "n2"));
        assert!(!labels.term(&NodeSelectorTerm::default()).matches(&labels, 0, "n1"));
    }

    #[test]
    fn changes_are_told() {
        let mut it = three();
        assert!(!it.set(0, &labels("zone=a size=3")));
        assert!(it.set(0, &labels("zone=b size=3")));
        assert!(it.set(0, &labels("zone=b")));
        assert!(!it.equals("zone", "a").holds(&it, 0));
        assert!(it.equals("zone", "b").holds(&it, 0));
    }

    #[test]
    fn numbers_that_nobody_has_are_given_out_again() {
        let mut it = Labels::default();
        for n in 0..100 {
            it.set(0, &labels(&format!("name=n{n}")));
        }
        assert!(it.columns[0].values.len() <= 2, "{:?}", it.columns[0].values);
        let key = it.key("name").unwrap();
        assert!(it.is_of_one_row(key));
        let before = it.version();
        it.set(1, &labels("name=n99"));
        assert!(!it.is_of_one_row(key) && before < it.version());
        let before = it.version();
        it.set(2, &labels("name=n99"));
        assert_eq!(it.version(), before, "a known value changes no meaning");
        it.set(2, &labels(""));
        it.set(0, &labels("name=n1"));
        assert!(it.is_of_one_row(key) && before < it.version());
    }
}
