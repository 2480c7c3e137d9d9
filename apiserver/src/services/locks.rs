//! What one service has and no other: held in the store, so that many servers agree.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use insula_api::{names::TenantName, object, time};
use insula_partition::{
    snapshot::{Entry, Snapshot},
    store::{Change, Collection, Expect, ReadAt, Store, StoreError, Write},
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
        self.get(lock).is_some()
    }

    fn get(&self, lock: &Lock) -> Option<&Entry> {
        self.snapshot.get(&registry::key(&self.tenant, "", &lock.name()))
    }

    /// Whether `lock` is held for nobody.
    pub(super) async fn is_left_over(&self, server: &Server, lock: &Lock) -> Result<bool> {
        let Some(entry) = self.get(lock) else { return Ok(true) };
        let held = object::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        is_left_over(server, &self.tenant, lock, &held).await
    }
}

/// A lock as one owner has it: whoever takes it over has another.
#[derive(Debug)]
pub(super) struct Held {
    pub lock: Lock,
    uid: String,
}

/// What of `locks` is held for `owner` at this moment.
pub(super) async fn held(
    server: &Server,
    tenant: &TenantName,
    locks: impl IntoIterator<Item = Lock>,
    owner: &Owner,
) -> Result<Vec<Held>> {
    let mut found = Vec::new();
    for lock in locks {
        let (collection, store) = lock.place(server, tenant)?;
        let snapshot = store.read(&collection, ReadAt::Latest).await?;
        let Some(entry) = snapshot.get(&registry::key(tenant, "", &lock.name())) else { continue };
        let it = object::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        if parent(&it) == Some(owner.clone()) {
            found.push(Held { lock, uid: object::uid(&it).to_owned() });
        }
    }
    Ok(found)
}

/// Takes `lock` for `owner`, or tells whether it could be taken. `None` if another has it.
pub(super) async fn take(
    server: &Server,
    tenant: &TenantName,
    lock: &Lock,
    owner: &Owner,
    dry_run: bool,
) -> Result<Option<Held>> {
    let (collection, store) = lock.place(server, tenant)?;
    let key = registry::key(tenant, "", &lock.name());
    let held = Held { lock: lock.clone(), uid: uuid::Uuid::new_v4().to_string() };
    if dry_run {
        let snapshot = store.read(&collection, ReadAt::Latest).await?;
        return Ok(snapshot.get(&key).is_none().then_some(held));
    }
    let mut expect = Expect::Absent;
    for _ in 0..RETRIES {
        let mut it = lock.object(owner);
        let metadata = object::metadata_mut(&mut it);
        metadata.insert("tenant".into(), tenant.as_str().into());
        metadata.insert("uid".into(), held.uid.as_str().into());
        metadata.insert("creationTimestamp".into(), time::now().into());
        let write = Write::durable(
            collection.clone(),
            key.as_str(),
            expect,
            Change::Put(object::encode(&it).into()),
        );
        let found = match store.write(write).await {
            Ok(_) => return Ok(Some(held)),
            Err(StoreError::Conflict { found: Some(found), .. }) => found,
            // It became free meanwhile.
            Err(StoreError::Conflict { found: None, .. }) => {
                expect = Expect::Absent;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let other = object::parse(&found.value.bytes()).map_err(ApiError::internal)?;
        if !is_left_over(server, tenant, lock, &other).await? {
            return Ok(None);
        }
        expect = Expect::At(found.modified);
    }
    Ok(None)
}

/// The service that a lock is held for.
fn parent(held: &Value) -> Option<Owner> {
    let parent = &held["spec"]["parentRef"];
    (object::text(parent, &["resource"]) == "services")
        .then(|| Owner::new(object::text(parent, &["namespace"]), object::text(parent, &["name"])))
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
    // Others than services have their own reasons.
    let Some(Owner { namespace, name }) = parent(held) else { return Ok(false) };
    let service = server.find(tenant, "", "services", &namespace, &name).await?;
    let Some(service) = service else { return Ok(true) };
    let has: HashSet<Lock> = held_by(&service).into_iter().collect();
    Ok(!has.contains(lock))
}

/// All that a service has.
pub(super) fn held_by(service: &Value) -> Vec<Lock> {
    let addresses = super::families::addresses(service).into_iter().map(Lock::Address);
    addresses.chain(super::ports::all(service).into_iter().map(Lock::Port)).collect()
}

/// Gives back what is held. What cannot be is told, and taken over by others later.
pub(super) async fn release(server: &Server, tenant: &TenantName, all: &[Held]) {
    for Held { lock, uid } in all {
        let done = async {
            let (collection, store) = lock.place(server, tenant)?;
            delete(&*store, &collection, &registry::key(tenant, "", &lock.name()), Some(uid)).await
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
    delete(&*store, &collection, &registry::key(tenant, namespace, name), None).await
}

/// Removes what is there, if it is (still) the one with that uid.
async fn delete(
    store: &dyn Store,
    collection: &Collection,
    key: &str,
    uid: Option<&str>,
) -> Result<()> {
    let snapshot = store.read(collection, ReadAt::Latest).await?;
    let Some(mut entry) = snapshot.get(key).cloned() else { return Ok(()) };
    for _ in 0..RETRIES {
        if let Some(uid) = uid {
            let it = object::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
            if object::uid(&it) != uid {
                // It is another's by now.
                return Ok(());
            }
        }
        let write =
            Write::durable(collection.clone(), key, Expect::At(entry.modified), Change::Delete);
        match store.write(write).await {
            Ok(_) | Err(StoreError::Conflict { found: None, .. }) => return Ok(()),
            Err(StoreError::Conflict { found: Some(found), .. }) => entry = found,
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::internal("it changes all the time"))
}
