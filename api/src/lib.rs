//! The object model: resources, request paths, selectors, quantities, schemas.

pub mod kinds;
pub mod names;
pub mod quantity;
pub mod selector;
