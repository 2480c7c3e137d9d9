//! Rules about rules: roles and bindings, budgets, fairness; and what configuration holds.

use std::collections::HashSet;

use insula_api::formats;
use serde_json::Value;

use super::{
    at::{At, Check},
    formats::Format,
};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("api.core.v1.ConfigMap", |it| data(it, &["data", "binaryData"])),
    ("api.core.v1.Secret", secret),
    ("api.core.v1.NamespaceSpec", |it| {
        for name in it.list("finalizers").to_vec() {
            let text = name.as_str().unwrap_or_default();
            for why in Format::Qualified.check(text) {
                it.invalid("finalizers", &name, &why);
            }
            if !text.contains('/') && text != "kubernetes" {
                let why = "name is neither a standard finalizer name nor is it fully qualified";
                it.invalid("finalizers", &name, why);
            }
        }
    }),
    ("api.core.v1.NodeSpec", node),
    ("api.flowcontrol.v1.FlowSchemaSpec", |it| {
        let method = it.get("distinguisherMethod").cloned().unwrap_or_default();
        let allowed = ["ByNamespace", "ByUser"];
        if method.is_object() && !allowed.contains(&text(&method, "type")) {
            // Shown whole.
            it.unsupported("distinguisherMethod", &method, &allowed);
            if let Some(error) = it.errors.last_mut() {
                error.field.push_str(".type");
            }
        }
    }),
    ("api.flowcontrol.v1.LimitResponse", |it| match (it.text("type"), it.has("queuing")) {
        ("Reject", true) => {
            let why = "must be nil if limited.limitResponse.type is not Limited";
            it.forbidden("queuing", why);
        }
        ("Queue", false) => {
            let why = "must not be empty if limited.limitResponse.type is Limited";
            it.required("queuing", why);
        }
        _ => (),
    }),
    ("api.flowcontrol.v1.PolicyRulesWithSubjects", |it| {
        if it.list("resourceRules").is_empty() && it.list("nonResourceRules").is_empty() {
            let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
            it.required("", why);
        }
    }),
    ("api.flowcontrol.v1.PriorityLevelConfigurationSpec", priority_level),
    ("api.flowcontrol.v1.QueuingConfiguration", queues),
    ("api.flowcontrol.v1.ResourcePolicyRule", |it| {
        if it.list("namespaces").is_empty() && it.get("clusterScope") != Some(&true.into()) {
            let why =
                "resource rules that are not cluster scoped must supply at least one namespace";
            it.required("namespaces", why);
        }
        for (index, name) in it.list("namespaces").iter().enumerate().filter(|(_, it)| *it != "*") {
            for why in formats::label(name.as_str().unwrap_or_default()) {
                let why =
                    format!("each member of this list must be '*' or a DNS-1123 label; {why}");
                it.invalid(&format!("namespaces[{index}]"), name, &why);
            }
        }
    }),
    ("api.flowcontrol.v1.Subject", flow_subject),
    ("api.policy.v1.PodDisruptionBudgetSpec", |it| {
        if it.has("minAvailable") && it.has("maxUnavailable") {
            let why = "minAvailable and maxUnavailable cannot be both set";
            it.invalid("", it.it, why);
        }
    }),
    ("api.rbac.v1.ClusterRoleBinding", |it| role_ref(it, &["ClusterRole"])),
    ("api.rbac.v1.AggregationRule", |it| {
        if it.list("clusterRoleSelectors").is_empty() {
            let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            it.required("clusterRoleSelectors", why);
        }
    }),
    ("api.rbac.v1.ClusterRole", |it| rules(it, true)),
    ("api.rbac.v1.Role", |it| rules(it, false)),
    ("api.rbac.v1.RoleBinding", |it| role_ref(it, &["Role", "ClusterRole"])),
    ("api.scheduling.v1.PriorityClass", priority_class),
];

/// Data of one secret or config map, in bytes.
const DATA: usize = 1024 * 1024;

fn text<'a>(it: &'a Value, field: &str) -> &'a str {
    it.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn data(it: &mut At<'_>, fields: &[&str]) {
    let mut size = 0;
    for field in fields {
        let map = it.get(field).and_then(Value::as_object).into_iter().flatten();
        for (_, value) in map {
            let encoded = value.as_str().unwrap_or_default();
            // What is base64 is measured as it will be.
            let is_text = *field == "data" && fields.len() == 2;
            let padding = encoded.bytes().rev().take_while(|it| *it == b'=').count();
            size += if is_text { encoded.len() } else { encoded.len() / 4 * 3 - padding.min(2) };
        }
    }
    if let [one, two] = fields {
        let (one_of, two_of) = (it.get(one).cloned(), it.get(two).cloned());
        for key in one_of.as_ref().and_then(Value::as_object).into_iter().flatten().map(|it| it.0) {
            if two_of.as_ref().is_some_and(|it| it.get(key).is_some()) {
                let why = "duplicate of key present in binaryData";
                it.invalid(&format!("data[{key}]"), &key.as_str().into(), why);
            }
        }
    }
    if DATA < size {
        let at = if fields.len() == 2 { String::new() } else { it.at("data") };
        it.errors.push(FieldError::too_long(at, DATA));
    }
}

fn secret(it: &mut At<'_>) {
    data(it, &["data"]);
    let kind = it.text("type").to_owned();
    let has = |key: &str| it.get("data").is_some_and(|it| it.get(key).is_some());
    let annotations = it.it.pointer("/metadata/annotations");
    let account =
        annotations.map(|it| text(it, "kubernetes.io/service-account.name")).unwrap_or_default();
    let mut missing = Vec::new();
    match &*kind {
        "kubernetes.io/service-account-token" if account.is_empty() => {
            let at = "metadata.annotations[kubernetes.io/service-account.name]";
            it.required(at, "");
        }
        "kubernetes.io/dockercfg" if !has(".dockercfg") => missing.push(".dockercfg"),
        "kubernetes.io/dockerconfigjson" if !has(".dockerconfigjson") => {
            missing.push(".dockerconfigjson");
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            missing.extend(["username", "password"]);
        }
        "kubernetes.io/ssh-auth" if !has("ssh-privatekey") => missing.push("ssh-privatekey"),
        "kubernetes.io/tls" => {
            missing.extend(["tls.crt", "tls.key"].into_iter().filter(|key| !has(key)));
        }
        _ => (),
    }
    for key in missing {
        it.required(&format!("data[{key}]"), "");
    }
    let config = match &*kind {
        "kubernetes.io/dockercfg" => ".dockercfg",
        "kubernetes.io/dockerconfigjson" => ".dockerconfigjson",
        _ => return,
    };
    let found = it.get("data").map(|it| text(it, config)).unwrap_or_default();
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::STANDARD.decode(found).unwrap_or_default();
    if !found.is_empty() && serde_json::from_slice::<Value>(&decoded).is_err() {
        let at = it.at(&format!("data[{config}]"));
        let why = not_json(&decoded);
        let shown = "<secret contents redacted>".into();
        it.errors.push(FieldError::invalid(at, &shown, &why));
    }
}

/// Why something is no JSON, in the words of Go's decoder for what is wrong with its beginning.
fn not_json(bytes: &[u8]) -> String {
    match bytes.trim_ascii_start().first() {
        None => "unexpected end of JSON input".into(),
        Some(first) if !b"{[\"-0123456789tfn".contains(first) => {
            format!("invalid character {:?} looking for beginning of value", char::from(*first))
        }
        Some(_) => "invalid JSON".into(),
    }
}

fn node(it: &mut At<'_>) {
    // Upstream takes taints for a part of the metadata here.
    let found = it.at("taints");
    for error in it.errors.iter_mut().filter(|error| error.field.starts_with(&found)) {
        error.field = error.field.replacen("spec.", "metadata.", 1);
    }
    let mut seen = HashSet::new();
    for (index, taint) in it.list("taints").to_vec().iter().enumerate() {
        if !seen.insert((text(taint, "key").to_owned(), text(taint, "effect").to_owned())) {
            it.duplicate(&format!("taints[{index}]"), taint);
            if let Some(error) = it.errors.last_mut() {
                error.field = error.field.replacen("spec.", "metadata.", 1);
                error.message.push_str(": taints must be unique by key and effect pair");
            }
        }
    }
}

fn queues(it: &mut At<'_>) {
    const MOST: i64 = 10_000_000;
    let number = |field: &str| it.number(field).unwrap_or(0);
    let [limit, queues, hand] = ["queueLengthLimit", "queues", "handSize"].map(number);
    if limit <= 0 {
        it.invalid("queueLengthLimit", &limit.into(), "must be positive");
    }
    if queues <= 0 {
        it.invalid("queues", &queues.into(), "must be positive");
    } else if MOST < queues {
        it.invalid("queues", &queues.into(), &format!("must not be greater than {MOST}"));
    }
    if hand <= 0 {
        it.invalid("handSize", &hand.into(), "must be positive");
    } else if queues < hand {
        let why = format!("should not be greater than queues ({queues})");
        it.invalid("handSize", &hand.into(), &why);
    }
}

fn rules(it: &mut At<'_>, of_cluster: bool) {
    for (index, rule) in it.list("rules").to_vec().iter().enumerate() {
        let size = |field: &str| rule.get(field).and_then(Value::as_array).map_or(0, Vec::len);
        let at = format!("rules[{index}]");
        if 0 < size("nonResourceURLs") {
            if !of_cluster {
                let why = "namespaced rules cannot apply to non-resource URLs";
                it.invalid(&format!("{at}.nonResourceURLs"), &rule["nonResourceURLs"], why);
            }
            if 0 < size("apiGroups") + size("resources") + size("resourceNames") {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                it.invalid(&format!("{at}.nonResourceURLs"), &rule["nonResourceURLs"], why);
            }
            continue;
        }
        if size("apiGroups") == 0 {
            it.required(
                &format!("{at}.apiGroups"),
                "resource rules must supply at least one api group",
            );
        }
        if size("resources") == 0 {
            it.required(
                &format!("{at}.resources"),
                "resource rules must supply at least one resource",
            );
        }
    }
}

fn role_ref(it: &mut At<'_>, kinds: &[&str]) {
    let kind = it.get("roleRef").map(|it| text(it, "kind")).unwrap_or_default().to_owned();
    if !kinds.contains(&&*kind) {
        it.unsupported("roleRef.kind", &kind.into(), kinds);
    }
    let of_namespace = kinds.len() == 2;
    for (index, subject) in it.list("subjects").to_vec().iter().enumerate() {
        let group = text(subject, "apiGroup");
        let at = format!("subjects[{index}]");
        match text(subject, "kind") {
            "ServiceAccount" => {
                let name = text(subject, "name");
                for why in Format::Subdomain.check(name).into_iter().filter(|_| !name.is_empty()) {
                    it.invalid(&format!("{at}.name"), &name.into(), &why);
                }
                if !group.is_empty() {
                    it.unsupported(&format!("{at}.apiGroup"), &group.into(), &[""]);
                }
                if text(subject, "namespace").is_empty() && !of_namespace {
                    it.required(&format!("{at}.namespace"), "");
                }
            }
            "User" | "Group" if group != "rbac.authorization.k8s.io" => {
                let allowed = ["rbac.authorization.k8s.io"];
                it.unsupported(&format!("{at}.apiGroup"), &group.into(), &allowed);
            }
            _ => (),
        }
    }
}

fn priority_class(it: &mut At<'_>) {
    const HIGHEST: i64 = 1_000_000_000;
    const SYSTEM: [(&str, i64); 2] =
        [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
    let name =
        it.it.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let value = it.number("value").unwrap_or(0);
    if name.starts_with("system-") {
        let known = SYSTEM.iter().find(|(known, _)| *known == name);
        let is = known.is_some_and(|(_, known)| *known == value)
            && it.get("globalDefault") != Some(&Value::Bool(true));
        if !is {
            let why = "priority class names with 'system-' prefix are reserved for system use only. error: ";
            let detail = match known {
                Some((name, known)) if *known != value => {
                    format!("value of {name} PriorityClass must be {known}")
                }
                Some((name, _)) => format!("globalDefault of {name} PriorityClass must be false"),
                None => format!("{name} is not a known system priority class"),
            };
            it.forbidden("metadata.name", &format!("{why}{detail}"));
        }
    } else if HIGHEST < value {
        let why = format!("maximum allowed value of a user defined priority is {HIGHEST}");
        it.forbidden("value", &why);
    }
}

fn priority_level(it: &mut At<'_>) {
    let (limited, exempt) = (it.has("limited"), it.has("exempt"));
    match it.text("type") {
        "Exempt" if limited => {
            it.forbidden("limited", "must be nil if the type is not Limited");
        }
        "Limited" => {
            if exempt {
                it.forbidden("exempt", "must be nil if the type is Limited");
            }
            if !limited {
                it.required("limited", "must not be empty when type is Limited");
            }
        }
        _ => (),
    }
}

fn flow_subject(it: &mut At<'_>) {
    let kind = it.text("kind").to_owned();
    let field = match &*kind {
        "User" => "user",
        "Group" => "group",
        "ServiceAccount" => "serviceAccount",
        _ => {
            let allowed = ["Group", "ServiceAccount", "User"];
            return it.unsupported("kind", &kind.into(), &allowed);
        }
    };
    if !it.has(field) {
        it.required(field, &format!("{field} is required when subject kind is '{kind}'"));
    }
}
