//! A lab: its hosts, its processes, and what can be done to them.
//!
//! What a lab is stands in `lab.json` of its directory, so that any command can act on it:
//!
//! ```text
//! DIR/lab.json      the file as it was read, the lab's id, the processes
//! DIR/hosts/NAME/   a host's directory: its disk, if it has its own
//! DIR/logs/NAME     what a process printed
//! ```

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Mutex,
    time::Duration,
};

use jiff::SignedDuration;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    clock, disk,
    error::{LabError, Result},
    file::{LabFile, Process},
    network::{Network, unknown},
    process::{self, Launch, Started, State},
    template::Place,
    tool, wire,
};

/// Begins the names of processes that a lab started for itself; none of a file can be named so.
const OURS: char = '_';

/// The process that carries frames.
const WIRES: &str = "_wires";

/// The process that slows down another one.
fn tracer(process: &str) -> String {
    format!("{OURS}slow-{process}")
}

/// How long a process has to end by itself.
const PATIENCE: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    kept: Mutex<Kept>,
    /// Processes that this process started, to be reaped.
    children: Mutex<BTreeMap<String, Child>>,
    network: Network,
}

/// What is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    id: String,
    file: LabFile,
    processes: BTreeMap<String, Started>,
}

/// A process of a lab, for those who look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub host: String,
    pub address: std::net::Ipv4Addr,
    pub process: String,
    pub pid: Option<i32>,
    pub state: State,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing is left half-done under these locks.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Lab {
    /// Makes the hosts and starts their processes; takes all of it away again if that fails.
    ///
    /// `program` is the `insula` that carries frames over cables that take time.
    pub fn up(file: LabFile, dir: &Path, program: &Path) -> Result<Self> {
        Self::begin(file, dir, program).and_then(|lab| match lab.start_all() {
            Ok(()) => Ok(lab),
            Err(error) => {
                // The first failure is the one to tell.
                let _ = lab.down();
                Err(error)
            }
        })
    }

    /// Makes the hosts, without their processes.
    pub fn begin(file: LabFile, dir: &Path, program: &Path) -> Result<Self> {
        file.check()?;
        Self::check_root()?;
        tool::check(&file)?;
        fs::create_dir_all(dir.join("logs"))
            .map_err(|source| LabError::io("create", dir, source))?;
        let dir = dir.canonicalize().map_err(|source| LabError::io("find", dir, source))?;
        if dir.join("lab.json").exists() {
            return Err(LabError::AlreadyUp(dir));
        }
        // Unique on this machine: the directory is this lab's alone.
        let path = dir.to_string_lossy();
        let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let id = format!("lab{:08x}", (hash >> 32) as u32 ^ hash as u32);
        let network = Network { id: id.clone() };
        let kept = Kept { id, file, processes: BTreeMap::new() };
        let lab = Self { dir, kept: Mutex::new(kept), children: Mutex::default(), network };
        lab.keep()?;
        match lab.make_hosts(program) {
            Ok(()) => Ok(lab),
            Err(error) => {
                let _ = lab.down();
                Err(error)
            }
        }
    }

    /// Fails for whoever may not make a lab.
    pub fn check_root() -> Result<()> {
        match rustix::process::geteuid().is_root() {
            true => Ok(()),
            false => Err(LabError::NotRoot),
        }
    }

    /// Takes over a lab that another process made.
    pub fn open(dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().map_err(|_| LabError::NoLab(dir.into()))?;
        let path = dir.join("lab.json");
        let text = fs::read(&path).map_err(|_| LabError::NoLab(dir.clone()))?;
        let kept: Kept = serde_json::from_slice(&text)
            .map_err(|error| LabError::File { path, why: error.to_string() })?;
        let network = Network { id: kept.id.clone() };
        Ok(Self { dir, kept: Mutex::new(kept), children: Mutex::default(), network })
    }

    fn make_hosts(&self, program: &Path) -> Result<()> {
        let file = self.file();
        self.network.up(&file)?;
        for (name, host) in &file.hosts {
            let dir = self.host_dir(name);
            fs::create_dir_all(&dir).map_err(|source| LabError::io("create", &dir, source))?;
            if let Some(size) = &host.disk {
                disk::mount(&dir, size)?;
            }
        }
        if !self.network.wires(&file).is_empty() {
            let words = [program, "lab".as_ref(), "--dir".as_ref(), &self.dir, "carry".as_ref()];
            let command = words.map(|word| word.to_string_lossy().into_owned()).to_vec();
            let (namespace, log) = (self.network.switch(), self.log(WIRES));
            let (dir, env) = (self.dir.as_path(), Vec::new());
            self.run(WIRES, &Launch { namespace: &namespace, command, env, dir, log: &log })?;
        }
        Ok(())
    }

    /// Carries frames over the cables that take time, until the lab ends.
    pub fn carry(&self) -> Result<()> {
        wire::run(&self.network.wires(&self.file()))
    }

    fn run(&self, process: &str, launch: &Launch<'_>) -> Result<()> {
        let (started, child) = process::start(launch)?;
        // The one before it is gone; dropping it leaves nothing behind.
        lock(&self.children).insert(process.to_owned(), child);
        lock(&self.kept).processes.insert(process.to_owned(), started);
        self.keep()
    }

    fn start_all(&self) -> Result<()> {
        let file = self.file();
        // Those that wait for nobody need not wait for each other either.
        let order = file.start_order()?;
        for (_, process) in &order {
            if !self.find(process)?.1.after.is_empty() {
                for name in self.find(process)?.1.after.clone() {
                    self.wait_ready(&name)?;
                }
            }
            self.launch(process)?;
        }
        order.iter().try_for_each(|(_, process)| self.wait_ready(process))
    }

    fn keep(&self) -> Result<()> {
        let path = self.dir.join("lab.json");
        let failed = |source| LabError::io("write", &path, source);
        let text =
            serde_json::to_vec_pretty(&*lock(&self.kept)).map_err(|error| failed(error.into()))?;
        let partial = path.with_extension("new");
        fs::write(&partial, text).and_then(|()| fs::rename(&partial, &path)).map_err(failed)
    }

    /// What the lab looks like.
    pub fn file(&self) -> LabFile {
        lock(&self.kept).file.clone()
    }

    /// Where the lab keeps everything.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A host's directory.
    pub fn host_dir(&self, host: &str) -> PathBuf {
        self.dir.join("hosts").join(host)
    }

    /// What a process printed, over all its lives.
    pub fn log(&self, process: &str) -> PathBuf {
        self.dir.join("logs").join(process)
    }

    /// The first line that the process printed since it was started last and that begins so.
    pub fn said(&self, process: &str, start: &str) -> Option<String> {
        let offset = lock(&self.kept).processes.get(process)?.log_offset;
        process::said(&self.log(process), offset, start)
    }

    /// Name of the host's network namespace, as `ip netns` knows it.
    pub fn namespace(&self, host: &str) -> String {
        self.network.namespace(host)
    }

    /// Moves the calling thread to a host: sockets that it opens from now on are there. There is
    /// no way back; use a thread of its own.
    pub fn enter(&self, host: &str) -> Result<()> {
        process::enter(&self.namespace(host))
    }

    /// Runs `work` in a thread that is on a host, and waits for it. Panics if `work` does.
    pub fn on<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| self.enter(host).map(|()| work()));
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that runs on a host.
    pub fn command(&self, host: &str, program: &str) -> Result<Command> {
        let file = self.file();
        file.hosts.get(host).ok_or_else(|| unknown(&file, host))?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace(host))).arg("--").arg(program);
        Ok(command)
    }

    /// A process with the name of its host.
    fn find(&self, process: &str) -> Result<(String, Process)> {
        let kept = lock(&self.kept);
        for (name, host) in &kept.file.hosts {
            if let Some(found) = host.run.get(process) {
                return Ok((name.clone(), found.clone()));
            }
        }
        let known: Vec<_> =
            kept.file.hosts.values().flat_map(|host| host.run.keys().map(String::as_str)).collect();
        let known = known.join(", ");
        Err(LabError::Unknown { what: "process", name: process.into(), known })
    }

    /// Starts a process that does not run, and waits until it is ready.
    pub fn start(&self, process: &str) -> Result<()> {
        self.launch(process)?;
        self.wait_ready(process)
    }

    /// Starts a process that does not run.
    pub fn launch(&self, process: &str) -> Result<()> {
        let (host, it) = self.find(process)?;
        if self.state(process)? != State::Ended {
            return Ok(());
        }
        let (file, dir) = (self.file(), self.host_dir(&host));
        let place = Place { file: &file, lab: &self.dir, dir: &dir, host: &host };
        let mut command =
            it.command.iter().map(|word| place.fill(word)).collect::<Result<Vec<_>>>()?;
        let mut env = it
            .env
            .iter()
            .map(|(name, value)| Ok((name.clone(), place.fill(value)?)))
            .collect::<Result<Vec<_>>>()?;
        if let Some(delay) = it.flush_delay {
            let inject = format!("inject=fdatasync,fsync:delay_exit={}", delay.as_micros().max(0));
            let words = [
                "strace",
                "-f",
                "-q",
                "--seccomp-bpf",
                "-o",
                "/dev/null",
                "-e",
                "trace=fdatasync,fsync",
                "-e",
                &inject,
                "--",
            ];
            command.splice(0..0, words.iter().map(|word| (*word).to_owned()));
        }
        if let Some(offset) = it.skew {
            let path = self.clock(process);
            // A clock that was set stays so when the process starts again.
            if !path.exists() {
                clock::set(&path, offset)?;
            }
            env.extend(clock::environment(&path)?);
        }
        let (namespace, log) = (self.namespace(&host), self.log(process));
        let launch = Launch { namespace: &namespace, command, env, dir: &dir, log: &log };
        self.run(process, &launch)
    }

    /// Waits until a process that was started is ready.
    pub fn wait_ready(&self, process: &str) -> Result<()> {
        let (host, it) = self.find(process)?;
        let Some(started) = lock(&self.kept).processes.get(process).copied() else { return Ok(()) };
        let address = self.address(&host)?;
        let namespace = self.namespace(&host);
        let ready = it.ready.unwrap_or_default();
        process::wait_ready(process, &started, &ready, address, &namespace, &self.log(process))
    }

    /// A host's first address.
    pub fn address(&self, host: &str) -> Result<std::net::Ipv4Addr> {
        let file = self.file();
        Ok(file.hosts.get(host).ok_or_else(|| unknown(&file, host))?.address())
    }

    /// What a process does now.
    pub fn state(&self, process: &str) -> Result<State> {
        self.find(process)?;
        self.reap(process);
        let kept = lock(&self.kept);
        Ok(kept.processes.get(process).map_or(State::Ended, Started::state))
    }

    /// A process that this one started stays a corpse until it is asked for its status.
    fn reap(&self, process: &str) {
        if let Some(child) = lock(&self.children).get_mut(process) {
            // What it says is seen in /proc.
            let _ = child.try_wait();
        }
    }

    fn signal(&self, process: &str, signal: Signal) -> Result<()> {
        // Those that a lab started for itself are in no file.
        if !process.starts_with(OURS) {
            self.find(process)?;
        }
        let started = lock(&self.kept).processes.get(process).copied();
        started.map_or(Ok(()), |started| started.signal(signal))
    }

    /// Ends a process at once, as a power cut would.
    pub fn kill(&self, process: &str) -> Result<()> {
        self.signal(process, Signal::KILL)?;
        self.wait_ended(process, PATIENCE).map(drop)
    }

    /// Asks a process to end, and makes it if it does not.
    pub fn stop(&self, process: &str) -> Result<()> {
        self.signal(process, Signal::CONT)?;
        self.signal(process, Signal::TERM)?;
        if !self.wait_ended(process, PATIENCE)? {
            self.kill(process)?;
        }
        Ok(())
    }

    fn wait_ended(&self, process: &str, limit: Duration) -> Result<bool> {
        let Some(started) = lock(&self.kept).processes.get(process).copied() else {
            return Ok(true);
        };
        if let Some(child) = lock(&self.children).get_mut(process) {
            let end = std::time::Instant::now() + limit;
            while child.try_wait().is_ok_and(|status| status.is_none()) {
                if end < std::time::Instant::now() {
                    return Ok(false);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            return Ok(true);
        }
        Ok(started.wait(limit))
    }

    /// Stops a process where it stands, as a machine without CPU would.
    pub fn pause(&self, process: &str) -> Result<()> {
        self.signal(process, Signal::STOP)
    }

    /// Lets a paused process go on.
    pub fn resume(&self, process: &str) -> Result<()> {
        self.signal(process, Signal::CONT)
    }

    /// Nothing passes between two hosts any more; without `other`, nothing to and from `host`.
    pub fn cut(&self, host: &str, other: Option<&str>) -> Result<()> {
        let file = self.file();
        for name in [Some(host), other].into_iter().flatten() {
            file.hosts.get(name).ok_or_else(|| unknown(&file, name))?;
        }
        match other {
            Some(other) => self.network.cut(&file, host, other),
            None => self.network.drop_from(&file, host, None),
        }
    }

    /// Nothing of `from` arrives at `at`; the other way is open.
    pub fn cut_one_way(&self, at: &str, from: &str) -> Result<()> {
        let file = self.file();
        file.hosts.get(at).ok_or_else(|| unknown(&file, at))?;
        self.network.drop_from(&file, at, Some(from))
    }

    /// Undoes all cuts.
    pub fn heal(&self) -> Result<()> {
        self.network.heal(&self.file())
    }

    /// Fills a host's own disk.
    pub fn fill(&self, host: &str) -> Result<()> {
        self.own_disk(host).and_then(|disk| disk::fill(&disk))
    }

    /// Gives the space back.
    pub fn free(&self, host: &str) -> Result<()> {
        self.own_disk(host).and_then(|disk| disk::free(&disk))
    }

    fn own_disk(&self, host: &str) -> Result<PathBuf> {
        let file = self.file();
        match file.hosts.get(host).ok_or_else(|| unknown(&file, host))?.disk {
            Some(_) => Ok(self.host_dir(host)),
            None => Err(LabError::Invalid(format!(
                "host {host} has no disk of its own; give it `disk:`"
            ))),
        }
    }

    /// From now on every flush of a running process takes so much longer, until [`Lab::fast`] or
    /// its end.
    pub fn slow(&self, process: &str, delay: SignedDuration) -> Result<()> {
        let (host, _) = self.find(process)?;
        let Some(started) = lock(&self.kept).processes.get(process).copied() else { return Ok(()) };
        tool::find("strace")?;
        self.fast(process)?;
        let inject = format!("inject=fdatasync,fsync:delay_exit={}", delay.as_micros().max(0));
        let words = ["strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e"];
        let mut command: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        command.extend([inject, "-p".into(), started.pid.to_string()]);
        let (namespace, tracer) = (self.namespace(&host), tracer(process));
        let (dir, log, env) = (self.host_dir(&host), self.log(process), Vec::new());
        let launch = Launch { namespace: &namespace, command, env, dir: &dir, log: &log };
        self.run(&tracer, &launch)
    }

    /// Undoes [`Lab::slow`].
    pub fn fast(&self, process: &str) -> Result<()> {
        self.find(process)?;
        let tracer = tracer(process);
        let running = lock(&self.kept).processes.get(&tracer).copied();
        let Some(running) = running else { return Ok(()) };
        // Asked, not killed: a tracer that is killed may leave what it traced stopped.
        running.signal(Signal::TERM)?;
        self.wait_ended(&tracer, PATIENCE)?;
        lock(&self.kept).processes.remove(&tracer);
        self.keep()
    }

    /// Sets the clock that a process sees. It must have been started with a `skew`, be it zero.
    pub fn skew(&self, process: &str, offset: SignedDuration) -> Result<()> {
        match self.find(process)?.1.skew {
            Some(_) => clock::set(&self.clock(process), offset),
            None => Err(LabError::Invalid(format!(
                "process {process} has the machine's clock; start it with `skew: 0s` to be able to change it"
            ))),
        }
    }

    fn clock(&self, process: &str) -> PathBuf {
        self.dir.join(format!("{process}.clock"))
    }

    /// All hosts and processes. A host without processes has one line with an empty name.
    pub fn status(&self) -> Result<Vec<Status>> {
        let mut all = Vec::new();
        for (name, host) in &self.file().hosts {
            let address = host.address();
            for process in host.run.keys() {
                let state = self.state(process)?;
                let started = lock(&self.kept).processes.get(process).copied();
                let pid = started.filter(|_| state != State::Ended).map(|it| it.pid);
                all.push(Status {
                    host: name.clone(),
                    address,
                    process: process.clone(),
                    pid,
                    state,
                });
            }
            if host.run.is_empty() {
                let process = String::new();
                all.push(Status {
                    host: name.clone(),
                    address,
                    process,
                    pid: None,
                    state: State::Ended,
                });
            }
        }
        Ok(all)
    }

    /// Ends all processes and takes the hosts away. Files stay, but those on a host's own disk.
    /// Goes on after a failure and reports the last one.
    pub fn down(&self) -> Result<()> {
        let names: Vec<String> = lock(&self.kept).processes.keys().cloned().collect();
        let mut outcome = Ok(());
        for name in &names {
            let asked = self.signal(name, Signal::CONT);
            outcome = asked.and_then(|()| self.signal(name, Signal::TERM)).and(outcome);
        }
        for name in &names {
            let ended = self.wait_ended(name, PATIENCE);
            if !matches!(ended, Ok(true)) {
                outcome = self.kill(name).and(outcome);
            }
        }
        outcome = self.network.down().and(outcome);
        for (name, host) in &self.file().hosts {
            let dir = self.host_dir(name);
            if host.disk.is_some() && is_mounted(&dir) {
                outcome = disk::unmount(&dir).and(outcome);
            }
        }
        if outcome.is_ok() {
            let path = self.dir.join("lab.json");
            fs::remove_file(&path).map_err(|source| LabError::io("remove", path, source))?;
        }
        outcome
    }
}

fn is_mounted(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == dir))
}
