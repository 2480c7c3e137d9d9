//! What each metric of an autoscaler asks for.

use insula_api::quantity::Quantity;
use insula_client::Tenanted;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            ContainerResourceMetricStatus, ExternalMetricSource, ExternalMetricStatus,
            MetricIdentifier, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
            ObjectMetricSource, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::api::resource::Quantity as Written,
};

use super::{
    behavior::Behavior,
    metrics::Metrics,
    replicas::{Target, by_share, by_usage, by_value, requests},
};

/// What one metric asks for.
#[derive(Debug)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// The metric, for people.
    pub(super) metric: String,
    pub(super) status: MetricStatus,
}

/// Why a metric asks for nothing.
#[derive(Debug)]
pub(super) struct Failure {
    /// Of the condition `ScalingActive`.
    pub(super) reason: &'static str,
    /// What is said in the condition, and in an event.
    pub(super) message: String,
    /// What is said of the autoscaler as a whole.
    pub(super) error: String,
}

impl Failure {
    /// Says of the autoscaler as a whole which metric it was.
    fn of(self, metric: &str) -> Self {
        Self { error: format!("failed to get {metric} metric value: {}", self.message), ..self }
    }
}

fn failure(reason: &'static str, what: &str, why: String) -> Failure {
    let message = if what.is_empty() { why } else { format!("failed to get {what}: {why}") };
    Failure { reason, error: message.clone(), message }
}

/// What proposals are made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) metrics: Metrics<'a>,
    pub(super) behavior: &'a Behavior,
    /// The pods of the workload, and how they are found.
    pub(super) pods: &'a [Tenanted<Pod>],
    pub(super) selector: &'a str,
    /// How many there are to be, and how many there are.
    pub(super) wanted: i32,
    pub(super) present: i32,
    pub(super) now: Timestamp,
}

fn milli(amount: Option<&Written>) -> Option<i64> {
    Some(Quantity::parse(&amount?.0).ok()?.milli_value())
}

fn amount(milli: i64) -> Option<Written> {
    Some(Written(Quantity::from_milli(milli).to_string()))
}

/// A metric and its selector, as upstream's Go prints them.
fn shown(metric: &MetricIdentifier) -> String {
    let Some(selector) = &metric.selector else { return format!("{}(nil)", metric.name) };
    let labels: Vec<_> = selector
        .match_labels
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}: {value},"))
        .collect();
    format!(
        "{}(&LabelSelector{{MatchLabels:map[string]string{{{}}},MatchExpressions:[]LabelSelectorRequirement{{}},}})",
        metric.name,
        labels.concat()
    )
}

impl Seen<'_> {
    /// What `spec` asks for.
    pub(super) async fn propose(&self, spec: &MetricSpec) -> Result<Proposal, Failure> {
        if let Some(source) = &spec.resource {
            let reason = "FailedGetResourceMetric";
            let (replicas, metric, current) = self
                .resource(&source.name, None, &source.target, reason)
                .await
                .map_err(|it| it.of(&format!("{} resource", source.name)))?;
            let status = ResourceMetricStatus { name: source.name.clone(), current };
            let status = MetricStatus { resource: Some(status), ..named(spec) };
            Ok(Proposal { replicas, metric, status })
        } else if let Some(source) = &spec.container_resource {
            let reason = "FailedGetContainerResourceMetric";
            let container = Some(&*source.container);
            let (replicas, metric, current) = self
                .resource(&source.name, container, &source.target, reason)
                .await
                .map_err(|it| it.of(&format!("{} container", source.container)))?;
            let status = ContainerResourceMetricStatus {
                name: source.name.clone(),
                container: source.container.clone(),
                current,
            };
            let status = MetricStatus { container_resource: Some(status), ..named(spec) };
            Ok(Proposal { replicas, metric, status })
        } else if let Some(source) = &spec.pods {
            let name = &source.metric.name;
            let failed = |why| failure("FailedGetPodsMetric", "pods metric value", why);
            let target = milli(source.target.average_value.as_ref()).unwrap_or(0);
            let usages = self.metrics.of_pods(&source.metric, self.selector).await;
            let usages =
                usages.map_err(|why| failed(format!("unable to get metric {name}: {why}")))?;
            let found = by_usage(
                self.pods,
                usages,
                &Target::Average(target),
                false,
                (self.wanted, self.behavior),
                self.now,
            );
            let found = found.map_err(failed)?;
            let status = PodsMetricStatus {
                metric: source.metric.clone(),
                current: value(amount(found.average), None, None),
            };
            let status = MetricStatus { pods: Some(status), ..named(spec) };
            let metric = format!("pods metric {name}");
            Ok(Proposal { replicas: found.replicas, metric, status })
        } else if let Some(source) = &spec.object {
            self.object(spec, source).await
        } else if let Some(source) = &spec.external {
            self.external(spec, source).await
        } else {
            let why = format!("unknown metric source type \"{}\"", spec.type_);
            Err(failure("InvalidMetricSourceType", "", why))
        }
    }

    /// What pods, or one container of each, use of a resource.
    async fn resource(
        &self,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
        reason: &'static str,
    ) -> Result<(i32, String, MetricValueStatus), Failure> {
        let what = match target.average_value {
            Some(_) => format!("{resource} usage"),
            None => format!("{resource} utilization"),
        };
        let failed = |why| failure(reason, &what, why);
        let (wanted, metric) = match (
            milli(target.average_value.as_ref()),
            target.average_utilization,
        ) {
            (Some(average), _) => (Some(average), format!("{resource} resource")),
            (None, Some(_)) => {
                (None, format!("{resource} resource utilization (percentage of request)"))
            }
            (None, None) => {
                let why = "invalid resource metric source: neither an average utilization target \
                           nor an average value (usage) target was set";
                return Err(failure(reason, "", why.to_owned()));
            }
        };
        let usages = self.metrics.of_resource(resource, self.selector, container).await;
        let usages = usages.map_err(|why| {
            failed(format!("unable to get metrics for resource {resource}: {why}"))
        })?;
        let target = match wanted {
            Some(average) => Target::Average(average),
            None => Target::Utilization {
                percent: target.average_utilization.unwrap_or(0),
                requests: requests(self.pods, resource, container).map_err(failed)?,
            },
        };
        let is_cpu = resource == "cpu";
        let by = (self.wanted, self.behavior);
        let found = by_usage(self.pods, usages, &target, is_cpu, by, self.now).map_err(failed)?;
        let current = value(amount(found.average), found.utilization, None);
        Ok((found.replicas, metric, current))
    }

    /// What is said of one object.
    async fn object(
        &self,
        spec: &MetricSpec,
        source: &ObjectMetricSource,
    ) -> Result<Proposal, Failure> {
        let (name, object) = (&source.metric.name, &source.described_object);
        let failed = |why| failure("FailedGetObjectMetric", "object metric value", why);
        let found = self.metrics.of_object(object, &source.metric).await.map_err(|why| {
            let namespace = self.metrics.of.namespace();
            let of = format!("{} {namespace}/{}", object.kind, object.name);
            failed(format!("unable to get metric {name}: {of} {why}"))
        })?;
        let (replicas, current, metric) = self.of_one(found, &source.target).map_err(failed)?;
        let metric = match metric {
            Each::OfAll => format!("{} metric {name}", object.kind),
            Each::OfOne => format!("external metric {}", shown(&source.metric)),
        };
        let status = ObjectMetricStatus {
            metric: source.metric.clone(),
            described_object: object.clone(),
            current,
        };
        let status = MetricStatus { object: Some(status), ..named(spec) };
        Ok(Proposal { replicas, metric, status })
    }

    /// What is measured outside.
    async fn external(
        &self,
        spec: &MetricSpec,
        source: &ExternalMetricSource,
    ) -> Result<Proposal, Failure> {
        let name = &source.metric.name;
        let what = match source.target.average_value {
            Some(_) => format!("{name} external metric"),
            None => format!("external metric {name}"),
        };
        let failed = |why| failure("FailedGetExternalMetric", &what, why);
        let found = self.metrics.outside(&source.metric).await.map_err(|why| {
            let namespace = self.metrics.of.namespace();
            let selector = shown(&source.metric);
            let selector = selector[name.len() + 1..].trim_end_matches(')');
            failed(format!("unable to get external metric {namespace}/{name}/{selector}: {why}"))
        })?;
        let (replicas, current, _) = self.of_one(found, &source.target).map_err(failed)?;
        let metric = format!("external metric {}", shown(&source.metric));
        let status = ExternalMetricStatus { metric: source.metric.clone(), current };
        let status = MetricStatus { external: Some(status), ..named(spec) };
        Ok(Proposal { replicas, metric, status })
    }

    /// What follows from one value for all pods.
    fn of_one(
        &self,
        found: i64,
        target: &MetricTarget,
    ) -> Result<(i32, MetricValueStatus, Each), String> {
        if let Some(average) = milli(target.average_value.as_ref()) {
            let (replicas, share) = by_share(found, average, self.present, self.behavior);
            return Ok((replicas, value(amount(share), None, None), Each::OfOne));
        }
        let Some(wanted) = milli(target.value.as_ref()) else {
            let why = "invalid metric source: neither a value target nor an average value target \
                       was set";
            return Err(why.to_owned());
        };
        let replicas = by_value(self.pods, found, wanted, (self.wanted, self.behavior))?;
        Ok((replicas, value(None, None, amount(found)), Each::OfAll))
    }
}

/// Whether a target is about all pods together, or each of them.
enum Each {
    OfAll,
    OfOne,
}

fn value(
    average_value: Option<Written>,
    average_utilization: Option<i32>,
    value: Option<Written>,
) -> MetricValueStatus {
    MetricValueStatus { average_utilization, average_value, value }
}

fn named(spec: &MetricSpec) -> MetricStatus {
    MetricStatus { type_: spec.type_.clone(), ..MetricStatus::default() }
}
