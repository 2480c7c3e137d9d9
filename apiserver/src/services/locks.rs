//! What one service has and no other: held in the store, so that many servers agree.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use insula_api::{names::TenantName, object, time};
use insula_partition::{
    snapshot::Snapshot,
    store::{Change, Collection, Durability, Expect, ReadAt, Store, StoreError, Write},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::sync::Arc;

use super::families::Family;
use crate::{
    Server,
    error::{ApiError, Result},
    registry,
};

/// A write takes no longer; what is held for nobody after this is left over from a crash.
const LEFT_OVER: Duration = Duration::from_secs(90);
/// How often a release is tried while somebody changes what is released.
const RETRIES: usize = 8;

/// One thing that one service may have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Lock {
    Address(IpAddr),
    Port(u16),
}

/// Who has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub namespace: String,
    pub name: String,
}

impl Owner {
    pub(super) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub(super) fn of(service: &Value) -> Self {
        Self::new(object::namespace(service), object::name(service))
    }
}

/// The collection of ports. It is not served.
fn ports() -> Collection {
    Collection::new("", "servicenodeports")
}

impl Lock {
    fn name(&self) -> String {
        match self {
            Self::Address(address) => address.to_string(),
            Self::Port(port) => port.to_string(),
        }
    }

    fn object(&self, owner: &Owner) -> Value {
        match self {
            Self::Address(address) => address_object(*address, owner),
            Self::Port(_) => json!({"metadata": {"name": self.name()}, "spec": reference(owner)}),
        }
    }

    /// Where it is held.
    fn place(&self, server: &Server, tenant: &TenantName) -> Result<(Collection, Arc<dyn Store>)> {
        match self {
            Self::Address(_) => addresses(server, tenant),
            // In the partition of the tenant's services.
            Self::Port(_) => Ok((ports(), place(server, tenant, "", "services")?.1)),
        }
    }
}

fn reference(owner: &Owner) -> Value {
    let (namespace, name) = (&owner.namespace, &owner.name);
    json!({"parentRef": {"group": "", "resource": "services", "namespace": namespace, "name": name}})
}

/// The object that says whose an address is.
pub(super) fn address_object(address: IpAddr, owner: &Owner) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": Family::of(&address).name(),
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": reference(owner),
    })
}

fn place(
    server: &Server,
    tenant: &TenantName,
    group: &str,
    resource: &str,
) -> Result<(Collection, Arc<dyn Store>)> {
    let served = server.registry.any_version(group, resource);
    let served = served.ok_or_else(|| ApiError::internal(format!("{resource} are not served")))?;
    let (_, store) = served.place(&server.partitions, tenant, "", "");
    Ok((served.collection.clone(), store))
}

fn addresses(server: &Server, tenant: &TenantName) -> Result<(Collection, Arc<dyn Store>)> {
    place(server, tenant, "networking.k8s.io", "ipaddresses")
}

/// What is held at a moment: a first look that spares most vain attempts.
pub(super) struct Used {
    snapshot: Snapshot,
    tenant: TenantName,
}

impl Used {
    pub(super) async fn addresses(server: &Server, tenant: &TenantName) -> Result<Self> {
        let (collection, store) = addresses(server, tenant)?;
        Self::of(&collection, &*store, tenant).await
    }

    pub(super) async fn ports(server: &Server, tenant: &TenantName) -> Result<Self> {
        let (_, store) = place(server, tenant, "", "services")?;
        Self::of(&ports(), &*store, tenant).await
    }

    async fn of(collection: &Collection, store: &dyn Store, tenant: &TenantName) -> Result<Self> {
        let snapshot = store.read(collection, ReadAt::Any).await?;
        Ok(Self { snapshot, tenant: tenant.clone() })
    }

    pub(super) fn contains(&self, lock: &Lock) -> bool {
        self.snapshot.get(&registry::key(&self.tenant, "", &lock.name())).is_some()
    }
}

/// Takes `lock` for `owner`, or tells whether it could be taken. False if another has it.
pub(super) async fn take(
    server: &Server,
    tenant: &TenantName,
    lock: &Lock,
    owner: &Owner,
    dry_run: bool,
) -> Result<bool> {
    let (collection, store) = lock.place(server, tenant)?;
    let key = registry::key(tenant, "", &lock.name());
    if dry_run {
        let snapshot = store.read(&collection, ReadAt::Latest).await?;
        return Ok(snapshot.get(&key).is_none());
    }
    let mut expect = Expect::Absent;
    for _ in 0..RETRIES {
        let mut it = lock.object(owner);
        let metadata = object::metadata_mut(&mut it);
        metadata.insert("tenant".into(), tenant.as_str().into());
        metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp".into(), time::now().into());
        let write = Write {
            collection: collection.clone(),
            key: key.as_str().into(),
            expect,
            change: Change::Put(object::encode(&it).into()),
            durability: Durability::Durable,
            by_move: None,
        };
        let found = match store.write(write).await {
            Ok(_) => return Ok(true),
            Err(StoreError::Conflict { found: Some(found), .. }) => found,
            // It became free meanwhile.
            Err(StoreError::Conflict { found: None, .. }) => {
                expect = Expect::Absent;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let held = object::parse(&found.value).map_err(ApiError::internal)?;
        if !is_left_over(server, tenant, lock, &held).await? {
            return Ok(false);
        }
        expect = Expect::At(found.modified);
    }
    Ok(false)
}

/// Whether nobody needs what is held.
async fn is_left_over(
    server: &Server,
    tenant: &TenantName,
    lock: &Lock,
    held: &Value,
) -> Result<bool> {
    let since: Option<Timestamp> = object::meta_str(held, "creationTimestamp").parse().ok();
    let age = since.map_or(SignedDuration::MAX, |since| Timestamp::now().duration_since(since));
    if age < SignedDuration::try_from(LEFT_OVER).unwrap_or(SignedDuration::MAX) {
        return Ok(false);
    }
    let parent = &held["spec"]["parentRef"];
    if object::text(parent, &["resource"]) != "services" {
        // Others have their own reasons.
        return Ok(false);
    }
    let (namespace, name) = (object::text(parent, &["namespace"]), object::text(parent, &["name"]));
    let service = server.find(tenant, "", "services", namespace, name).await?;
    let Some(service) = service else { return Ok(true) };
    let has: HashSet<Lock> = held_by(&service).into_iter().collect();
    Ok(!has.contains(lock))
}

fn held_by(service: &Value) -> Vec<Lock> {
    let addresses = super::families::addresses(service).into_iter().map(Lock::Address);
    addresses.chain(super::ports::all(service).into_iter().map(Lock::Port)).collect()
}

/// Gives back what is held. What cannot be is told, and taken over by others later.
pub(super) async fn release(server: &Server, tenant: &TenantName, locks: &[Lock]) {
    for lock in locks {
        let done = async {
            let (collection, store) = lock.place(server, tenant)?;
            delete(&*store, &collection, &registry::key(tenant, "", &lock.name())).await
        };
        if let Err(error) = done.await {
            tracing::warn!(%tenant, ?lock, %error, "could not be given back");
        }
    }
}

/// Removes an object of the core group, if it is there.
pub(super) async fn remove(
    server: &Server,
    tenant: &TenantName,
    resource: &str,
    namespace: &str,
    name: &str,
) -> Result<()> {
    let (collection, store) = place(server, tenant, "", resource)?;
    delete(&*store, &collection, &registry::key(tenant, namespace, name)).await
}

async fn delete(store: &dyn Store, collection: &Collection, key: &str) -> Result<()> {
    let snapshot = store.read(collection, ReadAt::Latest).await?;
    let Some(mut at) = snapshot.get(key).map(|it| it.modified) else { return Ok(()) };
    for _ in 0..RETRIES {
        let write = Write {
            collection: collection.clone(),
            key: key.into(),
            expect: Expect::At(at),
            change: Change::Delete,
            durability: Durability::Durable,
            by_move: None,
        };
        match store.write(write).await {
            Ok(_) | Err(StoreError::Conflict { found: None, .. }) => return Ok(()),
            Err(StoreError::Conflict { found: Some(found), .. }) => at = found.modified,
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::internal("it changes all the time"))
}
