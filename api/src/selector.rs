//! Which objects are meant: label selectors and field selectors.
//!
//! A label selector comes as a text (`app=web,tier in (a,b)`) in queries or as an object
//! ([`LabelSelector`]) in specs; both become a [`Selector`], which matches. A field selector
//! ([`FieldSelector`]) comes as a text only.
//!
//! # Invariants
//!
//! * A `Selector` is valid: every key and value could be that of a label.
//! * An empty `Selector` matches everything. What the absence of a selector means is the caller's
//!   to say; mostly nothing.

mod fields;
mod labels;
mod text;

pub use self::{
    fields::{FieldSelector, FieldTerm},
    labels::{
        LabelSelector, LabelSelectorRequirement, Operator, Requirement, Selector, is_label_value,
        is_qualified_name,
    },
};

/// Most requirements of a selector in a query: each object is held against all of them.
const MOST: usize = 1000;

/// Why a selector is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text does not follow the grammar.
    #[error("unable to parse requirement: found '{found}', expected: {expected}")]
    Syntax { found: String, expected: &'static str },
    #[error(
        "key: Invalid value: {0:?}: name part must consist of alphanumeric characters, '-', '_' \
         or '.', and must start and end with an alphanumeric character, with an optional DNS \
         subdomain prefix and '/'"
    )]
    Key(String),
    #[error(
        "values: Invalid value: {value:?} of key {key:?}: a valid label must be an empty string or \
         consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
         alphanumeric character, and must be no more than 63 bytes"
    )]
    Value { key: String, value: String },
    #[error("values: Invalid value: {key:?}: for '{operator}' operators, {expected}")]
    Values { key: String, operator: Operator, expected: &'static str },
    #[error("{0:?} is not a valid label selector operator")]
    Operator(String),
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term { selector: String, term: String },
    #[error("selectors have at most {MOST} requirements")]
    TooMany,
    #[error("invalid field selector: invalid escape sequence in {0:?}")]
    Escape(String),
    /// The number of the character, as upstream shows it.
    #[error("invalid field selector: unescaped character in value: {0}")]
    Unescaped(u32),
}
