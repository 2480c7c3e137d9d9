//! A structural schema, compiled: what a field may be, what it is if absent, and its rules.
//!
//! Descriptions, titles and examples are not kept: they are for people, who read them in OpenAPI.

use std::{collections::BTreeMap, sync::Arc};

use insula_cel::regex::{self as pattern, PatternError};
use regex::Regex;
use serde_json::{Map, Number, Value};

use crate::{formats::Format, path::Path, rules::Programs};

/// Deepest nesting of a schema.
pub const MAX_DEPTH: usize = 48;

/// A type as JSON schema names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Array,
    Boolean,
    Integer,
    Number,
    Object,
    String,
}

impl Type {
    /// As in `type: integer`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "array" => Self::Array,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "object" => Self::Object,
            "string" => Self::String,
            _ => return None,
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Array => "array",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Object => "object",
            Self::String => "string",
        }
    }
}

/// How the items of a list are told apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    /// By these fields.
    Map(Vec<String>),
}

/// One node of a schema.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    pub kind: Option<Type>,
    pub nullable: bool,
    pub int_or_string: bool,
    pub preserve_unknown: bool,
    /// Holds an object with `apiVersion`, `kind` and `metadata` of its own.
    pub embedded: bool,
    pub properties: BTreeMap<String, Schema>,
    pub additional: Option<Additional>,
    pub items: Option<Box<Schema>>,
    pub default: Option<Value>,
    pub list: ListType,
    pub map_atomic: bool,
    pub checks: Option<Box<Checks>>,
    pub rules: Vec<Rule>,
    /// The rules, ready to run; made by [`crate::rules::compile`].
    pub programs: Option<Arc<Programs>>,
    /// Whether it, or anything below it, has a default.
    pub has_defaults: bool,
    /// Whether it, or anything below it, has rules.
    pub has_rules: bool,
}

/// What fields of an object may be that have no schema of their own.
#[derive(Debug, Clone)]
pub enum Additional {
    Anything,
    Of(Box<Schema>),
}

/// What a value must be like, beyond its type.
#[derive(Debug, Clone, Default)]
pub struct Checks {
    pub allowed: Option<Vec<Value>>,
    pub pattern: Option<Pattern>,
    pub format: Option<Format>,
    pub minimum: Option<Number>,
    pub exclusive_minimum: bool,
    pub maximum: Option<Number>,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub required: Vec<String>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
}

/// A pattern, with what it was made of.
#[derive(Debug, Clone)]
pub struct Pattern {
    pub source: String,
    pub regex: Regex,
}

/// One of `x-kubernetes-validations`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: String,
    pub field_path: String,
    pub optional_old_self: bool,
}

/// Why a document is no schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("schema is nested deeper than {MAX_DEPTH}")]
    TooDeep,
    #[error("{0:?} must be {1}")]
    Shape(String, &'static str),
    #[error("rule of {path:?}")]
    Rule {
        path: String,
        #[source]
        source: insula_cel::CompileError,
    },
    #[error("pattern {pattern:?}: {source}")]
    Pattern {
        pattern: String,
        #[source]
        source: PatternError,
    },
}

impl Schema {
    /// Compiles an `openAPIV3Schema`.
    pub fn compile(document: &Value) -> Result<Self, SchemaError> {
        Self::node(document, MAX_DEPTH)
    }

    fn node(document: &Value, depth: usize) -> Result<Self, SchemaError> {
        let Some(depth) = depth.checked_sub(1) else { return Err(SchemaError::TooDeep) };
        let Some(fields) = document.as_object() else {
            return Err(SchemaError::Shape("schema".into(), "an object"));
        };
        let flag = |name: &str| fields.get(name).and_then(Value::as_bool).unwrap_or(false);
        let mut it = Self {
            kind: text(fields, "type").and_then(Type::parse),
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            default: fields.get("default").filter(|it| !it.is_null()).cloned(),
            map_atomic: text(fields, "x-kubernetes-map-type") == Some("atomic"),
            ..Self::default()
        };
        for (name, property) in children(fields, "properties")? {
            it.properties.insert(name.clone(), Self::node(property, depth)?);
        }
        it.additional = match fields.get("additionalProperties") {
            None | Some(Value::Null | Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(Additional::Anything),
            Some(schema) => Some(Additional::Of(Box::new(Self::node(schema, depth)?))),
        };
        if let Some(items) = fields.get("items").filter(|it| it.is_object()) {
            it.items = Some(Box::new(Self::node(items, depth)?));
        }
        it.list = match text(fields, "x-kubernetes-list-type") {
            Some("set") => ListType::Set,
            Some("map") => ListType::Map(texts(fields, "x-kubernetes-list-map-keys")),
            _ => ListType::Atomic,
        };
        it.rules = rules(fields);
        it.checks = Checks::compile(fields, depth)?.map(Box::new);
        let has_defaults = it.below().any(|it| it.has_defaults || it.default.is_some());
        let has_rules = !it.rules.is_empty() || it.below().any(|it| it.has_rules);
        (it.has_defaults, it.has_rules) = (has_defaults, has_rules);
        Ok(it)
    }

    /// The schemas of what is directly in it.
    fn below(&self) -> impl Iterator<Item = &Self> {
        let additional = match &self.additional {
            Some(Additional::Of(schema)) => Some(&**schema),
            _ => None,
        };
        self.properties.values().chain(additional).chain(self.items.as_deref())
    }

    /// The schema of a field, if it may be there.
    pub fn field(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or(match &self.additional {
            Some(Additional::Of(schema)) => Some(&**schema),
            _ => None,
        })
    }

    /// Visits `it` and all that is in it and has a schema, what contains before what is in it.
    pub(crate) fn walk(
        &self,
        it: &Value,
        path: &Path<'_>,
        visit: &mut impl FnMut(&Self, &Value, &Path<'_>),
    ) {
        visit(self, it, path);
        match it {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if let Some(below) = self.field(name) {
                        below.walk(value, &path.field(name), visit);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(below) = &self.items {
                    for (index, item) in items.iter().enumerate() {
                        below.walk(item, &path.index(index), visit);
                    }
                }
            }
            _ => (),
        }
    }
}

impl Checks {
    /// None if nothing is asked.
    fn compile(fields: &Map<String, Value>, depth: usize) -> Result<Option<Self>, SchemaError> {
        const KEYWORDS: &[&str] = &[
            "enum",
            "pattern",
            "format",
            "minimum",
            "maximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
            "required",
            "allOf",
            "anyOf",
            "oneOf",
            "not",
        ];
        if !KEYWORDS.iter().any(|it| fields.contains_key(*it)) {
            return Ok(None);
        }
        let number = |name: &str| fields.get(name).and_then(Value::as_number).cloned();
        let count = |name: &str| fields.get(name).and_then(Value::as_u64);
        let flag = |name: &str| fields.get(name).and_then(Value::as_bool).unwrap_or(false);
        let list = |name: &str| -> Result<Vec<Schema>, SchemaError> {
            let found = fields.get(name).and_then(Value::as_array);
            found.into_iter().flatten().map(|it| Schema::node(it, depth)).collect()
        };
        let pattern = match text(fields, "pattern").filter(|it| !it.is_empty()) {
            Some(text) => {
                let regex = pattern::compile(text).map_err(|source| SchemaError::Pattern {
                    pattern: text.chars().take(128).collect(),
                    source,
                })?;
                Some(Pattern { source: text.to_owned(), regex })
            }
            None => None,
        };
        let not = match fields.get("not").filter(|it| it.is_object()) {
            Some(not) => Some(Box::new(Schema::node(not, depth)?)),
            None => None,
        };
        Ok(Some(Self {
            allowed: fields.get("enum").and_then(Value::as_array).cloned(),
            pattern,
            format: text(fields, "format")
                .and_then(|it| Format::parse(text(fields, "type").unwrap_or_default(), it)),
            minimum: number("minimum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            maximum: number("maximum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            multiple_of: number("multipleOf").and_then(|it| it.as_f64()),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            required: texts(fields, "required"),
            all_of: list("allOf")?,
            any_of: list("anyOf")?,
            one_of: list("oneOf")?,
            not,
        }))
    }
}

fn rules(fields: &Map<String, Value>) -> Vec<Rule> {
    let list = fields.get("x-kubernetes-validations").and_then(Value::as_array);
    let rules = list.into_iter().flatten().filter_map(Value::as_object);
    rules
        .map(|it| {
            let own = |name: &str| text(it, name).unwrap_or_default().to_owned();
            Rule {
                rule: own("rule"),
                message: own("message"),
                message_expression: own("messageExpression"),
                reason: own("reason"),
                field_path: own("fieldPath"),
                optional_old_self: it.get("optionalOldSelf") == Some(&Value::Bool(true)),
            }
        })
        .collect()
}

pub(crate) fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str)
}

pub(crate) fn texts(fields: &Map<String, Value>, name: &str) -> Vec<String> {
    let list = fields.get(name).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned)).collect()
}

fn children<'a>(
    fields: &'a Map<String, Value>,
    name: &str,
) -> Result<impl Iterator<Item = (&'a String, &'a Value)>, SchemaError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None.into_iter().flatten()),
        Some(Value::Object(map)) => Ok(Some(map).into_iter().flatten()),
        Some(_) => Err(SchemaError::Shape(name.to_owned(), "an object")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_is_compiled_as_it_reads() {
        let schema = Schema::compile(&json!({"type": "object", "properties": {
            "a": {"type": "integer", "minimum": 1, "default": 3},
            "b": {"type": "array", "x-kubernetes-list-type": "map",
                  "x-kubernetes-list-map-keys": ["name"],
                  "items": {"type": "object", "required": ["name"],
                            "properties": {"name": {"type": "string"}}}},
            "c": {"type": "object", "additionalProperties": {"type": "string"}},
            "d": {"x-kubernetes-preserve-unknown-fields": true},
        }}))
        .unwrap();
        assert!(schema.has_defaults && !schema.has_rules);
        assert_eq!(schema.properties["b"].list, ListType::Map(vec!["name".into()]));
        assert_eq!(schema.properties["c"].field("x").unwrap().kind, Some(Type::String));
        assert!(schema.properties["d"].preserve_unknown);
    }

    #[test]
    fn depth_and_patterns_are_bounded() {
        let mut deep = json!({"type": "string"});
        for _ in 0..MAX_DEPTH {
            deep = json!({"type": "array", "items": deep});
        }
        assert_eq!(Schema::compile(&deep).unwrap_err(), SchemaError::TooDeep);
        let bad = json!({"type": "string", "pattern": "("});
        assert!(matches!(Schema::compile(&bad), Err(SchemaError::Pattern { .. })));
    }
}
