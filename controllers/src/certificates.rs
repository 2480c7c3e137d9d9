//! Certificate requests: signed when they are approved, deleted when nobody needs them any more.
//!
//! Who may approve is decided where they are approved. Here they are signed by whoever has the key
//! of the authority, which no API server needs; without it they wait for somebody else.

use std::{fmt, sync::Arc, time::Duration};

use insula_api::names::TenantName;
use insula_client::{Client, DeleteOptions, Informer, ObjectKey};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition,
        CertificateSigningRequestSpec, CertificateSigningRequestStatus,
    },
};

use crate::{
    controller::{Controller, Next, ReconcileError},
    objects::to_time,
    queue::Queue,
};

/// How long requests stay that were decided, and those that nobody has decided.
const DECIDED: Duration = Duration::from_secs(3600);
const PENDING: Duration = Duration::from_secs(24 * 3600);

/// Makes certificates.
pub trait Signer: fmt::Debug + Send + Sync + 'static {
    /// Signs an approved request of `tenant`, in PEM; `None` if others sign for its signer's name.
    fn sign(
        &self,
        tenant: &TenantName,
        spec: &CertificateSigningRequestSpec,
    ) -> Result<Option<String>, SignError>;
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is one that is never signed.
    #[error("{0}")]
    Refused(String),
    /// The authority cannot be used at the moment.
    #[error("{0}")]
    Unavailable(String),
}

/// What is to be done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Sign,
    Delete,
    /// Nothing before that much time has passed.
    Wait(Duration),
}

/// See the module. Keys are requests.
#[derive(Debug)]
pub(crate) struct Certificates {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    signer: Option<Arc<dyn Signer>>,
}

impl Certificates {
    pub(crate) fn new(
        client: Client,
        requests: Informer<CertificateSigningRequest>,
        signer: Option<Arc<dyn Signer>>,
    ) -> Self {
        Self { client, requests, signer }
    }

    async fn sign(
        &self,
        key: &ObjectKey,
        request: &CertificateSigningRequest,
        signer: &dyn Signer,
    ) -> Result<(), ReconcileError> {
        let mut request = request.clone();
        let status = request.status.get_or_insert_default();
        match signer.sign(&key.tenant, &request.spec) {
            Ok(Some(pem)) => status.certificate = Some(ByteString(pem.into_bytes())),
            Ok(None) => return Ok(()),
            Err(SignError::Refused(why)) => {
                tracing::info!(request = %key, why, "a certificate request is not signed");
                say(status, "Failed", "SignerValidationFailure", why);
            }
            Err(SignError::Unavailable(why)) => return Err(ReconcileError::Incomplete(why)),
        }
        let api = self.client.tenant(&key.tenant).api::<CertificateSigningRequest>();
        api.update_status(&request).await?;
        Ok(())
    }
}

impl Controller for Certificates {
    const NAME: &'static str = "certificate-controller";
    const WORKERS: usize = 2;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.requests.on_change(move |change| {
            if change.new.is_some() {
                keys.add(change.key.clone());
            }
        });
    }

    async fn synced(&self) -> bool {
        self.requests.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(found) = self.requests.get(key) else { return Ok(Next::WhenChanged) };
        let request = &found.object;
        if request.metadata.deletion_timestamp.is_some() {
            return Ok(Next::WhenChanged);
        }
        match step(request, self.signer.is_some(), Timestamp::now()) {
            Step::Sign => {
                if let Some(signer) = &self.signer {
                    self.sign(key, request, &**signer).await?;
                }
                // What others sign is looked at again when its time is over.
                Ok(Next::After(PENDING))
            }
            Step::Delete => {
                let api = self.client.tenant(&key.tenant).api::<CertificateSigningRequest>();
                let options = DeleteOptions::default().only_uid(found.uid());
                match api.delete(&key.name, &options).await {
                    Err(error) if error.is_not_found() => (),
                    other => drop(other?),
                }
                Ok(Next::WhenChanged)
            }
            Step::Wait(time) => Ok(Next::After(time)),
        }
    }
}

/// Says of a request that it is of this kind from now on.
pub(crate) fn say(
    status: &mut CertificateSigningRequestStatus,
    kind: &str,
    reason: &str,
    message: String,
) {
    let now = Some(to_time(Timestamp::now()));
    status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: now.clone(),
        last_transition_time: now,
    });
}

pub(crate) fn is_issued(status: Option<&CertificateSigningRequestStatus>) -> bool {
    status.and_then(|it| it.certificate.as_ref()).is_some_and(|it| !it.0.is_empty())
}

pub(crate) fn condition<'a>(
    status: Option<&'a CertificateSigningRequestStatus>,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    status?.conditions.iter().flatten().find(|it| it.type_ == kind)
}

/// The next thing to be done with a request.
fn step(request: &CertificateSigningRequest, can_sign: bool, now: Timestamp) -> Step {
    let status = request.status.as_ref();
    let created = request.metadata.creation_timestamp.as_ref().map_or(now, |it| it.0);
    let decided = |kind: &str| {
        let found = condition(status, kind)?;
        Some(found.last_update_time.as_ref().map_or(created, |it| it.0))
    };
    let over = match (decided("Denied").or_else(|| decided("Failed")), decided("Approved")) {
        (Some(at), _) => until(at, DECIDED, now),
        (None, Some(at)) if is_issued(status) => until(at, DECIDED, now),
        (None, Some(_)) if can_sign => return Step::Sign,
        (None, Some(_)) => return Step::Wait(PENDING),
        (None, None) => until(created, PENDING, now),
    };
    over.map_or(Step::Delete, Step::Wait)
}

/// How long it is until `life` has passed since `begin`; `None` if it has.
fn until(begin: Timestamp, life: Duration, now: Timestamp) -> Option<Duration> {
    let age = Duration::try_from(now.duration_since(begin)).unwrap_or_default();
    // A second more: what is looked at then is over.
    (age <= life).then(|| life - age + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;

    const HOUR: i64 = 3600;

    fn request(conditions: &[(&str, i64)], certificate: &[u8]) -> CertificateSigningRequest {
        let at = |second| Some(Time(Timestamp::from_second(second).unwrap()));
        let conditions =
            conditions.iter().map(|(kind, second)| CertificateSigningRequestCondition {
                type_: (*kind).to_owned(),
                status: "True".to_owned(),
                last_update_time: at(*second),
                ..CertificateSigningRequestCondition::default()
            });
        CertificateSigningRequest {
            metadata: ObjectMeta { creation_timestamp: at(0), ..ObjectMeta::default() },
            status: Some(CertificateSigningRequestStatus {
                conditions: Some(conditions.collect()),
                certificate: Some(ByteString(certificate.to_vec())),
            }),
            ..CertificateSigningRequest::default()
        }
    }

    #[test]
    fn requests_are_signed_once_and_go_in_time() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let pending = request(&[], b"");
        assert!(matches!(step(&pending, true, at(24 * HOUR)), Step::Wait(_)));
        assert_eq!(step(&pending, true, at(24 * HOUR + 1)), Step::Delete);
        let approved = request(&[("Approved", 10)], b"");
        assert_eq!(step(&approved, true, at(20)), Step::Sign);
        assert_eq!(step(&approved, true, at(90 * HOUR)), Step::Sign);
        assert!(matches!(step(&approved, false, at(90 * HOUR)), Step::Wait(_)));
        for decided in [
            request(&[("Approved", 10)], b"signed"),
            request(&[("Denied", 10)], b""),
            request(&[("Approved", 5), ("Failed", 10)], b""),
        ] {
            assert_eq!(step(&decided, true, at(20)), Step::Wait(Duration::from_secs(3591)));
            assert_eq!(step(&decided, true, at(HOUR + 11)), Step::Delete);
        }
    }
}
