//! Claims, volumes, classes and what nodes can attach, as far as they decide where pods can be.
//!
//! What was decided and is not written yet is assumed, like the places of pods: two pods do not
//! get one volume.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use insula_api::{names::TenantName, quantity::Quantity, selector::Selector};
use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::{
    api::{
        core::v1::{
            NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm,
        },
        storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use crate::{
    devices::ClaimWork,
    pod::{Shape, compile},
};

/// Annotations of claims.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The provisioner of classes whose volumes somebody makes by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// What matters of a claim.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Claimed {
    pub(crate) volume: Option<Arc<str>>,
    pub(crate) is_bound: bool,
    pub(crate) is_lost: bool,
    pub(crate) is_ending: bool,
    pub(crate) class: Option<Arc<str>>,
    pub(crate) selected_node: Option<Arc<str>>,
    pub(crate) for_one_pod: bool,
    modes: Vec<String>,
    bytes: i64,
    volume_mode: String,
    selector: Option<Selector>,
}

/// What matters of a volume.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Volume {
    /// Terms of which the node must match one; `None` if any node will do.
    pub(crate) nodes: Option<Vec<NodeSelectorTerm>>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Driver and handle.
    pub(crate) csi: Option<(Arc<str>, Arc<str>)>,
    class: Option<Arc<str>>,
    claim: Option<(String, String)>,
    is_usable: bool,
    modes: Vec<String>,
    bytes: i64,
    volume_mode: String,
}

/// What matters of a class.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Class {
    pub(crate) waits_for_consumer: bool,
    pub(crate) provisioner: Arc<str>,
    pub(crate) topologies: Vec<TopologySelectorTerm>,
}

impl Class {
    pub(crate) fn provisions(&self) -> bool {
        !self.provisioner.is_empty() && &*self.provisioner != NO_PROVISIONER
    }
}

/// How much a driver can still make of a class, and where.
#[derive(Debug, Clone, PartialEq)]
struct Capacity {
    class: Arc<str>,
    /// Bytes of the largest volume; none if the driver does not say.
    largest: Option<i64>,
    /// Of nodes; none if it cannot be reached by any.
    nodes: Option<LabelSelector>,
}

/// What was taken for a pod that is being bound.
#[derive(Debug, Clone, Default)]
pub(crate) struct Assumed {
    volumes: Vec<ObjectKey>,
    claims: Vec<ObjectKey>,
    /// Claims of devices.
    pub(crate) devices: Vec<ObjectKey>,
}

/// What is to be written before a pod can be bound.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    /// Volumes that are to be bound to claims.
    pub(crate) bind: Vec<(ObjectKey, ObjectKey)>,
    /// Claims for which a volume is to be made that the node can reach.
    pub(crate) provision: Vec<ObjectKey>,
    /// What claims of devices are given, and whose they are.
    pub(crate) devices: Vec<ClaimWork>,
}

impl Work {
    pub(crate) fn is_empty(&self) -> bool {
        self.has_no_volumes() && self.devices.is_empty()
    }

    /// Whether nothing is to be done about volumes.
    pub(crate) fn has_no_volumes(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty()
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Storage {
    claims: HashMap<ObjectKey, Claimed>,
    volumes: BTreeMap<ObjectKey, Volume>,
    classes: HashMap<ObjectKey, Class>,
    /// Drivers that say how much they can still make.
    measured: HashSet<ObjectKey>,
    capacities: BTreeMap<ObjectKey, Capacity>,
    limits: HashMap<Arc<str>, HashMap<Arc<str>, usize>>,
    /// Claims by the rows on which pods use them, and by how many pods.
    used: HashMap<ObjectKey, HashMap<usize, i64>>,
    on_row: HashMap<usize, HashSet<ObjectKey>>,
    assumed_volumes: HashMap<ObjectKey, ObjectKey>,
    assumed_claims: HashMap<ObjectKey, Arc<str>>,
    version: u64,
}

fn bytes(
    quantities: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
) -> i64 {
    let quantity = quantities.and_then(|it| it.get("storage"));
    quantity.and_then(|it| Quantity::parse(&it.0).ok()).map_or(0, |it| it.value())
}

fn shared(text: &Option<String>) -> Option<Arc<str>> {
    text.as_deref().filter(|it| !it.is_empty()).map(Into::into)
}

fn put<K: Eq + std::hash::Hash + Clone, V: PartialEq>(
    map: &mut HashMap<K, V>,
    key: &K,
    value: Option<V>,
) -> bool {
    let is_same = map.get(key) == value.as_ref();
    match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    };
    !is_same
}

impl Storage {
    /// Grows whenever anything changes that is known of volumes.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    fn note(&mut self, changed: bool) -> bool {
        self.version += u64::from(changed);
        changed
    }

    /// Notes a claim, or that it is gone. Returns whether that matters.
    pub(crate) fn put_claim(
        &mut self,
        key: &ObjectKey,
        claim: Option<&Tenanted<PersistentVolumeClaim>>,
    ) -> bool {
        let claimed = claim.and_then(|claim| {
            let spec = claim.spec.as_ref()?;
            let annotations = claim.metadata.annotations.as_ref();
            let annotation = |name| annotations.and_then(|it| it.get(name));
            let phase = claim.status.as_ref().and_then(|it| it.phase.as_deref());
            let volume = shared(&spec.volume_name);
            let modes = spec.access_modes.clone().unwrap_or_default();
            Some(Claimed {
                is_bound: volume.is_some()
                    && (annotation(BIND_COMPLETED).is_some() || phase == Some("Bound")),
                is_lost: phase == Some("Lost"),
                is_ending: claim.is_deleting(),
                class: shared(&spec.storage_class_name),
                selected_node: annotation(SELECTED_NODE).map(|it| it.as_str().into()),
                for_one_pod: modes.iter().any(|it| it == "ReadWriteOncePod"),
                bytes: bytes(spec.resources.as_ref().and_then(|it| it.requests.as_ref())),
                volume_mode: spec.volume_mode.clone().unwrap_or_else(|| "Filesystem".to_owned()),
                selector: spec.selector.as_ref().and_then(compile),
                volume,
                modes,
            })
        });
        let changed = put(&mut self.claims, key, claimed);
        self.note(changed)
    }

    /// Notes a volume, or that it is gone. Returns whether that matters.
    pub(crate) fn put_volume(
        &mut self,
        key: &ObjectKey,
        volume: Option<&Tenanted<PersistentVolume>>,
    ) -> bool {
        let made = volume.and_then(|volume| {
            let spec = volume.spec.as_ref()?;
            let phase = volume.status.as_ref().and_then(|it| it.phase.as_deref());
            let reference = spec.claim_ref.as_ref();
            Some(Volume {
                nodes: spec
                    .node_affinity
                    .as_ref()
                    .and_then(|it| it.required.as_ref())
                    .map(|it| it.node_selector_terms.clone()),
                labels: volume.metadata.labels.clone().unwrap_or_default(),
                csi: spec
                    .csi
                    .as_ref()
                    .map(|it| (it.driver.as_str().into(), it.volume_handle.as_str().into())),
                class: shared(&spec.storage_class_name),
                claim: reference.map(|it| {
                    (it.namespace.clone().unwrap_or_default(), it.name.clone().unwrap_or_default())
                }),
                is_usable: !volume.is_deleting() && !matches!(phase, Some("Released" | "Failed")),
                modes: spec.access_modes.clone().unwrap_or_default(),
                bytes: bytes(spec.capacity.as_ref()),
                volume_mode: spec.volume_mode.clone().unwrap_or_else(|| "Filesystem".to_owned()),
            })
        });
        let is_same = self.volumes.get(key) == made.as_ref();
        match made {
            Some(volume) => self.volumes.insert(key.clone(), volume),
            None => self.volumes.remove(key),
        };
        self.note(!is_same)
    }

    /// Notes a class, or that it is gone. Returns whether that matters.
    pub(crate) fn put_class(
        &mut self,
        key: &ObjectKey,
        class: Option<&Tenanted<StorageClass>>,
    ) -> bool {
        let class = class.map(|class| Class {
            waits_for_consumer: class.volume_binding_mode.as_deref()
                == Some("WaitForFirstConsumer"),
            provisioner: class.provisioner.as_str().into(),
            topologies: class.allowed_topologies.clone().unwrap_or_default(),
        });
        let changed = put(&mut self.classes, key, class);
        self.note(changed)
    }

    /// Notes whether a driver says how much it can still make. Returns whether that matters.
    pub(crate) fn put_driver(&mut self, key: &ObjectKey, driver: Option<&CSIDriver>) -> bool {
        let is_measured = driver.is_some_and(|it| it.spec.storage_capacity == Some(true));
        let changed = match is_measured {
            true => self.measured.insert(key.clone()),
            false => self.measured.remove(key),
        };
        self.note(changed)
    }

    /// Notes how much a driver can still make (KEP-1472). Returns whether that matters.
    pub(crate) fn put_capacity(
        &mut self,
        key: &ObjectKey,
        capacity: Option<&CSIStorageCapacity>,
    ) -> bool {
        let capacity = capacity.map(|it| Capacity {
            class: it.storage_class_name.as_str().into(),
            largest: it
                .maximum_volume_size
                .as_ref()
                .or(it.capacity.as_ref())
                .and_then(|it| Quantity::parse(&it.0).ok())
                .map(|it| it.value()),
            nodes: it.node_topology.clone(),
        });
        let is_same = self.capacities.get(key) == capacity.as_ref();
        match capacity {
            Some(capacity) => self.capacities.insert(key.clone(), capacity),
            None => self.capacities.remove(key),
        };
        self.note(!is_same)
    }

    /// The nodes for which a volume for a claim can be made, as far as its size matters; `None` if
    /// the driver does not say. What the platform says holds for all tenants.
    pub(crate) fn nodes_with_room(&self, key: &ObjectKey) -> Option<Vec<&LabelSelector>> {
        let claim = self.claims.get(key).filter(|it| it.bytes != 0)?;
        let name = claim.class.as_ref()?;
        let class = self.class(&key.tenant, name)?;
        let system = TenantName::system();
        let tenants = [&key.tenant, &system];
        let driver = |it: &&TenantName| ObjectKey::new(it, "", &class.provisioner);
        if !tenants.iter().any(|it| self.measured.contains(&driver(it))) {
            return None;
        }
        let all = tenants.into_iter().take(if key.tenant == system { 1 } else { 2 });
        let all = all.flat_map(|tenant| {
            let from = self.capacities.range(ObjectKey::new(tenant, "", "")..);
            from.take_while(move |(it, _)| it.tenant == *tenant).map(|(_, it)| it)
        });
        let has_room =
            |it: &&Capacity| it.class == *name && it.largest.is_some_and(|it| claim.bytes <= it);
        Some(all.filter(has_room).filter_map(|it| it.nodes.as_ref()).collect())
    }

    /// Notes how many volumes of each driver a node can attach. Returns whether that matters.
    pub(crate) fn put_limits(&mut self, node: &str, drivers: Option<&CSINode>) -> bool {
        let limits = drivers.map(|it| {
            let limit = |it: &k8s_openapi::api::storage::v1::CSINodeDriver| {
                let count = it.allocatable.as_ref()?.count?;
                Some((it.name.as_str().into(), usize::try_from(count).unwrap_or(0)))
            };
            it.spec.drivers.iter().filter_map(limit).collect::<HashMap<_, _>>()
        });
        let changed = put(&mut self.limits, &node.into(), limits);
        self.note(changed)
    }

    /// Notes that pods of a shape come to a row, or leave it.
    pub(crate) fn add(&mut self, shape: &Shape, row: usize, n_pods: i64) {
        for claim in &shape.claims {
            let key = claim_key(shape, &claim.name);
            let rows = self.used.entry(key.clone()).or_default();
            let n = rows.entry(row).or_default();
            *n += n_pods;
            if *n == 0 {
                rows.remove(&row);
                if rows.is_empty() {
                    self.used.remove(&key);
                }
                if let Some(claims) = self.on_row.get_mut(&row) {
                    claims.remove(&key);
                    if claims.is_empty() {
                        self.on_row.remove(&row);
                    }
                }
            } else {
                self.on_row.entry(row).or_default().insert(key);
            }
        }
    }

    /// How many pods on nodes use a claim.
    pub(crate) fn n_users(&self, claim: &ObjectKey) -> i64 {
        self.used.get(claim).map_or(0, |rows| rows.values().sum())
    }

    pub(crate) fn claim(&self, key: &ObjectKey) -> Option<&Claimed> {
        self.claims.get(key)
    }

    pub(crate) fn volume(&self, tenant: &TenantName, name: &str) -> Option<&Volume> {
        self.volumes.get(&ObjectKey::new(tenant, "", name))
    }

    /// A tenant's class: its own, or one that the platform shares.
    pub(crate) fn class(&self, tenant: &TenantName, name: &str) -> Option<&Class> {
        let own = self.classes.get(&ObjectKey::new(tenant, "", name));
        own.or_else(|| self.classes.get(&ObjectKey::new(&TenantName::system(), "", name)))
    }

    /// The node that a volume is being made for, if it is being made.
    pub(crate) fn selected_node(&self, key: &ObjectKey) -> Option<&str> {
        let assumed = self.assumed_claims.get(key).map(|it| &**it);
        assumed.or_else(|| self.claims.get(key)?.selected_node.as_deref())
    }

    /// Volumes that a claim could be bound to, the smallest first.
    pub(crate) fn candidates(&self, key: &ObjectKey) -> Vec<(ObjectKey, &Volume)> {
        let Some(claim) = self.claims.get(key) else { return Vec::new() };
        let first = ObjectKey::new(&key.tenant, "", "");
        let of_tenant = self.volumes.range(first..).take_while(|(it, _)| it.tenant == key.tenant);
        let fits = |(name, it): &(&ObjectKey, &Volume)| {
            let is_free = match &it.claim {
                Some((namespace, name)) => **namespace == *key.namespace && **name == *key.name,
                None => true,
            };
            is_free
                && it.is_usable
                && it.class == claim.class
                && it.volume_mode == claim.volume_mode
                && claim.bytes <= it.bytes
                && claim.modes.iter().all(|mode| it.modes.contains(mode))
                && claim.selector.as_ref().is_none_or(|selector| selector.matches(&it.labels))
                && self.assumed_volumes.get(*name).is_none_or(|it| it == key)
        };
        let mut found: Vec<_> =
            of_tenant.filter(fits).map(|(key, volume)| (key.clone(), volume)).collect();
        found.sort_by_key(|(_, it)| (it.claim.is_none(), it.bytes));
        found
    }

    /// How many volumes of a driver a node can attach; `None` if that is not known.
    pub(crate) fn limit(&self, node: &str, driver: &str) -> Option<usize> {
        self.limits.get(node)?.get(driver).copied()
    }

    /// Driver and name of what is attached for a claim.
    pub(crate) fn attached_as(&self, key: &ObjectKey) -> Option<(Arc<str>, String)> {
        let claim = self.claims.get(key)?;
        if let Some(volume) = &claim.volume {
            let (driver, handle) = self.volume(&key.tenant, volume)?.csi.clone()?;
            return Some((driver, handle.to_string()));
        }
        let class = self.class(&key.tenant, claim.class.as_ref()?)?;
        class.provisions().then(|| (class.provisioner.clone(), key.to_string()))
    }

    /// What is attached to a row for pods that are there.
    pub(crate) fn attached_to(&self, row: usize) -> HashSet<(Arc<str>, String)> {
        let claims = self.on_row.get(&row).into_iter().flatten();
        claims.filter_map(|key| self.attached_as(key)).collect()
    }

    /// Takes volumes for claims, and notes where others are to be made.
    pub(crate) fn assume(&mut self, work: &Work, node: &Arc<str>) -> Assumed {
        for (volume, claim) in &work.bind {
            self.assumed_volumes.insert(volume.clone(), claim.clone());
        }
        for claim in &work.provision {
            self.assumed_claims.insert(claim.clone(), node.clone());
        }
        self.note(!work.has_no_volumes());
        Assumed {
            volumes: work.bind.iter().map(|(volume, _)| volume.clone()).collect(),
            claims: work.provision.clone(),
            devices: Vec::new(),
        }
    }

    /// What was taken is known from the server by now, or was not taken after all. Returns whether
    /// anything can be had again.
    pub(crate) fn settle(&mut self, assumed: &Assumed) -> bool {
        let mut is_free = false;
        for volume in &assumed.volumes {
            self.assumed_volumes.remove(volume);
            is_free |= self.volumes.get(volume).is_some_and(|it| it.claim.is_none());
        }
        for claim in &assumed.claims {
            self.assumed_claims.remove(claim);
            is_free |= self.claims.get(claim).is_some_and(|it| it.volume.is_none());
        }
        self.note(!assumed.volumes.is_empty() || !assumed.claims.is_empty());
        is_free
    }
}

/// The key of a claim that a pod names.
pub(crate) fn claim_key(pod: &Shape, name: &Arc<str>) -> ObjectKey {
    ObjectKey { tenant: pod.tenant.clone(), namespace: pod.namespace.clone(), name: name.clone() }
}
