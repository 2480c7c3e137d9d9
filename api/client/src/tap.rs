//! Copies one field out of JSON on its way to a type that does not know it.
//!
//! Types of other crates drop what they have no field for. The decoder here hands every field on
//! to the type as it comes, in the same pass, and on the way keeps a copy of the one that is
//! asked for.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, Visitor,
        value::UnitDeserializer,
    },
    forward_to_deserialize_any,
};

/// What can be copied on the way.
pub trait Copied: DeserializeOwned {
    /// Hands what was read on to the type that is being made. It gets nothing, unless it may have
    /// a field for this after all.
    fn hand_on<'de, S: DeserializeSeed<'de>, E: de::Error>(&self, seed: S) -> Result<S::Value, E> {
        seed.deserialize(UnitDeserializer::new())
    }
}

impl Copied for String {
    fn hand_on<'de, S: DeserializeSeed<'de>, E: de::Error>(&self, seed: S) -> Result<S::Value, E> {
        seed.deserialize(self.as_str().into_deserializer())
    }
}

/// Reads a `K`, and what lies at `path` in it, if anything does. `path` has a name for each level
/// of maps, one at least.
pub fn read<'de, K, T, D>(deserializer: D, path: &[&str]) -> Result<(K, Option<T>), D::Error>
where
    K: Deserialize<'de>,
    T: Copied,
    D: Deserializer<'de>,
{
    let mut found = None;
    let read = K::deserialize(Tap { inner: deserializer, path, found: &mut found })?;
    Ok((read, found))
}

/// Passes all through and copies what lies at the path. Serves as deserializer, visitor and seed.
struct Tap<'a, I, T> {
    inner: I,
    /// What is left of it.
    path: &'a [&'a str],
    found: &'a mut Option<T>,
}

/// Types ask for a map as a struct, a map or anything; every way gets the tap.
impl<'de, D: Deserializer<'de>, T: Copied> Deserializer<'de> for Tap<'_, D, T> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Tap { inner: visitor, path: self.path, found: self.found })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = Tap { inner: visitor, path: self.path, found: self.found };
        self.inner.deserialize_struct(name, fields, visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_option(Tap { inner: visitor, path: self.path, found: self.found })
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

impl<'de, V: Visitor<'de>, T: Copied> Visitor<'de> for Tap<'_, V, T> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let map = TapMap { inner: map, path: self.path, found: self.found, at_key: AtKey::Other };
        self.inner.visit_map(map)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Tap { inner, path: self.path, found: self.found })
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }
}

/// What the value that comes next is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtKey {
    OnTheWay,
    Wanted,
    Other,
}

struct TapMap<'a, A, T> {
    inner: A,
    path: &'a [&'a str],
    found: &'a mut Option<T>,
    at_key: AtKey,
}

impl<'de, A: MapAccess<'de>, T: Copied> MapAccess<'de> for TapMap<'_, A, T> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let Some(key) = self.inner.next_key::<Key<'de>>()? else {
            return Ok(None);
        };
        self.at_key = match self.path {
            [last] if **last == *key.0 => AtKey::Wanted,
            [next, _, ..] if **next == *key.0 => AtKey::OnTheWay,
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
            AtKey::OnTheWay => {
                let path = self.path.get(1..).unwrap_or_default();
                self.inner.next_value_seed(Tap { inner: seed, path, found: self.found })
            }
            AtKey::Wanted => {
                let wanted: T = self.inner.next_value()?;
                let value = wanted.hand_on(seed)?;
                *self.found = Some(wanted);
                Ok(value)
            }
        }
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, S: DeserializeSeed<'de>, T: Copied> DeserializeSeed<'de> for Tap<'_, S, T> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Tap { inner, path: self.path, found: self.found })
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
