//! The words of a row of `api/tables/rules.tsv`, and what each asks of a value.

use std::collections::HashSet;

use insula_api::{field::FieldError, quantity::Quantity};
use insula_custom::path::Path;
use serde_json::{Map, Value};

use super::formats::Format;

/// One thing that a value must be.
#[derive(Debug, Clone)]
enum Rule {
    Required,
    Format(Format),
    OneOf(Vec<&'static str>),
    /// At least zero, above zero, or between two numbers.
    Nonnegative,
    Positive,
    Range(i64, i64),
    /// A port, or the name of one.
    PortOrName,
    /// Items of a list differ in this field.
    Unique(&'static str),
    /// Items of a list of scalars differ.
    Distinct,
    MaxItems(usize),
    MaxLength(usize),
    /// Keys of a map look so.
    Keys(Format),
    /// Amounts of a map are at least zero.
    Amounts,
    /// `*` in a list stands alone.
    Alone,
    /// Items of a list are of these, unless `*` stands for all. What is told shows the list.
    Within(Vec<&'static str>),
    /// A count, or a part in percent.
    CountOrPercent,
    /// A part in percent is not more than the whole.
    AtMostAll,
    /// A set of labels.
    Labels,
    /// Who makes volumes, in whatever case.
    Provisioner,
    Quantity,
}

/// A rule of a field, as its row has it.
#[derive(Debug, Clone)]
pub(super) struct Ruled {
    rule: Rule,
    /// What is said instead of the rule's own words.
    words: Option<&'static str>,
    /// What is not set is checked as well, as the empty text.
    is_for_nothing: bool,
    /// It is of items, and what is found is told of the whole list.
    pub(super) is_of_list: bool,
}

impl Ruled {
    pub(super) fn parse(
        word: &'static str,
        words: Option<&'static str>,
        is_of_list: bool,
    ) -> Option<Self> {
        let (word, is_for_nothing) = match word.strip_prefix('=') {
            Some(word) => (word, true),
            None => (word, false),
        };
        Some(Self { rule: parse(word)?, words, is_for_nothing, is_of_list })
    }
}

fn parse(word: &'static str) -> Option<Rule> {
    let (name, argument) = word.split_once(':').unwrap_or((word, ""));
    Some(match name {
        "required" => Rule::Required,
        "enum" => Rule::OneOf(argument.split('|').collect()),
        "nonnegative" => Rule::Nonnegative,
        "positive" => Rule::Positive,
        "range" => {
            let (from, to) = argument.split_once("..")?;
            Rule::Range(from.parse().ok()?, to.parse().ok()?)
        }
        "port" => Rule::Range(1, 65535),
        "port-or-name" => Rule::PortOrName,
        "unique" => Rule::Unique(argument),
        "distinct" => Rule::Distinct,
        "max-items" => Rule::MaxItems(argument.parse().ok()?),
        "max-length" => Rule::MaxLength(argument.parse().ok()?),
        "keys" => Rule::Keys(Format::parse(argument)?),
        "amounts" => Rule::Amounts,
        "alone" => Rule::Alone,
        "within" => Rule::Within(argument.split('|').collect()),
        "count-or-percent" => Rule::CountOrPercent,
        "at-most-all" => Rule::AtMostAll,
        "labels" => Rule::Labels,
        "provisioner" => Rule::Provisioner,
        "quantity" => Rule::Quantity,
        _ => Rule::Format(Format::parse(name)?),
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Checks a value against a rule.
pub(super) fn apply(
    ruled: &Ruled,
    value: Option<&Value>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    let nothing = Value::String(String::new());
    let words = ruled.words;
    let value = match (&ruled.rule, value.filter(|it| !is_empty(it))) {
        (Rule::Required, None) => {
            let why = words.unwrap_or_default();
            return errors.push(FieldError::required(path.to_string(), why));
        }
        (_, Some(value)) => value,
        (_, None) if ruled.is_for_nothing => &nothing,
        _ => return,
    };
    let mut invalid = |why: &str| {
        errors.push(FieldError::invalid(path.to_string(), value, words.unwrap_or(why)));
    };
    match &ruled.rule {
        Rule::Required => (),
        Rule::Format(format) => {
            format.check(value.as_str().unwrap_or_default()).iter().for_each(|why| invalid(why));
        }
        Rule::OneOf(allowed) => {
            if !allowed.contains(&value.as_str().unwrap_or_default()) {
                errors.push(FieldError::unsupported(path.to_string(), value, allowed));
            }
        }
        Rule::Nonnegative => {
            if value.as_i64().is_some_and(|it| it < 0) {
                invalid(NEGATIVE);
            }
        }
        Rule::Positive => {
            if value.as_i64().is_some_and(|it| it <= 0) {
                invalid("must be greater than 0");
            }
        }
        Rule::Range(from, to) => {
            if value.as_i64().is_some_and(|it| !(*from..=*to).contains(&it)) {
                invalid(&format!("must be between {from} and {to}, inclusive"));
            }
        }
        Rule::PortOrName => match (value.as_i64(), value.as_str()) {
            (Some(1..=65535), _) | (None, None) => (),
            (Some(_), _) => invalid("must be between 1 and 65535, inclusive"),
            (_, Some(name)) => Format::PortName.check(name).iter().for_each(|why| invalid(why)),
        },
        Rule::Unique(key) => {
            let mut seen = HashSet::new();
            for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                let Some(found) = item.get(*key).filter(|it| !is_empty(it)) else { continue };
                if !seen.insert(found.to_string()) {
                    let at = format!("{path}[{index}].{key}");
                    errors.push(FieldError::duplicate(at, found));
                }
            }
        }
        Rule::Distinct => {
            let mut seen = HashSet::new();
            for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                if !seen.insert(item.to_string()) {
                    errors.push(FieldError::duplicate(format!("{path}[{index}]"), item));
                }
            }
        }
        Rule::MaxItems(limit) => {
            let n_items = value.as_array().map_or(0, Vec::len);
            if *limit < n_items {
                errors.push(FieldError::too_many(path.to_string(), n_items, *limit));
            }
        }
        Rule::MaxLength(limit) => {
            if value.as_str().is_some_and(|it| *limit < it.len()) {
                errors.push(FieldError::too_long(path.to_string(), *limit));
            }
        }
        Rule::Keys(format) => {
            for key in value.as_object().into_iter().flat_map(Map::keys) {
                for why in format.check(key) {
                    let at = format!("{path}[{key}]");
                    errors.push(FieldError::invalid(at, &key.as_str().into(), &why));
                }
            }
        }
        Rule::Amounts => {
            for (name, amount) in value.as_object().into_iter().flatten() {
                if quantity(amount).is_some_and(|it| it.is_negative()) {
                    let at = format!("{path}[{name}]");
                    errors.push(FieldError::invalid(at, amount, NEGATIVE));
                }
            }
        }
        Rule::Alone => {
            if has_all(value) && value.as_array().is_some_and(|it| 1 < it.len()) {
                invalid("");
            }
        }
        Rule::Within(allowed) => {
            let known = |it: &Value| allowed.contains(&it.as_str().unwrap_or_default());
            let is_known = value.as_array().is_none_or(|it| it.iter().all(known));
            if !is_known && !has_all(value) {
                errors.push(FieldError::unsupported(path.to_string(), value, allowed));
            }
        }
        Rule::Quantity => {
            if quantity(value).is_some_and(|it| it.is_negative()) {
                invalid(NEGATIVE);
            }
        }
        Rule::CountOrPercent => match value.as_str() {
            Some(text) => Format::Percent.check(text).iter().for_each(|why| invalid(why)),
            None if value.as_i64().is_some_and(|it| it < 0) => invalid(NEGATIVE),
            None => (),
        },
        Rule::AtMostAll => {
            let percent = value.as_str().and_then(|it| it.strip_suffix('%')?.parse().ok());
            if percent.is_some_and(|it: u64| 100 < it) {
                invalid("must not be greater than 100%");
            }
        }
        Rule::Labels => labels(value, &path.to_string(), errors),
        Rule::Provisioner => {
            let name = value.as_str().unwrap_or_default().to_lowercase();
            for why in Format::Qualified.check(&name) {
                errors.push(FieldError::invalid(path.to_string(), &name.as_str().into(), &why));
            }
        }
    }
}

/// Whether a list has the item that stands for all.
fn has_all(list: &Value) -> bool {
    list.as_array().is_some_and(|it| it.iter().any(|it| it == "*"))
}

pub(super) const NEGATIVE: &str = "must be greater than or equal to 0";

pub(super) fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::parse(value.as_str()?).ok()
}

/// What is wrong with a set of labels.
pub(super) fn labels(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        for why in Format::Qualified.check(key) {
            errors.push(FieldError::invalid(path, &key.as_str().into(), &why));
        }
        for why in Format::LabelValue.check(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(path, value, &why));
        }
    }
}
