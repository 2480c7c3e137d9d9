//! `insula up`: a whole cloud in one process.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use insula_api::names::TenantName;
use insula_apiserver::{
    Server,
    error::chain,
    identity::{Identity, MASTERS, NODES},
    pki::{Authority, write_private},
    tokens::Keys,
};
use insula_client::Client;
use insula_nodeagent::{NodeAgent, NodeConfig};
use insula_partition::partitions::PartitionsConfig;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    apiserver::{self, Material, Running},
    cli,
    components::scheduler_config,
    data_dir::DataDir,
    kubeconfig,
    pki::ENCRYPTION,
    reload::{self, Group},
    sealing::Sealing,
    signals::run_until_signalled,
    signing::{self, Signing},
    store,
};

/// Runs until Ctrl-C or SIGTERM.
pub(crate) fn run(options: &cli::Up) -> Result<()> {
    run_until_signalled(|shutdown| cloud(options, shutdown))
}

fn without(options: &cli::Up, part: &str) -> bool {
    options.without.iter().any(|it| it == part)
}

async fn cloud(options: &cli::Up, shutdown: CancellationToken) -> Result<()> {
    let started = std::time::Instant::now();
    let with_node = !without(options, "node");
    if with_node {
        check_root()?;
        check_runtime(&options.agent.container_runtime_endpoint).await?;
    }
    let directory = DataDir::create(&options.data_dir)?;
    let listener = TcpListener::bind(options.listen).await.with_context(|| {
        format!(
            "cannot listen on {}: is another server running there? choose another with --listen",
            options.listen
        )
    })?;
    let port = listener.local_addr()?.port();
    let address = options.advertise_address.unwrap_or_else(|| own_address(options.listen.ip()));
    let reached = reached_by(options.listen.ip());
    let endpoint = format!("https://{}", SocketAddr::new(reached, port));
    let node_name = match &options.node_name {
        Some(name) => name.clone(),
        None => host_name(),
    };

    let authority = Authority::open_or_create(&directory.pki())?;
    let system = TenantName::system();
    let addresses = certificate_addresses(address, reached);
    let admin = authority
        .keep(&directory.pki(), "admin", || authority.client(&system, "admin", &[MASTERS]))?;
    let config = kubeconfig::text(&endpoint, &authority, &system, "admin", &admin);
    write_private(&directory.path("admin.kubeconfig"), &config)?;
    write_private(&directory.path("ca.crt"), authority.certificate())?;
    write_private(&directory.path("endpoint"), &endpoint)?;

    let storage = &options.storage;
    let mut partitions = PartitionsConfig::alone(
        directory.path("partitions"),
        store::config(storage, options.partitions.unwrap_or(0))?,
    );
    partitions.etcd = store::logins(storage)?;
    let encryption = directory.pki().join(ENCRYPTION);
    let sealing = Sealing::own(&encryption, options.accept_lost_keys)?;
    let keys = Arc::new(Keys::open_or_create(&directory.pki().join("sa.key"))?);
    let static_tokens = apiserver::static_tokens(options.token_auth_file.as_deref())?;
    let running = Running::start(
        apiserver::Parts {
            listener,
            material: material(&authority, &addresses)?,
            least_tls: options.agent.tls_min_version,
            keys: keys.clone(),
            static_tokens: static_tokens.clone(),
            advertise: SocketAddr::new(address, port).to_string(),
            partitions,
            audit: options.audit.log().as_ref().map(crate::config::AuditLog::open).transpose()?,
            outbound: options.outbound.networks(),
            sealing,
            seeds: None,
        },
        &shutdown,
    )
    .await?;
    running.front.set_goaway_chance(options.goaway_chance);
    running.front.set_connections_per_address(options.connections_per_address);
    let server = running.server.clone();
    let pki = directory.pki();
    let statics = options.token_auth_file.as_ref().zip(static_tokens.as_ref());
    let mut groups = running.reloaded(&keys, statics, Some(&encryption));
    let (present, files) = (running.presents(), ["ca.crt", "ca.key"].map(|it| pki.join(it)));
    let renew = move || {
        let authority = Authority::open_or_create(&pki)?;
        present(&material(&authority, &addresses)?)
    };
    groups.push(Group::new("the authority", files, renew).renewed_after(RENEWAL));
    let reloading = TaskTracker::new();
    reloading.spawn(apiserver::until(shutdown.clone(), reload::follow(groups)));

    let parts = Parts { options, directory: &directory, authority: &authority, server: &server };
    let components = CancellationToken::new();
    let workers = TaskTracker::new();
    let mut failures = parts.start(&workers, &components, &node_name, address, port).await?;
    if !shutdown.is_cancelled() {
        tracing::info!(elapsed = ?started.elapsed(), "ready");
        ready(&endpoint);
    }
    tokio::select! {
        () = shutdown.cancelled() => (),
        Some(failed) = failures.recv() => {
            tracing::error!(part = failed.0, error = failed.1, "a part of the cloud failed");
            shutdown.cancel();
            end(&workers, &components, running).await;
            bail!("the {} failed: {}", failed.0, failed.1);
        }
    }
    end(&workers, &components, running).await;
    Ok(())
}

/// After how long this process makes itself other certificates, which are good for a year.
const RENEWAL: Duration = Duration::from_secs(30 * 86_400);

/// What the API server shows to others. Its keys are nowhere but in memory.
fn material(authority: &Authority, addresses: &[IpAddr]) -> Result<Material> {
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    Ok(Material {
        ca: authority.certificate().to_owned(),
        server: authority.server("insula-apiserver", &names, addresses)?,
        to_nodes: authority.client(&TenantName::system(), "system:apiserver", &[MASTERS])?,
    })
}

/// The parts first, then the server: each can finish what it began.
async fn end(workers: &TaskTracker, components: &CancellationToken, running: Running) {
    const PATIENCE: Duration = Duration::from_secs(10);
    components.cancel();
    workers.close();
    if tokio::time::timeout(PATIENCE, workers.wait()).await.is_err() {
        tracing::warn!("some parts did not end in time");
    }
    running.end().await;
}

#[allow(clippy::print_stdout, reason = "scripts wait for this line")]
fn ready(endpoint: &str) {
    println!("ready {endpoint}");
}

/// What the parts of a cloud are started from.
struct Parts<'a> {
    options: &'a cli::Up,
    directory: &'a DataDir,
    authority: &'a Authority,
    server: &'a Arc<Server>,
}

/// A part of the cloud while it runs; it ends when told to, or with a reason.
type Task = std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// How long the node may take to be ready for pods.
const NODE_READY: Duration = Duration::from_secs(60);

/// A part's name and why it failed.
type Failure = (&'static str, String);

impl Parts<'_> {
    /// A client of the server in this process.
    fn client(&self, user: &str, group: &str) -> Result<Client> {
        let server = self.server.clone();
        let identity = Identity::new(TenantName::system(), user, &[group]);
        let service = tower::service_fn(move |request: http::Request<_>| {
            let (server, identity) = (server.clone(), identity.clone());
            async move {
                Ok::<_, std::convert::Infallible>(server.handle_trusted(request, identity).await)
            }
        });
        Ok(Client::in_process(service, user)?)
    }

    /// Starts all parts; returns when the node is ready for pods.
    async fn start(
        &self,
        workers: &TaskTracker,
        stop: &CancellationToken,
        node_name: &str,
        address: IpAddr,
        port: u16,
    ) -> Result<tokio::sync::mpsc::Receiver<Failure>> {
        let (failed, failures) = tokio::sync::mpsc::channel(4);
        let run = |part: &'static str, task: Task| {
            let failed = failed.clone();
            workers.spawn(async move {
                if let Err(why) = task.await {
                    let _ = failed.send((part, why)).await;
                }
            });
        };
        if !without(self.options, "controllers") {
            let client = self.client("system:kube-controller-manager", MASTERS)?;
            let mut config = insula_controllers::Config::new(self.authority.certificate());
            let [certificate, key] = ["ca.crt", "ca.key"].map(|it| self.directory.pki().join(it));
            config.signer = Some(Arc::new(Signing::new(&certificate, &key)));
            config.node_asked_for = signing::node_asked_for;
            config.host = Some(host_name());
            let stop = stop.clone();
            run(
                "controllers",
                Box::pin(async move {
                    insula_controllers::run(config, client, stop).await.map_err(|it| chain(&it))
                }),
            );
        }
        if !without(self.options, "scheduler") {
            let client = self.client("system:kube-scheduler", MASTERS)?;
            let mut config = scheduler_config(self.options.scheduler_config.as_deref())?;
            config.host = Some(host_name());
            let stop = stop.clone();
            run(
                "scheduler",
                Box::pin(async move {
                    insula_scheduler::run(config, client, stop).await.map_err(|it| chain(&it))
                }),
            );
        }
        if without(self.options, "node") {
            return Ok(failures);
        }
        let user = format!("system:node:{node_name}");
        let agent =
            NodeAgent::new(self.node_config(node_name, address, port)?, self.client(&user, NODES)?);
        let mut ready = agent.ready();
        let stop = stop.clone();
        run("node agent", Box::pin(async move { agent.run(stop).await.map_err(|it| chain(&it)) }));
        let mut failures = failures;
        tokio::select! {
            _ = ready.wait_for(|ready| *ready) => (),
            Some((part, why)) = failures.recv() => bail!("the {part} failed: {why}"),
            () = tokio::time::sleep(NODE_READY) => bail!(
                "the node did not get ready within {} s; see the log above", NODE_READY.as_secs()
            ),
        }
        Ok(failures)
    }
}

impl Parts<'_> {
    fn node_config(&self, name: &str, address: IpAddr, port: u16) -> Result<NodeConfig> {
        let pki = self.directory.pki();
        let addresses = [address, Ipv4Addr::LOCALHOST.into()];
        self.authority.keep(&pki, "node", || {
            self.authority.server(&format!("system:node:{name}"), &[name], &addresses)
        })?;
        let (cert, key) = (pki.join("node.crt"), pki.join("node.key"));
        let mut config = NodeConfig::new(name, address, cert, key, pki.join("ca.crt"));
        config.root_dir = self.directory.path("node");
        config.pod_logs_dir = self.directory.path("logs");
        config.runtime_endpoint.clone_from(&self.options.agent.container_runtime_endpoint);
        config.eviction_hard = self.options.agent.eviction_hard;
        config.tls_versions = self.options.agent.tls_min_version.versions();
        // Only who reaches this machine reaches its agent.
        let listen = if address.is_loopback() { address } else { self.options.listen.ip() };
        config.listen = SocketAddr::new(listen, self.options.node_port);
        config.apiserver_address = Some(SocketAddr::new(address, port));
        Ok(config)
    }
}

/// Containers are root's business.
pub(crate) fn check_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "running containers needs root: start as root, or leave the node out with `--without node`"
        );
    }
    Ok(())
}

/// Says at once what the node agent would wait for.
pub(crate) async fn check_runtime(endpoint: &str) -> Result<()> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => Ok(()),
        Err(error) => bail!(
            "containerd is not running at {endpoint} ({error}); start it with `make deps` or \
             `systemctl start containerd`, name another with --container-runtime-endpoint, \
             or leave the node out with `--without node`"
        ),
    }
}

pub(crate) fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    if name.is_empty() { "localhost".into() } else { name }
}

/// The address that this machine sends from. Asks the routing table only; nothing is sent.
pub(crate) fn own_address(listen: IpAddr) -> IpAddr {
    if !listen.is_unspecified() {
        return listen;
    }
    let asked = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // TEST-NET-1 (RFC 5737): routed like the rest of the world, nobody's address.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    asked().ok().filter(|it| !it.is_unspecified()).unwrap_or_else(|| Ipv4Addr::LOCALHOST.into())
}

/// How processes of this machine reach a server that listens on `listen`.
fn reached_by(listen: IpAddr) -> IpAddr {
    match listen {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

fn certificate_addresses(address: IpAddr, reached: IpAddr) -> Vec<IpAddr> {
    let mut all =
        vec![address, reached, Ipv4Addr::LOCALHOST.into(), "::1".parse().unwrap_or(reached)];
    all.sort();
    all.dedup();
    all
}
