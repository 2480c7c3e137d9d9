//! Claims of devices, classes, and the devices that there are (KEP-4381, KEP-5004).
//!
//! A claim is given devices by being written; until its copy shows that, they are *pending*, and
//! nobody else's.

pub(crate) mod allocator;
pub(crate) mod asked;
pub(crate) mod inventory;
pub(crate) mod selectors;

#[cfg(test)]
use std::collections::BTreeMap;
use std::{collections::HashMap, sync::Arc};

use insula_api::names::TenantName;
use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};

use self::{
    inventory::{DeviceId, Inventory},
    selectors::Selectors,
};
use crate::{binding::Permit, gangs::GroupName};

/// Pods that can have one claim at the same time; upstream's `ResourceClaimReservedForMaxSize`.
const MAX_CONSUMERS: usize = 256;

/// What is to be written of one claim before a pod that has it is bound.
#[derive(Debug, Clone)]
pub(crate) struct ClaimWork {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    /// What it is given, if it has nothing yet.
    pub(crate) allocation: Option<AllocationResult>,
    /// Some of it can be used from several nodes.
    pub(crate) is_shared: bool,
    pub(crate) group: Option<GroupName>,
    /// What may be given away by it, if not by the node's: set by who writes.
    pub(crate) permit: Option<Arc<Permit>>,
}

/// Who has which devices by this scheduler's decision, which the claims do not say yet.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) allocation: AllocationResult,
    /// Pods of this group may have it too, before it is written.
    pub(crate) group: Option<GroupName>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Devices {
    claims: HashMap<ObjectKey, Arc<Tenanted<ResourceClaim>>>,
    classes: HashMap<ObjectKey, Arc<Tenanted<DeviceClass>>>,
    pub(crate) inventory: Inventory,
    pub(crate) selectors: Selectors,
    /// By how many claims a device is had.
    taken: HashMap<DeviceId, usize>,
    pending: HashMap<ObjectKey, Pending>,
    version: u64,
}

/// What a change of a claim means to those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClaimChange {
    Nothing,
    /// It is another than before, which matters to who has it.
    Changed,
    /// Devices became free.
    Freed,
}

/// The devices that an allocation takes. Who only looks at them takes none.
pub(crate) fn devices_of(allocation: &AllocationResult) -> Vec<DeviceId> {
    let results = allocation.devices.iter().flat_map(|it| it.results.iter().flatten());
    results
        .filter(|it| it.admin_access != Some(true))
        .map(|it| DeviceId {
            driver: it.driver.as_str().into(),
            pool: it.pool.as_str().into(),
            device: it.device.as_str().into(),
        })
        .collect()
}

/// What a claim was given.
pub(crate) fn allocation_of(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

/// Whether a claim is a pod's already.
pub(crate) fn is_reserved_for(claim: &ResourceClaim, uid: &str) -> bool {
    let consumers = claim.status.as_ref().and_then(|it| it.reserved_for.as_ref());
    consumers.into_iter().flatten().any(|it| it.uid == uid)
}

/// Whether one more pod can have a claim.
pub(crate) fn can_be_reserved(claim: &ResourceClaim) -> bool {
    let consumers = claim.status.as_ref().and_then(|it| it.reserved_for.as_ref());
    consumers.map_or(0, Vec::len) < MAX_CONSUMERS
}

impl Devices {
    /// Grows whenever anything changes that is known of devices.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Notes a claim, or that it is gone.
    pub(crate) fn put_claim(
        &mut self,
        key: &ObjectKey,
        claim: Option<Arc<Tenanted<ResourceClaim>>>,
    ) -> ClaimChange {
        let old = self.claims.get(key);
        let relevant = |it: &Arc<Tenanted<ResourceClaim>>| {
            (it.uid().to_owned(), it.is_deleting(), it.spec.clone(), it.status.clone())
        };
        if old.map(relevant) == claim.as_ref().map(relevant) {
            return ClaimChange::Nothing;
        }
        let before = old.and_then(|it| allocation_of(it)).map(devices_of).unwrap_or_default();
        let after = claim.as_ref().and_then(|it| allocation_of(it)).map(devices_of);
        let after = after.unwrap_or_default();
        let is_freed = before.iter().any(|it| !after.contains(it));
        after.iter().for_each(|it| self.count(it, true));
        before.iter().for_each(|it| self.count(it, false));
        match claim {
            Some(claim) => self.claims.insert(key.clone(), claim),
            None => self.claims.remove(key),
        };
        self.version += 1;
        if is_freed { ClaimChange::Freed } else { ClaimChange::Changed }
    }

    fn count(&mut self, device: &DeviceId, is_taken: bool) {
        let n = self.taken.entry(device.clone()).or_default();
        *n = if is_taken { *n + 1 } else { n.saturating_sub(1) };
        if *n == 0 {
            self.taken.remove(device);
        }
    }

    /// Notes a class, or that it is gone.
    pub(crate) fn put_class(
        &mut self,
        key: &ObjectKey,
        class: Option<Arc<Tenanted<DeviceClass>>>,
    ) -> bool {
        let spec = |it: &Arc<Tenanted<DeviceClass>>| it.spec.clone();
        let is_same = self.classes.get(key).map(spec) == class.as_ref().map(spec);
        match class {
            Some(class) => self.classes.insert(key.clone(), class),
            None => self.classes.remove(key),
        };
        self.version += u64::from(!is_same);
        !is_same
    }

    /// Notes a slice, or that it is gone.
    pub(crate) fn put_slice(&mut self, name: &Arc<str>, slice: Option<&ResourceSlice>) {
        self.inventory.put(name, slice);
        self.version += 1;
    }

    pub(crate) fn claim(&self, key: &ObjectKey) -> Option<&Arc<Tenanted<ResourceClaim>>> {
        self.claims.get(key)
    }

    /// A tenant's class: its own, or one that the platform shares.
    pub(crate) fn class(
        &self,
        tenant: &TenantName,
        name: &str,
    ) -> Option<Arc<Tenanted<DeviceClass>>> {
        let of = |tenant: &TenantName| self.classes.get(&ObjectKey::new(tenant, "", name));
        of(tenant).or_else(|| of(&TenantName::system())).cloned()
    }

    /// Whether some claim has a device.
    pub(crate) fn is_taken(&self, device: &DeviceId) -> bool {
        self.taken.contains_key(device)
    }

    /// What is being written that a claim is given.
    pub(crate) fn pending(&self, claim: &ObjectKey) -> Option<&Pending> {
        self.pending.get(claim)
    }

    /// Something else changed that decides who is given devices.
    pub(crate) fn note_change(&mut self) {
        self.version += 1;
    }

    /// Takes devices for claims. Returns all of the claims.
    pub(crate) fn assume(&mut self, work: &[ClaimWork]) -> Vec<ObjectKey> {
        for it in work {
            let Some(allocation) = &it.allocation else { continue };
            devices_of(allocation).iter().for_each(|it| self.count(it, true));
            let pending = Pending { allocation: allocation.clone(), group: it.group.clone() };
            if let Some(old) = self.pending.insert(it.key.clone(), pending) {
                devices_of(&old.allocation).iter().for_each(|it| self.count(it, false));
            }
        }
        self.version += u64::from(!work.is_empty());
        work.iter().map(|it| it.key.clone()).collect()
    }

    /// What was taken is known from the server by now, or was not taken after all. Returns whether
    /// any device can be had again.
    pub(crate) fn settle(&mut self, assumed: &[ObjectKey]) -> bool {
        let mut is_free = false;
        for claim in assumed {
            let Some(pending) = self.pending.remove(claim) else { continue };
            for device in devices_of(&pending.allocation) {
                self.count(&device, false);
                is_free |= !self.is_taken(&device);
            }
        }
        self.version += u64::from(!assumed.is_empty());
        is_free
    }

    /// How many devices are had, by driver; for tests and simulations.
    #[cfg(test)]
    pub(crate) fn n_taken(&self) -> BTreeMap<Arc<str>, usize> {
        let mut counts = BTreeMap::new();
        for device in self.taken.keys() {
            *counts.entry(device.driver.clone()).or_default() += 1;
        }
        counts
    }
}
