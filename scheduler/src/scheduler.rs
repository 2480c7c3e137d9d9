//! The loop that ties the parts together.
//!
//! One task owns the table of nodes, the ledger and the queue; nothing in it waits for the
//! network. Informers tell it which keys are worth a look, bindings run beside it and tell it
//! their results.

use std::{collections::HashMap, sync::Arc, time::Duration};

use insula_client::{Informer, ObjectKey, Tenanted, chain};
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Observer,
    binding::{Binder, Bound, Failure, GATED, Reporter, UNSCHEDULABLE},
    candidate::{Candidate, host_ports, is_finished, is_ours, node_of},
    decide::{Decision, decide},
    dirty::Dirty,
    ledger::{Holding, Ledger},
    nodes::Nodes,
    queue::{Happenings, Queue, Waiting},
    requests::Requests,
};

/// Decisions between two looks at what else there is to do.
const BATCH: usize = 64;

/// All that the loop owns.
#[derive(Debug)]
pub(crate) struct Scheduler {
    name: String,
    pods: Informer<Pod>,
    all_nodes: Informer<Node>,
    changed: Arc<Notify>,
    dirty_pods: Arc<Dirty<ObjectKey>>,
    dirty_nodes: Arc<Dirty<ObjectKey>>,
    nodes: Nodes,
    ledger: Ledger,
    queue: Queue,
    /// Pods whose binding is being written, as they were in the queue.
    in_flight: HashMap<ObjectKey, Waiting>,
    binder: Binder,
    reporter: Reporter,
    observer: Arc<dyn Observer>,
    n_decisions: usize,
}

impl Scheduler {
    pub(crate) fn new(
        name: String,
        pods: Informer<Pod>,
        all_nodes: Informer<Node>,
        binder: Binder,
        reporter: Reporter,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        let dirty_pods = Arc::new(Dirty::new(changed.clone()));
        let dirty_nodes = Arc::new(Dirty::new(changed.clone()));
        let dirty = dirty_pods.clone();
        pods.on_change(move |change| dirty.add(change.key.clone()));
        let dirty = dirty_nodes.clone();
        all_nodes.on_change(move |change| dirty.add(change.key.clone()));
        Self {
            name,
            pods,
            all_nodes,
            changed,
            dirty_pods,
            dirty_nodes,
            nodes: Nodes::new(),
            ledger: Ledger::default(),
            queue: Queue::default(),
            in_flight: HashMap::new(),
            binder,
            reporter,
            observer,
            n_decisions: rand::random_range(0..usize::MAX / 2),
        }
    }

    /// Schedules until `shutdown`.
    pub(crate) async fn run(
        mut self,
        mut results: mpsc::UnboundedReceiver<Bound>,
        shutdown: CancellationToken,
    ) {
        let synced = async { self.all_nodes.synced().await && self.pods.synced().await };
        if shutdown.run_until_cancelled(synced).await != Some(true) {
            return;
        }
        tracing::info!(scheduler = self.name, "running");
        loop {
            let mut happenings = Happenings::NONE;
            while let Ok(bound) = results.try_recv() {
                happenings |= self.bound(bound);
            }
            happenings |= self.look();
            self.queue.happened(happenings, Instant::now());
            let n_decided = self.decide_some();
            self.observer.waiting(self.queue.len());
            if shutdown.is_cancelled() {
                return;
            }
            if n_decided == BATCH {
                tokio::task::yield_now().await;
                continue;
            }
            let alarm = self.queue.next_alarm();
            let alarm = async {
                match alarm {
                    Some(alarm) => tokio::time::sleep_until(alarm).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => (),
                () = alarm => (),
                bound = results.recv() => {
                    if let Some(bound) = bound {
                        let happenings = self.bound(bound);
                        self.queue.happened(happenings, Instant::now());
                    }
                }
            }
        }
    }

    /// Looks at all that changed; says what stuck pods may hope for.
    fn look(&mut self) -> Happenings {
        let mut happenings = Happenings::NONE;
        for key in self.dirty_nodes.take() {
            happenings |= self.look_at_node(&key);
        }
        for key in self.dirty_pods.take() {
            happenings |= self.look_at_pod(&key);
        }
        happenings
    }

    fn look_at_node(&mut self, key: &ObjectKey) -> Happenings {
        let Some(node) = self.all_nodes.get(key) else {
            self.nodes.remove(&key.name);
            return Happenings::NONE;
        };
        let changed = self.nodes.put(&key.name, &node);
        if changed.has_new_column {
            self.ledger.show_all(&mut self.nodes);
        } else if changed.happenings == Happenings::NODE_ADDED {
            self.ledger.show(&mut self.nodes, &key.name);
        }
        changed.happenings
    }

    fn look_at_pod(&mut self, key: &ObjectKey) -> Happenings {
        let Some(pod) = self.pods.get(key).filter(|pod| !is_finished(pod)) else {
            self.queue.remove(key);
            return self.release(key);
        };
        if let Some(node) = node_of(&pod) {
            self.queue.remove(key);
            let holding = holding_of(&pod, node.into());
            let gave_back = self.ledger.hold(&mut self.nodes, key, holding);
            return if gave_back { Happenings::POD_GONE } else { Happenings::NONE };
        }
        let mut happenings = Happenings::NONE;
        if let Some(held) = self.ledger.get(key) {
            if held.uid == pod.uid() {
                // Being bound: the server has not told yet.
                return Happenings::NONE;
            }
            happenings = self.release(key);
        }
        if !is_ours(&pod, &self.name) || pod.is_deleting() {
            self.queue.remove(key);
            return happenings;
        }
        let candidate = Candidate::of(&pod);
        let is_known = self.queue.get(key).is_some_and(|known| *known.candidate == candidate);
        if candidate.is_gated {
            let message = "Scheduling is blocked due to non-empty scheduling gates".to_owned();
            self.reporter.report(Failure { pod, reason: GATED, message });
        }
        if !is_known {
            self.queue.put(key, candidate, Instant::now());
        }
        happenings
    }

    fn release(&mut self, key: &ObjectKey) -> Happenings {
        match self.ledger.release(&mut self.nodes, key) {
            Some(_) => Happenings::POD_GONE,
            None => Happenings::NONE,
        }
    }

    fn decide_some(&mut self) -> usize {
        let mut n_decided = 0;
        while n_decided < BATCH {
            let now = Instant::now();
            let Some((key, waiting)) = self.queue.take(now) else { break };
            n_decided += 1;
            // Gone since; its key is dirty, and will be looked at.
            let Some(pod) = self.pods.get(&key).filter(|pod| pod.uid() == waiting.candidate.uid)
            else {
                continue;
            };
            self.n_decisions = self.n_decisions.wrapping_add(1);
            let decision = decide(&self.nodes, &waiting.candidate, self.n_decisions);
            self.observer.decided(matches!(decision, Decision::Take { .. }), now.elapsed());
            match decision {
                Decision::Take { row } => {
                    let node: Arc<str> = self.nodes.name(row).into();
                    let holding = Holding {
                        uid: waiting.candidate.uid.clone(),
                        node: node.clone(),
                        requests: waiting.candidate.requests.clone(),
                        ports: waiting.candidate.ports.clone(),
                        is_assumed: true,
                    };
                    self.ledger.hold(&mut self.nodes, &key, holding);
                    self.in_flight.insert(key, waiting);
                    self.binder.bind(pod, node);
                }
                Decision::None { message, helped_by } => {
                    tracing::debug!(pod = %key, message, "no node");
                    self.queue.stuck(&key, waiting, helped_by, now);
                    self.reporter.report(Failure { pod, reason: UNSCHEDULABLE, message });
                }
            }
        }
        n_decided
    }

    /// A binding was written, or not.
    fn bound(&mut self, bound: Bound) -> Happenings {
        let Bound { key, uid, result } = bound;
        let is_same = |waiting: &Waiting| waiting.candidate.uid == uid;
        if !self.in_flight.get(&key).is_some_and(is_same) {
            return Happenings::NONE;
        }
        let Some(waiting) = self.in_flight.remove(&key) else { return Happenings::NONE };
        let error = match result {
            Ok(()) => {
                self.observer.scheduled(waiting.since.elapsed());
                return Happenings::NONE;
            }
            Err(error) => error,
        };
        if error.is_not_found() {
            tracing::debug!(pod = %key, error = chain(&error), "gone before it was bound");
        } else {
            tracing::warn!(pod = %key, error = chain(&error), "not bound");
        }
        // What the server told meanwhile stands; only an assumption is taken back.
        let is_assumed = self.ledger.get(&key).is_some_and(|it| it.is_assumed && it.uid == uid);
        let happenings = if is_assumed { self.release(&key) } else { Happenings::NONE };
        let waits = |pod: &Arc<Tenanted<Pod>>| {
            pod.uid() == uid && is_ours(pod, &self.name) && !pod.is_deleting()
        };
        if self.pods.get(&key).is_some_and(|pod| waits(&pod)) && self.queue.get(&key).is_none() {
            self.queue.retry(&key, waiting, Instant::now());
        }
        happenings
    }
}

fn holding_of(pod: &Tenanted<Pod>, node: Arc<str>) -> Holding {
    let spec = pod.spec.as_ref();
    Holding {
        uid: pod.uid().to_owned(),
        node,
        requests: spec.map(Requests::of).unwrap_or_default(),
        ports: spec.map(host_ports).unwrap_or_default(),
        is_assumed: false,
    }
}

/// How long bindings that have begun may take to end after shutdown.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
