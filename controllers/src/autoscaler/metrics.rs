//! Reads what pods use, and what else is measured, from the APIs of metrics that a tenant has.

use std::{borrow::Cow, time::Duration};

use insula_api::quantity::Quantity;
use insula_client::{Client, Error, ResourceRef, Tenant, Tenanted, chain};
use jiff::Timestamp;
use k8s_openapi::{
    api::autoscaling::v2::{
        CrossVersionObjectReference, HorizontalPodAutoscaler, MetricIdentifier,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use serde::Deserialize;

use super::replicas::{Usage, Usages};
use crate::everything::Everything;

/// Over which time a value was measured that does not say.
const WINDOW: Duration = Duration::from_secs(60);
/// The versions of the API of custom metrics, the preferred one first.
const CUSTOM: [&str; 2] = ["v1beta2", "v1beta1"];

/// Of any API of metrics: its items are of different shapes.
#[derive(Deserialize)]
struct List<T> {
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct PodUsage {
    metadata: Named,
    timestamp: Timestamp,
    window: Option<String>,
    #[serde(default)]
    containers: Vec<ContainerUsage>,
}

#[derive(Deserialize)]
struct ContainerUsage {
    name: String,
    #[serde(default)]
    usage: std::collections::BTreeMap<String, Quantity>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Custom {
    described_object: Named,
    timestamp: Timestamp,
    window_seconds: Option<u64>,
    value: Quantity,
}

#[derive(Deserialize)]
struct External {
    value: Quantity,
}

/// What is measured for one autoscaler.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metrics<'a> {
    pub(super) client: &'a Client,
    pub(super) everything: &'a Everything,
    pub(super) of: &'a Tenanted<HorizontalPodAutoscaler>,
}

/// A selector as queries have it.
fn written(selector: &LabelSelector) -> String {
    let labels =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().flatten().map(|it| {
        let values = it.values.as_deref().unwrap_or_default().join(",");
        match &*it.operator {
            "In" => format!("{} in ({values})", it.key),
            "NotIn" => format!("{} notin ({values})", it.key),
            "DoesNotExist" => format!("!{}", it.key),
            _ => it.key.clone(),
        }
    });
    labels.chain(expressions).collect::<Vec<_>>().join(",")
}

/// A length of time as Go writes it, such as `1m30s`; fractions are left out.
fn duration(text: &str) -> Option<Duration> {
    let (mut sum, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit() && it != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|it: char| it.is_ascii_digit());
        let (unit, after) = rest[digits..].split_at(unit.unwrap_or(rest.len() - digits));
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            _ => return None,
        };
        sum += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = after;
    }
    Some(sum)
}

/// Why a request of a group failed that perhaps nobody serves.
fn told(error: &Error, resource: &str) -> String {
    if error.code() == Some(404) && error.reason() != "NotFound" {
        return format!("the server could not find the requested resource (get {resource})");
    }
    chain(error)
}

impl Metrics<'_> {
    /// What lies under `path` in a group of metrics.
    async fn read<T: serde::de::DeserializeOwned>(
        &self,
        group: &'static str,
        version: &'static str,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, Error> {
        let (plural, rest) = path.split_first().unwrap_or((&"", &[]));
        let resource = ResourceRef {
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            plural: Cow::Owned((*plural).to_owned()),
            kind: Cow::Borrowed(""),
            namespaced: true,
        };
        let api = self.client.tenant(&self.of.tenant);
        // Only the path counts, and not what the objects are.
        let api = api.resource::<Tenant>(resource, Some(self.of.namespace()));
        Ok(api.get_under::<List<T>>(rest, query).await?.items)
    }

    /// What the pods that `selector` matches use of a resource, all of each or one container.
    pub(super) async fn of_resource(
        &self,
        resource: &str,
        selector: &str,
        container: Option<&str>,
    ) -> Result<Usages, String> {
        let query = [("labelSelector", selector)];
        let items = self.read::<PodUsage>("metrics.k8s.io", "v1beta1", &["pods"], &query).await;
        let items = items.map_err(|error| {
            let why = told(&error, "pods.metrics.k8s.io");
            format!("unable to fetch metrics from resource metrics API: {why}")
        })?;
        if items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        let mut usages = Usages::new();
        for pod in items {
            let containers = pod.containers.iter();
            let containers: Vec<_> =
                containers.filter(|it| container.is_none_or(|name| name == it.name)).collect();
            if let (Some(name), true) = (container, containers.is_empty()) {
                let pod = &pod.metadata.name;
                return Err(format!(
                    "failed to get container metrics: container {name} not present in metrics for \
                     pod {}/{pod}",
                    self.of.namespace()
                ));
            }
            // Of a pod of which one container is not measured, nothing is known.
            let values = containers.iter().map(|it| it.usage.get(resource));
            let Some(values) = values.collect::<Option<Vec<_>>>() else { continue };
            let value = values.iter().fold(0i64, |sum, it| sum.saturating_add(it.milli_value()));
            let window = pod.window.as_deref().and_then(duration).unwrap_or(WINDOW);
            usages.insert(pod.metadata.name, Usage { value, at: pod.timestamp, window });
        }
        Ok(usages)
    }

    async fn custom(
        &self,
        path: &[&str],
        metric: &MetricIdentifier,
        selector: Option<&str>,
    ) -> Result<Vec<Custom>, String> {
        let labels = metric.selector.as_ref().map(written).unwrap_or_default();
        let mut query = Vec::new();
        query.extend(selector.map(|it| ("labelSelector", it)));
        if !labels.is_empty() {
            query.push(("metricLabelSelector", &*labels));
        }
        let mut found = Ok(Vec::new());
        for version in CUSTOM {
            found = self.read("custom.metrics.k8s.io", version, path, &query).await;
            // Perhaps it is only this version that is not there.
            if !matches!(&found, Err(error) if error.is_not_found()) {
                break;
            }
        }
        let found = found.map_err(|error| {
            format!("unable to fetch metrics from custom metrics API: {}", chain(&error))
        })?;
        match found.is_empty() {
            true => Err("no metrics returned from custom metrics API".to_owned()),
            false => Ok(found),
        }
    }

    /// What the pods that `selector` matches say of a metric.
    pub(super) async fn of_pods(
        &self,
        metric: &MetricIdentifier,
        selector: &str,
    ) -> Result<Usages, String> {
        let path = ["pods", "*", &metric.name];
        let found = self.custom(&path, metric, Some(selector)).await?;
        let usage = |it: &Custom| Usage {
            value: it.value.milli_value(),
            at: it.timestamp,
            window: it.window_seconds.map_or(WINDOW, Duration::from_secs),
        };
        Ok(found.into_iter().map(|it| (it.described_object.name.clone(), usage(&it))).collect())
    }

    /// What is said of one object, in thousandths.
    pub(super) async fn of_object(
        &self,
        object: &CrossVersionObjectReference,
        metric: &MetricIdentifier,
    ) -> Result<i64, String> {
        let version = object.api_version.as_deref().unwrap_or_default();
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let found = match (group, &*object.kind) {
            ("", "Namespace") => self.custom(&["metrics", &metric.name], metric, None).await?,
            (group, kind) => {
                let resource = self.everything.of_kind(&self.of.tenant, group, kind).await;
                let resource = resource.map_err(|error| chain(&error).to_string())?;
                let resource = resource.ok_or_else(|| {
                    format!("no matches for kind \"{kind}\" in version \"{version}\"")
                })?;
                let named = resource.to_string();
                self.custom(&[&named, &object.name, &metric.name], metric, None).await?
            }
        };
        Ok(found.first().map_or(0, |it| it.value.milli_value()))
    }

    /// The sum of all values of something outside, in thousandths.
    pub(super) async fn outside(&self, metric: &MetricIdentifier) -> Result<i64, String> {
        let labels = metric.selector.as_ref().map(written).unwrap_or_default();
        let query = [("labelSelector", &*labels)];
        let query = if labels.is_empty() { &[][..] } else { &query };
        let group = "external.metrics.k8s.io";
        let found = self.read::<External>(group, "v1beta1", &[&metric.name], query).await;
        let found = found.map_err(|error| {
            format!("unable to fetch metrics from external metrics API: {}", chain(&error))
        })?;
        if found.is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        Ok(found.iter().fold(0i64, |sum, it| sum.saturating_add(it.value.milli_value())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_as_queries_have_them() {
        let selector = serde_json::from_value(json!({
            "matchLabels": {"a": "b"}, "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["d", "e"]},
                {"key": "f", "operator": "NotIn", "values": ["g"]},
                {"key": "h", "operator": "Exists"}, {"key": "i", "operator": "DoesNotExist"},
            ],
        }));
        assert_eq!(written(&selector.unwrap()), "a=b,c in (d,e),f notin (g),h,!i");
    }

    #[test]
    fn windows() {
        let seconds = |text| duration(text).map(|it| it.as_secs_f64());
        assert_eq!(seconds("30s"), Some(30.0));
        assert_eq!(seconds("1m12.5s"), Some(72.5));
        assert_eq!(seconds("2h0m0s"), Some(7200.0));
        assert_eq!(seconds("soon"), None);
    }
}
