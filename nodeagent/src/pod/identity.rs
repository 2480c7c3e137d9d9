//! Which pod a thing of the runtime belongs to.
//!
//! All that the agent must find again after a restart stands in labels and annotations of the
//! runtime's sandboxes and containers. The label names are those that tools around runtimes know;
//! `io.insula.*` are ours.

use std::{fmt, sync::Arc};

use insula_api::names::TenantName;
use k8s_openapi::api::core::v1::Pod;

pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const POD_TENANT: &str = "io.insula.pod.tenant";
/// The agent that made the sandbox, by its directory: agents of several clouds may share a runtime
/// and even have the same node's name, but never a directory.
pub(crate) const AGENT: &str = "io.insula.agent";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";

pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// The image of the spec the container was made from: another one there means another container.
pub(crate) const IMAGE: &str = "io.insula.container.image";
pub(crate) const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub(crate) const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub(crate) const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Seconds to wait before the successor of this container starts.
pub(crate) const RESTART_DELAY: &str = "io.insula.container.restartDelaySeconds";

/// Names one pod, forever. Cheap to clone.
///
/// Two tenants may have pods of the same namespace and name, and a pod of the same name may come
/// again; only all four together, or the uid alone, say which pod is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PodKey {
    pub tenant: TenantName,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Arc<str>,
}

impl PodKey {
    /// `None` if the pod has no uid, namespace or name, or one that could not be a file's name.
    pub(crate) fn of(tenant: &TenantName, pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        Self::new(
            tenant.clone(),
            meta.namespace.as_deref()?,
            meta.name.as_deref()?,
            meta.uid.as_deref()?,
        )
    }

    /// The pod that a sandbox or container was made for.
    pub(crate) fn from_labels(labels: &std::collections::HashMap<String, String>) -> Option<Self> {
        let label = |name| labels.get(name).map(String::as_str);
        Self::new(
            TenantName::parse(label(POD_TENANT)?).ok()?,
            label(POD_NAMESPACE)?,
            label(POD_NAME)?,
            label(POD_UID)?,
        )
    }

    /// Namespace, name and uid become parts of paths, so what cannot be one is no key.
    pub(crate) fn new(tenant: TenantName, namespace: &str, name: &str, uid: &str) -> Option<Self> {
        let is_part = |text: &str| {
            (1..=253).contains(&text.len())
                && !text.starts_with('.')
                && text.bytes().all(|it| it.is_ascii_alphanumeric() || b"-._".contains(&it))
        };
        (is_part(namespace) && is_part(name) && is_part(uid)).then(|| Self {
            tenant,
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
        })
    }

    /// The name of this pod's directory of logs.
    pub(crate) fn log_directory(&self) -> String {
        format!("{}_{}_{}_{}", self.tenant, self.namespace, self.name, self.uid)
    }

    /// The labels that sandboxes of this pod carry; its containers carry one more.
    pub(crate) fn labels(&self, agent: &str) -> std::collections::HashMap<String, String> {
        [
            (POD_TENANT, self.tenant.as_str()),
            (POD_NAMESPACE, &self.namespace),
            (POD_NAME, &self.name),
            (POD_UID, &self.uid),
            (AGENT, agent),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_lead_back_to_the_pod() {
        let key = PodKey::new(TenantName::system(), "ns", "a.b", "0-1").unwrap();
        assert_eq!(PodKey::from_labels(&key.labels("n")), Some(key));
    }

    #[test]
    fn what_is_no_path_segment_is_no_key() {
        for bad in ["", "..", "a/b", ".a", "a\0"] {
            assert!(PodKey::new(TenantName::system(), "ns", "n", bad).is_none(), "{bad:?}");
            assert!(PodKey::new(TenantName::system(), bad, "n", "u").is_none(), "{bad:?}");
        }
    }
}
