//! Custom resource definitions: what they may say, and what their schemas make of objects.
//!
//! A definition is checked when it is written (`check`, `structural`), compiled once
//! (`definition`, `schema`) and then walked together with objects: to drop what it does not know
//! (`prune`), to fill in what is missing (`default`), and to find what is wrong (`validate`,
//! `lists`, `embedded`). Everything is pure: no I/O, no clock, no tenant.
//!
//! # Invariants
//!
//! * A compiled schema is immutable, and the same for equal definitions: it can be shared.
//! * No walk is deeper than the decoder lets an object be, nor than a schema may be.

pub mod check;
pub mod default;
pub mod definition;
pub mod embedded;
pub mod formats;
pub mod jsonpath;
pub mod lists;
pub mod names;
pub mod path;
pub mod place;
pub mod prune;
pub mod regex;
pub mod schema;
pub mod structural;
pub mod validate;

pub use self::{
    definition::{Definition, Version},
    schema::Schema,
};
