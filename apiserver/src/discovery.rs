//! Discovery: which groups, versions and resources there are, as the caller's tenant sees them.

use std::{cmp::Reverse, collections::BTreeMap};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use insula_api::{
    discovery::rank_of_version,
    resources::{Resource, Scope},
    versions,
};
use serde_json::{Value, json};

use crate::{
    aggregation::{self, documents::AllDiscovered, local::Priority},
    custom::OfTenant,
    measured,
    registry::Registry,
};

/// A group's versions, best first.
type Groups<'a> = Vec<(&'a str, Vec<Version<'a>>)>;

/// A version of a group: with the resources that are served here, unless somebody else has them.
#[derive(Debug)]
struct Version<'a> {
    name: &'a str,
    resources: Vec<&'a Resource>,
    is_elsewhere: bool,
}

/// What one tenant sees of the registry.
#[derive(Debug)]
pub(crate) struct Discovery<'a> {
    groups: Groups<'a>,
    /// The versions that custom resources are kept in, by group and resource.
    kept: BTreeMap<(&'a str, &'a str), &'a str>,
}

/// The media type of the aggregated form.
pub(crate) const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

impl<'a> Discovery<'a> {
    /// `platform` callers see fleet resources; tenants see only nodes of them.
    pub(crate) fn new(
        registry: &'a Registry,
        customs: &'a OfTenant,
        apis: &'a aggregation::OfTenant,
        platform: bool,
    ) -> Self {
        let mut by_group: BTreeMap<&str, BTreeMap<&str, Version<'a>>> = BTreeMap::new();
        let new = |name| Version { name, resources: Vec::new(), is_elsewhere: false };
        let stand_ins = registry.stand_ins_beside(customs, apis);
        for served in registry.all().iter().chain(stand_ins).chain(customs.all()) {
            let resource = &*served.resource;
            let is_granted = resource.name == "nodes" && resource.group.is_empty();
            let hidden = resource.scope == Scope::Fleet && !is_granted;
            if platform || !hidden {
                let versions = by_group.entry(&resource.group).or_default();
                let version = &*resource.version;
                let version = versions.entry(version).or_insert_with(|| new(version));
                version.resources.push(resource);
            }
        }
        for (api, _) in apis.remotes() {
            let versions = by_group.entry(&api.group).or_default();
            let elsewhere = Version { is_elsewhere: true, ..new(&api.version) };
            versions.insert(&api.version, elsewhere);
        }
        let mut groups: Vec<(i64, &str, Vec<Version<'a>>)> = Vec::with_capacity(by_group.len());
        for (group, versions) in by_group {
            let mut versions: Vec<(Priority, Version<'a>)> = versions
                .into_values()
                .map(|version| (apis.priority(group, version.name), version))
                .collect();
            let highest = versions.iter().map(|(it, _)| it.group).max().unwrap_or_default();
            versions
                .sort_by_key(|(it, version)| Reverse((it.version, rank_of_version(version.name))));
            let versions = versions.into_iter().map(|(_, version)| version).collect();
            groups.push((highest, group, versions));
        }
        groups.sort_by_key(|(highest, group, _)| (Reverse(*highest), *group));
        let kept = customs.all().filter_map(|it| {
            let version = &it.custom()?.definition.storage().resource.version;
            Some(((&*it.resource.group, &*it.resource.name), version.as_str()))
        });
        let groups = groups.into_iter().map(|(_, group, it)| (group, it)).collect();
        Self { groups, kept: kept.collect() }
    }

    /// Tells in which version the objects of a resource are kept: clients that migrate them look
    /// whether it changes.
    fn storage_hash(&self, resource: &Resource) -> Option<String> {
        let is_made = resource.name == "componentstatuses" || resource.group == measured::GROUP;
        if !resource.is_stored() || is_made {
            return None;
        }
        let kind = resource.gvk();
        let mut stored = versions::other(&kind).map_or(kind, |it| it.stored.clone());
        if let Some(version) = self.kept.get(&(&*resource.group, &*resource.name)) {
            stored.version = (*version).to_owned();
        }
        let text = format!("{}/{}/{}", stored.group, stored.version, stored.kind);
        let digest = digest(&SHA256, text.as_bytes());
        Some(base64::engine::general_purpose::STANDARD.encode(digest.as_ref().get(..8)?))
    }

    fn group(&self, name: &str) -> Option<&[Version<'a>]> {
        self.groups.iter().find(|(group, _)| *group == name).map(|(_, versions)| &**versions)
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
            let versions = versions.iter().map(|version| match group.is_empty() {
                true => format!("/api/{}", version.name),
                false => format!("/apis/{group}/{}", version.name),
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
        let found = self.group(group)?.iter().find(|it| it.name == version)?;
        let mut list = Vec::new();
        for resource in &found.resources {
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
            if let Some(hash) = self.storage_hash(resource) {
                entry["storageVersionHash"] = hash.into();
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

    /// `/api` and `/apis` in the aggregated form, with what others say that they have.
    pub(crate) fn aggregated(&self, core: bool, others: &AllDiscovered) -> Value {
        let wanted = self.groups.iter().filter(|(group, _)| group.is_empty() == core);
        let items: Vec<Value> = wanted
            .map(|(group, versions)| {
                let versions: Vec<Value> = versions
                    .iter()
                    .map(|version| match version.is_elsewhere {
                        true => elsewhere(group, version.name, others),
                        false => {
                            let resources = version.resources.iter();
                            let resources: Vec<Value> =
                                resources.map(|it| aggregated_resource(it)).collect();
                            version_document(version.name, true, &resources)
                        }
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

fn group_document(group: &str, versions: &[Version<'_>]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|it| json!({"groupVersion": format!("{group}/{}", it.name), "version": it.name}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn version_document(version: &str, is_current: bool, resources: &[Value]) -> Value {
    let freshness = if is_current { "Current" } else { "Stale" };
    json!({"version": version, "freshness": freshness, "resources": resources})
}

/// A version that somebody else has.
fn elsewhere(group: &str, version: &str, others: &AllDiscovered) -> Value {
    let found = others.get(&(group.to_owned(), version.to_owned()));
    let resources = found.map_or(&[][..], |it| it.resources.as_slice());
    let mut document = version_document(version, found.is_some_and(|it| it.is_current), resources);
    if resources.is_empty()
        && let Some(fields) = document.as_object_mut()
    {
        fields.remove("resources");
    }
    document
}

/// The resources of an `APIResourceList` in the aggregated form, for servers that only have that.
pub(crate) fn of_resource_list(list: &[Value], group: &str, version: &str) -> Vec<Value> {
    let text = |it: &Value, field: &str| it.get(field).and_then(Value::as_str).map(str::to_owned);
    let kind = |it: &Value| {
        json!({
            "group": text(it, "group").unwrap_or_else(|| group.into()),
            "version": text(it, "version").unwrap_or_else(|| version.into()),
            "kind": text(it, "kind").unwrap_or_default(),
        })
    };
    let verbs = |it: &Value| it.get("verbs").cloned().unwrap_or_else(|| json!([]));
    let mut found: Vec<(String, Value)> = Vec::new();
    for it in list {
        let Some(name) = text(it, "name") else { continue };
        let is_namespaced = it.get("namespaced") == Some(&Value::Bool(true));
        let scope = if is_namespaced { "Namespaced" } else { "Cluster" };
        let Some((whole, part)) = name.split_once('/') else {
            let mut entry = json!({
                "resource": name, "responseKind": kind(it), "scope": scope, "verbs": verbs(it),
                "singularResource": text(it, "singularName").unwrap_or_default(),
            });
            for field in ["shortNames", "categories"] {
                if let Some(value) = it.get(field) {
                    entry[field] = value.clone();
                }
            }
            found.push((name, entry));
            continue;
        };
        if !found.iter().any(|(known, _)| known == whole) {
            // A part of what is not there by itself.
            let entry = json!({"resource": whole, "responseKind": json!({}), "scope": scope});
            found.push((whole.to_owned(), entry));
        }
        let part = json!({"subresource": part, "responseKind": kind(it), "verbs": verbs(it)});
        let Some((_, entry)) = found.iter_mut().find(|(known, _)| known == whole) else { continue };
        match entry.get_mut("subresources").and_then(Value::as_array_mut) {
            Some(parts) => parts.push(part),
            None => entry["subresources"] = json!([part]),
        }
    }
    found.into_iter().map(|(_, entry)| entry).collect()
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
    fn old_lists_become_new() {
        let list = [
            json!({"name": "foos", "singularName": "foo", "namespaced": true, "kind": "Foo",
                   "verbs": ["get"], "shortNames": ["f"]}),
            json!({"name": "foos/scale", "namespaced": true, "kind": "Scale",
                   "group": "autoscaling", "version": "v1", "verbs": ["get", "update"]}),
            json!({"name": "bars/status", "namespaced": false, "kind": "Bar", "verbs": ["get"]}),
        ];
        let made = of_resource_list(&list, "x.y", "v1");
        assert_eq!(
            made[0],
            json!({
                "resource": "foos", "singularResource": "foo", "scope": "Namespaced",
                "responseKind": {"group": "x.y", "version": "v1", "kind": "Foo"},
                "verbs": ["get"], "shortNames": ["f"],
                "subresources": [{
                    "subresource": "scale", "verbs": ["get", "update"],
                    "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"},
                }],
            })
        );
        assert_eq!((&made[1]["resource"], &made[1]["scope"]), (&json!("bars"), &json!("Cluster")));
    }

    #[test]
    fn groups_in_upstreams_order() {
        let (registry, customs) = (Registry::built_in(), OfTenant::default());
        let apis = aggregation::OfTenant::default();
        let discovery = Discovery::new(&registry, &customs, &apis, false);
        let names: Vec<&str> = discovery.groups.iter().map(|(name, _)| *name).collect();
        let first = ["apiregistration.k8s.io", "", "apps", "events.k8s.io"];
        assert_eq!(names[..4], first);
        let at = |name: &str| names.iter().position(|it| *it == name).unwrap();
        assert!(at("discovery.k8s.io") < at("resource.k8s.io"));
        assert!(at("resource.k8s.io") < at("flowcontrol.apiserver.k8s.io"));
        let versions: Vec<&str> =
            discovery.group("autoscaling").unwrap().iter().map(|it| it.name).collect();
        assert_eq!(versions, ["v2", "v1"]);
    }

    #[test]
    fn kept_versions_are_told_as_upstream_tells_them() {
        let registry = Registry::built_in();
        let customs = OfTenant::default();
        let apis = aggregation::OfTenant::default();
        let discovery = Discovery::new(&registry, &customs, &apis, true);
        let hash = |group: &str, version: &str, name: &str| {
            discovery.storage_hash(&registry.get(group, version, name).unwrap().resource)
        };
        assert_eq!(hash("apps", "v1", "deployments").unwrap(), "8aSe+NMegvE=");
        // Kept in another version, and in another group.
        assert_eq!(hash("autoscaling", "v1", "horizontalpodautoscalers").unwrap(), "qwQve8ut294=");
        assert_eq!(hash("events.k8s.io", "v1", "events").unwrap(), "r2yiGXH7wu8=");
        assert_eq!(hash("authentication.k8s.io", "v1", "tokenreviews"), None);
    }

    #[test]
    fn versions_in_order_of_preference() {
        let mut versions = ["foo1", "v1alpha1", "v2", "v10", "v1beta2", "v1", "v1beta1", "bar"];
        versions.sort_by_key(|it| Reverse(rank_of_version(it)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "bar", "foo1"]);
    }
}
