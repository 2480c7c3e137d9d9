//! The columns of each resource, as upstream's printers have them: `api/tables/columns.tsv`.

use std::{collections::HashMap, sync::LazyLock};

use insula_api::resources::Resource;
use serde_json::Value;

use super::{
    Cell, Column,
    cells::{self, more},
    pod,
};

const TABLE: &str = include_str!("../../../api/tables/columns.tsv");

type Function = fn(&Value) -> Value;

/// Cells that need logic, by their names in the table.
const FUNCTIONS: &[(&str, Function)] = &[
    ("access_modes", cells::access_modes),
    ("active_jobs", cells::active_jobs),
    ("api_available", more::api_available),
    ("api_service", more::api_service),
    ("certificate_condition", more::certificate_condition),
    ("claim", cells::claim),
    ("claim_state", more::claim_state),
    ("class_parameters", more::class_parameters),
    ("component_error", more::component_error),
    ("component_message", more::component_message),
    ("component_status", more::component_status),
    ("containers_of_template", more::containers_of_template),
    ("controller", more::controller),
    ("data", cells::data),
    ("endpoints", more::endpoints),
    ("access_modes_of_claim", cells::access_modes_of_claim),
    ("event_first_seen", cells::event_first_seen),
    ("event_last_seen", cells::event_last_seen),
    ("event_object", cells::event_object),
    ("event_source", cells::event_source),
    ("external_ip", cells::external_ip),
    ("groups", cells::groups),
    ("images_of_template", more::images_of_template),
    ("ingress_address", more::ingress_address),
    ("ingress_hosts", more::ingress_hosts),
    ("ingress_ports", more::ingress_ports),
    ("job_completions", cells::job_completions),
    ("job_duration", cells::job_duration),
    ("job_status", cells::job_status),
    ("pod_group_policy", cells::pod_group_policy),
    ("pod_group_status", cells::pod_group_status),
    ("job_template_containers", more::job_template_containers),
    ("job_template_images", more::job_template_images),
    ("job_template_selector", more::job_template_selector),
    ("label_selector", cells::label_selector),
    ("labels_of_template", more::labels_of_template),
    ("metrics", more::metrics),
    ("missing_level", more::missing_level),
    ("moved", cells::moved),
    ("name_of_class", more::name_of_class),
    ("node_external_ip", cells::node_external_ip),
    ("node_internal_ip", cells::node_internal_ip),
    ("node_roles", cells::node_roles),
    ("node_selector", cells::node_selector),
    ("node_status", cells::node_status),
    ("param_kind", more::param_kind),
    ("param_ref", more::param_ref),
    ("parent_ref", more::parent_ref),
    ("phase", more::phase),
    ("pod_readiness_gates", pod::readiness_gates),
    ("pod_ready", pod::ready),
    ("pod_restarts", pod::restarts),
    ("pod_selector", more::pod_selector),
    ("pod_status", pod::status),
    ("quota_limits", more::quota_limits),
    ("quota_requests", more::quota_requests),
    ("ready_of_replicas", cells::ready_of_replicas),
    ("requested_duration", more::requested_duration),
    ("role_ref", cells::role_ref),
    ("scale_target", more::scale_target),
    ("service_accounts", cells::service_accounts),
    ("service_ports", cells::service_ports),
    ("service_selector", cells::service_selector),
    ("slice_endpoints", more::slice_endpoints),
    ("slice_ports", more::slice_ports),
    ("suspend", cells::suspend),
    ("template_containers", cells::template_containers),
    ("template_images", cells::template_images),
    ("token_requests", more::token_requests),
    ("users", cells::users),
];

/// The columns of `resource`.
pub(super) fn of(resource: &Resource) -> &'static [Column] {
    // Both groups of events show the same.
    let group = match (&*resource.group, &*resource.name) {
        ("events.k8s.io", "events") => "",
        (group, _) => group,
    };
    named(group, &resource.name)
}

/// The columns of what says how many replicas there are of an object.
pub(super) fn of_scales() -> &'static [Column] {
    named("autoscaling", SCALES)
}

/// Rows by this name are of no resource, but of a part of several.
const SCALES: &str = "scales";

fn named(group: &str, name: &str) -> &'static [Column] {
    static COLUMNS: LazyLock<HashMap<&str, HashMap<&str, Vec<Column>>>> = LazyLock::new(|| {
        let mut all: HashMap<_, HashMap<_, Vec<Column>>> = HashMap::new();
        for row in TABLE.lines().filter(|row| !row.starts_with('#')) {
            let mut columns = [""; 6];
            for (slot, column) in columns.iter_mut().zip(row.split('\t')) {
                *slot = column;
            }
            let [group, resource, name, kind, priority, cell] = columns;
            if let Some(cell) = parse(cell) {
                let priority = priority.parse().unwrap_or(0);
                let it = Column { name, kind, priority, cell };
                all.entry(group).or_default().entry(resource).or_default().push(it);
            }
        }
        all
    });
    let get = |group: &str, name: &str| COLUMNS.get(group)?.get(name);
    get(group, name).or_else(|| get("*", "*")).map_or(&[], Vec::as_slice)
}

fn parse(text: &'static str) -> Option<Cell> {
    if let Some(name) = text.strip_suffix("()") {
        return FUNCTIONS.iter().find(|it| it.0 == name).map(|it| Cell::Computed(it.1));
    }
    Some(match text.split_once(' ') {
        Some(("since", path)) => Cell::Since(path),
        Some(("join", path)) => Cell::Join(path),
        Some(("text", path)) => {
            let (path, absent) = path.split_once('|').unwrap_or((path, ""));
            Cell::Text(path, absent)
        }
        Some(("count", path)) => Cell::Count(path),
        Some(_) => return None,
        None => {
            let (path, absent) = text.split_once('|').unwrap_or((text, ""));
            Cell::Path(path, absent)
        }
    })
}

#[cfg(test)]
mod tests {
    use insula_api::resources::built_in;

    use super::*;

    #[test]
    fn every_row_is_of_a_resource_and_has_a_cell() {
        for row in TABLE.lines().filter(|row| !row.starts_with('#')) {
            let columns: Vec<&str> = row.split('\t').collect();
            let [group, resource, _, kind, priority, cell] = columns[..] else { panic!("{row}") };
            let known = built_in().iter().any(|it| it.group == group && it.name == resource);
            assert!(known || group == "*" || resource == SCALES, "{row}");
            assert!(["string", "integer", "boolean", "date"].contains(&kind), "{row}");
            assert!(["0", "1"].contains(&priority), "{row}");
            assert!(parse(Box::leak(cell.to_owned().into_boxed_str())).is_some(), "{row}");
        }
    }

    #[test]
    fn every_function_is_of_use() {
        for (name, _) in FUNCTIONS {
            assert!(TABLE.contains(&format!("\t{name}()")), "{name}");
        }
    }
}
