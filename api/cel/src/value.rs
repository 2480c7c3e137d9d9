//! Values: JSON where it lies, and what is computed from it.

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap, net::IpAddr, sync::Arc};

use insula_api::quantity::Quantity;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value as Json;

use crate::{
    authorizer::Asking,
    decl::{Decl, DeclKind},
    functions::{semver::Semver, url::Url},
    made::Made,
};

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Cow<'a, str>),
    Bytes(Arc<[u8]>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    List(Arc<[Value<'a>]>),
    Map(Arc<BTreeMap<Key, Value<'a>>>),
    /// A list or object as it was sent.
    Json(&'a Json, &'a Decl),
    Optional(Option<Arc<Value<'a>>>),
    Kind(&'static str),
    Quantity(Arc<Quantity>),
    Ip(IpAddr),
    Cidr(IpNet),
    Url(Arc<Url>),
    Semver(Arc<Semver>),
    Format(&'static str),
    Asking(Arc<Asking<'a>>),
    Made(Arc<Made<'a>>),
    /// A variable that could not be computed: whoever asks for it fails.
    Failed(Arc<str>),
}

/// A key of a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Text(String),
}

static DYN: Decl = Decl { kind: DeclKind::Dyn, max_size: None };

impl<'a> Value<'a> {
    /// A part of an object, which the schema says is as `decl`.
    pub fn of_json(json: &'a Json, decl: &'a Decl) -> Self {
        match (json, &decl.kind) {
            (Json::Null, _) => Self::Null,
            (Json::Bool(it), _) => Self::Bool(*it),
            (Json::Number(it), DeclKind::Double) => Self::Double(it.as_f64().unwrap_or_default()),
            (Json::Number(it), DeclKind::Int) => match (it.as_i64(), it.as_f64()) {
                (Some(it), _) => Self::Int(it),
                // A whole number, as validation has seen.
                (None, Some(it)) => format!("{it:.0}").parse().map_or(Self::Double(it), Self::Int),
                _ => Self::Null,
            },
            (Json::Number(it), _) => match it.as_i64() {
                Some(it) => Self::Int(it),
                None => Self::Double(it.as_f64().unwrap_or_default()),
            },
            (Json::String(text), kind) => text_as(text, kind),
            (Json::Array(_) | Json::Object(_), _) => Self::Json(json, decl),
        }
    }

    pub fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    /// A semantic version, if `text` is one.
    pub fn semver(text: &str) -> Option<Self> {
        Semver::parse(text, false).map(|it| Self::Semver(Arc::new(it)))
    }

    pub fn list(items: Vec<Self>) -> Self {
        Self::List(items.into())
    }

    /// The name of its type.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::List(_) | Self::Json(Json::Array(_), _) => "list",
            Self::Map(_) | Self::Json(..) => "map",
            Self::Optional(_) => "optional_type",
            Self::Kind(_) => "type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Asking(it) => it.kind(),
            Self::Made(it) if it.name == crate::made::PATCH => crate::made::PATCH,
            Self::Made(_) => crate::made::OBJECT,
            Self::Failed(_) => "error",
        }
    }

    /// Its items, if it is a list.
    pub fn items(&self) -> Option<Vec<Self>> {
        match self {
            Self::List(items) => Some(items.to_vec()),
            Self::Json(Json::Array(items), decl) => {
                let decl = item_decl(decl);
                Some(items.iter().map(|it| Self::of_json(it, decl)).collect())
            }
            _ => None,
        }
    }

    /// Its entries, if it is a map.
    pub fn entries(&self) -> Option<Vec<(Self, Self)>> {
        match self {
            Self::Map(map) => {
                Some(map.iter().map(|(key, it)| (key.to_value(), it.clone())).collect())
            }
            Self::Json(Json::Object(map), decl) => Some(
                map.iter()
                    .map(|(key, it)| {
                        (Self::text(key.as_str()), Self::of_json(it, field_decl(decl, key)))
                    })
                    .collect(),
            ),
            _ => None,
        }
    }

    /// Number of items or entries, without looking at them.
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::List(items) => Some(items.len()),
            Self::Map(map) => Some(map.len()),
            Self::Json(Json::Array(items), _) => Some(items.len()),
            Self::Json(Json::Object(map), _) => Some(map.len()),
            _ => None,
        }
    }

    pub fn is_empty(&self) -> Option<bool> {
        self.len().map(|it| it == 0)
    }

    /// The field of an object, by its identifier; the entry of a map, by its key.
    pub fn field(&self, name: &str) -> Option<Self> {
        match self {
            Self::Map(map) => map.get(&Key::Text(name.to_owned())).cloned(),
            Self::Made(made) => made.fields.get(name).cloned(),
            Self::Json(Json::Object(map), decl) => match &decl.kind {
                DeclKind::Object(fields) => {
                    let (real, decl) = fields.fields.get(name)?;
                    map.get(real).map(|it| Self::of_json(it, decl))
                }
                _ => map.get(name).map(|it| Self::of_json(it, field_decl(decl, name))),
            },
            _ => None,
        }
    }

    /// The item or entry at `index`.
    pub fn at(&self, index: &Self) -> Option<Self> {
        match (self, index) {
            (Self::List(_) | Self::Json(Json::Array(_), _), index) => {
                let index = usize::try_from(index.as_int()?).ok()?;
                match self {
                    Self::List(items) => items.get(index).cloned(),
                    Self::Json(Json::Array(items), decl) => {
                        items.get(index).map(|it| Self::of_json(it, item_decl(decl)))
                    }
                    _ => None,
                }
            }
            (Self::Map(map), index) => map.get(&Key::of(index)?).cloned(),
            (Self::Json(Json::Object(map), decl), Self::Text(key)) => {
                map.get(key.as_ref()).map(|it| Self::of_json(it, field_decl(decl, key)))
            }
            _ => None,
        }
    }

    /// A whole number, whatever its type.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(it) => Some(*it),
            Self::Uint(it) => i64::try_from(*it).ok(),
            Self::Double(it) if it.fract() == 0.0 && it.abs() < 9e15 => {
                format!("{it:.0}").parse().ok()
            }
            _ => None,
        }
    }

    /// As text, for messages.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A text in the type that its format gives it.
fn text_as<'a>(text: &'a str, kind: &DeclKind) -> Value<'a> {
    use base64::Engine as _;
    let read = match kind {
        DeclKind::Timestamp => timestamp(text).map(Value::Timestamp),
        DeclKind::Duration => crate::functions::time::duration(text).map(Value::Duration),
        DeclKind::Bytes => base64::engine::general_purpose::STANDARD
            .decode(text)
            .ok()
            .map(|it| Value::Bytes(it.into())),
        _ => None,
    };
    read.unwrap_or(Value::Text(Cow::Borrowed(text)))
}

/// A point in time; a date alone is its midnight.
pub(crate) fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| format!("{text}T00:00:00Z").parse().ok())
}

fn item_decl(decl: &Decl) -> &Decl {
    match &decl.kind {
        DeclKind::List(item) => item,
        _ => &DYN,
    }
}

fn field_decl<'a>(decl: &'a Decl, name: &str) -> &'a Decl {
    match &decl.kind {
        DeclKind::Map(value) => value,
        DeclKind::Object(fields) => {
            fields.fields.values().find(|(real, _)| real == name).map_or(&DYN, |(_, it)| it)
        }
        _ => &DYN,
    }
}

impl Key {
    pub fn of(value: &Value<'_>) -> Option<Self> {
        Some(match value {
            Value::Bool(it) => Self::Bool(*it),
            Value::Int(it) => Self::Int(*it),
            Value::Uint(it) => i64::try_from(*it).map_or(Self::Uint(*it), Self::Int),
            Value::Double(_) => Self::Int(value.as_int()?),
            Value::Text(it) => Self::Text(it.clone().into_owned()),
            _ => return None,
        })
    }

    pub fn to_value<'a>(&self) -> Value<'a> {
        match self {
            Self::Bool(it) => Value::Bool(*it),
            Self::Int(it) => Value::Int(*it),
            Self::Uint(it) => Value::Uint(*it),
            Self::Text(it) => Value::text(it.clone()),
        }
    }
}

/// How two numbers or other things of one kind are ordered.
pub(crate) fn compare(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    use Value::{Bool, Bytes, Double, Duration, Int, Semver, Text, Timestamp, Uint};
    match (left, right) {
        (Bool(left), Bool(right)) => Some(left.cmp(right)),
        (Int(left), Int(right)) => Some(left.cmp(right)),
        (Uint(left), Uint(right)) => Some(left.cmp(right)),
        (Int(left), Uint(right)) => Some(i128::from(*left).cmp(&i128::from(*right))),
        (Uint(left), Int(right)) => Some(i128::from(*left).cmp(&i128::from(*right))),
        (Double(left), Double(right)) => left.partial_cmp(right),
        (Double(left), right) => left.partial_cmp(&as_double(right)?),
        (left, Double(right)) => as_double(left)?.partial_cmp(right),
        (Text(left), Text(right)) => Some(left.cmp(right)),
        (Bytes(left), Bytes(right)) => Some(left.cmp(right)),
        (Timestamp(left), Timestamp(right)) => Some(left.cmp(right)),
        (Duration(left), Duration(right)) => Some(left.cmp(right)),
        (Semver(left), Semver(right)) => Some(left.cmp(right)),
        _ => None,
    }
}

#[allow(clippy::cast_precision_loss, reason = "as CEL compares numbers of different types")]
pub(crate) fn as_double(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Int(it) => Some(*it as f64),
        Value::Uint(it) => Some(*it as f64),
        Value::Double(it) => Some(*it),
        _ => None,
    }
}
