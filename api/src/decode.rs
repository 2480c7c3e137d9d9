//! Decoding of JSON and YAML by the type graph.
//!
//! One pass turns a document into a [`Value`] in which every field is known and has its type.
//! Unknown and duplicate fields are collected, not fatal: `fieldValidation` decides what they
//! mean. A JSON null is the same as an absent field, as clients send `creationTimestamp: null`.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::DuplicateKeyPolicy;

use crate::{
    quantity::{Quantity, QuantityError},
    schema::{Either, Field, Schema, Shape, TypeId},
    time,
};

/// Deepest nesting of free-form parts (custom resources, JSON schemas).
const MAX_DEPTH: usize = 96;
/// What times look like, as Go writes it down.
const SECONDS: &str = "2006-01-02T15:04:05Z07:00";
const MICROSECONDS: &str = "2006-01-02T15:04:05.000000Z07:00";
/// The one field of which an empty list says something: forget all managers.
const MANAGERS: &str = "managedFields";
/// Most findings that are kept; a hostile document has as many as bytes.
const MAX_FINDINGS: usize = 64;
/// Most parts of a YAML document that come of aliases: a few lines of them say any number.
const MAX_REPEATED: usize = 50_000;

/// A decoded document and what was odd about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// In document order, such as `unknown field "spec.x"` or `duplicate field "spec.replicas"`.
    pub findings: Vec<String>,
}

/// Why a document could not be decoded at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It is no JSON, or no YAML.
    #[error("{0}")]
    Syntax(String),
    /// Something in it has another type than it should.
    #[error("{0}")]
    Mismatch(String),
}

impl From<serde_json::Error> for DecodeError {
    fn from(error: serde_json::Error) -> Self {
        use serde_json::error::Category;
        let text = error.to_string();
        match error.classify() {
            Category::Eof => Self::Syntax("unexpected end of JSON input".into()),
            // What is wrong says where by itself.
            Category::Data => {
                let end = text.rfind(" at line ").unwrap_or(text.len());
                Self::Mismatch(text.get(..end).unwrap_or(&text).to_owned())
            }
            Category::Io | Category::Syntax => Self::Syntax(text),
        }
    }
}

/// Decodes JSON as `root`; `None` keeps any JSON (still checking duplicates and depth).
pub fn json(schema: &Schema, root: Option<TypeId>, body: &[u8]) -> Result<Decoded, DecodeError> {
    let mut context = Context::new(schema);
    let seed = Node { context: &mut context, shape: root_shape(root), owner: "", go: "" };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end().map_err(|error| match byte_at(body, &error) {
        Some(found) if found.is_ascii_graphic() => {
            let found = char::from(found);
            DecodeError::Syntax(format!("invalid character '{found}' after top-level value"))
        }
        _ => error.into(),
    })?;
    Ok(Decoded { value, findings: context.findings })
}

/// What is where an error was found.
fn byte_at(body: &[u8], error: &serde_json::Error) -> Option<u8> {
    let line = body.split(|byte| *byte == b'\n').nth(error.line().checked_sub(1)?)?;
    line.get(error.column().checked_sub(1)?).copied()
}

/// Decodes one YAML document (of which JSON is a subset) as `root`.
pub fn yaml(schema: &Schema, root: Option<TypeId>, body: &[u8]) -> Result<Decoded, DecodeError> {
    // YAML's own types go through a JSON value first.
    let text = std::str::from_utf8(body).map_err(|error| DecodeError::Syntax(error.to_string()))?;
    let text = first_document(text);
    let mut context = Context::new(schema);
    let syntax = |error: serde_saphyr::Error| DecodeError::Syntax(error.to_string());
    let options = |duplicate_keys| {
        serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_recorded_anchor_events: MAX_REPEATED },
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPEATED },
            emit_comments: false,
            duplicate_keys: duplicate_keys,
        }
    };
    let raw: Value =
        match serde_saphyr::from_str_with_options(text, options(DuplicateKeyPolicy::Error)) {
            Ok(raw) => raw,
            Err(error) => {
                let Some(repeated) = repeated_key(&error) else { return Err(syntax(error)) };
                context.findings.push(repeated);
                // As in JSON the last one counts, unless the client wants it strict.
                let options = options(DuplicateKeyPolicy::LastWins);
                serde_saphyr::from_str_with_options(text, options).map_err(syntax)?
            }
        };
    let seed = Node { context: &mut context, shape: root_shape(root), owner: "", go: "" };
    let value = seed.deserialize(raw)?;
    Ok(Decoded { value, findings: context.findings })
}

/// What comes before the second document: upstream reads no further.
fn first_document(text: &str) -> &str {
    let (mut at, mut begun) = (0, false);
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end();
        let is_mark = bare == "---" || bare.starts_with("--- ");
        if is_mark && begun {
            return &text[..at];
        }
        // A mark begins the first document unless something came before it.
        begun |= !bare.is_empty() && !bare.starts_with(['#', '%']);
        at += line.len();
    }
    text
}

/// What upstream says of a key that is there twice, if that is what is wrong.
fn repeated_key(error: &serde_saphyr::Error) -> Option<String> {
    match error {
        serde_saphyr::Error::WithSnippet { error, .. } => repeated_key(error),
        serde_saphyr::Error::DuplicateMappingKey { key, location } => {
            let (line, key) = (location.line(), key.as_deref().unwrap_or_default());
            Some(format!("yaml: unmarshal errors:\n  line {line}: key {key:?} already set in map"))
        }
        _ => None,
    }
}

/// Checks a value that was put together here (by a patch) as if it had been sent.
pub fn value(schema: &Schema, root: Option<TypeId>, raw: Value) -> Result<Decoded, DecodeError> {
    let mut context = Context::new(schema);
    let seed = Node { context: &mut context, shape: root_shape(root), owner: "", go: "" };
    let value = seed.deserialize(raw)?;
    Ok(Decoded { value, findings: context.findings })
}

/// As [`value`], of what somebody applies: an empty list says something there.
pub fn applied(schema: &Schema, root: Option<TypeId>, raw: Value) -> Result<Decoded, DecodeError> {
    let mut context = Context { keeps_empty: true, ..Context::new(schema) };
    let seed = Node { context: &mut context, shape: root_shape(root), owner: "", go: "" };
    let value = seed.deserialize(raw)?;
    Ok(Decoded { value, findings: context.findings })
}

/// As [`value`], of a part that lies at `place` in what was sent: fields are told from there. What
/// has the wrong type is told as of the part alone, as it is alone that Go decodes it.
pub fn part(
    schema: &Schema,
    root: Option<TypeId>,
    place: &str,
    raw: Value,
) -> Result<Decoded, DecodeError> {
    let mut context = Context { place, ..Context::new(schema) };
    let seed = Node { context: &mut context, shape: root_shape(root), owner: "", go: "" };
    let value = seed.deserialize(raw)?;
    Ok(Decoded { value, findings: context.findings })
}

fn root_shape(root: Option<TypeId>) -> &'static Shape {
    // Shapes of roots are made once per type and leaked never: the few variants are static.
    static ANY: Shape = Shape::Any;
    match root {
        None => &ANY,
        Some(id) => crate::schema::object_shape(id),
    }
}

struct Context<'a> {
    schema: &'a Schema,
    findings: Vec<String>,
    path: Vec<Step<'a>>,
    /// Where the root lies in what was sent.
    place: &'a str,
    /// Lists and maps without anything in them are not the same as none.
    keeps_empty: bool,
    /// How many values of either of two types this one is within. What is unknown there is left
    /// out, and not told: Go's decoder does not look into what decodes itself.
    depth_untold: usize,
}

enum Step<'a> {
    Field(&'a Field),
    /// Of a map.
    Key(String),
    Index(usize),
}

impl<'a> Context<'a> {
    fn new(schema: &'a Schema) -> Self {
        let (findings, path) = (Vec::new(), Vec::new());
        Self { schema, findings, path, place: "", keeps_empty: false, depth_untold: 0 }
    }

    /// The path without places in lists and keys of maps, as Go's decoder tells it.
    fn fields(&self) -> String {
        let names = self.path.iter().flat_map(|step| match step {
            Step::Field(field) => [field.go.embedded, field.name],
            Step::Key(_) | Step::Index(_) => [""; 2],
        });
        names.filter(|name| !name.is_empty()).collect::<Vec<_>>().join(".")
    }

    fn path_to(&self, last: Option<&str>) -> String {
        let mut out = self.place.to_owned();
        for step in &self.path {
            let name = match step {
                Step::Index(index) => {
                    out.push_str(&format!("[{index}]"));
                    continue;
                }
                Step::Field(field) => field.name,
                Step::Key(name) => name.as_str(),
            };
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(name);
        }
        if let Some(last) = last {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(last);
        }
        out
    }

    fn find(&mut self, what: &str, field: &str) {
        if self.depth_untold == 0 && self.findings.len() < MAX_FINDINGS {
            let path = self.path_to(Some(field));
            self.findings.push(format!("{what} field \"{path}\""));
        }
    }
}

/// A place in the document that is to be read as `shape`.
struct Node<'c, 'a, 's> {
    context: &'c mut Context<'a>,
    shape: &'s Shape,
    /// Short name of the type that has this field, for messages.
    owner: &'static str,
    /// What Go calls the shape, if that does not follow from it.
    go: &'static str,
}

impl Node<'_, '_, '_> {
    /// The message of Go's decoder, which users know.
    fn mismatch<E: de::Error>(&self, found: &str) -> E {
        if *self.shape == Shape::Quantity {
            return E::custom(QuantityError::Format);
        }
        let path = self.context.fields();
        let wanted = match self.go {
            "" => go_type(self.context.schema, self.shape),
            named => named.to_owned(),
        };
        if path.is_empty() {
            return E::custom(format!(
                "json: cannot unmarshal {found} into Go value of type {wanted}"
            ));
        }
        E::custom(format!(
            "json: cannot unmarshal {found} into Go struct field {}.{path} of type {wanted}",
            self.owner
        ))
    }
}

/// Whether it is a scalar of which Go says that it is not set.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Bool(is) => !is,
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    }
}

/// What Go has where an item of a list or a value of a map is null, or absent.
pub(crate) fn nothing(shape: &Shape) -> Value {
    match shape {
        Shape::String | Shape::Bytes => "".into(),
        Shape::Quantity => "0".into(),
        Shape::Bool => false.into(),
        Shape::Int32 | Shape::Int64 | Shape::IntOrString => 0.into(),
        Shape::Object(_) => Value::Object(Map::new()),
        _ => Value::Null,
    }
}

/// What Go's decoder calls a shape.
fn go_type(schema: &Schema, shape: &Shape) -> String {
    let name = match shape {
        Shape::String | Shape::Quantity | Shape::Duration | Shape::Time | Shape::MicroTime => {
            "string"
        }
        Shape::IntOrString => "int32",
        Shape::Bytes => "[]uint8",
        Shape::Bool => "bool",
        Shape::Int32 => "int32",
        Shape::Int64 => "int64",
        Shape::Double => "float64",
        Shape::Raw | Shape::Any | Shape::Either(..) => "map[string]interface {}",
        Shape::List(item) => return format!("[]{}", go_type(schema, item)),
        Shape::Map(value) => return format!("map[string]{}", go_type(schema, value)),
        Shape::Object(id) => {
            // The package's version and the type.
            let name = schema.get(*id).name;
            let cut = name.rmatch_indices('.').nth(1);
            return cut.map_or(name, |(at, _)| &name[at + 1..]).to_owned();
        }
    };
    name.to_owned()
}

impl<'de> DeserializeSeed<'de> for Node<'_, '_, '_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if MAX_DEPTH < self.context.path.len() {
            return Err(de::Error::custom(format!("exceeded max depth of {MAX_DEPTH}")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_, '_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&go_type(self.context.schema, self.shape))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        match self.shape {
            Shape::Bool | Shape::Any | Shape::Either(Either::Bool, _) => Ok(Value::Bool(value)),
            _ => Err(self.mismatch("bool")),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        match self.shape {
            Shape::Int32 | Shape::IntOrString if i32::try_from(value).is_err() => {
                Err(self.mismatch(&format!("number {value}")))
            }
            Shape::Int32 | Shape::Int64 | Shape::IntOrString | Shape::Double | Shape::Any => {
                Ok(value.into())
            }
            Shape::Quantity => Ok(Value::String(value.to_string())),
            _ => Err(self.mismatch("number")),
        }
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        match i64::try_from(value) {
            Ok(signed) => self.visit_i64(signed),
            Err(_) => match self.shape {
                Shape::Double | Shape::Any => Ok(value.into()),
                Shape::Quantity => Ok(Value::String(value.to_string())),
                _ => Err(self.mismatch(&format!("number {value}"))),
            },
        }
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        match self.shape {
            Shape::Double | Shape::Any => {
                Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
            }
            Shape::Quantity => Ok(Value::String(value.to_string())),
            _ => Err(self.mismatch(&format!("number {value}"))),
        }
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        match self.shape {
            Shape::Time => time::normalize(value)
                .map(Value::String)
                .ok_or_else(|| E::custom(bad_time(value, SECONDS))),
            Shape::MicroTime => time::normalize_micro(value)
                .map(Value::String)
                .ok_or_else(|| E::custom(bad_time(value, MICROSECONDS))),
            Shape::Bytes => match not_base64(value) {
                Some(at) => Err(E::custom(format!("illegal base64 data at input byte {at}"))),
                None => Ok(Value::String(value.to_owned())),
            },
            Shape::Quantity => Quantity::parse(value)
                .map(|quantity| Value::String(quantity.to_string()))
                .map_err(|error| E::custom(error.to_string())),
            Shape::Duration if time::go_duration(value).is_none() => {
                Err(E::custom(format!("time: invalid duration {value:?}")))
            }
            Shape::String | Shape::IntOrString | Shape::Duration | Shape::Any => {
                Ok(Value::String(value.to_owned()))
            }
            _ => Err(self.mismatch("string")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let of_either;
        let inner = match self.shape {
            Shape::List(inner) => inner.as_ref(),
            Shape::Any => &Shape::Any,
            Shape::Either(Either::Names, _) => &Shape::String,
            Shape::Either(Either::List, id) => {
                of_either = Shape::Object(*id);
                &of_either
            }
            _ => return Err(self.mismatch("array")),
        };
        let is_either = matches!(self.shape, Shape::Either(..));
        self.context.depth_untold += usize::from(is_either);
        let mut out = Vec::new();
        loop {
            self.context.path.push(Step::Index(out.len()));
            let go = self.go.strip_prefix("[]").unwrap_or_default();
            let node = Node { context: self.context, shape: inner, owner: self.owner, go };
            let item = items.next_element_seed(node)?;
            self.context.path.pop();
            match item {
                Some(Value::Null) => out.push(nothing(inner)),
                Some(item) => out.push(item),
                None => {
                    self.context.depth_untold -= usize::from(is_either);
                    return Ok(Value::Array(out));
                }
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let schema = self.context.schema;
        let (it, inner) = match self.shape {
            Shape::Object(id) | Shape::Either(_, id) => (Some(schema.get(*id)), &Shape::Any),
            Shape::Map(inner) => (None, inner.as_ref()),
            Shape::Any | Shape::Raw => (None, &Shape::Any),
            _ => return Err(self.mismatch("object")),
        };
        let is_either = matches!(self.shape, Shape::Either(..));
        self.context.depth_untold += usize::from(is_either);
        let mut out = Map::new();
        // Null fields are dropped from `out` but count as seen.
        let mut nulls: Vec<String> = Vec::new();
        while let Some(mut key) = entries.next_key::<String>()? {
            if out.contains_key(&key) || nulls.contains(&key) {
                self.context.find("duplicate", &key);
            }
            let field = it.and_then(|it| it.field(&key));
            let (shape, owner, go, step) = match (it, field) {
                (None, _) => {
                    let go = self.go.split_once(']').map_or("", |(_, value)| value);
                    (inner, self.owner, go, Step::Key(std::mem::take(&mut key)))
                }
                (Some(it), Some(field)) => {
                    (&field.shape, it.short_name(), field.go.shape, Step::Field(field))
                }
                (Some(_), None) => {
                    self.context.find("unknown", &key);
                    entries.next_value::<de::IgnoredAny>()?;
                    continue;
                }
            };
            self.context.path.push(step);
            let node = Node { context: self.context, shape, owner, go };
            let value = entries.next_value_seed(node)?;
            if let Some(Step::Key(taken)) = self.context.path.pop() {
                key = taken;
            }
            // Go's encoder leaves out what has nothing in it, unless it is told not to.
            let is_out = !self.context.keeps_empty
                && key != MANAGERS
                && field.is_some_and(|field| match (shape, &value) {
                    (Shape::List(_), Value::Array(list)) => list.is_empty() && !field.always,
                    (Shape::Map(_), Value::Object(map)) => map.is_empty() && !field.always,
                    (
                        Shape::String
                        | Shape::Bytes
                        | Shape::Bool
                        | Shape::Int32
                        | Shape::Int64
                        | Shape::Double,
                        value,
                    ) => field.drops_zero() && is_zero(value),
                    _ => false,
                });
            if (value.is_null() && it.is_some()) || is_out {
                out.remove(&key);
                nulls.push(key);
            } else if value.is_null() {
                out.insert(key, nothing(shape));
            } else {
                out.insert(key, value);
            }
        }
        self.context.depth_untold -= usize::from(is_either);
        Ok(Value::Object(out))
    }
}

/// In the words of Go's parser: which part of the form it misses, and what is there instead.
fn bad_time(value: &str, form: &'static str) -> String {
    const PARTS: [(&str, usize); 11] = [
        ("2006", 4),
        ("-", 0),
        ("01", 2),
        ("-", 0),
        ("02", 2),
        ("T", 0),
        ("15", 2),
        (":", 0),
        ("04", 2),
        (":", 0),
        ("05", 2),
    ];
    let shown: String = value.chars().take(64).collect();
    let mut rest = value;
    let mut missing = "Z07:00";
    for (part, n_digits) in PARTS {
        let after = match n_digits {
            0 => rest.strip_prefix(part),
            n => rest.split_at_checked(n).and_then(|(digits, after)| {
                digits.bytes().all(|it| it.is_ascii_digit()).then_some(after)
            }),
        };
        match after {
            Some(after) => rest = after,
            None => {
                missing = part;
                break;
            }
        }
    }
    let left: String = rest.chars().take(64).collect();
    format!("parsing time {shown:?} as \"{form}\": cannot parse {left:?} as \"{missing}\"")
}

/// Where a text stops to be base64, as Go's decoder counts.
fn not_base64(text: &str) -> Option<usize> {
    use base64::Engine as _;
    // Decoding into nothing would do; the engine has no such call, and secrets are small.
    if text.is_empty() || base64::engine::general_purpose::STANDARD.decode(text).is_ok() {
        return None;
    }
    let is_letter = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'+' | b'/');
    let bytes = text.as_bytes();
    let bad = bytes.iter().position(|it| !is_letter(*it)).unwrap_or(bytes.len());
    Some(match bytes.get(bad) {
        // The end comes too early.
        None => bad - bad % 4,
        Some(b'=') if bad % 4 < 2 => bad,
        Some(b'=') => bytes.len().min(bad + 1),
        Some(_) => bad,
    })
}

#[cfg(test)]
mod tests;
