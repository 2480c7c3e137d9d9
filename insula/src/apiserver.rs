//! `insula apiserver`: one API server process, alone or among others.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use insula_apiserver::{
    Front, OutboundNetworks, Server, ServerConfig, StaticTokens, Tls,
    audit::Audit,
    encryption::EncryptionFile,
    error::chain,
    peers::{HttpPeers, PeerTls},
    pki::Pair,
    tokens::Keys,
};
use insula_partition::{
    map::{Backend, PartitionMap},
    partitions::{META, Partitions, PartitionsConfig, StoreConfig},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cli,
    config::{AuditLog, Config, LeastTls, Pki, Serve},
    reload::{self, Group},
    sealing::Sealing,
    signals::run_until_signalled,
};

/// Runs until Ctrl-C or SIGTERM.
pub(crate) fn run(options: &cli::Apiserver) -> Result<()> {
    let mut config = Config::read(&options.config)?;
    if let Some(listen) = options.listen {
        config.listen = listen;
    }
    if let Some(advertise) = &options.advertise {
        config.advertise = Some(advertise.clone());
    }
    if let Some(least) = options.tls_min_version {
        config.tls_min_version = least;
    }
    if let Some(data_dir) = &options.data_dir {
        config.data_dir.clone_from(data_dir);
    }
    config.check()?;
    if options.print_config {
        print(&config.to_yaml()?);
        return Ok(());
    }
    run_until_signalled(|shutdown| serve(&config, options.accept_lost_keys, shutdown))
}

#[allow(clippy::print_stdout, reason = "the output that was asked for")]
fn print(text: &str) {
    print!("{text}");
}

/// How long parts have to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The PEM files of a server, read.
pub(crate) struct Material {
    pub(crate) ca: String,
    pub(crate) server: Pair,
    pub(crate) to_nodes: Pair,
}

impl Material {
    fn read(pki: &Pki) -> Result<Self> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let pair = |certificate: &Path, key: &Path| -> Result<Pair> {
            Ok(Pair { certificate: read(certificate)?, key: read(key)? })
        };
        Ok(Self {
            ca: read(&pki.ca)?,
            server: pair(&pki.certificate, &pki.key)?,
            to_nodes: pair(&pki.node_client_certificate, &pki.node_client_key)?,
        })
    }

    /// What clients and other servers meet.
    fn listener(&self, least: LeastTls) -> Result<Tls> {
        Ok(Tls::of_versions(&self.ca, &self.server, least.versions())?)
    }
}

/// What a running server is made of; the same for `insula up` and `insula apiserver`.
pub(crate) struct Running {
    pub(crate) server: Arc<Server>,
    pub(crate) front: Arc<Front>,
    least_tls: LeastTls,
    peers: Option<HttpPeers>,
    partitions: Arc<Partitions>,
    /// Ends what servers say to each other, after storage has ended.
    closed: CancellationToken,
    tasks: TaskTracker,
    audit_log: Option<Audit>,
}

/// What it takes to start one.
pub(crate) struct Parts {
    pub(crate) listener: TcpListener,
    pub(crate) material: Material,
    pub(crate) least_tls: LeastTls,
    pub(crate) keys: Arc<Keys>,
    pub(crate) static_tokens: Option<Arc<StaticTokens>>,
    pub(crate) advertise: String,
    pub(crate) partitions: PartitionsConfig,
    pub(crate) audit: Option<Audit>,
    /// Whom requests that tenants cause may reach.
    pub(crate) outbound: OutboundNetworks,
    /// With which keys it opens what is stored.
    pub(crate) sealing: Sealing,
    /// `None` without others.
    pub(crate) seeds: Option<Vec<(String, String)>>,
}

impl Running {
    /// Takes connections at once, and returns when clients are answered.
    pub(crate) async fn start(parts: Parts, shutdown: &CancellationToken) -> Result<Self> {
        let Parts { listener, material, least_tls, keys, static_tokens, .. } = parts;
        let Parts { advertise, partitions: mut config, audit, seeds, sealing, outbound, .. } =
            parts;
        config.vault = sealing.vault()?;
        let closed = CancellationToken::new();
        let peers = match seeds {
            Some(seeds) => {
                let tls = PeerTls::new(&material.ca, &material.server)?;
                let memory = Some(config.data_dir.with_file_name("servers.json"));
                let (own, address) = (&config.server, &config.address);
                let peers = HttpPeers::new(own, address, tls, memory, closed.clone());
                let known = seeds.iter().map(|(name, address)| (name.as_str(), address.as_str()));
                peers.set_addresses(known);
                config.peers = Arc::new(peers.clone());
                Some(peers)
            }
            None => None,
        };
        let tls = material.listener(least_tls)?;
        let front = Front::new(tls, peers.clone(), shutdown.clone(), closed.clone());
        let others = peers.clone();
        let audit_log = audit.clone();
        let tasks = TaskTracker::new();
        tasks.spawn(front.clone().serve(listener));

        let opened = async {
            let partitions = Arc::new(Partitions::open(config).await?);
            if let Err(error) = sealing.check(&partitions).await {
                let _ = partitions.shutdown().await;
                return Err(error);
            }
            let started = Server::start(ServerConfig {
                partitions: partitions.clone(),
                keys,
                static_tokens,
                node_tls: Tls::client(&material.ca, &material.to_nodes)?,
                advertise,
                services: insula_apiserver::services::ServiceRanges::default(),
                outbound,
                peers,
                audit,
                shutdown: shutdown.clone(),
            });
            let server = match started.await {
                Ok(server) => server,
                Err(error) => {
                    let _ = partitions.shutdown().await;
                    return Err(error.into());
                }
            };
            Ok::<_, anyhow::Error>((partitions, server))
        };
        let opened = tokio::select! {
            opened = opened => opened,
            () = shutdown.cancelled() => Err(anyhow::anyhow!("ended before it was ready")),
        };
        let (partitions, server) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                closed.cancel();
                return Err(error);
            }
        };
        server.add_metrics(Box::new(insula_client::metrics::Requests));
        server.add_metrics(Box::new(insula_controllers::metrics::Queues));
        front.open(server.clone());
        Ok(Self { server, front, least_tls, peers: others, partitions, closed, tasks, audit_log })
    }

    /// What is read again: the keys of tokens, static ones, and the keys of what is stored.
    pub(crate) fn reloaded(
        &self,
        keys: &Keys,
        static_tokens: Option<(&PathBuf, &Arc<StaticTokens>)>,
        encryption: Option<&Path>,
    ) -> Vec<Group> {
        let server = self.server.clone();
        let mut groups = vec![Group::new("keys of tokens", [keys.path().to_owned()], move || {
            Ok(server.reload_keys()?)
        })];
        if let Some(path) = encryption {
            let (vault, path) = (self.partitions.vault().clone(), path.to_owned());
            let reload = {
                let path = path.clone();
                move || {
                    vault.set(EncryptionFile::open(&path)?.settings()?);
                    Ok(())
                }
            };
            groups.push(Group::new("the encryption configuration", [path], reload));
        }
        if let Some((path, tokens)) = static_tokens {
            let tokens = tokens.clone();
            let reload = move || Ok(tokens.reload()?);
            groups.push(Group::new("static tokens", [path.clone()], reload));
        }
        groups
    }

    /// What presents other certificates to clients, other servers and nodes, and trusts others.
    pub(crate) fn presents(&self) -> impl Fn(&Material) -> Result<()> + Send + 'static {
        let (server, front, peers) = (self.server.clone(), self.front.clone(), self.peers.clone());
        let least_tls = self.least_tls;
        move |material| {
            // All are made before any is used.
            let tls = material.listener(least_tls)?;
            let to_nodes = Tls::client(&material.ca, &material.to_nodes)?;
            let to_peers = peers.as_ref().map(|_| PeerTls::new(&material.ca, &material.server));
            if let (Some(peers), Some(tls)) = (&peers, to_peers) {
                peers.set_tls(tls?);
            }
            front.set_tls(tls);
            server.set_node_tls(to_nodes);
            Ok(())
        }
    }

    /// Clients first, then storage, then the other servers: each can finish what it began. The
    /// token that it was started with is cancelled.
    pub(crate) async fn end(self) {
        if tokio::time::timeout(PATIENCE, self.front.drain()).await.is_err() {
            tracing::warn!("some clients did not end in time");
        }
        if let Err(error) = self.partitions.shutdown().await {
            tracing::error!(error = chain(&error), "storage did not end cleanly");
        }
        self.closed.cancel();
        self.tasks.close();
        if tokio::time::timeout(PATIENCE, self.tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        if let Some(log) = self.audit_log {
            // It may wait for a disk.
            if tokio::task::spawn_blocking(move || log.close()).await.is_err() {
                tracing::error!("the audit log did not end cleanly");
            }
        }
    }
}

async fn serve(config: &Config, accepts_lost: bool, shutdown: CancellationToken) -> Result<()> {
    let started = std::time::Instant::now();
    let material = Material::read(&config.pki)?;
    if !config.pki.service_account_key.exists() {
        // Made here it would be another than the other servers'.
        bail!("there is no key {}", config.pki.service_account_key.display());
    }
    let keys = Arc::new(Keys::open_or_create(&config.pki.service_account_key)?);
    let static_tokens = static_tokens(config.static_tokens.as_deref())?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make {}", config.data_dir.display()))?;
    let storage = config.data_dir.join("partitions");
    let store = match config.store()? {
        // From the second start on the partition map decides.
        StoreConfig::Embedded { .. } if storage.exists() => StoreConfig::Embedded { partitions: 0 },
        store => store,
    };
    let mut partitions = PartitionsConfig::alone(storage, store);
    partitions.server.clone_from(&config.name);
    partitions.address = config.address();
    partitions.etcd = config.logins()?;
    // A file that was made here would have other keys than the other servers'.
    let sealing = Sealing::configured(config.encryption.as_deref(), accepts_lost)?;
    let seeds = match &config.cluster {
        crate::config::Cluster::Join(seeds) => {
            seeds.iter().map(|seed| (seed.name.clone(), seed.address.clone())).collect()
        }
        crate::config::Cluster::Begin(_) => Vec::new(),
    };
    let parts = Parts {
        listener,
        material,
        least_tls: config.tls_min_version,
        keys: keys.clone(),
        static_tokens: static_tokens.clone(),
        advertise: config.address(),
        partitions,
        audit: config.audit.as_ref().map(AuditLog::open).transpose()?,
        outbound: config.outbound.clone(),
        sealing,
        seeds: Some(seeds),
    };
    let running = Running::start(parts, &shutdown).await?;
    running.front.set_goaway_chance(config.goaway_chance);
    running.front.set_connections_per_address(config.connections_per_address);
    let background = TaskTracker::new();
    let wanted = Wanted { partitions: running.partitions.clone(), config: config.clone() };
    background.spawn(until(shutdown.clone(), wanted.keep()));
    let statics = config.static_tokens.as_ref().zip(static_tokens.as_ref());
    let mut groups = running.reloaded(&keys, statics, config.encryption.as_deref());
    let (present, pki) = (running.presents(), config.pki.clone());
    groups.push(Group::new("certificates", pki.certificates(), move || {
        present(&Material::read(&pki)?)
    }));
    background.spawn(until(shutdown.clone(), reload::follow(groups)));
    tracing::info!(elapsed = ?started.elapsed(), name = config.name, "ready");
    print(&format!("ready https://{}\n", config.address()));
    shutdown.cancelled().await;
    background.close();
    background.wait().await;
    running.end().await;
    Ok(())
}

pub(crate) async fn until(end: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => (),
        () = end.cancelled() => (),
    }
}

/// Tokens that a file names, if there is one.
pub(crate) fn static_tokens(path: Option<&Path>) -> Result<Option<Arc<StaticTokens>>> {
    Ok(path.map(StaticTokens::open).transpose()?.map(Arc::new))
}

/// The partitions that this server is configured to serve, and what the map says of them.
struct Wanted {
    partitions: Arc<Partitions>,
    config: Config,
}

impl Wanted {
    /// Asks once to be a member of what it is to serve. What the map says later is an operator's
    /// decision, which is not undone by a restart: a server asks only when it is new.
    async fn keep(self) {
        let marker = self.config.data_dir.join("asked");
        if marker.exists() {
            return;
        }
        loop {
            match self.ask().await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot ask for partitions yet");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
        if let Err(error) = std::fs::write(&marker, "") {
            tracing::warn!(%error, "will ask for partitions again after a restart");
        }
    }

    fn wants(&self, partition: &str) -> bool {
        match &self.config.serve {
            Serve::All => true,
            Serve::None => false,
            Serve::Some(names) => names.iter().any(|name| name == partition),
        }
    }

    async fn ask(&self) -> Result<(), insula_partition::partitions::ChangeError> {
        let name = &self.config.name;
        let change = |map: &PartitionMap| {
            let all = std::iter::once(map.meta()).chain(map.infos());
            let missing: Vec<_> = all
                .filter(|info| matches!(info.backend, Backend::Embedded))
                .filter(|info| self.wants(&info.name) && !info.servers.contains(name))
                .map(|info| (info.name.clone(), info.servers.clone()))
                .collect();
            let mut next = map.clone();
            for (partition, mut servers) in missing {
                servers.push(name.clone());
                next = next.with_members(&partition, servers)?;
            }
            Ok(next)
        };
        self.partitions.change_map(change).await.map(drop)?;
        tracing::debug!(meta = META, "asked for what is to be served here");
        Ok(())
    }
}
