//! The members of the chain. One file is one idea; which requests it is about stands in the chain.

pub(super) mod certificates;
pub(super) mod escalation;
pub(super) mod handles;
pub(super) mod ingress;
pub(super) mod limits;
pub(super) mod namespace;
pub(super) mod node_restriction;
pub(super) mod nodes;
pub(super) mod platform;
pub(super) mod pod_security;
pub(super) mod pods;
pub(super) mod priority;
pub(super) mod quota;
pub(super) mod runtime_class;
pub(super) mod service_account;
pub(super) mod shared;
pub(super) mod storage;
pub(super) mod tenant_quota;
mod tolerations;
