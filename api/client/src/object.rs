//! What the client must know of an object: its metadata, its resource and its key.

use std::{borrow::Cow, cmp::Ordering, fmt, sync::Arc};

use insula_api::names::TenantName;
use k8s_openapi::{
    ClusterResourceScope, NamespaceResourceScope, Resource,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Anything that can be listed and watched.
pub trait Object: Serialize + DeserializeOwned + fmt::Debug + Send + Sync + 'static {
    fn meta(&self) -> &ObjectMeta;
    fn meta_mut(&mut self) -> &mut ObjectMeta;

    /// The media type to ask the server for when reading single objects.
    const ACCEPT: &'static str = "application/json";
    /// The media type to ask the server for when listing.
    const ACCEPT_LIST: &'static str = "application/json";
}

/// An object whose resource is known at compile time.
pub trait Kind: Object {
    /// The resource that serves objects of this kind.
    fn resource() -> ResourceRef;
}

impl<K> Object for K
where
    K: k8s_openapi::Metadata<Ty = ObjectMeta>
        + Serialize
        + DeserializeOwned
        + fmt::Debug
        + Send
        + Sync
        + 'static,
{
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.metadata_mut()
    }
}

impl<K> Kind for K
where
    K: Object + Resource,
    K::Scope: ScopeName,
{
    fn resource() -> ResourceRef {
        ResourceRef {
            group: Cow::Borrowed(K::GROUP),
            version: Cow::Borrowed(K::VERSION),
            plural: Cow::Borrowed(K::URL_PATH_SEGMENT),
            kind: Cow::Borrowed(K::KIND),
            namespaced: K::Scope::NAMESPACED,
        }
    }
}

/// Whether a scope has namespaces in its paths.
pub trait ScopeName {
    const NAMESPACED: bool;
}

impl ScopeName for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}

impl ScopeName for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

/// One resource of one API version: all that is needed to address its objects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceRef {
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    pub plural: Cow<'static, str>,
    pub kind: Cow<'static, str>,
    pub namespaced: bool,
}

impl ResourceRef {
    /// `v1` or `apps/v1`, as written in `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.plural)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        Ok(())
    }
}

/// Only the metadata of an object, of whatever kind.
///
/// The server is asked to send no more than that.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartialObject {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default)]
    pub metadata: ObjectMeta,
}

impl Object for PartialObject {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    const ACCEPT: &'static str =
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
    const ACCEPT_LIST: &'static str =
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
}

/// Names one object within its resource. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub tenant: TenantName,
    /// Empty for objects outside namespaces.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    pub fn new(tenant: &TenantName, namespace: &str, name: &str) -> Self {
        Self { tenant: tenant.clone(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.tenant, self.name)
        } else {
            write!(f, "{}/{}/{}", self.tenant, self.namespace, self.name)
        }
    }
}

/// Compares two resourceVersions of one object.
///
/// `None` if they are not decimal numbers: then they can only be told apart.
pub fn newer_version(left: &str, right: &str) -> Option<Ordering> {
    let decimal = |text: &str| text.parse::<u64>().ok();
    Some(decimal(left)?.cmp(&decimal(right)?))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{apps::v1::Deployment, core::v1::Node};

    use super::*;

    #[test]
    fn resources_come_from_the_type() {
        let deployments = Deployment::resource();
        assert_eq!(deployments.to_string(), "deployments.apps");
        assert_eq!(deployments.api_version(), "apps/v1");
        assert!(deployments.namespaced);
        let nodes = Node::resource();
        assert_eq!((nodes.to_string(), nodes.api_version()), ("nodes".into(), "v1".into()));
        assert!(!nodes.namespaced);
    }

    #[test]
    fn versions_compare_as_numbers_or_not_at_all() {
        assert_eq!(newer_version("10", "9"), Some(Ordering::Greater));
        assert_eq!(newer_version("10", "v:1,2"), None);
    }

    #[test]
    fn keys_sort_by_tenant_then_namespace() {
        let key = |tenant: &str, namespace: &str, name: &str| {
            ObjectKey::new(&TenantName::parse(tenant).unwrap(), namespace, name)
        };
        assert!(key("a", "z", "z") < key("b", "a", "a"));
        assert_eq!(key("a", "", "n").to_string(), "a/n");
        assert_eq!(key("a", "ns", "n").to_string(), "a/ns/n");
    }
}
