//! Everything that decisions are made of, followed as it changes.

use std::{collections::BTreeMap, sync::Arc};

use insula_api::names::TenantName;
use insula_client::{Client, Informer, Kind, ObjectKey};
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetSpec, StatefulSet, StatefulSetSpec},
    core::v1::{
        Namespace, Node, NodeCondition, NodeStatus, PersistentVolume, PersistentVolumeClaim,
        ReplicationController, ReplicationControllerSpec, Service, ServiceSpec,
    },
    policy::v1::PodDisruptionBudget,
    resource::v1::{DeviceClass, ResourceClaim, ResourceSlice},
    scheduling::v1alpha2::PodGroup,
    storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass},
};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    devices::ClaimChange,
    dirty::Dirty,
    framework::Event,
    gangs::Policy,
    measured::Measurements,
    nodes::CONDITIONS,
    pod::{Pod, compile, trim},
    world::World,
};

/// How many objects of a kind lie as they are, and how many pods; the others lie packed. What is
/// decided goes by the world, not by these copies: they are looked at when something changes.
const N_PLAIN: usize = 512;
const N_PLAIN_PODS: usize = 2048;

/// Keeps of a node what decisions depend on. What it says of its health changes often and is long.
fn trim_node(node: &mut Node) {
    if let Some(old) = node.status.take() {
        let decides = |it: &NodeCondition| it.type_ == "Ready" || CONDITIONS.contains(&&*it.type_);
        let conditions = old.conditions.map(|them| them.into_iter().filter(decides).collect());
        node.status = Some(NodeStatus {
            capacity: old.capacity.filter(|_| old.allocatable.is_none()),
            allocatable: old.allocatable,
            images: old.images,
            conditions,
            ..NodeStatus::default()
        });
    }
}

/// What kind of object changed. In the order in which changes are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    Namespace,
    Class,
    Drivers,
    Driver,
    Capacity,
    Volume,
    Claim,
    Budget,
    PodGroup,
    DeviceClass,
    DeviceSlice,
    DeviceClaim,
    Service,
    ReplicaSet,
    StatefulSet,
    ReplicationController,
    Node,
    Pod,
}

/// What the server has of what not every Kubernetes API has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered {
    pub(crate) groups: bool,
    pub(crate) devices: bool,
}

/// Copies of what claims of devices are decided by.
#[derive(Debug, Clone)]
pub(crate) struct DeviceCopies {
    pub(crate) claims: Informer<ResourceClaim>,
    classes: Informer<DeviceClass>,
    slices: Informer<ResourceSlice>,
}

/// Local copies of all that matters.
#[derive(Debug, Clone)]
pub(crate) struct Informers {
    pub(crate) pods: Informer<Pod>,
    pub(crate) nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    pub(crate) volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    drivers: Informer<CSINode>,
    csi_drivers: Informer<CSIDriver>,
    capacities: Informer<CSIStorageCapacity>,
    budgets: Informer<PodDisruptionBudget>,
    /// If the server has them.
    pub(crate) groups: Option<Informer<PodGroup>>,
    /// If the server has them.
    pub(crate) devices: Option<DeviceCopies>,
    services: Informer<Service>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
    /// What nodes use, if that matters.
    pub(crate) measurements: Measurements,
    pub(crate) dirty: Arc<Dirty<(Source, ObjectKey)>>,
    /// Ticks whenever a claim changes.
    pub(crate) claims_changed: watch::Receiver<u64>,
    /// Ticks whenever a claim of devices changes.
    pub(crate) device_claims_changed: watch::Receiver<u64>,
}

impl Informers {
    pub(crate) fn start(
        client: &Client,
        offered: Offered,
        changed: &Arc<Notify>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let dirty = Arc::new(Dirty::new(changed.clone()));
        let all = client.all();
        macro_rules! follow {
            ($kind:ty, $source:expr) => {
                follow!($kind, $source, |_| ())
            };
            ($kind:ty, $source:expr, $trim:expr) => {
                noting(
                    Informer::builder(all.collection::<$kind>())
                        .trim($trim)
                        .pack_beyond(N_PLAIN)
                        .start(tasks, shutdown.clone()),
                    $source,
                    &dirty,
                )
            };
        }
        let pods = Informer::builder(all.collection::<Pod>())
            .field_selector("status.phase!=Succeeded,status.phase!=Failed")
            .trim(trim)
            .pack_beyond(N_PLAIN_PODS)
            .start(tasks, shutdown.clone());
        let system = client.system();
        let nodes = Informer::builder(system.api::<Node>())
            .trim(trim_node)
            .pack_beyond(N_PLAIN)
            .start(tasks, shutdown.clone());
        let drivers = Informer::builder(system.api::<CSINode>())
            .pack_beyond(N_PLAIN)
            .start(tasks, shutdown.clone());
        let claims: Informer<PersistentVolumeClaim> = follow!(PersistentVolumeClaim, Source::Claim);
        let (ticks, claims_changed) = watch::channel(0_u64);
        claims.on_change(move |_| ticks.send_modify(|n| *n += 1));
        let (ticks, device_claims_changed) = watch::channel(0_u64);
        let devices = offered.devices.then(|| {
            let slices = Informer::builder(system.api::<ResourceSlice>());
            let slices = slices.start(tasks, shutdown.clone());
            let claims = follow!(ResourceClaim, Source::DeviceClaim);
            claims.on_change(move |_| ticks.send_modify(|n| *n += 1));
            DeviceCopies {
                claims,
                classes: follow!(DeviceClass, Source::DeviceClass),
                slices: noting(slices, Source::DeviceSlice, &dirty),
            }
        });
        Self {
            pods: noting(pods, Source::Pod, &dirty),
            nodes: noting(nodes, Source::Node, &dirty),
            drivers: noting(drivers, Source::Drivers, &dirty),
            namespaces: follow!(Namespace, Source::Namespace),
            csi_drivers: follow!(CSIDriver, Source::Driver),
            capacities: follow!(CSIStorageCapacity, Source::Capacity),
            volumes: follow!(PersistentVolume, Source::Volume),
            classes: follow!(StorageClass, Source::Class),
            budgets: follow!(PodDisruptionBudget, Source::Budget),
            groups: offered.groups.then(|| follow!(PodGroup, Source::PodGroup)),
            // Of these only selectors matter.
            services: follow!(Service, Source::Service, |it: &mut Service| {
                let selector = it.spec.take().and_then(|it| it.selector);
                it.spec = Some(ServiceSpec { selector, ..ServiceSpec::default() });
                it.status = None;
            }),
            replica_sets: follow!(ReplicaSet, Source::ReplicaSet, |it: &mut ReplicaSet| {
                let selector = it.spec.take().map(|it| it.selector).unwrap_or_default();
                it.spec = Some(ReplicaSetSpec { selector, ..ReplicaSetSpec::default() });
                it.status = None;
            }),
            stateful_sets: follow!(StatefulSet, Source::StatefulSet, |it: &mut StatefulSet| {
                let selector = it.spec.take().map(|it| it.selector).unwrap_or_default();
                it.spec = Some(StatefulSetSpec { selector, ..StatefulSetSpec::default() });
                it.status = None;
            }),
            replication_controllers: follow!(
                ReplicationController,
                Source::ReplicationController,
                |it: &mut ReplicationController| {
                    let selector = it.spec.take().and_then(|it| it.selector);
                    let default = ReplicationControllerSpec::default();
                    it.spec = Some(ReplicationControllerSpec { selector, ..default });
                    it.status = None;
                }
            ),
            claims,
            measurements: Measurements::default(),
            dirty,
            claims_changed,
            devices,
            device_claims_changed,
        }
    }

    /// Waits until all copies are complete. Returns `false` if they will not be.
    pub(crate) async fn synced(&self) -> bool {
        let (a, b, c, d, e, f) = futures::join!(
            self.nodes.synced(),
            self.pods.synced(),
            self.namespaces.synced(),
            self.claims.synced(),
            self.volumes.synced(),
            self.classes.synced(),
        );
        let (g, h, i, j, k, l) = futures::join!(
            self.drivers.synced(),
            self.budgets.synced(),
            self.services.synced(),
            self.replica_sets.synced(),
            self.stateful_sets.synced(),
            self.replication_controllers.synced(),
        );
        let (m, n) = futures::join!(self.csi_drivers.synced(), self.capacities.synced());
        let groups = match &self.groups {
            Some(groups) => groups.synced().await,
            None => true,
        };
        let devices = match &self.devices {
            Some(it) => {
                let (a, b, c) =
                    futures::join!(it.claims.synced(), it.classes.synced(), it.slices.synced());
                a && b && c
            }
            None => true,
        };
        a && b && c && d && e && f && g && h && i && j && k && l && m && n && groups && devices
    }

    /// Waits until they show all that was written before the call, as far as it decides about room
    /// on nodes; `false` if they never will.
    pub(crate) async fn caught_up(&self) -> bool {
        let (a, b, c, d) = futures::join!(
            self.pods.caught_up(),
            self.nodes.caught_up(),
            self.claims.caught_up(),
            self.volumes.caught_up(),
        );
        let devices = match &self.devices {
            Some(it) => {
                let (a, b) = futures::join!(it.claims.caught_up(), it.slices.caught_up());
                a && b
            }
            None => true,
        };
        a && b && c && d && devices
    }

    /// Has all nodes and pods looked at again.
    pub(crate) fn look_at_all(&self) {
        for node in self.nodes.list() {
            self.dirty.add((Source::Node, node.key()));
        }
        for pod in self.pods.list() {
            self.dirty.add((Source::Pod, pod.key()));
        }
    }

    /// Shows a change in the world, of whatever is neither a node nor a pod. Returns what those
    /// who wait may hope for.
    pub(crate) fn show(&self, world: &mut World, source: Source, key: &ObjectKey) -> Option<Event> {
        // What is the platform's is every tenant's.
        let whose = || (key.tenant != TenantName::system()).then(|| key.tenant.clone());
        let selection = || Some(Event::Selection { tenant: key.tenant.clone() });
        match source {
            Source::Node | Source::Pod => None,
            Source::Namespace => {
                let namespace = self.namespaces.get(key);
                let labels = namespace.map(|it| it.metadata.labels.clone().unwrap_or_default());
                world.set_namespace(&key.tenant, &key.name, labels);
                selection()
            }
            Source::Class => {
                let class = self.classes.get(key);
                let changed = world.storage.put_class(key, class.as_deref());
                changed.then(|| Event::Storage { tenant: whose() })
            }
            Source::Drivers => {
                let drivers = self.drivers.get(key);
                let changed =
                    world.storage.put_limits(&key.name, drivers.as_deref().map(|it| &it.object));
                changed.then_some(Event::Storage { tenant: None })
            }
            Source::Driver => {
                let driver = self.csi_drivers.get(key);
                let changed = world.storage.put_driver(key, driver.as_deref().map(|it| &it.object));
                changed.then(|| Event::Storage { tenant: whose() })
            }
            Source::Capacity => {
                let capacity = self.capacities.get(key);
                let changed =
                    world.storage.put_capacity(key, capacity.as_deref().map(|it| &it.object));
                changed.then(|| Event::Storage { tenant: whose() })
            }
            Source::Volume => {
                let changed = world.storage.put_volume(key, self.volumes.get(key).as_deref());
                changed.then(|| Event::Storage { tenant: Some(key.tenant.clone()) })
            }
            Source::Claim => {
                let changed = world.storage.put_claim(key, self.claims.get(key).as_deref());
                changed.then(|| Event::Storage { tenant: Some(key.tenant.clone()) })
            }
            Source::Budget => {
                world.budgets.put(key, self.budgets.get(key).as_deref());
                None
            }
            Source::PodGroup => {
                let group = self.groups.as_ref().and_then(|it| it.get(key));
                world.gangs.set_policy(key, group.map(|it| Policy::of(&it)));
                None
            }
            Source::DeviceClass => {
                let class = self.devices.as_ref().and_then(|it| it.classes.get(key));
                let changed = world.devices.put_class(key, class);
                changed.then_some(Event::Devices { claim: None })
            }
            Source::DeviceSlice => {
                let slice = self.devices.as_ref().and_then(|it| it.slices.get(key));
                world.devices.put_slice(&key.name, slice.as_deref().map(|it| &it.object));
                Some(Event::Devices { claim: None })
            }
            Source::DeviceClaim => {
                let claim = self.devices.as_ref().and_then(|it| it.claims.get(key));
                match world.devices.put_claim(key, claim) {
                    ClaimChange::Nothing => None,
                    ClaimChange::Changed => Some(Event::Devices { claim: Some(key.clone()) }),
                    ClaimChange::Freed => Some(Event::Devices { claim: None }),
                }
            }
            Source::Service => {
                let service = self.services.get(key);
                let selector = service.and_then(|it| it.spec.as_ref()?.selector.clone());
                world.workloads.set_service(key, selector);
                None
            }
            Source::ReplicaSet => {
                let it = self.replica_sets.get(key);
                let selector = it.and_then(|it| compile(&it.spec.as_ref()?.selector));
                world.workloads.set_controller("ReplicaSet", key, selector);
                None
            }
            Source::StatefulSet => {
                let it = self.stateful_sets.get(key);
                let selector = it.and_then(|it| compile(&it.spec.as_ref()?.selector));
                world.workloads.set_controller("StatefulSet", key, selector);
                None
            }
            Source::ReplicationController => {
                let it = self.replication_controllers.get(key);
                let labels: Option<BTreeMap<String, String>> =
                    it.and_then(|it| it.spec.as_ref()?.selector.clone());
                let selector = labels.and_then(|labels| {
                    compile(&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector {
                        match_labels: Some(labels),
                        match_expressions: None,
                    })
                });
                world.workloads.set_controller("ReplicationController", key, selector);
                None
            }
        }
    }
}

fn noting<K: Kind>(
    informer: Informer<K>,
    source: Source,
    dirty: &Arc<Dirty<(Source, ObjectKey)>>,
) -> Informer<K> {
    let dirty = dirty.clone();
    informer.on_change(move |change| dirty.add((source, change.key.clone())));
    informer
}
