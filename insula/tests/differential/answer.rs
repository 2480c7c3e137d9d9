//! An answer without what differs from run to run.

use std::sync::LazyLock;

use http::{Response, header};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Fields whose values nobody can foresee.
const FLEETING: &[&str] = &[
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "lastTransitionTime",
    "lastUpdateTime",
    "time",
    "continue",
    "nodePort",
    "healthCheckNodePort",
];
/// Fields that hold addresses of the server's own choice.
const ADDRESSES: &[&str] = &["clusterIP", "clusterIPs"];

static UNFORESEEN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        r"|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z",
        r"|kube-api-access-[a-z0-9]{5}",
        r"|\bBad_[a-z0-9]{5}",
        // Revisions.
        r"|\(\d+\)|current: \d+|resourceVersion: .\d+.|ResourceVersion in object meta: \d+",
    ))
    .unwrap()
});

/// An address that a server chose for a service.
static SERVICE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^10\.96\.\d+\.\d+$").unwrap());

/// An age: of what was just made, which depends on who else is busy, or of what is years old.
static AGE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^(\d+s|\d+y(\d+d)?)$").unwrap());

/// In which lines of a pod a change is.
static HUNK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(pod updates may not change [^@]*@@ -)\d+(,\d+ \+)\d+").unwrap());

/// A line of upstream's source.
static SOURCE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#" in scheme "[^"]*""#).unwrap());

/// What was answered.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) content_type: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<String>,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn new<B>(response: &Response<B>, body: &[u8]) -> Self {
        let text = |name| {
            let value = response.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let warnings = response.headers().get_all(header::WARNING).iter();
        let warnings = warnings.map(|it| it.to_str().unwrap().to_owned()).collect();
        let mut body = match serde_json::from_slice(body) {
            Ok(value) => value,
            Err(_) => Value::String(String::from_utf8_lossy(body).into_owned()),
        };
        still(&mut body);
        let content_type = text(header::CONTENT_TYPE).unwrap_or_default();
        Self { code: response.status().as_u16(), content_type, warnings, body }
    }
}

/// Takes out what differs from run to run; what our answers have more than upstream's (which
/// tenant an object belongs to, and what kind the items of a list are); and what upstream's have
/// more (columns come with sentences from its documentation, some causes are told twice, and a
/// distribution gives every pod a certificate of its own, after which lines are counted otherwise).
pub(crate) fn still(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
                metadata.remove("tenant");
            }
            if let Some(Value::Array(items)) = fields.get_mut("items") {
                for item in items.iter_mut().filter_map(Value::as_object_mut) {
                    item.retain(|name, _| name != "apiVersion" && name != "kind");
                }
            }
            if let Some(Value::Array(managers)) = fields.get_mut("managedFields") {
                // Their order depends on the seconds in which they wrote.
                managers.sort_by_key(|it| {
                    let text = |field: &str| it[field].to_string();
                    [text("operation"), text("manager"), text("subresource")]
                });
            }
            if let Some(Value::Array(sources)) = fields.get_mut("sources") {
                sources.retain(|it| it["configMap"]["name"] != "openshift-service-ca.crt");
            }
            if let Some(Value::Array(columns)) = fields.get_mut("columnDefinitions") {
                for column in columns.iter_mut().filter_map(Value::as_object_mut) {
                    column.remove("description");
                }
            }
            if let Some(Value::Array(cells)) = fields.get_mut("cells") {
                let is_age = |it: &Value| it.as_str().is_some_and(|it| AGE.is_match(it));
                let is_address = |it: &Value| it.as_str().is_some_and(|it| SERVICE.is_match(it));
                let is_out = |it: &Value| is_age(it) || is_address(it);
                cells.iter_mut().filter(|it| is_out(it)).for_each(|it| *it = "*".into());
            }
            if let Some(Value::Array(causes)) = fields.get_mut("causes") {
                let mut seen = Vec::new();
                causes.retain(|it| {
                    let is_new = !seen.contains(it);
                    seen.push(it.clone());
                    is_new
                });
            }
            for (name, value) in fields {
                let name = name.as_str();
                let chosen = ADDRESSES.contains(&name) && !is_none(value);
                if chosen || FLEETING.contains(&name) && !value.is_object() && !value.is_array() {
                    *value = Value::String("*".into());
                } else {
                    still(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(still),
        Value::String(text) => {
            let still =
                UNFORESEEN.replace_all(&SOURCE.replace_all(text, ""), "*").replace("**", "*");
            *text = HUNK.replace(&still, "$1*$2*").into_owned();
        }
        _ => (),
    }
}

/// Whether an address is the word for having none.
fn is_none(value: &Value) -> bool {
    let first = value.as_array().and_then(|it| it.first()).unwrap_or(value);
    first == "None"
}
