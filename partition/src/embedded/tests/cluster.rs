//! Servers of one cluster in one process: real threads, real logs in directories of their own,
//! and a network in memory that can be cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    embedded::{Embedded, EmbeddedOptions, EmbeddedStore, Identity, tests::options},
    peers::{PeerError, Peers, Pieces},
    store::Store as _,
};

/// Who is there, and who cannot hear whom.
#[derive(Default)]
pub(crate) struct Network {
    servers: Mutex<BTreeMap<String, Weak<Embedded>>>,
    cut: Mutex<BTreeSet<(String, String)>>,
    frames: Mutex<BTreeMap<(String, String), mpsc::UnboundedSender<Bytes>>>,
    runtime: Mutex<Option<tokio::runtime::Handle>>,
}

impl Network {
    fn reach(&self, from: &str, to: &str) -> Result<Arc<Embedded>, PeerError> {
        let cut = self.cut.lock().contains(&(from.into(), to.into()));
        let server = self.servers.lock().get(to).and_then(Weak::upgrade);
        server
            .filter(|_| !cut)
            .ok_or_else(|| PeerError::Unreachable { server: to.into(), reason: "cut off".into() })
    }

    /// Cuts `server` off from all others, or heals that.
    pub(crate) fn set_cut(&self, server: &str, cut: bool) {
        let others: Vec<_> = self.servers.lock().keys().cloned().collect();
        let mut cuts = self.cut.lock();
        for other in others.into_iter().filter(|other| other != server) {
            for pair in [(server.to_owned(), other.clone()), (other.clone(), server.to_owned())] {
                if cut {
                    cuts.insert(pair);
                } else {
                    cuts.remove(&pair);
                }
            }
        }
    }
}

/// One server's end of the network.
struct Way {
    network: Arc<Network>,
    from: String,
}

impl Peers for Way {
    fn send(&self, to: &str, frame: Bytes) {
        let pair = (self.from.clone(), to.to_owned());
        let mut lines = self.network.frames.lock();
        let line = lines.entry(pair.clone()).or_insert_with(|| {
            let (line, mut frames) = mpsc::unbounded_channel::<Bytes>();
            let network = self.network.clone();
            let runtime = network.runtime.lock().clone().unwrap();
            runtime.spawn(async move {
                while let Some(frame) = frames.recv().await {
                    if let Ok(server) = network.reach(&pair.0, &pair.1) {
                        server.receive(&pair.0, &frame);
                    }
                }
            });
            line
        });
        drop(line.send(frame));
    }

    fn call(&self, to: &str, request: Bytes) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        let to = to.to_owned();
        async move {
            let server = self.network.reach(&self.from, &to)?;
            let answer = server.answer(&self.from, request).await;
            // The answer has to come back, too.
            self.network
                .reach(&to, &self.from)
                .map_err(|_| PeerError::Broken { server: to.clone(), reason: "cut off".into() })?;
            answer.map_err(|reason| PeerError::Refused { server: to, reason })
        }
        .boxed()
    }

    fn stream(&self, to: &str, request: Bytes) -> BoxFuture<'_, Result<Pieces, PeerError>> {
        let to = to.to_owned();
        async move {
            let server = self.network.reach(&self.from, &to)?;
            let pieces = server.pieces(&self.from, request).await;
            let pieces =
                pieces.map_err(|reason| PeerError::Refused { server: to.clone(), reason })?;
            let (network, from) = (self.network.clone(), self.from.clone());
            Ok(pieces
                .map(move |piece| {
                    network.reach(&to, &from).map_err(|_| PeerError::Broken {
                        server: to.clone(),
                        reason: "cut off".into(),
                    })?;
                    Ok(piece)
                })
                .boxed())
        }
        .boxed()
    }
}

/// Some servers, `s1` and so on, numbered from 1.
pub(crate) struct Cluster {
    pub(crate) network: Arc<Network>,
    pub(crate) servers: BTreeMap<u64, Arc<Embedded>>,
    pub(crate) options: EmbeddedOptions,
    dirs: BTreeMap<u64, tempfile::TempDir>,
}

pub(crate) fn names(ids: &[u64]) -> BTreeMap<u64, String> {
    ids.iter().map(|id| (*id, format!("s{id}"))).collect()
}

impl Cluster {
    /// Servers without any partition yet.
    pub(crate) async fn new(count: u64) -> Self {
        let network = Arc::new(Network::default());
        *network.runtime.lock() = Some(tokio::runtime::Handle::current());
        let (servers, dirs) = (BTreeMap::new(), BTreeMap::new());
        let mut cluster = Self { network, servers, dirs, options: options() };
        let all: Vec<_> = (1..=count).collect();
        for id in &all {
            cluster.start(*id).await;
            cluster.servers[id].know(names(&all)).await.unwrap();
        }
        cluster
    }

    /// Three servers that share `p1`.
    pub(crate) async fn three() -> Self {
        let cluster = Self::new(3).await;
        for server in cluster.servers.values() {
            server.create("p1", &names(&[1, 2, 3])).await.unwrap();
        }
        cluster.leader().await;
        cluster
    }

    pub(crate) fn dir(&self, id: u64) -> &Path {
        self.dirs[&id].path()
    }

    /// Starts a server on its directory.
    pub(crate) async fn start(&mut self, id: u64) {
        let dir = self.dirs.entry(id).or_insert_with(|| tempfile::tempdir().unwrap());
        let name = format!("s{id}");
        let way = Arc::new(Way { network: self.network.clone(), from: name.clone() });
        let identity = Identity { cluster: "test".into(), server: name.clone(), member: id };
        let (dir, options) = (dir.path().to_owned(), self.options.clone());
        let open = move || Embedded::open(&dir, &identity, way, &options);
        let server = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
        self.network.servers.lock().insert(name, Arc::downgrade(&server));
        self.servers.insert(id, server);
    }

    /// Ends a server in good order.
    pub(crate) async fn stop(&mut self, id: u64) {
        self.servers.remove(&id).unwrap().shutdown().await.unwrap();
    }

    pub(crate) fn store(&self, id: u64) -> Arc<EmbeddedStore> {
        self.servers[&id].store("p1").unwrap()
    }

    /// Waits until somebody leads and all others that are not cut off know it.
    pub(crate) async fn leader(&self) -> u64 {
        let agreed = async {
            loop {
                let cut = self.network.cut.lock().clone();
                let standings = self.servers.iter().filter_map(|(id, server)| {
                    let name = format!("s{id}");
                    let alone = cut.iter().filter(|(from, _)| *from == name).count() + 1;
                    (alone < self.servers.len() || cut.is_empty())
                        .then(|| server.standing("p1"))
                        .flatten()
                });
                let leaders: Vec<_> = standings.map(|standing| standing.leader).collect();
                if let Some(Some(leader)) = leaders.first()
                    && leaders.iter().all(|other| *other == Some(*leader))
                    && self.servers[leader].standing("p1").is_some_and(|it| it.leads)
                {
                    return *leader;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), agreed).await.expect("nobody leads")
    }

    pub(crate) async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        *self.servers.keys().find(|id| **id != leader).unwrap()
    }

    /// Waits until all members have applied the same.
    pub(crate) async fn level(&self) {
        let level = async {
            loop {
                let revisions: BTreeSet<_> =
                    self.servers.keys().map(|id| self.store(*id).progress().0).collect();
                if revisions.len() == 1 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), level).await.expect("members differ");
    }
}
