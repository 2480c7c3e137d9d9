//! Bodies: JSON, YAML and protobuf of every built-in kind.

use insula_api::{
    decode::{self, Decoded},
    defaults, proto,
    schema::{Gvk, Schema, TypeId},
};
use serde_json::Value;

use crate::input;

/// A kind's name, and JSON.
pub(super) fn json(bytes: &[u8]) {
    let [name, body] = input::parts(bytes);
    let (kind, id) = input::kind(name);
    if let Ok(decoded) = decode::json(Schema::built_in(), Some(id), body) {
        settled(kind, id, decoded);
    }
    if let Ok(free) = decode::json(Schema::built_in(), None, body) {
        let again = decode::json(Schema::built_in(), None, free.value.to_string().as_bytes());
        assert_eq!(again.map(|it| it.value), Ok(free.value));
    }
}

/// A kind's name, and YAML.
pub(super) fn yaml(bytes: &[u8]) {
    let [name, body] = input::parts(bytes);
    let (kind, id) = input::kind(name);
    if let Ok(decoded) = decode::yaml(Schema::built_in(), Some(id), body) {
        settled(kind, id, decoded);
    }
}

/// What was decoded is a whole and well-typed object: it reads as itself, in each form.
fn settled(kind: &Gvk, id: TypeId, decoded: Decoded) {
    let schema = Schema::built_in();
    let mut it = decoded.value;
    for finding in &decoded.findings {
        let known = ["unknown field ", "duplicate field ", "yaml: unmarshal errors:\n"];
        assert!(known.iter().any(|it| finding.starts_with(it)), "{finding}");
    }
    if it.is_null() {
        return;
    }
    let again = decode::json(schema, Some(id), it.to_string().as_bytes());
    assert_eq!(again, Ok(Decoded { value: it.clone(), findings: Vec::new() }));
    assert_eq!(decode::value(schema, Some(id), it.clone()), again);
    travels(kind, id, &it);
    defaults::apply(id, &mut it);
    let once = it.clone();
    defaults::apply(id, &mut it);
    assert_eq!(it, once, "defaults come once");
    // Some say that there is nothing, which is the same as saying nothing.
    let typed = decode::value(schema, Some(id), without_nulls(it.clone()));
    assert_eq!(typed, Ok(Decoded { value: without_nulls(it), findings: Vec::new() }));
}

fn without_nulls(mut it: Value) -> Value {
    match &mut it {
        Value::Object(map) => {
            map.retain(|_, it| !it.is_null());
            map.values_mut().for_each(|it| *it = without_nulls(it.take()));
        }
        Value::Array(list) => list.iter_mut().for_each(|it| *it = without_nulls(it.take())),
        _ => (),
    }
    it
}

/// Through protobuf and back, from where it has been once it comes as it went.
fn travels(kind: &Gvk, id: TypeId, it: &Value) {
    let schema = Schema::built_in();
    if !schema.has_proto(id) {
        return;
    }
    let api_version = kind.api_version();
    let send = |it: &Value| {
        let json = it.to_string();
        let sent = proto::enveloped(schema, id, (&api_version, &kind.kind), json.as_bytes());
        let sent = sent.expect("what is well-typed can be written");
        proto::decode(schema, &sent, None).expect("what was written can be read")
    };
    let (found, there) = send(it);
    assert_eq!(&found, kind);
    assert_eq!(send(&there), (found, there.clone()));
    assert!(decode::value(schema, Some(id), there).is_ok_and(|it| it.findings.is_empty()));
}

/// An enveloped message.
pub(super) fn protobuf(bytes: &[u8]) {
    let schema = Schema::built_in();
    let pod = Gvk::new("", "v1", "Pod");
    let Ok((kind, value)) = proto::decode(schema, bytes, Some(&pod)) else { return };
    let Some(id) = schema.by_kind(&kind) else { panic!("{kind:?} was made up") };
    let typed = decode::value(schema, Some(id), value.clone());
    assert_eq!(typed, Ok(Decoded { value: value.clone(), findings: Vec::new() }));
    travels(&kind, id, &value);
}
