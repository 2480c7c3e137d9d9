//! One authorized request for a resource: what the handlers get.

use std::sync::Arc;

use http::HeaderMap;
use insula_api::{
    decode::{self, DecodeError, Decoded},
    names::TenantName,
    path::ResourcePath,
    proto::{self, ProtoError},
    schema::{Gvk, Schema},
};
use insula_partition::{
    epochs::Epoch,
    store::{Committed, Store, StoreError, Write},
};
use serde_json::Value;

use crate::{
    Server,
    accept::Accept,
    custom::{compiled::Custom, object},
    error::{ApiError, FieldError, Result},
    identity::Identity,
    registry::{Served, Whose},
    remarks::Remarks,
    request::{Encoding, FieldValidation, Query, body_encoding},
    write::Together,
};

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Shared by the calls that one request becomes, as its headers are.
    pub identity: Arc<Identity>,
    pub whose: Whose,
    pub served: Arc<Served>,
    pub path: ResourcePath,
    pub verb: &'static str,
    pub query: Query,
    pub accept: Accept,
    pub headers: Arc<HeaderMap>,
    /// Nobody waits for the answer any longer.
    pub until: tokio::time::Instant,
    /// In which epoch it writes, if it writes for a task that changes hands.
    pub epoch: Option<Epoch>,
    /// With whose writes its own goes together, if with any.
    pub together: Option<Arc<Together>>,
    /// What is said beside the answer.
    pub remarks: Arc<Remarks>,
}

impl Call {
    /// The tenant whose objects are meant. Only reads may be about all of them.
    pub(crate) fn tenant(&self) -> Result<&TenantName> {
        self.whose.tenant().ok_or_else(|| {
            ApiError::bad_request(
                "tenant \"all\" stands for every tenant and can only be listed and watched",
            )
        })
    }

    pub(crate) fn key(&self, name: &str) -> Result<String> {
        Ok(crate::registry::key(self.tenant()?, &self.namespace(), name))
    }

    /// The namespace of the object; empty where the resource has none.
    pub(crate) fn namespace(&self) -> String {
        if self.served.resource.is_namespaced() {
            self.path.namespace.clone()
        } else {
            String::new()
        }
    }

    /// Has `write` done, with those of others if there are any.
    pub(crate) async fn write(
        &self,
        store: &dyn Store,
        write: Write,
    ) -> std::result::Result<Committed, StoreError> {
        match &self.together {
            Some(together) => together.write(write).await,
            None => store.write(write).await,
        }
    }

    /// The same caller's call about another object of the same namespace, or part of it.
    pub(crate) fn about(
        &self,
        server: &Server,
        group: &str,
        resource: &str,
        name: &str,
        subresource: &str,
    ) -> Result<Self> {
        let served = server.registry.any_version(group, resource).cloned();
        let served = served.ok_or_else(ApiError::unknown_resource)?;
        let mut other = self.clone();
        other.path.group = group.into();
        other.path.version = served.resource.version.clone();
        other.path.resource = resource.into();
        other.path.name = name.into();
        other.path.subresource = subresource.into();
        other.served = served;
        Ok(other)
    }

    pub(crate) fn not_found(&self, name: &str) -> ApiError {
        let resource = &self.served.resource;
        ApiError::not_found(&resource.group, &resource.name, name)
    }

    pub(crate) fn modified(&self, name: &str) -> ApiError {
        let resource = &self.served.resource;
        ApiError::modified(&resource.group, &resource.name, name)
    }

    pub(crate) fn forbidden(&self, name: &str, why: &str) -> ApiError {
        let resource = &self.served.resource;
        ApiError::forbidden(&resource.group, &resource.name, name, why)
    }

    /// Decodes a body that should be a `kind`. Its sender is warned about its fields.
    pub(crate) fn decode(&self, kind: &Gvk, body: &[u8]) -> Result<Value> {
        self.decode_either(kind, None, body)
    }

    /// As [`Call::decode`], of a kind that has `another` version in which it is the same.
    pub(crate) fn decode_either(
        &self,
        kind: &Gvk,
        another: Option<&Gvk>,
        body: &[u8],
    ) -> Result<Value> {
        let schema = Schema::built_in();
        let validation = FieldValidation::from_query(&self.query)?;
        if let Some(custom) = self.custom(&kind.api_version(), &kind.kind) {
            let decoded = object::read_body(&self.headers, body)?;
            let mut decoded = decoded.map_err(|error| undecodable(&error, kind, body))?;
            if let Some(found) = not_an_object(&decoded.value) {
                let why = format!("json: cannot unmarshal {found} into Go value of type struct");
                return Err(unrecognized(kind, &why, body));
            }
            check_custom(&decoded.value, kind, body)?;
            let found = object::shape(&custom.version, &mut decoded.value)
                .map_err(|error| unfit(&kind.kind, &kind.version, kind, &error.to_string()))?;
            decoded.findings.extend(found);
            return self.judged(decoded, kind, validation);
        }
        let root = schema.by_kind(kind);
        let decoded = match body_encoding(&self.headers)? {
            Encoding::Json => decode::json(schema, root, body),
            Encoding::Yaml => decode::yaml(schema, root, body),
            Encoding::Protobuf => {
                let decoded = proto::decode(schema, body, Some(kind));
                let (found, value) = decoded.map_err(|error| unreadable(&error, kind, body))?;
                if found != *kind {
                    return Err(wrong_kind(&found, kind));
                }
                Ok(Decoded { value, findings: Vec::new() })
            }
        };
        let mut decoded = decoded.map_err(|error| undecodable(&error, kind, body))?;
        if another.is_some_and(|it| kind_of(&decoded.value, kind) == *it) {
            set_kind(&mut decoded.value, kind);
        }
        check_kind(&mut decoded.value, kind)?;
        self.judged(decoded, kind, validation)
    }

    /// The definition of objects of this kind, if they are custom ones.
    fn custom(&self, api_version: &str, kind: &str) -> Option<&Custom> {
        let resource = &self.served.resource;
        let is_own = resource.kind == kind && resource.api_version() == api_version;
        self.served.custom().filter(|_| is_own)
    }

    /// Checks an object that was put together here, by a patch, as if it had been sent.
    pub(crate) fn check(
        &self,
        kind: &Gvk,
        mut value: Value,
        misfit: impl Fn(DecodeError) -> ApiError,
    ) -> Result<Value> {
        let validation = FieldValidation::from_query(&self.query)?;
        if let Some(custom) = self.custom(&kind.api_version(), &kind.kind) {
            let wrong = misnamed(&value, kind);
            if !wrong.is_empty() {
                let (found, name) = (own_kind(&value, kind), insula_api::object::name(&value));
                return Err(ApiError::invalid(&kind.group, found, name, &wrong));
            }
            let findings = object::shape(&custom.version, &mut value).map_err(&misfit)?;
            return self.judged(Decoded { value, findings }, kind, validation);
        }
        let found = kind_of(&value, kind);
        if found != *kind {
            return Err(misfit(DecodeError::Mismatch(no_such(&found, kind))));
        }
        set_kind(&mut value, kind);
        let schema = Schema::built_in();
        let decoded = decode::value(schema, schema.by_kind(kind), value).map_err(misfit)?;
        self.judged(decoded, kind, validation)
    }

    /// What unknown and duplicate fields lead to. Their sender is warned even if the request is
    /// refused for another reason.
    fn judged(&self, decoded: Decoded, kind: &Gvk, validation: FieldValidation) -> Result<Value> {
        match validation {
            FieldValidation::Strict if !decoded.findings.is_empty() => {
                let why = format!("strict decoding error: {}", decoded.findings.join(", "));
                return Err(unfit(&kind.kind, &kind.version, kind, &why));
            }
            FieldValidation::Warn => {
                // Of YAML each is told by itself.
                let told = decoded.findings.into_iter().map(|it| {
                    it.strip_prefix("yaml: unmarshal errors:\n  ").unwrap_or(&it).to_owned()
                });
                self.remarks.warn_all(told);
            }
            _ => (),
        }
        Ok(decoded.value)
    }

    /// Reads a part of an object of this kind, without filling in anything.
    pub(crate) fn typed(&self, kind: &Gvk, mut value: Value) -> Result<Decoded, DecodeError> {
        if let Some(custom) = self.custom(&kind.api_version(), &kind.kind) {
            let findings = object::prune(&custom.version, &mut value)?;
            return Ok(Decoded { value, findings });
        }
        let schema = Schema::built_in();
        decode::applied(schema, schema.by_kind(kind), value)
    }
}

/// How much of a body that cannot be read is shown to whoever sent it, in bytes.
const SHOWN: usize = 30;
/// And most of one that can be.
const MOST_SHOWN: usize = 4096;

/// What is said of a body that could not be decoded as `kind`.
fn undecodable(error: &DecodeError, kind: &Gvk, body: &[u8]) -> ApiError {
    #[derive(Default, serde::Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Head {
        api_version: Value,
        kind: Value,
    }
    let sent = read_again(body).filter(|_| matches!(error, DecodeError::Mismatch(_)));
    let head: Option<Head> = serde_json::from_slice(body).ok();
    let head = head.or_else(|| serde_json::from_value(sent.clone()?).ok()).unwrap_or_default();
    for (field, value) in [("apiVersion", &head.api_version), ("kind", &head.kind)] {
        if matches!(value, Value::Null | Value::String(_)) {
            continue;
        }
        let found = not_an_object(value).unwrap_or("object");
        let why =
            format!("json: cannot unmarshal {found} into Go struct field .{field} of type string");
        return unrecognized(kind, &why, body);
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, found_kind) = (text(&head.api_version), text(&head.kind));
    // What nests too deeply cannot be read again.
    let is_object =
        body.trim_ascii_start().starts_with(b"{") || sent.as_ref().is_some_and(Value::is_object);
    if let Some(found) = sent.as_ref().and_then(not_an_object) {
        let why = format!("json: cannot unmarshal {found} into Go value of type {HEAD}");
        return unrecognized(kind, &why, body);
    }
    // Of another kind nothing has to fit.
    let mut other = serde_json::json!({"apiVersion": api_version, "kind": found_kind});
    if is_object && let Err(error) = check_kind(&mut other, kind) {
        return error;
    }
    match error {
        DecodeError::Mismatch(why) if is_object => {
            let version = api_version.rsplit('/').next().filter(|it| !it.is_empty());
            let found = Some(found_kind.as_str()).filter(|it| !it.is_empty());
            let found = found.unwrap_or(&kind.kind);
            unfit(found, version.unwrap_or(&kind.version), kind, why)
        }
        DecodeError::Mismatch(why) | DecodeError::Syntax(why) => unrecognized(kind, why, body),
    }
}

/// What Go calls the part of a body that says what it is.
pub(crate) const HEAD: &str = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// A body that was refused, as it was sent, if it can be read at all.
fn read_again(body: &[u8]) -> Option<Value> {
    let schema = Schema::built_in();
    let read = decode::json(schema, None, body).or_else(|_| decode::yaml(schema, None, body));
    read.ok().map(|it| it.value)
}

/// What is said of a body that does not even say what it is.
fn unrecognized(kind: &Gvk, why: &str, body: &[u8]) -> ApiError {
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): couldn't get version/kind; \
         json parse error: {why} ({})",
        kind.kind,
        summary(body)
    ))
}

/// What Go calls a value that is no object.
pub(crate) fn not_an_object(value: &Value) -> Option<&'static str> {
    match value {
        Value::Object(_) => None,
        Value::Null => Some("null"),
        Value::Bool(_) => Some("bool"),
        Value::Number(_) => Some("number"),
        Value::String(_) => Some("string"),
        Value::Array(_) => Some("array"),
    }
}

/// What is said of a body that is no protobuf.
fn unreadable(error: &ProtoError, kind: &Gvk, body: &[u8]) -> ApiError {
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {error} ({})",
        kind.kind,
        summary(body)
    ))
}

/// The first bytes of a body: as they are if it is JSON, as digits if not.
fn summary(body: &[u8]) -> String {
    let begin = &body[..body.len().min(SHOWN)];
    let mut shown = match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(begin).into_owned(),
        Some(_) => begin.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if SHOWN < body.len() {
        shown.push_str(" ...");
    }
    shown
}

/// A `found` in `version` that is not what a `kind` can be made of.
fn unfit(found: &str, version: &str, kind: &Gvk, why: &str) -> ApiError {
    ApiError::bad_request(format!(
        "{found} in version {version:?} cannot be handled as a {}: {why}",
        kind.kind
    ))
}

/// Why a `found` is no `wanted`.
fn no_such(found: &Gvk, wanted: &Gvk) -> String {
    if Schema::built_in().by_kind(found).is_none() {
        let version = found.api_version();
        return format!("no kind {:?} is registered for version {version:?}", found.kind);
    }
    let package = match wanted.group.split('.').next() {
        None | Some("") => "core",
        Some(name) => name,
    };
    format!(
        "converting ({}.{}) to ({package}.{}): unknown conversion",
        found.version, found.kind, wanted.kind
    )
}

/// What is said of a `found` that was sent in the place of a `wanted`.
fn wrong_kind(found: &Gvk, wanted: &Gvk) -> ApiError {
    let of_group = (&found.group, &found.kind) == (&wanted.group, &wanted.kind);
    let is_known = Schema::built_in().by_kind(found).is_some();
    if is_known && of_group && found.kind != "Status" {
        return ApiError::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({})",
            found.api_version(),
            wanted.api_version()
        ));
    }
    unfit(&found.kind, &found.version, wanted, &no_such(found, wanted))
}

/// The kind that a value says it is of, or the one it should be of.
fn own_kind<'a>(value: &'a Value, kind: &'a Gvk) -> &'a str {
    value["kind"].as_str().unwrap_or(&kind.kind)
}

/// What a custom resource says of its kind that is not so.
fn misnamed(value: &Value, kind: &Gvk) -> Vec<FieldError> {
    let wanted = [("kind", kind.kind.clone()), ("apiVersion", kind.api_version())];
    let wrong = wanted.into_iter().filter(|(field, wanted)| value[*field] != **wanted);
    wrong
        .map(|(field, wanted)| {
            FieldError::invalid(field, &value[field], &format!("must be {wanted}"))
        })
        .collect()
}

/// The body of a custom resource says of what kind it is, and is of it.
fn check_custom(value: &Value, kind: &Gvk, body: &[u8]) -> Result<()> {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    if text("kind").is_empty() {
        let whole = String::from_utf8_lossy(&body[..body.len().min(MOST_SHOWN)]);
        return Err(ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): \
             Object 'Kind' is missing in '{whole}' ({})",
            kind.kind,
            summary(body)
        )));
    }
    if text("apiVersion") != kind.api_version() {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({})",
            text("apiVersion"),
            kind.api_version()
        )));
    }
    match misnamed(value, kind) {
        wrong if wrong.is_empty() => Ok(()),
        wrong => {
            let name = insula_api::object::name(value);
            Err(ApiError::invalid(&kind.group, text("kind"), name, &wrong))
        }
    }
}

/// The kind that a value says it is of; what it leaves out is as in `kind`.
fn kind_of(value: &Value, kind: &Gvk) -> Gvk {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let (api_version, name) = (text("apiVersion"), text("kind"));
    let (group, version) = match api_version {
        "" => (&*kind.group, &*kind.version),
        given => given.split_once('/').unwrap_or(("", given)),
    };
    Gvk::new(group, version, if name.is_empty() { &kind.kind } else { name })
}

/// Has an object say what kind it is of.
pub(crate) fn set_kind(it: &mut Value, kind: &Gvk) {
    if let Some(fields) = it.as_object_mut() {
        fields.insert("apiVersion".into(), kind.api_version().into());
        fields.insert("kind".into(), kind.kind.as_str().into());
    }
}

/// A body may leave out its kind; it may not name another.
fn check_kind(value: &mut Value, kind: &Gvk) -> Result<()> {
    if value.is_null() {
        // As if nothing were said of it.
        *value = Value::Object(serde_json::Map::new());
    }
    let found = kind_of(value, kind);
    if found != *kind {
        return Err(wrong_kind(&found, kind));
    }
    set_kind(value, kind);
    Ok(())
}
