//! How much of a node's resources a pod takes.

use std::{collections::BTreeMap, sync::Arc};

use insula_api::quantity::Quantity;
use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity as WireQuantity,
};

pub(crate) const CPU: &str = "cpu";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
pub(crate) const PODS: &str = "pods";

/// What a container that asks for nothing is taken to use, where only order matters.
const SUPPOSED_MILLICORES: i64 = 100;
const SUPPOSED_BYTES: i64 = 200 << 20;

/// What a pod takes from its node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// By resource, in the resource's unit: thousandths for CPU, whole units for all others.
    /// Nothing is zero; every pod takes one of [`PODS`].
    pub(crate) amounts: Vec<(Arc<str>, i64)>,
    /// CPU in thousandths, with a guess for containers that do not say.
    pub(crate) supposed_cpu: i64,
    /// Bytes of memory, with a guess for containers that do not say.
    pub(crate) supposed_memory: i64,
}

type Amounts = BTreeMap<String, i64>;

/// An amount in the unit that the scheduler counts a resource in.
pub(crate) fn amount(resource: &str, quantity: &WireQuantity) -> i64 {
    // The API server lets no other text pass.
    let quantity = Quantity::parse(&quantity.0).unwrap_or(Quantity::ZERO);
    if resource == CPU { quantity.milli_value() } else { quantity.value() }
}

impl Requests {
    /// The sum over containers, or what the initialisation before them takes at its peak if that
    /// is more; with the overhead of the runtime.
    pub(crate) fn of(spec: &PodSpec) -> Self {
        let mut asked = of_pod(spec, &of_container);
        let supposed = of_pod(spec, &supposed_of_container);
        asked.insert(PODS.to_owned(), 1);
        let supposed_of = |name: &str| supposed.get(name).copied().unwrap_or(0);
        Self {
            supposed_cpu: supposed_of(CPU),
            supposed_memory: supposed_of(MEMORY),
            amounts: asked
                .into_iter()
                .filter(|(_, amount)| 0 < *amount)
                .map(|(name, amount)| (name.into(), amount))
                .collect(),
        }
    }
}

/// What the containers take, replaced where the pod as a whole says, and the runtime's overhead.
fn of_pod(spec: &PodSpec, of: &dyn Fn(&Container) -> Amounts) -> Amounts {
    let mut amounts = total(spec, of);
    let whole = spec.resources.as_ref().and_then(|it| it.requests.as_ref());
    for (name, quantity) in whole.into_iter().flatten() {
        amounts.insert(name.clone(), amount(name, quantity));
    }
    for (name, quantity) in spec.overhead.iter().flatten() {
        add(&mut amounts, name, amount(name, quantity));
    }
    amounts
}

/// A sidecar is an init container that goes on running beside the containers.
fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn total(spec: &PodSpec, of: &dyn Fn(&Container) -> Amounts) -> Amounts {
    let mut running = Amounts::new();
    for container in &spec.containers {
        add_all(&mut running, &of(container));
    }
    // Init containers run one after the other, each beside the sidecars begun before it.
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let mut then = of(container);
        if is_sidecar(container) {
            add_all(&mut running, &then);
            add_all(&mut sidecars, &then);
            then = sidecars.clone();
        } else {
            add_all(&mut then, &sidecars);
        }
        for (name, amount) in then {
            let highest = peak.entry(name).or_default();
            *highest = amount.max(*highest);
        }
    }
    for (name, amount) in peak {
        let highest = running.entry(name).or_default();
        *highest = amount.max(*highest);
    }
    running
}

fn of_container(container: &Container) -> Amounts {
    let requests = container.resources.as_ref().and_then(|it| it.requests.as_ref());
    requests
        .into_iter()
        .flatten()
        .map(|(name, quantity)| (name.clone(), amount(name, quantity)))
        .collect()
}

fn supposed_of_container(container: &Container) -> Amounts {
    let mut amounts = of_container(container);
    amounts.retain(|name, _| name == CPU || name == MEMORY);
    amounts.entry(CPU.to_owned()).or_insert(SUPPOSED_MILLICORES);
    amounts.entry(MEMORY.to_owned()).or_insert(SUPPOSED_BYTES);
    amounts
}

fn add(sum: &mut Amounts, name: &str, amount: i64) {
    let entry = sum.entry(name.to_owned()).or_default();
    *entry = entry.saturating_add(amount);
}

fn add_all(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        add(sum, name, *amount);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ResourceRequirements;

    use super::*;

    fn resources(text: &str) -> BTreeMap<String, WireQuantity> {
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap();
            (name.to_owned(), WireQuantity(value.to_owned()))
        };
        text.split_whitespace().map(pair).collect()
    }

    fn container(requests: &str) -> Container {
        let requests = Some(resources(requests));
        let resources = Some(ResourceRequirements { requests, ..ResourceRequirements::default() });
        Container { resources, ..Container::default() }
    }

    fn sidecar(requests: &str) -> Container {
        Container { restart_policy: Some("Always".into()), ..container(requests) }
    }

    #[track_caller]
    fn check(init: Vec<Container>, containers: Vec<Container>, overhead: &str, expected: &str) {
        let spec = PodSpec {
            containers,
            init_containers: Some(init),
            overhead: Some(resources(overhead)),
            ..PodSpec::default()
        };
        let amounts = Requests::of(&spec).amounts;
        let shown: Vec<_> = amounts.iter().map(|(name, it)| format!("{name}={it}")).collect();
        assert_eq!(shown.join(" "), expected);
    }

    #[test]
    fn sums_and_peaks() {
        let c = container;
        check(vec![], vec![], "", "pods=1");
        check(
            vec![],
            vec![c("cpu=0.5 memory=1Ki"), c("cpu=1500m gpu=2")],
            "",
            "cpu=2000 gpu=2 memory=1024 pods=1",
        );
        check(
            vec![c("cpu=3"), c("cpu=1 memory=5")],
            vec![c("cpu=2 memory=1")],
            "",
            "cpu=3000 memory=5 pods=1",
        );
        check(vec![], vec![c("cpu=1")], "cpu=100m", "cpu=1100 pods=1");
        check(vec![], vec![c("cpu=0")], "", "pods=1");
    }

    #[test]
    fn sidecars_run_beside_what_follows_them() {
        let (c, s) = (container, sidecar);
        check(vec![s("cpu=1"), c("cpu=3"), s("cpu=1")], vec![c("cpu=1")], "", "cpu=4000 pods=1");
        check(vec![c("cpu=3"), s("cpu=1")], vec![c("cpu=1")], "", "cpu=3000 pods=1");
        check(vec![s("cpu=1"), s("cpu=1")], vec![c("cpu=1")], "", "cpu=3000 pods=1");
    }

    #[test]
    fn what_is_not_asked_for_is_supposed() {
        let spec =
            PodSpec { containers: vec![container("cpu=1"), container("")], ..PodSpec::default() };
        let requests = Requests::of(&spec);
        assert_eq!(requests.supposed_cpu, 1000 + SUPPOSED_MILLICORES);
        assert_eq!(requests.supposed_memory, 2 * SUPPOSED_BYTES);
    }

    #[test]
    fn the_pods_own_requests_replace_the_sum() {
        let whole = ResourceRequirements {
            requests: Some(resources("cpu=4")),
            ..ResourceRequirements::default()
        };
        let spec = PodSpec {
            containers: vec![container("cpu=1 memory=7")],
            resources: Some(whole),
            ..PodSpec::default()
        };
        let amounts = Requests::of(&spec).amounts;
        assert_eq!(amounts, [(CPU.into(), 4000), (MEMORY.into(), 7), (PODS.into(), 1)]);
    }
}
