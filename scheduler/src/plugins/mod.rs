//! Upstream's plugins.

mod devices;
mod gang;
mod hints;
mod inter_pod;
mod load;
mod nodes;
mod preemption;
mod reserving;
mod resources;
mod spread;
mod volumes;

pub(crate) use self::{
    devices::DynamicResources,
    gang::GangScheduling,
    hints::DeschedulingHints,
    inter_pod::InterPodAffinity,
    load::LoadAware,
    nodes::{
        ImageLocality, NodeAffinity, NodeName, NodeSelection, NodeUnschedulable, RuntimeReady,
        TaintToleration, keeps_away,
    },
    preemption::DefaultPreemption,
    reserving::Reserving,
    resources::{
        BalancedAllocation, NodePorts, NodeResourcesFit, Strategy, Weighed, cpu_and_memory,
    },
    spread::{DefaultSpread, PodTopologySpread},
    volumes::{NodeVolumeLimits, VolumeBinding, VolumeRestrictions, VolumeZone},
};
