//! The object model: resources, request paths, selectors, quantities, schemas.

pub mod cron;
pub mod decode;
pub mod defaults;
pub mod discovery;
pub mod error;
pub mod field;
pub mod formats;
pub mod internal;
pub mod kinds;
pub mod lines;
pub mod names;
pub mod object;
pub mod path;
pub mod pods;
pub mod proto;
pub mod quantity;
pub mod quota;
pub mod resources;
pub mod schema;
pub mod selector;
pub mod slots;
pub mod strategic;
pub mod structural;
pub mod time;
pub mod versions;
