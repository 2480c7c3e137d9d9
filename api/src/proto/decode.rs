//! Protobuf messages into JSON values.

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{MAGIC, ProtoError};
use crate::{
    decode::nothing,
    schema::{Either, Field, Gvk, Numbered, Schema, Shape, Type, TypeId},
    time,
};

/// Deepest nesting of messages; Kubernetes' deepest type has about 20.
const MAX_DEPTH: usize = 64;

/// Decodes an enveloped object. `fallback` is the kind to assume when the envelope names none.
pub fn decode(
    schema: &Schema,
    body: &[u8],
    fallback: Option<&Gvk>,
) -> Result<(Gvk, Value), ProtoError> {
    let rest = body.strip_prefix(MAGIC).ok_or(ProtoError::Magic)?;
    if rest.is_empty() {
        return Err(ProtoError::Empty);
    }
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields::new(rest) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields::new(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?.to_owned(),
                        (2, Wire::Bytes(text)) => kind = utf8(text)?.to_owned(),
                        _ => (),
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3, Wire::Bytes(encoding)) if !encoding.is_empty() => {
                return Err(ProtoError::Encoding(utf8(encoding)?.to_owned()));
            }
            _ => (),
        }
    }
    let gvk = match (kind.is_empty(), fallback) {
        (true, Some(fallback)) => fallback.clone(),
        _ => {
            let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
            Gvk::new(group, version, &kind)
        }
    };
    let Some(id) = schema.by_kind(&gvk) else {
        return Err(ProtoError::UnknownKind { api_version: gvk.api_version(), kind: gvk.kind });
    };
    let mut object = Map::new();
    message(schema, id, &[], raw, &mut object, 0)?;
    object.insert("apiVersion".into(), gvk.api_version().into());
    object.insert("kind".into(), gvk.kind.clone().into());
    Ok((gvk, Value::Object(object)))
}

/// Reads the fields of one message of type `id` into `out`. `path` leads to the embedded message
/// that `bytes` is; empty for the type's own message.
fn message(
    schema: &Schema,
    id: TypeId,
    path: &[u32],
    bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtoError> {
    if MAX_DEPTH < depth {
        return Err(ProtoError::Malformed("nested too deeply"));
    }
    let it: &Type = schema.get(id);
    let mut inner = path.to_vec();
    for field in Fields::new(bytes) {
        let (number, wire) = field?;
        inner.push(number);
        match it.numbered(&inner) {
            Some(Numbered::Field(known)) => read(schema, known, wire, out, depth)?,
            Some(Numbered::Embedded) => {
                let Wire::Bytes(bytes) = wire else {
                    return Err(ProtoError::Malformed("a message was expected"));
                };
                message(schema, id, &inner, bytes, out, depth + 1)?;
            }
            // From a newer or older client; protobuf says to skip it.
            None => (),
        }
        inner.pop();
    }
    Ok(())
}

fn read(
    schema: &Schema,
    field: &Field,
    wire: Wire<'_>,
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtoError> {
    match &field.shape {
        Shape::List(item) => {
            let list = out.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else { return Ok(()) };
            if let (Wire::Bytes(packed), Shape::Int32 | Shape::Int64 | Shape::Bool) =
                (&wire, &**item)
            {
                let mut rest = *packed;
                while !rest.is_empty() {
                    let number = varint(&mut rest)?;
                    list.push(scalar(item, number));
                }
                return Ok(());
            }
            if let Some(value) = value(schema, item, wire, depth)? {
                list.push(value);
            }
        }
        Shape::Map(item) => {
            let Wire::Bytes(entry) = wire else {
                return Err(ProtoError::Malformed("a map entry was expected"));
            };
            let (mut key, mut found) = (String::new(), None);
            for part in Fields::new(entry) {
                match part? {
                    (1, Wire::Bytes(text)) => key = utf8(text)?.to_owned(),
                    (2, wire) => found = value(schema, item, wire, depth)?,
                    _ => (),
                }
            }
            let map = out.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(key, found.unwrap_or_else(|| nothing(item)));
            }
        }
        shape => {
            // A message that comes in pieces is merged, as protobuf wants it.
            if let (Shape::Object(id), Wire::Bytes(bytes)) = (shape, &wire) {
                let whole = out.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(whole) = whole {
                    message(schema, *id, &[], bytes, whole, depth + 1)?;
                }
                return Ok(());
            }
            let Some(value) = value(schema, shape, wire, depth)? else {
                return Ok(());
            };
            let zero = match &value {
                _ if matches!(shape, Shape::Any | Shape::Either(..)) => false,
                Value::String(text) => text.is_empty(),
                Value::Bool(set) => !set,
                Value::Number(number) => number.as_f64() == Some(0.0),
                _ => false,
            };
            if !zero || field.required || field.pointer {
                out.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn scalar(shape: &Shape, number: u64) -> Value {
    match shape {
        Shape::Bool => Value::Bool(number != 0),
        // Negative 32-bit numbers are sent as 64-bit two's complement; the cut is meant.
        Shape::Int32 => Value::from(i64::from(number as u32 as i32)),
        _ => Value::from(number as i64),
    }
}

fn value(
    schema: &Schema,
    shape: &Shape,
    wire: Wire<'_>,
    depth: usize,
) -> Result<Option<Value>, ProtoError> {
    let bytes = match (shape, wire) {
        (Shape::Bool | Shape::Int32 | Shape::Int64, Wire::Varint(number)) => {
            return Ok(Some(scalar(shape, number)));
        }
        (Shape::Double, Wire::Fixed64(bits)) => {
            let number = serde_json::Number::from_f64(f64::from_bits(bits));
            return Ok(number.map(Value::Number));
        }
        (_, Wire::Bytes(bytes)) => bytes,
        _ => return Err(ProtoError::Malformed("wire type does not fit the field")),
    };
    Ok(Some(match shape {
        Shape::String => Value::String(utf8(bytes)?.to_owned()),
        Shape::Bytes => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        Shape::Quantity => {
            let text = first_string(bytes)?;
            let quantity = crate::quantity::Quantity::parse(text)
                .map_err(|_| ProtoError::Quantity(text.chars().take(64).collect()))?;
            Value::String(quantity.to_string())
        }
        Shape::IntOrString => {
            let (mut is_text, mut number, mut text) = (false, 0, "");
            for field in Fields::new(bytes) {
                match field? {
                    (1, Wire::Varint(kind)) => is_text = kind == 1,
                    (2, Wire::Varint(value)) => number = value as u32 as i32,
                    (3, Wire::Bytes(value)) => text = utf8(value)?,
                    _ => (),
                }
            }
            if is_text { text.into() } else { number.into() }
        }
        Shape::Time | Shape::MicroTime => {
            let (mut seconds, mut nanos) = (0_i64, 0_i32);
            for field in Fields::new(bytes) {
                match field? {
                    (1, Wire::Varint(value)) => seconds = value as i64,
                    (2, Wire::Varint(value)) => nanos = value as u32 as i32,
                    _ => (),
                }
            }
            if (seconds, nanos) == (0, 0) {
                return Ok(None);
            }
            let at = Timestamp::new(seconds, nanos)
                .map_err(|_| ProtoError::Malformed("time out of range"))?;
            Value::String(if *shape == Shape::Time { time::seconds(at) } else { time::micros(at) })
        }
        Shape::Duration => {
            let mut nanos = 0;
            for field in Fields::new(bytes) {
                if let (1, Wire::Varint(value)) = field? {
                    nanos = value;
                }
            }
            let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
            match fraction {
                0 => format!("{seconds}s").into(),
                _ => {
                    format!("{seconds}.{}s", format!("{fraction:09}").trim_end_matches('0')).into()
                }
            }
        }
        Shape::Raw | Shape::Any => {
            // RawExtension, FieldsV1 and JSON hold JSON text in their first field.
            let mut raw = &[][..];
            for field in Fields::new(bytes) {
                if let (1, Wire::Bytes(text)) = field? {
                    raw = text;
                }
            }
            if raw.is_empty() {
                return Ok(None);
            }
            serde_json::from_slice(raw)
                .map_err(|_| ProtoError::Malformed("embedded JSON is not JSON"))?
        }
        Shape::Object(id) => {
            let mut object = Map::new();
            message(schema, *id, &[], bytes, &mut object, depth + 1)?;
            Value::Object(object)
        }
        Shape::Either(either, id) => {
            // One of a schema and what may stand in its place.
            let (mut list, mut allows) = (Vec::new(), false);
            for field in Fields::new(bytes) {
                match (field?, either) {
                    ((1, Wire::Varint(set)), Either::Bool) => allows = set != 0,
                    ((1, Wire::Bytes(bytes)), Either::List | Either::Names)
                    | ((2, Wire::Bytes(bytes)), Either::Bool) => {
                        let mut object = Map::new();
                        message(schema, *id, &[], bytes, &mut object, depth + 1)?;
                        return Ok(Some(Value::Object(object)));
                    }
                    ((2, Wire::Bytes(bytes)), Either::List) => {
                        let mut object = Map::new();
                        message(schema, *id, &[], bytes, &mut object, depth + 1)?;
                        list.push(Value::Object(object));
                    }
                    ((2, Wire::Bytes(text)), Either::Names) => list.push(utf8(text)?.into()),
                    _ => (),
                }
            }
            match either {
                Either::Bool => Value::Bool(allows),
                _ => Value::Array(list),
            }
        }
        Shape::List(item) => {
            // `map<string, ExtraValue>`: a message whose first field repeats the items.
            let mut list = Vec::new();
            for field in Fields::new(bytes) {
                if let (1, wire) = field? {
                    list.extend(value(schema, item, wire, depth + 1)?);
                }
            }
            Value::Array(list)
        }
        Shape::Bool | Shape::Int32 | Shape::Int64 | Shape::Double | Shape::Map(_) => {
            return Err(ProtoError::Malformed("wire type does not fit the field"));
        }
    }))
}

fn first_string(bytes: &[u8]) -> Result<&str, ProtoError> {
    for field in Fields::new(bytes) {
        if let (1, Wire::Bytes(text)) = field? {
            return utf8(text);
        }
    }
    Ok("0")
}

fn utf8(bytes: &[u8]) -> Result<&str, ProtoError> {
    std::str::from_utf8(bytes).map_err(|_| ProtoError::Malformed("a string is not UTF-8"))
}

/// One field as it is on the wire.
#[derive(Debug)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

/// Iterates over the fields of one message.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    fn one(&mut self) -> Result<(u32, Wire<'a>), ProtoError> {
        let key = varint(&mut self.rest)?;
        let number = u32::try_from(key >> 3).map_err(|_| ProtoError::Malformed("field number"))?;
        let wire = match key & 7 {
            0 => Wire::Varint(varint(&mut self.rest)?),
            1 => {
                let (bits, rest) =
                    self.rest.split_first_chunk::<8>().ok_or(ProtoError::Truncated)?;
                self.rest = rest;
                Wire::Fixed64(u64::from_le_bytes(*bits))
            }
            2 => {
                let length =
                    usize::try_from(varint(&mut self.rest)?).map_err(|_| ProtoError::Truncated)?;
                let (bytes, rest) =
                    self.rest.split_at_checked(length).ok_or(ProtoError::Truncated)?;
                self.rest = rest;
                Wire::Bytes(bytes)
            }
            5 => {
                let (_, rest) = self.rest.split_first_chunk::<4>().ok_or(ProtoError::Truncated)?;
                self.rest = rest;
                Wire::Fixed32
            }
            _ => return Err(ProtoError::Malformed("wire type")),
        };
        Ok((number, wire))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), ProtoError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.one();
        if field.is_err() {
            // Nothing after a broken field can be trusted.
            self.rest = &[];
        }
        Some(field)
    }
}

fn varint(rest: &mut &[u8]) -> Result<u64, ProtoError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(ProtoError::Truncated)?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ProtoError::Malformed("varint"))
}
