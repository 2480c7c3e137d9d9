//! An object with its tenant, read from one pass over the JSON.
//!
//! `metadata.tenant` is no field of the Kubernetes types, so decoding them would lose it. The
//! decoder here hands every field on to the type as it comes, and on the way keeps a copy of the
//! one it wants.

use std::{
    borrow::Cow,
    fmt,
    ops::{Deref, DerefMut},
};

use insula_api::names::TenantName;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, Visitor},
    forward_to_deserialize_any,
};

use crate::{Object, ObjectKey};

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
        let mut found = None;
        let object =
            K::deserialize(Tap { inner: deserializer, level: Level::Object, found: &mut found })?;
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
        let mut found = None;
        let mut inner = serde_json::Deserializer::from_str(text);
        let tap = Tap { inner: &mut inner, level: Level::Object, found: &mut found };
        let object = K::deserialize(tap)?;
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

/// Where in the object a map lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Object,
    Metadata,
}

/// Passes all through and copies `metadata.tenant`. Serves as deserializer, visitor and seed.
struct Tap<'found, T> {
    inner: T,
    level: Level,
    found: &'found mut Option<String>,
}

/// Types ask for a map as a struct, a map or anything; every way gets the tap.
impl<'de, D: Deserializer<'de>> Deserializer<'de> for Tap<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Tap { inner: visitor, level: self.level, found: self.found })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = Tap { inner: visitor, level: self.level, found: self.found };
        self.inner.deserialize_struct(name, fields, visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_option(Tap { inner: visitor, level: self.level, found: self.found })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Tap<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let map = TapMap { inner: map, level: self.level, found: self.found, at_key: AtKey::Other };
        self.inner.visit_map(map)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Tap { inner, level: self.level, found: self.found })
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }
}

/// What the value that comes next belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtKey {
    Metadata,
    Tenant,
    Other,
}

struct TapMap<'found, A> {
    inner: A,
    level: Level,
    found: &'found mut Option<String>,
    at_key: AtKey,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for TapMap<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let Some(key) = self.inner.next_key::<Key<'de>>()? else {
            return Ok(None);
        };
        self.at_key = match (self.level, key.0.as_ref()) {
            (Level::Object, "metadata") => AtKey::Metadata,
            (Level::Metadata, "tenant") => AtKey::Tenant,
            _ => AtKey::Other,
        };
        match key.0 {
            Cow::Borrowed(key) => seed.deserialize(de::value::BorrowedStrDeserializer::new(key)),
            Cow::Owned(key) => seed.deserialize(key.into_deserializer()),
        }
        .map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        match self.at_key {
            AtKey::Other => self.inner.next_value_seed(seed),
            AtKey::Metadata => self.inner.next_value_seed(Tap {
                inner: seed,
                level: Level::Metadata,
                found: self.found,
            }),
            AtKey::Tenant => {
                let tenant: String = self.inner.next_value()?;
                let value = seed.deserialize(tenant.as_str().into_deserializer())?;
                *self.found = Some(tenant);
                Ok(value)
            }
        }
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Tap<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Tap { inner, level: self.level, found: self.found })
    }
}

/// A key of a map, borrowed from the input where it has no escapes.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text)))
            }
        }
        deserializer.deserialize_identifier(KeyVisitor)
    }
}

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
