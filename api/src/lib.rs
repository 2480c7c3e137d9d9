//! The object model: resources, request paths, selectors, quantities, schemas.

pub mod names;
