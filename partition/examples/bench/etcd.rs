//! Real etcds, started for the bench and ended with it.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use etcd_client::Client;

use crate::Failure;

/// One etcd process, possibly below a strace.
pub(crate) struct Etcd {
    child: Child,
    traced: bool,
    pub(crate) url: String,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if self.traced {
            // Whoever ends a tracer only lets its subject go.
            for pid in children(self.child.id()) {
                drop(Command::new("kill").args(["-9", &pid]).status());
            }
        } else {
            drop(self.child.kill());
        }
        drop(self.child.wait());
    }
}

fn children(pid: u32) -> Vec<String> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().map(str::to_owned).collect()
}

pub(crate) fn version() -> Result<String, Failure> {
    let output = Command::new("etcd").arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().next().unwrap_or_default();
    Ok(line.trim_start_matches("etcd Version: ").to_owned())
}

/// `strace` that makes every flush of what follows take a millisecond longer.
pub(crate) fn slow_flushes() -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"]);
    command.args(["-e", "trace=fdatasync,fsync"]);
    command.args(["-e", "inject=fdatasync,fsync:delay_exit=1000"]);
    command
}

fn port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A cluster of `count` members below `dir`; `slow` makes their flushes slow.
pub(crate) async fn start(dir: &Path, count: usize, slow: bool) -> Result<Vec<Etcd>, Failure> {
    let mut urls = Vec::new();
    for n in 0..count {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        urls.push((format!("m{n}"), url(port()?), url(port()?)));
    }
    let cluster: Vec<_> = urls.iter().map(|(name, _, peer)| format!("{name}={peer}")).collect();
    let cluster = cluster.join(",");
    let mut etcds = Vec::new();
    for (name, client, peer) in urls {
        let mut command = if slow {
            let mut command = slow_flushes();
            command.arg("etcd");
            command
        } else {
            Command::new("etcd")
        };
        command
            .arg(format!("--name={name}"))
            .args(["--log-level=error", "--quota-backend-bytes=8589934592"])
            .arg(format!("--data-dir={}", dir.join(&name).display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster={cluster}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        etcds.push(Etcd { child: command.spawn()?, traced: slow, url: client });
    }
    // It is there once it takes a put.
    let urls: Vec<_> = etcds.iter().map(|etcd| etcd.url.clone()).collect();
    for attempt in 0.. {
        let tried = async {
            let mut client = Client::connect(&urls[..1], None).await?;
            client.put("ready", "x", None).await
        };
        match tried.await {
            Ok(_) => break,
            Err(error) if 100 < attempt => return Err(error.into()),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
    Ok(etcds)
}

/// A client of the cluster's leader, which is the fastest that it can be asked.
pub(crate) async fn client(etcds: &[Etcd]) -> Result<Client, Failure> {
    for etcd in etcds {
        let mut client = Client::connect([&etcd.url], None).await?;
        let status = client.status().await?;
        if status.header().is_some_and(|header| header.member_id() == status.leader()) {
            return Ok(client);
        }
    }
    Ok(Client::connect([&etcds[0].url], None).await?)
}
