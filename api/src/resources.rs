//! The table of built-in resources: what `kubectl api-resources` shows, plus each one's scope.
//!
//! A resource is data. Built-in ones come from `tables/resources.tsv` (Kubernetes 1.36) and
//! `tables/insula-resources.tsv` (ours).

use std::sync::LazyLock;

use crate::schema::{Gvk, api_version};

const TABLES: [&str; 2] =
    [include_str!("../tables/resources.tsv"), include_str!("../tables/insula-resources.tsv")];

/// Who owns the objects of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// In a namespace of a tenant.
    Namespaced,
    /// Each tenant has its own, as if alone.
    Tenant,
    /// Each tenant has its own and sees those of `system` read-only.
    Overlay,
    /// Only `system` has them; tenants see what the platform grants.
    Fleet,
}

/// One resource of one group version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// `""` for the core group.
    pub group: String,
    pub version: String,
    /// Plural, as in paths.
    pub name: String,
    pub kind: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub verbs: Vec<String>,
    pub scope: Scope,
    pub subresources: Vec<Subresource>,
    /// Fields that selectors may ask for, as dotted paths, beyond those that the matcher knows.
    pub selectable_fields: Vec<String>,
}

/// A part of an object, or an action on it, with a path of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    pub name: String,
    /// The kind it is read and written as.
    pub kind: Gvk,
    pub verbs: Vec<String>,
}

impl Resource {
    pub fn gvk(&self) -> Gvk {
        Gvk::new(&self.group, &self.version, &self.kind)
    }

    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `pods` or `deployments.apps`, as messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.name.clone()
        } else {
            format!("{}.{}", self.name, self.group)
        }
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// Of the platform's own kinds, which tenants have no part of.
    pub fn is_platforms(&self) -> bool {
        self.group == "insula.io" && self.scope == Scope::Fleet
    }

    /// Objects of this resource are kept, unlike reviews that only get an answer.
    pub fn is_stored(&self) -> bool {
        self.has_verb("get")
    }
}

/// All built-in resources that are on by default, in table order.
pub fn built_in() -> &'static [Resource] {
    static RESOURCES: LazyLock<Vec<Resource>> = LazyLock::new(parse);
    &RESOURCES
}

/// Alpha and beta versions are off by default, as upstream; but for groups of pods, which our
/// scheduler goes by, and for what is measured, which is of no other version.
fn is_served(group: &str, version: &str) -> bool {
    let is_stable = !version.contains("alpha") && !version.contains("beta");
    let is_used = matches!(
        (group, version),
        ("scheduling.k8s.io", "v1alpha2") | ("metrics.k8s.io", "v1beta1")
    );
    is_stable || is_used
}

fn scope(group: &str, name: &str) -> Scope {
    match (group, name) {
        ("", "nodes" | "componentstatuses")
        | ("storage.k8s.io", "csinodes" | "volumeattachments")
        | ("resource.k8s.io", "resourceslices")
        | ("metrics.k8s.io", "nodes") => Scope::Fleet,
        ("insula.io", name) if !matches!(name, "authenticationconfigurations" | "tenantquotas") => {
            Scope::Fleet
        }
        ("storage.k8s.io", "storageclasses" | "csidrivers" | "volumeattributesclasses")
        | ("node.k8s.io", "runtimeclasses")
        | ("scheduling.k8s.io", "priorityclasses")
        | ("resource.k8s.io", "deviceclasses") => Scope::Overlay,
        _ => Scope::Tenant,
    }
}

fn parse() -> Vec<Resource> {
    let list = |text: &str| -> Vec<String> {
        text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    let mut out: Vec<Resource> = Vec::new();
    let lines = TABLES.iter().flat_map(|table| table.lines());
    for line in lines.filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let mut columns = [""; 10];
        for (slot, column) in columns.iter_mut().zip(line.split('\t')) {
            *slot = column;
        }
        let [
            group_version,
            path,
            kind,
            kind_group,
            kind_version,
            place,
            singular,
            short,
            categories,
            verbs,
        ] = columns;
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        if !is_served(group, version) {
            continue;
        }
        let Some((name, sub)) = path.split_once('/') else {
            out.push(Resource {
                group: group.into(),
                version: version.into(),
                name: path.into(),
                kind: kind.into(),
                singular: singular.into(),
                short_names: list(short),
                categories: list(categories),
                verbs: list(verbs),
                scope: if place == "namespaced" { Scope::Namespaced } else { scope(group, path) },
                subresources: Vec::new(),
                selectable_fields: Vec::new(),
            });
            continue;
        };
        let parent = out
            .iter_mut()
            .find(|it| (&*it.group, &*it.version, &*it.name) == (group, version, name));
        if let Some(parent) = parent {
            let kind = if kind_version.is_empty() {
                Gvk::new(group, version, kind)
            } else {
                Gvk::new(kind_group, kind_version, kind)
            };
            parent.subresources.push(Subresource { name: sub.into(), kind, verbs: list(verbs) });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    fn get(group: &str, name: &str) -> &'static Resource {
        built_in().iter().find(|it| it.group == group && it.name == name).unwrap()
    }

    #[test]
    fn pods_and_scale() {
        let pods = get("", "pods");
        assert_eq!((pods.scope, &*pods.short_names[0]), (Scope::Namespaced, "po"));
        assert!(pods.subresource("log").is_some());
        let scale = get("apps", "deployments").subresource("scale").unwrap();
        assert_eq!(scale.kind, Gvk::new("autoscaling", "v1", "Scale"));
    }

    #[test]
    fn scopes() {
        assert_eq!(get("", "nodes").scope, Scope::Fleet);
        assert_eq!(get("", "namespaces").scope, Scope::Tenant);
        assert_eq!(get("storage.k8s.io", "storageclasses").scope, Scope::Overlay);
        assert_eq!(get("insula.io", "tenants").scope, Scope::Fleet);
        assert_eq!(get("insula.io", "authenticationconfigurations").scope, Scope::Tenant);
    }

    #[test]
    fn every_kind_has_a_type() {
        let schema = Schema::built_in();
        for it in built_in() {
            assert!(schema.by_kind(&it.gvk()).is_some(), "{:?}", it.gvk());
        }
    }
}
