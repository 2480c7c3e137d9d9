//! Decoding, against messages that another library encoded.

use k8s_pb::{
    api::{apps::v1 as apps, core::v1 as core},
    apimachinery::pkg::{apis::meta::v1 as meta, runtime::Unknown, util::intstr},
};
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};

use super::{List, MAGIC, ProtoError, decode, enveloped, event, message};
use crate::schema::{Gvk, Schema};

fn envelope(api_version: &str, kind: &str, raw: Vec<u8>) -> Vec<u8> {
    let unknown = Unknown {
        type_meta: Some(k8s_pb::apimachinery::pkg::runtime::TypeMeta {
            api_version: Some(api_version.into()),
            kind: Some(kind.into()),
        }),
        raw: Some(raw),
        ..Default::default()
    };
    [MAGIC, &unknown.encode_to_vec()].concat()
}

#[track_caller]
fn check(api_version: &str, kind: &str, sent: &impl Message, expected: Value) {
    let body = envelope(api_version, kind, sent.encode_to_vec());
    let (_, value) = decode(Schema::built_in(), &body, None).unwrap();
    assert_eq!(value, expected);
}

/// What a client read and sends back is the same text, whatever its encoding.
#[test]
fn managers_come_through() {
    let fields = r#"{"f:data":{".":{},"f:a":{}}}"#;
    let entry = meta::ManagedFieldsEntry {
        manager: Some("kubectl".into()),
        operation: Some("Update".into()),
        api_version: Some("v1".into()),
        time: Some(meta::Time { seconds: Some(1_767_225_600), nanos: Some(0) }),
        fields_type: Some("FieldsV1".into()),
        fields_v1: Some(meta::FieldsV1 { raw: Some(fields.into()) }),
        subresource: Some(String::new()),
    };
    let map = core::ConfigMap {
        metadata: Some(meta::ObjectMeta { managed_fields: vec![entry], ..Default::default() }),
        ..Default::default()
    };
    let body = envelope("v1", "ConfigMap", map.encode_to_vec());
    let (_, value) = decode(Schema::built_in(), &body, None).unwrap();
    let managed = value["metadata"]["managedFields"].to_string();
    let managers = crate::structural::managers::Managers::decode(&managed, false).unwrap();
    assert_eq!(managers.encode().unwrap(), managed);
    assert!(managed.contains(fields), "{managed}");
}

#[test]
fn a_deployment_as_kubectl_sends_it() {
    let labels: std::collections::BTreeMap<_, _> = [("app".to_owned(), "web".to_owned())].into();
    let deployment = apps::Deployment {
        metadata: Some(meta::ObjectMeta {
            name: Some("web".into()),
            namespace: Some(String::new()),
            creation_timestamp: Some(meta::Time { seconds: Some(0), nanos: Some(0) }),
            generation: Some(0),
            labels: labels.clone(),
            ..Default::default()
        }),
        spec: Some(apps::DeploymentSpec {
            replicas: Some(0),
            min_ready_seconds: Some(0),
            paused: Some(false),
            selector: Some(meta::LabelSelector { match_labels: labels, ..Default::default() }),
            strategy: Some(apps::DeploymentStrategy {
                rolling_update: Some(apps::RollingUpdateDeployment {
                    max_surge: Some(intstr::IntOrString {
                        r#type: Some(1),
                        int_val: Some(0),
                        str_val: Some("25%".into()),
                    }),
                    max_unavailable: Some(intstr::IntOrString {
                        r#type: Some(0),
                        int_val: Some(1),
                        str_val: Some(String::new()),
                    }),
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        status: Some(apps::DeploymentStatus::default()),
    };
    check(
        "apps/v1",
        "Deployment",
        &deployment,
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {
                "replicas": 0, "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
            },
            "status": {},
        }),
    );
}

#[test]
fn embedded_messages_are_flat_in_json() {
    let pod = core::Pod {
        spec: Some(core::PodSpec {
            volumes: vec![core::Volume {
                name: Some("v".into()),
                volume_source: Some(core::VolumeSource {
                    config_map: Some(core::ConfigMapVolumeSource {
                        local_object_reference: Some(core::LocalObjectReference {
                            name: Some("c".into()),
                        }),
                        default_mode: Some(0),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    check(
        "v1",
        "Pod",
        &pod,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "spec": {"volumes": [{"name": "v", "configMap": {"name": "c", "defaultMode": 0}}]},
        }),
    );
}

#[test]
fn broken_bodies_are_refused() {
    let schema = Schema::built_in();
    assert_eq!(decode(schema, b"{}", None).unwrap_err(), ProtoError::Magic);
    assert_eq!(decode(schema, b"k8s\0\x0a\xff", None).unwrap_err(), ProtoError::Truncated);
    let body = envelope("v1", "Nonsense", vec![]);
    assert!(matches!(decode(schema, &body, None), Err(ProtoError::UnknownKind { .. })));
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let body = envelope("v1", "Pod", bytes.clone());
        let _ = decode(Schema::built_in(), &body, None);
        let _ = decode(Schema::built_in(), &[MAGIC, &bytes].concat(), None);
    }
}

/// Encodes `json` as `kind` and has the other library read it.
#[track_caller]
fn encoded<M: Message + Default>(api_version: &str, kind: &str, json: &Value) -> M {
    let schema = Schema::built_in();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let id = schema.by_kind(&Gvk::new(group, version, kind)).unwrap();
    let text = json.to_string();
    let body = enveloped(schema, id, (api_version, kind), text.as_bytes()).unwrap();
    let (gvk, value) = decode(schema, &body, None).unwrap();
    assert_eq!((gvk.api_version().as_str(), gvk.kind.as_str()), (api_version, kind));
    assert_eq!(value, *json);
    let unknown = Unknown::decode(body.strip_prefix(MAGIC).unwrap()).unwrap();
    M::decode(unknown.raw.unwrap().as_slice()).unwrap()
}

#[test]
fn a_pod_as_clients_get_it() {
    let long = "x".repeat(20_000);
    let pod: core::Pod = encoded(
        "v1",
        "Pod",
        &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web", "labels": {"a": "b", "": "\u{1f600}\""},
                "annotations": {"long": long},
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "managedFields": [{"manager": "m", "fieldsV1": {"f:a": {}}, "fieldsType": "FieldsV1"}],
            },
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "priority": -5,
                "containers": [{
                    "name": "c", "command": ["", "b"],
                    "resources": {"limits": {"cpu": "500m"}},
                    "livenessProbe": {"httpGet": {"port": "http"}},
                    "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 5},
                }],
                "volumes": [
                    {"name": "v", "configMap": {"name": "c", "defaultMode": 0}},
                    {"emptyDir": {}, "name": "e"},
                ],
            },
        }),
    );
    let meta = pod.metadata.unwrap();
    assert_eq!(meta.annotations["long"], long);
    assert_eq!(meta.creation_timestamp.unwrap().seconds, Some(1_767_323_045));
    assert_eq!(
        meta.managed_fields[0].fields_v1.as_ref().unwrap().raw.as_deref(),
        Some(&br#"{"f:a":{}}"#[..])
    );
    let spec = pod.spec.unwrap();
    assert_eq!((spec.priority, spec.termination_grace_period_seconds), (Some(-5), Some(0)));
    assert_eq!(spec.containers[0].command, ["", "b"]);
    let config = spec.volumes[0].volume_source.clone().unwrap().config_map.unwrap();
    assert_eq!(config.local_object_reference.unwrap().name.as_deref(), Some("c"));
    assert!(spec.volumes[1].volume_source.clone().unwrap().empty_dir.is_some());
}

#[test]
fn schemas_come_in_every_form() {
    let json = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {
            "type": "object",
            "properties": {
                "a": {"type": "array", "items": {"type": "string", "maxLength": 3}},
                "b": {"additionalProperties": false},
                "c": {"additionalProperties": true, "default": {"x": [1, null]}},
                "d": {"additionalProperties": {"type": "integer"}, "enum": [1, "x", {"y": 2}]},
                "e": {"items": [{"type": "string"}, {"minimum": 0.5}]},
                "f": {"dependencies": {"x": ["y", "z"], "w": {"type": "object"}}},
            },
        }}}]},
    });
    let schema = Schema::built_in();
    let kind = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let id = schema.by_kind(&Gvk::new("apiextensions.k8s.io", "v1", kind.1)).unwrap();
    let body = enveloped(schema, id, kind, json.to_string().as_bytes()).unwrap();
    assert_eq!(decode(schema, &body, None).unwrap().1, json);
}

#[test]
fn lists_and_events_hold_objects() {
    let schema = Schema::built_in();
    let id = schema.by_kind(&Gvk::new("", "v1", "ConfigMap")).unwrap();
    let item = br#"{"metadata":{"name":"a"},"data":{"k":"v"}}"#.as_slice();
    let metadata = br#"{"resourceVersion":"7","continue":"c","remainingItemCount":0}"#;
    let mut list = List::begin(schema, id, ("v1", "ConfigMapList"), metadata, 0).unwrap();
    (0..2).for_each(|_| list.push(schema, item).unwrap());
    let body = list.finish();
    let unknown = Unknown::decode(body.strip_prefix(MAGIC).unwrap()).unwrap();
    let read = core::ConfigMapList::decode(unknown.raw.unwrap().as_slice()).unwrap();
    assert_eq!(read.items.len(), 2);
    assert_eq!(read.items[1].data["k"], "v");
    assert_eq!(read.metadata.unwrap().remaining_item_count, Some(0));

    let mut frames = Vec::new();
    event("ADDED", &body, &mut frames);
    event("BOOKMARK", b"", &mut frames);
    let length = u32::from_be_bytes(frames[..4].try_into().unwrap()) as usize;
    let first = meta::WatchEvent::decode(&frames[4..4 + length]).unwrap();
    assert_eq!(first.r#type.as_deref(), Some("ADDED"));
    assert_eq!(first.object.unwrap().raw.unwrap(), body);
    let second = meta::WatchEvent::decode(&frames[8 + length..]).unwrap();
    assert_eq!(second.r#type.as_deref(), Some("BOOKMARK"));
}

#[test]
fn only_what_it_is_known_by() {
    let schema = Schema::built_in();
    let id = schema.by_kind(&Gvk::new("meta.k8s.io", "v1", "PartialObjectMetadata")).unwrap();
    let mut out = Vec::new();
    let json =
        br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"nodeName":"n"}}"#;
    message(schema, id, json, &mut out).unwrap();
    let read = meta::PartialObjectMetadata::decode(out.as_slice()).unwrap();
    assert_eq!(read.metadata.unwrap().name.as_deref(), Some("a"));
    assert!(!out.windows(8).any(|it| it == b"nodeName"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let schema = Schema::built_in();
    let id = schema.by_kind(&Gvk::new("", "v1", "Pod")).unwrap();
    for json in [
        &b"[]"[..],
        b"",
        br#"{"spec":"x"}"#,
        br#"{"spec":{"containers":{}}}"#,
        br#"{"spec":{"priority":"1"}}"#,
        br#"{"metadata":{"creationTimestamp":"yesterday"}}"#,
        br#"{}x"#,
    ] {
        let text = String::from_utf8_lossy(json);
        assert!(message(schema, id, json, &mut Vec::new()).is_err(), "{text}");
    }
}

#[test]
fn lengths_of_time_are_numbers_of_nanoseconds() {
    let metrics = json!({
        "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {"name": "p"},
        "timestamp": "2026-01-01T00:00:00Z", "window": "20.053s",
        "containers": [{"name": "c", "usage": {"cpu": "7n"}}],
    });
    let schema = Schema::built_in();
    let id = schema.by_kind(&Gvk::new("metrics.k8s.io", "v1beta1", "PodMetrics")).unwrap();
    let mut raw = Vec::new();
    super::encode::message(schema, id, metrics.to_string().as_bytes(), &mut raw).unwrap();
    // The third field is a message, whose first is 20,053,000,000.
    let window = [0x1a, 6, 8, 0xc0, 0xfe, 0x81, 0xda, 0x4a];
    assert!(raw.windows(window.len()).any(|it| it == window), "{raw:x?}");
    let body = envelope("metrics.k8s.io/v1beta1", "PodMetrics", raw);
    assert_eq!(decode(schema, &body, None).unwrap().1, metrics);
}
