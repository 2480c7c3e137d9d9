//! Processes on hosts: starting, watching, signalling.
//!
//! Each process leads a process group of its own, which is what is signalled, so that what it
//! started goes with it. Its number alone does not say that it is still the same process; its
//! start time does.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use crate::{
    error::{LabError, Result},
    file::Ready,
};

/// How long a process may take to get ready unless its file says otherwise.
const READY: Duration = Duration::from_secs(60);

/// A process that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    pub pid: i32,
    /// In clock ticks since the machine started, as `/proc/PID/stat` says.
    pub start_time: u64,
    /// Where its part of the log begins.
    pub log_offset: u64,
}

/// What a process does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Running,
    Paused,
    Ended,
}

/// State letter and start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the last parenthesis may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let letter = fields.next()?.chars().next()?;
    Some((letter, fields.nth(18)?.parse().ok()?))
}

/// Threads of a process that have not ended, and the first one even if it has.
fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

impl Started {
    /// What it does now.
    pub fn state(&self) -> State {
        match stat(self.pid) {
            Some((letter, start)) if start == self.start_time => match letter {
                // The first thread may be gone while others still hold files and sockets.
                'Z' | 'X' if threads(self.pid) <= 1 => State::Ended,
                'Z' | 'X' => State::Running,
                'T' | 't' => State::Paused,
                _ => State::Running,
            },
            _ => State::Ended,
        }
    }

    /// Sends a signal to it and all it started; one that ended is left alone.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        if self.state() == State::Ended {
            return Ok(());
        }
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        match kill_process_group(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(LabError::io("signal", format!("process {pid:?}"), error.into())),
        }
    }

    /// Waits until it ended; false if it did not.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.state() != State::Ended {
            if end < Instant::now() {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

/// A command that is ready to start.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dir: &'a Path,
    pub(crate) log: &'a Path,
}

/// Starts a command in a namespace, its output added to its log.
pub(crate) fn start(launch: &Launch<'_>) -> Result<(Started, Child)> {
    let failed = |source| LabError::io("write", launch.log, source);
    let log = fs::OpenOptions::new().create(true).append(true).open(launch.log).map_err(failed)?;
    let log_offset = log.metadata().map_err(failed)?.len();
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{}", launch.namespace))
        .arg("--")
        .args(&launch.command)
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .current_dir(launch.dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        .process_group(0);
    let child =
        command.spawn().map_err(|source| LabError::Missing { tool: "nsenter".into(), source })?;
    let pid = child.id() as i32;
    let start_time = stat(pid).map_or(0, |(_, start)| start);
    Ok((Started { pid, start_time, log_offset }, child))
}

/// Waits until a process is ready. Asks from inside its host's namespace.
pub(crate) fn wait_ready(
    name: &str,
    started: &Started,
    ready: &Ready,
    address: std::net::Ipv4Addr,
    namespace: &str,
    log: &Path,
) -> Result<()> {
    let limit = ready.within.and_then(|it| Duration::try_from(it).ok()).unwrap_or(READY);
    let end = Instant::now() + limit;
    let is_ready = || {
        let listens = ready.port.is_none_or(|port| listens(namespace, address, port));
        listens
            && ready.line.as_ref().is_none_or(|line| said(log, started.log_offset, line).is_some())
    };
    loop {
        if is_ready() {
            return Ok(());
        }
        if started.state() == State::Ended {
            let status = "see its log".to_owned();
            return Err(LabError::Ended { process: name.into(), status, log: tail(log) });
        }
        if end < Instant::now() {
            let seconds = limit.as_secs();
            return Err(LabError::NotReady { process: name.into(), seconds, log: tail(log) });
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The first line after `offset` that begins with `start`.
pub(crate) fn said(log: &Path, offset: u64, start: &str) -> Option<String> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = fs::File::open(log).ok()?;
    file.seek(SeekFrom::Start(offset)).ok()?;
    BufReader::new(file).lines().map_while(|line| line.ok()).find(|line| line.starts_with(start))
}

fn listens(namespace: &str, address: std::net::Ipv4Addr, port: u16) -> bool {
    let namespace = namespace.to_owned();
    let asked = thread::spawn(move || {
        enter(&namespace).is_ok()
            && [address, std::net::Ipv4Addr::LOCALHOST].iter().any(|address| {
                let to = SocketAddr::from((*address, port));
                TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok()
            })
    });
    asked.join().unwrap_or(false)
}

/// Moves the calling thread into a network namespace: sockets that it opens from now on are there.
pub(crate) fn enter(namespace: &str) -> Result<()> {
    let path = Path::new("/run/netns").join(namespace);
    let file = fs::File::open(&path).map_err(|source| LabError::io("open", &path, source))?;
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .map_err(|error| LabError::io("enter", &path, error.into()))
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    const LINES: usize = 20;
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
