//! Begins and ends tenants.
//!
//! A new tenant gets its first namespaces and then is Active. A tenant that is being deleted
//! loses its namespaces first, by the namespace controller, then all else that it owns, and then
//! the finalizer that kept it. What the fleet owns is never touched: only objects that carry the
//! tenant's own name are deleted.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use insula_api::{
    kinds::{TENANT_FINALIZER, TenantPhase},
    names::TenantName,
};
use insula_client::{
    Api, Client, DeleteOptions, Discovered, Error, EventRecorder, EventType, Informer, ListOptions,
    ObjectKey, PartialObject, Patch, Propagation, ResourceRef, Tenant, Tenanted,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde_json::json;

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    queue::Queue,
};

/// The namespaces that every tenant begins with.
const FIRST_NAMESPACES: [&str; 3] = ["default", "kube-system", "kube-public"];
/// What says that a group version is served by somebody else.
const API_SERVICES: ResourceRef = ResourceRef {
    group: Cow::Borrowed("apiregistration.k8s.io"),
    version: Cow::Borrowed("v1"),
    plural: Cow::Borrowed("apiservices"),
    kind: Cow::Borrowed("APIService"),
    namespaced: false,
};
/// Resources emptied at the same time.
const PARALLEL: usize = 8;
/// When to look again while something is left: soon after the end began, as most is gone in no
/// time, and not so often where somebody keeps something. The end of a namespace is also told.
const SOON: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_secs(2);
/// How long an end has only begun.
const FRESH: SignedDuration = SignedDuration::from_secs(3);

/// Where a Tenant object is found.
fn key_of(tenant: &TenantName) -> ObjectKey {
    ObjectKey::new(&TenantName::system(), "", tenant.as_str())
}

/// Whether a tenant is being deleted.
pub(crate) fn ends(tenants: &Informer<Tenant>, name: &TenantName) -> bool {
    tenants.get(&key_of(name)).is_some_and(|it| it.is_deleting())
}

/// What a tenant is reconciled as: it is the tenant's own, though its Tenant object is not, so that
/// its replica sees what is left of it.
fn work_of(tenant: &TenantName) -> ObjectKey {
    ObjectKey::new(tenant, "", tenant.as_str())
}

/// Keeps tenants.
#[derive(Debug)]
pub(crate) struct Tenants {
    client: Client,
    informers: Informers,
    events: EventRecorder,
}

impl Tenants {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let events = events.named("tenant-controller");
        Self { client, informers, events }
    }

    async fn begin(&self, tenant: &Tenanted<Tenant>, name: &TenantName) -> Result<(), Error> {
        let status = tenant.status.clone().unwrap_or_default();
        if status.phase == Some(TenantPhase::Active) {
            return Ok(());
        }
        let namespaces = self.client.tenant(name).api::<Namespace>();
        for namespace in FIRST_NAMESPACES {
            let wanted = Namespace {
                metadata: ObjectMeta { name: Some(namespace.to_owned()), ..ObjectMeta::default() },
                ..Namespace::default()
            };
            match namespaces.create(&wanted).await {
                Err(error) if error.is_already_exists() => (),
                other => drop(other?),
            }
        }
        let patch = json!({
            "metadata": {"uid": tenant.uid()},
            "status": {"phase": TenantPhase::Active},
        });
        let tenants = self.client.system().api::<Tenant>();
        tenants.patch_status(tenant.name(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Takes one step towards the end; returns whether it is reached.
    async fn end(
        &self,
        tenant: &Tenanted<Tenant>,
        name: &TenantName,
    ) -> Result<bool, ReconcileError> {
        // A server of its own that does not answer would keep it for ever.
        let apis = Discovered { resource: API_SERVICES, verbs: BTreeSet::new() };
        self.end_resource(name, &apis).await?;
        if !self.end_namespaces(name).await? {
            return Ok(false);
        }
        let discovery = self.client.tenant(name).discover().await?;
        if let Some((group, error)) = discovery.failures.iter().next() {
            let why = insula_client::chain(error);
            return Err(ReconcileError::Incomplete(format!("cannot discover {group}: {why}")));
        }
        let mut resources = discovery.resources;
        resources.retain(|it| {
            !it.resource.namespaced
                && it.can(&["list", "delete"])
                && !(it.resource.group.is_empty() && it.resource.plural == "namespaces")
        });
        let n_left: Vec<usize> = stream::iter(resources)
            .map(|it| async move { self.end_resource(name, &it).await })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        if n_left.iter().sum::<usize>() != 0 {
            return Ok(false);
        }
        self.release(tenant).await?;
        Ok(true)
    }

    async fn end_namespaces(&self, name: &TenantName) -> Result<bool, Error> {
        let api = self.client.tenant(name).api::<Namespace>();
        let namespaces = api.list_all(&ListOptions::default()).await?;
        for namespace in namespaces.iter().filter(|it| !it.is_deleting()) {
            let options = DeleteOptions::default().only_uid(namespace.uid());
            match api.delete(namespace.name(), &options).await {
                Err(error) if error.is_not_found() || error.is_conflict() => (),
                other => drop(other?),
            }
        }
        Ok(namespaces.is_empty())
    }

    /// Deletes the tenant's objects of one resource; returns how many there were.
    async fn end_resource(&self, name: &TenantName, it: &Discovered) -> Result<usize, Error> {
        let api: Api<PartialObject> = self.client.tenant(name).resource(it.resource.clone(), None);
        let found = match api.list_all(&ListOptions::default()).await {
            Err(error) if error.is_not_found() || error.is_method_not_supported() => return Ok(0),
            other => other?,
        };
        // A tenant also sees objects of the fleet; they are not its own.
        let own: Vec<_> = found.iter().filter(|it| it.tenant == *name).collect();
        for object in own.iter().filter(|it| !it.is_deleting()) {
            let options = DeleteOptions::default()
                .only_uid(object.uid())
                .propagation(Propagation::Background);
            match api.delete(object.name(), &options).await {
                Err(error) if error.is_not_found() || error.is_conflict() => (),
                other => drop(other?),
            }
        }
        Ok(own.len())
    }

    async fn release(&self, tenant: &Tenanted<Tenant>) -> Result<(), Error> {
        let finalizers = tenant.metadata.finalizers.iter().flatten();
        let kept: Vec<_> = finalizers.filter(|it| *it != TENANT_FINALIZER).collect();
        let patch = json!({
            "metadata": {
                "uid": tenant.uid(),
                "resourceVersion": tenant.resource_version(),
                "finalizers": kept,
            },
        });
        let tenants = self.client.system().api::<Tenant>();
        match tenants.patch(tenant.name(), &Patch::Merge(patch)).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

impl Controller for Tenants {
    const NAME: &'static str = "tenant-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.tenants.on_change(move |change| match TenantName::parse(&change.key.name) {
            Ok(name) => keys.add(work_of(&name)),
            Err(error) => tracing::error!(%error, key = %change.key, "no name of a tenant"),
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.namespaces.on_change(move |change| {
            if change.new.is_some() {
                return;
            }
            if ends(&it.informers.tenants, &change.key.tenant) {
                keys.add(work_of(&change.key.tenant));
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.tenants.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let name = &key.tenant;
        let Some(tenant) = self.informers.tenants.get(&key_of(name)) else {
            return Ok(Next::WhenChanged);
        };
        // The platform's own tenant is there before all controllers, and never ends.
        if name.is_system() {
            return Ok(Next::WhenChanged);
        }
        if !tenant.is_deleting() {
            self.begin(&tenant, name).await?;
            return Ok(Next::WhenChanged);
        }
        let finalizers = tenant.metadata.finalizers.iter().flatten();
        if !finalizers.into_iter().any(|it| it == TENANT_FINALIZER) {
            return Ok(Next::WhenChanged);
        }
        match self.end(&tenant, name).await {
            Ok(true) => Ok(Next::WhenChanged),
            Ok(false) => {
                let began = tenant.metadata.deletion_timestamp.as_ref().map(|it| it.0);
                let is_fresh = began.is_some_and(|it| Timestamp::now().duration_since(it) < FRESH);
                Ok(Next::After(if is_fresh { SOON } else { POLL }))
            }
            Err(error) => {
                let message = insula_client::chain(&error);
                self.events.record(&tenant, EventType::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }
}
