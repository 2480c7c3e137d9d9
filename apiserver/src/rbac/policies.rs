//! The policies of tenants that asked lately, kept until something changes that they are made from.

use std::{collections::VecDeque, sync::Arc};

use insula_api::names::TenantName;
use insula_partition::{
    snapshot::Snapshot,
    store::{Collection, ReadAt, Store, StoreError},
};
use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3Default;

use super::{GROUP, Policy, compile};
use crate::lately::{Forgets, Lately};

/// Compiled policies, each good as long as the collections it was made from do not change.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    cache: Lately<Known>,
    seen: Mutex<Seen>,
}

/// A policy, and what it was made from.
#[derive(Debug, Clone)]
struct Known {
    /// The number of the sources, see [`Seen`].
    sources: u64,
    /// Of the tenant's own part of them.
    digest: u64,
    policy: Arc<Policy>,
}

/// What was lately found in partitions, by number. A policy that kept the snapshots themselves
/// would keep all that has changed since alive, once for each tenant.
#[derive(Debug, Default)]
struct Seen {
    count: u64,
    /// The newest last.
    lately: VecDeque<(u64, Sources)>,
}

/// More than a server has partitions. With more, policies are looked at again, not made again.
const SEEN: usize = 32;

impl Seen {
    fn number(&mut self, sources: &Sources) -> u64 {
        if let Some((number, _)) = self.lately.iter().rev().find(|(_, it)| it.is_same(sources)) {
            return *number;
        }
        if self.lately.len() == SEEN {
            self.lately.pop_front();
        }
        self.count += 1;
        self.lately.push_back((self.count, sources.clone()));
        self.count
    }
}

/// Snapshots of the four collections that a policy is made from.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    pub(super) cluster_roles: Snapshot,
    pub(super) cluster_bindings: Snapshot,
    pub(super) roles: Snapshot,
    pub(super) bindings: Snapshot,
}

impl Sources {
    async fn read(store: &dyn Store) -> Result<Self, StoreError> {
        let read =
            async |resource: &str| store.read(&Collection::new(GROUP, resource), ReadAt::Any).await;
        Ok(Self {
            cluster_roles: read("clusterroles").await?,
            cluster_bindings: read("clusterrolebindings").await?,
            roles: read("roles").await?,
            bindings: read("rolebindings").await?,
        })
    }

    fn is_same(&self, other: &Self) -> bool {
        self.cluster_roles.is_same(&other.cluster_roles)
            && self.cluster_bindings.is_same(&other.cluster_bindings)
            && self.roles.is_same(&other.roles)
            && self.bindings.is_same(&other.bindings)
    }

    /// What changes with any object of `tenant`, and with nobody else's.
    pub(super) fn digest(&self, tenant: &TenantName) -> u64 {
        let prefix = format!("{tenant}/");
        let mut hasher = Xxh3Default::new();
        for each in [&self.cluster_roles, &self.cluster_bindings, &self.roles, &self.bindings] {
            for (key, entry) in each.range(&prefix, None) {
                hasher.update(key.as_bytes());
                hasher.update(&entry.modified.0.to_le_bytes());
            }
            // One collection's end is not the next one's beginning.
            hasher.update(&[0xff]);
        }
        hasher.digest()
    }
}

impl Policies {
    /// The policy of `tenant`, whose partition is `store`.
    pub(crate) async fn of(
        &self,
        tenant: &TenantName,
        store: &dyn Store,
    ) -> Result<Arc<Policy>, StoreError> {
        let sources = Sources::read(store).await?;
        let number = self.seen.lock().number(&sources);
        let known = self.cache.get(tenant);
        if let Some(known) = known.as_ref().filter(|it| it.sources == number) {
            return Ok(known.policy.clone());
        }
        // Others of the partition change theirs as well: what they do is not paid for here.
        let digest = sources.digest(tenant);
        let policy = match known.filter(|it| it.digest == digest) {
            Some(known) => known.policy,
            None => Arc::new(compile(tenant, &sources)),
        };
        let known = Known { sources: number, digest, policy: policy.clone() };
        self.cache.put(tenant, known);
        Ok(policy)
    }

    pub(crate) fn memory(&self) -> &dyn Forgets {
        &self.cache
    }
}
