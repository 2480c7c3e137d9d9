//! Keeps an `APIService` for each group version that a tenant's definitions make.
//!
//! They are made and removed by whichever server looks after the tenant's definitions, as upstream
//! does: an object of the same name that somebody else made is left alone.

use std::collections::BTreeSet;

use insula_api::{
    names::TenantName,
    object::{self, Stored},
    time,
};
use insula_partition::store::{Change, Collection, Expect, ReadAt, Store, StoreError, Write};
use serde_json::{Value, json};

use super::{AUTOMANAGED, local, name_of};
use crate::{
    Server, bootstrap,
    error::{ApiError, Result},
    scoped::Scoped,
};

/// Brings the objects of `tenant` in line with its definitions.
pub(crate) async fn register(server: &Server, tenant: &TenantName) -> Result<()> {
    let customs = server.customs.of(server, tenant).await?;
    let all = customs.all().map(|it| &it.resource);
    let mut wanted: BTreeSet<(String, String)> =
        all.map(|it| (it.group.clone(), it.version.clone())).collect();
    let (collection, store) = super::kept(server, tenant)?;
    let snapshot = store.read(&collection, ReadAt::Latest).await?;
    let prefix = crate::registry::key(tenant, "", "");
    let place = Place { collection, store, prefix: &prefix };
    for (key, entry) in snapshot.range(&prefix, None) {
        let Stored { object: it, managed } =
            Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        let of_spec = |field: &str| object::text(&it, &["spec", field]).to_owned();
        let (group, version) = (of_spec("group"), of_spec("version"));
        let is_wanted = wanted.remove(&(group.clone(), version.clone()));
        let labels = object::metadata(&it).get("labels");
        let managed_label = labels.and_then(|it| it.get(AUTOMANAGED)).and_then(Value::as_str);
        if managed_label != Some("true") {
            continue;
        }
        let (name, at) = (&key[prefix.len()..], Expect::At(entry.modified));
        if !is_wanted {
            place.write(name, at, Change::Delete).await?;
            continue;
        }
        let plain = object_of(tenant, &group, &version);
        if plain["spec"] != it["spec"] {
            let mut new = it.clone();
            new["spec"] = plain["spec"].clone();
            let managed = Some(managed.as_str()).filter(|it| !it.is_empty());
            place.write(name, at, Change::Put(object::encode_with(&new, managed).into())).await?;
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let lives = bootstrap::find_tenant(server, tenant).await?;
    if lives.is_none_or(|it| object::is_deleting(&it)) {
        return Ok(());
    }
    for (group, version) in wanted {
        let new = object_of(tenant, &group, &version);
        let change = Change::Put(object::encode(&new).into());
        place.write(&name_of(&group, &version), Expect::Absent, change).await?;
    }
    Ok(())
}

/// Where the objects of a tenant are.
struct Place<'a> {
    collection: Collection,
    store: Scoped,
    prefix: &'a str,
}

impl Place<'_> {
    async fn write(&self, name: &str, expect: Expect, change: Change) -> Result<()> {
        let write = Write::durable(
            self.collection.clone(),
            format!("{}{name}", self.prefix),
            expect,
            change,
        );
        match self.store.write(write).await {
            // Somebody else was faster, and its change is looked at in its turn.
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The object of a group version that definitions make.
fn object_of(tenant: &TenantName, group: &str, version: &str) -> Value {
    let now = time::now();
    let metadata = json!({
        "name": name_of(group, version), "tenant": tenant.as_str(),
        "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": now,
        "labels": {AUTOMANAGED: "true"},
    });
    local::local(metadata, group, version, local::CUSTOM, &now)
}
