//! Several replicas of the controllers, each with copies of what it owns alone.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]
#![allow(clippy::print_stderr, reason = "what was measured is worth knowing")]

mod cloud;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use insula_api::names::TenantName;
use insula_client::{Client, DeleteOptions, Patch, Tenanted};
use insula_controllers::{Config, Observer};
use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Event, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::{CSIDriver, VolumeAttachment},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::cloud::Cloud;

/// Long enough for a heartbeat on a busy machine.
const GRACE: Duration = Duration::from_secs(10);

/// How many objects a replica has copies of.
#[derive(Debug, Default)]
struct Copied(AtomicUsize);

impl Observer for Copied {
    fn reconciled(&self, _: &'static str, _: bool, _: Duration) {}
    fn waiting(&self, _: &'static str, _: usize) {}
    fn copied(&self, n_objects: usize) {
        self.0.store(n_objects, Ordering::Relaxed);
    }
}

/// A replica, in this process.
struct Replica {
    copied: Arc<Copied>,
    /// Its requests arrive as long as this says so.
    open: watch::Sender<bool>,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), insula_controllers::Error>>,
}

impl Replica {
    fn start(cloud: &Cloud, host: &str) -> Self {
        let copied = Arc::new(Copied::default());
        let (open, opened) = watch::channel(true);
        let mut config = Config::new("the root of trust");
        config.host = Some(host.to_owned());
        config.observer = copied.clone();
        config.node_grace = GRACE;
        let shutdown = cloud.shutdown.child_token();
        let client = cloud.client_behind(opened);
        let running = insula_controllers::run(config, client, shutdown.clone());
        Self { copied, open, shutdown, running: tokio::spawn(running) }
    }

    fn copied(&self) -> usize {
        self.copied.0.load(Ordering::Relaxed)
    }

    /// Ends it in good order.
    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }

    /// Nobody hears of it any more.
    fn vanish(&self) {
        self.open.send_replace(false);
        self.running.abort();
    }
}

async fn start(cloud: &Cloud, hosts: &[&str]) -> Vec<Replica> {
    let replicas: Vec<_> = hosts.iter().map(|host| Replica::start(cloud, host)).collect();
    until_shared(cloud, hosts.len()).await;
    replicas
}

/// Waits until all slots are held, by so many.
async fn until_shared(cloud: &Cloud, n: usize) {
    use insula_client::SlotTable;

    let tables = cloud.client.system().api::<SlotTable>();
    let shared = async || {
        let Some(table) = tables.get_opt("controllers").await.unwrap() else { return false };
        let mut held: BTreeMap<&str, usize> = BTreeMap::new();
        for claim in &table.object.spec.claims {
            let slots = claim.slots.iter().map(String::as_str);
            let n_blocks = insula_api::slots::blocks(slots).unwrap().len();
            *held.entry(&claim.holder).or_default() += n_blocks;
        }
        held.len() == n && held.values().sum::<usize>() == usize::from(insula_api::slots::BLOCKS)
    };
    cloud.until(&format!("{n} replicas share all slots"), shared).await;
}

async fn tenants(cloud: &Cloud, n: usize) -> Vec<TenantName> {
    let mut tenants = Vec::new();
    for number in 0..n {
        tenants.push(cloud.tenant(&format!("t{number:02}")).await);
    }
    tenants
}

async fn node(cloud: &Cloud, name: &str, annotations: Value) {
    let nodes = cloud.client.system().api::<Node>();
    let it = json!({"metadata": {"name": name, "annotations": annotations}});
    nodes.create(&serde_json::from_value(it).unwrap()).await.unwrap();
    let now = Timestamp::now().to_string();
    let patch = json!({"status": {"conditions": [
        {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now},
    ]}});
    nodes.patch_status(name, &Patch::Strategic(patch)).await.unwrap();
}

/// Renews the lease of a node until the end, or until it is told that the node is dead.
async fn live(cloud: &Cloud, name: &str) -> CancellationToken {
    let leases = cloud.client.system().namespaced::<Lease>("kube-node-lease");
    let lease = json!({"metadata": {"name": name}, "spec": {"leaseDurationSeconds": 40}});
    leases.create(&serde_json::from_value(lease).unwrap()).await.unwrap();
    let (name, dead) = (name.to_owned(), cloud.shutdown.child_token());
    cloud.tasks.spawn(dead.clone().run_until_cancelled_owned(async move {
        loop {
            let now = format!("{:.6}", Timestamp::now());
            let patch = Patch::Merge(json!({"spec": {"renewTime": now}}));
            leases.patch(&name, &patch).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }));
    dead
}

/// A running pod on a node, which leaves it at once when nothing is heard of that, or never.
async fn pod(client: &Client, tenant: &TenantName, name: &str, node: &str, stays: bool) {
    let seconds = if stays { None } else { Some(0) };
    let it = json!({
        "metadata": {"name": name},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "c", "image": "i"}],
            "tolerations": [{
                "key": "node.kubernetes.io/unreachable", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": seconds,
            }],
        },
    });
    let pods = client.tenant(tenant).namespaced::<Pod>("default");
    pods.create(&serde_json::from_value(it).unwrap()).await.unwrap();
    let status = json!({"status": {
        "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
    }});
    pods.patch_status(name, &Patch::Strategic(status)).await.unwrap();
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|it| it.conditions.as_ref()).flatten();
    conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True")
}

/// How often something was told of a pod.
async fn told(cloud: &Cloud, tenant: &TenantName, pod: &str, reason: &str) -> i32 {
    let events = cloud.list::<Event>(tenant, "default").await;
    let about = |it: &&Tenanted<Event>| {
        it.involved_object.name.as_deref() == Some(pod) && it.reason.as_deref() == Some(reason)
    };
    events.iter().filter(about).map(|it| it.count.unwrap_or(1)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_has_copies_of_what_it_owns() {
    let cloud = Cloud::start(2).await;
    let mut replicas = start(&cloud, &["a"]).await;
    for tenant in tenants(&cloud, 40).await {
        for name in ["x", "y", "z"] {
            let it = json!({"metadata": {"name": name}});
            cloud.create::<ConfigMap>(&tenant, "default", it).await;
        }
    }
    // As many as there are: one that is alone has all.
    let mut all = 0;
    let still = async || {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = std::mem::replace(&mut all, replicas[0].copied());
        before == all
    };
    cloud.until("nothing is made any more", still).await;
    assert!(40 * 20 < all, "{all}");
    replicas.extend(["b", "c", "d"].map(|host| Replica::start(&cloud, host)));
    until_shared(&cloud, 4).await;
    let mut copied = Vec::new();
    let shared = async || {
        copied = replicas.iter().map(Replica::copied).collect::<Vec<_>>();
        // A quarter each, but for chance: a tenant is in one of 256 blocks. What the platform shows
        // to all tenants each has, which is little.
        copied.iter().all(|it| *it != 0 && *it < all * 6 / 10)
            && (all..all * 11 / 10).contains(&copied.iter().sum::<usize>())
    };
    cloud.until("each has its part", shared).await;
    eprintln!("of {all} objects four replicas have {copied:?}");
    // And what is left takes over.
    for replica in replicas.drain(1..) {
        replica.stop().await;
    }
    let mut had = 0;
    let has_all = async || {
        let has = replicas[0].copied();
        if std::mem::replace(&mut had, has) != has {
            eprintln!("the last replica has {has} objects of {all}");
        }
        all <= has
    };
    cloud.until("one has all again", has_all).await;
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_all_tenants_leave_a_dead_node_whoever_owns_it() {
    let cloud = Cloud::start(2).await;
    let replicas = start(&cloud, &["a", "b", "c"]).await;
    let tenants = tenants(&cloud, 9).await;
    let mut dies = BTreeMap::new();
    for name in ["lives", "first", "second"] {
        node(&cloud, name, json!({})).await;
        dies.insert(name, live(&cloud, name).await);
        for tenant in &tenants {
            pod(&cloud.client, tenant, &format!("goes-{name}"), name, false).await;
            pod(&cloud.client, tenant, &format!("stays-{name}"), name, true).await;
        }
    }
    let until_left = async |node: &str| {
        for tenant in &tenants {
            let pods = cloud.client.tenant(tenant).namespaced::<Pod>("default");
            let left = async || {
                let goes = pods.get(&format!("goes-{node}")).await.unwrap();
                let stays = pods.get(&format!("stays-{node}")).await.unwrap();
                assert!(!stays.is_deleting());
                goes.is_deleting() && !is_ready(&goes) && !is_ready(&stays)
            };
            cloud.until(&format!("the pods of {tenant} know that {node} is dead"), left).await;
        }
    };
    dies["first"].cancel();
    until_left("first").await;
    // By one replica each, once.
    for tenant in &tenants {
        for (pod, reason, expected) in [
            ("goes-first", "TaintManagerEviction", 1),
            ("goes-first", "NodeNotReady", 1),
            ("stays-first", "NodeNotReady", 1),
            ("stays-first", "TaintManagerEviction", 0),
            ("goes-lives", "NodeNotReady", 0),
            ("goes-second", "TaintManagerEviction", 0),
        ] {
            let what = format!("{reason} of {tenant}/{pod} is told {expected} times");
            let is_told = async || told(&cloud, tenant, pod, reason).await >= expected;
            cloud.until(&what, is_told).await;
            assert_eq!(told(&cloud, tenant, pod, reason).await, expected, "{what}");
        }
    }
    // The same when those who own some of them vanish meanwhile.
    dies["second"].cancel();
    replicas[1].vanish();
    until_left("second").await;
    until_shared(&cloud, 2).await;
    for tenant in &tenants {
        let pods = cloud.client.tenant(tenant).namespaced::<Pod>("default");
        for name in ["goes-lives", "stays-lives"] {
            let pod = pods.get(name).await.unwrap();
            assert!(!pod.is_deleting() && is_ready(&pod), "{tenant}/{name}");
        }
    }
    cloud.end().await;
}

const DRIVER: &str = "disks.example.com";

fn id(handle: &str) -> String {
    format!("kubernetes.io/csi/{DRIVER}^{handle}")
}

/// A claim of a tenant, the volume that it is bound to, and a pod with it on a node.
async fn with_volume(cloud: &Cloud, tenant: &TenantName, node: &str) {
    let handle = format!("disk-of-{tenant}");
    let claim = json!({
        "metadata": {"name": "c"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "", "volumeName": "v",
        },
    });
    let claim: Tenanted<PersistentVolumeClaim> = cloud.create(tenant, "default", claim).await;
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": "v"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "claimRef": {"namespace": "default", "name": "c", "uid": claim.uid()},
            "csi": {"driver": DRIVER, "volumeHandle": handle},
        },
    }))
    .unwrap();
    cloud.client.tenant(tenant).api().create(&volume).await.unwrap();
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
        },
    });
    cloud.create::<Pod>(tenant, "default", pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_many_tenants_are_attached_to_one_node() {
    let cloud = Cloud::start(2).await;
    let mut replicas = start(&cloud, &["a", "b", "c"]).await;
    let tenants = tenants(&cloud, 6).await;
    let managed = json!({"volumes.kubernetes.io/controller-managed-attach-detach": "true"});
    node(&cloud, "n", managed).await;
    let driver = json!({"metadata": {"name": DRIVER}, "spec": {}});
    let driver: CSIDriver = serde_json::from_value(driver).unwrap();
    cloud.client.system().api().create(&driver).await.unwrap();
    for tenant in &tenants {
        with_volume(&cloud, tenant, "n").await;
    }
    let attachments = cloud.client.system().api::<VolumeAttachment>();
    let all = async || attachments.list_all(&Default::default()).await.unwrap();
    cloud.until("each has an attachment", async || all().await.len() == tenants.len()).await;
    for it in all().await {
        let done = Patch::Merge(json!({"status": {"attached": true}}));
        attachments.patch_status(it.name(), &done).await.unwrap();
    }
    let until_told = async |tenants: &[TenantName]| {
        let mut wanted: Vec<_> = tenants.iter().map(|it| id(&format!("disk-of-{it}"))).collect();
        wanted.sort_unstable();
        let nodes = cloud.client.system().api::<Node>();
        let told = async || {
            let status = nodes.get("n").await.unwrap().object.status.unwrap_or_default();
            let attached = status.volumes_attached.unwrap_or_default();
            let mut told: Vec<_> = attached.into_iter().map(|it| it.name).collect();
            told.sort_unstable();
            told == wanted
        };
        cloud.until(&format!("the node has volumes of {tenants:?}"), told).await;
    };
    until_told(&tenants).await;
    // One leaves, and the others stay, also when whoever attached them is gone.
    for left in 1..tenants.len() {
        if left == 3 {
            replicas.remove(0).stop().await;
            until_shared(&cloud, 2).await;
        }
        let pods = cloud.client.tenant(&tenants[left - 1]).namespaced::<Pod>("default");
        pods.delete("p", &DeleteOptions::default().grace_period(0)).await.unwrap();
        until_told(&tenants[left..]).await;
        let is_gone = async || all().await.len() == tenants.len() - left;
        cloud.until("its attachment is gone", is_gone).await;
    }
    // What nothing attaches is not said to be there, though it is nobody's.
    let stray = json!({"status": {"volumesAttached": [
        {"name": id("stray"), "devicePath": ""},
        {"name": id(&format!("disk-of-{}", tenants[5])), "devicePath": ""},
    ]}});
    cloud.client.system().api::<Node>().patch_status("n", &Patch::Merge(stray)).await.unwrap();
    until_told(&tenants[5..]).await;
    cloud.end().await;
}
