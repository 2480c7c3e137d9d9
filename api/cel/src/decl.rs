//! Types, and declarations of variables: types with the sizes that values can have.

use std::{collections::BTreeMap, fmt, sync::Arc};

/// A type as the checker sees it.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// Whatever it turns out to be.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Timestamp,
    Duration,
    List(Box<Type>),
    Map(Box<Type>, Box<Type>),
    Object(Arc<Fields>),
    Optional(Box<Type>),
    /// One of the Kubernetes library, such as `kubernetes.Quantity`.
    Library(&'static str),
    /// The type of types.
    Kind,
    /// What an expression makes itself, such as `Object.spec`.
    Made(Arc<str>),
    /// In signatures: whatever the arguments agree on.
    Any(u8),
}

/// The fields of an object.
#[derive(Debug, PartialEq)]
pub struct Fields {
    pub name: String,
    /// By identifier: the name in JSON, and what it is.
    pub fields: BTreeMap<String, (String, Decl)>,
}

/// A type, with what is known of sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Decl {
    pub kind: DeclKind,
    /// Most characters, items or entries.
    pub max_size: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum DeclKind {
    Dyn,
    Bool,
    Int,
    Double,
    Text,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Decl>),
    Map(Arc<Decl>),
    Object(Arc<Fields>),
    /// Another type, of a variable that is computed.
    Optional(Arc<Decl>),
    /// Of which nothing but the type is known.
    Type(Type),
}

impl Decl {
    pub fn of(kind: DeclKind) -> Self {
        Self { kind, max_size: None }
    }

    pub fn at_most(mut self, size: Option<u64>) -> Self {
        self.max_size = size;
        self
    }

    pub fn kind(&self) -> Type {
        match &self.kind {
            DeclKind::Dyn => Type::Dyn,
            DeclKind::Bool => Type::Bool,
            DeclKind::Int => Type::Int,
            DeclKind::Double => Type::Double,
            DeclKind::Text => Type::Text,
            DeclKind::Bytes => Type::Bytes,
            DeclKind::Timestamp => Type::Timestamp,
            DeclKind::Duration => Type::Duration,
            DeclKind::List(item) => Type::List(Box::new(item.kind())),
            DeclKind::Map(value) => Type::Map(Box::new(Type::Text), Box::new(value.kind())),
            DeclKind::Object(fields) => Type::Object(fields.clone()),
            DeclKind::Optional(inner) => Type::Optional(Box::new(inner.kind())),
            DeclKind::Type(it) => it.clone(),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn | Self::Any(_) => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::Text => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::List(item) => write!(f, "list({item})"),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Object(fields) => f.write_str(&fields.name),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Library(name) => f.write_str(name),
            Self::Kind => f.write_str("type"),
            Self::Made(name) => f.write_str(name),
        }
    }
}
