//! `insula lab`: many hosts on one machine, and faults on command.

mod cloud;

use std::{io::Write as _, os::unix::process::CommandExt as _, path::PathBuf};

use anyhow::{Result, bail};
use clap::Subcommand;
use insula_lab::{
    file::LabFile,
    lab::{Lab, Status},
    process::State,
};

/// A lab and what to do with it.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the lab keeps everything.
    #[arg(long, value_name = "DIR", default_value = "lab", global = true, env = "INSULA_LAB_DIR")]
    dir: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make the hosts and start their processes.
    Up {
        /// What the lab looks like; without it, API servers with controllers and a scheduler.
        #[arg(long, value_name = "F", conflicts_with = "servers")]
        file: Option<PathBuf>,
        /// Number of API servers, each with a member of every partition.
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
        servers: u8,
    },
    /// End all processes and take the hosts away.
    Down,
    /// Show hosts and processes.
    Status,
    /// Run a command on a host: `insula lab exec s1 -- ip addr`.
    Exec {
        host: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Start a process that does not run.
    Start { process: String },
    /// Ask a process to end; after 15 s, end it.
    Stop { process: String },
    /// End a process at once, as a power cut would.
    Kill { process: String },
    /// Stop a process where it stands.
    Pause { process: String },
    /// Let a paused process go on.
    Resume { process: String },
    /// Let nothing pass between two hosts, or between one and all others.
    Cut { host: String, other: Option<String> },
    /// Undo all cuts.
    Heal,
    /// Fill a host's own disk.
    Fill { host: String },
    /// Give the space back.
    Free { host: String },
    /// Make every flush of a process take longer: `insula lab slow s1 20ms`.
    Slow { process: String, delay: jiff::SignedDuration },
    /// Undo it.
    Fast { process: String },
    /// Set the clock that a process sees: `insula lab skew s1 -- -1h`.
    Skew { process: String, offset: jiff::SignedDuration },
    /// Carry frames over cables that take time; started by `up`.
    #[command(hide = true)]
    Carry,
    /// Print what a process printed.
    Logs { process: String },
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let dir = &options.dir;
    if let What::Up { file, servers } = &options.what {
        let program = std::env::current_exe()?;
        // Before certificates are made for nothing.
        Lab::check_root()?;
        let file = match file {
            Some(file) => LabFile::read(file)?,
            None => cloud::cloud(dir, *servers, &program)?,
        };
        let lab = Lab::up(file, dir, &program)?;
        return show(&lab.status()?);
    }
    let lab = Lab::open(dir)?;
    match &options.what {
        What::Up { .. } => {}
        What::Down => lab.down()?,
        What::Status => show(&lab.status()?)?,
        What::Exec { host, command } => {
            let Some((program, arguments)) = command.split_first() else { bail!("no command") };
            let error = lab.command(host, program)?.args(arguments).exec();
            bail!("{program} cannot be run on {host}: {error}");
        }
        What::Start { process } => lab.start(process)?,
        What::Stop { process } => lab.stop(process)?,
        What::Kill { process } => lab.kill(process)?,
        What::Pause { process } => lab.pause(process)?,
        What::Resume { process } => lab.resume(process)?,
        What::Cut { host, other } => lab.cut(host, other.as_deref())?,
        What::Heal => lab.heal()?,
        What::Fill { host } => lab.fill(host)?,
        What::Free { host } => lab.free(host)?,
        What::Slow { process, delay } => lab.slow(process, *delay)?,
        What::Fast { process } => lab.fast(process)?,
        What::Skew { process, offset } => lab.skew(process, *offset)?,
        What::Carry => lab.carry()?,
        What::Logs { process } => {
            lab.state(process)?;
            let mut log = std::fs::File::open(lab.log(process))?;
            std::io::copy(&mut log, &mut std::io::stdout().lock())?;
        }
    }
    Ok(())
}

/// One line per process, as wide as its widest.
fn show(all: &[Status]) -> Result<()> {
    let rows = all.iter().map(|it| {
        let state = match (it.process.as_str(), it.state) {
            ("", _) => "-",
            (_, State::Running) => "Running",
            (_, State::Paused) => "Paused",
            (_, State::Ended) => "Ended",
        };
        let process = if it.process.is_empty() { "-" } else { &it.process };
        let pid = it.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        [it.host.clone(), it.address.to_string(), process.to_owned(), pid, state.to_owned()]
    });
    let head = ["HOST", "ADDRESS", "PROCESS", "PID", "STATE"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let widths = [0, 1, 2, 3].map(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0));
    let mut out = std::io::stdout().lock();
    for [host, address, process, pid, state] in &rows {
        let [a, b, c, d] = widths;
        writeln!(out, "{host:a$}   {address:b$}   {process:c$}   {pid:d$}   {state}")?;
    }
    Ok(())
}
