//! Attaches the volumes of pods to the nodes that the pods are on, and takes them off again.
//!
//! What is attached is an object, a VolumeAttachment, which the driver's attacher acts upon. It is
//! the fleet's; of a tenant's volume it carries what is attached, as no name of a tenant's means
//! anything there. Only handles that the platform vouches for are attached (decision 55).
//!
//! A key is a node as one tenant's pods are on it. So one replica decides on all of a tenant's
//! volumes, and one for one node only is never given to two; and it need know of no other tenant's
//! pods. Whose an attachment is it says itself ([`OWNER`]). A node says in one list what is attached
//! to it: each key writes its own part of it, and what is nobody's the platform's key takes out.

pub(crate) mod disk;
mod leaving;
mod memory;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use insula_api::names::TenantName;
use insula_client::{
    Change, Client, DeleteOptions, EventRecorder, EventType, ObjectKey, Patch, Tenanted,
};
use k8s_openapi::{
    api::{
        core::v1::{Node, PersistentVolume, Pod},
        storage::v1::{
            CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec, VolumeError,
        },
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

use self::{
    disk::{Disk, is_exclusive},
    leaving::{Leaving, is_told, leaving},
    memory::Memory,
};
use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{annotation, claims_of, is_node_ready, is_pod_finished, node_of},
    queue::Queue,
    taints::{OUT_OF_SERVICE, taints},
};

/// Says of a node that its agent leaves attaching to a controller.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// Says of an attachment whose volume it is of.
const OWNER: &str = "insula.io/tenant";
/// How soon what cannot be attached yet is looked at again.
const AGAIN: Duration = Duration::from_secs(2);

/// A volume that pods on a node want there.
struct Wanted {
    disk: Disk,
    volume: Arc<Tenanted<PersistentVolume>>,
    pods: Vec<Arc<Tenanted<Pod>>>,
}

/// What the pods of a node want there, by the names of its attachments.
#[derive(Default)]
struct Wishes {
    all: BTreeMap<String, Wanted>,
    /// Something is not known yet.
    is_incomplete: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Attachments {
    client: Client,
    informers: Informers,
    events: EventRecorder,
    memory: Memory,
}

impl Attachments {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let events = events.named("attachdetach-controller");
        Self { client, informers, events, memory: Memory::default() }
    }

    /// The volume that a claim of a pod is bound to, if both say so.
    fn volume(&self, pod: &Tenanted<Pod>, claim: &str) -> Option<Arc<Tenanted<PersistentVolume>>> {
        let key = ObjectKey::new(&pod.tenant, pod.namespace(), claim);
        let claim = self.informers.claims.get(&key)?;
        let name = claim.spec.as_ref()?.volume_name.as_deref()?;
        let volume = self.informers.volumes.get(&ObjectKey::new(&pod.tenant, "", name))?;
        let named = volume.spec.as_ref()?.claim_ref.as_ref()?.uid.as_deref();
        (named == Some(claim.uid())).then_some(volume)
    }

    /// Whether a volume is of a driver whose volumes are attached.
    fn is_attachable(&self, tenant: &TenantName, driver: &str) -> bool {
        let driver = self.informers.driver(tenant, driver);
        driver.and_then(|it| it.spec.attach_required).unwrap_or(true)
    }

    fn wishes(&self, key: &ObjectKey) -> Wishes {
        let (node, mut wishes) = (&*key.name, Wishes::default());
        let pods = self.informers.claimants_on(node);
        for pod in pods.iter().filter(|pod| pod.tenant == key.tenant && !has_ended(pod)) {
            for claim in claims_of(pod) {
                let Some(volume) = self.volume(pod, &claim) else {
                    wishes.is_incomplete = true;
                    continue;
                };
                let Some(disk) = volume.spec.as_ref().and_then(Disk::of) else { continue };
                if !self.is_attachable(&pod.tenant, &disk.driver) {
                    continue;
                }
                if !disk.is_vouched(&volume) {
                    wishes.is_incomplete = true;
                    self.refuse(key, pod, &volume);
                    continue;
                }
                let wanted = wishes.all.entry(disk.attachment(node));
                let wanted = wanted.or_insert_with(|| Wanted { disk, volume, pods: Vec::new() });
                wanted.pods.push(pod.clone());
            }
        }
        wishes
    }

    /// Tells once why a volume is not attached.
    fn refuse(&self, key: &ObjectKey, pod: &Tenanted<Pod>, volume: &Tenanted<PersistentVolume>) {
        if self.memory.is_news(key, pod.uid(), volume.uid()) {
            let why = "the platform does not vouch for its handle: only volumes that the platform \
                       provides are attached";
            self.failed([pod], volume, why);
        }
    }

    fn failed<'a>(
        &self,
        pods: impl IntoIterator<Item = &'a Tenanted<Pod>>,
        volume: &Tenanted<PersistentVolume>,
        why: &str,
    ) {
        let message = format!("AttachVolume.Attach failed for volume {:?} : {why}", volume.name());
        for pod in pods {
            self.events.record(pod, EventType::Warning, "FailedAttachVolume", message.clone());
        }
    }

    /// Another node that has a volume, or is being given it.
    fn elsewhere(&self, node: &str, wanted: &Wanted) -> Option<String> {
        let source = wanted.disk.source(&wanted.volume);
        let attached = self.informers.attachments_from(&source);
        let other = attached.iter().map(|it| it.spec.node_name.as_str()).find(|it| *it != node);
        other.map(str::to_owned)
    }

    /// Tells pods once that another node has their volume.
    fn tell_of_other(&self, key: &ObjectKey, wanted: &Wanted, other: &str) {
        let Wanted { disk, volume, pods } = wanted;
        if !self.memory.is_news(key, &disk.id(), other) {
            return;
        }
        let on_other = self.informers.claimants_on(other);
        let uses = |pod: &&Arc<Tenanted<Pod>>| {
            let has =
                |claim: &str| self.volume(pod, claim).is_some_and(|it| it.uid() == volume.uid());
            pod.tenant == volume.tenant && !has_ended(pod) && claims_of(pod).any(|it| has(&it))
        };
        let users: Vec<_> = on_other.iter().filter(uses).collect();
        for pod in pods {
            let near = users.iter().filter(|it| it.namespace() == pod.namespace());
            let why = multi_attach(near.map(|it| it.name()), users.len());
            let message = format!("Multi-Attach error for volume {:?} {why}", volume.name());
            self.events.record(pod, EventType::Warning, "FailedAttachVolume", message);
        }
    }

    /// Makes an attachment; `false` if that has to wait.
    async fn attach(
        &self,
        key: &ObjectKey,
        name: &str,
        wanted: &Wanted,
    ) -> Result<bool, ReconcileError> {
        let node: &str = &key.name;
        let Some(spec) = &wanted.volume.spec else { return Ok(false) };
        if is_exclusive(spec) {
            // Taken before it is looked whether others have it: of two nodes one gives way.
            if !self.memory.take(&wanted.disk, node) {
                return Ok(false);
            }
            if let Some(other) = self.elsewhere(node, wanted) {
                self.memory.give_back(&wanted.disk);
                self.tell_of_other(key, wanted, &other);
                return Ok(false);
            }
        }
        let mut source = VolumeAttachmentSource::default();
        match wanted.volume.tenant.is_system() {
            true => source.persistent_volume_name = Some(wanted.volume.name().to_owned()),
            false => source.inline_volume_spec = Some(spec.clone()),
        }
        let attachment = VolumeAttachment {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                annotations: Some([(OWNER.to_owned(), key.tenant.to_string())].into()),
                ..ObjectMeta::default()
            },
            spec: VolumeAttachmentSpec {
                attacher: wanted.disk.driver.clone(),
                node_name: node.to_owned(),
                source,
            },
            status: None,
        };
        let api = self.client.system().api::<VolumeAttachment>();
        match api.create(&attachment).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_already_exists() => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// What an attachment is of, where it can be seen.
    fn disk_of(&self, it: &VolumeAttachment) -> Option<Disk> {
        let source = &it.spec.source;
        match (&source.inline_volume_spec, &source.persistent_volume_name) {
            (Some(spec), _) => Disk::of(spec),
            (None, Some(name)) => {
                Disk::of(self.informers.volumes.get(&key_of(name))?.spec.as_ref()?)
            }
            (None, None) => None,
        }
    }

    /// What a tenant's attachments of a node are of, where they are of this controller's making.
    fn held(&self, key: &ObjectKey) -> Vec<(Disk, Arc<Tenanted<VolumeAttachment>>)> {
        let all = self.informers.attachments_of(&key.name).into_iter();
        all.filter(|it| owner(it).as_ref() == Some(&key.tenant))
            .filter_map(|it| Some((self.disk_of(&it)?, it)))
            .filter(|(disk, it)| disk.attachment(&key.name) == it.name())
            .collect()
    }

    /// Writes down whose an attachment is that does not say so, as some did not once.
    async fn adopt(&self, key: &ObjectKey, wishes: &Wishes) -> Result<(), ReconcileError> {
        for name in wishes.all.keys() {
            let found = self.informers.attachments.get(&key_of(name));
            if let Some(it) = found.filter(|it| owner(it).is_none()) {
                let patch = json!({"metadata": {
                    "uid": it.uid(), "annotations": {OWNER: key.tenant.as_str()},
                }});
                let api = self.client.system().api::<VolumeAttachment>();
                api.patch(name, &Patch::Merge(patch)).await?;
            }
        }
        Ok(())
    }

    /// Which of the volumes that a node is said to have nothing attaches to it. The local copy may
    /// be older than the node.
    async fn strays(&self, node: &Tenanted<Node>) -> Result<BTreeSet<String>, ReconcileError> {
        let known = self.informers.attachments_of(node.name());
        let mut strays = BTreeSet::new();
        for id in told(node) {
            let name = Disk::of_id(id).map(|disk| disk.attachment(node.name()));
            let is_there = match &name {
                Some(name) if known.iter().any(|it| it.name() == name) => true,
                Some(name) => {
                    let api = self.client.system().api::<VolumeAttachment>();
                    api.get_opt(name).await?.is_some()
                }
                None => false,
            };
            if !is_there {
                strays.insert(id.to_owned());
            }
        }
        Ok(strays)
    }

    /// Writes which volumes a node has, if it says otherwise: of those that are `decided` these,
    /// and of the others what it says.
    async fn tell_node(
        &self,
        node: &Tenanted<Node>,
        attached: BTreeSet<String>,
        decided: &BTreeSet<String>,
    ) -> Result<(), ReconcileError> {
        let told: BTreeSet<_> = told(node).map(str::to_owned).collect();
        let mut wanted = attached;
        wanted.extend(told.difference(decided).cloned());
        if told == wanted {
            return Ok(());
        }
        let list: Vec<_> = wanted.iter().map(|id| json!({"name": id, "devicePath": ""})).collect();
        let patch = json!({
            // What is mounted meanwhile, or attached for others, is to be seen before a volume goes.
            "metadata": {"uid": node.uid(), "resourceVersion": node.resource_version()},
            "status": {"volumesAttached": list},
        });
        let api = self.client.system().api::<Node>();
        api.patch_status(node.name(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Tells pods how it went with their volume; returns whether it is attached.
    fn tell_pods(
        &self,
        key: &ObjectKey,
        node: &Node,
        wanted: &Wanted,
        it: &VolumeAttachment,
    ) -> bool {
        let Wanted { disk, volume, pods } = wanted;
        let pods = || pods.iter().map(|pod| &**pod);
        let status = it.status.as_ref();
        if status.is_some_and(|it| it.attached) {
            if !is_told(node, &disk.id()) {
                let message =
                    format!("AttachVolume.Attach succeeded for volume {:?} ", volume.name());
                for pod in pods() {
                    let reason = "SuccessfulAttachVolume";
                    self.events.record(pod, EventType::Normal, reason, message.clone());
                }
            }
            return true;
        }
        if let Some(VolumeError { message, time, .. }) =
            status.and_then(|it| it.attach_error.as_ref())
        {
            let when = time.as_ref().map(|it| it.0.to_string()).unwrap_or_default();
            if self.memory.is_news(key, &disk.id(), &when) {
                self.failed(pods(), volume, message.as_deref().unwrap_or_default());
            }
        }
        false
    }
}

fn key_of(name: &str) -> ObjectKey {
    ObjectKey::new(&TenantName::system(), "", name)
}

/// Whose volume an attachment is of. The platform's volumes are attached by their names.
fn owner(it: &VolumeAttachment) -> Option<TenantName> {
    match annotation(it, OWNER) {
        Some(name) => TenantName::parse(name).ok(),
        None => it.spec.source.persistent_volume_name.is_some().then(TenantName::system),
    }
}

/// Why a volume cannot be attached that others use: a pod is told the names of those in its own
/// namespace.
fn multi_attach<'a>(near: impl Iterator<Item = &'a str>, n_all: usize) -> String {
    let near: Vec<_> = near.collect();
    match (near.len(), n_all - near.len()) {
        (0, 0) => "Volume is already exclusively attached to one node and can't be attached to \
                   another"
            .to_owned(),
        (0, n) => format!("Volume is already used by {n} pod(s) in different namespaces"),
        (_, 0) => format!("Volume is already used by pod(s) {}", near.join(", ")),
        (_, n) => format!(
            "Volume is already used by pod(s) {} and {n} pod(s) in different namespaces",
            near.join(", ")
        ),
    }
}

/// Whether a pod needs its volumes no more.
fn has_ended(pod: &Tenanted<Pod>) -> bool {
    let status = pod.status.as_ref();
    let containers = status.and_then(|it| it.container_statuses.as_ref()).into_iter().flatten();
    let mut states = containers.map(|it| it.state.as_ref());
    is_pod_finished(pod)
        || pod.is_deleting() && states.all(|it| it.is_some_and(|state| state.terminated.is_some()))
}

/// Whether a node's volumes are attached from here.
fn is_managed(node: &Node) -> bool {
    annotation(node, MANAGED) == Some("true")
}

impl Attachments {
    /// Asks for a look at a node for all tenants that have to do with it.
    fn wake(&self, node: &str, queue: &Queue<ObjectKey>) {
        let (pods, attachments) =
            (self.informers.claimants_on(node), self.informers.attachments_of(node));
        let mut tenants: BTreeSet<_> = pods.iter().map(|pod| pod.tenant.clone()).collect();
        tenants.extend(attachments.iter().filter_map(|it| owner(it)));
        tenants.insert(TenantName::system());
        tenants.iter().for_each(|tenant| queue.add(ObjectKey::new(tenant, "", node)));
    }

    fn node_changed(&self, change: &Change<'_, Node>, queue: &Queue<ObjectKey>) {
        fn seen(node: &Arc<Tenanted<Node>>) -> impl PartialEq {
            let status = node.status.as_ref();
            let volumes = status.map(|it| (&it.volumes_attached, &it.volumes_in_use));
            let is_out = taints(node).iter().any(|it| it.key == OUT_OF_SERVICE);
            (volumes, is_node_ready(node), is_out, is_managed(node))
        }
        let is_of_these = [change.old, change.new].into_iter().flatten().any(|it| is_managed(it));
        if is_of_these && change.old.map(seen) != change.new.map(seen) {
            self.wake(&change.key.name, queue);
        }
    }
}

impl Controller for Attachments {
    const NAME: &'static str = "attachdetach-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.pods.informer.on_change(move |change| pod_changed(change, &keys));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.nodes.on_change(move |change| it.node_changed(change, &keys));
        let (this, keys) = (self.clone(), queue.clone());
        self.informers.attachments.on_change(move |change| {
            this.memory.shown(&change.key.name);
            for it in [change.old, change.new].into_iter().flatten() {
                let owner = owner(it).filter(|owner| !owner.is_system());
                for tenant in owner.into_iter().chain([TenantName::system()]) {
                    keys.add(ObjectKey::new(&tenant, "", &it.spec.node_name));
                }
            }
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.drivers.on_change(move |change| {
            fn required(it: Option<&Arc<Tenanted<CSIDriver>>>) -> Option<Option<bool>> {
                it.map(|it| it.spec.attach_required)
            }
            if required(change.old) != required(change.new) {
                let nodes = it.informers.nodes.list();
                let managed = nodes.iter().filter(|node| is_managed(node));
                managed.for_each(|node| it.wake(node.name(), &keys));
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.pods.informer.synced().await
            && self.informers.nodes.synced().await
            && self.informers.claims.synced().await
            && self.informers.volumes.synced().await
            && self.informers.drivers.synced().await
            && self.informers.attachments.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let name: &str = &key.name;
        let node = self.informers.nodes.get(&key_of(name));
        if node.as_ref().is_some_and(|node| !is_managed(node)) {
            return Ok(Next::WhenChanged);
        }
        let wishes = self.wishes(key);
        self.adopt(key, &wishes).await?;
        let Wishes { all: wishes, is_incomplete } = wishes;
        let held = self.held(key);
        let mut again = is_incomplete.then_some(AGAIN);
        let mut attached = BTreeSet::new();
        let mut decided: BTreeSet<_> = held.iter().map(|(disk, _)| disk.id()).collect();
        let mut leave = Vec::new();
        for (disk, it) in &held {
            if let Some(wanted) = wishes.get(it.name()).filter(|_| !it.is_deleting()) {
                self.memory.is_wanted(key, it.uid());
                if node.as_ref().is_some_and(|node| self.tell_pods(key, node, wanted, it)) {
                    attached.insert(disk.id());
                }
                continue;
            }
            if it.is_deleting() {
                continue;
            }
            let unwanted_for = self.memory.unwanted_for(key, it.uid());
            match leaving(node.as_deref().map(|it| &it.object), &disk.id(), unwanted_for) {
                Leaving::Tell => {}
                Leaving::Detach => leave.push(it),
                Leaving::Wait(wait) => {
                    // It is there, whoever wants it.
                    if it.status.as_ref().is_some_and(|it| it.attached) {
                        attached.insert(disk.id());
                    }
                    again = again.into_iter().chain(wait).min();
                }
            }
        }
        if let Some(node) = &node {
            if key.tenant.is_system() {
                decided.extend(self.strays(node).await?);
            }
            self.tell_node(node, attached, &decided).await?;
        }
        let api = self.client.system().api::<VolumeAttachment>();
        for it in leave {
            match api.delete(it.name(), &DeleteOptions::default().only_uid(it.uid())).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        if node.is_some() {
            for (attachment, wanted) in &wishes {
                let is_there = self.informers.attachments.get(&key_of(attachment)).is_some();
                if !is_there && !self.attach(key, attachment, wanted).await? {
                    again = again.into_iter().chain([AGAIN]).min();
                }
            }
        }
        let is_idle = held.is_empty() && wishes.is_empty() && !is_incomplete;
        self.memory.keep(key, is_idle, |uid| held.iter().any(|it| it.1.uid() == uid));
        Ok(again.map_or(Next::WhenChanged, Next::After))
    }
}

/// The volumes that a node says are attached to it.
fn told(node: &Node) -> impl Iterator<Item = &str> {
    let attached = node.status.as_ref().and_then(|it| it.volumes_attached.as_ref());
    attached.into_iter().flatten().map(|it| it.name.as_str())
}

fn pod_changed(change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
    fn seen(pod: &Arc<Tenanted<Pod>>) -> Option<(&str, bool)> {
        let needs = claims_of(pod).next().is_some() && !has_ended(pod);
        node_of(pod).filter(|_| claims_of(pod).next().is_some()).map(|node| (node, needs))
    }
    let (old, new) = (change.old.and_then(seen), change.new.and_then(seen));
    if old != new || change.old.map(|it| it.uid()) != change.new.map(|it| it.uid()) {
        for (node, _) in [old, new].into_iter().flatten() {
            queue.add(ObjectKey::new(&change.key.tenant, "", node));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_namespaces_are_not_told() {
        let says = |near: &[&str], n_all| multi_attach(near.iter().copied(), n_all);
        assert!(says(&[], 0).contains("exclusively attached to one node"));
        assert_eq!(says(&[], 2), "Volume is already used by 2 pod(s) in different namespaces");
        assert_eq!(says(&["a", "b"], 2), "Volume is already used by pod(s) a, b");
        let both = "Volume is already used by pod(s) a and 1 pod(s) in different namespaces";
        assert_eq!(says(&["a"], 2), both);
    }
}
