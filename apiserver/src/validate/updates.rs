//! What may not change: a table for most (`api/tables/immutable.tsv`), and functions for what may
//! change in one way and not in another.

use std::collections::HashSet;

use insula_api::{object, resources::Resource};
use serde_json::{Map, Value, json};

use super::{Errors, rules::quantity, services, workloads};
use crate::{error::FieldError, strategy::pods::qos_class};

const TABLE: &str = include_str!("../../../api/tables/immutable.tsv");
const IMMUTABLE: &str = "field is immutable";

/// What only new objects are checked for.
pub(super) fn created(resource: &Resource, it: &Value, errors: &mut Errors) {
    match (&*resource.group, &*resource.name) {
        ("batch", "cronjobs") => workloads::cron_name(it, errors),
        ("", "pods") => {
            trimmed_images(it, errors);
            if !list(&it["spec"], "ephemeralContainers").is_empty() {
                let why = "cannot be set on create";
                errors.push(FieldError::forbidden("spec.ephemeralContainers", why));
            }
            if !list(&it["spec"], "schedulingGates").is_empty()
                && !object::text(it, &["spec", "nodeName"]).is_empty()
            {
                let why = "cannot be set until all schedulingGates have been cleared";
                errors.push(FieldError::forbidden("nodeName", why));
            }
        }
        _ => (),
    }
}

fn list<'a>(it: &'a Value, field: &str) -> &'a [Value] {
    it.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn trimmed_images(pod: &Value, errors: &mut Errors) {
    for field in ["containers", "initContainers"] {
        for (index, container) in list(&pod["spec"], field).iter().enumerate() {
            let image = object::text(container, &["image"]);
            if image.trim() != image {
                let at = format!("spec.{field}[{index}].image");
                let why = "must not have leading or trailing whitespace";
                errors.push(FieldError::invalid(at, &image.into(), why));
            }
        }
    }
}

/// What an update may not do.
pub(super) fn changed(resource: &Resource, old: &Value, new: &Value, errors: &mut Errors) {
    let rows = TABLE.lines().filter(|row| !row.starts_with('#'));
    for row in rows {
        let mut columns = row.split('\t');
        let (group, name) = (columns.next().unwrap_or(""), columns.next().unwrap_or(""));
        if (group, name) != (&*resource.group, &*resource.name) {
            continue;
        }
        let path = columns.next().unwrap_or_default();
        let (form, why) =
            (columns.next().unwrap_or("invalid"), columns.next().unwrap_or(IMMUTABLE));
        let at = |it| object::at(it, &path.split('.').collect::<Vec<_>>()).cloned();
        let (had, has) = (at(old), at(new));
        if had != has {
            errors.push(match form {
                "forbidden" => FieldError::forbidden(path, why),
                _ => FieldError::invalid(path, &has.unwrap_or_default(), why),
            });
        }
    }
    match (&*resource.group, &*resource.name) {
        ("", "pods") => pod(old, new, errors),
        ("", "services") => services::update(old, new, errors),
        ("", "configmaps" | "secrets") => sealed(old, new, errors),
        ("", "persistentvolumeclaims") => claim(old, new, errors),
        ("", "persistentvolumes") => volume(old, new, errors),
        ("", "nodes") => node(old, new, errors),
        ("apps", "statefulsets") => stateful_set(old, new, errors),
        ("batch", "jobs") => job(old, new, errors),
        _ => (),
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

fn put(it: &mut Value, field: &str, value: Option<Value>) {
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

fn job(old: &Value, new: &Value, errors: &mut Errors) {
    let (had, has) = (&old["spec"]["template"], &new["spec"]["template"]);
    let is_suspended = old["spec"].get("suspend") == Some(&Value::Bool(true));
    let mut allowed = had.clone();
    if is_suspended && old["status"].get("startTime").is_none() {
        // A job that never began may be told where to run.
        for field in ["nodeSelector", "tolerations", "schedulingGates", "affinity"] {
            put(&mut allowed["spec"], field, has["spec"].get(field).cloned());
        }
        for field in ["annotations", "labels"] {
            put(&mut allowed["metadata"], field, has["metadata"].get(field).cloned());
        }
        for field in ["containers", "initContainers"] {
            let wanted: Vec<Option<Value>> =
                list(&has["spec"], field).iter().map(|it| it.get("resources").cloned()).collect();
            let containers = allowed["spec"].get_mut(field).and_then(Value::as_array_mut);
            for (it, resources) in containers.into_iter().flatten().zip(wanted) {
                put(it, "resources", resources);
            }
        }
    }
    if allowed != *has {
        errors.push(FieldError::invalid("spec.template", has, IMMUTABLE));
    }
    let (had, has) = (old["spec"].get("completions"), new["spec"].get("completions"));
    let is_elastic = object::text(new, &["spec", "completionMode"]) == "Indexed"
        && has == new["spec"].get("parallelism");
    if had != has && !is_elastic {
        let shown = has.cloned().unwrap_or_default();
        errors.push(FieldError::invalid("spec.completions", &shown, IMMUTABLE));
    }
}

fn claim(old: &Value, new: &Value, errors: &mut Errors) {
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
        let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden("spec", why));
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
}

/// Where a volume is does not change.
fn volume(old: &Value, new: &Value, errors: &mut Errors) {
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
        "csi",
    ];
    if with_old(old, new, &free) != old["spec"] {
        let why = "spec.persistentvolumesource is immutable after creation";
        errors.push(FieldError::forbidden("spec.persistentvolumesource", why));
    }
}

/// Who has assigned a node its place does so once.
fn node(old: &Value, new: &Value, errors: &mut Errors) {
    for (field, why) in [
        ("podCIDR", "node updates may not change podCIDR except from \"\" to valid"),
        ("providerID", "node updates may not change providerID except from \"\" to valid"),
    ] {
        let had = object::text(old, &["spec", field]);
        if !had.is_empty() && had != object::text(new, &["spec", field]) {
            errors.push(FieldError::forbidden(format!("spec.{field}"), why));
        }
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

const POD: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn pod(old: &Value, new: &Value, errors: &mut Errors) {
    trimmed_images(new, errors);
    for field in ["containers", "initContainers"] {
        if list(&old["spec"], field).len() != list(&new["spec"], field).len() {
            let why = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(format!("spec.{field}"), why));
            return;
        }
    }
    let mut allowed = old["spec"].clone();
    for field in ["containers", "initContainers"] {
        let images: Vec<Option<Value>> =
            list(&new["spec"], field).iter().map(|it| it.get("image").cloned()).collect();
        let containers = allowed.get_mut(field).and_then(Value::as_array_mut);
        for (it, image) in containers.into_iter().flatten().zip(images) {
            put(it, "image", image);
        }
    }
    deadline(old, new, errors);
    put(&mut allowed, "activeDeadlineSeconds", new["spec"].get("activeDeadlineSeconds").cloned());
    tolerations(old, new, errors);
    put(&mut allowed, "tolerations", new["spec"].get("tolerations").cloned());
    let gates = list(&old["spec"], "schedulingGates");
    for gate in list(&new["spec"], "schedulingGates") {
        if !gates.contains(gate) {
            let why = format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                object::text(gate, &["name"])
            );
            let index = list(&new["spec"], "schedulingGates").iter().position(|it| it == gate);
            let at = format!("spec.schedulingGates[{}].name", index.unwrap_or(0));
            errors.push(FieldError::forbidden(at, &why));
        }
    }
    put(&mut allowed, "schedulingGates", new["spec"].get("schedulingGates").cloned());
    let grace =
        |it: &Value| it["spec"].get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace(old).is_some_and(|it| it < 0) && grace(new) == Some(1) {
        allowed["terminationGracePeriodSeconds"] = 1.into();
    }
    if !gates.is_empty() {
        gated(old, new, &mut allowed, errors);
    }
    if allowed != new["spec"] {
        errors.push(FieldError::forbidden(
            "spec",
            &format!("{POD}\n{}", difference(&allowed, &new["spec"])),
        ));
    }
}

/// A pod that waits may be told more exactly where to go.
fn gated(old: &Value, new: &Value, allowed: &mut Value, errors: &mut Errors) {
    let selector = |it: &Value| {
        it["spec"].get("nodeSelector").and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let (had, has) = (selector(old), selector(new));
    if had != has {
        if had.iter().any(|(key, value)| has.get(key) != Some(value)) {
            let why = "only additions are allowed (no deletions or mutations)";
            let shown = Value::Object(Map::clone(&has));
            errors.push(FieldError::invalid("spec.nodeSelector", &shown, why));
        }
        put(allowed, "nodeSelector", new["spec"].get("nodeSelector").cloned());
    }
    let affinity = |it: &Value| it.pointer("/spec/affinity/nodeAffinity").cloned();
    let (had, has) = (affinity(old), affinity(new));
    if had == has {
        return;
    }
    const TERMS: &str = "/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = |it: &Option<Value>| {
        it.as_ref().and_then(|it| it.pointer(TERMS)).and_then(Value::as_array).cloned()
    };
    if let Some(had) = terms(&had) {
        let at = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
        let has = terms(&has).unwrap_or_default();
        let narrows = |one: &Value, two: &Value| {
            ["matchExpressions", "matchFields"].iter().all(|field| {
                let wanted = list(two, field);
                list(one, field).iter().all(|it| wanted.contains(it))
            })
        };
        if had.len() != has.len() {
            let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
            errors.push(FieldError::invalid(at, &json!(has), why));
        } else if !had.iter().zip(&has).all(|(one, two)| narrows(one, two)) {
            let why = "only additions are allowed (no mutations or deletions)";
            errors.push(FieldError::invalid(format!("{at}[0]"), &json!(has), why));
        }
    }
    put(allowed, "affinity", new["spec"].get("affinity").cloned());
    let others = ["podAffinity", "podAntiAffinity"];
    let part = |it: &Value, field: &str| it["spec"]["affinity"].get(field).cloned();
    for field in others {
        let had = part(old, field);
        if had != part(new, field) {
            if !allowed["affinity"].is_object() {
                allowed["affinity"] = json!({});
            }
            put(&mut allowed["affinity"], field, had);
        }
    }
}

fn deadline(old: &Value, new: &Value, errors: &mut Errors) {
    const AT: &str = "spec.activeDeadlineSeconds";
    let of = |it: &Value| it["spec"].get("activeDeadlineSeconds").and_then(Value::as_i64);
    match (of(old), of(new)) {
        (Some(had), Some(has)) if had < has => {
            let why = "must be less than or equal to previous value";
            errors.push(FieldError::invalid(AT, &has.into(), why));
        }
        (Some(_), None) => {
            let why = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(AT, &Value::Null, why));
        }
        _ => (),
    }
}

fn tolerations(old: &Value, new: &Value, errors: &mut Errors) {
    // Without the seconds, where they may change.
    let free = |it: &Value| {
        let mut it = it.clone();
        put(&mut it, "tolerationSeconds", None);
        it.to_string()
    };
    let has = list(&new["spec"], "tolerations");
    let exact: HashSet<String> = has.iter().map(Value::to_string).collect();
    let but_seconds: HashSet<String> = has.iter().map(free).collect();
    for known in list(&old["spec"], "tolerations") {
        let is_kept = exact.contains(&known.to_string())
            || (known.get("tolerationSeconds").is_some() && but_seconds.contains(&free(known)));
        if !is_kept {
            let why = "existing toleration can not be modified except its tolerationSeconds";
            errors.push(FieldError::forbidden("spec.tolerations", why));
            return;
        }
    }
}

/// Where two specifications differ, for whoever wonders.
fn difference(one: &Value, two: &Value) -> String {
    let empty = Map::new();
    let (one, two) = (one.as_object().unwrap_or(&empty), two.as_object().unwrap_or(&empty));
    let names: std::collections::BTreeSet<&String> = one.keys().chain(two.keys()).collect();
    let differing = names.into_iter().filter(|name| one.get(*name) != two.get(*name));
    differing.map(|name| format!("  {name}\n")).collect()
}

/// Ephemeral containers come, and stay.
pub(super) fn ephemeral_containers(old: &Value, new: &Value, errors: &mut Errors) {
    const AT: &str = "spec.ephemeralContainers";
    if is_mirror(old) {
        *errors =
            vec![FieldError::forbidden("", "static pods do not support ephemeral containers")];
        return;
    }
    let has = list(&new["spec"], "ephemeralContainers");
    for known in list(&old["spec"], "ephemeralContainers") {
        let name = object::text(known, &["name"]);
        match has.iter().find(|it| object::text(it, &["name"]) == name) {
            None => {
                let why = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.push(FieldError::forbidden(AT, &why));
            }
            Some(found) if found != known => {
                let why = format!(
                    "existing ephemeral containers {name:?} may not be changed\n{}",
                    difference(known, found)
                );
                errors.push(FieldError::forbidden(AT, &why));
            }
            Some(_) => (),
        }
    }
}

fn is_mirror(pod: &Value) -> bool {
    let annotations = object::metadata(pod).get("annotations");
    annotations.is_some_and(|it| it.get("kubernetes.io/config.mirror").is_some())
}

/// A pod that runs may get more or less of the processor and of memory.
pub(super) fn resize(old: &Value, new: &Value, errors: &mut Errors) {
    let only = |why: &str| vec![FieldError::forbidden("", why)];
    if is_mirror(old) {
        *errors = only("static pods cannot be resized");
        return;
    }
    if object::text(old, &["spec", "os", "name"]) == "windows" {
        *errors = only("windows pods cannot be resized");
        return;
    }
    let class = object::text(old, &["status", "qosClass"]);
    if !class.is_empty() && class != qos_class(new) {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", &class.into(), why));
    }
    let statuses = list(&old["status"], "containerStatuses");
    let running = statuses.iter().find(|it| it["state"].get("running").is_some());
    if running.is_some_and(|it| it.get("resources").is_none()) {
        let why = "Pod running on node without support for resize";
        errors.push(FieldError::forbidden("spec", why));
    }
    for field in ["containers", "initContainers"] {
        let (had, has) = (list(&old["spec"], field), list(&new["spec"], field));
        if had.len() != has.len() {
            let why = format!("{field} may not be added or removed on resize");
            errors.push(FieldError::forbidden("spec", &why));
            return;
        }
        for (index, (had, has)) in had.iter().zip(has).enumerate() {
            if had["name"] != has["name"] {
                let why = format!("{field} may not be renamed or reordered on resize");
                errors.push(FieldError::forbidden("spec", &why));
                return;
            }
            resize_container(had, has, &format!("spec.{field}[{index}].resources"), errors);
        }
    }
}

fn resize_container(old: &Value, new: &Value, at: &str, errors: &mut Errors) {
    let of = |it: &Value, kind: &str| {
        let found = it.get("resources").and_then(|it| it.get(kind)).and_then(Value::as_object);
        found.cloned().unwrap_or_default()
    };
    for kind in ["limits", "requests"] {
        let (had, has) = (of(old, kind), of(new, kind));
        for name in had.keys().filter(|name| !has.contains_key(*name)) {
            if matches!(&**name, "cpu" | "memory") {
                let why = format!("resource {kind} cannot be removed");
                errors.push(FieldError::forbidden(format!("{at}.{kind}"), &why));
            }
        }
        let others = |it: &Map<String, Value>| {
            let mut it = it.clone();
            it.retain(|name, _| !matches!(&**name, "cpu" | "memory"));
            it
        };
        if others(&had) != others(&has) {
            errors.push(FieldError::forbidden("spec", "only cpu and memory resources are mutable"));
        }
    }
}

/// What the status of an object may not become.
pub(super) fn status(resource: &Resource, old: &Value, new: &Value, errors: &mut Errors) {
    if (&*resource.group, &*resource.name) != ("", "pods") {
        return;
    }
    let class = |it: &Value| it["status"].get("qosClass").cloned();
    if class(old) != class(new) {
        let shown = class(new).unwrap_or_default();
        errors.push(FieldError::invalid("status.qosClass", &shown, IMMUTABLE));
    }
    let nominated = |it: &Value| object::text(it, &["status", "nominatedNodeName"]).to_owned();
    if !object::text(old, &["spec", "nodeName"]).is_empty()
        && !nominated(new).is_empty()
        && nominated(new) != nominated(old)
    {
        let why = "may not be set on pods that are already bound to a node";
        errors.push(FieldError::forbidden("status.nominatedNodeName", why));
    }
    // What has ended for good does not run again.
    let policy = object::text(old, &["spec", "restartPolicy"]);
    if policy == "Always" {
        return;
    }
    let known = list(&old["status"], "containerStatuses");
    for (index, it) in list(&new["status"], "containerStatuses").iter().enumerate() {
        let Some(had) = known.iter().find(|had| had["name"] == it["name"]) else { continue };
        let Some(ended) = had["state"].get("terminated") else { continue };
        let failed = ended.get("exitCode").is_some_and(|it| *it != 0);
        let own = list(&old["spec"], "containers").iter().find(|it| it["name"] == had["name"]);
        let has_rules = own.is_some_and(|it| it.get("restartPolicy").is_some());
        if (policy == "OnFailure" && failed) || has_rules || it["state"].get("terminated").is_some()
        {
            continue;
        }
        let at = format!("status.containerStatuses[{index}].state");
        let why = "may not be transitioned to non-terminated state";
        errors.push(FieldError::forbidden(at, why));
    }
}

/// A certificate request is approved or denied once, and not both.
pub(super) fn approval(old: &Value, new: &Value, errors: &mut Errors) {
    const AT: &str = "status.conditions";
    let of = |it: &Value, kind: &str| -> Vec<Value> {
        list(&it["status"], "conditions").iter().filter(|it| it["type"] == kind).cloned().collect()
    };
    let shown = new["status"].get("conditions").cloned().unwrap_or_default();
    if !of(new, "Approved").is_empty() && !of(new, "Denied").is_empty() {
        let why = "Approved and Denied conditions are mutually exclusive";
        errors.push(FieldError::invalid(AT, &shown, why));
    }
    for kind in ["Approved", "Denied", "Failed"] {
        if of(new, kind).len() < of(old, kind).len() {
            let why = format!("updates may not remove a condition of type {kind:?}");
            errors.push(FieldError::forbidden(AT, &why));
        }
    }
    for (index, it) in list(&new["status"], "conditions").iter().enumerate() {
        let decisive = matches!(object::text(it, &["type"]), "Approved" | "Denied" | "Failed");
        let status = &it["status"];
        if decisive && *status != "True" {
            let at = format!("{AT}[{index}].status");
            errors.push(FieldError::unsupported(at, status, &["True"]));
        }
        if object::text(it, &["type"]).is_empty() {
            errors.push(FieldError::required(format!("{AT}[{index}].type"), ""));
        }
    }
}
