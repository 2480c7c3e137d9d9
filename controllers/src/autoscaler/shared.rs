//! Which autoscalers have to do with the same pods: two that scale the same ones work against each
//! other, so neither does anything.
//!
//! What an autoscaler selects is known once it was looked at; all of a tenant's are looked at here.

use std::collections::BTreeMap;

use insula_api::selector::Selector;
use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use crate::objects::selects;

/// What each autoscaler selects.
#[derive(Debug, Default)]
pub(super) struct Selected(Mutex<BTreeMap<ObjectKey, Selector>>);

impl Selected {
    pub(super) fn put(&self, autoscaler: ObjectKey, selector: Selector) {
        self.0.lock().insert(autoscaler, selector);
    }

    pub(super) fn forget(&self, autoscaler: &ObjectKey) {
        self.0.lock().remove(autoscaler);
    }

    /// All autoscalers of a namespace that select one of its pods, by key.
    pub(super) fn selecting(&self, near: &ObjectKey, pods: &[Tenanted<Pod>]) -> Vec<ObjectKey> {
        let all = self.0.lock();
        let first = ObjectKey::new(&near.tenant, &near.namespace, "");
        let beside = all
            .range(first..)
            .take_while(|(key, _)| key.tenant == near.tenant && key.namespace == near.namespace);
        let selects = |it: &Selector| pods.iter().any(|pod| selects(it, &pod.object));
        beside.filter(|(_, selector)| selects(selector)).map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_those_of_the_same_namespace_and_pods_are_found() {
        let key = |tenant: &str, namespace: &str, name: &str| {
            ObjectKey::new(&TenantName::parse(tenant).unwrap(), namespace, name)
        };
        let selected = Selected::default();
        for (it, selector) in [
            (key("a", "n", "web"), "app=web"),
            (key("a", "n", "all"), "tier in (front,back)"),
            (key("a", "n", "db"), "app=db"),
            (key("a", "o", "web"), "app=web"),
            (key("b", "n", "web"), "app=web"),
        ] {
            selected.put(it, Selector::parse(selector).unwrap());
        }
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}});
        let object = serde_json::from_value(object).unwrap();
        let pods = [Tenanted { tenant: TenantName::parse("a").unwrap(), object }];
        let web = key("a", "n", "web");
        assert_eq!(selected.selecting(&web, &pods), [key("a", "n", "all"), web.clone()]);
        assert!(selected.selecting(&web, &[]).is_empty());
        selected.forget(&key("a", "n", "all"));
        assert_eq!(selected.selecting(&web, &pods), [web]);
    }
}
