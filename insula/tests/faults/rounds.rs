//! Rounds of random clients, a fault in the middle of each, and a check at its end.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use insula_api::{kinds::TenantPhase, names::TenantName};
use insula_client::{Client, Patch, Tenant};
use insula_history::{
    chain,
    drive::{self, Plan, Subject},
    linear::{self, Revisions},
    op::{Action, Outcome},
    record::Recorder,
};
use insula_lab::lab::Lab;
use jiff::SignedDuration;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{cluster::Cluster, counters, pairs, subject::ConfigMaps};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A server is killed and started again.
    Kill,
    /// All servers are killed at the same time and started again.
    KillAll,
    /// A server stands still for a while.
    Pause,
    /// A server is cut off from the others, not from clients.
    Cut,
    /// A server hears nothing from one of the others, who hear it.
    Deaf,
    /// A server's disk is full for a while.
    FillDisk,
    /// A server's flushes take long for a while.
    SlowDisk,
    /// A tenant moves to another partition. Nothing fails.
    Move,
    /// A tenant moves, and a server is killed meanwhile and started again.
    MoveAndKill,
}

/// Tenants on two different partitions of a cloud of two.
const TENANTS: [&str; 2] = ["acme", "globex"];

/// Clients of each round.
const CLIENTS: u32 = 6;
/// Keys that they meet on, in each tenant.
const KEYS: u32 = 2;
const ROUND: Duration = Duration::from_millis(1200);
/// How long the cloud may take to serve again after a fault has gone.
const RECOVERY: Duration = Duration::from_secs(30);

pub(crate) struct Rounds<'a> {
    cluster: Cluster,
    faults: &'a [Fault],
    /// How often nothing was written in a tenant while a round went on.
    idle: AtomicU64,
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

impl<'a> Rounds<'a> {
    pub(crate) fn new(cluster: Cluster, faults: &'a [Fault]) -> Self {
        Self { cluster, faults, idle: AtomicU64::new(0) }
    }

    /// Does `runs` rounds, or as many as the environment says.
    pub(crate) fn run(&self, runs: u64) {
        let runs = number("INSULA_RUNS").unwrap_or(runs);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let first = number("INSULA_SEED").unwrap_or(now.as_millis() as u64);
        self.cluster.run(async |cluster: &Cluster| {
            let mut clients = Vec::new();
            for server in 0..cluster.servers.len() {
                clients.push(cluster.client(server).await);
            }
            for tenant in TENANTS {
                make_tenant(&clients[0], tenant).await;
            }
            let stop = CancellationToken::new();
            // One for each server, and one that goes from server to server.
            let of_one = clients.iter().map(|client| vec![client.clone()]);
            let watchers: Vec<_> = of_one
                .chain([clients.clone()])
                .map(|clients| tokio::spawn(counters::watch(clients, stop.clone())))
                .collect();
            let counting = CancellationToken::new();
            let pairs = TENANTS.map(|tenant| {
                let client = clients[0].clone();
                tokio::spawn(pairs::count(client, tenant.to_owned(), counting.clone()))
            });
            let pager =
                tokio::spawn(pairs::page(clients[clients.len() - 1].clone(), counting.clone()));
            let counters: Vec<_> = (0..6)
                .map(|n| {
                    let client = clients[n % clients.len()].clone();
                    let tenant = TENANTS[n % TENANTS.len()].to_owned();
                    tokio::spawn(counters::count(
                        client,
                        tenant,
                        format!("counter-{n}"),
                        counting.clone(),
                    ))
                })
                .collect();
            for seed in first..first + runs {
                self.round(&clients, seed).await;
            }
            let (idle, all) = (self.idle.load(Ordering::Relaxed), runs * TENANTS.len() as u64);
            assert!(idle * 2 < all, "seeds {first}..: nothing was written {idle} times of {all}");
            counting.cancel();
            for counter in counters.into_iter().chain(pairs) {
                counter.await.unwrap();
            }
            let lists = pager.await.unwrap();
            assert!(0 < lists, "nothing was listed page by page");
            stop.cancel();
            let mut ends = Vec::new();
            for watcher in watchers {
                let notes = watcher.await.unwrap();
                let count =
                    |what: fn(&chain::Note) -> bool| notes.iter().filter(|it| what(it)).count();
                let events = count(|it| matches!(it, chain::Note::Event { .. }));
                let (bookmarks, resumed) = (
                    count(|it| *it == chain::Note::Bookmark),
                    count(|it| *it == chain::Note::Resumed),
                );
                assert!(
                    0 < events && 0 < bookmarks && 0 < resumed,
                    "{events} events, {bookmarks} bookmarks, resumed {resumed} times"
                );
                match chain::check(&notes, false) {
                    Ok(end) => ends.push(end),
                    Err(broken) => {
                        let from = broken.at.saturating_sub(12);
                        panic!(
                            "seeds {first}..: a watch is wrong: {broken}\n{:#?}",
                            &notes[from..=broken.at]
                        );
                    }
                }
            }
            // Whoever is asked, the end is the same.
            assert!(ends.windows(2).all(|two| two[0] == two[1]), "watchers disagree: {ends:#?}");
        });
    }

    async fn round(&self, clients: &[Client], seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let fault = self.faults[random.random_range(0..self.faults.len())];
        let subject = |client: &Client, tenant: &str| -> Arc<dyn Subject> {
            let api = client.tenant(&TenantName::parse(tenant).unwrap()).namespaced("default");
            Arc::new(ConfigMaps { api, prefix: format!("r{seed}") })
        };
        let plan = Plan {
            keys: KEYS,
            until: Instant::now() + ROUND,
            pause: Duration::from_millis(20),
            patience: Duration::from_secs(3),
            blind: false,
        };
        let mut running = Vec::new();
        let histories: Vec<_> = TENANTS.iter().map(|_| Arc::new(Recorder::default())).collect();
        for n in 0..CLIENTS {
            let client = &clients[random.random_range(0..clients.len())];
            let at = n as usize % TENANTS.len();
            let subject = subject(client, TENANTS[at]);
            running.push(tokio::spawn(drive::client(
                n,
                seed,
                plan,
                subject,
                histories[at].clone(),
            )));
        }
        tokio::time::sleep(ROUND.mul_f64(random.random_range(0.1..0.5))).await;
        self.strike(fault, &clients[0], &mut random).await;
        for client in running {
            client.await.unwrap();
        }
        // What every server says in the end is part of the history.
        for (server, client) in clients.iter().enumerate() {
            for (tenant, history) in TENANTS.iter().zip(&histories) {
                let subject = subject(client, tenant);
                for key in 0..KEYS {
                    let end = Instant::now() + RECOVERY;
                    loop {
                        let begin = history.now();
                        if let Ok(found) = subject.get(key).await {
                            let client = CLIENTS + server as u32;
                            history.note(client, key, begin, Action::Get, Outcome::Found(found));
                            break;
                        }
                        assert!(
                            Instant::now() < end,
                            "seed {seed}: {fault:?}: server {server} does not serve {tenant} again"
                        );
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        }
        for (tenant, history) in TENANTS.iter().zip(&histories) {
            let ops = history.ops();
            let moves = matches!(fault, Fault::Move | Fault::MoveAndKill);
            let revisions = if moves { Revisions::Grow } else { Revisions::Stay };
            if let Err(violation) = linear::check(&ops, revisions) {
                panic!("seed {seed}: {fault:?}: tenant {tenant}: {violation}");
            }
            // Where a server is alone, or the machine is busy, it may be away for all of a round.
            if !ops.iter().any(|op| matches!(op.outcome, Outcome::Done(_))) {
                self.idle.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Makes something go wrong for a while, and right again.
    async fn strike(&self, fault: Fault, client: &Client, random: &mut StdRng) {
        let servers = &self.cluster.servers;
        let at = random.random_range(0..servers.len());
        let (one, other) = (servers[at].clone(), servers[(at + 1) % servers.len()].clone());
        let all = servers.clone();
        let pause = Duration::from_millis(random.random_range(10..600));
        let lab = self.cluster.lab.clone();
        match fault {
            Fault::Move => {
                let tenant = TENANTS[random.random_range(0..TENANTS.len())];
                begin_move(client, tenant).await;
                settled(client, tenant).await;
            }
            Fault::MoveAndKill => {
                let tenant = TENANTS[random.random_range(0..TENANTS.len())];
                begin_move(client, tenant).await;
                tokio::time::sleep(pause / 4).await;
                on(&lab, {
                    let one = one.clone();
                    move |lab| lab.kill(&one).unwrap()
                })
                .await;
                on(&lab, move |lab| lab.start(&one).unwrap()).await;
                settled(client, tenant).await;
            }
            Fault::Kill => {
                on(&lab, {
                    let one = one.clone();
                    move |lab| lab.kill(&one).unwrap()
                })
                .await;
                tokio::time::sleep(pause).await;
                on(&lab, move |lab| lab.start(&one).unwrap()).await;
            }
            Fault::KillAll => {
                let names = all.clone();
                on(&lab, move |lab| names.iter().for_each(|it| lab.kill(it).unwrap())).await;
                on(&lab, move |lab| {
                    all.iter().for_each(|it| lab.launch(it).unwrap());
                    all.iter().for_each(|it| lab.wait_ready(it).unwrap());
                })
                .await;
            }
            Fault::Pause => {
                lab.pause(&one).unwrap();
                tokio::time::sleep(pause).await;
                lab.resume(&one).unwrap();
            }
            Fault::Cut => {
                for other in all.iter().filter(|it| **it != one) {
                    lab.cut(&one, Some(other)).unwrap();
                }
                tokio::time::sleep(pause * 4).await;
                lab.heal().unwrap();
            }
            Fault::Deaf => {
                lab.cut_one_way(&one, &other).unwrap();
                tokio::time::sleep(pause * 4).await;
                lab.heal().unwrap();
            }
            Fault::SlowDisk => {
                let delay = SignedDuration::from_millis(random.random_range(5..60));
                on(&lab, {
                    let one = one.clone();
                    move |lab| lab.slow(&one, delay).unwrap()
                })
                .await;
                tokio::time::sleep(pause).await;
                on(&lab, move |lab| lab.fast(&one).unwrap()).await;
            }
            Fault::FillDisk => {
                on(&lab, {
                    let one = one.clone();
                    move |lab| lab.fill(&one).unwrap()
                })
                .await;
                tokio::time::sleep(pause).await;
                on(&lab, move |lab| lab.free(&one).unwrap()).await;
            }
        }
    }
}

/// Does what takes its time without holding up the clients.
async fn on(lab: &Arc<Lab>, work: impl FnOnce(&Lab) + Send + 'static) {
    let lab = lab.clone();
    tokio::task::spawn_blocking(move || work(&lab)).await.unwrap();
}

/// Asks for a tenant to live on the other partition.
async fn begin_move(client: &Client, tenant: &str) {
    let api = client.system().api::<Tenant>();
    let found = api.get(tenant).await.unwrap();
    let now = found.status.as_ref().and_then(|it| it.partition.clone());
    let to = if now.as_deref() == Some("p1") { "p2" } else { "p1" };
    let patch = Patch::Merge(serde_json::json!({"spec": {"partition": to}}));
    api.patch(tenant, &patch).await.unwrap();
}

/// Waits until a tenant lives where it asks to.
async fn settled(client: &Client, tenant: &str) {
    let api = client.system().api::<Tenant>();
    let end = Instant::now() + RECOVERY;
    loop {
        if let Ok(found) = api.get(tenant).await {
            let is = found.status.as_ref().and_then(|it| it.partition.clone());
            if is.is_some() && is == found.spec.partition {
                return;
            }
        }
        assert!(Instant::now() < end, "tenant {tenant} does not get to where it is to live");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A tenant that can be written to.
async fn make_tenant(client: &Client, name: &str) {
    let api = client.system().api::<Tenant>();
    let mut tenant = Tenant::default();
    tenant.metadata.name = Some(name.to_owned());
    api.create(&tenant).await.unwrap();
    let end = Instant::now() + RECOVERY;
    loop {
        let found = api.get(name).await.unwrap();
        if found.status.as_ref().and_then(|it| it.phase) == Some(TenantPhase::Active) {
            return;
        }
        assert!(Instant::now() < end, "tenant {name} does not get active");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
