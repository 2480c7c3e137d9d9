//! Has workloads grow and shrink with what their pods use, or with what else is measured.
//!
//! [`proposals`] says what each metric asks for ([`metrics`] reads it, [`replicas`] counts), and
//! [`behavior`] how fast that may be followed. What was recommended of late is kept in memory
//! alone: who takes over begins with what there is, and so shrinks nothing at once.

mod behavior;
mod metrics;
mod proposals;
mod replicas;
mod shared;

use std::{collections::HashMap, sync::Arc, time::Duration};

use insula_api::selector::Selector;
use insula_client::{
    Client, EventRecorder, EventType, ListOptions, ObjectKey, ResourceRef, Tenanted, WriteOptions,
    chain,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    autoscaling::{
        v1::Scale,
        v2::{
            HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec,
            HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus, MetricTarget,
            ResourceMetricSource,
        },
    },
    core::v1::Pod,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::{
    behavior::{Behavior, History},
    metrics::Metrics,
    proposals::{Failure, Proposal, Seen},
    shared::Selected,
};
use crate::{
    controller::{Controller, Next, ReconcileError},
    everything::Everything,
    informers::Informers,
    objects::to_time,
    queue::Queue,
    status::write_status,
};

/// An autoscaler that names no metric looks at CPU.
const DEFAULT_PERCENT: i32 = 80;

type Autoscaler = Tenanted<HorizontalPodAutoscaler>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Autoscalers {
    client: Client,
    informers: Informers,
    everything: Everything,
    events: EventRecorder,
    /// How often each is looked at.
    every: Duration,
    history: Mutex<HashMap<ObjectKey, History>>,
    selected: Selected,
}

/// What is to be said of an autoscaler when a pass ends.
struct Report {
    status: HorizontalPodAutoscalerStatus,
    now: Timestamp,
}

impl Report {
    fn condition(&mut self, type_: &str, is_true: bool, reason: &str, message: impl Into<String>) {
        let status = if is_true { "True" } else { "False" };
        let all = self.status.conditions.get_or_insert_default();
        let index = match all.iter().position(|it| it.type_ == type_) {
            Some(index) => index,
            None => {
                let new = HorizontalPodAutoscalerCondition {
                    type_: type_.to_owned(),
                    ..HorizontalPodAutoscalerCondition::default()
                };
                all.push(new);
                all.len() - 1
            }
        };
        let it = &mut all[index];
        if it.status != status {
            it.last_transition_time = Some(to_time(self.now));
        }
        it.status = status.to_owned();
        it.reason = Some(reason.to_owned());
        it.message = Some(message.into());
    }
}

/// What all metrics together ask for.
struct Wanted {
    replicas: i32,
    metric: String,
    statuses: Vec<MetricStatus>,
    /// Why some metrics said nothing.
    failed: Option<String>,
}

fn default_metrics() -> Vec<MetricSpec> {
    let target = MetricTarget {
        type_: "Utilization".to_owned(),
        average_utilization: Some(DEFAULT_PERCENT),
        ..MetricTarget::default()
    };
    let resource = Some(ResourceMetricSource { name: "cpu".to_owned(), target });
    vec![MetricSpec { type_: "Resource".to_owned(), resource, ..MetricSpec::default() }]
}

impl Autoscalers {
    pub(crate) fn new(
        client: Client,
        informers: Informers,
        everything: Everything,
        events: &EventRecorder,
        every: Duration,
    ) -> Self {
        let events = events.named("horizontal-pod-autoscaler");
        let (history, selected) = (Mutex::default(), Selected::default());
        Self { client, informers, everything, events, every, history, selected }
    }

    fn warn(&self, it: &Autoscaler, reason: &str, message: &str) {
        self.events.record(it, EventType::Warning, reason, message);
    }

    /// The scale of what is scaled, and how to reach it.
    async fn scale(
        &self,
        it: &Autoscaler,
        spec: &HorizontalPodAutoscalerSpec,
    ) -> Result<(ResourceRef, Scale), String> {
        let target = &spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or_default();
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let resource = self.everything.of_kind(&it.tenant, group, &target.kind).await;
        let resource = resource.map_err(|error| chain(&error).to_string())?;
        let resource = resource.ok_or_else(|| {
            format!("no matches for kind \"{}\" in group \"{group}\"", target.kind)
        })?;
        let api = self.client.tenant(&it.tenant);
        let api = api.resource::<Scale>(resource.clone(), Some(it.namespace()));
        let scale = api.get_subresource::<Scale>(&target.name, "scale").await;
        Ok((resource, scale.map_err(|error| chain(&error).to_string())?))
    }

    /// The pods of what is scaled: from the server, because little of pods is kept here.
    async fn pods(&self, it: &Autoscaler, selector: &str) -> Result<Vec<Tenanted<Pod>>, String> {
        let api = self.client.tenant(&it.tenant).namespaced::<Pod>(it.namespace());
        let pods = api.list_all(&ListOptions::labelled(selector)).await;
        pods.map_err(|error| {
            format!("unable to get pods while calculating replica count: {}", chain(&error))
        })
    }

    /// The pods of what is scaled, if no other autoscaler has to do with them. Says in the report,
    /// and in events, what is wrong.
    async fn own_pods(
        &self,
        it: &Autoscaler,
        selector: &str,
        report: &mut Report,
    ) -> Result<Vec<Tenanted<Pod>>, String> {
        let mut refuse = |reason: &str, why: String| {
            self.warn(it, reason, &why);
            report.condition("ScalingActive", false, reason, why.clone());
            Err(why)
        };
        let parsed = match Selector::parse(selector) {
            Ok(parsed) => parsed,
            Err(error) => {
                let why = format!(
                    "couldn't convert selector into a corresponding internal selector object: {error}"
                );
                return refuse("InvalidSelector", why);
            }
        };
        let key = it.key();
        self.selected.put(key.clone(), parsed);
        let pods = self.pods(it, selector).await?;
        let sharing = self.selected.selecting(&key, &pods);
        if 1 < sharing.len() {
            let named = sharing.iter().map(|it| format!("{}/{}", it.namespace, it.name));
            let named = named.collect::<Vec<_>>().join(" ");
            let why =
                format!("pods by selector {selector} are controlled by multiple HPAs: [{named}]");
            return refuse("AmbiguousSelector", why);
        }
        Ok(pods)
    }

    /// What the metrics ask for. Says in the report, and in events, what is wrong with them.
    async fn wanted(
        &self,
        it: &Autoscaler,
        spec: &HorizontalPodAutoscalerSpec,
        scale: &Scale,
        behavior: &Behavior,
        report: &mut Report,
    ) -> Result<Wanted, String> {
        let selector = scale.status.as_ref().and_then(|it| it.selector.as_deref());
        let Some(selector) = selector.filter(|it| !it.is_empty()) else {
            let why = "selector is required";
            self.warn(it, "SelectorRequired", why);
            let message = "the HPA target's scale is missing a selector";
            report.condition("ScalingActive", false, "InvalidSelector", message);
            return Err(why.to_owned());
        };
        let wanted = scale.spec.as_ref().and_then(|it| it.replicas).unwrap_or(0);
        let pods = self.own_pods(it, selector, report).await?;
        let seen = Seen {
            metrics: Metrics { client: &self.client, everything: &self.everything, of: it },
            behavior,
            pods: &pods,
            selector,
            wanted,
            present: scale.status.as_ref().map_or(0, |it| it.replicas),
            now: report.now,
        };
        let specs = spec.metrics.clone().filter(|it| !it.is_empty());
        let specs = specs.unwrap_or_else(default_metrics);
        let mut best: Option<Proposal> = None;
        let mut statuses = Vec::new();
        let mut failures: Vec<Failure> = Vec::new();
        for spec in &specs {
            match seen.propose(spec).await {
                Ok(proposal) => {
                    statuses.push(proposal.status.clone());
                    if best.as_ref().is_none_or(|best| best.replicas < proposal.replicas) {
                        best = Some(proposal);
                    }
                }
                Err(failure) => {
                    self.warn(it, failure.reason, &failure.message);
                    failures.push(failure);
                    // Each status is where its metric is in the specification.
                    statuses.push(MetricStatus::default());
                }
            }
        }
        let failed = failures.first().map(|first| {
            let (n_failed, n_all) = (failures.len(), specs.len());
            let why = &first.error;
            format!("invalid metrics ({n_failed} invalid out of {n_all}), first error is: {why}")
        });
        // What a metric that says nothing would have asked for is not known: nothing shrinks.
        let best = best.filter(|best| failures.is_empty() || wanted <= best.replicas);
        match (best, failures.first()) {
            (Some(best), _) => {
                let message = format!(
                    "the HPA was able to successfully calculate a replica count from {}",
                    best.metric
                );
                report.condition("ScalingActive", true, "ValidMetricFound", message);
                Ok(Wanted { replicas: best.replicas, metric: best.metric, statuses, failed })
            }
            (None, first) => {
                if let Some(first) = first {
                    let message = format!(
                        "the HPA was unable to compute the replica count: {}",
                        first.message
                    );
                    report.condition("ScalingActive", false, first.reason, message);
                }
                report.status.current_metrics = Some(statuses);
                Err(failed.unwrap_or_default())
            }
        }
    }

    async fn pass(&self, it: &Autoscaler) -> Result<(), ReconcileError> {
        let spec = &it.spec;
        let mut report =
            Report { status: it.status.clone().unwrap_or_default(), now: Timestamp::now() };
        let outcome = self.scaled(it, spec, &mut report).await;
        let api = self.client.tenant(&it.tenant);
        let api = api.namespaced::<HorizontalPodAutoscaler>(it.namespace());
        write_status(&api, it, it.status.as_ref(), &report.status).await?;
        if let Err(why) = outcome {
            // Said in events and conditions; looked at again when it is its turn.
            tracing::debug!(autoscaler = %it.key(), why, "not scaled");
        }
        Ok(())
    }

    /// Scales as is asked for; an error is why nothing was done.
    async fn scaled(
        &self,
        it: &Autoscaler,
        spec: &HorizontalPodAutoscalerSpec,
        report: &mut Report,
    ) -> Result<(), String> {
        let (resource, scale) = match self.scale(it, spec).await {
            Ok(found) => found,
            Err(why) => {
                self.warn(it, "FailedGetScale", &why);
                let message = format!(
                    "the HPA controller was unable to get the target's current scale: {why}"
                );
                report.condition("AbleToScale", false, "FailedGetScale", message);
                return Err(why);
            }
        };
        let got = "the HPA controller was able to get the target's current scale";
        report.condition("AbleToScale", true, "SucceededGetScale", got);
        let current = scale.spec.as_ref().and_then(|it| it.replicas).unwrap_or(0);
        let present = scale.status.as_ref().map_or(0, |it| it.replicas);
        let (min, max) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
        self.history.lock().entry(it.key()).or_default().begin(current, Instant::now());
        let behavior = Behavior::of(spec);
        let (mut desired, mut reason) = (current, String::new());
        let mut statuses = Vec::new();
        let mut failed = None;
        if current == 0 && min != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            report.condition("ScalingActive", false, "ScalingDisabled", message);
        } else if max < current {
            desired = max;
            reason = "Current number of replicas above Spec.MaxReplicas".to_owned();
        } else if current < min {
            desired = min;
            reason = "Current number of replicas below Spec.MinReplicas".to_owned();
        } else {
            let wanted = match self.wanted(it, spec, &scale, &behavior, report).await {
                Ok(wanted) => wanted,
                Err(why) => {
                    report.status.current_replicas = Some(present);
                    self.warn(it, "FailedComputeMetricsReplicas", &why);
                    return Err(why);
                }
            };
            let by = wanted.replicas;
            if current < by {
                reason = format!("{} above target", wanted.metric);
            } else if by < current {
                reason = "All metrics below target".to_owned();
            }
            (statuses, failed) = (wanted.statuses, wanted.failed);
            let decision = {
                let mut history = self.history.lock();
                let history = history.entry(it.key()).or_default();
                history.decide(&behavior, current, by, (min, max), Instant::now())
            };
            report.condition("AbleToScale", true, decision.able.0, decision.able.1);
            let (is_limited, why, message) = decision.limited;
            report.condition("ScalingLimited", is_limited, why, message);
            desired = decision.replicas;
        }
        report.status.current_replicas = Some(present);
        if desired != current {
            self.rescale(it, (resource, scale), desired, &reason, report).await?;
            let mut history = self.history.lock();
            history.entry(it.key()).or_default().scaled(current, desired, Instant::now());
            report.status.last_scale_time = Some(to_time(report.now));
        }
        report.status.desired_replicas = desired;
        report.status.current_metrics = Some(statuses).filter(|it| !it.is_empty());
        failed.map_or(Ok(()), Err)
    }

    async fn rescale(
        &self,
        it: &Autoscaler,
        (resource, mut scale): (ResourceRef, Scale),
        desired: i32,
        reason: &str,
        report: &mut Report,
    ) -> Result<(), String> {
        scale.spec.get_or_insert_default().replicas = Some(desired);
        let api = self.client.tenant(&it.tenant);
        let api = api.resource::<Scale>(resource, Some(it.namespace()));
        // As it was seen: whoever else scaled it meanwhile is looked at first.
        match api.replace(&scale, Some("scale"), &WriteOptions::default()).await {
            Ok(_) => {
                let message =
                    format!("the HPA controller was able to update the target scale to {desired}");
                report.condition("AbleToScale", true, "SucceededRescale", message);
                let message = format!("New size: {desired}; reason: {reason}");
                self.events.record(it, EventType::Normal, "SuccessfulRescale", message);
                Ok(())
            }
            Err(error) => {
                let why = chain(&error).to_string();
                let message = format!("New size: {desired}; reason: {reason}; error: {why}");
                self.warn(it, "FailedRescale", &message);
                let message =
                    format!("the HPA controller was unable to update the target scale: {why}");
                report.condition("AbleToScale", false, "FailedUpdateScale", message);
                Err(why)
            }
        }
    }
}

impl Controller for Autoscalers {
    const NAME: &'static str = "horizontal-pod-autoscaler-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.autoscalers.on_change(move |change| {
            let Some(new) = change.new else {
                it.history.lock().remove(change.key);
                it.selected.forget(change.key);
                return;
            };
            // What is said here in its status asks for nothing.
            if change.old.is_none_or(|old| old.spec != new.spec) {
                keys.add(change.key.clone());
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.autoscalers.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let found = self.informers.autoscalers.get(key).filter(|it| !it.is_deleting());
        let Some(it) = found else { return Ok(Next::WhenChanged) };
        self.pass(&it).await?;
        Ok(Next::After(self.every))
    }
}
