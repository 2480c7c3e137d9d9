//! What is wrong with webhook configurations, admission policies and their bindings.
//!
//! What was let in once stays: an update is held only against what it changes.

mod policies;
mod rules;
mod webhooks;

use insula_api::{
    field::FieldError,
    names::is_dns1123_subdomain,
    selector::{is_label_value, is_qualified_name},
};
use serde_json::{Value, json};

/// The group of all that is checked here.
pub(crate) const GROUP: &str = "admissionregistration.k8s.io";

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// Findings, and how they are made.
#[derive(Debug, Default)]
struct Findings(Vec<FieldError>);

impl Findings {
    fn required(&mut self, field: impl Into<String>, why: &str) {
        self.0.push(FieldError::required(field, why));
    }

    fn invalid(&mut self, field: impl Into<String>, value: &Value, why: &str) {
        self.0.push(FieldError::invalid(field, value, why));
    }

    /// A text that has to be one of a few.
    fn one_of(&mut self, it: &Value, path: &str, field: &str, allowed: &[&str]) {
        if let Some(value) = it.get(field).filter(|it| !it.is_null())
            && !value.as_str().is_some_and(|it| allowed.contains(&it))
        {
            self.0.push(FieldError::unsupported(format!("{path}.{field}"), value, allowed));
        }
    }

    /// As [`Findings::one_of`], of what has to be there.
    fn needs_one_of(&mut self, it: &Value, path: &str, field: &str, allowed: &[&str]) {
        match text(it, field) {
            "" => self.required(format!("{path}.{field}"), ""),
            _ => self.one_of(it, path, field, allowed),
        }
    }

    fn selector(&mut self, it: &Value, path: &str) {
        for (key, value) in it.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{path}.matchLabels");
            if !is_qualified_name(key) {
                self.invalid(path.as_str(), &key.as_str().into(), QUALIFIED);
            }
            if !value.as_str().is_some_and(is_label_value) {
                self.invalid(path.as_str(), value, LABEL_VALUE);
            }
        }
        for (index, it) in list(it, "matchExpressions").iter().enumerate() {
            let path = format!("{path}.matchExpressions[{index}]");
            let values = list(it, "values");
            match text(it, "operator") {
                "In" | "NotIn" if values.is_empty() => self.required(
                    format!("{path}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ),
                "In" | "NotIn" => (),
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    self.0.push(FieldError::forbidden(
                        format!("{path}.values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    ));
                }
                "Exists" | "DoesNotExist" => (),
                other => self.invalid(
                    format!("{path}.operator"),
                    &other.into(),
                    "not a valid selector operator",
                ),
            }
            if !is_qualified_name(text(it, "key")) {
                self.invalid(format!("{path}.key"), &text(it, "key").into(), QUALIFIED);
            }
            for (index, value) in values.iter().enumerate() {
                if !value.as_str().is_some_and(is_label_value) {
                    self.invalid(format!("{path}.values[{index}]"), value, LABEL_VALUE);
                }
            }
        }
    }

    fn qualified_name(&mut self, name: &str, path: &str) {
        if !is_qualified_name(name) {
            self.invalid(path, &name.into(), QUALIFIED);
        }
    }

    /// A name that can be a part of a path.
    fn path_segment(&mut self, name: &str, path: &str) {
        let why = match name {
            "." | ".." => format!("may not be '{name}'"),
            name if name.contains('/') => "may not contain '/'".into(),
            name if name.contains('%') => "may not contain '%'".into(),
            _ => return,
        };
        self.invalid(path, &name.into(), &why);
    }
}

fn text<'a>(it: &'a Value, field: &str) -> &'a str {
    it.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(it: &'a Value, field: &str) -> &'a [Value] {
    it.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn is_label_1035(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    bytes.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.iter().all(inner)
        && bytes.last().is_some_and(|it| *it != b'-')
}

/// What is wrong with an object of the group; `old` is what it was, if it was.
pub(crate) fn check(resource: &str, it: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut findings = Findings::default();
    match resource {
        "validatingwebhookconfigurations" => webhooks::check(it, old, false, &mut findings),
        "mutatingwebhookconfigurations" => webhooks::check(it, old, true, &mut findings),
        "validatingadmissionpolicies" => policies::validating(it, old, &mut findings),
        "mutatingadmissionpolicies" => policies::mutating(it, old, &mut findings),
        "validatingadmissionpolicybindings" => policies::binding(it, true, &mut findings),
        "mutatingadmissionpolicybindings" => policies::binding(it, false, &mut findings),
        _ => (),
    }
    findings.0
}

/// The name of a webhook: a domain of at least three parts.
fn full_name(name: &str, path: &str, findings: &mut Findings) {
    if name.is_empty() {
        findings.required(path, "");
    } else if !is_dns1123_subdomain(name) {
        findings.invalid(path, &name.into(), SUBDOMAIN);
    } else if name.split('.').count() < 3 {
        let why = "should be a domain with at least three segments separated by dots";
        findings.invalid(path, &name.into(), why);
    }
}

fn texts(list: &[Value]) -> Value {
    json!(list)
}
