//! What a tenant may have in all: `TenantQuota` objects, beside the resource quotas of namespaces.
//!
//! A tenant's quotas lie in the tenant, in the partition where all it has lies. The one named
//! [`PLATFORM`] is the platform's; the tenant reads it. Others are the tenant's own, of all it has
//! or of the namespaces that a selector chooses, and every one of them has to allow a write.
//!
//! Amounts that are kept (objects, bytes, pods, their resources, claims, services) are limited by
//! the store as it writes, see [`insula_partition::quota`]: here is only found which limits a
//! write carries. What goes on (requests, watches) is limited by [`crate::fair`]. [`usage`] writes
//! what is used into the objects' status, and [`served`] what this server did for whom.

pub(crate) mod served;
pub(crate) mod usage;

use std::{collections::BTreeSet, sync::Arc};

use insula_api::{
    names::TenantName,
    object,
    quota::{
        amounts::{self, Amounts},
        usage::{Of, is_matching, missing},
    },
    selector::LabelSelector,
};
use insula_partition::{
    quota::{BYTES, Limit, OBJECTS},
    store::ReadAt,
    text::Text,
};
use serde_json::Value;

use crate::{
    Server,
    admission::{Admission, Operation},
    call::Call,
    error::{ApiError, Result},
    registry::{self, Served},
};

pub(crate) const GROUP: &str = "insula.io";
pub(crate) const RESOURCE: &str = "tenantquotas";
/// The quota of a tenant that the platform gives.
pub(crate) const PLATFORM: &str = "platform";
/// In the platform's own tenant: what new tenants begin with.
pub(crate) const TEMPLATE: &str = "default";
/// Requests that a server works on at a time.
pub(crate) const IN_FLIGHT: &str = "insula.io/requests-in-flight";
/// Watches and streams that are open on a server.
pub(crate) const WATCHES: &str = "insula.io/watches";
/// Names of our own.
pub(crate) const OWN: [&str; 4] = [BYTES, OBJECTS, IN_FLIGHT, WATCHES];
pub(crate) const MAX_WEIGHT: i64 = 10_000;
/// Quotas of one tenant: each of them is looked at on every write.
const MOST: usize = 32;
/// Namespaces that the quotas of one write may be about together: their names are logged with it.
const MOST_NAMESPACES: usize = 1024;

/// What bounds a tenant's requests on a server, and how they weigh against others'. What is `None`
/// is as for everybody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    pub(crate) in_flight: Option<u32>,
    pub(crate) watches: Option<u32>,
    pub(crate) weight: Option<u32>,
}

fn hard(quota: &Value) -> Amounts {
    amounts::read(object::at(quota, &["spec", "hard"]))
}

/// Of a quota's amounts those that the store knows.
fn is_kept(name: &str) -> bool {
    !matches!(name, IN_FLIGHT | WATCHES)
}

fn served(server: &Server) -> Result<&Arc<Served>> {
    let found = server.registry.any_version(GROUP, RESOURCE);
    found.ok_or_else(|| ApiError::internal("tenant quotas are not served"))
}

impl Server {
    /// The quotas of a tenant, the platform's first.
    async fn quotas_of(&self, tenant: &TenantName) -> Result<Vec<Arc<Value>>> {
        let snapshot = self.at_hand(served(self)?, tenant, "", ReadAt::Any).await?;
        let prefix = registry::key(tenant, "", "");
        let found = snapshot.range(&prefix, None);
        let parse = |value: &Text| self.parsed.of(value).map_err(ApiError::internal);
        let mut quotas = found.map(|(_, it)| parse(&it.value)).collect::<Result<Vec<_>>>()?;
        quotas.sort_by_key(|it| object::name(it) != PLATFORM);
        Ok(quotas)
    }

    /// The namespaces that a quota is about; `None` if it is about all that the tenant has.
    async fn namespaces_of(
        &self,
        tenant: &TenantName,
        quota: &Value,
    ) -> Result<Option<BTreeSet<String>>> {
        let Some(selector) = quota["spec"].get("namespaceSelector") else { return Ok(None) };
        let selector: LabelSelector =
            serde_json::from_value(selector.clone()).map_err(ApiError::internal)?;
        let selector = selector.compile().map_err(ApiError::internal)?;
        let Some(namespaces) = self.registry.any_version("", "namespaces") else {
            return Ok(None);
        };
        let snapshot = self.at_hand(namespaces, tenant, "", ReadAt::Any).await?;
        let mut names = BTreeSet::new();
        for (_, entry) in snapshot.range(&registry::key(tenant, "", ""), None) {
            let it = self.parsed.of(&entry.value).map_err(ApiError::internal)?;
            let labels = object::metadata(&it).get("labels");
            if selector.matches_by(|key| labels?.get(key)?.as_str()) {
                names.insert(object::name(&it).to_owned());
            }
        }
        Ok(Some(names))
    }

    /// What a write of `call` may let its tenant have. Nothing to look at where there is no quota.
    pub(crate) async fn within(&self, call: &Call) -> Result<Option<Arc<[Limit]>>> {
        let is_limited = matches!(&*call.path.subresource, "" | "resize")
            && !call.served.resource.is_platforms()
            && !call.served.resource.group.eq(GROUP);
        let tenant = match call.whose.tenant() {
            Some(tenant) if is_limited && !tenant.is_system() => tenant,
            _ => return Ok(None),
        };
        let quotas = self.quotas_of(tenant).await?;
        if quotas.is_empty() {
            return Ok(None);
        }
        let namespace = call.namespace();
        let mut limits = Vec::with_capacity(quotas.len());
        let mut named = 0;
        for quota in quotas {
            let namespaces = self.namespaces_of(tenant, &quota).await?;
            if namespaces.as_ref().is_some_and(|it| !it.contains(&*namespace)) {
                continue;
            }
            named += namespaces.as_ref().map_or(0, BTreeSet::len);
            if MOST_NAMESPACES < named {
                let why = format!(
                    "the tenant's quotas for this namespace choose more than {MOST_NAMESPACES} \
                     namespaces together"
                );
                return Err(ApiError::forbidden(GROUP, RESOURCE, object::name(&quota), &why));
            }
            let mut hard = hard(&quota);
            hard.retain(|name, _| is_kept(name));
            limits.push(Limit { quota: object::name(&quota).to_owned(), namespaces, hard });
        }
        Ok((!limits.is_empty()).then(|| limits.into()))
    }

    /// What bounds the requests of a tenant: of several quotas the strictest.
    pub(crate) async fn rates_of(&self, tenant: &TenantName) -> Result<Rates> {
        let mut rates = Rates::default();
        if tenant.is_system() {
            return Ok(rates);
        }
        for quota in self.quotas_of(tenant).await? {
            let spec = &quota["spec"];
            if spec.get("namespaceSelector").is_some() {
                continue;
            }
            let hard = hard(&quota);
            let least = |known: &mut Option<u32>, name| {
                let Some(most) = hard.get(name) else { return };
                let most = u32::try_from(most.value()).unwrap_or(u32::MAX);
                *known = Some(known.map_or(most, |it| it.min(most)));
            };
            least(&mut rates.in_flight, IN_FLIGHT);
            least(&mut rates.watches, WATCHES);
            if object::name(&quota) == PLATFORM {
                let weight = spec.get("weight").and_then(Value::as_u64);
                rates.weight = weight.and_then(|it| u32::try_from(it).ok());
            }
        }
        Ok(rates)
    }

    /// What the platform wants new tenants to begin with, as the object of one.
    pub(crate) async fn first_quota(&self) -> Result<Option<Value>> {
        let system = TenantName::system();
        let found = self.glance(served(self)?, &system, "", TEMPLATE).await?;
        Ok(found.map(|it| {
            serde_json::json!({
                "apiVersion": "insula.io/v1", "kind": "TenantQuota",
                "metadata": {"name": PLATFORM, "generation": 1},
                "spec": it["spec"],
            })
        }))
    }
}

/// Who may write which quota.
pub(crate) async fn check(admission: &Admission<'_>, it: Option<&Value>) -> Result<()> {
    let (server, tenant) = (admission.server, admission.tenant()?);
    let name = admission.name_of(it);
    let refuse = |why: &str| Err(admission.forbidden(it, why));
    if tenant.is_system() {
        return match name == TEMPLATE || it.is_none() {
            true => Ok(()),
            false => refuse(
                "the platform itself has no quota; the one named default is what new tenants begin with",
            ),
        };
    }
    let spec = |field| it.is_some_and(|it| it["spec"].get(field).is_some());
    if name == PLATFORM {
        if !admission.call.identity.tenant.is_system() {
            return refuse("this quota is the platform's, and not changed by the tenant");
        }
        if spec("namespaceSelector") {
            return refuse(
                "the platform's quota is about all that a tenant has: it takes no namespaceSelector",
            );
        }
        return Ok(());
    }
    if spec("weight") {
        return refuse("only the platform's quota has a weight");
    }
    let is_more = admission.operation == Operation::Create;
    if is_more && MOST <= server.quotas_of(tenant).await?.len() {
        return refuse(&format!("a tenant has at most {MOST} quotas"));
    }
    Ok(())
}

/// Refuses pods that do not say how much they use of what a quota limits.
pub(crate) async fn check_pod(admission: &Admission<'_>, it: Option<&Value>) -> Result<()> {
    let tenant = admission.tenant()?;
    let Some(new) = it.filter(|_| !tenant.is_system()) else { return Ok(()) };
    let pods = Of { group: "", resource: "pods" };
    for quota in admission.server.quotas_of(tenant).await? {
        let hard = hard(&quota);
        let restricted: Vec<&String> = hard.keys().filter(|it| is_matching(pods, it)).collect();
        let Some(why) = missing(pods, new, &restricted) else { continue };
        let namespaces = admission.server.namespaces_of(tenant, &quota).await?;
        if namespaces.is_none_or(|it| it.contains(&admission.namespace)) {
            let why = format!("failed quota: {}: {why}", object::name(&quota));
            return Err(admission.forbidden(it, &why));
        }
    }
    Ok(())
}
