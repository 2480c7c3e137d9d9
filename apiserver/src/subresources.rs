//! Paths below an object that are not simply a part of it: an action, or another form of it.

mod binding;
mod conditions;
mod eviction;
mod reviews;
mod scale;
mod token;

use serde_json::{Value, json};

pub(crate) use self::{
    binding::{bind, bind_named},
    eviction::evict,
    reviews::review,
    scale::{get_scale, write_scale},
    token::token,
};

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}
