//! `scale`: how many replicas an object has and wants, whatever its kind.

use insula_api::{
    object::{self, Stored},
    schema::Gvk,
    selector::LabelSelector,
};
use insula_partition::store::ReadAt;
use serde_json::{Value, json};

use crate::{
    Server,
    call::Call,
    custom::{self, object::Scaled},
    error::{ApiError, FieldError, Result},
    ownership::Writer,
    patch::{self, Configuration, Patch},
    read,
    registry::Served,
    write::{self, Changed},
};

/// An object as `autoscaling/v1` Scale, without replicas if nobody ever asked for any.
fn scale_of(served: &Served, it: &Value) -> Value {
    let scaled = match served.custom().and_then(|it| it.version.scale.as_ref()) {
        Some(scale) => custom::object::read_scale(scale, it),
        None => scale_of_built_in(it),
    };
    let metadata = object::metadata(it);
    let mut kept = serde_json::Map::new();
    for field in ["name", "namespace", "tenant", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            kept.insert(field.into(), value.clone());
        }
    }
    let mut scale = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": kept, "spec": {},
        "status": {"replicas": scaled.observed},
    });
    if !scaled.selector.is_empty() {
        scale["status"]["selector"] = scaled.selector.into();
    }
    if let Some(replicas) = scaled.replicas {
        scale["spec"]["replicas"] = replicas.into();
    }
    scale
}

/// As [`scale_of`], of an object that says how many it wants.
fn known_scale(served: &Served, it: &Value) -> Result<Value> {
    let scale = scale_of(served, it);
    match scale["spec"].get("replicas") {
        Some(_) => Ok(scale),
        None => {
            let at = place(served);
            Err(ApiError::internal(format!("the spec replicas field {at:?} does not exist")))
        }
    }
}

/// Where an object says how many it wants.
fn place(served: &Served) -> String {
    match served.custom().and_then(|it| it.version.scale.as_ref()) {
        Some(scale) => format!(".{}", scale.spec_replicas.join(".")),
        None => ".spec.replicas".into(),
    }
}

fn scale_of_built_in(it: &Value) -> Scaled {
    let selector = match it["spec"].get("selector") {
        // A replication controller's is a plain map.
        Some(plain) if it["kind"] == "ReplicationController" => {
            let pairs = plain.as_object().into_iter().flatten();
            pairs
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(",")
        }
        Some(selector) => selector_text(selector),
        None => String::new(),
    };
    Scaled {
        replicas: Some(it["spec"].get("replicas").and_then(Value::as_i64).unwrap_or(0)),
        observed: it["status"].get("replicas").and_then(Value::as_i64).unwrap_or(0),
        selector,
    }
}

fn selector_text(selector: &Value) -> String {
    let selector: Option<LabelSelector> = serde_json::from_value(selector.clone()).ok();
    selector.and_then(|it| it.compile().ok()).map(|it| it.to_string()).unwrap_or_default()
}

/// Reads the object's scale.
pub(crate) async fn get_scale(server: &Server, call: &Call) -> Result<Value> {
    let name = &call.path.name;
    let (_, store) = call.served.place(&server.partitions, call.tenant()?, &call.namespace(), name);
    let entry = read::get(&call.served, &*store, &call.key(name)?, name, ReadAt::Latest).await?;
    let mut it: Value = serde_json::from_slice(&entry.value.bytes()).map_err(ApiError::internal)?;
    server.show_value(&call.served, &mut it).await?;
    known_scale(&call.served, &it)
}

/// What a patch finds in the scale of an object that says nothing of replicas, as upstream.
const UNSAID: i64 = -2_147_483_648;

/// What a request says about an object's scale.
enum Rescale {
    Whole(Value),
    Patched(Patch),
    Applied(Configuration),
}

/// Writes the object's scale, whole (`put`) or patched.
pub(crate) async fn write_scale(
    server: &Server,
    call: &Call,
    body: &[u8],
    put: bool,
) -> Result<Value> {
    let kind = Gvk::new("autoscaling", "v1", "Scale");
    let writer = Writer::new(call)?;
    let asked = if put {
        Rescale::Whole(call.decode(&kind, body)?)
    } else if patch::is_apply(call) {
        Rescale::Applied(Configuration::parse(call, &kind, body)?)
    } else {
        Rescale::Patched(Patch::parse(call, body)?)
    };
    // The object is changed as a whole: replicas are part of its specification.
    let mut of_object = call.clone();
    of_object.path.subresource = String::new();
    let written = write::change(server, &of_object, &writer, |current, versions| {
        let it = &current.object;
        let mut scale = match &asked {
            Rescale::Whole(whole) => whole.clone(),
            Rescale::Patched(patch) => {
                let mut object = scale_of(&call.served, it);
                // None asked for is as good as none said, in a scale that is decoded.
                if object["spec"].get("replicas").is_none() {
                    object["spec"]["replicas"] = UNSAID.into();
                }
                let patched = patch.apply(call, &Stored { object, managed: String::new() })?;
                if patched["spec"]["replicas"] == UNSAID {
                    let at = place(&call.served);
                    let why = format!("the spec replicas field {at:?} cannot be empty");
                    return Err(ApiError::bad_request(why));
                }
                patched
            }
            Rescale::Applied(configuration) => configuration.value.clone(),
        };
        write::check_head(call, &mut scale)?;
        let replicas = scale["spec"].get("replicas").and_then(Value::as_i64).unwrap_or(0);
        // Custom ones are checked as what they are.
        if replicas < 0 && call.served.custom().is_none() {
            let error = FieldError::invalid(
                "spec.replicas",
                &replicas.into(),
                "must be greater than or equal to 0",
            );
            return Err(ApiError::invalid("autoscaling", "Scale", &call.path.name, &[error]));
        }
        let wanted = object::meta_str(&scale, "resourceVersion");
        if !wanted.is_empty() && wanted != object::meta_str(it, "resourceVersion") {
            return Err(call.modified(&call.path.name));
        }
        let retry = !put || wanted.is_empty();
        if let Rescale::Applied(configuration) = &asked {
            let mut config = json!({
                "apiVersion": it["apiVersion"], "kind": it["kind"],
                "metadata": {"name": call.path.name, "uid": object::uid(it)},
            });
            set_replicas(&call.served, &mut config, replicas);
            let applied = match writer.applied(versions, current, &config, configuration.force)? {
                Ok(applied) => applied,
                Err(wanted) => return Ok(Err(wanted)),
            };
            let (old, new) = (scale_of(&call.served, it), scale_of(&call.served, &applied.value));
            let changed = Changed::new(applied.value, retry).of_scale(old, new);
            return Ok(Ok(changed.managed_by(applied.managed)));
        }
        let mut value = it.clone();
        set_replicas(&call.served, &mut value, replicas);
        let (old, new) = (scale_of(&call.served, it), scale_of(&call.served, &value));
        Ok(Ok(Changed::new(value, retry).of_scale(old, new)))
    })
    .await?;
    let it = object::parse(&written.entry.value.bytes()).map_err(ApiError::internal)?;
    known_scale(&call.served, &it)
}

/// Takes over what `scale` says of an object's replicas.
pub(crate) fn set_replicas_of(served: &Served, it: &mut Value, scale: &Value) {
    let replicas = scale["spec"].get("replicas").and_then(Value::as_i64).unwrap_or(0);
    set_replicas(served, it, replicas);
}

fn set_replicas(served: &Served, it: &mut Value, replicas: i64) {
    match served.custom().and_then(|it| it.version.scale.as_ref()) {
        Some(scale) => custom::object::set_replicas(scale, it, replicas),
        None => it["spec"]["replicas"] = replicas.into(),
    }
}
