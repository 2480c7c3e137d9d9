//! Our own kinds, group `insula.io/v1`: what users write in `spec` and read in `status`.
//!
//! No metadata here, and so no object types: those are the client's and the server's.

use serde::{Deserialize, Serialize};

/// The group of our own kinds.
pub const GROUP: &str = "insula.io";
/// The version of our own kinds.
pub const VERSION: &str = "v1";
/// Group and version, as written in `apiVersion`.
pub const API_VERSION: &str = "insula.io/v1";

/// The resource that serves tenants.
pub const TENANTS: &str = "tenants";
/// The resource that serves partitions.
pub const PARTITIONS: &str = "partitions";
/// The resource that serves replicas of the controllers.
pub const CONTROLLER_INSTANCES: &str = "controllerinstances";
/// Plural of the replicas of the scheduler.
pub const SCHEDULER_INSTANCES: &str = "schedulerinstances";
/// The resource that serves tables of who cares for which slots.
pub const SLOT_TABLES: &str = "slottables";

/// Keeps a Tenant until all that it owns is gone.
pub const TENANT_FINALIZER: &str = "insula.io/tenant";

/// What is asked of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantSpec {
    /// The partition to live on; chosen by the server if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Who may do everything within the tenant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub admins: Vec<Subject>,
}

/// A user, a group or a service account, as role bindings name them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    pub kind: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// What a tenant is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// Absent until the tenant's first namespaces exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<TenantPhase>,
    /// The partition the tenant lives on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// One aspect of an object's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    pub reason: String,
    pub message: String,
    /// When `status` changed last, RFC 3339.
    pub last_transition_time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Where a tenant is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TenantPhase {
    /// Its first namespaces exist.
    Active,
    /// It is being deleted, with all that it owns.
    Terminating,
    /// A phase that a newer server knows.
    #[serde(other)]
    Unknown,
}

/// What is asked of a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Servers that are to be its members, if it is embedded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// Nothing may move here, and what is here moves away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<bool>,
    /// Slots move here until it has its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filling: Option<bool>,
    /// Where it is, if it is in an etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<PartitionEtcd>,
}

/// An etcd cluster that holds a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionEtcd {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Another etcd, for collections of which all is relaxed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relaxed: Vec<String>,
}

/// What a partition is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How many slots it owns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<i32>,
    /// Which ones, `FIRST-LAST`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slot_ranges: Vec<String>,
    /// How many tenants are pinned to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pins: Option<i32>,
    /// Servers that serve it from their own memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ready: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Of the partition map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
}

/// What a replica of the controllers, or of the scheduler, is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceSpec {
    /// The machine on which it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// How a replica of the controllers, or of the scheduler, is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<InstancePhase>,
    /// How many slots it cares for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<i32>,
    /// Counts its signs of life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewals: Option<i64>,
}

/// Where a replica is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstancePhase {
    Active,
    /// It hands over and ends.
    Leaving,
    /// The others heard nothing of it for too long.
    Lost,
    /// A phase that a newer replica knows.
    #[serde(other)]
    Unknown,
}

/// Who cares for which slots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotTableSpec {
    /// The newest epoch in which anything was claimed.
    #[serde(default)]
    pub epoch: u64,
    /// Slots that are in none are nobody's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<SlotClaim>,
}

/// What a replica claimed at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotClaim {
    #[serde(default)]
    pub holder: String,
    #[serde(default)]
    pub epoch: u64,
    /// Ranges of whole blocks, see [`crate::slots`].
    #[serde(default)]
    pub slots: Vec<String>,
}

/// Asks that what a replica has claimed be fenced, and says what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotFenceSpec {
    #[serde(default)]
    pub holder: String,
}

/// Where claims count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotFenceStatus {
    /// Partitions that could not be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreached: Vec<String>,
    /// An epoch above the holder's that some partition knows; else 0.
    #[serde(default)]
    pub newest: u64,
}

/// Binds pods of a partition, in one step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodBindingsSpec {
    /// At most [`MAX_POD_BINDINGS`], of tenants that live on the partition.
    #[serde(default)]
    pub bindings: Vec<PodBinding>,
    /// In whose name each pod that is bound is told so, by an event `Scheduled`; without it there
    /// are no events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reporting_component: Option<String>,
    /// Which one of that component it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reporting_instance: Option<String>,
}

/// Most bindings of one request.
pub const MAX_POD_BINDINGS: usize = 512;

/// Where a pod goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodBinding {
    #[serde(default)]
    pub tenant: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(default)]
    pub node: String,
    /// `TASK=EPOCH`: it is bound only while the partition keeps this epoch for the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<String>,
}

/// What came of bindings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodBindingsStatus {
    /// As many as there were bindings, and in their order.
    #[serde(default)]
    pub results: Vec<PodBindingResult>,
}

/// What came of a binding: what the answer to a single one would have said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodBindingResult {
    /// As of HTTP: 201 if the pod was bound, 421 if its tenant does not live on the partition.
    #[serde(default)]
    pub code: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether there is an event of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reported: bool,
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Map, Value, json};

    use super::*;

    /// An object with every field that the type table knows of `kind`.
    fn full(kind: &str) -> Value {
        let table = include_str!("../tables/insula.tsv");
        let mut fields = Map::new();
        for row in table.lines().map(|line| line.split('\t').collect::<Vec<_>>()) {
            let [name, field, shape, ..] = row.as_slice() else { continue };
            if *name != format!("io.insula.v1.{kind}") || field.is_empty() {
                continue;
            }
            let value = match *shape {
                "string" => json!("text"),
                shape if shape.starts_with("integer") => json!(7),
                "[->io.k8s.api.rbac.v1.Subject]" => json!([{
                    "kind": "User", "name": "u", "apiGroup": "g", "namespace": "n",
                }]),
                "[->io.k8s.apimachinery.pkg.apis.meta.v1.Condition]" => json!([{
                    "type": "T", "status": "True", "reason": "R", "message": "M",
                    "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
                }]),
                "boolean" => json!(true),
                "[string]" => json!(["text"]),
                "->io.insula.v1.PartitionEtcd" => full("PartitionEtcd"),
                "[->io.insula.v1.SlotClaim]" => json!([full("SlotClaim")]),
                "[->io.insula.v1.PodBinding]" => json!([full("PodBinding")]),
                "[->io.insula.v1.PodBindingResult]" => json!([full("PodBindingResult")]),
                other => panic!("{kind}.{field} is {other:?}"),
            };
            fields.insert((*field).to_owned(), value);
        }
        assert!(!fields.is_empty(), "the table does not know {kind}");
        fields.into()
    }

    #[track_caller]
    fn check<T: Serialize + DeserializeOwned>(kind: &str, change: impl Fn(&mut Value)) {
        let mut object = full(kind);
        change(&mut object);
        let read: T = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), object, "{kind}");
    }

    #[test]
    fn no_field_of_the_table_is_lost() {
        check::<TenantSpec>("TenantSpec", |_| ());
        check::<TenantStatus>("TenantStatus", |it| it["phase"] = json!("Active"));
        check::<PartitionSpec>("PartitionSpec", |_| ());
        check::<PartitionStatus>("PartitionStatus", |_| ());
        check::<InstanceSpec>("ControllerInstanceSpec", |_| ());
        check::<InstanceStatus>("ControllerInstanceStatus", |it| {
            it["phase"] = json!("Leaving");
        });
        check::<InstanceSpec>("SchedulerInstanceSpec", |_| ());
        check::<InstanceStatus>("SchedulerInstanceStatus", |it| it["phase"] = json!("Lost"));
        check::<SlotTableSpec>("SlotTableSpec", |_| ());
        check::<SlotFenceSpec>("SlotFenceSpec", |_| ());
        check::<SlotFenceStatus>("SlotFenceStatus", |_| ());
        check::<PodBindingsSpec>("PodBindingsSpec", |_| ());
        check::<PodBindingsStatus>("PodBindingsStatus", |_| ());
    }

    #[test]
    fn a_phase_yet_unknown_is_no_error() {
        let status: TenantStatus = serde_json::from_value(json!({"phase": "Moving"})).unwrap();
        assert_eq!(status.phase, Some(TenantPhase::Unknown));
    }
}
