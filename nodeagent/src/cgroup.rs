//! The control groups that runtimes make for pods and leave behind.

use std::{fs, io, path::Path};

const MOUNT: &str = "/sys/fs/cgroup";

/// Removes the groups of an ended pod, in every hierarchy. Only empty groups can be removed, so
/// this cannot harm what runs; what stays is logged.
pub(crate) fn remove_pod(root: &str, uid: &str) {
    let root = root.trim_matches('/');
    let name = format!("pod{uid}");
    for hierarchy in hierarchies() {
        for tier in ["", "burstable", "besteffort"] {
            let path = hierarchy.join(root).join(tier).join(&name);
            if let Err(error) = remove_tree(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::debug!(path = %path.display(), %error, "control group stays");
            }
        }
    }
}

/// One directory with version 2, one for each controller with version 1.
fn hierarchies() -> Vec<std::path::PathBuf> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return vec![mount.to_path_buf()];
    }
    let entries = fs::read_dir(mount).into_iter().flatten().flatten();
    // `cpu,cpuacct` and its like are reached by links too; each once is enough.
    entries.filter(|it| it.file_type().is_ok_and(|it| it.is_dir())).map(|it| it.path()).collect()
}

/// The kernel's files in a group go with it; the groups in it must go first.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
