//! What an ended pod leaves on this machine: volumes, logs, control groups.

use std::io;

use insula_client::chain;

use crate::{cgroup, node::Node, pod::identity::PodKey, volume};

/// Removes a pod's volumes and other files; returns whether they are gone. Why not is logged.
pub(crate) async fn remove_volumes(node: &Node, key: &PodKey) -> bool {
    let pod_dir = node.config.pod_dir(&key.uid);
    let work = tokio::task::spawn_blocking(move || volume::tear_down(&pod_dir));
    let error = match work.await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => chain(&error),
        Err(error) => error.to_string(),
    };
    tracing::warn!(pod = %key, uid = %key.uid, error, "volumes not torn down");
    false
}

/// Removes all that a pod has left. What cannot be removed costs a little space and is logged.
pub(crate) async fn remove_files(node: &Node, key: &PodKey) {
    remove_volumes(node, key).await;
    let logs = node.config.pod_logs_dir.join(key.log_directory());
    match tokio::fs::remove_dir_all(&logs).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %logs.display(), %error, "logs not removed");
        }
        _ => {}
    }
    let (root, uid) = (node.config.cgroup_root.clone(), key.uid.clone());
    let work = tokio::task::spawn_blocking(move || cgroup::remove_pod(&root, &uid));
    if let Err(error) = work.await {
        tracing::warn!(%error, "control groups not removed");
    }
}
