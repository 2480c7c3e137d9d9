//! Small questions that controllers ask of objects.

use std::{borrow::Cow, collections::BTreeMap};

use insula_api::selector::{Selector, SelectorError};
pub(crate) use insula_client::compile;
use insula_client::{Kind, Object, Tenanted};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, Pod, PodCondition},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, OwnerReference, Time},
        util::intstr::IntOrString,
    },
};

use serde_json::{Value, json};

use crate::controller::ReconcileError;

/// The letters of generated names: none that could form words or be misread.
const NAME_LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// The longest base of a generated name; five letters follow.
const MAX_BASE: usize = 58;

/// A name as the server would generate it from `metadata.generateName`.
pub(crate) fn generated_name(base: &str) -> String {
    let mut name: String = base.chars().take(MAX_BASE).collect();
    for _ in 0..5 {
        let letter = NAME_LETTERS[rand::random_range(0..NAME_LETTERS.len())];
        name.push(char::from(letter));
    }
    name
}

/// Writes a number in the letters of generated names, digit by digit, so that it spells no word.
pub(crate) fn safe_number(number: u32) -> String {
    let letter = |digit: u8| char::from(NAME_LETTERS[usize::from(digit) % NAME_LETTERS.len()]);
    number.to_string().bytes().map(letter).collect()
}

/// An annotation of an object.
pub(crate) fn annotation<'a>(object: &'a impl Object, key: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(key).map(String::as_str)
}

/// The one owner that manages an object.
pub(crate) fn controller_of(object: &impl Object) -> Option<&OwnerReference> {
    object.meta().owner_references.iter().flatten().find(|it| it.controller == Some(true))
}

/// The uid of the one owner that manages an object.
pub(crate) fn controller_uid(object: &impl Object) -> Option<&str> {
    controller_of(object).map(|owner| owner.uid.as_str())
}

/// A reference to `owner` as the one that manages an object.
pub(crate) fn controller_reference<K: Kind>(owner: &Tenanted<K>) -> OwnerReference {
    let resource = K::resource();
    OwnerReference {
        api_version: resource.api_version(),
        kind: resource.kind.into_owned(),
        name: owner.name().to_owned(),
        uid: owner.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Like [`compile`], with an error that names the object.
pub(crate) fn compile_of<K: Object>(
    object: &Tenanted<K>,
    selector: &LabelSelector,
) -> Result<Selector, ReconcileError> {
    compile(selector).map_err(|error| ReconcileError::Invalid {
        object: object.key().to_string(),
        why: error.to_string(),
    })
}

/// A selector of those that have all of these labels. One without any is none.
pub(crate) fn equal_to(
    labels: Option<&BTreeMap<String, String>>,
) -> Option<Result<Selector, SelectorError>> {
    let labels = labels.filter(|it| !it.is_empty())?;
    let equal = labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let none: [(&str, &str, &[String]); 0] = [];
    Some(Selector::from_parts(equal, none))
}

/// Whether a selector matches an object's labels.
pub(crate) fn selects(selector: &Selector, object: &impl Object) -> bool {
    let labels = object.meta().labels.as_ref();
    selector.matches_by(|key| labels.and_then(|labels| labels.get(key)).map(String::as_str))
}

/// A number, or a share of `total` in percent.
pub(crate) fn share_of(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    let percent = match value {
        IntOrString::Int(number) => return (*number).max(0),
        IntOrString::String(text) => {
            text.strip_suffix('%').and_then(|number| number.parse::<u32>().ok()).unwrap_or(0)
        }
    };
    let share = i64::from(total) * i64::from(percent);
    let share = if round_up { (share + 99) / 100 } else { share / 100 };
    i32::try_from(share).unwrap_or(i32::MAX)
}

/// The condition of a pod that is disrupted.
pub(crate) fn disruption(reason: &str, message: &str) -> Value {
    json!({
        "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
        "lastTransitionTime": to_time(Timestamp::now()),
    })
}

/// The claims whose volumes a pod uses: those it names, and those made for it.
pub(crate) fn claims_of(pod: &Pod) -> impl Iterator<Item = Cow<'_, str>> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes.into_iter().flatten().filter_map(move |volume| {
        match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(named), _) => Some(Cow::Borrowed(&*named.claim_name)),
            (None, Some(_)) => Some(Cow::Owned(format!("{name}-{}", volume.name))),
            (None, None) => None,
        }
    })
}

/// Whether a node says that it is ready, and nobody else that it is not.
pub(crate) fn is_node_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True")
}

/// Where a pod is, if it has been given a place.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|it| !it.is_empty())
}

pub(crate) fn pod_phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether a pod's containers have ended for good.
pub(crate) fn is_pod_finished(pod: &Pod) -> bool {
    matches!(pod_phase(pod), "Succeeded" | "Failed")
}

/// Whether a pod counts towards what its controller wants.
pub(crate) fn is_pod_active(pod: &Tenanted<Pod>) -> bool {
    !is_pod_finished(pod) && !pod.is_deleting()
}

fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|it| it.type_ == "Ready")
}

pub(crate) fn is_pod_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some_and(|it| it.status == "True")
}

/// When a pod became ready, or ceased to be.
pub(crate) fn readiness_since(pod: &Pod) -> Option<Timestamp> {
    ready_condition(pod)?.last_transition_time.as_ref().map(|time| time.0)
}

/// Since when a pod is ready.
pub(crate) fn pod_ready_since(pod: &Pod) -> Option<Timestamp> {
    readiness_since(pod).filter(|_| is_pod_ready(pod))
}

/// Whether a pod has been ready for as long as its controller asks.
pub(crate) fn is_pod_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_pod_ready(pod)
        && (min_ready_seconds <= 0
            || pod_ready_since(pod).is_some_and(|since| {
                since.as_second() + i64::from(min_ready_seconds) <= now.as_second()
            }))
}

/// The time as objects carry it: whole seconds.
pub(crate) fn to_time(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodStatus;

    use super::*;

    #[test]
    fn generated_names_fit_a_label() {
        let name = generated_name(&"x".repeat(200));
        assert_eq!(name.len(), 63);
        assert!(insula_api::names::is_dns1123_label(&name));
        assert!(generated_name("web-").starts_with("web-"));
    }

    #[test]
    fn safe_numbers_are_distinct_and_spell_nothing() {
        assert_eq!(safe_number(0), "4");
        assert_eq!(safe_number(1_234_567_890), "56789bcdf4");
        assert_ne!(safe_number(12), safe_number(21));
    }

    #[test]
    fn availability_takes_its_time() {
        let now = Timestamp::from_second(1000).unwrap();
        let pod = |since: i64| Pod {
            status: Some(PodStatus {
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: "True".into(),
                    last_transition_time: Some(Time(Timestamp::from_second(since).unwrap())),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        assert!(is_pod_available(&pod(1000), 0, now));
        assert!(is_pod_available(&pod(990), 10, now));
        assert!(!is_pod_available(&pod(991), 10, now));
        assert!(!is_pod_available(&Pod::default(), 0, now));
    }
}
