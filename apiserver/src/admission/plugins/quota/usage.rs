//! What an object uses of a quota.

use std::collections::{BTreeMap, BTreeSet};

use insula_api::{
    object,
    quantity::{Format, Quantity},
    resources::Resource,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::admission::{
    Admission, Operation, annotation,
    plugins::{
        amounts::{Amounts, add, of_container, of_pod, read},
        pods::list,
    },
};

const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";
/// Kinds that are counted by a name of their own as well.
const COUNTED: [&str; 4] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
const OF_PODS: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
/// Of which each container has to say how much, if there is a quota of it.
const NEEDED: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// How the usage of a kind is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Pods,
    Services,
    Claims,
    /// By their number alone.
    Others,
}

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

/// `count/pods` or `count/deployments.apps`.
fn count_name(resource: &Resource) -> String {
    match resource.group.as_str() {
        "" => format!("count/{}", resource.name),
        group => format!("count/{}.{group}", resource.name),
    }
}

impl Kind {
    pub(super) fn of(admission: &Admission<'_>) -> Self {
        let resource = admission.resource();
        match (resource.group.as_str(), resource.name.as_str()) {
            ("", "pods") => Self::Pods,
            ("", "services") => Self::Services,
            ("", "persistentvolumeclaims") => Self::Claims,
            _ => Self::Others,
        }
    }

    /// Whether the request can change what is used.
    pub(super) fn handles(self, admission: &Admission<'_>, it: &Value) -> bool {
        let is_update = admission.operation == Operation::Update;
        match (self, admission.subresource.as_ref()) {
            (Self::Pods, "resize") => is_update,
            (Self::Pods, "") if is_update => {
                let ends = |it: &Value| super::scopes::has_deadline(it);
                admission.old.is_some_and(|old| ends(old) != ends(it))
            }
            (Self::Services | Self::Claims, "") => true,
            // Reviews and the like are kept nowhere.
            (_, "") => {
                let resource = admission.resource();
                // Nor may what tells of a full quota fill it.
                !is_update && resource.is_stored() && resource.name != "events"
            }
            _ => false,
        }
    }
}

/// Whether a resource of a quota is one that these objects use.
pub(super) fn is_matching(kind: Kind, resource: &Resource, name: &str) -> bool {
    if name == count_name(resource) {
        return true;
    }
    match kind {
        Kind::Pods => {
            let extended = name.strip_prefix("requests.").filter(|it| it.contains('/'));
            OF_PODS.contains(&name)
                || name.starts_with("hugepages-")
                || name.starts_with("requests.hugepages-")
                || extended.is_some_and(|it| !it.starts_with("kubernetes.io/"))
        }
        Kind::Services => {
            matches!(name, "services" | "services.nodeports" | "services.loadbalancers")
        }
        Kind::Claims => {
            matches!(name, "persistentvolumeclaims" | "requests.storage")
                || name.contains(CLASS_SUFFIX)
        }
        Kind::Others => {
            resource.group.is_empty() && COUNTED.contains(&name) && name == resource.name
        }
    }
}

/// What an object uses.
pub(super) fn usage(kind: Kind, resource: &Resource, it: &Value) -> Amounts {
    let mut used = Amounts::from([(count_name(resource), one())]);
    match kind {
        Kind::Pods if is_over(it) => (),
        Kind::Pods => {
            let mut requests = of_pod(it, "requests");
            let mut limits = of_pod(it, "limits");
            let overhead = read(object::at(it, &["spec", "overhead"]));
            add(&mut requests, &overhead);
            for (name, amount) in &overhead {
                if let Some(limit) = limits.get_mut(name) {
                    *limit = limit.saturating_add(*amount);
                }
            }
            used.extend(of_compute(&requests, &limits));
        }
        Kind::Services => of_service(it, &mut used),
        Kind::Claims => of_claim(it, &mut used),
        Kind::Others => {
            if resource.group.is_empty() && COUNTED.contains(&resource.name.as_str()) {
                used.insert(resource.name.clone(), one());
            }
        }
    }
    used
}

/// Pods that have ended use nothing, nor do those that should have by now.
fn is_over(pod: &Value) -> bool {
    if matches!(object::text(pod, &["status", "phase"]), "Succeeded" | "Failed") {
        return true;
    }
    let Ok(ends) = object::meta_str(pod, "deletionTimestamp").parse::<Timestamp>() else {
        return false;
    };
    let grace = object::metadata(pod).get("deletionGracePeriodSeconds").and_then(Value::as_i64);
    let Some(grace) = grace else { return false };
    ends.checked_add(SignedDuration::from_secs(grace)).is_ok_and(|at| at < Timestamp::now())
}

fn of_compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), one())]);
    for (name, amount) in requests {
        let of_requests = format!("requests.{name}");
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                used.insert(name.clone(), *amount);
                used.insert(of_requests, *amount);
            }
            name if name.starts_with("hugepages-") => {
                used.insert(name.to_owned(), *amount);
                used.insert(of_requests, *amount);
            }
            name if name.contains('/') && !name.starts_with("kubernetes.io/") => {
                used.insert(of_requests, *amount);
            }
            _ => (),
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

fn of_service(it: &Value, used: &mut Amounts) {
    let spec = &it["spec"];
    let count = |n: usize| Quantity::new(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSi);
    let (mut node_ports, mut balancers) = (0, 0);
    match object::text(spec, &["type"]) {
        "NodePort" => node_ports = list(spec, "ports").count(),
        "LoadBalancer" => {
            balancers = 1;
            let allocates = spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
            let has_port = |it: &&Value| it["nodePort"].as_u64().is_some_and(|it| it != 0);
            node_ports = match allocates {
                true => list(spec, "ports").count(),
                false => list(spec, "ports").filter(has_port).count(),
            };
        }
        _ => (),
    }
    used.insert("services".into(), one());
    used.insert("services.nodeports".into(), count(node_ports));
    used.insert("services.loadbalancers".into(), count(balancers));
}

fn of_claim(it: &Value, used: &mut Amounts) {
    let class = match annotation(it, CLASS) {
        Some(class) => class,
        None => object::text(it, &["spec", "storageClassName"]),
    };
    let prefix = (!class.is_empty()).then(|| format!("{class}{CLASS_SUFFIX}"));
    used.insert("persistentvolumeclaims".into(), one());
    if let Some(prefix) = &prefix {
        used.insert(format!("{prefix}persistentvolumeclaims"), one());
    }
    let requests = read(object::at(it, &["spec", "resources", "requests"]));
    if let Some(storage) = requests.get("storage") {
        used.insert("requests.storage".into(), *storage);
        if let Some(prefix) = &prefix {
            used.insert(format!("{prefix}requests.storage"), *storage);
        }
    }
}

/// What containers of a pod do not say, though there is a quota of it.
pub(super) fn missing(kind: Kind, it: &Value, restricted: &[&String]) -> Option<String> {
    let spec = &it["spec"];
    if kind != Kind::Pods
        || spec
            .get("resources")
            .is_some_and(|it| it.get("requests").is_some() || it.get("limits").is_some())
    {
        return None;
    }
    let mut lacking: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in list(spec, "containers").chain(list(spec, "initContainers")) {
        let said =
            of_compute(&of_container(container, "requests"), &of_container(container, "limits"));
        for name in restricted.iter().filter(|it| NEEDED.contains(&it.as_str())) {
            if !said.contains_key(*name) {
                lacking.entry(name).or_default().insert(object::text(container, &["name"]));
            }
        }
    }
    if lacking.is_empty() {
        return None;
    }
    let each = lacking.iter().map(|(name, containers)| {
        let containers: Vec<&str> = containers.iter().copied().collect();
        format!("{name} for: {}", containers.join(","))
    });
    Some(format!("must specify {}", each.collect::<Vec<_>>().join("; ")))
}

#[cfg(test)]
mod tests {
    use insula_api::resources;
    use serde_json::json;

    use super::*;

    fn resource(group: &str, name: &str) -> &'static Resource {
        resources::built_in().iter().find(|it| it.group == group && it.name == name).unwrap()
    }

    fn told(kind: Kind, resource: &Resource, it: &Value) -> String {
        let used = usage(kind, resource, it);
        used.iter().map(|(name, it)| format!("{name}={it}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_things_use() {
        let pods = resource("", "pods");
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {
            "requests": {"cpu": "1", "example.com/gpu": "2"}, "limits": {"cpu": "2"}}}]}});
        assert_eq!(
            told(Kind::Pods, pods, &pod),
            "count/pods=1 cpu=1 limits.cpu=2 pods=1 requests.cpu=1 requests.example.com/gpu=2"
        );
        let mut over = pod.clone();
        over["status"]["phase"] = "Failed".into();
        assert_eq!(told(Kind::Pods, pods, &over), "count/pods=1");
        let service =
            json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}});
        assert_eq!(
            told(Kind::Services, resource("", "services"), &service),
            "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2"
        );
        let claim = json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            told(Kind::Claims, resource("", "persistentvolumeclaims"), &claim),
            "count/persistentvolumeclaims=1 fast.storageclass.storage.k8s.io/persistentvolumeclaims=1 fast.storageclass.storage.k8s.io/requests.storage=1Gi persistentvolumeclaims=1 requests.storage=1Gi"
        );
        assert_eq!(
            told(Kind::Others, resource("apps", "deployments"), &json!({})),
            "count/deployments.apps=1"
        );
        assert_eq!(
            told(Kind::Others, resource("", "secrets"), &json!({})),
            "count/secrets=1 secrets=1"
        );
    }

    #[test]
    fn containers_say_what_they_need() {
        let pod = json!({"spec": {"containers": [
            {"name": "b"}, {"name": "a", "resources": {"requests": {"cpu": "1"}}}]}});
        let names = ["cpu".to_owned(), "limits.memory".to_owned(), "pods".to_owned()];
        let names: Vec<&String> = names.iter().collect();
        assert_eq!(
            missing(Kind::Pods, &pod, &names).unwrap(),
            "must specify cpu for: b; limits.memory for: a,b"
        );
    }
}
