//! Discovery: which groups, versions and resources there are, as the caller's tenant sees them.

use std::{cmp::Reverse, collections::BTreeMap};

use insula_api::resources::{Resource, Scope};
use serde_json::{Value, json};

use crate::{custom::OfTenant, registry::Registry};

/// Groups in the order that clients resolve short names by; unlisted ones follow, by name.
const ORDER: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "resource.k8s.io",
];

/// A group's versions, best first, each with its resources.
type Groups<'a> = Vec<(&'a str, Versions<'a>)>;
type Versions<'a> = Vec<(&'a str, Vec<&'a Resource>)>;

/// What one tenant sees of the registry.
#[derive(Debug)]
pub(crate) struct Discovery<'a> {
    groups: Groups<'a>,
}

/// The media type of the aggregated form.
pub(crate) const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

impl<'a> Discovery<'a> {
    /// `platform` callers see fleet resources; tenants see only nodes of them.
    pub(crate) fn new(registry: &'a Registry, customs: &'a OfTenant, platform: bool) -> Self {
        let mut by_group: BTreeMap<&str, BTreeMap<&str, Vec<&Resource>>> = BTreeMap::new();
        for served in registry.all().iter().chain(customs.all()) {
            let resource = &*served.resource;
            let hidden = resource.scope == Scope::Fleet && resource.name != "nodes";
            if platform || !hidden {
                let versions = by_group.entry(&resource.group).or_default();
                versions.entry(&resource.version).or_default().push(resource);
            }
        }
        let rank = |group: &str| ORDER.iter().position(|it| *it == group).unwrap_or(ORDER.len());
        let ranked = |versions: BTreeMap<&'a str, Vec<&'a Resource>>| {
            let mut versions: Versions<'a> = versions.into_iter().collect();
            versions.sort_by_key(|(version, _)| Reverse(rank_of_version(version)));
            versions
        };
        let mut groups: Groups<'a> =
            by_group.into_iter().map(|(group, versions)| (group, ranked(versions))).collect();
        groups.sort_by_key(|(group, _)| (rank(group), *group));
        Self { groups }
    }

    fn group(&self, name: &str) -> Option<&Versions<'a>> {
        self.groups.iter().find(|(group, _)| *group == name).map(|(_, versions)| versions)
    }

    /// `/`: where one can go from here.
    pub(crate) fn paths(&self) -> Vec<String> {
        const FIXED: &[&str] = &[
            "/.well-known/openid-configuration",
            "/api",
            "/apis",
            "/healthz",
            "/healthz/etcd",
            "/healthz/log",
            "/healthz/ping",
            "/livez",
            "/livez/log",
            "/livez/ping",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/openid/v1/jwks",
            "/readyz",
            "/readyz/etcd",
            "/readyz/log",
            "/readyz/ping",
            "/readyz/shutdown",
            "/version",
        ];
        let mut paths: Vec<String> = FIXED.iter().map(|it| (*it).to_owned()).collect();
        for (group, versions) in &self.groups {
            if !group.is_empty() {
                paths.push(format!("/apis/{group}"));
            }
            let versions = versions.iter().map(|(version, _)| match group.is_empty() {
                true => format!("/api/{version}"),
                false => format!("/apis/{group}/{version}"),
            });
            paths.extend(versions);
        }
        paths.sort();
        paths
    }

    /// `/api`.
    pub(crate) fn core_versions(&self, address: &str) -> Value {
        json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
        })
    }

    /// `/apis`.
    pub(crate) fn group_list(&self) -> Value {
        let named = self.groups.iter().filter(|(group, _)| !group.is_empty());
        let groups: Vec<Value> =
            named.map(|(group, versions)| group_document(group, versions)).collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    }

    /// `/apis/<group>`.
    pub(crate) fn one_group(&self, name: &str) -> Option<Value> {
        let mut document = group_document(name, self.group(name)?);
        document["kind"] = "APIGroup".into();
        document["apiVersion"] = "v1".into();
        Some(document)
    }

    /// `/api/v1` and `/apis/<group>/<version>`.
    pub(crate) fn resource_list(&self, group: &str, version: &str) -> Option<Value> {
        let (_, resources) = self.group(group)?.iter().find(|(known, _)| *known == version)?;
        let mut list = Vec::new();
        for resource in resources {
            let mut entry = json!({
                "name": resource.name, "singularName": resource.singular,
                "namespaced": resource.is_namespaced(), "kind": resource.kind,
                "verbs": resource.verbs,
            });
            if !resource.short_names.is_empty() {
                entry["shortNames"] = json!(resource.short_names);
            }
            if !resource.categories.is_empty() {
                entry["categories"] = json!(resource.categories);
            }
            list.push(entry);
            for sub in &resource.subresources {
                let mut entry = json!({
                    "name": format!("{}/{}", resource.name, sub.name), "singularName": "",
                    "namespaced": resource.is_namespaced(), "kind": sub.kind.kind,
                    "verbs": sub.verbs,
                });
                if (&sub.kind.group, &sub.kind.version) != (&resource.group, &resource.version) {
                    entry["group"] = sub.kind.group.as_str().into();
                    entry["version"] = sub.kind.version.as_str().into();
                }
                list.push(entry);
            }
        }
        let group_version = insula_api::schema::api_version(group, version);
        let mut document = json!({
            "kind": "APIResourceList", "groupVersion": group_version, "resources": list,
        });
        // The oldest of them says it of itself alone.
        if !group.is_empty() {
            document["apiVersion"] = "v1".into();
        }
        Some(document)
    }

    /// `/api` and `/apis` in the aggregated form.
    pub(crate) fn aggregated(&self, core: bool) -> Value {
        let wanted = self.groups.iter().filter(|(group, _)| group.is_empty() == core);
        let items: Vec<Value> = wanted
            .map(|(group, versions)| {
                let versions: Vec<Value> = versions
                    .iter()
                    .map(|(version, resources)| {
                        let resources: Vec<Value> =
                            resources.iter().map(|it| aggregated_resource(it)).collect();
                        json!({"version": version, "freshness": "Current", "resources": resources})
                    })
                    .collect();
                let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
                json!({"metadata": metadata, "versions": versions})
            })
            .collect();
        json!({
            "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {}, "items": items,
        })
    }
}

/// Stable versions before beta before alpha, each with the highest first; others last, by name.
fn rank_of_version(version: &str) -> (u8, u64, u64, Reverse<String>) {
    let other = || (0, 0, 0, Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else { return other() };
    let end = rest.find(|it: char| !it.is_ascii_digit()).unwrap_or(rest.len());
    let (major, rest) = rest.split_at(end);
    let Ok(major) = major.parse::<u64>() else { return other() };
    let stage = |prefix: &str, rank: u8| {
        let minor = rest.strip_prefix(prefix)?;
        let minor = if minor.is_empty() { 0 } else { minor.parse::<u64>().ok()? };
        Some((rank, major, minor, Reverse(String::new())))
    };
    match rest {
        "" => (3, major, 0, Reverse(String::new())),
        _ => stage("beta", 2).or_else(|| stage("alpha", 1)).unwrap_or_else(other),
    }
}

fn group_document(group: &str, versions: &Versions<'_>) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|(it, _)| json!({"groupVersion": format!("{group}/{it}"), "version": it}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|sub| {
            json!({
                "subresource": sub.name,
                "responseKind": kind(&sub.kind.group, &sub.kind.version, &sub.kind.kind),
                "verbs": sub.verbs,
            })
        })
        .collect();
    let mut entry = json!({
        "resource": resource.name,
        "responseKind": kind(&resource.group, &resource.version, &resource.kind),
        "scope": if resource.is_namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_order_of_preference() {
        let mut versions = ["foo1", "v1alpha1", "v2", "v10", "v1beta2", "v1", "v1beta1", "bar"];
        versions.sort_by_key(|it| Reverse(rank_of_version(it)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "bar", "foo1"]);
    }
}
