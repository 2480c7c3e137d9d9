//! Nodes by the thousand that behave like node agents, without machines.
//!
//! ```text
//! HollowNodes ──> Crew (one task for many nodes: timers, lives of pods) ──> writes
//!                   ^
//!                   ├── feed: one stream for all of a crew's nodes, heartbeats riding on it
//!                   └── kubelet: a watch of pods and a lease for each node
//! ```
//!
//! A hollow node registers, keeps its lease and its status, hears of its pods and has them live as
//! [`behaviour`] says. What it writes is made by the code of the real agent
//! ([`insula_nodeagent::hollow`]).
//!
//! # Invariants
//!
//! * The API is the only memory: nodes of the same names that are started again go on with the pods
//!   that they have.
//! * While the server is away nothing is lost: everything that could not be written is tried again.

pub mod behaviour;
mod crew;
mod feed;
mod kubelet;
mod life;
pub mod metrics;
mod options;
mod pods;
mod remove;
mod requests;
mod usage;

use std::sync::Arc;

use insula_client::{Client, ClientError, Error};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{crew::Crew, metrics::Counters};
pub use insula_nodeagent::hollow::Capacity;

pub use crate::{
    metrics::Counts,
    options::{Mode, Options, Target},
};

/// Why hollow nodes cannot start.
#[derive(Debug, thiserror::Error)]
pub enum HollowError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot register node {name}")]
    Register {
        name: String,
        #[source]
        source: Error,
    },
    #[error("{0} nodes are more than a process may have: {most}", most = options::MOST)]
    TooMany(u32),
    #[error("{0:?} is no beginning of node names: a to z, 0 to 9, - and ., at most 200 of them")]
    Prefix(String),
    #[error("the server has no node feed: choose mode kubelet")]
    NoFeed,
    #[error("cannot tell what kind of server this is")]
    Version(#[source] Error),
}

/// Hollow nodes that run. Dropped, they stop as [`HollowNodes::stop`] has them.
#[derive(Debug)]
pub struct HollowNodes {
    shared: Arc<Shared>,
    clients: Vec<Client>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// What all crews have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) counters: Counters,
    /// Requests under way.
    pub(crate) places: Semaphore,
}

impl HollowNodes {
    /// Starts `options.count` nodes against `target`. Returns when the first one is registered:
    /// what the server refuses for good is an error here. [`HollowNodes::ready`] waits for all.
    pub async fn start(options: Options, target: Target) -> Result<Self, HollowError> {
        options.check()?;
        let clients = target.clients(&options).await?;
        let shared = Arc::new(Shared {
            places: Semaphore::new(options.concurrency.max(1)),
            counters: Counters::default(),
            options,
        });
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let this = Self { shared: shared.clone(), clients, tasks, shutdown };
        let mut crews = this.crews();
        if let (Some(crew), Some(client)) = (crews.first_mut(), this.clients.first()) {
            let registered = requests::register(&shared, client, 0).await;
            let node = registered
                .map_err(|source| HollowError::Register { name: shared.name(0), source })?;
            crew.is_registered(0, node);
        }
        for crew in crews {
            this.tasks.spawn(crew.run());
        }
        this.tasks.close();
        Ok(this)
    }

    fn crews(&self) -> Vec<Crew> {
        let Options { count, first, .. } = self.shared.options;
        let size = self.shared.options.crew();
        let starts = (first..first + count).step_by(size as usize);
        let crew = |(start, client): (u32, &Client)| {
            let nodes = start..(start + size).min(first + count);
            let shutdown = self.shutdown.child_token();
            Crew::new(self.shared.clone(), client.clone(), nodes, self.tasks.clone(), shutdown)
        };
        starts.zip(self.clients.iter().cycle()).map(crew).collect()
    }

    /// How things are.
    pub fn counts(&self) -> Counts {
        self.shared.counters.counts()
    }

    /// The same as metrics.
    pub fn collector(&self) -> metrics::Hollow {
        metrics::Hollow(self.shared.clone())
    }

    /// Waits until all nodes are registered and hear of their pods.
    pub async fn ready(&self) {
        let count = u64::from(self.shared.options.count);
        while self.counts().listening < count {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    /// Ends all of them. Their objects stay, and grow old.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.tasks.wait().await;
    }

    /// Ends all of them and removes their nodes, with the leases. Returns how many nodes could not
    /// be removed.
    pub async fn remove(&self) -> usize {
        self.stop().await;
        remove::remove(&self.shared, &self.clients).await
    }
}

impl Drop for HollowNodes {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
