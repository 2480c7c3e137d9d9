//! What resources a tenant's API server offers.
//!
//! Asks for the aggregated form, two requests for everything, and falls back to one request per
//! group version for servers that do not have it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use http::Method;
use insula_api::discovery::{ACCEPT, GroupList, KIND};
use serde::Deserialize;
use serde_json::Value;

use crate::{Client, Error, ResourceRef};

const PLAIN: &str = "application/json";

/// A resource and what can be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    pub resource: ResourceRef,
    pub verbs: BTreeSet<String>,
}

impl Discovered {
    /// Whether the resource has all of `verbs`.
    pub fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.contains(*verb))
    }
}

/// Every resource once, in the version its group prefers.
#[derive(Debug, Default)]
pub struct Discovery {
    pub resources: Vec<Discovered>,
    /// Group versions that are announced but did not answer, such as an aggregated API server
    /// that is down. Their resources are unknown, not absent.
    pub failures: BTreeMap<String, Error>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AggregatedResource {
    resource: String,
    scope: String,
    #[serde(default)]
    verbs: BTreeSet<String>,
    #[serde(default)]
    response_kind: Option<ResponseKind>,
}

#[derive(Deserialize)]
struct ResponseKind {
    kind: String,
}

#[derive(Deserialize)]
struct LegacyVersions {
    versions: Vec<String>,
}

#[derive(Deserialize)]
struct LegacyGroups {
    groups: Vec<LegacyGroup>,
}

#[derive(Deserialize)]
struct LegacyGroup {
    name: String,
    versions: Vec<LegacyVersion>,
}

#[derive(Deserialize)]
struct LegacyVersion {
    version: String,
}

#[derive(Deserialize)]
struct LegacyResources {
    resources: Vec<LegacyResource>,
}

#[derive(Deserialize)]
struct LegacyResource {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: BTreeSet<String>,
}

impl Discovery {
    pub(crate) async fn read(client: &Client, tenant: &str) -> Result<Self, Error> {
        let mut discovery = Self::default();
        for root in ["api", "apis"] {
            let uri = format!("/tenants/{tenant}/{root}");
            let answer: Value = client.call(Method::GET, &uri, ACCEPT, None).await?;
            if answer["kind"] == KIND {
                let groups = decode(answer, &uri)?;
                discovery.add_aggregated(groups);
            } else {
                discovery.add_legacy(client, &uri, answer).await?;
            }
        }
        Ok(discovery)
    }

    fn add_aggregated(&mut self, groups: GroupList<AggregatedResource>) {
        for group in groups.items {
            let mut seen = BTreeSet::new();
            for version in group.versions {
                if version.is_stale() {
                    let name = group_version(&group.metadata.name, &version.version);
                    self.failures.insert(name.clone(), stale(&name));
                }
                for it in version.resources {
                    // A resource that holds only subresources has no kind.
                    let Some(kind) = it.response_kind else { continue };
                    if seen.insert(it.resource.clone()) {
                        self.resources.push(Discovered {
                            resource: ResourceRef {
                                group: Cow::Owned(group.metadata.name.clone()),
                                version: Cow::Owned(version.version.clone()),
                                plural: Cow::Owned(it.resource),
                                kind: Cow::Owned(kind.kind),
                                namespaced: it.scope == "Namespaced",
                            },
                            verbs: it.verbs,
                        });
                    }
                }
            }
        }
    }

    async fn add_legacy(&mut self, client: &Client, uri: &str, root: Value) -> Result<(), Error> {
        let groups = if root["kind"] == "APIVersions" {
            let versions: LegacyVersions = decode(root, uri)?;
            vec![(String::new(), versions.versions)]
        } else {
            let groups: LegacyGroups = decode(root, uri)?;
            let versions = |group: LegacyGroup| {
                (group.name, group.versions.into_iter().map(|it| it.version).collect())
            };
            groups.groups.into_iter().map(versions).collect()
        };
        for (group, versions) in groups {
            let mut seen = BTreeSet::new();
            for version in versions {
                let name = group_version(&group, &version);
                let uri = format!("{uri}/{name}");
                let answer = client.call::<LegacyResources>(Method::GET, &uri, PLAIN, None).await;
                let list = match answer {
                    Ok(list) => list,
                    Err(error) => {
                        self.failures.insert(name, error);
                        continue;
                    }
                };
                for it in list.resources {
                    if !it.name.contains('/') && seen.insert(it.name.clone()) {
                        self.resources.push(Discovered {
                            resource: ResourceRef {
                                group: Cow::Owned(group.clone()),
                                version: Cow::Owned(version.clone()),
                                plural: Cow::Owned(it.name),
                                kind: Cow::Owned(it.kind),
                                namespaced: it.namespaced,
                            },
                            verbs: it.verbs,
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn decode<T: serde::de::DeserializeOwned>(value: Value, uri: &str) -> Result<T, Error> {
    serde_json::from_value(value)
        .map_err(|source| Error::Decode { request: format!("GET {uri}"), source })
}

fn stale(group_version: &str) -> Error {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
    Error::Api(Box::new(Status {
        code: Some(503),
        reason: Some("ServiceUnavailable".to_owned()),
        message: Some(format!("stale GroupVersion discovery: {group_version}")),
        ..Status::default()
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_preferred_version_wins_and_stale_ones_are_told() {
        let resource = |name: &str, scope: &str| {
            json!({"resource": name, "scope": scope, "verbs": ["list", "delete"],
                "responseKind": {"group": "", "version": "", "kind": "Any"}})
        };
        let groups = json!({"items": [{
            "metadata": {"name": "autoscaling"},
            "versions": [
                {"version": "v2", "resources": [resource("scalers", "Namespaced")]},
                {"version": "v1", "freshness": "Stale",
                 "resources": [resource("scalers", "Namespaced"), resource("olds", "Cluster")]},
            ],
        }]});
        let mut discovery = Discovery::default();
        discovery.add_aggregated(serde_json::from_value(groups).unwrap());
        let found: Vec<_> = discovery
            .resources
            .iter()
            .map(|it| {
                (it.resource.api_version(), it.resource.plural.as_ref(), it.resource.namespaced)
            })
            .collect();
        assert_eq!(
            found,
            [("autoscaling/v2".into(), "scalers", true), ("autoscaling/v1".into(), "olds", false)]
        );
        assert!(discovery.resources[0].can(&["list", "delete"]));
        assert!(!discovery.resources[0].can(&["watch"]));
        assert_eq!(discovery.failures.keys().collect::<Vec<_>>(), ["autoscaling/v1"]);
    }
}
