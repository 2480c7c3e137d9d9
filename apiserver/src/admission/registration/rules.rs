//! Rules and match conditions, which webhooks and policies have alike.

use insula_api::field::FieldError;
use serde_json::Value;

use super::{Findings, list, text, texts};
use crate::admission::rules::expression::{Expression, Has, Wants, declared};

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
/// Most conditions of one webhook or policy.
const MAX_CONDITIONS: usize = 64;

/// One rule with its operations.
pub(super) fn rule(it: &Value, path: &str, findings: &mut Findings) {
    let operations = list(it, "operations");
    if operations.is_empty() {
        findings.required(format!("{path}.operations"), "");
    }
    not_with_all(operations, path, "operations", "operations", findings);
    for (index, operation) in operations.iter().enumerate() {
        if !operation.as_str().is_some_and(|it| OPERATIONS.contains(&it)) {
            let path = format!("{path}.operations[{index}]");
            findings.0.push(FieldError::unsupported(path, operation, &OPERATIONS));
        }
    }
    for (field, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let items = list(it, field);
        if items.is_empty() {
            findings.required(format!("{path}.{field}"), "");
        }
        not_with_all(items, path, field, what, findings);
    }
    for (index, version) in list(it, "apiVersions").iter().enumerate() {
        if version == "" {
            findings.required(format!("{path}.apiVersions[{index}]"), "");
        }
    }
    resources(list(it, "resources"), &format!("{path}.resources"), findings);
    findings.one_of(it, path, "scope", &["*", "Cluster", "Namespaced"]);
}

fn not_with_all(items: &[Value], path: &str, field: &str, what: &str, findings: &mut Findings) {
    if 1 < items.len() && items.iter().any(|it| it == "*") {
        let why = format!("if '*' is present, must not specify other {what}");
        findings.invalid(format!("{path}.{field}"), &texts(items), &why);
    }
}

fn resources(items: &[Value], path: &str, findings: &mut Findings) {
    if items.is_empty() {
        findings.required(path, "");
    }
    let (mut all_of, mut of_all): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut has_plain = false;
    for (index, it) in items.iter().filter_map(Value::as_str).enumerate() {
        let at = format!("{path}[{index}]");
        if it.is_empty() {
            findings.required(at, "");
            continue;
        }
        let Some((resource, sub)) = it.split_once('/') else {
            has_plain = it != "*";
            continue;
        };
        if all_of.contains(&resource) {
            let why = format!("if '{resource}/*' is present, must not specify {it}");
            findings.invalid(at.as_str(), &it.into(), &why);
        }
        if of_all.contains(&sub) {
            let why = format!("if '*/{sub}' is present, must not specify {it}");
            findings.invalid(at, &it.into(), &why);
        }
        if sub == "*" {
            all_of.push(resource);
        }
        if resource == "*" {
            of_all.push(sub);
        }
    }
    if 1 < items.len() && items.iter().any(|it| it == "*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        findings.invalid(path, &texts(items), why);
    }
    if has_plain && items.iter().any(|it| it == "*") {
        let why = "if '*' is present, must not specify other resources without subresources";
        findings.invalid(path, &texts(items), why);
    }
}

/// The match conditions of a webhook or a policy.
pub(super) fn conditions(items: &[Value], params: bool, path: &str, findings: &mut Findings) {
    if MAX_CONDITIONS < items.len() {
        findings.0.push(FieldError::too_many(path, items.len(), MAX_CONDITIONS));
    }
    let declared = declared(Has { params, authorizer: true });
    let mut names: Vec<&str> = Vec::new();
    for (index, it) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let at = format!("{path}.expression");
        match text(it, "expression").trim() {
            "" => findings.required(at, ""),
            source => {
                let expression = Expression::new(source, &declared, Wants::Bool);
                compiled(&expression, source, &at, findings);
            }
        }
        let (name, at) = (text(it, "name"), format!("{path}.name"));
        match name {
            "" => findings.required(at, ""),
            _ => {
                findings.qualified_name(name, &at);
                if names.contains(&name) {
                    findings.0.push(FieldError::duplicate(at, &name.into()));
                }
                names.push(name);
            }
        }
    }
}

/// An expression has to be one.
pub(super) fn compiled(expression: &Expression, source: &str, path: &str, findings: &mut Findings) {
    if let Some(error) = expression.error() {
        findings.invalid(path, &source.into(), error);
    }
}
