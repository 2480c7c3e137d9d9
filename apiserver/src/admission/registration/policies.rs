//! Admission policies and bindings.

use insula_api::{field::FieldError, names::is_dns1123_subdomain, object};
use insula_cel::escape::is_identifier;
use serde_json::Value;

use super::{
    Findings, LABEL_1035, SUBDOMAIN, is_label_1035, list,
    rules::{self, compiled},
    text, texts,
};
use crate::admission::{
    policies::{Declared, Variable},
    rules::expression::{Has, Wants, declared},
};

/// Most annotations of one policy, and the longest expression of one, in bytes.
/// Most variables, validations or mutations of one policy: all are evaluated at every request.
const MAX_EXPRESSIONS: usize = 256;
const MAX_ANNOTATIONS: usize = 20;
const MAX_ANNOTATION: usize = 5 * 1024;

/// The expressions of one policy, which share its variables.
struct Compiler {
    whole: Declared,
    /// Without the authorizer.
    quiet: Declared,
}

/// What both kinds of policies have.
fn policy(it: &Value, old: Option<&Value>, findings: &mut Findings) -> Compiler {
    let spec = it.get("spec").unwrap_or(&Value::Null);
    findings.needs_one_of(spec, "spec", "failurePolicy", &["Fail", "Ignore"]);
    let kind = spec.get("paramKind").filter(|it| !it.is_null());
    if let Some(kind) = kind {
        param_kind(kind, findings);
    }
    let path = "spec.matchConstraints";
    match spec.get("matchConstraints").filter(|it| !it.is_null()) {
        None => findings.required(path, ""),
        Some(constraints) => {
            resources(constraints, path, findings);
            if list(constraints, "resourceRules").is_empty() {
                findings.required(format!("{path}.resourceRules"), "");
            }
        }
    }
    let same = |field: &str| {
        old.is_some_and(|old| old.get("spec").and_then(|it| it.get(field)) == spec.get(field))
    };
    if !(same("paramKind") && same("matchConditions")) {
        let conditions = list(spec, "matchConditions");
        rules::conditions(conditions, kind.is_some(), "spec.matchConditions", findings);
    }
    for field in ["variables", "validations", "mutations"] {
        let n_items = list(spec, field).len();
        if MAX_EXPRESSIONS < n_items {
            let path = format!("spec.{field}");
            findings.0.push(FieldError::too_many(path, n_items, MAX_EXPRESSIONS));
        }
    }
    let params = kind.is_some();
    let mut compiler = Compiler {
        whole: Declared::new(declared(Has { params, authorizer: true })),
        quiet: Declared::new(declared(Has { params, authorizer: false })),
    };
    for (index, it) in list(spec, "variables").iter().take(MAX_EXPRESSIONS).enumerate() {
        let path = format!("spec.variables[{index}]");
        let (name, source) = (text(it, "name"), text(it, "expression"));
        if name.trim().is_empty() {
            findings.required(format!("{path}.name"), "name is not specified");
        } else if !is_identifier(name) {
            let why = "must be a valid CEL identifier";
            findings.invalid(format!("{path}.name"), &name.into(), why);
        }
        if source.trim().is_empty() {
            findings.required(format!("{path}.expression"), "expression is not specified");
            continue;
        }
        let variable = Variable { name: name.to_owned(), expression: source.to_owned() };
        compiler.quiet.variable(&variable);
        let expression = compiler.whole.variable(&variable);
        compiled(&expression, source, &format!("{path}.expression"), findings);
    }
    compiler
}

fn param_kind(it: &Value, findings: &mut Findings) {
    let path = "spec.paramKind";
    let (api_version, at) = (text(it, "apiVersion"), format!("{path}.apiVersion"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if api_version.is_empty() {
        findings.required(at, "");
    } else if version.contains('/') {
        let why = format!("unexpected GroupVersion string: {api_version}");
        findings.invalid(at, &api_version.into(), &why);
    } else {
        if !group.is_empty() && !is_dns1123_subdomain(group) {
            findings.invalid(at.as_str(), &group.into(), SUBDOMAIN);
        }
        if version.is_empty() {
            findings.invalid(at, &api_version.into(), "version must be specified");
        } else if !is_label_1035(version) {
            findings.invalid(at, &version.into(), LABEL_1035);
        }
    }
    let (kind, at) = (text(it, "kind"), format!("{path}.kind"));
    if kind.is_empty() {
        findings.required(at, "");
    } else if !is_label_1035(&kind.to_lowercase()) {
        let why = format!("may have mixed case, but should otherwise match: {LABEL_1035}");
        findings.invalid(at, &kind.into(), &why);
    }
}

fn resources(it: &Value, path: &str, findings: &mut Findings) {
    findings.needs_one_of(it, path, "matchPolicy", &["Equivalent", "Exact"]);
    for field in ["namespaceSelector", "objectSelector"] {
        match it.get(field).filter(|it| !it.is_null()) {
            None => findings.required(format!("{path}.{field}"), ""),
            Some(selector) => findings.selector(selector, &format!("{path}.{field}")),
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (index, it) in list(it, field).iter().enumerate() {
            let path = format!("{path}.{field}[{index}]");
            let names = list(it, "resourceNames");
            for (index, name) in names.iter().enumerate() {
                let path = format!("{path}.resourceNames[{index}]");
                findings.path_segment(name.as_str().unwrap_or_default(), &path);
                if names[..index].contains(name) {
                    findings.0.push(FieldError::duplicate(path, name));
                }
            }
            rules::rule(it, &path, findings);
        }
    }
}

/// A policy that refuses.
pub(super) fn validating(it: &Value, old: Option<&Value>, findings: &mut Findings) {
    let compiler = policy(it, old, findings);
    let spec = it.get("spec").unwrap_or(&Value::Null);
    let (validations, annotations) = (list(spec, "validations"), list(spec, "auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        findings.required("spec.validations", why);
        findings.required("spec.auditAnnotations", why);
        return;
    }
    for (index, it) in validations.iter().take(MAX_EXPRESSIONS).enumerate() {
        validation(it, &compiler, &format!("spec.validations[{index}]"), findings);
    }
    let path = "spec.auditAnnotations";
    if MAX_ANNOTATIONS < annotations.len() {
        let why = format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations");
        findings.invalid(path, &texts(annotations), &why);
    }
    for (index, annotation) in annotations.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let key = text(annotation, "key");
        match object::name(it) {
            "" => {
                let why = "requires metadata.name be non-empty";
                findings.invalid(format!("{path}.key"), &key.into(), why);
            }
            name => findings.qualified_name(&format!("{name}/{key}"), &format!("{path}.key")),
        }
        let (whole, at) = (text(annotation, "valueExpression"), format!("{path}.valueExpression"));
        match whole.trim() {
            "" => findings.required(at, "valueExpression is not specified"),
            source if MAX_ANNOTATION < source.len() => {
                findings.required(at, &format!("must not exceed {MAX_ANNOTATION} bytes in length"));
            }
            source => {
                let expression = compiler.whole.compile(source, Wants::TextOrNull);
                compiled(&expression, whole, &at, findings);
            }
        }
        if annotations[..index].iter().any(|it| text(it, "key") == key) {
            findings.0.push(FieldError::duplicate(format!("{path}.key"), &key.into()));
        }
    }
}

fn validation(it: &Value, compiler: &Compiler, path: &str, findings: &mut Findings) {
    let (source, at) = (text(it, "expression"), format!("{path}.expression"));
    match source.trim() {
        "" => findings.required(at, "expression is not specified"),
        _ => compiled(&compiler.whole.compile(source, Wants::Bool), source, &at, findings),
    }
    let (source, at) = (text(it, "messageExpression"), format!("{path}.messageExpression"));
    match source.trim() {
        "" if source.is_empty() => (),
        "" => findings.invalid(at, &source.into(), "must be non-empty if specified"),
        _ => compiled(&compiler.quiet.compile(source, Wants::Text), source, &at, findings),
    }
    let (message, at) = (text(it, "message"), format!("{path}.message"));
    if !message.is_empty() && message.trim().is_empty() {
        findings.invalid(at, &message.into(), "must be non-empty if specified");
    } else if message.trim().contains(['\n', '\r']) {
        findings.invalid(at, &message.into(), "must not contain line breaks");
    }
    findings.one_of(it, path, "reason", &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
}

/// A policy that changes objects.
pub(super) fn mutating(it: &Value, old: Option<&Value>, findings: &mut Findings) {
    const OPERATIONS: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];
    let spec = it.get("spec").unwrap_or(&Value::Null);
    let compiler = policy(it, old, findings);
    let constraints = spec.get("matchConstraints").unwrap_or(&Value::Null);
    let rules = list(constraints, "resourceRules").iter();
    for operation in rules.flat_map(|it| list(it, "operations")) {
        if !operation.as_str().is_some_and(|it| OPERATIONS.contains(&it)) {
            let path = "spec.matchConstraints.resourceRules.operations";
            findings.0.push(FieldError::unsupported(path, operation, &OPERATIONS));
        }
    }
    let mutations = list(spec, "mutations");
    if mutations.is_empty() {
        findings.required("spec.mutations", "mutations must contain at least one item");
    }
    for (index, it) in mutations.iter().enumerate() {
        mutation(it, &compiler, &format!("spec.mutations[{index}]"), findings);
    }
    findings.needs_one_of(spec, "spec", "reinvocationPolicy", &["IfNeeded", "Never"]);
}

fn mutation(it: &Value, compiler: &Compiler, path: &str, findings: &mut Findings) {
    let (apply, patch) = ("applyConfiguration", "jsonPatch");
    let kind = text(it, "patchType");
    let (own, other, wants) = match kind {
        "" => return findings.required(format!("{path}.patchType"), ""),
        "JSONPatch" => (patch, apply, Wants::Patches),
        "ApplyConfiguration" => (apply, patch, Wants::Object),
        _ => {
            let allowed = ["ApplyConfiguration", "JSONPatch"];
            return findings.one_of(it, path, "patchType", &allowed);
        }
    };
    let given = |field: &str| it.get(field).filter(|it| !it.is_null());
    match given(own) {
        None => {
            let why = format!("must be specified when patchType is {kind}");
            findings.required(format!("{path}.{own}"), &why);
        }
        Some(it) => {
            let at = format!("{path}.{own}.expression");
            match text(it, "expression").trim() {
                "" => findings.required(at, ""),
                source => compiled(&compiler.whole.compile(source, wants), source, &at, findings),
            }
        }
    }
    if given(other).is_some() {
        let why = format!("must not be specified when patchType is {kind}");
        findings.invalid(format!("{path}.{other}"), &format!("{{{other}}}").into(), &why);
    }
}

/// A binding of either kind.
pub(super) fn binding(it: &Value, is_validating: bool, findings: &mut Findings) {
    let spec = it.get("spec").unwrap_or(&Value::Null);
    let name = text(spec, "policyName");
    if name.is_empty() {
        findings.required("spec.policyName", "");
    } else if !is_dns1123_subdomain(name) {
        findings.invalid("spec.policyName", &name.into(), SUBDOMAIN);
    }
    if let Some(reference) = spec.get("paramRef").filter(|it| !it.is_null()) {
        param_ref(reference, "spec.paramRef", findings);
    }
    if let Some(it) = spec.get("matchResources").filter(|it| !it.is_null()) {
        resources(it, "spec.matchResources", findings);
    }
    if !is_validating {
        return;
    }
    let (actions, path) = (list(spec, "validationActions"), "spec.validationActions");
    for (index, action) in actions.iter().enumerate() {
        const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
        let path = format!("{path}[{index}]");
        if !action.as_str().is_some_and(|it| ACTIONS.contains(&it)) {
            findings.0.push(FieldError::unsupported(path.as_str(), action, &ACTIONS));
        }
        if actions[..index].contains(action) {
            findings.0.push(FieldError::duplicate(path, action));
        }
    }
    let has = |action: &str| actions.iter().any(|it| it == action);
    if has("Deny") && has("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        findings.invalid(path, &texts(actions), why);
    }
    if actions.is_empty() {
        findings.required(path, "at least one validation action is required");
    }
}

fn param_ref(it: &Value, path: &str, findings: &mut Findings) {
    let name = text(it, "name");
    let selector = it.get("selector").filter(|it| !it.is_null());
    let both = "name and selector are mutually exclusive";
    if !name.is_empty() {
        findings.path_segment(name, &format!("{path}.name"));
        if selector.is_some() {
            findings.0.push(FieldError::forbidden(format!("{path}.name"), both));
        }
    }
    match selector {
        Some(selector) => {
            findings.selector(selector, &format!("{path}.selector"));
            if !name.is_empty() {
                findings.0.push(FieldError::forbidden(format!("{path}.selector"), both));
            }
        }
        None if name.is_empty() => {
            findings.required(path, "one of name or selector must be specified");
        }
        None => (),
    }
    findings.needs_one_of(it, path, "parameterNotFoundAction", &["Deny", "Allow"]);
}
