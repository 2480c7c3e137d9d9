//! Says which networks services may have addresses of, and keeps those whose addresses are in use.

use std::{net::IpAddr, sync::Arc, time::Duration};

use insula_api::names::TenantName;
use insula_client::{Client, Informer, ListOptions, ObjectKey, Patch, Tenant, Tenanted};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::{
    api::networking::v1::{IPAddress, ServiceCIDR, ServiceCIDRStatus},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use serde_json::json;

use crate::{
    controller::{Controller, Next, ReconcileError},
    everything::Everything,
    informers::Informers,
    queue::Queue,
    status::write_status,
    tenant,
};

/// A network stays with this finalizer while it is used.
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Whoever has looked at the networks before one began to go has taken its address by then.
const GRACE: Duration = Duration::from_secs(10);
/// The addresses that are taken for services.
const TAKEN: &str = "ipaddress.kubernetes.io/managed-by=ipallocator.k8s.io";

/// Keeps networks of services. Keys are networks.
#[derive(Debug)]
pub(crate) struct ServiceNetworks {
    client: Client,
    everything: Everything,
    networks: Informer<ServiceCIDR>,
    tenants: Informer<Tenant>,
}

fn cidrs(network: &ServiceCIDR) -> Vec<IpNet> {
    let list = network.spec.as_ref().and_then(|it| it.cidrs.as_ref());
    list.into_iter().flatten().filter_map(|it| it.parse().ok()).collect()
}

/// Whether a network can go: all of it is in others, or nobody has an address of it alone.
fn can_go(own: &[IpNet], others: &[IpNet], taken: impl IntoIterator<Item = IpAddr>) -> bool {
    let is_covered = |network: &IpNet| others.iter().any(|it| it.contains(network));
    let is_own = |it: &IpAddr| own.iter().any(|net| net.contains(it));
    own.iter().all(is_covered)
        || !taken.into_iter().any(|it| is_own(&it) && !others.iter().any(|net| net.contains(&it)))
}

/// The networks of a tenant that are about to go.
fn leaving(networks: &Informer<ServiceCIDR>, tenant: &TenantName) -> Vec<ObjectKey> {
    let all = networks.in_tenant(tenant);
    all.iter().filter(|it| it.is_deleting()).map(|it| it.key()).collect()
}

fn condition(is_ready: bool) -> Condition {
    let (status, reason, message) = match is_ready {
        true => ("True", "", "Kubernetes Service CIDR is ready"),
        false => (
            "False",
            "Terminating",
            "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
        ),
    };
    Condition {
        type_: "Ready".into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Time(Timestamp::now()),
        observed_generation: None,
    }
}

impl ServiceNetworks {
    pub(crate) fn new(client: Client, informers: &Informers, everything: Everything) -> Self {
        let (networks, tenants) = (informers.networks.clone(), informers.tenants.clone());
        Self { client, everything, networks, tenants }
    }

    async fn is_free(&self, network: &Tenanted<ServiceCIDR>) -> Result<bool, ReconcileError> {
        let scope = self.client.tenant(&network.tenant);
        let all = scope.api::<ServiceCIDR>().list_all(&ListOptions::default()).await?;
        let others: Vec<IpNet> = all
            .iter()
            .filter(|it| it.name() != network.name() && !it.is_deleting())
            .flat_map(|it| cidrs(&it.object))
            .collect();
        let taken = scope.api::<IPAddress>().list_all(&ListOptions::labelled(TAKEN)).await?;
        let taken = taken.iter().filter_map(|it| it.name().parse().ok());
        Ok(can_go(&cidrs(&network.object), &others, taken))
    }

    /// Writes whether services get addresses of a network, unless it is said already.
    async fn say(
        &self,
        network: &Tenanted<ServiceCIDR>,
        is_ready: bool,
    ) -> Result<(), ReconcileError> {
        let wanted = condition(is_ready);
        let old = network.object.status.clone().unwrap_or_default();
        let known = old.conditions.clone().unwrap_or_default();
        let is_same = |it: &Condition| {
            (&it.type_, &it.status, &it.reason) == (&wanted.type_, &wanted.status, &wanted.reason)
        };
        if known.iter().any(is_same) {
            return Ok(());
        }
        let mut conditions: Vec<Condition> =
            known.into_iter().filter(|it| it.type_ != wanted.type_).collect();
        conditions.push(wanted);
        let new = ServiceCIDRStatus { conditions: Some(conditions) };
        let api = self.client.tenant(&network.tenant).api::<ServiceCIDR>();
        write_status(&api, network, Some(&old), &new).await?;
        Ok(())
    }

    async fn set_finalizers(
        &self,
        network: &Tenanted<ServiceCIDR>,
        finalizers: &[String],
    ) -> Result<(), ReconcileError> {
        let patch = json!({"metadata": {
            "uid": network.uid(),
            "resourceVersion": network.resource_version(),
            "finalizers": finalizers,
        }});
        let api = self.client.tenant(&network.tenant).api::<ServiceCIDR>();
        match api.patch(network.name(), &Patch::Merge(patch)).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}

impl Controller for ServiceNetworks {
    const NAME: &'static str = "service-cidr-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.networks.on_change(move |change| {
            keys.add(change.key.clone());
            // A new one may have room for what another's addresses keep it for.
            leaving(&it.networks, &change.key.tenant).into_iter().for_each(|key| keys.add(key));
        });
        let (networks, keys) = (self.networks.clone(), queue.clone());
        self.everything.on_change(move |resource, change| {
            let is_address =
                resource.plural == "ipaddresses" && resource.group == "networking.k8s.io";
            if is_address && change.new.is_none() {
                let tenant: &TenantName = &change.key.tenant;
                leaving(&networks, tenant).into_iter().for_each(|key| keys.add(key));
            }
        });
    }

    async fn synced(&self) -> bool {
        self.networks.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(network) = self.networks.get(key) else { return Ok(Next::WhenChanged) };
        let finalizers = network.object.metadata.finalizers.clone().unwrap_or_default();
        let is_held = finalizers.iter().any(|it| it == FINALIZER);
        let Some(began) = &network.object.metadata.deletion_timestamp else {
            if !is_held {
                let more = [finalizers, vec![FINALIZER.to_owned()]].concat();
                self.set_finalizers(&network, &more).await?;
            }
            self.say(&network, true).await?;
            return Ok(Next::WhenChanged);
        };
        if !is_held {
            return Ok(Next::WhenChanged);
        }
        if !self.is_free(&network).await? {
            self.say(&network, false).await?;
            return Ok(Next::WhenChanged);
        }
        let since = Duration::try_from(Timestamp::now().duration_since(began.0));
        // Nobody makes services any more in a tenant that ends.
        let is_last = tenant::ends(&self.tenants, &network.tenant);
        let grace = if is_last { Duration::ZERO } else { GRACE };
        let left = grace.saturating_sub(since.unwrap_or_default());
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        let rest: Vec<String> = finalizers.into_iter().filter(|it| it != FINALIZER).collect();
        self.set_finalizers(&network, &rest).await?;
        Ok(Next::WhenChanged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_stays_for_addresses_that_no_other_has_room_for() {
        let nets =
            |list: &[&str]| -> Vec<IpNet> { list.iter().map(|it| it.parse().unwrap()).collect() };
        let taken = |text: &str| [text.parse::<IpAddr>().unwrap()];
        let own = nets(&["10.1.0.0/24"]);
        assert!(!can_go(&own, &nets(&["10.2.0.0/24"]), taken("10.1.0.5")));
        assert!(can_go(&own, &nets(&["10.2.0.0/24"]), taken("10.2.0.5")));
        // All of it is in another.
        assert!(can_go(&own, &nets(&["10.1.0.0/16"]), taken("10.1.0.5")));
        // A part is, and the address is in it.
        assert!(can_go(&own, &nets(&["10.1.0.0/25"]), taken("10.1.0.5")));
        assert!(!can_go(&own, &nets(&["10.1.0.128/25"]), taken("10.1.0.5")));
    }
}
