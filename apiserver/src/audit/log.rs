//! The file that events are written to, one JSON document a line, and its predecessors.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;
use parking_lot::{Condvar, Mutex};

use super::Rotation;

/// Bytes that wait to be written. Who has another line waits then: nothing is left out.
const WAITING: usize = 64 << 20;
/// How long the end of a server waits for what is not written yet.
const CLOSE: Duration = Duration::from_secs(5);

/// Writes lines from a thread of its own.
#[derive(Debug, Clone)]
pub(super) struct Log(Arc<Queue>);

/// Lines between those who have them and the thread that writes them.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    /// Something came, or it is closed.
    more: Condvar,
    /// Something was taken, or all is written.
    less: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    bytes: usize,
    is_closed: bool,
    is_done: bool,
}

impl Log {
    /// Opens the file, and goes on at its end.
    pub(super) fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let mut file = Rotated::open(path, rotation)?;
        let queue = Arc::new(Queue::default());
        let lines = queue.clone();
        thread::Builder::new().name("audit-log".into()).spawn(move || file.run(&lines))?;
        Ok(Self(queue))
    }

    pub(super) fn write(&self, line: String) {
        let mut state = self.0.state.lock();
        while WAITING < state.bytes && !state.is_closed {
            self.0.less.wait(&mut state);
        }
        if state.is_closed {
            return tracing::error!("the audit log is closed; an event is lost");
        }
        state.bytes += line.len();
        state.lines.push(line);
        self.0.more.notify_one();
    }

    /// Takes no more, and waits until all is written.
    pub(super) fn close(&self) {
        let mut state = self.0.state.lock();
        state.is_closed = true;
        self.0.more.notify_one();
        self.0.less.notify_all();
        let late = Instant::now() + CLOSE;
        while !state.is_done {
            if self.0.less.wait_until(&mut state, late).timed_out() {
                return tracing::error!("audit events are lost: the log is not written in time");
            }
        }
    }
}

impl Queue {
    /// All lines that wait, as soon as there are any; `None` once it is closed.
    fn take(&self) -> Option<Vec<String>> {
        let mut state = self.state.lock();
        while state.lines.is_empty() && !state.is_closed {
            self.more.wait(&mut state);
        }
        state.bytes = 0;
        self.less.notify_all();
        let lines = std::mem::take(&mut state.lines);
        (!lines.is_empty()).then_some(lines)
    }

    fn done(&self) {
        self.state.lock().is_done = true;
        self.less.notify_all();
    }
}

struct Rotated {
    path: PathBuf,
    rotation: Rotation,
    file: BufWriter<File>,
    size: u64,
    /// The last time that went into a name. A name that was removed is never taken again: it
    /// would be older than those that are left.
    last: Timestamp,
}

impl Rotated {
    fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        // It tells who did what: that is for its owner.
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        let (path, last) = (path.to_owned(), Timestamp::UNIX_EPOCH);
        Ok(Self { path, rotation, file: BufWriter::new(file), size, last })
    }

    fn run(&mut self, queue: &Queue) {
        while let Some(lines) = queue.take() {
            for line in lines {
                if let Err(error) = self.write(&line) {
                    tracing::error!(%error, path = %self.path.display(), "an audit event is lost");
                }
            }
            // Nobody is waiting: whoever reads the file sees all of it.
            if let Err(error) = self.file.flush() {
                tracing::error!(%error, path = %self.path.display(), "audit events are lost");
            }
        }
        queue.done();
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64 + 1;
        let limit = self.rotation.max_size;
        if 0 < limit
            && 0 < self.size
            && limit < self.size + length
            && let Err(error) = self.rotate()
        {
            // The old file goes on meanwhile.
            tracing::error!(%error, path = %self.path.display(), "cannot turn over the log");
        }
        self.size += length;
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")
    }

    /// Begins anew, under the same name; the old file gets the time into its own.
    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let mut at = Timestamp::now().max(self.last + Duration::from_millis(1));
        let mut old = self.aged(at);
        while old.exists() {
            at += Duration::from_millis(1);
            old = self.aged(at);
        }
        match fs::rename(&self.path, &old) {
            // Somebody took it away, or it could not be opened again the last time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            other => other?,
        }
        *self = Self { last: at, ..Self::open(&self.path, self.rotation)? };
        self.tidy()
    }

    fn stem(&self) -> (String, String) {
        let text = |it: Option<&std::ffi::OsStr>| it.map(|it| it.to_string_lossy().into_owned());
        let extension = text(self.path.extension()).map(|it| format!(".{it}"));
        (text(self.path.file_stem()).unwrap_or_default(), extension.unwrap_or_default())
    }

    fn aged(&self, at: Timestamp) -> PathBuf {
        let (stem, extension) = self.stem();
        let time = at.strftime("%Y-%m-%dT%H-%M-%S%.3f");
        self.path.with_file_name(format!("{stem}-{time}{extension}"))
    }

    /// Removes predecessors that are too many or too old.
    fn tidy(&self) -> io::Result<()> {
        let (stem, extension) = self.stem();
        let folder = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let mut old = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let time =
                name.strip_prefix(&format!("{stem}-")).and_then(|it| it.strip_suffix(&extension));
            if time.is_some_and(|it| it.len() == "2026-01-02T03-04-05.678".len()) {
                old.push((name, entry.path(), entry.metadata()?.modified()?));
            }
        }
        // The newest first; names sort by time.
        old.sort_by(|one, other| other.0.cmp(&one.0));
        let (most, age) = (self.rotation.max_backups, self.rotation.max_age);
        for (index, (_, path, modified)) in old.iter().enumerate() {
            let is_old = SystemTime::now().duration_since(*modified).is_ok_and(|it| age < it);
            if 0 < most && most <= index || !age.is_zero() && is_old {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_turned_over_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let rotation = Rotation { max_size: 100, max_backups: 2, max_age: Duration::ZERO };
        let mut file = Rotated::open(&path, rotation).unwrap();
        for n in 0..10 {
            file.write(&format!("{n}{}", "x".repeat(60))).unwrap();
        }
        file.file.flush().unwrap();
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(fs::read_to_string(&path).unwrap().starts_with('9'));
        assert!(fs::read_to_string(dir.path().join(&names[1])).unwrap().starts_with('8'));
    }

    #[test]
    fn goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        for line in ["a", "b"] {
            let mut file = Rotated::open(&path, Rotation::default()).unwrap();
            file.write(line).unwrap();
            file.file.flush().unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\n");
    }
}
