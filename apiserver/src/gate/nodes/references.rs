//! What of the API's objects a pod refers to: what whoever runs it has to read.

use std::{borrow::Cow, collections::HashMap};

use serde::Deserialize;
use serde_json::Value;

/// What a reference is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Account,
    Claim,
    ConfigMap,
    /// The pod itself.
    Pod,
    ResourceClaim,
    Secret,
}

/// A name of the pod's own namespace.
pub(super) type Reference = (Kind, Box<str>);

/// A pod as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow)]
    spec: Spec<'a>,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    annotations: HashMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec<'a> {
    #[serde(borrow)]
    node_name: Cow<'a, str>,
    service_account_name: String,
    image_pull_secrets: Vec<Named>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
    volumes: Vec<Value>,
    resource_claims: Vec<ResourceClaim>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    env: Vec<Env>,
    env_from: Vec<EnvFrom>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Env {
    value_from: Option<ValueFrom>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ValueFrom {
    secret_key_ref: Option<Named>,
    config_map_key_ref: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct EnvFrom {
    secret_ref: Option<Named>,
    config_map_ref: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ResourceClaim {
    resource_claim_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    resource_claim_statuses: Vec<ResourceClaim>,
}

const MIRROR: &str = "kubernetes.io/config.mirror";
/// Where in volumes the names of secrets are.
const SECRETS: [&str; 11] = [
    "/secret/secretName",
    "/azureFile/secretName",
    "/cephfs/secretRef/name",
    "/cinder/secretRef/name",
    "/flexVolume/secretRef/name",
    "/rbd/secretRef/name",
    "/scaleIO/secretRef/name",
    "/iscsi/secretRef/name",
    "/storageos/secretRef/name",
    "/csi/nodePublishSecretRef/name",
    "/secret/name",
];
/// Where in a persistent volume's sources secrets are named, each with its namespace.
const OF_VOLUMES: [&str; 14] = [
    "/cephfs/secretRef",
    "/cinder/secretRef",
    "/flexVolume/secretRef",
    "/rbd/secretRef",
    "/scaleIO/secretRef",
    "/iscsi/secretRef",
    "/storageos/secretRef",
    "/csi/controllerPublishSecretRef",
    "/csi/nodePublishSecretRef",
    "/csi/nodeStageSecretRef",
    "/csi/nodeExpandSecretRef",
    "/csi/controllerExpandSecretRef",
    "/azureFile",
    "/glusterfs",
];

impl Pod<'_> {
    /// Where it runs; empty if nowhere yet.
    pub(super) fn node(&self) -> &str {
        &self.spec.node_name
    }

    /// What it refers to, sorted, each once.
    pub(super) fn references(&self) -> Vec<Reference> {
        let mut all: Vec<Reference> = vec![(Kind::Pod, (&*self.metadata.name).into())];
        // What an agent made itself says nothing of what it may have.
        if self.metadata.annotations.contains_key(MIRROR) {
            return all;
        }
        let mut add = |kind: Kind, name: &str| {
            if !name.is_empty() {
                all.push((kind, name.into()));
            }
        };
        let spec = &self.spec;
        add(Kind::Account, &spec.service_account_name);
        spec.image_pull_secrets.iter().for_each(|it| add(Kind::Secret, &it.name));
        let containers =
            [&spec.containers, &spec.init_containers, &spec.ephemeral_containers].into_iter();
        for container in containers.flatten() {
            for from in container.env.iter().filter_map(|it| it.value_from.as_ref()) {
                from.secret_key_ref.iter().for_each(|it| add(Kind::Secret, &it.name));
                from.config_map_key_ref.iter().for_each(|it| add(Kind::ConfigMap, &it.name));
            }
            for from in &container.env_from {
                from.secret_ref.iter().for_each(|it| add(Kind::Secret, &it.name));
                from.config_map_ref.iter().for_each(|it| add(Kind::ConfigMap, &it.name));
            }
        }
        let claims = spec.resource_claims.iter().chain(&self.status.resource_claim_statuses);
        claims.for_each(|it| add(Kind::ResourceClaim, &it.resource_claim_name));
        for volume in &spec.volumes {
            of_volume(volume, &self.metadata.name, &mut add);
        }
        all.sort();
        all.dedup();
        all
    }
}

fn of_volume(volume: &Value, pod: &str, add: &mut impl FnMut(Kind, &str)) {
    let text = |at: &str| volume.pointer(at).and_then(Value::as_str).unwrap_or_default();
    SECRETS.iter().for_each(|at| add(Kind::Secret, text(at)));
    add(Kind::ConfigMap, text("/configMap/name"));
    add(Kind::Claim, text("/persistentVolumeClaim/claimName"));
    if volume.get("ephemeral").is_some() {
        add(Kind::Claim, &format!("{pod}-{}", text("/name")));
    }
    let sources = volume.pointer("/projected/sources").and_then(Value::as_array);
    for source in sources.into_iter().flatten() {
        let name = |at: &str| source.pointer(at).and_then(Value::as_str).unwrap_or_default();
        add(Kind::Secret, name("/secret/name"));
        add(Kind::ConfigMap, name("/configMap/name"));
    }
}

/// Namespaces and names of the secrets that a persistent volume names.
pub(super) fn secrets_of_volume(volume: &Value) -> impl Iterator<Item = (&str, &str)> {
    let spec = &volume["spec"];
    let own = spec.pointer("/claimRef/namespace").and_then(Value::as_str).unwrap_or_default();
    OF_VOLUMES.iter().filter_map(move |at| {
        let it = spec.pointer(at)?;
        let text = |field: &str| it.get(field).and_then(Value::as_str).filter(|it| !it.is_empty());
        let name = text("secretName").or_else(|| text("name"))?;
        let namespace = text("secretNamespace").or_else(|| text("namespace")).unwrap_or(own);
        Some((namespace, name))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_that_a_pod_names_is_found() {
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {
                "nodeName": "n", "serviceAccountName": "robot",
                "imagePullSecrets": [{"name": "pull"}],
                "containers": [{"env": [
                    {"name": "A", "valueFrom": {"secretKeyRef": {"name": "env-secret", "key": "k"}}},
                    {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "env-map", "key": "k"}}},
                    {"name": "C", "value": "plain"},
                ], "envFrom": [{"configMapRef": {"name": "from-map"}}]}],
                "initContainers": [{"envFrom": [{"secretRef": {"name": "from-secret"}}]}],
                "ephemeralContainers": [{"envFrom": [{"secretRef": {"name": "debug"}}]}],
                "volumes": [
                    {"name": "a", "secret": {"secretName": "vol-secret"}},
                    {"name": "b", "configMap": {"name": "vol-map"}},
                    {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                    {"name": "d", "ephemeral": {}},
                    {"name": "e", "projected": {"sources": [
                        {"secret": {"name": "projected-secret"}},
                        {"configMap": {"name": "projected-map"}},
                        {"serviceAccountToken": {"path": "token"}},
                    ]}},
                    {"name": "f", "csi": {"driver": "x", "nodePublishSecretRef": {"name": "csi"}}},
                    {"name": "g", "emptyDir": {}},
                ],
                "resourceClaims": [{"name": "r", "resourceClaimName": "device"}],
            },
            "status": {"resourceClaimStatuses": [{"name": "s", "resourceClaimName": "made"}]},
        });
        let text = pod.to_string();
        let pod: Pod<'_> = serde_json::from_str(&text).unwrap();
        assert_eq!(pod.node(), "n");
        let found = pod.references();
        let names = |kind: Kind| -> Vec<&str> {
            found.iter().filter(|it| it.0 == kind).map(|it| &*it.1).collect()
        };
        assert_eq!(names(Kind::Account), ["robot"]);
        assert_eq!(names(Kind::Claim), ["claim", "p-d"]);
        assert_eq!(names(Kind::ConfigMap), ["env-map", "from-map", "projected-map", "vol-map"]);
        assert_eq!(names(Kind::Pod), ["p"]);
        assert_eq!(names(Kind::ResourceClaim), ["device", "made"]);
        let secrets =
            ["csi", "debug", "env-secret", "from-secret", "projected-secret", "pull", "vol-secret"];
        assert_eq!(names(Kind::Secret), secrets);
    }

    #[test]
    fn mirror_pods_refer_to_nothing() {
        let text = json!({
            "metadata": {"name": "p", "annotations": {MIRROR: "x"}},
            "spec": {"volumes": [{"name": "a", "secret": {"secretName": "s"}}]},
        });
        let text = text.to_string();
        let pod: Pod<'_> = serde_json::from_str(&text).unwrap();
        assert_eq!(pod.references(), [(Kind::Pod, "p".into())]);
    }

    #[test]
    fn volumes_name_secrets_with_their_namespaces() {
        let volume = json!({"spec": {
            "claimRef": {"namespace": "ns", "name": "c"},
            "csi": {"nodeStageSecretRef": {"namespace": "storage", "name": "a"}},
            "azureFile": {"secretName": "b"},
        }});
        let found: Vec<_> = secrets_of_volume(&volume).collect();
        assert_eq!(found, [("storage", "a"), ("ns", "b")]);
    }
}
