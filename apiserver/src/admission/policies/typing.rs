//! Whether the expressions of a policy make sense for the kinds that it is about.
//!
//! A policy is let in if its expressions make sense for any object; what is known of the kinds
//! it names is told in its status, and changes nothing of what it does.

use std::{collections::BTreeSet, sync::Arc};

use insula_api::{
    names::TenantName,
    object::{self, Stored},
    schema::{Gvk, Schema, Shape, TypeId},
};
use insula_cel::{
    Decl,
    decl::{DeclKind, Fields},
    escape::escape,
};
use insula_partition::store::{Change, Expect, ReadAt, StoreError, Write};
use serde::Deserialize;
use serde_json::{Value, json};

use super::written::{Declared, ParamKind, Variable};
use crate::{
    Server,
    admission::rules::{
        MatchResources,
        expression::{Has, Wants, declared_with},
    },
    custom::OfTenant,
    error::{ApiError, Result},
    registry::{self, Nature, Served},
};

const GROUP: &str = "admissionregistration.k8s.io";
const RESOURCE: &str = "validatingadmissionpolicies";
/// Most kinds that one rule is checked for.
const MAX_KINDS: usize = 10;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Validation {
    expression: String,
    message_expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    param_kind: Option<ParamKind>,
    match_constraints: MatchResources,
    variables: Vec<Variable>,
    validations: Vec<Validation>,
}

/// Whether objects of this resource have their types checked.
pub(in crate::admission) fn is_checked(served: &Served) -> bool {
    served.resource.group == GROUP && served.resource.name == RESOURCE
}

/// Checks the types of a policy that has changed, and writes into its status what was found.
pub(in crate::admission) async fn settle(
    server: &Server,
    tenant: &TenantName,
    name: &str,
) -> Result<()> {
    let Some(served) = server.registry.get(GROUP, "v1", RESOURCE) else { return Ok(()) };
    let key = registry::key(tenant, "", name);
    let (_, store) = served.place(&server.partitions, tenant, "", name);
    let snapshot = store.read(&served.collection, ReadAt::Latest).await?;
    let Some(entry) = snapshot.get(&key).cloned() else { return Ok(()) };
    let mut stored = Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
    let policy = &mut stored.object;
    let generation = object::metadata(policy).get("generation").cloned().unwrap_or_default();
    let status = policy.get("status");
    let seen = status.and_then(|it| it.get("observedGeneration"));
    let is_done =
        seen == Some(&generation) && status.is_some_and(|it| it.get("typeChecking").is_some());
    if is_done || object::is_deleting(policy) {
        return Ok(());
    }
    let customs = server.customs.of(server, tenant).await?;
    let warnings = check(server, &customs, policy);
    let status = &mut policy["status"];
    status["observedGeneration"] = generation;
    status["typeChecking"] = match warnings.is_empty() {
        true => json!({}),
        false => json!({ "expressionWarnings": warnings }),
    };
    let write = Write::durable(
        served.collection.clone(),
        key.as_str(),
        Expect::At(entry.modified),
        Change::Put(stored.encoded().into()),
    );
    match store.write(write).await {
        // Whoever was faster has it checked as it is now.
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The warnings about a policy's expressions.
fn check(server: &Server, customs: &OfTenant, policy: &Value) -> Vec<Value> {
    let spec = policy.get("spec").unwrap_or(&Value::Null);
    let Ok(spec) = Spec::deserialize(spec) else { return Vec::new() };
    let all: Vec<&Arc<Served>> = server.registry.all().iter().chain(customs.all()).collect();
    let kinds = kinds_of(&spec.match_constraints, &all);
    let params = spec.param_kind.as_ref().and_then(|wanted| {
        let served = all.iter().find(|it| {
            it.resource.kind == wanted.kind && it.resource.api_version() == wanted.api_version
        });
        served.map(|it| decl_of(it))
    });
    let params_decl = params.unwrap_or_else(dynamic);
    let has = Has { params: spec.param_kind.is_some(), authorizer: true };
    let environments: Vec<(Gvk, Declared)> = kinds
        .iter()
        .map(|served| {
            let mut declared = Declared::new(declared_with(has, &decl_of(served), &params_decl));
            for variable in &spec.variables {
                declared.variable(variable);
            }
            (served.resource.gvk(), declared)
        })
        .collect();
    let mut warnings = Vec::new();
    for (index, validation) in spec.validations.iter().enumerate() {
        for (field, source) in [
            ("expression", &validation.expression),
            ("messageExpression", &validation.message_expression),
        ] {
            if source.is_empty() {
                continue;
            }
            let each = environments.iter().filter_map(|(kind, declared)| {
                let expression = declared.compile(source, Wants::Anything);
                let error = expression.error()?;
                let error = error.strip_prefix("compilation failed: ").unwrap_or(error);
                Some(format!("{}, Kind={}: {error}\n", kind.api_version(), kind.kind))
            });
            let found: Vec<String> = each.collect();
            if !found.is_empty() {
                warnings.push(json!({
                    "fieldRef": format!("spec.validations[{index}].{field}"),
                    "warning": found.join("\n"),
                }));
            }
        }
    }
    warnings
}

/// The resources that a policy names, without those that it only hints at by wildcards.
fn kinds_of<'a>(constraints: &MatchResources, all: &[&'a Arc<Served>]) -> Vec<&'a Arc<Served>> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for rule in &constraints.resource_rules {
        let is_wild = |list: &[String]| list.iter().any(|it| it.contains('*'));
        if is_wild(&rule.api_groups) || is_wild(&rule.api_versions) {
            continue;
        }
        let is_named = |it: &&&Arc<Served>| {
            let resource = &it.resource;
            rule.api_groups.contains(&resource.group)
                && rule.api_versions.contains(&resource.version)
                && rule.resources.contains(&resource.name)
        };
        for served in all.iter().filter(is_named) {
            if MAX_KINDS <= found.len() {
                break;
            }
            let kind = served.resource.gvk();
            if names.insert((kind.group, kind.version, kind.kind)) {
                found.push(*served);
            }
        }
    }
    found.sort_by_key(|it| {
        let resource = &it.resource;
        (resource.group.clone(), resource.version.clone(), resource.kind.clone())
    });
    found
}

fn dynamic() -> Decl {
    Decl::of(DeclKind::Dyn)
}

/// What is known of the objects of a resource.
fn decl_of(served: &Served) -> Decl {
    let schema = Schema::built_in();
    match &served.nature {
        Nature::BuiltIn(id) => of_type(schema, *id, &mut Vec::new()),
        Nature::Custom(custom) => {
            let decl = insula_custom::rules::declared(&custom.version.schema);
            let metadata = schema
                .by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
                .map(|id| of_type(schema, id, &mut Vec::new()));
            match (decl.kind, metadata) {
                (DeclKind::Object(fields), Some(metadata)) => {
                    let mut all = fields.fields.clone();
                    all.insert("metadata".into(), ("metadata".into(), metadata));
                    let fields = Fields { name: fields.name.clone(), fields: all };
                    Decl::of(DeclKind::Object(fields.into()))
                }
                (kind, _) => Decl::of(kind),
            }
        }
    }
}

/// A type with all that is in it. `above` are the types that it is in: one that is in itself is
/// not followed.
fn of_type(schema: &Schema, id: TypeId, above: &mut Vec<TypeId>) -> Decl {
    if above.contains(&id) {
        return dynamic();
    }
    above.push(id);
    let of = schema.get(id);
    let fields = of.fields.iter().filter_map(|field| {
        let decl = of_shape(schema, &field.shape, above);
        Some((escape(field.name)?, (field.name.to_owned(), decl)))
    });
    let fields = Fields { name: of.short_name().to_owned(), fields: fields.collect() };
    above.pop();
    Decl::of(DeclKind::Object(fields.into()))
}

fn of_shape(schema: &Schema, shape: &Shape, above: &mut Vec<TypeId>) -> Decl {
    Decl::of(match shape {
        Shape::String | Shape::Quantity | Shape::Duration => DeclKind::Text,
        Shape::Bytes => DeclKind::Bytes,
        Shape::Bool => DeclKind::Bool,
        Shape::Int32 | Shape::Int64 => DeclKind::Int,
        Shape::Double => DeclKind::Double,
        Shape::Time | Shape::MicroTime => DeclKind::Timestamp,
        Shape::IntOrString | Shape::Raw | Shape::Any | Shape::Either(..) => DeclKind::Dyn,
        Shape::Object(id) => return of_type(schema, *id, above),
        Shape::List(item) => DeclKind::List(of_shape(schema, item, above).into()),
        Shape::Map(value) => DeclKind::Map(of_shape(schema, value, above).into()),
    })
}
