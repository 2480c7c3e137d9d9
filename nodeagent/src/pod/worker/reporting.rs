//! Telling the API, and those who serve logs and streams, how the pod is.

use std::{path::Path, sync::Arc, time::Duration};

use insula_client::{Retry, Tenanted, chain};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{Desired, Worker};
use crate::{
    logs,
    pod::{
        container,
        observed::{Instance, Observed, State},
        patch::status_patch,
        snapshot::Snapshot,
        status::{Health, Report, status},
    },
};

/// The most a container may say at its end, in its file and by its log.
const MAX_WORDS: usize = 4096;
const MAX_LOG_WORDS: usize = 2048;
const MAX_LOG_LINES: u64 = 80;
/// How long to wait when the API does not say.
const RETRY: Duration = Duration::from_secs(2);

impl Worker {
    /// Writes the pod's status if it differs from what the API has. The error says when to try
    /// again.
    pub(super) async fn report(
        &mut self,
        desired: &Desired,
        pod: &Tenanted<Pod>,
        observed: &Observed,
        is_over: bool,
    ) -> Result<(), Duration> {
        let Some(spec) = &pod.spec else { return Ok(()) };
        self.hear_last_words(observed);
        let status = status(&Report {
            pod,
            spec,
            observed,
            waiting: &self.waiting,
            health: &|id| {
                let findings = self.findings(id);
                findings.map_or_else(Health::default, |it| Health {
                    started: it.started,
                    ready: it.started && it.ready,
                })
            },
            last_words: &|id| self.last_words.get(id).cloned().flatten(),
            failure: self.failure.as_ref(),
            is_over,
            host_ip: self.node.config.node_ip,
            runtime_name: &self.node.runtime_name,
            now: Timestamp::now(),
        });
        let old = pod.status.clone().unwrap_or_default();
        let patch = status_patch(&self.key.uid, &old, &status);
        self.snapshot.send_replace(Snapshot::new(status, observed));
        let patch = match patch {
            Ok(Some(patch)) if !desired.is_gone => patch,
            Ok(_) => return Ok(()),
            Err(error) => {
                tracing::error!(%error, "status cannot be written as JSON");
                return Err(RETRY);
            }
        };
        match self.node.cluster.patch_status(&self.key, patch).await {
            Ok(pod) => {
                self.answered = Some(Arc::new(pod));
                Ok(())
            }
            // The pod is gone or another has its name; the watch will say so.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                tracing::warn!(error = chain(&error), "status not written");
                Err(match error.retry() {
                    Retry::AfterDelay(delay) => delay.max(RETRY),
                    _ => RETRY,
                })
            }
        }
    }

    /// Reads what ended instances said last, once for each.
    fn hear_last_words(&mut self, observed: &Observed) {
        for (name, instance) in observed.instances() {
            let State::Exited { exit_code, .. } = instance.state else { continue };
            if !self.last_words.contains_key(&instance.id) {
                let words = self.last_words_of(name, instance, exit_code);
                self.last_words.insert(instance.id.clone(), words);
            }
        }
    }

    fn last_words_of(&self, name: &str, instance: &Instance, exit_code: i32) -> Option<String> {
        if let Some(words) = start_of(Path::new(&instance.message_file)) {
            return Some(words);
        }
        if exit_code == 0 || !instance.message_from_log {
            return None;
        }
        let logs = self.node.config.pod_logs_dir.join(self.key.log_directory());
        let path = logs.join(container::log_path(name, instance.attempt));
        match logs::last_text(&path, MAX_LOG_LINES, MAX_LOG_WORDS) {
            Ok(words) => Some(words).filter(|it| !it.is_empty()),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no last words in the log");
                None
            }
        }
    }
}

/// The start of a file that a container may have filled without end.
fn start_of(path: &Path) -> Option<String> {
    use std::io::Read;
    let file = std::fs::File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_WORDS as u64).read_to_end(&mut bytes).ok()?;
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}
