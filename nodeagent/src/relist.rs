//! Notices what changes in the runtime and wakes the workers of the pods concerned.
//!
//! Every second two calls list all sandboxes and containers, and the difference to the list before
//! says who has news. Where the runtime has an event stream, an event brings the next look forward;
//! what the event says is not used, so a lost one costs at most a second.
//!
//! Here the orphans are found too: what carries this node's label and belongs to a pod that the
//! API does not have.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use insula_client::chain;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    cri::{RuntimeClient, RuntimeError, v1},
    leftovers,
    node::Node,
    pod::identity::{AGENT, GRACE_PERIOD, POD_UID, PodKey},
    pods::Pods,
};

const PERIOD: Duration = Duration::from_secs(1);
/// The shortest time between two looks: a burst of events is one change.
const PAUSE: Duration = Duration::from_millis(30);
const DEFAULT_GRACE: u64 = 30;

/// What the lists say about one pod: its sandboxes and containers with their states, sorted.
type States = Vec<(String, i32)>;

/// Looks until `shutdown`. Orphans are removed once `is_synced` says that `pods` is complete.
pub(crate) async fn run(
    node: Arc<Node>,
    pods: Pods,
    is_synced: impl Fn() -> bool,
    shutdown: CancellationToken,
) {
    let hint = Arc::new(Notify::new());
    let follow = follow_events(node.runtime.clone(), hint.clone());
    let look = async {
        let mut known = HashMap::new();
        let mut last_error = None;
        let orphans = Orphans::default();
        let mut is_swept = false;
        loop {
            match list(&node).await {
                Ok(states) => {
                    last_error = None;
                    tell(&pods, &known, &states, |uid| {
                        if is_synced() {
                            orphans.remove(&node, uid);
                        }
                    });
                    if is_synced() && !std::mem::replace(&mut is_swept, true) {
                        leftovers::sweep(&node, |uid| pods.has(uid) || states.contains_key(uid))
                            .await;
                    }
                    known = states;
                }
                Err(error) => {
                    let text = chain(&error);
                    if last_error.as_ref() != Some(&text) {
                        tracing::warn!(error = text, "cannot list what the runtime has");
                        last_error = Some(text);
                    }
                }
            }
            let earliest = Instant::now() + PAUSE;
            let _ = tokio::time::timeout(PERIOD, hint.notified()).await;
            tokio::time::sleep_until(earliest).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = follow => {}
        () = look => {}
    }
}

/// Turns the runtime's events into hints.
async fn follow_events(runtime: RuntimeClient, hint: Arc<Notify>) {
    loop {
        let mut events = runtime.events();
        while let Some(event) = events.next().await {
            match event {
                Ok(()) => hint.notify_one(),
                Err(error) if error.is_unimplemented() => {
                    tracing::info!("the runtime has no events; looking every second");
                    std::future::pending::<()>().await;
                }
                Err(error) => {
                    tracing::debug!(error = chain(&error), "event stream broke");
                    break;
                }
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn list(node: &Node) -> Result<HashMap<String, States>, RuntimeError> {
    let agent = node.config.agent_id();
    let ours = [(AGENT, agent.as_str())];
    let (sandboxes, containers) = tokio::try_join!(
        node.runtime.list_pod_sandboxes(&ours),
        node.runtime.list_containers(&ours)
    )?;
    let mut states = HashMap::<String, States>::new();
    let sandboxes = sandboxes.into_iter().map(|it: v1::PodSandbox| (it.labels, it.id, it.state));
    let containers = containers.into_iter().map(|it: v1::Container| (it.labels, it.id, it.state));
    for (mut labels, id, state) in sandboxes.chain(containers) {
        if let Some(uid) = labels.remove(POD_UID) {
            states.entry(uid).or_default().push((id, state));
        }
    }
    for states in states.values_mut() {
        states.sort_unstable();
    }
    Ok(states)
}

/// Wakes the workers of pods whose states differ; those without a worker are orphans.
fn tell(
    pods: &Pods,
    before: &HashMap<String, States>,
    now: &HashMap<String, States>,
    on_orphan: impl Fn(&str),
) {
    for (uid, states) in now {
        let is_same = before.get(uid) == Some(states);
        let has_worker = if is_same { pods.has(uid) } else { pods.wake(uid) };
        if !has_worker {
            on_orphan(uid);
        }
    }
    for uid in before.keys().filter(|uid| !now.contains_key(*uid)) {
        pods.wake(uid);
    }
}

/// The orphans that are being removed, each once at a time.
#[derive(Debug, Clone, Default)]
struct Orphans(Arc<Mutex<HashSet<String>>>);

impl Orphans {
    fn remove(&self, node: &Arc<Node>, uid: &str) {
        if !self.0.lock().insert(uid.to_owned()) {
            return;
        }
        let (orphans, node, uid) = (self.clone(), node.clone(), uid.to_owned());
        tokio::spawn(async move {
            remove_orphan(&node, &uid).await;
            orphans.0.lock().remove(&uid);
        });
    }
}

/// Ends and removes what the runtime has of a pod that nobody wants.
async fn remove_orphan(node: &Arc<Node>, uid: &str) {
    let end = async {
        let agent = node.config.agent_id();
        let ours = [(AGENT, agent.as_str()), (POD_UID, uid)];
        let sandboxes = node.runtime.list_pod_sandboxes(&ours).await?;
        let grace = sandboxes.iter().find_map(|it| it.annotations.get(GRACE_PERIOD)?.parse().ok());
        let grace = Duration::from_secs(grace.unwrap_or(DEFAULT_GRACE));
        let containers = node.runtime.list_containers(&ours).await?;
        let stops = containers.iter().map(|it| node.runtime.stop_container(&it.id, grace));
        futures::future::try_join_all(stops).await?;
        for sandbox in &sandboxes {
            node.runtime.stop_pod_sandbox(&sandbox.id).await?;
            node.runtime.remove_pod_sandbox(&sandbox.id).await?;
        }
        // Containers go with their sandbox; one without is a leftover of its own.
        for container in &containers {
            node.runtime.remove_container(&container.id).await?;
        }
        let key = sandboxes.iter().find_map(|it| PodKey::from_labels(&it.labels));
        if let Some(key) = key {
            leftovers::remove_files(node, &key).await;
        }
        Ok::<_, RuntimeError>(())
    };
    tracing::info!(uid, "removing what a pod left that is gone");
    if let Err(error) = end.await {
        tracing::warn!(uid, error = chain(&error), "orphan not removed");
    }
}
