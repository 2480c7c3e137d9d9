//! What a tenant begins with: namespaces of the platform, default roles and bindings, the API as a
//! service.

mod blanks;
mod extensions;
pub(crate) mod fairness;
mod roles;

use std::sync::Arc;

use futures::future::{try_join_all, try_join3};
use insula_api::{
    names::TenantName,
    object::{self, Stored},
};
use insula_partition::store::{Change, Expect, ReadAt, StoreError, Write};
use serde_json::{Value, json};

use self::blanks::{Blank, put};
use crate::{
    Server,
    error::{ApiError, FieldError, Result},
    identity::{Identity, NODES},
    rbac::reach,
    registry::{self, Served},
    services,
};

const GROUP: &str = "rbac.authorization.k8s.io";
/// Chooses the partition of a new tenant and writes it into its status.
pub(crate) fn place(server: &Server, name: &TenantName, it: &mut Value) -> Result<()> {
    check_partition(server, it, None)?;
    let wanted = object::text(it, &["spec", "partition"]).to_owned();
    let key = insula_partition::map::ShardKey::Tenant(name.as_str().to_owned());
    let partition = match wanted.is_empty() {
        true => server.partitions.store_for(&key).0,
        false => wanted,
    };
    it["status"]["partition"] = partition.into();
    Ok(())
}

/// Refuses a tenant that asks for a partition on which it cannot live.
pub(crate) fn check_partition(server: &Server, it: &Value, old: Option<&Value>) -> Result<()> {
    const FIELD: &str = "spec.partition";
    let wanted = object::text(it, &["spec", "partition"]);
    if wanted.is_empty()
        || old.is_some_and(|old| object::text(old, &["spec", "partition"]) == wanted)
    {
        return Ok(());
    }
    let refuse = |error| Err(ApiError::invalid("insula.io", "Tenant", object::name(it), &[error]));
    let map = server.partitions.map();
    let Some(info) = map.info(wanted) else {
        let names = server.partitions.names();
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        return refuse(FieldError::unsupported(FIELD, &wanted.into(), &known));
    };
    if info.draining {
        let open: Vec<&str> =
            map.infos().iter().filter(|it| !it.draining).map(|it| it.name.as_str()).collect();
        let why = format!("the partition is being drained; these are not: {}", open.join(", "));
        return refuse(FieldError::invalid(FIELD, &wanted.into(), &why));
    }
    if object::name(it) == "system" {
        return refuse(FieldError::forbidden(FIELD, "the platform's own tenant is moved by slots"));
    }
    Ok(())
}

/// What tenants begin with, ready to be filled in.
#[derive(Debug)]
pub(crate) struct Beginnings {
    /// What all have, the platform's own as well.
    common: Vec<Blank>,
    /// What all but the platform's own have.
    tenants: Vec<Blank>,
}

impl Beginnings {
    fn new(server: &Server) -> Result<Self> {
        let blanks = |them: Vec<Value>| -> Result<Vec<Blank>> {
            them.into_iter().map(|it| Blank::new(server, it)).collect()
        };
        let mut common = services::of_tenant(server);
        common.extend(priorities());
        common.push(extensions::tokens_tracked());
        Ok(Self { common: blanks(common)?, tenants: blanks(roles::of_tenants())? })
    }

    fn blanks(&self) -> impl Iterator<Item = &Blank> {
        self.tenants.iter().chain(&self.common)
    }

    fn of(server: &Server) -> Result<&Self> {
        if let Some(known) = server.beginnings.get() {
            return Ok(known);
        }
        let made = Self::new(server)?;
        Ok(server.beginnings.get_or_init(|| made))
    }
}

/// Has a new tenant live where it asks to, and writes what it begins with.
///
/// It has nothing yet, but other servers may not know its place yet, and have begun to write for
/// it elsewhere: so it moves there like any other.
pub(crate) async fn created(server: &Server, it: &Value) -> Result<()> {
    let wanted = object::text(it, &["spec", "partition"]);
    if !wanted.is_empty() {
        let pinned = server.partitions.pin(object::name(it), Some(wanted)).await;
        pinned.map_err(ApiError::internal)?;
    }
    begin(server, it).await
}

/// Writes what a new tenant begins with.
async fn begin(server: &Server, it: &Value) -> Result<()> {
    // First of all: nothing is made in it that its quota would not allow. And whoever finds
    // something else there knows that this was written.
    if let Some(quota) = server.first_quota().await? {
        let tenant = TenantName::parse(object::name(it)).map_err(ApiError::internal)?;
        put(server, &tenant, quota).await?;
    }
    tenant(server, it).await
}

/// Writes what is missing of what a tenant begins with: after a crash in the midst of it, or with
/// a new version of this program.
pub(crate) async fn mend(server: &Server, it: &Value) -> Result<()> {
    let name = TenantName::parse(object::name(it)).map_err(ApiError::internal)?;
    match has_begun(server, &name).await? {
        true => tenant(server, it).await,
        false => begin(server, it).await,
    }
}

/// Whether anything is there of what a tenant begins with. Its first quota was before.
async fn has_begun(server: &Server, tenant: &TenantName) -> Result<bool> {
    for it in Beginnings::of(server)?.blanks() {
        if it.is_there(server, tenant).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether all is there of what is the same for all tenants, as far as this server knows.
pub(crate) async fn is_whole(server: &Server, tenant: &TenantName) -> Result<bool> {
    for it in Beginnings::of(server)?.blanks() {
        if !it.is_there(server, tenant).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes what a tenant begins with, as far as it is not there. All together, so that it waits for
/// one flush of the disk.
async fn tenant(server: &Server, it: &Value) -> Result<()> {
    let tenant = TenantName::parse(object::name(it)).map_err(ApiError::internal)?;
    let beginnings = Beginnings::of(server)?;
    let admins = it["spec"].get("admins").cloned().unwrap_or_else(|| json!([]));
    let admins = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRoleBinding",
        "metadata": {"name": "tenant-admins"},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": admins,
    });
    let roles = try_join_all(beginnings.tenants.iter().map(|it| it.put(server, &tenant)));
    let admins = put(server, &tenant, admins);
    try_join3(roles, admins, common(server, &tenant, object::uid(it))).await.map(drop)
}

/// Writes what every tenant has, the platform's own as well.
async fn common(server: &Server, tenant: &TenantName, uid: &str) -> Result<()> {
    let blanks = Beginnings::of(server)?.common.iter().map(|it| it.put(server, tenant));
    let told = async {
        let told = extensions::authentication(server, tenant, uid).await?;
        renew(server, tenant, told).await
    };
    // Servers come and go, and with them where the API is.
    let endpoints = services::endpoints_of_api(server);
    let endpoints = endpoints.into_iter().map(|it| renew(server, tenant, it));
    try_join3(try_join_all(blanks), told, try_join_all(endpoints)).await.map(drop)
}

/// Priorities that are known by name everywhere.
fn priorities() -> Vec<Value> {
    let made = [
        (
            "system-cluster-critical",
            2_000_000_000_i64,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ];
    let made = made.into_iter().map(|(name, value, description)| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name, "generation": 1},
            "value": value, "description": description,
            "preemptionPolicy": "PreemptLowerPriority",
        })
    });
    made.collect()
}

/// All tenants that are there to stay, but for the platform's own.
async fn tenants(server: &Server) -> Result<Vec<Value>> {
    let Some(served) = server.registry.get("insula.io", "v1", "tenants") else {
        return Ok(Vec::new());
    };
    let (_, store) = served.place(&server.partitions, &TenantName::system(), "", "");
    let found = store.read(&served.collection, ReadAt::Latest).await?;
    let mut tenants = Vec::new();
    for (_, entry) in found.range("system/", None) {
        let it: Value = serde_json::from_slice(&entry.value.bytes()).map_err(ApiError::internal)?;
        if object::name(&it) != "system" && !object::is_deleting(&it) {
            tenants.push(it);
        }
    }
    Ok(tenants)
}

/// Tells all extension servers whom to believe now, after the keys of tokens have changed.
pub(crate) async fn front_proxies(server: &Server) -> Result<()> {
    let system = TenantName::system();
    let own = find_tenant(server, &system).await?.unwrap_or_default();
    for it in tenants(server).await?.iter().chain([&*own]) {
        let tenant = TenantName::parse(object::name(it)).map_err(ApiError::internal)?;
        let told = extensions::authentication(server, &tenant, object::uid(it)).await?;
        renew(server, &tenant, told).await?;
    }
    Ok(())
}

/// Writes what the platform's own tenant begins with. Done at each start; safe to repeat.
pub(crate) async fn system(server: &Server) -> Result<()> {
    let system = TenantName::system();
    let tenant = json!({
        "apiVersion": "insula.io/v1", "kind": "Tenant",
        "metadata": {"name": "system", "generation": 1},
        "spec": {},
        "status": {
            "phase": "Active",
            "partition": server.partitions.store_for(&insula_partition::map::ShardKey::System).0,
        },
    });
    put(server, &system, tenant).await?;
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        put(server, &system, namespace(name)).await?;
    }
    for it in roles::of_platform() {
        let is_cluster_wide = it["kind"] == "ClusterRoleBinding";
        put(server, &system, it.clone()).await?;
        if is_cluster_wide {
            // Those of these names work for all tenants.
            reach_all(server, &it).await?;
        }
    }
    for it in fairness::objects() {
        put(server, &system, it).await?;
    }
    let own = find_tenant(server, &system).await?.unwrap_or_default();
    common(server, &system, object::uid(&own)).await?;
    let nodes = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRoleBinding",
        "metadata": {"name": "insula:nodes"},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "system:node"},
        "subjects": [{"kind": "Group", "apiGroup": GROUP, "name": NODES}],
    });
    put(server, &system, nodes.clone()).await?;
    reach_all(server, &nodes).await
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    })
}

/// Creates an object, or brings it up to date.
async fn renew(server: &Server, tenant: &TenantName, it: Value) -> Result<()> {
    let renewed = change(server, tenant, &it, |known| {
        for (field, value) in it.as_object().into_iter().flatten().filter(|it| it.0 != "metadata") {
            known[field] = value.clone();
        }
    });
    match renewed.await? {
        true => Ok(()),
        false => put(server, tenant, it).await,
    }
}

/// Has a binding of the platform count in all tenants, unless it says otherwise.
async fn reach_all(server: &Server, it: &Value) -> Result<()> {
    let system = TenantName::system();
    let spread = change(server, &system, it, |known| {
        let annotations = &mut known["metadata"]["annotations"];
        if annotations.get(reach::TENANTS).is_none() {
            annotations[reach::TENANTS] = reach::EVERY.into();
        }
    });
    spread.await.map(drop)
}

/// Changes the object of the kind and name of `it`, if it is there: returns whether it is.
async fn change(
    server: &Server,
    tenant: &TenantName,
    it: &Value,
    make: impl Fn(&mut Value),
) -> Result<bool> {
    let served = served(server, it)?;
    let (namespace, name) = (object::namespace(it), object::name(it));
    let (_, store) = served.place(&server.partitions, tenant, namespace, name);
    let key = registry::key(tenant, namespace, name);
    loop {
        let found = store.read(&served.collection, ReadAt::Latest).await?.get(&key).cloned();
        let Some(found) = found else { return Ok(false) };
        let known = Stored::parse(&found.value.bytes()).map_err(ApiError::internal)?;
        let mut new = known.object.clone();
        make(&mut new);
        if new == known.object {
            return Ok(true);
        }
        let managed = Some(known.managed.as_str()).filter(|it| !it.is_empty());
        let write = Write::durable(
            served.collection.clone(),
            key.as_str(),
            Expect::At(found.modified),
            Change::Put(object::encode_with(&new, managed).into()),
        );
        match store.write(write).await {
            Ok(_) => return Ok(true),
            // Another server is at it as well.
            Err(StoreError::Conflict { .. }) => (),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The resource that holds objects of the kind that `it` says it is.
fn served(server: &Server, it: &Value) -> Result<Arc<Served>> {
    let (api_version, kind) = (object::text(it, &["apiVersion"]), object::text(it, &["kind"]));
    let found = server
        .registry
        .all()
        .iter()
        .find(|it| it.resource.api_version() == api_version && it.resource.kind == kind);
    found.cloned().ok_or_else(|| ApiError::internal(format!("no resource holds {kind}")))
}

/// A tenant takes new objects only while it is there and not going.
///
/// While it is going, the platform still may write, so that clean-up can finish.
pub(crate) async fn check_tenant_lives(
    server: &Server,
    tenant: &TenantName,
    caller: &Identity,
) -> Result<()> {
    let found = find_tenant(server, tenant).await?;
    let Some(found) = found else {
        return Err(ApiError::not_found("insula.io", "tenants", tenant.as_str()));
    };
    if object::is_deleting(&found) && !caller.tenant.is_system() {
        let why = "the tenant is being terminated";
        return Err(ApiError::forbidden("insula.io", "tenants", tenant.as_str(), why));
    }
    Ok(())
}

/// Reads a Tenant object.
pub(crate) async fn find_tenant(
    server: &Server,
    tenant: &TenantName,
) -> Result<Option<Arc<Value>>> {
    let Some(served) = server.registry.get("insula.io", "v1", "tenants") else { return Ok(None) };
    let system = TenantName::system();
    let key = registry::key(&system, "", tenant.as_str());
    let (_, store) = served.place(&server.partitions, &system, "", tenant.as_str());
    let mut found = store.read(&served.collection, ReadAt::Any).await?.get(&key).cloned();
    if found.is_none() {
        found = store.read(&served.collection, ReadAt::Latest).await?.get(&key).cloned();
    }
    found.map(|it| server.parsed.of(&it.value).map_err(ApiError::internal)).transpose()
}
