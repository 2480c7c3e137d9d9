//! Which requests a tenant's own rules are about: webhooks' and policies' alike.

pub(crate) mod compiled;
pub(super) mod conditions;
pub(crate) mod expression;
pub(super) mod scope;

use std::sync::Arc;

use insula_api::{
    object,
    schema::Gvk,
    selector::{LabelSelector, Selector},
};
use serde::Deserialize;
use serde_json::Value;

use super::{Admission, Operation};
use crate::{
    error::{ApiError, Result},
    registry::Served,
};

/// One rule: operations on resources.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Rule {
    pub operations: Vec<String>,
    pub api_groups: Vec<String>,
    pub api_versions: Vec<String>,
    pub resources: Vec<String>,
    pub scope: Option<String>,
    /// Only objects of these names, if there are any.
    pub resource_names: Vec<String>,
}

/// What policies and their bindings are about.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct MatchResources {
    pub namespace_selector: Option<LabelSelector>,
    pub object_selector: Option<LabelSelector>,
    pub resource_rules: Vec<Rule>,
    pub exclude_resource_rules: Vec<Rule>,
    pub match_policy: Option<String>,
}

/// The labels that a namespace and an object have to have.
#[derive(Debug, Clone)]
pub(super) struct Selectors {
    namespaces: Result<Selector, String>,
    objects: Result<Selector, String>,
}

impl Selectors {
    pub(super) fn new(namespaces: Option<&LabelSelector>, objects: Option<&LabelSelector>) -> Self {
        let compile = |it: Option<&LabelSelector>| {
            it.cloned().unwrap_or_default().compile().map_err(|error| error.to_string())
        };
        Self { namespaces: compile(namespaces), objects: compile(objects) }
    }
}

/// As what a rule means the object: as it was sent, or in another version of the same resource.
#[derive(Debug, Clone)]
pub(super) struct Meant {
    pub served: Arc<Served>,
    pub kind: Gvk,
}

impl Rule {
    fn matches(&self, admission: &Admission<'_>, served: &Served) -> bool {
        let resource = &served.resource;
        let has = |list: &[String], value: &str| list.iter().any(|it| it == "*" || it == value);
        let of_resource = || {
            self.resources.iter().any(|it| {
                let (name, subresource) = it.split_once('/').unwrap_or((it, ""));
                (name == "*" || name == resource.name)
                    && (subresource == "*" || subresource == admission.subresource)
            })
        };
        self.is_in_scope(admission)
            && has(&self.operations, admission.operation.name())
            && has(&self.api_groups, &resource.group)
            && has(&self.api_versions, &resource.version)
            && of_resource()
    }

    fn is_in_scope(&self, admission: &Admission<'_>) -> bool {
        let is_namespaced = !admission.is_namespace() && !admission.namespace.is_empty();
        match self.scope.as_deref() {
            None | Some("*" | "") => true,
            Some("Namespaced") => is_namespaced,
            Some("Cluster") => !is_namespaced,
            Some(_) => false,
        }
    }

    fn has_name(&self, name: &str) -> bool {
        self.resource_names.is_empty() || self.resource_names.iter().any(|it| it == name)
    }
}

impl Admission<'_> {
    /// As what `rules` mean the object, if they do. Other versions of it count unless `is_exact`.
    pub(super) async fn meant(
        &self,
        rules: &[Rule],
        is_exact: bool,
        it: Option<&Value>,
    ) -> Result<Option<Meant>> {
        let name = self.name_of(it);
        let matches =
            |served: &Served| rules.iter().any(|it| it.matches(self, served) && it.has_name(name));
        if matches(&self.call.served) {
            return Ok(Some(self.as_sent()));
        }
        if is_exact {
            return Ok(None);
        }
        let found = self.equivalents().await?.iter().find(|served| matches(served));
        Ok(found.map(|served| Meant { served: served.clone(), kind: self.kind_in(served) }))
    }

    /// The object as it was sent.
    pub(super) fn as_sent(&self) -> Meant {
        Meant { served: self.call.served.clone(), kind: self.kind.clone() }
    }

    fn kind_in(&self, served: &Served) -> Gvk {
        match self.has_own_kind() {
            true => served.resource.gvk(),
            false => self.kind.clone(),
        }
    }

    /// Whether the object is one of the resource's own, and not of a subresource.
    pub(super) fn has_own_kind(&self) -> bool {
        self.kind == self.resource().gvk()
    }

    /// The same resource in its other versions.
    async fn equivalents(&self) -> Result<&[Arc<Served>]> {
        let found = self.equivalents.get_or_try_init(|| async {
            let own = &self.call.served;
            let is_other = |it: &&Arc<Served>| {
                it.collection == own.collection
                    && (it.resource.version != own.resource.version
                        || it.resource.group != own.resource.group)
            };
            let mut found: Vec<Arc<Served>> = Vec::new();
            if own.custom().is_some() {
                let customs = self.server.customs.of(self.server, self.tenant()?).await?;
                found.extend(customs.all().filter(is_other).cloned());
            } else {
                found.extend(self.server.registry.all().iter().filter(is_other).cloned());
            }
            Ok::<_, ApiError>(found)
        });
        Ok(found.await?)
    }

    /// An object of this request, as `meant` has it.
    pub(super) async fn shown_as(&self, meant: &Meant, it: &Value) -> Result<Value> {
        self.converted(&self.call.served, &meant.served, it).await
    }

    /// The other way round.
    pub(super) async fn taken_back(&self, meant: &Meant, it: &Value) -> Result<Value> {
        self.converted(&meant.served, &self.call.served, it).await
    }

    async fn converted(&self, from: &Arc<Served>, to: &Arc<Served>, it: &Value) -> Result<Value> {
        if Arc::ptr_eq(from, to) || !self.has_own_kind() || it.is_null() {
            return Ok(it.clone());
        }
        let mut made = self.server.keep(from, it).await?.into_owned();
        self.server.show_value(to, &mut made).await?;
        Ok(made)
    }

    /// Whether the namespace and the object have the labels that are wanted.
    pub(super) async fn is_selected(
        &self,
        selectors: &Selectors,
        it: Option<&Value>,
    ) -> Result<bool> {
        let unusable = |why: &String| ApiError::internal(why);
        let namespaces = selectors.namespaces.as_ref().map_err(unusable)?;
        let is_about_one = self.is_namespace() || !self.namespace.is_empty();
        if is_about_one && !namespaces.is_empty() && !self.in_selected(namespaces, it).await? {
            return Ok(false);
        }
        let objects = selectors.objects.as_ref().map_err(unusable)?;
        let has = |it: Option<&Value>| it.is_some_and(|it| is_labelled(objects, it));
        Ok(objects.is_empty() || has(it) || has(self.old))
    }

    async fn in_selected(&self, selector: &Selector, it: Option<&Value>) -> Result<bool> {
        let is_written = matches!(self.operation, Operation::Create | Operation::Update);
        if self.is_namespace() && self.subresource.is_empty() && is_written {
            return Ok(it.is_some_and(|it| is_labelled(selector, it)));
        }
        let namespace = self.namespace_object().await?;
        Ok(is_labelled(selector, namespace))
    }

    /// The namespace that the request is about.
    pub(super) async fn namespace_object(&self) -> Result<&Value> {
        let found = self.namespace_found.get_or_try_init(|| async {
            let name = self.namespace.as_str();
            let found = self.find("", "namespaces", "", name).await?;
            found.ok_or_else(|| ApiError::not_found("", "namespaces", name))
        });
        Ok(found.await?.as_ref())
    }
}

/// Whether the labels of `it` are as `selector` wants them.
pub(super) fn is_labelled(selector: &Selector, it: &Value) -> bool {
    let labels = object::metadata(it).get("labels");
    selector.matches_by(|key| labels?.get(key)?.as_str())
}
