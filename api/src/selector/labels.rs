//! Label selectors: validation and matching.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{SelectorError, text};
use crate::{formats, names::is_dns1123_subdomain};

/// A label selector as specs hold it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_expressions: Option<Vec<LabelSelectorRequirement>>,
}

/// One expression of a [`LabelSelector`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelSelectorRequirement {
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<String>>,
}

impl LabelSelector {
    /// Checks the selector and makes it ready to match.
    pub fn compile(&self) -> Result<Selector, SelectorError> {
        let expressions = self.match_expressions.iter().flatten();
        Selector::from_parts(
            self.match_labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())),
            expressions.map(|it| {
                (it.key.as_str(), it.operator.as_str(), it.values.as_deref().unwrap_or_default())
            }),
        )
    }
}

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    Exists,
    DoesNotExist,
    /// The label is an integer above the value.
    GreaterThan,
    /// The label is an integer below the value.
    LessThan,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "in",
            Self::NotIn => "notin",
            Self::Exists => "exists",
            Self::DoesNotExist => "!",
            Self::GreaterThan => "gt",
            Self::LessThan => "lt",
        })
    }
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: BTreeSet<String>,
}

impl Requirement {
    /// Checks key, values and their number.
    pub fn new(
        key: &str,
        operator: Operator,
        values: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Self, SelectorError> {
        if !is_qualified_name(key) {
            let why = formats::qualified(key).join("; ");
            return Err(SelectorError::Key { key: key.to_owned(), why });
        }
        let values: BTreeSet<String> = values.into_iter().map(Into::into).collect();
        let wrong = |why| {
            let shown: Vec<String> = values.iter().map(|it| format!("{it:?}")).collect();
            Err(SelectorError::Values { place: "", shown: format!("[{}]", shown.join(",")), why })
        };
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return wrong("for 'in', 'notin' operators, values set can't be empty");
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                return wrong("values set must be empty for exists and does not exist");
            }
            Operator::GreaterThan | Operator::LessThan => {
                let mut values = values.iter();
                let (Some(value), None) = (values.next(), values.next()) else {
                    return wrong("for 'Gt', 'Lt' operators, exactly one value is required");
                };
                if value.parse::<i64>().is_err() {
                    let why = "for 'Gt', 'Lt' operators, the value must be an integer";
                    let shown = format!("{value:?}");
                    return Err(SelectorError::Values { place: "[0]", shown, why });
                }
            }
            _ => (),
        }
        match values.iter().enumerate().find(|(_, value)| !is_label_value(value)) {
            Some((index, value)) => {
                let why = formats::label_value(value).join("; ");
                let (key, value) = (key.to_owned(), value.clone());
                Err(SelectorError::Value { key, index, value, why })
            }
            None => Ok(Self { key: key.to_owned(), operator, values }),
        }
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn operator(&self) -> Operator {
        self.operator
    }

    pub fn values(&self) -> &BTreeSet<String> {
        &self.values
    }

    /// Whether a label with this value, or its absence, fulfils the requirement.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let compare = |greater: bool| {
            let number = value.and_then(|value| value.parse::<i64>().ok());
            let bound = self.values.first().and_then(|value| value.parse::<i64>().ok());
            matches!((number, bound), (Some(number), Some(bound))
                if if greater { bound < number } else { number < bound })
        };
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => compare(true),
            Operator::LessThan => compare(false),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut values = self.values.iter();
        let (first, second) = (values.next(), values.next());
        match (self.operator, first, second) {
            (Operator::Exists, ..) => f.write_str(&self.key),
            (Operator::DoesNotExist, ..) => write!(f, "!{}", self.key),
            (Operator::GreaterThan, Some(bound), _) => write!(f, "{}>{bound}", self.key),
            (Operator::LessThan, Some(bound), _) => write!(f, "{}<{bound}", self.key),
            (Operator::In, Some(value), None) => write!(f, "{}={value}", self.key),
            (Operator::NotIn, Some(value), None) => write!(f, "{}!={value}", self.key),
            _ => {
                let values: Vec<&str> = self.values.iter().map(String::as_str).collect();
                write!(f, "{} {} ({})", self.key, self.operator, values.join(","))
            }
        }
    }
}

/// Requirements that all must hold, in the order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

impl Selector {
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let mut requirements: Vec<Requirement> = requirements.into_iter().collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements }
    }

    /// Reads the form that queries use.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        text::parse(text).map(Self::new)
    }

    /// Builds from `matchLabels` and `matchExpressions`, wherever they are kept.
    pub fn from_parts<'a, V: AsRef<str> + 'a>(
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        expressions: impl IntoIterator<Item = (&'a str, &'a str, &'a [V])>,
    ) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in labels {
            requirements.push(Requirement::new(key, Operator::In, [value])?);
        }
        for (key, operator, values) in expressions {
            let operator = match operator {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(SelectorError::Operator(other.to_owned())),
            };
            let values = values.iter().map(|value| value.as_ref().to_owned());
            requirements.push(Requirement::new(key, operator, values)?);
        }
        Ok(Self::new(requirements))
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_by(|key| labels.get(key).map(String::as_str))
    }

    /// Matches labels that are kept in any other way.
    pub fn matches_by<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|it| it.matches(label(&it.key)))
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, requirement) in self.requirements.iter().enumerate() {
            if n != 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

/// Up to 63 alphanumeric characters, `-`, `_` or `.`, with alphanumeric ends; never empty.
fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alnum = |byte: &u8| byte.is_ascii_alphanumeric();
    bytes.len() <= 63
        && bytes.first().is_some_and(alnum)
        && bytes.last().is_some_and(alnum)
        && bytes.iter().all(|byte| alnum(byte) || b"-_.".contains(byte))
}

/// Whether `text` can be the value of a label.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name_part(text)
}

/// Whether `text` can be the key of a label or annotation: a name with an optional DNS prefix.
pub fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns1123_subdomain(prefix) && is_name_part(name),
        None => is_name_part(text),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        };
        text.split_whitespace().map(pair).collect()
    }

    #[track_caller]
    fn check(selector: &str, set: &str, expected: bool) {
        assert_eq!(
            Selector::parse(selector).unwrap().matches(&labels(set)),
            expected,
            "{selector:?} on {set:?}"
        );
    }

    #[test]
    fn there_are_only_so_many_requirements() {
        let many = |count: usize| vec!["a=b"; count].join(",");
        assert!(Selector::parse(&many(1000)).is_ok());
        assert_eq!(Selector::parse(&many(1001)), Err(SelectorError::TooMany));
        assert_eq!(crate::selector::FieldSelector::parse(&many(1001)), Err(SelectorError::TooMany));
    }

    #[test]
    fn matching() {
        check("", "x=y", true);
        check("x=y", "x=y", true);
        check("x=y,z=w", "x=y z=w", true);
        check("x=y,z=w", "x=y", false);
        check("x!=y", "x=z", true);
        check("x!=y", "", true);
        check("x", "x=", true);
        check("!x", "x=", false);
        check("!x", "", true);
        check("x in (a,b)", "x=b", true);
        check("x in (a,b)", "", false);
        check("x notin (a,b)", "x=c", true);
        check("x notin (a,b)", "", true);
        check("x=", "x=", true);
        check("x=", "", false);
        check("x>5", "x=6", true);
        check("x>5", "x=5", false);
        check("x<5", "x=4", true);
        check("x<5", "x=four", false);
        check("x<5", "", false);
    }

    #[test]
    fn selectors_in_specs() {
        let compile = |json: &str| serde_json::from_str::<LabelSelector>(json).unwrap().compile();
        let selector = compile(
            r#"{"matchLabels":{"b":"2"},"matchExpressions":[
                {"key":"a","operator":"In","values":["y","x"]},
                {"key":"c","operator":"Exists"},
                {"key":"d","operator":"DoesNotExist","values":null}]}"#,
        );
        let selector = selector.unwrap();
        assert_eq!(selector.to_string(), "a in (x,y),b=2,c,!d");
        assert!(selector.matches(&labels("a=x b=2 c=")));
        assert!(compile("{}").unwrap().is_empty());
        for wrong in [
            r#"{"matchLabels":{"a b":"2"}}"#,
            r#"{"matchLabels":{"a":"-"}}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"In"}]}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"Exists","values":["x"]}]}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"Gt","values":["1"]}]}"#,
        ] {
            assert!(compile(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names() {
        for good in ["a", "a.b/c", "kubernetes.io/hostname", "A_b-c.d", &"a".repeat(63)] {
            assert!(is_qualified_name(good), "{good:?}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "-a", "a-", "A.b/c", "ä", &"a".repeat(64)] {
            assert!(!is_qualified_name(bad), "{bad:?}");
        }
        assert!(is_label_value("") && is_label_value("a_b.c-D") && !is_label_value("a b"));
    }

    fn requirement() -> impl Strategy<Value = Requirement> {
        let key = "[a-c]";
        let values = proptest::collection::btree_set("[a-c]{0,1}", 1..3);
        let number = (-20_i64..20).prop_filter("no label begins with a sign", |n| *n >= 0);
        prop_oneof![
            (key, values.clone()).prop_map(|(key, it)| Requirement::new(&key, Operator::In, it)),
            (key, values).prop_map(|(key, it)| Requirement::new(&key, Operator::NotIn, it)),
            key.prop_map(|key| Requirement::new(&key, Operator::Exists, [""; 0])),
            key.prop_map(|key| Requirement::new(&key, Operator::DoesNotExist, [""; 0])),
            (key, number).prop_map(|(key, it)| {
                Requirement::new(&key, Operator::GreaterThan, [it.to_string()])
            }),
        ]
        .prop_map(|it| it.unwrap())
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(it in proptest::collection::vec(requirement(), 0..4)) {
            let selector = Selector::new(it);
            let again = Selector::parse(&selector.to_string()).unwrap();
            prop_assert_eq!(again, selector);
        }

        #[test]
        fn opposites_never_agree(
            key in "[a-c]",
            values in proptest::collection::btree_set("[a-c]", 1..3),
            set in proptest::collection::btree_map("[a-c]", "[a-c]", 0..4),
        ) {
            let matches = |operator| {
                Selector::new([Requirement::new(&key, operator, values.clone()).unwrap()]).matches(&set)
            };
            prop_assert_ne!(matches(Operator::In), matches(Operator::NotIn));
        }

        #[test]
        fn no_text_panics(text in "[a-c!=<>(), in]{0,20}|\\PC{0,20}") {
            let _ = Selector::parse(&text);
        }
    }
}
