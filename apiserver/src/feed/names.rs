//! The nodes that pods are bound to, found in their JSON once for all feeds.
//!
//! Every feed is told of every change of a pod, and nearly all of them have nothing to do with it.
//! What the first finds lies here for the others, until another event takes its place.

use std::{borrow::Cow, sync::Arc};

use insula_partition::watch::Event;
use memchr::memmem;
use serde::Deserialize;

use crate::per_event::PerEvent;

/// So many are kept: of some batches, as feeds are not all equally far.
const SLOTS: usize = 1024;

#[derive(Deserialize)]
struct Pod<'a> {
    #[serde(borrow, default)]
    spec: Spec<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    #[serde(borrow, default)]
    node_name: Cow<'a, str>,
}

/// The node that the pod of this JSON is bound to.
pub(super) fn node_of(json: &[u8]) -> Option<Box<str>> {
    // What is found may be something else of that name, such as a label; what is not needs no
    // parsing.
    memmem::find(json, b"\"nodeName\":\"")?;
    let pod: Pod<'_> = serde_json::from_slice(json).ok()?;
    Some(pod.spec.node_name).filter(|it| !it.is_empty()).map(|it| it.into())
}

/// Where a pod was bound to before a change, and where it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) was: Option<Box<str>>,
    pub(crate) is: Option<Box<str>>,
}

impl Bound {
    pub(crate) fn new(event: &Event) -> Self {
        let is = node_of(&event.entry.value.bytes());
        let was = event.previous.as_ref().and_then(|it| node_of(&it.value.bytes()));
        Self { was, is: is.filter(|_| !event.deleted) }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Names(PerEvent<(), Arc<Bound>>);

impl Default for Names {
    fn default() -> Self {
        Self(PerEvent::new(SLOTS))
    }
}

impl Names {
    /// What a change of a pod says of where it is bound.
    pub(super) fn of(&self, event: &Arc<Event>) -> Arc<Bound> {
        self.0.one(event, || Arc::new(Bound::new(event)))
    }
}

#[cfg(test)]
mod tests {
    use insula_partition::{snapshot::Entry, store::Revision};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_where_it_is_bound_counts() {
        let of = |pod: Value| node_of(pod.to_string().as_bytes());
        let n1 = Some("n1".into());
        assert_eq!(of(json!({"spec": {"nodeName": "n1", "containers": []}})), n1);
        assert_eq!(of(json!({"spec": {"nodeName": ""}})), None);
        assert_eq!(of(json!({"spec": {}})), None);
        assert_eq!(
            of(json!({"metadata": {"labels": {"nodeName": "n2"}}, "spec": {"nodeName": "n1"}})),
            n1
        );
        assert_eq!(of(json!({"spec": {"nodeSelector": {"nodeName": "n1"}}})), None);
        assert_eq!(of(json!({"metadata": {"annotations": {"a": "\"nodeName\":\"n1\""}}})), None);
    }

    #[test]
    fn it_is_found_once_and_never_taken_for_anothers() {
        let pod = |node: &str| json!({"spec": {"nodeName": node}}).to_string();
        let event = |revision: u64, was: Option<&str>, is: &str, deleted: bool| {
            let entry = |node: &str| Entry {
                value: bytes::Bytes::from(pod(node)).into(),
                modified: Revision(revision),
            };
            let (entry, previous) = (entry(is), was.map(entry));
            let key = "acme/ns/a".into();
            Arc::new(Event { revision: Revision(revision), key, entry, previous, deleted })
        };
        let names = Names::default();
        let first = event(7, Some(""), "n1", false);
        let found = names.of(&first);
        assert_eq!(*found, Bound { was: None, is: Some("n1".into()) });
        assert!(Arc::ptr_eq(&found, &names.of(&first)), "found again");
        // One of another partition, one that has its place, and one that took the memory of it.
        let other = event(7, Some("n1"), "n2", false);
        assert_eq!(*names.of(&other), Bound { was: Some("n1".into()), is: Some("n2".into()) });
        drop((first, other));
        let gone = event(7, Some("n2"), "n2", true);
        assert_eq!(*names.of(&gone), Bound { was: Some("n2".into()), is: None });
    }
}
