//! The end of a definition: first all objects go, then it does.

use insula_api::{
    names::TenantName,
    object::{self, Stored},
    time,
};
use insula_partition::store::{
    Change, Collection, Expect, ReadAt, Revision, Store, StoreError, Write,
};
use serde_json::{Value, json};

use crate::{
    Server,
    custom::{definitions, settle, shared},
    error::{ApiError, Result},
    registry::Served,
};

/// Keeps a definition until its objects are gone.
pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Marks a definition whose deletion begins.
pub(crate) fn begin(it: &mut Value) {
    let mut status = it.get("status").cloned().unwrap_or_else(|| json!({}));
    let message =
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    settle::set_condition(&mut status, "Terminating", "True", "InstanceDeletionPending", message);
    it["status"] = status;
}

/// Goes on with all definitions of `tenant` that are being deleted. False if one is not gone yet.
pub(super) async fn clean(server: &Server, tenant: &TenantName) -> Result<bool> {
    let served = definitions(server)?;
    let store = served.own(&server.partitions, tenant);
    let prefix = format!("{tenant}//");
    let snapshot = store.read(&served.collection, ReadAt::Latest).await?;
    let mut done = true;
    for (key, entry) in snapshot.range(&prefix, None) {
        let stored = Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        let it = &stored.object;
        if object::is_deleting(it) && object::finalizers(it).contains(&FINALIZER) {
            let place = (&**key, entry.modified);
            done &= clean_one(server, served, &*store, tenant, place, &stored).await?;
        }
    }
    Ok(done)
}

/// True if the definition is gone, or waits for others than us.
async fn clean_one(
    server: &Server,
    served: &Served,
    store: &dyn Store,
    tenant: &TenantName,
    place: (&str, Revision),
    stored: &Stored,
) -> Result<bool> {
    let mut it = stored.object.clone();
    let group = object::text(&it, &["spec", "group"]);
    let plural = object::text(&it, &["spec", "names", "plural"]);
    let collection = Collection::new(group, plural);
    let mut left = remove(store, &collection, tenant).await?;
    if tenant.is_system() && shared::is_meant_for_all(&it) {
        left += shared::remove(server, object::name(&it), &collection).await?;
    }
    let (value, reason, message) = match left {
        0 if insula_custom::check::is_established(&it) => {
            ("False", "InstanceDeletionCompleted", "removed all instances")
        }
        0 => ("False", "NeverEstablished", "resource was never established"),
        _ => ("True", "InstanceDeletionInProgress", "CustomResource deletion is in progress"),
    };
    let mut status = it["status"].take();
    settle::set_condition(&mut status, "Terminating", value, reason, message);
    it["status"] = status;
    if left == 0 {
        let kept: Vec<Value> = object::finalizers(&it)
            .into_iter()
            .filter(|it| *it != FINALIZER)
            .map(Value::from)
            .collect();
        let metadata = object::metadata_mut(&mut it);
        match kept.is_empty() {
            true => metadata.remove("finalizers"),
            false => metadata.insert("finalizers".into(), kept.into()),
        };
    }
    let written =
        it == stored.object || settle::write(server, served, store, place, stored, &it).await?;
    Ok(written && left == 0)
}

/// Deletes all objects of a tenant in `collection`, or has their deletion begin. Returns how many
/// are left: those that finalizers hold, or that somebody else changed meanwhile.
pub(super) async fn remove(
    store: &dyn Store,
    collection: &Collection,
    tenant: &TenantName,
) -> Result<usize> {
    let snapshot = store.read(collection, ReadAt::Latest).await?;
    let prefix = format!("{tenant}/");
    let mut left = 0;
    for (key, entry) in snapshot.range(&prefix, None) {
        let mut it: Value =
            serde_json::from_slice(&entry.value.bytes()).map_err(ApiError::internal)?;
        let is_held = !object::finalizers(&it).is_empty();
        left += usize::from(is_held);
        if is_held && object::is_deleting(&it) {
            continue;
        }
        let change = match is_held {
            false => Change::Delete,
            true => {
                let metadata = object::metadata_mut(&mut it);
                metadata.insert("deletionTimestamp".into(), time::now().into());
                metadata.insert("deletionGracePeriodSeconds".into(), 0.into());
                Change::Put(object::encode(&it).into())
            }
        };
        let write =
            Write::durable(collection.clone(), key.clone(), Expect::At(entry.modified), change);
        match store.write(write).await {
            Ok(_) | Err(StoreError::Conflict { found: None, .. }) => (),
            Err(StoreError::Conflict { .. }) => left += usize::from(!is_held),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(left)
}
