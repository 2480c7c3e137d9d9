//! A cloud whose pods only get nodes.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

#[path = "../../../controllers/tests/cloud/mod.rs"]
pub(crate) mod cloud;

use insula_api::names::TenantName;
use insula_client::{ListOptions, Patch, Tenant, Tenanted};
use insula_scheduler::Config;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, ServiceAccount};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::cloud::Cloud;

/// A cloud with a scheduler, tenants, and nothing that makes pods run.
pub(crate) struct Scheduled {
    pub(crate) cloud: Cloud,
    pub(crate) scheduler: CancellationToken,
}

impl Scheduled {
    pub(crate) async fn start(tenants: &[&str]) -> Self {
        let it = Self::without_scheduler(tenants).await;
        it.run_scheduler();
        it
    }

    /// The same, but for the scheduler.
    pub(crate) async fn without_scheduler(tenants: &[&str]) -> Self {
        let cloud = Cloud::start(2).await;
        for tenant in tenants {
            prepare(&cloud, tenant).await;
        }
        Self { scheduler: cloud.shutdown.child_token(), cloud }
    }

    pub(crate) fn run_scheduler(&self) {
        self.run_scheduler_as(Config::default());
    }

    pub(crate) fn run_scheduler_as(&self, config: Config) {
        let client = self.cloud.client.clone();
        let running = insula_scheduler::run(config, client, self.scheduler.clone());
        self.cloud.tasks.spawn(running);
    }

    pub(crate) async fn node(&self, name: &str, cpu: &str) {
        self.node_in(name, cpu, "here").await;
    }

    pub(crate) async fn node_in(&self, name: &str, cpu: &str, zone: &str) {
        let node = json!({"metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone,
        }}});
        let nodes = self.cloud.client.system().api::<Node>();
        nodes.create(&serde_json::from_value(node).unwrap()).await.unwrap();
        let status = json!({"status": {
            "allocatable": {"cpu": cpu, "memory": "64Gi", "pods": "500"},
            "capacity": {"cpu": cpu, "memory": "64Gi", "pods": "500"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        nodes.patch_status(name, &Patch::Merge(status)).await.unwrap();
        // As the controller of nodes does when they are ready.
        let untaint = Patch::Merge(json!({"spec": {"taints": null}}));
        nodes.patch(name, &untaint).await.unwrap();
    }

    pub(crate) async fn pod(&self, tenant: &str, name: &str, cpu: &str) -> Tenanted<Pod> {
        self.pod_with(tenant, name, cpu, |_| ()).await
    }

    pub(crate) async fn pod_with(
        &self,
        tenant: &str,
        name: &str,
        cpu: &str,
        change: impl FnOnce(&mut Value),
    ) -> Tenanted<Pod> {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [
                {"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}},
            ]},
        });
        change(&mut pod);
        self.cloud.create::<Pod>(&named(tenant), "default", pod).await
    }

    pub(crate) async fn get(&self, tenant: &str, name: &str) -> Tenanted<Pod> {
        let scope = self.cloud.client.tenant(&named(tenant));
        scope.namespaced::<Pod>("default").get(name).await.unwrap()
    }

    pub(crate) async fn until_on(&self, tenant: &str, name: &str, node: &str) {
        let what = format!("{tenant}/{name} is on {node}");
        self.cloud.until(&what, async || node_of(&self.get(tenant, name).await) == node).await;
    }

    /// Reason and message of the pod's condition that it found no node.
    pub(crate) async fn until_waits(&self, tenant: &str, name: &str, reason: &str, message: &str) {
        let what = format!("{tenant}/{name} waits: {reason}: {message}");
        self.cloud
            .until(&what, async || {
                let status = self.get(tenant, name).await.object.status.unwrap_or_default();
                status.conditions.unwrap_or_default().iter().any(|it| {
                    it.type_ == "PodScheduled"
                        && it.status == "False"
                        && it.reason.as_deref() == Some(reason)
                        && it.message.as_deref() == Some(message)
                })
            })
            .await;
    }

    pub(crate) async fn until_event(&self, tenant: &str, reason: &str, message: &str) {
        self.cloud
            .until(&format!("{reason}: {message}"), async || {
                let events = self.cloud.list::<Event>(&named(tenant), "default").await;
                events.iter().any(|it| {
                    it.reason.as_deref() == Some(reason) && it.message.as_deref() == Some(message)
                })
            })
            .await;
    }

    pub(crate) async fn all_pods(&self) -> Vec<Tenanted<Pod>> {
        let pods = self.cloud.client.all().collection::<Pod>();
        pods.list_all(&ListOptions::default()).await.unwrap()
    }
}

pub(crate) fn named(tenant: &str) -> TenantName {
    TenantName::parse(tenant).unwrap()
}

pub(crate) fn node_of(pod: &Tenanted<Pod>) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// What the controllers would do for a new tenant.
pub(crate) async fn prepare(cloud: &Cloud, tenant: &str) {
    let mut it = Tenant::default();
    it.metadata.name = Some(tenant.to_owned());
    cloud.client.system().api::<Tenant>().create(&it).await.unwrap();
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some("default".to_owned());
    cloud.client.tenant(&named(tenant)).api::<Namespace>().create(&namespace).await.unwrap();
    let account = json!({"metadata": {"name": "default"}});
    cloud.create::<ServiceAccount>(&named(tenant), "default", account).await;
}
