//! Which objects a list or watch is about: label and field selectors.

use std::collections::BTreeMap;

use insula_api::{
    object,
    resources::Resource,
    selector::{FieldSelector, Selector},
};
use insula_partition::snapshot::Entry;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{ApiError, Result};

/// The selectors of one request. Empty ones match everything and read nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Matcher {
    labels: Option<Selector>,
    fields: Option<FieldSelector>,
}

/// The part of an object that label selectors look at.
#[derive(Deserialize)]
struct Labelled {
    #[serde(default)]
    metadata: Labels,
}

#[derive(Default, Deserialize)]
struct Labels {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl Matcher {
    pub(crate) fn parse(
        labels: Option<&str>,
        fields: Option<&str>,
        resource: &Resource,
    ) -> Result<Self> {
        let labels = labels
            .map(Selector::parse)
            .transpose()
            .map_err(|error| ApiError::bad_request(error.to_string()))?
            .filter(|selector| !selector.is_empty());
        let fields = fields
            .map(FieldSelector::parse)
            .transpose()
            .map_err(|error| ApiError::bad_request(error.to_string()))?
            .filter(|selector| !selector.is_empty());
        for term in fields.iter().flat_map(|selector| &selector.terms) {
            if path_of(resource, &term.field).is_none() {
                let shown: String = term.field.chars().take(128).collect();
                return Err(ApiError::bad_request(match resource.selectable_fields.is_empty() {
                    true => format!(
                        "{shown:?} is not a known field selector: \
                         only \"metadata.name\", \"metadata.namespace\""
                    ),
                    false => format!("field label not supported: {shown}"),
                }));
            }
        }
        Ok(Self { labels, fields })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_none() && self.fields.is_none()
    }

    pub(crate) fn matches(&self, resource: &Resource, entry: &Entry) -> bool {
        if let Some(selector) = &self.labels {
            let Ok(object) = serde_json::from_slice::<Labelled>(&entry.value) else { return false };
            if !selector.matches(&object.metadata.labels) {
                return false;
            }
        }
        if let Some(selector) = &self.fields {
            let Ok(object) = object::parse(&entry.value) else { return false };
            let values: BTreeMap<&str, String> = selector
                .terms
                .iter()
                .map(|term| (term.field.as_str(), field_of(resource, &object, &term.field)))
                .collect();
            return selector.matches(|field| values.get(field).map(String::as_str));
        }
        true
    }
}

/// The text of a selectable field, empty if absent.
fn field_of(resource: &Resource, object: &Value, field: &str) -> String {
    let Some(path) = path_of(resource, field) else { return String::new() };
    let value = path.split('.').try_fold(object, |value, part| value.get(part));
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => match field {
            "spec.unschedulable" | "spec.hostNetwork" => "false".into(),
            "status.replicas" | "status.successful" => "0".into(),
            _ => String::new(),
        },
        Some(other) => other.to_string(),
    }
}

/// Where a selectable field is; `None` if the resource does not offer it.
fn path_of<'a>(resource: &Resource, field: &'a str) -> Option<&'a str> {
    let known: &[&str] = match (&*resource.group, &*resource.name) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "namespaces") => &["status.phase"],
        ("", "secrets") => &["type"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("batch", "jobs") => &["status.successful"],
        ("certificates.k8s.io", "certificatesigningrequests") => &["spec.signerName"],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "events") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        _ => &[],
    };
    match (field, &*resource.name) {
        ("metadata.name", _) => Some(field),
        ("metadata.namespace", _) if resource.is_namespaced() => Some(field),
        ("spec.host", "pods") => Some("spec.nodeName"),
        ("name", "namespaces") => Some("metadata.name"),
        ("source", "events") if resource.group.is_empty() => Some("source.component"),
        _ => {
            let defined = resource.selectable_fields.iter().any(|it| it == field);
            (defined || known.contains(&field)).then_some(field)
        }
    }
}
