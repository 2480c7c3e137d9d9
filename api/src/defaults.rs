//! Defaults: what the server fills in where a client left a field out.
//!
//! Unconditional ones are rows of `tables/defaults.tsv` (and, for always-present structures, of
//! the type table itself). Those that depend on other fields are functions in `conditional`.

mod conditional;

use std::{collections::HashMap, sync::LazyLock};

use serde_json::{Map, Value};

use self::conditional::Rule;
use crate::schema::{Field, Schema, Shape, Type, TypeId};

const TABLE: &str = include_str!("../tables/defaults.tsv");

/// What is filled in in structures of one type, in this order.
struct Plan {
    /// Rows of the table, and whether a zero in the field is a value of its own.
    rows: Vec<(&'static str, Value, bool)>,
    /// Structures that are always written: they are there for what depends on them.
    structures: Vec<(&'static str, &'static Value)>,
    rule: Option<Rule>,
    /// Go's encoder always writes these, so users see them. So are numbers and flags that are
    /// never left out: clients may count on them.
    written: Vec<(&'static str, Value)>,
    /// Fields below which anything may be filled in, by name.
    below: Vec<&'static Field>,
}

impl Plan {
    fn of(it: &'static Type, rows: &[(&'static str, Value)]) -> Self {
        let mut plan = Self {
            rows: Vec::with_capacity(rows.len()),
            structures: Vec::new(),
            rule: conditional::rule(it.name),
            written: Vec::new(),
            below: Vec::new(),
        };
        for (field, value) in rows {
            let is_pointer = it.field(field).is_some_and(|it| it.pointer);
            plan.rows.push((field, value.clone(), is_pointer));
        }
        for field in &it.fields {
            match &field.default {
                Some(default @ Value::Object(_)) if is_written(field, default) => {
                    plan.structures.push((field.name, default));
                }
                Some(default) if is_written(field, default) => {
                    plan.written.push((field.name, default.clone()));
                }
                _ if field.required && !field.pointer => match field.shape {
                    Shape::Int32 | Shape::Int64 => plan.written.push((field.name, 0.into())),
                    Shape::Bool => plan.written.push((field.name, false.into())),
                    _ => (),
                },
                _ => (),
            }
        }
        plan
    }

    fn is_empty(&self) -> bool {
        let Self { rows, structures, rule, written, below } = self;
        rows.is_empty()
            && structures.is_empty()
            && rule.is_none()
            && written.is_empty()
            && below.is_empty()
    }
}

/// By the types' places; `None` where nothing is filled in, however deep.
static PLANS: LazyLock<Vec<Option<Plan>>> = LazyLock::new(|| {
    let schema = Schema::built_in();
    let rows = rows();
    let mut plans: Vec<Plan> = schema
        .types()
        .map(|(_, it)| Plan::of(it, rows.get(it.name).map_or(&[], Vec::as_slice)))
        .collect();
    // Types lead to others, and to themselves.
    let mut leads: Vec<bool> = plans.iter().map(|plan| !plan.is_empty()).collect();
    let goes_on =
        |field: &Field, leads: &[bool]| field.shape.innermost().is_some_and(|id| leads[id.index()]);
    loop {
        let before = leads.iter().filter(|it| **it).count();
        for (id, it) in schema.types() {
            leads[id.index()] |= it.fields.iter().any(|field| goes_on(field, &leads));
        }
        if leads.iter().filter(|it| **it).count() == before {
            break;
        }
    }
    for (id, it) in schema.types() {
        plans[id.index()].below.extend(it.fields.iter().filter(|it| goes_on(it, &leads)));
    }
    plans.into_iter().map(|plan| Some(plan).filter(|it| !it.is_empty())).collect()
});

fn rows() -> HashMap<&'static str, Vec<(&'static str, Value)>> {
    let mut all: HashMap<_, Vec<_>> = HashMap::new();
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let mut columns = line.split('\t');
        if let (Some(name), Some(field), Some(value)) =
            (columns.next(), columns.next(), columns.next())
            && let Ok(value) = serde_json::from_str(value)
        {
            all.entry(name).or_default().push((field, value));
        }
    }
    all
}

/// Fills in the defaults of an object of a built-in type, all the way down.
pub fn apply(id: TypeId, object: &mut Value) {
    if let Value::Object(map) = object {
        fill(id, map);
    }
}

fn fill(id: TypeId, map: &mut Map<String, Value>) {
    let Some(plan) = PLANS.get(id.index()).and_then(Option::as_ref) else { return };
    for (field, value, is_pointer) in &plan.rows {
        match map.get_mut(*field) {
            // Where zero is no value of its own, it is the same as none.
            Some(found) if !is_pointer && is_zero(found) => *found = value.clone(),
            Some(_) => (),
            None => {
                map.insert((*field).into(), value.clone());
            }
        }
    }
    for (field, value) in &plan.structures {
        if !map.contains_key(*field) {
            map.insert((*field).into(), (*value).clone());
        }
    }
    if let Some(rule) = plan.rule {
        rule(map);
    }
    for (field, value) in &plan.written {
        if !map.contains_key(*field) {
            map.insert((*field).into(), value.clone());
        }
    }
    // Both are in the order of names.
    let mut below = plan.below.iter().peekable();
    for (name, value) in map {
        while below.next_if(|field| field.name < name.as_str()).is_some() {}
        if let Some(field) = below.next_if(|field| field.name == name) {
            descend(&field.shape, value);
        }
    }
}

/// Whether a field that nobody set is written all the same.
fn is_written(field: &Field, default: &Value) -> bool {
    match default {
        Value::Object(fields) => fields.is_empty() && matches!(field.shape, Shape::Object(_)),
        // References by name have an empty one in the table that is not written.
        Value::String(text) => text.is_empty() && (field.required || field.name != "name"),
        Value::Number(_) => *default == 0 && field.always,
        Value::Bool(is) => !is,
        _ => false,
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

fn descend(shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(map)) => fill(*id, map),
        (Shape::List(item), Value::Array(list)) => {
            list.iter_mut().for_each(|value| descend(item, value));
        }
        (Shape::Map(item), Value::Object(map)) => {
            map.values_mut().for_each(|value| descend(item, value));
        }
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::Gvk;

    fn defaulted(gvk: Gvk, mut object: Value) -> Value {
        let schema = Schema::built_in();
        apply(schema.by_kind(&gvk).unwrap(), &mut object);
        object
    }

    #[test]
    fn every_row_names_a_known_field() {
        let schema = Schema::built_in();
        for (name, fields) in &rows() {
            let it = schema.get(schema.by_name(name).unwrap_or_else(|| panic!("{name}")));
            for (field, _) in fields {
                assert!(it.field(field).is_some(), "{name} {field}");
            }
        }
    }

    #[test]
    fn what_is_not_even_begun_is_filled_in_at_once() {
        for (gvk, path, expected) in [
            (Gvk::new("", "v1", "Pod"), "/spec/enableServiceLinks", json!(true)),
            (Gvk::new("batch", "v1", "Job"), "/spec/parallelism", json!(1)),
        ] {
            let once = defaulted(gvk.clone(), json!({}));
            assert_eq!(once.pointer(path), Some(&expected));
            assert_eq!(defaulted(gvk, once.clone()), once);
        }
    }

    #[test]
    fn a_deployment() {
        let it = defaulted(
            Gvk::new("apps", "v1", "Deployment"),
            json!({"spec": {"template": {"spec": {"containers": [
                {"name": "a", "image": "x:1", "resources": {"limits": {"cpu": "1"}}, "ports": [{"containerPort": 80}]},
                {"name": "b", "image": "host:5000/y"},
            ], "volumes": [{"name": "v"}]}}}}),
        );
        assert_eq!(it["spec"]["replicas"], 1);
        assert_eq!(
            it["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        let spec = &it["spec"]["template"]["spec"];
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["containers"][0]["imagePullPolicy"], "IfNotPresent");
        // Only pods get what is known of pods alone.
        assert_eq!(spec["containers"][0]["resources"].get("requests"), None);
        assert_eq!(spec.get("enableServiceLinks"), None);
        assert_eq!(spec["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(spec["containers"][1]["imagePullPolicy"], "Always");
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(it["status"], json!({}));
    }

    #[test]
    fn a_pod() {
        let it = defaulted(
            Gvk::new("", "v1", "Pod"),
            json!({"spec": {"hostNetwork": true, "restartPolicy": "", "containers": [
                {"name": "a", "image": "x:1", "resources": {"limits": {"cpu": "1"}}, "ports": [{"containerPort": 80}]},
                {"name": "b", "image": "x:1", "resources": {"requests": {"cpu": "500m"}}},
            ], "resources": {"limits": {"cpu": "2", "memory": "1Gi"}}}}),
        );
        let spec = &it["spec"];
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(spec["containers"][0]["ports"][0]["hostPort"], 80);
        assert_eq!(
            (&spec["enableServiceLinks"], &spec["restartPolicy"]),
            (&json!(true), &json!("Always"))
        );
        assert_eq!(spec["resources"]["requests"], json!({"cpu": "1500m", "memory": "1Gi"}));
    }

    #[test]
    fn limits_follow_from_each_other() {
        let it = defaulted(
            Gvk::new("", "v1", "LimitRange"),
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}}),
        );
        let item = &it["spec"]["limits"][0];
        assert_eq!(item["default"], json!({"cpu": "2"}));
        assert_eq!(item["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
    }

    #[test]
    fn defaulting_twice_changes_nothing() {
        let gvk = Gvk::new("", "v1", "Service");
        let once = defaulted(gvk.clone(), json!({"spec": {"ports": [{"port": 80}]}}));
        assert_eq!(once["spec"]["ports"][0]["targetPort"], 80);
        assert_eq!(defaulted(gvk, once.clone()), once);
    }
}
