//! Patches: what a body says to do to an object, in each of the forms that clients send.

mod claim;

use claim::ClaimError;
use insula_api::{
    decode::{self, Decoded},
    object::{self, Stored},
    schema::{Gvk, Schema, Shape},
    strategic,
    structural::built_in::{BuiltIn, check},
};
use serde_json::Value;

use crate::{
    call::{Call, set_kind},
    error::{ApiError, FieldError, Result},
    ownership,
    request::{FieldValidation, media_type},
};

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
/// Most operations of one JSON patch.
const OPERATIONS: usize = 10_000;

/// Most that the copies of one JSON patch may add, in bytes.
const COPIED: usize = crate::request::MAX_BODY;
/// Most that the other operations of one JSON patch may put somewhere, in bytes.
const MOVED: usize = 32 * crate::request::MAX_BODY;
/// Most of a patch that is shown to whoever sent it, in bytes.
const SHOWN: usize = 4096;
/// Deepest place at which a JSON patch may put something.
const DEPTH: usize = 200;

/// A decoded patch.
#[derive(Debug)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

/// Whether the body says what an object should be, rather than what to do to it.
pub(crate) fn is_apply(call: &Call) -> bool {
    media_type(&call.headers) == APPLY
}

impl Patch {
    pub(crate) fn parse(call: &Call, body: &[u8]) -> Result<Self> {
        check_options(call)?;
        let json = || {
            decode::json(Schema::built_in(), None, body)
                .map(|it| it.value)
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))
        };
        let undecodable = |why: &dyn std::fmt::Display| {
            ApiError::bad_request(format!("error decoding patch: {why}"))
        };
        match media_type(&call.headers) {
            JSON => {
                let operations = match json()? {
                    it @ Value::Array(_) => it,
                    Value::Null => Value::Array(Vec::new()),
                    // What people forget: it is a list. Upstream tells them so in Go's words.
                    other => return Err(undecodable(&unfit(&other, "[]handlers.jsonPatchOp"))),
                };
                let patch: json_patch::Patch =
                    serde_json::from_value(operations).map_err(|error| undecodable(&error))?;
                if OPERATIONS < patch.0.len() {
                    return Err(ApiError::too_much(format!(
                        "The allowed maximum operations in a JSON patch is {OPERATIONS}, got {}",
                        patch.0.len()
                    )));
                }
                Ok(Self::Json(patch))
            }
            MERGE => match json()? {
                it @ Value::Object(_) => Ok(Self::Merge(it)),
                Value::Null => Err(ApiError::bad_request("Invalid JSON Patch")),
                other => Err(undecodable(&unfit(&other, MAP))),
            },
            // Nothing says how lists of custom resources merge.
            _ if call.served.custom().is_some() => {
                Err(ApiError::unsupported_media_type(&format!("{JSON}, {MERGE}, {APPLY}")))
            }
            STRATEGIC => match json()? {
                it @ Value::Object(_) => Ok(Self::Strategic(it)),
                Value::Null => Ok(Self::Strategic(Value::Object(serde_json::Map::new()))),
                other => Err(ApiError::bad_request(unfit(&other, MAP))),
            },
            _ => Err(ApiError::unsupported_patch()),
        }
    }

    /// The patch asks for a certain revision.
    pub(crate) fn has_revision(&self) -> bool {
        match self {
            Self::Json(_) => false,
            Self::Merge(it) | Self::Strategic(it) => {
                !object::meta_str(it, "resourceVersion").is_empty()
            }
        }
    }

    /// The patch may look at the managers of the object, which are otherwise left out.
    fn is_about_managers(&self) -> bool {
        match self {
            Self::Json(patch) => patch.0.iter().any(|operation| {
                use json_patch::PatchOperation::{Copy, Move};
                let from = match operation {
                    Copy(it) => Some(it.from.as_str()),
                    Move(it) => Some(it.from.as_str()),
                    _ => None,
                };
                [Some(operation.path().as_str()), from].into_iter().flatten().any(|path| {
                    path.is_empty()
                        || path == "/metadata"
                        || path.starts_with("/metadata/managedFields")
                })
            }),
            Self::Merge(it) | Self::Strategic(it) => {
                object::metadata(it).contains_key("managedFields")
            }
        }
    }

    /// As it was sent, for whoever sent it.
    fn text(&self) -> String {
        let mut text = match self {
            Self::Json(patch) => patch.to_string(),
            Self::Merge(it) | Self::Strategic(it) => it.to_string(),
        };
        let end = (0..=SHOWN).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
        text
    }

    /// What becomes of `current`, checked by its type.
    pub(crate) fn apply(&self, call: &Call, current: &Stored) -> Result<Value> {
        let schema = Schema::built_in();
        let text = |field: &str| current.object[field].as_str().unwrap_or_default();
        let api_version = text("apiVersion");
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = Gvk::new(group, version, text("kind"));
        let id = schema.by_kind(&kind);
        let mut value = match self.is_about_managers() {
            true => current.whole().map_err(ApiError::internal)?,
            false => current.object.clone(),
        };
        match self {
            Self::Json(patch) => run(&mut value, patch)?,
            Self::Merge(patch) => json_patch::merge(&mut value, patch),
            Self::Strategic(patch) => {
                let shape = id.map_or(Shape::Any, Shape::Object);
                value =
                    strategic::merge(schema, &shape, value, patch.clone()).map_err(|error| {
                        match error {
                            error if error.is_format() => ApiError::bad_request(error.to_string()),
                            strategic::PatchError::ListOfLists => ApiError::rejected(&error),
                            error => ApiError::untyped(error.to_string()),
                        }
                    })?;
                // It is about fields, whatever it says of the kind.
                set_kind(&mut value, &kind);
            }
        }
        if !value.is_object() {
            return Err(ApiError::bad_request("the patch leaves no object"));
        }
        // Upstream shows what the patch made; the patch itself is shorter, and what its author knows.
        call.check(&kind, value, |error| {
            let error = FieldError::invalid("patch", &self.text().into(), &error.to_string());
            ApiError::invalid("", "", "", &[error])
        })
    }
}

/// What Go calls the fields of a patch.
const MAP: &str = "map[string]interface {}";

/// What Go says of a value in the place of a `wanted`.
fn unfit(found: &Value, wanted: &str) -> String {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    format!("json: cannot unmarshal {found} into Go value of type {wanted}")
}

/// Does the operations of a JSON patch, one after the other.
pub(crate) fn run(value: &mut Value, patch: &json_patch::Patch) -> Result<()> {
    run_until(value, patch).map_err(|stopped| match stopped {
        Stopped::Refused(error) => error,
        Stopped::Untrue(error) => ApiError::rejected(&error),
    })
}

/// As [`run`]. False if a test of the patch does not hold; the value is then of no use.
pub(crate) fn run_tested(value: &mut Value, patch: &json_patch::Patch) -> Result<bool> {
    match run_until(value, patch) {
        Ok(()) => Ok(true),
        Err(Stopped::Untrue(_)) => Ok(false),
        Err(Stopped::Refused(error)) => Err(error),
    }
}

/// Why a patch was not done to its end.
enum Stopped {
    /// A test does not hold.
    Untrue(ClaimError),
    Refused(ApiError),
}

impl From<ApiError> for Stopped {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

fn run_until(value: &mut Value, patch: &json_patch::Patch) -> Result<(), Stopped> {
    use json_patch::PatchOperation::{Add, Copy, Move, Replace, Test};
    let (mut copied, mut moved) = (0, 0);
    for operation in &patch.0 {
        // A few copies of what was copied before make any size and depth of a small patch.
        let put = match operation {
            Add(it) => Some(Measure::of(&it.value)),
            Replace(it) => Some(Measure::of(&it.value)),
            Copy(it) => value.pointer(it.from.as_str()).map(Measure::of),
            Move(it) => value.pointer(it.from.as_str()).map(Measure::of),
            _ => None,
        };
        if let Some(put) = put {
            match operation {
                Copy(_) => copied += put.size,
                _ => moved += put.size,
            }
            let steps = operation.path().as_str().matches('/').count();
            if COPIED < copied || MOVED < moved {
                let why = format!(
                    "Unable to complete the copy, the accumulated size increase of copy is more than the limit {COPIED}"
                );
                return Err(ApiError::too_much(why).into());
            }
            if DEPTH < steps + put.depth {
                let why = format!("exceeded max depth of {DEPTH}");
                return Err(ApiError::bad_request(why).into());
            }
        }
        if let Test(claim) = operation {
            claim::holds(value, claim).map_err(|error| match error {
                ClaimError::Untrue(_) => Stopped::Untrue(error),
                error => Stopped::Refused(ApiError::rejected(&error)),
            })?;
            continue;
        }
        json_patch::patch(value, std::slice::from_ref(operation))
            .map_err(|error| Stopped::Refused(ApiError::rejected(&error)))?;
    }
    Ok(())
}

/// About how many bytes the JSON of a value has, and how deep it is.
struct Measure {
    size: usize,
    depth: usize,
}

impl Measure {
    fn of(value: &Value) -> Self {
        let mut sum = Self { size: 8, depth: 0 };
        let mut add = |more: usize, inner: &Value| {
            let inner = Self::of(inner);
            sum.size += more + inner.size;
            sum.depth = sum.depth.max(inner.depth + 1);
        };
        match value {
            Value::String(text) => sum.size += text.len(),
            Value::Array(list) => list.iter().for_each(|item| add(0, item)),
            Value::Object(map) => map.iter().for_each(|(name, item)| add(name.len(), item)),
            _ => (),
        }
        sum
    }
}

/// Refuses options that do not go with the kind of patch.
fn check_options(call: &Call) -> Result<()> {
    let error = match is_apply(call) {
        true if call.query.get("fieldManager").is_none() => {
            FieldError::required("fieldManager", "is required for apply patch")
        }
        false if call.query.get("force").is_some() => {
            FieldError::forbidden("force", "may not be specified for non-apply patch")
        }
        _ => return Ok(()),
    };
    Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", &[error]))
}

/// What somebody wants an object to be.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub value: Value,
    pub force: bool,
}

impl Configuration {
    /// Decodes a body that should speak of a `kind`.
    pub(crate) fn parse(call: &Call, kind: &Gvk, body: &[u8]) -> Result<Self> {
        check_options(call)?;
        let validation = FieldValidation::from_query(&call.query)?;
        let force = call.query.flag("force");
        let schema = Schema::built_in();
        // Most clients send JSON, which is YAML that can be read in a tenth of the time.
        let decoded = decode::json(schema, None, body)
            .or_else(|_| decode::yaml(schema, None, body))
            .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}")))?;
        let Decoded { mut value, findings: repeated } = decoded;
        if value.is_null() {
            value = Value::Object(serde_json::Map::new());
        }
        if !value.is_object() {
            return Err(ApiError::bad_request("error decoding YAML: the document is no object"));
        }
        let text = |field: &str| value[field].as_str().unwrap_or_default();
        if text("apiVersion") != kind.api_version() || text("kind") != kind.kind {
            let api_version = text("apiVersion");
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let found = format!("{group}/{version}, Kind={}", text("kind"));
            return Err(ApiError::bad_request(format!("invalid object type: {found}")));
        }
        if object::metadata(&value).get("managedFields").is_some_and(|it| !it.is_null()) {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        let typed = match schema.by_kind(kind) {
            // What says nothing, a null or an empty map, is somebody's all the same.
            Some(root) => check(BuiltIn::root(root), &value)
                .map(|()| None)
                .map_err(|misfit| misfit.to_string()),
            None => typed_custom(call, kind, value.clone()).map(Some),
        };
        let typed = typed.map_err(|why| ownership::untyped(&value, &why))?;
        match validation {
            FieldValidation::Strict if !repeated.is_empty() => {
                let list = repeated.join(", ");
                return Err(ApiError::bad_request(format!("error strict decoding YAML: {list}")));
            }
            FieldValidation::Warn => call.remarks.warn_all(repeated),
            _ => (),
        }
        Ok(Self { value: typed.unwrap_or(value), force })
    }

    /// It asks for a certain revision.
    pub(crate) fn has_revision(&self) -> bool {
        !object::meta_str(&self.value, "resourceVersion").is_empty()
    }
}

/// A custom resource without what its schema does not know, of which there must be nothing.
fn typed_custom(call: &Call, kind: &Gvk, value: Value) -> std::result::Result<Value, String> {
    let typed = call.typed(kind, value).map_err(|error| error.to_string())?;
    match typed.findings.first() {
        None => Ok(typed.value),
        Some(unknown) => {
            let path = unknown.trim_start_matches("unknown field ").trim_matches('"');
            Err(format!(".{path}: field not declared in schema"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(mut value: Value, patch: Value) -> Result<Value> {
        run(&mut value, &serde_json::from_value(patch).unwrap()).map(|()| value)
    }

    #[test]
    fn operations_follow_each_other() {
        let patch = json!([
            {"op": "test", "path": "/a", "value": 1},
            {"op": "copy", "from": "/a", "path": "/b"},
            {"op": "move", "from": "/b", "path": "/c/0"},
            {"op": "add", "path": "/c/-", "value": 2},
            {"op": "remove", "path": "/a"},
        ]);
        assert_eq!(patched(json!({"a": 1, "c": []}), patch).unwrap(), json!({"c": [1, 2]}));
        let error = patched(json!({}), json!([{"op": "remove", "path": "/a"}])).unwrap_err();
        assert_eq!((error.code.as_u16(), error.reason), (422, "Invalid"));
    }

    /// Each copy doubles what is there: forty of them would be a terabyte.
    #[test]
    fn copies_of_copies_are_bounded() {
        let wide: Vec<Value> = (0..40)
            .flat_map(|n| {
                [
                    json!({"op": "copy", "from": "/a", "path": format!("/b{n}")}),
                    json!({"op": "move", "from": format!("/b{n}"), "path": "/a/-"}),
                    json!({"op": "copy", "from": "/a", "path": "/a/-"}),
                    json!({"op": "move", "from": "/a", "path": "/b"}),
                    json!({"op": "add", "path": "/a", "value": ["x"]}),
                    json!({"op": "move", "from": "/b", "path": "/a/-"}),
                ]
            })
            .collect();
        let error = patched(json!({"a": ["x".repeat(1000)]}), wide.into()).unwrap_err();
        assert_eq!(error.code.as_u16(), 413, "{error}");

        let deep: Vec<Value> =
            (0..300).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/a"})).collect();
        let error = patched(json!({"a": {"a": {}}}), deep.into()).unwrap_err();
        assert_eq!(error.code.as_u16(), 400, "{error}");
        let deep = [json!({"op": "copy", "from": "/a", "path": "/a/0"})];
        let deep: Vec<Value> = deep.iter().cycle().take(40).cloned().collect();
        let error = patched(json!({"a": [[]]}), deep.into()).unwrap_err();
        assert!(matches!(error.code.as_u16(), 400 | 413), "{error}");
    }
}
