//! A group of three against an etcd of three: each member a process of its own, on loopback.
//!
//! The embedded members talk over plain TCP here; API servers add TLS, as etcd's members would.
//! The load runs in the leader's process, etcd's against its leader.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Write as _},
    net::TcpListener,
    path::Path,
    process::{Child, Stdio},
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use insula_partition::{
    group::GroupMember,
    peers::{PeerError, PeerService, Peers, Pieces},
    store::Durability,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufWriter},
    net::TcpStream,
    sync::mpsc,
};

use crate::{
    Extent, Failure, child, etcd,
    load::{Outcome, Target, heading, measure, middle, row},
};

const WRITERS: [usize; 3] = [1, 16, 256];

/// Members of the group, ended with the bench.
struct Members(Vec<Child>);

impl Drop for Members {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill().and_then(|()| child.wait()));
        }
    }
}

pub(crate) async fn of_three(dir: &Path, extent: Extent) -> Result<(), Failure> {
    let mut ports = Vec::new();
    for _ in 0..3 {
        ports.push(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string());
    }
    let mut members = Members(Vec::new());
    for member in 1..=3_u64 {
        let mut command = child::command()?;
        command.arg("member").arg(dir.join(format!("group-{member}"))).arg(member.to_string());
        members.0.push(command.arg(ports.join(",")).stdin(Stdio::piped()).spawn()?);
    }
    let etcds = etcd::start(&dir.join("group-etcd"), 3, false).await?;
    let client = etcd::client(&etcds).await?;
    let theirs = Target::Etcd(Box::new(client.kv_client()));
    let mut lines = Vec::new();
    for child in &mut members.0 {
        lines.push(BufReader::new(child.stdout.take().ok_or("no output")?).lines());
    }
    heading("Durable puts of 1 KiB, three members each");
    for writers in WRITERS {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..extent.rounds {
            a.push(round(&mut members, &mut lines, writers, extent.length)?);
            b.push(measure(&theirs, writers, extent.length).await?);
        }
        let (ours, theirs) = (middle(a), middle(b));
        row(&writers.to_string(), "embedded", ours, ours);
        row(&writers.to_string(), "etcd", theirs, ours);
    }
    Ok(())
}

type Lines = std::io::Lines<BufReader<std::process::ChildStdout>>;

/// Tells all members to begin; the one that leads has an outcome.
fn round(
    members: &mut Members,
    lines: &mut [Lines],
    writers: usize,
    length: Duration,
) -> Result<Outcome, Failure> {
    for _ in 0..50 {
        let mut outcome = None;
        for (child, lines) in members.0.iter_mut().zip(lines.iter_mut()) {
            let input = child.stdin.as_mut().ok_or("no input")?;
            writeln!(input, "{writers} {}", length.as_millis())?;
            let line = lines.next().ok_or("a member ended")??;
            if line != "follows" {
                outcome = Some(child::read(&line)?);
            }
        }
        if let Some(outcome) = outcome {
            return Ok(outcome);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err("nobody leads".into())
}

/// What each member's process does.
pub(crate) async fn member(dir: &Path, member: u64, ports: &str) -> Result<(), Failure> {
    let ports: Vec<u16> = ports.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let names: BTreeMap<u64, String> =
        (1..).zip(&ports).map(|(id, _)| (id, format!("s{id}"))).collect();
    let addresses =
        (1..).zip(&ports).map(|(id, port): (u64, _)| (format!("s{id}"), *port)).collect();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", ports[member as usize - 1])).await?;
    let wires = Arc::new(Wires {
        name: format!("s{member}"),
        addresses,
        lines: parking_lot::Mutex::default(),
        runtime: tokio::runtime::Handle::current(),
        service: parking_lot::Mutex::new(None),
    });
    tokio::spawn(listen(listener, wires.clone()));
    let group = GroupMember::open(dir, member, &names, wires).await?;
    let mut input = tokio::io::BufReader::new(tokio::io::stdin());
    loop {
        let mut line = String::new();
        if tokio::io::AsyncBufReadExt::read_line(&mut input, &mut line).await? == 0 {
            return Ok(());
        }
        let (writers, length) = line.trim().split_once(' ').ok_or("what?")?;
        let length = Duration::from_millis(length.parse()?);
        if group.leads() {
            let target = Target::Store(group.store(), Durability::Durable);
            child::say(measure(&target, writers.parse()?, length).await?);
        } else {
            println!("follows");
        }
    }
}

/// Frames over TCP: their length, then their bytes. The first frame says who sends.
struct Wires {
    name: String,
    addresses: HashMap<String, u16>,
    lines: parking_lot::Mutex<HashMap<String, mpsc::UnboundedSender<Bytes>>>,
    runtime: tokio::runtime::Handle,
    service: parking_lot::Mutex<Option<Weak<dyn PeerService>>>,
}

impl Peers for Wires {
    fn deliver_to(&self, service: Weak<dyn PeerService>) {
        *self.service.lock() = Some(service);
    }

    fn send(&self, to: &str, frame: Bytes) {
        let mut lines = self.lines.lock();
        let line = lines.entry(to.into()).or_insert_with(|| {
            let (line, frames) = mpsc::unbounded_channel();
            let (port, name) = (self.addresses.get(to).copied(), self.name.clone());
            self.runtime.spawn(carry(port.unwrap_or_default(), name, frames));
            line
        });
        drop(line.send(frame));
    }

    fn call(&self, to: &str, _: Bytes) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        let error = not_here(to);
        Box::pin(async { Err(error) })
    }

    fn stream(&self, to: &str, _: Bytes) -> BoxFuture<'_, Result<Pieces, PeerError>> {
        let error = not_here(to);
        Box::pin(async { Err(error) })
    }
}

fn not_here(server: &str) -> PeerError {
    PeerError::Unreachable { server: server.into(), reason: "frames only".into() }
}

async fn carry(port: u16, name: String, mut frames: mpsc::UnboundedReceiver<Bytes>) {
    let mut connection: Option<BufWriter<TcpStream>> = None;
    while let Some(frame) = frames.recv().await {
        if connection.is_none()
            && let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await
        {
            drop(stream.set_nodelay(true));
            let mut stream = BufWriter::new(stream);
            drop(put(&mut stream, name.as_bytes()).await);
            connection = Some(stream);
        }
        let Some(stream) = &mut connection else { continue };
        let sent = async {
            put(stream, &frame).await?;
            if frames.is_empty() { stream.flush().await } else { Ok(()) }
        };
        if sent.await.is_err() {
            connection = None;
        }
    }
}

async fn put(stream: &mut BufWriter<TcpStream>, frame: &[u8]) -> std::io::Result<()> {
    stream.write_u32(frame.len() as u32).await?;
    stream.write_all(frame).await
}

async fn listen(listener: tokio::net::TcpListener, wires: Arc<Wires>) {
    while let Ok((stream, _)) = listener.accept().await {
        let wires = wires.clone();
        tokio::spawn(async move {
            let mut stream = tokio::io::BufReader::with_capacity(256 << 10, stream);
            let Ok(from) = take(&mut stream).await else { return };
            let from = String::from_utf8_lossy(&from).into_owned();
            while let Ok(frame) = take(&mut stream).await {
                let service = wires.service.lock().as_ref().and_then(Weak::upgrade);
                if let Some(service) = service {
                    service.receive(&from, frame);
                }
            }
        });
    }
}

async fn take(stream: &mut tokio::io::BufReader<TcpStream>) -> std::io::Result<Bytes> {
    let length = stream.read_u32().await?;
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame).await?;
    Ok(frame.into())
}
