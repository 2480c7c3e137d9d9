//! Taking nodes away again.

use futures::{StreamExt as _, stream};
use insula_client::{Client, DeleteOptions, chain};
use insula_nodeagent::hollow::LEASE_NAMESPACE;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};

use crate::Shared;

/// Removes all nodes and their leases; returns how many could not be removed.
pub(crate) async fn remove(shared: &Shared, clients: &[Client]) -> usize {
    let options = &shared.options;
    let numbers = options.first..options.first + options.count;
    let removals = numbers
        .zip(clients.iter().cloned().cycle())
        .map(|(number, client)| remove_one(shared.name(number), client));
    stream::iter(removals)
        .buffer_unordered(options.concurrency.max(1))
        .fold(0, async |sum, it| sum + it)
        .await
}

/// Removes one node and its lease; returns how many could not be removed.
async fn remove_one(name: String, client: Client) -> usize {
    let system = client.system();
    let now = DeleteOptions::default().grace_period(0);
    let node = system.api::<Node>().delete(&name, &now).await.map(drop);
    let leases = system.namespaced::<Lease>(LEASE_NAMESPACE);
    let lease = leases.delete(&name, &now).await.map(drop);
    let failed = [node, lease].into_iter().filter_map(Result::err);
    let failed = failed.filter(|it| !it.is_not_found()).inspect(|error| {
        tracing::warn!(node = name, error = chain(error), "not removed");
    });
    usize::from(0 < failed.count())
}
