//! Patches: what a body says to do to an object, in each of the forms that clients send.

use insula_api::{
    decode::{self, Decoded},
    object::{self, Stored},
    schema::{Gvk, Schema, Shape},
    strategic,
};
use serde_json::Value;

use crate::{
    call::Call,
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
        match media_type(&call.headers) {
            JSON => {
                let patch: json_patch::Patch =
                    serde_json::from_value(json()?).map_err(|error| {
                        ApiError::bad_request(format!("error decoding patch: {error}"))
                    })?;
                if OPERATIONS < patch.0.len() {
                    return Err(ApiError::too_large(OPERATIONS));
                }
                Ok(Self::Json(patch))
            }
            MERGE => Ok(Self::Merge(json()?)),
            // Nothing says how lists of custom resources merge.
            STRATEGIC if call.served.custom().is_some() && call.path.subresource != "scale" => {
                Err(ApiError::unsupported_media_type(&format!("{JSON}, {MERGE}, {APPLY}")))
            }
            STRATEGIC => Ok(Self::Strategic(json()?)),
            _ => Err(ApiError::unsupported_media_type(&format!(
                "{JSON}, {MERGE}, {STRATEGIC}, {APPLY}"
            ))),
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

    /// What becomes of `current`, checked by its type; with warnings about unknown fields.
    pub(crate) fn apply(&self, call: &Call, current: &Stored) -> Result<(Value, Vec<String>)> {
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
            Self::Json(patch) => {
                json_patch::patch(&mut value, patch).map_err(|error| {
                    let mut failed = ApiError::bad_request(format!(
                        "the server rejected our request due to an error in our request: {error}"
                    ));
                    failed.code = http::StatusCode::UNPROCESSABLE_ENTITY;
                    failed.reason = "Invalid";
                    failed
                })?;
            }
            Self::Merge(patch) => json_patch::merge(&mut value, patch),
            Self::Strategic(patch) => {
                let shape = id.map_or(Shape::Any, Shape::Object);
                value = strategic::merge(schema, &shape, value, patch.clone())
                    .map_err(|error| ApiError::bad_request(error.to_string()))?;
            }
        }
        if !value.is_object() {
            return Err(ApiError::bad_request("the patch leaves no object"));
        }
        call.check(&kind, value)
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
    pub warnings: Vec<String>,
}

impl Configuration {
    /// Decodes a body that should speak of a `kind`.
    pub(crate) fn parse(call: &Call, kind: &Gvk, body: &[u8]) -> Result<Self> {
        check_options(call)?;
        let schema = Schema::built_in();
        // Most clients send JSON, which is YAML that can be read in a tenth of the time.
        let decoded = decode::json(schema, None, body)
            .or_else(|_| decode::yaml(schema, None, body))
            .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}")))?;
        let Decoded { value, findings: repeated } = decoded;
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
        if object::metadata(&value).contains_key("managedFields") {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        let typed = call
            .typed(kind, value.clone())
            .map_err(|error| ownership::untyped(&value, &error.to_string()))?;
        if let Some(unknown) = typed.findings.first() {
            let path = unknown.trim_start_matches("unknown field ").trim_matches('"');
            let why = format!(".{path}: field not declared in schema");
            return Err(ownership::untyped(&value, &why));
        }
        let warnings = match FieldValidation::from_query(&call.query)? {
            FieldValidation::Strict if !repeated.is_empty() => {
                let list = repeated.join(", ");
                return Err(ApiError::bad_request(format!("error strict decoding YAML: {list}")));
            }
            FieldValidation::Warn => repeated,
            _ => Vec::new(),
        };
        Ok(Self { value: typed.value, force: call.query.flag("force"), warnings })
    }

    /// It asks for a certain revision.
    pub(crate) fn has_revision(&self) -> bool {
        !object::meta_str(&self.value, "resourceVersion").is_empty()
    }
}
