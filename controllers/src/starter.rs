//! All controllers, by upstream's names for them, and which of them run.

use std::{str::FromStr, sync::Arc};

use insula_client::{Client, EventRecorder};
use insula_membership::Ownership;
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::ReplicationController};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config, Error,
    attachments::Attachments,
    autoscaler::Autoscalers,
    bootstrap_tokens::{BootstrapSigner, TokenCleaner},
    certificate_approval::Approvals,
    certificates::Certificates,
    controller::{self, Controller},
    cronjob::CronJobs,
    daemonset::DaemonSets,
    deployment::Deployments,
    device_taints::DeviceTaints,
    disruption::{Disruption, StaleDisruptions},
    ephemeral_volume::EphemeralVolumes,
    everything::Everything,
    gc::GarbageCollector,
    informers::Informers,
    job::{Jobs, Strays},
    named,
    namespace::Namespaces,
    node_ipam::NodeAddresses,
    node_lifecycle::{NodeLifecycle, PodsOfNodes},
    pod_gc::PodCollector,
    protection::Protection,
    quota::Quotas,
    replicaset::ReplicaSets,
    resource_claims::{ClaimsOfPods, UnusedClaims},
    root_ca::RootCaPublisher,
    service_network::ServiceNetworks,
    serviceaccount::DefaultAccounts,
    services::{EndpointsOfServices, MirroredSlices, Slices},
    statefulset::StatefulSets,
    taint_eviction::TaintEviction,
    tenant::Tenants,
    token_secrets::TokenSecrets,
    ttl::TtlAfterFinished,
    volume_binder::VolumeBinder,
    volume_expander::VolumeExpander,
};

type Start = fn(&Starter<'_>) -> Result<(), Error>;

/// What there is, by name. Where upstream has one controller for what two do here, or the other way
/// round, they go together.
const CONTROLLERS: &[(&str, Start)] = &[
    ("bootstrap-signer-controller", |it| {
        it.start(|client| BootstrapSigner::new(client, it.copies()))
    }),
    ("certificatesigningrequest-approving-controller", |it| {
        let requests = &it.informers.certificate_requests;
        let node_asked_for = it.config.node_asked_for;
        it.start(|client| Approvals::new(client, requests.clone(), node_asked_for))
    }),
    ("certificatesigningrequest-signing-controller", |it| {
        let requests = &it.informers.certificate_requests;
        let signer = it.config.signer.clone();
        it.start(|client| Certificates::new(client, requests.clone(), signer))
    }),
    ("cronjob-controller", |it| it.start(|client| CronJobs::new(client, it.copies(), it.events))),
    ("daemonset-controller", |it| {
        it.start(|client| DaemonSets::new(client, it.copies(), it.events))
    }),
    ("deployment-controller", |it| {
        it.start(|client| Deployments::new(client, it.copies(), it.events))
    }),
    ("device-taint-eviction-controller", |it| {
        it.start(|client| DeviceTaints::new(client, it.copies(), it.events))
    }),
    ("disruption-controller", |it| {
        it.start(|client| StaleDisruptions::new(client, it.copies()))?;
        it.start(|client| Disruption::new(client, it.copies(), it.everything.clone(), it.events))
    }),
    ("endpoints-controller", |it| it.start(|client| EndpointsOfServices::new(client, it.copies()))),
    ("endpointslice-controller", |it| {
        it.start(|client| Slices::new(client, it.copies(), it.events))
    }),
    ("endpointslice-mirroring-controller", |it| {
        it.start(|client| MirroredSlices::new(client, it.copies(), it.events))
    }),
    ("ephemeral-volume-controller", |it| {
        it.start(|client| EphemeralVolumes::new(client, it.copies(), it.events))
    }),
    ("garbage-collector-controller", |it| {
        it.start(|client| GarbageCollector::new(client, it.everything.clone(), it.events))
    }),
    ("horizontal-pod-autoscaler-controller", |it| {
        let (everything, every) = (it.everything.clone(), it.config.autoscale_every);
        it.start(|client| Autoscalers::new(client, it.copies(), everything, it.events, every))
    }),
    ("job-controller", |it| {
        it.start(|client| Jobs::new(client, it.copies(), it.events))?;
        it.start(|client| Strays::new(client, it.copies()))
    }),
    ("namespace-controller", |it| it.start(|client| Namespaces::new(client, it.copies()))),
    ("node-ipam-controller", |it| {
        let addresses = NodeAddresses::new(
            named(it.client, NodeAddresses::NAME)?,
            it.copies(),
            it.events,
            &it.config.pod_ranges,
            &it.config.kept_ranges,
        )?;
        it.start(|_| addresses)
    }),
    ("node-lifecycle-controller", |it| {
        let grace = it.config.node_grace;
        it.start(|client| NodeLifecycle::new(client, it.copies(), it.events, grace))?;
        it.start(|client| PodsOfNodes::new(client, it.copies(), it.events))
    }),
    ("persistentvolume-attach-detach-controller", |it| {
        it.start(|client| Attachments::new(client, it.copies(), it.events))
    }),
    ("persistentvolume-binder-controller", |it| {
        it.start(|client| VolumeBinder::new(client, it.copies(), it.events))
    }),
    ("persistentvolume-expander-controller", |it| {
        it.start(|client| VolumeExpander::new(client, it.copies(), it.events))
    }),
    ("persistentvolume-protection-controller", |it| {
        it.start(|client| Protection::new(client, it.informers.volumes.clone(), it.copies()))
    }),
    ("persistentvolumeclaim-protection-controller", |it| {
        it.start(|client| Protection::new(client, it.informers.claims.clone(), it.copies()))
    }),
    ("pod-garbage-collector-controller", |it| {
        it.start(|client| PodCollector::new(client, it.copies()))
    }),
    ("replicaset-controller", |it| {
        it.start(|client| ReplicaSets::<ReplicaSet>::new(client, it.copies(), it.events))
    }),
    ("replicationcontroller-controller", |it| {
        it.start(|client| ReplicaSets::<ReplicationController>::new(client, it.copies(), it.events))
    }),
    ("resourceclaim-controller", |it| {
        it.start(|client| ClaimsOfPods::new(client, it.copies(), it.events))?;
        it.start(|client| UnusedClaims::new(client, it.copies()))
    }),
    ("resourcequota-controller", |it| {
        it.start(|client| Quotas::new(client, it.informers, it.everything.clone()))
    }),
    ("root-ca-certificate-publisher-controller", |it| {
        let root_ca = it.config.root_ca.clone();
        it.start(|client| RootCaPublisher::new(client, it.copies(), root_ca))
    }),
    ("service-cidr-controller", |it| {
        it.start(|client| ServiceNetworks::new(client, it.informers, it.everything.clone()))
    }),
    ("serviceaccount-controller", |it| {
        it.start(|client| DefaultAccounts::new(client, it.copies()))
    }),
    ("serviceaccount-token-controller", |it| {
        let root_ca = it.config.root_ca.clone();
        it.start(|client| TokenSecrets::new(client, it.copies(), root_ca))
    }),
    ("statefulset-controller", |it| {
        it.start(|client| StatefulSets::new(client, it.copies(), it.events))
    }),
    ("taint-eviction-controller", |it| {
        it.start(|client| TaintEviction::new(client, it.copies(), it.events))
    }),
    ("tenant-controller", |it| it.start(|client| Tenants::new(client, it.copies(), it.events))),
    ("token-cleaner-controller", |it| it.start(|client| TokenCleaner::new(client, it.copies()))),
    ("ttl-after-finished-controller", |it| {
        it.start(|client| TtlAfterFinished::new(client, it.copies()))
    }),
    ("volumeattributesclass-protection-controller", |it| {
        let classes = &it.informers.volume_classes;
        it.start(|client| Protection::new(client, classes.clone(), it.copies()))
    }),
];

/// The names by which controllers are chosen: upstream's, and `tenant-controller`.
pub fn controllers() -> impl Iterator<Item = &'static str> {
    CONTROLLERS.iter().map(|(name, _)| *name)
}

/// Which controllers run, in part: `*`, `name` or `-name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Those that no other choice is about.
    All,
    With(&'static str),
    Without(&'static str),
}

/// There is no controller of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{:?} is no controller; there are: {}", .0, controllers().collect::<Vec<_>>().join(", "))]
pub struct UnknownController(String);

impl FromStr for Choice {
    type Err = UnknownController;

    fn from_str(text: &str) -> Result<Self, UnknownController> {
        let known = |text: &str| {
            let found = controllers().find(|name| *name == text);
            found.ok_or_else(|| UnknownController(text.to_owned()))
        };
        match (text, text.strip_prefix('-')) {
            ("*", _) => Ok(Self::All),
            (_, Some(name)) => known(name).map(Self::Without),
            (name, None) => known(name).map(Self::With),
        }
    }
}

/// Whether a controller runs. The first choice that is about it counts, as upstream.
fn is_chosen(choices: &[Choice], name: &str) -> bool {
    let named = choices.iter().find_map(|choice| match choice {
        Choice::With(it) if *it == name => Some(true),
        Choice::Without(it) if *it == name => Some(false),
        _ => None,
    });
    named.unwrap_or_else(|| choices.contains(&Choice::All))
}

/// Starts controllers of every type in the same way.
pub(crate) struct Starter<'a> {
    pub(crate) client: &'a Client,
    pub(crate) config: &'a Config,
    pub(crate) informers: &'a Informers,
    pub(crate) everything: &'a Everything,
    pub(crate) events: &'a EventRecorder,
    pub(crate) ownership: Arc<dyn Ownership>,
    pub(crate) running: &'a TaskTracker,
    pub(crate) shutdown: &'a CancellationToken,
}

impl Starter<'_> {
    /// Starts those that are chosen.
    pub(crate) fn start_chosen(&self) -> Result<(), Error> {
        let chosen = |name| is_chosen(&self.config.controllers, name);
        CONTROLLERS.iter().filter(|(name, _)| chosen(name)).try_for_each(|(_, start)| start(self))
    }

    fn copies(&self) -> Informers {
        self.informers.clone()
    }

    /// `make` is given a client that goes by the controller's name.
    fn start<C: Controller>(&self, make: impl FnOnce(Client) -> C) -> Result<(), Error> {
        let client = named(self.client, C::NAME)?;
        self.running.spawn(controller::run(
            Arc::new(make(client)),
            self.ownership.clone(),
            self.config.observer.clone(),
            self.shutdown.clone(),
        ));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_choice_about_a_controller_counts() {
        let is_on = |choices: &str| {
            let choices: Vec<Choice> = choices.split(',').map(|it| it.parse().unwrap()).collect();
            is_chosen(&choices, "job-controller")
        };
        for on in ["*", "job-controller", "*,job-controller", "*,-cronjob-controller"] {
            assert!(is_on(on), "{on}");
        }
        assert!(is_on("job-controller,-job-controller"));
        for off in ["-job-controller", "*,-job-controller", "cronjob-controller"] {
            assert!(!is_on(off), "{off}");
        }
        assert!(!is_on("-cronjob-controller"), "others are not on by themselves");
    }

    #[test]
    fn who_is_unknown_is_told_who_is_known() {
        for wrong in ["", "-", "-*", "job", "-job", "Job-controller", "job-stray-pods"] {
            let error = wrong.parse::<Choice>().unwrap_err().to_string();
            assert!(error.contains("there are: bootstrap-signer-controller, "), "{error}");
            assert!(error.ends_with("volumeattributesclass-protection-controller"), "{error}");
        }
        assert_eq!("-job-controller".parse(), Ok(Choice::Without("job-controller")));
    }

    #[test]
    fn names_are_in_order_and_their_own() {
        let names: Vec<_> = controllers().collect();
        assert!(names.is_sorted_by(|one, next| one < next), "{names:?}");
    }
}
