//! Heartbeats that ride on a feed: leases are renewed as if each agent had written its own.
//!
//! The node lifecycle controller, and everybody else, sees leases as it always did. What is written
//! is the stored object with another time in it, so it costs no parsing.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use insula_api::names::TenantName;
use insula_partition::store::{Change, Expect, ReadAt, StoreError, Write};
use jiff::Timestamp;
use memchr::memmem;

use crate::{
    Server,
    error::{ApiError, Result},
    registry,
};

/// Where nodes have their leases.
pub(super) const NAMESPACE: &str = "kube-node-lease";
/// Writes of one heartbeat under way at once.
const AT_ONCE: usize = 256;

/// What has come of a heartbeat.
#[derive(Debug, Default)]
pub(super) struct Beaten {
    pub(super) renewed: usize,
    /// Nodes without a lease of their own: their agents have to make one.
    pub(super) missing: Vec<String>,
}

/// Renews the leases of `nodes`.
pub(super) async fn beat(server: Arc<Server>, nodes: Vec<String>) -> Beaten {
    let now = Timestamp::now();
    let renewals = nodes.into_iter().map(|node| {
        let server = server.clone();
        async move {
            let renewed = renew(&server, &node, now).await;
            (node, renewed)
        }
    });
    let mut renewals = stream::iter(renewals).buffer_unordered(AT_ONCE);
    let mut beaten = Beaten::default();
    while let Some((node, renewed)) = renewals.next().await {
        match renewed {
            Ok(true) => beaten.renewed += 1,
            Ok(false) => beaten.missing.push(node),
            // It comes again.
            Err(error) => tracing::debug!(node, %error, "a lease was not renewed"),
        }
    }
    beaten
}

/// Whether there is a lease of this node's own, which is renewed then.
async fn renew(server: &Server, node: &str, now: Timestamp) -> Result<bool> {
    let served = server.registry.any_version("coordination.k8s.io", "leases");
    let served = served.ok_or_else(ApiError::unknown_resource)?;
    let system = TenantName::system();
    let (_, store) = served.place(&server.partitions, &system, NAMESPACE, node);
    let key = registry::key(&system, NAMESPACE, node);
    let snapshot = store.read(&served.collection, ReadAt::Any).await?;
    let Some(entry) = snapshot.get(&key) else { return Ok(false) };
    let Some(renewed) = renewed(&entry.value.bytes(), node, now) else { return Ok(false) };
    let change = Change::Put(renewed);
    let write = Write::durable(served.collection.clone(), key, Expect::At(entry.modified), change);
    let write = Write { durability: served.durability(NAMESPACE), ..write };
    match store.write(write).await {
        // Somebody else was faster, who says the same.
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// A lease of `node` with another time; `None` if it is not its, or has none.
fn renewed(lease: &[u8], node: &str, now: Timestamp) -> Option<Bytes> {
    const TIME: &[u8] = b"\"renewTime\":\"";
    memmem::find(lease, format!("\"holderIdentity\":\"{node}\"").as_bytes())?;
    // Nothing after it can be of that name: the spec is the last there is, and its last field.
    let begin = memmem::rfind(lease, TIME)? + TIME.len();
    let end = begin + memchr::memchr(b'"', &lease[begin..])?;
    let now = format!("{now:.6}");
    let mut out = Vec::with_capacity(lease.len() + now.len());
    out.extend_from_slice(&lease[..begin]);
    out.extend_from_slice(now.as_bytes());
    out.extend_from_slice(&lease[end..]);
    Some(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_changes() {
        let lease = r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"resourceVersion":"7","name":"n1","labels":{"renewTime":"x"}},"spec":{"holderIdentity":"n1","leaseDurationSeconds":40,"renewTime":"2020-01-01T00:00:00.000000Z"}}"#;
        let now = Timestamp::from_microsecond(1_700_000_000_123_456).unwrap();
        let renewed = renewed(lease.as_bytes(), "n1", now).unwrap();
        let wanted = lease.replace("2020-01-01T00:00:00.000000Z", "2023-11-14T22:13:20.123456Z");
        assert_eq!(renewed, wanted);
        assert!(super::renewed(lease.as_bytes(), "n2", now).is_none(), "another's");
        let no_time = r#"{"metadata":{"name":"n1"},"spec":{"holderIdentity":"n1"}}"#;
        assert!(super::renewed(no_time.as_bytes(), "n1", now).is_none());
    }
}
