//! How much of a node's resources a pod takes.

use std::{collections::BTreeMap, sync::Arc};

use insula_api::{
    pods::{When, raise, together},
    quantity::Quantity,
};
use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, PodSpec, PodStatus},
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
type Quantities = BTreeMap<String, WireQuantity>;

/// An amount in the unit that the scheduler counts a resource in.
pub(crate) fn amount(resource: &str, quantity: &WireQuantity) -> i64 {
    // The API server lets no other text pass.
    let quantity = Quantity::parse(&quantity.0).unwrap_or(Quantity::ZERO);
    if resource == CPU { quantity.milli_value() } else { quantity.value() }
}

/// The condition of a pod whose resources are to be others than it has.
pub(crate) const RESIZE_PENDING: &str = "PodResizePending";

/// What a node has given a running pod, which may be more than the pod asks for by now (KEP-1287):
/// until a resize is done the larger amount counts.
#[derive(Debug, Default)]
struct Given<'a> {
    by_container: Vec<(&'a str, Amounts)>,
    whole: Option<Amounts>,
    /// The node will never give what is asked for, so that does not count.
    is_infeasible: bool,
}

impl<'a> Given<'a> {
    fn of(status: &'a PodStatus) -> Self {
        let all = status.container_statuses.iter().chain(&status.init_container_statuses);
        let of_container = |it: &'a ContainerStatus| {
            let actuated = it.resources.as_ref()?.requests.as_ref();
            Some((it.name.as_str(), larger(actuated, it.allocated_resources.as_ref())))
        };
        let whole = status
            .resources
            .as_ref()
            .map(|it| larger(it.requests.as_ref(), status.allocated_resources.as_ref()));
        let mut conditions = status.conditions.iter().flatten();
        let pending = conditions.find(|it| it.type_ == RESIZE_PENDING);
        Self {
            by_container: all.flatten().filter_map(of_container).collect(),
            whole,
            is_infeasible: pending.is_some_and(|it| it.reason.as_deref() == Some("Infeasible")),
        }
    }

    /// What counts of a container, of which only sidecars and those that run after initialisation
    /// are ever resized.
    fn effective(&self, container: &Container, is_resized: bool) -> Amounts {
        let asked = of_container(container);
        let mut given = self.by_container.iter().filter(|(name, _)| *name == container.name);
        match given.next().filter(|_| is_resized) {
            Some((_, given)) => self.of_both(asked, given),
            None => asked,
        }
    }

    fn of_both(&self, asked: Amounts, given: &Amounts) -> Amounts {
        let mut both = if self.is_infeasible { Amounts::new() } else { asked };
        raise(&mut both, given);
        both
    }
}

/// For each resource the larger of two amounts.
fn larger(a: Option<&Quantities>, b: Option<&Quantities>) -> Amounts {
    let mut amounts = Amounts::new();
    for (name, quantity) in a.into_iter().chain(b).flatten() {
        let highest = amounts.entry(name.clone()).or_default();
        *highest = amount(name, quantity).max(*highest);
    }
    amounts
}

/// Whether a node has given a pod anything else than it asks for.
pub(crate) fn is_being_resized(spec: &PodSpec, status: &PodStatus) -> bool {
    let given = Given::of(status);
    let init = spec.init_containers.iter().flatten();
    let differs = |it: &Container| given.effective(it, true) != of_container(it);
    spec.containers.iter().chain(init).any(differs) || given.whole.is_some()
}

impl Requests {
    /// The sum over containers, or what the initialisation before them takes at its peak if that
    /// is more; with the overhead of the runtime.
    pub(crate) fn of(spec: &PodSpec, status: Option<&PodStatus>) -> Self {
        let given = status.map(Given::of).unwrap_or_default();
        let mut asked = of_pod(spec, &given, &|it| it);
        let supposed = of_pod(spec, &given, &supposed_of_container);
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
fn of_pod(spec: &PodSpec, given: &Given<'_>, with: &dyn Fn(Amounts) -> Amounts) -> Amounts {
    let mut amounts = total(spec, &|it, is_resized| with(given.effective(it, is_resized)));
    let whole = spec.resources.as_ref().and_then(|it| it.requests.as_ref());
    let effective = given.whole.as_ref().map(|it| given.of_both(larger(whole, None), it));
    for (name, quantity) in whole.into_iter().flatten() {
        let counts = match &effective {
            Some(effective) => effective.get(name).copied().unwrap_or(0),
            None => amount(name, quantity),
        };
        amounts.insert(name.clone(), counts);
    }
    for (name, quantity) in spec.overhead.iter().flatten() {
        let sum = amounts.entry(name.clone()).or_default();
        *sum = sum.saturating_add(amount(name, quantity));
    }
    amounts
}

/// A sidecar is an init container that goes on running beside the containers.
fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn total(spec: &PodSpec, of: &dyn Fn(&Container, bool) -> Amounts) -> Amounts {
    let running = spec.containers.iter().map(|it| (When::Running, of(it, true)));
    let before = spec.init_containers.iter().flatten().map(|it| match is_sidecar(it) {
        true => (When::Beside, of(it, true)),
        false => (When::Before, of(it, false)),
    });
    together(running.chain(before))
}

fn of_container(container: &Container) -> Amounts {
    let requests = container.resources.as_ref().and_then(|it| it.requests.as_ref());
    requests
        .into_iter()
        .flatten()
        .map(|(name, quantity)| (name.clone(), amount(name, quantity)))
        .collect()
}

fn supposed_of_container(mut amounts: Amounts) -> Amounts {
    amounts.retain(|name, _| name == CPU || name == MEMORY);
    amounts.entry(CPU.to_owned()).or_insert(SUPPOSED_MILLICORES);
    amounts.entry(MEMORY.to_owned()).or_insert(SUPPOSED_BYTES);
    amounts
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
        let amounts = Requests::of(&spec, None).amounts;
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
        let requests = Requests::of(&spec, None);
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
        let amounts = Requests::of(&spec, None).amounts;
        assert_eq!(amounts, [(CPU.into(), 4000), (MEMORY.into(), 7), (PODS.into(), 1)]);
    }

    /// What a running pod has of a resource, whatever it asks for by now.
    #[track_caller]
    fn check_resize(asked: &str, actuated: &str, allocated: &str, reason: &str, expected: i64) {
        let cpu = |text: &str| resources(&format!("cpu={text}"));
        let mut status = ContainerStatus { name: "c".into(), ..ContainerStatus::default() };
        status.allocated_resources = Some(cpu(allocated));
        status.resources = Some(ResourceRequirements {
            requests: Some(cpu(actuated)),
            ..ResourceRequirements::default()
        });
        let pending: k8s_openapi::api::core::v1::PodCondition = serde_json::from_value(
            serde_json::json!({"type": RESIZE_PENDING, "status": "True", "reason": reason}),
        )
        .unwrap();
        let status = PodStatus {
            container_statuses: Some(vec![status]),
            conditions: Some(vec![pending]),
            ..PodStatus::default()
        };
        let containers = vec![Container { name: "c".into(), ..container(&format!("cpu={asked}")) }];
        let spec = PodSpec { containers, ..PodSpec::default() };
        let amounts = Requests::of(&spec, Some(&status)).amounts;
        assert_eq!(amounts[0], (CPU.into(), expected));
        // What differs has to be remembered.
        let asked = amount(CPU, &WireQuantity(asked.into()));
        assert_eq!(is_being_resized(&spec, &status), asked != expected);
    }

    #[test]
    fn while_a_pod_is_resized_the_larger_amount_counts() {
        check_resize("1", "1", "1", "", 1000);
        // It grows: asked for, allocated, done.
        check_resize("2", "1", "1", "Deferred", 2000);
        check_resize("2", "1", "2", "", 2000);
        // It shrinks: the old amount is given back last.
        check_resize("1", "2", "2", "", 2000);
        check_resize("1", "2", "1", "", 2000);
        // What it will never get is not counted.
        check_resize("9", "1", "1", "Infeasible", 1000);
    }
}
