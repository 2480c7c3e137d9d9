//! What services are given: cluster addresses and node ports, each of which one service has.
//!
//! Taking an address is creating its `IPAddress` object, and taking a port is creating an entry
//! of a collection that is not served: the store lets one of many succeed, whichever servers they
//! come from, and nothing is decided from memory. What is taken before a service is written, and
//! then not written, is given back; what a crash leaves behind is taken over by whoever wants it
//! a minute later. See `docs/decisions/0019-what-services-are-given.md`.
//!
//! # Invariants
//!
//! * An address or port that a stored service has is held for it.
//! * Nothing is given back before the write that no longer needs it is committed.

mod families;
mod locks;
mod ports;

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use insula_api::{names::TenantName, object};
use insula_partition::store::ReadAt;
use ipnet::IpNet;
use serde_json::{Value, json};

use self::locks::{Held, Lock, Owner};
use crate::{
    Server,
    call::Call,
    error::{ApiError, FieldError, Result},
    validate,
};

/// How many addresses or ports that are held are looked at, if none is free.
const LOOKED_AT: usize = 4_096;

/// What services may be given, in every tenant.
#[derive(Debug, Clone)]
pub struct ServiceRanges {
    /// Addresses: one network, or one of each family, of which the first is the default.
    pub networks: Vec<IpNet>,
    /// Ports of nodes.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for ServiceRanges {
    fn default() -> Self {
        let network = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16);
        Self { networks: vec![network.into()], node_ports: 30000..=32767 }
    }
}

/// What a write of a service takes, and what it no longer needs.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    taken: Vec<Held>,
    freed: Vec<Held>,
    /// Who is no more after the write.
    leaving: Option<Owner>,
}

fn is_service(call: &Call) -> bool {
    call.served.resource.name == "services"
        && call.served.resource.group.is_empty()
        && call.path.subresource.is_empty()
}

/// Gives a service that is about to be written what it needs. `old` is what it is replaced for.
pub(crate) async fn begin(
    server: &Server,
    call: &Call,
    old: Option<&Value>,
    new: &mut Value,
) -> Result<Claims> {
    if !is_service(call) {
        return Ok(Claims::default());
    }
    let dry_run = call.query.dry_run()?;
    let taking = Taking { server, tenant: call.tenant()?, owner: Owner::of(new), dry_run };
    let mut claims = Claims::default();
    let taken = taking.all(old, new, &mut claims).await;
    if dry_run {
        return taken.map(|()| Claims::default());
    }
    if let Err(error) = taken {
        claims.end(server, call, Some(false)).await;
        return Err(error);
    }
    Ok(claims)
}

/// What a service no longer needs once it is deleted.
pub(crate) async fn leaving(server: &Server, call: &Call, old: &Value) -> Result<Claims> {
    if call.served.resource.name != "services" || !call.served.resource.group.is_empty() {
        return Ok(Claims::default());
    }
    let owner = Owner::of(old);
    let freed = locks::held(server, call.tenant()?, locks::held_by(old), &owner).await?;
    Ok(Claims { freed, leaving: Some(owner), ..Claims::default() })
}

impl Claims {
    /// Gives back what is not needed, now that the service was written, or was not. `None` if
    /// nobody knows: then nothing may be given back, and others take over what is held in vain.
    pub(crate) async fn end(self, server: &Server, call: &Call, is_written: Option<bool>) {
        let (Ok(tenant), Some(is_written)) = (call.tenant(), is_written) else { return };
        let unneeded = if is_written { self.freed } else { self.taken };
        locks::release(server, tenant, &unneeded).await;
        if let Some(Owner { namespace, name }) = self.leaving.filter(|_| is_written) {
            // Its endpoints would else be those of the next service of that name.
            let removed = locks::remove(server, tenant, "endpoints", &namespace, &name).await;
            if let Err(error) = removed {
                tracing::warn!(%tenant, namespace, name, %error, "endpoints outlive their service");
            }
        }
    }
}

/// Whether something was written, as far as an error tells.
pub(crate) fn is_written(error: &ApiError) -> Option<bool> {
    // What the client did wrong was seen before; what failed here may have been done.
    error.code.is_client_error().then_some(false)
}

/// What a client leaves out of an update of a service is as it was.
pub(crate) fn keep_what_is_held(old: &Value, new: &mut Value) {
    families::patch(old, new);
}

/// Taking what one service needs.
struct Taking<'a> {
    server: &'a Server,
    tenant: &'a TenantName,
    owner: Owner,
    dry_run: bool,
}

impl Taking<'_> {
    async fn all(&self, old: Option<&Value>, new: &mut Value, claims: &mut Claims) -> Result<()> {
        if let Some(old) = old {
            let errors = validate::service_update(old, new);
            if !errors.is_empty() {
                return Err(ApiError::invalid("", "Service", object::name(new), &errors));
            }
        }
        families::settle(&self.server.services, old, new)?;
        let mut freed = self.addresses(old, new, claims).await?;
        freed.extend(self.ports(old, new, claims).await?);
        if !self.dry_run {
            claims.freed = locks::held(self.server, self.tenant, freed, &self.owner).await?;
        }
        Ok(())
    }

    /// Takes addresses, and tells which are no longer needed.
    async fn addresses(
        &self,
        old: Option<&Value>,
        new: &mut Value,
        claims: &mut Claims,
    ) -> Result<Vec<Lock>> {
        let had = old.map(families::addresses).unwrap_or_default();
        let wanted = families::wanted(new);
        for (index, (family, asked)) in wanted.into_iter().enumerate() {
            let address = match asked {
                Some(address) if had.contains(&address) => address,
                Some(address) => {
                    self.address(address, new, claims).await?;
                    address
                }
                None => self.any_address(family, new, claims).await?,
            };
            families::set_address(new, index, address);
        }
        let has = families::addresses(new);
        Ok(had.into_iter().filter(|it| !has.contains(it)).map(Lock::Address).collect())
    }

    /// Takes the address that is asked for.
    async fn address(&self, address: IpAddr, new: &Value, claims: &mut Claims) -> Result<()> {
        let networks = self.networks().await?;
        let why = match networks.iter().find(|it| it.contains(&address)) {
            None => {
                Some(match networks.iter().find(|it| it.addr().is_ipv4() == address.is_ipv4()) {
                    Some(network) => format!(
                        "the provided IP ({address}) is not in the valid range. The range of valid IPs is {network}"
                    ),
                    None => "the provided network does not match the current range".to_owned(),
                })
            }
            Some(network) if !families::is_usable(network, address) => Some(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {network}"
            )),
            Some(_) => match self.take(Lock::Address(address), claims).await? {
                true => None,
                false => Some("provided IP is already allocated".to_owned()),
            },
        };
        let Some(why) = why else { return Ok(()) };
        let why = format!("failed to allocate IP {address}: {why}");
        Err(self.invalid("spec.clusterIPs", &new["spec"]["clusterIPs"], &why))
    }

    async fn any_address(
        &self,
        family: families::Family,
        new: &Value,
        claims: &mut Claims,
    ) -> Result<IpAddr> {
        let networks = self.networks().await?;
        let of_family = networks.iter().filter(|it| families::Family::of(&it.addr()) == family);
        for network in of_family {
            let used = locks::Used::addresses(self.server, self.tenant).await?;
            let candidates = || families::candidates(network).map(Lock::Address);
            if let Some(Lock::Address(found)) = self.any(candidates, &used, claims).await? {
                return Ok(found);
            }
        }
        let name = object::name(new);
        Err(ApiError::internal(format!(
            "failed to allocate a serviceIP for Service {name:?}: range is full"
        )))
    }

    /// Takes one of `candidates`: a free one, else one that a crash left behind.
    async fn any<C: Iterator<Item = Lock>>(
        &self,
        candidates: impl Fn() -> C,
        used: &locks::Used,
        claims: &mut Claims,
    ) -> Result<Option<Lock>> {
        for lock in candidates() {
            if !claims.has(&lock)
                && !used.contains(&lock)
                && self.take(lock.clone(), claims).await?
            {
                return Ok(Some(lock));
            }
        }
        for lock in candidates().take(LOOKED_AT) {
            if !claims.has(&lock)
                && used.is_left_over(self.server, &lock).await?
                && self.take(lock.clone(), claims).await?
            {
                return Ok(Some(lock));
            }
        }
        Ok(None)
    }

    /// The networks of the tenant that are ready for use.
    async fn networks(&self) -> Result<Vec<IpNet>> {
        let served = self.server.registry.any_version("networking.k8s.io", "servicecidrs");
        let served = served.ok_or_else(|| ApiError::internal("service networks are not served"))?;
        let (_, store) = served.place(&self.server.partitions, self.tenant, "", "");
        let snapshot = store.read(&served.collection, ReadAt::Latest).await?;
        let mut networks = Vec::new();
        for (_, entry) in snapshot.range(&format!("{}//", self.tenant), None) {
            let it = object::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
            let conditions = it["status"].get("conditions").and_then(Value::as_array);
            // Where nobody has said so yet it is ready, as upstream has it.
            let said = conditions.into_iter().flatten().find(|it| it["type"] == "Ready");
            let is_ready = said.is_none_or(|it| it["status"] == "True");
            if is_ready && !object::is_deleting(&it) {
                let list = it["spec"].get("cidrs").and_then(Value::as_array).into_iter().flatten();
                networks.extend(list.filter_map(|it| it.as_str()?.parse::<IpNet>().ok()));
            }
        }
        // A tenant that was made before there were networks.
        if networks.is_empty() {
            networks.clone_from(&self.server.services.networks);
        }
        Ok(networks)
    }

    /// Takes ports of nodes, and tells which are no longer needed.
    async fn ports(
        &self,
        old: Option<&Value>,
        new: &mut Value,
        claims: &mut Claims,
    ) -> Result<Vec<Lock>> {
        let had = old.map(ports::of_nodes).unwrap_or_default();
        let range = &self.server.services.node_ports;
        for index in 0..ports::len(new) {
            match ports::want(new, index) {
                ports::Want::Nothing => (),
                ports::Want::This(asked) => {
                    let at = format!("spec.ports[{index}].nodePort");
                    let port = u16::try_from(asked).ok();
                    if port.is_some_and(|it| had.contains(&it) || claims.has(&Lock::Port(it))) {
                        continue;
                    }
                    let Some(port) = port.filter(|it| range.contains(it)) else {
                        let why = format!(
                            "provided port is not in the valid range. The range of valid ports is {}-{}",
                            range.start(),
                            range.end()
                        );
                        return Err(self.invalid(&at, &asked.into(), &why));
                    };
                    if !self.take(Lock::Port(port), claims).await? {
                        let why = "provided port is already allocated";
                        return Err(self.invalid(&at, &port.into(), why));
                    }
                }
                ports::Want::Any => {
                    // One port of the service is one port of the nodes, whatever the protocol.
                    let port = match ports::same_port(new, index) {
                        Some(port) => port,
                        None => self.any_port(claims).await?,
                    };
                    new["spec"]["ports"][index]["nodePort"] = port.into();
                }
            }
        }
        let had_check = old.and_then(ports::of_health_check);
        if ports::needs_health_check(new) {
            let asked = new["spec"].get("healthCheckNodePort").and_then(Value::as_u64);
            match asked.and_then(|it| u16::try_from(it).ok()).filter(|it| *it != 0) {
                Some(port) if had_check == Some(port) => (),
                Some(port) => {
                    if !range.contains(&port) || !self.take(Lock::Port(port), claims).await? {
                        return Err(ApiError::internal(format!(
                            "failed to allocate requested HealthCheck NodePort {port}: provided port is already allocated"
                        )));
                    }
                }
                None => {
                    let port = self.any_port(claims).await?;
                    new["spec"]["healthCheckNodePort"] = port.into();
                }
            }
        }
        let has = ports::all(new);
        let had = old.map(ports::all).unwrap_or_default();
        Ok(had.into_iter().filter(|it| !has.contains(it)).map(Lock::Port).collect())
    }

    async fn any_port(&self, claims: &mut Claims) -> Result<u16> {
        let used = locks::Used::ports(self.server, self.tenant).await?;
        let range = &self.server.services.node_ports;
        let candidates = || ports::candidates(range).map(Lock::Port);
        match self.any(candidates, &used, claims).await? {
            Some(Lock::Port(port)) => Ok(port),
            _ => Err(ApiError::internal("failed to allocate a nodePort: range is full")),
        }
    }

    /// False if another has it.
    async fn take(&self, lock: Lock, claims: &mut Claims) -> Result<bool> {
        let held = locks::take(self.server, self.tenant, &lock, &self.owner, self.dry_run).await?;
        let is_taken = held.is_some();
        claims.taken.extend(held);
        Ok(is_taken)
    }

    fn invalid(&self, field: &str, value: &Value, why: &str) -> ApiError {
        let error = FieldError::invalid(field, value, why);
        ApiError::invalid("", "Service", &self.owner.name, &[error])
    }
}

impl Claims {
    fn has(&self, lock: &Lock) -> bool {
        self.taken.iter().any(|it| it.lock == *lock)
    }
}

/// The objects that tell of the API itself, in a tenant: the networks that services are given
/// addresses of, and the first service.
pub(crate) fn of_tenant(server: &Server) -> Vec<Value> {
    let ranges = &server.services;
    let cidrs: Vec<String> = ranges.networks.iter().map(ToString::to_string).collect();
    let mut made = vec![json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": cidrs},
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "",
            "message": "Kubernetes Service CIDR is ready",
            "lastTransitionTime": insula_api::time::now(),
        }]},
    })];
    if let Some(address) = families::kubernetes_address(ranges) {
        let port = addresses_of_api(server).first().map_or(6443, SocketAddr::port);
        made.push(locks::address_object(address, &Owner::new("default", "kubernetes")));
        made.push(families::kubernetes_service(address, port));
    }
    made
}

/// Where the servers are.
fn addresses_of_api(server: &Server) -> Vec<SocketAddr> {
    let servers = server.partitions.servers();
    let known = servers.iter().map(|it| it.address.as_str());
    let mut found: Vec<SocketAddr> =
        known.chain([server.advertise.as_str()]).filter_map(|it| it.parse().ok()).collect();
    found.retain(|it| !it.ip().is_unspecified());
    // One list is of one family, and says one port.
    if let Some(first) = found.first().copied() {
        found.retain(|it| it.is_ipv4() == first.is_ipv4() && it.port() == first.port());
    }
    found.sort();
    found.dedup();
    found
}

/// The endpoints of the API, in both forms.
pub(crate) fn endpoints_of_api(server: &Server) -> Vec<Value> {
    let addresses = addresses_of_api(server);
    let Some(first) = addresses.first() else { return Vec::new() };
    let port = json!({"name": "https", "port": first.port(), "protocol": "TCP"});
    let of_slice: Vec<Value> = addresses
        .iter()
        .map(|it| json!({"addresses": [it.ip()], "conditions": {"ready": true}}))
        .collect();
    let of_list: Vec<Value> = addresses.iter().map(|it| json!({"ip": it.ip()})).collect();
    let metadata = json!({"name": "kubernetes", "namespace": "default"});
    let mut endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": metadata,
        "subsets": [{"addresses": of_list, "ports": [port]}],
    });
    endpoints["metadata"]["labels"] = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    let mut slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": if first.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": of_slice, "ports": [port],
    });
    slice["metadata"]["generation"] = 1.into();
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "kubernetes"});
    vec![endpoints, slice]
}
