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

/// Pods of a group, and how many of them have nodes, or room that is kept for them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Gang {
    bound: usize,
    kept: usize,
}

/// Groups by tenant and name, as they are at one moment.
async fn gangs(it: &Scheduled) -> BTreeMap<String, Gang> {
    let mut all: BTreeMap<String, Gang> = BTreeMap::new();
    for pod in it.all_pods().await {
        let group = pod.metadata.labels.as_ref().and_then(|it| it.get(GROUP)).cloned();
        let gang = all.entry(format!("{}/{}", pod.tenant, group.unwrap())).or_default();
        let status = pod.status.as_ref();
        let conditions = status.and_then(|it| it.conditions.as_ref());
        let mut conditions = conditions.into_iter().flatten();
        let is_kept =
            conditions.any(|it| it.type_ == "insula.io/RoomReserved" && it.status == "True");
        if !node_of(&pod).is_empty() {
            gang.bound += 1;
        } else if is_kept {
            gang.kept += 1;
        }
    }
    all
}

const GROUP: &str = "pod-group.scheduling.sigs.k8s.io/name";
const PER_GANG: usize = 4;

/// Room for half of the groups, on nodes of three replicas of which one is lost and one only
/// thought to be: no pod of a group is bound before all have nodes, or room that is kept.
#[tokio::test(flavor = "multi_thread")]
async fn groups_are_bound_whole_by_several_replicas() {
    const N_GANGS: usize = 3;
    let it = Scheduled::without_scheduler(&TENANTS).await;
    for n in 0..9 {
        it.node(&format!("n{n}"), "4").await;
    }
    let replicas = ["r0", "r1", "r2"].map(|host| start(&it, host));
    it.cloud.until("all slots are shared by three", async || slots(&it).await.len() == 3).await;

    let make = async |tenant: &str| {
        for gang in 0..N_GANGS {
            for n in 0..PER_GANG {
                it.pod_with(tenant, &format!("g{gang}-{n}"), "1", |pod| {
                    pod["metadata"]["labels"] = serde_json::json!({
                        GROUP: format!("g{gang}"),
                        "pod-group.scheduling.sigs.k8s.io/min-available": PER_GANG.to_string(),
                    });
                })
                .await;
            }
        }
    };
    let make_all = async {
        let [a, b, c, d, e, f] = TENANTS;
        tokio::join!(make(a), make(b), make(c), make(d), make(e), make(f));
    };
    // At each moment, whoever has begun to be bound is certain to be bound whole.
    let is_whole = async || {
        let gangs = gangs(&it).await;
        let torn = gangs.iter().find(|(_, it)| 0 < it.bound && it.bound + it.kept < PER_GANG);
        assert_eq!(torn, None, "part of a group is bound");
        gangs
    };
    let n_whole = async || is_whole().await.values().filter(|it| it.bound == PER_GANG).count();
    let trouble = async {
        it.cloud.until("a group is bound", async || 1 <= n_whole().await).await;
        replicas[1].open.send_replace(false);
        it.cloud.until("two more are", async || 3 <= n_whole().await).await;
        replicas[2].open.send_replace(false);
        it.cloud
            .until("one has all slots", async || {
                is_whole().await;
                slots(&it).await == BTreeMap::from([("r0".to_owned(), 16_384)])
            })
            .await;
        replicas[1].open.send_replace(true);
    };
    tokio::join!(make_all, trouble);
    it.cloud.until("nine groups are bound", async || n_whole().await == 9).await;
    for (node, n_pods) in on_nodes(&it).await {
        assert!(node.is_empty() || n_pods <= 4, "{n_pods} on {node}");
    }
    assert!(is_whole().await.values().all(|it| it.bound == PER_GANG || it.bound == 0));
    let bound = replicas.each_ref().map(|it| it.counts.bindings.load(Ordering::Relaxed));
    assert!(1 < bound.iter().filter(|n| 0 < **n).count(), "others took part: {bound:?}");
    replicas[2].open.send_replace(true);
    it.cloud.end().await;
}
