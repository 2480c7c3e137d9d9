//! The object model: resources, request paths, selectors, quantities, schemas.

pub mod decode;
pub mod names;
pub mod object;
pub mod path;
pub mod proto;
pub mod quantity;
pub mod schema;
pub mod time;
