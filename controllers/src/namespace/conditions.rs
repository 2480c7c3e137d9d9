//! What a namespace that is ending says of what is left in it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NamespaceCondition;

use super::Leftovers;
use crate::objects::to_time;

/// All five conditions, with the times of those that did not change.
pub(super) fn conditions(
    leftovers: &Leftovers,
    known: &[NamespaceCondition],
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let condition = |kind: &str, trouble: Option<(&str, String)>, fine: (&str, &str)| {
        let (status, reason, message) = match trouble {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", fine.0, fine.1.to_owned()),
        };
        let before = known.iter().find(|it| it.type_ == kind && it.status == status);
        let since = before.and_then(|it| it.last_transition_time.clone());
        NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(since.unwrap_or_else(|| to_time(now))),
        }
    };
    let undiscovered = (!leftovers.undiscovered.is_empty()).then(|| {
        let groups = leftovers.undiscovered.join(", ");
        let message = format!(
            "Discovery failed for some groups, {} failing: {groups}",
            leftovers.undiscovered.len()
        );
        ("DiscoveryFailed", message)
    });
    let failed = (!leftovers.failures.is_empty()).then(|| {
        let message = format!(
            "Failed to delete all resource types, {} remaining: {}",
            leftovers.failures.len(),
            leftovers.failures.join(", ")
        );
        ("ContentDeletionFailed", message)
    });
    let remaining = (!leftovers.remaining.is_empty()).then(|| {
        let list = listed(&leftovers.remaining, "has", "resource instances");
        ("SomeResourcesRemain", format!("Some resources are remaining: {list}"))
    });
    let finalizers = (!leftovers.finalizers.is_empty()).then(|| {
        let list = listed(&leftovers.finalizers, "in", "resource instances");
        let message = format!("Some content in the namespace has finalizers remaining: {list}");
        ("SomeFinalizersRemain", message)
    });
    vec![
        condition(
            "NamespaceDeletionDiscoveryFailure",
            undiscovered,
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        condition(
            "NamespaceDeletionContentFailure",
            failed,
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        condition(
            "NamespaceContentRemaining",
            remaining,
            ("ContentRemoved", "All content successfully removed"),
        ),
        condition(
            "NamespaceFinalizersRemaining",
            finalizers,
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ]
}

fn listed(counts: &BTreeMap<String, usize>, verb: &str, noun: &str) -> String {
    let item = |(name, count): (&String, &usize)| {
        // Resources of the core group are followed by the dot before their empty group.
        let dot = if verb == "has" && !name.contains('.') { "." } else { "" };
        format!("{name}{dot} {verb} {count} {noun}")
    };
    counts.iter().map(item).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_told_and_times_kept() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut leftovers = Leftovers::default();
        leftovers.remaining.insert("pods".into(), 2);
        leftovers.remaining.insert("widgets.example.com".into(), 1);
        leftovers.finalizers.insert("example.com/keep".into(), 1);
        let first = conditions(&leftovers, &[], at(10));
        let shown: Vec<_> = first
            .iter()
            .map(|it| (it.status.as_str(), it.reason.as_deref().unwrap_or_default()))
            .collect();
        assert_eq!(
            shown,
            [
                ("False", "ResourcesDiscovered"),
                ("False", "ParsedGroupVersions"),
                ("False", "ContentDeleted"),
                ("True", "SomeResourcesRemain"),
                ("True", "SomeFinalizersRemain"),
            ]
        );
        assert_eq!(
            first[3].message.as_deref(),
            Some(
                "Some resources are remaining: pods. has 2 resource instances, \
                 widgets.example.com has 1 resource instances"
            )
        );
        leftovers.finalizers.clear();
        let second = conditions(&leftovers, &first, at(20));
        let since = |it: &NamespaceCondition| it.last_transition_time.as_ref().unwrap().0;
        assert_eq!((since(&second[3]), since(&second[4])), (at(10), at(20)));
    }
}
