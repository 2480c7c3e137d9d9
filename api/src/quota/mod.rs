//! Resource quotas: what objects use, and of which quota.
//!
//! Pure functions over objects as JSON: the API server charges with them what it lets in, and a
//! controller counts again.

pub mod amounts;
pub mod qos;
pub mod scopes;
pub mod usage;
pub mod weight;

use serde_json::Value;

fn list<'a>(it: &'a Value, field: &str) -> std::slice::Iter<'a, Value> {
    it.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().iter()
}
