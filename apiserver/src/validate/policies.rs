//! Rules about rules: roles and bindings, budgets, quotas, scaling, fairness, certificates.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    formats::Format,
    rules::{At, Check, quantity},
};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("api.autoscaling.v2.HorizontalPodAutoscalerSpec", autoscaler),
    ("api.autoscaling.v2.MetricSpec", metric),
    ("api.autoscaling.v2.MetricTarget", target),
    ("api.autoscaling.v2.HPAScalingRules", |it| {
        if it.has("policies") && it.list("policies").is_empty() {
            it.required("policies", "must specify at least one Policy");
        }
    }),
    ("api.certificates.v1.CertificateSigningRequestSpec", certificate),
    ("api.coordination.v1.LeaseSpec", |it| {
        if it.get("holderIdentity").is_some_and(|it| it == "") {
            it.invalid("holderIdentity", &"".into(), "must not be empty");
        }
    }),
    ("api.core.v1.LimitRangeItem", limit_range),
    ("api.core.v1.ResourceQuotaSpec", quota),
    ("api.core.v1.ConfigMap", |it| data(it, &["data", "binaryData"])),
    ("api.core.v1.Secret", secret),
    ("api.core.v1.NodeSpec", node),
    ("api.flowcontrol.v1.PriorityLevelConfigurationSpec", priority_level),
    ("api.flowcontrol.v1.Subject", flow_subject),
    ("api.policy.v1.PodDisruptionBudgetSpec", |it| {
        if it.has("minAvailable") && it.has("maxUnavailable") {
            let path = it.path.to_string();
            let why = "minAvailable and maxUnavailable cannot be both set";
            it.errors.push(FieldError::invalid(path, it.it, why));
        }
    }),
    ("api.rbac.v1.ClusterRoleBinding", |it| role_ref(it, &["ClusterRole"])),
    ("api.rbac.v1.ClusterRole", |it| rules(it, true)),
    ("api.rbac.v1.Role", |it| rules(it, false)),
    ("api.rbac.v1.RoleBinding", |it| role_ref(it, &["ClusterRole", "Role"])),
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
        let message = "Invalid value: <secret contents redacted>: is not valid JSON".to_owned();
        it.errors.push(FieldError { field: at, reason: "FieldValueInvalid", message });
    }
}

fn node(it: &mut At<'_>) {
    let mut seen = HashSet::new();
    for (index, taint) in it.list("taints").to_vec().iter().enumerate() {
        if !seen.insert((text(taint, "key").to_owned(), text(taint, "effect").to_owned())) {
            it.duplicate(&format!("taints[{index}]"), taint);
        }
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

fn quota(it: &mut At<'_>) {
    const STANDARD: [&str; 24] = [
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.storage",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "persistentvolumeclaims",
        "configmaps",
        "services.nodeports",
        "services.loadbalancers",
        "storage",
        "hugepages",
        "requests.hugepages",
        "limits.hugepages",
        "bindings",
    ];
    let hard = it.get("hard").and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, value) in &hard {
        let at = format!("hard[{name}]");
        let wrong = Format::Qualified.check(name);
        for why in &wrong {
            it.invalid(&at, &name.as_str().into(), why);
        }
        let is_known = STANDARD.contains(&&**name) || name.contains("hugepages-");
        if wrong.is_empty() && !name.contains('/') && !is_known {
            it.invalid(
                &at,
                &name.as_str().into(),
                "must be a standard resource type or fully qualified",
            );
            it.invalid(&at, &name.as_str().into(), "must be a standard resource for quota");
        }
        let counted = ["pods", "services", "replicationcontrollers", "secrets", "configmaps"];
        let is_count = counted.contains(&&**name) || name.starts_with("count/");
        if is_count && quantity(value).is_some_and(|it| it.milli_value() % 1000 != 0) {
            it.invalid(&at, value, "must be an integer");
        }
    }
    let scopes = [
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "PriorityClass",
        "Terminating",
        "VolumeAttributesClass",
    ];
    let found = it.list("scopes").to_vec();
    for scope in &found {
        if !scopes.contains(&scope.as_str().unwrap_or_default()) {
            it.invalid("scopes", &it.it["scopes"].clone(), "unsupported scope");
        }
    }
    for (one, two) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if found.contains(&one.into()) && found.contains(&two.into()) {
            it.invalid("scopes", &it.it["scopes"].clone(), "conflicting scopes");
        }
    }
}

fn limit_range(it: &mut At<'_>) {
    let kind = it.text("type").to_owned();
    let amounts =
        |field: &str| it.get(field).and_then(Value::as_object).cloned().unwrap_or_default();
    let [min, max, default, request, ratio] =
        ["min", "max", "default", "defaultRequest", "maxLimitRequestRatio"].map(amounts);
    if kind == "Pod" {
        for (field, map) in [("default", &default), ("defaultRequest", &request)] {
            if !map.is_empty() {
                it.forbidden(field, "may not be specified when `type` is 'Pod'");
            }
        }
    }
    if kind == "PersistentVolumeClaim"
        && !min.contains_key("storage")
        && !max.contains_key("storage")
    {
        it.required(
            "limits",
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
    let names: HashSet<&String> = [&min, &max, &default, &request, &ratio]
        .into_iter()
        .flat_map(serde_json::Map::keys)
        .collect();
    let mut names: Vec<&String> = names.into_iter().collect();
    names.sort();
    for name in names {
        let of = |map: &serde_json::Map<String, Value>| map.get(name).and_then(quantity);
        let (low, high, given, asked) = (of(&min), of(&max), of(&default), of(&request));
        for (field, small, large, why) in [
            ("min", low, high, "min value {a} is greater than max value {b}"),
            (
                "defaultRequest",
                low,
                asked,
                "min value {a} is greater than default request value {b}",
            ),
            (
                "defaultRequest",
                asked,
                high,
                "default request value {a} is greater than max value {b}",
            ),
            (
                "defaultRequest",
                asked,
                given,
                "default request value {a} is greater than default limit value {b}",
            ),
            ("default", low, given, "min value {a} is greater than default value {b}"),
            ("default", given, high, "default value {a} is greater than max value {b}"),
        ] {
            if let (Some(small), Some(large)) = (small, large)
                && large < small
            {
                let why = why.replace("{a}", &small.to_string()).replace("{b}", &large.to_string());
                let shown =
                    if field == "min" || why.starts_with("default") { small } else { large };
                it.invalid(&format!("{field}[{name}]"), &shown.to_string().into(), &why);
            }
        }
        if of(&ratio).is_some_and(|it| it.milli_value() < 1000) {
            let shown = ratio[name].clone();
            let why = format!("ratio {} is less than 1", shown.as_str().unwrap_or_default());
            it.invalid(&format!("maxLimitRequestRatio[{name}]"), &shown, &why);
        }
    }
}

fn autoscaler(it: &mut At<'_>) {
    let (min, max) = (it.number("minReplicas"), it.number("maxReplicas").unwrap_or(0));
    if let Some(min @ ..1) = min {
        it.invalid("minReplicas", &min.into(), "must be greater than or equal to 1");
    }
    if max < 1 {
        it.invalid("maxReplicas", &max.into(), "must be greater than 0");
    }
    if min.is_some_and(|min| max < min) {
        it.invalid("maxReplicas", &max.into(), "must be greater than or equal to `minReplicas`");
    }
}

fn metric(it: &mut At<'_>) {
    let kind = it.text("type").to_owned();
    let fields = ["object", "pods", "resource", "external", "containerResource"];
    let mut chars = kind.chars();
    let wanted: String =
        chars.next().map(|it| it.to_ascii_lowercase()).into_iter().chain(chars).collect();
    if !fields.contains(&&*wanted) {
        return;
    }
    if !it.has(&wanted) {
        it.required(&wanted, "must populate information for the given metric source");
    }
    for field in fields {
        if field != wanted && it.has(field) {
            it.forbidden(field, "must populate the given metric source only");
        }
    }
}

fn target(it: &mut At<'_>) {
    if it.number("averageUtilization").is_some_and(|it| it < 1) {
        let shown = it.it["averageUtilization"].clone();
        it.invalid("averageUtilization", &shown, "must be greater than 0");
    }
    for field in ["value", "averageValue"] {
        let found = it.get(field).cloned();
        if let Some(found) = found
            && quantity(&found).is_some_and(|it| it.is_zero() || it.is_negative())
        {
            it.invalid(field, &found, "must be positive");
        }
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

fn certificate(it: &mut At<'_>) {
    const USAGES: [&str; 23] = [
        "any",
        "cert sign",
        "client auth",
        "code signing",
        "content commitment",
        "crl sign",
        "data encipherment",
        "decipher only",
        "digital signature",
        "email protection",
        "encipher only",
        "ipsec end system",
        "ipsec tunnel",
        "ipsec user",
        "key agreement",
        "key encipherment",
        "microsoft sgc",
        "netscape sgc",
        "ocsp signing",
        "s/mime",
        "server auth",
        "signing",
        "timestamping",
    ];
    let usages = it.list("usages").to_vec();
    for (index, usage) in usages.iter().enumerate() {
        if !USAGES.contains(&usage.as_str().unwrap_or_default()) {
            it.unsupported(&format!("usages[{index}]"), usage, &USAGES);
        }
        if usages[..index].contains(usage) {
            it.duplicate(&format!("usages[{index}]"), usage);
        }
    }
    let signer = it.text("signerName").to_owned();
    if !signer.is_empty() {
        let shown = signer.as_str().into();
        match signer.split_once('/') {
            None => it.invalid(
                "signerName",
                &shown,
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ),
            Some((domain, path)) => {
                if path.is_empty() || path.contains("//") {
                    let why = "validation failed: must be a fully qualified domain and path of the form 'example.com/signer-name'";
                    it.invalid("signerName", &shown, why);
                }
                for why in Format::Subdomain.check(domain) {
                    it.invalid("signerName", &domain.into(), &why);
                }
            }
        }
    }
    if let Some(seconds) = it.number("expirationSeconds").filter(|it| *it < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        it.invalid("expirationSeconds", &seconds.into(), why);
    }
}
