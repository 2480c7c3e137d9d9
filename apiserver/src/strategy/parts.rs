//! What of an object a write through one of its paths may change.
//!
//! An object has a main path and parts with paths of their own: its status, and few others. What
//! a part is not about is taken from the object as it is, whatever was sent.

use insula_api::{object, pods::MACHINE, resources::Resource, time};
use serde_json::{Map, Value, json};

use super::{Facts, facts::Kept, restore, restore_metadata};
use crate::registry::Served;

/// Metadata that most parts leave as it is.
const MOST: &[&str] = &["labels", "annotations", "finalizers", "ownerReferences"];

/// Takes from `old` what a write to `part` does not change.
pub(super) fn limit(served: &Served, part: &str, old: &Value, new: &mut Value) {
    let resource = &served.resource;
    match (part, &*resource.group, &*resource.name) {
        ("", ..) => main(resource, old, new),
        ("status", ..) => status(served, old, new),
        ("approval", ..) => {
            let conditions = new["status"].get("conditions").cloned();
            restore(old, new, "spec");
            restore(old, new, "status");
            new["status"]["conditions"] = conditions.unwrap_or_else(|| json!([]));
            condition_times(old, new);
        }
        ("finalize", ..) => restore(old, new, "status"),
        ("ephemeralcontainers", ..) => {
            let list = new["spec"].get("ephemeralContainers").cloned();
            only_spec(old, new);
            put(&mut new["spec"], "ephemeralContainers", list);
        }
        ("resize", ..) => resize(old, new),
        _ => (),
    }
}

fn main(resource: &Resource, old: &Value, new: &mut Value) {
    if resource.subresource("status").is_some() {
        restore(old, new, "status");
    }
    match (&*resource.group, &*resource.name) {
        // Its finalizers change through `finalize` alone, and there is nothing else in it.
        ("", "namespaces") | ("certificates.k8s.io", "certificatesigningrequests") => {
            restore(old, new, "spec");
        }
        ("", "pods") => {
            // What a client may leave out of an update.
            for field in ["priority", "preemptionPolicy"] {
                if let (Some(value), Some(spec)) =
                    (old["spec"].get(field), new["spec"].as_object_mut())
                {
                    spec.entry(field).or_insert_with(|| value.clone());
                }
            }
        }
        _ => (),
    }
}

fn status(served: &Served, old: &Value, new: &mut Value) {
    let resource = &served.resource;
    let metadata = new.get("metadata").cloned();
    let status = new.get("status").cloned();
    *new = old.clone();
    if let Some(metadata) = metadata {
        new["metadata"] = metadata;
    }
    put(new, "status", status);
    if served.custom().is_some() {
        restore(old, new, "metadata");
    }
    match super::facts::of(resource).kept {
        Kept::Nothing => (),
        Kept::Labels => restore_metadata(old, new, "labels"),
        Kept::OwnerReferences => restore_metadata(old, new, "ownerReferences"),
        Kept::Most => MOST.iter().for_each(|field| restore_metadata(old, new, field)),
    }
    match (&*resource.group, &*resource.name) {
        ("", "pods") => {
            if object::text(new, &["status", "qosClass"]).is_empty() {
                put(&mut new["status"], "qosClass", old["status"].get("qosClass").cloned());
            }
            observed(old, new);
        }
        ("", "persistentvolumes") => {
            let at = |it: &Value, field: &str| it["status"].get(field).cloned();
            let is_moved = at(old, "phase") != at(new, "phase");
            let told = at(old, "lastPhaseTransitionTime") != at(new, "lastPhaseTransitionTime");
            if is_moved && !told {
                new["status"]["lastPhaseTransitionTime"] = time::now().into();
            }
        }
        ("certificates.k8s.io", "certificatesigningrequests") => {
            keep_decisions(old, new);
            condition_times(old, new);
        }
        _ => (),
    }
}

/// Old agents do not know of observed generations; they keep those that others wrote.
fn observed(old: &Value, new: &mut Value) {
    const FIELD: &str = "observedGeneration";
    let is_unset = |it: &Value| it.get(FIELD).is_none_or(|it| *it == 0);
    if is_unset(&new["status"])
        && let Some(known) = old["status"].get(FIELD)
    {
        new["status"][FIELD] = known.clone();
    }
    let mut known: Vec<&Value> =
        old["status"].get("conditions").and_then(Value::as_array).into_iter().flatten().collect();
    let conditions = new["status"].get_mut("conditions").and_then(Value::as_array_mut);
    for it in conditions.into_iter().flatten() {
        let same = known.iter().position(|known| known["type"] == it["type"]);
        let same = same.map(|at| known.remove(at));
        if is_unset(it)
            && let Some(value) = same.and_then(|it| it.get(FIELD))
        {
            it[FIELD] = value.clone();
        }
    }
}

/// What was approved or denied is decided elsewhere.
fn keep_decisions(old: &Value, new: &mut Value) {
    for kind in ["Approved", "Denied"] {
        let of_kind = |it: &&Value| it["type"] == kind;
        let list = old["status"].get("conditions").and_then(Value::as_array);
        let known: Vec<Value> = list.into_iter().flatten().filter(of_kind).cloned().collect();
        let list = new["status"].get_mut("conditions").and_then(Value::as_array_mut);
        let mut found: Vec<&mut Value> =
            list.into_iter().flatten().filter(|it| it["type"] == kind).collect();
        if found.len() == known.len() {
            for (slot, value) in found.iter_mut().zip(known) {
                **slot = value;
            }
        }
    }
}

/// Fills in when conditions were updated and when their status changed.
fn condition_times(old: &Value, new: &mut Value) {
    let known = old["status"].get("conditions").and_then(Value::as_array).cloned();
    let known = known.unwrap_or_default();
    let now = Value::from(time::now());
    let list = new["status"].get_mut("conditions").and_then(Value::as_array_mut);
    for it in list.into_iter().flatten().filter_map(Value::as_object_mut) {
        let is_unset =
            |it: &Map<String, Value>, field: &str| it.get(field).is_none_or(Value::is_null);
        if is_unset(it, "lastUpdateTime") {
            it.insert("lastUpdateTime".into(), now.clone());
        }
        if is_unset(it, "lastTransitionTime") {
            let same = known.iter().find(|known| {
                Some(&known["type"]) == it.get("type") && Some(&known["status"]) == it.get("status")
            });
            let since = same.and_then(|it| it.get("lastTransitionTime")).unwrap_or(&now).clone();
            it.insert("lastTransitionTime".into(), since);
        }
    }
}

/// The specification may change; most of the metadata and the status may not.
fn only_spec(old: &Value, new: &mut Value) {
    restore(old, new, "spec");
    restore(old, new, "status");
    MOST.iter().for_each(|field| restore_metadata(old, new, field));
}

/// What containers ask for may change, and how they take it; nothing else.
fn resize(old: &Value, new: &mut Value) {
    let list = |it: &Value, field: &str| {
        it["spec"].get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    const LISTS: [&str; 2] = ["containers", "initContainers"];
    let mut wanted = Vec::new();
    for field in LISTS {
        let (had, has) = (list(old, field), list(new, field));
        if had.len() != has.len()
            || had.iter().zip(&has).any(|(one, two)| one["name"] != two["name"])
        {
            // Left for validation to refuse.
            return;
        }
        let merged = had.into_iter().zip(has).map(|(mut had, mut has)| {
            for field in ["resources", "resizePolicy"] {
                let value = has.as_object_mut().and_then(|it| it.remove(field));
                put(&mut had, field, value);
            }
            had
        });
        wanted.push((field, merged.collect::<Vec<_>>()));
    }
    let resources = new["spec"].get("resources").cloned();
    let of_machine = new["spec"].get(MACHINE).and_then(|it| it.get("resources")).cloned();
    only_spec(old, new);
    put(&mut new["spec"], "resources", resources);
    if let Some(machine) = new["spec"].get_mut(MACHINE) {
        put(machine, "resources", of_machine);
    }
    for (field, list) in wanted {
        put(&mut new["spec"], field, Some(list).filter(|it| !it.is_empty()).map(Value::from));
    }
}

/// A node's network is the first of its networks, whichever of both was written.
pub(super) fn pod_networks(node: &mut Value) {
    let one = object::text(node, &["spec", "podCIDR"]).to_owned();
    let first = node["spec"].get("podCIDRs").and_then(|it| it.get(0)).and_then(Value::as_str);
    match (one.is_empty(), first) {
        (false, first) if first != Some(&*one) => node["spec"]["podCIDRs"] = json!([one]),
        (true, Some(first)) => node["spec"]["podCIDR"] = first.into(),
        _ => (),
    }
}

/// A claim names what it is filled from twice: old clients know claims and snapshots only. What
/// else they name is passed over, and so is what is in another namespace.
pub(super) fn data_sources(old: Option<&Value>, claim: &mut Value) {
    const FIELDS: [&str; 2] = ["dataSource", "dataSourceRef"];
    let sources = |it: &Value| FIELDS.map(|field| it["spec"].get(field).cloned());
    let had = old.map(sources).unwrap_or_default();
    let [mut source, mut reference] = sources(claim);
    if had == [source.clone(), reference.clone()] {
        return;
    }
    let text = |it: &Value, field: &str| object::text(it, &[field]).to_owned();
    let is_old = |it: &Value| {
        matches!(
            (&*text(it, "apiGroup"), &*text(it, "kind")),
            ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
        )
    };
    let is_elsewhere = |it: &Value| !text(it, "namespace").is_empty();
    reference = reference.filter(|it| had[1].is_some() || !is_elsewhere(it));
    if had == [None, None] && reference.is_none() {
        source = source.filter(is_old);
    }
    match (&source, &reference) {
        (Some(it), None) => reference = Some(it.clone()),
        (None, Some(it)) if !is_elsewhere(it) => {
            let mut it = it.clone();
            put(&mut it, "namespace", None);
            source = Some(it);
        }
        _ => (),
    }
    for (field, value) in FIELDS.into_iter().zip([source, reference]) {
        put(&mut claim["spec"], field, value);
    }
}

/// Takes out what nobody here heeds, unless it was there before.
pub(super) fn unheeded(facts: Facts, old: Option<&Value>, new: &mut Value) {
    for path in facts.unheeded.split(',').filter(|it| !it.is_empty()) {
        let place = format!("/{}", path.replace('.', "/"));
        let was_there = old.is_some_and(|it| it.pointer(&place).is_some());
        if let Some((around, field)) = place.rsplit_once('/')
            && !was_there
            && let Some(fields) = new.pointer_mut(around).and_then(Value::as_object_mut)
        {
            fields.remove(field);
        }
    }
}

/// Sets a field, or removes it.
fn put(it: &mut Value, field: &str, value: Option<Value>) {
    if !it.is_object() {
        *it = Value::Object(Map::new());
    }
    let Some(fields) = it.as_object_mut() else { return };
    match value {
        Some(value) => fields.insert(field.into(), value),
        None => fields.remove(field),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn limited(group: &str, resource: &str, part: &str, old: &Value, new: &Value) -> Value {
        let registry = Registry::built_in();
        let mut new = new.clone();
        limit(registry.get(group, "v1", resource).unwrap(), part, old, &mut new);
        new
    }

    #[test]
    fn a_resize_changes_resources_alone() {
        let old = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "1"}]}});
        let new = json!({"metadata": {}, "spec": {"nodeName": "n", "containers": [
            {"name": "c", "image": "2", "resources": {"requests": {"cpu": "1"}}}]}});
        let it = limited("", "pods", "resize", &old, &new);
        assert_eq!(
            it["spec"],
            json!({"containers": [{"name": "c", "image": "1", "resources": {"requests": {"cpu": "1"}}}]})
        );
        assert_eq!(it["metadata"], old["metadata"]);
        let machine = |image: &str, cpu: &str| {
            let resources = json!({"requests": {"cpu": cpu}});
            json!({"spec": {"virtualMachine": {"image": image, "resources": resources}}})
        };
        let it = limited("", "pods", "resize", &machine("1", "1"), &machine("2", "4"));
        assert_eq!(it["spec"], machine("1", "4")["spec"]);
    }

    #[test]
    fn decisions_are_no_part_of_the_status() {
        let old = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "R", "lastUpdateTime": "u", "lastTransitionTime": "t"}]}});
        let new = json!({"status": {"certificate": "c", "conditions": [{"type": "Approved", "status": "False"}]}});
        let it = limited("certificates.k8s.io", "certificatesigningrequests", "status", &old, &new);
        assert_eq!(it["status"]["conditions"], old["status"]["conditions"]);
        assert_eq!(it["status"]["certificate"], "c");
        let it =
            limited("certificates.k8s.io", "certificatesigningrequests", "approval", &old, &new);
        assert_eq!(it["status"]["conditions"][0]["status"], "False");
        assert_eq!(it["status"].get("certificate"), None);
        assert!(it["status"]["conditions"][0]["lastUpdateTime"].is_string());
    }

    #[test]
    fn the_status_keeps_what_the_table_says() {
        let old =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}, "status": {}});
        let new = json!({"metadata": {"labels": {"c": "d"}}, "spec": {"replicas": 2}, "status": {"replicas": 3}});
        let it = limited("apps", "deployments", "status", &old, &new);
        assert_eq!((&it["metadata"], &it["spec"]), (&old["metadata"], &old["spec"]));
        assert_eq!(it["status"], new["status"]);
        let it = limited("apps", "replicasets", "status", &old, &new);
        assert_eq!((&it["metadata"], &it["spec"]), (&new["metadata"], &old["spec"]));
        let it = limited("apps", "replicasets", "", &old, &new);
        assert_eq!((&it["status"], &it["spec"]), (&old["status"], &new["spec"]));
    }

    #[test]
    fn a_claim_names_its_source_twice() {
        let sourced = |old: Option<&Value>, spec: Value| {
            let mut it = json!({ "spec": spec });
            data_sources(old, &mut it);
            it["spec"].take()
        };
        let claim = json!({"kind": "PersistentVolumeClaim", "name": "c"});
        let other = json!({"apiGroup": "example.com", "kind": "Image", "name": "i"});
        let both = |it: &Value| json!({"dataSource": it, "dataSourceRef": it});
        assert_eq!(sourced(None, json!({ "dataSource": claim })), both(&claim));
        assert_eq!(sourced(None, json!({ "dataSourceRef": other })), both(&other));
        assert_eq!(sourced(None, json!({ "dataSource": other })), json!({}));
        let two = json!({"dataSource": claim, "dataSourceRef": other});
        assert_eq!(sourced(None, two.clone()), two, "left for validation to refuse");
        let mut elsewhere = other.clone();
        elsewhere["namespace"] = "n".into();
        assert_eq!(sourced(None, json!({ "dataSourceRef": elsewhere })), json!({}));
        // Old clients leave out what they do not know, and claims made before have one alone.
        let old = json!({ "spec": both(&other) });
        assert_eq!(sourced(Some(&old), json!({ "dataSource": other })), both(&other));
        let old = json!({"spec": {"dataSourceRef": other}});
        assert_eq!(sourced(Some(&old), old["spec"].clone()), old["spec"]);
    }

    #[test]
    fn what_nobody_heeds_is_not_taken() {
        let facts = Facts { unheeded: "spec.a,spec.b.c", ..Facts::default() };
        let new = json!({"spec": {"a": 1, "b": {"c": 2, "d": 3}}});
        let mut it = new.clone();
        unheeded(facts, None, &mut it);
        assert_eq!(it, json!({"spec": {"b": {"d": 3}}}));
        let mut it = new.clone();
        unheeded(facts, Some(&json!({"spec": {"a": 0}})), &mut it);
        assert_eq!(it, json!({"spec": {"a": 1, "b": {"d": 3}}}));
    }
}
