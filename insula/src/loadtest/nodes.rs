//! Hollow nodes: as a command, and as scenarios ask for them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use futures::future::BoxFuture;
use insula_hollow::{HollowNodes, Mode, Options, Target, behaviour::Span};
use insula_loadtest::{NodePool, NodesError, NodesWanted, RUN_LABEL, RunningNodes};
use insula_metrics::Collector;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{observed, signals::run_until_signalled};

/// How often it is said how things are.
const TELL_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Nodes {
    /// How many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// A platform administrator's kubeconfig, or one of any Kubernetes.
    #[arg(long, value_name = "F", env = "KUBECONFIG")]
    kubeconfig: PathBuf,
    /// What their names begin with; a number follows.
    #[arg(long, value_name = "TEXT", default_value = "hollow-")]
    prefix: String,
    /// The number of the first one: several processes can share a cluster.
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u32,
    /// How they speak to the API server: `feed` is as our agent does, on few streams that our
    /// server alone has; `kubelet` is as a standard kubelet does, with a watch and a lease for each
    /// node.
    #[arg(long, value_name = "MODE", default_value = "feed")]
    mode: Mode,
    /// What each of them has: `cpu=N`, `memory=N` and `disk=N` (GiB), `pods=N`, separated by
    /// commas.
    #[arg(long, value_name = "LIST", default_value = "cpu=4,memory=32,disk=256,pods=110", value_parser = capacity)]
    capacity: insula_hollow::Capacity,
    /// A label of all of them: `KEY=VALUE`; may be repeated.
    #[arg(long, value_name = "LABEL", value_parser = label)]
    label: Vec<(String, String)>,
    /// Zones that they are in, in turn, separated by commas.
    #[arg(long, value_name = "ZONES", value_delimiter = ',')]
    zones: Vec<String>,
    /// How long pods take to start that do not say: `250ms`, or a range such as `1s..3s`.
    #[arg(long, value_name = "TIME", default_value = "100ms..500ms")]
    start_after: Span,
    /// How many requests may be under way at once.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Remove the nodes at the end.
    #[arg(long)]
    remove: bool,
    /// Serve /metrics and /healthz here, over plain HTTP and to everyone.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "not KEY=VALUE".to_owned())?;
    Ok((key.to_owned(), value.to_owned()))
}

fn capacity(text: &str) -> Result<insula_hollow::Capacity, String> {
    let mut found = Options::new(1).capacity;
    for part in text.split(',') {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} has no `=`"))?;
        let number: u32 = value.parse().map_err(|_| format!("{value:?} is not a number"))?;
        match name {
            "cpu" => found.cpus = number,
            "memory" => found.memory = u64::from(number) << 30,
            "disk" => found.disk = u64::from(number) << 30,
            "pods" => found.pods = number,
            _ => return Err(format!("{name:?} is none of cpu, memory, disk, pods")),
        }
    }
    Ok(found)
}

/// `insula loadtest nodes`.
pub(crate) fn run(options: &Nodes) -> Result<()> {
    run_until_signalled(|shutdown| Box::pin(nodes(options, shutdown)))
}

async fn nodes(asked: &Nodes, shutdown: CancellationToken) -> Result<()> {
    let mut options = Options::new(asked.count);
    options.first = asked.first;
    options.prefix.clone_from(&asked.prefix);
    options.mode = asked.mode;
    options.capacity = asked.capacity.clone();
    options.labels.clone_from(&asked.label);
    options.zones.clone_from(&asked.zones);
    options.behaviour.start_after = asked.start_after;
    options.concurrency = asked.concurrency.into();
    let target = Target::Kubeconfig(asked.kubeconfig.clone());
    let hollow = HollowNodes::start(options, target).await?;
    if let Some(address) = asked.listen {
        let collectors: Vec<Box<dyn Collector>> =
            vec![Box::new(hollow.collector()), Box::new(insula_client::metrics::Requests)];
        let address = observed::serve(address, collectors, shutdown.clone()).await?;
        tracing::info!(%address, "metrics");
    }
    let telling = async {
        hollow.ready().await;
        tracing::info!(nodes = asked.count, "all nodes are ready");
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            tracing::info!("{}", hollow.counts());
        }
    };
    shutdown.run_until_cancelled(telling).await;
    if !asked.remove {
        hollow.stop().await;
        return Ok(());
    }
    tracing::info!(nodes = asked.count, "removing the nodes");
    match hollow.remove().await {
        0 => Ok(()),
        left => Err(anyhow::anyhow!("{left} nodes could not be removed")),
    }
}

/// Nodes for scenarios. They have names of their own, and are removed at the end.
pub(super) struct Pool {
    /// As our agents speak to our servers, or as kubelets do to any.
    pub(super) mode: Mode,
}

/// Nodes of a scenario.
struct Running {
    nodes: Mutex<HollowNodes>,
    options: Options,
    target: Target,
}

impl NodePool for Pool {
    fn start<'a>(
        &'a self,
        kubeconfig: &'a Path,
        wanted: NodesWanted,
    ) -> BoxFuture<'a, Result<Box<dyn RunningNodes>, NodesError>> {
        Box::pin(async move {
            let mut options = Options::new(u32::try_from(wanted.count)?);
            options.prefix = format!("{}-", wanted.run);
            options.labels = vec![(RUN_LABEL.to_owned(), wanted.run)];
            options.mode = self.mode;
            options.capacity.pods = u32::try_from(wanted.pods)?;
            options.behaviour.start_after =
                Span { from: wanted.start_delay, to: wanted.start_delay };
            let target = Target::Kubeconfig(kubeconfig.to_owned());
            let nodes = HollowNodes::start(options.clone(), target.clone()).await?;
            nodes.ready().await;
            Ok(Box::new(Running { nodes: Mutex::new(nodes), options, target }) as _)
        })
    }
}

impl RunningNodes for Running {
    /// All of them go and come back at once, with the pods that they have.
    fn reconnect(&self) -> BoxFuture<'_, Result<(), NodesError>> {
        Box::pin(async move {
            let mut nodes = self.nodes.lock().await;
            nodes.stop().await;
            *nodes = HollowNodes::start(self.options.clone(), self.target.clone()).await?;
            nodes.ready().await;
            Ok(())
        })
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, Result<(), NodesError>> {
        Box::pin(async move {
            match self.nodes.lock().await.remove().await {
                0 => Ok(()),
                left => Err(format!("{left} nodes could not be removed").into()),
            }
        })
    }
}
