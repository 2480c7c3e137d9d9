//! The end of a tenant: nothing that it had is left in any store, and its name means nothing.
//!
//! Controllers delete what a tenant has, with all that hangs on it; this is what goes beside and
//! after them: objects of kinds that are no longer served, what was written late, the place that
//! the partition map keeps for it. It runs before the last finalizer goes, so a server that dies
//! half-way leaves a tenant that still is ending, and once more when the tenant is gone.

use insula_api::{kinds::TENANT_FINALIZER, names::TenantName, object};
use insula_partition::{
    moves::MoveError,
    store::{Change, Expect, ReadAt, Store, StoreError, Write},
};
use serde_json::Value;

use crate::{
    Server,
    error::{ApiError, Result},
    registry,
};

/// Keys that go in one step of their partition, of all kinds together: an idle tenant's all do, and
/// the disk is waited for once.
const AT_ONCE: usize = 512;

/// Whether a change of a Tenant lets it go.
pub(crate) fn lets_go(new: &Value, old: &Value) -> bool {
    let is_held = |it: &Value| object::finalizers(it).contains(&TENANT_FINALIZER);
    object::is_deleting(old) && is_held(old) && !is_held(new)
}

/// Removes all that is left of a tenant. Safe to repeat.
pub(crate) async fn end(server: &Server, tenant: &TenantName) -> Result<()> {
    sweep(server, tenant).await?;
    if server.partitions.map().pins().contains_key(tenant.as_str()) {
        // Moved, though it is empty: servers that do not know yet write where it was until then.
        match server.partitions.pin(tenant.as_str(), None).await {
            Ok(()) => (),
            Err(MoveError::Store(error)) => return Err(error.into()),
            Err(error) => return Err(ApiError::unavailable(format!("cannot unpin: {error}"))),
        }
        sweep(server, tenant).await?;
    }
    Ok(())
}

/// Deletes what is still there of these keys, and says how much that was.
async fn write(store: &dyn Store, writes: Vec<Write>) -> Result<usize> {
    if writes.is_empty() {
        return Ok(0);
    }
    let mut count = 0;
    for done in store.write_all(writes).await {
        match done {
            Ok(_) => count += 1,
            // Somebody else was faster.
            Err(StoreError::Conflict { .. }) => (),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}

/// Deletes every key of a tenant where it lives.
pub(crate) async fn sweep(server: &Server, tenant: &TenantName) -> Result<()> {
    if tenant.is_system() {
        return Ok(());
    }
    let store = server.partitions.place(&registry::shard_of_tenant(tenant)).store;
    let prefix = format!("{tenant}/");
    let mut writes = Vec::new();
    let mut count = 0;
    for collection in store.collections().await? {
        let snapshot = store.read(&collection, ReadAt::Latest).await?;
        for (key, _) in snapshot.range(&prefix, None) {
            let (collection, key) = (collection.clone(), key.clone());
            writes.push(Write::durable(collection, key, Expect::Present, Change::Delete));
            if writes.len() == AT_ONCE {
                count += write(&*store, std::mem::take(&mut writes)).await?;
            }
        }
    }
    count += write(&*store, writes).await?;
    if count != 0 {
        tracing::info!(%tenant, count, "removed what was left of a tenant");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use insula_partition::store::Collection;

    use super::*;

    #[tokio::test]
    async fn all_kinds_go_and_other_tenants_stay() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::alone(dir.path()).await.unwrap();
        let acme = TenantName::parse("acme").unwrap();
        let store = server.partitions.place(&registry::shard_of_tenant(&acme)).store;
        let kinds = ["pods", "configmaps", "gone"].map(|it| Collection::new("example.com", it));
        let put = |kind: &Collection, key: String| {
            let change = Change::Put(r#"{"metadata":{}}"#.to_owned().into());
            Write::durable(kind.clone(), key, Expect::Absent, change)
        };
        let keys = |n: usize| ["acme", "acme-2", "a"].map(|it| format!("{it}/default/x{n}"));
        for (kind, most) in kinds.iter().zip([AT_ONCE + 10, 3, 1]) {
            let writes = (0..most).flat_map(keys).map(|key| put(kind, key)).collect();
            for done in store.write_all(writes).await {
                done.unwrap();
            }
        }
        sweep(&server, &acme).await.unwrap();
        sweep(&server, &acme).await.unwrap();
        for (kind, most) in kinds.iter().zip([AT_ONCE + 10, 3, 1]) {
            let left = store.read(kind, ReadAt::Latest).await.unwrap();
            assert_eq!(left.range("acme/", None).count(), 0, "{kind:?}");
            assert_eq!(left.range("", None).count(), 2 * most, "{kind:?}");
        }
    }
}
