//! The agent as a whole: what it starts, and in which order.
//!
//! 1. The HTTPS server, so that its port is known.
//! 2. The Node object, its status and its lease. Without a runtime the node says that it is not
//!    ready, and why.
//! 3. Once the runtime answers: the pods that the API assigns to this node, and what the runtime
//!    has already.

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use insula_client::{Client, EventRecorder, chain};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    NodeConfig, NodeError,
    assigned::{Assigned, NodeNews},
    cluster::ApiCluster,
    cri::{RuntimeClient, RuntimeError},
    machine::Machine,
    meter::Meter,
    node::Node,
    pod::{dns::Resolver, image::Images},
    pods::Pods,
    registration::{Registration, RuntimeState},
    relist, rotation,
    server::Server,
};

/// How long what runs may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(10);
/// How soon to look again for a runtime that is away.
const RUNTIME_RETRY: Duration = Duration::from_millis(500);

/// A node agent that has been set up and not yet started.
#[derive(Debug)]
pub struct NodeAgent {
    config: NodeConfig,
    client: Client,
    ready: watch::Sender<bool>,
}

/// Runs a node agent until `shutdown`. Containers run on after it.
pub fn run(
    config: NodeConfig,
    client: Client,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<(), NodeError>> {
    NodeAgent::new(config, client).run(shutdown)
}

impl NodeAgent {
    pub fn new(config: NodeConfig, client: Client) -> Self {
        Self { config, client, ready: watch::Sender::new(false) }
    }

    /// Says whether the node is registered, ready, and has heard which pods are its own.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Runs until `shutdown`. Containers run on after it.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), NodeError>> {
        // Boxed so that it is compiled here, and not with every program around it.
        Box::pin(self.run_until(shutdown))
    }

    async fn run_until(self, shutdown: CancellationToken) -> Result<(), NodeError> {
        // However this ends, all that was started ends with it.
        let shutdown = shutdown.child_token();
        let _end = shutdown.clone().drop_guard();
        let tasks = TaskTracker::new();
        let result = self.start(&tasks, &shutdown).await;
        shutdown.cancel();
        tasks.close();
        if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
            tracing::warn!(n_tasks = tasks.len(), "some tasks did not end in time");
        }
        result
    }

    async fn start(
        self,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<(), NodeError> {
        let Self { mut config, client, ready } = self;
        let machine = Machine::look().map_err(NodeError::Machine)?;
        let runtime = RuntimeClient::new(&config.runtime_endpoint)
            .map_err(|error| NodeError::Runtime(error.into()))?;
        for path in [&config.root_dir, &config.pod_logs_dir] {
            make_directory(path).await?;
        }
        // What pods have in their volumes is nobody else's business.
        let private = std::fs::Permissions::from_mode(0o750);
        let hidden = tokio::fs::set_permissions(&config.root_dir, private).await;
        hidden.map_err(|source| NodeError::Directory { path: config.root_dir.clone(), source })?;
        // The same directory must have the same name at every start.
        config.root_dir = tokio::fs::canonicalize(&config.root_dir)
            .await
            .map_err(|source| NodeError::Directory { path: config.root_dir.clone(), source })?;
        let tls = crate::server::tls_config(&config)?;
        let listen = |source| NodeError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        config.listen = listener.local_addr().map_err(listen)?;

        let events = EventRecorder::start(
            client.clone(),
            "kubelet",
            &config.node_name,
            tasks,
            shutdown.clone(),
        );
        let (runtime_state, states) = watch::channel(RuntimeState::default());
        let (news, news_heard) = watch::channel(NodeNews::default());
        let registration = Registration::new(
            config.clone(),
            (client.clone(), events.clone()),
            runtime.clone(),
            machine.clone(),
            runtime_state,
            news_heard,
        );
        tasks.spawn(Box::pin(registration.run(shutdown.clone())));

        let Some(version) = wait_for_runtime(&runtime, shutdown).await else { return Ok(()) };
        let node = Arc::new(Node {
            images: Images::new(runtime.clone()),
            systemd_cgroups: version.systemd_cgroups,
            runtime_name: version.name,
            cluster: Arc::new(ApiCluster::new(client.clone(), events)),
            resolver: read_resolver().await,
            config,
            runtime,
            machine,
        });
        let pods = Pods::new(node.clone(), tasks.clone(), shutdown.clone());
        let meter = Meter::default();
        tasks.spawn(meter.clone().run(node.clone(), shutdown.clone()));
        let assigned = Assigned {
            name: node.config.node_name.clone(),
            client,
            pods: pods.clone(),
            news: Arc::new(news),
            meter: meter.clone(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        let synced = assigned.start();
        let has_synced = synced.clone();
        let is_synced = move || *has_synced.borrow();
        tasks.spawn(relist::run(node.clone(), pods.clone(), is_synced, shutdown.clone()));
        tasks.spawn(rotation::run(node.clone(), shutdown.clone()));
        let server = Server::new(node, pods);
        tasks.spawn(server.run(listener, tls, tasks.clone(), shutdown.clone()));
        tasks.spawn(signal_ready(synced, states, ready, shutdown.clone()));
        shutdown.cancelled().await;
        Ok(())
    }
}

/// What the runtime says of itself once.
struct RuntimeVersion {
    name: String,
    systemd_cgroups: bool,
}

/// `None` if the agent is to end before the runtime answers.
async fn wait_for_runtime(
    runtime: &RuntimeClient,
    shutdown: &CancellationToken,
) -> Option<RuntimeVersion> {
    let mut is_told = false;
    loop {
        match shutdown.run_until_cancelled(ask_version(runtime)).await? {
            Ok(version) => return Some(version),
            Err(error) if !is_told => {
                tracing::warn!(error = chain(&error), "waiting for the runtime");
                is_told = true;
            }
            Err(_) => {}
        }
        shutdown.run_until_cancelled(tokio::time::sleep(RUNTIME_RETRY)).await?;
    }
}

async fn ask_version(runtime: &RuntimeClient) -> Result<RuntimeVersion, RuntimeError> {
    let version = runtime.version().await?;
    let systemd_cgroups = runtime.uses_systemd_cgroups().await?.unwrap_or(false);
    Ok(RuntimeVersion { name: version.runtime_name, systemd_cgroups })
}

async fn make_directory(path: &Path) -> Result<(), NodeError> {
    tokio::fs::create_dir_all(path)
        .await
        .map_err(|source| NodeError::Directory { path: path.to_path_buf(), source })
}

async fn read_resolver() -> Resolver {
    match tokio::fs::read_to_string("/etc/resolv.conf").await {
        Ok(text) => Resolver::parse(&text),
        Err(error) => {
            tracing::warn!(%error, "cannot read /etc/resolv.conf; pods get no name servers from it");
            Resolver::default()
        }
    }
}

/// Ready is the node when it is registered as such and knows its pods; not any more when the
/// runtime goes away.
async fn signal_ready(
    mut synced: watch::Receiver<bool>,
    mut states: watch::Receiver<RuntimeState>,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
) {
    let follow = async {
        if synced.wait_for(|it| *it).await.is_err() {
            return;
        }
        loop {
            let is_ready = states.borrow_and_update().is_reported_ready;
            ready.send_if_modified(|it| std::mem::replace(it, is_ready) != is_ready);
            if states.changed().await.is_err() {
                return;
            }
        }
    };
    shutdown.run_until_cancelled(follow).await;
}
