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

/// Keeps a Tenant until all that it owns is gone.
pub const TENANT_FINALIZER: &str = "insula.io/tenant";

/// What is asked of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantSpec {
    /// The partition to live on; chosen by the server if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
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

/// Partitions are described by the server; nothing can be asked of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionSpec {}

/// What a partition is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
}
