//! Several replicas of the controllers share the work: whichever of them is stopped, killed, paused
//! or added under load, every tenant has exactly the pods it asked for, and never one too many.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

mod harness;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use harness::{
    Cloud, Kubectl,
    replicas::{EVENTUALLY, Replicas, get},
};
use serde_json::{Value, json};

const TENANTS: usize = 10;
const DEPLOYMENTS: usize = 2;
const PODS: usize = 3;

/// What a watch of all pods of all tenants has told so far.
#[derive(Default)]
struct Told {
    /// Pods that are there, by the uid of the set that manages them.
    live: BTreeMap<String, BTreeSet<String>>,
    n_added: usize,
    /// When a set had more pods than it may.
    too_many: Option<String>,
}

impl Told {
    fn learn(&mut self, event: &Value) {
        let pod = &event["object"];
        let Some(owner) = pod["metadata"]["ownerReferences"][0]["uid"].as_str() else { return };
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        let pods = self.live.entry(owner.to_owned()).or_default();
        // One that is on its way out counts for nobody.
        let is_ending = !pod["metadata"]["deletionTimestamp"].is_null();
        if event["type"] == "DELETED" || is_ending {
            pods.remove(&uid);
        } else if pods.insert(uid) {
            self.n_added += 1;
        }
        if PODS < pods.len() {
            let name = &pod["metadata"]["name"];
            let tenant = &pod["metadata"]["tenant"];
            let n = pods.len();
            self.too_many.get_or_insert_with(|| format!("{n} pods: {name} of {tenant}"));
        }
    }
}

/// Follows all pods until dropped.
struct Watching {
    child: Child,
    told: Arc<Mutex<Told>>,
}

impl Watching {
    fn start(admin: &Kubectl) -> Self {
        let path = "/api/v1/tenants/all/pods?watch=true&timeoutSeconds=3600";
        let mut child =
            admin.command().args(["get", "--raw", path]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = Arc::new(Mutex::new(Told::default()));
        let learns = told.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap();
                learns.lock().unwrap().learn(&event);
            }
        });
        Self { child, told }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A tenant's own kubectl, as the platform's administrator.
fn within(cloud: &Cloud, tenant: &str) -> Kubectl {
    cloud.user(tenant, "dev", &format!("{tenant}-admins"))
}

fn tenant(number: usize) -> String {
    format!("t{number}")
}

fn deployments() -> String {
    let one = |name: usize| {
        let labels = json!({"app": format!("d{name}")});
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": format!("d{name}")},
            "spec": {
                "replicas": PODS, "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "c", "image": "none"}]},
                },
            },
        })
    };
    let items: Vec<_> = (0..DEPLOYMENTS).map(one).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// Deletes pods, tenant after tenant, until told to stop.
fn load(users: Arc<Vec<Kubectl>>, stop: Arc<AtomicBool>) -> thread::JoinHandle<usize> {
    thread::spawn(move || {
        let mut n_deleted = 0;
        while !stop.load(Ordering::Relaxed) {
            for (at, user) in users.iter().enumerate() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let selector = format!("app=d{}", (n_deleted + at) % DEPLOYMENTS);
                let args =
                    ["delete", "pods", "-l", &selector, "--wait=false", "--now", "-o", "name"];
                let out = user.command().args(args).output().unwrap();
                n_deleted += String::from_utf8_lossy(&out.stdout).lines().count();
            }
        }
        n_deleted
    })
}

fn refused(admin: &Kubectl) -> u64 {
    let metrics = admin.ok(&["get", "--raw", "/metrics"]);
    let line = metrics.lines().find(|it| it.starts_with("insula_superseded_writes_total"));
    line.unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn replicas_come_and_go_under_load() {
    let cloud = Cloud::start(false, &["--without", "controllers,scheduler", "--partitions", "2"]);
    let admin = cloud.admin();
    let mut replicas = Replicas::new(&cloud);
    for _ in 0..3 {
        replicas.start();
    }
    replicas.until_shared(&admin, 3);
    let table = admin.ok(&["get", "controllerinstances"]);
    assert!(table.starts_with("NAME ") && table.contains("SLOTS"), "{table}");
    assert_eq!(table.lines().filter(|line| line.contains("Active")).count(), 3, "{table}");

    for number in 0..TENANTS {
        let tenant = json!({
            "apiVersion": "insula.io/v1", "kind": "Tenant", "metadata": {"name": tenant(number)},
        });
        let made = admin.feed(&["create", "-f", "-"], &tenant.to_string());
        assert!(made.status.success());
    }
    let watching = Watching::start(&admin);
    let mut users = Vec::new();
    for number in 0..TENANTS {
        let name = tenant(number);
        admin.until(&["get", "tenant", &name, "-o", "jsonpath={.status.phase}"], |phase| {
            phase == "Active"
        });
        let user = within(&cloud, &name);
        let made = user.feed(&["create", "-f", "-"], &deployments());
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        users.push(user);
    }
    let (users, stop) = (Arc::new(users), Arc::new(AtomicBool::new(false)));
    let loading = load(users.clone(), stop.clone());

    // One sleeps through its own replacement. What it does when it wakes up is refused.
    let mut n_tries = 0;
    while refused(&admin) == 0 {
        n_tries += 1;
        // Only what was under way when it fell asleep is, which is chance.
        assert!(n_tries <= 20, "nothing was refused\n{}", replicas.logs());
        let at = n_tries % replicas.running.len();
        replicas.signal(at, "-STOP");
        replicas.until_shared(&admin, 2);
        assert!(admin.ok(&["get", "controllerinstances"]).contains("Lost"));
        thread::sleep(Duration::from_secs(2));
        replicas.signal(at, "-CONT");
        replicas.until_shared(&admin, 3);
    }
    eprintln!("{} writes of a paused replica were refused", refused(&admin));

    // One crashes: what it held is taken over.
    let begin = Instant::now();
    replicas.kill(0);
    replicas.until_shared(&admin, 2);
    let crash = begin.elapsed();
    // One leaves in good order, as each does in a rolling restart; another one comes.
    let begin = Instant::now();
    replicas.stop(0);
    let ended = begin.elapsed();
    replicas.until_shared(&admin, 1);
    let leave = begin.elapsed();
    eprintln!("a crash was made up for after {crash:?}; leaving took {ended:?}, in all {leave:?}");
    assert!(crash < Duration::from_secs(30), "{crash:?}");
    assert!(leave < Duration::from_secs(20), "{leave:?}");
    replicas.start();
    replicas.start();
    replicas.until_shared(&admin, 3);
    for _ in 0..3 {
        replicas.stop(0);
        replicas.start();
        replicas.until_shared(&admin, 3);
    }
    assert_eq!(replicas.holders(&admin).len(), 3);

    stop.store(true, Ordering::Relaxed);
    let n_deleted = loading.join().unwrap();
    let begin = Instant::now();
    let wanted = TENANTS * DEPLOYMENTS * PODS;
    loop {
        let told = watching.told.lock().unwrap();
        assert_eq!(told.too_many, None, "{}", replicas.logs());
        let sets: Vec<usize> = told.live.values().map(BTreeSet::len).collect();
        if sets.len() == TENANTS * DEPLOYMENTS && sets.iter().all(|n| *n == PODS) {
            eprintln!("{} pods were made, {n_deleted} deleted", told.n_added);
            break;
        }
        drop(told);
        assert!(begin.elapsed() < EVENTUALLY, "{sets:?}\n{}", replicas.logs());
        thread::sleep(Duration::from_millis(200));
    }
    let mut n_pods = 0;
    for user in users.iter() {
        n_pods += get(user, &["pods"])["items"].as_array().unwrap().len();
    }
    assert_eq!(n_pods, wanted);
    // Each gives away what it has; nobody is left behind in the table.
    while !replicas.running.is_empty() {
        replicas.stop(0);
    }
    assert!(replicas.holders(&admin).is_empty());
    assert!(n_deleted != 0);
}
