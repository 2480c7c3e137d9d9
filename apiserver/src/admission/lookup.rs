//! What plugins look up: other objects of the same tenant, from memory.

use std::sync::Arc;

use insula_api::{names::TenantName, object, resources::Scope};
use insula_partition::{
    snapshot::{Entry, Snapshot},
    store::{ReadAt, Store},
};
use serde_json::Value;

use super::Admission;
use crate::{
    Server,
    error::{ApiError, Result},
    matcher::Labelled,
    registry::{self, Served},
    shown,
};

impl Server {
    /// What is at hand of a collection of `tenant`.
    pub(crate) async fn at_hand(
        &self,
        served: &Served,
        tenant: &TenantName,
        namespace: &str,
        at: ReadAt,
    ) -> Result<Snapshot> {
        let (_, store) = served.place(&self.partitions, tenant, namespace, "");
        Ok(store.read(&served.collection, at).await?)
    }

    /// One object, from memory; only what is not there is asked for again, as it is now.
    pub(crate) async fn glance(
        &self,
        served: &Served,
        tenant: &TenantName,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>> {
        let system = TenantName::system();
        let tenant = if served.resource.scope == Scope::Fleet { &system } else { tenant };
        let (_, store) = served.place(&self.partitions, tenant, namespace, name);
        self.glance_in(&*store, served, &registry::key(tenant, namespace, name)).await
    }

    /// As [`Server::glance`], of what `store` has under `key`.
    async fn glance_in(
        &self,
        store: &dyn Store,
        served: &Served,
        key: &str,
    ) -> Result<Option<Arc<Value>>> {
        let found = entry_at_hand(store, served, key).await?;
        found.map(|it| self.parsed.of(&it.value).map_err(ApiError::internal)).transpose()
    }
}

/// What `store` has under `key`.
async fn entry_at_hand(store: &dyn Store, served: &Served, key: &str) -> Result<Option<Entry>> {
    let found = store.read(&served.collection, ReadAt::Any).await?.get(key).cloned();
    if found.is_some() {
        return Ok(found);
    }
    // It may have been made by another server a moment ago.
    Ok(store.read(&served.collection, ReadAt::Latest).await?.get(key).cloned())
}

impl Admission<'_> {
    fn served(&self, group: &str, resource: &str) -> Result<&Arc<Served>> {
        let found = self.server.registry.any_version(group, resource);
        found.ok_or_else(|| ApiError::internal(format!("{resource} are not served")))
    }

    /// An object of the tenant.
    pub(super) async fn find(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>> {
        let served = self.served(group, resource)?;
        self.server.glance(served, self.tenant()?, namespace, name).await
    }

    /// The labels of a node. Nodes are many, and what is looked up of them is little: they are not
    /// worth the place of what every write looks up again.
    pub(super) async fn labels_of_node(&self, name: &str) -> Result<Option<Labelled>> {
        let (served, system) = (self.served("", "nodes")?, TenantName::system());
        let (_, store) = served.place(&self.server.partitions, &system, "", name);
        let found = entry_at_hand(&*store, served, &registry::key(&system, "", name)).await?;
        let labels = found.map(|it| serde_json::from_slice(&it.value.bytes()));
        labels.transpose().map_err(ApiError::internal)
    }

    /// A class: the tenant's own, or the platform's, which all tenants see.
    pub(super) async fn class(
        &self,
        group: &str,
        resource: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>> {
        let (served, tenant) = (self.served(group, resource)?, self.tenant()?);
        let own = served.own(&self.server.partitions, tenant);
        let key = registry::key(tenant, "", name);
        let own = self.server.glance_in(&*own, served, &key).await?;
        if own.is_some() || tenant.is_system() {
            return Ok(own);
        }
        // Not the copy that the tenant is shown, which follows a moment later.
        self.server.glance(served, &TenantName::system(), "", name).await
    }

    /// All classes: the tenant's own, and those of the platform that it does not have itself.
    async fn classes(&self, group: &str, resource: &str) -> Result<Vec<Arc<Value>>> {
        let mut classes = self.all(group, resource, "").await?;
        classes.retain(|it| self.is_own(it));
        if !self.tenant()?.is_system() {
            let served = self.served(group, resource)?;
            let system = TenantName::system();
            let snapshot = self.server.at_hand(served, &system, "", ReadAt::Any).await?;
            for (_, entry) in snapshot.range(&registry::key(&system, "", ""), None) {
                let it = self.server.parsed.of(&entry.value).map_err(ApiError::internal)?;
                if !classes.iter().any(|own| object::name(own) == object::name(&it)) {
                    classes.push(it);
                }
            }
        }
        Ok(classes)
    }

    /// Whether a class that the tenant sees is its own.
    pub(super) fn is_own(&self, class: &Value) -> bool {
        self.tenant().is_ok_and(TenantName::is_system) || !shown::is_platforms(class)
    }

    /// The classes that are defaults: the tenant's own, or the platform's if it has none.
    pub(super) async fn defaults(
        &self,
        group: &str,
        resource: &str,
        is_default: impl Fn(&Value) -> bool,
    ) -> Result<Vec<Arc<Value>>> {
        let mut defaults = self.classes(group, resource).await?;
        defaults.retain(|it| is_default(it));
        if defaults.iter().any(|it| self.is_own(it)) {
            defaults.retain(|it| self.is_own(it));
        }
        Ok(defaults)
    }

    /// All objects of the tenant, or of one of its namespaces.
    pub(super) async fn all(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
    ) -> Result<Vec<Arc<Value>>> {
        Ok(self.first(group, resource, namespace, usize::MAX).await?.0)
    }

    /// At most `limit` of them, and how many there are.
    pub(super) async fn first(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        limit: usize,
    ) -> Result<(Vec<Arc<Value>>, usize)> {
        let served = self.served(group, resource)?;
        let tenant = self.tenant()?;
        let snapshot = self.server.at_hand(served, tenant, namespace, ReadAt::Any).await?;
        let prefix = registry::key(tenant, namespace, "");
        let found = snapshot.range(&prefix, None).take(limit);
        let parsed = &self.server.parsed;
        let found: Result<_> =
            found.map(|(_, it)| parsed.of(&it.value).map_err(ApiError::internal)).collect();
        Ok((found?, snapshot.range(&prefix, None).count()))
    }
}
