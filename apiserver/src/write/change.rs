//! How a stored object changes: from what it is now, again and again until nobody else was faster.

use std::borrow::Cow;

use insula_api::{
    object::{self, Stored},
    schema::Gvk,
    structural::versions::Wanted,
};
use insula_partition::{
    snapshot::Entry,
    store::{Change, Expect, ReadAt, Revision, Store, StoreError, Write},
};
use serde_json::Value;

use super::{Managers, RETRIES, Written};
use crate::{
    Server,
    admission::{self, Admission, Operation},
    call::Call,
    error::{ApiError, FieldError, Result},
    ownership::{self, Versions, Writer},
    read, services, strategy, subresources, validate,
};

/// What a change makes of the current object.
#[derive(Debug)]
pub(crate) struct Changed {
    value: Value,
    /// Whether the change may be made again from a newer object.
    retry: bool,
    managers: Managers,
    admitted: Admitted,
}

/// A change, or what has to be known to make it.
pub(crate) type Made = std::result::Result<Changed, Box<Wanted>>;

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
        Self { value, retry, managers: Managers::Compared, admitted: Admitted::Object }
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
}

/// Applies `make` to the current object until nobody else was faster.
pub(crate) async fn change(
    server: &Server,
    call: &Call,
    writer: &Writer,
    make: impl Fn(&Stored, &Versions) -> Result<Made>,
) -> Result<Written> {
    let resource = &call.served.resource;
    let tenant = call.tenant()?.clone();
    let (namespace, name) = (call.namespace(), call.path.name.clone());
    let key = call.key(&name)?;
    let (_, store) = call.served.place(&server.partitions, &tenant, &namespace, &name);
    let mut entry = read::get(&call.served, &*store, &key, &name, ReadAt::Latest).await?;
    for _ in 0..RETRIES {
        let mut current = Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        let kept = server.show_value(&call.served, &mut current.object).await?;
        let mut versions = Cow::Borrowed(writer.versions());
        let changed = loop {
            match make(&current, &versions)? {
                Ok(changed) => break changed,
                Err(wanted) => versions.to_mut().learn(server, *wanted).await?,
            }
        };
        let Changed { value: mut new, retry, managers, admitted } = changed;
        let Stored { object: old, managed: stored } = &current;
        let uid = object::uid(&new);
        if !uid.is_empty() && uid != object::uid(old) {
            if call.verb == "patch" {
                let shown = uid.into();
                let mut errors =
                    vec![FieldError::invalid("metadata.uid", &shown, "field is immutable")];
                // What else is wrong is told as well, of the object as it would be.
                let part = &*call.path.subresource;
                strategy::prepare_update(&call.served, part, old, &mut new);
                object::metadata_mut(&mut new).insert("uid".into(), shown);
                errors.extend(validate::update(&call.served, part, old, &new));
                let group = call.served.told_group();
                return Err(ApiError::invalid(group, &resource.kind, &name, &errors));
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
            Managers::Compared => writer.updated(server, old, &new, stored, sent.as_ref()).await?,
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
        strategy::count(&call.served, &call.path.subresource, old, &mut new);
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
        if let (Some(false), Some(admission)) = (is_written, &admission) {
            admission.undo().await;
        }
        let outcome = outcome?;
        if !matches!(outcome, Put::Newer(_)) && call.path.subresource != "status" {
            call.remarks.warn_all(strategy::warnings::of_object(&call.served, &new, Some(old)));
        }
        match outcome {
            Put::Unchanged => {
                let entry = server.show_entry(&call.served, entry).await?;
                return Ok(Written { entry, created: false });
            }
            Put::Written(entry) => return Ok(Written { entry, created: false }),
            Put::Newer(newer) if retry => entry = read::opened(newer)?,
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

/// An entry that nobody keeps.
fn as_written(it: &Value, managed: Option<&str>, modified: Revision) -> Entry {
    let bytes = object::encode_with(it, managed).into();
    Entry { value: insula_partition::value::with_revision(&bytes, modified).into(), modified }
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
        return Err(ApiError::invalid(call.served.told_group(), &resource.kind, name, &errors));
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
        let made = as_written(&to_keep, managed, entry.modified);
        return Ok(Put::Written(server.show_entry(&call.served, made).await?));
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
        within: server.within(call).await?,
        epoch: call.epoch.clone(),
    };
    match call.write(store, write).await {
        Ok(committed) => {
            if let Some(leaving) = leaving {
                leaving.end(server, call, Some(true)).await;
            }
            admission::written(server, call, new).await;
            // What is gone is shown as it would have been kept.
            let made = match is_finished(new) {
                true => as_written(&to_keep, managed, committed.entry.modified),
                false => committed.entry,
            };
            Ok(Put::Written(server.show_entry(&call.served, made).await?))
        }
        Err(StoreError::Conflict { found: Some(found), .. }) => Ok(Put::Newer(found)),
        Err(StoreError::Conflict { found: None, .. }) => Err(call.not_found(name)),
        Err(StoreError::Exceeded(excess)) => {
            let (group, resource) = (&resource.group, &resource.name);
            Err(ApiError::forbidden(group, resource, name, &excess.to_string()))
        }
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
