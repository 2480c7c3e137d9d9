//! Changes that are refused.

use insula_api::names::TenantName;
use serde_json::json;

use super::{super::*, PODS, compare, served};
use crate::identity::Identity;

#[test]
fn jobs_own_their_pods() {
    let jobs = served("batch", "v1", "jobs");
    let made = |labels: Value, uid: &str| {
        let mut it = json!({
            "metadata": {"name": "j", "uid": uid},
            "spec": {"manualSelector": false, "suspend": true, "template": {"metadata": {"labels": labels}, "spec": {
                "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
        });
        crate::strategy::begin_create(&jobs, &mut it);
        let by = Identity::new(TenantName::parse("acme").unwrap(), "u", &[]);
        crate::strategy::prepare_create(&jobs, &by, &mut it);
        it
    };
    let good = made(json!({}), "u");
    compare(&create(&jobs, &good), &[]);
    let theirs = made(json!({"controller-uid": "x"}), "u");
    let told = "spec.template.metadata.labels[controller-uid]: Invalid value: {\"batch.kubernetes.io/controller-uid\":\"u\",";
    compare(&create(&jobs, &theirs), &[told]);
    // What a job that never began may be told leaves these as they are.
    let mut new = good.clone();
    new["spec"]["template"]["metadata"]["labels"].as_object_mut().unwrap().remove("job-name");
    let told = "spec.template.metadata.labels[job-name]: Required value: must be 'j'";
    compare(&update(&jobs, "", &good, &new), &[told]);
    compare(&update(&jobs, "", &theirs, &theirs), &[]);
    // It may be told where to run, and with how much, but not what.
    let affinity =
        |kind: &str| json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution": []}});
    let told = "spec.template.spec: Invalid value: {\"Volumes\":null,";
    for (at, value, expected) in [
        ("/containers/0/resources", json!({"requests": {"cpu": "1"}}), None),
        ("/containers/0/image", json!("j"), Some(told)),
        ("/nodeSelector", json!({"a": "b"}), None),
        ("/affinity", affinity("nodeAffinity"), None),
        ("/affinity", affinity("podAffinity"), Some(told)),
    ] {
        let mut new = good.clone();
        let (around, field) = at.rsplit_once('/').unwrap();
        let around = format!("/spec/template/spec{around}");
        new.pointer_mut(&around).unwrap()[field] = value;
        compare(&update(&jobs, "", &good, &new), expected.as_slice());
    }
    let mut new = good.clone();
    new["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
    for (status, may) in [
        (json!({"active": 1}), false),
        (json!({"startTime": "2024-01-01T00:00:00Z"}), false),
        (
            json!({"startTime": "2024-01-01T00:00:00Z", "conditions": [{"type": "Suspended", "status": "True"}]}),
            true,
        ),
    ] {
        let (mut old, mut new) = (good.clone(), new.clone());
        (old["status"], new["status"]) = (status.clone(), status);
        assert_eq!(update(&jobs, "", &old, &new).is_empty(), may);
    }
}

#[test]
fn addresses_that_stay_are_not_looked_at_again() {
    let slices = served("discovery.k8s.io", "v1", "endpointslices");
    let of = |kind: &str, address: &str| json!({"metadata": {"name": "s"}, "addressType": kind, "endpoints": [{"addresses": [address]}], "ports": []});
    let told = "addressType: Invalid value: \"IPv6\": field is immutable";
    compare(&update(&slices, "", &of("IPv4", "10.1.2.3"), &of("IPv6", "10.1.2.3")), &[told]);
    compare(
        &update(&slices, "", &of("IPv4", "10.1.2.3"), &of("IPv4", "127.0.0.1")),
        &["endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback"],
    );
}

#[test]
fn claims_stay_as_they_are() {
    let claims = served("", "v1", "persistentvolumeclaims");
    let of = |more: Value| {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeAttributesClassName": "gold"});
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let mut it = json!({"metadata": {"name": "c"}, "spec": spec, "status": {"phase": "Bound", "currentVolumeAttributesClassName": "gold"}});
        crate::strategy::normalize(&claims, &mut it);
        it
    };
    compare(
        &update(&claims, "", &of(json!({})), &of(json!({"volumeMode": "Block"}))),
        &[
            "spec: Forbidden: spec is immutable after creation except",
            "volumeMode: Invalid value: \"Block\": field is immutable",
        ],
    );
    compare(
        &update(&claims, "", &of(json!({})), &of(json!({"volumeAttributesClassName": ""}))),
        &["spec.volumeAttributesClassName: Forbidden: update to empty string is forbidden when"],
    );
    let (one, two) = (
        json!({"kind": "PersistentVolumeClaim", "name": "a"}),
        json!({"kind": "PersistentVolumeClaim", "name": "b"}),
    );
    compare(
        &create(&claims, &of(json!({"dataSource": one, "dataSourceRef": two}))),
        &["spec: Invalid value: {}: must match dataSourceRef"],
    );
}

#[test]
fn pods_change_in_few_ways() {
    let served = served(PODS.0, PODS.1, PODS.2);
    let made = |spec: Value| {
        let mut it = json!({"metadata": {"name": "p"}, "spec": spec});
        crate::strategy::normalize(&served, &mut it);
        it
    };
    let base = json!({"containers": [{"name": "c", "image": "1"}], "activeDeadlineSeconds": 10});
    let old = made(base.clone());
    let change = |field: &str, value: Value, expected: &[&str]| {
        let mut spec = base.clone();
        spec[field] = value;
        compare(&update(&served, "", &old, &made(spec)), expected);
    };
    change("containers", json!([{"name": "c", "image": "2"}]), &[]);
    change("activeDeadlineSeconds", 5.into(), &[]);
    change(
        "activeDeadlineSeconds",
        50.into(),
        &[
            "spec.activeDeadlineSeconds: Invalid value: 50: must be less than or equal to previous value",
        ],
    );
    change(
        "containers",
        json!([{"name": "c", "image": "1", "tty": true}]),
        &["spec: Forbidden: pod updates may not change fields other than"],
    );
    change(
        "containers",
        json!([{"name": "c", "image": "1"}, {"name": "d", "image": "1"}]),
        &["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
    change(
        "schedulingGates",
        json!([{"name": "g"}]),
        &[
            "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'g'",
        ],
    );
    change("nodeSelector", json!({"a": "b"}), &["spec: Forbidden: pod updates"]);
    let gated = made(
        json!({"containers": [{"name": "c", "image": "1"}], "schedulingGates": [{"name": "g"}]}),
    );
    let mut told_more = gated.clone();
    told_more["spec"]["nodeSelector"] = json!({"a": "b"});
    compare(&update(&served, "", &gated, &told_more), &[]);
}
