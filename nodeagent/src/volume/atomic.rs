//! Replaces all files of a volume at once.
//!
//! The files lie in a directory of their own, `..<time>`. `..data` is a link to it, and each entry
//! that a container sees is a link through `..data`. One rename of `..data` therefore switches all
//! files; a reader who resolved `..data` before keeps the old ones until they are removed.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::payload::Payload;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Makes `volume` hold exactly `payload`; returns whether anything changed.
///
/// Interrupted at any point, the old files stay in place and the next call cleans up.
pub(super) fn write(volume: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    fs::create_dir_all(volume)?;
    fs::set_permissions(volume, fs::Permissions::from_mode(directory_mode(group)))?;
    chown(volume, None, group)?;
    let current = fs::read_link(volume.join(DATA)).ok();
    let is_current = match &current {
        Some(current) => holds(&volume.join(current), payload, group)?,
        None => false,
    };
    if !is_current {
        let fresh = format!("..{}", Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%f"));
        write_files(&volume.join(&fresh), payload, group)?;
        let link = volume.join(NEW_DATA);
        remove_if_there(&link)?;
        symlink(&fresh, &link)?;
        fs::rename(&link, volume.join(DATA))?;
    }
    link_entries(volume, payload)?;
    remove_leftovers(volume)?;
    Ok(!is_current)
}

fn directory_mode(group: Option<u32>) -> u32 {
    // With the set-group-id bit, what a container creates here belongs to the group as well.
    if group.is_some() { 0o2777 } else { 0o777 }
}

fn file_mode(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() { mode | 0o440 } else { mode }
}

fn write_files(directory: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    let make = |path: &Path| {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        chown(path, None, group)
    };
    make(directory)?;
    for (path, file) in payload {
        let target = directory.join(path);
        let parents: Vec<PathBuf> = target
            .ancestors()
            .skip(1)
            .take_while(|it| *it != directory)
            .map(Path::to_path_buf)
            .collect();
        for parent in parents.iter().rev() {
            make(parent)?;
        }
        fs::write(&target, &file.bytes)?;
        // After writing: the mode may forbid it, and it must not pass through the umask.
        chown(&target, None, group)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file_mode(file.mode, group)))?;
    }
    Ok(())
}

/// Whether `directory` holds exactly these files with these modes.
fn holds(directory: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let entries = match fs::read_dir(directory.join(&relative)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    if found.len() != payload.len() || !payload.keys().all(|it| found.contains(Path::new(it))) {
        return Ok(false);
    }
    for (path, file) in payload {
        let path = directory.join(path);
        let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
        if mode != file_mode(file.mode, group) || fs::read(&path)? != file.bytes {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the visible entries those of the payload's top level.
fn link_entries(volume: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = volume.join(name);
        let target = Path::new(DATA).join(name);
        if fs::read_link(&link).ok().as_ref() != Some(&target) {
            remove_if_there(&link)?;
            symlink(target, link)?;
        }
    }
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name.to_string_lossy().starts_with("..");
        if !is_ours && !name.to_str().is_some_and(|it| wanted.contains(it)) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes the directories that `..data` does not lead to.
fn remove_leftovers(volume: &Path) -> io::Result<()> {
    let current = fs::read_link(volume.join(DATA))?;
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("..")
            && name != DATA
            && Path::new(&name) != current.as_path()
        {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::payload::File, *};

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File { bytes: text.as_bytes().to_vec(), mode: 0o640 };
        files.iter().map(|&(path, text)| (path.to_owned(), file(text))).collect()
    }

    /// What a container would see.
    fn seen(volume: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(volume)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .filter(|it| !it.starts_with(".."))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_replaced_together() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("v");
        assert!(write(&volume, &payload(&[("a", "1"), ("d/e", "2")]), None).unwrap());
        let before = fs::read_link(volume.join(DATA)).unwrap();
        assert_eq!(seen(&volume), ["a", "d"]);
        assert_eq!(fs::read_to_string(volume.join("d/e")).unwrap(), "2");
        let mode = fs::metadata(volume.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);

        assert!(!write(&volume, &payload(&[("a", "1"), ("d/e", "2")]), None).unwrap());
        assert_eq!(fs::read_link(volume.join(DATA)).unwrap(), before, "nothing to do");

        assert!(write(&volume, &payload(&[("a", "9"), ("f", "3")]), None).unwrap());
        assert_eq!(seen(&volume), ["a", "f"]);
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "9");
        assert!(!volume.join(before).exists(), "the old files are gone");
    }

    #[test]
    fn an_interrupted_write_is_made_good() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path();
        write(volume, &payload(&[("a", "1")]), None).unwrap();
        fs::create_dir(volume.join("..2001_half")).unwrap();
        symlink("..2001_half", volume.join(NEW_DATA)).unwrap();
        write(volume, &payload(&[("a", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "2");
        assert!(!volume.join("..2001_half").exists());
        assert!(fs::symlink_metadata(volume.join(NEW_DATA)).is_err());
    }

    #[test]
    fn an_empty_payload_is_an_empty_directory() {
        let directory = tempfile::tempdir().unwrap();
        assert!(write(directory.path(), &Payload::new(), None).unwrap());
        assert!(seen(directory.path()).is_empty());
    }
}
