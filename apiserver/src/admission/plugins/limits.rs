//! Limit ranges: what containers get that ask for nothing, and how much there may be.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::{
    object,
    pods::{MACHINE, parts},
    quantity::Quantity,
    quota::amounts::{Amounts, of_container, of_pod, read},
};
use serde_json::{Value, json};

use super::pods::{for_each_container, list};
use crate::{admission::Admission, error::Result};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The limits of all ranges of the namespace; none where what was is being deleted.
async fn ranges(admission: &Admission<'_>) -> Result<Vec<Arc<Value>>> {
    match admission.old {
        Some(old) if object::is_deleting(old) => Ok(Vec::new()),
        _ => admission.all("", "limitranges", &admission.namespace).await,
    }
}

fn limits<'a>(range: &'a Value, kind: &'static str) -> impl Iterator<Item = &'a Value> {
    let limits = range.get("spec").map(|it| list(it, "limits"));
    limits.into_iter().flatten().filter(move |it| it["type"] == kind)
}

/// Fills in what containers leave out.
pub(in crate::admission) fn fill<'a>(
    admission: &'a Admission<'a>,
    pod: &'a mut Value,
) -> BoxFuture<'a, Result<()>> {
    async move {
        for range in ranges(admission).await? {
            let (mut requests, mut most) = (Amounts::new(), Amounts::new());
            for limit in limits(&range, "Container") {
                requests.extend(read(limit.get("defaultRequest")));
                most.extend(read(limit.get("default")));
            }
            fill_pod(pod, &requests, &most);
        }
        Ok(())
    }
    .boxed()
}

fn fill_pod(pod: &mut Value, requests: &Amounts, limits: &Amounts) {
    let mut said = Vec::new();
    for (kind, what) in [
        ("containers", "container"),
        (MACHINE, "virtual machine"),
        ("initContainers", "init container"),
    ] {
        for_each_container(pod, &[kind], |it| {
            let name = it.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            for (field, word, defaults) in
                [("requests", "request", requests), ("limits", "limit", limits)]
            {
                let resources = it.entry("resources").or_insert_with(|| json!({}));
                let missing: Vec<&str> = defaults
                    .keys()
                    .filter(|name| resources.get(field).and_then(|it| it.get(*name)).is_none())
                    .map(String::as_str)
                    .collect();
                for name in &missing {
                    let amount = defaults.get(*name).map(ToString::to_string);
                    resources[field][*name] = amount.into();
                }
                if !missing.is_empty() {
                    said.push(format!("{} {word} for {what} {name}", missing.join(", ")));
                }
            }
        });
    }
    if !said.is_empty() {
        let value = format!("LimitRanger plugin set: {}", said.join("; "));
        let metadata = object::metadata_mut(pod);
        metadata.entry("annotations").or_insert_with(|| json!({}))[ANNOTATION] = value.into();
    }
}

/// Refuses what asks for too little or too much.
pub(in crate::admission) fn check<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let Some(it) = it else { return Ok(()) };
        for range in ranges(admission).await? {
            let mut errors = match admission.resource().name.as_str() {
                "pods" => of_pods(&range, it),
                _ => of_claims(&range, it),
            };
            // Several containers may have the same.
            let mut seen = Vec::new();
            errors.retain(|it| {
                !seen.contains(it) && {
                    seen.push(it.clone());
                    true
                }
            });
            match errors.as_slice() {
                [] => (),
                [one] => return Err(admission.forbidden(Some(it), one)),
                many => {
                    let why = format!("[{}]", many.join(", "));
                    return Err(admission.forbidden(Some(it), &why));
                }
            }
        }
        Ok(())
    }
    .boxed()
}

fn of_claims(range: &Value, claim: &Value) -> Vec<String> {
    let requests = read(object::at(claim, &["spec", "resources", "requests"]));
    let mut errors = Vec::new();
    let kind = "PersistentVolumeClaim";
    for limit in limits(range, kind) {
        let asked = Asked { kind, requests: &requests, limits: &Amounts::new() };
        errors
            .extend(read(limit.get("min")).iter().filter_map(|(name, it)| asked.least(name, *it)));
        let most = read(limit.get("max"));
        errors.extend(most.iter().filter_map(|(name, it)| asked.most_requested(name, *it)));
    }
    errors
}

fn of_pods(range: &Value, pod: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let spec = &pod["spec"];
    for limit in limits(range, "Container") {
        for (_, it) in parts(spec) {
            let (requests, limits) = (of_container(it, "requests"), of_container(it, "limits"));
            let asked = Asked { kind: "Container", requests: &requests, limits: &limits };
            asked.check(limit, &mut errors);
        }
    }
    for limit in limits(range, "Pod") {
        let (requests, limits) = (of_pod(pod, "requests"), of_pod(pod, "limits"));
        Asked { kind: "Pod", requests: &requests, limits: &limits }.check(limit, &mut errors);
    }
    errors
}

/// What something asks for.
struct Asked<'a> {
    kind: &'static str,
    requests: &'a Amounts,
    limits: &'a Amounts,
}

impl Asked<'_> {
    fn check(&self, limit: &Value, errors: &mut Vec<String>) {
        errors.extend(read(limit.get("min")).iter().filter_map(|(name, it)| self.least(name, *it)));
        errors.extend(read(limit.get("max")).iter().filter_map(|(name, it)| self.most(name, *it)));
        let ratios = read(limit.get("maxLimitRequestRatio"));
        errors.extend(ratios.iter().filter_map(|(name, it)| self.ratio(name, *it)));
    }

    fn least(&self, name: &str, least: Quantity) -> Option<String> {
        let what = format!("minimum {name} usage per {} is {least}", self.kind);
        match (self.requests.get(name), self.limits.get(name)) {
            (None, _) => Some(format!("{what}.  No request is specified")),
            (Some(it), _) if *it < least => Some(format!("{what}, but request is {it}")),
            (_, Some(it)) if *it < least => Some(format!("{what}, but limit is {it}")),
            _ => None,
        }
    }

    fn most(&self, name: &str, most: Quantity) -> Option<String> {
        let what = format!("maximum {name} usage per {} is {most}", self.kind);
        match (self.requests.get(name), self.limits.get(name)) {
            (_, None) => Some(format!("{what}.  No limit is specified")),
            (_, Some(it)) if most < *it => Some(format!("{what}, but limit is {it}")),
            (Some(it), _) if most < *it => Some(format!("{what}, but request is {it}")),
            _ => None,
        }
    }

    fn most_requested(&self, name: &str, most: Quantity) -> Option<String> {
        let what = format!("maximum {name} usage per {} is {most}", self.kind);
        match self.requests.get(name) {
            None => Some(format!("{what}.  No request is specified")),
            Some(it) if most < *it => Some(format!("{what}, but request is {it}")),
            Some(_) => None,
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "a ratio is for people")]
    fn ratio(&self, name: &str, most: Quantity) -> Option<String> {
        let what = format!("{name} max limit to request ratio per {} is {most}", self.kind);
        let amount = |of: &Amounts| of.get(name).filter(|it| !it.is_zero()).copied();
        let (Some(request), Some(limit)) = (amount(self.requests), amount(self.limits)) else {
            let which = if amount(self.requests).is_none() { "request" } else { "limit" };
            return Some(format!("{what}, but no {which} is specified or {which} is 0"));
        };
        let ratio = limit.milli_value() as f64 / request.milli_value() as f64;
        let is_more = (most.milli_value() as f64) < ratio * 1000.0;
        is_more.then(|| format!("{what}, but provided ratio is {ratio:.6}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(limit: Value) -> Value {
        json!({"spec": {"limits": [limit]}})
    }

    fn pod(resources: Value) -> Value {
        json!({"metadata": {"name": "p"},
               "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        let mut it = pod(json!({"limits": {"cpu": "2"}}));
        let amounts = |text: &str| read(Some(&json!({"cpu": text, "memory": "1Gi"})));
        fill_pod(&mut it, &amounts("100m"), &amounts("1"));
        let expected = json!({"limits": {"cpu": "2", "memory": "1Gi"},
                              "requests": {"cpu": "100m", "memory": "1Gi"}});
        assert_eq!(it["spec"]["containers"][0]["resources"], expected);
        assert_eq!(
            it["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu, memory request for container c; memory limit for container c"
        );
    }

    #[test]
    fn limits_are_upstreams() {
        let cpu = |text: &str| json!({"cpu": text});
        for (limit, resources, expected) in [
            (
                json!({"min": cpu("1")}),
                json!({}),
                "minimum cpu usage per Container is 1.  No request is specified",
            ),
            (
                json!({"min": cpu("1")}),
                json!({"requests": cpu("500m")}),
                "minimum cpu usage per Container is 1, but request is 500m",
            ),
            (
                json!({"max": cpu("1")}),
                json!({"requests": cpu("1")}),
                "maximum cpu usage per Container is 1.  No limit is specified",
            ),
            (
                json!({"max": cpu("1")}),
                json!({"limits": cpu("2")}),
                "maximum cpu usage per Container is 1, but limit is 2",
            ),
            (
                json!({"maxLimitRequestRatio": cpu("2")}),
                json!({"requests": cpu("1"), "limits": cpu("3")}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
        ] {
            let mut limit = limit;
            limit["type"] = "Container".into();
            assert_eq!(of_pods(&range(limit), &pod(resources)), [expected]);
        }
        let fine = pod(json!({"requests": cpu("1"), "limits": cpu("2")}));
        let limit = json!({"type": "Pod", "min": cpu("1"), "max": cpu("2"), "maxLimitRequestRatio": cpu("2")});
        assert!(of_pods(&range(limit), &fine).is_empty());
        let claim = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
        let limit = json!({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}});
        assert_eq!(
            of_claims(&range(limit), &claim),
            ["maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"]
        );
    }
}
