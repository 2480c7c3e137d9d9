//! Ends namespaces: deletes all that is in them, pods first, and then lets them go.
//!
//! What is left, and why, is shown in the namespace's conditions, as upstream does.

mod conditions;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use insula_client::{
    Api, Client, DeleteOptions, Discovered, Discovery, Error, ListOptions, ObjectKey,
    PartialObject, Propagation, ResourceRef, Tenanted, WriteOptions,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};
use parking_lot::Mutex;

use self::conditions::conditions;
use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    queue::Queue,
    status::write_status,
};

/// The finalizer, in `spec.finalizers`, by which a namespace waits for this controller.
const FINALIZER: &str = "kubernetes";
/// Resources emptied at the same time.
const PARALLEL: usize = 8;
/// When to look again while something is left: soon, since the end of a pod is also told.
const POLL: Duration = Duration::from_secs(2);
/// The same for each object that is left: to go through many is work.
const PAUSE_FOR_EACH: Duration = Duration::from_micros(50);
/// Objects that are looked at, and deleted, at once.
const PAGE: u32 = 500;
/// As what pods are counted.
const PODS: &str = "pods";

/// Whether a namespace lives.
pub(crate) fn is_active(namespace: &Tenanted<Namespace>) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    !namespace.is_deleting() && phase != Some("Terminating")
}

/// The key of the namespace that an object is in.
pub(crate) fn key_of_namespace(key: &ObjectKey) -> ObjectKey {
    ObjectKey { tenant: key.tenant.clone(), namespace: "".into(), name: key.namespace.clone() }
}

/// Ends namespaces.
#[derive(Debug)]
pub(crate) struct Namespaces {
    client: Client,
    informers: Informers,
    /// About how many pods namespaces that end still wait for, so that none is looked through
    /// again for each of them.
    awaited: Mutex<HashMap<ObjectKey, usize>>,
}

/// What is left in a namespace after a pass over it.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// Objects left, by resource.
    pub(crate) remaining: BTreeMap<String, usize>,
    /// Objects left that have a finalizer, by finalizer.
    pub(crate) finalizers: BTreeMap<String, usize>,
    /// Group versions that are announced but could not be discovered.
    pub(crate) undiscovered: Vec<String>,
    /// Deletions that failed.
    pub(crate) failures: Vec<String>,
}

impl Leftovers {
    fn add(&mut self, resource: &ResourceRef, left: Left) {
        if left.n_objects == 0 {
            return;
        }
        *self.remaining.entry(resource.to_string()).or_default() += left.n_objects;
        for (finalizer, n_objects) in left.finalizers {
            *self.finalizers.entry(finalizer).or_default() += n_objects;
        }
    }

    fn n_objects(&self) -> usize {
        self.remaining.values().sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.remaining.is_empty() && self.undiscovered.is_empty() && self.failures.is_empty()
    }
}

/// What is left of one resource. There may be far more objects than can be held at once.
#[derive(Debug, Default)]
struct Left {
    n_objects: usize,
    /// How many have a finalizer, by finalizer.
    finalizers: BTreeMap<String, usize>,
    /// Some were deleted, and may be gone.
    has_deleted: bool,
}

impl Namespaces {
    pub(crate) fn new(client: Client, informers: Informers) -> Self {
        Self { client, informers, awaited: Mutex::default() }
    }

    /// Whether a pod that is gone may have been the last that its namespace waits for.
    fn was_last(&self, namespace: &ObjectKey) -> bool {
        let mut awaited = self.awaited.lock();
        let Some(n_pods) = awaited.get_mut(namespace) else { return true };
        *n_pods = n_pods.saturating_sub(1);
        *n_pods == 0
    }

    async fn empty(
        &self,
        namespace: &Tenanted<Namespace>,
        discovery: &Discovery,
    ) -> Result<Leftovers, ReconcileError> {
        let mut leftovers = Leftovers {
            undiscovered: discovery.failures.keys().cloned().collect(),
            ..Leftovers::default()
        };
        let resources = discovery.resources.iter().cloned();
        let (pods, others): (Vec<_>, Vec<_>) = resources
            .filter(|it| it.resource.namespaced && it.can(&["list", "delete"]))
            .partition(|it| it.resource.group.is_empty() && it.resource.plural == "pods");
        self.empty_resources(namespace, pods, &mut leftovers).await;
        // A pod may need its secrets, volumes and policies until its end.
        if leftovers.remaining.is_empty() && leftovers.failures.is_empty() {
            self.empty_resources(namespace, others, &mut leftovers).await;
        }
        Ok(leftovers)
    }

    async fn empty_resources(
        &self,
        namespace: &Tenanted<Namespace>,
        resources: Vec<Discovered>,
        leftovers: &mut Leftovers,
    ) {
        let results: Vec<_> = stream::iter(resources)
            .map(|it| async move {
                let result = self.empty_resource(namespace, &it).await;
                (it.resource, result)
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        for (resource, result) in results {
            match result {
                Ok(left) => leftovers.add(&resource, left),
                Err(error) => {
                    leftovers
                        .failures
                        .push(format!("{resource}: {}", insula_client::chain(&error)));
                }
            }
        }
        leftovers.failures.sort();
    }

    /// Deletes a namespace's objects of one resource; counts those still there.
    async fn empty_resource(
        &self,
        namespace: &Tenanted<Namespace>,
        discovered: &Discovered,
    ) -> Result<Left, Error> {
        let scope = self.client.tenant(&namespace.tenant);
        let api: Api<PartialObject> =
            scope.resource(discovered.resource.clone(), Some(namespace.name()));
        match pass(&api, Some(discovered)).await {
            // Announced but not served after all.
            Err(error) if error.is_not_found() || error.is_method_not_supported() => {
                Ok(Left::default())
            }
            Ok(left) if left.has_deleted => pass(&api, None).await,
            other => other,
        }
    }

    /// Takes the finalizer off; the server then lets the namespace go.
    async fn finalize(&self, namespace: &Tenanted<Namespace>) -> Result<(), Error> {
        let mut released = namespace.object.clone();
        if let Some(finalizers) = released.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|it| it != FINALIZER);
        }
        let api = self.client.tenant(&namespace.tenant).api::<Namespace>();
        match api.replace(&released, Some("finalize"), &WriteOptions::default()).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespace-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.namespaces.on_change(move |change| keys.add(change.key.clone()));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| {
            if change.new.is_some() {
                return;
            }
            let namespace = key_of_namespace(change.key);
            let is_ending = |it: &Tenanted<Namespace>| !is_active(it);
            if it.informers.namespaces.get(&namespace).is_some_and(|it| is_ending(&it))
                && it.was_last(&namespace)
            {
                keys.add(namespace);
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.namespaces.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(known) = self.informers.namespaces.get(key) else {
            self.awaited.lock().remove(key);
            return Ok(Next::WhenChanged);
        };
        if !known.is_deleting() || !has_finalizer(&known) {
            return Ok(Next::WhenChanged);
        }
        // Deleting what must not be is beyond repair: look at the namespace itself.
        let api = self.client.tenant(&key.tenant).api::<Namespace>();
        let Some(namespace) = api.get_opt(&key.name).await? else {
            return Ok(Next::WhenChanged);
        };
        if namespace.uid() != known.uid() || !namespace.is_deleting() || !has_finalizer(&namespace)
        {
            return Ok(Next::WhenChanged);
        }
        let discovery = self.client.tenant(&key.tenant).discover().await?;
        let leftovers = self.empty(&namespace, &discovery).await?;
        match leftovers.remaining.get(PODS) {
            Some(n_pods) => self.awaited.lock().insert(key.clone(), *n_pods),
            None => self.awaited.lock().remove(key),
        };
        if leftovers.is_empty() {
            self.finalize(&namespace).await?;
            return Ok(Next::WhenChanged);
        }
        let old = namespace.status.clone().unwrap_or_default();
        let known = old.conditions.as_deref().unwrap_or_default();
        let new = NamespaceStatus {
            phase: Some("Terminating".to_owned()),
            conditions: Some(conditions(&leftovers, known, Timestamp::now())),
        };
        write_status(&api, &namespace, Some(&old), &new).await?;
        if !leftovers.failures.is_empty() {
            return Err(ReconcileError::Incomplete(leftovers.failures.join("; ")));
        }
        let n_left = u32::try_from(leftovers.n_objects()).unwrap_or(u32::MAX);
        Ok(Next::After(POLL.max(PAUSE_FOR_EACH.saturating_mul(n_left))))
    }
}

/// Goes through all objects of one resource, a page at a time. With what is known of the resource,
/// those of each page are deleted.
async fn pass(api: &Api<PartialObject>, deletes: Option<&Discovered>) -> Result<Left, Error> {
    let mut left = Left::default();
    let mut which = ListOptions { limit: Some(PAGE), ..ListOptions::default() };
    loop {
        let page = api.list(&which).await?;
        if let Some(discovered) = deletes
            && page.items.iter().any(|it| !it.is_deleting())
        {
            delete_page(api, discovered, &which, &page.items).await?;
            left.has_deleted = true;
        }
        left.n_objects += page.items.len();
        for finalizer in page.items.iter().flat_map(|it| it.metadata.finalizers.iter().flatten()) {
            *left.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        which.continue_token = page.continue_token;
        if which.continue_token.is_none() {
            return Ok(left);
        }
    }
}

/// Deletes the objects of a page, which `which` asked for.
async fn delete_page(
    api: &Api<PartialObject>,
    discovered: &Discovered,
    which: &ListOptions,
    page: &[Tenanted<PartialObject>],
) -> Result<(), Error> {
    let options = DeleteOptions::default().propagation(Propagation::Background);
    if discovered.verbs.contains("deletecollection") {
        return api.delete_collection(&options, which).await;
    }
    for it in page.iter().filter(|it| !it.is_deleting()) {
        match api.delete(it.name(), &options.clone().only_uid(it.uid())).await {
            Err(error) if error.is_not_found() || error.is_conflict() => (),
            other => drop(other?),
        }
    }
    Ok(())
}

fn has_finalizer(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    finalizers.into_iter().flatten().any(|it| it == FINALIZER)
}
