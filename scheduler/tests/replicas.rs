//! Several schedulers share nodes and tenants on a real API server, and lose one another.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod scheduled;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use insula_api::kinds::InstancePhase;
use insula_client::{ListOptions, SchedulerInstance};
use insula_scheduler::{Config, Observer};
use tokio::sync::watch;

use self::scheduled::{Scheduled, node_of};

const TENANTS: [&str; 6] = ["acme", "globex", "initech", "umbrella", "hooli", "stark"];
/// So many that each replica has some.
const N_NODES: usize = 24;
const PER_NODE: usize = 10;
const PER_TENANT: usize = 50;

/// What a replica did.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    bindings: AtomicUsize,
}

impl Observer for Counts {
    fn decided(&self, _found: bool, _took: Duration) {}
    fn scheduled(&self, _took: Duration) {}
    fn waiting(&self, _n_pods: usize) {}
    fn asked_to_bind(&self, n_pods: usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bindings.fetch_add(n_pods, Ordering::Relaxed);
    }
}

/// A replica, and whether the server hears it.
struct Replica {
    open: watch::Sender<bool>,
    counts: Arc<Counts>,
}

fn start(it: &Scheduled, host: &str) -> Replica {
    let (open, is_open) = watch::channel(true);
    let counts = Arc::new(Counts::default());
    let config =
        Config { host: Some(host.to_owned()), observer: counts.clone(), ..Config::default() };
    let client = it.cloud.client_behind(is_open);
    let running = insula_scheduler::run(config, client, it.scheduler.clone());
    it.cloud.tasks.spawn(running);
    Replica { open, counts }
}

/// Slots by host, of those who live.
async fn slots(it: &Scheduled) -> BTreeMap<String, i32> {
    let instances = it.cloud.client.system().api::<SchedulerInstance>();
    let all = instances.list_all(&ListOptions::default()).await.unwrap();
    let slots = all.iter().filter_map(|it| {
        let status = it.status.as_ref()?;
        let is_active = status.phase == Some(InstancePhase::Active);
        is_active.then(|| (it.spec.host.clone().unwrap(), status.slots.unwrap_or(0)))
    });
    slots.collect()
}

async fn on_nodes(it: &Scheduled) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in it.all_pods().await {
        *counts.entry(node_of(&pod).to_owned()).or_default() += 1;
    }
    counts
}

/// No pod ever leaves its node here, so what is on a node in the end is the most that ever was.
#[tokio::test(flavor = "multi_thread")]
async fn no_node_is_given_away_twice_when_replicas_are_lost_and_wake() {
    let it = Scheduled::without_scheduler(&TENANTS).await;
    for n in 0..N_NODES {
        it.node(&format!("n{n}"), "5").await;
    }
    let replicas = ["r0", "r1", "r2"].map(|host| start(&it, host));
    it.cloud
        .until("all slots are shared by three", async || {
            let slots = slots(&it).await;
            slots.len() == 3 && slots.values().sum::<i32>() == 16_384
        })
        .await;

    let make = async |tenant: &str| {
        for n in 0..PER_TENANT {
            it.pod(tenant, &format!("p{n}"), "500m").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let make_all = async {
        let [a, b, c, d, e, f] = TENANTS;
        tokio::join!(make(a), make(b), make(c), make(d), make(e), make(f));
    };
    let trouble = async {
        let bound = async |n_pods: usize| {
            let what = format!("{n_pods} pods are bound");
            let is_so = async || {
                let counts = on_nodes(&it).await;
                let waiting = counts.get("").copied().unwrap_or(0);
                n_pods <= counts.values().sum::<usize>() - waiting
            };
            it.cloud.until(&what, is_so).await;
        };
        bound(40).await;
        // Whatever it has under way arrives when others have long taken over.
        replicas[1].open.send_replace(false);
        bound(80).await;
        // This one is never heard of again.
        replicas[2].open.send_replace(false);
        it.cloud
            .until("one has all slots", async || {
                slots(&it).await == BTreeMap::from([("r0".to_owned(), 16_384)])
            })
            .await;
        replicas[1].open.send_replace(true);
    };
    tokio::join!(make_all, trouble);

    let full = |n: usize| (format!("n{n}"), PER_NODE);
    let mut expected: BTreeMap<String, usize> = (0..N_NODES).map(full).collect();
    expected.insert(String::new(), TENANTS.len() * PER_TENANT - N_NODES * PER_NODE);
    let is_full = async || {
        let counts = on_nodes(&it).await;
        let too_many = counts.iter().find(|(node, n)| !node.is_empty() && PER_NODE < **n);
        assert_eq!(too_many, None, "a node was given away twice");
        counts == expected
    };
    it.cloud.until("the nodes are full", is_full).await;
    it.cloud
        .until("who was only asleep has its share again", async || {
            let slots = slots(&it).await;
            slots.len() == 2 && slots.values().sum::<i32>() == 16_384 && slots.contains_key("r1")
        })
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(on_nodes(&it).await, expected, "full is full");
    let bound = replicas.each_ref().map(|it| it.counts.bindings.load(Ordering::Relaxed));
    assert!(1 < bound.iter().filter(|n| 0 < **n).count(), "others took part: {bound:?}");
    // Who is cut off cannot end in good order.
    replicas[2].open.send_replace(true);
    it.cloud.end().await;
}

/// A burst goes by few requests.
#[tokio::test(flavor = "multi_thread")]
async fn many_pods_are_bound_by_few_requests() {
    let it = Scheduled::without_scheduler(&TENANTS[..2]).await;
    for tenant in &TENANTS[..2] {
        for n in 0..100 {
            it.pod(tenant, &format!("p{n}"), "10m").await;
        }
    }
    it.node("n0", "10").await;
    let alone = start(&it, "r0");
    let expected = BTreeMap::from([("n0".to_owned(), 200)]);
    it.cloud.until("all are bound", async || on_nodes(&it).await == expected).await;
    let requests = alone.counts.requests.load(Ordering::Relaxed);
    assert!(requests <= 100, "{requests} requests for 200 pods");
    it.cloud.end().await;
}
