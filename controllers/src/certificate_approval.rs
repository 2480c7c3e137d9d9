//! Approves certificate requests of machines that were told that they may become nodes.
//!
//! As upstream: who may `create` `certificatesigningrequests/nodeclient` gets the certificate of
//! any node approved, who may do so with `selfnodeclient` that of the node that it is already.
//! By default nobody may: a binding to one of upstream's two cluster roles for it says who.

use std::sync::Arc;

use insula_api::names::TenantName;
use insula_client::{Client, Informer, ObjectKey, WriteOptions};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
};

use crate::{
    certificates::{condition, is_issued, say},
    controller::{Controller, Next, ReconcileError},
    queue::Queue,
};

/// The user name of the node whose client certificate is asked for, and for nothing else.
pub type NodeAskedFor = fn(&TenantName, &CertificateSigningRequestSpec) -> Option<String>;

/// See the module. Keys are requests.
#[derive(Debug)]
pub(crate) struct Approvals {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    node_asked_for: NodeAskedFor,
}

impl Approvals {
    pub(crate) fn new(
        client: Client,
        requests: Informer<CertificateSigningRequest>,
        node_asked_for: NodeAskedFor,
    ) -> Self {
        Self { client, requests, node_asked_for }
    }

    /// Whether who made a request may have one of that kind approved unseen.
    async fn may(
        &self,
        tenant: &TenantName,
        spec: &CertificateSigningRequestSpec,
        kind: &str,
    ) -> Result<bool, ReconcileError> {
        let text = |it: &str| Some(it.to_owned());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: text("certificates.k8s.io"),
                    resource: text("certificatesigningrequests"),
                    subresource: text(kind),
                    verb: text("create"),
                    version: text("*"),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let said = self.client.tenant(tenant).api::<SubjectAccessReview>().create(&review).await?;
        Ok(said.object.status.is_some_and(|it| it.allowed))
    }
}

/// The kinds of requests that a request is one of, and what is said of those approved.
fn kinds(
    spec: &CertificateSigningRequestSpec,
    node: &str,
) -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = (
        "selfnodeclient",
        "Auto approving self kubelet client certificate after SubjectAccessReview.",
    );
    let any =
        ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");
    let is_own = spec.username.as_deref() == Some(node);
    is_own.then_some(own).into_iter().chain([any])
}

/// Whether nobody has said anything of a request yet.
fn is_open(request: &CertificateSigningRequest) -> bool {
    let status = request.status.as_ref();
    !is_issued(status) && ["Approved", "Denied"].iter().all(|it| condition(status, it).is_none())
}

impl Controller for Approvals {
    const NAME: &'static str = "certificatesigningrequest-approving-controller";
    const WORKERS: usize = 2;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.requests.on_change(move |change| {
            if change.new.is_some_and(|it| is_open(it)) {
                keys.add(change.key.clone());
            }
        });
    }

    async fn synced(&self) -> bool {
        self.requests.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let found = self.requests.get(key);
        let Some(found) = found.filter(|it| !it.is_deleting() && is_open(it)) else {
            return Ok(Next::WhenChanged);
        };
        let Some(node) = (self.node_asked_for)(&key.tenant, &found.spec) else {
            return Ok(Next::WhenChanged);
        };
        let mut tried = Vec::new();
        for (kind, message) in kinds(&found.spec, &node) {
            if !self.may(&key.tenant, &found.spec, kind).await? {
                tried.push(kind);
                continue;
            }
            let mut request = found.object.clone();
            let status = request.status.get_or_insert_default();
            say(status, "Approved", "AutoApproved", message.to_owned());
            let api = self.client.tenant(&key.tenant).api::<CertificateSigningRequest>();
            api.replace(&request, Some("approval"), &WriteOptions::default()).await?;
            return Ok(Next::WhenChanged);
        }
        // Rights may come later.
        Err(ReconcileError::Incomplete(format!(
            "recognized csr {:?} as {tried:?} but subject access review was not approved",
            key.name
        )))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn who_asks_for_itself_is_first_asked_about_that() {
        let spec = CertificateSigningRequestSpec {
            username: Some("system:node:a".into()),
            ..CertificateSigningRequestSpec::default()
        };
        let names = |node| kinds(&spec, node).map(|it| it.0).collect::<Vec<_>>();
        assert_eq!(names("system:node:a"), ["selfnodeclient", "nodeclient"]);
        assert_eq!(names("system:node:b"), ["nodeclient"]);
    }

    #[test]
    fn what_somebody_decided_on_is_left_alone() {
        let open = |status: Value| {
            let it = json!({
                "metadata": {}, "status": status,
                "spec": {"request": "", "signerName": "x"},
            });
            is_open(&serde_json::from_value(it).unwrap())
        };
        let said = |kind: &str| json!({"conditions": [{"type": kind, "status": "True"}]});
        assert!(open(Value::Null) && open(json!({})) && open(said("Failed")));
        assert!(!open(said("Approved")) && !open(said("Denied")));
        assert!(!open(json!({"certificate": "aGk="})));
    }
}
