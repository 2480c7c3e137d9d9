//! How a new object comes into the store, under a name of its own if it asks for one.

use insula_api::{
    object::{self, Stored},
    time,
};
use insula_partition::{
    snapshot::Entry,
    store::{Change, Expect, ReadAt, Revision, StoreError, Write},
};
use rand::Rng as _;
use serde_json::Value;

use super::{Managers, RETRIES, Written, check_head};
use crate::{
    Server,
    admission::{self, Admission},
    call::Call,
    error::{ApiError, Result},
    ownership::Writer,
    services, strategy, validate,
};

/// Creates `it`, a decoded object of the call's kind.
pub(super) async fn create_value(
    server: &Server,
    call: &Call,
    writer: &Writer,
    mut it: Value,
    managers: Managers,
) -> Result<Written> {
    let resource = &call.served.resource;
    let namespace = call.namespace();
    if resource.is_namespaced() && namespace.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    check_head(call, &mut it)?;
    if !object::meta_str(&it, "resourceVersion").is_empty() {
        let name = object::name(&it);
        if !name.is_empty() && found(server, call, name).await?.is_some() {
            return Err(ApiError::already_exists(&resource.group, &resource.name, name));
        }
        // Upstream's store says it, and so it is nobody's mistake.
        return Err(ApiError::unexplained(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let generate = object::meta_str(&it, "generateName").to_owned();
    let generated = object::name(&it).is_empty() && !generate.is_empty();
    let sent;
    {
        let metadata = object::metadata_mut(&mut it);
        sent = metadata.remove("managedFields");
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "uid"] {
            metadata.remove(field);
        }
        if strategy::counts_changes(&call.served) {
            metadata.remove("generation");
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
        if is_written == Some(false) {
            admission.undo().await;
        }
        match outcome? {
            Some(entry) => {
                call.remarks.warn_all(strategy::warnings::of_object(&call.served, &it, None));
                return Ok(Written { entry, created: true });
            }
            None if generated && attempt + 1 < RETRIES => (),
            None => {
                let name = object::name(&it);
                let mut error = ApiError::already_exists(&resource.group, &resource.name, name);
                if !generate.is_empty() {
                    let why = ", the server was not able to generate a unique name for the object";
                    error.message.push_str(why);
                    error.retry_after = Some(1);
                }
                if found(server, call, name).await?.is_some_and(|it| object::is_deleting(&it)) {
                    error.message = format!("object is being deleted: {}", error.message);
                }
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
        return Err(ApiError::invalid(call.served.told_group(), &resource.kind, name, &errors));
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
        let mut made = server.keep(&call.served, it).await?.into_owned();
        server.show_value(&call.served, &mut made).await?;
        let managed = managed.unwrap_or_default().to_owned();
        let mut whole = Stored { object: made, managed }.whole().map_err(ApiError::internal)?;
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
        within: server.within(call).await?,
        epoch: call.epoch.clone(),
    };
    match call.write(&*store, write).await {
        Ok(committed) => {
            admission::created(server, call, it).await?;
            Ok(Some(server.show_entry(&call.served, committed.entry).await?))
        }
        Err(StoreError::Conflict { .. }) => Ok(None),
        Err(StoreError::Exceeded(excess)) => {
            Err(admission.forbidden(Some(it), &excess.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The object that has this name.
async fn found(server: &Server, call: &Call, name: &str) -> Result<Option<Value>> {
    let (_, store) = call.served.place(&server.partitions, call.tenant()?, &call.namespace(), name);
    let current = store.read(&call.served.collection, ReadAt::Latest).await?;
    let Some(found) = current.get(&call.key(name)?) else { return Ok(None) };
    object::parse(&found.value.bytes()).map(Some).map_err(ApiError::internal)
}

/// Five characters that make no words, behind at most 58 of the base.
fn generated_name(base: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    let mut name: String = base.chars().take(58).collect();
    name.extend((0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])));
    name
}
