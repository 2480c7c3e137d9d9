//! The kinds that keep a number of equal pods.

use insula_api::selector::{Selector, SelectorError};
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
    core::v1::{
        PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
        ReplicationControllerStatus,
    },
};
use serde::Serialize;

use crate::{
    claim::Claimant,
    informers::{Informers, Owned, Selectors},
    objects::{compile, equal_to},
};

/// A kind that keeps a number of equal pods. Its status is told in the terms of a ReplicaSet's.
pub(crate) trait Replicated: Claimant + Clone {
    /// As upstream names its controller.
    const CONTROLLER: &'static str;
    type Status: Serialize + Send + Sync;

    fn all(informers: &Informers) -> &Owned<Self>;
    fn selectors(informers: &Informers) -> &Selectors<Self>;
    /// How many pods there are to be.
    fn wanted(&self) -> i32;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn min_ready_seconds(&self) -> i32;
    fn status(&self) -> Option<&Self::Status>;
    fn conditions(&self) -> Vec<ReplicaSetCondition>;
    fn status_from(status: ReplicaSetStatus) -> Self::Status;
}

impl Claimant for ReplicaSet {
    fn selector(&self) -> Option<Result<Selector, SelectorError>> {
        self.spec.as_ref().map(|spec| compile(&spec.selector))
    }
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";
    type Status = ReplicaSetStatus;

    fn all(informers: &Informers) -> &Owned<Self> {
        &informers.replica_sets
    }

    fn selectors(informers: &Informers) -> &Selectors<Self> {
        &informers.selectors.replica_sets
    }

    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn status(&self) -> Option<&ReplicaSetStatus> {
        self.status.as_ref()
    }

    fn conditions(&self) -> Vec<ReplicaSetCondition> {
        self.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default()
    }

    fn status_from(status: ReplicaSetStatus) -> ReplicaSetStatus {
        status
    }
}

impl Claimant for ReplicationController {
    fn selector(&self) -> Option<Result<Selector, SelectorError>> {
        // An empty one selects nothing: it is given the template's labels when it is left out.
        equal_to(self.spec.as_ref()?.selector.as_ref())
    }
}

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";
    type Status = ReplicationControllerStatus;

    fn all(informers: &Informers) -> &Owned<Self> {
        &informers.replication_controllers
    }

    fn selectors(informers: &Informers) -> &Selectors<Self> {
        &informers.selectors.replication_controllers
    }

    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn status(&self) -> Option<&ReplicationControllerStatus> {
        self.status.as_ref()
    }

    fn conditions(&self) -> Vec<ReplicaSetCondition> {
        let known = self.status.as_ref().and_then(|status| status.conditions.as_ref());
        let same = |it: &ReplicationControllerCondition| ReplicaSetCondition {
            type_: it.type_.clone(),
            status: it.status.clone(),
            reason: it.reason.clone(),
            message: it.message.clone(),
            last_transition_time: it.last_transition_time.clone(),
        };
        known.into_iter().flatten().map(same).collect()
    }

    fn status_from(status: ReplicaSetStatus) -> ReplicationControllerStatus {
        let same = |it: ReplicaSetCondition| ReplicationControllerCondition {
            type_: it.type_,
            status: it.status,
            reason: it.reason,
            message: it.message,
            last_transition_time: it.last_transition_time,
        };
        ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|them| them.into_iter().map(same).collect()),
        }
    }
}
