//! Webhook configurations.

use insula_api::{field::FieldError, names::is_dns1123_subdomain};
use serde_json::Value;

use super::{Findings, LABEL_1035, SUBDOMAIN, full_name, is_label_1035, list, rules, text, texts};

const REVIEWS: [&str; 2] = ["v1", "v1beta1"];
const HARMLESS: [&str; 2] = ["None", "NoneOnDryRun"];
const SIDE_EFFECTS: [&str; 4] = ["None", "NoneOnDryRun", "Some", "Unknown"];
const FORM: &str = "; desired format: https://host[/path]";

/// What an update is held against: what was so already may stay so.
#[derive(Debug)]
struct Demands {
    conditions: bool,
    harmless: bool,
    known_review: bool,
    unique_names: bool,
}

impl Demands {
    fn new(hooks: &[Value], old: Option<&[Value]>) -> Self {
        let Some(old) = old else {
            return Self {
                conditions: true,
                harmless: true,
                known_review: true,
                unique_names: true,
            };
        };
        let conditions = |it: &Value| it.get("matchConditions").cloned();
        let is_harmless = |it: &Value| HARMLESS.contains(&text(it, "sideEffects"));
        let knows = |it: &Value| {
            let versions = list(it, "admissionReviewVersions");
            versions.is_empty() || versions.iter().any(|it| REVIEWS.iter().any(|known| it == known))
        };
        let mut names: Vec<&str> = old.iter().map(|it| text(it, "name")).collect();
        names.sort_unstable();
        Self {
            conditions: old.len() != hooks.len()
                || old.iter().zip(hooks).any(|(old, new)| conditions(old) != conditions(new)),
            harmless: old.iter().all(is_harmless),
            known_review: old.iter().all(knows),
            unique_names: names.windows(2).all(|pair| pair[0] != pair[1]),
        }
    }
}

/// Most webhooks of one configuration: each may be asked at every request.
const MAX_WEBHOOKS: usize = 100;

/// A configuration of either kind.
pub(super) fn check(it: &Value, old: Option<&Value>, is_mutating: bool, findings: &mut Findings) {
    let hooks = list(it, "webhooks");
    if MAX_WEBHOOKS < hooks.len() {
        findings.0.push(FieldError::too_many("webhooks", hooks.len(), MAX_WEBHOOKS));
        return;
    }
    let demands = Demands::new(hooks, old.map(|it| list(it, "webhooks")));
    let mut names: Vec<&str> = Vec::new();
    for (index, hook) in hooks.iter().enumerate() {
        let path = format!("webhooks[{index}]");
        webhook(hook, &demands, is_mutating, &path, findings);
        let name = text(hook, "name");
        if demands.unique_names && names.contains(&name) && !name.is_empty() {
            findings.0.push(FieldError::duplicate(format!("{path}.name"), &name.into()));
        }
        names.push(name);
    }
}

fn webhook(
    hook: &Value,
    demands: &Demands,
    is_mutating: bool,
    path: &str,
    findings: &mut Findings,
) {
    full_name(text(hook, "name"), &format!("{path}.name"), findings);
    for (index, rule) in list(hook, "rules").iter().enumerate() {
        rules::rule(rule, &format!("{path}.rules[{index}]"), findings);
    }
    findings.one_of(hook, path, "failurePolicy", &["Fail", "Ignore"]);
    findings.one_of(hook, path, "matchPolicy", &["Equivalent", "Exact"]);
    let allowed: &[&str] = if demands.harmless { &HARMLESS } else { &SIDE_EFFECTS };
    match hook.get("sideEffects").filter(|it| !it.is_null()) {
        None => {
            let why = format!("must specify one of {}", allowed.join(", "));
            findings.required(format!("{path}.sideEffects"), &why);
        }
        Some(_) => findings.one_of(hook, path, "sideEffects", allowed),
    }
    if let Some(timeout) = hook.get("timeoutSeconds").filter(|it| !it.is_null())
        && !timeout.as_i64().is_some_and(|it| (1..=30).contains(&it))
    {
        let why = "the timeout value must be between 1 and 30 seconds";
        findings.invalid(format!("{path}.timeoutSeconds"), timeout, why);
    }
    for field in ["namespaceSelector", "objectSelector"] {
        if let Some(selector) = hook.get(field) {
            findings.selector(selector, &format!("{path}.{field}"));
        }
    }
    if is_mutating {
        findings.one_of(hook, path, "reinvocationPolicy", &["IfNeeded", "Never"]);
    }
    client(hook, &format!("{path}.clientConfig"), findings);
    if demands.conditions {
        let path = format!("{path}.matchConditions");
        rules::conditions(list(hook, "matchConditions"), false, &path, findings);
    }
    reviews(hook, demands, &format!("{path}.admissionReviewVersions"), findings);
}

fn reviews(hook: &Value, demands: &Demands, path: &str, findings: &mut Findings) {
    let versions = list(hook, "admissionReviewVersions");
    if versions.is_empty() {
        findings.required(path, &format!("must specify one of {}", REVIEWS.join(", ")));
        return;
    }
    for (index, version) in versions.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if versions[..index].contains(version) {
            findings.invalid(path, version, "duplicate version");
        } else if !version.as_str().is_some_and(is_label_1035) {
            findings.invalid(path, version, LABEL_1035);
        }
    }
    if demands.known_review && !versions.iter().any(|it| REVIEWS.iter().any(|known| it == known)) {
        let why = format!("must include at least one of {}", REVIEWS.join(", "));
        findings.invalid(path, &texts(versions), &why);
    }
}

fn client(hook: &Value, path: &str, findings: &mut Findings) {
    let config = hook.get("clientConfig").unwrap_or(&Value::Null);
    let given = |field: &str| config.get(field).filter(|it| !it.is_null());
    match (given("url"), given("service")) {
        (Some(url), None) => {
            self::url(url.as_str().unwrap_or_default(), &format!("{path}.url"), findings);
        }
        (None, Some(it)) => service(it, &format!("{path}.service"), findings),
        _ => findings.required(path, "exactly one of url or service is required"),
    }
}

fn url(url: &str, path: &str, findings: &mut Findings) {
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = rest.split_once("://").unwrap_or(("", rest));
    if scheme != "https" {
        let why = format!("'https' is the only allowed URL scheme{FORM}");
        findings.invalid(path, &scheme.into(), &why);
    }
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        findings.invalid(path, &host.into(), &format!("host must be specified{FORM}"));
    } else if url.parse::<http::Uri>().is_err() {
        findings.required(path, &format!("url must be a valid URL{FORM}"));
    }
    for (part, why) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            findings.invalid(path, &part.into(), why);
        }
    }
}

fn service(it: &Value, path: &str, findings: &mut Findings) {
    for field in ["name", "namespace"] {
        if text(it, field).is_empty() {
            findings.required(format!("{path}.{field}"), "");
        }
    }
    if let Some(port) = it.get("port").filter(|it| !it.is_null())
        && !port.as_i64().is_some_and(|it| (1..=65535).contains(&it))
    {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        findings.invalid(format!("{path}.port"), port, why);
    }
    let (value, path) = (text(it, "path"), format!("{path}.path"));
    let shown = Value::from(value);
    match value {
        "" | "/" => return,
        "//" => return findings.invalid(path, &shown, "segment[0] may not be empty"),
        _ if !value.starts_with('/') => {
            findings.invalid(path.as_str(), &shown, "must start with a '/'");
        }
        _ => (),
    }
    let steps = value.get(1..).unwrap_or_default();
    let steps = steps.strip_suffix('/').unwrap_or(steps);
    for (index, step) in steps.split('/').enumerate() {
        if step.is_empty() {
            let why = format!("segment[{index}] may not be empty");
            findings.invalid(path.as_str(), &shown, &why);
        } else if !is_dns1123_subdomain(step) {
            let why = format!("segment[{index}]: {SUBDOMAIN}");
            findings.invalid(path.as_str(), &shown, &why);
        }
    }
}
