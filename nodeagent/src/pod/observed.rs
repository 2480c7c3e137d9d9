//! What the runtime has of one pod.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use jiff::Timestamp;

use super::identity::{
    CONTAINER_NAME, IMAGE, MESSAGE_PATH, MESSAGE_POLICY, POD_UID, PodKey, RESTART_COUNT,
    RESTART_DELAY,
};
use crate::cri::{RuntimeClient, RuntimeError, v1};

/// One sandbox of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub is_ready: bool,
    /// Known for ready ones only.
    pub ips: Vec<IpAddr>,
}

/// One container the runtime has, whether it runs or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    pub id: String,
    pub sandbox_id: String,
    /// How many instances of this container came before.
    pub attempt: u32,
    pub state: State,
    /// The image as the pod's spec had it when the instance was made.
    pub spec_image: String,
    pub image: String,
    pub image_ref: String,
    /// How long the successor is to wait after the end.
    pub restart_delay: Duration,
    /// The file with its last words, and when to look into its log for them instead.
    pub message_file: String,
    pub message_from_log: bool,
}

/// What an instance is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Made and never started.
    Created,
    Running {
        started_at: Timestamp,
    },
    Exited {
        exit_code: i32,
        reason: String,
        message: String,
        started_at: Option<Timestamp>,
        finished_at: Timestamp,
    },
    Unknown,
}

impl Instance {
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Unknown)
    }
}

/// All that the runtime has of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// The newest first.
    pub sandboxes: Vec<Sandbox>,
    /// By name of the container, the newest first.
    pub containers: HashMap<String, Vec<Instance>>,
}

impl Observed {
    /// The newest instance of a container, in whatever sandbox.
    pub(crate) fn latest(&self, container: &str) -> Option<&Instance> {
        self.containers.get(container)?.first()
    }

    pub(crate) fn instances(&self) -> impl Iterator<Item = (&str, &Instance)> {
        self.containers.iter().flat_map(|(name, all)| all.iter().map(|it| (name.as_str(), it)))
    }
}

/// Looks at one pod, again and again, and asks the runtime only for what can have changed.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    /// Of instances whose state can only change in a way that the list of containers shows.
    statuses: HashMap<String, v1::ContainerStatus>,
    ips: HashMap<String, Vec<IpAddr>>,
}

impl Observer {
    pub(crate) async fn observe(
        &mut self,
        runtime: &RuntimeClient,
        key: &PodKey,
    ) -> Result<Observed, RuntimeError> {
        let uid = [(POD_UID, key.uid.as_ref())];
        let (sandboxes, containers) =
            tokio::try_join!(runtime.list_pod_sandboxes(&uid), runtime.list_containers(&uid))?;

        let mut observed = Observed::default();
        for sandbox in sandboxes {
            let is_ready = sandbox.state() == v1::PodSandboxState::SandboxReady;
            let ips = if is_ready { self.ips(runtime, &sandbox.id).await? } else { Vec::new() };
            let attempt = sandbox.metadata.map_or(0, |it| it.attempt);
            observed.sandboxes.push(Sandbox { id: sandbox.id, attempt, is_ready, ips });
        }
        observed.sandboxes.sort_by_key(|it| std::cmp::Reverse(it.attempt));

        for container in &containers {
            let Some(name) = container.labels.get(CONTAINER_NAME) else { continue };
            let Some(status) = self.status(runtime, container).await? else { continue };
            let all = observed.containers.entry(name.clone()).or_default();
            all.push(instance(container, status));
        }
        for all in observed.containers.values_mut() {
            all.sort_by_key(|it| std::cmp::Reverse(it.attempt));
        }
        self.statuses.retain(|id, _| containers.iter().any(|it| it.id == *id));
        self.ips.retain(|id, _| observed.sandboxes.iter().any(|it| it.id == *id));
        Ok(observed)
    }

    async fn ips(
        &mut self,
        runtime: &RuntimeClient,
        sandbox: &str,
    ) -> Result<Vec<IpAddr>, RuntimeError> {
        if let Some(known) = self.ips.get(sandbox) {
            return Ok(known.clone());
        }
        let status = runtime.pod_sandbox_status(sandbox).await?;
        let network = status.and_then(|it| it.network).unwrap_or_default();
        let texts =
            std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|it| it.ip));
        let ips: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
        // A sandbox of the host's network never has one.
        self.ips.insert(sandbox.to_owned(), ips.clone());
        Ok(ips)
    }

    async fn status(
        &mut self,
        runtime: &RuntimeClient,
        container: &v1::Container,
    ) -> Result<Option<&v1::ContainerStatus>, RuntimeError> {
        let is_known =
            self.statuses.get(&container.id).is_some_and(|it| it.state == container.state);
        if !is_known {
            match runtime.container_status(&container.id).await? {
                Some(status) => self.statuses.insert(container.id.clone(), status),
                None => self.statuses.remove(&container.id),
            };
        }
        Ok(self.statuses.get(&container.id))
    }
}

fn instance(container: &v1::Container, status: &v1::ContainerStatus) -> Instance {
    let annotation = |name| status.annotations.get(name).map(String::as_str).unwrap_or_default();
    let state = match status.state() {
        v1::ContainerState::ContainerCreated => State::Created,
        v1::ContainerState::ContainerRunning => {
            State::Running { started_at: time(status.started_at).unwrap_or(Timestamp::UNIX_EPOCH) }
        }
        v1::ContainerState::ContainerExited => State::Exited {
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
            started_at: time(status.started_at),
            finished_at: time(status.finished_at).unwrap_or(Timestamp::UNIX_EPOCH),
        },
        v1::ContainerState::ContainerUnknown => State::Unknown,
    };
    Instance {
        id: container.id.clone(),
        sandbox_id: container.pod_sandbox_id.clone(),
        attempt: annotation(RESTART_COUNT).parse().unwrap_or(0),
        state,
        spec_image: annotation(IMAGE).to_owned(),
        image: status.image.as_ref().map(|it| it.image.clone()).unwrap_or_default(),
        image_ref: status.image_ref.clone(),
        restart_delay: Duration::from_secs(annotation(RESTART_DELAY).parse().unwrap_or(0)),
        message_file: annotation(MESSAGE_PATH).to_owned(),
        message_from_log: annotation(MESSAGE_POLICY) == "FallbackToLogsOnError",
    }
}

/// The runtime's times are nanoseconds since 1970; 0 stands for "not yet".
fn time(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(nanoseconds.into()).ok()).flatten()
}
