//! Mounts on this machine: memory-backed volumes and sub paths.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2},
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
};

/// Mounts a memory file system at `target` unless something is mounted there already.
pub(super) fn mount_memory(target: &Path, size: Option<u64>) -> io::Result<()> {
    if mounts_below(target)?.iter().any(|it| it == target) {
        return Ok(());
    }
    let mut data = "mode=0777".to_owned();
    if let Some(size) = size {
        data.push_str(&format!(",size={size}"));
    }
    let data = std::ffi::CString::new(data)?;
    mount("tmpfs", target, "tmpfs", MountFlags::empty(), data.as_c_str())?;
    Ok(())
}

/// Unmounts `directory` and all below it. A mount that does not go is an error: the caller is
/// about to remove files and must not reach through it.
pub(super) fn unmount_all(directory: &Path) -> io::Result<()> {
    let mut mounts = mounts_below(directory)?;
    // The last mounted first.
    mounts.reverse();
    for path in mounts {
        unmount(&path, UnmountFlags::DETACH)?;
    }
    match mounts_below(directory)?.first() {
        Some(left) => Err(io::Error::other(format!("{} is still mounted", left.display()))),
        None => Ok(()),
    }
}

/// Mount points at or below `directory`, in the order they were mounted.
fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let paths = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    Ok(paths.filter(|path| path.starts_with(directory)).collect())
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut output = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        output.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                output.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                output.push('\\');
                rest = after;
            }
        }
    }
    output.push_str(rest);
    output.into()
}

/// Binds `volume`/`sub_path` to `target` and creates the sub path as a directory if absent.
///
/// The path is resolved by the kernel with `volume` as its root, and what was found is bound by its
/// descriptor: a container that swaps a link in its volume cannot lead us out of it.
pub(super) fn bind_sub_path(volume: &Path, sub_path: &str, target: &Path) -> io::Result<()> {
    let found = open_below(volume, Path::new(sub_path))?;
    let is_directory = fstat(&found)?.st_mode & 0o170_000 == 0o040_000;
    unmount_all(target)?;
    if is_directory {
        fs::create_dir_all(target)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    mount_bind(format!("/proc/self/fd/{}", found.as_raw_fd()), target)?;
    Ok(())
}

/// Opens what `path` leads to below `root`, making directories that are missing.
fn open_below(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    let directory = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let top = rustix::fs::open(root, directory | OFlags::DIRECTORY, Mode::empty())?;
    match openat2(&top, path, directory, Mode::empty(), resolve) {
        Ok(found) => return Ok(found),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mut at = PathBuf::new();
    let mut current = top.try_clone()?;
    for part in path.components() {
        let Component::Normal(name) = part else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "must not contain '..'"));
        };
        at.push(name);
        current = match openat2(&top, &at, directory, Mode::empty(), resolve) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => {
                mkdirat(&current, name, Mode::from_raw_mode(0o755))?;
                openat2(&top, &at, directory, Mode::empty(), resolve)?
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_escapes() {
        assert_eq!(unescape(r"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(r"/a\x"), Path::new(r"/a\x"));
    }

    /// Needs root, as the agent does.
    #[test]
    fn a_sub_path_stays_in_its_volume() {
        let directory = tempfile::tempdir().unwrap();
        let (volume, outside) = (directory.path().join("v"), directory.path().join("secret"));
        fs::create_dir(&volume).unwrap();
        fs::write(&outside, "outside").unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("link")).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("absolute")).unwrap();
        let target = directory.path().join("target");
        for path in ["link", "absolute"] {
            // Resolved with the volume as root, the link leads to nothing, or to a new directory.
            let bound = bind_sub_path(&volume, path, &target);
            assert_ne!(fs::read_to_string(&target).ok().as_deref(), Some("outside"), "{bound:?}");
            unmount_all(directory.path()).unwrap();
            let _ = fs::remove_file(&target);
            let _ = fs::remove_dir(&target);
        }
        bind_sub_path(&volume, "new/deep", &target).unwrap();
        fs::write(target.join("file"), "x").unwrap();
        assert_eq!(fs::read_to_string(volume.join("new/deep/file")).unwrap(), "x");
        assert!(bind_sub_path(&volume, "../up", &directory.path().join("t2")).is_err());
        unmount_all(directory.path()).unwrap();
        assert!(fs::read_dir(&target).unwrap().next().is_none());
    }

    /// Needs root, as the agent does.
    #[test]
    fn memory_is_mounted_once() {
        let directory = tempfile::tempdir().unwrap();
        mount_memory(directory.path(), Some(1 << 20)).unwrap();
        mount_memory(directory.path(), Some(1 << 20)).unwrap();
        assert_eq!(mounts_below(directory.path()).unwrap().len(), 1);
        assert!(fs::write(directory.path().join("big"), vec![0; 2 << 20]).is_err());
        unmount_all(directory.path()).unwrap();
    }
}
