//! Which claims of devices a pod has.

use std::sync::Arc;

use insula_client::Tenanted;
use k8s_openapi::api::core::v1::{PodResourceClaim, PodSpec};

use super::Pod;

/// The claims of devices that a pod has. No other pod is like it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceClaims {
    /// The pod's own name and uid.
    pub(crate) pod: String,
    pub(crate) uid: String,
    pub(crate) claims: Vec<DeviceClaim>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceClaim {
    /// `None` if it has not been made yet, or is not to be.
    pub(crate) claim: Option<Arc<str>>,
    /// Made for this pod, from a template.
    pub(crate) is_of_pod: bool,
    /// The pod does without it.
    pub(crate) is_unneeded: bool,
}

impl DeviceClaims {
    pub(super) fn of(pod: &Tenanted<Pod>, spec: &PodSpec) -> Option<Box<Self>> {
        let wanted = spec.resource_claims.as_ref().filter(|it| !it.is_empty())?;
        let statuses = pod.status.as_ref().and_then(|it| it.resource_claim_statuses.as_ref());
        let claim = |it: &PodResourceClaim| {
            if let Some(name) = &it.resource_claim_name {
                let claim = Some(name.as_str().into());
                return DeviceClaim { claim, is_of_pod: false, is_unneeded: false };
            }
            let made = statuses.into_iter().flatten().find(|status| status.name == it.name);
            let claim = made.and_then(|it| it.resource_claim_name.as_deref()).map(Into::into);
            let is_unneeded = made.is_some() && claim.is_none();
            DeviceClaim { claim, is_of_pod: true, is_unneeded }
        };
        Some(Box::new(Self {
            pod: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            claims: wanted.iter().map(claim).collect(),
        }))
    }
}
