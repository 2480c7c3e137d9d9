//! What the agent asks of the API server on behalf of its pods.
//!
//! A seam, so that all about pods can be run against a real runtime without a control plane.

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;
use insula_api::names::TenantName;
use insula_client::{
    Client, DeleteOptions, Error, EventRecorder, EventType, Informer, Kind, Object, Patch, Tenanted,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{ConfigMap, ObjectReference, Pod, Secret, ServiceAccount},
        node::v1::RuntimeClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::pod::{identity::PodKey, references::Names};

/// A service account token and its end.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub token: String,
    pub expires: Timestamp,
}

/// The API server as a pod's worker sees it. All calls are within the pod's tenant.
pub(crate) trait Cluster: fmt::Debug + Send + Sync + 'static {
    /// `None` if there is no such config map.
    fn config_map<'a>(
        &'a self,
        tenant: &'a TenantName,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ConfigMap>, Error>>;

    /// `None` if there is no such secret.
    fn secret<'a>(
        &'a self,
        tenant: &'a TenantName,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Secret>, Error>>;

    /// What the runtime is asked for, for pods of a class: the tenant's, or the platform's. `None`
    /// if there is no such class.
    fn runtime_handler<'a>(
        &'a self,
        tenant: &'a TenantName,
        class: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, Error>>;

    /// Calls `changed` whenever one of the named objects is other than it was, until `stop`.
    /// Also calls it once for each object that is there when this begins.
    fn follow(
        &self,
        pod: &PodKey,
        names: &Names,
        changed: Arc<dyn Fn() + Send + Sync>,
        stop: &CancellationToken,
    );

    /// A token of the pod's service account, valid while the pod exists.
    fn token<'a>(
        &'a self,
        pod: &'a PodKey,
        service_account: &'a str,
        audience: &'a str,
        expiration_seconds: i64,
    ) -> BoxFuture<'a, Result<Token, Error>>;

    /// Changes the pod's status by a strategic merge patch; returns the pod as it is then.
    fn patch_status<'a>(
        &'a self,
        pod: &'a PodKey,
        patch: Value,
    ) -> BoxFuture<'a, Result<Tenanted<Pod>, Error>>;

    /// Removes the pod for good; that it is gone already is a success.
    fn delete<'a>(&'a self, pod: &'a PodKey) -> BoxFuture<'a, Result<(), Error>>;

    /// Tells users what happened, to the pod or to one of its containers (`field_path`).
    fn event(
        &self,
        pod: &PodKey,
        field_path: Option<String>,
        kind: EventType,
        reason: &str,
        message: String,
    );
}

/// The API server over the client.
#[derive(Debug, Clone)]
pub(crate) struct ApiCluster {
    client: Client,
    events: EventRecorder,
}

impl ApiCluster {
    /// One watch of one object: what a node may see is what its pods refer to, by name.
    fn follow_one<K: Kind + Object>(
        &self,
        pod: &PodKey,
        name: &str,
        changed: &Arc<dyn Fn() + Send + Sync>,
        stop: &CancellationToken,
    ) {
        let collection = self.client.tenant(&pod.tenant).namespaced::<K>(&pod.namespace);
        let informer = Informer::builder(collection)
            .field_selector(format!("metadata.name={name}"))
            .start(&TaskTracker::new(), stop.clone());
        let changed = changed.clone();
        informer.on_change(move |_| changed());
    }

    pub(crate) fn new(client: Client, events: EventRecorder) -> Self {
        Self { client, events }
    }
}

impl Cluster for ApiCluster {
    fn config_map<'a>(
        &'a self,
        tenant: &'a TenantName,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ConfigMap>, Error>> {
        Box::pin(async move {
            let api = self.client.tenant(tenant).namespaced::<ConfigMap>(namespace);
            Ok(api.get_opt(name).await?.map(|it| it.object))
        })
    }

    fn secret<'a>(
        &'a self,
        tenant: &'a TenantName,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Secret>, Error>> {
        Box::pin(async move {
            let api = self.client.tenant(tenant).namespaced::<Secret>(namespace);
            Ok(api.get_opt(name).await?.map(|it| it.object))
        })
    }

    fn runtime_handler<'a>(
        &'a self,
        tenant: &'a TenantName,
        class: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, Error>> {
        Box::pin(async move {
            let classes = self.client.tenant(tenant).api::<RuntimeClass>();
            Ok(classes.get_opt(class).await?.map(|it| it.object.handler))
        })
    }

    fn follow(
        &self,
        pod: &PodKey,
        names: &Names,
        changed: Arc<dyn Fn() + Send + Sync>,
        stop: &CancellationToken,
    ) {
        for name in &names.config_maps {
            self.follow_one::<ConfigMap>(pod, name, &changed, stop);
        }
        for name in &names.secrets {
            self.follow_one::<Secret>(pod, name, &changed, stop);
        }
    }

    fn token<'a>(
        &'a self,
        pod: &'a PodKey,
        service_account: &'a str,
        audience: &'a str,
        expiration_seconds: i64,
    ) -> BoxFuture<'a, Result<Token, Error>> {
        Box::pin(async move {
            let api = self.client.tenant(&pod.tenant).namespaced::<ServiceAccount>(&pod.namespace);
            let request = TokenRequest {
                metadata: ObjectMeta::default(),
                spec: Some(TokenRequestSpec {
                    audiences: (!audience.is_empty()).then(|| vec![audience.to_owned()]),
                    bound_object_ref: Some(BoundObjectReference {
                        api_version: Some("v1".to_owned()),
                        kind: Some("Pod".to_owned()),
                        name: Some(pod.name.as_ref().to_owned()),
                        uid: Some(pod.uid.as_ref().to_owned()),
                    }),
                    expiration_seconds: Some(expiration_seconds),
                }),
                status: None,
            };
            let answer: TokenRequest =
                api.create_subresource(service_account, "token", &request).await?;
            let status = answer.status.unwrap_or_default();
            match (status.token, status.expiration_timestamp) {
                (Some(token), Some(expires)) => Ok(Token { token, expires: expires.0 }),
                _ => Err(Error::Incomplete {
                    kind: "TokenRequest".to_owned(),
                    field: "status.token",
                }),
            }
        })
    }

    fn patch_status<'a>(
        &'a self,
        pod: &'a PodKey,
        patch: Value,
    ) -> BoxFuture<'a, Result<Tenanted<Pod>, Error>> {
        Box::pin(async move {
            let api = self.client.tenant(&pod.tenant).namespaced::<Pod>(&pod.namespace);
            api.patch_status(&pod.name, &Patch::Strategic(patch)).await
        })
    }

    fn delete<'a>(&'a self, pod: &'a PodKey) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let api = self.client.tenant(&pod.tenant).namespaced::<Pod>(&pod.namespace);
            let options = DeleteOptions::default().grace_period(0).only_uid(pod.uid.as_ref());
            match api.delete(&pod.name, &options).await {
                Ok(_) => Ok(()),
                // A conflict means that another pod has the name now, so ours is gone.
                Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn event(
        &self,
        pod: &PodKey,
        field_path: Option<String>,
        kind: EventType,
        reason: &str,
        message: String,
    ) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name.as_ref().to_owned()),
            namespace: Some(pod.namespace.as_ref().to_owned()),
            uid: Some(pod.uid.as_ref().to_owned()),
            field_path,
            ..ObjectReference::default()
        };
        self.events.record_about(&pod.tenant, about, kind, reason, message);
    }
}
