//! What is found by indexes of the shared copies, beside what [`super::selected`] finds.

use std::{collections::BTreeSet, sync::Arc};

use insula_api::names::TenantName;
use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    discovery::v1::EndpointSlice,
    resource::v1::{ResourceClaim, ResourceSlice},
    storage::v1::{CSIDriver, StorageClass, VolumeAttachment},
};

use super::{ANY_TENANT, Informers};

impl Informers {
    /// The claims that have not been bound yet and that a class or a volume of `tenant` may be
    /// for: its own, or those of all tenants if it is the platform.
    pub(crate) fn unbound_claims(
        &self,
        tenant: &TenantName,
    ) -> Vec<Arc<Tenanted<PersistentVolumeClaim>>> {
        let of = if tenant.is_system() { ANY_TENANT } else { tenant.as_str() };
        self.claims.indexed(self.unbound_claims, of)
    }

    /// The volumes that name a claim as theirs.
    pub(crate) fn volumes_naming(&self, claim: &ObjectKey) -> Vec<Arc<Tenanted<PersistentVolume>>> {
        self.volumes.indexed(self.volumes_by_claim, &claim.to_string())
    }

    /// Those of a class that name no claim.
    pub(crate) fn free_volumes(
        &self,
        tenant: &TenantName,
        class: &str,
    ) -> Vec<Arc<Tenanted<PersistentVolume>>> {
        self.volumes.indexed(self.free_volumes, &of_class(tenant, class))
    }

    /// The classes of storage that a tenant sees: its own, and the platform's others.
    pub(crate) fn classes_of(&self, tenant: &TenantName) -> Vec<Arc<Tenanted<StorageClass>>> {
        let mut classes = self.storage_classes.in_tenant(tenant);
        if !tenant.is_system() {
            let mut shared = self.storage_classes.in_tenant(&TenantName::system());
            shared.retain(|it| !classes.iter().any(|own| own.name() == it.name()));
            classes.append(&mut shared);
        }
        classes
    }

    /// The slices that say whose they are, and name this service.
    pub(crate) fn slices_of_service(
        &self,
        service: &ObjectKey,
    ) -> Vec<Arc<Tenanted<EndpointSlice>>> {
        self.slices.indexed(self.slices_by_service, &service.to_string())
    }

    /// The claims that were given devices of a pool.
    pub(crate) fn claims_from(&self, pool: &str) -> Vec<Arc<Tenanted<ResourceClaim>>> {
        self.resource_claims.informer.indexed(self.claims_by_pool, pool)
    }

    /// The slices of a pool of devices.
    pub(crate) fn slices_of(&self, pool: &str) -> Vec<Arc<Tenanted<ResourceSlice>>> {
        self.resource_slices.indexed(self.slices_by_pool, pool)
    }

    /// The attachments of a node.
    pub(crate) fn attachments_of(&self, node: &str) -> Vec<Arc<Tenanted<VolumeAttachment>>> {
        self.attachments.indexed(self.attachments_by_node, node)
    }

    /// The attachments that say they are of a source, as [`Disk::sources`] calls it.
    pub(crate) fn attachments_from(&self, source: &str) -> Vec<Arc<Tenanted<VolumeAttachment>>> {
        self.attachments.indexed(self.attachments_by_source, source)
    }

    /// The driver of a name that a tenant sees: the platform's, or else its own.
    pub(crate) fn driver(
        &self,
        tenant: &TenantName,
        name: &str,
    ) -> Option<Arc<Tenanted<CSIDriver>>> {
        let of = |tenant: &TenantName| self.drivers.get(&ObjectKey::new(tenant, "", name));
        of(&TenantName::system()).or_else(|| of(tenant))
    }

    /// The pods of all tenants that this replica cares for that are bound to a node.
    pub(crate) fn pods_on(&self, node: &str) -> Vec<Arc<Tenanted<Pod>>> {
        self.pods.informer.indexed(self.pods_by_node, node)
    }

    /// What those of one tenant are called.
    pub(crate) fn keys_of_pods_on(&self, node: &str, tenant: &TenantName) -> Vec<ObjectKey> {
        let mut keys = self.pods.informer.keys_indexed(self.pods_by_node, node);
        keys.retain(|key| key.tenant == *tenant);
        keys
    }

    /// Whose they are.
    pub(crate) fn tenants_on(&self, node: &str) -> BTreeSet<TenantName> {
        let keys = self.pods.informer.keys_indexed(self.pods_by_node, node);
        keys.into_iter().map(|key| key.tenant).collect()
    }

    /// Those of them that have claims.
    pub(crate) fn claimants_on(&self, node: &str) -> Vec<Arc<Tenanted<Pod>>> {
        self.pods.informer.indexed(self.claimants_by_node, node)
    }

    /// The pods that use the volume of a claim, or are to.
    pub(crate) fn pods_with(&self, claim: &ObjectKey) -> Vec<Arc<Tenanted<Pod>>> {
        self.pods.informer.indexed(self.pods_by_claim, &claim.to_string())
    }

    /// What they are called.
    pub(crate) fn keys_of_pods_with(&self, claim: &ObjectKey) -> Vec<ObjectKey> {
        self.pods.informer.keys_indexed(self.pods_by_claim, &claim.to_string())
    }

    /// What the pods are called that ask for a claim of devices, or for which it was made.
    pub(crate) fn keys_of_pods_asking(&self, claim: &ObjectKey) -> Vec<ObjectKey> {
        self.pods.informer.keys_indexed(self.pods_by_device_claim, &claim.to_string())
    }

    /// What the pods are called for which a claim of devices is to be made from a template.
    pub(crate) fn keys_of_pods_awaiting(&self, template: &ObjectKey) -> Vec<ObjectKey> {
        self.pods.informer.keys_indexed(self.pods_by_device_template, &template.to_string())
    }

    /// The sets of a pod for each node whose [`placement`](crate::daemonset::placement) is meant.
    /// Each is asked about once.
    pub(crate) fn sets_placed(&self, is_meant: impl FnMut(&str) -> bool) -> Vec<ObjectKey> {
        self.daemon_sets.keys_where(self.sets_by_placement, "", is_meant)
    }

    /// Shows each pod of a tenant that is being deleted.
    pub(crate) fn each_deleting_pod(
        &self,
        tenant: &TenantName,
        look: impl FnMut(&Arc<Tenanted<Pod>>),
    ) {
        self.pods.informer.each_indexed(self.deleting_pods, tenant.as_str(), look);
    }

    /// How many pods of a tenant have ended, and nobody has deleted them.
    pub(crate) fn n_ended_pods(&self, tenant: &TenantName) -> usize {
        self.pods.informer.n_indexed(self.ended_pods, tenant.as_str())
    }

    /// Shows each of them.
    pub(crate) fn each_ended_pod(
        &self,
        tenant: &TenantName,
        look: impl FnMut(&Arc<Tenanted<Pod>>),
    ) {
        self.pods.informer.each_indexed(self.ended_pods, tenant.as_str(), look);
    }
}

/// How a class of storage is called among all tenants'.
pub(super) fn of_class(tenant: &TenantName, class: &str) -> String {
    format!("{tenant}/{class}")
}

/// How a pool of devices is called among all drivers'.
pub(crate) fn pool_of(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}
