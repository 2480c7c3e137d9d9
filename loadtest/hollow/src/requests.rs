//! What a node asks of the server about itself: its object, its status, its lease.

use insula_client::{Client, Error, Patch};
use insula_nodeagent::hollow::{self, LEASE_NAMESPACE, node_status};
use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use serde_json::json;

use crate::{Shared, options::node_address};

/// What is known of a node that the server has.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) uid: Box<str>,
}

/// Makes a node, or finds the one there is.
pub(crate) async fn register(
    shared: &Shared,
    client: &Client,
    number: u32,
) -> Result<Registered, Error> {
    let nodes = client.system().api::<Node>();
    let name = shared.name(number);
    let (labels, capacity) = (shared.labels(number), &shared.options.capacity);
    let now = Timestamp::now();
    let node = hollow::node(&name, node_address(number), &labels, capacity, now);
    let node = match nodes.create(&node).await {
        Err(error) if error.is_already_exists() => {
            // From an earlier run: it lives again.
            let status = json!({"status": node.status});
            nodes.patch_status(&name, &Patch::Strategic(status)).await?
        }
        other => other?,
    };
    Ok(Registered { uid: node.uid().into() })
}

/// Tells that a node is well.
pub(crate) async fn tell(shared: &Shared, client: &Client, number: u32) -> Result<(), Error> {
    let name = shared.name(number);
    let capacity = &shared.options.capacity;
    let status = node_status(&name, node_address(number), capacity, Timestamp::now());
    let mut conditions = json!(status.conditions);
    // Since when they are so has not changed.
    for condition in conditions.as_array_mut().into_iter().flatten() {
        condition.as_object_mut().map(|it| it.remove("lastTransitionTime"));
    }
    let patch = Patch::Strategic(json!({"status": {"conditions": conditions}}));
    client.system().api::<Node>().patch_status(&name, &patch).await.map(drop)
}

/// Renews the lease of a node whose last version is known, or finds or makes it.
pub(crate) async fn renew(
    shared: &Shared,
    client: &Client,
    number: u32,
    uid: &str,
    version: &str,
) -> Result<Lease, Error> {
    let leases = client.system().namespaced::<Lease>(LEASE_NAMESPACE);
    let name = shared.name(number);
    let mut lease = hollow::lease(&name, uid, Timestamp::now());
    let mut version = version.to_owned();
    if version.is_empty() {
        match leases.get_opt(&name).await? {
            None => return leases.create(&lease).await.map(|it| it.object),
            Some(found) => version = found.resource_version().to_owned(),
        }
    }
    lease.metadata.resource_version = Some(version);
    leases.update(&lease).await.map(|it| it.object)
}
