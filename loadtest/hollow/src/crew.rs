//! Many nodes in one task: their timers, their pods' lives, and what they write.
//!
//! What is due lies in one heap; what is written is a future of the task's own. So a node costs
//! what is known of it, and no task.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet, VecDeque},
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use insula_api::names::TenantName;
use insula_client::{Client, DeleteOptions, Error, Patch, Tenanted, chain};
use insula_nodeagent::hollow::{LEASE_PERIOD, STATUS_PERIOD, status_patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    Shared, feed, kubelet,
    life::{Life, Millis, Stage, Step, plan},
    options::{Mode, node_address, pod_address},
    pods::HollowPods,
    requests::{Registered, register, renew, tell},
    usage::{self, Usage},
};

/// Requests of one crew under way at once.
const AT_ONCE: usize = 64;
/// News taken before what they ask for is done.
const NEWS: usize = 256;
/// When something is tried again that failed, milliseconds.
const RETRY: Range<Millis> = 500..3_000;
const USAGE_PERIOD: Millis = usage::PERIOD.as_millis() as Millis;

/// What a crew is told.
#[derive(Debug)]
pub(crate) enum News {
    /// A pod of the node of that number is there, or other than it was.
    Pod(u32, Arc<Tenanted<Pod>>),
    /// The pod of that uid is gone.
    Gone(String),
    /// There are no other pods than these, by their uids.
    Only(HashSet<String>),
    /// The node of that number is gone, or says what is not so.
    Node(u32),
    /// It has no lease.
    NoLease(u32),
}

/// What is due at some time. Nodes by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Register(u32),
    Lease(u32),
    Status(u32),
    Pod(Uuid),
    /// What all of them use.
    Usage,
}

/// What has come of a request.
enum Done {
    Registered(u32, Result<Registered, Error>),
    Renewed { number: u32, outcome: Result<Box<str>, Error> },
    Told(u32, Result<(), Error>),
    Written { uid: Uuid, life: Box<Life>, outcome: Result<(), Error> },
    Removed { uid: Uuid, outcome: Result<(), Error> },
}

/// One node.
#[derive(Debug, Default)]
struct HollowNode {
    uid: Option<Box<str>>,
    /// Of its lease, as it was last seen.
    lease: Box<str>,
    /// When its next heartbeat is due; 0 before the first.
    beat: Millis,
    is_followed: bool,
    /// Its lease is to be looked for, made or renewed, or that is under way.
    is_leasing: bool,
    /// How many addresses its pods have had.
    addresses: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Crew {
    shared: Arc<Shared>,
    client: Client,
    numbers: Range<u32>,
    nodes: Vec<HollowNode>,
    pods: HollowPods,
    usage: Usage,
    timers: BinaryHeap<Reverse<(Millis, Due)>>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    /// What was due when too much was under way.
    waiting: VecDeque<Due>,
    told: UnboundedSender<News>,
    news: UnboundedReceiver<News>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// To tell times of the two clocks from each other.
    begun: (Instant, Millis),
}

impl Crew {
    pub(crate) fn new(
        shared: Arc<Shared>,
        client: Client,
        numbers: Range<u32>,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        let (told, news) = unbounded_channel();
        let begun = (Instant::now(), Timestamp::now().as_millisecond());
        // Not all at the same moment.
        let due = |number| Reverse((begun.1 + rand::random_range(0..1_000), Due::Register(number)));
        Self {
            nodes: numbers.clone().map(|_| HollowNode::default()).collect(),
            timers: numbers.clone().map(due).collect(),
            shared,
            client,
            numbers,
            pods: HollowPods::default(),
            usage: Usage::default(),
            work: FuturesUnordered::new(),
            waiting: VecDeque::new(),
            told,
            news,
            tasks,
            shutdown,
            begun,
        }
    }

    /// Runs until the end.
    pub(crate) async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        shutdown.run_until_cancelled(self.live()).await;
    }

    async fn live(&mut self) {
        loop {
            let next = self.timers.peek().map_or(Millis::MAX, |Reverse((at, _))| *at);
            let wake = self.instant(next);
            let mut heard = Vec::new();
            tokio::select! {
                // It never ends: this has a sender.
                _ = self.news.recv_many(&mut heard, NEWS) => {
                    heard.drain(..).for_each(|it| self.hear(it));
                }
                Some(done) = self.work.next() => self.done(done),
                () = tokio::time::sleep_until(wake) => self.ring(),
            }
            while self.work.len() < AT_ONCE
                && let Some(due) = self.waiting.pop_front()
            {
                self.act(due);
            }
        }
    }

    fn now(&self) -> Millis {
        let passed = self.begun.0.elapsed().as_millis();
        self.begun.1 + Millis::try_from(passed).unwrap_or(Millis::MAX / 2)
    }

    fn instant(&self, at: Millis) -> Instant {
        let after = u64::try_from(at.saturating_sub(self.begun.1)).unwrap_or_default();
        // Nobody waits longer than this.
        self.begun.0 + Duration::from_millis(after).min(Duration::from_secs(1 << 32))
    }

    fn node(&mut self, number: u32) -> Option<&mut HollowNode> {
        self.nodes.get_mut(number.checked_sub(self.numbers.start)? as usize)
    }

    fn at(&mut self, at: Millis, due: Due) {
        self.timers.push(Reverse((at, due)));
    }

    /// Has a lease made or renewed, if that is not to be already.
    fn lease(&mut self, number: u32, at: Millis) {
        let Some(node) = self.node(number) else { return };
        if !std::mem::replace(&mut node.is_leasing, true) {
            self.at(at, Due::Lease(number));
        }
    }

    fn again(&mut self, due: Due, error: &Error) {
        self.shared.counters.failures.fetch_add(1, Relaxed);
        tracing::debug!(?due, error = chain(error), "to be tried again");
        let at = self.now() + rand::random_range(RETRY);
        if let Due::Pod(uid) = due
            && let Some(pod) = self.pods.by_uid.get_mut(&uid)
        {
            pod.due = at;
        }
        self.at(at, due);
    }

    /// Takes what is due.
    fn ring(&mut self) {
        let now = self.now();
        while let Some(Reverse((at, due))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            if let Due::Pod(uid) = due
                && self.pods.by_uid.get(&uid).is_none_or(|it| it.due != at)
            {
                // It has changed its mind.
                continue;
            }
            self.waiting.push_back(due);
        }
    }

    fn hear(&mut self, news: News) {
        let now = self.now();
        match news {
            News::Gone(uid) => {
                if let Ok(uid) = Uuid::try_parse(&uid) {
                    self.forget(&uid);
                }
            }
            News::Only(uids) => {
                let known: HashSet<Uuid> =
                    uids.iter().filter_map(|it| Uuid::try_parse(it).ok()).collect();
                let gone: Vec<Uuid> =
                    self.pods.by_uid.keys().filter(|it| !known.contains(*it)).copied().collect();
                gone.iter().for_each(|it| self.forget(it));
            }
            // Whoever else writes it is not to be answered at once, for ever.
            News::Node(number) => self.at(now + rand::random_range(RETRY), Due::Register(number)),
            News::NoLease(number) => self.lease(number, now),
            News::Pod(number, pod) => {
                let Ok(uid) = Uuid::try_parse(pod.uid()) else {
                    tracing::error!(pod = pod.name(), uid = pod.uid(), "no uid that we know");
                    return;
                };
                if let Some(known) = self.pods.by_uid.get_mut(&uid) {
                    let was_ready = known.life.stage == Stage::Ready;
                    if !known.life.hear(&pod, now) {
                        return;
                    }
                    if was_ready && known.life.stage != Stage::Ready {
                        self.shared.counters.ready.fetch_sub(1, Relaxed);
                    }
                } else {
                    let Some(node) = self.node(number) else { return };
                    node.addresses += 1;
                    let address = pod_address(number, node.addresses);
                    let usual = &self.shared.options.behaviour;
                    let made = self.pods.make(&pod, number, usual, address, now);
                    let Some((uid, pod)) = made else { return };
                    let counters = &self.shared.counters;
                    counters.pods.fetch_add(1, Relaxed);
                    if pod.life.stage == Stage::Ready {
                        counters.ready.fetch_add(1, Relaxed);
                    }
                    self.pods.by_uid.insert(uid, pod);
                }
                self.waiting.push_back(Due::Pod(uid));
            }
        }
    }

    fn forget(&mut self, uid: &Uuid) {
        let Some(pod) = self.pods.by_uid.remove(uid) else { return };
        let counters = &self.shared.counters;
        counters.pods.fetch_sub(1, Relaxed);
        counters.removed.fetch_add(1, Relaxed);
        if pod.life.stage == Stage::Ready {
            counters.ready.fetch_sub(1, Relaxed);
        }
    }

    /// Begins what is due.
    fn act(&mut self, due: Due) {
        let (shared, client) = (self.shared.clone(), self.client.clone());
        let now = self.now();
        match due {
            Due::Register(number) => self.begin(async move {
                let registered = register(&shared, &client, number).await;
                Done::Registered(number, registered)
            }),
            Due::Lease(number) => {
                let Some(node) = self.node(number) else { return };
                let (uid, version) = (node.uid.clone().unwrap_or_default(), node.lease.clone());
                self.begin(async move {
                    let outcome = renew(&shared, &client, number, &uid, &version).await;
                    Done::Renewed { number, outcome }
                });
            }
            Due::Status(number) => {
                self.begin(async move { Done::Told(number, tell(&shared, &client, number).await) })
            }
            Due::Pod(uid) => self.step(uid, now),
            Due::Usage => {
                self.usage.measure(&shared, self.numbers.clone(), &self.pods);
                self.at(now + USAGE_PERIOD, Due::Usage);
            }
        }
    }

    fn begin(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        let shared = self.shared.clone();
        let bounded = async move {
            // A closed semaphore does not occur: nobody closes it.
            let _place = shared.places.acquire().await;
            work.await
        };
        self.work.push(bounded.boxed());
    }

    /// Does what comes next for a pod.
    fn step(&mut self, uid: Uuid, now: Millis) {
        let Some(pod) = self.pods.by_uid.get_mut(&uid).filter(|it| !it.is_busy) else { return };
        pod.due = Millis::MAX;
        let (tenant, namespace, name) = pod.parts();
        let Ok(tenant) = TenantName::parse(tenant) else { return };
        let pods = self.client.tenant(&tenant).namespaced::<Pod>(namespace);
        let (name, text) = (name.to_owned(), uid.to_string());
        match plan(&pod.life, &pod.shape, now) {
            Step::Rest => {}
            Step::Until(at) => {
                pod.due = at;
                self.at(at, Due::Pod(uid));
            }
            Step::Remove => {
                pod.is_busy = true;
                self.begin(async move {
                    let options = DeleteOptions::default().grace_period(0).only_uid(text);
                    let outcome = pods.delete(&name, &options).await.map(drop);
                    Done::Removed { uid, outcome }
                });
            }
            step @ (Step::To(..) | Step::Tell) => {
                let mut life = Box::new(pod.life.clone());
                if let Step::To(stage, code) = step {
                    life.enter(stage, code, now);
                }
                life.tell();
                let node = node_address(pod.node);
                let old = pod.life.as_told().status(&pod.shape, &text, node);
                let new = life.status(&pod.shape, &text, node);
                pod.is_busy = true;
                self.begin(async move {
                    let outcome = match status_patch(&text, &old, &new) {
                        Ok(Some(patch)) => {
                            pods.patch_status(&name, &Patch::Strategic(patch)).await.map(drop)
                        }
                        Ok(None) => Ok(()),
                        Err(source) => {
                            Err(Error::Encode { request: format!("status of pod {name}"), source })
                        }
                    };
                    Done::Written { uid, life, outcome }
                });
            }
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Registered(number, Ok(node)) => self.is_registered(number, node),
            Done::Registered(number, Err(error)) => self.again(Due::Register(number), &error),
            Done::Renewed { number, outcome } => self.renewed(number, outcome),
            Done::Told(number, Ok(())) => {
                self.at(self.now() + status_period(), Due::Status(number))
            }
            // Somebody removed it. It comes again.
            Done::Told(number, Err(error)) if error.is_not_found() => {
                self.at(self.now(), Due::Register(number));
                self.at(self.now() + status_period(), Due::Status(number));
            }
            Done::Told(number, Err(error)) => self.again(Due::Status(number), &error),
            Done::Written { uid, life, outcome } => {
                let Some(pod) = self.pods.by_uid.get_mut(&uid) else { return };
                pod.is_busy = false;
                match outcome {
                    Ok(()) => {
                        let was = pod.life.stage;
                        // What was heard meanwhile is newer.
                        let Life { deletion, generation, .. } = pod.life;
                        pod.life = Life { deletion, generation, ..*life };
                        self.shared.counters.moved(was, pod.life.stage);
                        self.step(uid, self.now());
                    }
                    Err(error) if error.is_not_found() => self.forget(&uid),
                    Err(error) => self.again(Due::Pod(uid), &error),
                }
            }
            Done::Removed { uid, outcome } => {
                if let Some(pod) = self.pods.by_uid.get_mut(&uid) {
                    pod.is_busy = false;
                }
                match outcome {
                    Ok(()) => self.forget(&uid),
                    // Another one has its name, so it is gone.
                    Err(error) if error.is_not_found() || error.is_conflict() => self.forget(&uid),
                    Err(error) => self.again(Due::Pod(uid), &error),
                }
            }
        }
    }

    /// The server knows a node.
    pub(crate) fn is_registered(&mut self, number: u32, registered: Registered) {
        let now = self.now();
        let Some(node) = self.node(number) else { return };
        let Registered { uid, is_new } = registered;
        let known = node.uid.replace(uid);
        if known.is_some() && known == node.uid {
            // The first one is registered before the others.
            return;
        }
        let is_followed = std::mem::replace(&mut node.is_followed, true);
        if is_followed {
            return;
        }
        self.at(now + status_period(), Due::Status(number));
        // Of one that was there the feed says whether it has a lease.
        if is_new || self.shared.options.mode == Mode::Kubelet {
            self.lease(number, now);
        }
        self.shared.counters.registered.fetch_add(1, Relaxed);
        match self.shared.options.mode {
            Mode::Feed if self.nodes.iter().all(|it| it.is_followed) => {
                let (shared, client) = (self.shared.clone(), self.client.clone());
                let (numbers, told) = (self.numbers.clone(), self.told.clone());
                let following = feed::follow(shared, client, numbers, told, self.usage.clone());
                self.at(now + rand::random_range(0..USAGE_PERIOD), Due::Usage);
                self.tasks.spawn(self.shutdown.clone().run_until_cancelled_owned(following));
            }
            // Opened when all of them are there.
            Mode::Feed => {}
            Mode::Kubelet => {
                let (told, tasks) = (self.told.clone(), &self.tasks);
                let (shared, client) = (&self.shared, &self.client);
                kubelet::follow(shared, client, number, told, tasks, &self.shutdown);
            }
        }
    }

    fn renewed(&mut self, number: u32, outcome: Result<Box<str>, Error>) {
        const PERIOD: Millis = LEASE_PERIOD.as_millis() as Millis;
        let (now, mode) = (self.now(), self.shared.options.mode);
        let Some(node) = self.node(number) else { return };
        node.is_leasing = false;
        match outcome {
            // Its heartbeats ride on the feed, one of which may have been faster.
            Ok(_) if mode == Mode::Feed => {}
            Err(error) if mode == Mode::Feed && error.is_conflict() => {}
            Ok(version) => {
                node.lease = version;
                let due = std::mem::replace(&mut node.beat, 0);
                // The first one is at once, those after that are spread.
                let next =
                    if due == 0 { now + rand::random_range(0..PERIOD) } else { due + PERIOD };
                node.beat = next.max(now);
                self.lease(number, next);
                let counters = &self.shared.counters;
                counters.beats.fetch_add(1, Relaxed);
                if due != 0 {
                    let late = u64::try_from(now - due).unwrap_or_default();
                    counters.late.took(Duration::from_millis(late));
                }
            }
            Err(error) => {
                if error.is_conflict() || error.is_not_found() {
                    // Somebody else wrote it, or removed it: what there is decides.
                    node.lease = Box::default();
                }
                node.is_leasing = true;
                self.again(Due::Lease(number), &error);
            }
        }
    }
}

/// Nodes tell of themselves at times of their own.
fn status_period() -> Millis {
    let period = STATUS_PERIOD.as_millis() as Millis;
    rand::random_range(period * 9 / 10..period)
}
