//! One pod: from what the API says it should be to what the runtime makes of it, and back.

pub mod action;
pub mod container;
pub mod dns;
pub mod env;
pub mod expand;
pub mod health;
pub mod identity;
pub mod image;
pub mod observed;
pub mod patch;
pub mod plan;
pub mod probe;
pub mod quantity;
pub mod references;
pub mod resources;
pub mod sandbox;
pub mod security;
pub mod snapshot;
pub mod status;
pub mod worker;
