//! How pods may change, and parts of them.

use std::collections::HashSet;

use insula_api::{object, pods::MACHINE, quota::qos::qos_class, schema::TypeId};
use serde_json::{Map, Value, json};

use super::{
    Errors,
    formats::{self, Format},
    updates::{IMMUTABLE, difference, list, put},
};
use crate::error::FieldError;

const POD: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn trimmed_images(pod: &Value, errors: &mut Errors) {
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

/// What an update of a pod may not do.
pub(super) fn pod(id: TypeId, old: &Value, new: &Value, errors: &mut Errors) {
    trimmed_images(new, errors);
    for field in ["containers", "initContainers"] {
        if list(&old["spec"], field).len() != list(&new["spec"], field).len() {
            let why = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(format!("spec.{field}"), why));
            return;
        }
    }
    if new["spec"] == old["spec"] {
        return;
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
            &format!("{POD}\n{}", difference(id, "spec", &allowed, &new["spec"])),
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

/// Ephemeral containers come, and stay.
pub(super) fn ephemeral_containers(id: TypeId, old: &Value, new: &Value, errors: &mut Errors) {
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
                    difference(id, "spec.ephemeralContainers[0]", known, found)
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
            errors.push(FieldError::forbidden(format!("spec.{field}"), &why));
            return;
        }
        for (index, (had, has)) in had.iter().zip(has).enumerate() {
            if had["name"] != has["name"] {
                let why = format!("{field} may not be renamed or reordered on resize");
                errors.push(FieldError::forbidden(format!("spec.{field}[{index}].name"), &why));
                return;
            }
            resize_container(had, has, &format!("spec.{field}[{index}].resources"), errors);
        }
    }
    if let (Some(had), Some(has)) = (old["spec"].get(MACHINE), new["spec"].get(MACHINE)) {
        resize_container(had, has, &format!("spec.{MACHINE}.resources"), errors);
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

/// What the status of a pod may not become.
pub(super) fn status(old: &Value, new: &Value, errors: &mut Errors) {
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
    let node = nominated(new);
    for why in Format::Subdomain.check(&node).into_iter().filter(|_| !node.is_empty()) {
        errors.push(FieldError::invalid("status.nominatedNodeName", &node.as_str().into(), &why));
    }
    addresses(old, new, "pod", errors);
    addresses(old, new, "host", errors);
    claims(new, errors);
    for (index, it) in list(&new["status"], "conditions").iter().enumerate() {
        let kind = object::text(it, &["type"]);
        for why in Format::Qualified.check(kind) {
            let at = format!("status.conditions[{index}].Type");
            errors.push(FieldError::invalid(at, &kind.into(), &why));
        }
    }
    if let Some(seen) = new["status"]["observedGeneration"].as_i64().filter(|it| *it < 0) {
        let why = "must be a non-negative integer";
        errors.push(FieldError::invalid("status.observedGeneration", &seen.into(), why));
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

/// The addresses that a pod, or its host, is said to have: at most one of each family.
fn addresses(old: &Value, new: &Value, whose: &str, errors: &mut Errors) {
    let field = format!("{whose}IPs");
    let at = format!("status.{field}");
    let texts = |it: &Value| -> Vec<String> {
        let all = list(&it["status"], &field).iter();
        all.map(|it| object::text(it, &["ip"]).to_owned()).collect()
    };
    let (known, found) = (texts(old), texts(new));
    let Some(first) = found.first() else { return };
    if whose == "host" && *first != object::text(new, &["status", "hostIP"]) {
        let why = "must be equal to `hostIP`";
        errors.push(FieldError::invalid(format!("{at}[0].ip"), &first.as_str().into(), why));
    }
    for (index, text) in found.iter().enumerate().filter(|(_, it)| !known.contains(*it)) {
        for why in formats::ip(text) {
            errors.push(FieldError::invalid(format!("{at}[{index}]"), &text.as_str().into(), &why));
        }
    }
    let families: Vec<bool> =
        found.iter().filter_map(|it| formats::sloppy_address(it)).map(|it| it.is_ipv4()).collect();
    let is_one_of_each = matches!(families[..], [one, other] if one != other);
    if 1 < found.len() && families.len() == found.len() && !is_one_of_each {
        let shown: Vec<Value> = found.iter().map(|it| json!({"IP": it})).collect();
        let why = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid_form(at, &Value::from(shown).to_string(), why));
    }
}

/// The claims that were made for a pod are those that it asks for.
fn claims(new: &Value, errors: &mut Errors) {
    let mut name_of_claim = |at: &str, it: &Value| {
        let name = object::text(it, &["resourceClaimName"]);
        for why in Format::Subdomain.check(name) {
            let at = format!("{at}.resourceClaimName");
            errors.push(FieldError::invalid(at, &name.into(), &why));
        }
    };
    let extended = &new["status"]["extendedResourceClaimStatus"];
    if extended.is_object() {
        name_of_claim("status.extendedResourceClaimStatus", extended);
    }
    let all = list(&new["status"], "resourceClaimStatuses");
    for (index, it) in all.iter().enumerate().filter(|(_, it)| it["resourceClaimName"].is_string())
    {
        name_of_claim(&format!("status.resourceClaimStatuses[{index}]"), it);
    }
    if extended.is_object() && list(extended, "requestMappings").is_empty() {
        let at = "status.extendedResourceClaimStatus.requestMappings";
        errors.push(FieldError::required(at, "at least one request mapping is required"));
    }
    let wanted = list(&new["spec"], "resourceClaims");
    for (index, it) in all.iter().enumerate() {
        let at = format!("status.resourceClaimStatuses[{index}].name");
        if !wanted.iter().any(|wanted| wanted["name"] == it["name"]) {
            let why = "must match the name of an entry in `spec.resourceClaims`";
            errors.push(FieldError::invalid(at.as_str(), &it["name"], why));
        }
        if all.iter().take(index).any(|other| other["name"] == it["name"]) {
            errors.push(FieldError::duplicate(at, &it["name"]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{compare, served},
        *,
    };

    /// What upstream says of the same pod.
    #[test]
    fn changes_are_shown_by_their_lines() {
        let pods = served("", "v1", "pods");
        let made = |more: &Value| {
            let wait = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            let mut spec = json!({
                "automountServiceAccountToken": false, "serviceAccountName": "default",
                "containers": [{"name": "a", "image": "i:1"}],
                "priority": 0, "preemptionPolicy": "PreemptLowerPriority",
                "tolerations": [wait("node.kubernetes.io/not-ready"), wait("node.kubernetes.io/unreachable")],
            });
            for (field, value) in more.as_object().unwrap() {
                spec[field] = value.clone();
            }
            let mut it = json!({"metadata": {"name": "p"}, "spec": spec});
            crate::strategy::normalize(&pods, &mut it);
            it
        };
        let old = made(&json!({}));
        for (more, shown) in [
            (
                json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i:1", "tty": true, "env": [{"name": "A", "value": "<b>"}]}]}),
                r#"@@ -10,7 +10,13 @@
    "WorkingDir": "",
    "Ports": null,
    "EnvFrom": null,
-   "Env": null,
+   "Env": [
+    {
+     "Name": "A",
+     "Value": "\u003cb\u003e",
+     "ValueFrom": null
+    }
+   ],
    "Resources": {
     "Limits": null,
     "Requests": null,
@@ -31,11 +37,11 @@
    "SecurityContext": null,
    "Stdin": false,
    "StdinOnce": false,
-   "TTY": false
+   "TTY": true
   }
  ],
  "EphemeralContainers": null,
- "RestartPolicy": "Always",
+ "RestartPolicy": "Never",
  "TerminationGracePeriodSeconds": 30,
  "ActiveDeadlineSeconds": null,
  "DNSPolicy": "ClusterFirst",
"#,
            ),
            (
                json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "hostname": "h"}),
                r#"@@ -35,8 +35,8 @@
   }
  ],
  "EphemeralContainers": null,
- "RestartPolicy": "Always",
- "TerminationGracePeriodSeconds": 30,
+ "RestartPolicy": "Never",
+ "TerminationGracePeriodSeconds": 5,
  "ActiveDeadlineSeconds": null,
  "DNSPolicy": "ClusterFirst",
  "NodeSelector": null,
@@ -64,7 +64,7 @@
   "SELinuxChangePolicy": null
  },
  "ImagePullSecrets": null,
- "Hostname": "",
+ "Hostname": "h",
  "Subdomain": "",
  "SetHostnameAsFQDN": null,
  "Affinity": null,
"#,
            ),
        ] {
            let errors = super::super::update(&pods, "", &old, &made(&more));
            compare(&errors, &[&format!("spec: Forbidden: {POD}\n{shown}")]);
        }
    }
}
