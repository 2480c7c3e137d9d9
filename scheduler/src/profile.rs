//! One way to schedule: plugins, their order and weights, under a name that pods ask for.

use std::{sync::Arc, time::Duration};

use crate::{
    framework::{Filter, Permit, PostFilter, PreEnqueue, Reserve, Score},
    plugins::{self, BalancedAllocation, DefaultPreemption, cpu_and_memory},
    pod::DEFAULT_SCHEDULER,
};

/// The plugins that decide, their order and weights, under a name.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The `schedulerName` of the pods that are scheduled this way.
    pub(crate) name: Arc<str>,
    pub(crate) gates: Vec<Arc<dyn PreEnqueue>>,
    pub(crate) filters: Vec<Arc<dyn Filter>>,
    /// With their weights.
    pub(crate) scores: Vec<(i64, Arc<dyn Score>)>,
    pub(crate) post_filter: Option<Arc<dyn PostFilter>>,
    pub(crate) reserve: Option<Arc<dyn Reserve>>,
    pub(crate) permits: Vec<Arc<dyn Permit>>,
    /// How long volumes may take to be bound.
    pub(crate) bind_timeout: Duration,
    /// What pods are told of that would be better off elsewhere, if they are told.
    pub(crate) hints: Option<plugins::DeschedulingHints>,
}

/// Upstream's limit for volumes.
pub(crate) const BIND_TIMEOUT: Duration = Duration::from_secs(600);

impl Default for Profile {
    /// Upstream's default profile.
    fn default() -> Self {
        let affinity = Arc::new(plugins::NodeAffinity::default());
        let taints = Arc::new(plugins::TaintToleration);
        let fit = Arc::new(plugins::NodeResourcesFit::default());
        let spread = Arc::new(plugins::PodTopologySpread::default());
        let pods = Arc::new(plugins::InterPodAffinity::default());
        let balanced = Arc::new(BalancedAllocation { weighed: cpu_and_memory() });
        Self {
            name: DEFAULT_SCHEDULER.into(),
            gates: vec![Arc::new(plugins::GangScheduling)],
            filters: vec![
                Arc::new(plugins::NodeUnschedulable),
                Arc::new(plugins::NodeName),
                Arc::new(plugins::RuntimeReady),
                taints.clone(),
                affinity.clone(),
                Arc::new(plugins::NodePorts),
                fit.clone(),
                Arc::new(plugins::VolumeRestrictions),
                Arc::new(plugins::NodeVolumeLimits),
                Arc::new(plugins::VolumeBinding),
                Arc::new(plugins::VolumeZone),
                spread.clone(),
                pods.clone(),
                Arc::new(plugins::DynamicResources),
            ],
            scores: vec![
                (3, taints),
                (2, affinity),
                (1, fit),
                (2, spread),
                (2, pods),
                (2, Arc::new(plugins::DynamicResources)),
                (1, balanced),
                (1, Arc::new(plugins::ImageLocality)),
            ],
            post_filter: Some(Arc::new(DefaultPreemption::default())),
            reserve: Some(Arc::new(plugins::Reserving)),
            permits: vec![Arc::new(plugins::GangScheduling)],
            bind_timeout: BIND_TIMEOUT,
            hints: None,
        }
    }
}

impl Profile {
    /// Whether it matters what nodes really use.
    pub(crate) fn looks_at_load(&self) -> bool {
        self.hints.is_some()
            || self.scores.iter().any(|(_, it)| it.name() == plugins::LoadAware::NAME)
    }

    /// Whether claims of devices are looked at.
    pub(crate) fn gives_devices(&self) -> bool {
        self.filters.iter().any(|it| it.name() == plugins::DynamicResources::NAME)
    }

    /// The filters with their places, in the order in which they are asked.
    pub(crate) fn filters(&self) -> impl Iterator<Item = (u8, &Arc<dyn Filter>)> {
        // There are as many filters as plugins in the registry, at most.
        self.filters.iter().enumerate().map(|(n, it)| (u8::try_from(n).unwrap_or(u8::MAX), it))
    }
}
