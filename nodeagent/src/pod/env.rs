//! The environment of a container, and the pod's own fields as text.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::{
    api::core::v1::{Container, EnvVarSource, Pod, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{expand::expand, quantity, references::References};

/// Why a container cannot be configured. The text goes into the container's status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{kind} {name:?} not found")]
    NoObject { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { kind: &'static str, key: String, namespace: String, name: String },
    #[error("unsupported fieldPath: {0}")]
    FieldPath(String),
    #[error("unsupported container resource: {0}")]
    Resource(String),
    #[error("container {0} not found")]
    NoContainer(String),
    #[error("{0}")]
    Security(String),
    #[error("{0}")]
    Mount(String),
}

/// What is known about a pod beyond its spec once its sandbox runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    pub node_name: String,
    pub host_ip: Option<IpAddr>,
    pub pod_ips: Vec<IpAddr>,
    pub apiserver: Option<SocketAddr>,
    /// What a container without a limit may use, for `resourceFieldRef`.
    pub allocatable_millicpus: i64,
    pub allocatable_memory: i64,
}

/// Name and value pairs in order; a name occurs once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Environment(Vec<(String, String)>);

impl Environment {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(it, _)| it == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    pub(crate) fn expand(&self, text: &str) -> String {
        expand(text, |name| self.get(name))
    }

    pub(crate) fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }
}

/// The environment of `container`: services, then `envFrom`, then `env`, later over earlier.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    place: &Place,
    references: &References,
) -> Result<Environment, ConfigError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut environment = Environment::default();
    if let Some(apiserver) = place.apiserver {
        add_apiserver(&mut environment, apiserver);
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(source) = &from.config_map_ref {
            match references.config_maps.get(&source.name) {
                Some(found) => {
                    for (key, value) in found.data.iter().flatten() {
                        environment.set(&format!("{prefix}{key}"), value.clone());
                    }
                }
                None if source.optional == Some(true) => {}
                None => return Err(no_object("configmap", &source.name)),
            }
        }
        if let Some(source) = &from.secret_ref {
            match references.secrets.get(&source.name) {
                Some(found) => {
                    for (key, value) in found.data.iter().flatten() {
                        let value = String::from_utf8_lossy(&value.0).into_owned();
                        environment.set(&format!("{prefix}{key}"), value);
                    }
                }
                None if source.optional == Some(true) => {}
                None => return Err(no_object("secret", &source.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value_from, &variable.value) {
            (Some(source), _) => {
                match value_from(pod, container, place, references, namespace, source)? {
                    Some(value) => value,
                    None => continue,
                }
            }
            (None, Some(value)) => environment.expand(value),
            (None, None) => String::new(),
        };
        environment.set(&variable.name, value);
    }
    Ok(environment)
}

/// Where in-cluster clients look for the API server: the variables of service `kubernetes`.
fn add_apiserver(environment: &mut Environment, apiserver: SocketAddr) {
    let (host, port) = (apiserver.ip(), apiserver.port());
    let authority = match host {
        IpAddr::V4(host) => format!("{host}:{port}"),
        IpAddr::V6(host) => format!("[{host}]:{port}"),
    };
    let stem = format!("KUBERNETES_PORT_{port}_TCP");
    environment.set("KUBERNETES_SERVICE_HOST", host.to_string());
    environment.set("KUBERNETES_SERVICE_PORT", port.to_string());
    environment.set("KUBERNETES_SERVICE_PORT_HTTPS", port.to_string());
    environment.set("KUBERNETES_PORT", format!("tcp://{authority}"));
    environment.set(&stem, format!("tcp://{authority}"));
    environment.set(&format!("{stem}_PROTO"), "tcp".to_owned());
    environment.set(&format!("{stem}_PORT"), port.to_string());
    environment.set(&format!("{stem}_ADDR"), host.to_string());
}

/// `None` if the source is optional and absent: then the variable is not set at all.
fn value_from(
    pod: &Pod,
    container: &Container,
    place: &Place,
    references: &References,
    namespace: &str,
    source: &EnvVarSource,
) -> Result<Option<String>, ConfigError> {
    let no_key = |kind, key: &str, name: &str| ConfigError::NoKey {
        kind,
        key: key.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    if let Some(field) = &source.field_ref {
        return field_value(pod, place, &field.field_path).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(pod, Some(container), place, resource).map(Some);
    }
    if let Some(wanted) = &source.config_map_key_ref {
        let optional = wanted.optional == Some(true);
        let value = match references.config_maps.get(&wanted.name) {
            Some(found) => found.data.as_ref().and_then(|data| data.get(&wanted.key)),
            None if optional => return Ok(None),
            None => return Err(no_object("configmap", &wanted.name)),
        };
        return match value {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(no_key("ConfigMap", &wanted.key, &wanted.name)),
        };
    }
    if let Some(wanted) = &source.secret_key_ref {
        let optional = wanted.optional == Some(true);
        let value = match references.secrets.get(&wanted.name) {
            Some(found) => found.data.as_ref().and_then(|data| data.get(&wanted.key)),
            None if optional => return Ok(None),
            None => return Err(no_object("secret", &wanted.name)),
        };
        return match value {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(no_key("Secret", &wanted.key, &wanted.name)),
        };
    }
    Ok(None)
}

fn no_object(kind: &'static str, name: &str) -> ConfigError {
    ConfigError::NoObject { kind, name: name.to_owned() }
}

/// A field of the pod as text, for `fieldRef` in variables and files.
pub(crate) fn field_value(pod: &Pod, place: &Place, path: &str) -> Result<String, ConfigError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let ips = || place.pod_ips.iter().map(ToString::to_string);
    let host_ip = || place.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
    let text = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(quoted_lines(meta.labels.iter().flatten())),
        "metadata.annotations" => Some(quoted_lines(meta.annotations.iter().flatten())),
        "spec.nodeName" => Some(place.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|it| it.service_account_name.clone()),
        "status.hostIP" | "status.hostIPs" => Some(host_ip()),
        "status.podIP" => Some(ips().next().unwrap_or_default()),
        "status.podIPs" => Some(ips().collect::<Vec<_>>().join(",")),
        _ => {
            let key =
                |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
            let entry = if let Some(key) = key("metadata.labels") {
                meta.labels.as_ref().and_then(|it| it.get(key))
            } else if let Some(key) = key("metadata.annotations") {
                meta.annotations.as_ref().and_then(|it| it.get(key))
            } else {
                return Err(ConfigError::FieldPath(path.to_owned()));
            };
            entry.cloned()
        }
    };
    Ok(text.unwrap_or_default())
}

/// `key="value"` lines, as files of the downward API have them.
fn quoted_lines<'a>(pairs: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let lines: Vec<String> = pairs.map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// A container's request or limit as a whole number of `divisor`s.
pub(crate) fn resource_value(
    pod: &Pod,
    own: Option<&Container>,
    place: &Place,
    wanted: &ResourceFieldSelector,
) -> Result<String, ConfigError> {
    let named;
    let container = match (&wanted.container_name, own) {
        (Some(name), _) if !name.is_empty() => {
            let spec = pod.spec.as_ref();
            let all = spec.into_iter().flat_map(|spec| {
                spec.containers.iter().chain(spec.init_containers.iter().flatten())
            });
            named = all.into_iter().find(|it| it.name == *name);
            named.ok_or_else(|| ConfigError::NoContainer(name.clone()))?
        }
        (_, Some(own)) => own,
        (_, None) => return Err(ConfigError::NoContainer(String::new())),
    };
    let unknown = || ConfigError::Resource(wanted.resource.clone());
    let (kind, resource) = wanted.resource.split_once('.').ok_or_else(unknown)?;
    let resources = container.resources.as_ref();
    let limit = resources.and_then(|it| it.limits.as_ref()).and_then(|it| it.get(resource));
    let found = match kind {
        "limits" => limit.cloned().or_else(|| match resource {
            "cpu" => Some(Quantity(format!("{}m", place.allocatable_millicpus))),
            "memory" => Some(Quantity(place.allocatable_memory.to_string())),
            _ => None,
        }),
        "requests" => {
            resources.and_then(|it| it.requests.as_ref()).and_then(|it| it.get(resource)).cloned()
        }
        _ => return Err(unknown()),
    };
    let divisor = match &wanted.divisor {
        Some(divisor) if divisor.0 != "0" && !divisor.0.is_empty() => divisor.clone(),
        _ => Quantity("1".to_owned()),
    };
    let value = found.unwrap_or_else(|| Quantity("0".to_owned()));
    quantity::divided(&value, &divisor).map(|it| it.to_string()).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u-1",
                         "labels": {"app": "web", "quote": "a\"b"}, "annotations": {"x/y": "z"}},
            "spec": {"serviceAccountName": "robot", "containers": [{
                "name": "c",
                "resources": {"limits": {"cpu": "250m", "memory": "64Mi"},
                              "requests": {"cpu": "100m"}},
                "envFrom": [
                    {"configMapRef": {"name": "all"}, "prefix": "P_"},
                    {"secretRef": {"name": "none", "optional": true}}],
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "value": "$(A)$(P_k)$(NOPE)"},
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                    {"name": "CORES", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "all", "key": "k"}}},
                    {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": true}}},
                    {"name": "P_k", "value": "over"}]}]},
        }))
        .unwrap()
    }

    fn references() -> References {
        let all = serde_json::from_value(json!({"metadata": {"name": "all"}, "data": {"k": "v"}}));
        References {
            config_maps: [("all".to_owned(), all.unwrap())].into(),
            ..References::default()
        }
    }

    #[test]
    fn every_source_of_a_variable() {
        let pod = pod();
        let place = Place { pod_ips: vec!["10.0.0.7".parse().unwrap()], ..Place::default() };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let environment = environment(&pod, container, &place, &references()).unwrap();
        let text: Vec<_> = environment
            .into_pairs()
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            text.join(" "),
            "P_k=over A=1 B=1v$(NOPE) NAME=web APP=web IP=10.0.0.7 CPU=250 CORES=1 KEY=v"
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut pod = pod();
        let place = Place::default();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        let missing = environment(&pod, &container, &place, &References::default());
        assert_eq!(missing.unwrap_err().to_string(), "configmap \"all\" not found");

        let mut no_key = references();
        no_key.config_maps.get_mut("all").unwrap().data = None;
        let missing = environment(&pod, &container, &place, &no_key);
        assert_eq!(missing.unwrap_err().to_string(), "couldn't find key k in ConfigMap shop/all");
        pod.metadata.namespace = None;
        assert!(field_value(&pod, &place, "spec.hostNetwork").is_err());
    }

    #[test]
    fn labels_as_a_file() {
        let text = field_value(&pod(), &Place::default(), "metadata.labels").unwrap();
        assert_eq!(text, "app=\"web\"\nquote=\"a\\\"b\"");
    }
}
