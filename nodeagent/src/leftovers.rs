//! What an ended pod leaves on this machine: volumes, logs, control groups.

use std::{io, path::Path};

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

/// Removes the files of pods that are neither here nor in the runtime: what a pod leaves whose end
/// came while no agent ran. `is_known` says whether a uid still belongs to a pod.
pub(crate) async fn sweep(node: &Node, is_known: impl Fn(&str) -> bool) {
    let pods = node.config.root_dir.join("pods");
    for uid in names_in(&pods).await.iter().filter(|uid| !is_known(uid)) {
        let pod_dir = node.config.pod_dir(uid);
        let work = tokio::task::spawn_blocking(move || volume::tear_down(&pod_dir));
        match work.await {
            Ok(Ok(())) => tracing::info!(uid, "removed the files of a pod that is gone"),
            Ok(Err(error)) => tracing::warn!(uid, error = chain(&error), "files not removed"),
            Err(error) => tracing::warn!(uid, %error, "files not removed"),
        }
    }
    // The directory may be shared with others, so only names of our form are ours.
    for name in names_in(&node.config.pod_logs_dir).await {
        let parts: Vec<&str> = name.split('_').collect();
        let [_, _, _, uid] = parts[..] else { continue };
        if is_known(uid) {
            continue;
        }
        let path = node.config.pod_logs_dir.join(&name);
        if let Err(error) = tokio::fs::remove_dir_all(&path).await {
            tracing::warn!(path = %path.display(), %error, "logs not removed");
        }
    }
}

async fn names_in(directory: &Path) -> Vec<String> {
    let read = async {
        let mut names = Vec::new();
        let mut entries = tokio::fs::read_dir(directory).await?;
        while let Some(entry) = entries.next_entry().await? {
            names.extend(entry.file_name().into_string());
        }
        Ok::<_, io::Error>(names)
    };
    match read.await {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(path = %directory.display(), %error, "cannot look for leftovers");
            Vec::new()
        }
    }
}
