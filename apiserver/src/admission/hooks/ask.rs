//! Asking one webhook: a request to where it is, within its time.

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};

use super::{
    Admission, Hook, Meant, Shown,
    review::{self, Allowed, Version},
};
use crate::{
    error::ApiError,
    outbound::{Destination, OutboundError, Place},
};

/// Largest answer, in bytes.
const MAX_ANSWER: usize = 6 * 1024 * 1024;

/// Why a request does not go on.
#[derive(Debug)]
pub(super) enum Failure {
    /// The webhook, or the server, says no.
    Refused(ApiError),
    /// The webhook could not be asked, or its answer is none.
    Unreachable(String),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

impl Hook {
    /// Asks the webhook about the objects that are shown.
    pub(super) async fn ask(
        &self,
        admission: &Admission<'_>,
        meant: &Meant,
        shown: &Shown,
        is_mutating: bool,
    ) -> Result<Allowed, Failure> {
        let version = Version::of(&self.versions).ok_or_else(|| {
            let why = "webhook does not accept known AdmissionReview versions (v1, v1beta1)";
            Failure::Unreachable(format!("could not create admission objects: {why}"))
        })?;
        let uid = uuid::Uuid::new_v4().to_string();
        let it = Some(&shown.object).filter(|it| !it.is_null());
        let about = admission.request(meant, it);
        let request = review::request(version, &uid, &about, shown)
            .map_err(|error| Failure::Refused(ApiError::internal(error)))?;
        let body = self.exchange(admission, request.into()).await?;
        let response =
            review::response(&body, version, &uid, is_mutating).map_err(Failure::Unreachable)?;
        for (key, value) in response.audit_annotations.iter().flatten() {
            let value = || value.as_str().unwrap_or_default().to_owned();
            admission.call.remarks.annotate(format!("{}/{key}", self.name), value);
        }
        for warning in response.warnings.iter().flatten() {
            admission.call.remarks.warn(warning.as_str());
        }
        response.judged(&self.name).map_err(Failure::Unreachable)?.map_err(Failure::Refused)
    }

    async fn exchange(&self, admission: &Admission<'_>, body: Bytes) -> Result<Bytes, Failure> {
        let tenant = admission.tenant()?;
        let server = admission.server;
        let destination = Destination::of(&self.client);
        let timeout = format!("timeout={}s", self.timeout.as_secs());
        let failed = |place: &Place, error: OutboundError| {
            Failure::Unreachable(format!("failed to call webhook: Post {:?}: {error}", place.url()))
        };
        let trust = self
            .trust
            .as_ref()
            .map_err(|error| Failure::Unreachable(format!("could not get REST client: {error}")))?;
        let mut shown = Place::unresolved(destination);
        shown.path = format!("{}?{timeout}", shown.path);
        let late = |place: &Place| failed(place, OutboundError::Late);
        let until = tokio::time::Instant::now() + self.timeout;
        let place = tokio::time::timeout_at(until, server.resolve(tenant, destination)).await;
        let place = place.map_err(|_| late(&shown))?;
        let mut place = place.map_err(|error| failed(&shown, error))?;
        place.path.clone_from(&shown.path);
        let request = Request::builder()
            .method(Method::POST)
            .uri(&place.path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .body(body)
            .map_err(|_| failed(&place, OutboundError::Url))?;
        let exchange = server.exchange_outbound(tenant, &place, trust, request, MAX_ANSWER);
        let answer = tokio::time::timeout_at(until, exchange).await;
        let answer = answer.map_err(|_| late(&place))?;
        let answer = answer.map_err(|error| failed(&place, error))?;
        match answer.status() {
            code if code.is_success() => Ok(answer.into_body()),
            code => Err(Failure::Unreachable(format!(
                "failed to call webhook: {}",
                meaning(code, answer.body())
            ))),
        }
    }
}

/// What a client makes of an answer that is no success.
fn meaning(code: StatusCode, body: &Bytes) -> String {
    let text = String::from_utf8_lossy(body);
    let text: String = text.trim().chars().take(1024).collect();
    match code.as_u16() {
        400 => "the server rejected our request for an unknown reason".into(),
        401 => "the server has asked for the client to provide credentials".into(),
        403 => text,
        404 => "the server could not find the requested resource".into(),
        405 => "the server does not allow this method on the requested resource".into(),
        409 => "the server reported a conflict".into(),
        422 => "the server rejected our request due to an error in our request".into(),
        429 => "the server has received too many requests and has asked us to try again later".into(),
        503 => "the server is currently unable to handle the request".into(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request".into(),
        500.. => format!(
            "an error on the server ({text:?}) has prevented the request from succeeding"
        ),
        code => format!(
            "the server responded with the status code {code} but did not return more information"
        ),
    }
}
