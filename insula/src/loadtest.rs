//! `insula loadtest`: load tests of this cloud or any other Kubernetes API.

mod nodes;

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use insula_hollow::Mode;
use insula_loadtest::{
    LoadTest, NodePool, Options,
    report::{Ending, HTML_FILE, JSON_FILE, Report, compare},
    scenario::{SHIPPED, Scenario, shipped},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{observed, signals::run_until_signalled};

/// A threshold was missed, or a step could not be done.
const MISSED: u8 = 1;
/// Nothing was measured: the input is bad, or the target refuses.
const REFUSED: u8 = 2;
/// Somebody ended it early.
const INTERRUPTED: u8 = 3;

/// How long after it the signal that ends a run may be seen once more.
const FIRST: Duration = Duration::from_millis(300);

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a scenario and write a report.
    #[command(after_help = "NAME is a scenario in the program (--list shows them), FILE one of \
    your own: docs/reference/loadtest.md has all that it may say.\n\n\
    Exit codes: 0 passed; 1 a threshold was missed or a step could not be done; 2 nothing was \
    measured: bad input, or the target refuses; 3 ended early by Ctrl-C or SIGTERM, with a report \
    of what was measured. Ctrl-C once more ends the removing of what was made.\n\n\
    Examples:\n  insula loadtest run load --small --kubeconfig run/admin.kubeconfig --out report\n  \
    insula loadtest run load --set rate=200 --process server=$(pidof insula) \\\n    \
    --kubeconfig run/admin.kubeconfig --out report")]
    Run(Box<Run>),
    /// Compare reports: what the second is to the first, or how figures grow from one to the next.
    Compare(Compare),
    /// Run nodes by the thousand that behave like node agents, without machines.
    #[command(
        after_help = "Works against any Kubernetes. Pods on these nodes start, become ready, \
    end and go as annotations of theirs say (hollow.insula.io/start-after, ready-after, exit-after, \
    exit-code, stop-after, fail); docs/reference/loadtest-nodes.md has all of them.\n\n\
    Ctrl-C or SIGTERM ends it; the nodes stay, and are not ready any more after a while, unless \
    there is --remove. Started again with the same names it goes on with them and their pods.\n\n\
    Example:\n  insula loadtest nodes --count 1000 --kubeconfig run/admin.kubeconfig --remove"
    )]
    Nodes(Box<nodes::Nodes>),
}

/// A run.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// The scenario: a name, or a file.
    #[arg(value_name = "NAME|FILE", required_unless_present = "list")]
    scenario: Option<String>,
    /// Show the scenarios in the program.
    #[arg(long)]
    list: bool,
    /// Print the scenario, and do nothing.
    #[arg(long)]
    show: bool,
    /// Of whom: any Kubernetes API. A platform administrator's, for tenants to be made.
    #[arg(long, value_name = "F", env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Where to write report.json and report.html. Made if it is not there.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// As small as the scenario says it can be.
    #[arg(long)]
    small: bool,
    /// Give a variable of the scenario another value; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Make no tenants: namespaces take their place, as on other Kubernetes APIs.
    #[arg(long)]
    no_tenants: bool,
    /// The nodes that the scenario asks for run already.
    #[arg(long)]
    nodes_running: bool,
    /// Remove what earlier runs left.
    #[arg(long)]
    cleanup: bool,
    /// How long removing may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    cleanup_timeout: u64,
    /// Connections to the target.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// No request takes longer.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Follow CPU, memory and disk of a process on this machine; may be repeated.
    #[arg(long, value_name = "NAME=PID", value_parser = process)]
    process: Vec<(String, u32)>,
    /// How to kill what the scenario kills; may be repeated.
    #[arg(long, value_name = "NAME=COMMAND", value_parser = pair)]
    command: Vec<(String, String)>,
    /// Serve /metrics of the run meanwhile.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Say nothing meanwhile.
    #[arg(long)]
    quiet: bool,
}

/// Two reports or more.
#[derive(Debug, clap::Args)]
pub(crate) struct Compare {
    /// Reports: report.json, or the directory it is in.
    #[arg(value_name = "REPORT", num_args = 2..=26, required = true)]
    reports: Vec<PathBuf>,
    /// Exit with 1 if any figure of another is more than so many times worse than the first's.
    #[arg(long, value_name = "TIMES")]
    fail_above: Option<f64>,
    /// Print the rows as JSON.
    #[arg(long)]
    json: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    match name.is_empty() || value.is_empty() {
        true => Err("write NAME=VALUE".into()),
        false => Ok((name.to_owned(), value.to_owned())),
    }
}

fn process(text: &str) -> Result<(String, u32), String> {
    let (name, pid) = pair(text)?;
    let pid: u32 = pid.parse().map_err(|_| format!("{pid:?} is no process id"))?;
    match Path::new("/proc").join(pid.to_string()).exists() {
        true => Ok((name, pid)),
        false => Err(format!("there is no process {pid}")),
    }
}

/// `insula loadtest`.
pub(crate) fn run(command: &Command) -> ExitCode {
    let ran = match command {
        Command::Run(options) => scenario(options),
        Command::Compare(options) => compare(options),
        Command::Nodes(options) => nodes::run(options).map(|()| ExitCode::SUCCESS),
    };
    ran.unwrap_or_else(|error| {
        crate::cli::fail(&error);
        ExitCode::from(REFUSED)
    })
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write")
}

fn scenario(options: &Run) -> Result<ExitCode> {
    if options.list {
        for it in SHIPPED {
            print(&format!("{:22}{}\n", it.name, it.description()?))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let name = options.scenario.as_deref().unwrap_or_default();
    let text = read(name)?;
    if options.show {
        print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let scenario = Scenario::parse(name, &text, options.small, &options.set)?;
    let kubeconfig = options.kubeconfig.clone();
    let out = options.out.as_deref().context("say where to write the report: --out DIR")?;
    // A run of hours is not to end with nowhere to write.
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let whole = Options {
        scenario,
        kubeconfig: kubeconfig.context("say which cloud: --kubeconfig F")?,
        connections: usize::from(options.connections),
        timeout: Duration::from_secs(options.timeout),
        tenants: !options.no_tenants,
        cleanup: options.cleanup,
        patience: Duration::from_secs(options.cleanup_timeout),
        processes: options.process.clone(),
        commands: options.command.clone(),
        nodes_running: options.nodes_running,
        command: std::env::args().collect(),
        client: env!("CARGO_PKG_VERSION").to_owned(),
        quiet: options.quiet,
    };
    let report = run_until_signalled(async |shutdown| {
        let mode = if whole.tenants { Mode::Feed } else { Mode::Kubelet };
        let pool: Arc<dyn NodePool> = Arc::new(nodes::Pool { mode });
        let prepare = Box::pin(LoadTest::prepare(whole, Some(pool)));
        let Some(test) = shutdown.run_until_cancelled(prepare).await else {
            bail!("ended before anything was measured");
        };
        let test = test?;
        if let Some(address) = options.listen {
            observed::serve(address, test.collectors(), shutdown.clone()).await?;
        }
        let hurry = CancellationToken::new();
        tokio::spawn(second(shutdown.clone(), hurry.clone())?);
        Ok(Box::pin(test.run(shutdown, hurry)).await)
    })?;
    report.write(out)?;
    print(&summary(&report, out))?;
    Ok(match report.ending {
        Ending::Passed => ExitCode::SUCCESS,
        Ending::Failed => ExitCode::from(MISSED),
        Ending::Interrupted => ExitCode::from(INTERRUPTED),
    })
}

/// Who asks a second time does not want to wait for what was made to be removed.
fn second(
    shutdown: CancellationToken,
    hurry: CancellationToken,
) -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        shutdown.cancelled().await;
        // The first one is seen here too, if it was one.
        let _ = tokio::time::timeout(FIRST, interrupt.recv()).await;
        if interrupt.recv().await.is_some() {
            hurry.cancel();
        }
    })
}

/// The text of a scenario: one in the program, or a file.
fn read(name: &str) -> Result<String> {
    if let Some(shipped) = shipped(name) {
        return Ok(shipped.text.to_owned());
    }
    let is_path = name.contains('/') || name.contains('.');
    if !is_path && !Path::new(name).exists() {
        let known: Vec<&str> = SHIPPED.iter().map(|it| it.name).collect();
        bail!("there is no scenario {name:?}, and no such file; there are: {}", known.join(", "));
    }
    fs::read_to_string(name).with_context(|| format!("cannot read the scenario {name}"))
}

/// What a user wants to know at once.
fn summary(report: &Report, out: &Path) -> String {
    let mut text = String::new();
    for (title, verdicts) in [("", &report.thresholds), ("objective ", &report.slos)] {
        for it in verdicts {
            let word = if it.held { "held  " } else { "MISSED" };
            text.push_str(&format!("{word} {title}{}: {}\n", it.what, it.measured));
        }
    }
    for why in &report.generator.bottlenecks {
        text.push_str(&format!("the generator was a bottleneck: {why}\n"));
    }
    let ending = match report.ending {
        Ending::Passed => "passed",
        Ending::Failed => "failed",
        Ending::Interrupted => "interrupted",
    };
    let reason = report.reason.as_ref().map_or_else(String::new, |it| format!(": {it}"));
    let out = out.display();
    text + &format!("{ending}{reason}\n{out}/{HTML_FILE} {out}/{JSON_FILE}\n")
}

fn compare(options: &Compare) -> Result<ExitCode> {
    let reports = options.reports.iter().map(|it| Report::read(it));
    let reports = reports.collect::<Result<Vec<Report>, _>>()?;
    let rows = compare::rows(&reports);
    if rows.is_empty() {
        bail!("these reports have nothing in common");
    }
    match options.json {
        true => print(&(serde_json::to_string_pretty(&rows)? + "\n"))?,
        false => print(&compare::table(&reports, &rows))?,
    }
    let worst = rows.iter().map(|it| it.worse).fold(0.0, f64::max);
    Ok(match options.fail_above {
        Some(limit) if limit < worst => ExitCode::from(MISSED),
        _ => ExitCode::SUCCESS,
    })
}
