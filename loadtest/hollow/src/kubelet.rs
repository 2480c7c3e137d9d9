//! Hearing of pods as a standard kubelet does: a watch for each node.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use insula_client::{Client, Collection, Informer, Tenanted};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Shared, crew::News, life::trimmed};

/// Has `told` hear of the pods of a node, until `shutdown`.
pub(crate) fn follow(
    shared: &Arc<Shared>,
    client: &Client,
    number: u32,
    told: UnboundedSender<News>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let collection: Collection<Pod> = match client.has_tenants() {
        true => client.all().collection(),
        false => client.system().api().into(),
    };
    let informer = Informer::<Pod>::builder(collection)
        .field_selector(format!("spec.nodeName={}", shared.name(number)))
        .trim(trim)
        .start(tasks, shutdown.clone());
    informer.on_change(move |change| {
        let new = change.new.map(|it| Tenanted::uid(it));
        let old = change.old.filter(|it| Some(it.uid()) != new);
        // Who no longer listens has ended.
        if let Some(old) = old {
            let _ = told.send(News::Gone(old.uid().to_owned()));
        }
        if let Some(new) = change.new {
            let _ = told.send(News::Pod(number, new.clone()));
        }
    });
    let (shared, shutdown) = (shared.clone(), shutdown.clone());
    tasks.spawn(async move {
        if shutdown.run_until_cancelled(informer.synced()).await == Some(true) {
            shared.counters.listening.fetch_add(1, Relaxed);
        }
        shutdown.cancelled().await;
    });
}

/// Keeps what a life depends on.
fn trim(pod: &mut Pod) {
    pod.metadata.labels = None;
    pod.metadata.owner_references = None;
    let spec: Option<PodSpec> = pod.spec.as_ref().map(trimmed);
    pod.spec = spec;
}
