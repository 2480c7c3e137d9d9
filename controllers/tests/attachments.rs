//! Volumes that drivers attach to nodes.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use insula_api::names::TenantName;
use insula_apiserver::identity::Identity;
use insula_client::{Api, Client, DeleteOptions, Kind, Patch, Tenanted};
use k8s_openapi::api::{
    core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
    storage::v1::{CSIDriver, VolumeAttachment},
};
use serde_json::{Value, json};

use self::cloud::Cloud;

const DRIVER: &str = "disks.example.com";

/// A cloud with nodes, a driver of the platform, and a tenant.
struct Storage {
    cloud: Cloud,
    acme: TenantName,
}

impl Storage {
    async fn start() -> Self {
        let cloud = Cloud::start(2).await;
        cloud.run_controllers(insula_controllers::Config::new("the root of trust"));
        let acme = cloud.tenant("acme").await;
        let this = Self { cloud, acme };
        for name in ["n1", "n2"] {
            this.make::<Node>(json!({"metadata": {"name": name, "annotations": {
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            }}}))
            .await;
            this.node(name, json!({"conditions": [{"type": "Ready", "status": "True"}]})).await;
        }
        this.make::<CSIDriver>(json!({"metadata": {"name": DRIVER}, "spec": {}})).await;
        this
    }

    /// Makes something of the platform's.
    async fn make<K: Kind>(&self, value: Value) -> Tenanted<K> {
        let object = serde_json::from_value(value).unwrap();
        self.cloud.client.system().api::<K>().create(&object).await.unwrap()
    }

    /// Writes what a node says of itself.
    async fn node(&self, name: &str, status: Value) {
        let patch = Patch::Strategic(json!({"status": status}));
        self.cloud.client.system().api::<Node>().patch_status(name, &patch).await.unwrap();
    }

    async fn mounts(&self, node: &str, handles: &[&str]) {
        let ids: Vec<_> = handles.iter().map(|it| id(it)).collect();
        self.node(node, json!({"volumesInUse": ids})).await;
    }

    /// A claim of the tenant's, and the volume it is bound to, made by `client`.
    async fn volume(&self, client: &Client, name: &str, driver: &str, mode: &str) {
        let claim = json!({
            "metadata": {"name": name},
            "spec": {
                "accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}},
                "storageClassName": "", "volumeName": name,
            },
        });
        let it: Tenanted<PersistentVolumeClaim> =
            self.cloud.create(&self.acme, "default", claim).await;
        let volume = volume(name, driver, mode, it.uid());
        client.tenant(&self.acme).api::<PersistentVolume>().create(&volume).await.unwrap();
        let claims = self.cloud.client.tenant(&self.acme);
        let claims = claims.namespaced::<PersistentVolumeClaim>("default");
        let bound = async || {
            let status = claims.get(name).await.unwrap().object.status.unwrap_or_default();
            status.phase.as_deref() == Some("Bound")
        };
        self.cloud.until(&format!("{name} is bound"), bound).await;
    }

    async fn pod(&self, name: &str, node: &str, claim: &str) {
        let it = json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": "i"}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
            },
        });
        self.cloud.create::<Pod>(&self.acme, "default", it).await;
    }

    async fn end_pod(&self, name: &str) {
        let pods = self.cloud.client.tenant(&self.acme).namespaced::<Pod>("default");
        pods.delete(name, &DeleteOptions::default().grace_period(0)).await.unwrap();
    }

    fn attachments(&self) -> Api<VolumeAttachment> {
        self.cloud.client.system().api()
    }

    async fn attached_to(&self, node: &str) -> Vec<Tenanted<VolumeAttachment>> {
        let mut all = self.attachments().list_all(&Default::default()).await.unwrap();
        all.retain(|it| it.spec.node_name == node);
        all
    }

    async fn until_attachments(&self, node: &str, count: usize) -> Vec<Tenanted<VolumeAttachment>> {
        let count_now = async || self.attached_to(node).await.len() == count;
        self.cloud.until(&format!("{node} has {count} attachments"), count_now).await;
        self.attached_to(node).await
    }

    /// Does what the driver's attacher does: says that it is attached.
    async fn attach(&self, it: &Tenanted<VolumeAttachment>) {
        let done = Patch::Merge(json!({"status": {"attached": true}}));
        self.attachments().patch_status(it.name(), &done).await.unwrap();
    }

    async fn told(&self, node: &str) -> Vec<String> {
        let node = self.cloud.client.system().api::<Node>().get(node).await.unwrap();
        let attached = node.object.status.unwrap_or_default().volumes_attached.unwrap_or_default();
        attached.into_iter().map(|it| it.name).collect()
    }

    async fn until_told(&self, node: &str, handles: &[&str]) {
        let ids: Vec<_> = handles.iter().map(|it| id(it)).collect();
        let told = async || self.told(node).await == ids;
        self.cloud.until(&format!("{node} is told of {handles:?}"), told).await;
    }

    /// Waits for an event about a pod; returns its message.
    async fn until_event(&self, pod: &str, reason: &str) -> String {
        let mut found = None;
        let told = async || {
            let events = self.cloud.list::<Event>(&self.acme, "default").await;
            let about = |it: &&Tenanted<Event>| {
                it.involved_object.name.as_deref() == Some(pod)
                    && it.reason.as_deref() == Some(reason)
            };
            found = events.iter().find(about).and_then(|it| it.message.clone());
            found.is_some()
        };
        self.cloud.until(&format!("{reason} of {pod} is told"), told).await;
        found.unwrap()
    }

    /// A client of the tenant's administrator.
    async fn administrator(&self) -> Client {
        let api = self.cloud.client.tenant(&self.acme);
        let role: ClusterRole = serde_json::from_value(json!({
            "metadata": {"name": "all"},
            "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
        }))
        .unwrap();
        api.api().create(&role).await.unwrap();
        let binding: ClusterRoleBinding = serde_json::from_value(json!({
            "metadata": {"name": "all"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "all"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}],
        }))
        .unwrap();
        api.api().create(&binding).await.unwrap();
        self.cloud.client_as(Identity::new(self.acme.clone(), "ann", &[]))
    }
}

/// How a node calls a volume of this handle.
fn id(handle: &str) -> String {
    format!("kubernetes.io/csi/{DRIVER}^{handle}")
}

/// A volume for the claim of its name; its handle has that name, too.
fn volume(name: &str, driver: &str, mode: &str, claim: &str) -> PersistentVolume {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": [mode],
            "claimRef": {"namespace": "default", "name": name, "uid": claim},
            "csi": {"driver": driver, "volumeHandle": name, "volumeAttributes": {"a": "b"}},
        },
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_follow_pods() {
    let storage = Storage::start().await;
    let platform = storage.cloud.client.clone();
    storage.volume(&platform, "disk", DRIVER, "ReadWriteOnce").await;
    storage.pod("first", "n1", "disk").await;
    let it = storage.until_attachments("n1", 1).await.remove(0);
    assert_eq!(it.spec.attacher, DRIVER);
    // What the platform's objects cannot name it carries.
    let source = it.spec.source.inline_volume_spec.as_ref().unwrap();
    let csi = source.csi.as_ref().unwrap();
    assert_eq!(
        (&*csi.volume_handle, &csi.volume_attributes.as_ref().unwrap()["a"][..]),
        ("disk", "b")
    );
    assert_eq!(storage.told("n1").await, Vec::<String>::new());

    let failed = json!({"status": {"attached": false, "attachError": {
        "message": "the rack is on fire", "time": "2026-01-01T00:00:00Z",
    }}});
    storage.attachments().patch_status(it.name(), &Patch::Merge(failed)).await.unwrap();
    let why = storage.until_event("first", "FailedAttachVolume").await;
    assert_eq!(why, "AttachVolume.Attach failed for volume \"disk\" : the rack is on fire");
    storage.attach(&it).await;
    storage.until_told("n1", &["disk"]).await;
    let how = storage.until_event("first", "SuccessfulAttachVolume").await;
    assert_eq!(how.trim(), "AttachVolume.Attach succeeded for volume \"disk\"");
    storage.mounts("n1", &["disk"]).await;

    // Another node does not get it as long as this one has it.
    storage.pod("second", "n2", "disk").await;
    let why = storage.until_event("second", "FailedAttachVolume").await;
    assert_eq!(
        why,
        "Multi-Attach error for volume \"disk\" Volume is already used by pod(s) first"
    );
    storage.end_pod("first").await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(storage.attached_to("n1").await.len(), 1, "it is mounted");
    assert_eq!(storage.told("n1").await, [id("disk")]);
    storage.mounts("n1", &[]).await;
    storage.until_attachments("n1", 0).await;
    assert_eq!(storage.told("n1").await, Vec::<String>::new());
    let it = storage.until_attachments("n2", 1).await.remove(0);
    storage.attach(&it).await;
    storage.until_told("n2", &["disk"]).await;
    storage.mounts("n2", &["disk"]).await;

    // Of a node that somebody has declared dead nothing is waited for.
    storage.end_pod("second").await;
    let out = json!({"spec": {"taints": [
        {"key": "node.kubernetes.io/out-of-service", "value": "x", "effect": "NoExecute"},
    ]}});
    let nodes = platform.system().api::<Node>();
    nodes.patch("n2", &Patch::Merge(out)).await.unwrap();
    storage.until_attachments("n2", 0).await;
    storage.until_told("n2", &[]).await;
    storage.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_several_nodes_are_attached_to_all_and_drivers_say_which_need_not() {
    let storage = Storage::start().await;
    let platform = storage.cloud.client.clone();
    let light =
        json!({"metadata": {"name": "light.example.com"}, "spec": {"attachRequired": false}});
    storage.make::<CSIDriver>(light).await;
    storage.volume(&platform, "shared", DRIVER, "ReadWriteMany").await;
    storage.volume(&platform, "light", "light.example.com", "ReadWriteOnce").await;
    storage.pod("light", "n1", "light").await;
    storage.pod("one", "n1", "shared").await;
    storage.pod("two", "n2", "shared").await;
    for node in ["n1", "n2"] {
        let it = storage.until_attachments(node, 1).await.remove(0);
        storage.attach(&it).await;
        storage.until_told(node, &["shared"]).await;
    }
    storage.end_pod("one").await;
    storage.until_attachments("n1", 0).await;
    assert_eq!(storage.attached_to("n2").await.len(), 1);
    storage.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_reach_no_disk_by_writing_down_its_handle() {
    let storage = Storage::start().await;
    let ann = storage.administrator().await;
    storage.volume(&ann, "stolen", DRIVER, "ReadWriteOnce").await;
    storage.pod("thief", "n1", "stolen").await;
    let why = storage.until_event("thief", "FailedAttachVolume").await;
    assert!(why.contains("the platform does not vouch for its handle"), "{why}");
    assert_eq!(storage.attached_to("n1").await.len(), 0);

    // Nor by vouching for themselves.
    let volumes = ann.tenant(&storage.acme).api::<PersistentVolume>();
    let mark = |handle: &str| {
        json!({"metadata": {"annotations": {
            "insula.io/handle-vouched": format!("{DRIVER}^{handle}"),
        }}})
    };
    let error = volumes.patch("stolen", &Patch::Merge(mark("stolen"))).await.unwrap_err();
    assert_eq!(error.code(), Some(403), "{error}");
    let error = volumes.patch_status("stolen", &Patch::Merge(mark("stolen"))).await.unwrap_err();
    assert_eq!(error.code(), Some(403), "{error}");
    let mut marked = volume("marked", DRIVER, "ReadWriteOnce", "u");
    marked.metadata.annotations = Some(
        [("insula.io/handle-vouched".to_owned(), format!("{DRIVER}^marked"))].into_iter().collect(),
    );
    assert_eq!(volumes.create(&marked).await.unwrap_err().code(), Some(403));
    // What they change otherwise is theirs, and the platform may vouch later.
    let label = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    volumes.patch("stolen", &label).await.unwrap();
    let platform = storage.cloud.client.tenant(&storage.acme).api::<PersistentVolume>();
    let other = platform.patch("stolen", &Patch::Merge(mark("other"))).await.unwrap_err();
    assert_eq!(other.code(), Some(403), "{other}");
    platform.patch("stolen", &Patch::Merge(mark("stolen"))).await.unwrap();
    storage.until_attachments("n1", 1).await;
    volumes.patch("stolen", &label).await.unwrap();
    storage.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_tenants_do_not_change_what_the_platform_vouches_for() {
    let storage = Storage::start().await;
    let ann = storage.administrator().await;
    let api = ann.tenant(&storage.acme);
    let policy = json!({
        "metadata": {"name": "steal"},
        "spec": {
            "failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["persistentvolumes"],
                "operations": ["CREATE"],
            }]},
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: \"replace\", path: \"/spec/csi/volumeHandle\", value: \"other\"}]",
            }}],
        },
    });
    let binding = json!({"metadata": {"name": "steal"}, "spec": {"policyName": "steal"}});
    use k8s_openapi::api::admissionregistration::v1::{
        MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding,
    };
    let policy: MutatingAdmissionPolicy = serde_json::from_value(policy).unwrap();
    api.api().create(&policy).await.unwrap();
    let binding: MutatingAdmissionPolicyBinding = serde_json::from_value(binding).unwrap();
    api.api().create(&binding).await.unwrap();
    let volumes = storage.cloud.client.tenant(&storage.acme).api::<PersistentVolume>();
    let mut count = 0;
    let refused = async || {
        count += 1;
        let it = volume(&format!("v{count}"), DRIVER, "ReadWriteOnce", "u");
        match volumes.create(&it).await {
            Ok(_) => false,
            Err(error) => {
                error.code() == Some(403) && error.to_string().contains("the volume is not")
            }
        }
    };
    storage.cloud.until("what the rule changed is found out", refused).await;
    storage.cloud.end().await;
}
