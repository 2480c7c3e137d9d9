//! Pods that use devices which are tainted, on a real API server.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use insula_api::names::TenantName;
use insula_client::{Patch, Tenanted};
use insula_controllers::Config;
use k8s_openapi::api::{
    core::v1::{Event, Node, Pod},
    resource::v1::{ResourceClaim, ResourceSlice},
};
use serde_json::{Value, json};

use self::cloud::Cloud;

/// A pod that holds a device of the platform's, which its claim tolerates taints of as it says.
async fn holder(cloud: &Cloud, tenant: &TenantName, name: &str, tolerations: Value) {
    let claim = json!({
        "metadata": {"name": name},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpus"}}]}},
    });
    cloud.create::<ResourceClaim>(tenant, "default", claim).await;
    let pod = json!({
        "metadata": {"name": name},
        "spec": {
            "nodeName": "n", "containers": [{"name": "c", "image": "i"}],
            "resourceClaims": [{"name": "d", "resourceClaimName": name}],
        },
    });
    let pod: Tenanted<Pod> = cloud.create(tenant, "default", pod).await;
    let given = json!({"driver": "gpus.example.com", "pool": "p", "device": "gpu", "request": "r",
        "tolerations": tolerations});
    let status = json!({"status": {
        "allocation": {"devices": {"results": [given]}},
        "reservedFor": [{"resource": "pods", "name": name, "uid": pod.uid()}],
    }});
    let claims = cloud.client.tenant(tenant).namespaced::<ResourceClaim>("default");
    claims.patch_status(name, &Patch::Merge(status)).await.unwrap();
}

async fn names(cloud: &Cloud, tenant: &TenantName) -> Vec<String> {
    let pods = cloud.list::<Pod>(tenant, "default").await;
    cloud::names(&pods).into_iter().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_go_for_taints_of_their_devices() {
    let cloud = Cloud::start(2).await;
    cloud.run_controllers(Config::new("the root of trust"));
    cloud.run_pods();
    let (acme, globex) = (cloud.tenant("acme").await, cloud.tenant("globex").await);
    let system = cloud.client.system();
    let node = json!({"metadata": {"name": "n"}});
    system.api::<Node>().create(&serde_json::from_value(node).unwrap()).await.unwrap();
    let slices = system.api::<ResourceSlice>();
    let slice = |taints: Value| {
        json!({
            "metadata": {"name": "s"},
            "spec": {
                "driver": "gpus.example.com", "nodeName": "n",
                "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
                "devices": [{"name": "gpu", "taints": taints}],
            },
        })
    };
    slices.create(&serde_json::from_value(slice(json!([]))).unwrap()).await.unwrap();
    let always = json!([{"key": "broken", "operator": "Exists", "effect": "NoExecute"}]);
    holder(&cloud, &acme, "meek", json!([])).await;
    holder(&cloud, &acme, "bold", always.clone()).await;
    holder(&cloud, &globex, "bold", always).await;

    // Its driver says that it is broken: who does not tolerate that goes.
    let broken = slice(json!([{"key": "broken", "effect": "NoExecute"}]));
    slices.patch("s", &Patch::Merge(broken)).await.unwrap();
    cloud.until("the meek one goes", async || names(&cloud, &acme).await == ["bold"]).await;
    let told = async || {
        let events = cloud.list::<Event>(&acme, "default").await;
        events.iter().any(|it| {
            it.reason.as_deref() == Some("DeviceTaintManagerEviction")
                && it.message.as_deref() == Some("Marking for deletion")
                && it.involved_object.name.as_deref() == Some("meek")
        })
    };
    cloud.until("it is told why", told).await;

    let healed = slice(json!([{"key": "leaving", "effect": "NoSchedule"}]));
    slices.patch("s", &Patch::Merge(healed)).await.unwrap();
    holder(&cloud, &acme, "later", json!([])).await;
    assert_eq!(names(&cloud, &globex).await, ["bold"]);
    let leaving = slice(json!([{"key": "leaving", "effect": "NoExecute"}]));
    slices.patch("s", &Patch::Merge(leaving)).await.unwrap();
    for tenant in [&acme, &globex] {
        cloud.until("all go", async || names(&cloud, tenant).await.is_empty()).await;
    }
    cloud.end().await;
}
