//! The audit log: who asked for what, and what came of it.
//!
//! What is written down is decided by a policy ([`policy`]) once the caller is known, by the
//! server that answers: one that only sends a request on writes nothing. All servers of a request
//! use the same id, which is also told to the client.

mod log;
pub mod policy;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};
use insula_api::{decode, proto, schema::Schema};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use self::{
    log::Log,
    policy::{Level, Policy, Stage, Subject, Verdict},
};
use crate::{identity::Identity, record::Record};

/// Names a request, in all that is written of it.
pub(crate) const ID: HeaderName = HeaderName::from_static("audit-id");
/// Longest id that a client may give.
const MAX_ID: usize = 64;

/// When a log begins a new file, and which old ones it keeps. Zero is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes of one file.
    pub max_size: u64,
    pub max_backups: usize,
    pub max_age: Duration,
}

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("the audit policy {0} cannot be read")]
    Read(PathBuf, #[source] io::Error),
    #[error("the audit policy {0} is no policy")]
    Parse(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the audit policy {0} cannot be used: {1}")]
    Flaw(PathBuf, String),
    #[error("the audit log {0} cannot be opened")]
    Open(PathBuf, #[source] io::Error),
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Audit {
    policy: Policy,
    log: Log,
}

/// What is written of one request.
#[derive(Debug, Clone)]
pub(crate) struct Trail {
    verdict: Verdict,
}

impl Trail {
    /// Whether the request's body is part of it.
    pub(crate) fn wants_body(&self) -> bool {
        Level::Request <= self.verdict.level
    }

    /// Whether the answer's body is part of it.
    pub(crate) fn wants_answer(&self) -> bool {
        Level::RequestResponse <= self.verdict.level
    }
}

/// What a request was answered with.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub code: StatusCode,
    pub body: Option<Bytes>,
}

impl Audit {
    /// Reads the policy, and opens the log.
    pub fn open(policy: &Path, log: &Path, rotation: Rotation) -> Result<Self, AuditError> {
        let text = std::fs::read_to_string(policy)
            .map_err(|error| AuditError::Read(policy.to_owned(), error))?;
        let read: Policy = serde_saphyr::from_str(&text)
            .map_err(|error| AuditError::Parse(policy.to_owned(), Box::new(error)))?;
        if let Some(flaw) = read.flaw() {
            return Err(AuditError::Flaw(policy.to_owned(), flaw));
        }
        let log =
            Log::open(log, rotation).map_err(|error| AuditError::Open(log.to_owned(), error))?;
        Ok(Self { policy: read, log })
    }

    /// Waits until all is written; what comes now is lost.
    pub fn close(&self) {
        self.log.close();
    }

    /// A request whose caller is known: from now on it is written down, if it is to be.
    pub(crate) fn received(&self, record: &mut Record) {
        if record.trail.is_some() {
            return;
        }
        let subject = Subject {
            who: record.who.as_ref(),
            verb: record.verb(),
            about: record.about.as_deref(),
            path: &record.path,
        };
        let verdict = self.policy.judge(&subject);
        record.trail = Some(Trail { verdict });
        self.write(record, Stage::RequestReceived, None);
    }

    /// Writes down how far a request has come.
    pub(crate) fn write(&self, record: &Record, stage: Stage, outcome: Option<&Outcome>) {
        let Some(Trail { verdict }) = &record.trail else { return };
        if verdict.level == Level::None || verdict.omitted.contains(&stage) {
            return;
        }
        self.log.write(event(record, verdict, stage, outcome).to_string());
    }
}

/// The id of a request: the client's, if it gives a good one.
pub(crate) fn id(headers: &HeaderMap) -> String {
    let given = headers.get(ID).and_then(|it| it.to_str().ok()).filter(|it| {
        !it.is_empty() && it.len() <= MAX_ID && it.bytes().all(|byte| byte.is_ascii_graphic())
    });
    given.map_or_else(
        // Every request has one, and it need not be a secret.
        || uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string(),
        str::to_owned,
    )
}

fn event(record: &Record, verdict: &Verdict, stage: Stage, outcome: Option<&Outcome>) -> Value {
    let now = Timestamp::now();
    let mut event = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1",
        "level": verdict.level, "auditID": record.id, "stage": stage,
        "requestURI": record.uri, "verb": record.verb(),
        "requestReceivedTimestamp": insula_api::time::micros(record.received),
        "stageTimestamp": insula_api::time::micros(now),
    });
    let mut annotations = Map::new();
    if let Some(who) = &record.who {
        let behind = who.impersonator.as_ref();
        event["user"] = user(behind.unwrap_or(&who.identity));
        if behind.is_some() {
            event["impersonatedUser"] = user(&who.identity);
        }
        if let Some(tenant) = who.whose.tenant() {
            annotations.insert("insula.io/tenant".into(), tenant.as_str().into());
        }
    } else {
        event["user"] = json!({});
    }
    if let Some(address) = record.address {
        event["sourceIPs"] = json!([address.to_string()]);
    }
    if !record.agent.is_empty() {
        event["userAgent"] = record.agent.as_str().into();
    }
    if let Some(about) = &record.about {
        let mut reference = Map::new();
        for (field, value) in [
            ("resource", &about.resource),
            ("namespace", &about.namespace),
            ("name", &about.name),
            ("apiGroup", &about.group),
            ("apiVersion", &about.version),
            ("subresource", &about.subresource),
        ] {
            if !value.is_empty() {
                reference.insert(field.into(), value.as_str().into());
            }
        }
        event["objectRef"] = reference.into();
    }
    if Level::Request <= verdict.level
        && let Some(body) = record.body.as_ref().and_then(|it| object(it, verdict))
    {
        event["requestObject"] = body;
    }
    if let Some(outcome) = outcome {
        for (key, value) in record.remarks.annotations() {
            annotations.insert(key, value.into());
        }
        event["responseStatus"] = status(outcome);
        if Level::RequestResponse <= verdict.level
            && stage == Stage::ResponseComplete
            && let Some(body) = outcome.body.as_ref().and_then(|it| object(it, verdict))
        {
            event["responseObject"] = body;
        }
        if record.was_let_in {
            annotations.insert("authorization.k8s.io/decision".into(), "allow".into());
            annotations.insert("authorization.k8s.io/reason".into(), "".into());
        } else if outcome.code == StatusCode::FORBIDDEN {
            annotations.insert("authorization.k8s.io/decision".into(), "forbid".into());
            annotations.insert("authorization.k8s.io/reason".into(), "".into());
        }
    }
    if !annotations.is_empty() {
        event["annotations"] = annotations.into();
    }
    event
}

fn user(identity: &Identity) -> Value {
    let mut user = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        user["uid"] = identity.uid.as_str().into();
    }
    if !identity.extra.is_empty() {
        user["extra"] = json!(identity.extra);
    }
    user
}

/// The code, and the reason for what was refused.
fn status(outcome: &Outcome) -> Value {
    let mut status = json!({"metadata": {}, "code": outcome.code.as_u16()});
    if !outcome.code.is_success()
        && let Some(told) = outcome.body.as_ref().and_then(|it| parsed(it))
        && told["kind"] == "Status"
    {
        for field in ["status", "message", "reason", "details"] {
            if let Some(value) = told.get(field) {
                status[field] = value.clone();
            }
        }
    }
    status
}

fn parsed(body: &[u8]) -> Option<Value> {
    if let Ok(value) = serde_json::from_slice(body) {
        return Some(value);
    }
    if let Ok((_, value)) = proto::decode(Schema::built_in(), body, None) {
        return Some(value);
    }
    decode::yaml(Schema::built_in(), None, body).ok().map(|it| it.value)
}

/// A body as an object, less what the policy leaves out.
fn object(body: &[u8], verdict: &Verdict) -> Option<Value> {
    let mut value = parsed(body).filter(|it| !it.is_null())?;
    if verdict.omit_managed_fields {
        let forget = |it: &mut Value| {
            if let Some(metadata) = it.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
        };
        forget(&mut value);
        let items = value.get_mut("items").and_then(Value::as_array_mut);
        items.into_iter().flatten().for_each(forget);
    }
    Some(value)
}

/// The program that asks.
pub(crate) fn agent(headers: &HeaderMap) -> String {
    let text = headers.get(header::USER_AGENT).and_then(|it| it.to_str().ok());
    text.unwrap_or_default().chars().take(1024).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn ids_are_the_clients_if_they_are_good() {
        let mut headers = HeaderMap::new();
        assert_eq!(id(&headers).len(), 36);
        headers.insert(ID, HeaderValue::from_static("my-id"));
        assert_eq!(id(&headers), "my-id");
        for bad in ["", "two words", &"x".repeat(65)] {
            headers.insert(ID, HeaderValue::from_str(bad).unwrap());
            assert_eq!(id(&headers).len(), 36, "{bad}");
        }
    }

    #[test]
    fn managers_are_left_out_where_the_policy_says_so() {
        let body = br#"{"items":[{"metadata":{"name":"a","managedFields":[{}]}}],"metadata":{}}"#;
        let mut verdict =
            Verdict { level: Level::Request, omitted: Vec::new(), omit_managed_fields: true };
        let found = object(body, &verdict).unwrap();
        assert_eq!(found["items"][0]["metadata"], json!({"name": "a"}));
        verdict.omit_managed_fields = false;
        assert!(object(body, &verdict).unwrap().to_string().contains("managedFields"));
        assert_eq!(object(b"\xff", &verdict), None);
        assert_eq!(object(b"a: 1\n", &verdict), Some(json!({"a": 1})));
    }
}
