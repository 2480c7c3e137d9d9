//! Requests and limits as control groups want them.

use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

use super::quantity;
use crate::cri::v1;

/// Length of the period in which a CPU limit is enforced, in microseconds.
const CPU_PERIOD: i64 = 100_000;
/// Below this the kernel refuses a quota.
const MIN_QUOTA: i64 = 1_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;

/// How a pod's containers fare when resources run short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

fn amount<'a>(container: &'a Container, limits: bool, resource: &str) -> Option<&'a Quantity> {
    let resources = container.resources.as_ref()?;
    let list = if limits { &resources.limits } else { &resources.requests };
    list.as_ref()?.get(resource).filter(|it| quantity::millis(it).is_some_and(|it| it > 0))
}

/// The class that follows from requests and limits of all containers.
pub(crate) fn qos_class(spec: &PodSpec) -> QosClass {
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let resources = ["cpu", "memory"];
    let has_any = containers().any(|container| {
        resources.iter().any(|it| {
            amount(container, true, it).is_some() || amount(container, false, it).is_some()
        })
    });
    let is_fixed = |container: &Container| {
        resources.iter().all(|it| {
            match (amount(container, true, it), amount(container, false, it)) {
                (Some(limit), Some(request)) => {
                    quantity::millis(limit) == quantity::millis(request)
                }
                (Some(_), None) => true,
                (None, _) => false,
            }
        })
    };
    if !has_any {
        QosClass::BestEffort
    } else if containers().all(is_fixed) {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

/// The parent control group of a pod's containers.
///
/// With the systemd driver it is the name of a slice, in which `-` separates levels.
pub(crate) fn cgroup_parent(root: &str, class: QosClass, uid: &str, systemd: bool) -> String {
    let tier = match class {
        QosClass::Guaranteed => None,
        QosClass::Burstable => Some("burstable"),
        QosClass::BestEffort => Some("besteffort"),
    };
    if systemd {
        let root = root.trim_matches('/').replace(['/', '-'], "_");
        let tier = tier.map(|it| format!("-{it}")).unwrap_or_default();
        format!("{root}{tier}-pod{}.slice", uid.replace('-', "_"))
    } else {
        let root = root.trim_end_matches('/');
        let tier = tier.map(|it| format!("/{it}")).unwrap_or_default();
        format!("{root}{tier}/pod{uid}")
    }
}

/// The runtime's form of a container's requests and limits.
pub(crate) fn linux_resources(
    container: &Container,
    class: QosClass,
    machine_memory: i64,
) -> v1::LinuxContainerResources {
    let millicpus = |limits| quantity::millis(amount(container, limits, "cpu")?);
    let memory = |limits| quantity::whole(amount(container, limits, "memory")?);
    // A limit without a request is its own request.
    let request = millicpus(false).or_else(|| millicpus(true)).unwrap_or(0);
    let (cpu_quota, cpu_period) = match millicpus(true) {
        Some(limit) => ((limit.saturating_mul(CPU_PERIOD) / 1000).max(MIN_QUOTA), CPU_PERIOD),
        None => (0, 0),
    };
    v1::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares: (request.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES),
        memory_limit_in_bytes: memory(true).unwrap_or(0),
        oom_score_adj: oom_score_adj(class, memory(false).or_else(|| memory(true)), machine_memory),
        ..Default::default()
    }
}

/// The more of what it asked for a container uses, the likelier it is killed when memory is out.
fn oom_score_adj(class: QosClass, memory_request: Option<i64>, machine_memory: i64) -> i64 {
    match class {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let share = memory_request.unwrap_or(0).saturating_mul(1000) / machine_memory.max(1);
            (1000 - share).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn container(resources: Value) -> Container {
        serde_json::from_value(json!({"name": "c", "resources": resources})).unwrap()
    }

    #[track_caller]
    fn check_class(resources: &[Value], expected: QosClass) {
        let containers = resources.iter().cloned().map(container).collect();
        let spec = PodSpec { containers, ..PodSpec::default() };
        assert_eq!(qos_class(&spec), expected, "{resources:?}");
    }

    #[test]
    fn classes() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let equal = json!({"limits": {"cpu": "1", "memory": "1Gi"},
                           "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        let partial = json!({"requests": {"cpu": "1"}});
        check_class(&[json!({})], QosClass::BestEffort);
        check_class(&[full.clone(), equal], QosClass::Guaranteed);
        check_class(&[full, json!({})], QosClass::Burstable);
        check_class(&[partial], QosClass::Burstable);
    }

    #[test]
    fn control_groups() {
        let limits = json!({"limits": {"cpu": "250m", "memory": "64Mi"}});
        let resources = linux_resources(&container(limits), QosClass::Burstable, 1 << 30);
        assert_eq!((resources.cpu_quota, resources.cpu_period), (25_000, 100_000));
        assert_eq!((resources.cpu_shares, resources.memory_limit_in_bytes), (256, 64 << 20));
        assert_eq!(resources.oom_score_adj, 938);

        let none = linux_resources(&container(json!({})), QosClass::BestEffort, 1 << 30);
        assert_eq!((none.cpu_quota, none.cpu_shares, none.memory_limit_in_bytes), (0, 2, 0));
        assert_eq!(none.oom_score_adj, 1000);
    }

    #[test]
    fn parents() {
        let parent = |class, systemd| cgroup_parent("/kubepods", class, "a-b", systemd);
        assert_eq!(parent(QosClass::Guaranteed, false), "/kubepods/poda-b");
        assert_eq!(parent(QosClass::Burstable, false), "/kubepods/burstable/poda-b");
        assert_eq!(parent(QosClass::BestEffort, true), "kubepods-besteffort-poda_b.slice");
    }
}
