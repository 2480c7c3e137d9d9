//! Keeps the Endpoints of services that have a selector, for clients that know no slices.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use insula_client::{Client, DeleteOptions, ObjectKey, Tenanted};
use k8s_openapi::{
    api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{addresses, hostname, labels_for, pod_changed, pods_of, ports, reference_to, trigger};
use crate::{
    controller::{Controller, Next, ReconcileError, Rest},
    informers::Informers,
    objects::is_pod_ready,
    queue::Queue,
};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OWN: &str = "endpoint-controller";
/// Says that there are more than are told.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MOST: usize = 1000;

/// See the module.
#[derive(Debug)]
pub(crate) struct EndpointsOfServices {
    client: Client,
    informers: Informers,
}

impl EndpointsOfServices {
    pub(crate) fn new(client: Client, informers: Informers) -> Self {
        Self { client, informers }
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), ReconcileError> {
        let Some(known) = self.informers.endpoints.get(key) else { return Ok(()) };
        let api = self.client.tenant(&key.tenant).namespaced::<Endpoints>(&key.namespace);
        let options = DeleteOptions::default().only_uid(known.uid());
        match api.delete(&key.name, &options).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The pods of a service by the ports that they have, and whether there are more than are told.
fn subsets(
    service: &Tenanted<Service>,
    pods: &[Arc<Tenanted<Pod>>],
) -> (Vec<EndpointSubset>, bool) {
    let Some(spec) = &service.spec else { return (Vec::new(), false) };
    let family = spec.ip_families.as_ref().and_then(|it| it.first()).map_or("IPv4", String::as_str);
    let publishes = spec.publish_not_ready_addresses == Some(true);
    let mut sorted: Vec<_> = pods
        .iter()
        .filter(|pod| publishes || !pod.is_deleting())
        .filter_map(|pod| {
            let address = addresses(pod).find(|it| it.contains(':') == (family == "IPv6"))?;
            Some((publishes || is_pod_ready(pod), address, pod))
        })
        .collect();
    // If there are too many, those that are ready are told first.
    sorted.sort_by(|a, b| (!a.0, a.1, a.2.uid()).cmp(&(!b.0, b.1, b.2.uid())));
    let is_cut = MOST < sorted.len();
    sorted.truncate(MOST);
    let mut subsets: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    for (is_ready, address, pod) in sorted {
        let found = spec.ports.iter().flatten().filter_map(|port| {
            Some(EndpointPort {
                name: port.name.clone().filter(|it| !it.is_empty()),
                port: ports::target(port, pod)?,
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        });
        let found: Vec<_> = found.collect();
        // A pod that has none of the ports is behind none of them.
        if found.is_empty() && spec.ports.as_ref().is_some_and(|it| !it.is_empty()) {
            continue;
        }
        let subset = subsets.entry(format!("{found:?}")).or_default();
        subset.ports = (!found.is_empty()).then_some(found);
        let list = match is_ready {
            true => &mut subset.addresses,
            false => &mut subset.not_ready_addresses,
        };
        list.get_or_insert_default().push(EndpointAddress {
            ip: address.to_owned(),
            hostname: hostname(service, pod).map(str::to_owned),
            node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            target_ref: Some(reference_to(pod)),
        });
    }
    (subsets.into_values().collect(), is_cut)
}

/// Which pods are told of, by uid, and whether as ready.
fn told(endpoints: &Endpoints) -> HashMap<String, bool> {
    let of = |them: &Option<Vec<EndpointAddress>>, ready: bool| {
        let uid = |it: &EndpointAddress| Some((it.target_ref.as_ref()?.uid.clone()?, ready));
        them.iter().flatten().filter_map(uid).collect::<Vec<_>>()
    };
    let subsets = endpoints.subsets.iter().flatten();
    subsets
        .flat_map(|it| [of(&it.addresses, true), of(&it.not_ready_addresses, false)])
        .flatten()
        .collect()
}

impl Controller for EndpointsOfServices {
    const NAME: &'static str = "endpoint-controller";
    const REST: Rest = Rest::LOOKING;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.services.on_change(move |change| keys.add(change.key.clone()));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| {
            pod_changed(&it.informers.selectors.services, change, &keys);
        });
        let keys = queue.clone();
        self.informers.endpoints.on_change(move |change| keys.add(change.key.clone()));
    }

    async fn synced(&self) -> bool {
        self.informers.services.synced().await
            && self.informers.pods.informer.synced().await
            && self.informers.endpoints.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(service) = self.informers.services.get(key) else {
            let known = self.informers.endpoints.get(key);
            let is_own = known.is_some_and(|it| {
                it.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some()
            });
            // The local copies may know them before their service.
            let api = self.client.tenant(&key.tenant).namespaced::<Service>(&key.namespace);
            if is_own && api.get_opt(&key.name).await?.is_none() {
                self.delete(key).await?;
            }
            return Ok(Next::WhenChanged);
        };
        let Some(pods) = pods_of(&self.informers, &service) else { return Ok(Next::WhenChanged) };
        if service.is_deleting() {
            return Ok(Next::WhenChanged);
        }
        let (subsets, is_cut) = subsets(&service, &pods);
        let known = self.informers.endpoints.get(key);
        let mut annotations = known.as_ref().and_then(|it| it.metadata.annotations.clone());
        match is_cut {
            true => {
                let annotations = annotations.get_or_insert_default();
                annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
            }
            false => annotations.iter_mut().for_each(|it| drop(it.remove(OVER_CAPACITY))),
        }
        let annotations = annotations.filter(|it| !it.is_empty());
        let told = known.as_deref().map(|it| told(it));
        let since = trigger::since(&service, &pods, told.as_ref());
        let mut wanted = Endpoints {
            metadata: ObjectMeta {
                name: Some(service.name().to_owned()),
                namespace: Some(service.namespace().to_owned()),
                labels: Some(labels_for(&service, &[(MANAGED_BY, OWN)])),
                annotations,
                ..ObjectMeta::default()
            },
            subsets: (!subsets.is_empty()).then_some(subsets),
        };
        let api = self.client.tenant(&key.tenant).namespaced::<Endpoints>(&key.namespace);
        let Some(known) = known else {
            trigger::note(&mut wanted.metadata, since);
            return match api.create(&wanted).await {
                Ok(_) => Ok(Next::WhenChanged),
                Err(error) if error.is_namespace_terminating() => Ok(Next::WhenChanged),
                Err(error) => Err(error.into()),
            };
        };
        let is_same = known.subsets.clone().filter(|it| !it.is_empty()) == wanted.subsets
            && known.metadata.labels == wanted.metadata.labels
            && known.metadata.annotations.clone().filter(|it| !it.is_empty())
                == wanted.metadata.annotations;
        if !is_same {
            let mut new = known.object.clone();
            new.metadata.labels = wanted.metadata.labels;
            new.metadata.annotations = wanted.metadata.annotations;
            trigger::note(&mut new.metadata, since);
            new.subsets = wanted.subsets;
            api.update(&new).await?;
        }
        Ok(Next::WhenChanged)
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::{Value, json};

    use super::*;

    fn of<K: serde::de::DeserializeOwned>(it: Value) -> Tenanted<K> {
        let tenant = TenantName::parse("acme").unwrap();
        Tenanted { tenant, object: serde_json::from_value(it).unwrap() }
    }

    fn pod(name: &str, ip: &str, ready: bool) -> Arc<Tenanted<Pod>> {
        let ready = if ready { "True" } else { "False" };
        Arc::new(of(json!({
            "metadata": {"name": name, "uid": name, "namespace": "n"},
            "spec": {"nodeName": "n1", "hostname": name, "subdomain": "s", "containers": []},
            "status": {"podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": ready}]},
        })))
    }

    #[test]
    fn who_is_ready_and_who_is_not() {
        let service = of(json!({
            "metadata": {"name": "s", "namespace": "n"},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}], "ipFamilies": ["IPv4"]},
        }));
        let pods =
            [pod("b", "10.0.0.2", true), pod("a", "10.0.0.1", true), pod("c", "10.0.0.3", false)];
        let (found, is_cut) = subsets(&service, &pods);
        let found = serde_json::to_value(found).unwrap();
        assert_eq!(found[0]["ports"], json!([{"port": 8080, "protocol": "TCP"}]));
        assert_eq!(found[0]["addresses"][0]["ip"], "10.0.0.1");
        assert_eq!(found[0]["addresses"][0]["hostname"], "a");
        assert_eq!(found[0]["addresses"][1]["targetRef"]["name"], "b");
        assert_eq!(found[0]["notReadyAddresses"][0]["ip"], "10.0.0.3");
        assert!(!is_cut && found[1].is_null());
        let many: Vec<_> = (0..1100)
            .map(|n| pod(&n.to_string(), &format!("10.0.{}.{}", n / 250, n % 250), true))
            .collect();
        let (found, is_cut) = subsets(&service, &many);
        assert_eq!((found[0].addresses.as_ref().unwrap().len(), is_cut), (MOST, true));
    }
}
