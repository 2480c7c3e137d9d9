//! What may not change: a table for most (`api/tables/immutable.tsv`), and functions for what may
//! change in one way and not in another.

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use insula_api::{internal, object, resources::Resource, schema::TypeId};
use serde_json::Value;
use similar::TextDiff;

use super::{Errors, jobs, pod_updates, rule::quantity, services, workloads};
use crate::error::FieldError;

const TABLE: &str = include_str!("../../../api/tables/immutable.tsv");
pub(super) const IMMUTABLE: &str = "field is immutable";

/// A field that does not change.
struct Row {
    path: &'static str,
    parts: Vec<&'static str>,
    form: &'static str,
    why: &'static str,
}

/// The table, by group and resource.
static ROWS: LazyLock<HashMap<(&str, &str), Vec<Row>>> = LazyLock::new(|| {
    let mut rows: HashMap<_, Vec<Row>> = HashMap::new();
    for row in TABLE.lines().filter(|row| !row.starts_with('#')) {
        let mut columns = row.split('\t');
        let mut next = |none| columns.next().unwrap_or(none);
        let of = (next(""), next(""));
        let (path, form, why) = (next(""), next("invalid"), next(IMMUTABLE));
        let parts = path.split('.').collect();
        rows.entry(of).or_default().push(Row { path, parts, form, why });
    }
    rows
});

/// What only new objects are checked for.
pub(super) fn created(resource: &Resource, id: TypeId, it: &Value, errors: &mut Errors) {
    match (&*resource.group, &*resource.name) {
        ("batch", "cronjobs") => workloads::cron_name(it, errors),
        ("", "pods") => {
            pod_updates::trimmed_images(it, errors);
            pod_annotations(it, errors);
            if !list(&it["spec"], "ephemeralContainers").is_empty() {
                let why = "cannot be set on create";
                errors.push(FieldError::forbidden("spec.ephemeralContainers", why));
            }
            if !list(&it["spec"], "schedulingGates").is_empty()
                && !object::text(it, &["spec", "nodeName"]).is_empty()
            {
                let why = "cannot be set until all schedulingGates have been cleared";
                errors.push(FieldError::forbidden("spec.nodeName", why));
            }
        }
        ("batch", "jobs") => jobs::own_selector(id, it, errors),
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => {
            let is_exempt = object::name(it) == "exempt";
            let kind = object::text(it, &["spec", "type"]);
            if is_exempt != (kind == "Exempt") {
                let why = "must be 'Exempt' if and only if `name` is 'exempt'";
                errors.insert(0, FieldError::invalid("spec.type", &kind.into(), why));
            }
        }
        ("flowcontrol.apiserver.k8s.io", "flowschemas")
            if it["spec"]["matchingPrecedence"] == 1 && object::name(it) != "exempt" =>
        {
            let why = "only the schema named 'exempt' may have matchingPrecedence 1";
            errors.push(FieldError::invalid("spec.matchingPrecedence", &1.into(), why));
        }
        _ => (),
    }
}

/// What the annotations of a pod say that its specification has to go with.
fn pod_annotations(it: &Value, errors: &mut Errors) {
    const MIRROR: &str = "kubernetes.io/config.mirror";
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    let annotation = |name: &str| {
        let found = object::metadata(it).get("annotations")?.get(name)?.as_str()?;
        Some(found.to_owned())
    };
    if let Some(mirror) = annotation(MIRROR)
        && object::text(it, &["spec", "nodeName"]).is_empty()
    {
        let at = format!("metadata.annotations[{MIRROR}]");
        let why = "must set spec.nodeName if mirror pod annotation is set";
        errors.push(FieldError::invalid(at, &mirror.into(), why));
    }
    if let Some(cost) = annotation(COST) {
        let is_plain = cost == "0" || !cost.starts_with(['0', '+']) && !cost.starts_with("-0");
        if !is_plain || cost.parse::<i32>().is_err() {
            let at = format!("metadata.annotations[{COST}]");
            errors.push(FieldError::invalid(at, &cost.into(), "must be a 32bit integer"));
        }
    }
}

pub(super) fn list<'a>(it: &'a Value, field: &str) -> &'a [Value] {
    it.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// What an update may not do.
pub(super) fn changed(
    resource: &Resource,
    id: TypeId,
    old: &Value,
    new: &Value,
    errors: &mut Errors,
) {
    as_before(resource, old, new, errors);
    let mut first = Vec::new();
    for row in ROWS.get(&(&*resource.group, &*resource.name)).into_iter().flatten() {
        let (had, has) = (object::at(old, &row.parts), object::at(new, &row.parts));
        if had != has {
            let place = if row.form == "first" { &mut first } else { &mut *errors };
            place.push(match row.form {
                "forbidden" => FieldError::forbidden(row.path, row.why),
                _ => {
                    let shown = internal::line(id, row.path, has.unwrap_or(&Value::Null));
                    FieldError::invalid_form(row.path, &shown, row.why)
                }
            });
        }
    }
    errors.splice(0..0, first);
    match (&*resource.group, &*resource.name) {
        ("", "pods") => pod_updates::pod(id, old, new, errors),
        ("", "services") => services::update(old, new, errors),
        ("", "configmaps" | "secrets") => sealed(old, new, errors),
        ("", "persistentvolumeclaims") => claim(id, old, new, errors),
        ("", "persistentvolumes") => volume(id, old, new, errors),
        ("", "nodes") => node(old, new, errors),
        ("", "resourcequotas") => quota(old, new, errors),
        ("apps", "statefulsets") => stateful_set(old, new, errors),
        ("batch", "jobs") => {
            job(id, old, new, errors);
            jobs::kept_selector(id, old, new, errors);
        }
        ("networking.k8s.io", "servicecidrs") => cidrs(old, new, errors),
        ("storage.k8s.io", "csinodes") => drivers(old, new, errors),
        _ => (),
    }
}

/// Addresses that were let in once are not looked at again while they stay.
fn as_before(resource: &Resource, old: &Value, new: &Value, errors: &mut Errors) {
    let field = match (&*resource.group, &*resource.name) {
        ("", "endpoints") => "subsets",
        ("discovery.k8s.io", "endpointslices") => "endpoints",
        _ => return,
    };
    if old.get(field) == new.get(field) {
        errors.retain(|it| !it.field.starts_with(field));
    }
}

/// What is sealed stays as it is.
fn sealed(old: &Value, new: &Value, errors: &mut Errors) {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if new.get("immutable") != Some(&Value::Bool(true)) {
        errors.push(FieldError::forbidden("immutable", why));
    }
    for field in ["data", "binaryData"] {
        let of = |it: &Value| it.get(field).and_then(Value::as_object).cloned().unwrap_or_default();
        if of(old) != of(new) {
            errors.push(FieldError::forbidden(field, why));
        }
    }
}

/// `new` with some fields of its specification as they were.
fn with_old(old: &Value, new: &Value, fields: &[&str]) -> Value {
    let mut spec = new["spec"].clone();
    for field in fields {
        put(&mut spec, field, old["spec"].get(field).cloned());
    }
    spec
}

pub(super) fn put(it: &mut Value, field: &str, value: Option<Value>) {
    let Some(fields) = it.as_object_mut() else { return };
    match value {
        Some(value) => fields.insert(field.into(), value),
        None => fields.remove(field),
    };
}

fn stateful_set(old: &Value, new: &Value, errors: &mut Errors) {
    let free = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    if with_old(old, new, &free) != old["spec"] {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errors.push(FieldError::forbidden("spec", why));
    }
}

fn job(id: TypeId, old: &Value, new: &Value, errors: &mut Errors) {
    let (had, has) = (&old["spec"]["template"], &new["spec"]["template"]);
    let waits = jobs::waits(old);
    let place = if waits { "spec.template.spec" } else { "spec.template" };
    let is_kept = match waits {
        true => jobs::told_more(had, has) == has["spec"],
        false => had == has,
    };
    if !is_kept {
        let shown = if waits { &has["spec"] } else { has };
        let shown = internal::line(id, place, shown);
        errors.push(FieldError::invalid_form(place, &shown, IMMUTABLE));
    }
    let (had, has) = (old["spec"].get("completions"), new["spec"].get("completions"));
    let is_elastic = object::text(new, &["spec", "completionMode"]) == "Indexed"
        && has == new["spec"].get("parallelism");
    if had != has && !is_elastic {
        let shown = has.cloned().unwrap_or_default();
        errors.push(FieldError::invalid("spec.completions", &shown, IMMUTABLE));
    }
}

fn claim(id: TypeId, old: &Value, new: &Value, errors: &mut Errors) {
    let mut allowed = old["spec"].clone();
    if object::text(old, &["spec", "volumeName"]).is_empty() {
        put(&mut allowed, "volumeName", new["spec"].get("volumeName").cloned());
    }
    if old["spec"].get("storageClassName").is_none() {
        // The default class may come later than the claim.
        put(&mut allowed, "storageClassName", new["spec"].get("storageClassName").cloned());
    }
    let storage = |it: &Value| it.pointer("/spec/resources/requests/storage").cloned();
    if object::text(new, &["status", "phase"]) == "Bound" {
        if let Some(size) = storage(new) {
            allowed["resources"]["requests"]["storage"] = size;
        }
        let class = new["spec"].get("volumeAttributesClassName").cloned();
        put(&mut allowed, "volumeAttributesClassName", class);
    }
    if allowed != new["spec"] {
        let why = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
            difference(id, "spec", &allowed, &new["spec"])
        );
        errors.push(FieldError::forbidden("spec", &why));
    }
    let amount = |it: Option<Value>| it.as_ref().and_then(quantity);
    let (had, has) = (amount(storage(old)), amount(storage(new)));
    let capacity = amount(old.pointer("/status/capacity/storage").cloned());
    if let (Some(had), Some(has)) = (had, has)
        && has < had
        && capacity.is_none_or(|capacity| has <= capacity)
    {
        let why = "field can not be less than status.capacity";
        errors.push(FieldError::forbidden("spec.resources.requests.storage", why));
    }
    let mode = |it: &Value| it["spec"].get("volumeMode").cloned();
    if mode(old) != mode(new) {
        let shown = mode(new).unwrap_or_default();
        errors.push(FieldError::invalid("volumeMode", &shown, IMMUTABLE));
    }
    const CLASS: &str = "volumeAttributesClassName";
    let class = |it: &Value| it["spec"].get(CLASS).cloned();
    let what = match class(new) {
        None => "nil",
        Some(name) if name == "" => "empty string",
        Some(_) => return,
    };
    let is_in_use = old["status"].get("currentVolumeAttributesClassName").is_some();
    if is_in_use && class(old) != class(new) {
        let why = format!(
            "update to {what} is forbidden when status.currentVolumeAttributesClassName is not nil"
        );
        errors.push(FieldError::forbidden(format!("spec.{CLASS}"), &why));
    }
}

/// A driver of a node stays as it is, but for how much it can take.
fn drivers(old: &Value, new: &Value, errors: &mut Errors) {
    let known: HashMap<&str, &Value> =
        list(&old["spec"], "drivers").iter().map(|it| (object::text(it, &["name"]), it)).collect();
    let fields = |it: &Value| -> BTreeMap<String, Value> {
        let fields = it.as_object().into_iter().flatten();
        let fields = fields.filter(|(name, _)| *name != "allocatable");
        fields.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    for it in list(&new["spec"], "drivers") {
        let had = known.get(object::text(it, &["name"]));
        if had.is_some_and(|had| fields(had) != fields(it)) {
            errors.push(FieldError::invalid("spec.drivers", it, IMMUTABLE));
        }
    }
}

/// Where a volume is does not change.
fn volume(id: TypeId, old: &Value, new: &Value, errors: &mut Errors) {
    let free = [
        "capacity",
        "accessModes",
        "claimRef",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "mountOptions",
        "nodeAffinity",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    // A secret for expansion may come later.
    const EXPANSION: &str = "controllerExpandSecretRef";
    let mut kept = with_old(old, new, &free);
    if old["spec"].get("csi").is_some_and(|it| it.get(EXPANSION).is_none())
        && let Some(csi) = kept.get_mut("csi").and_then(Value::as_object_mut)
    {
        csi.remove(EXPANSION);
    }
    let affinity = |it: &Value| it["spec"].get("nodeAffinity").cloned();
    if let Some(had) = affinity(old)
        && affinity(new).as_ref() != Some(&had)
    {
        let shown = affinity(new).unwrap_or_default();
        errors.push(FieldError::invalid("spec.nodeAffinity", &shown, IMMUTABLE));
    }
    if kept != old["spec"] {
        let source = |it: &Value| {
            internal::lines_of(id, "spec", &it["spec"], |field| !free.contains(&field))
        };
        let why = format!(
            "spec.persistentvolumesource is immutable after creation\n{}",
            unified(&source(old), &source(new))
        );
        errors.push(FieldError::forbidden("spec.persistentvolumesource", &why));
    }
}

/// Who has assigned a node its place does so once.
fn node(old: &Value, new: &Value, errors: &mut Errors) {
    let (had, has) = (list(&old["spec"], "podCIDRs"), list(&new["spec"], "podCIDRs"));
    let n_changed = match had.len() == has.len() {
        true => had.iter().zip(has).filter(|(had, has)| had != has).count(),
        false => usize::from(!had.is_empty()),
    };
    for _ in 0..n_changed {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.podCIDRs", why));
    }
    let provider = |it| object::text(it, &["spec", "providerID"]);
    if !provider(old).is_empty() && provider(old) != provider(new) {
        let why = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.providerID", why));
    }
    let free = [
        "podCIDR",
        "podCIDRs",
        "providerID",
        "taints",
        "unschedulable",
        "configSource",
        "externalID",
    ];
    if with_old(old, new, &free) != old["spec"] {
        let why = "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig feature gate is enabled)";
        errors.push(FieldError::forbidden("spec", why));
    }
}

/// The scopes of a quota are what it is about.
fn quota(old: &Value, new: &Value, errors: &mut Errors) {
    let scopes = |it: &Value| -> std::collections::BTreeSet<String> {
        list(&it["spec"], "scopes").iter().map(Value::to_string).collect()
    };
    if scopes(old) != scopes(new) {
        let shown = new["spec"].get("scopes").cloned().unwrap_or_default();
        errors.push(FieldError::invalid("spec.scopes", &shown, IMMUTABLE));
    }
}

/// A network may get one of the other family beside it; nothing else.
fn cidrs(old: &Value, new: &Value, errors: &mut Errors) {
    let (had, has) = (list(&old["spec"], "cidrs"), list(&new["spec"], "cidrs"));
    if had.len() != has.len() && (had.len(), has.len()) != (1, 2) {
        let shown = new["spec"].get("cidrs").cloned().unwrap_or_default();
        errors.push(FieldError::invalid("spec.cidrs", &shown, IMMUTABLE));
        return;
    }
    for (index, (had, has)) in had.iter().zip(has).enumerate() {
        if had != has {
            errors.push(FieldError::invalid(format!("spec.cidrs[{index}]"), has, IMMUTABLE));
        }
    }
}

/// Where two structures at `path` of an object of type `id` differ.
pub(super) fn difference(id: TypeId, path: &str, one: &Value, two: &Value) -> String {
    unified(&internal::lines(id, path, one), &internal::lines(id, path, two))
}

fn unified(one: &str, two: &str) -> String {
    let (one, two) = (format!("{one}\n"), format!("{two}\n"));
    TextDiff::from_lines(&one, &two).unified_diff().context_radius(3).to_string()
}
