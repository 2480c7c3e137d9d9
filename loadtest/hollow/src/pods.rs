//! The pods of a crew, as small as they can be: what they have in common is kept once.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Weak},
};

use insula_client::Tenanted;
use insula_nodeagent::hollow::Used;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::json;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    behaviour::{Behaviour, PREFIX, amount},
    life::{Life, Millis, Restarts, Shape, trimmed},
};

/// How many shapes are kept before those are looked for that nobody has any more.
const SHAPES: usize = 64;

/// One pod of a hollow node.
#[derive(Debug)]
pub(crate) struct HollowPod {
    /// `tenant/namespace/name`.
    key: Box<str>,
    /// The number of its node.
    pub(crate) node: u32,
    pub(crate) shape: Arc<Shape>,
    pub(crate) life: Life,
    /// When something is to be done about it.
    pub(crate) due: Millis,
    /// A request about it is under way.
    pub(crate) is_busy: bool,
}

impl HollowPod {
    /// Tenant, namespace and name.
    pub(crate) fn parts(&self) -> (&str, &str, &str) {
        let mut parts = self.key.splitn(3, '/');
        let mut next = || parts.next().unwrap_or_default();
        (next(), next(), next())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct HollowPods {
    pub(crate) by_uid: HashMap<Uuid, HollowPod>,
    shapes: HashMap<u128, Weak<Shape>>,
    /// When to look for shapes that nobody has.
    full: usize,
}

impl HollowPods {
    /// A pod that was heard of for the first time. `None` if it says too little of itself.
    pub(crate) fn make(
        &mut self,
        pod: &Tenanted<Pod>,
        node: u32,
        usual: &Behaviour,
        address: Ipv4Addr,
        now: Millis,
    ) -> Option<(Uuid, HollowPod)> {
        let uid = Uuid::try_parse(pod.uid()).ok()?;
        let shape = self.shape(pod, usual)?;
        let place = (uid.as_u128() & u128::from(u32::MAX)) as u32;
        let mut life = Life::of(pod, place, address, now);
        life.hear(pod, now);
        let key = format!("{}/{}/{}", pod.tenant, pod.namespace(), pod.name()).into_boxed_str();
        Some((uid, HollowPod { key, node, shape, life, due: Millis::MAX, is_busy: false }))
    }

    fn shape(&mut self, pod: &Tenanted<Pod>, usual: &Behaviour) -> Option<Arc<Shape>> {
        let spec = trimmed(pod.spec.as_ref()?);
        let annotations = pod.metadata.annotations.as_ref();
        let ours = annotations.into_iter().flatten().filter(|(name, _)| name.starts_with(PREFIX));
        let asked = requests(pod.spec.as_ref()?);
        let text = json!([&spec, ours.collect::<Vec<_>>(), asked]).to_string();
        let hash = xxh3_128(text.as_bytes());
        if let Some(known) = self.shapes.get(&hash).and_then(Weak::upgrade) {
            return Some(known);
        }
        let (behaviour, wrong) = Behaviour::of(usual, annotations, &spec);
        for why in wrong {
            tracing::warn!(tenant = %pod.tenant, namespace = pod.namespace(), pod = pod.name(), %why, "left out");
        }
        let restarts = Restarts::of(&spec);
        let uses = asked.into_iter().map(|(name, asked)| {
            let cpu = behaviour.cpu.unwrap_or(asked.cpu);
            (name, Used { cpu, memory: behaviour.memory.unwrap_or(asked.memory) })
        });
        let uses = uses.collect();
        let shape = Arc::new(Shape { spec, behaviour, restarts, uses });
        if self.full <= self.shapes.len() {
            self.shapes.retain(|_, it| it.strong_count() != 0);
            self.full = (self.shapes.len() * 2).max(SHAPES);
        }
        self.shapes.insert(hash, Arc::downgrade(&shape));
        Some(shape)
    }
}

/// What each container requests; what cannot be read is nothing.
fn requests(spec: &PodSpec) -> Vec<(Box<str>, Used)> {
    let of = |it: &Container| {
        let requests = it.resources.as_ref().and_then(|it| it.requests.as_ref());
        let asked = |name: &str, unit| {
            let found = requests.and_then(|it| it.get(name));
            found.and_then(|it| amount(&it.0, unit).ok()).unwrap_or_default()
        };
        let used = Used { cpu: asked("cpu", 1_000_000_000), memory: asked("memory", 1) };
        (it.name.as_str().into(), used)
    };
    spec.containers.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn pod(uid: u128, image: &str, annotation: &str) -> Tenanted<Pod> {
        let it: Value = json!({
            "metadata": {
                "tenant": "acme", "namespace": "ns", "name": format!("p{uid}"),
                "uid": Uuid::from_u128(uid).to_string(), "labels": {"n": uid.to_string()},
                "annotations": {"other": uid.to_string(), "hollow.insula.io/exit-after": annotation},
            },
            "spec": {
                "nodeName": format!("n{uid}"), "volumes": [{"name": uid.to_string()}],
                "containers": [{"name": "c", "image": image, "env": [{"name": "A", "value": "b"}]}],
            },
        });
        serde_json::from_value(it).unwrap()
    }

    #[test]
    fn what_pods_have_in_common_is_kept_once() {
        let mut pods = HollowPods::default();
        let mut make = |pod: &Tenanted<Pod>| {
            let usual = Behaviour::default();
            pods.make(pod, 0, &usual, Ipv4Addr::LOCALHOST, 0).unwrap().1
        };
        let (one, two) = (make(&pod(1, "a", "1s")), make(&pod(2, "a", "1s")));
        assert!(Arc::ptr_eq(&one.shape, &two.shape));
        assert_eq!(one.parts(), ("acme", "ns", "p1"));
        assert!(!Arc::ptr_eq(&one.shape, &make(&pod(3, "b", "1s")).shape));
        assert!(!Arc::ptr_eq(&one.shape, &make(&pod(4, "a", "2s")).shape));
        drop((one, two));
        let others: Vec<HollowPod> =
            (0..1000).map(|it| make(&pod(it, &it.to_string(), "1s"))).collect();
        drop(others);
        (0..1000).for_each(|it| drop(make(&pod(it, &it.to_string(), "1s"))));
        assert!(pods.shapes.len() < 2100, "those that nobody has are let go of");
    }

    #[test]
    fn a_pod_is_small() {
        assert!(size_of::<HollowPod>() <= 160, "{}", size_of::<HollowPod>());
    }
}
