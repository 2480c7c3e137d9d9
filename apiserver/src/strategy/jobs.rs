//! Jobs: how a job's pods are told from those of others.

use insula_api::object;
use serde_json::{Map, Value, json};

/// Labels the pods of a job as its own and selects them, unless its writer does so.
pub(super) fn own_pods(job: &mut Value) {
    if job["spec"].get("manualSelector") == Some(&Value::Bool(true)) {
        return;
    }
    let (name, uid) = (object::name(job).to_owned(), object::uid(job).to_owned());
    let mut labels =
        job.pointer("/spec/template/metadata/labels").and_then(Value::as_object).cloned();
    let labels = labels.get_or_insert_default();
    for prefix in ["", "batch.kubernetes.io/"] {
        for (label, value) in [("controller-uid", &uid), ("job-name", &name)] {
            labels.entry(format!("{prefix}{label}")).or_insert_with(|| value.as_str().into());
        }
    }
    job["spec"]["template"]["metadata"]["labels"] = labels.clone().into();
    // A job without labels has those of its pods.
    object::metadata_mut(job).entry("labels").or_insert_with(|| labels.clone().into());
    let selector = job["spec"].get("selector").and_then(Value::as_object).cloned();
    let mut selector = selector.unwrap_or_default();
    let wanted = selector.entry("matchLabels").or_insert_with(|| json!({}));
    if let Value::Object(wanted) = wanted {
        wanted.entry("batch.kubernetes.io/controller-uid").or_insert_with(|| uid.into());
    }
    job["spec"]["selector"] = Value::Object(Map::from_iter(selector));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_selects_its_own_pods() {
        let mut job =
            json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {}}}});
        own_pods(&mut job);
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"],
            json!({"controller-uid": "u", "job-name": "j", "batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "j"})
        );
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        let mut own =
            json!({"spec": {"manualSelector": true, "selector": {"matchLabels": {"a": "b"}}}});
        let before = own.clone();
        own_pods(&mut own);
        assert_eq!(own, before);
    }
}
