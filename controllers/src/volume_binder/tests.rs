//! What is planned for claims and volumes, case by case.

use std::sync::Arc;

use insula_api::names::TenantName;
use insula_client::Tenanted;
use k8s_openapi::api::storage::v1::StorageClass;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    BIND_COMPLETED, Claim, Volume, VolumeBinder, claim_status, naming_claim, naming_volume,
    plan::{ClaimStep, Known, Reclaim, VolumeStep, plan_claim, plan_volume},
    unbinding,
};
use crate::fake::{Fake, object};

fn tenanted<K: DeserializeOwned>(value: Value) -> Tenanted<K> {
    let tenant = TenantName::parse("acme").unwrap();
    Tenanted { tenant, object: serde_json::from_value(value).unwrap() }
}

fn claim(annotations: Value, spec: Value) -> Claim {
    let mut spec = spec;
    spec["resources"] = json!({"requests": {"storage": "1Gi"}});
    tenanted(json!({
        "metadata": {"name": "c", "namespace": "ns", "uid": "u", "annotations": annotations},
        "spec": spec,
    }))
}

fn volume(annotations: Value, spec: Value) -> Volume {
    let mut spec = spec;
    spec["capacity"] = json!({"storage": "1Gi"});
    tenanted(json!({
        "metadata": {"name": "v", "annotations": annotations}, "spec": spec,
        "status": {"phase": "Available"},
    }))
}

fn claimed_by(uid: &str) -> Value {
    json!({"claimRef": {"name": "c", "namespace": "ns", "uid": uid}})
}

/// A step in a few words.
fn told(step: &ClaimStep) -> String {
    match step {
        ClaimStep::Bind(volume) => format!("bind {}", volume.name()),
        ClaimStep::Pend(None) => "pend".to_owned(),
        ClaimStep::Pend(Some(it)) => format!("{}: {}", it.reason, it.message),
        ClaimStep::SetClass(name) => format!("class {name}"),
        ClaimStep::Provision(by, _) => format!("provision {by}"),
        ClaimStep::Lose(it) => format!("lose {}", it.reason),
    }
}

#[track_caller]
fn check(claim: &Claim, volumes: &[Volume], pods: &[&str], expected: &str) {
    let class = |name: &str, by: &str, mode: &str, is_default: &str| {
        Arc::new(tenanted::<StorageClass>(json!({
            "metadata": {"name": name, "annotations": {
                "storageclass.kubernetes.io/is-default-class": is_default,
            }},
            "provisioner": by, "volumeBindingMode": mode,
        })))
    };
    let classes = [
        class("fast", "disks.example.com", "Immediate", "true"),
        class("lazy", "disks.example.com", "WaitForFirstConsumer", "false"),
        class("local", "kubernetes.io/no-provisioner", "Immediate", "false"),
    ];
    let waiting_pods = || pods.iter().map(|it| (*it).to_owned()).collect();
    let known = Known { classes: &classes, waiting_pods: &waiting_pods };
    let volumes: Vec<_> = volumes.iter().cloned().map(Arc::new).collect();
    assert_eq!(told(&plan_claim(claim, &volumes, &known)), expected);
}

#[test]
fn claims_that_are_not_bound() {
    let of = |class: &str| claim(json!({}), json!({"storageClassName": class}));
    check(&of(""), &[volume(json!({}), json!({}))], &[], "bind v");
    let none = "no persistent volumes available for this claim and no storage class is set";
    check(&of(""), &[], &[], &format!("FailedBinding: {none}"));
    check(&claim(json!({}), json!({})), &[], &[], "class fast");
    check(&of("fast"), &[], &[], "provision disks.example.com");
    let waits = "waiting for first consumer to be created before binding";
    check(&of("lazy"), &[], &[], &format!("WaitForFirstConsumer: {waits}"));
    check(&of("lazy"), &[], &["p"], "WaitForPodScheduled: waiting for pod p to be scheduled");
    let two = "WaitForPodScheduled: waiting for pods p,q to be scheduled";
    check(&of("lazy"), &[], &["p", "q"], two);
    let selected = json!({"volume.kubernetes.io/selected-node": "n"});
    let selected = claim(selected, json!({"storageClassName": "lazy"}));
    check(&selected, &[], &[], "provision disks.example.com");
    let local = "ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner";
    check(&of("local"), &[], &[], local);
    let absent = "ProvisioningFailed: storageclass.storage.k8s.io \"odd\" not found";
    check(&of("odd"), &[], &[], absent);
}

#[test]
fn claims_that_name_their_volume() {
    let named = |annotations| claim(annotations, json!({"volumeName": "v"}));
    let (plain, free) = (named(json!({})), volume(json!({}), json!({})));
    check(&plain, &[], &[], "pend");
    check(&plain, std::slice::from_ref(&free), &[], "bind v");
    check(&plain, &[volume(json!({}), claimed_by("u"))], &[], "bind v");
    check(&plain, &[volume(json!({}), claimed_by("another"))], &[], "pend");
    let other = volume(json!({}), json!({"storageClassName": "x"}));
    let why =
        "VolumeMismatch: Cannot bind to requested volume \"v\": storageClassName does not match";
    check(&plain, &[other], &[], why);
    let bound = named(json!({"pv.kubernetes.io/bind-completed": "yes"}));
    check(&bound, &[free], &[], "bind v");
    check(&bound, &[], &[], "lose ClaimLost");
    check(&bound, &[volume(json!({}), claimed_by("another"))], &[], "lose ClaimMisbound");
    let emptied = claim(json!({"pv.kubernetes.io/bind-completed": "yes"}), json!({}));
    check(&emptied, &[], &[], "lose ClaimLost");
}

#[test]
fn volumes() {
    let plan = |volume: Volume, claim: Option<Claim>| plan_volume(&volume.object, claim.as_ref());
    let free = || volume(json!({}), json!({}));
    assert_eq!(plan(free(), None), VolumeStep::Phase("Available"));
    assert_eq!(plan(volume(json!({}), claimed_by("")), None), VolumeStep::Phase("Available"));
    let (mine, theirs) = (|| claim(json!({}), json!({"volumeName": "v"})), claimed_by("u"));
    let taken = || volume(json!({}), theirs.clone());
    assert_eq!(plan(taken(), Some(mine())), VolumeStep::Phase("Bound"));
    let open = claim(json!({}), json!({}));
    assert_eq!(plan(taken(), Some(open)), VolumeStep::LeaveToClaim);
    let block = claim(json!({}), json!({"volumeMode": "Block"}));
    assert!(matches!(plan(taken(), Some(block)), VolumeStep::Mismatch(..)));
    let elsewhere = || claim(json!({}), json!({"volumeName": "w"}));
    assert_eq!(plan(taken(), Some(elsewhere())), VolumeStep::Unbind);
    let reclaimed = |by: &str, policy: &str, claim: Option<Claim>| {
        let mut spec = theirs.clone();
        spec["persistentVolumeReclaimPolicy"] = policy.into();
        let annotations = match by {
            "" => json!({}),
            by => json!({"pv.kubernetes.io/provisioned-by": by}),
        };
        match plan(volume(annotations, spec), claim) {
            VolumeStep::Reclaim(Reclaim::Release) => "release".to_owned(),
            VolumeStep::Reclaim(Reclaim::Fail(it)) => it.reason.to_owned(),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(reclaimed("", "Retain", None), "release");
    assert_eq!(reclaimed("disks.example.com", "Delete", None), "release");
    assert_eq!(reclaimed("disks.example.com", "Delete", Some(elsewhere())), "release");
    assert_eq!(reclaimed("", "Delete", None), "VolumeFailedDelete");
    assert_eq!(reclaimed("", "Recycle", None), "VolumeFailedRecycle");
}

#[test]
fn bindings_are_written_once() {
    let (claim, free) = (claim(json!({}), json!({})), volume(json!({}), json!({})));
    let change = naming_claim(&free, &claim).unwrap();
    assert_eq!(change["spec"]["claimRef"]["uid"], "u");
    assert_eq!(change["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"], "yes");
    // Named by hand, but not yet by its uid.
    let named = volume(json!({}), claimed_by(""));
    let change = naming_claim(&named, &claim).unwrap();
    assert!(change.get("metadata").is_none(), "{change}");
    assert_eq!(naming_claim(&volume(json!({}), claimed_by("u")), &claim), None);
    let change = naming_volume(&claim, &free).unwrap();
    assert_eq!(change["spec"]["volumeName"], "v");
    let annotations = change["metadata"]["annotations"].as_object().unwrap();
    assert_eq!(annotations.len(), 2);
    let by_hand = super::tests::claim(json!({}), json!({"volumeName": "v"}));
    let change = naming_volume(&by_hand, &free).unwrap();
    assert_eq!(
        change,
        json!({"metadata": {"annotations": {
            "pv.kubernetes.io/bind-completed": "yes",
        }}})
    );
    let done = json!({"pv.kubernetes.io/bind-completed": "yes"});
    assert_eq!(naming_volume(&super::tests::claim(done, json!({"volumeName": "v"})), &free), None);
}

#[test]
fn volumes_let_go() {
    let ours = volume(json!({"pv.kubernetes.io/bound-by-controller": "yes"}), claimed_by("u"));
    assert_eq!(unbinding(&ours)["spec"], json!({"claimRef": null}));
    let theirs = volume(json!({}), claimed_by("u"));
    assert_eq!(unbinding(&theirs), json!({"spec": {"claimRef": {"uid": null}}}));
}

#[test]
fn a_bound_claim_keeps_its_size() {
    let one = volume(json!({}), json!({"accessModes": ["ReadWriteOnce"]}));
    let bound = claim_status(None, "Bound", Some(&one));
    assert_eq!(bound.capacity.as_ref().unwrap()["storage"].0, "1Gi");
    assert_eq!(bound.access_modes.as_ref().unwrap(), &["ReadWriteOnce"]);
    let mut grown = one.clone();
    grown.object.spec.as_mut().unwrap().capacity.as_mut().unwrap().clear();
    let kept = claim_status(Some(&bound), "Bound", Some(&grown));
    assert_eq!(kept.capacity, bound.capacity);
    assert_eq!(claim_status(Some(&bound), "Lost", None).capacity, None);
}

#[tokio::test]
async fn volumes_that_a_claim_may_have_to_do_with() {
    let volume = |name: &str, class: &str, named: Value| {
        let meta = json!({"tenant": "acme", "name": name, "uid": name, "resourceVersion": "1"});
        json!({"metadata": meta, "spec": {"storageClassName": class, "claimRef": named}})
    };
    let named = |claim: &str| json!({"namespace": "ns", "name": claim});
    let mut of_other = volume("v0", "fast", json!(null));
    of_other["metadata"]["tenant"] = json!("globex");
    let volumes = vec![
        of_other,
        volume("v1", "fast", json!(null)),
        volume("v2", "slow", json!(null)),
        volume("v3", "slow", named("c")),
        volume("v4", "fast", named("other")),
    ];
    let waiting = |name: &str, node: Value, phase: &str| {
        let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        let spec = json!({"nodeName": node, "containers": [], "volumes": [volume]});
        object(name, json!({"spec": spec, "status": {"phase": phase}}))
    };
    let pods = vec![
        waiting("ended", json!(null), "Failed"),
        waiting("placed", json!("n"), "Pending"),
        waiting("two", json!(null), "Pending"),
        waiting("one", json!(""), ""),
    ];
    let fake = Fake::serving(&[("persistentvolumes", volumes), ("pods", pods)]).await;
    let binder = VolumeBinder::new(fake.client.clone(), fake.informers.clone(), &fake.events);
    let names = |annotations: Value, class: &str, volume: &str| {
        let claim = claim(annotations, json!({"storageClassName": class, "volumeName": volume}));
        let found = binder.volumes_for(&claim);
        found.iter().map(|it| it.name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(json!({}), "fast", ""), ["v1", "v3"]);
    assert_eq!(names(json!({}), "slow", ""), ["v2", "v3"]);
    assert_eq!(names(json!({}), "fast", "v4"), ["v3", "v4"]);
    assert_eq!(names(json!({}), "fast", "v3"), ["v3"]);
    assert_eq!(names(json!({BIND_COMPLETED: "yes"}), "fast", ""), ["v3"]);
    let waiting = binder.waiting_pods(&claim(json!({}), json!({})));
    assert_eq!(waiting, ["one", "two"]);
}
