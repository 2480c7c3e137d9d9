//! `insula backup` and `insula restore`: everything that the partitions hold, in one file and back.

use std::{
    fs::{self, File},
    io::{BufReader, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use insula_client::Client;
use insula_partition::{
    backup::{self, Summary},
    partitions::{Partitions, PartitionsConfig},
};

use crate::{cli, data_dir::DataDir, signals::run_until_signalled, store};

/// How often the progress is shown.
const SHOW: Duration = Duration::from_millis(200);

/// One line on a terminal, written over as it changes.
struct Progress {
    shown: Instant,
    is_terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { shown: Instant::now(), is_terminal: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, text: impl FnOnce() -> String) {
        if self.is_terminal && SHOW <= self.shown.elapsed() {
            self.shown = Instant::now();
            // A terminal that went away is no reason to stop.
            let _ = write!(std::io::stderr(), "\r\x1b[K{}", text());
        }
    }

    fn end(&self, text: &str) {
        let clear = if self.is_terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(std::io::stderr(), "{clear}{text}");
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn describe(summary: &Summary) -> String {
    let partitions: Vec<_> = summary
        .partitions
        .iter()
        .map(|(name, revision, objects)| format!("{name}: {objects} objects at {revision}"))
        .collect();
    format!(
        "{} objects of cluster {}, {} ({})",
        summary.objects(),
        summary.cluster,
        megabytes(summary.bytes),
        partitions.join(", ")
    )
}

/// `insula backup`.
pub(crate) fn take(options: &cli::Backup) -> Result<()> {
    let kubeconfig = match (&options.kubeconfig, &options.data_dir) {
        (Some(path), _) => path.clone(),
        (None, Some(dir)) => DataDir::open(dir)?.path("admin.kubeconfig"),
        (None, None) => bail!("say which cloud: --kubeconfig F or --data-dir DIR"),
    };
    if options.out.exists() && !options.force {
        bail!("{} is there already; --force writes over it", options.out.display());
    }
    run_until_signalled(async |shutdown| {
        let work = download(&kubeconfig, &options.out);
        tokio::select! {
            done = work => done,
            () = shutdown.cancelled() => bail!("interrupted; there is no backup"),
        }
    })
}

async fn download(kubeconfig: &Path, out: &Path) -> Result<()> {
    let client = Client::from_kubeconfig(kubeconfig, "insula-backup").await?;
    let mut answer = client.download("/insula/backup").await?;
    let mut partial = Partial::create(out)?;
    let (mut bytes, mut progress) = (0_u64, Progress::new());
    while let Some(piece) = answer.next().await? {
        partial.file.write_all(&piece).with_context(|| partial.cannot_write())?;
        bytes += piece.len() as u64;
        progress.show(|| format!("{} ...", megabytes(bytes)));
    }
    partial.file.sync_all().with_context(|| partial.cannot_write())?;
    // Read back from the disk: what cannot be restored is no backup.
    let summary = backup::check(BufReader::new(File::open(&partial.path)?))
        .context("the backup broke off or was damaged on its way")?;
    partial.keep(out)?;
    progress.end(&format!("{}: {}", out.display(), describe(&summary)));
    Ok(())
}

/// A file that is gone unless it is kept.
struct Partial {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Partial {
    /// Beside `out`, for its owner alone: there are secrets in it.
    fn create(out: &Path) -> Result<Self> {
        let mut path = out.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        let _ = fs::remove_file(&path);
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, file, kept: false })
    }

    fn cannot_write(&self) -> String {
        format!("cannot write {}", self.path.display())
    }

    fn keep(mut self, out: &Path) -> Result<()> {
        fs::rename(&self.path, out)
            .with_context(|| format!("cannot give {} its name", out.display()))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// `insula restore`.
pub(crate) fn restore(options: &cli::Restore) -> Result<()> {
    let from = &options.from;
    let file =
        File::open(from).with_context(|| format!("cannot open the backup {}", from.display()))?;
    let file = BufReader::new(file);
    if options.check {
        let summary = backup::check(file)?;
        Progress::new().end(&format!("{}: {}", from.display(), describe(&summary)));
        return Ok(());
    }
    let Some(dir) = &options.data_dir else {
        bail!("say where to: --data-dir DIR, or --check to look only")
    };
    let dir = dir.join("partitions");
    if fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} holds data; restore to a new data directory", dir.display());
    }
    // Found out before anything is made.
    backup::check(BufReader::new(File::open(from)?))?;
    let store = store::config(&options.storage, options.partitions)?;
    let mut config = PartitionsConfig::alone(dir, store);
    config.server.clone_from(&options.name);
    run_until_signalled(async |shutdown| {
        let work = write(file, config, from);
        tokio::select! {
            done = work => done,
            () = shutdown.cancelled() => {
                bail!("interrupted; begin again with a new data directory")
            }
        }
    })
}

async fn write(file: BufReader<File>, config: PartitionsConfig, from: &Path) -> Result<()> {
    let partitions = Partitions::open(config).await?;
    let mut progress = Progress::new();
    let restored = backup::restore(file, &partitions, |written| {
        progress.show(|| format!("{written} objects ..."));
    });
    let restored = Box::pin(restored).await;
    let ended = partitions.shutdown().await;
    let summary = restored?;
    ended.context("the partitions did not end well")?;
    progress.end(&format!("restored {}: {}", from.display(), describe(&summary)));
    Ok(())
}
