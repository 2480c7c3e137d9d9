//! Structures as upstream's messages show them.
//!
//! Where a message has a structure in it, upstream shows the form it has inside its server: Go's
//! names in Go's order, and what is not set as null, zero or empty. Which that is for a type is a
//! row of `tables/internal.tsv`; what has none is shown as the JSON it is.

use std::{collections::HashMap, fmt::Write as _, sync::LazyLock};

use serde_json::Value;

use crate::schema::{Schema, Shape, TypeId, object_shape};

const TABLE: &str = include_str!("../tables/internal.tsv");

/// What is shown of a field that is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nothing {
    /// The field is left out.
    Out,
    Null,
    Text,
    Zero,
    False,
    Structure,
}

/// One field of a structure as it is shown.
#[derive(Debug)]
struct Item {
    name: &'static str,
    /// Its name in JSON; empty if JSON does not have it.
    json: String,
    /// It is in the structure around.
    is_around: bool,
    nothing: Nothing,
}

static FORMS: LazyLock<HashMap<TypeId, Vec<Item>>> = LazyLock::new(|| {
    let schema = Schema::built_in();
    let rows = TABLE.lines().filter(|row| !row.starts_with('#'));
    let forms = rows.filter_map(|row| {
        let (name, items) = row.split_once('\t')?;
        Some((schema.by_name(name)?, items.split(' ').filter_map(item).collect()))
    });
    forms.collect()
});

fn item(text: &'static str) -> Option<Item> {
    let (rest, end) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let nothing = match end {
        "?" => Nothing::Out,
        "~" => Nothing::Null,
        "'" => Nothing::Text,
        "0" => Nothing::Zero,
        "-" => Nothing::False,
        "+" => Nothing::Structure,
        _ => return None,
    };
    let (name, json) = match rest.split_once('=') {
        Some((name, json)) => (name, json.to_owned()),
        None if nothing == Nothing::Out => (rest, rest.to_owned()),
        None => {
            let mut letters = rest.chars();
            let first = letters.next()?.to_ascii_lowercase();
            (rest, std::iter::once(first).chain(letters).collect())
        }
    };
    let is_around = json.starts_with('^');
    let json = json.trim_start_matches('^').to_owned();
    Some(Item { name, json, is_around, nothing })
}

/// What is at `path`, such as `spec.ports[1]`, of an object of type `root`; messages about maps
/// name their keys in the same brackets.
fn shape_at(root: TypeId, path: &str) -> Option<&'static Shape> {
    let schema = Schema::built_in();
    let mut shape = object_shape(root);
    for step in path.split(['.', '[']).filter(|it| !it.is_empty()) {
        shape = match (shape, step.ends_with(']')) {
            (Shape::List(inner) | Shape::Map(inner), true) => inner,
            (Shape::Object(id), false) => &schema.get(*id).field(step)?.shape,
            _ => return None,
        };
    }
    Some(shape)
}

/// `value`, found at `path` of an object of type `root`, in one line.
pub fn line(root: TypeId, path: &str, value: &Value) -> String {
    write(root, path, value, None)
}

/// As [`line()`], but with a line for each value.
pub fn lines(root: TypeId, path: &str, value: &Value) -> String {
    write(root, path, value, Some(0))
}

/// As [`lines`], of those fields alone that are `wanted` of it.
pub fn lines_of(root: TypeId, path: &str, value: &Value, wanted: impl Fn(&str) -> bool) -> String {
    let mut writer = Writer { out: String::new(), indent: Some(0) };
    match shape_at(root, path) {
        Some(Shape::Object(id)) => writer.structure(*id, Some(value), None, &wanted),
        _ => writer.json(value),
    }
    writer.out
}

fn write(root: TypeId, path: &str, value: &Value, indent: Option<usize>) -> String {
    let mut writer = Writer { out: String::new(), indent };
    writer.value(shape_at(root, path).unwrap_or(&Shape::Any), value, None);
    writer.out
}

struct Writer {
    out: String,
    /// How deep it is, if values have lines of their own.
    indent: Option<usize>,
}

impl Writer {
    fn value(&mut self, shape: &Shape, value: &Value, around: Option<&Value>) {
        match (shape, value) {
            (Shape::Object(id), Value::Object(_)) => {
                self.structure(*id, Some(value), around, &|_| true);
            }
            (Shape::List(item), Value::Array(items)) => {
                let items = items.iter().map(|value| (None, value));
                self.all('[', ']', items, |it, value| it.value(item, value, None));
            }
            (Shape::Map(item), Value::Object(map)) => {
                let items = map.iter().map(|(key, value)| (Some(key.as_str()), value));
                self.all('{', '}', items, |it, value| it.value(item, value, None));
            }
            _ => self.json(value),
        }
    }

    fn structure(
        &mut self,
        id: TypeId,
        value: Option<&Value>,
        around: Option<&Value>,
        wanted: &dyn Fn(&str) -> bool,
    ) {
        let Some(form) = FORMS.get(&id) else {
            return self.json(value.unwrap_or(&Value::Null));
        };
        let find = |item: &Item| {
            let place = if item.is_around { around } else { value };
            place.and_then(|it| it.get(&item.json)).filter(|it| !it.is_null())
        };
        let shown = form
            .iter()
            .filter(|item| wanted(&item.json))
            .map(|item| (item, find(item)))
            .filter(|(item, found)| found.is_some() || item.nothing != Nothing::Out)
            .map(|(item, found)| (Some(item.name), (item, found)));
        let fields = Schema::built_in().get(id);
        self.all('{', '}', shown, |it, (item, found)| {
            let shape = fields.field(&item.json).map_or(&Shape::Any, |field| &field.shape);
            match (found, item.nothing, shape) {
                (Some(found), ..) => it.value(shape, found, value),
                (None, Nothing::Structure, Shape::Object(id)) => {
                    it.structure(*id, None, value, &|_| true);
                }
                (None, Nothing::Structure, _) => it.out.push_str("{}"),
                (None, Nothing::Null | Nothing::Out, _) => it.out.push_str("null"),
                (None, Nothing::Text, _) => it.out.push_str("\"\""),
                (None, Nothing::Zero, _) => it.out.push('0'),
                (None, Nothing::False, _) => it.out.push_str("false"),
            }
        });
    }

    fn json(&mut self, value: &Value) {
        match value {
            Value::Array(items) => {
                let items = items.iter().map(|value| (None, value));
                self.all('[', ']', items, Self::json);
            }
            Value::Object(map) => {
                let items = map.iter().map(|(key, value)| (Some(key.as_str()), value));
                self.all('{', '}', items, Self::json);
            }
            Value::String(text) => self.text(text),
            other => {
                let _ = write!(self.out, "{other}");
            }
        }
    }

    /// Text as Go's encoder writes it: fit to stand in a page.
    fn text(&mut self, text: &str) {
        let quoted = Value::from(text).to_string();
        for letter in quoted.chars() {
            match letter {
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                    let _ = write!(self.out, "\\u{:04x}", u32::from(letter));
                }
                other => self.out.push(other),
            }
        }
    }

    fn all<'a, V>(
        &mut self,
        open: char,
        close: char,
        items: impl Iterator<Item = (Option<&'a str>, V)>,
        mut show: impl FnMut(&mut Self, V),
    ) {
        self.out.push(open);
        let depth = self.indent;
        self.indent = depth.map(|it| it + 1);
        let mut is_empty = true;
        for (name, value) in items {
            if !std::mem::take(&mut is_empty) {
                self.out.push(',');
            }
            self.new_line();
            if let Some(name) = name {
                self.text(name);
                self.out.push_str(if depth.is_some() { ": " } else { ":" });
            }
            show(self, value);
        }
        self.indent = depth;
        if !is_empty {
            self.new_line();
        }
        self.out.push(close);
    }

    fn new_line(&mut self) {
        if let Some(depth) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', depth));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id(name: &str) -> TypeId {
        Schema::built_in().by_name(name).unwrap()
    }

    #[test]
    fn structures_are_shown_as_go_has_them() {
        let it = json!({"key": "a", "effect": "NoSchedule"});
        assert_eq!(
            line(id("io.k8s.api.core.v1.Node"), "spec.taints[1]", &it),
            r#"{"Key":"a","Value":"","Effect":"NoSchedule","TimeAdded":null}"#
        );
        let it = json!({"minAvailable": 1, "selector": {"matchLabels": {"a": "<b>"}}});
        assert_eq!(
            line(id("io.k8s.api.policy.v1.PodDisruptionBudget"), "spec", &it),
            r#"{"MinAvailable":1,"Selector":{"matchLabels":{"a":"\u003cb\u003e"}},"MaxUnavailable":null,"UnhealthyPodEvictionPolicy":null}"#
        );
    }

    #[test]
    fn what_is_moved_is_found_in_the_structure_around() {
        let it = json!({"hostNetwork": true, "securityContext": {}});
        let shown = lines(id("io.k8s.api.core.v1.Pod"), "spec", &it);
        assert!(shown.contains(" \"SecurityContext\": {\n  \"HostNetwork\": true,\n"), "{shown}");
        assert!(shown.starts_with("{\n \"Volumes\": null,\n"), "{shown}");
        assert!(shown.ends_with("\n}"), "{shown}");
    }

    #[test]
    fn every_row_is_of_a_known_type_and_reads() {
        let schema = Schema::built_in();
        for row in TABLE.lines().filter(|row| !row.starts_with('#')) {
            let (name, items) = row.split_once('\t').unwrap();
            let fields = schema.get(schema.by_name(name).unwrap());
            for text in items.split(' ').filter(|it| !it.is_empty()) {
                let item = item(text).unwrap_or_else(|| panic!("{row}: {text}"));
                let known =
                    item.json.is_empty() || item.is_around || fields.field(&item.json).is_some();
                assert!(known, "{name}: {text}");
            }
        }
    }
}
