//! Probes: one task per probe of a running container.
//!
//! A task writes what it found into its container's [`Findings`] and wakes the pod's worker when
//! that changes. The startup probe gates the others. Dropping a [`Prober`] ends its tasks.

use std::{net::IpAddr, sync::Arc, time::Duration};

use insula_client::EventType;
use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};

use super::{
    action::{self, ActionError},
    health,
    identity::PodKey,
    plan::FailedProbe,
};
use crate::{cluster::Cluster, cri::RuntimeClient};

/// What probes found of one instance so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Findings {
    pub started: bool,
    pub ready: bool,
    pub failed: Option<FailedProbe>,
}

/// What the probes of all of a pod's containers share.
#[derive(Debug, Clone)]
pub(crate) struct ProbeContext {
    pub key: PodKey,
    pub runtime: RuntimeClient,
    pub cluster: Arc<dyn Cluster>,
    pub pod_ip: IpAddr,
    pub wake: Arc<Notify>,
}

/// The probes of one instance.
#[derive(Debug)]
pub(crate) struct Prober {
    findings: watch::Sender<Findings>,
    /// Ends with the prober.
    _tasks: JoinSet<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Prober {
    /// Starts the probes of `container`. `was_ready` is what the API last said of this very
    /// instance: an agent that restarts must not take a working container out of service.
    pub(crate) fn start(
        context: &ProbeContext,
        container: &Container,
        container_id: &str,
        was_ready: Option<bool>,
    ) -> Self {
        let was_started = was_ready == Some(true);
        let findings = Findings {
            started: container.startup_probe.is_none() || was_started,
            ready: container.readiness_probe.is_none() || was_started,
            failed: None,
        };
        let (findings, _) = watch::channel(findings);
        let mut tasks = JoinSet::new();
        for (kind, probe) in [
            (Kind::Startup, &container.startup_probe),
            (Kind::Liveness, &container.liveness_probe),
            (Kind::Readiness, &container.readiness_probe),
        ] {
            let Some(probe) = probe else { continue };
            if kind == Kind::Startup && was_started {
                continue;
            }
            let task = Task {
                kind,
                probe: probe.clone(),
                container: container.clone(),
                container_id: container_id.to_owned(),
                context: context.clone(),
                findings: findings.clone(),
            };
            tasks.spawn(task.run());
        }
        Self { findings, _tasks: tasks }
    }

    pub(crate) fn findings(&self) -> Findings {
        *self.findings.borrow()
    }
}

struct Task {
    kind: Kind,
    probe: Probe,
    container: Container,
    container_id: String,
    context: ProbeContext,
    findings: watch::Sender<Findings>,
}

impl Task {
    async fn run(self) {
        if self.kind != Kind::Startup {
            let mut findings = self.findings.subscribe();
            if findings.wait_for(|it| it.started).await.is_err() {
                return;
            }
        }
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|it| it.try_into().ok()).unwrap_or(default))
        };
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|it| u32::try_from(it).ok()).filter(|&it| it > 0).unwrap_or(default)
        };
        tokio::time::sleep(seconds(self.probe.initial_delay_seconds, 0)).await;
        let period = seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1));
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let successes_wanted = count(self.probe.success_threshold, 1);
        let failures_allowed = count(self.probe.failure_threshold, 3);
        let (mut n_successes, mut n_failures) = (0_u32, 0_u32);
        loop {
            ticks.tick().await;
            match self.ask().await {
                Ok(()) => {
                    (n_successes, n_failures) = (n_successes.saturating_add(1), 0);
                    if n_successes == successes_wanted {
                        self.passed();
                        if self.kind == Kind::Startup {
                            return;
                        }
                    }
                }
                Err(ActionError::Refused(output)) => {
                    (n_successes, n_failures) = (0, n_failures.saturating_add(1));
                    self.tell(&output);
                    if n_failures >= failures_allowed && self.failed() {
                        return;
                    }
                }
                // Says nothing about the container, so it counts neither way.
                Err(ActionError::Runtime(error)) => {
                    tracing::debug!(pod = %self.context.key, %error, "cannot probe");
                }
            }
        }
    }

    async fn ask(&self) -> Result<(), ActionError> {
        let probe = &self.probe;
        let seconds = probe.timeout_seconds.and_then(|it| it.try_into().ok()).unwrap_or(1);
        let limit = Duration::from_secs(seconds);
        let context = &self.context;
        if let Some(exec) = &probe.exec {
            let command = exec.command.as_deref().unwrap_or_default();
            action::exec(&context.runtime, &self.container_id, command, limit).await.map(drop)
        } else if let Some(get) = &probe.http_get {
            action::http_get(get, &self.container, context.pod_ip, limit).await
        } else if let Some(socket) = &probe.tcp_socket {
            let port = action::port(&socket.port, &self.container).map_err(ActionError::Refused)?;
            let host = match socket.host.as_deref() {
                Some(host) if !host.is_empty() => host.to_owned(),
                _ => context.pod_ip.to_string(),
            };
            action::tcp(&host, port, limit).await
        } else if let Some(grpc) = &probe.grpc {
            let service = grpc.service.as_deref().unwrap_or_default();
            health::check(context.pod_ip, grpc.port, service, limit)
                .await
                .map_err(ActionError::Refused)
        } else {
            Ok(())
        }
    }

    fn passed(&self) {
        self.update(|findings| match self.kind {
            Kind::Startup => findings.started = true,
            Kind::Readiness => findings.ready = true,
            Kind::Liveness => {}
        });
    }

    /// Returns whether the container's end is asked for, which ends the probe.
    fn failed(&self) -> bool {
        self.update(|findings| match self.kind {
            Kind::Startup => findings.failed = Some(FailedProbe::Startup),
            Kind::Liveness => findings.failed = Some(FailedProbe::Liveness),
            Kind::Readiness => findings.ready = false,
        });
        self.kind != Kind::Readiness
    }

    fn update(&self, change: impl FnOnce(&mut Findings)) {
        let changed = self.findings.send_if_modified(|findings| {
            let before = *findings;
            change(findings);
            *findings != before
        });
        if changed {
            self.context.wake.notify_one();
        }
    }

    fn tell(&self, output: &str) {
        let field = format!("spec.containers{{{}}}", self.container.name);
        let message = format!("{:?} probe failed: {output}", self.kind);
        let context = &self.context;
        context.cluster.event(&context.key, Some(field), EventType::Warning, "Unhealthy", message);
    }
}
