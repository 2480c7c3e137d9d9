//! The etcd backend on real etcd processes.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use super::{EtcdConfig, EtcdStore, EtcdTls, EtcdUser};
use crate::{
    contract::{contract_tests, limited, pods, put, stored, value, write},
    ring::RingLimits,
    store::{Change, Expect, ReadAt, Revision, Store, StoreError},
};

/// An etcd of the test's own. Ends with it.
pub(crate) struct Server {
    child: Option<Child>,
    ports: [u16; 2],
    dir: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), Vec::new())
    }

    /// With more arguments; those of TLS make its clients' side `https`.
    fn start_with(dir: tempfile::TempDir, arguments: Vec<String>) -> Self {
        let mut server = Self { child: None, ports: [0; 2], dir, arguments };
        // Somebody else may take a free port before the etcd does.
        for _ in 0..5 {
            let free = [0; 2].map(|_: u16| TcpListener::bind("127.0.0.1:0").unwrap());
            server.ports = free.map(|listener| listener.local_addr().unwrap().port());
            server.spawn();
            if server.is_up() {
                return server;
            }
            server.kill();
        }
        panic!("etcd did not come up; see {}", server.dir.path().display());
    }

    pub(crate) fn spawn(&mut self) {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.ports[1]));
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new("etcd")
            .args(["--name=test", "--unsafe-no-fsync", "--log-level=warn"])
            .arg(format!("--data-dir={}", self.dir.path().join("data").display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=test={peer}"))
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is installed by `make deps`");
        self.child = Some(child);
    }

    /// Waits until it answers, or has given up.
    fn is_up(&mut self) -> bool {
        for _ in 0..600 {
            let child = self.child.as_mut().unwrap();
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if std::net::TcpStream::connect(("127.0.0.1", self.ports[0])).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn url(&self) -> String {
        let secure = self.arguments.iter().any(|argument| argument.starts_with("--cert-file"));
        format!("http{}://127.0.0.1:{}", if secure { "s" } else { "" }, self.ports[0])
    }

    pub(crate) fn config(&self) -> EtcdConfig {
        EtcdConfig::plain(vec![self.url()])
    }

    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(
            EtcdStore::open("p1", &self.config(), RingLimits::default(), &Arc::default())
                .await
                .unwrap(),
        )
    }

    /// A client beside ours.
    async fn client(&self) -> etcd_client::Client {
        etcd_client::Client::connect(self.config().endpoints, None).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn empty() -> (Arc<dyn Store>, Server) {
    let server = Server::start();
    (server.open().await, server)
}

contract_tests!(empty);

/// Two servers of one etcd, each of which knows only what it has followed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_keep_one_limit() {
    const MOST: usize = 30;
    let server = Server::start();
    let stores = [server.open().await, server.open().await];
    let begin = stores[0].progress();
    let most = limited::limit(None, &[("pods", &MOST.to_string())]);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let (store, most) = (stores[writer % 2].clone(), most.clone());
        writers.spawn(async move {
            let mut made = 0;
            for n in 0..8 {
                let key = format!("acme/ns/{writer}-{n}");
                let create = write(&key, Expect::Absent, limited::pod(1, "Running"));
                match store.write(limited::within(create, &most)).await {
                    Ok(_) => made += 1,
                    Err(StoreError::Exceeded(_)) => (),
                    Err(error) => panic!("{error}"),
                }
            }
            made
        });
    }
    assert_eq!(writers.join_all().await.into_iter().sum::<usize>(), MOST);
    limited::stays_within(&*stores[1], begin, MOST).await;
    let tenants = stores[1].tenants().unwrap();
    assert_eq!(tenants.amounts("acme", None, &["pods"])["pods"].value(), MOST as i64);
}

async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{what} never happened");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn carries_on_where_it_was() {
    let server = Server::start();
    let store = server.open().await;
    let mut last = Revision(0);
    for n in 0..700 {
        last = put(&*store, &format!("k{n:04}"), "x").await.revision;
    }
    store.shutdown().await.unwrap();
    let store = server.open().await;
    let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!((snapshot.len(), snapshot.revision()), (700, last));
    assert_eq!(snapshot.get("k0699").unwrap().value, stored("x", last));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_see_each_other() {
    let server = Server::start();
    let (one, two) = (server.open().await, server.open().await);
    let mut watcher = two.watch(&pods(), two.progress()).unwrap();
    for n in 0..30 {
        let (here, there) = if n % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let committed = put(&**here, "a", &n.to_string()).await;
        let snapshot = there.read(&pods(), ReadAt::Latest).await.unwrap();
        assert_eq!(snapshot.get("a").unwrap(), &committed.entry);
    }
    assert!(!watcher.next().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_others_do_not_hold_up_reads() {
    let (store, server) = empty().await;
    let mut other = server.client().await;
    for n in 0..5 {
        let committed = put(&*store, "a", &n.to_string()).await;
        other.put("/elsewhere", "x", None).await.unwrap();
        let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
        assert!(committed.revision < snapshot.revision());
        assert_eq!(snapshot.get("a").unwrap(), &committed.entry);
        assert_eq!(snapshot.len(), 1);
    }
    // Nor do keys under the prefix that are no objects.
    other.put("/insula/stray", "x", None).await.unwrap();
    assert_eq!(store.read(&pods(), ReadAt::Latest).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_down_is_said_at_once_and_comes_back() {
    let (store, mut server) = empty().await;
    let before = put(&*store, "a", "1").await;
    let mut watcher = store.watch(&pods(), before.revision).unwrap();
    server.kill();
    eventually("noticing", async || store.stats().unhealthy).await;
    let begun = std::time::Instant::now();
    let read = store.read(&pods(), ReadAt::Latest).await;
    assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
    let refused = store.write(write("a", Expect::Present, value("2"))).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    // Who waited for the connection would wait for two seconds.
    assert!(begun.elapsed() < Duration::from_millis(1500));
    // What is at hand is still served to whoever does not ask for more.
    let cached = store.read(&pods(), ReadAt::Any).await.unwrap();
    assert_eq!(cached.get("a").unwrap(), &before.entry);

    server.spawn();
    let after = eventually("recovery", async || {
        store.write(write("a", Expect::At(before.revision), value("2"))).await.ok()
    })
    .await;
    assert_eq!(store.stats().unhealthy, None);
    let events = watcher.next().await.unwrap();
    assert_eq!(events[0].revision, after.revision);
}

/// A way to the etcd that can be cut.
struct Proxy {
    port: u16,
    /// Connections may exist while this is true.
    open: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    async fn start(target: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = tokio::sync::watch::Sender::new(true);
        let gate = open.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut gate = gate.subscribe();
                tokio::spawn(async move {
                    if !*gate.borrow() {
                        return;
                    }
                    let target = ("127.0.0.1", target);
                    let Ok(mut far) = tokio::net::TcpStream::connect(target).await else { return };
                    tokio::select! {
                        copied = tokio::io::copy_bidirectional(&mut near, &mut far) => drop(copied),
                        _ = gate.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { port, open }
    }

    async fn store(&self) -> Arc<dyn Store> {
        let config = EtcdConfig::plain(vec![format!("http://127.0.0.1:{}", self.port)]);
        Arc::new(
            EtcdStore::open("p1", &config, RingLimits::default(), &Arc::default()).await.unwrap(),
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_misses_nothing() {
    let server = Server::start();
    let proxy = Proxy::start(server.ports[0]).await;
    let (store, other) = (proxy.store().await, server.open().await);
    let first = put(&*store, "a", "1").await;
    let mut watcher = store.watch(&pods(), first.revision).unwrap();
    let mut expected = Vec::new();
    for _ in 0..3 {
        proxy.open.send_replace(false);
        eventually("noticing", async || store.stats().unhealthy).await;
        for n in 0..10 {
            expected.push(put(&*other, "a", &n.to_string()).await.revision);
        }
        proxy.open.send_replace(true);
        let last = *expected.last().unwrap();
        eventually("recovery", async || store.read(&pods(), ReadAt::NotOlderThan(last)).await.ok())
            .await;
    }
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        seen.extend(watcher.next().await.unwrap().iter().map(|event| event.revision));
    }
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_missed_and_compacted_send_watchers_back() {
    let server = Server::start();
    let proxy = Proxy::start(server.ports[0]).await;
    let (store, other) = (proxy.store().await, server.open().await);
    put(&*store, "a", "1").await;
    let before = put(&*store, "b", "1").await;
    let mut watcher = store.watch(&pods(), before.revision).unwrap();
    proxy.open.send_replace(false);
    eventually("noticing", async || store.stats().unhealthy).await;
    put(&*other, "c", "1").await;
    other.write(write("b", Expect::Present, Change::Delete)).await.unwrap();
    let last = put(&*other, "d", "1").await.revision;
    other.compact(last).await.unwrap();
    proxy.open.send_replace(true);
    let snapshot =
        eventually("recovery", async || store.read(&pods(), ReadAt::NotOlderThan(last)).await.ok())
            .await;
    let keys: Vec<_> = snapshot.range("", None).map(|(key, _)| key.to_string()).collect();
    assert_eq!(keys, ["a", "c", "d"]);
    assert!(matches!(watcher.next().await, Err(StoreError::Compacted { .. })));
    assert_eq!((store.stats().objects, store.stats().unhealthy), (3, None));
    // Life goes on.
    let mut watcher = store.watch(&pods(), snapshot.revision()).unwrap();
    let after = put(&*store, "e", "1").await.revision;
    assert_eq!(watcher.next().await.unwrap()[0].revision, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_went_back_is_not_believed() {
    let mut server = Server::start();
    let store = server.open().await;
    for n in 0..5 {
        put(&*store, "a", &n.to_string()).await;
    }
    server.kill();
    std::fs::remove_dir_all(server.dir.path().join("data")).unwrap();
    server.spawn();
    let reason = eventually("noticing", async || {
        store.stats().unhealthy.filter(|reason| reason.contains("went back"))
    })
    .await;
    let read = store.read(&pods(), ReadAt::Latest).await.unwrap_err();
    assert!(read.to_string().contains(&reason), "{read}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_values_that_etcd_takes() {
    let (store, _server) = empty().await;
    let fits = Change::Put(bytes::Bytes::from(vec![b'x'; (3 << 19) - 2_000]));
    store.write(write("a", Expect::Absent, fits)).await.unwrap();
    let too_large = Change::Put(bytes::Bytes::from(vec![b'x'; 3 << 19]));
    let refused = store.write(write("b", Expect::Absent, too_large)).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
}

/// Files of a certificate authority and of what it signed for 127.0.0.1, in `dir`.
fn certificates(dir: &std::path::Path) -> EtcdTls {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let write = |name: &str, pem: String| {
        let path = dir.join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    EtcdTls {
        ca: write("ca.crt", authority.pem()),
        identity: Some((
            write("member.crt", certificate.pem()),
            write("member.key", key.serialize_pem()),
        )),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_users() {
    let dir = tempfile::tempdir().unwrap();
    let tls = certificates(dir.path());
    let (certificate, key) = tls.identity.clone().unwrap();
    let arguments = vec![
        format!("--cert-file={}", certificate.display()),
        format!("--key-file={}", key.display()),
        format!("--trusted-ca-file={}", tls.ca.display()),
        "--client-cert-auth".into(),
    ];
    let server = Server::start_with(dir, arguments);
    let config = EtcdConfig { tls: Some(tls), ..server.config() };
    let open = async |config: EtcdConfig| {
        EtcdStore::open("p1", &config, RingLimits::default(), &Arc::default()).await
    };
    // Without users first, to make some.
    let store = open(config.clone()).await.unwrap();
    put(&store, "a", "1").await;
    let options = config.connect_options().unwrap();
    let mut admin = etcd_client::Client::connect(&config.endpoints, Some(options)).await.unwrap();
    admin.role_add("root").await.unwrap();
    for (user, role) in [("root", "root"), ("insula", "insula")] {
        admin.user_add(user, "secret", None).await.unwrap();
        if role != "root" {
            admin.role_add(role).await.unwrap();
            let all = etcd_client::Permission::read_write("/insula/").with_prefix();
            admin.role_grant_permission(role, all).await.unwrap();
        }
        admin.user_grant_role(user, role).await.unwrap();
    }
    admin.auth_enable().await.unwrap();

    let user = |password: &str| {
        let user = EtcdUser { name: "insula".into(), password: password.into() };
        EtcdConfig { user: Some(user), ..config.clone() }
    };
    let store = open(user("secret")).await.unwrap();
    let second = put(&store, "a", "2").await;
    let read = store.read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(read.get("a").unwrap(), &second.entry);
    let patience = Duration::from_millis(100);
    let wrong = user("guessed");
    let refused =
        EtcdStore::open_within(patience, "p1", &wrong, RingLimits::default(), &Arc::default())
            .await;
    let text = crate::error::chain(&refused.unwrap_err());
    assert!(text.contains("authentication failed"), "{text}");
}

#[tokio::test]
async fn nobody_there_is_an_error() {
    let config = EtcdConfig::plain(vec!["http://127.0.0.1:1".into()]);
    let patience = Duration::from_millis(300);
    let vault = Arc::default();
    let opening = EtcdStore::open_within(patience, "p1", &config, RingLimits::default(), &vault);
    let error = tokio::time::timeout(Duration::from_secs(20), opening).await.unwrap().unwrap_err();
    let text = crate::error::chain(&error);
    assert!(text.contains("p1 did not come up") && text.contains("127.0.0.1:1"), "{text}");
}

/// Three members; which of them leads is theirs to decide.
struct Cluster {
    members: Vec<Server>,
}

impl Cluster {
    fn start() -> Self {
        for _ in 0..5 {
            let ports: Vec<[u16; 2]> = (0..3)
                .map(|_| {
                    let free = [0; 2].map(|_: u16| TcpListener::bind("127.0.0.1:0").unwrap());
                    free.map(|listener| listener.local_addr().unwrap().port())
                })
                .collect();
            let initial: Vec<_> = (ports.iter().enumerate())
                .map(|(n, [_, peer])| format!("m{n}=http://127.0.0.1:{peer}"))
                .collect();
            let member = |(n, ports): (usize, &[u16; 2])| {
                let arguments = vec![
                    format!("--name=m{n}"),
                    format!("--initial-cluster={}", initial.join(",")),
                    // Quick to notice, as tests are short.
                    "--heartbeat-interval=50".into(),
                    "--election-timeout=500".into(),
                ];
                let dir = tempfile::tempdir().unwrap();
                let mut server = Server { child: None, ports: *ports, dir, arguments };
                server.spawn();
                server
            };
            let mut members: Vec<_> = ports.iter().enumerate().map(member).collect();
            if members.iter_mut().all(Server::is_up) {
                return Self { members };
            }
        }
        panic!("three etcds did not come up");
    }

    fn config(&self) -> EtcdConfig {
        EtcdConfig::plain(self.members.iter().map(Server::url).collect())
    }

    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(
            EtcdStore::open("p1", &self.config(), RingLimits::default(), &Arc::default())
                .await
                .unwrap(),
        )
    }

    /// The member that leads.
    async fn leader(&self) -> usize {
        let mut statuses = Vec::new();
        for member in &self.members {
            let mut client = member.client().await;
            let status = client.status().await.unwrap();
            statuses.push((status.header().unwrap().member_id(), status.leader()));
        }
        let leads = |(id, leader): &(u64, u64)| id == leader;
        statuses.iter().position(leads).expect("somebody leads")
    }
}

async fn empty_of_three() -> (Arc<dyn Store>, Cluster) {
    let cluster = Cluster::start();
    (cluster.open().await, cluster)
}

mod three {
    use super::empty_of_three;
    use crate::contract::contract_tests;

    contract_tests!(empty_of_three);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_loses_nothing() {
    let mut cluster = Cluster::start();
    let store = cluster.open().await;
    let mut watcher = store.watch(&pods(), store.progress()).unwrap();
    let mut told = Vec::new();
    for n in 0..40 {
        if n == 20 {
            let leader = cluster.leader().await;
            cluster.members[leader].kill();
        }
        // What was not answered may have happened: as clients do, only what was told counts.
        let committed = eventually("a write", async || {
            store.write(write("a", Expect::Anything, value(&n.to_string()))).await.ok()
        })
        .await;
        told.push(committed.revision);
    }
    let last = *told.last().unwrap();
    let read = eventually("a read", async || store.read(&pods(), ReadAt::Latest).await.ok()).await;
    assert_eq!(read.get("a").unwrap().modified, last);
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        seen.extend(watcher.next().await.unwrap().iter().map(|event| event.revision));
    }
    assert!(seen.is_sorted());
    assert!(told.iter().all(|revision| seen.contains(revision)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_of_another_is_refused() {
    use crate::error::OpenError;
    let server = Server::start();
    let open = async |name: &str| {
        EtcdStore::open(name, &server.config(), RingLimits::default(), &Arc::default())
            .await
            .unwrap()
    };
    let store = open("p1").await;
    assert_eq!(store.identify(None, "c1").await.unwrap(), "c1");
    put(&store, "a", "1").await;
    // It stays what it is.
    assert_eq!(open("p1").await.identify(Some("c1"), "c9").await.unwrap(), "c1");
    assert_eq!(open("p1").await.identify(None, "c9").await.unwrap(), "c1");
    let other = open("p1").await.identify(Some("c2"), "c2").await.unwrap_err();
    assert!(
        matches!(&other, OpenError::ForeignEtcd { found, .. } if found.contains("c1")),
        "{other}"
    );
    let other = open("p2").await.identify(Some("c1"), "c1").await.unwrap_err();
    assert!(
        matches!(&other, OpenError::ForeignEtcd { found, .. } if found.contains("p1")),
        "{other}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_with_foreign_data_is_refused() {
    use crate::error::OpenError;
    let server = Server::start();
    let mut client = server.client().await;
    client.put("/elsewhere/x", "x", None).await.unwrap();
    let open = async |name: &str| {
        EtcdStore::open(name, &server.config(), RingLimits::default(), &Arc::default())
            .await
            .unwrap()
    };
    client.put("/insula/registry/pods/x", "x", None).await.unwrap();
    let refused = open("p1").await.identify(Some("c1"), "c1").await.unwrap_err();
    assert!(matches!(refused, OpenError::ForeignEtcd { .. }), "{refused}");
    client.delete("/insula/registry/pods/x", None).await.unwrap();
    // Keys beside the prefix are nobody's business.
    open("p1").await.identify(Some("c1"), "c1").await.unwrap();
    client.put("/insula/.identity", "garbage", None).await.unwrap();
    let refused = open("p1").await.identify(Some("c1"), "c1").await.unwrap_err();
    assert!(matches!(refused, OpenError::ForeignEtcd { .. }), "{refused}");
}
