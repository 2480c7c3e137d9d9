//! The local copies that controllers share: one watch per resource over all tenants.

use insula_api::names::TenantName;
use insula_client::{Client, IndexId, Informer, Kind, Object, Tenant, Tenanted};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{
        ConfigMap, ContainerStatus, Namespace, PersistentVolume, PersistentVolumeClaim, Pod,
        PodSpec, PodStatus, ResourceQuota, ServiceAccount,
    },
    networking::v1::ServiceCIDR,
    storage::v1::VolumeAttributesClass,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::objects::controller_uid;

/// The name of the account that every namespace has.
pub(crate) const DEFAULT_ACCOUNT: &str = "default";
/// The name of the ConfigMap with the certificate authority that every namespace has.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";

/// A local copy whose objects can be found by the one that manages them.
#[derive(Debug, Clone)]
pub(crate) struct Owned<K: Object> {
    pub(crate) informer: Informer<K>,
    by_controller: IndexId,
}

impl<K: Kind> Owned<K> {
    fn start(
        client: &Client,
        trim: impl Fn(&mut K) + Send + Sync + 'static,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let mut builder = Informer::builder(client.all().collection::<K>()).trim(trim);
        let by_controller =
            builder.index(|object: &Tenanted<K>| match controller_uid(&object.object) {
                Some(uid) => vec![uid.to_owned()],
                None => vec![orphans_of(&object.tenant, object.namespace())],
            });
        Self { informer: builder.start(tasks, shutdown.clone()), by_controller }
    }

    /// The objects that the object with `uid` manages.
    pub(crate) fn managed_by(&self, uid: &str) -> Vec<std::sync::Arc<Tenanted<K>>> {
        self.informer.indexed(self.by_controller, uid)
    }

    /// The objects of a namespace that nobody manages.
    pub(crate) fn orphans(
        &self,
        tenant: &TenantName,
        namespace: &str,
    ) -> Vec<std::sync::Arc<Tenanted<K>>> {
        self.informer.indexed(self.by_controller, &orphans_of(tenant, namespace))
    }
}

/// No uid looks like this.
fn orphans_of(tenant: &TenantName, namespace: &str) -> String {
    format!("orphans of {tenant}/{namespace}")
}

/// All shared local copies.
#[derive(Debug, Clone)]
pub(crate) struct Informers {
    pub(crate) tenants: Informer<Tenant>,
    pub(crate) namespaces: Informer<Namespace>,
    /// Only those named [`DEFAULT_ACCOUNT`].
    pub(crate) default_accounts: Informer<ServiceAccount>,
    /// Only those named [`ROOT_CA`].
    pub(crate) root_cas: Informer<ConfigMap>,
    /// Without most of what is in a pod; see [`trim_pod`].
    pub(crate) pods: Owned<Pod>,
    pub(crate) replica_sets: Owned<ReplicaSet>,
    pub(crate) deployments: Informer<Deployment>,
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    pub(crate) volumes: Informer<PersistentVolume>,
    pub(crate) volume_classes: Informer<VolumeAttributesClass>,
    pub(crate) quotas: Informer<ResourceQuota>,
    pub(crate) networks: Informer<ServiceCIDR>,
}

impl Informers {
    /// Starts them all.
    pub(crate) fn start(
        client: &Client,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let named = |name: &str| format!("metadata.name={name}");
        Self {
            tenants: Informer::builder(client.system().api::<Tenant>())
                .start(tasks, shutdown.clone()),
            namespaces: Informer::builder(client.all().collection::<Namespace>())
                .start(tasks, shutdown.clone()),
            default_accounts: Informer::builder(client.all().collection::<ServiceAccount>())
                .field_selector(named(DEFAULT_ACCOUNT))
                .start(tasks, shutdown.clone()),
            root_cas: Informer::builder(client.all().collection::<ConfigMap>())
                .field_selector(named(ROOT_CA))
                .start(tasks, shutdown.clone()),
            pods: Owned::start(client, trim_pod, tasks, shutdown),
            replica_sets: Owned::start(client, |_| (), tasks, shutdown),
            deployments: Informer::builder(client.all().collection::<Deployment>())
                .start(tasks, shutdown.clone()),
            claims: Informer::builder(client.all().collection::<PersistentVolumeClaim>())
                .start(tasks, shutdown.clone()),
            volumes: Informer::builder(client.all().collection::<PersistentVolume>())
                .start(tasks, shutdown.clone()),
            volume_classes: Informer::builder(client.all().collection::<VolumeAttributesClass>())
                .start(tasks, shutdown.clone()),
            quotas: Informer::builder(client.all().collection::<ResourceQuota>())
                .start(tasks, shutdown.clone()),
            networks: Informer::builder(client.all().collection::<ServiceCIDR>())
                .start(tasks, shutdown.clone()),
        }
    }
}

/// Keeps of a pod what controllers look at: whose it is, where it is and how it is. There are
/// more pods than anything else.
fn trim_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        *spec = PodSpec { node_name: spec.node_name.take(), ..PodSpec::default() };
    }
    if let Some(status) = &mut pod.status {
        let old = std::mem::take(status);
        let containers = old.container_statuses.unwrap_or_default().into_iter().map(|it| {
            ContainerStatus { restart_count: it.restart_count, ..ContainerStatus::default() }
        });
        let conditions = old.conditions.unwrap_or_default().into_iter();
        *status = PodStatus {
            phase: old.phase,
            conditions: Some(conditions.filter(|it| it.type_ == "Ready").collect()),
            container_statuses: Some(containers.collect()),
            ..PodStatus::default()
        };
    }
}
