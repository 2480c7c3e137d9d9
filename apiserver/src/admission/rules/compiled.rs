//! What a tenant's rules (and whom it trusts to name users) were compiled to, kept as long as they stay as they are.
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
use serde_json::Value;

use crate::{
    Server,
    error::{ApiError, Result},
    lately::Lately,
    registry,
};

/// One object that holds rules.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub name: String,
    modified: Revision,
    pub compiled: T,
}

/// Those of one tenant, by name.
pub(crate) type Entries<T> = Arc<[Arc<Entry<T>>]>;

/// Those of one kind, of all tenants that have any.
#[derive(Debug)]
pub(crate) struct Compiled<T> {
    group: &'static str,
    resource: &'static str,
    compile: Compile<T>,
    pub(crate) tenants: Lately<Known<T>>,
}

/// How an object is compiled.
type Compile<T> = fn(&Value) -> Result<T, serde_json::Error>;

/// What was compiled for a tenant, and from what.
#[derive(Debug)]
pub(crate) struct Known<T> {
    at: Snapshot,
    entries: Entries<T>,
}

impl<T> Clone for Known<T> {
    fn clone(&self) -> Self {
        Self { at: self.at.clone(), entries: self.entries.clone() }
    }
}

impl<T> Compiled<T> {
    pub(crate) fn new(group: &'static str, resource: &'static str, compile: Compile<T>) -> Self {
        Self { group, resource, compile, tenants: Lately::default() }
    }

    /// The rules of `tenant`, as they are now. Those that are being deleted still are in force.
    pub(crate) async fn of(
        &self,
        server: &Server,
        tenant: &TenantName,
    ) -> Result<Option<Entries<T>>> {
        let Some(served) = server.registry.get(self.group, "v1", self.resource) else {
            return Ok(None);
        };
        let snapshot = server.at_hand(served, tenant, "", ReadAt::Any).await?;
        let prefix = registry::key(tenant, "", "");
        if snapshot.range(&prefix, None).next().is_none() {
            self.tenants.remove(tenant);
            return Ok(None);
        }
        let known = match self.tenants.get(tenant) {
            Some(known) if known.at.is_same(&snapshot) => return Ok(Some(known.entries)),
            Some(known) => known.entries,
            None => Arc::from([]),
        };
        let known: HashMap<&str, &Arc<Entry<T>>> =
            known.iter().map(|it| (it.name.as_str(), it)).collect();
        let mut entries = Vec::new();
        for (key, entry) in snapshot.range(&prefix, None) {
            let name = key.strip_prefix(&prefix).unwrap_or_default();
            let same = known.get(name).filter(|it| it.modified == entry.modified);
            entries.push(match same {
                Some(same) => Arc::clone(same),
                None => {
                    let it = object::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
                    let compiled = (self.compile)(&it).map_err(|error| {
                        // A guard that cannot be read guards everything.
                        ApiError::internal(format!("{} {name:?}: {error}", self.resource))
                    })?;
                    let modified = entry.modified;
                    Arc::new(Entry { name: name.to_owned(), modified, compiled })
                }
            });
        }
        let entries: Entries<T> = entries.into();
        self.tenants.put(tenant, Known { at: snapshot, entries: entries.clone() });
        Ok(Some(entries))
    }
}
