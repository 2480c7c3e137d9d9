//! Starting containers: the image, the configuration, the hook after the start, the probes.

use std::{net::IpAddr, time::Duration};

use insula_client::{EventType, Tenanted};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::{Outage, Worker, files::Files};
use crate::{
    cri::{ImageRef, v1},
    pod::{
        action,
        container::{self, Instance},
        dns,
        env::{self, ConfigError},
        observed::Observed,
        plan::{Plan, Start, Stop, StopReason, containers, usable_sandbox},
        probe::{ProbeContext, Prober},
        references, sandbox,
        status::Waiting,
    },
};

/// How long a hook after the start may take. The container is not ready before it is done.
const MAX_HOOK: Duration = Duration::from_secs(3600);

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

    /// Notes and tells why a container cannot start, and that it is tried again later.
    pub(super) fn refuse(&mut self, container: &str, reason: &'static str, message: &str) {
        self.event(Some(container), EventType::Warning, "Failed", format!("Error: {message}"));
        let waiting = Waiting { reason, message: message.to_owned() };
        self.waiting.insert(container.to_owned(), waiting);
        self.try_later(container);
    }

    async fn configure(
        &self,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        container: &Container,
        start: &Start,
        image: &ImageRef,
        pod_ips: &[IpAddr],
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
        pod_ips: &[IpAddr],
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

/// `10s`, `1m20s`, as users of this field know it.
fn go_duration(duration: Duration) -> String {
    match (duration.as_secs() / 60, duration.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}
