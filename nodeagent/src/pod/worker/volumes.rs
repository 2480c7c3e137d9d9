//! A pod's volumes over its life: set up before its sandbox, kept up to date while it runs.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use insula_client::{EventType, Tenanted, chain};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::{VOLUMES, Worker};
use crate::{
    cluster::Token,
    pod::{
        env::ConfigError,
        observed::Observed,
        plan::usable_sandbox,
        references::{self, Names, References},
    },
    volume::{self, TokenRequest, VolumePaths},
};

/// How often tokens are looked at for their age. Other files follow their source at once.
const REFRESH: Duration = Duration::from_secs(120);

/// How soon files are written again if that failed.
const AGAIN: Duration = Duration::from_secs(10);

/// The volumes of one pod as this process knows them.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    paths: Option<VolumePaths>,
    tokens: BTreeMap<TokenRequest, HeldToken>,
    due: Option<Instant>,
    /// What the files of the downward API were written from.
    written_from: Option<(Meta, Meta)>,
    /// What the files come from is being followed; dropping it ends that.
    following: Option<DropGuard>,
    /// Something that the files come from has changed since they were written.
    is_stale: Arc<AtomicBool>,
}

type Meta = Option<BTreeMap<String, String>>;

#[derive(Debug)]
struct HeldToken {
    token: Token,
    /// When four fifths of its life are over.
    renew_at: Timestamp,
}

impl Volumes {
    pub(super) fn are_set_up(&self) -> bool {
        self.paths.is_some()
    }

    pub(super) fn paths(&self) -> &VolumePaths {
        static NONE: VolumePaths = VolumePaths::new();
        self.paths.as_ref().unwrap_or(&NONE)
    }
}

impl Worker {
    /// Reads what the pod refers to. What does not exist is simply not in the result.
    pub(super) async fn read(&self, names: &Names) -> Result<References, ConfigError> {
        let (tenant, namespace) = (&self.key.tenant, &*self.key.namespace);
        let unreadable = |kind, name: &str, error: insula_client::Error| {
            ConfigError::Mount(format!("cannot read {kind} {name:?}: {}", chain(&error)))
        };
        let mut found = References::default();
        for name in &names.config_maps {
            match self.node.cluster.config_map(tenant, namespace, name).await {
                Ok(object) => found.config_maps.extend(object.map(|it| (name.clone(), it))),
                Err(error) => return Err(unreadable("configmap", name, error)),
            }
        }
        for name in &names.secrets {
            match self.node.cluster.secret(tenant, namespace, name).await {
                Ok(object) => found.secrets.extend(object.map(|it| (name.clone(), it))),
                Err(error) => return Err(unreadable("secret", name, error)),
            }
        }
        Ok(found)
    }

    /// Makes the volumes hold what they should. Returns whether they do; if not, users are told
    /// and a time to try again is set.
    pub(super) async fn set_up_volumes(
        &mut self,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        pod_ips: &[IpAddr],
    ) -> bool {
        match self.try_set_up(pod, spec, pod_ips).await {
            Ok(paths) => {
                self.volumes.paths = Some(paths);
                self.follow_sources(spec);
                let meta = &pod.metadata;
                self.volumes.written_from = Some((meta.labels.clone(), meta.annotations.clone()));
                self.retries.remove(VOLUMES);
                true
            }
            Err(message) => {
                tracing::debug!(message, "volumes not set up");
                self.event(None, EventType::Warning, "FailedMount", message);
                self.try_later(VOLUMES);
                false
            }
        }
    }

    /// Begins to follow what the files come from, once.
    fn follow_sources(&mut self, spec: &PodSpec) {
        let names = references::of_volumes(spec);
        if self.volumes.following.is_some() {
            return;
        }
        let stop = self.shutdown.child_token();
        let (is_stale, wake) = (self.volumes.is_stale.clone(), self.wake.clone());
        let changed = Arc::new(move || {
            is_stale.store(true, Ordering::Release);
            wake.notify_one();
        });
        self.node.cluster.follow(&self.key, &names, changed, &stop);
        self.volumes.following = Some(stop.drop_guard());
    }

    async fn try_set_up(
        &mut self,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        pod_ips: &[IpAddr],
    ) -> Result<VolumePaths, String> {
        let text = |error: ConfigError| error.to_string();
        let references = self.read(&references::of_volumes(spec)).await.map_err(text)?;
        let tokens = self.tokens(pod, spec).await?;
        let pod_dir = self.node.config.pod_dir(&self.key.uid);
        let place = self.node.place(pod_ips);
        let pod = pod.object.clone();
        let work = tokio::task::spawn_blocking(move || {
            volume::set_up(&pod_dir, &pod, &place, &references, &tokens)
        });
        match work.await {
            Ok(Ok(paths)) => Ok(paths),
            Ok(Err(error)) => Err(format!("{error} : {}", chain(&error.source))),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The tokens that the volumes want, renewed where they have grown old.
    async fn tokens(
        &mut self,
        pod: &Pod,
        spec: &PodSpec,
    ) -> Result<BTreeMap<TokenRequest, String>, String> {
        let account = match spec.service_account_name.as_deref() {
            Some(name) if !name.is_empty() => name,
            _ => "default",
        };
        let mut tokens = BTreeMap::new();
        for request in volume::token_requests(pod) {
            let now = Timestamp::now();
            let held = self.volumes.tokens.get(&request).filter(|it| now < it.renew_at);
            if let Some(held) = held {
                tokens.insert(request, held.token.token.clone());
                continue;
            }
            let cluster = &self.node.cluster;
            let asked =
                cluster.token(&self.key, account, &request.audience, request.expiration_seconds);
            let token = asked.await.map_err(|error| {
                format!("failed to fetch token for service account {account:?}: {}", chain(&error))
            })?;
            let life = token.expires.duration_since(now);
            tokens.insert(request.clone(), token.token.clone());
            let held = HeldToken { token, renew_at: now + life * 4 / 5 };
            self.volumes.tokens.insert(request, held);
        }
        Ok(tokens)
    }

    /// Brings files up to date when it is time. Returns when it is next.
    pub(super) async fn refresh_volumes(
        &mut self,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        observed: &Observed,
        is_ending: bool,
    ) -> Duration {
        let has_files = spec.volumes.iter().flatten().any(|it| {
            it.config_map.is_some()
                || it.secret.is_some()
                || it.downward_api.is_some()
                || it.projected.is_some()
        });
        let sandbox = usable_sandbox(spec, observed);
        let (Some(sandbox), true, false) = (sandbox, has_files, is_ending) else {
            return Duration::MAX;
        };
        // Pods that started together must not ask together.
        let soon = REFRESH.mul_f64(rand::rng().random_range(0.8..1.2));
        let now = Instant::now();
        let due = *self.volumes.due.get_or_insert(now + soon);
        let meta = (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        let is_other = self.volumes.written_from.as_ref().is_some_and(|it| *it != meta);
        let is_stale = self.volumes.is_stale.swap(false, Ordering::AcqRel);
        if now < due && !is_other && !is_stale {
            return due - now;
        }
        let ips = sandbox.ips.clone();
        let is_done = self.set_up_volumes(pod, spec, &ips).await;
        let next = if is_done { soon } else { AGAIN };
        self.volumes.due = Some(now + next);
        next
    }
}
