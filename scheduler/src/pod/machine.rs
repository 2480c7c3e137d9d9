//! A pod of containers, or of a virtual machine.
//!
//! The type of Kubernetes does not know virtual machines. Here one is read as what it is to
//! whoever looks for room: one container more, which asks for processors, memory, huge pages and
//! devices, and is resized, as any other. So nothing else of the scheduler tells them apart, but
//! for the runtime that the node must have.

use std::ops::{Deref, DerefMut};

use insula_api::pods::MACHINE;
use insula_client::tap::{self, Copied};
use k8s_openapi::{
    Metadata, Resource,
    api::core::v1::{self, Container, ResourceRequirements},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A pod as the scheduler reads it. Dereferences to the pod of Kubernetes.
///
/// It is written as that; whoever writes pods leaves out what does not change.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pod {
    object: v1::Pod,
    is_machine: bool,
}

impl Pod {
    /// Whether it needs a runtime of virtual machines, and not one of containers.
    pub(crate) fn is_machine(&self) -> bool {
        self.is_machine
    }
}

impl From<v1::Pod> for Pod {
    /// A pod of containers.
    fn from(object: v1::Pod) -> Self {
        Self { object, is_machine: false }
    }
}

impl Deref for Pod {
    type Target = v1::Pod;
    fn deref(&self) -> &v1::Pod {
        &self.object
    }
}

impl DerefMut for Pod {
    fn deref_mut(&mut self) -> &mut v1::Pod {
        &mut self.object
    }
}

impl Resource for Pod {
    const API_VERSION: &'static str = v1::Pod::API_VERSION;
    const GROUP: &'static str = v1::Pod::GROUP;
    const KIND: &'static str = v1::Pod::KIND;
    const VERSION: &'static str = v1::Pod::VERSION;
    const URL_PATH_SEGMENT: &'static str = v1::Pod::URL_PATH_SEGMENT;
    type Scope = <v1::Pod as Resource>::Scope;
}

impl Metadata for Pod {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.object.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.object.metadata
    }
}

impl Serialize for Pod {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

/// What matters of a virtual machine; nothing where the field says `null`.
#[derive(Debug, Deserialize)]
struct Machine(Option<Fields>);

#[derive(Debug, Deserialize)]
struct Fields {
    /// That of its status too.
    #[serde(default)]
    name: String,
    resources: Option<ResourceRequirements>,
}

impl Copied for Machine {}

impl<'de> Deserialize<'de> for Pod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (mut object, found): (v1::Pod, Option<Machine>) =
            tap::read(deserializer, &["spec", MACHINE])?;
        let machine = found.and_then(|it| it.0);
        let is_machine = machine.is_some();
        if let (Some(machine), Some(spec)) = (machine, &mut object.spec) {
            // Its image is the disk that it boots from, and none that nodes tell of.
            spec.containers.push(Container {
                name: machine.name,
                resources: machine.resources,
                ..Container::default()
            });
        }
        Ok(Self { object, is_machine })
    }
}

#[cfg(test)]
mod tests {
    use insula_client::Tenanted;
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::Shape;

    fn shape(spec: Value) -> (Shape, bool) {
        let metadata = json!({"name": "p", "namespace": "n", "tenant": "acme"});
        let text = json!({"metadata": metadata, "spec": spec}).to_string();
        let pod: Tenanted<Pod> = serde_json::from_str(&text).unwrap();
        (Shape::of(&pod), pod.is_machine())
    }

    #[test]
    fn a_machine_asks_as_a_container_does() {
        let resources = json!({"requests": {
            "cpu": "2", "memory": "1Gi", "hugepages-2Mi": "4Mi", "example.com/gpu": "1",
        }});
        let overhead = json!({"memory": "64Mi"});
        let machine = json!({"name": "vm", "image": "disk", "resources": resources});
        let (machine, is_machine) =
            shape(json!({"virtualMachine": machine, "overhead": overhead, "containers": []}));
        assert!(is_machine && machine.is_machine);
        let container = json!({"name": "vm", "resources": resources});
        let (container, is_machine) =
            shape(json!({"containers": [container], "overhead": overhead}));
        assert!(!is_machine && !container.is_machine);
        assert_eq!(machine.requests, container.requests);
        assert_eq!(machine.qos, container.qos);
        let gpu = machine.requests.amounts.iter().find(|(name, _)| &**name == "example.com/gpu");
        assert_eq!(gpu.map(|(_, n)| *n), Some(1));
    }

    #[test]
    fn no_machine_is_none() {
        assert!(!shape(json!({"virtualMachine": null, "containers": []})).1);
        assert!(!shape(json!({"containers": []})).1);
    }
}
