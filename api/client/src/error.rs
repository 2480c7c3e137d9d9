//! What can go wrong between a caller and the API server.

pub use insula_api::error::chain;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server answered with a failure.
    #[error("{}", status_text(.0))]
    Api(Box<Status>),

    /// The connection failed. A write may or may not have taken effect.
    #[error("the API server did not answer {request}")]
    Transport {
        request: String,
        #[source]
        source: Box<kube::Error>,
    },

    /// No complete answer in time. A write may or may not have taken effect.
    #[error("no answer to {request} within {seconds} s")]
    Timeout { request: String, seconds: u64 },

    /// The answer is larger than this client accepts.
    #[error("the answer to {request} exceeds {limit} bytes or broke off")]
    Body {
        request: String,
        limit: usize,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The answer is not what its kind promises.
    #[error("cannot decode the answer to {request}")]
    Decode {
        request: String,
        #[source]
        source: serde_json::Error,
    },

    /// The object to be sent cannot be written as JSON.
    #[error("cannot encode the body of {request}")]
    Encode {
        request: String,
        #[source]
        source: serde_json::Error,
    },

    /// The request cannot be expressed in HTTP, for example because of a line break in a name.
    #[error("cannot build {request}")]
    Request {
        request: String,
        #[source]
        source: http::Error,
    },

    /// The object lacks what the verb needs to address it.
    #[error("{kind} has no metadata.{field}")]
    Incomplete { kind: String, field: &'static str },
}

/// What a caller may do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Repeating the same call cannot help.
    Never,
    /// Read the object again, then build a new write.
    AfterReread,
    /// The same call may be repeated after this delay.
    AfterDelay(Duration),
}

/// How long to wait when the server does not say.
const DEFAULT_DELAY: Duration = Duration::from_secs(1);

impl Error {
    /// The server's answer, if it gave one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Api(status) => Some(status),
            _ => None,
        }
    }

    /// The `reason` of the server's answer.
    pub fn reason(&self) -> &str {
        self.status().and_then(|status| status.reason.as_deref()).unwrap_or_default()
    }

    /// The HTTP status of the server's answer.
    pub fn code(&self) -> Option<u16> {
        self.status().and_then(|status| status.code).and_then(|code| code.try_into().ok())
    }

    pub fn is_not_found(&self) -> bool {
        self.reason() == "NotFound" || self.code() == Some(404)
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }

    /// A precondition failed: another writer was faster, or the object is another one.
    pub fn is_conflict(&self) -> bool {
        !self.is_already_exists()
            && !self.is_superseded()
            && (self.reason() == "Conflict" || self.code() == Some(409))
    }

    /// Somebody else has taken over what the write was for.
    pub fn is_superseded(&self) -> bool {
        self.reason() == "Superseded"
    }

    /// The resourceVersion or continue token is too old: list again.
    pub fn is_expired(&self) -> bool {
        matches!(self.reason(), "Expired" | "Gone") || self.code() == Some(410)
    }

    pub fn is_forbidden(&self) -> bool {
        self.reason() == "Forbidden" || self.code() == Some(403)
    }

    pub fn is_invalid(&self) -> bool {
        self.reason() == "Invalid" || self.code() == Some(422)
    }

    /// The server does not have this verb on this resource.
    pub fn is_method_not_supported(&self) -> bool {
        self.reason() == "MethodNotAllowed" || self.code() == Some(405)
    }

    /// Nothing can be created in this namespace any more.
    pub fn is_namespace_terminating(&self) -> bool {
        self.has_cause("NamespaceTerminating")
    }

    /// Whether the server's answer names `reason` among its causes.
    pub fn has_cause(&self, reason: &str) -> bool {
        self.status()
            .and_then(|status| status.details.as_ref())
            .and_then(|details| details.causes.as_ref())
            .is_some_and(|causes| causes.iter().any(|it| it.reason.as_deref() == Some(reason)))
    }

    /// The object to be created may nevertheless exist, or the one to be changed have changed.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::Timeout { .. } | Self::Body { .. } => true,
            Self::Api(_) => matches!(self.code(), Some(500 | 502 | 503 | 504)),
            _ => false,
        }
    }

    /// Says how a caller may react, so that no caller matches on variants for it.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Transport { .. } | Self::Timeout { .. } | Self::Body { .. } => {
                Retry::AfterDelay(DEFAULT_DELAY)
            }
            Self::Api(_) if self.is_conflict() => Retry::AfterReread,
            Self::Api(status) => match self.code() {
                Some(429 | 500 | 502..=504) => Retry::AfterDelay(
                    status
                        .details
                        .as_ref()
                        .and_then(|details| details.retry_after_seconds)
                        .and_then(|seconds| seconds.try_into().ok())
                        .map_or(DEFAULT_DELAY, Duration::from_secs),
                ),
                _ => Retry::Never,
            },
            Self::Decode { .. }
            | Self::Encode { .. }
            | Self::Request { .. }
            | Self::Incomplete { .. } => Retry::Never,
        }
    }
}

fn status_text(status: &Status) -> String {
    match (&status.message, &status.reason) {
        (Some(message), _) if !message.is_empty() => message.clone(),
        (_, Some(reason)) if !reason.is_empty() => reason.clone(),
        _ => format!("the API server answered {}", status.code.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{StatusCause, StatusDetails};

    use super::*;

    fn api(code: i32, reason: &str) -> Error {
        Error::Api(Box::new(Status {
            code: Some(code),
            reason: Some(reason.to_owned()),
            ..Status::default()
        }))
    }

    #[test]
    fn two_kinds_of_409_differ() {
        let exists = api(409, "AlreadyExists");
        assert!(exists.is_already_exists() && !exists.is_conflict());
        assert_eq!(exists.retry(), Retry::Never);
        let conflict = api(409, "Conflict");
        assert!(conflict.is_conflict() && !conflict.is_already_exists());
        assert_eq!(conflict.retry(), Retry::AfterReread);
    }

    #[test]
    fn the_server_names_the_delay() {
        let mut error = api(429, "TooManyRequests");
        assert_eq!(error.retry(), Retry::AfterDelay(DEFAULT_DELAY));
        if let Error::Api(status) = &mut error {
            status.details =
                Some(StatusDetails { retry_after_seconds: Some(7), ..StatusDetails::default() });
        }
        assert_eq!(error.retry(), Retry::AfterDelay(Duration::from_secs(7)));
    }

    #[test]
    fn a_terminating_namespace_is_a_cause() {
        let mut error = api(403, "Forbidden");
        assert!(error.is_forbidden() && !error.is_namespace_terminating());
        if let Error::Api(status) = &mut error {
            let cause = StatusCause {
                reason: Some("NamespaceTerminating".to_owned()),
                ..StatusCause::default()
            };
            status.details =
                Some(StatusDetails { causes: Some(vec![cause]), ..StatusDetails::default() });
        }
        assert!(error.is_namespace_terminating());
    }
}
