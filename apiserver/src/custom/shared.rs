//! Definitions of the platform that every tenant has.
//!
//! A definition in tenant `system` with the label `insula.io/shared: "true"` is served in every
//! tenant as if it were the tenant's own: discovery, documents, and objects that lie with the
//! tenant like all others. It cannot be overwritten there, and when it is deleted its objects go
//! in all tenants. A tenant that had a definition of that name before keeps its own.
//!
//! Definitions that a webhook converts are not shared: whose webhook would it be?

use std::sync::Arc;

use insula_api::{names::TenantName, object};
use insula_partition::store::{Collection, ReadAt};
use parking_lot::Mutex;
use serde_json::Value;

use super::{Installed, OfTenant, cleanup};
use crate::{Server, error::Result, lately::Lately};

/// Labels that share a definition. The second is what users of Arktos know.
pub(crate) const LABELS: [(&str, &str); 2] =
    [("insula.io/shared", "true"), ("arktos.futurewei.com/crd-sharing-policy", "forced")];

/// What tenants have together with what the platform shares, made once for each change of either.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    /// Of tenants that have definitions of their own.
    pub(crate) tenants: Lately<Made>,
    /// Of all others.
    bare: Mutex<Option<Made>>,
}

/// What it was made of, and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    own: Arc<OfTenant>,
    platform: Arc<OfTenant>,
    all: Arc<OfTenant>,
}

impl Made {
    fn new(own: Arc<OfTenant>, platform: Arc<OfTenant>) -> Self {
        let mut all = OfTenant {
            snapshot: own.snapshot.clone(),
            installed: own.installed.clone(),
            ..OfTenant::default()
        };
        for (name, it) in platform.installed.iter().filter(|(_, it)| it.is_for_all()) {
            all.installed.entry(name.clone()).or_insert_with(|| it.clone());
        }
        Self { own, platform, all: Arc::new(all) }
    }
}

impl Installed {
    fn is_for_all(&self) -> bool {
        self.is_shared && self.compiled.as_ref().is_some_and(|it| !it.is_converted_by_webhook())
    }
}

impl Merged {
    pub(super) fn of(
        &self,
        tenant: &TenantName,
        own: Arc<OfTenant>,
        platform: &Arc<OfTenant>,
    ) -> Arc<OfTenant> {
        let is_bare = own.installed.is_empty();
        if !platform.has_shared {
            if !is_bare {
                self.tenants.remove(tenant);
            }
            return own;
        }
        if is_bare {
            let mut bare = self.bare.lock();
            let known = bare.as_ref().filter(|it| Arc::ptr_eq(&it.platform, platform));
            if let Some(known) = known {
                return known.all.clone();
            }
            return bare.insert(Made::new(own, platform.clone())).all.clone();
        }
        if let Some(known) = self.tenants.get(tenant)
            && Arc::ptr_eq(&known.own, &own)
            && Arc::ptr_eq(&known.platform, platform)
        {
            return known.all.clone();
        }
        let made = Made::new(own, platform.clone());
        let all = made.all.clone();
        self.tenants.put(tenant, made);
        all
    }
}

/// Whether the platform shares a definition of that name.
pub(crate) async fn is_shared(server: &Server, name: &str) -> Result<bool> {
    let (platform, _) = server.customs.own(server, &TenantName::system(), ReadAt::Latest).await?;
    Ok(platform.installed.get(name).is_some_and(Installed::is_for_all))
}

/// Whether a definition is meant for all tenants, if it is the platform's.
pub(super) fn is_meant_for_all(it: &Value) -> bool {
    let labels = object::metadata(it).get("labels");
    LABELS
        .iter()
        .any(|(key, value)| labels.and_then(|all| all.get(key)).is_some_and(|it| it == value))
}

/// Whether tenants are served a definition of the platform, once it is established.
pub(crate) fn is_for_all(it: &Value) -> bool {
    is_meant_for_all(it) && object::text(it, &["spec", "conversion", "strategy"]) != "Webhook"
}

/// Deletes the objects of a shared definition in all tenants, or has their deletion begin. Returns
/// how many are left.
pub(super) async fn remove(server: &Server, name: &str, collection: &Collection) -> Result<usize> {
    let mut left = 0;
    for partition in server.partitions.names() {
        let Some(store) = server.partitions.store(&partition) else { continue };
        let snapshot = store.read(collection, ReadAt::Latest).await?;
        let mut tenants: Vec<&str> = Vec::new();
        for (key, _) in snapshot.range("", None) {
            let tenant = key.split('/').next().unwrap_or_default();
            if tenants.last() != Some(&tenant) {
                tenants.push(tenant);
            }
        }
        for tenant in tenants {
            let Ok(tenant) = TenantName::parse(tenant) else { continue };
            // The platform's own go by themselves, and so do those of tenants' own definitions.
            if tenant.is_system() {
                continue;
            }
            let (own, _) = server.customs.own(server, &tenant, ReadAt::Latest).await?;
            if !own.installed.contains_key(name) {
                left += cleanup::remove(&*store, collection, &tenant).await?;
            }
        }
    }
    Ok(left)
}
