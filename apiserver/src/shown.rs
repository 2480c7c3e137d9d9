//! What the platform shows to all tenants: classes, and the definitions that it shares.
//!
//! What lies in tenant `system` of these kinds is seen in every tenant, beside the tenant's own, in
//! lists, watches and by name. It is not the tenant's to change, and its name is taken there. A
//! tenant that had one of that name before keeps it, and sees it in place of the platform's.
//!
//! Every partition has a copy (`copies.rs`), so that what a tenant sees has one revision; `seen.rs`
//! is a partition with both (`docs/decisions/0073-shown-by-the-platform.md`).

pub(crate) mod copies;
pub(crate) mod seen;

use insula_api::object;
use insula_partition::{map::SYSTEM, store::Collection};
use serde_json::Value;

use crate::{
    custom::{self, shared},
    registry::Served,
};

/// Group and resource of each kind, and no subresource.
pub(crate) const KINDS: [(&str, &str, &str); 7] = [
    (custom::GROUP, custom::RESOURCE, ""),
    ("node.k8s.io", "runtimeclasses", ""),
    ("resource.k8s.io", "deviceclasses", ""),
    ("scheduling.k8s.io", "priorityclasses", ""),
    ("storage.k8s.io", "csidrivers", ""),
    ("storage.k8s.io", "storageclasses", ""),
    ("storage.k8s.io", "volumeattributesclasses", ""),
];

/// The collection of a partition that holds the copies, under [`key`].
fn collection() -> Collection {
    Collection::new("insula", "shown")
}

/// The key of an object among the copies: its collection, and its name.
fn key(collection: &str, name: &str) -> String {
    format!("{collection}/{name}")
}

/// Whether the resource is of one of the kinds.
pub(crate) fn is_of_these(served: &Served) -> bool {
    let resource = &served.resource;
    KINDS.iter().any(|(group, name, _)| resource.name == *name && resource.group == *group)
}

/// Whether an object that a tenant sees is the platform's: objects say whose they are.
pub(crate) fn is_platforms(it: &Value) -> bool {
    object::meta_str(it, "tenant") == SYSTEM
}

/// Whether an object of the platform is for all to see.
fn is_for_all(resource: &str, it: &Value) -> bool {
    match resource {
        custom::RESOURCE => shared::is_for_all(it),
        // Upstream keeps the names for what a cluster begins with, and so does every tenant.
        "priorityclasses" => !object::name(it).starts_with("system-"),
        _ => true,
    }
}
