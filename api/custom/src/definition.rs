//! A definition, compiled: each of its versions as a resource with a schema, columns and scale.
//!
//! It holds nothing of the tenant or the object that it comes from, so equal definitions of many
//! tenants are one.

use std::sync::Arc;

use insula_api::{
    discovery::rank_of_version,
    resources::{Resource, Scope, Subresource},
    schema::Gvk,
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    jsonpath::JsonPath,
    rules,
    schema::{Schema, SchemaError},
};

/// See the module.
#[derive(Debug)]
pub struct Definition {
    pub group: String,
    pub versions: Vec<Arc<Version>>,
    pub conversion: Conversion,
    /// In `versions`.
    storage: usize,
}

/// One version.
#[derive(Debug)]
pub struct Version {
    pub resource: Arc<Resource>,
    pub list_kind: String,
    pub served: bool,
    pub schema: Schema,
    pub columns: Vec<Column>,
    pub scale: Option<Scale>,
    /// Said to everyone who uses it, if it is deprecated.
    pub warning: Option<String>,
}

/// A column of `kubectl get`.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
    pub path: JsonPath,
}

/// Where the numbers of `autoscaling/v1` Scale are.
#[derive(Debug, Clone)]
pub struct Scale {
    pub spec_replicas: Vec<String>,
    pub status_replicas: Vec<String>,
    pub selector: Option<Vec<String>>,
}

/// How objects of one version become ones of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conversion {
    /// Only `apiVersion` changes.
    None,
    Webhook(Box<Webhook>),
}

/// Who converts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Webhook {
    pub client_config: ClientConfig,
    pub conversion_review_versions: Vec<String>,
}

/// Where to reach it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientConfig {
    pub url: Option<String>,
    pub service: Option<ServiceReference>,
    /// PEM, in base64.
    pub ca_bundle: Option<String>,
}

/// A service of the tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServiceReference {
    pub namespace: String,
    pub name: String,
    pub path: Option<String>,
    pub port: Option<u16>,
}

/// Why a definition cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("it is not shaped as a definition")]
    Shape(#[from] serde_json::Error),
    #[error("version {version}: its schema cannot be used")]
    Schema {
        version: String,
        #[source]
        source: SchemaError,
    },
    #[error("no version is the storage version")]
    NoStorage,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    group: String,
    scope: String,
    versions: Vec<SpecVersion>,
    conversion: SpecConversion,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SpecConversion {
    strategy: String,
    webhook: Option<Webhook>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SpecVersion {
    name: String,
    served: bool,
    storage: bool,
    deprecated: bool,
    deprecation_warning: Option<String>,
    schema: SpecSchema,
    subresources: SpecSubresources,
    additional_printer_columns: Vec<SpecColumn>,
    selectable_fields: Vec<SpecField>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SpecSchema {
    #[serde(rename = "openAPIV3Schema")]
    schema: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SpecSubresources {
    status: Option<Value>,
    scale: Option<SpecScale>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SpecScale {
    spec_replicas_path: String,
    status_replicas_path: String,
    label_selector_path: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SpecColumn {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    format: String,
    description: String,
    priority: i64,
    json_path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SpecField {
    json_path: String,
}

/// The names of a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Names {
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
}

/// What can be done to custom resources.
const VERBS: [&str; 8] =
    ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|it| (*it).to_owned()).collect()
}

impl Definition {
    /// Compiles `spec` under the names that were accepted. Both are JSON.
    pub fn compile(spec: &[u8], names: &Names) -> Result<Self, DefinitionError> {
        let spec: Spec = serde_json::from_slice(spec)?;
        let namespaced = spec.scope == "Namespaced";
        let storage = spec.versions.iter().position(|it| it.storage);
        let storage = storage.ok_or(DefinitionError::NoStorage)?;
        let best = spec.versions.iter().filter(|it| it.served && !it.deprecated);
        let best = best.map(|it| it.name.clone()).max_by_key(|it| rank_of_version(it));
        let versions = spec
            .versions
            .into_iter()
            .map(|it| {
                Version::compile(it, &spec.group, namespaced, names, best.as_deref()).map(Arc::new)
            })
            .collect::<Result<_, _>>()?;
        let conversion = match (spec.conversion.strategy.as_str(), spec.conversion.webhook) {
            ("Webhook", Some(webhook)) => Conversion::Webhook(Box::new(webhook)),
            _ => Conversion::None,
        };
        Ok(Self { group: spec.group, versions, conversion, storage })
    }

    /// The version that objects are kept in.
    pub fn storage(&self) -> &Arc<Version> {
        &self.versions[self.storage]
    }

    pub fn version(&self, name: &str) -> Option<&Arc<Version>> {
        self.versions.iter().find(|it| it.resource.version == name)
    }
}

impl Version {
    fn compile(
        it: SpecVersion,
        group: &str,
        namespaced: bool,
        names: &Names,
        best: Option<&str>,
    ) -> Result<Self, DefinitionError> {
        let refuse = |source| DefinitionError::Schema { version: it.name.clone(), source };
        let mut schema = Schema::compile(&it.schema.schema).map_err(refuse)?;
        rules::compile(&mut schema).map_err(refuse)?;
        let mut subresources = Vec::new();
        let verbs = texts(&["get", "patch", "update"]);
        if it.subresources.status.is_some() {
            let kind = Gvk::new(group, &it.name, &names.kind);
            subresources.push(Subresource { name: "status".into(), kind, verbs: verbs.clone() });
        }
        if it.subresources.scale.is_some() {
            let kind = Gvk::new("autoscaling", "v1", "Scale");
            subresources.push(Subresource { name: "scale".into(), kind, verbs });
        }
        let api_version = insula_api::schema::api_version(group, &it.name);
        let warning = it.deprecated.then(|| {
            it.deprecation_warning.unwrap_or_else(|| {
                let kind = &names.kind;
                let better = best.filter(|best| rank_of_version(&it.name) < rank_of_version(best));
                let instead = better.map(|best| format!("; use {group}/{best} {kind}"));
                format!("{api_version} {kind} is deprecated{}", instead.unwrap_or_default())
            })
        });
        let selectable = it.selectable_fields.iter();
        let resource = Resource {
            group: group.to_owned(),
            version: it.name,
            name: names.plural.clone(),
            kind: names.kind.clone(),
            singular: names.singular.clone(),
            short_names: names.short_names.clone(),
            categories: names.categories.clone(),
            verbs: texts(&VERBS),
            scope: if namespaced { Scope::Namespaced } else { Scope::Tenant },
            subresources,
            selectable_fields: selectable
                .map(|it| it.json_path.trim_start_matches('.').to_owned())
                .collect(),
        };
        Ok(Self {
            resource: Arc::new(resource),
            list_kind: names.list_kind.clone(),
            served: it.served,
            schema,
            columns: columns(it.additional_printer_columns),
            scale: it.subresources.scale.map(|it| Scale {
                spec_replicas: steps(&it.spec_replicas_path),
                status_replicas: steps(&it.status_replicas_path),
                selector: it.label_selector_path.filter(|it| !it.is_empty()).map(|it| steps(&it)),
            }),
            warning,
        })
    }

    pub fn api_version(&self) -> String {
        self.resource.api_version()
    }
}

/// Without columns of its own, a resource has its age.
fn columns(of_spec: Vec<SpecColumn>) -> Vec<Column> {
    let mut of_spec = of_spec;
    if of_spec.is_empty() {
        of_spec.push(SpecColumn {
            name: "Age".into(),
            kind: "date".into(),
            description: "Time since the object was created.".into(),
            json_path: ".metadata.creationTimestamp".into(),
            ..SpecColumn::default()
        });
    }
    let column = |it: SpecColumn| {
        // What cannot be read shows nothing; the check of definitions has let it through.
        let path = JsonPath::parse(&it.json_path).ok()?;
        let description = match it.description.is_empty() {
            true => {
                format!("Custom resource definition column (in JSONPath format): {}", it.json_path)
            }
            false => it.description,
        };
        Some(Column {
            name: it.name,
            kind: it.kind,
            format: it.format,
            description,
            priority: it.priority,
            path,
        })
    };
    of_spec.into_iter().filter_map(column).collect()
}

fn steps(path: &str) -> Vec<String> {
    path.trim_start_matches('.').split('.').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names() -> Names {
        serde_json::from_value(json!({
            "plural": "crontabs", "singular": "crontab", "kind": "CronTab",
            "listKind": "CronTabList", "shortNames": ["ct"], "categories": ["all"],
        }))
        .unwrap()
    }

    #[test]
    fn versions_are_resources() {
        let spec = json!({"group": "example.com", "scope": "Namespaced", "versions": [
            {"name": "v1", "served": true, "storage": true,
             "schema": {"openAPIV3Schema": {"type": "object"}},
             "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
             "selectableFields": [{"jsonPath": ".spec.color"}]},
            {"name": "v1beta1", "served": true, "storage": false, "deprecated": true,
             "schema": {"openAPIV3Schema": {"type": "object"}}},
        ]});
        let it = Definition::compile(spec.to_string().as_bytes(), &names()).unwrap();
        let v1 = it.version("v1").unwrap();
        assert_eq!(it.storage().resource.version, "v1");
        assert!(v1.resource.subresource("status").is_some() && v1.resource.is_namespaced());
        assert_eq!(v1.resource.selectable_fields, ["spec.color"]);
        assert_eq!(v1.scale.as_ref().unwrap().spec_replicas, ["spec", "replicas"]);
        assert_eq!(v1.columns[0].name, "Age");
        let old = it.version("v1beta1").unwrap();
        assert_eq!(
            old.warning.as_deref(),
            Some("example.com/v1beta1 CronTab is deprecated; use example.com/v1 CronTab")
        );
    }
}
