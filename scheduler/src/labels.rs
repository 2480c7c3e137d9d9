//! The labels of all nodes as columns of numbers, and selectors over them.
//!
//! A key is a column, a value a number; a selector is compiled to numbers once per pod and then
//! is a comparison per node.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

/// No label of this key.
const ABSENT: u32 = 0;

/// The labels of all rows.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    columns: HashMap<String, Vec<u32>>,
    /// Only values that some node has or had are numbered, from 1.
    numbers: HashMap<String, u32>,
    values: Vec<String>,
}

impl Labels {
    /// Sets a row's labels. Returns whether they were others before.
    pub(crate) fn set(&mut self, row: usize, labels: &BTreeMap<String, String>) -> bool {
        let mut changed = false;
        for (key, column) in &mut self.columns {
            if let Some(cell) = column.get_mut(row)
                && *cell != ABSENT
                && !labels.contains_key(key)
            {
                *cell = ABSENT;
                changed = true;
            }
        }
        for (key, value) in labels {
            let number = self.number(value);
            let column = self.columns.entry(key.clone()).or_default();
            if column.len() <= row {
                column.resize(row + 1, ABSENT);
            }
            changed |= column[row] != number;
            column[row] = number;
        }
        changed
    }

    fn number(&mut self, value: &str) -> u32 {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        self.values.push(value.to_owned());
        // Values are as many as nodes have had labels: far from 2^32.
        let number = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        self.numbers.insert(value.to_owned(), number);
        number
    }

    fn column(&self, key: &str) -> &[u32] {
        self.columns.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// A condition that a label has this value.
    pub(crate) fn equals(&self, key: &str, value: &str) -> Condition<'_> {
        let numbers = self.numbers.get(value).copied().into_iter().collect();
        Condition { test: Test::In(numbers), column: self.column(key) }
    }

    fn condition(&self, requirement: &NodeSelectorRequirement) -> Condition<'_> {
        let values = requirement.values.as_deref().unwrap_or_default();
        let numbers = || values.iter().filter_map(|it| self.numbers.get(it).copied()).collect();
        let bound = || values.first().and_then(|value| value.parse::<i64>().ok());
        let test = match requirement.operator.as_str() {
            "In" => Test::In(numbers()),
            "NotIn" => Test::NotIn(numbers()),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::Absent,
            "Gt" => Test::Range(self.in_range(|value| bound().is_some_and(|it| it < value))),
            "Lt" => Test::Range(self.in_range(|value| bound().is_some_and(|it| value < it))),
            // The API server lets no other operator pass.
            _ => Test::In(BTreeSet::new()),
        };
        Condition { test, column: self.column(&requirement.key) }
    }

    /// The numbers of the values that are integers for which `test` holds.
    fn in_range(&self, test: impl Fn(i64) -> bool) -> BTreeSet<u32> {
        let matching =
            self.numbers.iter().filter(|(value, _)| value.parse::<i64>().is_ok_and(&test));
        matching.map(|(_, number)| *number).collect()
    }

    /// Compiles a term. An empty term matches nothing.
    pub(crate) fn term<'a>(&'a self, term: &'a NodeSelectorTerm) -> Term<'a> {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        Term {
            is_empty: expressions.is_empty() && fields.is_empty(),
            conditions: expressions.iter().map(|it| self.condition(it)).collect(),
            fields,
        }
    }
}

/// A condition on one label.
#[derive(Debug)]
pub(crate) struct Condition<'a> {
    column: &'a [u32],
    test: Test,
}

#[derive(Debug)]
enum Test {
    In(BTreeSet<u32>),
    NotIn(BTreeSet<u32>),
    Exists,
    Absent,
    Range(BTreeSet<u32>),
}

impl Condition<'_> {
    pub(crate) fn holds(&self, row: usize) -> bool {
        let number = self.column.get(row).copied().unwrap_or(ABSENT);
        match &self.test {
            Test::In(numbers) | Test::Range(numbers) => numbers.contains(&number),
            Test::NotIn(numbers) => !numbers.contains(&number),
            Test::Exists => number != ABSENT,
            Test::Absent => number == ABSENT,
        }
    }
}

/// Conditions that all must hold.
#[derive(Debug)]
pub(crate) struct Term<'a> {
    is_empty: bool,
    conditions: Vec<Condition<'a>>,
    fields: &'a [NodeSelectorRequirement],
}

impl Term<'_> {
    pub(crate) fn matches(&self, row: usize, name: &str) -> bool {
        !self.is_empty
            && self.conditions.iter().all(|it| it.holds(row))
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
        let rows: Vec<_> = (0..3).filter(|row| term.matches(*row, "n")).collect();
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
        assert!(labels.term(&by_name).matches(0, "n1"));
        assert!(!labels.term(&by_name).matches(0, "n2"));
        assert!(!labels.term(&NodeSelectorTerm::default()).matches(0, "n1"));
    }

    #[test]
    fn changes_are_told() {
        let mut it = three();
        assert!(!it.set(0, &labels("zone=a size=3")));
        assert!(it.set(0, &labels("zone=b size=3")));
        assert!(it.set(0, &labels("zone=b")));
        assert!(!it.equals("zone", "a").holds(0));
        assert!(it.equals("zone", "b").holds(0));
    }
}
