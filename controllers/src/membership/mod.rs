//! Several replicas share the work: which one cares for which tenants.
//!
//! | file | |
//! |---|---|
//! | `core` | decides, from what is seen of the others and of the table |
//! | `table` | who holds which block of slots |
//! | `held` | what this replica serves now; what the queues ask |
//! | `driver` | sees, renews, and does what was decided |
//! | `sim` | many replicas in virtual time, with faults |
//!
//! See `docs/decisions/0048-who-cares-for-whom.md`.

mod core;
mod driver;
mod held;
#[cfg(test)]
mod sim;
mod table;

pub(crate) use self::{
    driver::{Copies, Membership},
    held::UnderWay,
};
