//! The conditions of a node. No I/O, no clock.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{NodeCondition, NodeStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::thresholds::{Threshold, Thresholds};
use crate::{cri::v1, machine::Room};

pub(super) const TYPES: [&str; 5] =
    ["MemoryPressure", "DiskPressure", "PIDPressure", "ContainerRuntimeReady", "Ready"];

/// What was seen of the machine and its runtime. What could not be seen is not a pressure.
#[derive(Debug)]
pub(crate) struct Observation {
    /// The error is what to tell.
    pub(crate) runtime: Result<v1::RuntimeStatus, String>,
    pub(crate) memory_available: Option<i64>,
    pub(crate) room: Option<Room>,
    /// How many there are, and how many there can be.
    pub(crate) processes: Option<(u64, u64)>,
}

/// A condition before it has times.
struct Verdict {
    is_true: bool,
    reason: &'static str,
    message: String,
}

pub(super) fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True")
}

/// What upstream's agent calls it, by event, when a condition is true, and when it is not.
const EVENTS: [(&str, &str, &str); 4] = [
    ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
    ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
    ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
    ("Ready", "NodeReady", "NodeNotReady"),
];

/// The reasons of events that tell what is other than before.
pub(super) fn changes(
    now: &NodeStatus,
    before: Option<&NodeStatus>,
) -> impl Iterator<Item = &'static str> {
    let of = |status: Option<&NodeStatus>, type_: &str| {
        let conditions = status.and_then(|it| it.conditions.as_ref());
        conditions.into_iter().flatten().find(|it| it.type_ == type_).map(|it| it.status == "True")
    };
    EVENTS.iter().filter_map(move |(type_, yes, no)| {
        let is = of(Some(now), type_)?;
        (of(before, type_) != Some(is)).then_some(if is { *yes } else { *no })
    })
}

/// All conditions of a machine with so much memory, those that are unchanged with the time since
/// when they are.
pub(super) fn conditions(
    seen: &Observation,
    (limits, memory): (&Thresholds, u64),
    old: &[NodeCondition],
    now: Timestamp,
) -> Vec<NodeCondition> {
    let is_short = |limit: Option<Threshold>, free: u64, all: u64| {
        limit.is_some_and(|limit| free < limit.of(all))
    };
    let memory = seen
        .memory_available
        .is_some_and(|it| is_short(limits.memory, u64::try_from(it).unwrap_or(0), memory));
    let disk = seen.room.is_some_and(|it| {
        is_short(limits.disk, it.bytes_free, it.bytes)
            || is_short(limits.inodes, it.inodes_free, it.inodes)
    });
    let processes = seen
        .processes
        .is_some_and(|(n, all)| is_short(limits.processes, all.saturating_sub(n), all));
    let (runtime, ready) = readiness(&seen.runtime);
    let verdicts = [
        pressure(
            memory,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            processes,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        runtime,
        ready,
    ];
    let with_times = |(type_, verdict): (&&str, Verdict)| {
        let status = if verdict.is_true { "True" } else { "False" };
        let before = old.iter().find(|it| it.type_ == *type_ && it.status == status);
        NodeCondition {
            type_: (*type_).to_owned(),
            status: status.to_owned(),
            reason: Some(verdict.reason.to_owned()),
            message: Some(verdict.message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: before
                .and_then(|it| it.last_transition_time.clone())
                .or(Some(Time(now))),
        }
    };
    TYPES.iter().zip(verdicts).map(with_times).collect()
}

fn pressure(
    is_true: bool,
    yes: (&'static str, &'static str),
    no: (&'static str, &'static str),
) -> Verdict {
    let (reason, message) = if is_true { yes } else { no };
    Verdict { is_true, reason, message: message.to_owned() }
}

/// Whether the runtime is ready, and whether the node is.
fn readiness(runtime: &Result<v1::RuntimeStatus, String>) -> (Verdict, Verdict) {
    let unready = |why: String| Verdict { is_true: false, reason: "KubeletNotReady", message: why };
    let status = match runtime {
        Ok(status) => status,
        Err(why) => {
            let message = format!("container runtime is down: {why}");
            let down = Verdict { is_true: false, reason: "RuntimeDown", message: why.clone() };
            return (down, unready(message));
        }
    };
    let find = |type_: &str| status.conditions.iter().find(|it| it.r#type == type_);
    let problem = |type_: &str| match find(type_) {
        Some(it) if it.status => None,
        Some(it) => Some(format!("{type_}=false reason:{} message:{}", it.reason, it.message)),
        None => Some(format!("{type_} is not known")),
    };
    let runtime = match problem("RuntimeReady") {
        None => Verdict {
            is_true: true,
            reason: "RuntimeReady",
            message: "container runtime is ready".to_owned(),
        },
        Some(message) => Verdict { is_true: false, reason: "RuntimeNotReady", message },
    };
    let ready = match (problem("RuntimeReady"), problem("NetworkReady")) {
        (None, None) => Verdict {
            is_true: true,
            reason: "KubeletReady",
            message: "kubelet is posting ready status".to_owned(),
        },
        (Some(why), _) => unready(format!("container runtime not ready: {why}")),
        (None, Some(why)) => unready(format!("container runtime network not ready: {why}")),
    };
    (runtime, ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(network: bool) -> v1::RuntimeStatus {
        let condition = |type_: &str, status| v1::RuntimeCondition {
            r#type: type_.to_owned(),
            status,
            reason: "R".to_owned(),
            message: "M".to_owned(),
        };
        let conditions = vec![condition("RuntimeReady", true), condition("NetworkReady", network)];
        v1::RuntimeStatus { conditions }
    }

    fn seen(runtime: Result<v1::RuntimeStatus, String>) -> Observation {
        let room = Room { bytes: 100, bytes_free: 50, inodes: 100, inodes_free: 50 };
        Observation {
            runtime,
            memory_available: Some(1 << 30),
            room: Some(room),
            processes: Some((10, 100)),
        }
    }

    fn of(seen: &Observation, old: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
        conditions(seen, (&Thresholds::default(), 8 << 30), old, now)
    }

    fn text(conditions: &[NodeCondition]) -> String {
        let mut text = String::new();
        for it in conditions {
            text += &format!("{}={} ", it.type_, it.status);
        }
        text + conditions.last().unwrap().message.as_deref().unwrap()
    }

    #[test]
    fn a_healthy_node() {
        let found = of(&seen(Ok(runtime(true))), &[], Timestamp::UNIX_EPOCH);
        assert_eq!(
            text(&found),
            "MemoryPressure=False DiskPressure=False PIDPressure=False \
             ContainerRuntimeReady=True Ready=True kubelet is posting ready status"
        );
    }

    #[test]
    fn pressures() {
        let mut seen = seen(Ok(runtime(true)));
        seen.memory_available = Some(1);
        seen.room = Some(Room { bytes: 100, bytes_free: 50, inodes: 100, inodes_free: 4 });
        seen.processes = Some((96, 100));
        let found = of(&seen, &[], Timestamp::UNIX_EPOCH);
        assert!(
            text(&found).starts_with("MemoryPressure=True DiskPressure=True PIDPressure=True ")
        );
        let lax = "memory.available<1,nodefs.inodesFree<4%".parse().unwrap();
        let found = conditions(&seen, (&lax, 8 << 30), &[], Timestamp::UNIX_EPOCH);
        assert!(
            text(&found).starts_with("MemoryPressure=False DiskPressure=False PIDPressure=False ")
        );
    }

    #[test]
    fn a_node_that_is_not_ready_says_why() {
        let message = |runtime| {
            let found = of(&seen(runtime), &[], Timestamp::UNIX_EPOCH);
            assert_eq!(found[4].status, "False");
            found[4].message.clone().unwrap()
        };
        assert_eq!(message(Err("gone".to_owned())), "container runtime is down: gone");
        assert_eq!(
            message(Ok(runtime(false))),
            "container runtime network not ready: NetworkReady=false reason:R message:M"
        );
    }

    #[test]
    fn a_condition_keeps_its_time_while_it_holds() {
        let then = Timestamp::UNIX_EPOCH;
        let now = Timestamp::from_second(100).unwrap();
        let before = of(&seen(Ok(runtime(true))), &[], then);
        let after = of(&seen(Err("gone".to_owned())), &before, now);
        assert_eq!(after[0].last_transition_time, Some(Time(then)));
        assert_eq!(after[0].last_heartbeat_time, Some(Time(now)));
        assert_eq!(after[4].last_transition_time, Some(Time(now)));
    }

    #[test]
    fn what_is_other_than_before_is_told() {
        let status = |seen: Observation, before: &[NodeCondition]| NodeStatus {
            conditions: Some(of(&seen, before, Timestamp::UNIX_EPOCH)),
            ..NodeStatus::default()
        };
        let told = |now: &NodeStatus, before: Option<&NodeStatus>| {
            changes(now, before).collect::<Vec<_>>().join(" ")
        };
        let first = status(seen(Err("gone".to_owned())), &[]);
        let all = "NodeHasSufficientMemory NodeHasNoDiskPressure NodeHasSufficientPID NodeNotReady";
        assert_eq!(told(&first, None), all);
        let known = first.conditions.clone().unwrap();
        let ready = status(seen(Ok(runtime(true))), &known);
        assert_eq!(told(&ready, Some(&first)), "NodeReady");
        let mut full = seen(Ok(runtime(true)));
        full.room = Some(Room { bytes: 100, bytes_free: 5, inodes: 100, inodes_free: 50 });
        let full = status(full, &known);
        assert_eq!(told(&full, Some(&ready)), "NodeHasDiskPressure");
        assert_eq!(told(&full, Some(&full)), "");
    }
}
