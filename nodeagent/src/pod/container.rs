//! The configuration of one container.

use std::{path::Path, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{
    env::{ConfigError, Environment},
    identity::{
        CONTAINER_NAME, IMAGE, MESSAGE_PATH, MESSAGE_POLICY, PodKey, RESTART_COUNT, RESTART_DELAY,
    },
    resources, security,
};
use crate::{
    config::NodeConfig,
    cri::{ImageRef, v1},
};

/// Where a container's last words go unless it says otherwise.
pub(crate) const DEFAULT_MESSAGE_PATH: &str = "/dev/termination-log";

/// One instance of a container.
#[derive(Debug, Clone)]
pub(crate) struct Instance<'a> {
    pub container: &'a Container,
    /// 0 for the first instance, one more for each successor.
    pub attempt: u32,
    /// How long its successor is to wait after its end.
    pub restart_delay: Duration,
    pub image: &'a ImageRef,
    pub environment: Environment,
    pub mounts: Vec<v1::Mount>,
    /// The file on this machine that takes its last words.
    pub message_file: &'a Path,
}

/// What the runtime is to make for this instance.
pub(crate) fn config(
    node: &NodeConfig,
    key: &PodKey,
    pod: &Pod,
    machine_memory: i64,
    instance: Instance<'_>,
) -> Result<v1::ContainerConfig, ConfigError> {
    let default_spec;
    let spec = match &pod.spec {
        Some(spec) => spec,
        None => {
            default_spec = Default::default();
            &default_spec
        }
    };
    let Instance { container, attempt, environment, image, mut mounts, .. } = instance;
    let class = resources::qos_class(spec);
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|it| environment.expand(it)).collect()
    };
    let (command, args) = (expanded(&container.command), expanded(&container.args));

    let message_path =
        container.termination_message_path.as_deref().unwrap_or(DEFAULT_MESSAGE_PATH);
    if !message_path.is_empty() {
        mounts.push(v1::Mount {
            container_path: message_path.to_owned(),
            host_path: instance.message_file.display().to_string(),
            ..Default::default()
        });
    }
    let mut labels = key.labels(&node.agent_id());
    labels.insert(CONTAINER_NAME.to_owned(), container.name.clone());
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    let annotations = [
        (RESTART_COUNT, attempt.to_string()),
        (RESTART_DELAY, instance.restart_delay.as_secs().to_string()),
        (IMAGE, container.image.clone().unwrap_or_default()),
        (MESSAGE_PATH, instance.message_file.display().to_string()),
        (MESSAGE_POLICY, policy.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value));

    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(v1::ImageSpec {
            image: image.id.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: environment
            .into_pairs()
            .into_iter()
            .map(|(key, value)| v1::KeyValue { key, value: value.into_bytes() })
            .collect(),
        mounts,
        devices: Vec::new(),
        labels,
        annotations: annotations.into(),
        log_path: log_path(&container.name, attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources::linux_resources(container, class, machine_memory)),
            security_context: Some(security::of_container(&key.name, spec, container, image)?),
        }),
    })
}

/// An instance's log file, below the pod's log directory.
pub(crate) fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}
