//! The numbers a rollout has to keep to.

use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::util::intstr::IntOrString};

use crate::objects::share_of;

/// How many pods a deployment wants, and how far a rollout may stray from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) desired: i32,
    /// More than `desired` by at most this many.
    pub(super) max_surge: i32,
    /// Fewer available than `desired` by at most this many.
    pub(super) max_unavailable: i32,
    pub(super) recreates: bool,
}

impl Limits {
    pub(super) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let desired = spec.and_then(|spec| spec.replicas).unwrap_or(1).max(0);
        let strategy = spec.and_then(|spec| spec.strategy.as_ref());
        if strategy.and_then(|it| it.type_.as_deref()) == Some("Recreate") {
            return Self { desired, max_surge: 0, max_unavailable: 0, recreates: true };
        }
        let rolling = strategy.and_then(|it| it.rolling_update.as_ref());
        let max_surge = resolve(rolling.and_then(|it| it.max_surge.as_ref()), desired, true);
        let mut max_unavailable =
            resolve(rolling.and_then(|it| it.max_unavailable.as_ref()), desired, false);
        // With neither, nothing could ever move.
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        let max_unavailable = max_unavailable.min(desired);
        Self { desired, max_surge, max_unavailable, recreates: false }
    }

    /// The most pods there may be.
    pub(super) fn most(&self) -> i32 {
        self.desired.saturating_add(self.max_surge)
    }

    /// The fewest pods that must be available.
    pub(super) fn fewest_available(&self) -> i32 {
        self.desired - self.max_unavailable
    }
}

/// Absent means a quarter.
fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        Some(value) => share_of(value, total, round_up),
        None => share_of(&IntOrString::String("25%".to_owned()), total, round_up),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};

    use super::*;

    fn value(text: &str) -> IntOrString {
        match text.parse() {
            Ok(number) => IntOrString::Int(number),
            Err(_) => IntOrString::String(text.to_owned()),
        }
    }

    #[track_caller]
    fn check(desired: i32, surge: &str, unavailable: &str, expected: (i32, i32)) {
        let strategy = DeploymentStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(value(surge)),
                max_unavailable: Some(value(unavailable)),
            }),
        };
        let spec = DeploymentSpec {
            replicas: Some(desired),
            strategy: Some(strategy),
            ..DeploymentSpec::default()
        };
        let limits = Limits::of(&Deployment { spec: Some(spec), ..Deployment::default() });
        assert_eq!((limits.max_surge, limits.max_unavailable), expected);
    }

    #[test]
    fn shares_round_towards_more_pods() {
        check(10, "25%", "25%", (3, 2));
        check(1, "25%", "25%", (1, 0));
        check(10, "0", "0", (0, 1));
        check(0, "0%", "0%", (0, 0));
        check(3, "5", "5", (5, 3));
        check(10, "100%", "100%", (10, 10));
        check(10, "junk", "1", (0, 1));
    }
}
