//! Claims of devices on a real API server: pods get nodes that have devices for them.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod scheduled;

use std::collections::{BTreeMap, BTreeSet};

use insula_client::{DeleteOptions, ListOptions, Patch};
use insula_controllers::Config as Controllers;
use insula_scheduler::Config;
use k8s_openapi::api::{
    core::v1::Pod,
    resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice},
};
use serde_json::{Value, json};

use self::scheduled::{Scheduled, named, node_of};

const DRIVER: &str = "gpus.example.com";
const NONE: &str = "cannot allocate all claims";

async fn class(it: &Scheduled) {
    let expression = format!("device.driver == '{DRIVER}'");
    let class = json!({
        "metadata": {"name": "gpus"},
        "spec": {"selectors": [{"cel": {"expression": expression}}]},
    });
    let classes = it.cloud.client.system().api::<DeviceClass>();
    classes.create(&serde_json::from_value(class).unwrap()).await.unwrap();
}

/// A slice with so many devices, which are where `reach` says.
async fn slice(it: &Scheduled, name: &str, reach: Value, n_devices: usize) {
    let devices: Vec<Value> = (0..n_devices).map(|n| json!({"name": format!("gpu-{n}")})).collect();
    let mut spec = json!({
        "driver": DRIVER, "devices": devices,
        "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
    });
    spec.as_object_mut().unwrap().extend(reach.as_object().unwrap().clone());
    let slice = json!({"metadata": {"name": name}, "spec": spec});
    let slices = it.cloud.client.system().api::<ResourceSlice>();
    slices.create(&serde_json::from_value(slice).unwrap()).await.unwrap();
}

fn wants_one() -> Value {
    json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpus"}}]}})
}

async fn claim(it: &Scheduled, tenant: &str, name: &str) {
    let claim = json!({"metadata": {"name": name}, "spec": wants_one()});
    it.cloud.create::<ResourceClaim>(&named(tenant), "default", claim).await;
}

async fn pod(it: &Scheduled, tenant: &str, name: &str, claims: Value) {
    it.pod_with(tenant, name, "100m", |pod| pod["spec"]["resourceClaims"] = claims).await;
}

async fn having(it: &Scheduled, tenant: &str, name: &str, claim: &str) {
    pod(it, tenant, name, json!([{"name": "d", "resourceClaimName": claim}])).await;
}

/// The devices that claims have, by tenant and name; and that no two have one.
async fn given(it: &Scheduled) -> BTreeMap<String, String> {
    let claims = it.cloud.client.all().collection::<ResourceClaim>();
    let mut given = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for claim in claims.list_all(&ListOptions::default()).await.unwrap() {
        let status = claim.object.status.clone().unwrap_or_default();
        let Some(allocation) = status.allocation else { continue };
        for it in allocation.devices.unwrap_or_default().results.unwrap_or_default() {
            let device = format!("{}/{}", it.pool, it.device);
            assert!(seen.insert(device.clone()), "{device} was given twice");
            given.insert(format!("{}/{}", claim.tenant, claim.name()), device);
        }
    }
    given
}

async fn until_refused(it: &Scheduled, tenant: &str, name: &str, n_nodes: usize) {
    let message = format!(
        "0/{n_nodes} nodes are available: {n_nodes} {NONE}. no new claims to deallocate, \
         preemption: 0/{n_nodes} nodes are \
         available: {n_nodes} Preemption is not helpful for scheduling."
    );
    it.until_waits(tenant, name, "Unschedulable", &message).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_given_to_claims_of_pods() {
    let it = Scheduled::start(&["acme", "globex"]).await;
    it.node("n1", "8").await;
    it.node("n2", "8").await;
    class(&it).await;
    slice(&it, "n2", json!({"nodeName": "n2"}), 1).await;
    claim(&it, "acme", "c").await;
    having(&it, "acme", "p1", "c").await;
    it.until_on("acme", "p1", "n2").await;
    let claims = it.cloud.client.tenant(&named("acme")).namespaced::<ResourceClaim>("default");
    let written = claims.get("c").await.unwrap();
    let finalizers = written.metadata.finalizers.clone().unwrap_or_default();
    assert_eq!(finalizers, ["resource.kubernetes.io/delete-protection"]);
    let status = json!(written.status);
    assert_eq!(status["allocation"]["devices"]["results"][0]["device"], "gpu-0");
    assert_eq!(status["reservedFor"][0]["name"], "p1");

    // Who shares the claim comes to it; another one finds nothing left, whoever it is.
    having(&it, "acme", "p2", "c").await;
    it.until_on("acme", "p2", "n2").await;
    assert_eq!(json!(claims.get("c").await.unwrap().status)["reservedFor"][1]["name"], "p2");
    claim(&it, "globex", "c").await;
    having(&it, "globex", "p", "c").await;
    until_refused(&it, "globex", "p", 2).await;

    // What is given back, or new, is somebody else's at once.
    let back = Patch::Merge(json!({"status": {"allocation": null, "reservedFor": null}}));
    claims.patch_status("c", &back).await.unwrap();
    it.until_on("globex", "p", "n2").await;
    claim(&it, "acme", "late").await;
    having(&it, "acme", "late", "late").await;
    until_refused(&it, "acme", "late", 2).await;
    slice(&it, "n1", json!({"nodeName": "n1"}), 1).await;
    it.until_on("acme", "late", "n1").await;
    assert_eq!(given(&it).await.len(), 2);
    it.cloud.end().await;
}

/// Claims that a controller makes from templates, and takes devices from when pods are gone.
#[tokio::test(flavor = "multi_thread")]
async fn claims_of_templates_come_and_go_with_their_pods() {
    let it = Scheduled::start(&[]).await;
    it.cloud.run_controllers(Controllers::new("the root of trust"));
    it.cloud.tenant("acme").await;
    class(&it).await;
    it.node("n1", "8").await;
    slice(&it, "n1", json!({"nodeName": "n1"}), 2).await;
    let template = json!({"metadata": {"name": "one"}, "spec": {"spec": wants_one()}});
    it.cloud.create::<ResourceClaimTemplate>(&named("acme"), "default", template).await;
    let of_template = || json!([{"name": "d", "resourceClaimTemplateName": "one"}]);
    for name in ["p1", "p2"] {
        pod(&it, "acme", name, of_template()).await;
    }
    for name in ["p1", "p2"] {
        it.until_on("acme", name, "n1").await;
    }
    pod(&it, "acme", "p3", of_template()).await;
    until_refused(&it, "acme", "p3", 1).await;
    let pods = it.cloud.client.tenant(&named("acme")).namespaced::<Pod>("default");
    pods.delete("p1", &DeleteOptions::default().grace_period(0)).await.unwrap();
    it.until_on("acme", "p3", "n1").await;
    assert_eq!(given(&it).await.len(), 2);
    it.cloud.end().await;
}

/// Three schedulers give devices of six tenants' pods: those of nodes, and those that all reach.
#[tokio::test(flavor = "multi_thread")]
async fn several_schedulers_give_no_device_twice() {
    const TENANTS: [&str; 6] = ["acme", "globex", "initech", "umbrella", "hooli", "stark"];
    /// So many that each replica has some.
    const N_NODES: usize = 24;
    let it = Scheduled::without_scheduler(&TENANTS).await;
    for host in ["h1", "h2", "h3"] {
        it.run_scheduler_as(Config { host: Some(host.to_owned()), ..Config::default() });
    }
    class(&it).await;
    for n in 0..N_NODES {
        it.node(&format!("n{n}"), "8").await;
        slice(&it, &format!("n{n}"), json!({"nodeName": format!("n{n}")}), 1).await;
    }
    slice(&it, "net", json!({"allNodes": true}), 4).await;
    // Together as many as there are devices.
    let create = async |tenant: &str, n_pods: usize| {
        for n in 0..n_pods {
            claim(&it, tenant, &format!("c{n}")).await;
            having(&it, tenant, &format!("p{n}"), &format!("c{n}")).await;
        }
    };
    tokio::join!(
        create(TENANTS[0], 5),
        create(TENANTS[1], 5),
        create(TENANTS[2], 5),
        create(TENANTS[3], 5),
        create(TENANTS[4], 4),
        create(TENANTS[5], 4),
    );
    let all_bound = async || {
        given(&it).await;
        it.all_pods().await.iter().all(|pod| !node_of(pod).is_empty())
    };
    it.cloud.until("all pods have nodes", all_bound).await;
    assert_eq!(given(&it).await.len(), N_NODES + 4);
    it.cloud.end().await;
}
