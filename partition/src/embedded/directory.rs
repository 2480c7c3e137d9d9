//! The data directory: who may use it, and in which format it is.
//!
//! ```text
//! LOCK           held by the process that has the directory open
//! FORMAT         JSON: the format's number, the partitions' names, whether the log was made
//! log/           the write-ahead log
//! checkpoints/   one directory per partition
//! ```

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::OpenError;

/// Changes whenever another version could not read what this one writes.
const FORMAT: u32 = 1;

/// A data directory that this process has for itself until this is dropped.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Locked as long as the file is open, or until it is released.
    lock: File,
    is_new: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Format {
    format: u32,
    partitions: Vec<String>,
    /// False until the first start has made the log: a log that is missing after that is lost.
    complete: bool,
}

impl Directory {
    /// Locks `path`, made if it is not there, for the given partitions.
    pub(crate) fn open(path: &Path, partitions: &[String]) -> Result<Self, OpenError> {
        let failed = |source| OpenError::io("create", path, source);
        fs::create_dir_all(path).map_err(failed)?;
        let lock = lock(path)?;
        let mut directory = Self { path: path.into(), lock, is_new: true };
        match directory.read_format()? {
            Some(found) if found.partitions != partitions => {
                let found = found.partitions;
                return Err(OpenError::Partitions { found, asked: partitions.to_vec() });
            }
            Some(found) => directory.is_new = !found.complete,
            None => directory.write_format(partitions, false)?,
        }
        directory.create_parts(partitions).map_err(failed)?;
        Ok(directory)
    }

    /// Makes the directories in it, durably: a file is lost if the way to it is.
    fn create_parts(&self, partitions: &[String]) -> io::Result<()> {
        fs::create_dir_all(self.log())?;
        for partition in partitions {
            fs::create_dir_all(self.checkpoints(partition))?;
        }
        sync(&self.path.join("checkpoints"))?;
        sync(&self.path)?;
        match self.path.canonicalize()?.parent() {
            Some(parent) => sync(parent),
            None => Ok(()),
        }
    }

    /// Whether this may be the first start: there need be no log yet.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// The log has been made; from now on there must be one.
    pub(crate) fn complete(&self, partitions: &[String]) -> Result<(), OpenError> {
        if self.is_new { self.write_format(partitions, true) } else { Ok(()) }
    }

    /// Lets others use the directory. Nothing in it may be touched after this.
    pub(crate) fn release(&self) -> io::Result<()> {
        self.lock.unlock()
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(crate) fn checkpoints(&self, partition: &str) -> PathBuf {
        self.path.join("checkpoints").join(partition)
    }

    /// What is in here. `None` if nothing is yet.
    fn read_format(&self) -> Result<Option<Format>, OpenError> {
        let path = self.path.join("FORMAT");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // It is written before anything else.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.log().exists() => {
                return Ok(None);
            }
            Err(source) => return Err(OpenError::io("read", &path, source)),
        };
        // The number alone is read first: of another format nothing else is known.
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let number = &value["format"];
        if *number != FORMAT {
            let (dir, found) = (self.path.clone(), number.to_string());
            return Err(OpenError::Format { dir, found, ours: FORMAT });
        }
        serde_json::from_value(value)
            .map(Some)
            .map_err(|error| OpenError::Damaged { what: format!("{}: {error}", path.display()) })
    }

    fn write_format(&self, partitions: &[String], complete: bool) -> Result<(), OpenError> {
        let path = self.path.join("FORMAT");
        let format = Format { format: FORMAT, partitions: partitions.to_vec(), complete };
        let failed = |source| OpenError::io("write", &path, source);
        let mut text = serde_json::to_vec(&format).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        write_atomically(&path, &text).map_err(failed)
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&path).map_err(|source| OpenError::io("open", &path, source))?;
    let failed = |source| OpenError::io("lock", &path, source);
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(failed)?;
            let holder = holder.trim().to_owned();
            return Err(OpenError::Locked { dir: dir.into(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// Replaces a file so that after a crash it has either its old or its new content, whole.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("new");
    let mut file = File::create(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    match path.parent() {
        Some(parent) => sync(parent),
        None => Ok(()),
    }
}

/// Makes a file's or a directory's content durable.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let partitions = names(&["meta", "p1"]);
        let first = Directory::open(dir.path(), &partitions).unwrap();
        let second = Directory::open(dir.path(), &partitions).unwrap_err();
        let process = std::process::id().to_string();
        assert!(matches!(second, OpenError::Locked { holder, .. } if holder == process));
        drop(first);
        Directory::open(dir.path(), &partitions).unwrap();
    }

    #[test]
    fn other_partitions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        Directory::open(dir.path(), &names(&["meta", "p1"])).unwrap();
        let error = Directory::open(dir.path(), &names(&["meta", "p1", "p2"])).unwrap_err();
        assert!(matches!(error, OpenError::Partitions { .. }));
    }

    #[test]
    fn other_formats_are_refused() {
        for text in [r#"{"format":2,"new":"things"}"#, "not even JSON"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("FORMAT"), text).unwrap();
            let error = Directory::open(dir.path(), &names(&["meta"])).unwrap_err();
            assert!(matches!(error, OpenError::Format { ours: FORMAT, .. }), "{error}");
        }
    }
}
