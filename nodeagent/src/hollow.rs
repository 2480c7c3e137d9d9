//! What an agent would tell the API of a machine and of pods that are not there.
//!
//! Load tests run nodes by the thousand without machines. What they write is made by the code that
//! the real agent has, so the API server gets what it gets from agents.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, NodeStatus, Pod, PodSpec, PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

pub use crate::meter::{NodeUsage, Used, usage};
pub use crate::registration::{LEASE_NAMESPACE, LEASE_PERIOD, WRITE_PERIOD as STATUS_PERIOD};
use crate::{
    cri::v1,
    machine::{Machine, Room},
    pod::{
        observed::{Instance, Observed, Sandbox, State},
        patch,
        plan::{Role, containers},
        status::{self, Health, Report, Waiting},
    },
    registration::{self, Thresholds, conditions::Observation, status::Seen},
};

const RUNTIME: &str = "hollow";
const PORT: u16 = 10250;

/// What a node is said to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub disk: u64,
    pub pods: u32,
}

/// The Node object that an agent of a healthy machine registers.
pub fn node(
    name: &str,
    address: Ipv4Addr,
    labels: &[(String, String)],
    capacity: &Capacity,
    now: Timestamp,
) -> Node {
    let labels = registration::labels(name, &machine(name, capacity), labels);
    Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        status: Some(node_status(name, address, capacity, now)),
        ..Node::default()
    }
}

/// The status of that node.
pub fn node_status(
    name: &str,
    address: Ipv4Addr,
    capacity: &Capacity,
    now: Timestamp,
) -> NodeStatus {
    let condition = |kind: &str| v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status: true,
        ..v1::RuntimeCondition::default()
    };
    let runtime = v1::RuntimeStatus {
        conditions: vec![condition("RuntimeReady"), condition("NetworkReady")],
    };
    let (bytes, inodes) = (capacity.disk, 1 << 20);
    let seen = Seen {
        name,
        address: address.into(),
        port: PORT,
        max_pods: capacity.pods,
        eviction_hard: Thresholds::default(),
        machine: &machine(name, capacity),
        runtime_version: Some(format!("{RUNTIME}://{}", env!("CARGO_PKG_VERSION"))),
        images: None,
        observation: Observation {
            runtime: Ok(runtime),
            memory_available: None,
            room: Some(Room { bytes, bytes_free: bytes, inodes, inodes_free: inodes }),
            processes: None,
        },
    };
    registration::status::status(&seen, None, now)
}

/// Whether two statuses of a node say the same, whenever they say it.
pub fn is_same_status(old: &NodeStatus, new: &NodeStatus) -> bool {
    registration::is_same(old, new)
}

fn machine(name: &str, capacity: &Capacity) -> Machine {
    Machine {
        millicpus: i64::from(capacity.cpus) * 1000,
        memory: i64::try_from(capacity.memory).unwrap_or(i64::MAX),
        machine_id: name.to_owned(),
        boot_id: name.to_owned(),
        system_uuid: name.to_owned(),
        kernel: "0".to_owned(),
        os_image: "Hollow".to_owned(),
        architecture: "amd64",
    }
}

/// The lease of a node, renewed at `now`. It goes with the node.
pub fn lease(name: &str, node_uid: &str, now: Timestamp) -> Lease {
    registration::lease(name, node_uid, now)
}

/// What a pod's containers do, all in the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// They are not there yet; why, if something keeps them from it.
    Nothing(Option<(&'static str, String)>),
    Running {
        since: Timestamp,
        is_ready: bool,
    },
    /// They have ended.
    Ended {
        since: Timestamp,
        code: i32,
        at: Timestamp,
    },
    /// They have ended, and are to be started again.
    Failing {
        since: Timestamp,
        code: i32,
        at: Timestamp,
    },
}

/// A pod at some moment.
#[derive(Debug)]
pub struct Moment<'a> {
    pub spec: &'a PodSpec,
    pub generation: Option<i64>,
    pub uid: &'a str,
    pub node_address: Ipv4Addr,
    pub pod_address: Ipv4Addr,
    pub doing: Doing,
    /// How many instances of its containers came before.
    pub attempt: u32,
    pub now: Timestamp,
}

/// The status that an agent writes at that moment, when what it wrote before was `old`.
pub fn pod_status(moment: &Moment<'_>, old: PodStatus) -> PodStatus {
    let pod = Pod {
        metadata: ObjectMeta { generation: moment.generation, ..ObjectMeta::default() },
        status: Some(old),
        ..Pod::default()
    };
    let (is_there, is_ready, is_over) = match &moment.doing {
        Doing::Nothing(_) => (false, false, false),
        Doing::Running { is_ready, .. } => (true, *is_ready, false),
        Doing::Ended { .. } => (true, false, true),
        Doing::Failing { .. } => (true, false, false),
    };
    let sandbox = Sandbox {
        id: moment.uid.to_owned(),
        attempt: 0,
        is_ready: !is_over,
        ips: vec![moment.pod_address.into()],
    };
    let mut observed = Observed::default();
    let mut waiting = BTreeMap::new();
    if is_there {
        observed.sandboxes.push(sandbox);
        for (role, container) in containers(moment.spec) {
            let name = container.name.clone();
            observed.containers.insert(name, vec![instance(moment, role, &container.name)]);
        }
    }
    let why = match &moment.doing {
        Doing::Nothing(Some((reason, message))) => Some((*reason, message.clone())),
        Doing::Failing { .. } => Some(("CrashLoopBackOff", String::new())),
        _ => None,
    };
    if let Some((reason, message)) = why {
        for (_, container) in containers(moment.spec).filter(|(role, _)| *role != Role::Init) {
            let message = message.clone();
            waiting.insert(container.name.clone(), Waiting { reason, message });
        }
    }
    status::status(&Report {
        pod: &pod,
        spec: moment.spec,
        observed: &observed,
        waiting: &waiting,
        health: &|_| Health { started: is_there, ready: is_ready },
        last_words: &|_| None,
        failure: None,
        is_over,
        host_ip: IpAddr::V4(moment.node_address),
        runtime_name: RUNTIME,
        now: moment.now,
    })
}

fn instance(moment: &Moment<'_>, role: Role, name: &str) -> Instance {
    let exited = |started_at: Timestamp, exit_code, finished_at| State::Exited {
        exit_code,
        reason: String::new(),
        message: String::new(),
        started_at: Some(started_at),
        finished_at,
    };
    let state = match (&moment.doing, role) {
        (Doing::Nothing(_), _) => State::Created,
        // Done before the others begin.
        (
            Doing::Running { since, .. }
            | Doing::Ended { since, .. }
            | Doing::Failing { since, .. },
            Role::Init,
        ) => exited(*since, 0, *since),
        (Doing::Running { since, .. }, _) | (Doing::Failing { since, .. }, Role::Sidecar) => {
            State::Running { started_at: *since }
        }
        (Doing::Ended { since, code, at } | Doing::Failing { since, code, at }, _) => {
            exited(*since, if role == Role::Main { *code } else { 0 }, *at)
        }
    };
    let image = "hollow".to_owned();
    let attempt = if role == Role::Main { moment.attempt } else { 0 };
    Instance {
        id: format!("{}-{name}-{attempt}", moment.uid),
        sandbox_id: moment.uid.to_owned(),
        attempt,
        state,
        spec_image: image.clone(),
        image: image.clone(),
        image_ref: image,
        restart_delay: Duration::ZERO,
        message_file: String::new(),
        message_from_log: false,
    }
}

/// What an agent sends to turn the one status of a pod into the other: a strategic merge patch of
/// its `status`. `None` if nothing differs.
pub fn status_patch(
    uid: &str,
    old: &PodStatus,
    new: &PodStatus,
) -> Result<Option<Value>, serde_json::Error> {
    patch::status_patch(uid, old, new)
}
