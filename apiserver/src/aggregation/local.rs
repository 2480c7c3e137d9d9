//! The objects of group versions that are served here: made when they are read.
//!
//! Every tenant has the same built-in ones, so none of them is kept: an `APIService` of a built-in
//! group version is made from a table (`api/tables/priorities.tsv`) and its tenant's name. Those of
//! a tenant's own definitions are kept, see [`super::register`].

use std::{collections::BTreeMap, sync::LazyLock};

use bytes::Bytes;
use insula_api::{
    names::TenantName,
    object,
    resources::{self, Scope},
};
use insula_partition::{snapshot::Entry, store::Revision, value};
use serde_json::{Value, json};

use super::{AUTOMANAGED, GROUP};

const TABLE: &str = include_str!("../../../api/tables/priorities.tsv");

/// Of group versions that definitions make.
pub(super) const CUSTOM: Priority = Priority { group: 1000, version: 100 };
/// Of this API itself, which has no object: it is before all others.
const OWN: Priority = Priority { group: 20001, version: 15 };
/// The revision of what was always there.
pub(super) const ALWAYS: Revision = Revision(1);

/// The place of a group version among others: higher is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Priority {
    pub group: i64,
    pub version: i64,
}

/// A built-in group version that has an object.
#[derive(Debug)]
struct BuiltIn {
    group: &'static str,
    version: &'static str,
    priority: Priority,
    /// Tenants have something in it.
    is_for_tenants: bool,
}

/// By name of the object.
fn all() -> &'static BTreeMap<String, BuiltIn> {
    static ALL: LazyLock<BTreeMap<String, BuiltIn>> = LazyLock::new(|| {
        let rows = TABLE.lines().filter(|row| !row.starts_with('#'));
        rows.filter_map(|row| {
            let mut columns = row.split('\t');
            let (group, version) = (columns.next()?, columns.next()?);
            let priority = Priority {
                group: columns.next()?.parse().ok()?,
                version: columns.next()?.parse().ok()?,
            };
            let mut resources = resources::built_in()
                .iter()
                .filter(|it| it.group == group && it.version == version)
                .peekable();
            resources.peek()?;
            let is_for_tenants = resources.any(|it| it.scope != Scope::Fleet || it.name == "nodes");
            let it = BuiltIn { group, version, priority, is_for_tenants };
            Some((super::name_of(group, version), it))
        })
        .collect()
    });
    &ALL
}

/// The place of a group version that is served here, unless its object says otherwise.
pub(crate) fn priority(group: &str, version: &str) -> Priority {
    if group == GROUP {
        return OWN;
    }
    all().get(&super::name_of(group, version)).map_or(CUSTOM, |it| it.priority)
}

/// Whether a group version is built in.
pub(super) fn is_built_in(group: &str, version: &str) -> bool {
    group == GROUP || all().contains_key(&super::name_of(group, version))
}

/// Whose objects are made.
#[derive(Debug, Clone)]
pub(super) struct Locals {
    pub tenant: TenantName,
    /// Of the cluster.
    pub cluster: String,
}

impl Locals {
    /// All names of which there is an object.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        let is_platform = self.tenant.is_system();
        all()
            .iter()
            .filter(move |(_, it)| is_platform || it.is_for_tenants)
            .map(|(name, _)| name.as_str())
    }

    fn built_in(&self, name: &str) -> Option<&'static BuiltIn> {
        all().get(name).filter(|it| self.tenant.is_system() || it.is_for_tenants)
    }

    /// The object of this name, as it always was, if it is one of these.
    pub(super) fn entry(&self, name: &str, created: &str) -> Option<Entry> {
        let object = self.object(name, created)?;
        let value = Bytes::from(object::encode(&object));
        Some(Entry { value: value::with_revision(&value, ALWAYS).into(), modified: ALWAYS })
    }

    /// The uid of an object that was made.
    pub(super) fn uid(&self, name: &str) -> String {
        crate::views::uid("APIService", &self.cluster, &format!("{}/{name}", self.tenant))
    }

    pub(super) fn object(&self, name: &str, created: &str) -> Option<Value> {
        let it = self.built_in(name)?;
        let metadata = json!({
            "name": name, "tenant": self.tenant.as_str(),
            "uid": self.uid(name),
            "creationTimestamp": created,
            "labels": {AUTOMANAGED: "onstart"},
        });
        Some(local(metadata, it.group, it.version, it.priority, created))
    }
}

/// The object of a group version that is served here.
pub(super) fn local(
    metadata: Value,
    group: &str,
    version: &str,
    priority: Priority,
    since: &str,
) -> Value {
    let mut spec = json!({
        "groupPriorityMinimum": priority.group, "version": version,
        "versionPriority": priority.version,
    });
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "APIService",
        "metadata": metadata, "spec": spec, "status": status(since),
    })
}

/// What is served here is always available.
pub(crate) fn status(since: &str) -> Value {
    json!({"conditions": [{
        "type": "Available", "status": "True", "reason": "Local",
        "message": "Local APIServices are always available", "lastTransitionTime": since,
    }]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_group_version_has_its_place() {
        for resource in resources::built_in() {
            let (group, version) = (&*resource.group, &*resource.version);
            // What gives way to a tenant's own has no object.
            let gives_way = group == crate::measured::GROUP;
            assert!(gives_way || is_built_in(group, version), "{group}/{version}");
        }
        assert!(priority("autoscaling", "v1") < priority("autoscaling", "v2"));
        assert!(priority("", "v1") < priority(GROUP, "v1"));
        assert_eq!(priority("stable.example.com", "v1"), CUSTOM);
        assert!(!is_built_in("apps", "v2"));
    }

    #[test]
    fn tenants_have_those_in_which_they_have_something() {
        let of = |tenant: &str| Locals {
            tenant: TenantName::parse(tenant).unwrap(),
            cluster: "c".into(),
        };
        let acme = of("acme");
        let names: Vec<&str> = acme.names().collect();
        assert!(names.contains(&"v1.") && names.contains(&"v1.apps"));
        // Of the platform's kinds they have one of their own.
        assert!(names.contains(&"v1.insula.io") && !names.contains(&"v1.apiregistration.k8s.io"));
        assert!(acme.entry("v1.apiregistration.k8s.io", "").is_none());
        assert!(of("system").names().any(|it| it == "v1.insula.io"));
        let it = acme.object("v1.apps", "2026-01-02T03:04:05Z").unwrap();
        assert_eq!(it["spec"]["groupPriorityMinimum"], 17800);
        assert_eq!(it["status"]["conditions"][0]["reason"], "Local");
        let other = of("globex").object("v1.apps", "2026-01-02T03:04:05Z").unwrap();
        assert_ne!(object::uid(&it), object::uid(&other));
        assert_eq!(acme.entry("v1.apps", "x"), acme.entry("v1.apps", "x"));
    }
}
