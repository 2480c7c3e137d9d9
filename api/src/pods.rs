//! Of what a pod consists, containers or a virtual machine, and how much of something that is
//! together: whoever counts what pods ask for, or may have, counts with this.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::quantity::Quantity;

/// When a part of a pod runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// After all that comes before, until the end: a container, or the virtual machine.
    Running,
    /// From its turn on until the end: a sidecar.
    Beside,
    /// In its turn, beside the sidecars that began before it: an init container.
    Before,
}

/// How much of something; never wraps around.
pub trait Amount: Copy + Ord {
    fn plus(self, more: Self) -> Self;
}

impl Amount for i64 {
    fn plus(self, more: Self) -> Self {
        self.saturating_add(more)
    }
}

impl Amount for Quantity {
    fn plus(self, more: Self) -> Self {
        self.saturating_add(more)
    }
}

/// The field of a pod's specification that has a virtual machine in it, in the place of
/// containers.
pub const MACHINE: &str = "virtualMachine";

/// All parts of a pod's specification that ask for something: first those that run, then those
/// that begin before them, in their order.
pub fn parts(spec: &Value) -> impl Iterator<Item = (When, &Value)> {
    spec.as_object().into_iter().flat_map(parts_in)
}

/// The same, of a specification that is only a map yet.
pub fn parts_in(spec: &Map<String, Value>) -> impl Iterator<Item = (When, &Value)> {
    let list = |field: &str| spec.get(field).and_then(Value::as_array).into_iter().flatten();
    let machine = spec.get(MACHINE).filter(|it| it.is_object());
    let running = list("containers").chain(machine).map(|it| (When::Running, it));
    running.chain(list("initContainers").map(|it| {
        let is_sidecar = it.get("restartPolicy").is_some_and(|it| it == "Always");
        (if is_sidecar { When::Beside } else { When::Before }, it)
    }))
}

/// Adds amounts to others, by name.
pub fn add<A: Amount>(to: &mut BTreeMap<String, A>, more: &BTreeMap<String, A>) {
    for (name, amount) in more {
        match to.get_mut(name) {
            Some(sum) => *sum = sum.plus(*amount),
            None => drop(to.insert(name.clone(), *amount)),
        }
    }
}

/// Raises amounts to others where these are more.
pub fn raise<A: Amount>(to: &mut BTreeMap<String, A>, least: &BTreeMap<String, A>) {
    for (name, amount) in least {
        match to.get_mut(name) {
            Some(highest) => *highest = (*highest).max(*amount),
            None => drop(to.insert(name.clone(), *amount)),
        }
    }
}

/// How much parts, in the order of [`parts`], have at the same time at most: what runs at once is
/// added (KEP-753), and what runs before needs room of its own only if it is more.
pub fn together<A: Amount>(
    parts: impl IntoIterator<Item = (When, BTreeMap<String, A>)>,
) -> BTreeMap<String, A> {
    let (mut all, mut sidecars, mut before) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (when, mut own) in parts {
        match when {
            When::Running => add(&mut all, &own),
            When::Beside => {
                add(&mut all, &own);
                add(&mut sidecars, &own);
                raise(&mut before, &sidecars);
            }
            When::Before => {
                add(&mut own, &sidecars);
                raise(&mut before, &own);
            }
        }
    }
    raise(&mut all, &before);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_at_once_is_added() {
        use When::{Before, Beside, Running};
        let of = |parts: &[(When, i64)]| {
            let parts = parts.iter().map(|(when, n)| (*when, BTreeMap::from([("x".into(), *n)])));
            together(parts).get("x").copied()
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(Running, 1), (Running, 2)]), Some(3));
        assert_eq!(of(&[(Running, 1), (Before, 5), (Before, 4)]), Some(5));
        assert_eq!(of(&[(Running, 1), (Beside, 1), (Before, 3)]), Some(4));
        assert_eq!(of(&[(Running, 1), (Before, 3), (Beside, 1)]), Some(3));
        assert_eq!(of(&[(Running, i64::MAX), (Running, 1)]), Some(i64::MAX));
    }

    #[test]
    fn a_machine_is_a_part() {
        let spec = serde_json::json!({"virtualMachine": {"name": "vm"}, "initContainers": [
            {"restartPolicy": "Always"}, {}]});
        let whens: Vec<When> = parts(&spec).map(|(when, _)| when).collect();
        assert_eq!(whens, [When::Running, When::Beside, When::Before]);
        assert_eq!(parts(&serde_json::json!({"virtualMachine": null})).count(), 0);
    }
}
