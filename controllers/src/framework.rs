//! What there is for who writes a controller: one file with what it watches, its key, and a function
//! that brings the objects of one key to what they ask for. `examples/greeter.rs` is one.

pub use insula_membership::{Ownership, Permit, Sole};

pub use crate::{
    controller::{Controller, Next, Observer, ReconcileError, Unobserved, run},
    queue::{Key, Queue},
};
