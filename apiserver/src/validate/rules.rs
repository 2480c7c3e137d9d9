//! The table of what fields may hold, and the one walk that checks it.
//!
//! `api/tables/rules.tsv` says for a field of a type what it may hold; the walk goes through an
//! object along the type graph, and only where rules lie. What depends on several fields is a
//! function of the type that has them ([`super::CHECKS`]). See
//! `docs/decisions/0020-rules-as-data.md`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::LazyLock,
};

use insula_api::{
    field::FieldError,
    quantity::Quantity,
    schema::{Schema, Shape, TypeId},
};
use insula_custom::path::Path;
use serde_json::{Map, Value};

use super::{CHECKS, formats::Format};

const TABLE: &str = include_str!("../../../api/tables/rules.tsv");

/// A structure that is checked, with its place.
pub(super) struct At<'a> {
    pub it: &'a Value,
    pub path: &'a Path<'a>,
    pub errors: &'a mut Vec<FieldError>,
    /// How many findings there were before this structure's own.
    before: usize,
}

/// So many findings tell enough: nobody makes the server look for more.
const FINDINGS: usize = 1_000;

/// What is wrong between the fields of a structure.
pub(super) type Check = fn(&mut At<'_>);

impl<'a> At<'a> {
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.it.get(field).filter(|it| !it.is_null())
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    pub(super) fn text(&self, field: &str) -> &'a str {
        self.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn list(&self, field: &str) -> &'a [Value] {
        self.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    pub(super) fn number(&self, field: &str) -> Option<i64> {
        self.get(field).and_then(Value::as_i64)
    }

    /// The path of something below, as messages show it.
    pub(super) fn at(&self, below: &str) -> String {
        match (self.path.is_root(), below.starts_with('[')) {
            _ if below.is_empty() => self.path.to_string(),
            (true, _) => below.to_owned(),
            (false, true) => format!("{}{below}", self.path),
            (false, false) => format!("{}.{below}", self.path),
        }
    }

    /// Forgets what the table found wrong with something below, for one reason or for any.
    pub(super) fn take_back(&mut self, below: &str, reason: Option<&str>) {
        let at = self.at(below);
        let own = self.errors.split_off(self.before);
        let is_other =
            |it: &FieldError| it.field != at || reason.is_some_and(|why| it.reason != why);
        self.errors.extend(own.into_iter().filter(is_other));
    }

    pub(super) fn required(&mut self, below: &str, why: &str) {
        self.errors.push(FieldError::required(self.at(below), why));
    }

    pub(super) fn forbidden(&mut self, below: &str, why: &str) {
        self.errors.push(FieldError::forbidden(self.at(below), why));
    }

    pub(super) fn invalid(&mut self, below: &str, value: &Value, why: &str) {
        self.errors.push(FieldError::invalid(self.at(below), value, why));
    }

    pub(super) fn unsupported(&mut self, below: &str, value: &Value, allowed: &[&str]) {
        self.errors.push(FieldError::unsupported(self.at(below), value, allowed));
    }

    pub(super) fn duplicate(&mut self, below: &str, value: &Value) {
        self.errors.push(FieldError::duplicate(self.at(below), value));
    }

    /// Exactly one of several ways, each a field; `what` names them in messages.
    pub(super) fn one_of(&mut self, fields: &[&str], none: &str, more: &str) {
        let mut found = fields.iter().filter(|field| self.has(field));
        let first = found.next().is_some();
        let others: Vec<&str> = found.copied().collect();
        if !first {
            let path = self.path.to_string();
            self.errors.push(FieldError::required(path, none));
        }
        for field in others {
            self.forbidden(field, more);
        }
    }
}

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
    /// A count, or a part in percent.
    CountOrPercent,
    /// A set of labels.
    Labels,
    Quantity,
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
        "count-or-percent" => Rule::CountOrPercent,
        "labels" => Rule::Labels,
        "quantity" => Rule::Quantity,
        _ => Rule::Format(Format::parse(name)?),
    })
}

/// What is checked of a field.
#[derive(Debug, Default)]
struct Step {
    rules: Vec<Rule>,
    /// Of items of a list or values of a map.
    of_items: Vec<Rule>,
    /// The type below, if anything is checked there.
    below: Option<TypeId>,
}

/// What is checked of a type.
#[derive(Default)]
struct Plan {
    steps: Vec<(&'static str, Step)>,
    check: Option<Check>,
}

/// The plans of all types that have one.
static PLANS: LazyLock<HashMap<TypeId, Plan>> = LazyLock::new(|| {
    let schema = Schema::built_in();
    let checks: HashMap<TypeId, Check> = CHECKS
        .iter()
        .flat_map(|list| list.iter())
        .filter_map(|(name, check)| Some((schema.by_name(&format!("io.k8s.{name}"))?, *check)))
        .collect();
    let mut rules: HashMap<TypeId, Vec<(&'static str, Vec<Rule>)>> = HashMap::new();
    for row in TABLE.lines().filter(|row| !row.starts_with('#')) {
        let mut columns = row.split('\t');
        let (Some(name), Some(field), Some(words)) =
            (columns.next(), columns.next(), columns.next())
        else {
            continue;
        };
        if let Some(id) = schema.by_name(&format!("io.k8s.{name}")) {
            let words = words.split(' ').filter_map(parse).collect();
            rules.entry(id).or_default().push((field, words));
        }
    }
    // Types that have something to check, and those that lead to one.
    let below = |shape: &Shape| -> Option<TypeId> {
        let mut shape = shape;
        loop {
            shape = match shape {
                Shape::Object(id) => return Some(*id),
                Shape::List(item) | Shape::Map(item) => item,
                _ => return None,
            };
        }
    };
    let mut wanted: HashSet<TypeId> = rules.keys().chain(checks.keys()).copied().collect();
    loop {
        let before = wanted.len();
        for (id, it) in schema.types() {
            let leads = |field: &insula_api::schema::Field| {
                below(&field.shape).is_some_and(|it| wanted.contains(&it))
            };
            if it.fields.iter().any(leads) {
                wanted.insert(id);
            }
        }
        if wanted.len() == before {
            break;
        }
    }
    let plans = wanted.iter().map(|id| {
        let mut plan = Plan { steps: Vec::new(), check: checks.get(id).copied() };
        let mut add = |field: &'static str| match plan.steps.iter().position(|it| it.0 == field) {
            Some(index) => index,
            None => {
                plan.steps.push((field, Step::default()));
                plan.steps.len() - 1
            }
        };
        let mut found: Vec<(usize, bool, Vec<Rule>)> = Vec::new();
        // The order of rows is the order of findings.
        for (field, rules) in rules.get(id).into_iter().flatten() {
            let (name, of_items) = match field.strip_suffix("[]") {
                Some(name) => (name, true),
                None => (*field, false),
            };
            found.push((add(name), of_items, rules.clone()));
        }
        for field in &schema.get(*id).fields {
            if below(&field.shape).is_some_and(|it| wanted.contains(&it)) {
                add(field.name);
            }
        }
        for (index, of_items, rules) in found {
            let step = &mut plan.steps[index].1;
            if of_items { step.of_items.extend(rules) } else { step.rules.extend(rules) }
        }
        for (name, step) in &mut plan.steps {
            let field = schema.get(*id).field(name);
            step.below = field.and_then(|it| below(&it.shape)).filter(|it| wanted.contains(it));
        }
        (*id, plan)
    });
    plans.collect()
});

/// Checks an object of type `id`.
pub(super) fn walk(id: TypeId, it: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let Some(plan) = PLANS.get(&id) else { return };
    let before = errors.len();
    if FINDINGS < before {
        return;
    }
    for (field, step) in &plan.steps {
        let here = path.field(field);
        let value = it.get(field).filter(|it| !it.is_null());
        for rule in &step.rules {
            apply(rule, value, &here, errors);
        }
        let Some(value) = value else { continue };
        if step.of_items.is_empty() && step.below.is_none() {
            continue;
        }
        match value {
            Value::Array(list) => {
                for (index, item) in list.iter().enumerate() {
                    below(step, item, &here.index(index), errors);
                }
            }
            Value::Object(map) if !step.of_items.is_empty() => {
                for (key, item) in map {
                    below(step, item, &here.key(key), errors);
                }
            }
            value => below(step, value, &here, errors),
        }
    }
    if let Some(check) = plan.check {
        check(&mut At { it, path, errors, before });
    }
}

fn below(step: &Step, item: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for rule in &step.of_items {
        apply(rule, Some(item), path, errors);
    }
    if let Some(id) = step.below {
        walk(id, item, path, errors);
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn apply(rule: &Rule, value: Option<&Value>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let value = match (rule, value.filter(|it| !is_empty(it))) {
        (Rule::Required, None) => return errors.push(FieldError::required(path.to_string(), "")),
        (_, Some(value)) => value,
        _ => return,
    };
    let mut invalid = |why: &str| {
        errors.push(FieldError::invalid(path.to_string(), value, why));
    };
    match rule {
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
        Rule::Labels => labels(value, &path.to_string(), errors),
    }
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

/// A map of texts, ordered, as selectors want it.
pub(super) fn texts(value: Option<&Value>) -> BTreeMap<String, String> {
    let fields = value.and_then(Value::as_object).into_iter().flatten();
    fields
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_names_a_field_and_known_rules() {
        let schema = Schema::built_in();
        let rows: Vec<&str> = TABLE.lines().filter(|row| !row.starts_with('#')).collect();
        assert!(!rows.is_empty());
        for row in rows {
            let columns: Vec<&str> = row.split('\t').collect();
            let [name, field, words] = columns[..] else { panic!("{row}") };
            let id = schema.by_name(&format!("io.k8s.{name}")).unwrap_or_else(|| panic!("{row}"));
            let field = field.strip_suffix("[]").unwrap_or(field);
            assert!(schema.get(id).field(field).is_some(), "{row}");
            for word in words.split(' ') {
                assert!(
                    parse(Box::leak(word.to_owned().into_boxed_str())).is_some(),
                    "{row}: {word}"
                );
            }
        }
    }

    #[test]
    fn every_check_is_of_a_known_type() {
        let schema = Schema::built_in();
        let mut seen = HashSet::new();
        for (name, _) in CHECKS.iter().flat_map(|list| list.iter()) {
            assert!(schema.by_name(&format!("io.k8s.{name}")).is_some(), "{name}");
            assert!(seen.insert(name), "{name}");
        }
    }
}
