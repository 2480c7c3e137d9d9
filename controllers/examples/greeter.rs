//! A controller is one file: what it watches, its key, and a function that brings the objects of one
//! key to what they ask for. This one greets the pods that ask for it.
//!
//! All else is given by `insula_controllers::framework`: queues that are fair between tenants, retries with
//! growing delays, no key in two hands at once, writes that are refused once another replica has
//! taken over. `controllers/tests/authors.rs` runs it.
//!
//!     KUBECONFIG=run/admin.kubeconfig cargo run -p insula-controllers --example greeter

use std::sync::Arc;

use insula_client::{Client, EventRecorder, EventType, Informer, ObjectKey, Patch};
use insula_controllers::framework::{
    Controller, Next, Queue, ReconcileError, Sole, Unobserved, run,
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Puts on each pod that is labelled `greet` an annotation with a greeting.
pub(crate) struct Greeter {
    client: Client,
    events: EventRecorder,
    pods: Informer<Pod>,
}

/// Runs it until `shutdown`, for all tenants. As one of several replicas it would be given what is
/// its own by `insula_membership`, in place of [`Sole`].
pub(crate) async fn greet(client: Client, shutdown: CancellationToken) {
    let tasks = TaskTracker::new();
    let pods = Informer::builder(client.all().collection::<Pod>()).start(&tasks, shutdown.clone());
    let events = EventRecorder::start(client.clone(), Greeter::NAME, "", &tasks, shutdown.clone());
    let greeter = Arc::new(Greeter { client, events, pods });
    run(greeter, Arc::new(Sole), Arc::new(Unobserved), shutdown).await;
    tasks.close();
    tasks.wait().await;
}

/// Decides, and does nothing: so it can be tested by tables.
fn wanted(pod: &Pod) -> Option<String> {
    let whom = pod.metadata.labels.as_ref()?.get("greet")?;
    let wanted = format!("hello, {whom}");
    let known = pod.metadata.annotations.as_ref().and_then(|all| all.get("greeting"));
    (known != Some(&wanted)).then_some(wanted)
}

impl Controller for Greeter {
    const NAME: &'static str = "greeter";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.pods.on_change(move |change| {
            // Whatever asks for nothing is better not queued at all.
            if change.new.is_some_and(|pod| wanted(pod).is_some()) {
                keys.add(change.key.clone());
            }
        });
    }

    async fn synced(&self) -> bool {
        self.pods.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        // Observe, plan, act. What has gone, or is as it should be, is no error.
        let Some(pod) = self.pods.get(key) else { return Ok(Next::WhenChanged) };
        let Some(greeting) = wanted(&pod) else { return Ok(Next::WhenChanged) };
        let api = self.client.tenant(&key.tenant).namespaced::<Pod>(&key.namespace);
        // With the uid no later pod of that name is meant; a conflict ends the pass.
        let patch = json!({"metadata": {"uid": pod.uid(), "annotations": {"greeting": greeting}}});
        api.patch(&key.name, &Patch::Merge(patch)).await?;
        self.events.record(&pod, EventType::Normal, "Greeted", greeting);
        Ok(Next::WhenChanged)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kubeconfig = std::env::var_os("KUBECONFIG").ok_or("KUBECONFIG names no file")?;
    let client = Client::from_kubeconfig(kubeconfig.as_ref(), Greeter::NAME).await?;
    let shutdown = CancellationToken::new();
    let greeting = tokio::spawn(greet(client, shutdown.clone()));
    tokio::signal::ctrl_c().await?;
    shutdown.cancel();
    Ok(greeting.await?)
}
