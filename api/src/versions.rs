//! Built-in kinds that are served in two versions: one is stored, the other is made of it.
//!
//! What differs is data (`tables/versions.tsv`): fields that lie elsewhere. What a move of fields
//! cannot say is in `autoscaler`.

mod autoscaler;

use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::schema::Gvk;

const TABLE: &str = include_str!("../tables/versions.tsv");

/// A field's place in the stored form and in the other, as names from the outside in.
type Move = (Vec<&'static str>, Vec<&'static str>);

/// A version of a kind that is not the stored one.
#[derive(Debug)]
pub struct Other {
    /// The kind that is stored.
    pub stored: Gvk,
    /// The kind that is made of it.
    pub served: Gvk,
    moves: Vec<Move>,
}

impl Other {
    /// Makes the served form of a stored object.
    pub fn show(&self, it: &mut Value) {
        to_other(&self.moves, it);
        if self.stored.group == "autoscaling" {
            autoscaler::show(it);
        }
        it["apiVersion"] = self.served.api_version().into();
    }

    /// Makes the stored form of a served object.
    pub fn keep(&self, it: &mut Value) {
        to_stored(&self.moves, it);
        if self.stored.group == "autoscaling" {
            autoscaler::keep(it);
        }
        it["apiVersion"] = self.stored.api_version().into();
    }
}

/// How `kind` is made, if it is not stored as it is.
pub fn other(kind: &Gvk) -> Option<&'static Other> {
    static OTHERS: LazyLock<Vec<Other>> = LazyLock::new(parse);
    OTHERS.iter().find(|it| it.served == *kind)
}

fn gvk(api_version: &str, kind: &str) -> Gvk {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    Gvk::new(group, version, kind)
}

/// The rows of a structure.
fn rows(of: &'static str) -> impl Iterator<Item = [&'static str; 5]> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    let rows = lines.map(|line| {
        let mut columns = [""; 5];
        for (slot, column) in columns.iter_mut().zip(line.split('\t')) {
            *slot = column;
        }
        columns
    });
    rows.filter(move |[_, _, name, ..]| *name == of)
}

fn moves(of: &'static str) -> Vec<Move> {
    let path = |text: &'static str| text.split('.').collect();
    rows(of)
        .filter(|[.., stored, _]| !stored.is_empty())
        .map(|[.., stored, other]| (path(stored), path(other)))
        .collect()
}

fn parse() -> Vec<Other> {
    ["Event", "HorizontalPodAutoscaler"]
        .into_iter()
        .filter_map(|kind| {
            let [stored, served, ..] = rows(kind).next()?;
            Some(Other { stored: gvk(stored, kind), served: gvk(served, kind), moves: moves(kind) })
        })
        .collect()
}

fn to_other(moves: &[Move], it: &mut Value) {
    for (stored, other) in moves {
        relocate(it, stored, other);
    }
}

/// The other way round, last move first: a name may be another field's in the other form.
fn to_stored(moves: &[Move], it: &mut Value) {
    for (stored, other) in moves.iter().rev() {
        relocate(it, other, stored);
    }
}

/// Moves what is at `from` to `to`. What it leaves empty behind goes.
fn relocate(it: &mut Value, from: &[&str], to: &[&str]) {
    let Some(value) = take(it, from) else { return };
    let mut place = it;
    for name in to {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[*name];
    }
    *place = value;
}

fn take(it: &mut Value, path: &[&str]) -> Option<Value> {
    let (first, rest) = path.split_first()?;
    let fields = it.as_object_mut()?;
    if rest.is_empty() {
        return fields.remove(*first);
    }
    let inner = fields.get_mut(*first)?;
    let found = take(inner, rest);
    if found.is_some() && inner.as_object().is_some_and(Map::is_empty) {
        fields.remove(*first);
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::{Schema, Shape};

    #[test]
    fn every_move_is_between_known_fields() {
        let schema = Schema::built_in();
        for [stored, served, kind, from, to] in ["Event", "HorizontalPodAutoscaler"]
            .into_iter()
            .chain(["MetricSpec", "MetricStatus"])
            .flat_map(rows)
            .filter(|row| !row[3].is_empty())
        {
            // What annotations hold of the other form has no type of its own.
            let sides: &[(&str, &str)] =
                if kind == "Event" { &[(stored, from), (served, to)] } else { &[(stored, from)] };
            for (api_version, path) in sides {
                let of = match kind {
                    "Event" => schema.by_kind(&gvk(api_version, kind)),
                    _ => schema.by_name(&format!("io.k8s.api.autoscaling.v2.{kind}")),
                };
                let mut at = Shape::Object(of.unwrap());
                for name in path.split('.') {
                    let Shape::Object(id) = at else { panic!("{kind} {path}") };
                    let field = schema.get(id).field(name);
                    at = field.unwrap_or_else(|| panic!("{kind} {path}")).shape.clone();
                }
            }
        }
    }

    #[test]
    fn events_there_and_back() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "m",
            "involvedObject": {"kind": "Pod", "name": "p"}, "reason": "r", "type": "Normal",
            "source": {"component": "c"}, "reportingComponent": "c", "reportingInstance": "i",
            "count": 2, "eventTime": null, "firstTimestamp": "2026-01-01T00:00:00Z",
        });
        let it = other(&Gvk::new("events.k8s.io", "v1", "Event")).unwrap();
        let mut made = core.clone();
        it.show(&mut made);
        assert_eq!(made["apiVersion"], "events.k8s.io/v1");
        assert_eq!(made["regarding"], core["involvedObject"]);
        assert_eq!((&made["note"], &made["deprecatedCount"]), (&json!("m"), &json!(2)));
        assert_eq!(made["reportingController"], "c");
        assert_eq!(made.get("involvedObject"), None);
        it.keep(&mut made);
        assert_eq!(made, core);
    }
}
