//! One pod: from what the API says it should be to what the runtime makes of it, and back.

pub mod container;
pub mod dns;
pub mod env;
pub mod expand;
pub mod identity;
pub mod quantity;
pub mod references;
pub mod resources;
pub mod sandbox;
pub mod security;
