//! What a node can run, by what it says of its runtimes.

use k8s_openapi::api::core::v1::Node;

/// Said by node agents of ours; nodes of others run containers without a word.
const CONTAINERS: &str = "ContainerRuntimeReady";
/// Said of a runtime of virtual machines; where nothing is said there is none.
const MACHINES: &str = "VmRuntimeReady";

/// Conditions of nodes that decide here.
pub(crate) const CONDITIONS: [&str; 2] = [CONTAINERS, MACHINES];

/// Which runtimes of a node are ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Runtimes {
    pub(crate) containers: bool,
    pub(crate) machines: bool,
}

impl Runtimes {
    pub(super) fn of(node: &Node) -> Self {
        let status = |type_: &str| {
            let mut conditions = node.status.iter().flat_map(|it| it.conditions.iter().flatten());
            conditions.find(|it| it.type_ == type_).map(|it| it.status.as_str())
        };
        Self {
            containers: status(CONTAINERS) != Some("False"),
            machines: status(MACHINES) == Some("True"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn runtimes_are_ready_as_conditions_say() {
        let of = |conditions: &[(&str, &str)]| {
            let conditions: Vec<_> = conditions
                .iter()
                .map(|(type_, status)| json!({"type": type_, "status": status}))
                .collect();
            let node = json!({"status": {"conditions": conditions}});
            let it = Runtimes::of(&serde_json::from_value(node).unwrap());
            (it.containers, it.machines)
        };
        assert_eq!(of(&[]), (true, false));
        assert_eq!(of(&[(CONTAINERS, "True"), (MACHINES, "True")]), (true, true));
        assert_eq!(of(&[(CONTAINERS, "False"), (MACHINES, "True")]), (false, true));
        assert_eq!(of(&[(CONTAINERS, "True"), (MACHINES, "False")]), (true, false));
        assert_eq!(of(&[(MACHINES, "Unknown")]), (true, false));
    }
}
