//! Starting containers: the image, the configuration, the hook after the start, the probes.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use insula_client::{EventType, Tenanted};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Secret};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Outage, Worker};
use crate::{
    cri::{ImageRef, RuntimeError, v1},
    pod::{
        action,
        container::{self, Instance},
        dns,
        env::{self, ConfigError},
        image::{self, PullPolicy},
        observed::Observed,
        plan::{Plan, Start, Stop, StopReason, containers, usable_sandbox},
        probe::{ProbeContext, Prober},
        references, sandbox,
        status::Waiting,
    },
    volume,
};

const PULL_BACK_OFF: Duration = Duration::from_secs(10);
const MAX_PULL_BACK_OFF: Duration = Duration::from_secs(300);
/// How long a hook after the start may take. The container is not ready before it is done.
const MAX_HOOK: Duration = Duration::from_secs(3600);

/// The image for a container's next instance.
#[derive(Debug)]
pub(super) enum Pull {
    UnderWay {
        image: String,
        since: Instant,
        result: Arc<OnceLock<Result<(), Arc<RuntimeError>>>>,
        _task: AbortOnDropHandle<()>,
    },
    /// Fetched for this start: with `Always` the next start fetches again.
    Done {
        image: String,
    },
    Failed {
        image: String,
        error: String,
    },
}

impl Worker {
    /// Makes and starts one instance. Returns whether the runtime has something new.
    pub(super) async fn start_container(
        &mut self,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        observed: &Observed,
        start: &Start,
    ) -> Result<bool, Outage> {
        let Some(container) =
            containers(spec).map(|(_, it)| it).find(|it| it.name == start.container)
        else {
            return Ok(false);
        };
        let Some(place) = usable_sandbox(spec, observed) else { return Ok(false) };
        if self.is_too_soon(&container.name) {
            return Ok(false);
        }
        let Some(image) = self.image_for(pod, spec, container).await? else { return Ok(false) };
        let pod_ips = if spec.host_network == Some(true) {
            vec![self.node.config.node_ip]
        } else {
            place.ips.clone()
        };
        if !self.volumes.are_set_up() && !self.set_up_volumes(pod, spec, &pod_ips).await {
            return Ok(false);
        }
        let config = match self.configure(pod, spec, container, start, &image, &pod_ips).await {
            Ok(config) => config,
            Err(error) => {
                self.refuse(&container.name, "CreateContainerConfigError", &error.to_string());
                return Ok(false);
            }
        };
        let node = self.node.clone();
        let sandbox_config =
            sandbox::config(&node.config, &node.surroundings(), &self.key, spec, place.attempt);
        let id = match node.runtime.create_container(&place.id, config, sandbox_config).await {
            Ok(id) => id,
            Err(error) if error.is_outage() => return Err(error.into()),
            Err(error) => {
                self.refuse(&container.name, "CreateContainerError", &error.to_string());
                return Ok(false);
            }
        };
        let name = Some(container.name.as_str());
        let message = format!("Created container: {}", container.name);
        self.event(name, EventType::Normal, "Created", message);
        if let Err(error) = node.runtime.start_container(&id).await {
            if error.is_outage() {
                return Err(error.into());
            }
            self.event(name, EventType::Warning, "Failed", format!("Error: {error}"));
            tracing::warn!(container = name, %error, "container did not start");
            let message = error.to_string();
            let waiting = Waiting { reason: "RunContainerError", message };
            self.waiting.insert(container.name.clone(), waiting);
            return Ok(true);
        }
        tracing::info!(container = name, id, attempt = start.attempt, "container started");
        let message = format!("Started container {}", container.name);
        self.event(name, EventType::Normal, "Started", message);
        self.pulls.remove(&container.name);
        self.retries.remove(&container.name);
        self.waiting.remove(&container.name);
        self.after_start(pod, spec, container, &id, &pod_ips).await;
        Ok(true)
    }

    fn refuse(&mut self, container: &str, reason: &'static str, message: &str) {
        self.event(Some(container), EventType::Warning, "Failed", format!("Error: {message}"));
        let waiting = Waiting { reason, message: message.to_owned() };
        self.waiting.insert(container.to_owned(), waiting);
        self.try_later(container);
    }

    /// The image to start from, once it is on this machine.
    async fn image_for(
        &mut self,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        container: &Container,
    ) -> Result<Option<ImageRef>, Outage> {
        let own_name = container.image.as_deref().unwrap_or_default();
        let container_name = Some(container.name.as_str());
        let image = match image::complete_name(own_name) {
            Ok(image) => image,
            Err(error) => {
                self.event(container_name, EventType::Warning, "InspectFailed", error.clone());
                self.refuse(&container.name, "InvalidImageName", &error);
                return Ok(None);
            }
        };
        let policy = PullPolicy::of(container.image_pull_policy.as_deref(), &image);
        let mut is_fetched = false;
        match self.pulls.remove(&container.name) {
            Some(Pull::UnderWay { image: of, since, result, _task }) if of == image => {
                let Some(done) = result.get().cloned() else {
                    let pull = Pull::UnderWay { image: of, since, result, _task };
                    self.pulls.insert(container.name.clone(), pull);
                    return Ok(None);
                };
                if !self.take_pulled(container, &image, since, done) {
                    return Ok(None);
                }
                is_fetched = true;
            }
            Some(Pull::Done { image: of }) if of == image => is_fetched = true,
            Some(Pull::Failed { image: of, error })
                if of == image && self.is_too_soon(&pull_key(&container.name)) =>
            {
                self.back_off_pull(container, own_name, &error);
                self.pulls.insert(container.name.clone(), Pull::Failed { image: of, error });
                return Ok(None);
            }
            _ => {}
        }
        let present = if policy == PullPolicy::Always && !is_fetched {
            None
        } else {
            self.node.runtime.image(&image).await?
        };
        match present {
            Some(present) => {
                if is_fetched {
                    self.pulls.insert(container.name.clone(), Pull::Done { image });
                } else {
                    let message =
                        format!("Container image {own_name:?} already present on machine");
                    self.event(container_name, EventType::Normal, "Pulled", message);
                }
                Ok(Some(present))
            }
            None if policy == PullPolicy::Never => {
                let message = format!(
                    "Container image {own_name:?} is not present with pull policy of Never"
                );
                self.event(
                    container_name,
                    EventType::Warning,
                    "ErrImageNeverPull",
                    message.clone(),
                );
                self.refuse(&container.name, "ErrImageNeverPull", &message);
                Ok(None)
            }
            None => {
                let message = format!("Pulling image {own_name:?}");
                self.event(container_name, EventType::Normal, "Pulling", message);
                let secrets = self.pull_secrets(pod, spec).await;
                let credentials = image::credentials(&image, secrets.iter());
                let (images, wake, of) =
                    (self.node.images.clone(), self.wake.clone(), image.clone());
                let result = Arc::new(OnceLock::new());
                let done = result.clone();
                let task = tokio::spawn(async move {
                    // Set once, here.
                    let _ = done.set(images.pull(&of, credentials).await);
                    wake.notify_one();
                });
                let pull = Pull::UnderWay {
                    image,
                    since: Instant::now(),
                    result,
                    _task: AbortOnDropHandle::new(task),
                };
                self.pulls.insert(container.name.clone(), pull);
                Ok(None)
            }
        }
    }

    /// Takes the result of a fetch. Returns whether it succeeded.
    fn take_pulled(
        &mut self,
        container: &Container,
        image: &str,
        since: Instant,
        result: Result<(), Arc<RuntimeError>>,
    ) -> bool {
        let own_name = container.image.as_deref().unwrap_or_default();
        let name = Some(container.name.as_str());
        let error = match result {
            Ok(()) => {
                let took = Duration::from_millis(
                    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
                );
                let message = format!("Successfully pulled image {own_name:?} in {took:?}");
                self.event(name, EventType::Normal, "Pulled", message);
                self.retries.remove(&pull_key(&container.name));
                return true;
            }
            Err(error) => error.to_string(),
        };
        let message = format!("Failed to pull image {own_name:?}: {error}");
        self.event(name, EventType::Warning, "Failed", message);
        self.event(name, EventType::Warning, "Failed", "Error: ErrImagePull".to_owned());
        let waiting = Waiting { reason: "ErrImagePull", message: error.clone() };
        self.waiting.insert(container.name.clone(), waiting);
        let key = pull_key(&container.name);
        self.try_later_within(&key, PULL_BACK_OFF, MAX_PULL_BACK_OFF);
        let failed = Pull::Failed { image: image.to_owned(), error };
        self.pulls.insert(container.name.clone(), failed);
        false
    }

    fn back_off_pull(&mut self, container: &Container, image: &str, error: &str) {
        let reason = "ImagePullBackOff";
        if self.waiting.get(&container.name).is_some_and(|it| it.reason == reason) {
            return;
        }
        let name = Some(container.name.as_str());
        let message = format!("Back-off pulling image {image:?}");
        self.event(name, EventType::Normal, "BackOff", message.clone());
        self.event(name, EventType::Warning, "Failed", format!("Error: {reason}"));
        let message = format!("{message}: ErrImagePull: {error}");
        self.waiting.insert(container.name.clone(), Waiting { reason, message });
    }

    /// The pod's pull secrets that can be read. One that cannot may not be needed either.
    async fn pull_secrets(&self, pod: &Tenanted<Pod>, spec: &PodSpec) -> Vec<Secret> {
        let mut secrets = Vec::new();
        for reference in spec.image_pull_secrets.iter().flatten() {
            let found = self.node.cluster.secret(&pod.tenant, &self.key.namespace, &reference.name);
            match found.await {
                Ok(Some(secret)) => secrets.push(secret),
                Ok(None) => tracing::warn!(name = reference.name, "no such pull secret"),
                Err(error) => {
                    tracing::warn!(name = reference.name, %error, "cannot read pull secret")
                }
            }
        }
        secrets
    }

    async fn configure(
        &self,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        container: &Container,
        start: &Start,
        image: &ImageRef,
        pod_ips: &[std::net::IpAddr],
    ) -> Result<v1::ContainerConfig, ConfigError> {
        let names = references::of_environment(spec);
        let references = self.read(&names).await?;
        let place = self.node.place(pod_ips);
        let environment = env::environment(pod, container, &place, &references)?;
        let pod_dir = self.node.config.pod_dir(&self.key.uid);
        let files = Files {
            hosts: (spec.host_network != Some(true)).then(|| {
                let domain = &self.node.config.cluster_domain;
                let (short, full) =
                    dns::hostname(spec, &self.key.name, &self.key.namespace, domain);
                dns::hosts_file(spec, pod_ips, &short, full.as_deref())
            }),
            logs: self
                .node
                .config
                .pod_logs_dir
                .join(self.key.log_directory())
                .join(&container.name),
            message: pod_dir
                .join("containers")
                .join(&container.name)
                .join(start.attempt.to_string()),
            pod_dir,
        };
        let message_file = files.message.clone();
        let (paths, own, expanded) =
            (self.volumes.paths().clone(), container.clone(), environment.clone());
        let mounts =
            tokio::task::spawn_blocking(move || files.prepare(&own, &expanded, &paths)).await;
        let mounts = mounts.map_err(|error| ConfigError::Mount(error.to_string()))??;
        let instance = Instance {
            container,
            attempt: start.attempt,
            restart_delay: start.restart_delay,
            image,
            environment,
            mounts,
            message_file: &message_file,
        };
        container::config(&self.node.config, &self.key, pod, self.node.machine.memory, instance)
    }

    /// Runs the hook after the start. If it fails, the container is stopped.
    async fn after_start(
        &mut self,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        container: &Container,
        id: &str,
        pod_ips: &[std::net::IpAddr],
    ) {
        let hook = container.lifecycle.as_ref().and_then(|it| it.post_start.as_ref());
        let Some(hook) = hook else { return };
        let runtime = &self.node.runtime;
        let done = action::hook(runtime, hook, container, id, pod_ips.first().copied(), MAX_HOOK);
        if let Err(error) = done.await {
            let message = format!("PostStartHook failed: {error}");
            let name = Some(container.name.as_str());
            self.event(name, EventType::Warning, "FailedPostStartHook", message);
            let desired = self.desired.borrow().clone();
            let stop = Stop {
                id: id.to_owned(),
                container: container.name.clone(),
                reason: StopReason::HookFailed,
            };
            self.begin_stop(&desired, pod, spec, &stop);
        }
    }

    /// Starts the probes of what runs and has none yet.
    pub(super) fn keep_probing(
        &mut self,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        observed: &Observed,
    ) {
        let statuses = pod.status.as_ref();
        let old = |id: &str| {
            let statuses = statuses?;
            let all = [&statuses.container_statuses, &statuses.init_container_statuses];
            let mut all = all.into_iter().flatten().flatten();
            let suffix = format!("://{id}");
            all.find(|it| it.container_id.as_ref().is_some_and(|it| it.ends_with(&suffix)))
                .map(|it| it.ready)
        };
        let sandbox = usable_sandbox(spec, observed);
        let pod_ip = if spec.host_network == Some(true) {
            Some(self.node.config.node_ip)
        } else {
            sandbox.and_then(|it| it.ips.first().copied())
        };
        let Some(pod_ip) = pod_ip else { return };
        for (_, container) in containers(spec) {
            let Some(instance) = observed.latest(&container.name) else { continue };
            if !instance.is_running() || self.probers.contains_key(&instance.id) {
                continue;
            }
            let context = ProbeContext {
                key: self.key.clone(),
                runtime: self.node.runtime.clone(),
                cluster: self.node.cluster.clone(),
                pod_ip,
                wake: self.wake.clone(),
            };
            let prober = Prober::start(&context, container, &instance.id, old(&instance.id));
            self.probers.insert(instance.id.clone(), prober);
        }
    }

    /// Notes which containers wait to be restarted, and that others no longer do.
    pub(super) fn note_back_off(&mut self, pod: &Pod, plan: &Plan) {
        let reason = "CrashLoopBackOff";
        self.waiting.retain(|name, it| it.reason != reason || plan.backing_off.contains_key(name));
        for (name, delay) in &plan.backing_off {
            let key = &self.key;
            let message = format!(
                "back-off {} restarting failed container={name} pod={}_{}({})",
                go_duration(*delay),
                key.name,
                key.namespace,
                key.uid
            );
            let waiting = Waiting { reason, message };
            if self.waiting.get(name) != Some(&waiting) {
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}_{}({})",
                    key.name, key.namespace, key.uid
                );
                self.event(Some(name), EventType::Warning, "BackOff", message);
                self.waiting.insert(name.clone(), waiting);
            }
        }
        // What was in the way of a container that runs now, or is not wanted any more.
        let wanted = |name: &str| {
            pod.spec.as_ref().is_some_and(|spec| containers(spec).any(|(_, it)| it.name == name))
        };
        self.waiting.retain(|name, _| wanted(name));
    }
}

fn pull_key(container: &str) -> String {
    format!("image/{container}")
}

/// `10s`, `1m20s`, as users of this field know it.
fn go_duration(duration: Duration) -> String {
    match (duration.as_secs() / 60, duration.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

/// The files that one instance needs before it is made.
struct Files {
    pod_dir: PathBuf,
    hosts: Option<String>,
    logs: PathBuf,
    message: PathBuf,
}

impl Files {
    /// Writes them; returns the container's mounts.
    fn prepare(
        self,
        container: &Container,
        environment: &env::Environment,
        paths: &volume::VolumePaths,
    ) -> Result<Vec<v1::Mount>, ConfigError> {
        use std::{fs, os::unix::fs::PermissionsExt};
        let failed = |path: &std::path::Path, error: std::io::Error| {
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
