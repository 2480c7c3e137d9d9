//! The data directory: whose it is, who may use it, and which groups it holds.
//!
//! ```text
//! LOCK           held by the process that has the directory open
//! FORMAT         JSON: the format's number, whose directory it is, the groups in it
//! log/           the write-ahead log
//! checkpoints/   one directory per group, `<number>-<name>`
//! ```
//!
//! # A directory is one member
//!
//! A member of a raft group that forgets what it voted for, or that is there twice, can make the
//! group decide twice. So FORMAT names the server that a directory belongs to, and under another
//! name, number or cluster it is refused. A copy that is started under the *same* name on another
//! machine cannot be told from the original by looking at it; that much is prevented:
//!
//! * Every start counts up the directory's `starts`, which every message carries together with
//!   what the process drew by lot. Other members take the first process that they hear of with
//!   the highest count, and nothing from any other: of two copies at most one is heard.
//! * Messages for a server travel to the one address that the map has for its name.
//!
//! What is not prevented: a copy of an *old* state that is started after the original has gone
//! for good, and after all other members forgot its count by a restart of their own. A directory
//! that was lost must therefore never be put back from a file copy: give the server a new number
//! and let it join, or restore a backup.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{error::OpenError, wal::frame::GroupId};

/// Changes whenever another version could not read what this one writes.
const FORMAT: u32 = 2;

/// Who this server is to the members of its partitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Tells this cluster from all others; a UUID.
    pub(crate) cluster: String,
    /// The server's unique name.
    pub(crate) server: String,
    /// The server's number as a member. Never given to another server, nor to the same one again
    /// once it has lost its directory.
    pub(crate) member: u64,
}

/// A raft group that has a member in this directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownGroup {
    /// Tells its records in the log from others'. Never used again in this directory.
    pub(crate) number: GroupId,
    pub(crate) name: String,
    /// Who the group began with; empty if this member joined it later.
    pub(crate) voters: Vec<u64>,
    /// The log has nothing of this group before this segment.
    pub(crate) segment: u64,
}

/// A data directory that this process has for itself until this is dropped.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Locked as long as the file is open, or until it is released.
    lock: File,
    format: Format,
    is_new: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Format {
    format: u32,
    identity: Identity,
    /// How often the directory was opened.
    starts: u64,
    /// False until the first start has made the log: a log that is missing after that is lost.
    complete: bool,
    next_group: GroupId,
    groups: Vec<KnownGroup>,
    /// Names of the servers that this one has heard of, to reach them before it can ask anybody.
    servers: BTreeMap<u64, String>,
}

impl Directory {
    /// Locks `path`, made if it is not there, for the server `identity`.
    pub(crate) fn open(path: &Path, identity: &Identity) -> Result<Self, OpenError> {
        let failed = |source| OpenError::io("create", path, source);
        fs::create_dir_all(path).map_err(failed)?;
        let lock = lock(path)?;
        let found = read_format(path)?;
        let is_new = found.as_ref().is_none_or(|found| !found.complete);
        let mut format = match found {
            Some(found) if found.identity != *identity => {
                let (dir, found, ours) = (path.into(), found.identity, identity);
                return Err(OpenError::Foreign {
                    dir,
                    found: format!(
                        "{} (number {}) of cluster {}",
                        found.server, found.member, found.cluster
                    ),
                    ours: format!(
                        "{} (number {}) of cluster {}",
                        ours.server, ours.member, ours.cluster
                    ),
                });
            }
            Some(found) => found,
            None => Format {
                format: FORMAT,
                identity: identity.clone(),
                starts: 0,
                complete: false,
                next_group: 0,
                groups: Vec::new(),
                servers: BTreeMap::new(),
            },
        };
        format.starts += 1;
        format.servers.insert(identity.member, identity.server.clone());
        let directory = Self { path: path.into(), lock, format, is_new };
        directory.write_format()?;
        directory.create_parts().map_err(failed)?;
        directory.remove_left_over().map_err(failed)?;
        Ok(directory)
    }

    /// Whose directory `path` is; `None` if there is none yet. It need not be free.
    pub(crate) fn identity(path: &Path) -> Result<Option<Identity>, OpenError> {
        Ok(read_format(path)?.map(|format| format.identity))
    }

    /// Makes the directories in it, durably: a file is lost if the way to it is.
    fn create_parts(&self) -> io::Result<()> {
        fs::create_dir_all(self.log())?;
        fs::create_dir_all(self.path.join("checkpoints"))?;
        for group in &self.format.groups {
            fs::create_dir_all(self.checkpoints(group))?;
        }
        sync(&self.path.join("checkpoints"))?;
        sync(&self.path)?;
        match self.path.canonicalize()?.parent() {
            Some(parent) => sync(parent),
            None => Ok(()),
        }
    }

    /// Removes the checkpoints of groups that were let go when the process ended.
    fn remove_left_over(&self) -> io::Result<()> {
        let known: Vec<_> =
            self.format.groups.iter().map(|group| self.checkpoints(group)).collect();
        for entry in fs::read_dir(self.path.join("checkpoints"))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let number = name
                .and_then(|name| name.split_once('-'))
                .and_then(|(number, _)| number.parse().ok());
            if number.is_some_and(|number: GroupId| number < self.format.next_group)
                && !known.contains(&path)
            {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    /// Whether this may be the first start: there need be no log yet.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    pub(crate) fn starts(&self) -> u64 {
        self.format.starts
    }

    pub(crate) fn groups(&self) -> &[KnownGroup] {
        &self.format.groups
    }

    /// Whether there was ever a group of that number.
    pub(crate) fn was_known(&self, number: GroupId) -> bool {
        number < self.format.next_group
    }

    pub(crate) fn servers(&self) -> &BTreeMap<u64, String> {
        &self.format.servers
    }

    /// The log has been made; from now on there must be one.
    pub(crate) fn complete(&mut self) -> Result<(), OpenError> {
        if !self.is_new {
            return Ok(());
        }
        self.is_new = false;
        self.format.complete = true;
        self.write_format()
    }

    /// Takes in a group, whose first record will be in `segment` or later. It is there for good
    /// when this returns.
    pub(crate) fn add(
        &mut self,
        name: &str,
        voters: Vec<u64>,
        segment: u64,
    ) -> Result<KnownGroup, OpenError> {
        let group =
            KnownGroup { number: self.format.next_group, name: name.into(), voters, segment };
        let dir = self.checkpoints(&group);
        fs::create_dir_all(&dir)
            .and_then(|()| sync(&self.path.join("checkpoints")))
            .map_err(|source| OpenError::io("create", &dir, source))?;
        let before = self.format.clone();
        self.format.next_group += 1;
        self.format.groups.push(group.clone());
        self.write_or_undo(before)?;
        Ok(group)
    }

    /// Lets a group go, with all that is kept of it.
    pub(crate) fn remove(&mut self, group: &KnownGroup) -> Result<(), OpenError> {
        let before = self.format.clone();
        self.format.groups.retain(|known| known.number != group.number);
        self.write_or_undo(before)?;
        let dir = self.checkpoints(group);
        fs::remove_dir_all(&dir).map_err(|source| OpenError::io("remove", &dir, source))
    }

    /// Remembers what servers are called.
    pub(crate) fn know(&mut self, servers: &BTreeMap<u64, String>) -> Result<(), OpenError> {
        if servers.iter().all(|(id, name)| self.format.servers.get(id) == Some(name)) {
            return Ok(());
        }
        let before = self.format.clone();
        self.format.servers.extend(servers.clone());
        self.write_or_undo(before)
    }

    /// Lets others use the directory. Nothing in it may be touched after this.
    pub(crate) fn release(&self) -> io::Result<()> {
        self.lock.unlock()
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(crate) fn checkpoints(&self, group: &KnownGroup) -> PathBuf {
        self.path.join("checkpoints").join(format!("{}-{}", group.number, group.name))
    }

    fn write_or_undo(&mut self, before: Format) -> Result<(), OpenError> {
        let written = self.write_format();
        if written.is_err() {
            self.format = before;
        }
        written
    }

    fn write_format(&self) -> Result<(), OpenError> {
        let path = self.path.join("FORMAT");
        let failed = |source| OpenError::io("write", &path, source);
        let mut text = serde_json::to_vec(&self.format).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        write_atomically(&path, &text).map_err(failed)
    }
}

/// What is in the directory at `dir`. `None` if nothing is yet.
fn read_format(dir: &Path) -> Result<Option<Format>, OpenError> {
    let path = dir.join("FORMAT");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        // It is written before anything else.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.join("log").exists() => {
            return Ok(None);
        }
        Err(source) => return Err(OpenError::io("read", &path, source)),
    };
    // The number alone is read first: of another format nothing else is known.
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let number = &value["format"];
    if *number != FORMAT {
        return Err(OpenError::Format { dir: dir.into(), found: number.to_string(), ours: FORMAT });
    }
    serde_json::from_value(value)
        .map(Some)
        .map_err(|error| OpenError::Damaged { what: format!("{}: {error}", path.display()) })
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

    fn identity(cluster: &str, server: &str, member: u64) -> Identity {
        Identity { cluster: cluster.into(), server: server.into(), member }
    }

    fn ours() -> Identity {
        identity("c", "s1", 1)
    }

    #[test]
    fn only_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Directory::open(dir.path(), &ours()).unwrap();
        let second = Directory::open(dir.path(), &ours()).unwrap_err();
        let process = std::process::id().to_string();
        assert!(matches!(second, OpenError::Locked { holder, .. } if holder == process));
        drop(first);
        assert_eq!(Directory::open(dir.path(), &ours()).unwrap().starts(), 2);
        assert_eq!(Directory::identity(dir.path()).unwrap(), Some(ours()));
    }

    #[test]
    fn another_servers_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Directory::identity(dir.path()).unwrap(), None);
        Directory::open(dir.path(), &ours()).unwrap();
        for other in [identity("d", "s1", 1), identity("c", "s2", 1), identity("c", "s1", 2)] {
            let error = Directory::open(dir.path(), &other).unwrap_err();
            assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        }
        // Having been refused changes nothing.
        assert_eq!(Directory::open(dir.path(), &ours()).unwrap().starts(), 2);
    }

    #[test]
    fn groups_come_and_go_and_their_numbers_stay_used() {
        let dir = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(dir.path(), &ours()).unwrap();
        let meta = directory.add("meta", vec![1], 1).unwrap();
        let gone = directory.add("p1", vec![1], 1).unwrap();
        directory.remove(&gone).unwrap();
        // As if the process had ended in the middle of the removal.
        fs::create_dir(directory.checkpoints(&gone)).unwrap();
        drop(directory);
        let mut directory = Directory::open(dir.path(), &ours()).unwrap();
        assert!(!directory.checkpoints(&gone).exists());
        let again = directory.add("p1", vec![], 7).unwrap();
        assert_eq!(directory.groups(), [meta, again.clone()]);
        assert_eq!((gone.number, again.number), (1, 2));
        assert!(directory.was_known(1) && !directory.was_known(3));
    }

    #[test]
    fn other_formats_are_refused() {
        for text in [r#"{"format":3,"new":"things"}"#, "not even JSON"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("FORMAT"), text).unwrap();
            let error = Directory::open(dir.path(), &ours()).unwrap_err();
            assert!(matches!(error, OpenError::Format { ours: FORMAT, .. }), "{error}");
        }
    }
}
