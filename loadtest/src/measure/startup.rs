//! Pod start-up by phases, as a watch tells of them: asked for, scheduled, running, ready.
//!
//! All by the generator's clock and the arrival of events: what a user sees. For pods that the
//! generator makes itself it begins when the request was meant to be sent; for those that
//! controllers make, when the pod was first seen.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Deserialize;

use super::series::{histogram, micros};
use crate::scenario::PodState;

/// What reports call the first phase.
pub(crate) const UNTIL_SCHEDULED: &str = "asked for to scheduled";

/// Whose pod: tenant, namespace and name.
type PodKey = (String, String, String);

/// When a pod got where.
#[derive(Debug, Default, Clone, Copy)]
struct Pod {
    asked: Option<Instant>,
    scheduled: Option<Instant>,
    running: Option<Instant>,
    ready: Option<Instant>,
    is_seen: bool,
    is_gone: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Startup(Mutex<Pods>);

#[derive(Debug)]
struct Pods {
    pods: HashMap<PodKey, Pod>,
    took: Took,
    n_seen: u64,
    n_gone: u64,
    /// How many had got where before what was measured anew.
    before: Reached,
}

/// How many pods have got where.
#[derive(Debug, Default, Clone, Copy)]
struct Reached {
    scheduled: u64,
    running: u64,
    ready: u64,
}

/// What pods took, as far as it is measured.
#[derive(Debug)]
struct Took {
    /// How long each phase took.
    scheduling: Histogram<u64>,
    starting: Histogram<u64>,
    becoming_ready: Histogram<u64>,
    /// From being asked for.
    until_scheduled: Histogram<u64>,
    until_running: Histogram<u64>,
    until_ready: Histogram<u64>,
    first_seen: Option<Instant>,
    last_scheduled: Option<Instant>,
}

impl Default for Took {
    fn default() -> Self {
        Self {
            scheduling: histogram(),
            starting: histogram(),
            becoming_ready: histogram(),
            until_scheduled: histogram(),
            until_running: histogram(),
            until_ready: histogram(),
            first_seen: None,
            last_scheduled: None,
        }
    }
}

impl Default for Startup {
    fn default() -> Self {
        Self(Mutex::new(Pods {
            pods: HashMap::new(),
            took: Took::default(),
            n_seen: 0,
            n_gone: 0,
            before: Reached::default(),
        }))
    }
}

impl Pods {
    fn reached(&self) -> Reached {
        let Self { before, took, .. } = self;
        Reached {
            scheduled: before.scheduled + took.until_scheduled.len(),
            running: before.running + took.until_running.len(),
            ready: before.ready + took.until_ready.len(),
        }
    }
}

/// What of a pod is looked at.
#[derive(Debug, Deserialize)]
pub(crate) struct SeenPod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    tenant: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    node_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    phase: Option<String>,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Startup {
    /// A pod is about to be asked for.
    pub(crate) fn asked(&self, tenant: &str, namespace: &str, name: &str, at: Instant) {
        let mut pods = self.0.lock();
        let key = (tenant.to_owned(), namespace.to_owned(), name.to_owned());
        pods.pods.entry(key).or_default().asked = Some(at);
    }

    /// A pod was asked for, and is not there.
    pub(crate) fn not_made(&self, tenant: &str, namespace: &str, name: &str) {
        let key = (tenant.to_owned(), namespace.to_owned(), name.to_owned());
        let mut all = self.0.lock();
        if all.pods.get(&key).is_some_and(|it| !it.is_seen) {
            all.pods.remove(&key);
        }
    }

    /// A watch told of a pod.
    pub(crate) fn seen(&self, pod: &SeenPod, at: Instant) {
        let SeenPod { metadata, spec, status } = pod;
        let key = (metadata.tenant.clone(), metadata.namespace.clone(), metadata.name.clone());
        let mut all = self.0.lock();
        let Pods { pods, .. } = &mut *all;
        let known = pods.entry(key).or_default();
        let mut now = *known;
        let asked = *now.asked.get_or_insert(at);
        let is_new = !std::mem::replace(&mut now.is_seen, true);
        let is_scheduled = spec.node_name.as_deref().is_some_and(|it| !it.is_empty());
        let phase = status.phase.as_deref().unwrap_or_default();
        let has_run = matches!(phase, "Running" | "Succeeded" | "Failed");
        let is_ready = status.conditions.iter().any(|it| it.kind == "Ready" && it.status == "True");
        // Each is noted when it is first seen; events may tell of several at once.
        let reach = |reached: &mut Option<Instant>, is_there: bool| {
            let is_first = is_there && reached.is_none();
            if is_first {
                *reached = Some(at);
            }
            is_first
        };
        let scheduled = reach(&mut now.scheduled, is_scheduled);
        let running = reach(&mut now.running, has_run);
        let ready = reach(&mut now.ready, is_ready);
        *known = now;
        let since = |begin: Option<Instant>| {
            micros(at.saturating_duration_since(begin.unwrap_or(asked))).max(1)
        };
        let Pods { took, n_seen, .. } = &mut *all;
        if is_new {
            *n_seen += 1;
            took.first_seen.get_or_insert(at);
        }
        if scheduled {
            took.scheduling.saturating_record(since(None));
            took.until_scheduled.saturating_record(since(None));
            took.last_scheduled = Some(at);
        }
        if running {
            took.starting.saturating_record(since(now.scheduled));
            took.until_running.saturating_record(since(None));
        }
        if ready {
            took.becoming_ready.saturating_record(since(now.running));
            took.until_ready.saturating_record(since(None));
        }
    }

    /// Forgets what pods took until now, but not how far they have got.
    pub(crate) fn measure_anew(&self) {
        let mut all = self.0.lock();
        all.before = all.reached();
        all.took = Took::default();
    }

    /// A watch told that a pod is no more.
    pub(crate) fn gone(&self, pod: &SeenPod) {
        let it = &pod.metadata;
        let key = (it.tenant.clone(), it.namespace.clone(), it.name.clone());
        let mut all = self.0.lock();
        if let Some(pod) = all.pods.get_mut(&key)
            && !std::mem::replace(&mut pod.is_gone, true)
            && pod.is_seen
        {
            all.n_gone += 1;
        }
        // A name may come again, for another pod.
        all.pods.remove(&key);
    }

    /// How many pods have got so far; for `Gone`, how many have been and are no more.
    pub(crate) fn reached(&self, state: PodState) -> u64 {
        let all = self.0.lock();
        match state {
            PodState::Created => all.n_seen,
            PodState::Scheduled => all.reached().scheduled,
            PodState::Running => all.reached().running,
            PodState::Ready => all.reached().ready,
            PodState::Gone => all.n_gone,
        }
    }

    /// Each state and how many have reached it.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 5] {
        [
            ("created", self.reached(PodState::Created)),
            ("scheduled", self.reached(PodState::Scheduled)),
            ("running", self.reached(PodState::Running)),
            ("ready", self.reached(PodState::Ready)),
            ("gone", self.reached(PodState::Gone)),
        ]
    }

    /// How long pods took from being asked for to getting there.
    pub(crate) fn until(&self, state: PodState) -> Histogram<u64> {
        let all = self.0.lock();
        match state {
            PodState::Scheduled => all.took.until_scheduled.clone(),
            PodState::Running => all.took.until_running.clone(),
            PodState::Ready => all.took.until_ready.clone(),
            PodState::Created | PodState::Gone => histogram(),
        }
    }

    /// How long each phase took, by name.
    pub(crate) fn phases(&self) -> [(&'static str, Histogram<u64>); 5] {
        let all = self.0.lock();
        [
            (UNTIL_SCHEDULED, all.took.scheduling.clone()),
            ("scheduled to running", all.took.starting.clone()),
            ("running to ready", all.took.becoming_ready.clone()),
            ("asked for to running", all.took.until_running.clone()),
            ("asked for to ready", all.took.until_ready.clone()),
        ]
    }

    /// Pods scheduled a second, from the first that was seen to the last that was scheduled.
    #[allow(clippy::cast_precision_loss, reason = "numbers of pods")]
    pub(crate) fn scheduled_per_second(&self) -> Option<f64> {
        let all = self.0.lock();
        let Took { first_seen, last_scheduled, until_scheduled, .. } = &all.took;
        let took = (*last_scheduled)?.saturating_duration_since((*first_seen)?);
        let n = until_scheduled.len();
        (Duration::from_millis(1) < took).then(|| n as f64 / took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pods_way() {
        let (startup, begin) = (Startup::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n", "tenant": "t"}});
        let see = |pod: &serde_json::Value, ms| {
            startup.seen(&serde_json::from_value(pod.clone()).unwrap(), at(ms));
        };
        startup.asked("t", "n", "p", begin);
        see(&pod, 10);
        pod["spec"] = json!({"nodeName": "node"});
        see(&pod, 30);
        pod["status"] =
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]});
        see(&pod, 100);
        pod["status"]["conditions"][0]["status"] = json!("True");
        see(&pod, 150);
        see(&pod, 900);
        let took: Vec<u64> = startup.phases().iter().map(|it| (it.1.max() + 50) / 1000).collect();
        assert_eq!(took, [30, 70, 50, 100, 150]);
        startup.gone(&serde_json::from_value(pod.clone()).unwrap());
        let counts = startup.counts().map(|it| it.1);
        assert_eq!(counts, [1, 1, 1, 1, 1]);
    }

    /// Preparation is not measured, and still counts as done.
    #[test]
    fn what_was_before_is_not_measured() {
        let (startup, begin) = (Startup::default(), Instant::now());
        let see = |name: &str, ms| {
            let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": "x"}});
            startup.asked("", "", name, begin);
            let at = begin + Duration::from_millis(ms);
            startup.seen(&serde_json::from_value(pod).unwrap(), at);
        };
        see("slow", 9_000);
        startup.measure_anew();
        assert!(startup.until(PodState::Scheduled).is_empty());
        see("quick", 10);
        assert_eq!((startup.until(PodState::Scheduled).max() + 50) / 1000, 10);
        assert_eq!(startup.reached(PodState::Scheduled), 2);
    }

    /// Made by a controller: nobody of ours asked, so it begins when it is seen.
    #[test]
    fn pods_of_controllers_begin_when_they_are_seen() {
        let (startup, begin) = (Startup::default(), Instant::now());
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "x"}});
        startup.seen(&serde_json::from_value(pod).unwrap(), begin);
        assert_eq!(startup.until(PodState::Scheduled).max(), 1);
    }
}
