//! What a pod asks for: sums over its parts.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    object,
    pods::{parts, together},
    quantity::Quantity,
};

/// Amounts by the name of what they are of.
pub type Amounts = BTreeMap<String, Quantity>;

/// Reads a map of amounts. What is none counts as nothing; validation has its say about it.
pub fn read(map: Option<&Value>) -> Amounts {
    let entries = map.and_then(Value::as_object).into_iter().flatten();
    entries
        .filter_map(|(name, it)| Some((name.clone(), Quantity::parse(it.as_str()?).ok()?)))
        .collect()
}

/// The `requests` or `limits` of a container, or of a virtual machine.
pub fn of_container(container: &Value, which: &str) -> Amounts {
    read(object::at(container, &["resources", which]))
}

/// Adds amounts to sums that others are taken away from later, so nothing is cut off.
pub fn put_in(sums: &mut Amounts, more: &Amounts) {
    change(sums, more, Quantity::exact_add);
}

/// Takes amounts away from sums. What nothing is left of is left out.
pub fn take_out(sums: &mut Amounts, less: &Amounts) {
    change(sums, less, Quantity::exact_sub);
}

fn change(sums: &mut Amounts, by: &Amounts, how: impl Fn(Quantity, Quantity) -> Quantity) {
    for (name, amount) in by {
        match sums.get_mut(name) {
            Some(sum) => *sum = how(*sum, *amount),
            None => drop(sums.insert(name.clone(), how(Quantity::ZERO, *amount))),
        }
    }
    sums.retain(|_, sum| !sum.is_zero());
}

/// The `requests` or `limits` of all that a pod consists of.
pub fn of_pod(pod: &Value, which: &str) -> Amounts {
    let spec = &pod["spec"];
    let mut all = together(parts(spec).map(|(when, it)| (when, of_container(it, which))));
    // What is said of the pod as a whole counts instead.
    for (name, amount) in read(object::at(spec, &["resources", which])) {
        if matches!(name.as_str(), "cpu" | "memory") {
            all.insert(name, amount);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_before_and_beside() {
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        let pod = json!({"spec": {
            "containers": [{"resources": cpu("1")}, {"resources": cpu("500m")}],
            "initContainers": [
                {"resources": cpu("100m"), "restartPolicy": "Always"},
                {"resources": cpu("2")},
            ],
        }});
        let found = of_pod(&pod, "requests");
        assert_eq!(found.get("cpu").map(ToString::to_string).as_deref(), Some("2100m"));
        let mut pod = pod;
        pod["spec"]["resources"] = json!({"requests": {"cpu": "3", "other": "1"}});
        let found = of_pod(&pod, "requests");
        assert_eq!(found.get("cpu").map(ToString::to_string).as_deref(), Some("3"));
        assert!(!found.contains_key("other"));
    }
}
