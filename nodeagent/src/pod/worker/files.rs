//! Files that one instance of a container needs before it is made.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Container;

use crate::{
    cri::v1,
    pod::env::{ConfigError, Environment},
    volume::{self, VolumePaths},
};

/// Where those files are, and what they say.
pub(super) struct Files {
    pub(super) pod_dir: PathBuf,
    /// The text of /etc/hosts, unless the container shares the machine's.
    pub(super) hosts: Option<String>,
    /// The directory that the runtime writes the log into.
    pub(super) logs: PathBuf,
    /// The file that takes the container's last words.
    pub(super) message: PathBuf,
}

impl Files {
    /// Writes them; returns the container's mounts.
    pub(super) fn prepare(
        self,
        container: &Container,
        environment: &Environment,
        paths: &VolumePaths,
    ) -> Result<Vec<v1::Mount>, ConfigError> {
        let failed = |path: &Path, error: io::Error| {
            ConfigError::Mount(format!("cannot prepare {}: {error}", path.display()))
        };
        let mut mounts = volume::container_mounts(&self.pod_dir, container, environment, paths)?;
        fs::create_dir_all(&self.logs).map_err(|error| failed(&self.logs, error))?;
        let message = || {
            if let Some(parent) = self.message.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&self.message, "")?;
            // The container may run as any user.
            fs::set_permissions(&self.message, fs::Permissions::from_mode(0o666))
        };
        message().map_err(|error| failed(&self.message, error))?;
        let has_own = mounts.iter().any(|it| it.container_path == "/etc/hosts");
        if let Some(text) = self.hosts.filter(|_| !has_own) {
            let path = self.pod_dir.join("etc-hosts");
            fs::write(&path, text).map_err(|error| failed(&path, error))?;
            mounts.push(v1::Mount {
                container_path: "/etc/hosts".to_owned(),
                host_path: path.display().to_string(),
                ..Default::default()
            });
        }
        Ok(mounts)
    }
}
