//! JSON bytes into protobuf messages, in one pass and without a tree.
//!
//! Fields come in the order of the JSON, which protobuf allows; what Go embeds may come in several
//! pieces, which protobuf merges. Fields that are not in the JSON, or have no number, are not
//! written.

use std::{borrow::Cow, fmt};

use base64::Engine as _;
use jiff::Timestamp;
use serde::de::{
    self, Deserialize as _, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use super::MAGIC;
use crate::schema::{Either, Field, Schema, Shape, Type, TypeId};
use crate::time;

/// Why an object cannot be written in protobuf.
#[derive(Debug, thiserror::Error)]
#[error("the object does not fit its type")]
pub struct EncodeError(#[from] serde_json::Error);

/// Appends the message of type `id` that `json` says.
pub fn message(
    schema: &Schema,
    id: TypeId,
    json: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let writer = Writer { schema, out };
    Message { writer, it: schema.get(id) }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(())
}

/// An object by itself: with the prefix, and an envelope that names its kind.
pub fn enveloped(
    schema: &Schema,
    id: TypeId,
    (api_version, kind): (&str, &str),
    json: &[u8],
) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::with_capacity(json.len());
    let raw = begin(&mut out, api_version, kind);
    message(schema, id, json, &mut out)?;
    close(&mut out, raw);
    Ok(out)
}

/// A list that is made of one item after the other.
#[derive(Debug)]
pub struct List {
    out: Vec<u8>,
    raw: usize,
    id: TypeId,
}

impl List {
    /// Begins one of items of type `id`, with the JSON of its metadata. It has room for `size`
    /// bytes.
    pub fn begin(
        schema: &Schema,
        id: TypeId,
        (api_version, kind): (&str, &str),
        metadata: &[u8],
        size: usize,
    ) -> Result<Self, EncodeError> {
        const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
        let mut out = Vec::with_capacity(size + 256);
        let raw = begin(&mut out, api_version, kind);
        let head = open(&mut out, 1);
        if let Some(id) = schema.by_name(LIST_META) {
            message(schema, id, metadata, &mut out)?;
        }
        close(&mut out, head);
        Ok(Self { out, raw, id })
    }

    /// Adds an item, given as its JSON.
    pub fn push(&mut self, schema: &Schema, item: &[u8]) -> Result<(), EncodeError> {
        let begin = open(&mut self.out, 2);
        message(schema, self.id, item, &mut self.out)?;
        close(&mut self.out, begin);
        Ok(())
    }

    /// The whole.
    pub fn finish(mut self) -> Vec<u8> {
        close(&mut self.out, self.raw);
        self.out
    }
}

/// One event of a watch as a frame: its length, then the message, whose object is enveloped.
pub fn event(kind: &str, object: &[u8], out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    bytes(out, 1, kind.as_bytes());
    let wrapped = varint_len(object.len() as u64) + 1 + object.len();
    tag(out, 2, BYTES);
    varint(out, wrapped as u64);
    bytes(out, 1, object);
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// Writes all of an envelope up to its object, which [`close`] ends.
fn begin(out: &mut Vec<u8>, api_version: &str, kind: &str) -> usize {
    out.extend_from_slice(MAGIC);
    let meta = open(out, 1);
    bytes(out, 1, api_version.as_bytes());
    bytes(out, 2, kind.as_bytes());
    close(out, meta);
    open(out, 2)
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while 0x7f < value {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn tag(out: &mut Vec<u8>, number: u32, wire: u64) {
    varint(out, u64::from(number) << 3 | wire);
}

fn bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    tag(out, number, BYTES);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Begins a field whose length is not known yet; most are short enough for one byte of it.
fn open(out: &mut Vec<u8>, number: u32) -> usize {
    tag(out, number, BYTES);
    out.push(0);
    out.len()
}

/// Ends what [`open`] began.
fn close(out: &mut Vec<u8>, begin: usize) {
    let length = out.len() - begin;
    let more = varint_len(length as u64) - 1;
    if 0 < more {
        out.resize(out.len() + more, 0);
        out.copy_within(begin..begin + length, begin + more);
    }
    let mut rest = length as u64;
    for (index, place) in out[begin - 1..begin + more].iter_mut().enumerate() {
        *place = rest as u8 & 0x7f | if index < more { 0x80 } else { 0 };
        rest >>= 7;
    }
}

struct Writer<'o> {
    schema: &'o Schema,
    out: &'o mut Vec<u8>,
}

impl Writer<'_> {
    fn again(&mut self) -> Writer<'_> {
        Writer { schema: self.schema, out: self.out }
    }
}

/// The fields of a message.
struct Message<'o, 's> {
    writer: Writer<'o>,
    it: &'s Type,
}

impl<'de> DeserializeSeed<'de> for Message<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Message<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {}", self.it.name)
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        while let Some(field) = entries.next_key_seed(Name(self.it))? {
            match field.filter(|it| !it.proto.is_empty()) {
                Some(field) => entries.next_value_seed(Place {
                    writer: self.writer.again(),
                    shape: &field.shape,
                    path: &field.proto,
                })?,
                None => {
                    entries.next_value::<de::IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// The name of a field, looked up while it is read.
struct Name<'s>(&'s Type);

impl<'de, 's> DeserializeSeed<'de> for Name<'s> {
    type Value = Option<&'s Field>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'s> Visitor<'_> for Name<'s> {
    type Value = Option<&'s Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.field(name))
    }
}

/// A value of `shape` that is to become field `path`: from the outer message inwards, where Go
/// embeds messages.
struct Place<'o, 's> {
    writer: Writer<'o>,
    shape: &'s Shape,
    path: &'s [u32],
}

impl Place<'_, '_> {
    /// Writes the field, with what is around it, by `write`, which gets its number.
    fn write<R>(self, write: impl FnOnce(Writer<'_>, u32) -> R) -> R {
        let Some((&number, around)) = self.path.split_last() else {
            return write(self.writer, 0);
        };
        let opened: Vec<usize> =
            around.iter().map(|&number| open(self.writer.out, number)).collect();
        let written = write(Writer { schema: self.writer.schema, out: self.writer.out }, number);
        for begin in opened.into_iter().rev() {
            close(self.writer.out, begin);
        }
        written
    }

    /// Writes the field as a message of its own.
    fn nested<R>(self, write: impl FnOnce(Writer<'_>) -> R) -> R {
        self.write(|writer, number| {
            let begin = open(writer.out, number);
            let written = write(Writer { schema: writer.schema, out: writer.out });
            close(writer.out, begin);
            written
        })
    }

    fn varint(self, value: u64) {
        self.write(|writer, number| {
            tag(writer.out, number, VARINT);
            varint(writer.out, value);
        });
    }

    fn bytes(self, value: &[u8]) {
        self.write(|writer, number| bytes(writer.out, number, value));
    }

    fn unfit<E: de::Error>(&self, found: &str) -> E {
        E::custom(format!("{found} where {:?} is", self.shape))
    }

    fn time<E: de::Error>(self, text: &str) -> Result<(), E> {
        let at: Timestamp = text.parse().map_err(|_| self.unfit::<E>("no time"))?;
        self.nested(|writer| {
            tag(writer.out, 1, VARINT);
            varint(writer.out, at.as_second() as u64);
            // Go writes these nanoseconds always.
            tag(writer.out, 2, VARINT);
            varint(writer.out, i64::from(at.subsec_nanosecond()) as u64);
        });
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if !matches!(self.shape, Shape::Raw | Shape::Any) {
            return deserializer.deserialize_any(self);
        }
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        if raw != "null" {
            self.nested(|writer| bytes(writer.out, 1, raw.as_bytes()));
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Place<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shape)
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        match self.shape {
            Shape::Bool => self.varint(value.into()),
            Shape::Either(Either::Bool, _) => self.nested(|writer| {
                tag(writer.out, 1, VARINT);
                varint(writer.out, value.into());
            }),
            _ => return Err(self.unfit("a boolean")),
        }
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        match self.shape {
            Shape::Int32 | Shape::Int64 => self.varint(value as u64),
            Shape::Double => return self.visit_f64(value as f64),
            Shape::IntOrString => self.nested(|writer| {
                tag(writer.out, 1, VARINT);
                varint(writer.out, 0);
                tag(writer.out, 2, VARINT);
                varint(writer.out, value as u64);
            }),
            Shape::Quantity => return self.visit_str(&value.to_string()),
            _ => return Err(self.unfit("a number")),
        }
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        match (i64::try_from(value), self.shape) {
            (Ok(signed), _) => self.visit_i64(signed),
            (Err(_), Shape::Double) => self.visit_f64(value as f64),
            _ => Err(self.unfit("a large number")),
        }
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        if *self.shape != Shape::Double {
            return Err(self.unfit("a fraction"));
        }
        self.write(|writer, number| {
            tag(writer.out, number, FIXED64);
            writer.out.extend_from_slice(&value.to_bits().to_le_bytes());
        });
        Ok(())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        match self.shape {
            Shape::String => self.bytes(value.as_bytes()),
            Shape::Bytes => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(value);
                let decoded = decoded.map_err(|_| self.unfit::<E>("no base64"))?;
                self.bytes(&decoded);
            }
            Shape::Quantity => self.nested(|writer| bytes(writer.out, 1, value.as_bytes())),
            Shape::IntOrString => self.nested(|writer| {
                tag(writer.out, 1, VARINT);
                varint(writer.out, 1);
                bytes(writer.out, 3, value.as_bytes());
            }),
            Shape::Time | Shape::MicroTime => return self.time(value),
            Shape::Duration => {
                let length =
                    time::go_duration(value).ok_or_else(|| self.unfit::<E>("no duration"))?;
                let nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
                self.nested(|writer| {
                    tag(writer.out, 1, VARINT);
                    varint(writer.out, nanos);
                });
            }
            _ => return Err(self.unfit("a text")),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        match self.shape {
            Shape::List(item) => self.write(|mut writer, number| {
                let path = [number];
                loop {
                    let place = Place { writer: writer.again(), shape: item, path: &path };
                    // A list in a list is a message whose first field repeats the items.
                    let item = match **item {
                        Shape::List(_) => items.next_element_seed(Wrapped(place))?,
                        _ => items.next_element_seed(place)?,
                    };
                    if item.is_none() {
                        return Ok(());
                    }
                }
            }),
            Shape::Either(either @ (Either::List | Either::Names), id) => {
                let (either, id) = (*either, *id);
                let inner = if either == Either::List { Shape::Object(id) } else { Shape::String };
                self.nested(|mut writer| {
                    loop {
                        let place = Place { writer: writer.again(), shape: &inner, path: &[2] };
                        if items.next_element_seed(place)?.is_none() {
                            return Ok(());
                        }
                    }
                })
            }
            _ => Err(self.unfit("an array")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        match self.shape {
            Shape::Object(id) => {
                let id = *id;
                self.nested(|writer| {
                    let it = writer.schema.get(id);
                    Message { writer, it }.visit_map(entries)
                })
            }
            Shape::Either(either, id) => {
                let (number, id) = (if *either == Either::Bool { 2 } else { 1 }, *id);
                self.nested(|writer| {
                    let begin = open(writer.out, number);
                    let it = writer.schema.get(id);
                    let inner = Writer { schema: writer.schema, out: writer.out };
                    let written = Message { writer: inner, it }.visit_map(entries);
                    close(writer.out, begin);
                    written
                })
            }
            Shape::Map(item) => self.write(|mut writer, number| {
                while let Some(key) = entries.next_key::<Key<'de>>()? {
                    let begin = open(writer.out, number);
                    bytes(writer.out, 1, key.0.as_bytes());
                    let place = Place { writer: writer.again(), shape: item, path: &[2] };
                    match **item {
                        Shape::List(_) => entries.next_value_seed(Wrapped(place))?,
                        _ => entries.next_value_seed(place)?,
                    }
                    close(writer.out, begin);
                }
                Ok(())
            }),
            _ => Err(self.unfit("an object")),
        }
    }
}

/// A list as a message whose first field repeats the items, as in `map<string, ExtraValue>`.
struct Wrapped<'o, 's>(Place<'o, 's>);

impl<'de> DeserializeSeed<'de> for Wrapped<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let shape = self.0.shape;
        self.0.nested(|writer| Place { writer, shape, path: &[1] }.deserialize(deserializer))
    }
}

/// A key of a map, borrowed where it has no escapes.
struct Key<'de>(Cow<'de, str>);

impl<'de> de::Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: de::Error>(self, key: &'de str) -> Result<Key<'de>, E> {
        Ok(Key(key.into()))
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Key<'de>, E> {
        Ok(Key(key.to_owned().into()))
    }
}
