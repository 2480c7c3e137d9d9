//! One replica among others: sees them, renews its own object, and does what the core decides.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use insula_api::{
    kinds::{InstancePhase, InstanceSpec, InstanceStatus, SlotFenceStatus},
    names::TenantName,
    slots::{self, BLOCKS, Block},
};
use insula_client::{
    Api, Client, ControllerInstance, DeleteOptions, Error, EventRecorder, EventType, Informer,
    Kind, ObjectKey, Patch, SchedulerInstance, SlotTable, Tenanted, chain,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    core::{Action, Core, Fenced, Seen, Wrote},
    held::HeldBlocks,
    table::Table,
};

/// What replicas of one kind of process are as objects.
pub trait Instance: Kind {
    /// The name of their table.
    const TABLE: &'static str;

    /// One as it is made; its name comes later.
    fn made(spec: InstanceSpec) -> Self;
    fn status(&self) -> Option<&InstanceStatus>;
}

macro_rules! instance {
    ($kind:ident, $table:literal) => {
        impl Instance for $kind {
            const TABLE: &'static str = $table;

            fn made(spec: InstanceSpec) -> Self {
                Self { spec, ..Self::default() }
            }

            fn status(&self) -> Option<&InstanceStatus> {
                self.status.as_ref()
            }
        }
    };
}

instance!(ControllerInstance, "controllers");
instance!(SchedulerInstance, "schedulers");

/// What a replica does with what it holds.
pub trait Work: Send + Sync + 'static {
    /// The table says from now on that these are this replica's, and no others. Those that are new
    /// are served later, after [`Work::caught_up`]; those that are missing are served no longer, and
    /// nothing is under way for them.
    fn claims(&self, _blocks: &BTreeSet<Block>) {}

    /// Waits until local copies show all that was written before the call, of all that is claimed;
    /// `false` if they never will.
    fn caught_up(&self) -> BoxFuture<'_, bool>;

    /// These are served from now on.
    fn begins(&self, blocks: &[Block]);

    /// So many slots are held now.
    fn holds(&self, n_slots: usize);
}

/// How often a replica shows that it lives. It is lost after [`crate::core::MISSED`] of these.
const BEAT: Duration = Duration::from_millis(750);
/// How long one request may take: whoever waits longer is as good as gone.
const REQUEST: Duration = Duration::from_secs(10);
/// How long local copies may take to catch up before it is tried again.
const CATCH_UP: Duration = Duration::from_secs(30);
/// How long to wait after a request that failed.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a replica that leaves tries to give away what it has.
const LEAVE: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug)]
pub struct Membership<K> {
    name: Arc<str>,
    host: String,
    client: Client,
    events: EventRecorder,
    held: Arc<HeldBlocks>,
    drained: mpsc::UnboundedReceiver<Block>,
    kind: std::marker::PhantomData<fn() -> K>,
}

/// What came of what was begun.
enum Outcome {
    Renewed,
    Wrote(Wrote),
    Fenced(Vec<(Block, u64)>, Fenced),
}

impl<K: Instance> Membership<K> {
    /// A replica on `host` that holds nothing yet. `client` is for its own objects.
    pub fn new(host: &str, client: &Client, events: &EventRecorder) -> Self {
        let (held, drained) = HeldBlocks::new(K::TABLE);
        let host = host.to_owned();
        Self {
            name: format!("{}-{}", object_name(&host), five_letters()).into(),
            host,
            client: client.with_timeout(REQUEST),
            events: events.named("slot-ownership"),
            held,
            drained,
            kind: std::marker::PhantomData,
        }
    }

    /// What it serves, for those who work.
    pub fn held(&self) -> &Arc<HeldBlocks> {
        &self.held
    }

    /// Runs until `leaving`, and then until it has given away what it had.
    pub async fn run(
        self,
        work: Arc<dyn Work>,
        tasks: TaskTracker,
        leaving: CancellationToken,
        supplies: CancellationToken,
    ) {
        let Some(()) = leaving.run_until_cancelled(self.join()).await else { return };
        let changed = Arc::new(Notify::new());
        let members =
            Informer::builder(self.client.system().api::<K>()).start(&tasks, supplies.clone());
        let tables = Informer::builder(self.client.system().api::<SlotTable>())
            .start(&tasks, supplies.clone());
        let wake = changed.clone();
        members.on_change(move |_| wake.notify_one());
        let wake = changed.clone();
        tables.on_change(move |_| wake.notify_one());
        let synced = async { members.synced().await && tables.synced().await };
        if leaving.run_until_cancelled(synced).await.is_none() {
            self.remove().await;
            return;
        }
        let (sender, outcomes) = mpsc::unbounded_channel();
        let core = Core::new(self.name.clone(), usize::from(BLOCKS));
        let driver = Driver {
            core,
            work,
            members,
            tables,
            changed,
            sender,
            tasks,
            renewals: 0,
            n_renewing: 0,
            claimed: BTreeSet::new(),
            membership: self,
        };
        driver.run(outcomes, leaving).await;
    }

    fn instances(&self) -> Api<K> {
        self.client.system().api()
    }

    fn tables(&self) -> Api<SlotTable> {
        self.client.system().api()
    }

    /// Makes the replica's object, and the table if there is none.
    async fn join(&self) {
        loop {
            match self.try_join().await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot join the replicas yet");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn try_join(&self) -> Result<(), Error> {
        let table = SlotTable {
            metadata: ObjectMeta { name: Some(K::TABLE.into()), ..ObjectMeta::default() },
            ..SlotTable::default()
        };
        there(self.instances().create(&self.instance()).await)?;
        there(self.tables().create(&table).await)
    }

    /// The replica's object as it is made.
    fn instance(&self) -> K {
        let mut it = K::made(InstanceSpec {
            host: Some(self.host.clone()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        });
        it.meta_mut().name = Some(self.name.to_string());
        it
    }

    /// Takes the replica's object away.
    async fn remove(&self) {
        if let Err(error) = self.instances().delete(&self.name, &DeleteOptions::default()).await
            && !error.is_not_found()
        {
            tracing::warn!(error = chain(&error), "the replica's object stays behind");
        }
    }
}

/// It was made, or is there.
fn there<T>(made: Result<T, Error>) -> Result<(), Error> {
    match made {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}

/// What can be the first part of an object's name.
fn object_name(host: &str) -> String {
    let letter = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '-',
    };
    let name: String = host.chars().take(48).map(letter).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "replica".to_owned() } else { name.to_owned() }
}

/// What no other replica of the host is called.
fn five_letters() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let letter = |_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]);
    (0..5).map(letter).collect()
}

struct Driver<K> {
    core: Core,
    work: Arc<dyn Work>,
    members: Informer<K>,
    tables: Informer<SlotTable>,
    changed: Arc<Notify>,
    sender: mpsc::UnboundedSender<Outcome>,
    tasks: TaskTracker,
    renewals: i64,
    /// Renewals that are under way.
    n_renewing: usize,
    /// As the work was told last.
    claimed: BTreeSet<Block>,
    membership: Membership<K>,
}

impl<K: Instance> Driver<K> {
    async fn run(
        mut self,
        mut outcomes: mpsc::UnboundedReceiver<Outcome>,
        leaving: CancellationToken,
    ) {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut left_at: Option<Instant> = None;
        let held = self.membership.held.clone();
        loop {
            tokio::select! {
                _ = beat.tick() => self.renew(left_at.is_some()),
                () = self.changed.notified() => (),
                () = held.was_refused() => self.core.refused(),
                Some(block) = self.membership.drained.recv() => {
                    self.core.drained(block);
                    while let Ok(block) = self.membership.drained.try_recv() {
                        self.core.drained(block);
                    }
                }
                Some(outcome) = outcomes.recv() => self.learn(outcome),
                () = leaving.cancelled(), if left_at.is_none() => {
                    left_at = Some(Instant::now());
                    self.core.leave();
                    self.renew(true);
                }
            }
            self.look();
            let is_fence = |it: &Action| matches!(it, Action::Fence(_));
            let (fences, others): (Vec<_>, Vec<_>) =
                self.core.plan().into_iter().partition(is_fence);
            others.into_iter().for_each(|action| self.act(action));
            // When what is somebody else's is served no longer, and before what is new is waited
            // for. What is still under way goes on to see what it began with.
            let claimed: BTreeSet<_> = self.core.claimed().chain(held.under_way()).collect();
            if claimed != self.claimed {
                self.work.claims(&claimed);
                self.claimed = claimed;
            }
            fences.into_iter().for_each(|action| self.act(action));
            self.work.holds(slots::n_slots(self.core.n_held()));
            if self.core.has_left() {
                break;
            }
            if left_at.is_some_and(|at| LEAVE <= at.elapsed()) {
                tracing::warn!("what this replica held could not be given away in time");
                break;
            }
        }
        // One that is still under way could make the object anew.
        while self.n_renewing != 0
            && let Some(outcome) = outcomes.recv().await
        {
            self.learn(outcome);
        }
        // Held slots without an object would be nobody's concern for a while.
        if self.core.has_left() {
            self.membership.remove().await;
        }
    }

    /// Tells the core what the copies show.
    fn look(&mut self) {
        let seen = |it: &Arc<Tenanted<K>>| {
            let status = it.object.status();
            let phase = status.and_then(|it| it.phase);
            Seen {
                name: it.name().into(),
                renewals: status.and_then(|it| it.renewals).unwrap_or(0),
                is_leaving: phase == Some(InstancePhase::Leaving),
                is_lost: phase == Some(InstancePhase::Lost),
            }
        };
        let members: Vec<_> = self.members.list().iter().map(seen).collect();
        self.core.members(&members);
        if let Some(table) = self.tables.list().iter().find(|it| it.name() == K::TABLE) {
            match read(table) {
                Some(table) => {
                    self.membership.held.note(&table);
                    self.core.table(table);
                }
                None => tracing::error!("the table of slots cannot be read"),
            }
        }
    }

    fn learn(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Renewed => self.n_renewing -= 1,
            Outcome::Wrote(outcome) => self.core.wrote(outcome),
            Outcome::Fenced(blocks, outcome) => {
                for action in self.core.fenced(&blocks, outcome) {
                    self.act(action);
                }
            }
        }
    }

    /// Shows that this replica lives.
    fn renew(&mut self, is_leaving: bool) {
        if self.n_renewing != 0 && !is_leaving {
            return;
        }
        self.n_renewing += 1;
        self.renewals += 1;
        let phase = if is_leaving { InstancePhase::Leaving } else { InstancePhase::Active };
        let slots = slots::n_slots(self.core.n_held());
        let patch = Patch::Merge(json!({
            "status": {"phase": phase, "slots": slots, "renewals": self.renewals},
        }));
        let (api, name) = (self.membership.instances(), self.membership.name.clone());
        let (instance, sender) = (self.membership.instance(), self.sender.clone());
        self.tasks.spawn(async move {
            let renewed = match api.patch_status(&name, &patch).await {
                // Somebody believed it gone for good.
                Err(error) if error.is_not_found() && !is_leaving => api.create(&instance).await,
                other => other,
            };
            if let Err(error) = renewed {
                tracing::warn!(error = chain(&error), "the replica's object cannot be renewed");
            }
            let _ = sender.send(Outcome::Renewed);
        });
    }

    fn act(&self, action: Action) {
        let held = &self.membership.held;
        match action {
            Action::Write(table) => self.write(table),
            Action::Fence(blocks) => self.fence(blocks),
            Action::Serve(blocks) => {
                for (block, epoch) in &blocks {
                    held.serve(*block, *epoch);
                }
                let n_slots = slots::n_slots(blocks.len());
                tracing::info!(slots = n_slots, "cares for more");
                self.tell(
                    &self.membership.name,
                    EventType::Normal,
                    "SlotsTaken",
                    &format!("Cares for {n_slots} more slots"),
                );
                let blocks: Vec<_> = blocks.into_iter().map(|(block, _)| block).collect();
                self.work.begins(&blocks);
            }
            Action::Drain(blocks) => blocks.into_iter().for_each(|block| held.drain(block)),
            Action::Drop(blocks) => {
                let n_slots = slots::n_slots(blocks.len());
                tracing::info!(slots = n_slots, "cares no longer for some");
                blocks.into_iter().for_each(|block| held.stop(block));
            }
            Action::MarkLost(name) => {
                tracing::warn!(replica = &*name, "a replica is lost");
                self.tell(&name, EventType::Warning, "ReplicaLost", "Nothing was heard of it");
                let patch = Patch::Merge(json!({"status": {"phase": InstancePhase::Lost}}));
                let api = self.membership.instances();
                self.tasks.spawn(async move {
                    if let Err(error) = api.patch_status(&name, &patch).await {
                        tracing::debug!(replica = &*name, error = chain(&error), "not marked");
                    }
                });
            }
            Action::Forget(name) => {
                let api = self.membership.instances();
                self.tasks.spawn(async move {
                    if let Err(error) = api.delete(&name, &DeleteOptions::default()).await {
                        tracing::debug!(replica = &*name, error = chain(&error), "not forgotten");
                    }
                });
            }
        }
    }

    fn tell(&self, name: &str, event_type: EventType, reason: &str, message: &str) {
        let key = ObjectKey::new(&TenantName::system(), "", name);
        if let Some(instance) = self.members.get(&key) {
            self.membership.events.record(&instance, event_type, reason, message);
        }
    }

    fn write(&self, table: Table) {
        let (api, sender) = (self.membership.tables(), self.sender.clone());
        self.tasks.spawn(async move {
            let metadata = ObjectMeta {
                name: Some(K::TABLE.into()),
                resource_version: Some(table.version.to_string()),
                ..ObjectMeta::default()
            };
            let wanted = SlotTable { metadata, spec: table.spec(), status: None };
            let outcome = match api.update(&wanted).await {
                Ok(stored) => read(&stored).map_or(Wrote::Unknown, Wrote::Done),
                Err(error) if error.is_conflict() => Wrote::Conflict,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the table of slots was not changed");
                    sleep(PAUSE).await;
                    Wrote::Unknown
                }
            };
            let _ = sender.send(Outcome::Wrote(outcome));
        });
    }

    fn fence(&self, blocks: Vec<(Block, u64)>) {
        let (api, sender) = (self.membership.tables(), self.sender.clone());
        let (name, work) = (self.membership.name.clone(), self.work.clone());
        self.tasks.spawn(async move {
            let mut outcome = fence(&api, K::TABLE, &name).await;
            if outcome == Fenced::Everywhere
                && !blocks.is_empty()
                && !timeout(CATCH_UP, work.caught_up()).await.unwrap_or(false)
            {
                tracing::warn!("the local copies did not catch up in time");
                outcome = Fenced::Failed;
            }
            let _ = sender.send(Outcome::Fenced(blocks, outcome));
        });
    }
}

/// A stored table.
fn read(table: &Tenanted<SlotTable>) -> Option<Table> {
    Table::read(table.resource_version().parse().ok()?, &table.spec).ok()
}

/// What the server answers.
#[derive(Deserialize)]
struct SlotFence {
    #[serde(default)]
    status: SlotFenceStatus,
}

/// Has all that `name` has claimed fenced.
async fn fence(api: &Api<SlotTable>, table: &str, name: &str) -> Fenced {
    let request = json!({
        "apiVersion": insula_api::kinds::API_VERSION, "kind": "SlotFence", "metadata": {},
        "spec": {"holder": name},
    });
    let asked = api.create_subresource::<_, SlotFence>(table, "fence", &request);
    match asked.await.map(|it| it.status) {
        Ok(SlotFenceStatus { newest, .. }) if newest != 0 => Fenced::Behind(newest),
        Ok(status) if status.unreached.is_empty() => Fenced::Everywhere,
        Ok(status) => {
            tracing::warn!(partitions = ?status.unreached, "some partitions do not answer");
            Fenced::Failed
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "claims could not be fenced");
            Fenced::Failed
        }
    }
}
