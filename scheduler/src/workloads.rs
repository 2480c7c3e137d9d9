//! What pods belong to, as far as default spreading goes by it: the selectors of services, and of
//! the controllers of pods.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use insula_api::selector::{Operator, Requirement, Selector};
use insula_client::ObjectKey;

use crate::pod::Shape;

/// Selectors of services and controllers of all tenants.
#[derive(Debug, Default)]
pub(crate) struct Workloads {
    services: BTreeMap<ObjectKey, BTreeMap<String, String>>,
    controllers: HashMap<(&'static str, ObjectKey), Selector>,
    version: u64,
}

impl Workloads {
    /// Notes a service's selector. One that selects nothing is no service of any pod.
    pub(crate) fn set_service(
        &mut self,
        key: &ObjectKey,
        selector: Option<BTreeMap<String, String>>,
    ) {
        let selector = selector.filter(|it| !it.is_empty());
        if self.services.get(key) == selector.as_ref() {
            return;
        }
        self.version += 1;
        match selector {
            Some(selector) => self.services.insert(key.clone(), selector),
            None => self.services.remove(key),
        };
    }

    /// Notes the selector of a controller of some kind.
    pub(crate) fn set_controller(
        &mut self,
        kind: &'static str,
        key: &ObjectKey,
        selector: Option<Selector>,
    ) {
        let key = (kind, key.clone());
        if self.controllers.get(&key) == selector.as_ref() {
            return;
        }
        self.version += 1;
        match selector {
            Some(selector) => self.controllers.insert(key, selector),
            None => self.controllers.remove(&key),
        };
    }

    /// Grows whenever a selector changes.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// What selects the pods that a pod is to be spread among: the selectors of all its services
    /// and of its controller together. `None` if it belongs to nothing.
    pub(crate) fn selector_of(&self, pod: &Shape) -> Option<Selector> {
        let mut requirements = BTreeMap::new();
        let first = ObjectKey::new(&pod.tenant, &pod.namespace, "");
        for (key, selector) in self.services.range(first..) {
            if key.tenant != pod.tenant || key.namespace != pod.namespace {
                break;
            }
            if selector.iter().all(|(key, value)| pod.label(key) == Some(value)) {
                for (key, value) in selector {
                    requirements.insert(key.clone(), value.clone());
                }
            }
        }
        let equals =
            |(key, value): (String, String)| Requirement::new(&key, Operator::In, [value]).ok();
        let mut all: Vec<Requirement> = requirements.into_iter().filter_map(equals).collect();
        if let Some((kind, name)) = &pod.controller {
            let key = ObjectKey {
                tenant: pod.tenant.clone(),
                namespace: pod.namespace.clone(),
                name: Arc::clone(name),
            };
            let kinds = ["ReplicaSet", "StatefulSet", "ReplicationController"];
            let of_kind = kinds.into_iter().find(|it| **it == **kind);
            if let Some(selector) = of_kind.and_then(|kind| self.controllers.get(&(kind, key))) {
                all.extend(selector.requirements().iter().cloned());
            }
        }
        (!all.is_empty()).then(|| Selector::new(all))
    }
}
