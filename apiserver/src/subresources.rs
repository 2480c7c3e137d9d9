//! Paths below an object that are not simply a part of it: an action, or another form of it.

mod binding;
mod bindings;
mod conditions;
mod eviction;
mod fence;
mod reviews;
mod scale;
mod token;

use insula_api::schema::Gvk;
use serde_json::{Value, json};

use crate::{
    Server,
    admission::{Admission, Operation},
    call::Call,
    error::Result,
};

pub(crate) use self::{
    binding::{bind, bind_named},
    bindings::{bind_all, is_in_partition},
    eviction::evict,
    fence::fence,
    reviews::{review, user_info},
    scale::{get_scale, set_replicas_of, write_scale},
    token::token,
};

/// Has the chain change and judge what is sent to a subresource, or for review.
async fn admit(server: &Server, call: &Call, kind: Gvk, it: &mut Value) -> Result<()> {
    let admission = Admission::new(server, call, Operation::Create, kind, None)?;
    admission.mutate(it).await?;
    admission.validate(Some(it)).await
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}
