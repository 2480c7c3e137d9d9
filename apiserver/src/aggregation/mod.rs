//! Aggregated APIs: group versions that a tenant has served by a server of its own.
//!
//! An `APIService` that names a service has requests for its group version sent there, after the
//! gate, with who asks in headers that the extension server believes because the connection shows
//! a certificate of the tenant's front proxy ([`front_proxy`], [`delegate`]). What an extension
//! server has is merged into discovery and OpenAPI ([`documents`]); whether it answers is kept in
//! its object's status ([`available`]). Group versions that are served here have objects as well,
//! made when they are read ([`local`], [`overlay`]) or registered with their definitions
//! ([`register`]). See `docs/decisions/0023-aggregated-apis.md` and `0024-front-proxies.md`.
//!
//! # Invariants
//!
//! * A tenant without objects of its own keeps nothing here.
//! * What is built in is served here, whatever a tenant's objects say.
//! * An extension server is reached as its tenant's webhooks are, by [`crate::outbound`] alone.

pub(crate) mod available;
pub(crate) mod delegate;
pub(crate) mod documents;
pub(crate) mod front_proxy;
pub(crate) mod local;
mod overlay;
mod register;

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwapOption;
use insula_api::{field::FieldError, names::TenantName, object};
use insula_partition::{
    snapshot::{Entry, Snapshot},
    store::{Collection, ReadAt, Revision, Store},
};
use serde::Deserialize;
use serde_json::Value;

use self::{documents::Documents, front_proxy::FrontProxy, local::Priority};
use crate::{
    Server, bootstrap,
    custom::compiled::Condition,
    error::{ApiError, Result},
    lately::Lately,
    outbound::{Destination, OutboundError, Trust},
    registry::{self, Served},
    scoped::Scoped,
    turns::Turns,
};

pub(crate) use self::{overlay::Overlay, register::register};

pub(crate) const GROUP: &str = "apiregistration.k8s.io";
pub(crate) const RESOURCE: &str = "apiservices";
/// Says that a server keeps an object: `onstart` of what is built in, `true` of definitions.
const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Whether `served` holds these objects.
pub(crate) fn holds_services(served: &Served) -> bool {
    served.resource.group == GROUP && served.resource.name == RESOURCE
}

/// The name of the object of a group version.
pub(crate) fn name_of(group: &str, version: &str) -> String {
    format!("{version}.{group}")
}

/// The group versions of all tenants, as far as somebody asked for them.
#[derive(Debug)]
pub(crate) struct Aggregation {
    pub(crate) tenants: Lately<Arc<OfTenant>>,
    turns: Turns,
}

impl Default for Aggregation {
    fn default() -> Self {
        Self { tenants: Lately::default(), turns: Turns::new(delegate::AT_ONCE) }
    }
}

/// What one tenant says of group versions.
#[derive(Debug, Default)]
pub(crate) struct OfTenant {
    /// What they were read from.
    snapshot: Option<Snapshot>,
    /// By name.
    services: BTreeMap<String, Arc<Api>>,
}

/// One object, as it is kept.
#[derive(Debug)]
pub(crate) struct Api {
    pub tenant: TenantName,
    pub group: String,
    pub version: String,
    pub priority: Priority,
    modified: Revision,
    /// Who serves it, if it is somebody else.
    pub remote: Option<Remote>,
}

/// A server of a tenant's own.
#[derive(Debug)]
pub(crate) struct Remote {
    spec: Spec,
    pub service: ServiceReference,
    /// As its object says.
    pub is_available: bool,
    /// With the id of the key that it is made of.
    trust: Arc<ArcSwapOption<(String, Trust)>>,
    pub documents: Arc<Documents>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceReference {
    pub namespace: String,
    pub name: String,
    pub port: u16,
}

impl Default for ServiceReference {
    fn default() -> Self {
        Self { namespace: String::new(), name: String::new(), port: 443 }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    group: String,
    version: String,
    group_priority_minimum: i64,
    version_priority: i64,
    service: Option<ServiceReference>,
    ca_bundle: Option<String>,
    #[serde(rename = "insecureSkipTLSVerify")]
    insecure: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
struct Object {
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

impl Api {
    /// Reads an object; what is as it was of `known` is taken over.
    fn read(tenant: &TenantName, entry: &Entry, known: Option<&Self>) -> Result<Self> {
        let Object { mut spec, status } =
            serde_json::from_slice(&entry.value.bytes()).map_err(ApiError::internal)?;
        let priority =
            Priority { group: spec.group_priority_minimum, version: spec.version_priority };
        let (group, version) = (spec.group.clone(), spec.version.clone());
        // They say nothing of the connection.
        (spec.group_priority_minimum, spec.version_priority) = (0, 0);
        let is_available =
            status.conditions.iter().any(|it| it.kind == "Available" && it.status == "True");
        let remote = spec.service.clone().map(|service| {
            let known = known.and_then(|it| it.remote.as_ref());
            let trust = known.filter(|it| it.spec == spec).map(|it| it.trust.clone());
            let documents = known.filter(|it| it.service == service).map(|it| it.documents.clone());
            Remote {
                service,
                is_available,
                trust: trust.unwrap_or_default(),
                documents: documents.unwrap_or_default(),
                spec,
            }
        });
        let tenant = tenant.clone();
        Ok(Self { tenant, group, version, priority, modified: entry.modified, remote })
    }
}

impl Remote {
    /// Where it is.
    pub(crate) fn destination<'a>(&'a self, path: &'a str) -> Destination<'a> {
        let ServiceReference { namespace, name, port } = &self.service;
        Destination::Service { namespace, name, port: *port, path }
    }

    /// What proves who it is, and who we are.
    pub(crate) async fn trust(
        &self,
        server: &Server,
        tenant: &TenantName,
    ) -> Result<Trust, OutboundError> {
        let ring = server.keys.ring();
        let of = ring.signing().id();
        if let Some((made_of, trust)) = self.trust.load().as_deref()
            && made_of == of
        {
            return Ok(trust.clone());
        }
        let failed = |why: ApiError| OutboundError::Lookup(why.message);
        let proxy = front_proxy(server, tenant).await.map_err(failed)?;
        let client = proxy.client().map_err(|error| OutboundError::Tls(error.to_string()))?;
        let trust = match self.spec.insecure {
            true => Trust::anybody_shown(&client)?,
            false => Trust::bundle_shown(self.spec.ca_bundle.as_deref(), &client)?,
        };
        self.trust.store(Some(Arc::new((of.to_owned(), trust.clone()))));
        Ok(trust)
    }
}

/// The front proxy of a tenant.
pub(crate) async fn front_proxy(server: &Server, tenant: &TenantName) -> Result<FrontProxy> {
    let found = bootstrap::find_tenant(server, tenant).await?;
    let found =
        found.ok_or_else(|| ApiError::not_found("insula.io", "tenants", tenant.as_str()))?;
    let ring = server.keys.ring();
    let made = ring.signing().front_proxies().of(tenant, object::uid(&found));
    made.map_err(ApiError::internal)
}

impl OfTenant {
    /// Who serves a group version, if it is somebody else.
    pub(crate) fn remote(&self, group: &str, version: &str) -> Option<&Arc<Api>> {
        let found = self.services.get(&name_of(group, version));
        found.filter(|it| it.remote.is_some() && !local::is_built_in(group, version))
    }

    /// All group versions that somebody else serves.
    pub(crate) fn remotes(&self) -> impl Iterator<Item = (&Arc<Api>, &Remote)> {
        self.services
            .values()
            .filter(|it| !local::is_built_in(&it.group, &it.version))
            .filter_map(|it| Some((it, it.remote.as_ref()?)))
    }

    /// The place of a group version among others.
    pub(crate) fn priority(&self, group: &str, version: &str) -> Priority {
        let own = match self.services.is_empty() {
            true => None,
            false => self.services.get(&name_of(group, version)),
        };
        own.map_or_else(|| local::priority(group, version), |it| it.priority)
    }
}

/// Where the objects that a tenant has of its own are kept.
fn kept(server: &Server, tenant: &TenantName) -> Result<(Collection, Scoped)> {
    let served = server.registry.get(GROUP, "v1", RESOURCE);
    let served = served.ok_or_else(|| ApiError::internal("API services are not served"))?;
    let key = registry::shard_of_tenant(tenant);
    let store = server.partitions.place(&key).store;
    Ok((served.collection.clone(), Scoped::new(store, key)))
}

impl Aggregation {
    /// What `tenant` says of group versions now.
    pub(crate) async fn of(&self, server: &Server, tenant: &TenantName) -> Result<Arc<OfTenant>> {
        self.at(server, tenant, ReadAt::Latest).await
    }

    /// As [`Aggregation::of`], as fresh as `at` says.
    pub(crate) async fn at(
        &self,
        server: &Server,
        tenant: &TenantName,
        at: ReadAt,
    ) -> Result<Arc<OfTenant>> {
        let (collection, store) = kept(server, tenant)?;
        let snapshot = store.read(&collection, at).await?;
        let known = self.tenants.get(tenant);
        if let Some(known) = &known
            && known.snapshot.as_ref().is_some_and(|it| it.is_same(&snapshot))
        {
            return Ok(known.clone());
        }
        let prefix = registry::key(tenant, "", "");
        let mut services = BTreeMap::new();
        for (key, entry) in snapshot.range(&prefix, None) {
            let name = key[prefix.len()..].to_owned();
            let same = known.as_ref().and_then(|it| it.services.get(&name));
            let api = match same.filter(|it| it.modified == entry.modified) {
                Some(same) => same.clone(),
                None => Arc::new(Api::read(tenant, entry, same.map(|it| &**it))?),
            };
            services.insert(name, api);
        }
        if services.is_empty() {
            self.tenants.remove(tenant);
            return Ok(Arc::default());
        }
        let found = Arc::new(OfTenant { snapshot: Some(snapshot), services });
        self.tenants.put(tenant, found.clone());
        Ok(found)
    }
}

/// What is wrong with an object, beyond what its fields may hold.
pub(crate) fn check(it: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &it["spec"];
    let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = (text("group"), text("version"));
    let required = name_of(group, version);
    let name = object::name(it);
    if name != required && !name.is_empty() {
        let why = format!("must be `spec.version+\".\"+spec.group`: {required:?}");
        errors.push(FieldError::invalid("metadata.name", &name.into(), &why));
    }
    if group.is_empty() && version != "v1" {
        let why = "only v1 may have an empty group and it better be legacy kube";
        errors.push(FieldError::required("spec.group", why));
    }
    for (field, most, why) in [
        ("groupPriorityMinimum", 20000, "must be positive and less than 20000"),
        ("versionPriority", 1000, "must be positive and less than 1000"),
    ] {
        let value = spec.get(field).and_then(Value::as_i64).unwrap_or(0);
        if !(1..=most).contains(&value) {
            errors.push(FieldError::invalid(format!("spec.{field}"), &value.into(), why));
        }
    }
    let bundle = text("caBundle");
    let insecure = spec.get("insecureSkipTLSVerify") == Some(&Value::Bool(true));
    const INSECURE: &str = "spec.insecureSkipTLSVerify";
    if spec.get("service").is_none_or(Value::is_null) {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", bundle_len(bundle));
            let why = "local APIServices may not have a caBundle";
            errors.push(FieldError::invalid("spec.caBundle", &shown.into(), why));
        }
        if insecure {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(FieldError::invalid(INSECURE, &true.into(), why));
        }
        return errors;
    }
    if insecure && !bundle.is_empty() {
        let why = "may not be true if caBundle is present";
        errors.push(FieldError::invalid(INSECURE, &true.into(), why));
    }
    if local::is_built_in(group, version) {
        let why = "this group version is built in and served by every server";
        errors.push(FieldError::forbidden("spec.service", why));
    }
    errors
}

/// How many bytes a text in base64 stands for.
fn bundle_len(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(change: Value) -> Vec<String> {
        let mut it = json!({
            "metadata": {"name": "v1.example.com"},
            "spec": {
                "group": "example.com", "version": "v1", "groupPriorityMinimum": 1,
                "versionPriority": 1, "service": {"namespace": "a", "name": "b"},
            },
        });
        for (field, value) in change.as_object().unwrap() {
            it["spec"][field] = value.clone();
        }
        check(&it).into_iter().map(|it| it.field).collect()
    }

    #[test]
    fn what_may_be_registered() {
        assert!(wrong(json!({})).is_empty());
        assert_eq!(wrong(json!({"version": "v2"})), ["metadata.name"]);
        assert_eq!(wrong(json!({"versionPriority": 1001})), ["spec.versionPriority"]);
        assert_eq!(wrong(json!({"groupPriorityMinimum": 0})), ["spec.groupPriorityMinimum"]);
        let both = json!({"caBundle": "aGk=", "insecureSkipTLSVerify": true});
        assert_eq!(wrong(both), ["spec.insecureSkipTLSVerify"]);
        assert_eq!(wrong(json!({"service": null, "caBundle": "aGk="})), ["spec.caBundle"]);
        let apps = wrong(json!({"group": "apps"}));
        assert_eq!(apps, ["metadata.name", "spec.service"]);
        assert_eq!(bundle_len("aGk="), 2);
    }
}
