//! Our own kinds as objects: what [`insula_api::kinds`] says of them, with metadata around it.

use insula_api::kinds;
use k8s_openapi::{ClusterResourceScope, Metadata, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct};

/// Defines an object type of group `insula.io/v1` from its spec and status.
macro_rules! own_kind {
    ($(#[$doc:meta])* $kind:ident, $plural:expr, $scope:ty, $spec:ty, $status:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct $kind {
            pub metadata: ObjectMeta,
            pub spec: $spec,
            pub status: Option<$status>,
        }

        impl k8s_openapi::Resource for $kind {
            const API_VERSION: &'static str = kinds::API_VERSION;
            const GROUP: &'static str = kinds::GROUP;
            const KIND: &'static str = stringify!($kind);
            const VERSION: &'static str = kinds::VERSION;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $scope;
        }

        impl Metadata for $kind {
            type Ty = ObjectMeta;
            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }

        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let n_fields = 4 + usize::from(self.status.is_some());
                let mut object = serializer.serialize_struct(stringify!($kind), n_fields)?;
                object.serialize_field("apiVersion", kinds::API_VERSION)?;
                object.serialize_field("kind", stringify!($kind))?;
                object.serialize_field("metadata", &self.metadata)?;
                object.serialize_field("spec", &self.spec)?;
                if let Some(status) = &self.status {
                    object.serialize_field("status", status)?;
                }
                object.end()
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                struct Fields {
                    #[serde(default)]
                    metadata: ObjectMeta,
                    #[serde(default)]
                    spec: Option<$spec>,
                    #[serde(default)]
                    status: Option<$status>,
                }
                let Fields { metadata, spec, status } = Fields::deserialize(deserializer)?;
                Ok(Self { metadata, spec: spec.unwrap_or_default(), status })
            }
        }
    };
}

own_kind! {
    /// A tenant. An object of the fleet: it lives in tenant `system`.
    Tenant, kinds::TENANTS, ClusterResourceScope, kinds::TenantSpec, kinds::TenantStatus
}

own_kind! {
    /// A partition of the storage. An object of the fleet: it lives in tenant `system`.
    Partition, kinds::PARTITIONS, ClusterResourceScope, kinds::PartitionSpec, kinds::PartitionStatus
}

own_kind! {
    /// A replica of the controllers. An object of the fleet: it lives in tenant `system`.
    ControllerInstance, kinds::CONTROLLER_INSTANCES, ClusterResourceScope,
    kinds::InstanceSpec, kinds::InstanceStatus
}

own_kind! {
    /// A replica of the scheduler. An object of the fleet: it lives in tenant `system`.
    SchedulerInstance, kinds::SCHEDULER_INSTANCES, ClusterResourceScope,
    kinds::InstanceSpec, kinds::InstanceStatus
}

/// What has no status of its own.
pub type NoStatus = std::collections::BTreeMap<String, serde_json::Value>;

own_kind! {
    /// Who cares for which slots. An object of the fleet: it lives in tenant `system`.
    SlotTable, kinds::SLOT_TABLES, ClusterResourceScope, kinds::SlotTableSpec, NoStatus
}

#[cfg(test)]
mod tests {
    use insula_api::kinds::TenantPhase;
    use serde_json::json;

    use super::*;
    use crate::{Kind, Tenanted};

    #[test]
    fn a_tenant_reads_and_writes_like_any_object() {
        let value = json!({
            "apiVersion": "insula.io/v1", "kind": "Tenant",
            "metadata": {"name": "acme", "tenant": "system", "finalizers": ["insula.io/tenant"]},
            "spec": {"partition": "p1", "admins": [{"kind": "User", "name": "u"}]},
            "status": {"phase": "Active", "partition": "p1"},
        });
        let tenant: Tenanted<Tenant> = serde_json::from_value(value.clone()).unwrap();
        assert!(tenant.tenant.is_system());
        assert_eq!(tenant.status.as_ref().unwrap().phase, Some(TenantPhase::Active));
        let mut written = serde_json::to_value(&tenant).unwrap();
        written["metadata"]["tenant"] = json!("system");
        assert_eq!(written, value);
        assert_eq!(Tenant::resource().to_string(), "tenants.insula.io");
        assert!(!Tenant::resource().namespaced);
    }

    #[test]
    fn a_bare_tenant_is_enough() {
        let text = r#"{"metadata":{"name":"a","tenant":"system"}}"#;
        let tenant: Tenanted<Tenant> = serde_json::from_str(text).unwrap();
        assert_eq!(tenant.spec, kinds::TenantSpec::default());
        assert_eq!(tenant.status, None);
    }
}
