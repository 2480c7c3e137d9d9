//! `AdmissionReview`: what a webhook is asked, and what its answer means.

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Shown;
use crate::error::ApiError;

/// Most operations of one patch.
const MAX_OPERATIONS: usize = 10_000;

/// Versions of the review that are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V1Beta1,
}

impl Version {
    /// The first that both sides know.
    pub(super) fn of(accepted: &[String]) -> Option<Self> {
        accepted.iter().find_map(|it| match it.as_str() {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1Beta1),
            _ => None,
        })
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "admission.k8s.io/v1",
            Self::V1Beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// What a webhook said to a request that it lets through.
#[derive(Debug, Default)]
pub(super) struct Allowed {
    pub patch: Option<json_patch::Patch>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    response: Option<Response>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Response {
    uid: String,
    allowed: bool,
    status: Option<Map<String, Value>>,
    patch: Option<String>,
    patch_type: Option<String>,
    pub audit_annotations: Option<Map<String, Value>>,
    pub warnings: Option<Vec<String>>,
}

/// What a webhook is asked. It is written as it lies: objects may be large.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    kind: &'static str,
    api_version: &'static str,
    request: About<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct About<'a> {
    #[serde(flatten)]
    about: &'a Map<String, Value>,
    uid: &'a str,
    object: &'a Value,
    old_object: &'a Value,
}

/// The body of a request.
pub(super) fn request(
    version: Version,
    uid: &str,
    about: &Map<String, Value>,
    shown: &Shown,
) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Question {
        kind: "AdmissionReview",
        api_version: version.api_version(),
        request: About { about, uid, object: &shown.object, old_object: &shown.old },
    })
}

/// Reads an answer, and checks that it is one to the request.
pub(super) fn response(
    body: &[u8],
    version: Version,
    uid: &str,
    is_mutating: bool,
) -> Result<Response, String> {
    let review: Review =
        serde_json::from_slice(body).map_err(|error| format!("failed to call webhook: {error}"))?;
    let invalid = |why: String| format!("received invalid webhook response: {why}");
    let response = review.response.ok_or_else(|| invalid("webhook response was absent".into()))?;
    if version == Version::V1Beta1 {
        return Ok(response);
    }
    if response.uid != uid {
        let found: String = response.uid.chars().take(64).collect();
        return Err(invalid(format!("expected response.uid={uid:?}, got {found:?}")));
    }
    if review.api_version != version.api_version() || review.kind != "AdmissionReview" {
        return Err(invalid(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
            review.api_version.chars().take(64).collect::<String>(),
            review.kind.chars().take(64).collect::<String>(),
        )));
    }
    let has_patch = response.patch.as_deref().is_some_and(|it| !it.is_empty());
    let why = match (is_mutating, has_patch, response.patch_type.as_deref()) {
        (true, true, None) => "webhook returned response.patch but not response.patchType",
        (true, false, Some(_)) => "webhook returned response.patchType but not response.patch",
        (true, _, Some("")) => "webhook returned invalid response.patchType of \"\"",
        (false, true, _) => "validating webhook may not return response.patch",
        (false, _, Some(_)) => "validating webhook may not return response.patchType",
        _ => return Ok(response),
    };
    Err(invalid(why.into()))
}

impl Response {
    /// What follows from the answer of the webhook `name`.
    pub(super) fn judged(self, name: &str) -> Result<Result<Allowed, ApiError>, String> {
        if !self.allowed {
            return Ok(Err(denied(name, self.status)));
        }
        let Some(patch) = self.patch.filter(|it| !it.is_empty()) else {
            return Ok(Ok(Allowed::default()));
        };
        if let Some(kind) = self.patch_type.filter(|it| it != "JSONPatch") {
            return Err(format!("unsupported patch type {kind:?}"));
        }
        let undecodable =
            |why: String| format!("received undecodable patch in webhook response: {why}");
        let patch = base64::engine::general_purpose::STANDARD
            .decode(patch)
            .map_err(|error| undecodable(error.to_string()))?;
        let patch: json_patch::Patch =
            serde_json::from_slice(&patch).map_err(|error| undecodable(error.to_string()))?;
        if MAX_OPERATIONS < patch.0.len() {
            return Err(undecodable(format!("it has more than {MAX_OPERATIONS} operations")));
        }
        let patch = Some(patch).filter(|it| !it.0.is_empty());
        Ok(Ok(Allowed { patch }))
    }
}

/// The refusal of a webhook: its own status, with who refused.
fn denied(name: &str, status: Option<Map<String, Value>>) -> ApiError {
    let mut status = status.unwrap_or_default();
    let by = format!("admission webhook {name:?} denied the request");
    let text = |status: &Map<String, Value>, field: &str| {
        status.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let message = match (text(&status, "message").as_str(), text(&status, "reason").as_str()) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    status.insert("message".into(), message.into());
    let code = status.get("code").and_then(Value::as_u64).unwrap_or(0);
    let code = if (400..600).contains(&code) { code } else { 400 };
    status.insert("code".into(), code.into());
    if matches!(text(&status, "status").as_str(), "" | "Success") {
        status.insert("status".into(), "Failure".into());
    }
    status.insert("kind".into(), "Status".into());
    status.insert("apiVersion".into(), "v1".into());
    status.entry("metadata").or_insert_with(|| json!({}));
    ApiError::given(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: Value, is_mutating: bool) -> Result<Result<Allowed, ApiError>, String> {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response,
        });
        let body = review.to_string();
        super::response(body.as_bytes(), Version::V1, "u", is_mutating)?.judged("hook.x")
    }

    #[test]
    fn refusals_say_who_refused() {
        for (status, message, code) in [
            (json!(null), "denied the request without explanation", 400),
            (json!({"message": "no", "code": 403}), "denied the request: no", 403),
            (json!({"reason": "Because", "code": 200}), "denied the request: Because", 400),
        ] {
            let response = json!({"uid": "u", "allowed": false, "status": status});
            let error = answer(response, false).unwrap().unwrap_err();
            assert_eq!(error.message, format!("admission webhook \"hook.x\" {message}"));
            assert_eq!(error.status()["code"], code);
            assert_eq!(error.status()["status"], "Failure");
        }
    }

    #[test]
    fn answers_are_checked() {
        let patch = base64::engine::general_purpose::STANDARD
            .encode(r#"[{"op":"add","path":"/a","value":1}]"#);
        let good = json!({"uid": "u", "allowed": true, "patch": patch, "patchType": "JSONPatch"});
        assert!(answer(good.clone(), true).unwrap().unwrap().patch.is_some());
        for (response, is_mutating, why) in [
            (json!({"uid": "v", "allowed": true}), true, r#"expected response.uid="u", got "v""#),
            (good, false, "validating webhook may not return response.patch"),
            (
                json!({"uid": "u", "allowed": true, "patch": patch}),
                true,
                "webhook returned response.patch but not response.patchType",
            ),
            (json!(null), true, "webhook response was absent"),
        ] {
            let found = answer(response, is_mutating).unwrap_err();
            assert_eq!(found, format!("received invalid webhook response: {why}"));
        }
        let bad = json!({"uid": "u", "allowed": true, "patch": "e30=", "patchType": "JSONPatch"});
        assert!(answer(bad, true).unwrap_err().starts_with("received undecodable patch"));
    }
}
