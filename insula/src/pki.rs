//! `insula pki`: certificates and kubeconfigs for a cluster of several servers.
//!
//! ```text
//! DIR/ca.crt, ca.key             the authority; its key stays where certificates are made
//! DIR/sa.key                     signs service account tokens; every server has it
//! DIR/encryption.yaml            the keys of what is stored; every server has it
//! DIR/admin.kubeconfig ..        made by `insula pki init`
//! DIR/servers/NAME/              all that the server NAME needs, with its configuration
//! ```

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context as _, Result, bail};
use insula_api::names::TenantName;
use insula_apiserver::{
    OutboundNetworks,
    encryption::EncryptionFile,
    identity::{MASTERS, NODES},
    pki::{Authority, Pair, write_private},
    tokens::Keys,
};

use crate::{
    cli,
    config::{Begin, Cluster, Config, LeastTls, Pki, Seed, Serve},
    kubeconfig,
};

/// The file with the keys of what is stored.
pub(crate) const ENCRYPTION: &str = "encryption.yaml";

/// `insula pki`.
pub(crate) fn run(options: &cli::PkiCommand) -> Result<()> {
    match options {
        cli::PkiCommand::Init(options) => init(options),
        cli::PkiCommand::Server(options) => server(options),
        cli::PkiCommand::Kubeconfig(options) => {
            kubeconfig::issue(&options.of, || Ok((open(&options.dir)?, options.server.clone())))
        }
        cli::PkiCommand::Node(options) => node(options),
    }
}

fn open(dir: &Path) -> Result<Authority> {
    if !dir.join("ca.key").exists() {
        bail!("{} has no certificate authority; make one with `insula pki init`", dir.display());
    }
    Ok(Authority::open_or_create(dir)?)
}

fn directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

/// The authority, the key of tokens, and kubeconfigs of who belongs to every cluster.
fn init(options: &cli::PkiInit) -> Result<()> {
    directory(&options.dir)?;
    let authority = Authority::open_or_create(&options.dir)?;
    Keys::open_or_create(&options.dir.join("sa.key"))?;
    EncryptionFile::open_or_create(&options.dir.join(ENCRYPTION))?;
    let system = TenantName::system();
    for (file, user) in [
        ("admin", "admin"),
        ("controllers", "system:kube-controller-manager"),
        ("scheduler", "system:kube-scheduler"),
    ] {
        let path = options.dir.join(format!("{file}.kubeconfig"));
        if !path.exists() || options.server.is_some() {
            let pair = authority.client(&system, user, &[MASTERS])?;
            let server = options.server.as_deref().unwrap_or("https://127.0.0.1:6443");
            let text = kubeconfig::text(server, &authority, &system, user, &pair);
            write_private(&path, &text)?;
        }
    }
    say(&format!("{}: authority and kubeconfigs are there", options.dir.display()));
    Ok(())
}

/// What one server needs, in a directory to be copied to its machine.
fn server(options: &cli::PkiServer) -> Result<()> {
    let authority = open(&options.dir)?;
    let home = options.dir.join("servers").join(&options.name);
    let Some((host, _)) = options.address.rsplit_once(':') else {
        bail!("{:?} is not HOST:PORT", options.address);
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_owned)
    .into();
    let mut addresses: Vec<IpAddr> = vec![[127, 0, 0, 1].into()];
    for name in options.san.iter().map(String::as_str).chain([host]) {
        match name.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(name.to_owned()),
        }
    }
    addresses.sort();
    addresses.dedup();

    let config = Config {
        name: options.name.clone(),
        data_dir: "data".into(),
        listen: options.listen,
        advertise: Some(options.address.clone()),
        pki: Pki {
            ca: "ca.crt".into(),
            certificate: "server.crt".into(),
            key: "server.key".into(),
            service_account_key: "sa.key".into(),
            node_client_certificate: "node-client.crt".into(),
            node_client_key: "node-client.key".into(),
        },
        cluster: match options.join.as_slice() {
            [] => Cluster::Begin(Begin { partitions: options.partitions, etcd: Vec::new() }),
            seeds => Cluster::Join(seeds.iter().map(|text| seed(text)).collect::<Result<_>>()?),
        },
        tls_min_version: LeastTls::default(),
        goaway_chance: 0.0,
        connections_per_address: crate::config::default_connections_per_address(),
        audit: None,
        static_tokens: None,
        encryption: Some(ENCRYPTION.into()),
        outbound: OutboundNetworks::default(),
        serve: match options.serve.as_slice() {
            [] => Serve::All,
            [one] if one == "all" => Serve::All,
            [one] if one == "none" => Serve::None,
            some => Serve::Some(some.to_vec()),
        },
        etcd: Default::default(),
    };
    // Before anything is written: a mistake is told at once.
    config.check()?;
    directory(&home)?;
    write_pair(&home, "server", &authority.api_server(&options.name, &names, &addresses)?)?;
    let to_nodes = authority.client(&TenantName::system(), "system:apiserver", &[MASTERS])?;
    write_pair(&home, "node-client", &to_nodes)?;
    write_private(&home.join("ca.crt"), authority.certificate())?;
    let key = options.dir.join("sa.key");
    Keys::open_or_create(&key)?;
    let text =
        fs::read_to_string(&key).with_context(|| format!("cannot read {}", key.display()))?;
    write_private(&home.join("sa.key"), &text)?;
    let sealing = EncryptionFile::open_or_create(&options.dir.join(ENCRYPTION))?;
    write_private(&home.join(ENCRYPTION), &sealing.text()?)?;
    let file = home.join("apiserver.yaml");
    match file.exists() && !options.force {
        true => say(&format!("{} is kept as it is", file.display())),
        false => write_private(&file, &config.to_yaml()?)?,
    }
    say(&format!(
        "{}: copy it to the server's machine, and there: insula apiserver --config {}/apiserver.yaml",
        home.display(),
        options.name
    ));
    Ok(())
}

fn seed(text: &str) -> Result<Seed> {
    match text.split_once('=') {
        Some((name, address)) => Ok(Seed { name: name.into(), address: address.into() }),
        None => bail!("{text:?} is not NAME=HOST:PORT"),
    }
}

/// What a node agent needs, in a directory to be copied to its machine.
fn node(options: &cli::PkiNode) -> Result<()> {
    let authority = open(&options.dir)?;
    let home = options.dir.join("nodes").join(&options.name);
    directory(&home)?;
    let user = format!("system:node:{}", options.name);
    let pair = authority.server(&user, &[&options.name], &options.address)?;
    write_pair(&home, "node", &pair)?;
    write_private(&home.join("ca.crt"), authority.certificate())?;
    let system = TenantName::system();
    let pair = authority.client(&system, &user, &[NODES])?;
    let text = kubeconfig::text(&options.server, &authority, &system, &user, &pair);
    write_private(&home.join("node.kubeconfig"), &text)?;
    say(&format!("{}: copy it to the node", home.display()));
    Ok(())
}

fn write_pair(dir: &Path, name: &str, pair: &Pair) -> Result<()> {
    write_private(&dir.join(format!("{name}.key")), &pair.key)?;
    write_private(&dir.join(format!("{name}.crt")), &pair.certificate)?;
    Ok(())
}

#[allow(clippy::print_stderr, reason = "what the operator wants to know")]
fn say(text: &str) {
    eprintln!("{text}");
}
