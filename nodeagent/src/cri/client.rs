//! [`RuntimeClient`]: the runtime's calls with time limits and typed errors.
//!
//! A client is cheap to clone and connects when it is first used, and again whenever the runtime
//! comes back. Each call has a limit of its own, because "the runtime hangs" and "the runtime is
//! pulling an image" look the same from here.

use std::{path::PathBuf, time::Duration};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    error::{ConnectionError, RuntimeError},
    v1::{
        self, image_service_client::ImageServiceClient,
        runtime_service_client::RuntimeServiceClient,
    },
};

/// Limit of calls that only look.
pub(super) const LOOK: Duration = Duration::from_secs(20);
/// Limit of calls that change something; setting up a pod's network may take its time.
const ACT: Duration = Duration::from_secs(240);
/// What a call that itself waits may take on top of what it waits for.
const SLACK: Duration = Duration::from_secs(30);
/// A node's thousands of containers still fit in one answer.
const MAX_MESSAGE: usize = 64 << 20;

/// Speaks to one runtime. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RuntimeClient {
    endpoint: String,
    pub(super) channel: Channel,
}

impl RuntimeClient {
    /// Takes `unix:///path` or a bare path. Does not connect yet.
    ///
    /// Must be called within a tokio runtime.
    pub(crate) fn new(endpoint: &str) -> Result<Self, RuntimeError> {
        let path = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
        if !path.is_absolute() {
            return Err(RuntimeError::Endpoint { endpoint: endpoint.to_owned() });
        }
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The URI is never resolved; HTTP/2 wants one for its `:authority`.
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Ok(Self { endpoint: endpoint.to_owned(), channel })
    }

    pub(super) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn error(&self, call: &'static str, status: Status) -> RuntimeError {
        // The runtime itself never answers `Unavailable`: that is the transport's word.
        if status.code() == Code::Unavailable {
            let source = ConnectionError(status.message().to_owned());
            return RuntimeError::Absent { endpoint: self.endpoint.clone(), source };
        }
        let message = match status.message() {
            "" => format!("{call} failed with code {:?}", status.code()),
            text => text.to_owned(),
        };
        RuntimeError::Failed { call, code: status.code(), message }
    }

    /// The future of a call is large, and would make that of everyone who waits for it large:
    /// hence the box.
    pub(super) async fn call<T>(
        &self,
        call: &'static str,
        limit: Duration,
        answer: BoxFuture<'_, Result<Response<T>, Status>>,
    ) -> Result<T, RuntimeError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.error(call, status)),
            Err(_) => Err(RuntimeError::Timeout { call, limit }),
        }
    }

    /// Name and version of the runtime.
    pub(crate) async fn version(&self) -> Result<v1::VersionResponse, RuntimeError> {
        let request = v1::VersionRequest { version: "v1".to_owned() };
        self.call("Version", LOOK, Box::pin(async move { self.runtime().version(request).await }))
            .await
    }

    /// Whether the runtime and its network are ready, and its handlers.
    pub(crate) async fn status(&self) -> Result<v1::StatusResponse, RuntimeError> {
        let request = v1::StatusRequest { verbose: false };
        self.call("Status", LOOK, Box::pin(async move { self.runtime().status(request).await }))
            .await
    }

    /// Whether the runtime leaves control groups to systemd. `None` if it does not say, as
    /// before containerd 2.0.
    pub(crate) async fn uses_systemd_cgroups(&self) -> Result<Option<bool>, RuntimeError> {
        let request = v1::RuntimeConfigRequest {};
        match self
            .call(
                "RuntimeConfig",
                LOOK,
                Box::pin(async move { self.runtime().runtime_config(request).await }),
            )
            .await
        {
            Ok(config) => {
                Ok(config.linux.map(|it| it.cgroup_driver() == v1::CgroupDriver::Systemd))
            }
            Err(error) if error.is_unimplemented() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes and starts a sandbox; returns its id.
    pub(crate) async fn run_pod_sandbox(
        &self,
        config: v1::PodSandboxConfig,
        runtime_handler: &str,
    ) -> Result<String, RuntimeError> {
        let request = v1::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: runtime_handler.to_owned(),
        };
        let answer = self.call(
            "RunPodSandbox",
            ACT,
            Box::pin(async move { self.runtime().run_pod_sandbox(request).await }),
        );
        Ok(answer.await?.pod_sandbox_id)
    }

    /// Ends all in a sandbox and gives its network back. Repeating it does no harm.
    pub(crate) async fn stop_pod_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let answer = self.call(
            "StopPodSandbox",
            ACT,
            Box::pin(async move { self.runtime().stop_pod_sandbox(request).await }),
        );
        unless_gone(answer.await.map(drop))
    }

    /// Removes a sandbox with its containers. Repeating it does no harm.
    pub(crate) async fn remove_pod_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let answer = self.call(
            "RemovePodSandbox",
            ACT,
            Box::pin(async move { self.runtime().remove_pod_sandbox(request).await }),
        );
        unless_gone(answer.await.map(drop))
    }

    /// State and addresses of a sandbox; `None` if there is no such sandbox.
    pub(crate) async fn pod_sandbox_status(
        &self,
        id: &str,
    ) -> Result<Option<v1::PodSandboxStatus>, RuntimeError> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.call(
            "PodSandboxStatus",
            LOOK,
            Box::pin(async move { self.runtime().pod_sandbox_status(request).await }),
        );
        found(answer.await.map(|it| it.status))
    }

    /// Sandboxes that carry all of `labels`.
    pub(crate) async fn list_pod_sandboxes(
        &self,
        labels: &[(&str, &str)],
    ) -> Result<Vec<v1::PodSandbox>, RuntimeError> {
        let filter = v1::PodSandboxFilter { label_selector: owned(labels), ..Default::default() };
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self
            .call(
                "ListPodSandbox",
                LOOK,
                Box::pin(async move { self.runtime().list_pod_sandbox(request).await }),
            )
            .await?
            .items)
    }

    /// Containers, running or not, that carry all of `labels`.
    pub(crate) async fn list_containers(
        &self,
        labels: &[(&str, &str)],
    ) -> Result<Vec<v1::Container>, RuntimeError> {
        let filter = v1::ContainerFilter { label_selector: owned(labels), ..Default::default() };
        let request = v1::ListContainersRequest { filter: Some(filter) };
        let answer = self.call(
            "ListContainers",
            LOOK,
            Box::pin(async move { self.runtime().list_containers(request).await }),
        );
        Ok(answer.await?.containers)
    }

    /// What containers with these labels have used, if they run.
    pub(crate) async fn list_container_stats(
        &self,
        labels: &[(&str, &str)],
    ) -> Result<Vec<v1::ContainerStats>, RuntimeError> {
        let filter =
            v1::ContainerStatsFilter { label_selector: owned(labels), ..Default::default() };
        let request = v1::ListContainerStatsRequest { filter: Some(filter) };
        let answer = self.call(
            "ListContainerStats",
            LOOK,
            Box::pin(async move { self.runtime().list_container_stats(request).await }),
        );
        Ok(answer.await?.stats)
    }

    /// All that is known of a container; `None` if there is no such container.
    pub(crate) async fn container_status(
        &self,
        id: &str,
    ) -> Result<Option<v1::ContainerStatus>, RuntimeError> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.call(
            "ContainerStatus",
            LOOK,
            Box::pin(async move { self.runtime().container_status(request).await }),
        );
        found(answer.await.map(|it| it.status))
    }

    /// Makes a container, which does not run yet; returns its id.
    pub(crate) async fn create_container(
        &self,
        sandbox_id: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String, RuntimeError> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer = self.call(
            "CreateContainer",
            ACT,
            Box::pin(async move { self.runtime().create_container(request).await }),
        );
        Ok(answer.await?.container_id)
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        self.call(
            "StartContainer",
            ACT,
            Box::pin(async move { self.runtime().start_container(request).await }),
        )
        .await
        .map(drop)
    }

    /// Asks the container to end and kills it after `grace`. Repeating it does no harm, and a
    /// shorter grace then takes effect.
    pub(crate) async fn stop_container(
        &self,
        id: &str,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout };
        let limit = grace.saturating_add(SLACK);
        let answer = self.call(
            "StopContainer",
            limit,
            Box::pin(async move { self.runtime().stop_container(request).await }),
        );
        unless_gone(answer.await.map(drop))
    }

    /// Removes a container, killing it if it runs. Repeating it does no harm.
    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        let answer = self.call(
            "RemoveContainer",
            ACT,
            Box::pin(async move { self.runtime().remove_container(request).await }),
        );
        unless_gone(answer.await.map(drop))
    }

    /// Makes the runtime open the container's log file anew, after it was moved away.
    pub(crate) async fn reopen_container_log(&self, id: &str) -> Result<(), RuntimeError> {
        let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
        let answer = self.call(
            "ReopenContainerLog",
            LOOK,
            Box::pin(async move { self.runtime().reopen_container_log(request).await }),
        );
        answer.await.map(drop)
    }

    /// Runs a command to its end and returns its output. The runtime kills it after `limit`.
    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<v1::ExecSyncResponse, RuntimeError> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: i64::try_from(limit.as_secs().max(1)).unwrap_or(i64::MAX),
        };
        let limit = limit.saturating_add(Duration::from_secs(2));
        self.call(
            "ExecSync",
            limit,
            Box::pin(async move { self.runtime().exec_sync(request).await }),
        )
        .await
    }

    /// Prepares a command whose streams are then found at the returned URL.
    pub(crate) async fn exec(&self, request: v1::ExecRequest) -> Result<String, RuntimeError> {
        Ok(self
            .call("Exec", LOOK, Box::pin(async move { self.runtime().exec(request).await }))
            .await?
            .url)
    }

    /// Prepares access to a container's own streams, found at the returned URL.
    pub(crate) async fn attach(&self, request: v1::AttachRequest) -> Result<String, RuntimeError> {
        Ok(self
            .call("Attach", LOOK, Box::pin(async move { self.runtime().attach(request).await }))
            .await?
            .url)
    }

    /// Prepares access to a sandbox's ports, found at the returned URL.
    pub(crate) async fn port_forward(
        &self,
        request: v1::PortForwardRequest,
    ) -> Result<String, RuntimeError> {
        Ok(self
            .call(
                "PortForward",
                LOOK,
                Box::pin(async move { self.runtime().port_forward(request).await }),
            )
            .await?
            .url)
    }
}

fn owned(labels: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What is to be gone already is.
fn unless_gone(result: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

fn found<T>(result: Result<Option<T>, RuntimeError>) -> Result<Option<T>, RuntimeError> {
    match result {
        Err(error) if error.is_not_found() => Ok(None),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_absent_runtime_is_told_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("none.sock");
        let client = RuntimeClient::new(&format!("unix://{}", socket.display())).unwrap();
        let error = client.version().await.unwrap_err();
        assert!(error.is_outage(), "{error:?}");
        let text = insula_client::chain(&error);
        assert!(text.contains("start it with"), "{text}");
        assert!(text.ends_with(": No such file or directory (os error 2)"), "{text}");
    }

    #[tokio::test]
    async fn an_endpoint_must_be_an_absolute_path() {
        for endpoint in ["", "tcp://localhost:1", "run/containerd.sock", "unix://x.sock"] {
            assert!(
                matches!(RuntimeClient::new(endpoint), Err(RuntimeError::Endpoint { .. })),
                "{endpoint:?}"
            );
        }
    }
}
