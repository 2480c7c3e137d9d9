//! Hollow nodes, as a scenario asks for them. Who runs load tests says how they are made.

use std::{path::Path, time::Duration};

use futures::future::BoxFuture;

/// What a scenario asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodesWanted {
    /// The run's id: nodes carry it as the value of label `insula.io/loadtest-run`, and their
    /// names begin with it.
    pub run: String,
    pub count: u64,
    /// Pods that each of them takes.
    pub pods: u64,
    /// From being bound to being ready.
    pub start_delay: Duration,
}

/// Why there are no nodes.
pub type NodesError = Box<dyn std::error::Error + Send + Sync>;

/// Makes hollow nodes.
pub trait NodePool: Send + Sync {
    /// Registers them, and returns when all of them are ready; they live until they are stopped.
    fn start<'a>(
        &'a self,
        kubeconfig: &'a Path,
        wanted: NodesWanted,
    ) -> BoxFuture<'a, Result<Box<dyn RunningNodes>, NodesError>>;
}

/// Hollow nodes that live.
pub trait RunningNodes: Send + Sync {
    /// Ends all connections at once; returns when all nodes are back.
    fn reconnect(&self) -> BoxFuture<'_, Result<(), NodesError>>;

    /// Ends them and removes what they registered.
    fn stop(self: Box<Self>) -> BoxFuture<'static, Result<(), NodesError>>;
}
