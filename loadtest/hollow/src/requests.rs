//! What a node asks of the server about itself: its object, its status, its lease.

use insula_client::{Client, Error, Patch};
use insula_nodeagent::hollow::{self, LEASE_NAMESPACE, is_same_status, node_status};
use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use serde_json::json;

use crate::{
    Shared,
    options::{Mode, node_address},
};

/// What is known of a node that the server has.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) uid: Box<str>,
    pub(crate) is_new: bool,
}

/// Finds a node, and writes what it says that is not so, or makes it.
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
    let Some(found) = nodes.get_opt(&name).await? else {
        let made = nodes.create(&node).await?;
        return Ok(Registered { uid: made.uid().into(), is_new: true });
    };
    // Nodes that come back are told from new ones by a read: a storm of them writes nothing.
    if !is_well(shared, number, &found) {
        let status = json!({"status": node.status});
        nodes.patch_status(&name, &Patch::Strategic(status)).await?;
    }
    Ok(Registered { uid: found.uid().into(), is_new: false })
}

/// Whether a node that the server has says what is so.
pub(crate) fn is_well(shared: &Shared, number: u32, found: &Node) -> bool {
    let capacity = &shared.options.capacity;
    let now = Timestamp::now();
    let status = node_status(&shared.name(number), node_address(number), capacity, now);
    found.status.as_ref().is_some_and(|found| is_same_status(found, &status))
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

/// Renews the lease of a node whose last version is known, or finds or makes it. Returns its
/// version.
pub(crate) async fn renew(
    shared: &Shared,
    client: &Client,
    number: u32,
    uid: &str,
    version: &str,
) -> Result<Box<str>, Error> {
    let leases = client.system().namespaced::<Lease>(LEASE_NAMESPACE);
    let name = shared.name(number);
    let mut lease = hollow::lease(&name, uid, Timestamp::now());
    let mut version = version.to_owned();
    let version_of =
        |lease: &Lease| lease.metadata.resource_version.as_deref().unwrap_or_default().into();
    if version.is_empty() {
        // Who rides on the feed asks for a lease where there is none.
        if shared.options.mode == Mode::Feed {
            match leases.create(&lease).await {
                Err(error) if error.is_already_exists() => {}
                made => return made.map(|it| version_of(&it)),
            }
        }
        match leases.get_opt(&name).await? {
            None => return leases.create(&lease).await.map(|it| version_of(&it)),
            Some(found) => version = found.resource_version().to_owned(),
        }
    }
    lease.metadata.resource_version = Some(version);
    leases.update(&lease).await.map(|it| version_of(&it))
}
