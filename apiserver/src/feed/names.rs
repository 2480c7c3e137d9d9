//! The node that a pod is bound to, looked for in its JSON.

use std::borrow::Cow;

use memchr::memmem;
use serde::Deserialize;

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

const FIELD: &[u8] = b"\"nodeName\":\"";

/// Whether the pod of this JSON is bound to a node that `wanted` wants.
///
/// Most pods are told by a search for names that stand where the node's might; what is found may be
/// something else of that name, such as a label, so the pod is parsed then.
pub(super) fn node_of(json: &[u8], wanted: impl Fn(&str) -> bool) -> bool {
    let might = memmem::find_iter(json, FIELD).any(|at| {
        let rest = &json[at + FIELD.len()..];
        let end = memchr::memchr(b'"', rest).unwrap_or(rest.len());
        std::str::from_utf8(&rest[..end]).is_ok_and(&wanted)
    });
    might && serde_json::from_slice::<Pod<'_>>(json).is_ok_and(|it| wanted(&it.spec.node_name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_where_it_is_bound_counts() {
        let is = |pod: serde_json::Value| node_of(pod.to_string().as_bytes(), |it| it == "n1");
        assert!(is(json!({"spec": {"nodeName": "n1", "containers": []}})));
        assert!(!is(json!({"spec": {"nodeName": "n2"}})));
        assert!(!is(json!({"spec": {}})));
        assert!(!is(
            json!({"metadata": {"labels": {"nodeName": "n1"}}, "spec": {"nodeName": "n2"}})
        ));
        assert!(!is(json!({"spec": {"nodeSelector": {"nodeName": "n1"}}})));
        assert!(is(json!({"metadata": {"labels": {"nodeName": "x"}}, "spec": {"nodeName": "n1"}})));
        assert!(!is(json!({"metadata": {"annotations": {"a": "\"nodeName\":\"n1\""}}})));
    }
}
