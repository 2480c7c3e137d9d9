//! The local copies that controllers share: one watch per resource over all tenants that this
//! replica cares for.
//!
//! What is the fleet's every replica has whole. Of tenants' objects it has those of the tenants it
//! owns, and of the kinds that the platform shows to all tenants also the platform's.

mod found;
mod selected;
mod trim;

use std::{cell::RefCell, collections::HashMap, fmt, sync::Arc};

use futures::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use insula_api::{names::TenantName, slots::Slots};
use insula_client::{
    Client, IndexId, Informer, InformerBuilder, Kind, Object, ObjectKey, ResourceRef, Tenant,
    Tenanted,
};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::{CronJob, Job},
    certificates::v1::CertificateSigningRequest,
    coordination::v1::Lease,
    core::v1::{
        ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
        ReplicationController, ResourceQuota, Secret, Service, ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
    policy::v1::PodDisruptionBudget,
    resource::v1::{ResourceClaim, ResourceClaimTemplate, ResourceSlice},
    storage::v1::{CSIDriver, StorageClass, VolumeAttachment, VolumeAttributesClass},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    found::of_class,
    trim::{trim_lease, trim_node, trim_pod, trim_slice},
};
pub(crate) use self::{
    found::pool_of,
    selected::{Owned, Selectors},
};
use crate::{
    attachments::disk::Disk,
    bootstrap_tokens::PUBLISHED,
    daemonset::placement,
    objects::{annotation, claims_of, is_pod_finished, node_of},
    resource_claims::{Called, asked_by, called},
    services::SERVICE_NAME,
    volume_binder::{BIND_COMPLETED, matching::class_of_volume},
};

/// The name of the account that every namespace has.
pub(crate) const DEFAULT_ACCOUNT: &str = "default";
/// The name of the ConfigMap with the certificate authority that every namespace has.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
/// No tenant has this name.
const ANY_TENANT: &str = "*";
/// The namespace of tenant `system` with the leases of nodes.
pub(crate) const NODE_LEASES: &str = "kube-node-lease";

/// How many objects of a resource lie ready to be looked at; the others lie packed. A replica works
/// on few at a time, and of most tenants' it is never asked. Whole sets of pods are looked at;
/// others are larger, some 15 KB if they have a template.
const N_PLAIN_PODS: usize = 256;
const N_PLAIN: usize = 64;

/// Those, and the slot of what the platform shows to all tenants.
pub(crate) fn with_platform(slots: &Slots) -> Slots {
    slots.clone().with_tenant(TenantName::system().as_str())
}

/// All shared local copies.
#[derive(Debug, Clone)]
pub(crate) struct Informers {
    pub(crate) tenants: Informer<Tenant>,
    pub(crate) namespaces: Informer<Namespace>,
    pub(crate) accounts: Informer<ServiceAccount>,
    /// Only those that ask for a token, without it.
    pub(crate) token_secrets: Informer<Secret>,
    /// Only bootstrap tokens, without what is secret of them.
    pub(crate) bootstrap_tokens: Informer<Secret>,
    /// Only those named [`PUBLISHED`].
    pub(crate) cluster_infos: Informer<ConfigMap>,
    /// Only those named [`ROOT_CA`].
    pub(crate) root_cas: Informer<ConfigMap>,
    /// Without most of what is in a pod; see [`trim`].
    pub(crate) pods: Owned<Pod>,
    pods_by_node: IndexId,
    pods_by_claim: IndexId,
    pods_by_device_claim: IndexId,
    pods_by_device_template: IndexId,
    claimants_by_node: IndexId,
    deleting_pods: IndexId,
    ended_pods: IndexId,
    pub(crate) replica_sets: Owned<ReplicaSet>,
    pub(crate) replication_controllers: Owned<ReplicationController>,
    pub(crate) stateful_sets: Informer<StatefulSet>,
    pub(crate) daemon_sets: Informer<DaemonSet>,
    sets_by_placement: IndexId,
    pub(crate) revisions: Owned<ControllerRevision>,
    pub(crate) jobs: Owned<Job>,
    pub(crate) cron_jobs: Informer<CronJob>,
    pub(crate) services: Informer<Service>,
    pub(crate) slices: Informer<EndpointSlice>,
    slices_by_service: IndexId,
    pub(crate) endpoints: Informer<Endpoints>,
    /// The fleet's.
    pub(crate) nodes: Informer<Node>,
    /// Those of [`NODE_LEASES`] show which nodes live. When they were renewed, and nothing else.
    pub(crate) leases: Informer<Lease>,
    pub(crate) budgets: Informer<PodDisruptionBudget>,
    pub(crate) deployments: Informer<Deployment>,
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    unbound_claims: IndexId,
    pub(crate) volumes: Informer<PersistentVolume>,
    volumes_by_claim: IndexId,
    free_volumes: IndexId,
    pub(crate) storage_classes: Informer<StorageClass>,
    pub(crate) resource_claims: Owned<ResourceClaim>,
    claims_by_pool: IndexId,
    /// The fleet's. Only devices that are tainted, and of them nothing else.
    pub(crate) resource_slices: Informer<ResourceSlice>,
    slices_by_pool: IndexId,
    pub(crate) resource_claim_templates: Informer<ResourceClaimTemplate>,
    pub(crate) volume_classes: Informer<VolumeAttributesClass>,
    pub(crate) autoscalers: Informer<HorizontalPodAutoscaler>,
    pub(crate) quotas: Informer<ResourceQuota>,
    pub(crate) networks: Informer<ServiceCIDR>,
    pub(crate) certificate_requests: Informer<CertificateSigningRequest>,
    pub(crate) drivers: Informer<CSIDriver>,
    /// The fleet's.
    pub(crate) attachments: Informer<VolumeAttachment>,
    attachments_by_node: IndexId,
    attachments_by_source: IndexId,
    /// What of these has selectors.
    pub(crate) selectors: AllSelectors,
    /// Those that are of what is owned.
    of_owned: Arc<[Followed]>,
}

/// What has selectors.
#[derive(Debug, Clone)]
pub(crate) struct AllSelectors {
    pub(crate) replica_sets: Selectors<ReplicaSet>,
    pub(crate) replication_controllers: Selectors<ReplicationController>,
    pub(crate) stateful_sets: Selectors<StatefulSet>,
    pub(crate) daemon_sets: Selectors<DaemonSet>,
    pub(crate) jobs: Selectors<Job>,
    pub(crate) deployments: Selectors<Deployment>,
    pub(crate) services: Selectors<Service>,
    pub(crate) budgets: Selectors<PodDisruptionBudget>,
}

/// A copy of what tenants have.
#[derive(Debug)]
struct Followed {
    copy: Arc<dyn LocalCopy>,
    /// The platform's are shown to all tenants.
    is_shown: bool,
}

impl Informers {
    /// Starts them all, of tenants in these slots.
    pub(crate) fn start(
        client: &Client,
        slots: &Slots,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let mut pods = Informer::builder(client.all().collection::<Pod>()).trim(trim_pod);
        let pods_by_node = pods.index(|pod| node_of(pod).map(str::to_owned).into_iter().collect());
        let claimants_by_node = pods.index(|pod| {
            let node = node_of(pod).filter(|_| claims_of(pod).next().is_some());
            node.map(str::to_owned).into_iter().collect()
        });
        let near = |pod: &Tenanted<Pod>, name: &str| {
            ObjectKey::new(&pod.tenant, pod.namespace(), name).to_string()
        };
        let pods_by_claim =
            pods.index(move |pod| claims_of(pod).map(|claim| near(pod, &claim)).collect());
        let pods_by_device_claim = pods.index(move |pod| {
            let named = asked_by(pod).filter_map(|asked| match called(pod, asked) {
                Called::ByName(name) | Called::Made(name) => Some(near(pod, name)),
                Called::ToBeMade(_) | Called::NotNeeded => None,
            });
            named.collect()
        });
        let pods_by_device_template = pods.index(move |pod| {
            let named = asked_by(pod).filter_map(|asked| match called(pod, asked) {
                Called::ToBeMade(template) => Some(near(pod, template)),
                Called::ByName(_) | Called::Made(_) | Called::NotNeeded => None,
            });
            named.collect()
        });
        let of_tenant = |pod: &Tenanted<Pod>| vec![pod.tenant.to_string()];
        let deleting_pods = pods.index(move |pod| match pod.is_deleting() {
            true => of_tenant(pod),
            false => Vec::new(),
        });
        let ended_pods = pods.index(move |pod| match is_pod_finished(pod) && !pod.is_deleting() {
            true => of_tenant(pod),
            false => Vec::new(),
        });
        let mut claims = Informer::builder(client.all().collection::<PersistentVolumeClaim>());
        let unbound_claims = claims.index(|claim| {
            let is_bound = annotation(&claim.object, BIND_COMPLETED).is_some();
            match is_bound {
                true => Vec::new(),
                false => vec![claim.tenant.to_string(), ANY_TENANT.to_owned()],
            }
        });
        let mut volumes = Informer::builder(client.all().collection::<PersistentVolume>());
        let volumes_by_claim = volumes.index(|volume| {
            let named = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            let key = named.and_then(|it| {
                Some(ObjectKey::new(&volume.tenant, it.namespace.as_deref()?, it.name.as_deref()?))
            });
            key.iter().map(ObjectKey::to_string).collect()
        });
        let free_volumes = volumes.index(|volume| match &volume.spec {
            Some(spec) if spec.claim_ref.is_none() => {
                vec![of_class(&volume.tenant, class_of_volume(&volume.object))]
            }
            _ => Vec::new(),
        });
        let mut daemon_sets = Informer::builder(client.all().collection::<DaemonSet>());
        let sets_by_placement =
            daemon_sets.index(|set| placement(&set.object).into_iter().collect());
        let mut endpoint_slices = Informer::builder(client.all().collection::<EndpointSlice>());
        let slices_by_service = endpoint_slices.index(|slice| {
            let labels = slice.metadata.labels.as_ref();
            let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
            let key = |name| ObjectKey::new(&slice.tenant, slice.namespace(), name).to_string();
            service.map(|name| key(name)).into_iter().collect()
        });
        let mut resource_claims = Informer::builder(client.all().collection::<ResourceClaim>());
        let claims_by_pool = resource_claims.index(|claim| {
            let status = claim.status.as_ref();
            let Some(given) = status.and_then(|it| it.allocation.as_ref()) else {
                return Vec::new();
            };
            let given = given.devices.iter().filter_map(|it| it.results.as_ref()).flatten();
            given.map(|it| pool_of(&it.driver, &it.pool)).collect()
        });
        let mut slices = Informer::builder(client.system().api::<ResourceSlice>()).trim(trim_slice);
        let slices_by_pool = slices.index(|it| vec![pool_of(&it.spec.driver, &it.spec.pool.name)]);
        let mut attachments = Informer::builder(client.system().api::<VolumeAttachment>());
        let attachments_by_node = attachments.index(|it| vec![it.spec.node_name.clone()]);
        let attachments_by_source = attachments.index(|it| Disk::sources(&it.spec.source));
        let starts = Starts { client, slots, tasks, shutdown, of_owned: RefCell::default() };
        let (replica_sets, replica_set_selectors) = Selectors::start_owned(&starts);
        let (replication_controllers, replication_controller_selectors) =
            Selectors::start_owned(&starts);
        let (jobs, job_selectors) = Selectors::start_owned(&starts);
        let selectors = AllSelectors {
            replica_sets: replica_set_selectors,
            replication_controllers: replication_controller_selectors,
            stateful_sets: Selectors::start(starts.builder(), &starts),
            daemon_sets: Selectors::start(daemon_sets, &starts),
            jobs: job_selectors,
            deployments: Selectors::start(starts.builder(), &starts),
            services: Selectors::start(starts.builder(), &starts),
            budgets: Selectors::start(starts.builder(), &starts),
        };
        Self {
            tenants: starts.fleets(Informer::builder(client.system().api::<Tenant>())),
            namespaces: starts.all(),
            accounts: starts.all(),
            token_secrets: starts.of(Informer::builder(client.all().collection::<Secret>())
                .field_selector("type=kubernetes.io/service-account-token")
                .trim(crate::token_secrets::trim)),
            bootstrap_tokens: starts.of(Informer::builder(client.all().collection::<Secret>())
                .field_selector("type=bootstrap.kubernetes.io/token")
                .trim(crate::bootstrap_tokens::trim)),
            cluster_infos: starts.of(Informer::builder(client.all().collection::<ConfigMap>())
                .field_selector(format!("metadata.name={PUBLISHED}"))),
            root_cas: starts.of(Informer::builder(client.all().collection::<ConfigMap>())
                .field_selector(format!("metadata.name={ROOT_CA}"))
                .trim(crate::root_ca::trim)),
            pods: Owned::start_pods(pods, &starts),
            pods_by_node,
            pods_by_claim,
            pods_by_device_claim,
            pods_by_device_template,
            claimants_by_node,
            deleting_pods,
            ended_pods,
            replica_sets,
            replication_controllers,
            stateful_sets: selectors.stateful_sets.informer.clone(),
            daemon_sets: selectors.daemon_sets.informer.clone(),
            sets_by_placement,
            revisions: starts.owned(),
            jobs,
            cron_jobs: starts.all(),
            services: selectors.services.informer.clone(),
            budgets: selectors.budgets.informer.clone(),
            slices: starts.of(endpoint_slices),
            slices_by_service,
            endpoints: starts.all(),
            // Whole sets of them are looked at all the time.
            nodes: Informer::builder(client.system().api::<Node>())
                .trim(trim_node)
                .start(tasks, shutdown.clone()),
            leases: starts
                .of(Informer::builder(client.all().collection::<Lease>()).trim(trim_lease)),
            deployments: selectors.deployments.informer.clone(),
            claims: starts.of(claims),
            unbound_claims,
            volumes: starts.of(volumes),
            volumes_by_claim,
            free_volumes,
            storage_classes: starts.shown(),
            resource_claims: Owned::start(resource_claims, &starts),
            claims_by_pool,
            resource_slices: starts.fleets(slices),
            slices_by_pool,
            resource_claim_templates: starts.all(),
            volume_classes: starts.all(),
            autoscalers: starts.all(),
            quotas: starts.all(),
            networks: starts.all(),
            certificate_requests: starts.all(),
            drivers: starts.shown(),
            attachments: starts.fleets(attachments),
            attachments_by_node,
            attachments_by_source,
            selectors,
            of_owned: starts.of_owned.into_inner().into(),
        }
    }

    /// Those that show all objects of their resource.
    fn whole(&self) -> [&dyn Whole; 31] {
        [
            &self.tenants,
            &self.namespaces,
            &self.accounts,
            &self.pods.informer,
            &self.replica_sets.informer,
            &self.replication_controllers.informer,
            &self.stateful_sets,
            &self.daemon_sets,
            &self.revisions.informer,
            &self.jobs.informer,
            &self.cron_jobs,
            &self.services,
            &self.slices,
            &self.endpoints,
            &self.nodes,
            &self.leases,
            &self.budgets,
            &self.deployments,
            &self.claims,
            &self.volumes,
            &self.storage_classes,
            &self.resource_claims.informer,
            &self.resource_slices,
            &self.resource_claim_templates,
            &self.volume_classes,
            &self.autoscalers,
            &self.quotas,
            &self.networks,
            &self.certificate_requests,
            &self.drivers,
            &self.attachments,
        ]
    }

    /// All of them.
    fn each(&self) -> impl Iterator<Item = &dyn LocalCopy> {
        let parts: [&dyn LocalCopy; 4] =
            [&self.token_secrets, &self.bootstrap_tokens, &self.cluster_infos, &self.root_cas];
        parts.into_iter().chain(self.whole().into_iter().map(|it| it as &dyn LocalCopy))
    }

    /// The copies that show all objects of their resource, for who follows those of all resources.
    pub(crate) fn by_resource(&self) -> HashMap<(String, String), Arc<dyn LocalCopy>> {
        let named = |it: &dyn Whole| {
            let resource = it.resource();
            ((resource.group.to_string(), resource.plural.to_string()), it.shared())
        };
        self.whole().into_iter().map(named).collect()
    }

    /// Waits until they show all that was written before the call; `false` if that will never be.
    pub(crate) async fn caught_up(&self) -> bool {
        let all = join_all(self.each().map(LocalCopy::caught_up)).await;
        all.into_iter().all(|it| it)
    }

    /// Has them be of tenants in these slots.
    pub(crate) fn select(&self, slots: &Slots) {
        let shown = with_platform(slots);
        for Followed { copy, is_shown } in self.of_owned.iter() {
            copy.select(if *is_shown { &shown } else { slots });
        }
    }

    /// How many objects of tenants they have.
    pub(crate) fn n_objects(&self) -> usize {
        self.of_owned.iter().map(|it| it.copy.n_objects()).sum()
    }

    /// Tells every handler once more of the objects of tenants that `which` chooses, and of what
    /// the fleet has for these.
    pub(crate) fn retell(&self, which: &(dyn Fn(&TenantName) -> bool + Sync)) {
        self.each().for_each(|it| it.retell(which));
        // These say themselves whose they are, as no key does.
        let is_meant = |key: &ObjectKey| TenantName::parse(&key.name).is_ok_and(|it| which(&it));
        self.tenants.retell(is_meant);
        self.attachments.retell(|_| true);
    }
}

/// A change, of which only metadata matters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MetaChange<'a> {
    pub(crate) key: &'a ObjectKey,
    pub(crate) old: Option<&'a ObjectMeta>,
    pub(crate) new: Option<&'a ObjectMeta>,
}

/// A local copy, whatever it is of.
pub(crate) trait LocalCopy: fmt::Debug + Send + Sync {
    fn caught_up(&self) -> BoxFuture<'_, bool>;
    fn synced(&self) -> BoxFuture<'_, bool>;
    fn select(&self, slots: &Slots);
    fn n_objects(&self) -> usize;
    /// Tells every handler once more of the objects of these tenants.
    fn retell(&self, which: &(dyn Fn(&TenantName) -> bool + Sync));
    /// Calls `handler` for every object there is, then for every change.
    fn on_change(&self, handler: Box<dyn Fn(&MetaChange<'_>) + Send + Sync>);
    /// Calls `handler` as if every object were gone.
    fn tell_gone(&self, handler: &dyn Fn(&MetaChange<'_>));
}

impl<K: Object> LocalCopy for Informer<K> {
    fn caught_up(&self) -> BoxFuture<'_, bool> {
        self.caught_up().boxed()
    }

    fn synced(&self) -> BoxFuture<'_, bool> {
        self.synced().boxed()
    }

    fn select(&self, slots: &Slots) {
        self.select(slots);
    }

    fn n_objects(&self) -> usize {
        self.len()
    }

    fn retell(&self, which: &(dyn Fn(&TenantName) -> bool + Sync)) {
        self.retell(|key| which(&key.tenant));
    }

    fn on_change(&self, handler: Box<dyn Fn(&MetaChange<'_>) + Send + Sync>) {
        self.on_change(move |change| {
            let [old, new] = [change.old, change.new].map(|it| it.map(|it| it.object.meta()));
            handler(&MetaChange { key: change.key, old, new });
        });
    }

    fn tell_gone(&self, handler: &dyn Fn(&MetaChange<'_>)) {
        for object in self.list() {
            handler(&MetaChange { key: &object.key(), old: Some(object.object.meta()), new: None });
        }
    }
}

/// A local copy of all objects of a resource.
trait Whole: LocalCopy {
    fn resource(&self) -> ResourceRef;
    fn shared(&self) -> Arc<dyn LocalCopy>;
}

impl<K: Kind> Whole for Informer<K> {
    fn resource(&self) -> ResourceRef {
        K::resource()
    }

    fn shared(&self) -> Arc<dyn LocalCopy> {
        Arc::new(self.clone())
    }
}

/// Starts copies of resources.
struct Starts<'a> {
    client: &'a Client,
    slots: &'a Slots,
    tasks: &'a TaskTracker,
    shutdown: &'a CancellationToken,
    of_owned: RefCell<Vec<Followed>>,
}

impl Starts<'_> {
    fn builder<K: Kind>(&self) -> InformerBuilder<K> {
        Informer::builder(self.client.all().collection::<K>())
    }

    fn all<K: Kind>(&self) -> Informer<K> {
        self.of(self.builder())
    }

    fn of<K: Object>(&self, builder: InformerBuilder<K>) -> Informer<K> {
        self.with(builder, N_PLAIN)
    }

    fn with<K: Object>(&self, builder: InformerBuilder<K>, n_plain: usize) -> Informer<K> {
        self.owned_tenants(builder.slots(self.slots.clone()).pack_beyond(n_plain), false)
    }

    /// Of what the platform shows to all tenants.
    fn shown<K: Kind>(&self) -> Informer<K> {
        let builder = Informer::builder(self.client.all().collection::<K>());
        self.owned_tenants(builder.slots(with_platform(self.slots)).pack_beyond(N_PLAIN), true)
    }

    fn owned_tenants<K: Object>(&self, builder: InformerBuilder<K>, is_shown: bool) -> Informer<K> {
        let informer = builder.start(self.tasks, self.shutdown.clone());
        let copy = Arc::new(informer.clone());
        self.of_owned.borrow_mut().push(Followed { copy, is_shown });
        informer
    }

    /// Of what is the fleet's.
    fn fleets<K: Object>(&self, builder: InformerBuilder<K>) -> Informer<K> {
        builder.pack_beyond(N_PLAIN).start(self.tasks, self.shutdown.clone())
    }

    fn owned<K: Kind>(&self) -> Owned<K> {
        Owned::start(self.builder(), self)
    }
}
