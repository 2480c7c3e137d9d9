//! Objects as trees of fields that different clients manage.
//!
//! This is what server-side apply and `metadata.managedFields` are made of. A [`place::Place`] says
//! how the value at one place of an object is divided; a [`set::Set`] is a set of paths; the other
//! modules take objects apart and put them together by places and sets. Nothing here knows of
//! requests or of storage, and whatever has a `Place` is treated alike: built-in kinds
//! ([`built_in::BuiltIn`]), custom resources by their own schema, and what has no schema at all
//! ([`place::Deduced`]).
//!
//! Semantics are those of Kubernetes' structured merge: `docs/decisions/0014-field-ownership.md`.

pub mod apply;
pub mod built_in;
pub mod compare;
pub mod extract;
pub mod fields;
mod go;
pub mod last_applied;
pub mod managers;
pub mod merge;
pub mod place;
pub mod prune;
pub mod set;
pub mod versions;

#[cfg(test)]
mod tests;
