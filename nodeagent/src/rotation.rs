//! Keeps container logs from filling the disk.
//!
//! A log that has grown too long is moved to `<n>.log.<time>`, and the runtime is asked to begin
//! anew. Of the moved ones only the newest stay.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use insula_client::chain;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{
    cri::v1,
    node::Node,
    pod::{
        container,
        identity::{AGENT, CONTAINER_NAME, PodKey, RESTART_COUNT},
    },
};

const PERIOD: Duration = Duration::from_secs(10);

/// Rotates until `shutdown`.
pub(crate) async fn run(node: Arc<Node>, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        let agent = node.config.agent_id();
        let ours = [(AGENT, agent.as_str())];
        match node.runtime.list_containers(&ours).await {
            Ok(containers) => {
                for container in containers {
                    rotate_container(&node, &container).await;
                }
            }
            // Told by those who need the runtime more.
            Err(error) => tracing::debug!(error = chain(&error), "no rotation"),
        }
    }
}

async fn rotate_container(node: &Node, container: &v1::Container) {
    if container.state() != v1::ContainerState::ContainerRunning {
        return;
    }
    let Some(path) = log_of(node, container) else { return };
    let (max_bytes, n_files) = (node.config.max_log_bytes, node.config.max_log_files);
    let moved = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || rotate(&path, max_bytes, n_files)).await
    };
    match moved {
        Ok(Ok(false)) => {}
        Ok(Ok(true)) => {
            if let Err(error) = node.runtime.reopen_container_log(&container.id).await {
                let path = path.display();
                tracing::warn!(%path, error = chain(&error), "log not begun anew");
            }
        }
        Ok(Err(error)) => tracing::warn!(path = %path.display(), %error, "log not rotated"),
        Err(error) => tracing::warn!(path = %path.display(), %error, "log not rotated"),
    }
}

fn log_of(node: &Node, container: &v1::Container) -> Option<PathBuf> {
    let key = PodKey::from_labels(&container.labels)?;
    let name = container.labels.get(CONTAINER_NAME)?;
    let attempt = container.annotations.get(RESTART_COUNT)?.parse().ok()?;
    let logs = node.config.pod_logs_dir.join(key.log_directory());
    Some(logs.join(container::log_path(name, attempt)))
}

/// Moves a log away if it is too long. Returns whether it did.
fn rotate(path: &Path, max_bytes: u64, n_files: usize) -> io::Result<bool> {
    let length = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if length <= max_bytes {
        return Ok(false);
    }
    let mut old = moved_files(path)?;
    // The current one counts, and the one about to be moved.
    let n_kept = n_files.saturating_sub(2);
    let n_removed = old.len().saturating_sub(n_kept);
    for path in old.drain(..n_removed) {
        fs::remove_file(path)?;
    }
    let time = Timestamp::now().strftime("%Y%m%d-%H%M%S%.9f").to_string().replace('.', "");
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{time}"));
    fs::rename(path, name)?;
    Ok(true)
}

/// The files that a log was moved to, the oldest first: their names end in the time.
pub(crate) fn moved_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let start = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&start) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_files_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(&path, "short").unwrap();
        assert!(!rotate(&path, 10, 3).unwrap());
        for n in 0..5 {
            fs::write(&path, format!("{n} is longer than that")).unwrap();
            assert!(rotate(&path, 10, 3).unwrap());
        }
        let left = moved_files(&path).unwrap();
        let texts: Vec<_> = left.iter().map(|it| fs::read_to_string(it).unwrap()).collect();
        assert_eq!(texts, ["3 is longer than that", "4 is longer than that"]);
        assert!(!rotate(&path, 10, 3).unwrap(), "nothing there until the runtime begins anew");
    }
}
