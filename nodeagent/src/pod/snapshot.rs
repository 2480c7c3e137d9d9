//! What the worker of a pod last saw, for those who serve its logs and streams.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::PodStatus;

use super::observed::Observed;

/// One container, by what its users can reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ContainerView {
    /// The newest instance that was ever started, and whether it runs.
    pub current: Option<(String, u32)>,
    pub is_running: bool,
    /// The instance before it.
    pub previous: Option<(String, u32)>,
}

/// One pod at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub status: PodStatus,
    pub sandbox_id: Option<String>,
    pub pod_ips: Vec<IpAddr>,
    pub containers: BTreeMap<String, ContainerView>,
}

impl Snapshot {
    pub(crate) fn new(status: PodStatus, observed: &Observed) -> Self {
        use super::observed::State;
        let sandbox = observed.sandboxes.first().filter(|it| it.is_ready);
        let view = |instances: &Vec<super::observed::Instance>| {
            let mut started = instances.iter().filter(|it| it.state != State::Created);
            let current = started.next();
            ContainerView {
                is_running: current.is_some_and(|it| it.is_running()),
                current: current.map(|it| (it.id.clone(), it.attempt)),
                previous: started.next().map(|it| (it.id.clone(), it.attempt)),
            }
        };
        Self {
            status,
            sandbox_id: sandbox.map(|it| it.id.clone()),
            pod_ips: sandbox.map(|it| it.ips.clone()).unwrap_or_default(),
            containers: observed
                .containers
                .iter()
                .map(|(name, instances)| (name.clone(), view(instances)))
                .collect(),
        }
    }
}
