//! Writing down where a pod goes.

use std::{sync::Arc, time::Duration};

use insula_client::{
    Client, Error, EventRecorder, EventType, Informer, Kind, ObjectKey, Patch, Tenanted,
};
use k8s_openapi::{
    api::core::v1::{Binding, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status},
};
use serde_json::json;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use crate::{
    pod::node_of,
    storage::{SELECTED_NODE, Work},
};

/// Requests at the same time.
const PARALLEL_BINDINGS: usize = 64;

/// What came of a binding, or of making room.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) result: Result<(), NotBound>,
}

/// Why a pod was not bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotBound {
    #[error("the server did not bind it")]
    Api(#[from] Error),
    #[error("its volumes were not bound: {0}")]
    Volumes(String),
    #[error("others were not ended for it")]
    NoRoom,
}

/// What is to be written for a pod.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) pod: Arc<Tenanted<Pod>>,
    pub(crate) node: Arc<str>,
    /// Comes first.
    pub(crate) work: Work,
    /// How long volumes may take.
    pub(crate) timeout: Duration,
}

/// Claims and volumes as they are, for those who wait for them.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    pub(crate) volumes: Informer<PersistentVolume>,
    /// Ticks whenever a claim changes.
    pub(crate) claims_changed: watch::Receiver<u64>,
}

/// Writes bindings, each in a task of its own.
#[derive(Debug)]
pub(crate) struct Binder {
    client: Client,
    events: EventRecorder,
    tasks: TaskTracker,
    results: mpsc::UnboundedSender<Done>,
    volumes: Volumes,
    places: Arc<Semaphore>,
}

impl Binder {
    pub(crate) fn new(
        client: Client,
        events: EventRecorder,
        tasks: TaskTracker,
        results: mpsc::UnboundedSender<Done>,
        volumes: Volumes,
    ) -> Self {
        let places = Arc::new(Semaphore::new(PARALLEL_BINDINGS));
        Self { client, events, tasks, results, volumes, places }
    }

    /// Binds a pod; the result arrives in `results`.
    pub(crate) fn bind(&self, order: Order) {
        let (client, events) = (self.client.clone(), self.events.clone());
        let (results, places) = (self.results.clone(), self.places.clone());
        let volumes = (!order.work.is_empty()).then(|| self.volumes.clone());
        self.tasks.spawn(async move {
            let Order { pod, node, work, timeout } = order;
            let prepared = match volumes {
                Some(volumes) => {
                    let all = bind_volumes(&client, volumes, &work, &node);
                    let late = || NotBound::Volumes("context deadline exceeded".to_owned());
                    // Boxed: few pods need it, and all would carry its state.
                    tokio::time::timeout(timeout, Box::pin(all))
                        .await
                        .unwrap_or_else(|_| Err(late()))
                }
                None => Ok(()),
            };
            // A closed semaphore does not occur: nobody closes it.
            let _place = places.acquire_owned().await;
            let result = match prepared {
                Ok(()) => bind(&client, &pod, &node).await.map_err(NotBound::Api),
                Err(error) => Err(error),
            };
            if result.is_ok() {
                let (namespace, name) = (pod.namespace(), pod.name());
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                events.record(&pod, EventType::Normal, "Scheduled", message);
            }
            let done = Done { key: pod.key(), uid: pod.uid().to_owned(), result };
            if results.send(done).is_err() {
                tracing::debug!("the scheduler ended before a binding");
            }
        });
    }
}

/// Has volumes bound and made, and waits until all claims have theirs.
async fn bind_volumes(
    client: &Client,
    mut known: Volumes,
    work: &Work,
    node: &str,
) -> Result<(), NotBound> {
    for (volume, claim) in &work.bind {
        let (Some(live), Some(claim)) = (known.volumes.get(volume), known.claims.get(claim)) else {
            return Err(NotBound::Volumes("a volume or claim is gone".to_owned()));
        };
        let patch = Patch::Merge(json!({
            "metadata": {
                "resourceVersion": live.resource_version(),
                "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"},
            },
            "spec": {"claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": claim.namespace(), "name": claim.name(), "uid": claim.uid(),
                "resourceVersion": claim.resource_version(),
            }},
        }));
        let volumes = client.tenant(&volume.tenant).api::<PersistentVolume>();
        volumes.patch(&volume.name, &patch).await?;
    }
    for claim in &work.provision {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {SELECTED_NODE: node}}}));
        let claims =
            client.tenant(&claim.tenant).namespaced::<PersistentVolumeClaim>(&claim.namespace);
        claims.patch(&claim.name, &patch).await?;
    }
    let all: Vec<&ObjectKey> =
        work.bind.iter().map(|(_, claim)| claim).chain(&work.provision).collect();
    // When the copy may still be older than what was just written.
    let written = Instant::now();
    loop {
        known.claims_changed.mark_unchanged();
        let mut all_bound = true;
        for key in &all {
            let Some(claim) = known.claims.get(key).filter(|it| !it.is_deleting()) else {
                return Err(NotBound::Volumes(format!(
                    "persistentvolumeclaim \"{}\" is gone",
                    key.name
                )));
            };
            let spec = claim.spec.as_ref();
            let phase = claim.status.as_ref().and_then(|it| it.phase.as_deref());
            let has_volume =
                spec.and_then(|it| it.volume_name.as_deref()).is_some_and(|it| !it.is_empty());
            all_bound &= has_volume && phase == Some("Bound");
            let annotations = claim.metadata.annotations.as_ref();
            let is_selected = annotations.is_some_and(|it| it.contains_key(SELECTED_NODE));
            // Whoever was to make the volume could not, and wants another node.
            let grace = Duration::from_secs(5);
            if !has_volume
                && !is_selected
                && work.provision.contains(key)
                && grace < written.elapsed()
            {
                return Err(NotBound::Volumes(format!(
                    "provisioning failed for PVC \"{}\"",
                    key.name
                )));
            }
        }
        if all_bound {
            return Ok(());
        }
        // Looks from time to time also if nothing changes, for the grace above.
        let changed = known.claims_changed.changed();
        let _ = tokio::time::timeout(Duration::from_secs(5), changed).await;
    }
}

async fn bind(client: &Client, pod: &Tenanted<Pod>, node: &str) -> Result<(), Error> {
    let pods = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.name().to_owned()),
            namespace: Some(pod.namespace().to_owned()),
            uid: Some(pod.uid().to_owned()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some(Node::resource().kind.into_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let answer: Result<Status, Error> =
        pods.create_subresource(pod.name(), "binding", &binding).await;
    match answer {
        Ok(_) => Ok(()),
        // The binding may have been written all the same; assuming otherwise would let another
        // pod have its place.
        Err(error) if error.is_ambiguous() || error.is_conflict() => {
            match pods.get_opt(pod.name()).await? {
                Some(live) if live.uid() == pod.uid() && node_of(&live) == Some(node) => Ok(()),
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}
