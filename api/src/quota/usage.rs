//! What an object uses of a quota.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{
    amounts::{Amounts, of_container, of_pod, read},
    list,
};
use crate::{
    object,
    pods::{add, parts},
    quantity::{Format, Quantity},
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
pub enum Kind {
    Pods,
    Services,
    Claims,
    /// By their number alone.
    Others,
}

/// A resource whose objects use something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Of<'a> {
    pub group: &'a str,
    pub resource: &'a str,
}

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

impl Of<'_> {
    pub fn kind(self) -> Kind {
        match (self.group, self.resource) {
            ("", "pods") => Kind::Pods,
            ("", "services") => Kind::Services,
            ("", "persistentvolumeclaims") => Kind::Claims,
            _ => Kind::Others,
        }
    }

    /// `count/pods` or `count/deployments.apps`.
    pub fn count_name(self) -> String {
        match self.group {
            "" => format!("count/{}", self.resource),
            group => format!("count/{}.{group}", self.resource),
        }
    }

    /// What a name of a quota's resource is about, where the name alone says it.
    pub fn named(name: &str) -> Option<Of<'_>> {
        if let Some(counted) = name.strip_prefix("count/") {
            let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
            return Some(Of { group, resource });
        }
        let resource = match name {
            "services.nodeports" | "services.loadbalancers" => "services",
            "requests.storage" => "persistentvolumeclaims",
            name if name.contains(CLASS_SUFFIX) => "persistentvolumeclaims",
            "services" | "persistentvolumeclaims" => name,
            name if COUNTED.contains(&name) => name,
            _ => "pods",
        };
        Some(Of { group: "", resource })
    }
}

/// Whether a resource of a quota is one that these objects use.
pub fn is_matching(of: Of<'_>, name: &str) -> bool {
    if name == of.count_name() {
        return true;
    }
    match of.kind() {
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
        Kind::Others => of.group.is_empty() && COUNTED.contains(&name) && name == of.resource,
    }
}

/// What an object uses now.
pub fn usage(of: Of<'_>, it: &Value) -> Amounts {
    usage_of(of, it, of.kind() == Kind::Pods && is_over(it))
}

/// What an object uses; of pods that are over their number alone.
pub(super) fn usage_of(of: Of<'_>, it: &Value, is_over: bool) -> Amounts {
    let mut used = Amounts::from([(of.count_name(), one())]);
    match of.kind() {
        Kind::Pods if is_over => (),
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
            if of.group.is_empty() && COUNTED.contains(&of.resource) {
                used.insert(of.resource.to_owned(), one());
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
    let annotation = object::metadata(it).get("annotations").and_then(|it| it.get(CLASS));
    let class = match annotation.and_then(Value::as_str) {
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
pub fn missing(of: Of<'_>, it: &Value, restricted: &[&String]) -> Option<String> {
    let spec = &it["spec"];
    if of.kind() != Kind::Pods
        || spec
            .get("resources")
            .is_some_and(|it| it.get("requests").is_some() || it.get("limits").is_some())
    {
        return None;
    }
    let mut lacking: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (_, container) in parts(spec) {
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
    use serde_json::json;

    use super::*;

    fn of(resource: &str) -> Of<'_> {
        Of { group: "", resource }
    }

    fn told(of: Of<'_>, it: &Value) -> String {
        let used = usage(of, it);
        used.iter().map(|(name, it)| format!("{name}={it}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_things_use() {
        let pods = of("pods");
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {
            "requests": {"cpu": "1", "example.com/gpu": "2"}, "limits": {"cpu": "2"}}}]}});
        assert_eq!(
            told(pods, &pod),
            "count/pods=1 cpu=1 limits.cpu=2 pods=1 requests.cpu=1 requests.example.com/gpu=2"
        );
        let machine = json!({"spec": {"overhead": {"memory": "64Mi"}, "virtualMachine": {
            "resources": {"requests": {"cpu": "2", "memory": "1Gi", "hugepages-2Mi": "4Mi"}}}}});
        assert_eq!(
            told(pods, &machine),
            "count/pods=1 cpu=2 hugepages-2Mi=4Mi memory=1088Mi pods=1 requests.cpu=2 \
             requests.hugepages-2Mi=4Mi requests.memory=1088Mi"
        );
        let mut over = pod.clone();
        over["status"]["phase"] = "Failed".into();
        assert_eq!(told(pods, &over), "count/pods=1");
        let service =
            json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}});
        assert_eq!(
            told(of("services"), &service),
            "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2"
        );
        let claim = json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            told(of("persistentvolumeclaims"), &claim),
            "count/persistentvolumeclaims=1 fast.storageclass.storage.k8s.io/persistentvolumeclaims=1 fast.storageclass.storage.k8s.io/requests.storage=1Gi persistentvolumeclaims=1 requests.storage=1Gi"
        );
        assert_eq!(
            told(Of { group: "apps", resource: "deployments" }, &json!({})),
            "count/deployments.apps=1"
        );
        assert_eq!(told(of("secrets"), &json!({})), "count/secrets=1 secrets=1");
    }

    #[test]
    fn containers_say_what_they_need() {
        let pod = json!({"spec": {"containers": [
            {"name": "b"}, {"name": "a", "resources": {"requests": {"cpu": "1"}}}]}});
        let names = ["cpu".to_owned(), "limits.memory".to_owned(), "pods".to_owned()];
        let names: Vec<&String> = names.iter().collect();
        assert_eq!(
            missing(of("pods"), &pod, &names).unwrap(),
            "must specify cpu for: b; limits.memory for: a,b"
        );
    }

    #[test]
    fn names_say_what_they_are_about() {
        for (name, group, resource) in [
            ("count/widgets.example.com", "example.com", "widgets"),
            ("count/pods", "", "pods"),
            ("requests.cpu", "", "pods"),
            ("requests.example.com/gpu", "", "pods"),
            ("services.nodeports", "", "services"),
            ("fast.storageclass.storage.k8s.io/requests.storage", "", "persistentvolumeclaims"),
            ("secrets", "", "secrets"),
        ] {
            let found = Of::named(name).unwrap();
            assert_eq!(found, Of { group, resource }, "{name}");
            assert!(is_matching(found, name), "{name}");
        }
    }
}
