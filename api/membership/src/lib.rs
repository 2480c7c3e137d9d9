//! Several replicas share the work: which one cares for what.
//!
//! | file | |
//! |---|---|
//! | `core` | decides, from what is seen of the others and of the table |
//! | `table` | who holds which block of slots |
//! | `held` | what this replica serves now |
//! | `ownership` | what those who work ask |
//! | `driver` | sees, renews, and does what was decided |
//! | `sim` | many replicas in virtual time, with faults |
//!
//! Controllers and schedulers each have a table, and objects of a kind of their own for their
//! replicas ([`Instance`]); what they do with what they hold is theirs ([`Work`]).
//! See `docs/decisions/0048-who-cares-for-whom.md`.

mod core;
mod driver;
mod held;
mod ownership;
#[cfg(test)]
mod sim;
mod table;

pub use self::{
    driver::{Instance, Membership, Work},
    held::HeldBlocks,
    ownership::{Ownership, Permit, Sole},
    table::Holders,
};
