//! The image of a container's next instance: there already, on its way, or not to be had.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use insula_client::{EventType, Tenanted};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Secret};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Outage, Worker};
use crate::{
    cri::{ImageRef, RuntimeError},
    pod::{
        image::{self, PullPolicy},
        status::Waiting,
    },
};

const PULL_BACK_OFF: Duration = Duration::from_secs(10);
const MAX_PULL_BACK_OFF: Duration = Duration::from_secs(300);

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
    /// The image to start from, once it is on this machine.
    pub(super) async fn image_for(
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
}

fn pull_key(container: &str) -> String {
    format!("image/{container}")
}
