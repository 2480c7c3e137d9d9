//! Writing: create, update and patch, through one pipeline for every resource.
//!
//! decode -> check the head -> shape (strategy) -> admit -> validate -> store. An update that
//! changes nothing writes nothing.

use insula_api::{
    decode, object,
    schema::{Schema, Shape},
    strategic, time,
};
use insula_partition::{
    snapshot::Entry,
    store::{Change, Expect, ReadAt, Revision, StoreError, Write},
};
use rand::Rng as _;
use serde_json::Value;

use crate::{
    Server, admission,
    call::Call,
    error::{ApiError, FieldError, Result},
    read, strategy, validate,
};

/// How often a write is tried again when somebody else was faster.
const RETRIES: usize = 8;

/// An accepted write.
#[derive(Debug)]
pub(crate) struct Written {
    pub entry: Entry,
    pub created: bool,
    pub warnings: Vec<String>,
}

/// Creates the object of `body`.
pub(crate) async fn create(server: &Server, call: &Call, body: &[u8]) -> Result<Written> {
    let (value, warnings) = call.decode(&call.served.resource.gvk(), body)?;
    create_value(server, call, value, warnings).await
}

/// Creates `it`, a decoded object of the call's kind.
pub(crate) async fn create_value(
    server: &Server,
    call: &Call,
    mut it: Value,
    warnings: Vec<String>,
) -> Result<Written> {
    let resource = &call.served.resource;
    let tenant = call.tenant()?.clone();
    let namespace = call.namespace();
    if resource.is_namespaced() && namespace.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    check_head(call, &mut it)?;
    if !object::meta_str(&it, "resourceVersion").is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let generate = object::meta_str(&it, "generateName").to_owned();
    let generated = object::name(&it).is_empty() && !generate.is_empty();
    {
        let metadata = object::metadata_mut(&mut it);
        for field in
            ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation", "uid"]
        {
            metadata.remove(field);
        }
        metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp".into(), time::now().into());
    }
    for attempt in 0..RETRIES {
        let mut it = it.clone();
        if generated {
            object::metadata_mut(&mut it).insert("name".into(), generated_name(&generate).into());
        }
        strategy::prepare_create(&call.served, &mut it);
        admission::mutate(server, call, &mut it, None).await?;
        let errors = validate::create(&call.served, &it);
        if !errors.is_empty() {
            let name = object::name(&it);
            return Err(ApiError::invalid(&resource.group, &resource.kind, name, &errors));
        }
        admission::validate(server, call, Some(&it), None).await?;
        let name = object::name(&it).to_owned();
        let key = crate::registry::key(&tenant, &namespace, &name);
        let (_, store) = call.served.place(&server.partitions, &tenant, &namespace, &name);
        if call.query.dry_run()? {
            let snapshot = store.read(&call.served.collection, ReadAt::Latest).await?;
            if snapshot.get(&key).is_some() {
                return Err(ApiError::already_exists(&resource.group, &resource.name, &name));
            }
            let entry = Entry { value: object::encode(&it).into(), modified: Revision(0) };
            return Ok(Written { entry, created: true, warnings });
        }
        let write = Write {
            collection: call.served.collection.clone(),
            key: key.into(),
            expect: Expect::Absent,
            change: Change::Put(
                object::encode(server.keep(&call.served, &it).await?.as_ref()).into(),
            ),
            durability: call.served.durability(&namespace),
            by_move: None,
        };
        match store.write(write).await {
            Ok(committed) => {
                admission::created(server, call, &it).await?;
                let entry = server.show_entry(&call.served, committed.entry).await?;
                return Ok(Written { entry, created: true, warnings });
            }
            Err(StoreError::Conflict { .. }) if generated && attempt + 1 < RETRIES => (),
            Err(StoreError::Conflict { .. }) => {
                let mut error = ApiError::already_exists(&resource.group, &resource.name, &name);
                error.retry_after = generated.then_some(1);
                return Err(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::internal("no free name was found"))
}

/// Five characters that make no words, behind at most 58 of the base.
fn generated_name(base: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    let mut name: String = base.chars().take(58).collect();
    name.extend((0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])));
    name
}

/// Tenant, namespace and name of the body agree with the path; what the body leaves out is set.
fn check_head(call: &Call, it: &mut Value) -> Result<()> {
    let tenant = call.tenant()?.clone();
    let namespace = call.namespace();
    let found = object::meta_str(it, "tenant");
    if !found.is_empty() && found != tenant.as_str() {
        return Err(ApiError::bad_request(
            "the tenant of the provided object does not match the tenant sent on the request",
        ));
    }
    let found = object::namespace(it);
    if !found.is_empty() && found != namespace {
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

/// Replaces the object of the path by `body`.
pub(crate) async fn update(server: &Server, call: &Call, body: &[u8]) -> Result<Written> {
    let kind = call.served.resource.gvk();
    let (mut value, warnings) = call.decode(&kind, body)?;
    check_head(call, &mut value)?;
    let wanted = object::meta_str(&value, "resourceVersion").to_owned();
    let conditional = !wanted.is_empty() && wanted != "0";
    let resource = &call.served.resource;
    if call.path.subresource.is_empty() {
        let unguarded = !conditional && strategy::needs_revision(&call.served);
        let may_create = strategy::creates_on_update(resource);
        let exists = (!unguarded && !may_create) || exists(server, call).await?;
        if unguarded && exists {
            let mut error = FieldError::required("metadata.resourceVersion", "");
            error.reason = "FieldValueInvalid";
            error.message = "Invalid value: 0x0: must be specified for an update".into();
            let name = &call.path.name;
            return Err(ApiError::invalid(&resource.group, &resource.kind, name, &[error]));
        }
        if may_create && !exists {
            object::metadata_mut(&mut value).remove("resourceVersion");
            server.authorize_verb(call, "create").await?;
            return create_value(server, call, value, warnings).await;
        }
    }
    change(server, call, warnings, |current| {
        let is = object::meta_str(current, "resourceVersion");
        if conditional && is != wanted {
            return Err(call.modified(&call.path.name));
        }
        Ok(Changed { value: value.clone(), retry: !conditional, warnings: Vec::new() })
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

/// What a change makes of the current object.
#[derive(Debug)]
pub(crate) struct Changed {
    pub value: Value,
    /// Whether the change may be made again from a newer object.
    pub retry: bool,
    pub warnings: Vec<String>,
}

/// Applies `make` to the current object until nobody else was faster.
pub(crate) async fn change(
    server: &Server,
    call: &Call,
    mut warnings: Vec<String>,
    make: impl Fn(&Value) -> Result<Changed>,
) -> Result<Written> {
    let resource = &call.served.resource;
    let tenant = call.tenant()?.clone();
    let (namespace, name) = (call.namespace(), call.path.name.clone());
    let key = call.key(&name)?;
    let (_, store) = call.served.place(&server.partitions, &tenant, &namespace, &name);
    let mut entry = read::get(&call.served, &*store, &key, &name, ReadAt::Latest).await?;
    for _ in 0..RETRIES {
        let kept: Value = serde_json::from_slice(&entry.value).map_err(ApiError::internal)?;
        let old = server.show_value(&call.served, &kept).await?;
        let Changed { value: mut new, retry, warnings: found } = make(&old)?;
        let uid = object::uid(&new);
        if !uid.is_empty() && uid != object::uid(&old) {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object::uid(&old)
            );
            return Err(ApiError::conflict(&resource.group, &resource.name, &name, &why));
        }
        strategy::prepare_update(&call.served, &call.path.subresource, &old, &mut new);
        admission::mutate(server, call, &mut new, Some(&old)).await?;
        let errors = validate::update(&call.served, &call.path.subresource, &old, &new);
        if !errors.is_empty() {
            return Err(ApiError::invalid(&resource.group, &resource.kind, &name, &errors));
        }
        admission::validate(server, call, Some(&new), Some(&old)).await?;
        let bytes = object::encode(server.keep(&call.served, &new).await?.as_ref());
        if bytes == object::encode(&kept) || call.query.dry_run()? {
            let shown = object::encode(&new).into();
            let value = insula_partition::value::with_revision(&shown, entry.modified);
            warnings.extend(found);
            return Ok(Written { entry: Entry { value, ..entry }, created: false, warnings });
        }
        let change = match is_finished(&new) {
            true => Change::Delete,
            false => Change::Put(bytes.into()),
        };
        let write = Write {
            collection: call.served.collection.clone(),
            key: key.as_str().into(),
            expect: Expect::At(entry.modified),
            change,
            durability: call.served.durability(&namespace),
            by_move: None,
        };
        match store.write(write).await {
            Ok(committed) => {
                warnings.extend(found);
                admission::changed(server, call).await;
                let entry = server.show_entry(&call.served, committed.entry).await?;
                return Ok(Written { entry, created: false, warnings });
            }
            Err(StoreError::Conflict { found: Some(found), .. }) if retry => entry = found,
            Err(StoreError::Conflict { found: None, .. }) => return Err(call.not_found(&name)),
            Err(StoreError::Conflict { .. }) => return Err(call.modified(&name)),
            Err(error) => return Err(error.into()),
        }
    }
    Err(call.modified(&name))
}

/// Deletion had begun and nothing holds the object any longer.
pub(crate) fn is_finished(it: &Value) -> bool {
    let grace = object::metadata(it).get("deletionGracePeriodSeconds").and_then(Value::as_i64);
    let of_spec = it["kind"] == "Namespace"
        && it["spec"].get("finalizers").and_then(Value::as_array).is_some_and(|it| !it.is_empty());
    object::is_deleting(it)
        && grace.unwrap_or(0) == 0
        && object::finalizers(it).is_empty()
        && !of_spec
}

/// Patches the object of the path.
pub(crate) async fn patch(server: &Server, call: &Call, body: &[u8]) -> Result<Written> {
    let patch = Patch::parse(call, body)?;
    change(server, call, Vec::new(), |current| {
        let (value, warnings) = patch.apply(call, current)?;
        let wanted = object::meta_str(&value, "resourceVersion");
        if wanted != object::meta_str(current, "resourceVersion") && !wanted.is_empty() {
            return Err(call.modified(&call.path.name));
        }
        Ok(Changed { value, retry: !patch.has_revision(), warnings })
    })
    .await
}

/// A decoded patch.
#[derive(Debug)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON: &str = "application/json-patch+json";
/// Most operations of one JSON patch.
const OPERATIONS: usize = 10_000;

impl Patch {
    pub(crate) fn parse(call: &Call, body: &[u8]) -> Result<Self> {
        let json = || {
            decode::json(Schema::built_in(), None, body)
                .map(|it| it.value)
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))
        };
        match crate::request::media_type(&call.headers) {
            JSON => {
                let patch: json_patch::Patch =
                    serde_json::from_value(json()?).map_err(|error| {
                        ApiError::bad_request(format!("error decoding patch: {error}"))
                    })?;
                if OPERATIONS < patch.0.len() {
                    return Err(ApiError::too_large(OPERATIONS));
                }
                Ok(Self::Json(patch))
            }
            MERGE => Ok(Self::Merge(json()?)),
            // Nothing says how lists of custom resources merge.
            STRATEGIC if call.served.custom().is_some() && call.path.subresource != "scale" => {
                Err(ApiError::unsupported_media_type(&format!("{JSON}, {MERGE}")))
            }
            STRATEGIC => Ok(Self::Strategic(json()?)),
            _ => Err(ApiError::unsupported_media_type(&format!("{JSON}, {MERGE}, {STRATEGIC}"))),
        }
    }

    /// The patch asks for a certain revision.
    fn has_revision(&self) -> bool {
        match self {
            Self::Json(_) => false,
            Self::Merge(it) | Self::Strategic(it) => {
                !object::meta_str(it, "resourceVersion").is_empty()
            }
        }
    }

    /// What becomes of `current`, checked by its type; with warnings about unknown fields.
    pub(crate) fn apply(&self, call: &Call, current: &Value) -> Result<(Value, Vec<String>)> {
        let schema = Schema::built_in();
        let id = schema.by_kind(&insula_api::schema::Gvk::new(
            current["apiVersion"].as_str().and_then(|it| it.split_once('/')).map_or("", |it| it.0),
            current["apiVersion"].as_str().map_or("", |it| it.rsplit('/').next().unwrap_or(it)),
            current["kind"].as_str().unwrap_or_default(),
        ));
        let mut value = current.clone();
        match self {
            Self::Json(patch) => {
                json_patch::patch(&mut value, patch).map_err(|error| {
                    let mut failed = ApiError::bad_request(format!(
                        "the server rejected our request due to an error in our request: {error}"
                    ));
                    failed.code = http::StatusCode::UNPROCESSABLE_ENTITY;
                    failed.reason = "Invalid";
                    failed
                })?;
            }
            Self::Merge(patch) => json_patch::merge(&mut value, patch),
            Self::Strategic(patch) => {
                let shape = id.map_or(Shape::Any, Shape::Object);
                value = strategic::merge(schema, &shape, value, patch.clone())
                    .map_err(|error| ApiError::bad_request(error.to_string()))?;
            }
        }
        if !value.is_object() {
            return Err(ApiError::bad_request("the patch leaves no object"));
        }
        call.check(value)
    }
}
