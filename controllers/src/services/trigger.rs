//! When what is behind a service changed, for those who measure how long it takes until it is told.
//!
//! Upstream remembers of every pod of every service when its readiness changed last. What was told
//! last says as much: a pod whose readiness it does not show has changed it since.

use std::{collections::HashMap, sync::Arc};

use insula_client::Tenanted;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::objects::{is_pod_ready, readiness_since};

/// On Endpoints and slices: when the first of the changes happened that their last write tells.
pub(super) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// When the first change happened that is not told yet. `told` says of pods, by uid, whether they
/// were told to be ready; it is `None` if nothing was told of the service. The end of a pod has no
/// time of its own, nor has a change of the service.
pub(super) fn since(
    service: &Tenanted<Service>,
    pods: &[Arc<Tenanted<Pod>>],
    told: Option<&HashMap<String, bool>>,
) -> Option<Timestamp> {
    let Some(told) = told else {
        return service.metadata.creation_timestamp.as_ref().map(|it| it.0);
    };
    let is_untold = |pod: &&Arc<Tenanted<Pod>>| told.get(pod.uid()) != Some(&is_pod_ready(pod));
    pods.iter().filter(is_untold).filter_map(|pod| readiness_since(pod)).min()
}

/// Notes on what is about to be written when its changes began, or that nobody knows.
pub(super) fn note(meta: &mut ObjectMeta, since: Option<Timestamp>) {
    let mut annotations = meta.annotations.take().unwrap_or_default();
    match since {
        Some(since) => drop(annotations.insert(TRIGGER_TIME.to_owned(), since.to_string())),
        None => drop(annotations.remove(TRIGGER_TIME)),
    }
    meta.annotations = Some(annotations).filter(|it| !it.is_empty());
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ready: &str, second: u32) -> Arc<Tenanted<Pod>> {
        let object = serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name},
            "status": {"conditions": [{"type": "Ready", "status": ready,
                "lastTransitionTime": format!("2026-01-01T00:00:0{second}Z")}]},
        }));
        Arc::new(Tenanted { tenant: TenantName::system(), object: object.unwrap() })
    }

    #[test]
    fn the_first_change_that_was_not_told_counts() {
        let object = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}});
        let object = serde_json::from_value(object).unwrap();
        let service = Tenanted { tenant: TenantName::system(), object };
        let pods = [pod("a", "True", 5), pod("b", "True", 3), pod("c", "False", 1)];
        let seconds = |told: Option<&[(&str, bool)]>| {
            let told: Option<HashMap<String, bool>> =
                told.map(|it| it.iter().map(|(uid, ready)| ((*uid).to_owned(), *ready)).collect());
            since(&service, &pods, told.as_ref()).map(|it| it.as_second() % 60)
        };
        assert_eq!(seconds(None), Some(0), "a new service");
        assert_eq!(seconds(Some(&[])), Some(1));
        assert_eq!(seconds(Some(&[("c", false)])), Some(3));
        assert_eq!(seconds(Some(&[("c", false), ("b", true), ("a", false)])), Some(5));
        let all = [("c", false), ("b", true), ("a", true), ("gone", true)];
        assert_eq!(seconds(Some(&all)), None);
    }

    #[test]
    fn what_is_noted_is_replaced_or_taken_away() {
        let mut meta = ObjectMeta::default();
        note(&mut meta, Some(Timestamp::UNIX_EPOCH));
        assert_eq!(meta.annotations.as_ref().unwrap()[TRIGGER_TIME], "1970-01-01T00:00:00Z");
        note(&mut meta, None);
        assert_eq!(meta.annotations, None);
    }
}
