//! What those who work ask before they begin.

use std::fmt;

use insula_api::names::TenantName;
use insula_client::fence::Fence;

use crate::held::UnderWay;

/// Says which tenants this replica works for.
pub trait Ownership: fmt::Debug + Send + Sync + 'static {
    fn owns(&self, tenant: &TenantName) -> bool;

    /// Begins some work for a tenant, unless it is no longer this replica's. It is under way
    /// until the permit is dropped.
    fn begin(&self, tenant: &TenantName) -> Option<Permit>;

    /// A write was refused because it is no longer this replica's to make.
    fn refused(&self);
}

/// Some work may go on, and in which epoch it writes.
#[derive(Debug, Default)]
pub struct Permit {
    /// Fences the writes of what goes on; none if this is the only replica.
    pub fence: Option<Fence>,
    /// Tells, when it is dropped, that it is over.
    pub(crate) _under_way: Option<UnderWay>,
}

/// The only replica: it owns all.
#[derive(Debug, Clone, Copy)]
pub struct Sole;

impl Ownership for Sole {
    fn owns(&self, _tenant: &TenantName) -> bool {
        true
    }

    fn begin(&self, _tenant: &TenantName) -> Option<Permit> {
        Some(Permit::default())
    }

    fn refused(&self) {}
}
