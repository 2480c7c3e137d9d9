//! Field selectors: `status.phase=Running,metadata.name!=a`.
//!
//! Which fields a resource offers is not known here.

use std::{borrow::Cow, fmt, str::FromStr};

use super::SelectorError;

/// One comparison of one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: String,
    pub negated: bool,
    pub value: String,
}

/// Comparisons that all must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Reads the form that queries use. `\` escapes `\`, `,` and `=` in values.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            if super::MOST <= terms.len() {
                return Err(SelectorError::TooMany);
            }
            let (field, negated, value) = split_term(term).ok_or_else(|| SelectorError::Term {
                selector: text.to_owned(),
                term: term.to_owned(),
            })?;
            terms.push(FieldTerm { field: field.to_owned(), negated, value: unescape(value)? });
        }
        Ok(Self { terms })
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether all terms hold; one that is absent is empty.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Cow<'a, str>) -> bool {
        self.terms.iter().all(|term| (field(&term.field) == term.value) != term.negated)
    }

    /// The one value that `field` must have, if there is one.
    pub fn required(&self, field: &str) -> Option<&str> {
        let is_it = |term: &&FieldTerm| term.field == field && !term.negated;
        self.terms.iter().find(is_it).map(|term| term.value.as_str())
    }
}

impl FromStr for FieldSelector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, term) in self.terms.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let operator = if term.negated { "!=" } else { "=" };
            write!(f, "{comma}{}{operator}", term.field)?;
            for c in term.value.chars() {
                if matches!(c, '\\' | ',' | '=') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// Cuts at commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut begin = 0;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => (),
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// Splits at the first operator: field, whether negated, escaped value.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find('=')?;
    let (before, after) = (&term[..at], &term[at + 1..]);
    match before.strip_suffix('!') {
        Some(field) => Some((field, true, after)),
        None => Some((before, false, after.strip_prefix('=').unwrap_or(after))),
    }
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => plain.push(c),
                other => {
                    let sequence = std::iter::once('\\').chain(other).collect();
                    return Err(SelectorError::Escape(sequence));
                }
            },
            // An operator within a value is a mistake more likely than a value.
            '=' => return Err(SelectorError::Unescaped('='.into())),
            c => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, bool, &str)]) {
        let selector = FieldSelector::parse(text).unwrap();
        let terms: Vec<_> = selector
            .terms
            .iter()
            .map(|it| (it.field.as_str(), it.negated, it.value.as_str()))
            .collect();
        assert_eq!(terms, expected, "{text:?}");
    }

    #[test]
    fn grammar() {
        check("", &[]);
        check("a=b", &[("a", false, "b")]);
        check("a==b,c!=d", &[("a", false, "b"), ("c", true, "d")]);
        check("a=,,b!=", &[("a", false, ""), ("b", true, "")]);
        check(r"a=x\,y\=z\\", &[("a", false, r"x,y=z\")]);
        for wrong in ["a", "a,b=c", r"a=\x", r"a=b\", "a=b=c", "a<b"] {
            assert!(FieldSelector::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn matching() {
        let selector = FieldSelector::parse("spec.nodeName=n1,status.phase!=Failed").unwrap();
        let check = |node: &str, phase: &str| {
            selector.matches(|field| match field {
                "spec.nodeName" => Cow::Borrowed(node),
                "status.phase" => Cow::Borrowed(phase),
                _ => Cow::default(),
            })
        };
        assert!(check("n1", "Running"));
        assert!(check("n1", ""));
        assert!(!check("n1", "Failed"));
        assert!(!check("", "Running"));
        assert_eq!(selector.required("spec.nodeName"), Some("n1"));
        assert_eq!(selector.required("status.phase"), None);
    }

    proptest! {
        #[test]
        fn any_value_survives(value in "\\PC{0,20}", negated: bool) {
            let term = FieldTerm { field: "metadata.name".into(), negated, value };
            let selector = FieldSelector { terms: vec![term] };
            let again = FieldSelector::parse(&selector.to_string()).unwrap();
            prop_assert_eq!(again, selector);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = FieldSelector::parse(&text);
        }
    }
}
