//! How many pods there should be, by what they use.
//!
//! A pod of which nothing is known counts against a change: as busy where there would be fewer,
//! as idle where there would be more. So does one that is still starting.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use insula_api::quantity::Quantity;
use insula_client::Tenanted;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity as Written,
};

use super::behavior::{Behavior, rounded};
use crate::objects::pod_phase;

/// For so long a pod's CPU is not believed unless it is ready.
const STARTING: SignedDuration = SignedDuration::from_secs(300);
/// A pod that was not ready for longer than this after its start has never been.
const FIRST_READY: SignedDuration = SignedDuration::from_secs(30);

/// What one pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// In thousandths.
    pub(super) value: i64,
    pub(super) at: Timestamp,
    /// Over which time it was measured.
    pub(super) window: Duration,
}

/// By the names of pods.
pub(super) type Usages = BTreeMap<String, Usage>;

/// What each pod should use.
#[derive(Debug)]
pub(super) enum Target {
    /// So many percent of what it has requested, by pods, in thousandths.
    Utilization { percent: i32, requests: BTreeMap<String, i64> },
    /// So many thousandths.
    Average(i64),
}

/// What was found, and what follows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) replicas: i32,
    /// In thousandths, of each pod.
    pub(super) average: i64,
    /// In percent of what was requested.
    pub(super) utilization: Option<i32>,
}

#[derive(Debug, Default)]
struct Groups {
    n_ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn is_starting(pod: &Pod, usage: &Usage, now: Timestamp) -> bool {
    let Some(status) = &pod.status else { return true };
    let ready = status.conditions.iter().flatten().find(|it| it.type_ == "Ready");
    let (Some(ready), Some(start)) = (ready, &status.start_time) else { return true };
    let is_unready = ready.status == "False";
    let since = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |it| it.0);
    if now < start.0 + STARTING {
        is_unready || usage.at < since + usage.window
    } else {
        is_unready && since < start.0 + FIRST_READY
    }
}

fn group(pods: &[Tenanted<Pod>], usages: &Usages, is_cpu: bool, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let name = pod.name().to_owned();
        if pod.is_deleting() || pod_phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if pod_phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else {
            match usages.get(&name) {
                None => drop(groups.missing.insert(name)),
                Some(usage) if is_cpu && is_starting(pod, usage, now) => {
                    groups.unready.insert(name);
                }
                Some(_) => groups.n_ready += 1,
            }
        }
    }
    groups
}

struct Ratio {
    /// Of what is used to what should be.
    ratio: f64,
    average: i64,
    utilization: Option<i32>,
}

impl Target {
    fn ratio(&self, usages: &Usages) -> Result<Ratio, String> {
        let divided = |sum: i64, by: usize| sum / i64::try_from(by).unwrap_or(i64::MAX).max(1);
        match self {
            Self::Average(target) => {
                let sum = usages.values().fold(0i64, |sum, it| sum.saturating_add(it.value));
                let average = divided(sum, usages.len());
                let ratio = average as f64 / *target as f64;
                Ok(Ratio { ratio, average, utilization: None })
            }
            Self::Utilization { percent, requests } => {
                let (mut used, mut requested, mut n_known) = (0i64, 0i64, 0);
                for (name, usage) in usages {
                    let Some(request) = requests.get(name) else { continue };
                    used = used.saturating_add(usage.value);
                    requested = requested.saturating_add(*request);
                    n_known += 1;
                }
                if requested == 0 {
                    return Err("no metrics returned matched known pods".to_owned());
                }
                let utilization = i32::try_from(i128::from(used) * 100 / i128::from(requested));
                let utilization = utilization.unwrap_or(i32::MAX);
                let ratio = f64::from(utilization) / f64::from(*percent);
                let average = divided(used, n_known);
                Ok(Ratio { ratio, average, utilization: Some(utilization) })
            }
        }
    }

    /// What a pod of which nothing is known is taken to use where there would be fewer.
    fn busy(&self, pod: &str) -> i64 {
        match self {
            Self::Average(target) => *target,
            Self::Utilization { percent, requests } => {
                let request = requests.get(pod).copied().unwrap_or(0);
                request.saturating_mul(i64::from((*percent).max(100))) / 100
            }
        }
    }
}

/// How many of `pods` there should be where there are `current`. `is_cpu`: what is used is CPU,
/// of which pods use much while they start.
pub(super) fn by_usage(
    pods: &[Tenanted<Pod>],
    mut usages: Usages,
    target: &Target,
    is_cpu: bool,
    (current, behavior): (i32, &Behavior),
    now: Timestamp,
) -> Result<Outcome, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(pods, &usages, is_cpu, now);
    usages.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
    if usages.is_empty() {
        let why = "did not receive metrics for targeted pods (pods might be unready)";
        return Err(why.to_owned());
    }
    let Ratio { ratio, average, utilization } = target.ratio(&usages)?;
    let outcome = |replicas| Outcome { replicas, average, utilization };
    let counts_unready = !groups.unready.is_empty() && 1.0 < ratio;
    if !counts_unready && groups.missing.is_empty() {
        return Ok(outcome(match behavior.tolerates(ratio) {
            true => current,
            false => rounded((ratio * groups.n_ready as f64).ceil()),
        }));
    }
    let mut assume = |pod: &String, value| {
        let usage = Usage { value, at: now, window: Duration::ZERO };
        usages.insert(pod.clone(), usage);
    };
    if ratio < 1.0 {
        groups.missing.iter().for_each(|pod| assume(pod, target.busy(pod)));
    } else if 1.0 < ratio {
        groups.missing.iter().for_each(|pod| assume(pod, 0));
    }
    if counts_unready {
        groups.unready.iter().for_each(|pod| assume(pod, 0));
    }
    let assumed = target.ratio(&usages)?.ratio;
    let turns = ratio < 1.0 && 1.0 < assumed || 1.0 < ratio && assumed < 1.0;
    if behavior.tolerates(assumed) || turns {
        return Ok(outcome(current));
    }
    let replicas = rounded((assumed * usages.len() as f64).ceil());
    let turns = assumed < 1.0 && current < replicas || 1.0 < assumed && replicas < current;
    Ok(outcome(if turns { current } else { replicas }))
}

/// How many pods there should be where one value is about all of them, and should be `target`.
pub(super) fn by_value(
    pods: &[Tenanted<Pod>],
    value: i64,
    target: i64,
    (current, behavior): (i32, &Behavior),
) -> Result<i32, String> {
    let ratio = value as f64 / target as f64;
    if current == 0 {
        return Ok(rounded(ratio.ceil()));
    }
    if behavior.tolerates(ratio) {
        return Ok(current);
    }
    if pods.is_empty() {
        return Err("unable to calculate ready pods: no pods returned by selector while \
                    calculating replica count"
            .to_owned());
    }
    let is_ready =
        |pod: &&Tenanted<Pod>| pod_phase(pod) == "Running" && crate::objects::is_pod_ready(pod);
    let n_ready = pods.iter().filter(is_ready).count();
    Ok(rounded((ratio * n_ready as f64).ceil()))
}

/// The same where each of `n_pods` should have `target` of the value. Also how much each has.
pub(super) fn by_share(value: i64, target: i64, n_pods: i32, behavior: &Behavior) -> (i32, i64) {
    let ratio = value as f64 / (target as f64 * f64::from(n_pods));
    let replicas = match behavior.tolerates(ratio) {
        true => n_pods,
        false => rounded((value as f64 / target as f64).ceil()),
    };
    let share = (value as f64 / f64::from(n_pods.max(1))).ceil();
    (replicas, share as i64)
}

/// What pods have requested of a resource, all of each or one container of it, in thousandths.
pub(super) fn requests(
    pods: &[Tenanted<Pod>],
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, i64>, String> {
    let milli = |amounts: Option<&BTreeMap<String, Written>>| {
        let amount = Quantity::parse(&amounts?.get(resource)?.0).ok()?;
        Some(amount.milli_value())
    };
    let of_container =
        |it: &Container| milli(it.resources.as_ref().and_then(|it| it.requests.as_ref()));
    let mut all = BTreeMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let whole = milli(spec.resources.as_ref().and_then(|it| it.requests.as_ref()));
        if let (Some(whole), None) = (whole, container) {
            all.insert(pod.name().to_owned(), whole);
            continue;
        }
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|it| it.restart_policy.as_deref() == Some("Always"));
        let mut sum = 0i64;
        for it in spec.containers.iter().chain(sidecars) {
            if container.is_some_and(|name| name != it.name) {
                continue;
            }
            let Some(request) = of_container(it) else {
                let (name, pod) = (&it.name, pod.name());
                return Err(format!(
                    "missing request for {resource} in container {name} of Pod {pod}"
                ));
            };
            sum = sum.saturating_add(request);
        }
        all.insert(pod.name().to_owned(), sum);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A pod that began at second 0; `state` is its phase, or `unready`, or `going`.
    fn pod(name: &str, state: &str) -> Tenanted<Pod> {
        let phase = match state {
            "unready" | "going" => "Running",
            phase => phase,
        };
        let ready = if state == "unready" { "False" } else { "True" };
        let deletion = (state == "going").then(|| at(5).to_string());
        let object = json!({
            "metadata": {"name": name, "deletionTimestamp": deletion},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": phase, "startTime": at(0).to_string(), "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": at(10).to_string()},
            ]},
        });
        let tenant = TenantName::parse("acme").unwrap();
        Tenanted { tenant, object: serde_json::from_value(object).unwrap() }
    }

    /// Pods by their states and what they use of one CPU, in thousandths, if that is known; they
    /// should use half of it.
    #[track_caller]
    fn check(pods: &[(&str, Option<i64>)], current: i32, expected: Result<i32, &str>) {
        let all: Vec<_> =
            pods.iter().enumerate().map(|(n, (state, _))| pod(&format!("p{n}"), state)).collect();
        let usages: Usages = pods
            .iter()
            .enumerate()
            .filter_map(|(n, (_, value))| {
                let usage =
                    Usage { value: (*value)?, at: at(990), window: Duration::from_secs(30) };
                Some((format!("p{n}"), usage))
            })
            .collect();
        let spec = json!({"maxReplicas": 9, "scaleTargetRef": {}});
        let behavior = Behavior::of(&serde_json::from_value(spec).unwrap());
        let requests = requests(&all, "cpu", None).unwrap();
        let targets = [Target::Utilization { percent: 50, requests }, Target::Average(500)];
        for target in &targets {
            let found =
                by_usage(&all, usages.clone(), target, true, (current, &behavior), at(1000));
            assert_eq!(found.map(|it| it.replicas), expected.map_err(str::to_owned), "{target:?}");
        }
    }

    #[test]
    fn usage_of_all() {
        check(&[("Running", Some(500)), ("Running", Some(520))], 2, Ok(2));
        check(&[("Running", Some(1000)), ("Running", Some(1000))], 2, Ok(4));
        check(&[("Running", Some(100)), ("Running", Some(100))], 2, Ok(1));
        check(&[("Running", Some(900)), ("going", Some(0)), ("Failed", Some(0))], 1, Ok(2));
        check(&[], 1, Err("no pods returned by selector while calculating replica count"));
        let none = "did not receive metrics for targeted pods (pods might be unready)";
        check(&[("Pending", None)], 1, Err(none));
    }

    #[test]
    fn what_is_not_known_counts_against_a_change() {
        // Idle where there would be more: 3 with 1000 and one with none are 750 each.
        let known = ("Running", Some(1000));
        check(&[known, known, known, ("Running", None)], 4, Ok(6));
        check(&[known, ("Running", None)], 2, Ok(2));
        check(&[known, known, known, ("Pending", None)], 4, Ok(6));
        check(&[known, known, known, ("unready", Some(900))], 4, Ok(6));
        // Those that are not ready count as nothing where there would be fewer.
        let idle = ("Running", Some(100));
        check(&[idle, idle, ("Pending", None)], 3, Ok(1));
    }

    #[test]
    fn one_value_for_all() {
        let spec = json!({"maxReplicas": 9, "scaleTargetRef": {}});
        let behavior = Behavior::of(&serde_json::from_value(spec).unwrap());
        let pods = [pod("a", "Running"), pod("b", "Running"), pod("c", "unready")];
        let by = |value, current| by_value(&pods, value, 100, (current, &behavior)).unwrap();
        assert_eq!((by(100, 3), by(300, 3), by(50, 3), by(250, 0)), (3, 6, 1, 3));
        assert_eq!(by_share(1000, 100, 5, &behavior), (10, 200));
        assert_eq!(by_share(1000, 100, 10, &behavior), (10, 100));
    }

    #[test]
    fn requests_are_needed() {
        let mut it = pod("p", "Running");
        it.object.spec.as_mut().unwrap().containers[0].resources = None;
        let why = "missing request for cpu in container c of Pod p";
        assert_eq!(requests(&[it.clone()], "cpu", None), Err(why.to_owned()));
        assert_eq!(requests(&[it], "cpu", Some("other")).unwrap()["p"], 0);
    }
}
