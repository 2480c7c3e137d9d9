//! One request for one binding, or for many.

use std::{sync::Arc, time::Duration};

use insula_api::kinds::{PodBinding, PodBindingResult, PodBindingsSpec, PodBindingsStatus};
use insula_client::{
    Backoff, Client, Error, EventRecorder, EventType, Kind, Partition, Patch, Tenanted, chain,
    fence::Fence,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Binding, Node, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status},
};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::{Done, NotBound, Permit, Way};
use crate::{
    Observer,
    pod::{Pod, node_of},
    reservations::{Mark, given_back},
};

/// Requests for single bindings at the same time.
const PARALLEL: usize = 64;
/// How often a binding is asked for again of which a server says that it may have happened.
const ATTEMPTS: usize = 5;
/// Nothing was done: the tenant lives on another partition.
const MISDIRECTED: u16 = 421;

/// A pod that can be bound at once.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) number: u64,
    pub(crate) pod: Arc<Tenanted<Pod>>,
    pub(crate) node: Arc<str>,
    pub(crate) way: Way,
}

impl Ready {
    pub(super) fn fence(&self) -> Option<&Fence> {
        match &self.way {
            Way::Bind(permit)
            | Way::HandOver(permit)
            | Way::Ask(permit)
            | Way::Reserve(permit)
            | Way::Confirm(permit)
            | Way::GiveBack(permit) => permit.fence.as_ref(),
        }
    }
}

/// Writes bindings and tells what came of them.
#[derive(Debug)]
pub(super) struct Writer {
    client: Client,
    events: EventRecorder,
    tasks: TaskTracker,
    results: mpsc::UnboundedSender<Done>,
    places: Arc<Semaphore>,
    observer: Arc<dyn Observer>,
}

impl Writer {
    pub(super) fn new(
        client: Client,
        events: EventRecorder,
        tasks: TaskTracker,
        results: mpsc::UnboundedSender<Done>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(PARALLEL));
        Self { client, events, tasks, results, places, observer }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Binds a pod, in a task of its own.
    pub(super) fn one(self: &Arc<Self>, ready: Ready) {
        let writer = self.clone();
        self.tasks.spawn(async move {
            // A closed semaphore does not occur: nobody closes it.
            let _place = writer.places.acquire().await;
            writer.observer.asked_to_bind(1);
            let bound = bind(&writer.client, &ready.pod, &ready.node);
            match fenced(ready.fence(), bound).await {
                Ok(()) => writer.bound(&ready),
                Err(error) => writer.done(&ready, Err(NotBound::Api(error))),
            }
        });
    }

    /// Nominates a pod for a node of another replica, which binds it. Only what goes wrong is
    /// told: what comes of it the pod says.
    pub(super) fn hand_over(self: &Arc<Self>, ready: Ready) {
        let writer = self.clone();
        self.tasks.spawn(async move {
            // A closed semaphore does not occur: nobody closes it.
            let _place = writer.places.acquire().await;
            let nominated = nominate(&writer.client, &ready.pod, Some(&ready.node));
            let result = fenced(ready.fence(), nominated).await;
            if let Err(error) = result {
                writer.done(&ready, Err(NotBound::Api(error)));
            }
        });
    }

    /// Writes what holds of a pod's room. Only what goes wrong is told, when it is certain that it
    /// was not written; else the pod says it.
    pub(super) fn mark(self: &Arc<Self>, ready: Ready) {
        let writer = self.clone();
        self.tasks.spawn(async move {
            // A closed semaphore does not occur: nobody closes it.
            let _place = writer.places.acquire().await;
            let marked = mark(&writer.client, &ready);
            if let Err(error) = fenced(ready.fence(), marked).await {
                writer.done(&ready, Err(NotBound::Api(error)));
            }
        });
    }

    /// Takes back what [`Writer::hand_over`] wrote.
    pub(super) fn take_back(self: &Arc<Self>, pod: Arc<Tenanted<Pod>>, permit: Permit) {
        let writer = self.clone();
        self.tasks.spawn(async move {
            let _place = writer.places.acquire().await;
            let nominated = nominate(&writer.client, &pod, None);
            if let Err(error) = fenced(permit.fence.as_ref(), nominated).await {
                // It went, or is bound; what it is nominated for means nothing any more.
                tracing::debug!(pod = %pod.key(), error = chain(&error), "not taken back");
            }
        });
    }

    /// Binds pods whose tenants live on `partition`, by one request.
    pub(super) async fn many(self: &Arc<Self>, partition: &str, all: Vec<Ready>) {
        self.observer.asked_to_bind(all.len());
        let results = match self.ask(partition, &all).await {
            Ok(results) if results.len() == all.len() => results,
            Ok(results) => {
                let (wanted, found) = (all.len(), results.len());
                tracing::warn!(partition, wanted, found, "not all bindings were answered");
                return all.into_iter().for_each(|ready| self.one(ready));
            }
            Err(error) => {
                // Whatever has happened: asked for one by one, it comes to light.
                tracing::info!(partition, error = chain(&error), "bindings are asked for singly");
                return all.into_iter().for_each(|ready| self.one(ready));
            }
        };
        for (ready, result) in all.into_iter().zip(results) {
            match result.code {
                201 if result.reported => self.done(&ready, Ok(())),
                201 => self.bound(&ready),
                MISDIRECTED | 409 | 500.. if result.reason.as_deref() != Some("Superseded") => {
                    self.one(ready);
                }
                _ => self.done(&ready, Err(NotBound::Api(refusal(result)))),
            }
        }
    }

    async fn ask(&self, partition: &str, all: &[Ready]) -> Result<Vec<PodBindingResult>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            status: PodBindingsStatus,
        }
        let binding = |it: &Ready| PodBinding {
            tenant: it.pod.tenant.to_string(),
            namespace: it.pod.namespace().to_owned(),
            name: it.pod.name().to_owned(),
            uid: Some(it.pod.uid().to_owned()),
            node: it.node.to_string(),
            fence: it.fence().map(|it| it.text().to_owned()),
        };
        let (component, host) = self.events.name();
        let spec = PodBindingsSpec {
            bindings: all.iter().map(binding).collect(),
            reporting_component: Some(component.to_owned()),
            reporting_instance: Some(host.to_owned()),
        };
        let request = json!({
            "apiVersion": insula_api::kinds::API_VERSION, "kind": "PodBindings", "metadata": {},
            "spec": spec,
        });
        let partitions = self.client.system().api::<Partition>();
        let answer: Answer = partitions.create_subresource(partition, "bindings", &request).await?;
        Ok(answer.status.results)
    }

    /// Tells that a pod was bound, its users too.
    fn bound(&self, ready: &Ready) {
        let Ready { pod, node, .. } = ready;
        let (namespace, name) = (pod.namespace(), pod.name());
        let message = format!("Successfully assigned {namespace}/{name} to {node}");
        self.events.record(pod, EventType::Normal, "Scheduled", message);
        self.done(ready, Ok(()));
    }

    /// Tells what came of a binding.
    pub(super) fn done(&self, ready: &Ready, result: Result<(), NotBound>) {
        let Ready { number, pod, .. } = ready;
        let (key, uid) = (pod.key(), pod.uid().to_owned());
        let done = Done { number: *number, key, uid, result };
        if self.results.send(done).is_err() {
            tracing::debug!("the scheduler ended before a binding");
        }
    }
}

pub(super) async fn fenced<T>(fence: Option<&Fence>, write: impl Future<Output = T>) -> T {
    match fence {
        Some(fence) => fence.clone().around(write).await,
        None => write.await,
    }
}

async fn nominate(client: &Client, pod: &Tenanted<Pod>, node: Option<&str>) -> Result<(), Error> {
    let pods = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    let patch = Patch::Merge(json!({
        "metadata": {"uid": pod.uid()}, "status": {"nominatedNodeName": node},
    }));
    pods.patch_status(pod.name(), &patch).await.map(drop)
}

/// Writes what holds of a pod's room. Does not return before it is certain whether it is written.
async fn mark(client: &Client, ready: &Ready) -> Result<(), Error> {
    let (pod, node) = (&ready.pod, &*ready.node);
    let pods = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let mut metadata = json!({"uid": pod.uid()});
    let status = match ready.way {
        Way::Bind(_) | Way::HandOver(_) => return Ok(()),
        Way::Ask(_) => {
            let condition = Mark::Asked.condition(node, &now);
            json!({"nominatedNodeName": node, "conditions": [condition]})
        }
        Way::Reserve(_) => {
            // Nothing is reserved that is not asked for any more.
            metadata["resourceVersion"] = json!(pod.resource_version());
            json!({"conditions": [Mark::Reserved.condition(node, &now)]})
        }
        Way::Confirm(_) => {
            // It may have been given back, and be asked for again, before this arrives.
            metadata["resourceVersion"] = json!(pod.resource_version());
            json!({"conditions": [Mark::Confirmed.condition(node, &now)]})
        }
        Way::GiveBack(_) => {
            // What was only asked for may be reserved by now, and is counted on then.
            metadata["resourceVersion"] = json!(pod.resource_version());
            json!({"nominatedNodeName": null, "conditions": [given_back(&now)]})
        }
    };
    let patch = Patch::Strategic(json!({"metadata": metadata, "status": status}));
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
    loop {
        match pods.patch_status(pod.name(), &patch).await {
            Err(error) if error.is_ambiguous() => tokio::time::sleep(pause.next_delay()).await,
            // The first of several may have been the one that was written: the pod says it.
            other => return other.map(drop),
        }
    }
}

/// What the answer to a single binding would have been.
fn refusal(result: PodBindingResult) -> Error {
    Error::Api(Box::new(Status {
        code: Some(result.code.into()),
        reason: result.reason,
        message: result.message,
        status: Some("Failure".to_owned()),
        ..Status::default()
    }))
}

/// Binds a pod by the request that every Kubernetes API has. Does not return before it is certain
/// whether the pod was bound: the room of one that may have been is nobody else's.
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
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
    let mut n_answers = 0;
    loop {
        let asked = pods.create_subresource::<_, Status>(pod.name(), "binding", &binding).await;
        let Err(error) = asked else { return Ok(()) };
        n_answers += usize::from(error.status().is_some());
        let is_unknown = error.is_ambiguous() && n_answers < ATTEMPTS;
        if !is_unknown && !error.is_ambiguous() && !error.is_conflict() {
            return Err(error);
        }
        match pods.get_opt(pod.name()).await {
            Ok(Some(live)) if live.uid() == pod.uid() && node_of(&live) == Some(node) => {
                return Ok(());
            }
            // Asked for again it is refused, or done; what is still on its way is then neither.
            Ok(Some(live)) if is_unknown && live.uid() == pod.uid() => (),
            // Refused because it is bound, perhaps as was asked for first.
            Err(_) if n_answers < ATTEMPTS => (),
            Ok(_) | Err(_) => return Err(error),
        }
        tokio::time::sleep(pause.next_delay()).await;
    }
}
