//! The lab that `insula lab up` makes without a file: API servers that each have a member of every
//! partition, controllers, a scheduler, and a host for clients.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use insula_lab::file::{Cable, Host, LabFile, Process, Ready};

use crate::{cli, pki};

/// The network that all hosts are on.
const NETWORK: &str = "core";

/// How large each server's own disk is, so that it can be filled.
const DISK: &str = "256m";

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

fn server_address(number: u8) -> String {
    format!("{}:6443", address(10 + number))
}

/// Makes certificates, configurations and kubeconfigs in `dir/pki`, and says what the lab looks
/// like. Hosts and servers are `s1` to `s9`; `client` is where kubectl runs.
pub(super) fn cloud(dir: &Path, servers: u8, program: &Path) -> Result<LabFile> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let home = dir.join("pki");
    pki::run(&cli::PkiCommand::Init(cli::PkiInit {
        dir: home.clone(),
        server: Some(format!("https://{}", server_address(1))),
    }))?;
    let mut hosts = BTreeMap::new();
    for number in 1..=servers {
        let name = format!("s{number}");
        server_files(&home, &name, number, servers)?;
        let config = home.join("servers").join(&name).join("apiserver.yaml");
        let mut command = words(program, &["apiserver", "--config"]);
        command.push(text(&config));
        command.extend(["--data-dir".to_owned(), "{dir}/data".to_owned()]);
        // The others need the first one to join.
        let after = if number == 1 { vec![] } else { vec!["s1".to_owned()] };
        let ready = Ready { line: Some("ready ".into()), ..Ready::default() };
        let process = Process { after, ..process(command, Some(ready)) };
        let run = [(name.clone(), process)].into();
        hosts.insert(name, Host { disk: Some(DISK.into()), ..host(address(10 + number), run) });
    }
    let mut run = BTreeMap::new();
    let user = |name: &str| vec!["--kubeconfig".to_owned(), text(&home.join(name))];
    let mut command = words(program, &["controllers", "--root-ca"]);
    command.push(text(&home.join("ca.crt")));
    command.extend(user("controllers.kubeconfig"));
    let after = vec!["s1".to_owned()];
    run.insert(
        "controllers".to_owned(),
        Process { after: after.clone(), ..process(command, None) },
    );
    let mut command = words(program, &["scheduler"]);
    command.extend(user("scheduler.kubeconfig"));
    run.insert("scheduler".to_owned(), Process { after, ..process(command, None) });
    hosts.insert("client".into(), host(address(100), run));
    let networks = [(NETWORK.to_owned(), "10.77.0.0/24".parse()?)].into();
    Ok(LabFile { networks, hosts })
}

/// A server's certificates and configuration, and an administrator's way to it alone.
fn server_files(home: &Path, name: &str, number: u8, servers: u8) -> Result<()> {
    let others = (1..=servers).filter(|other| *other != number);
    let seeds = others.map(|other| format!("s{other}={}", server_address(other)));
    pki::run(&cli::PkiCommand::Server(cli::PkiServer {
        dir: home.into(),
        name: name.into(),
        address: server_address(number),
        listen: ([0, 0, 0, 0], 6443).into(),
        join: if number == 1 { vec![] } else { seeds.collect() },
        partitions: 2,
        serve: vec![],
        san: vec![],
        force: true,
    }))?;
    pki::run(&cli::PkiCommand::Kubeconfig(cli::PkiKubeconfig {
        dir: home.into(),
        server: format!("https://{}", server_address(number)),
        of: cli::UserKubeconfig {
            tenant: "system".into(),
            user: "admin".into(),
            group: vec!["system:masters".into()],
            out: Some(home.join(format!("admin-{name}.kubeconfig"))),
        },
    }))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn words(program: &Path, more: &[&str]) -> Vec<String> {
    let program = program.to_string_lossy();
    std::iter::once(program.as_ref()).chain(more.iter().copied()).map(str::to_owned).collect()
}

fn host(address: Ipv4Addr, run: BTreeMap<String, Process>) -> Host {
    let cable = Cable { address, loss: 0.0, latency: None, bandwidth: None };
    Host { on: [(NETWORK.to_owned(), cable)].into(), gateway: None, router: None, disk: None, run }
}

fn process(command: Vec<String>, ready: Option<Ready>) -> Process {
    let (env, after) = (BTreeMap::new(), vec![]);
    Process { command, env, after, ready, flush_delay: None, skew: None }
}
