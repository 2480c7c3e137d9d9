//! Which fields a write through a path is about.

use std::sync::LazyLock;

use insula_api::structural::apply::Scope;

use crate::registry::Served;

/// What the server decides, whoever writes.
const SERVERS: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "clusterName"],
    &["metadata", "creationTimestamp"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "resourceVersion"],
    &["metadata", "selfLink"],
    &["metadata", "tenant"],
    &["metadata", "uid"],
];

/// Resources whose statuses are written without any of the metadata.
const ALONE: &[&str] = &["flowschemas", "resourceclaims", "servicecidrs"];

/// The fields that writes through a path are about.
pub(super) fn scope(served: &Served, subresource: &str) -> &'static Scope {
    let resource = &served.resource;
    static WHOLE: LazyLock<Scope> = LazyLock::new(|| Scope::new(&[], &[], SERVERS));
    static MAIN: LazyLock<Scope> = LazyLock::new(|| Scope::new(&[], &[&["status"]], SERVERS));
    static STATUS: LazyLock<Scope> =
        LazyLock::new(|| Scope::new(&["metadata", "status"], &[], SERVERS));
    static STATUS_ALONE: LazyLock<Scope> = LazyLock::new(|| Scope::new(&["status"], &[], SERVERS));
    static STATUS_OF_DEPLOYMENTS: LazyLock<Scope> =
        LazyLock::new(|| Scope::new(&["metadata", "status"], &[&["metadata", "labels"]], SERVERS));
    static STATUS_OF_PODS: LazyLock<Scope> = LazyLock::new(|| {
        let never: &[&[&str]] =
            &[&["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]];
        Scope::new(&["metadata", "status"], never, SERVERS)
    });
    // Who asks for a certificate cannot change what was asked for, and others decide.
    static REQUEST: LazyLock<Scope> =
        LazyLock::new(|| Scope::new(&[], &[&["spec"], &["status"]], SERVERS));
    static STATUS_OF_REQUESTS: LazyLock<Scope> = LazyLock::new(|| {
        Scope::new(&["metadata", "status"], &[&["status", "conditions"]], SERVERS)
    });
    static DECISION: LazyLock<Scope> =
        LazyLock::new(|| Scope::new(&["status"], &[&["status", "certificate"]], SERVERS));
    static SPEC: LazyLock<Scope> = LazyLock::new(|| Scope::new(&["spec"], &[], SERVERS));
    let is_request = resource.name == "certificatesigningrequests";
    match subresource {
        "" if is_request => &REQUEST,
        "status" if is_request => &STATUS_OF_REQUESTS,
        "approval" => &DECISION,
        "status" if resource.group == "apps" && resource.name == "deployments" => {
            &STATUS_OF_DEPLOYMENTS
        }
        "status" if resource.name == "pods" => &STATUS_OF_PODS,
        "status" if served.custom().is_some() || ALONE.contains(&&*resource.name) => &STATUS_ALONE,
        "status" => &STATUS,
        "scale" | "ephemeralcontainers" | "resize" => &SPEC,
        _ if resource.subresource("status").is_some() => &MAIN,
        _ => &WHOLE,
    }
}
