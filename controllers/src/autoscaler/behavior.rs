//! How fast a workload may follow what its metrics ask for, and how long it waits.

use std::{collections::VecDeque, time::Duration};

use insula_api::quantity::Quantity;
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec,
};
use tokio::time::Instant;

/// How far usage may be from its target before anything is done.
const TOLERANCE: f64 = 0.1;
/// For so long it is waited before fewer pods are asked for.
const DOWN_WINDOW: i32 = 300;
const PERIOD: i32 = 15;
/// The longest period and window that the API accepts.
const LONGEST: Duration = Duration::from_secs(3600);
/// More than can be of one hour, at one each 15 s.
const MOST: usize = 512;

/// The rules for one direction, whole.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    policies: Vec<HPAScalingPolicy>,
    select: Select,
    window: Duration,
    pub(super) tolerance: f64,
}

/// Which of several policies counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Select {
    Fastest,
    Slowest,
    Disabled,
}

/// The rules of an autoscaler; what it leaves open is as upstream has it.
#[derive(Debug, Clone)]
pub(super) struct Behavior {
    pub(super) up: Rules,
    pub(super) down: Rules,
}

fn policy(type_: &str, value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: type_.to_owned(), value, period_seconds: PERIOD }
}

fn rules(given: Option<&HPAScalingRules>, policies: &[HPAScalingPolicy], window: i32) -> Rules {
    let named = given.and_then(|it| it.policies.clone()).filter(|it| !it.is_empty());
    let window = given.and_then(|it| it.stabilization_window_seconds).unwrap_or(window);
    let tolerance = given.and_then(|it| it.tolerance.as_ref());
    let tolerance = tolerance.and_then(|it| Quantity::parse(&it.0).ok());
    Rules {
        policies: named.unwrap_or_else(|| policies.to_vec()),
        select: match given.and_then(|it| it.select_policy.as_deref()) {
            Some("Min") => Select::Slowest,
            Some("Disabled") => Select::Disabled,
            _ => Select::Fastest,
        },
        window: seconds(window),
        tolerance: tolerance.map_or(TOLERANCE, |it| it.milli_value() as f64 / 1000.0),
    }
}

fn seconds(number: i32) -> Duration {
    Duration::from_secs(u64::try_from(number).unwrap_or(0)).min(LONGEST)
}

impl Behavior {
    pub(super) fn of(spec: &HorizontalPodAutoscalerSpec) -> Self {
        let given = spec.behavior.as_ref();
        Self {
            up: rules(
                given.and_then(|it| it.scale_up.as_ref()),
                &[policy("Pods", 4), policy("Percent", 100)],
                0,
            ),
            down: rules(
                given.and_then(|it| it.scale_down.as_ref()),
                &[policy("Percent", 100)],
                DOWN_WINDOW,
            ),
        }
    }

    /// Whether usage is near enough to its target.
    pub(super) fn tolerates(&self, ratio: f64) -> bool {
        1.0 - self.down.tolerance <= ratio && ratio <= 1.0 + self.up.tolerance
    }
}

/// What was recommended and done lately for one autoscaler.
#[derive(Debug, Default)]
pub(super) struct History {
    recommended: VecDeque<(Instant, i32)>,
    /// How many pods were added; fewer than none where some were removed.
    changed: VecDeque<(Instant, i32)>,
}

/// What is to be done, and why it is not what was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) replicas: i32,
    /// Of the condition `AbleToScale`.
    pub(super) able: (&'static str, &'static str),
    /// Of the condition `ScalingLimited`, and whether it is true.
    pub(super) limited: (bool, &'static str, &'static str),
}

impl History {
    /// The first recommendation is what there is: who begins does not scale down at once.
    pub(super) fn begin(&mut self, current: i32, now: Instant) {
        if self.recommended.is_empty() {
            self.recommended.push_back((now, current));
        }
    }

    /// The number of pods was changed.
    pub(super) fn scaled(&mut self, from: i32, to: i32, now: Instant) {
        self.changed.push_back((now, to.saturating_sub(from)));
        prune(&mut self.changed, now);
    }

    /// What becomes of a recommendation of `desired` where there are `current`, and may be
    /// `min` to `max`.
    pub(super) fn decide(
        &mut self,
        behavior: &Behavior,
        current: i32,
        desired: i32,
        (min, max): (i32, i32),
        now: Instant,
    ) -> Decision {
        let stable = self.stabilized(behavior, current, desired, now);
        let able = match (stable == desired, current <= desired) {
            (true, _) => ("ReadyForNewScale", "recommended size matches current size"),
            (false, true) => (
                "ScaleUpStabilized",
                "recent recommendations were lower than current one, applying the lowest recent recommendation",
            ),
            (false, false) => (
                "ScaleDownStabilized",
                "recent recommendations were higher than current one, applying the highest recent recommendation",
            ),
        };
        let (replicas, limited) = self.limited(behavior, current, stable, (min, max), now);
        Decision { replicas, able, limited }
    }

    /// The number of pods within what was recommended of late.
    fn stabilized(&mut self, behavior: &Behavior, current: i32, desired: i32, now: Instant) -> i32 {
        let (mut lowest, mut highest) = (desired, desired);
        for (at, count) in &self.recommended {
            let age = now.saturating_duration_since(*at);
            if age < behavior.up.window {
                lowest = lowest.min(*count);
            }
            if age < behavior.down.window {
                highest = highest.max(*count);
            }
        }
        self.recommended.push_back((now, desired));
        prune(&mut self.recommended, now);
        current.max(lowest).min(highest)
    }

    fn limited(
        &self,
        behavior: &Behavior,
        current: i32,
        desired: i32,
        (min, max): (i32, i32),
        now: Instant,
    ) -> (i32, (bool, &'static str, &'static str)) {
        if current < desired {
            let fastest = self.most(&behavior.up, current, now).max(current);
            let (most, reason, message) = match fastest < max {
                true => (
                    fastest,
                    "ScaleUpLimit",
                    "the desired replica count is increasing faster than the maximum scale rate",
                ),
                false => (
                    max,
                    "TooManyReplicas",
                    "the desired replica count is more than the maximum replica count",
                ),
            };
            if most < desired {
                return (most, (true, reason, message));
            }
        } else if desired < current {
            let fastest = self.fewest(&behavior.down, current, now).min(current);
            let (fewest, reason, message) = match min < fastest {
                true => (
                    fastest,
                    "ScaleDownLimit",
                    "the desired replica count is decreasing faster than the maximum scale rate",
                ),
                false => (
                    min,
                    "TooFewReplicas",
                    "the desired replica count is less than the minimum replica count",
                ),
            };
            if desired < fewest {
                return (fewest, (true, reason, message));
            }
        }
        let within = "the desired count is within the acceptable range";
        (desired, (false, "DesiredWithinRange", within))
    }

    /// How many pods there were when a policy's period began.
    fn at_start(&self, policy: &HPAScalingPolicy, current: i32, now: Instant) -> i32 {
        let period = seconds(policy.period_seconds);
        let recent =
            self.changed.iter().filter(|(at, _)| now.saturating_duration_since(*at) < period);
        recent.fold(current, |count, (_, change)| count.saturating_sub(*change))
    }

    fn most(&self, rules: &Rules, current: i32, now: Instant) -> i32 {
        let allowed = rules.policies.iter().map(|policy| {
            let start = self.at_start(policy, current, now);
            match &*policy.type_ {
                "Pods" => start.saturating_add(policy.value),
                // Rounded up, or one pod would never become two.
                _ => rounded((f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil()),
            }
        });
        match rules.select {
            Select::Disabled => current,
            Select::Fastest => allowed.max().unwrap_or(current),
            Select::Slowest => allowed.min().unwrap_or(current),
        }
    }

    fn fewest(&self, rules: &Rules, current: i32, now: Instant) -> i32 {
        let allowed = rules.policies.iter().map(|policy| {
            let start = self.at_start(policy, current, now);
            match &*policy.type_ {
                "Pods" => start.saturating_sub(policy.value),
                _ => rounded((f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)).trunc()),
            }
        });
        match rules.select {
            Select::Disabled => current,
            Select::Fastest => allowed.min().unwrap_or(current),
            Select::Slowest => allowed.max().unwrap_or(current),
        }
    }
}

/// A whole number as the API has it; what is too large is the largest.
pub(super) fn rounded(number: f64) -> i32 {
    // `as` saturates.
    number as i32
}

fn prune(all: &mut VecDeque<(Instant, i32)>, now: Instant) {
    while all
        .front()
        .is_some_and(|(at, _)| MOST < all.len() || LONGEST < now.saturating_duration_since(*at))
    {
        all.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn behavior(value: Value) -> Behavior {
        let spec = json!({"maxReplicas": 9, "scaleTargetRef": {}, "behavior": value});
        Behavior::of(&serde_json::from_value(spec).unwrap())
    }

    /// One recommendation after another, each this many seconds after the one before, from
    /// 1 to 100 pods, all carried out; how many pods there are after each.
    #[track_caller]
    fn check(rules: Value, begin: i32, steps: &[(u64, i32)], expected: &[(i32, &str)]) {
        let (behavior, mut history) = (behavior(rules), History::default());
        let (mut now, mut current) = (Instant::now(), begin);
        history.begin(current, now);
        let mut found = Vec::new();
        for (wait, desired) in steps {
            now += Duration::from_secs(*wait);
            let it = history.decide(&behavior, current, *desired, (1, 100), now);
            if it.replicas != current {
                history.scaled(current, it.replicas, now);
            }
            current = it.replicas;
            let reason = if it.limited.0 { it.limited.1 } else { it.able.0 };
            found.push((current, reason));
        }
        assert_eq!(found, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn by_default() {
        let ready = "ReadyForNewScale";
        check(json!(null), 2, &[(15, 3)], &[(3, ready)]);
        let fast = [(15, 50), (1, 50), (15, 50), (15, 50)];
        let limit = "ScaleUpLimit";
        check(json!(null), 2, &fast, &[(6, limit), (6, limit), (12, limit), (24, limit)]);
        check(json!(null), 90, &[(15, 500)], &[(100, "TooManyReplicas")]);
        let stabilized = "ScaleDownStabilized";
        let down = [(15, 10), (15, 5), (290, 5), (300, 0)];
        check(
            json!(null),
            10,
            &down,
            &[(10, ready), (10, stabilized), (5, ready), (1, "TooFewReplicas")],
        );
    }

    #[tokio::test(start_paused = true)]
    async fn by_rules() {
        let slow = json!({"scaleUp": {"policies": [
            {"type": "Pods", "value": 1, "periodSeconds": 60},
            {"type": "Percent", "value": 100, "periodSeconds": 60},
        ], "selectPolicy": "Min"}});
        let limit = "ScaleUpLimit";
        check(slow, 4, &[(15, 9), (15, 9), (60, 9)], &[(5, limit), (5, limit), (6, limit)]);
        let never = json!({"scaleDown": {
            "selectPolicy": "Disabled", "stabilizationWindowSeconds": 0,
        }});
        check(never, 9, &[(15, 1)], &[(9, "ScaleDownLimit")]);
        let steady = json!({"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [
            {"type": "Percent", "value": 10, "periodSeconds": 60},
        ]}});
        let limit = "ScaleDownLimit";
        check(steady, 50, &[(15, 1), (15, 1), (60, 1)], &[(45, limit), (45, limit), (40, limit)]);
        let waits = json!({"scaleUp": {"stabilizationWindowSeconds": 60}});
        let (ready, stabilized) = ("ReadyForNewScale", "ScaleUpStabilized");
        check(
            waits,
            2,
            &[(15, 3), (15, 3), (61, 3)],
            &[(2, stabilized), (2, stabilized), (3, ready)],
        );
    }

    #[test]
    fn tolerances() {
        let usual = behavior(json!(null));
        assert!(usual.tolerates(1.09) && usual.tolerates(0.91) && !usual.tolerates(1.11));
        let odd =
            behavior(json!({"scaleUp": {"tolerance": "0"}, "scaleDown": {"tolerance": "500m"}}));
        assert!(!odd.tolerates(1.01) && odd.tolerates(0.51) && !odd.tolerates(0.49));
    }
}
