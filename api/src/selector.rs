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
    #[error("found '{found}'{comma} expected: {expected}")]
    Syntax { found: String, comma: &'static str, expected: &'static str },
    /// It is one of its requirements that does not.
    #[error("unable to parse requirement: {0}")]
    Requirement(#[source] Box<Self>),
    /// Upstream's path is that of the requirement in a list, if it is in one.
    #[error("<nil>: Invalid value: {key:?}: {why}")]
    Key { key: String, why: String },
    #[error("values[{index}][{key}]: Invalid value: {value:?}: {why}")]
    Value { key: String, index: usize, value: String, why: String },
    #[error("values{place}: Invalid value: {shown}: {why}")]
    Values { place: &'static str, shown: String, why: &'static str },
    #[error("{0:?} is not a valid label selector operator")]
    Operator(String),
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term { selector: String, term: String },
    #[error("selectors have at most {MOST} requirements")]
    TooMany,
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// The number of the character, as upstream shows it.
    #[error("invalid field selector: unescaped character in value: {0}")]
    Unescaped(u32),
}
