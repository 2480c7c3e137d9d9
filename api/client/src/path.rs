//! Request paths and queries, in the prefix form.

use std::fmt::{Display, Write};

use crate::ResourceRef;

/// The path of a collection: `/tenants/acme/api/v1/namespaces/default/pods`.
pub(crate) fn collection(tenant: &str, resource: &ResourceRef, namespace: Option<&str>) -> String {
    let mut path = format!("/tenants/{tenant}");
    if resource.group.is_empty() {
        path.push_str("/api");
    } else {
        path.push_str("/apis");
        push(&mut path, &resource.group);
    }
    push(&mut path, &resource.version);
    if let Some(namespace) = namespace {
        path.push_str("/namespaces");
        push(&mut path, namespace);
    }
    push(&mut path, &resource.plural);
    path
}

/// A path without the tenant that it begins with, as a plain Kubernetes has it.
pub(crate) fn without_tenant(path: &str) -> &str {
    let after = path.strip_prefix("/tenants/").and_then(|it| it.find('/').map(|at| &it[at..]));
    after.unwrap_or(path)
}

/// Appends a segment, escaped.
pub(crate) fn push(path: &mut String, segment: &str) {
    path.push('/');
    escape(path, segment);
}

/// Builds a query one parameter at a time.
#[derive(Debug, Default)]
pub(crate) struct Query(String);

impl Query {
    pub(crate) fn add(&mut self, name: &str, value: impl Display) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        escape(&mut self.0, &value.to_string());
    }

    pub(crate) fn add_some<T: Display>(&mut self, name: &str, value: Option<T>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{apps::v1::Deployment, core::v1::Node};

    use super::*;
    use crate::Kind;

    #[test]
    fn paths() {
        assert_eq!(collection("all", &Node::resource(), None), "/tenants/all/api/v1/nodes");
        assert_eq!(
            collection("acme", &Deployment::resource(), Some("web")),
            "/tenants/acme/apis/apps/v1/namespaces/web/deployments"
        );
    }

    #[test]
    fn plain_paths() {
        assert_eq!(without_tenant("/tenants/acme/api/v1/nodes?limit=1"), "/api/v1/nodes?limit=1");
        assert_eq!(without_tenant("/version"), "/version");
    }

    #[test]
    fn odd_names_stay_one_segment() {
        let mut path = String::new();
        push(&mut path, "system:a/../b?c");
        assert_eq!(path, "/system%3Aa%2F..%2Fb%3Fc");
    }

    #[test]
    fn queries() {
        let mut query = Query::default();
        assert_eq!(query.as_str(), "");
        query.add("labelSelector", "a in (b,c)");
        query.add_some("limit", Some(5));
        query.add_some("continue", None::<&str>);
        assert_eq!(query.as_str(), "?labelSelector=a%20in%20%28b%2Cc%29&limit=5");
    }
}
