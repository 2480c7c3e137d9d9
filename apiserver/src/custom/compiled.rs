//! What a definition is compiled to, and one of it for all who have the same.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, Weak},
};

use bytes::Bytes;
use insula_custom::{
    Definition, Version,
    definition::{Conversion, Names},
};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    custom::shared,
    error::chain,
    registry::{Nature, Served},
};

/// A version of a definition, as requests for it need it.
#[derive(Debug, Clone)]
pub(crate) struct Custom {
    pub definition: Arc<Definition>,
    pub version: Arc<Version>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// Text of the specification; it and `names` are what makes two definitions equal.
    pub spec: Bytes,
    pub names: Names,
    /// Of `spec` and `names`.
    pub hash: u128,
    definition: Arc<Definition>,
    served: Vec<Arc<Served>>,
    /// As `served`, while the definition is being deleted.
    leaving: OnceLock<Vec<Arc<Served>>>,
}

impl Compiled {
    pub(crate) fn group(&self) -> &str {
        &self.definition.group
    }

    /// Whether a webhook converts between its versions.
    pub(crate) fn is_converted_by_webhook(&self) -> bool {
        matches!(self.definition.conversion, Conversion::Webhook(_))
    }

    /// All versions that are served.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.definition.versions.iter().filter(|it| it.served)
    }

    /// A version, if it is served.
    pub(crate) fn version(&self, name: &str) -> Option<&Arc<Version>> {
        self.definition.version(name).filter(|it| it.served)
    }

    /// The versions that are served.
    pub(crate) fn served(&self, is_leaving: bool) -> &[Arc<Served>] {
        if !is_leaving {
            return &self.served;
        }
        self.leaving.get_or_init(|| {
            let leaving = |it: &Arc<Served>| {
                let mut resource = (*it.resource).clone();
                // Updates stay: without them nothing could let go of what finalizers hold.
                resource.verbs.retain(|verb| verb != "create");
                Arc::new(it.with_resource(resource))
            };
            self.served.iter().map(leaving).collect()
        })
    }
}

/// The parts of a stored definition that decide what is served.
#[derive(Debug, Deserialize)]
pub(crate) struct Envelope<'a> {
    metadata: Head,
    #[serde(borrow)]
    spec: &'a RawValue,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    deletion_timestamp: Option<String>,
    #[serde(default)]
    labels: HashMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    accepted_names: Names,
    conditions: Vec<Condition>,
}

/// A condition of a status, as far as it is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
}

impl<'a> Envelope<'a> {
    pub(crate) fn read(value: &'a [u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(value)
    }

    /// Whether it is meant for all tenants, if it is the platform's.
    pub(crate) fn is_shared(&self) -> bool {
        shared::LABELS
            .iter()
            .any(|(key, value)| self.metadata.labels.get(*key).is_some_and(|it| it == value))
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    pub(crate) fn is_established(&self) -> bool {
        self.condition("Established") == Some("True")
    }

    /// Whether nobody has decided on its names yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.condition("NamesAccepted") != Some("True") || !self.is_established()
    }

    fn condition(&self, kind: &str) -> Option<&str> {
        let found = self.status.conditions.iter().find(|it| it.kind == kind);
        found.map(|it| it.status.as_str())
    }
}

/// Compiled definitions that somebody has, by what they are made of.
#[derive(Debug, Default)]
pub(crate) struct Interned(Mutex<HashMap<u128, Weak<Compiled>>>);

impl Interned {
    /// The compiled form of a definition whose stored bytes are `value`. `None` if it cannot be
    /// compiled, which is for the operator to know: its check has let it through.
    pub(crate) fn get(&self, envelope: &Envelope<'_>, value: &Bytes) -> Option<Arc<Compiled>> {
        let spec = envelope.spec.get().as_bytes();
        let names = &envelope.status.accepted_names;
        let hash = xxh3_128(spec);
        let known = self.0.lock().get(&hash).and_then(Weak::upgrade);
        // Hashes can be made to collide; texts cannot.
        if let Some(known) = &known
            && known.spec == spec
            && known.names == *names
        {
            return Some(known.clone());
        }
        let definition = match Definition::compile(spec, names) {
            Ok(definition) => Arc::new(definition),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(kind = names.kind, error, "a definition cannot be served");
                return None;
            }
        };
        let served = definition.versions.iter().filter(|it| it.served).map(|version| {
            let custom = Custom { definition: definition.clone(), version: version.clone() };
            Arc::new(Served::new(version.resource.clone(), Nature::Custom(custom)))
        });
        let compiled = Arc::new(Compiled {
            // The stored bytes are shared; nothing is copied.
            spec: value.slice_ref(spec),
            names: names.clone(),
            hash,
            served: served.collect(),
            definition: definition.clone(),
            leaving: OnceLock::new(),
        });
        let mut interned = self.0.lock();
        if known.is_none() {
            interned.retain(|_, it| it.strong_count() != 0);
            interned.insert(hash, Arc::downgrade(&compiled));
        }
        Some(compiled)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn stored(tenant: &str, color: &str) -> Bytes {
        let names = json!({"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "listKind": "CronTabList"});
        json!({
            "metadata": {"name": "crontabs.example.com", "tenant": tenant},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {color: {"type": "string"}}}}}]},
            "status": {"acceptedNames": names,
                "conditions": [{"type": "Established", "status": "True"}, {"type": "NamesAccepted", "status": "True"}]},
        })
        .to_string()
        .into()
    }

    #[test]
    fn equal_definitions_are_one_and_go_with_the_last() {
        let interned = Interned::default();
        let get = |value: &Bytes| {
            let envelope = Envelope::read(value).unwrap();
            assert!(envelope.is_established() && !envelope.is_pending());
            interned.get(&envelope, value).unwrap()
        };
        let (acme, globex) = (stored("acme", "red"), stored("globex", "red"));
        let first = get(&acme);
        assert!(Arc::ptr_eq(&first, &get(&globex)));
        let other = get(&stored("acme", "blue"));
        assert!(!Arc::ptr_eq(&first, &other));
        drop((first, other));
        get(&stored("acme", "green"));
        assert_eq!(interned.0.lock().len(), 1);
    }

    #[test]
    fn what_leaves_takes_nothing_new() {
        let value = stored("acme", "red");
        let compiled = Interned::default().get(&Envelope::read(&value).unwrap(), &value).unwrap();
        assert!(compiled.served(false)[0].resource.has_verb("create"));
        assert!(!compiled.served(true)[0].resource.has_verb("create"));
        let leaving: Value = serde_json::from_slice(&value).unwrap();
        assert_eq!(leaving["metadata"]["name"], "crontabs.example.com");
    }
}
