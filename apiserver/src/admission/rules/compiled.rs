//! What a tenant's rules were compiled to, kept as long as they stay as they are.
//!
//! Rules lie in the tenant's partition like any other objects and are looked at as they are at
//! the moment: whoever made one finds it in force with the next request. A tenant without any
//! keeps nothing here and pays one look into an ordered map.

use std::{collections::HashMap, sync::Arc};

use insula_api::{names::TenantName, object};
use insula_partition::{
    snapshot::Snapshot,
    store::{ReadAt, Revision},
};
use parking_lot::Mutex;
use serde_json::Value;

use crate::{Server, error::Result, registry};

const GROUP: &str = "admissionregistration.k8s.io";

/// One object that holds rules.
#[derive(Debug)]
pub(in crate::admission) struct Entry<T> {
    pub name: String,
    modified: Revision,
    pub compiled: T,
}

/// Those of one tenant, by name.
pub(in crate::admission) type Entries<T> = Arc<[Arc<Entry<T>>]>;

/// Those of one kind, of all tenants that have any.
#[derive(Debug)]
pub(in crate::admission) struct Compiled<T> {
    resource: &'static str,
    compile: fn(&Value) -> T,
    tenants: Mutex<HashMap<TenantName, (Snapshot, Entries<T>)>>,
}

impl<T> Compiled<T> {
    pub(in crate::admission) fn new(resource: &'static str, compile: fn(&Value) -> T) -> Self {
        Self { resource, compile, tenants: Mutex::default() }
    }

    /// The rules of `tenant`, as they are now. Those that are being deleted still are in force.
    pub(in crate::admission) async fn of(
        &self,
        server: &Server,
        tenant: &TenantName,
    ) -> Result<Option<Entries<T>>> {
        let Some(served) = server.registry.get(GROUP, "v1", self.resource) else {
            return Ok(None);
        };
        let snapshot = server.at_hand(served, tenant, "", ReadAt::Any).await?;
        let prefix = registry::key(tenant, "", "");
        if snapshot.range(&prefix, None).next().is_none() {
            return Ok(None);
        }
        let known = self.tenants.lock().get(tenant).cloned();
        let known = match known {
            Some((at, entries)) if at.is_same(&snapshot) => return Ok(Some(entries)),
            Some((_, entries)) => entries,
            None => Arc::from([]),
        };
        let mut entries = Vec::new();
        for (key, entry) in snapshot.range(&prefix, None) {
            let name = key.strip_prefix(&prefix).unwrap_or_default();
            let same = known.iter().find(|it| it.name == name && it.modified == entry.modified);
            entries.push(match same {
                Some(same) => same.clone(),
                None => {
                    let it =
                        object::parse(&entry.value).map_err(crate::error::ApiError::internal)?;
                    let (modified, compiled) = (entry.modified, (self.compile)(&it));
                    Arc::new(Entry { name: name.to_owned(), modified, compiled })
                }
            });
        }
        let entries: Entries<T> = entries.into();
        let mut tenants = self.tenants.lock();
        // Who has none any more is forgotten, sooner or later.
        tenants.retain(|other, (at, _)| {
            other == tenant || !at.is_same(&snapshot) || {
                let prefix = registry::key(other, "", "");
                snapshot.range(&prefix, None).next().is_some()
            }
        });
        tenants.insert(tenant.clone(), (snapshot, entries.clone()));
        Ok(Some(entries))
    }
}
