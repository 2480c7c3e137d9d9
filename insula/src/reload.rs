//! Files that are read again while the process runs: keys, certificates, tokens.
//!
//! They are looked at every second, which costs a few system calls and needs nobody to say
//! anything; SIGHUP has all of them read at once. What cannot be read changes nothing, and is tried
//! again: of two files that belong together one may be new already.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::time::MissedTickBehavior;

use crate::signals::hangups;

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Files that are read together.
pub(crate) struct Group {
    what: &'static str,
    paths: Vec<PathBuf>,
    /// Done again after so long, whatever the files are like.
    renewed: Option<Duration>,
    apply: Box<dyn FnMut() -> Result<()> + Send>,
    seen: Vec<Seen>,
    applied: Instant,
    /// What has been told of already.
    told: Option<String>,
}

/// What tells a file from what it was: its inode, size and time of change.
type Seen = Option<(u64, u64, i64, i64)>;

impl Group {
    /// `apply` reads `paths`, as has just been done for the first time.
    pub(crate) fn new(
        what: &'static str,
        paths: impl IntoIterator<Item = PathBuf>,
        apply: impl FnMut() -> Result<()> + Send + 'static,
    ) -> Self {
        let paths: Vec<PathBuf> = paths.into_iter().collect();
        let seen = look(&paths);
        let (renewed, told, applied) = (None, None, Instant::now());
        Self { what, paths, renewed, apply: Box::new(apply), seen, applied, told }
    }

    /// Has it done again after `time`, too.
    pub(crate) fn renewed_after(mut self, time: Duration) -> Self {
        self.renewed = Some(time);
        self
    }

    fn tick(&mut self, is_asked: bool) {
        let now = look(&self.paths);
        let is_due = self.renewed.is_some_and(|time| time <= self.applied.elapsed());
        if now == self.seen && self.told.is_none() && !is_due && !is_asked {
            return;
        }
        self.seen = now;
        match (self.apply)() {
            Ok(()) => {
                (self.told, self.applied) = (None, Instant::now());
                tracing::info!(what = self.what, "read again");
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.told.as_ref() != Some(&error) {
                    tracing::error!(what = self.what, error, "stay as they are");
                }
                self.told = Some(error);
            }
        }
    }
}

fn look(paths: &[PathBuf]) -> Vec<Seen> {
    let seen = |path: &PathBuf| {
        let it = fs::metadata(path).ok()?;
        Some((it.ino(), it.size(), it.mtime(), it.mtime_nsec()))
    };
    paths.iter().map(seen).collect()
}

/// Follows files for ever.
pub(crate) async fn follow(mut groups: Vec<Group>) {
    let Ok(mut hangups) = hangups() else {
        return tracing::error!("files are not read again: SIGHUP cannot be waited for");
    };
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_asked = tokio::select! {
            _ = ticks.tick() => false,
            _ = hangups.recv() => true,
        };
        groups.iter_mut().for_each(|it| it.tick(is_asked));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn changes_are_seen_and_mistakes_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "1").unwrap();
        let tries = Arc::new(AtomicUsize::new(0));
        let (counted, read) = (tries.clone(), path.clone());
        let mut group = Group::new("it", [path.clone()], move || {
            counted.fetch_add(1, Ordering::SeqCst);
            fs::read_to_string(&read)?.parse::<u32>().map(drop).map_err(Into::into)
        });
        let mut tried = |is_asked| {
            let before = tries.load(Ordering::SeqCst);
            group.tick(is_asked);
            tries.load(Ordering::SeqCst) - before
        };
        assert_eq!((tried(false), tried(true)), (0, 1));
        fs::write(&path, "no number").unwrap();
        assert_eq!((tried(false), tried(false)), (1, 1));
        // Back as it was, but another file.
        let other = dir.path().join("other");
        fs::write(&other, "2").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!((tried(false), tried(false)), (1, 0));
    }
}
