//! Custom resources that are sent in wrong ways, and what upstream says of each.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::time::{Duration, Instant};

use harness::{Api, JSON, MERGE, STRATEGIC};
use http::{Method, header};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const ALL: &str = "/apis/example.com/v1/namespaces/default/gadgets";
const ONE: &str = "/apis/example.com/v1/namespaces/default/gadgets/a";

async fn defined() -> Api {
    let api = Api::start().await;
    let spec = json!({"type": "object", "properties": {
        "size": {"type": "integer"}, "replicas": {"type": "integer"},
        "name": {"type": "string", "maxLength": 5, "pattern": "^[a-z]+$"},
        "embedded": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        "pair": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.a < self.b", "reason": "FieldValueForbidden", "fieldPath": ".a"}]},
    }});
    let status = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({"type": "object", "properties": {"spec": spec, "status": status}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "listKind": "GadgetList"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "deprecated": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.ready"}},
            }],
        },
    });
    api.make(DEFINITIONS, &definition).await;
    let begun = Instant::now();
    while api.send(Method::GET, ALL, JSON, "").await.0 != 200 {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    api
}

fn gadget(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "a"}, "spec": spec})
}

#[tokio::test]
async fn bodies_are_of_their_kind() {
    let api = defined().await;
    let refused = async |uri: &str, body: Value, code: u16, message: &str| {
        let (got, said) = api.post(uri, &body).await;
        assert_eq!(got, code, "{said}");
        let text = said["message"].as_str().unwrap();
        assert!(text.starts_with(message), "{text}\n{message}");
    };
    let strict = format!("{ALL}?fieldValidation=Strict");
    refused(
        ALL,
        json!({"metadata": {"name": "a"}, "spec": {"size": 1}}),
        400,
        r#"the object provided is unrecognized (must be of type Gadget): Object 'Kind' is missing in '{"metadata":{"name":"a"},"spec":{"size":1}}' ({"metadata":{"name":"a"},"spec ...)"#,
    )
    .await;
    refused(
        ALL,
        json!({"apiVersion": "example.com/v2", "kind": "Gadget", "metadata": {"name": "a"}}),
        400,
        "the API version in the data (example.com/v2) does not match the expected API version (example.com/v1)",
    )
    .await;
    refused(
        ALL,
        json!({"apiVersion": "example.com/v1", "kind": "Nope", "metadata": {"name": "a"}}),
        422,
        "Nope.example.com \"a\" is invalid: kind: Invalid value: \"Nope\": must be Gadget",
    )
    .await;
    let mut typed = gadget(json!({}));
    typed["metadata"]["labels"] = json!({"a": 1});
    refused(
        ALL,
        typed,
        400,
        "Gadget in version \"v1\" cannot be handled as a Gadget: json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string",
    )
    .await;
    let of = |metadata: Value| {
        gadget(json!({"embedded": {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}}))
    };
    refused(
        ALL,
        of(json!({"labels": {"a": 1}})),
        400,
        "Gadget in version \"v1\" cannot be handled as a Gadget: spec.embedded.metadata: Invalid value: {\"labels\":{\"a\":1}}: json: cannot unmarshal number",
    )
    .await;
    refused(
        &strict,
        of(json!({"name": "x", "nope": 1})),
        400,
        "Gadget in version \"v1\" cannot be handled as a Gadget: strict decoding error: unknown field \"spec.embedded.metadata.nope\"",
    )
    .await;
    refused(
        ALL,
        gadget(json!({"pair": {"a": 2}})),
        422,
        "Gadget.example.com \"a\" is invalid: spec.pair: Invalid value: \"object\": no such key: b evaluating rule: self.a < self.b",
    )
    .await;
    refused(
        ALL,
        gadget(json!({"name": "Toolong1"})),
        422,
        "Gadget.example.com \"a\" is invalid: [spec.name: Too long: may not be more than 5 bytes, <nil>:",
    )
    .await;
    refused(
        ALL,
        gadget(json!({"replicas": "x"})),
        422,
        "Gadget.example.com \"a\" is invalid: [spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\", .spec.replicas: Invalid value: 0: .spec.replicas accessor error: x is of the type string, expected int64,",
    )
    .await;
}

#[tokio::test]
async fn patches_are_of_what_is_there() {
    let api = defined().await;
    api.make(ALL, &gadget(json!({"size": 1}))).await;
    for (patch, code, message) in [
        (
            json!({"metadata": {"name": "b"}}),
            400,
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            json!({"metadata": {"namespace": "b"}}),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            json!({"kind": "Other"}),
            422,
            "Other.example.com \"a\" is invalid: kind: Invalid value: \"Other\": must be Gadget",
        ),
        (
            json!([]),
            400,
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (Value::Null, 400, "Invalid JSON Patch"),
    ] {
        let (got, said) = api.patch(ONE, MERGE, &patch).await;
        assert_eq!((got, said["message"].as_str()), (code, Some(message)), "{said}");
    }
    // The router knows these of built-in kinds alone, so that here something is warned of.
    for kind in [STRATEGIC, "application/nope"] {
        let it = api.ask(Method::PATCH, ONE, &[(header::CONTENT_TYPE, kind)], "{}").await;
        let accepted = "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
        assert_eq!((it.code, it.body["message"].as_str()), (415, Some(accepted)));
        assert_eq!(it.warnings, [r#"299 - "example.com/v1 Gadget is deprecated""#]);
    }
    // Of a built-in kind, too, nothing becomes another.
    let maps = "/api/v1/namespaces/default/configmaps";
    api.make(maps, &json!({"metadata": {"name": "m"}, "data": {"k": "v"}})).await;
    let map = format!("{maps}/m");
    for (patch, code, message) in [
        (
            json!({"metadata": {"name": "b"}}),
            400,
            "the name of the object (b) does not match the name on the URL (m)",
        ),
        (
            json!({"kind": "Pod"}),
            422,
            " \"\" is invalid: patch: Invalid value: \"{\\\"kind\\\":\\\"Pod\\\"}\": converting (v1.Pod) to (core.ConfigMap): unknown conversion",
        ),
        (
            json!({"apiVersion": "v2"}),
            422,
            " \"\" is invalid: patch: Invalid value: \"{\\\"apiVersion\\\":\\\"v2\\\"}\": no kind \"ConfigMap\" is registered for version \"v2\"",
        ),
    ] {
        let (got, said) = api.patch(&map, MERGE, &patch).await;
        assert_eq!((got, said["message"].as_str()), (code, Some(message)), "{said}");
    }
    let (code, said) = api.patch(&map, STRATEGIC, &json!({"kind": "Pod"})).await;
    assert_eq!((code, said["kind"].as_str()), (200, Some("ConfigMap")), "{said}");
    let endpoints = "/api/v1/namespaces/default/endpoints/a";
    let it = api.ask(Method::PATCH, endpoints, &[(header::CONTENT_TYPE, "application/nope")], "{}");
    let it = it.await;
    assert_eq!((it.code, it.warnings.len()), (415, 0), "{}", it.body);
    let it = api.ask(Method::GET, endpoints, &[], "").await;
    assert_eq!((it.code, it.warnings.len()), (404, 1), "{}", it.body);
}

/// Nobody has to have asked for any replicas before.
#[tokio::test]
async fn a_scale_may_be_the_first() {
    let api = defined().await;
    api.make(ALL, &gadget(json!({"size": 1}))).await;
    let scale = format!("{ONE}/scale");
    let (code, said) = api.send(Method::GET, &scale, JSON, "").await;
    let message =
        "Internal error occurred: the spec replicas field \".spec.replicas\" does not exist";
    assert_eq!((code, said["message"].as_str()), (500, Some(message)), "{said}");
    let (code, said) = api.patch(&scale, MERGE, &json!({"status": {}})).await;
    let message = "the spec replicas field \".spec.replicas\" cannot be empty";
    assert_eq!((code, said["message"].as_str()), (400, Some(message)), "{said}");
    let (code, said) = api.patch(&scale, MERGE, &json!({"spec": {"replicas": -5}})).await;
    let message = "Gadget.example.com \"a\" is invalid: .spec.replicas: Invalid value: -5: should be a non-negative integer";
    assert_eq!((code, said["message"].as_str()), (422, Some(message)), "{said}");
    let (code, said) = api.patch(&scale, MERGE, &json!({"spec": {"replicas": 5}})).await;
    assert_eq!((code, said["spec"]["replicas"].as_i64()), (200, Some(5)), "{said}");
    let whole = |name: &str| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": name, "namespace": "default"}, "spec": {"replicas": 7}});
    let (code, said) = api.put(&scale, &whole("b")).await;
    let message = "the name of the object (b) does not match the name on the URL (a)";
    assert_eq!((code, said["message"].as_str()), (400, Some(message)), "{said}");
    let (code, said) = api.put(&scale, &whole("a")).await;
    assert_eq!((code, said["spec"]["replicas"].as_i64()), (200, Some(7)), "{said}");
    assert_eq!(api.get(ONE).await["spec"]["replicas"], 7);
}
