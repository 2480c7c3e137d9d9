//! Which resources this server serves, and where their objects are kept.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use insula_api::{
    names::TenantName,
    path::TenantRef,
    resources::{self, Resource, Scope},
    schema::{Gvk, Schema, TypeId},
    versions::{self, Other},
};
use insula_partition::{
    map::ShardKey,
    partitions::{META, Partitions},
    store::{Collection, Durability, Store},
};

use crate::{
    aggregation,
    custom::{self, compiled::Custom},
    measured,
    metrics::{self, Names},
    request::ListOptions,
    scoped::Scoped,
    shown::{self, seen::Seen},
    views::{Kind, View},
};

/// A served resource with what is looked up once.
pub(crate) struct Served {
    pub resource: Arc<Resource>,
    pub collection: Collection,
    pub nature: Nature,
    /// How the objects are made of those that are kept, if they are kept in another version.
    pub other: Option<&'static Other>,
    /// What its requests are counted as.
    pub names: Names,
    /// Makes the objects, where they are not kept.
    view: OnceLock<Arc<View>>,
}

/// What says how objects of a resource look.
#[derive(Debug, Clone)]
pub(crate) enum Nature {
    BuiltIn(TypeId),
    Custom(Custom),
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("collection", &self.collection).finish_non_exhaustive()
    }
}

const METADATA: &str = "PartialObjectMetadata";

/// All served resources.
#[derive(Debug)]
pub(crate) struct Registry {
    /// In all groups and versions.
    by_name: HashMap<String, Vec<Arc<Served>>>,
    in_order: Vec<Arc<Served>>,
    /// What is served only where a tenant has nothing of its own in that group version.
    stand_ins: Vec<Arc<Served>>,
}

impl Registry {
    /// The built-in resources.
    pub(crate) fn built_in() -> Self {
        let schema = Schema::built_in();
        let mut registry =
            Self { by_name: HashMap::new(), in_order: Vec::new(), stand_ins: Vec::new() };
        for resource in resources::built_in() {
            let Some(schema_type) = schema.by_kind(&resource.gvk()) else { continue };
            let nature = Nature::BuiltIn(schema_type);
            let served = Arc::new(Served::new(Arc::new(resource.clone()), nature));
            if resource.group == measured::GROUP {
                registry.stand_ins.push(served);
                continue;
            }
            registry.by_name.entry(resource.name.clone()).or_default().push(served.clone());
            registry.in_order.push(served);
        }
        registry
    }

    pub(crate) fn get(&self, group: &str, version: &str, name: &str) -> Option<&Arc<Served>> {
        let of_name = self.by_name.get(name)?;
        of_name.iter().find(|it| it.resource.group == group && it.resource.version == version)
    }

    /// Whether a group is one of the built-in ones.
    pub(crate) fn has_group(&self, group: &str) -> bool {
        self.in_order.iter().any(|it| it.resource.group == group)
    }

    /// The resource in whatever version it is kept.
    pub(crate) fn any_version(&self, group: &str, name: &str) -> Option<&Arc<Served>> {
        let of_group = self.by_name.get(name)?.iter().filter(|it| it.resource.group == group);
        of_group.min_by_key(|it| it.other.is_some())
    }

    /// What is served where a tenant has nothing of its own in that group version.
    pub(crate) fn stand_ins(&self) -> &[Arc<Served>] {
        &self.stand_ins
    }

    /// Those of them that a tenant is served that has these things of its own.
    pub(crate) fn stand_ins_beside(
        &self,
        customs: &custom::OfTenant,
        apis: &aggregation::OfTenant,
    ) -> impl Iterator<Item = &Arc<Served>> {
        self.stand_ins.iter().filter(|it| {
            let (group, version) = (&*it.resource.group, &*it.resource.version);
            !customs.has(group, version) && apis.remote(group, version).is_none()
        })
    }

    /// In discovery order.
    pub(crate) fn all(&self) -> &[Arc<Served>] {
        &self.in_order
    }
}

/// Whose objects a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    One(TenantName),
    /// Every tenant's: reads by the platform.
    All,
}

impl Whose {
    /// `reference` as seen by a caller of `callers`.
    pub(crate) fn resolve(reference: &TenantRef, callers: &TenantName) -> Self {
        match reference {
            TenantRef::Callers => Self::One(callers.clone()),
            TenantRef::Named(tenant) => Self::One(tenant.clone()),
            TenantRef::All => Self::All,
        }
    }

    pub(crate) fn tenant(&self) -> Option<&TenantName> {
        match self {
            Self::One(tenant) => Some(tenant),
            Self::All => None,
        }
    }
}

/// The key of an object in its collection: `tenant/namespace/name`, the namespace empty where
/// there is none.
pub(crate) fn key(tenant: &TenantName, namespace: &str, name: &str) -> String {
    format!("{tenant}/{namespace}/{name}")
}

/// The prefix of all keys of a list.
pub(crate) fn prefix(whose: &Whose, namespace: &str) -> String {
    match whose {
        Whose::All => String::new(),
        Whose::One(tenant) if namespace.is_empty() => format!("{tenant}/"),
        Whose::One(tenant) => format!("{tenant}/{namespace}/"),
    }
}

/// What decides the partition of what a tenant has.
pub(crate) fn shard_of_tenant(tenant: &TenantName) -> ShardKey {
    match tenant.is_system() {
        true => ShardKey::System,
        false => ShardKey::Tenant(tenant.as_str().to_owned()),
    }
}

/// The namespace of node heartbeats.
const NODE_LEASES: &str = "kube-node-lease";

impl Served {
    pub(crate) fn new(resource: Arc<Resource>, nature: Nature) -> Self {
        let other = match nature {
            Nature::BuiltIn(_) => versions::other(&resource.gvk()),
            Nature::Custom(_) => None,
        };
        let group = other.map_or(&resource.group, |it| &it.stored.group);
        let collection = Collection::new(group, &resource.name);
        let names = metrics::names(&resource, matches!(nature, Nature::Custom(_)));
        Self { resource, collection, nature, other, names, view: OnceLock::new() }
    }

    /// Whatever any tenant has under this name: each may mean something else by it, so there is no
    /// more to be had than metadata, and nothing can be written.
    pub(crate) fn of_all(group: &str, version: &str, name: &str) -> Option<Self> {
        let schema = Schema::built_in();
        let kind = Gvk::new("meta.k8s.io", "v1", METADATA);
        let nature = Nature::BuiltIn(schema.by_kind(&kind)?);
        let resource = Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            name: name.to_owned(),
            kind: METADATA.to_owned(),
            singular: String::new(),
            short_names: Vec::new(),
            categories: Vec::new(),
            verbs: ["get", "list", "watch"].map(str::to_owned).to_vec(),
            scope: Scope::Tenant,
            subresources: Vec::new(),
            selectable_fields: Vec::new(),
        };
        Some(Self::new(Arc::new(resource), nature))
    }

    /// Whether there is no more to be had of its objects.
    pub(crate) fn has_only_metadata(&self) -> bool {
        self.resource.kind == METADATA
    }

    /// The same, but for what its resource says.
    pub(crate) fn with_resource(&self, resource: Resource) -> Self {
        Self::new(Arc::new(resource), self.nature.clone())
    }

    /// What defines it, if it is not built in.
    pub(crate) fn custom(&self) -> Option<&Custom> {
        match &self.nature {
            Nature::BuiltIn(_) => None,
            Nature::Custom(custom) => Some(custom),
        }
    }

    /// Whether objects may be shown in another form than the one that is kept.
    pub(crate) fn is_converted(&self) -> bool {
        self.other.is_some() || self.custom().is_some()
    }

    /// The group that errors speak of: an object that is kept in another group is one of that.
    pub(crate) fn told_group(&self) -> &str {
        self.other.map_or(&self.resource.group, |it| &it.stored.group)
    }

    /// The kind of its lists.
    pub(crate) fn list_kind(&self) -> String {
        match self.custom() {
            Some(custom) => custom.version.list_kind.clone(),
            None => format!("{}List", self.resource.kind),
        }
    }

    /// What decides the partition of an object.
    pub(crate) fn shard_key(&self, tenant: &TenantName, namespace: &str, name: &str) -> ShardKey {
        match (self.resource.scope, &*self.resource.group, &*self.resource.name) {
            (_, "", "nodes") => ShardKey::Node(name.to_owned()),
            (_, "coordination.k8s.io", "leases")
                if tenant.is_system() && namespace == NODE_LEASES =>
            {
                ShardKey::Node(name.to_owned())
            }
            (Scope::Fleet, ..) => ShardKey::System,
            _ => shard_of_tenant(tenant),
        }
    }

    /// The view that makes the objects, if they are made from the partition map, which every
    /// server has.
    pub(crate) fn view_kind(&self) -> Option<Kind> {
        (&*self.resource.group == "insula.io").then(|| Kind::of(&self.resource.name)).flatten()
    }

    /// Whether the objects are made from the partition map.
    pub(crate) fn is_view(&self) -> bool {
        self.view.get().is_some()
    }

    /// Has `view` make the objects.
    pub(crate) fn set_view(&self, view: Arc<View>) {
        // There is one server per registry.
        let _ = self.view.set(view);
    }

    /// Whether objects of one list lie in more than one partition.
    pub(crate) fn is_spread(&self, whose: &Whose, namespace: &str) -> bool {
        let leases = &*self.resource.group == "coordination.k8s.io"
            && &*self.resource.name == "leases"
            && (namespace.is_empty() || namespace == NODE_LEASES);
        match whose {
            Whose::All => self.resource.scope != Scope::Fleet || &*self.resource.name == "nodes",
            Whose::One(tenant) => {
                (self.resource.group.is_empty() && self.resource.name == "nodes")
                    || (leases && tenant.is_system())
            }
        }
    }

    /// How durable a write is: heartbeats and events may lose their last second in a crash.
    pub(crate) fn durability(&self, namespace: &str) -> Durability {
        match (&*self.resource.group, &*self.resource.name) {
            ("" | "events.k8s.io", "events") => Durability::Relaxed,
            ("coordination.k8s.io", "leases") if namespace == NODE_LEASES => Durability::Relaxed,
            ("insula.io", "controllerinstances" | "schedulerinstances") => Durability::Relaxed,
            _ => Durability::Durable,
        }
    }

    /// The partition of one object.
    pub(crate) fn place(
        &self,
        partitions: &Partitions,
        tenant: &TenantName,
        namespace: &str,
        name: &str,
    ) -> (Arc<str>, Arc<dyn Store>) {
        if let Some(view) = self.view.get() {
            return (META.into(), view.clone());
        }
        let key = self.shard_key(tenant, namespace, name);
        let place = partitions.place(&key);
        let kept = Scoped::new(place.store.clone(), key);
        let store: Arc<dyn Store> = if aggregation::holds_services(self) {
            Arc::new(aggregation::Overlay::new(partitions, tenant, kept))
        } else if shown::is_of_these(self) && !tenant.is_system() {
            Arc::new(Seen::new(tenant, kept, place.store))
        } else {
            Arc::new(kept)
        };
        (place.partition, store)
    }

    /// Where a tenant has objects of its own, without what the platform shows it.
    pub(crate) fn own(&self, partitions: &Partitions, tenant: &TenantName) -> Arc<dyn Store> {
        let key = self.shard_key(tenant, "", "");
        let place = partitions.place(&key);
        Arc::new(Scoped::new(place.store, key))
    }

    /// The partitions of a list, in a stable order.
    pub(crate) fn places(
        &self,
        partitions: &Partitions,
        whose: &Whose,
        namespace: &str,
        options: &ListOptions,
    ) -> Vec<(Arc<str>, Arc<dyn Store>)> {
        if self.is_spread(whose, namespace) {
            // One object is in one partition, whose revisions its watchers know from it.
            if let (Whose::One(tenant), Some(name)) = (whose, options.name()) {
                return vec![self.place(partitions, tenant, namespace, &name)];
            }
            let names = partitions.names();
            return names
                .iter()
                .filter_map(|name| Some((name.as_str().into(), partitions.store(name)?)))
                .collect();
        }
        let tenant = whose.tenant().cloned().unwrap_or_else(TenantName::system);
        vec![self.place(partitions, &tenant, namespace, "")]
    }
}
