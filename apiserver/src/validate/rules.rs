//! The table of what fields may hold, and the one walk that checks it.
//!
//! `api/tables/rules.tsv` says for a field of a type what it may hold, and where upstream has words
//! of its own for it, which; the walk goes through an object along the type graph, and only where
//! rules lie. What depends on several fields is a function of the type that has them
//! ([`super::CHECKS`]). See `docs/decisions/0020-rules-as-data.md`.

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use insula_api::{
    field::FieldError,
    schema::{Schema, TypeId},
};
use insula_custom::path::Path;
use serde_json::Value;

use super::{
    CHECKS,
    at::{At, Check},
    rule::{Ruled, apply},
};

const TABLE: &str = include_str!("../../../api/tables/rules.tsv");

/// What is checked of a field.
#[derive(Debug, Default)]
struct Step {
    rules: Vec<Ruled>,
    /// Of items of a list or values of a map.
    of_items: Vec<Ruled>,
    /// The type below, if anything is checked there.
    below: Option<TypeId>,
}

/// What is checked of a type.
#[derive(Default)]
struct Plan {
    steps: Vec<(&'static str, Step)>,
    /// The steps by the names of their fields, and which they are.
    by_name: Vec<(&'static str, usize)>,
    check: Option<Check>,
}

impl Plan {
    /// The values of the steps' fields. Both sides are in the order of names: one pass over both
    /// is less than half of looking up each.
    fn values<'a>(&self, it: &'a Value) -> Vec<Option<&'a Value>> {
        let mut values = vec![None; self.steps.len()];
        let Value::Object(map) = it else { return values };
        let mut wanted = self.by_name.iter().peekable();
        for (name, value) in map {
            while wanted.next_if(|(field, _)| *field < name.as_str()).is_some() {}
            if let Some((_, step)) = wanted.next_if(|(field, _)| field == name) {
                values[*step] = Some(value).filter(|it| !it.is_null());
            }
        }
        values
    }
}

/// A type by its name in tables: Kubernetes' are named without what all of theirs begin with.
fn type_named(schema: &Schema, name: &str) -> Option<TypeId> {
    schema.by_name(&format!("io.k8s.{name}")).or_else(|| schema.by_name(name))
}

/// The plans, by the types' places.
static PLANS: LazyLock<Vec<Option<Plan>>> = LazyLock::new(|| {
    let schema = Schema::built_in();
    let checks: HashMap<TypeId, Check> = CHECKS
        .iter()
        .flat_map(|list| list.iter())
        .filter_map(|(name, check)| Some((type_named(schema, name)?, *check)))
        .collect();
    let mut rules: HashMap<TypeId, Vec<(&'static str, Vec<Ruled>)>> = HashMap::new();
    for row in TABLE.lines().filter(|row| !row.starts_with('#')) {
        let mut columns = row.split('\t');
        let (Some(name), Some(field), Some(found)) =
            (columns.next(), columns.next(), columns.next())
        else {
            continue;
        };
        let words = columns.next();
        if let Some(id) = type_named(schema, name) {
            let is_of_list = field.ends_with("[*]");
            let parsed = found.split(' ').filter_map(|it| Ruled::parse(it, words, is_of_list));
            rules.entry(id).or_default().push((field, parsed.collect()));
        }
    }
    // Types that have something to check, and those that lead to one.
    let mut wanted: HashSet<TypeId> = rules.keys().chain(checks.keys()).copied().collect();
    loop {
        let before = wanted.len();
        for (id, it) in schema.types() {
            let leads = |field: &insula_api::schema::Field| {
                field.shape.innermost().is_some_and(|it| wanted.contains(&it))
            };
            if it.fields.iter().any(leads) {
                wanted.insert(id);
            }
        }
        if wanted.len() == before {
            break;
        }
    }
    let mut plans: Vec<Option<Plan>> = schema.types().map(|_| None).collect();
    for id in &wanted {
        let mut plan = Plan { check: checks.get(id).copied(), ..Plan::default() };
        let mut add = |field: &'static str| match plan.steps.iter().position(|it| it.0 == field) {
            Some(index) => index,
            None => {
                plan.steps.push((field, Step::default()));
                plan.steps.len() - 1
            }
        };
        let mut found: Vec<(usize, bool, Vec<Ruled>)> = Vec::new();
        // The order of rows is the order of findings.
        for (field, rules) in rules.get(id).into_iter().flatten() {
            let items = field.strip_suffix("[]").or_else(|| field.strip_suffix("[*]"));
            let (name, of_items) = match items {
                Some(name) => (name, true),
                None => (*field, false),
            };
            found.push((add(name), of_items, rules.clone()));
        }
        for field in &schema.get(*id).fields {
            if field.shape.innermost().is_some_and(|it| wanted.contains(&it)) {
                add(field.name);
            }
        }
        for (index, of_items, rules) in found {
            let step = &mut plan.steps[index].1;
            if of_items { step.of_items.extend(rules) } else { step.rules.extend(rules) }
        }
        for (name, step) in &mut plan.steps {
            let field = schema.get(*id).field(name);
            step.below = field.and_then(|it| it.shape.innermost()).filter(|it| wanted.contains(it));
        }
        let names = plan.steps.iter().enumerate().map(|(index, (name, _))| (*name, index));
        plan.by_name = names.collect();
        plan.by_name.sort_unstable();
        plans[id.index()] = Some(plan);
    }
    plans
});

/// So many findings tell enough: nobody makes the server look for more.
const FINDINGS: usize = 1_000;

/// Checks an object of type `id`.
pub(super) fn walk(id: TypeId, it: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let Some(plan) = PLANS.get(id.index()).and_then(Option::as_ref) else { return };
    let before = errors.len();
    if FINDINGS < before {
        return;
    }
    for ((field, step), value) in plan.steps.iter().zip(plan.values(it)) {
        let here = path.field(field);
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
        check(&mut At { id, it, path, errors, before });
    }
}

fn below(step: &Step, item: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for rule in &step.of_items {
        match (rule.is_of_list, path) {
            (true, Path::Index(list, _)) => apply(rule, Some(item), list, errors),
            _ => apply(rule, Some(item), path, errors),
        }
    }
    if let Some(id) = step.below {
        walk(id, item, path, errors);
    }
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
            let (name, field, words) = match columns[..] {
                [name, field, words] => (name, field, words),
                [name, field, words, told] if !told.is_empty() => (name, field, words),
                _ => panic!("{row}"),
            };
            let id = type_named(schema, name).unwrap_or_else(|| panic!("{row}"));
            let field = field.trim_end_matches("[]").trim_end_matches("[*]");
            assert!(schema.get(id).field(field).is_some(), "{row}");
            for word in words.split(' ') {
                assert!(Ruled::parse(word, None, false).is_some(), "{row}: {word}");
            }
        }
    }

    #[test]
    fn every_check_is_of_a_known_type() {
        let schema = Schema::built_in();
        let mut seen = HashSet::new();
        for (name, _) in CHECKS.iter().flat_map(|list| list.iter()) {
            assert!(type_named(schema, name).is_some(), "{name}");
            assert!(seen.insert(name), "{name}");
        }
    }
}
