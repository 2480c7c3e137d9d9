//! Errors as clients see them: one `metav1.Status`.
//!
//! This is the only place that knows which HTTP code a failure has. Layers below have error types
//! of their own and are turned into [`ApiError`] where their meaning for the request is known.

use std::collections::HashSet;

use http::StatusCode;
use insula_api::{decode::DecodeError, path::PathError, proto::ProtoError};
pub use insula_api::{error::chain, field::FieldError};
use insula_partition::store::StoreError;
use serde_json::{Map, Value, json};

use crate::epochs;

/// A refused or failed request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: StatusCode,
    /// Upstream's machine-readable reason, such as `NotFound`. Empty where it has none.
    pub reason: &'static str,
    pub message: String,
    /// `Status.details`, if the reason has any.
    pub details: Option<Value>,
    /// Also sent as `Retry-After`.
    pub retry_after: Option<u32>,
    /// `Status.metadata.continue`: where an expired paged list can go on.
    pub fresh_token: Option<String>,
    /// What was asked for is on its way to another partition. Nothing was done: the request can
    /// be answered from the start, a little later or by another server.
    pub is_moving: bool,
    /// Told in plain text: no API has the path, so nothing of an API is in the answer.
    pub is_plain: bool,
    /// Upstream's router says it, before anybody has looked at what is asked for.
    pub is_routing: bool,
    /// The whole `Status`, where somebody else made it.
    pub whole: Option<Box<Map<String, Value>>>,
}

pub type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
            retry_after: None,
            fresh_token: None,
            is_moving: false,
            is_plain: false,
            is_routing: false,
            whole: None,
        }
    }

    fn about(mut self, group: &str, resource: &str, name: &str) -> Self {
        let mut details = json!({});
        if !resource.is_empty() {
            details["kind"] = resource.into();
        }
        if !name.is_empty() {
            details["name"] = name.into();
        }
        if !group.is_empty() {
            details["group"] = group.into();
        }
        self.details = Some(details);
        self
    }

    /// Nothing was done, as it is not here.
    pub(crate) fn misdirected(message: String) -> Self {
        Self::new(StatusCode::MISDIRECTED_REQUEST, "Misdirected", message)
    }

    /// What is said among servers is nobody else's business.
    pub(crate) fn only_for_servers() -> Self {
        let message = "forbidden: only servers of this cluster may do this";
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// `resource` as in `pods`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(group, resource));
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(group, resource, name)
    }

    /// A path of a built-in group that means nothing here.
    pub fn unknown_resource() -> Self {
        let mut error = Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        );
        error.details = Some(json!({}));
        error
    }

    /// A path of a group that has no API here. Clients tell it from an object that is not there.
    pub fn unknown_path() -> Self {
        let error = Self::new(StatusCode::NOT_FOUND, "NotFound", "404 page not found");
        Self { is_plain: true, ..error }
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(group, resource));
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(group, resource, name)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            qualified(group, resource)
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(group, resource, name)
    }

    /// The caller's object is older than the stored one.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        Self::conflict(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Others manage fields that an apply would change; `causes` are messages and paths.
    pub fn apply_conflict(message: String, causes: &[(String, String)]) -> Self {
        let mut error = Self::new(StatusCode::CONFLICT, "Conflict", message);
        let causes: Vec<Value> = causes
            .iter()
            .map(|(message, field)| {
                json!({"reason": "FieldManagerConflict", "message": message, "field": field})
            })
            .collect();
        error.details = Some(json!({ "causes": causes }));
        error
    }

    /// What is to be applied does not fit its kind. Upstream has no reason for it.
    pub fn untyped(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
    }

    /// A failure of which upstream's clients learn no reason, only what is wrong.
    pub(crate) fn unexplained(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
    }

    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let texts = errors.iter().map(|it| format!("{}: {}", it.field, it.message));
        // What is found twice is said once.
        let mut seen = HashSet::new();
        let texts: Vec<String> = texts.filter(|it| seen.insert(it.clone())).collect();
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let message = format!("{qualified} \"{name}\" is invalid: {list}");
        let causes: Vec<Value> = errors
            .iter()
            .map(|it| json!({"reason": it.reason, "message": it.message, "field": it.field}))
            .collect();
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
            .about(group, kind, name);
        if let Some(details) = &mut error.details {
            details["causes"] = causes.into();
        }
        error
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let named = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        let message = format!("{}{named} is forbidden: {why}", qualified(group, resource));
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(group, resource, name)
    }

    /// A denial that says nothing of what the caller may not see.
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        let message = format!("forbidden: User {user:?} cannot {verb} path {path:?}");
        let mut error = Self::new(StatusCode::FORBIDDEN, "Forbidden", message);
        error.details = Some(json!({}));
        error
    }

    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn method_not_allowed() -> Self {
        let mut error = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        error.details = Some(json!({}));
        error.is_routing = true;
        error
    }

    /// A custom resource, or part of one, that this is not done with.
    pub(crate) fn not_supported(verb: &str, group: &str, resource: &str) -> Self {
        let what = qualified(group, resource);
        let mut error = Self::method_not_allowed();
        error.message = format!("{verb} is not supported on resources of kind {what:?}");
        error.details = Some(json!({"group": group, "kind": resource}));
        error
    }

    /// Nothing that is on offer is accepted. `stream`: of a watch.
    pub fn not_acceptable(stream: bool) -> Self {
        let offered = match stream {
            true => {
                "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
            }
            false => "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        };
        Self::unfit_form(&format!("only the following media types are accepted: {offered}"))
    }

    /// No encoding that is accepted is known.
    pub(crate) fn no_such_encoding() -> Self {
        let mut error = Self::unfit_form(
            "406: Not Acceptable\n\nAvailable representations: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf, \
             application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch",
        );
        error.details = Some(json!({}));
        error.is_routing = true;
        error
    }

    /// What is accepted does not go with what is asked for.
    pub(crate) fn unfit_form(message: &str) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    pub fn unsupported_media_type(supported: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {supported}"
            ),
        )
    }

    /// A patch of a form that is not known.
    pub fn unsupported_patch() -> Self {
        let message = "415: Unsupported Media Type";
        let mut error =
            Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message);
        error.details = Some(json!({}));
        error.is_routing = true;
        error
    }

    pub fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// Too many or too large, in the words of whoever counted.
    pub fn too_much(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    /// A well-formed patch that does not go with the object.
    pub fn rejected(why: &dyn std::error::Error) -> Self {
        let message =
            format!("the server rejected our request due to an error in our request: {why}");
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
        error.details = Some(json!({}));
        error
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    pub fn timeout(message: impl Into<String>, retry_after: u32) -> Self {
        let mut error = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message);
        error.retry_after = Some(retry_after);
        error
    }

    /// The caller's revision has not happened yet.
    pub fn future_revision(requested: &str, newest: &str) -> Self {
        let message =
            format!("Timeout: Too large resource version: {requested}, current: {newest}");
        let mut error = Self::timeout(message, 1);
        error.details = Some(json!({"causes": [
            {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        ]}));
        error
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        error.retry_after = Some(retry_after);
        error
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message);
        error.retry_after = Some(1);
        error
    }

    /// A server that a write was sent on to went away. No `Retry-After`: that would be an
    /// invitation to do it again.
    pub(crate) fn outcome_unknown() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            "the server that has what was asked for went away; the request may have been carried out",
        )
    }

    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "InternalError", message)
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        let text = format!("Internal error occurred: {message}");
        let mut error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", text);
        error.details = Some(json!({"causes": [{"message": message.to_string()}]}));
        error
    }

    /// A `Status` that somebody else made, with a code that is one of an error.
    pub(crate) fn given(status: Map<String, Value>) -> Self {
        let code = status.get("code").and_then(Value::as_u64);
        let code = code.and_then(|it| u16::try_from(it).ok());
        let code = code.and_then(|it| StatusCode::from_u16(it).ok());
        let message = status.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut error = Self::new(code.unwrap_or(StatusCode::BAD_REQUEST), "", message);
        error.whole = Some(Box::new(status));
        error
    }

    /// The `metav1.Status` document.
    pub fn status(&self) -> Value {
        if let Some(whole) = &self.whole {
            return Value::Object((**whole).clone());
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code.as_u16(),
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        if let Some(seconds) = self.retry_after {
            status["details"]["retryAfterSeconds"] = seconds.into();
        }
        if let Some(token) = &self.fresh_token {
            status["metadata"]["continue"] = token.as_str().into();
        }
        status
    }
}

/// `pods` or `deployments.apps`.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl From<PathError> for ApiError {
    fn from(error: PathError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        Self::bad_request(format!("the object provided is unrecognized: {error}"))
    }
}

impl From<ProtoError> for ApiError {
    fn from(error: ProtoError) -> Self {
        Self::bad_request(format!("the object provided is unrecognized: {error}"))
    }
}

/// Failures of the store whose meaning does not depend on the request.
impl ApiError {
    /// It took longer than the client, or the server, waits.
    pub(crate) fn late() -> Self {
        Self::timeout("Timeout: request did not complete within the allotted timeout", 1)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Compacted { requested, oldest } => Self::expired(format!(
                "The resourceVersion for the provided list is too old: {requested} ({oldest})"
            )),
            StoreError::Future { requested, newest } => {
                Self::future_revision(&requested.to_string(), &newest.to_string())
            }
            StoreError::TooLarge { limit, .. } => Self::too_large(*limit),
            StoreError::Conflict { .. } => Self::internal(&error),
            StoreError::Exceeded(excess) => {
                Self::forbidden("insula.io", "tenantquotas", &excess.quota, &excess.to_string())
            }
            StoreError::Superseded { .. } => {
                Self::new(StatusCode::CONFLICT, epochs::SUPERSEDED, error.to_string())
            }
            StoreError::Moving { what } => {
                let mut error = Self::unavailable(format!("{what} is moving; try again"));
                error.is_moving = true;
                error
            }
            // The key that is missing is named; nothing is that only administrators may know.
            StoreError::Sealed { .. } => {
                tracing::error!(error = chain(&error), "a stored object stays closed");
                Self::internal(chain(&error))
            }
            _ => {
                // The client learns that it may retry; the operator learns why.
                tracing::warn!(error = chain(&error), "a partition failed");
                match &error {
                    StoreError::Unavailable { reason, .. } => {
                        Self::unavailable(format!("the storage partition is unavailable: {reason}"))
                    }
                    _ => Self::internal("stored data cannot be read; see the server's log"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_upstreams() {
        let error = ApiError::not_found("apps", "deployments", "web");
        assert_eq!(error.message, "deployments.apps \"web\" not found");
        assert_eq!(
            error.status()["details"],
            json!({"name": "web", "group": "apps", "kind": "deployments"})
        );
        let error =
            ApiError::invalid("", "Pod", "x", &[FieldError::required("spec.containers", "")]);
        assert_eq!(error.message, "Pod \"x\" is invalid: spec.containers: Required value");
        assert_eq!(error.status()["code"], 422);
    }
}
