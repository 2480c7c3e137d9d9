//! One pod: from what the API says it should be to what the runtime makes of it, and back.

pub(crate) mod action;
pub(crate) mod container;
pub(crate) mod dns;
pub(crate) mod env;
pub(crate) mod expand;
pub(crate) mod health;
pub(crate) mod identity;
pub(crate) mod image;
pub(crate) mod observed;
pub(crate) mod patch;
pub(crate) mod plan;
pub(crate) mod probe;
pub(crate) mod quantity;
pub(crate) mod references;
pub(crate) mod resources;
pub(crate) mod sandbox;
pub(crate) mod security;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod sysctls;
pub(crate) mod worker;
