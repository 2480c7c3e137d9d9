//! Parts of a cloud as processes of their own: `insula controllers`, `scheduler` and `node`.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use insula_client::Client;
use insula_metrics::Collector;
use insula_nodeagent::NodeConfig;
use tokio_util::sync::CancellationToken;

use crate::{
    cli, observed,
    signals::run_until_signalled,
    signing::{self, Signing},
    up,
};

/// `insula controllers`.
pub(crate) fn controllers(options: &cli::Controllers) -> Result<()> {
    run_until_signalled(|shutdown: CancellationToken| async move {
        // A hundred watches: each on a connection of its own would take buffers on both sides.
        let client = Client::multiplexed(&options.kubeconfig, "insula-controllers").await?;
        let root_ca = std::fs::read_to_string(&options.root_ca)
            .with_context(|| format!("cannot read the CA {}", options.root_ca.display()))?;
        let mut config = insula_controllers::Config::new(root_ca);
        config.host = Some(up::host_name());
        config.node_asked_for = signing::node_asked_for;
        config.pod_ranges = options.pod_ranges()?;
        config.controllers.clone_from(&options.controllers);
        config.kept_ranges.clone_from(&options.service_cluster_ip_range);
        if let (Some(certificate), Some(key)) =
            (&options.cluster_signing_cert_file, &options.cluster_signing_key_file)
        {
            config.signer = Some(Arc::new(Signing::new(certificate, key)));
        }
        if let Some(address) = options.listen {
            let collectors: Vec<Box<dyn Collector>> = vec![
                Box::new(insula_controllers::metrics::Queues),
                Box::new(insula_client::metrics::Requests),
            ];
            observed::serve(address, collectors, shutdown.clone()).await?;
        }
        Ok(insula_controllers::run(config, client, shutdown).await?)
    })
}

/// `insula scheduler`.
pub(crate) fn scheduler(options: &cli::Scheduler) -> Result<()> {
    run_until_signalled(|shutdown: CancellationToken| async move {
        let client = Client::from_kubeconfig(&options.kubeconfig, "insula-scheduler").await?;
        let mut config = scheduler_config(options.config.as_deref())?;
        config.host = Some(up::host_name());
        Ok(insula_scheduler::run(config, client, shutdown).await?)
    })
}

/// What the configuration file of the scheduler says, if there is one.
pub(crate) fn scheduler_config(file: Option<&Path>) -> Result<insula_scheduler::Config> {
    let Some(file) = file else { return Ok(insula_scheduler::Config::default()) };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the scheduler configuration {}", file.display()))?;
    let configuration = insula_scheduler::Configuration::parse(&text)
        .with_context(|| format!("bad scheduler configuration {}", file.display()))?;
    Ok(insula_scheduler::Config::of(configuration))
}

/// `insula node`.
pub(crate) fn node(options: &cli::Node) -> Result<()> {
    up::check_root()?;
    run_until_signalled(|shutdown: CancellationToken| async move {
        up::check_runtime(&options.agent.container_runtime_endpoint).await?;
        let client = Client::from_kubeconfig(&options.kubeconfig, "insula-node").await?;
        let name = options.node_name.clone().unwrap_or_else(up::host_name);
        let address = options.node_ip.unwrap_or_else(|| up::own_address(options.listen.ip()));
        let mut config = NodeConfig::new(
            name,
            address,
            &options.tls_cert_file,
            &options.tls_private_key_file,
            &options.client_ca_file,
        );
        config.root_dir = options.data_dir.join("node");
        config.pod_logs_dir = options.data_dir.join("logs");
        config.runtime_endpoint.clone_from(&options.agent.container_runtime_endpoint);
        config.eviction_hard = options.agent.eviction_hard;
        config.tls_versions = options.agent.tls_min_version.versions();
        config.listen = options.listen;
        config.apiserver_address = options.apiserver_address;
        Ok(insula_nodeagent::run(config, client, shutdown).await?)
    })
}
