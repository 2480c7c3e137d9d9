//! Writing: create, update and patch, through one pipeline for every resource.
//!
//! decode -> check the head -> shape (strategy) -> admit -> validate -> store. An update that
//! changes nothing writes nothing.

use insula_api::{
    object::{self, Stored},
    schema::Gvk,
    time,
};
use insula_partition::{
    snapshot::Entry,
    store::{Change, Expect, ReadAt, Revision, Store, StoreError, Write},
};
use rand::Rng as _;
use serde_json::{Value, json};

use crate::{
    Server,
    admission::{self, Admission, Operation},
    call::Call,
    error::{ApiError, FieldError, Result},
    ownership::{self, Writer},
    patch::{self, Configuration, Patch},
    read, services, strategy, subresources, validate,
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
    create_value(server, call, &Writer::new(call)?, value, Managers::Compared, warnings).await
}

/// Who manages the result of a write.
#[derive(Debug, Clone)]
pub(crate) enum Managers {
    /// Whoever wrote manages what it changed.
    Compared,
    /// The JSON of `metadata.managedFields`.
    Given(Option<String>),
}

/// Creates `it`, a decoded object of the call's kind.
async fn create_value(
    server: &Server,
    call: &Call,
    writer: &Writer,
    mut it: Value,
    managers: Managers,
    warnings: Vec<String>,
) -> Result<Written> {
    let resource = &call.served.resource;
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
    let sent;
    {
        let metadata = object::metadata_mut(&mut it);
        sent = metadata.remove("managedFields");
        for field in
            ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation", "uid"]
        {
            metadata.remove(field);
        }
        metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp".into(), time::now().into());
    }
    for attempt in 0..RETRIES {
        // Only a name that was made here is ever tried again.
        let mut it = if generated { it.clone() } else { it.take() };
        if generated {
            object::metadata_mut(&mut it).insert("name".into(), generated_name(&generate).into());
        }
        strategy::begin_create(&call.served, &mut it);
        let managed = match &managers {
            Managers::Compared => writer.created(&it, sent.as_ref()),
            Managers::Given(managed) => managed.clone(),
        };
        let admission = Admission::write(server, call, None)?;
        admission.mutate(&mut it).await?;
        strategy::prepare_create(&call.served, &call.identity, &mut it);
        let claims = services::begin(server, call, None, &mut it).await?;
        let outcome = put_new(&admission, &it, managed.as_deref()).await;
        let is_written = match &outcome {
            Ok(stored) => Some(stored.is_some()),
            Err(error) => services::is_written(error),
        };
        claims.end(server, call, is_written).await;
        match outcome? {
            Some(entry) => {
                let told = strategy::warnings::of_object(resource, &it, true);
                let warnings = warnings.into_iter().chain(told).collect();
                return Ok(Written { entry, created: true, warnings });
            }
            None if generated && attempt + 1 < RETRIES => (),
            None => {
                let name = object::name(&it);
                let mut error = ApiError::already_exists(&resource.group, &resource.name, name);
                error.retry_after = generated.then_some(1);
                return Err(error);
            }
        }
    }
    Err(ApiError::internal("no free name was found"))
}

/// Checks and stores a new object; `None` if its name is taken.
async fn put_new(
    admission: &Admission<'_>,
    it: &Value,
    managed: Option<&str>,
) -> Result<Option<Entry>> {
    let Admission { server, call, .. } = *admission;
    let resource = &call.served.resource;
    let (tenant, namespace, name) = (call.tenant()?, call.namespace(), object::name(it));
    let errors = validate::create(&call.served, it);
    if !errors.is_empty() {
        return Err(ApiError::invalid(&resource.group, &resource.kind, name, &errors));
    }
    admission.validate(Some(it)).await?;
    let key = crate::registry::key(tenant, &namespace, name);
    let (_, store) = call.served.place(&server.partitions, tenant, &namespace, name);
    if call.query.dry_run()? {
        let snapshot = store.read(&call.served.collection, ReadAt::Latest).await?;
        if snapshot.get(&key).is_some() {
            return Ok(None);
        }
        // What was never written has no revision.
        let managed = managed.unwrap_or_default().to_owned();
        let mut whole =
            Stored { object: it.clone(), managed }.whole().map_err(ApiError::internal)?;
        object::metadata_mut(&mut whole).remove("resourceVersion");
        let value = whole.to_string().into();
        return Ok(Some(Entry { value, modified: Revision(0) }));
    }
    let kept = server.keep(&call.served, it).await?;
    let write = Write {
        collection: call.served.collection.clone(),
        key: key.into(),
        expect: Expect::Absent,
        change: Change::Put(object::encode_with(&kept, managed).into()),
        durability: call.served.durability(&namespace),
        by_move: None,
    };
    match store.write(write).await {
        Ok(committed) => {
            admission::created(server, call, it).await?;
            Ok(Some(server.show_entry(&call.served, committed.entry).await?))
        }
        Err(StoreError::Conflict { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
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
    let writer = Writer::new(call)?;
    check_head(call, &mut value)?;
    let wanted = object::meta_str(&value, "resourceVersion").to_owned();
    let conditional = !wanted.is_empty() && wanted != "0";
    let resource = &call.served.resource;
    if call.path.subresource.is_empty() {
        let unguarded = !conditional && strategy::needs_revision(&call.served);
        let may_create = strategy::facts(resource).put_creates;
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
            return create_value(server, call, &writer, value, managers, warnings).await;
        }
    }
    change(server, call, &writer, warnings, |current| {
        let is = object::meta_str(&current.object, "resourceVersion");
        if conditional && is != wanted {
            return Err(call.modified(&call.path.name));
        }
        Ok(Changed::new(value.clone(), !conditional))
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
    value: Value,
    /// Whether the change may be made again from a newer object.
    retry: bool,
    managers: Managers,
    warnings: Vec<String>,
    admitted: Admitted,
}

/// As what a change is admitted.
#[derive(Debug)]
enum Admitted {
    /// As the object itself.
    Object,
    /// As the object's scale, which it was and becomes.
    Scale { old: Value, new: Value },
    /// It was already, as what was sent.
    Before,
}

impl Changed {
    pub(crate) fn new(value: Value, retry: bool) -> Self {
        Self {
            value,
            retry,
            managers: Managers::Compared,
            warnings: Vec::new(),
            admitted: Admitted::Object,
        }
    }

    /// The change is one of the object's scale.
    pub(crate) fn of_scale(mut self, old: Value, new: Value) -> Self {
        self.admitted = Admitted::Scale { old, new };
        self
    }

    /// What was sent has been admitted.
    pub(crate) fn admitted(mut self) -> Self {
        self.admitted = Admitted::Before;
        self
    }

    pub(crate) fn managed_by(mut self, managed: Option<String>) -> Self {
        self.managers = Managers::Given(managed);
        self
    }

    fn warn(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }
}

/// Applies `make` to the current object until nobody else was faster.
pub(crate) async fn change(
    server: &Server,
    call: &Call,
    writer: &Writer,
    mut warnings: Vec<String>,
    make: impl Fn(&Stored) -> Result<Changed>,
) -> Result<Written> {
    let resource = &call.served.resource;
    let tenant = call.tenant()?.clone();
    let (namespace, name) = (call.namespace(), call.path.name.clone());
    let key = call.key(&name)?;
    let (_, store) = call.served.place(&server.partitions, &tenant, &namespace, &name);
    let mut entry = read::get(&call.served, &*store, &key, &name, ReadAt::Latest).await?;
    for _ in 0..RETRIES {
        let mut current = Stored::parse(&entry.value).map_err(ApiError::internal)?;
        let kept = server.show_value(&call.served, &mut current.object).await?;
        let Changed { value: mut new, retry, managers, warnings: found, admitted } =
            make(&current)?;
        let Stored { object: old, managed: stored } = &current;
        let uid = object::uid(&new);
        if !uid.is_empty() && uid != object::uid(old) {
            if call.verb == "patch" {
                let error = FieldError::invalid("metadata.uid", &uid.into(), "field is immutable");
                return Err(ApiError::invalid(&resource.group, &resource.kind, &name, &[error]));
            }
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object::uid(old)
            );
            return Err(ApiError::conflict(&resource.group, &resource.name, &name, &why));
        }
        let sent = object::metadata_mut(&mut new).remove("managedFields");
        strategy::prepare_update(&call.served, &call.path.subresource, old, &mut new);
        let managed = match managers {
            Managers::Compared => writer.updated(old, &new, stored, sent.as_ref()),
            Managers::Given(managed) => managed,
        };
        let (scale_before, mut scale, is_admitted) = match admitted {
            Admitted::Object => (None, None, false),
            Admitted::Scale { old, new } => (Some(old), Some(new), false),
            Admitted::Before => (None, None, true),
        };
        let admission = match &scale_before {
            _ if is_admitted => None,
            None => Some(Admission::write(server, call, Some(old))?),
            Some(before) => {
                let kind = Gvk::new("autoscaling", "v1", "Scale");
                let operation = Operation::Update;
                Some(Admission::new(server, call, operation, kind, Some(before))?.on("scale"))
            }
        };
        if let Some(admission) = &admission {
            match &mut scale {
                None => admission.mutate(&mut new).await?,
                Some(scale) => {
                    admission.mutate(scale).await?;
                    if admission.has_changed() {
                        subresources::set_replicas_of(&call.served, &mut new, scale);
                    }
                }
            }
            if admission.has_changed() {
                strategy::prepare_update(&call.served, &call.path.subresource, old, &mut new);
            }
        }
        let claims = services::begin(server, call, Some(old), &mut new).await?;
        let change = Update {
            old,
            kept: kept.as_ref().unwrap_or(old),
            stored,
            new: &new,
            managed: managed.as_deref(),
            entry: &entry,
            admission: admission.as_ref(),
            admitted: scale.as_ref().unwrap_or(&new),
        };
        let outcome = put_changed(server, call, &*store, change).await;
        let is_written = match &outcome {
            Ok(put) => Some(matches!(put, Put::Written(_))),
            Err(error) => services::is_written(error),
        };
        claims.end(server, call, is_written).await;
        let told = || strategy::warnings::of_object(resource, &new, false);
        match outcome? {
            Put::Unchanged => {
                warnings.extend(found.into_iter().chain(told()));
                let entry = server.show_entry(&call.served, entry).await?;
                return Ok(Written { entry, created: false, warnings });
            }
            Put::Written(entry) => {
                warnings.extend(found.into_iter().chain(told()));
                return Ok(Written { entry, created: false, warnings });
            }
            Put::Newer(newer) if retry => entry = newer,
            Put::Newer(_) => return Err(call.modified(&name)),
        }
    }
    Err(call.modified(&name))
}

/// A change of an object that is about to be stored.
struct Update<'a> {
    /// As it is shown, and as it is kept.
    old: &'a Value,
    kept: &'a Value,
    /// The managers that it has.
    stored: &'a str,
    new: &'a Value,
    managed: Option<&'a str>,
    entry: &'a Entry,
    /// How the change is admitted, unless it was already, and what of it.
    admission: Option<&'a Admission<'a>>,
    admitted: &'a Value,
}

/// What became of a change.
enum Put {
    Unchanged,
    Written(Entry),
    /// Somebody else was faster.
    Newer(Entry),
}

/// Checks and stores a change.
async fn put_changed(
    server: &Server,
    call: &Call,
    store: &dyn Store,
    change: Update<'_>,
) -> Result<Put> {
    let Update { old, kept, stored, new, managed, entry, admission, admitted } = change;
    let resource = &call.served.resource;
    let name = &call.path.name;
    let errors = validate::update(&call.served, &call.path.subresource, old, new);
    if !errors.is_empty() {
        return Err(ApiError::invalid(&resource.group, &resource.kind, name, &errors));
    }
    if let Some(admission) = admission {
        admission.validate(Some(admitted)).await?;
    }
    let to_keep = server.keep(&call.served, new).await?;
    let is_same = object::is_same(&to_keep, kept)
        && ownership::is_same_but_for_times(managed.unwrap_or_default(), stored);
    if is_same {
        return Ok(Put::Unchanged);
    }
    if call.query.dry_run()? {
        let bytes = object::encode_with(new, managed).into();
        let value = insula_partition::value::with_revision(&bytes, entry.modified);
        return Ok(Put::Written(Entry { value, modified: entry.modified }));
    }
    let leaving = match is_finished(new) {
        true => Some(services::leaving(server, call, new).await?),
        false => None,
    };
    let change = match leaving.is_some() {
        true => Change::Delete,
        false => Change::Put(object::encode_with(&to_keep, managed).into()),
    };
    let write = Write {
        collection: call.served.collection.clone(),
        key: call.key(name)?.into(),
        expect: Expect::At(entry.modified),
        change,
        durability: call.served.durability(&call.namespace()),
        by_move: None,
    };
    match store.write(write).await {
        Ok(committed) => {
            if let Some(leaving) = leaving {
                leaving.end(server, call, Some(true)).await;
            }
            admission::written(server, call, new).await;
            Ok(Put::Written(server.show_entry(&call.served, committed.entry).await?))
        }
        Err(StoreError::Conflict { found: Some(found), .. }) => Ok(Put::Newer(found)),
        Err(StoreError::Conflict { found: None, .. }) => Err(call.not_found(name)),
        Err(error) => Err(error.into()),
    }
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
    if patch::is_apply(call) {
        return apply(server, call, body).await;
    }
    let patch = Patch::parse(call, body)?;
    let writer = Writer::new(call)?;
    change(server, call, &writer, Vec::new(), |current| {
        let (value, warnings) = patch.apply(call, current)?;
        let wanted = object::meta_str(&value, "resourceVersion");
        if wanted != object::meta_str(&current.object, "resourceVersion") && !wanted.is_empty() {
            return Err(call.modified(&call.path.name));
        }
        Ok(Changed::new(value, !patch.has_revision()).warn(warnings))
    })
    .await
}

/// Applies the body to the object of the path, or creates it.
async fn apply(server: &Server, call: &Call, body: &[u8]) -> Result<Written> {
    let kind = call.served.resource.gvk();
    let configuration = Configuration::parse(call, &kind, body)?;
    let writer = Writer::new(call)?;
    let config = &configuration.value;
    check_head(call, &mut json!({ "metadata": object::metadata(config) }))?;
    for _ in 0..RETRIES {
        let changed = change(server, call, &writer, configuration.warnings.clone(), |current| {
            let applied = writer.applied(current, config, configuration.force)?;
            let wanted = object::meta_str(config, "resourceVersion");
            let is = object::meta_str(&current.object, "resourceVersion");
            if configuration.has_revision() && wanted != is {
                return Err(call.modified(&call.path.name));
            }
            let changed = Changed::new(applied.value, !configuration.has_revision());
            Ok(changed.managed_by(applied.managed))
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
        let applied = writer.applied(&ownership::nothing(&kind), config, configuration.force)?;
        let mut value = applied.value;
        check_head(call, &mut value)?;
        let managers = Managers::Given(applied.managed);
        let warnings = configuration.warnings.clone();
        match create_value(server, call, &writer, value, managers, warnings).await {
            // Somebody else was faster; it is there to be changed now.
            Err(error) if error.reason == "AlreadyExists" => (),
            result => return result,
        }
    }
    Err(call.modified(&call.path.name))
}
