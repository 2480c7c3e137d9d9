//! A node of a test's own: a private containerd and the agent's parts around it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use insula_client::Tenanted;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::MemoryCluster;
use crate::{
    NodeConfig,
    cri::RuntimeClient,
    machine::Machine,
    node::Node,
    pod::{dns::Resolver, image::Images},
    pods::Pods,
    relist,
};

/// Long enough for a loaded machine, short enough to tell a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Lab {
    directory: tempfile::TempDir,
    pub(crate) config: NodeConfig,
    pub(crate) runtime: RuntimeClient,
    pub(crate) cluster: Arc<MemoryCluster>,
    agent: Option<Agent>,
}

struct Agent {
    node: Arc<Node>,
    pods: Pods,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

fn script(verb: &str, root: &Path) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../install/containerd.sh");
    let output = Command::new(script).arg(verb).arg("--root").arg(root).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    text.trim().to_owned()
}

impl Lab {
    /// Starts a containerd and an agent on it.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("insula-node-").tempdir().unwrap();
        let root = directory.path().to_path_buf();
        let socket = tokio::task::spawn_blocking(move || script("start", &root)).await.unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut config = NodeConfig::new(
            "node-a",
            "127.0.0.1".parse().unwrap(),
            path("cert"),
            path("key"),
            path("ca"),
        );
        config.root_dir = path("root");
        config.pod_logs_dir = path("logs");
        // However full the disk is that the tests run on.
        config.eviction_hard = "nodefs.available<1Mi".parse().unwrap();
        config.runtime_endpoint = format!("unix://{socket}");
        let runtime = RuntimeClient::new(&config.runtime_endpoint).unwrap();
        let cluster = Arc::new(MemoryCluster::default());
        let mut lab = Self { directory, config, runtime, cluster, agent: None };
        lab.start_agent();
        lab
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().to_path_buf()
    }

    pub(crate) fn start_agent(&mut self) {
        let node = Arc::new(Node {
            config: self.config.clone(),
            runtime: self.runtime.clone(),
            runtime_name: "containerd".to_owned(),
            systemd_cgroups: false,
            images: Images::new(self.runtime.clone()),
            cluster: self.cluster.clone(),
            machine: Machine::look().unwrap(),
            resolver: Resolver::default(),
        });
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let pods = Pods::new(node.clone(), tasks.clone(), shutdown.clone());
        self.cluster.attach(pods.clone());
        tasks.spawn(relist::run(node.clone(), pods.clone(), || true, shutdown.clone()));
        self.agent = Some(Agent { node, pods, tasks, shutdown });
    }

    /// Ends the agent as a signal would; containers run on.
    pub(crate) async fn stop_agent(&mut self) {
        self.cluster.detach();
        if let Some(agent) = self.agent.take() {
            agent.shutdown.cancel();
            agent.tasks.close();
            tokio::time::timeout(PATIENCE, agent.tasks.wait()).await.expect("the agent ends");
        }
    }

    pub(crate) fn node(&self) -> Arc<Node> {
        self.agent.as_ref().unwrap().node.clone()
    }

    pub(crate) fn pods(&self) -> &Pods {
        &self.agent.as_ref().unwrap().pods
    }

    /// Creates a pod of tenant `acme` in namespace `default`; fills in what the API server would.
    pub(crate) fn create(&self, name: &str, spec: Value) -> Arc<Tenanted<Pod>> {
        self.cluster.create("acme", name, spec)
    }

    /// Waits until the API shows the pod so.
    pub(crate) async fn wait(
        &self,
        pod: &Tenanted<Pod>,
        what: &str,
        is_so: impl Fn(&Pod) -> bool,
    ) -> Arc<Tenanted<Pod>> {
        let wait = async {
            loop {
                let changed = self.cluster.changed();
                match self.cluster.get(pod.uid()) {
                    Some(pod) if is_so(&pod) => return pod,
                    _ => changed.await,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(pod) => pod,
            Err(_) => {
                let last = self.cluster.get(pod.uid());
                let last = last.map(|it| serde_json::to_string_pretty(&it.status).unwrap());
                let events = self.cluster.events(pod.uid()).join("\n");
                panic!("not {what}: {}\n{events}", last.unwrap_or_default());
            }
        }
    }

    /// Waits until users are told something that begins like this.
    pub(crate) async fn wait_event(&self, pod: &Tenanted<Pod>, start: &str) {
        let uid = pod.uid().to_owned();
        self.wait(pod, start, |_| self.cluster.has_event(&uid, start)).await;
    }

    pub(crate) async fn wait_phase(&self, pod: &Tenanted<Pod>, phase: &str) -> Arc<Tenanted<Pod>> {
        self.wait(pod, phase, |it| phase_of(it) == phase).await
    }

    pub(crate) async fn wait_gone(&self, pod: &Tenanted<Pod>) {
        let wait = async {
            loop {
                let changed = self.cluster.changed();
                if self.cluster.get(pod.uid()).is_none() {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the pod goes");
        let traces = async {
            while self.pods().by_uid(pod.uid()).is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, traces).await.expect("its worker ends");
    }

    /// Output of a shell command in a running container.
    pub(crate) async fn shell(&self, pod: &Pod, container: &str, command: &str) -> String {
        let id = container_id(pod, container);
        let command = ["sh".to_owned(), "-c".to_owned(), command.to_owned()];
        let output = self.runtime.exec_sync(&id, &command, PATIENCE).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.exit_code, 0, "{text}{}", String::from_utf8_lossy(&output.stderr));
        text.trim_end().to_owned()
    }

    /// The text of an instance's log, without the heads of the lines.
    pub(crate) fn log(&self, pod: &Tenanted<Pod>, container: &str, attempt: u32) -> String {
        let name = format!("acme_default_{}_{}", pod.name(), pod.uid());
        let path = self.config.pod_logs_dir.join(name).join(format!("{container}/{attempt}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Halts containerd; containers run on.
    pub(crate) async fn halt_runtime(&self) {
        let root = self.root();
        tokio::task::spawn_blocking(move || script("halt", &root)).await.unwrap();
    }

    pub(crate) async fn resume_runtime(&self) {
        let root = self.root();
        tokio::task::spawn_blocking(move || script("start", &root)).await.unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(agent) = &self.agent {
            agent.shutdown.cancel();
        }
        script("stop", self.directory.path());
        // Volumes in memory would keep the directory from being removed.
        if let Err(error) = crate::volume::tear_down(&self.config.root_dir) {
            eprintln!("{error}");
        }
    }
}

pub(crate) fn phase_of(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|it| it.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|it| it.conditions.as_deref());
    conditions.unwrap_or_default().iter().any(|it| it.type_ == "Ready" && it.status == "True")
}

pub(crate) fn container_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = [&status.container_statuses, &status.init_container_statuses];
    all.into_iter().flatten().flatten().find(|it| it.name == name)
}

pub(crate) fn container_id(pod: &Pod, name: &str) -> String {
    let status = container_status(pod, name).unwrap();
    status.container_id.as_deref().unwrap().trim_start_matches("containerd://").to_owned()
}

/// A busybox container that runs `command` in a shell.
pub(crate) fn shell_container(name: &str, command: &str) -> Value {
    json!({"name": name, "image": "localhost/insula/busybox:1", "command": ["sh", "-c", command]})
}
