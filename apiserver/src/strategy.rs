//! What is special about each resource when its objects are written.
//!
//! Everything a resource has in common with others is in [`crate::write`]; here is what differs, as
//! data ([`facts`]) where that is enough and as small functions where it is not.

mod facts;
mod jobs;
mod parts;
pub(crate) mod pods;
pub(crate) mod warnings;

use insula_api::{defaults, kinds::TENANT_FINALIZER, object, resources::Resource, time};
use serde_json::{Map, Value, json};

use self::facts::Generation;
use crate::{
    aggregation, custom,
    identity::Identity,
    registry::{Nature, Served},
};

pub(crate) use self::facts::{Facts, Name};

/// What is special about the resource.
pub(crate) fn facts(resource: &Resource) -> Facts {
    facts::of(resource)
}

fn generation(served: &Served) -> Generation {
    match served.custom() {
        // A status of its own is put back before.
        Some(_) => Generation::All,
        None => facts(&served.resource).generation,
    }
}

/// Whether the server numbers an object's generations; else whoever writes it may.
pub(crate) fn counts_changes(served: &Served) -> bool {
    generation(served) != Generation::None
}

pub(crate) fn needs_revision(served: &Served) -> bool {
    served.custom().is_some() || facts(&served.resource).put_needs_revision
}

/// Brings a new object into the shape that its writer answers for: with all defaults, and without
/// what nobody can create.
pub(crate) fn begin_create(served: &Served, it: &mut Value) {
    let facts = facts(&served.resource);
    if served.resource.subresource("status").is_some()
        && !facts.comes_with_status
        && let Some(fields) = it.as_object_mut()
    {
        fields.remove("status");
    }
    normalize(served, it);
    if facts.counts_templates {
        template_generation(None, it);
    }
}

/// Fills in what the server decides about a new object, which `by` creates.
pub(crate) fn prepare_create(served: &Served, by: &Identity, it: &mut Value) {
    let resource = &served.resource;
    match (&*resource.group, &*resource.name) {
        ("", "pods") => pods::begin(it),
        ("", "namespaces") => {
            let finalizers = it["spec"].get("finalizers").and_then(Value::as_array).cloned();
            let mut finalizers = finalizers.unwrap_or_default();
            if !finalizers.contains(&"kubernetes".into()) {
                finalizers.push("kubernetes".into());
            }
            it["spec"]["finalizers"] = finalizers.into();
            it["status"] = json!({"phase": "Active"});
        }
        ("", "persistentvolumes") => {
            it["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": time::now()});
        }
        ("", "persistentvolumeclaims") => {
            parts::data_sources(None, it);
            it["status"] = json!({"phase": "Pending"});
        }
        ("batch", "jobs") => jobs::own_pods(it),
        ("certificates.k8s.io", "certificatesigningrequests") => requested_by(by, it),
        ("discovery.k8s.io", "endpointslices") => {
            let endpoints = it.get_mut("endpoints").and_then(Value::as_array_mut);
            for endpoint in endpoints.into_iter().flatten().filter_map(Value::as_object_mut) {
                endpoint.remove("deprecatedTopology");
            }
        }
        (aggregation::GROUP, aggregation::RESOURCE) => {
            it["status"] = match it["spec"].get("service").is_none_or(Value::is_null) {
                true => aggregation::local::status(&time::now()),
                false => json!({}),
            };
        }
        (custom::GROUP, custom::RESOURCE) => {
            it["status"] = json!({"conditions": [], "acceptedNames": {"plural": "", "kind": ""}});
            custom::prepare(it);
        }
        ("insula.io", "tenants") => {
            let metadata = object::metadata_mut(it);
            metadata.insert("finalizers".into(), json!([TENANT_FINALIZER]));
            let name = object::name(it).to_owned();
            if it["spec"].get("admins").is_none() {
                it["spec"]["admins"] = json!([{
                    "kind": "Group", "apiGroup": "rbac.authorization.k8s.io",
                    "name": format!("{name}-admins"),
                }]);
            }
        }
        _ => (),
    }
    parts::unheeded(facts(resource), None, it);
    if !matches!(generation(served), Generation::None | Generation::Later) {
        object::metadata_mut(it).insert("generation".into(), 1.into());
    }
}

/// A request for a certificate says who asks, whatever was written there.
fn requested_by(by: &Identity, it: &mut Value) {
    if let Some(spec) = it.get_mut("spec").and_then(Value::as_object_mut) {
        for field in ["username", "uid", "groups", "extra"] {
            spec.remove(field);
        }
        spec.insert("username".into(), by.user.as_str().into());
        if !by.uid.is_empty() {
            spec.insert("uid".into(), by.uid.as_str().into());
        }
        if !by.groups.is_empty() {
            spec.insert("groups".into(), json!(by.groups));
        }
        if !by.extra.is_empty() {
            let extra = by.extra.iter().map(|(key, values)| (key.clone(), json!(values)));
            spec.insert("extra".into(), Value::Object(extra.collect()));
        }
    }
    it["status"] = json!({});
}

/// Counts the changes of a daemon set's template, as old clients expect it.
fn template_generation(old: Option<&Value>, new: &mut Value) {
    const ANNOTATION: &str = "deprecated.daemonset.template.generation";
    let count = |it: &Value| {
        let text = object::metadata(it).get("annotations")?.get(ANNOTATION)?.as_str()?;
        text.parse::<i64>().ok()
    };
    let count = match old {
        Some(old) => {
            let changed = old["spec"].get("template") != new["spec"].get("template");
            count(old).unwrap_or(1) + i64::from(changed)
        }
        None => count(new).unwrap_or(1).max(1),
    };
    let annotations = object::metadata_mut(new).entry("annotations").or_insert_with(|| json!({}));
    annotations[ANNOTATION] = count.to_string().into();
}

/// Defaults and labels that every write of the resource gets.
pub(crate) fn normalize(served: &Served, it: &mut Value) {
    let resource = &served.resource;
    // An emptied list or map is the same as none, as upstream's encoder has it.
    object::metadata_mut(it).retain(|_, value| match value {
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    });
    match &served.nature {
        Nature::BuiltIn(id) => defaults::apply(*id, it),
        Nature::Custom(custom) => {
            insula_custom::default::fill(&custom.version.schema, it);
        }
    }
    match (&*resource.group, &*resource.name) {
        ("", "namespaces") => {
            let name = object::name(it).to_owned();
            let labels = &mut object::metadata_mut(it).entry("labels").or_insert_with(|| json!({}));
            labels["kubernetes.io/metadata.name"] = name.into();
        }
        ("", "nodes") => parts::pod_networks(it),
        ("", "secrets") => string_data(it),
        (custom::GROUP, custom::RESOURCE) => custom::prepare(it),
        _ => (),
    }
}

/// `stringData` is a convenience for writing: its values end up in `data`.
fn string_data(it: &mut Value) {
    use base64::Engine as _;
    let Some(fields) = it.as_object_mut() else { return };
    let Some(Value::Object(plain)) = fields.remove("stringData") else { return };
    if plain.is_empty() {
        return;
    }
    let data = fields.entry("data").or_insert_with(|| Value::Object(Map::new()));
    for (key, value) in plain {
        let text = value.as_str().unwrap_or_default();
        data[key] = base64::engine::general_purpose::STANDARD.encode(text).into();
    }
}

/// Brings an update into the shape the server accepts: what cannot change is taken from `old`.
pub(crate) fn prepare_update(served: &Served, subresource: &str, old: &Value, new: &mut Value) {
    let resource = &served.resource;
    parts::limit(served, subresource, old, new);
    for field in [
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "tenant",
        "uid",
        "name",
        "namespace",
    ] {
        restore_metadata(old, new, field);
    }
    let facts = facts(resource);
    if facts.keeps_given && subresource.is_empty() {
        crate::services::keep_what_is_held(old, new);
    }
    normalize(served, new);
    parts::unheeded(facts, Some(old), new);
    if (&*resource.group, &*resource.name) == ("", "persistentvolumeclaims") {
        parts::data_sources(Some(old), new);
    }
    if facts.counts_templates && subresource.is_empty() {
        template_generation(Some(old), new);
    }
}

/// Counts a change that is as it will be kept: what admission takes back is none.
pub(crate) fn count(served: &Served, subresource: &str, old: &Value, new: &mut Value) {
    if matches!(subresource, "" | "ephemeralcontainers" | "resize") && counts(served, old, new) {
        bump_generation(new);
    }
}

/// Whether a change is one that the generation counts.
fn counts(served: &Served, old: &Value, new: &Value) -> bool {
    let differs = |field: &str| old.get(field) != new.get(field);
    let meta = |field: &str| object::metadata(old).get(field) != object::metadata(new).get(field);
    match generation(served) {
        Generation::None | Generation::First => false,
        Generation::Spec | Generation::Later => differs("spec"),
        Generation::SpecAndAnnotations => differs("spec") || meta("annotations"),
        Generation::All => data(old).ne(data(new)),
        Generation::AllAndLabels => data(old).ne(data(new)) || meta("labels"),
    }
}

/// All but the metadata.
fn data(it: &Value) -> impl Iterator<Item = (&String, &Value)> {
    it.as_object().into_iter().flatten().filter(|(name, _)| *name != "metadata")
}

pub(crate) fn bump_generation(it: &mut Value) {
    let generation = object::metadata(it).get("generation").and_then(Value::as_i64).unwrap_or(0);
    object::metadata_mut(it).insert("generation".into(), (generation + 1).into());
}

fn restore(old: &Value, new: &mut Value, field: &str) {
    if let Some(fields) = new.as_object_mut() {
        match old.get(field) {
            Some(value) => fields.insert(field.into(), value.clone()),
            None => fields.remove(field),
        };
    }
}

fn restore_metadata(old: &Value, new: &mut Value, field: &str) {
    let kept = object::metadata(old).get(field).cloned();
    let metadata = object::metadata_mut(new);
    match kept {
        Some(value) => metadata.insert(field.into(), value),
        None => metadata.remove(field),
    };
}
