//! Deletes objects whose owners are gone.
//!
//! Watches the metadata of all objects of all resources that can be deleted, keeps the graph of
//! who owns whom, and looks at those objects that a change may have left without owner. Before
//! anything is deleted both it and the owners it names are read from the server: the graph only
//! says where to look.
//!
//! Three ways to go: in the *background* an owner goes first and those it owns after it; in the
//! *foreground* they go first and it waits with a finalizer; *orphaned*, they stay and only the
//! references to it go.

mod absent;
mod graph;
mod verdict;

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use self::{
    absent::Absent,
    graph::{FOREGROUND, Graph, Node, ORPHAN, OwnerState},
    verdict::{Verdict, judge},
};
use crate::{
    controller::{Controller, Next, ReconcileError},
    everything::Everything,
    informers::MetaChange,
    queue::{Key, Queue},
};
use insula_api::names::TenantName;
use insula_client::{
    Api, Client, DeleteOptions, EventRecorder, EventType, PartialObject, Patch, Propagation,
    ResourceRef, Tenanted,
};
use k8s_openapi::{
    api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use parking_lot::Mutex;
use serde_json::json;

/// How long the first look waits for resources that do not answer.
const SYNC_LIMIT: Duration = Duration::from_secs(60);

/// An object that is worth a look.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Suspect {
    tenant: TenantName,
    uid: Arc<str>,
}

impl fmt::Display for Suspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.uid)
    }
}

impl Key for Suspect {
    fn tenant(&self) -> &TenantName {
        &self.tenant
    }
}

/// Collects what nobody owns any more.
#[derive(Debug)]
pub(crate) struct GarbageCollector {
    client: Client,
    graph: Mutex<Graph>,
    everything: Everything,
    events: EventRecorder,
    queue: OnceLock<Queue<Suspect>>,
    absent: Mutex<Absent>,
}

impl GarbageCollector {
    pub(crate) fn new(client: Client, everything: Everything, events: &EventRecorder) -> Self {
        let events = events.named("garbage-collector-controller");
        let (graph, absent) = (Mutex::default(), Mutex::default());
        Self { client, graph, everything, events, queue: OnceLock::new(), absent }
    }

    fn changed(&self, resource: &Arc<ResourceRef>, change: &MetaChange<'_>) {
        let Some(queue) = self.queue.get() else { return };
        // Most changes are of what the graph does not know.
        if let (Some(old), Some(new)) = (change.old, change.new)
            && Node::is_same(old, new)
        {
            return;
        }
        let mut graph = self.graph.lock();
        let mut look = Vec::new();
        if let Some(old) = change.old
            && change.new.is_none_or(|new| new.uid != old.uid)
        {
            look.extend(graph.remove(old.uid.as_deref().unwrap_or_default()));
        }
        if let Some(new) = change.new {
            let node = Node::new(resource, change.key, new);
            let uid = node.uid.clone();
            look.extend(graph.put(node));
            // Told once more: what another replica did not come to may be left to do.
            if change.old.is_none() && graph.get(&uid).is_some_and(|it| graph.is_due(it)) {
                look.push(uid);
            }
        }
        for uid in look {
            if let Some(node) = graph.get(&uid) {
                queue.add(Suspect { tenant: node.key.tenant.clone(), uid });
            }
        }
    }

    fn api(
        &self,
        resource: &ResourceRef,
        tenant: &TenantName,
        namespace: &str,
    ) -> Api<PartialObject> {
        let namespace = resource.namespaced.then_some(namespace);
        self.client.tenant(tenant).resource(resource.clone(), namespace)
    }

    async fn api_of(&self, node: &Node) -> Result<Api<PartialObject>, ReconcileError> {
        let tenant = &node.key.tenant;
        match self.everything.resolve(&node.resource, tenant).await? {
            Some(resource) => Ok(self.api(&resource, tenant, &node.key.namespace)),
            None => Err(ReconcileError::Incomplete(format!(
                "nothing serves {} to tenant {tenant}",
                node.resource
            ))),
        }
    }

    /// The object as it is on the server, if it is still the same.
    async fn live(&self, node: &Node) -> Result<Option<Tenanted<PartialObject>>, ReconcileError> {
        let live = self.api_of(node).await?.get_opt(&node.key.name).await?;
        Ok(live.filter(|it| it.uid() == &*node.uid))
    }

    /// An object that waits for those it owns: lets it go, or sees to them.
    async fn end_in_foreground(&self, node: &Node) -> Result<(), ReconcileError> {
        let mut is_blocked = false;
        {
            let graph = self.graph.lock();
            for dependent in graph.dependents(&node.uid).filter(|it| it.blocks(&node.uid)) {
                is_blocked = true;
                if !dependent.waits_for_dependents
                    && let Some(queue) = self.queue.get()
                {
                    queue.add(Suspect {
                        tenant: dependent.key.tenant.clone(),
                        uid: dependent.uid.clone(),
                    });
                }
            }
        }
        if !is_blocked {
            self.remove_finalizer(node, FOREGROUND).await?;
        }
        Ok(())
    }

    /// An object whose dependents are to stay: makes them forget it, then lets it go.
    async fn orphan_dependents(&self, node: &Node) -> Result<(), ReconcileError> {
        let dependents: Vec<Node> = self.graph.lock().dependents(&node.uid).cloned().collect();
        for dependent in &dependents {
            if let Some(live) = self.live(dependent).await? {
                self.drop_owners(dependent, &live, &[node.uid.to_string()]).await?;
            }
        }
        self.remove_finalizer(node, ORPHAN).await?;
        Ok(())
    }

    async fn drop_owners(
        &self,
        node: &Node,
        live: &Tenanted<PartialObject>,
        uids: &[String],
    ) -> Result<(), ReconcileError> {
        let owners = live.metadata.owner_references.as_deref().unwrap_or_default();
        let kept: Vec<_> = owners.iter().filter(|it| !uids.contains(&it.uid)).collect();
        if kept.len() == owners.len() {
            return Ok(());
        }
        let kept = (!kept.is_empty()).then_some(kept);
        self.patch_metadata(node, live, "ownerReferences", json!(kept)).await
    }

    /// Has no owner wait for the object any longer.
    async fn unblock_owners(
        &self,
        node: &Node,
        live: &Tenanted<PartialObject>,
    ) -> Result<(), ReconcileError> {
        let mut owners = live.metadata.owner_references.clone().unwrap_or_default();
        owners.iter_mut().for_each(|it| it.block_owner_deletion = Some(false));
        self.patch_metadata(node, live, "ownerReferences", json!(owners)).await
    }

    async fn remove_finalizer(&self, node: &Node, name: &str) -> Result<(), ReconcileError> {
        let Some(live) = self.live(node).await? else { return Ok(()) };
        let finalizers = live.metadata.finalizers.as_deref().unwrap_or_default();
        let kept: Vec<_> = finalizers.iter().filter(|it| *it != name).collect();
        if kept.len() == finalizers.len() {
            return Ok(());
        }
        let kept = (!kept.is_empty()).then_some(kept);
        self.patch_metadata(node, &live, "finalizers", json!(kept)).await
    }

    async fn patch_metadata(
        &self,
        node: &Node,
        live: &Tenanted<PartialObject>,
        field: &str,
        value: serde_json::Value,
    ) -> Result<(), ReconcileError> {
        let patch = json!({
            "metadata": {
                "uid": live.uid(),
                "resourceVersion": live.resource_version(),
                field: value,
            },
        });
        match self.api_of(node).await?.patch(&node.key.name, &Patch::Merge(patch)).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// Tells that `node` names an owner that is not where it could own it, or nowhere.
    fn misplaced(&self, node: &Node, owner: &OwnerReference) {
        let (resource, key) = (&node.resource, &node.key);
        let about = ObjectReference {
            api_version: Some(resource.api_version()),
            kind: Some(resource.kind.to_string()),
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()).filter(|it| !it.is_empty()),
            uid: Some(node.uid.to_string()),
            ..ObjectReference::default()
        };
        let OwnerReference { api_version, kind, name, uid, .. } = owner;
        let namespace = &key.namespace;
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}] \
             does not exist in namespace {namespace:?}"
        );
        let reason = "OwnerRefInvalidNamespace";
        self.events.record_about(&key.tenant, about, EventType::Warning, reason, message);
    }

    /// Looks an owner up: in the graph, else on the server.
    async fn owner_state(
        &self,
        node: &Node,
        owner: &OwnerReference,
    ) -> Result<OwnerState, ReconcileError> {
        let dependent = &node.key;
        let (known, is_elsewhere, was_there) = {
            let graph = self.graph.lock();
            let known = graph.owner_state(dependent, &owner.uid);
            (known, graph.is_elsewhere(dependent, &owner.uid), graph.was_there(&owner.uid))
        };
        if known != OwnerState::Unknown {
            return Ok(known);
        }
        let is_absent = self.absent.lock().has(dependent, owner);
        let state = match is_absent {
            true => OwnerState::Unknown,
            false => self.live_state(node, owner).await?,
        };
        if state == OwnerState::Unknown && (is_elsewhere || !was_there) {
            self.misplaced(node, owner);
        }
        Ok(state)
    }

    /// Looks an owner up on the server.
    async fn live_state(
        &self,
        node: &Node,
        owner: &OwnerReference,
    ) -> Result<OwnerState, ReconcileError> {
        let dependent = &node.key;
        let (group, _) = owner.api_version.split_once('/').unwrap_or_default();
        let found = self.everything.of_kind(&dependent.tenant, group, &owner.kind).await?;
        let Some(resource) = found else {
            // The kind may come back, and with it the owner.
            return Err(ReconcileError::Incomplete(format!(
                "nothing serves kind {} of {}, owner of {dependent}",
                owner.kind, owner.api_version
            )));
        };
        if resource.namespaced && dependent.namespace.is_empty() {
            // It cannot be looked for, so nobody knows that it is gone.
            self.misplaced(node, owner);
            return Ok(OwnerState::Solid);
        }
        let api = self.api(&resource, &dependent.tenant, &dependent.namespace);
        let found = api.get_opt(&owner.name).await?;
        Ok(match found.filter(|it| it.uid() == owner.uid) {
            None => {
                self.absent.lock().add(dependent, owner);
                OwnerState::Unknown
            }
            Some(live)
                if Node::new(&Arc::new(resource), &live.key(), &live.metadata)
                    .waits_for_dependents =>
            {
                OwnerState::Waiting
            }
            Some(_) => OwnerState::Solid,
        })
    }

    async fn judge_by_owners(&self, node: &Node) -> Result<(), ReconcileError> {
        let Some(mut live) = self.live(node).await? else { return Ok(()) };
        if live.is_deleting() {
            return Ok(());
        }
        let mut owners = Vec::new();
        for owner in live.metadata.owner_references.iter().flatten() {
            owners.push((owner.uid.clone(), self.owner_state(node, owner).await?));
        }
        let (has_dependents, is_circle) = {
            let graph = self.graph.lock();
            let mut dependents = graph.dependents(&node.uid).peekable();
            (dependents.peek().is_some(), dependents.any(|it| it.waits_for_dependents))
        };
        match judge(&owners, has_dependents, own_propagation(&live)) {
            Verdict::Keep => Ok(()),
            Verdict::Drop { owners } => self.drop_owners(node, &live, &owners).await,
            Verdict::Delete { propagation } => {
                if is_circle && propagation == Propagation::Foreground {
                    // What it would wait for waits, round about, for it.
                    self.unblock_owners(node, &live).await?;
                    let Some(newer) = self.live(node).await? else { return Ok(()) };
                    live = newer;
                }
                let options = DeleteOptions::default()
                    .only_uid(live.uid())
                    .only_version(live.resource_version())
                    .propagation(propagation);
                match self.api_of(node).await?.delete(live.name(), &options).await {
                    Err(error) if error.is_not_found() => Ok(()),
                    Err(error) => Err(error.into()),
                    Ok(_) => {
                        tracing::debug!(
                            resource = %node.resource, key = %node.key, ?propagation, "collected"
                        );
                        Ok(())
                    }
                }
            }
        }
    }
}

/// How an object says, by its finalizers, that those it owns are to be treated.
fn own_propagation(object: &Tenanted<PartialObject>) -> Option<Propagation> {
    let has = |name: &str| object.metadata.finalizers.iter().flatten().any(|it| it == name);
    if has(ORPHAN) {
        Some(Propagation::Orphan)
    } else if has(FOREGROUND) {
        Some(Propagation::Foreground)
    } else {
        None
    }
}

impl Controller for GarbageCollector {
    const NAME: &'static str = "generic-garbage-collector";
    const WORKERS: usize = 20;
    type Key = Suspect;

    fn watch(self: &Arc<Self>, queue: &Queue<Suspect>) {
        if self.queue.set(queue.clone()).is_err() {
            tracing::error!("the garbage collector is watched twice");
            return;
        }
        // Weak, so that the handlers, which the collector holds, do not hold it in turn.
        let it = Arc::downgrade(self);
        self.everything.on_change(move |resource, change| {
            if let Some(it) = it.upgrade() {
                it.changed(resource, change);
            }
        });
    }

    async fn synced(&self) -> bool {
        if tokio::time::timeout(SYNC_LIMIT, self.everything.synced()).await.is_err() {
            tracing::warn!("some resources do not answer; collecting without them");
        }
        tracing::debug!(n_objects = self.graph.lock().len(), "ownership graph built");
        true
    }

    async fn reconcile(&self, key: &Suspect) -> Result<Next, ReconcileError> {
        let (node, is_questionable) = {
            let graph = self.graph.lock();
            let Some(node) = graph.get(&key.uid) else { return Ok(Next::WhenChanged) };
            (node.clone(), graph.is_questionable(node))
        };
        if node.orphans_dependents {
            self.orphan_dependents(&node).await?;
        } else if node.waits_for_dependents {
            self.end_in_foreground(&node).await?;
        } else if is_questionable && !node.is_deleting {
            self.judge_by_owners(&node).await?;
        }
        Ok(Next::WhenChanged)
    }
}
