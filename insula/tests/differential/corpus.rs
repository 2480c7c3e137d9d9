//! The requests: for each kind of `corpus/` its life and its bad input, what is asked once, the
//! life of a definition of custom resources, what is applied again, and policies of admission.

use serde::Deserialize;
use serde_json::{Value, json};

const KINDS: [&str; 3] = [
    include_str!("corpus/core.yaml"),
    include_str!("corpus/workloads.yaml"),
    include_str!("corpus/cluster.yaml"),
];
const ONCE: &str = include_str!("corpus/once.yaml");
const CUSTOM: &str = include_str!("corpus/custom.yaml");
const AGAIN: &str = include_str!("corpus/again.yaml");
const POLICIES: &str = include_str!("corpus/policies.yaml");

/// Where namespaced objects are made.
pub(crate) const NAMESPACE: &str = "diff";

/// A PEM request for a certificate, which the corpus names by `CSR`.
const CERTIFICATE_REQUEST: &str = include_str!("corpus/request.pem.base64");

/// A kind, by an object of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kind {
    /// `api/v1/pods`, `apis/GROUP/VERSION/RESOURCE`.
    at: String,
    #[serde(default)]
    cluster: bool,
    /// The platform's alone: asked as its administrator.
    #[serde(default)]
    pub(crate) fleet: bool,
    pub(crate) object: Value,
    /// A merge patch that is allowed.
    pub(crate) change: Value,
    /// Merge patches that make the object one that is refused when it is made.
    #[serde(default)]
    pub(crate) bad: Vec<Value>,
    /// Merge patches that are refused when it is there.
    #[serde(default)]
    pub(crate) frozen: Vec<Value>,
}

/// A request by itself: it depends on none before it, or on all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Once {
    pub(crate) name: String,
    #[serde(default = "get")]
    pub(crate) method: String,
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) headers: std::collections::BTreeMap<String, String>,
    /// Sent as JSON, or as it is if it is text.
    #[serde(default)]
    pub(crate) body: Option<Value>,
    /// It is asked again until it is answered so: what came before takes its time.
    #[serde(default)]
    pub(crate) until: Option<u16>,
}

fn get() -> String {
    "GET".into()
}

impl Kind {
    /// All of them, by the name of the file that holds their answers.
    pub(crate) fn all() -> Vec<Self> {
        let kinds = KINDS.iter().flat_map(|text| {
            let text =
                text.replace("request: CSR", &format!("request: {}", CERTIFICATE_REQUEST.trim()));
            serde_saphyr::from_str::<Vec<Self>>(&text).unwrap()
        });
        kinds.collect()
    }

    /// `deployments.apps.v1 one`, the beginning of its requests' names.
    pub(crate) fn title(&self) -> String {
        let parts: Vec<&str> = self.at.split('/').collect();
        let place = match parts[..] {
            ["api", version, resource] => format!("{resource}.{version}"),
            ["apis", group, version, resource] => format!("{resource}.{version}.{group}"),
            _ => panic!("{} is no place", self.at),
        };
        format!("{place} {}", self.name())
    }

    pub(crate) fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap()
    }

    /// The path of the collection.
    pub(crate) fn path(&self) -> String {
        if self.cluster {
            return format!("/{}", self.at);
        }
        let (group_version, resource) = self.at.rsplit_once('/').unwrap();
        format!("/{group_version}/namespaces/{NAMESPACE}/{resource}")
    }

    pub(crate) fn with(&self, patch: &Value) -> Value {
        let mut object = self.object.clone();
        merge(&mut object, patch);
        object
    }
}

impl Once {
    pub(crate) fn all() -> Vec<Self> {
        serde_saphyr::from_str(ONCE).unwrap()
    }

    /// Those about custom resources, each after the one before it.
    pub(crate) fn of_custom() -> Vec<Self> {
        serde_saphyr::from_str(CUSTOM).unwrap()
    }

    /// Those about what is applied again and deleted together, likewise.
    pub(crate) fn of_again() -> Vec<Self> {
        serde_saphyr::from_str(AGAIN).unwrap()
    }

    /// Those about policies of admission, likewise.
    pub(crate) fn of_policies() -> Vec<Self> {
        serde_saphyr::from_str(POLICIES).unwrap()
    }
}

/// RFC 7386.
pub(crate) fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (field, value) in fields {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(field);
        } else {
            merge(&mut into[field], value);
        }
    }
}
