//! Objects that an expression makes: `Object{spec: Object.spec{replicas: 3}}` and `JSONPatch{…}`.
//!
//! They are what an expression of a mutation comes to; other expressions know no such names.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use crate::value::{Key, Value};

/// The name of patches, and the fields they have.
pub const PATCH: &str = "JSONPatch";
const PATCH_TEXTS: [&str; 3] = ["op", "path", "from"];
/// The name of objects; parts of them begin with it and a dot.
pub const OBJECT: &str = "Object";

/// See the module.
#[derive(Debug)]
pub struct Made<'a> {
    pub name: String,
    pub fields: BTreeMap<String, Value<'a>>,
}

/// Whether there is such a type.
pub(crate) fn is_known(name: &str) -> bool {
    name == PATCH || name == OBJECT || name.starts_with("Object.")
}

/// What is known of a field: whether it is there at all, and whether it is a text.
pub(crate) fn field_of(name: &str, field: &str) -> Option<bool> {
    match name {
        PATCH if PATCH_TEXTS.contains(&field) => Some(true),
        PATCH => (field == "value").then_some(false),
        _ => Some(false),
    }
}

impl Made<'_> {
    /// What is wrong with the names of the parts: each is that of its place.
    pub fn misnamed(&self) -> Vec<String> {
        let mut found = Vec::new();
        check(self, &mut OBJECT.to_owned(), &mut found);
        found
    }
}

fn check(it: &Made<'_>, path: &mut String, found: &mut Vec<String>) {
    if it.name != *path {
        found.push(format!(
            "unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
            it.name
        ));
    }
    for (name, value) in &it.fields {
        let length = path.len();
        path.push('.');
        path.push_str(name);
        check_value(value, path, found);
        path.truncate(length);
    }
}

fn check_value(it: &Value<'_>, path: &mut String, found: &mut Vec<String>) {
    match it {
        Value::Made(made) => check(made, path, found),
        Value::List(items) => items.iter().for_each(|it| check_value(it, path, found)),
        Value::Map(map) => map.values().for_each(|it| check_value(it, path, found)),
        _ => (),
    }
}

impl Value<'_> {
    /// As JSON. `None` if it is something that JSON has no form for.
    pub fn to_json(&self) -> Option<Json> {
        use base64::Engine as _;
        Some(match self {
            Self::Null => Json::Null,
            Self::Bool(it) => (*it).into(),
            Self::Int(it) => (*it).into(),
            Self::Uint(it) => (*it).into(),
            Self::Double(it) => serde_json::Number::from_f64(*it)?.into(),
            Self::Text(it) => it.as_ref().into(),
            Self::Bytes(it) => base64::engine::general_purpose::STANDARD.encode(it).into(),
            Self::Timestamp(_) | Self::Duration(_) => crate::functions::shown(self).into(),
            Self::List(items) => {
                Json::Array(items.iter().map(Value::to_json).collect::<Option<_>>()?)
            }
            Self::Map(map) => {
                let mut out = Map::new();
                for (key, it) in map.iter() {
                    let Key::Text(key) = key else { return None };
                    out.insert(key.clone(), it.to_json()?);
                }
                out.into()
            }
            Self::Made(made) => {
                let mut out = Map::new();
                for (name, it) in &made.fields {
                    out.insert(name.clone(), it.to_json()?);
                }
                out.into()
            }
            Self::Json(it, _) => (*it).clone(),
            Self::Quantity(_) | Self::Ip(_) | Self::Cidr(_) | Self::Url(_) | Self::Semver(_) => {
                return None;
            }
            Self::Optional(_)
            | Self::Kind(_)
            | Self::Format(_)
            | Self::Asking(_)
            | Self::Failed(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Budget, Program};

    fn made(source: &str) -> Result<Json, String> {
        let program = Program::compile_patch(source, &[]).map_err(|it| it.message)?;
        let found = program.eval(&[], &mut Budget::new(100_000)).map_err(|it| it.to_string())?;
        if let Value::Made(made) = &found
            && made.name.starts_with(OBJECT)
            && let Some(wrong) = made.misnamed().into_iter().next()
        {
            return Err(wrong);
        }
        found.to_json().ok_or_else(|| "no JSON".to_owned())
    }

    #[test]
    fn objects_are_made() {
        for (source, expected) in [
            ("Object{}", r#"{}"#),
            ("Object{spec: Object.spec{replicas: 1 + 2}}", r#"{"spec":{"replicas":3}}"#),
            (
                "Object{a: Object.a{list: [Object.a.list{n: 'x'}], ?gone: optional.none()}}",
                r#"{"a":{"list":[{"n":"x"}]}}"#,
            ),
            (
                "Object{metadata: Object.metadata{labels: {'a': 'b'}}}",
                r#"{"metadata":{"labels":{"a":"b"}}}"#,
            ),
            (
                "JSONPatch{op: 'add', path: '/x/' + jsonpatch.escapeKey('a/b~c'), value: {'k': 1}}",
                r#"{"op":"add","path":"/x/a~1b~0c","value":{"k":1}}"#,
            ),
            ("Object{n: [1, 2]}.n.sum()", "3"),
            ("Object{a: 1} == Object{a: 1}", "true"),
            ("Object{a: 1} == Object{a: 2}", "false"),
        ] {
            assert_eq!(made(source).map(|it| it.to_string()), Ok(expected.to_owned()), "{source}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for (source, expected) in [
            ("Invalid{}", "undeclared reference to 'Invalid' (in container '')"),
            (
                "JSONPatch{op: 1}",
                "expected type of field 'op' is 'string' but provided type is 'int'",
            ),
            ("JSONPatch{what: 1}", "undefined field 'what'"),
            (
                "Object{spec: Object.other{}}",
                r#"unexpected type name "Object.other", expected "Object.spec", which matches field name path from root Object type"#,
            ),
        ] {
            assert_eq!(made(source), Err(expected.to_owned()), "{source}");
        }
        // Other expressions make none.
        for source in ["Object{}", "jsonpatch.escapeKey('a')"] {
            assert!(Program::compile(source, &[]).is_err(), "{source}");
        }
    }
}
