//! Writing: create, update and patch, through one pipeline for every resource.
//!
//! decode -> check the head -> shape (strategy) -> admit -> validate -> store. An update that
//! changes nothing writes nothing.

mod change;
mod create;
mod together;

use insula_api::{
    decode, object,
    schema::{Gvk, Schema},
};
use insula_partition::{snapshot::Entry, store::ReadAt};
use serde_json::{Value, json};

use self::create::create_value;
pub(crate) use self::{
    change::{Changed, change, is_finished},
    together::Together,
};
use crate::{
    Server,
    call::Call,
    error::{ApiError, FieldError, Result},
    ownership::{self, Writer},
    patch::{self, Configuration, Patch},
    strategy,
};

/// How often a write is tried again when somebody else was faster.
const RETRIES: usize = 8;

/// An accepted write.
#[derive(Debug)]
pub(crate) struct Written {
    pub entry: Entry,
    pub created: bool,
}

/// Who manages the result of a write.
#[derive(Debug, Clone)]
pub(crate) enum Managers {
    /// Whoever wrote manages what it changed.
    Compared,
    /// The JSON of `metadata.managedFields`.
    Given(Option<String>),
}

/// Creates the object of `body`.
pub(crate) async fn create(server: &Server, call: &Call, body: &[u8]) -> Result<Written> {
    let value = call.decode(&call.served.resource.gvk(), body)?;
    create_value(server, call, &Writer::new(call)?, value, Managers::Compared).await
}

/// Creates `it`, an object of the call's kind that was made here.
pub(crate) async fn create_made(server: &Server, call: &Call, it: Value) -> Result<Written> {
    create_value(server, call, &Writer::new(call)?, it, Managers::Compared).await
}

/// Tenant, namespace and name of the body agree with the path; what the body leaves out is set.
pub(crate) fn check_head(call: &Call, it: &mut Value) -> Result<()> {
    let tenant = call.tenant()?.clone();
    let namespace = call.namespace();
    let found = object::meta_str(it, "tenant");
    if !found.is_empty() && found != tenant.as_str() {
        return Err(ApiError::bad_request(
            "the tenant of the provided object does not match the tenant sent on the request",
        ));
    }
    let found = object::namespace(it);
    // What is in no namespace loses one that it says it is in.
    if !found.is_empty() && !namespace.is_empty() && found != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let name = call.path.name.clone();
    let found = object::name(it);
    if !name.is_empty() && !found.is_empty() && found != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({found}) does not match the name on the URL ({name})"
        )));
    }
    let metadata = object::metadata_mut(it);
    metadata.insert("tenant".into(), tenant.as_str().into());
    if namespace.is_empty() {
        metadata.remove("namespace");
    } else {
        metadata.insert("namespace".into(), namespace.into());
    }
    if !name.is_empty() {
        metadata.insert("name".into(), name.into());
    }
    Ok(())
}

/// What takes the place of the object of the path has a name.
fn check_name(call: &Call, it: &Value) -> Result<()> {
    match object::name(it).is_empty() {
        true => Err(ApiError::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            call.path.name
        ))),
        false => Ok(()),
    }
}

/// Replaces the object of the path by `body`.
pub(crate) async fn update(server: &Server, call: &Call, body: &[u8]) -> Result<Written> {
    let kind = call.served.resource.gvk();
    let mut value = call.decode(&kind, body)?;
    let writer = Writer::new(call)?;
    check_name(call, &value)?;
    check_head(call, &mut value)?;
    let wanted = object::meta_str(&value, "resourceVersion").to_owned();
    let conditional = !wanted.is_empty() && wanted != "0";
    let resource = &call.served.resource;
    let is_part = !call.path.subresource.is_empty();
    let unguarded = !conditional && strategy::needs_revision(&call.served);
    if unguarded || !is_part {
        let may_create = !is_part && strategy::facts(resource).put_creates;
        let exists = (!unguarded && !may_create) || exists(server, call).await?;
        if unguarded && exists {
            let mut error = FieldError::required("metadata.resourceVersion", "");
            error.reason = "FieldValueInvalid";
            error.message = "Invalid value: 0: must be specified for an update".into();
            let name = &call.path.name;
            return Err(ApiError::invalid(&resource.group, &resource.name, name, &[error]));
        }
        if may_create && !exists {
            object::metadata_mut(&mut value).remove("resourceVersion");
            server.authorize_verb(call, "create").await?;
            let managers = Managers::Compared;
            return create_value(server, call, &writer, value, managers).await;
        }
    }
    change(server, call, &writer, |current, _| {
        let is = object::meta_str(&current.object, "resourceVersion");
        if conditional && is != wanted {
            return Err(call.modified(&call.path.name));
        }
        Ok(Ok(Changed::new(value.clone(), !conditional)))
    })
    .await
}

/// Whether the object of the path is there.
async fn exists(server: &Server, call: &Call) -> Result<bool> {
    let name = &call.path.name;
    let namespace = call.namespace();
    let (_, store) = call.served.place(&server.partitions, call.tenant()?, &namespace, name);
    let current = store.read(&call.served.collection, ReadAt::Latest).await?;
    Ok(current.get(&call.key(name)?).is_some())
}

/// Patches the object of the path.
pub(crate) async fn patch(server: &Server, call: &Call, body: &[u8]) -> Result<Written> {
    if patch::is_apply(call) {
        return apply(server, call, body).await;
    }
    let patch = match Patch::parse(call, body) {
        Ok(patch) => patch,
        // That there is nothing to be patched is told first.
        Err(error) if error.code == http::StatusCode::BAD_REQUEST => {
            return match exists(server, call).await? {
                true => Err(error),
                false => Err(call.not_found(&call.path.name)),
            };
        }
        Err(error) => return Err(error),
    };
    let writer = Writer::new(call)?;
    change(server, call, &writer, |current, _| {
        let mut value = patch.apply(call, current)?;
        check_name(call, &value)?;
        // What the platform shows says whose it is, and is refused where it is written.
        if object::meta_str(&current.object, "tenant") == call.tenant()?.as_str() {
            check_head(call, &mut value)?;
        }
        let wanted = object::meta_str(&value, "resourceVersion");
        if wanted != object::meta_str(&current.object, "resourceVersion") && !wanted.is_empty() {
            return Err(call.modified(&call.path.name));
        }
        Ok(Ok(Changed::new(value, !patch.has_revision())))
    })
    .await
}

/// Applies the body to the object of the path, or creates it.
async fn apply(server: &Server, call: &Call, body: &[u8]) -> Result<Written> {
    let kind = call.served.resource.gvk();
    let configuration = match Configuration::parse(call, &kind, body) {
        Ok(configuration) => configuration,
        // A part of what is not there is not there, whatever is said of it.
        Err(error)
            if error.code == http::StatusCode::BAD_REQUEST
                && !call.path.subresource.is_empty()
                && !exists(server, call).await? =>
        {
            return Err(call.not_found(&call.path.name));
        }
        Err(error) => return Err(error),
    };
    let writer = Writer::new(call)?;
    let config = &configuration.value;
    check_head(call, &mut json!({ "metadata": object::metadata(config) }))?;
    for _ in 0..RETRIES {
        let changed = change(server, call, &writer, |current, versions| {
            let force = configuration.force;
            let applied = match writer.applied(versions, current, config, force)? {
                Ok(applied) => applied,
                Err(wanted) => return Ok(Err(wanted)),
            };
            let wanted = object::meta_str(config, "resourceVersion");
            let is = object::meta_str(&current.object, "resourceVersion");
            if configuration.has_revision() && wanted != is {
                return Err(call.modified(&call.path.name));
            }
            let value = merged(call, &kind, config, applied.value)?;
            let changed = Changed::new(value, !configuration.has_revision());
            Ok(Ok(changed.managed_by(applied.managed)))
        })
        .await;
        match changed {
            Err(error) if error.reason == "NotFound" && call.path.subresource.is_empty() => (),
            result => return result,
        }
        let uid = object::uid(config);
        if !uid.is_empty() {
            let resource = &call.served.resource;
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            let name = &call.path.name;
            return Err(ApiError::conflict(&resource.group, &resource.name, name, &why));
        }
        server.authorize_verb(call, "create").await?;
        let nothing = ownership::nothing(&kind);
        let versions = writer.versions();
        let applied = writer.applied(versions, &nothing, config, configuration.force)?;
        // What nobody has yet nobody has in another version.
        let applied = applied.map_err(|_| ApiError::internal("a new object has managers"))?;
        let mut value = merged(call, &kind, config, applied.value)?;
        check_name(call, &value)?;
        check_head(call, &mut value)?;
        let managers = Managers::Given(applied.managed);
        match create_value(server, call, &writer, value, managers).await {
            // Somebody else was faster; it is there to be changed now.
            Err(error) if error.reason == "AlreadyExists" => (),
            result => return result,
        }
    }
    Err(call.modified(&call.path.name))
}

/// What came of an apply, as an object of its kind: what says nothing is left out.
fn merged(call: &Call, kind: &Gvk, config: &Value, value: Value) -> Result<Value> {
    let schema = Schema::built_in();
    let Some(root) = schema.by_kind(kind).filter(|_| call.served.custom().is_none()) else {
        return Ok(value);
    };
    let (namespace, name) = (object::namespace(config), object::name(config));
    let decoded = decode::value(schema, Some(root), value).map_err(|error| {
        let shown = format!("{}, Kind={}", ownership::full_version(&kind.api_version()), kind.kind);
        ApiError::untyped(format!(
            "failed to convert new object ({namespace}/{name}; {shown}) to proper version: unable \
             to convert unstructured object to {shown}: {error}"
        ))
    })?;
    Ok(decoded.value)
}
