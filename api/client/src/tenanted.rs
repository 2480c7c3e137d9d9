//! An object with its tenant, read from one pass over the JSON.

use std::ops::{Deref, DerefMut};

use insula_api::names::TenantName;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned},
};

use crate::{Object, ObjectKey, tap};

/// Where the tenant is. It is no field of the Kubernetes types, so decoding them would lose it.
const TENANT: &[&str] = &["metadata", "tenant"];

/// An object and the tenant that owns it.
///
/// Dereferences to the object. Written as the object alone: the server knows the tenant from the
/// request path.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenanted<K> {
    pub tenant: TenantName,
    pub object: K,
}

impl<K: Object> Tenanted<K> {
    /// `metadata.name`; empty if the server sent none, which it never does.
    pub fn name(&self) -> &str {
        self.object.meta().name.as_deref().unwrap_or_default()
    }

    /// `metadata.namespace`; empty outside namespaces.
    pub fn namespace(&self) -> &str {
        self.object.meta().namespace.as_deref().unwrap_or_default()
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.object.meta().uid.as_deref().unwrap_or_default()
    }

    /// `metadata.resourceVersion`.
    pub fn resource_version(&self) -> &str {
        self.object.meta().resource_version.as_deref().unwrap_or_default()
    }

    /// Whether deletion has begun.
    pub fn is_deleting(&self) -> bool {
        self.object.meta().deletion_timestamp.is_some()
    }

    /// The key of this object within its resource.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.tenant, self.namespace(), self.name())
    }
}

impl<K> Deref for Tenanted<K> {
    type Target = K;
    fn deref(&self) -> &K {
        &self.object
    }
}

impl<K> DerefMut for Tenanted<K> {
    fn deref_mut(&mut self) -> &mut K {
        &mut self.object
    }
}

impl<K: Serialize> Serialize for Tenanted<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de, K: Deserialize<'de>> Deserialize<'de> for Tenanted<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (object, found) = tap::read::<K, String, D>(deserializer, TENANT)?;
        let tenant = found.ok_or_else(|| de::Error::custom("metadata.tenant is missing"))?;
        let tenant = TenantName::parse(&tenant).map_err(de::Error::custom)?;
        Ok(Self { tenant, object })
    }
}

impl<K: DeserializeOwned> Tenanted<K> {
    /// Reads an object from an answer about `tenant`, which may be all of them.
    pub(crate) fn read(tenant: &str, text: &str) -> Result<Self, serde_json::Error> {
        match TenantName::parse(tenant) {
            Ok(tenant) => Self::of(&tenant, text),
            Err(_) => serde_json::from_str(text),
        }
    }

    /// Reads an object from an answer about `tenant`.
    ///
    /// What a tenant's extension servers have need not say whose it is, and may not say that it is
    /// anybody else's. The fleet's objects are shown to tenants as what they are.
    fn of(tenant: &TenantName, text: &str) -> Result<Self, serde_json::Error> {
        let mut inner = serde_json::Deserializer::from_str(text);
        let (object, found) = tap::read::<K, String, _>(&mut inner, TENANT)?;
        inner.end()?;
        match found {
            Some(name) if name == tenant.as_str() => (),
            Some(name) if name == SYSTEM => {
                return Ok(Self { tenant: TenantName::system(), object });
            }
            Some(_) => return Err(de::Error::custom("metadata.tenant is another tenant's")),
            None => (),
        }
        Ok(Self { tenant: tenant.clone(), object })
    }
}

/// The tenant of the fleet's objects.
const SYSTEM: &str = "system";

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use serde_json::{Value, json};

    use super::*;
    use crate::PartialObject;

    #[test]
    fn the_tenant_is_found_and_the_object_is_whole() {
        let text = r#"{"apiVersion":"v1","kind":"ConfigMap","data":{"tenant":"decoy","metadata":"x"},
            "metadata":{"labels":{"tenant":"decoy"},"name":"a","tenant":"acme","namespace":"ns"}}"#;
        let read: Tenanted<ConfigMap> = serde_json::from_str(text).unwrap();
        assert_eq!(read.tenant.as_str(), "acme");
        assert_eq!(read.key().to_string(), "acme/ns/a");
        assert_eq!(read.data.as_ref().unwrap()["tenant"], "decoy");
        let plain: ConfigMap = serde_json::from_str(text).unwrap();
        assert_eq!(read.object, plain);
    }

    #[test]
    fn every_source_of_json_works() {
        let value =
            json!({"metadata": {"name": "n", "tenant": "acme"}, "spec": {"containers": []}});
        for read in [
            serde_json::from_value::<Tenanted<Pod>>(value.clone()).unwrap(),
            serde_json::from_slice(value.to_string().as_bytes()).unwrap(),
            serde_json::from_reader(value.to_string().as_bytes()).unwrap(),
        ] {
            assert_eq!((read.tenant.as_str(), read.name()), ("acme", "n"));
        }
    }

    #[test]
    fn derived_types_and_values_work() {
        let text = r#"{"metadata":{"name":"n","tenant":"acme","uid":"u"}}"#;
        let partial: Tenanted<PartialObject> = serde_json::from_str(text).unwrap();
        assert_eq!((partial.tenant.as_str(), partial.uid()), ("acme", "u"));
        let value: Tenanted<Value> = serde_json::from_str(text).unwrap();
        assert_eq!(value.tenant.as_str(), "acme");
        assert_eq!(value.object["metadata"]["tenant"], "acme");
    }

    #[test]
    fn what_an_answer_is_about_is_known() {
        let acme = TenantName::parse("acme").unwrap();
        let read = |text: &str| {
            Tenanted::<PartialObject>::of(&acme, text).map(|it| it.tenant.as_str().to_owned())
        };
        assert_eq!(read(r#"{"metadata":{"name":"a"}}"#).unwrap(), "acme");
        assert_eq!(read(r#"{"metadata":{"name":"a","tenant":"acme"}}"#).unwrap(), "acme");
        assert_eq!(read(r#"{"metadata":{"name":"a","tenant":"system"}}"#).unwrap(), "system");
        assert!(read(r#"{"metadata":{"name":"a","tenant":"globex"}}"#).is_err());
        assert!(read(r#"{"metadata":{"name":"a"}} x"#).is_err());
    }

    #[test]
    fn an_object_without_tenant_is_refused() {
        for text in [
            r#"{"metadata":{"name":"a"}}"#,
            r#"{"tenant":"acme"}"#,
            r#"{"metadata":{"tenant":"All"}}"#,
            r#"{"metadata":{"tenant":7}}"#,
            r#"{"metadata":null}"#,
            "[]",
            "null",
        ] {
            assert!(serde_json::from_str::<Tenanted<PartialObject>>(text).is_err(), "{text}");
        }
    }
}
