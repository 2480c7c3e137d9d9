//! Reads a container's log as users ask for it.
//!
//! The newest file is `<n>.log`; those rotated away are `<n>.log.<time>` beside it. They are read
//! as one, the oldest first, and then followed.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{line::Line, tail};
use crate::rotation;

const BLOCK: usize = 64 << 10;
/// How often a followed file is looked at. Watching it would take one of the machine's few watches.
const POLL: Duration = Duration::from_millis(100);
/// A line that the runtime writes is shorter by far; what is longer is no log.
const MAX_LINE: usize = 1 << 20;

/// What of a log is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub follow: bool,
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    /// Only what went to stderr, or only what went to stdout.
    pub is_stderr: Option<bool>,
}

/// Sends the wanted part of a log to `sink`, which is bounded: a slow reader slows the reading.
///
/// Following ends when `is_running` says no and all has been sent, or nobody reads any more.
pub(crate) async fn read(
    path: PathBuf,
    options: LogOptions,
    is_running: impl Fn() -> bool,
    sink: mpsc::Sender<io::Result<Bytes>>,
) {
    let mut reading = Reading { filter: Filter::new(options.clone()), sink };
    let start = tokio::task::spawn_blocking({
        let path = path.clone();
        move || files(&path, options.tail_lines)
    });
    let start = start.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let result = match start {
        Ok(files) => reading.run(&path, files, options.follow, is_running).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        // If nobody listens, nobody wants to know.
        let _ = reading.sink.send(Err(error)).await;
    }
}

/// The files to read, each at the right place.
fn files(path: &Path, tail_lines: Option<u64>) -> io::Result<VecDeque<File>> {
    let mut paths = rotation::moved_files(path)?;
    paths.push(path.to_path_buf());
    let mut files = VecDeque::new();
    let mut n_wanted = tail_lines;
    for path in paths.iter().rev() {
        let mut file = match File::open(path) {
            Ok(file) => file,
            // Rotated away or removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !files.is_empty() => continue,
            Err(error) => return Err(error),
        };
        if let Some(n) = n_wanted {
            let (start, n_found) = tail::last_lines(&mut file, n)?;
            file.seek(SeekFrom::Start(start))?;
            n_wanted = Some(n - n_found.min(n));
        }
        files.push_front(file);
        if n_wanted == Some(0) {
            break;
        }
    }
    Ok(files)
}

struct Reading {
    filter: Filter,
    sink: mpsc::Sender<io::Result<Bytes>>,
}

impl Reading {
    async fn run(
        &mut self,
        path: &Path,
        mut files: VecDeque<File>,
        follow: bool,
        is_running: impl Fn() -> bool,
    ) -> io::Result<()> {
        let mut current = files.pop_front();
        while let Some(mut file) = current.take() {
            let is_last = files.is_empty();
            // Asked before reading: what was written before the end is then read for certain.
            let runs = follow && is_running();
            let block = tokio::task::spawn_blocking(move || {
                let mut block = vec![0; BLOCK];
                let n = file.read(&mut block)?;
                block.truncate(n);
                Ok::<_, io::Error>((file, block))
            });
            let (same, block) = block.await.map_err(io::Error::other)??;
            file = same;
            if !block.is_empty() {
                let out = self.filter.push(&block);
                if !out.is_empty() && self.sink.send(Ok(out)).await.is_err() {
                    return Ok(());
                }
                if self.filter.is_full() {
                    return Ok(());
                }
                current = Some(file);
            } else if !is_last {
                current = files.pop_front();
            } else if !runs {
                return Ok(());
            } else {
                // A file that was rotated away is at its end for good: go on with its successor.
                current = Some(match successor(path, &file)? {
                    Some(next) => next,
                    None => {
                        tokio::select! {
                            () = self.sink.closed() => return Ok(()),
                            () = tokio::time::sleep(POLL) => file,
                        }
                    }
                });
            }
        }
        Ok(())
    }
}

/// The file that is now at `path`, if it is another one than `file`.
fn successor(path: &Path, file: &File) -> io::Result<Option<File>> {
    use std::os::unix::fs::MetadataExt;
    let now = match File::open(path) {
        Ok(now) => now,
        // Between being moved away and being made anew, or gone with its pod.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (old, new) = (file.metadata()?, now.metadata()?);
    let is_same = (old.dev(), old.ino()) == (new.dev(), new.ino());
    Ok((!is_same).then_some(now))
}

/// Turns bytes of the file into bytes for the user.
struct Filter {
    options: LogOptions,
    partial: BytesMut,
    /// Bytes that may still be sent.
    n_left: u64,
    /// The line before was a part: what follows continues it.
    is_inside_line: bool,
}

impl Filter {
    fn new(options: LogOptions) -> Self {
        let n_left = options.limit_bytes.unwrap_or(u64::MAX);
        Self { options, partial: BytesMut::new(), n_left, is_inside_line: false }
    }

    fn is_full(&self) -> bool {
        self.n_left == 0
    }

    fn push(&mut self, bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|&byte| byte == b'\n') {
            let (line, after) = (&rest[..at], &rest[at + 1..]);
            rest = after;
            if self.partial.is_empty() {
                self.line(line, &mut out);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole, &mut out);
            }
        }
        if self.partial.len() + rest.len() <= MAX_LINE {
            self.partial.extend_from_slice(rest);
        }
        let n = usize::try_from(self.n_left).unwrap_or(usize::MAX).min(out.len());
        out.truncate(n);
        self.n_left -= n as u64;
        out.freeze()
    }

    fn line(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let Some(line) = Line::parse(bytes) else { return };
        if self.options.is_stderr.is_some_and(|it| it != line.is_stderr) {
            return;
        }
        let is_old = |since: Timestamp| line.timestamp().is_some_and(|it| it < since);
        if self.options.since.is_some_and(is_old) {
            return;
        }
        if self.options.timestamps && !self.is_inside_line {
            out.extend_from_slice(line.time.as_bytes());
            out.extend_from_slice(b" ");
        }
        out.extend_from_slice(line.text);
        if !line.is_partial {
            out.extend_from_slice(b"\n");
        }
        self.is_inside_line = line.is_partial;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use super::*;

    const LOG: &str = "2026-01-01T00:00:01Z stdout F one\n\
        2026-01-01T00:00:02Z stderr F two\n\
        2026-01-01T00:00:03Z stdout P thr\n\
        2026-01-01T00:00:03Z stdout F ee\n\
        broken\n\
        2026-01-01T00:00:04Z stdout F four\n";

    async fn text_of(directory: &Path, options: LogOptions) -> String {
        let (sink, mut source) = mpsc::channel(4);
        let path = directory.join("0.log");
        tokio::spawn(read(path, options, || false, sink));
        let mut text = Vec::new();
        while let Some(bytes) = source.recv().await {
            text.extend_from_slice(&bytes.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn what_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("0.log"), LOG).unwrap();
        let text = |options| text_of(directory.path(), options);
        let all = LogOptions::default();
        assert_eq!(text(all.clone()).await, "one\ntwo\nthree\nfour\n");
        let tail = LogOptions { tail_lines: Some(1), ..all.clone() };
        assert_eq!(text(tail).await, "four\n");
        let none = LogOptions { tail_lines: Some(0), ..all.clone() };
        assert_eq!(text(none).await, "");
        let since =
            LogOptions { since: Some("2026-01-01T00:00:03Z".parse().unwrap()), ..all.clone() };
        assert_eq!(text(since).await, "three\nfour\n");
        let limited = LogOptions { limit_bytes: Some(5), ..all.clone() };
        assert_eq!(text(limited).await, "one\nt");
        let stderr = LogOptions { is_stderr: Some(true), timestamps: true, ..all.clone() };
        assert_eq!(text(stderr).await, "2026-01-01T00:00:02Z two\n");
        let stamped = LogOptions { timestamps: true, tail_lines: Some(4), ..all };
        let expected = "2026-01-01T00:00:03Z three\n2026-01-01T00:00:04Z four\n";
        assert_eq!(text(stamped).await, expected);
    }

    #[tokio::test]
    async fn rotated_files_are_part_of_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            fs::write(
                directory.path().join(name),
                format!("2026-01-01T00:00:01Z stdout F {text}\n"),
            )
            .unwrap();
        };
        write("0.log.20260101-000001", "a");
        write("0.log.20260101-000002", "b");
        write("0.log", "c");
        write("10.log", "other");
        let all = LogOptions::default();
        assert_eq!(text_of(directory.path(), all.clone()).await, "a\nb\nc\n");
        let two = LogOptions { tail_lines: Some(2), ..all };
        assert_eq!(text_of(directory.path(), two).await, "b\nc\n");
    }

    #[tokio::test]
    async fn following_survives_rotation_and_ends_with_the_container() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let line = |text: &str| format!("2026-01-01T00:00:01Z stdout F {text}\n");
        fs::write(&path, line("one")).unwrap();
        let runs = Arc::new(AtomicBool::new(true));
        let (sink, mut source) = mpsc::channel(4);
        let asked = runs.clone();
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let is_running = move || asked.load(Ordering::SeqCst);
        tokio::spawn(read(path.clone(), options, is_running, sink));
        assert_eq!(source.recv().await.unwrap().unwrap(), "one\n");
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(line("two").as_bytes()).unwrap();
        assert_eq!(source.recv().await.unwrap().unwrap(), "two\n");
        fs::rename(&path, directory.path().join("0.log.1")).unwrap();
        fs::write(&path, line("three")).unwrap();
        assert_eq!(source.recv().await.unwrap().unwrap(), "three\n");
        runs.store(false, Ordering::SeqCst);
        assert!(source.recv().await.is_none());
    }
}
