//! Values that are sealed wherever they lie: in the log, in checkpoints, in etcd, in backups, on
//! their way between servers, and in this process's memory.
//!
//! ```text
//! vault    the cluster's keys as this server has them, and what is to be sealed
//! key      what one key does: sealing, opening, wrapping another
//! form     what a sealed value looks like
//! bunch    the data keys of the tenants of one partition
//! store    seals what is written, before any backend sees it
//! pass     has what lies there follow the keys and the configuration; tells how it stands
//! ```
//!
//! A cluster key wraps the data keys of tenants, and nothing else; a data key seals values of its
//! tenant. Wrapped data keys lie in the tenant's partition, one document per tenant, and so move,
//! are backed up and end with it. See `docs/decisions/0044-sealed-values.md`.
//!
//! # Invariants
//!
//! * What a backend is given of a sealed collection is sealed; only [`crate::text::Text`] opens it,
//!   for as long as somebody looks.
//! * A value opens under the collection and key at which it was sealed, and nowhere else.
//! * What is not sealed costs a comparison of a few bytes.
//! * Nothing is ever overwritten because it could not be opened.

mod bunch;
mod form;
mod key;
mod pass;
mod store;
#[cfg(test)]
mod tests;
mod vault;

pub(crate) use self::{
    bunch::{Bunch, DOCUMENTS, documents, is_document},
    form::{Shut, is_sealed},
    store::SealingStore,
};
pub use self::{
    form::parts,
    key::{ClusterKey, SealError},
    pass::{Standing, lacking, pass, standing},
    vault::{Settings, Vault},
};
