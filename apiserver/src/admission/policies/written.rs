//! Policies and bindings as they are written, and what they are compiled to.

use insula_api::selector::LabelSelector;
use insula_cel::Decl;
use serde::Deserialize;
use serde_json::Value;

use super::variables::Own;
use crate::{
    admission::{
        Admission,
        rules::{
            MatchResources, Meant, Rule, Selectors,
            conditions::{Conditions, MatchCondition},
            expression::{Expression, Has, Wants, declared, no_variables},
        },
    },
    error::Result,
};

/// The kind of a policy's parameters.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(in crate::admission) struct ParamKind {
    pub api_version: String,
    pub kind: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(in crate::admission) struct Variable {
    pub name: String,
    pub expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WrittenValidation {
    expression: String,
    message: String,
    message_expression: String,
    reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WrittenAnnotation {
    key: String,
    value_expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Source {
    expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WrittenMutation {
    patch_type: String,
    apply_configuration: Source,
    json_patch: Source,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WrittenPolicy {
    param_kind: Option<ParamKind>,
    match_constraints: Option<MatchResources>,
    match_conditions: Vec<MatchCondition>,
    variables: Vec<Variable>,
    validations: Vec<WrittenValidation>,
    audit_annotations: Vec<WrittenAnnotation>,
    mutations: Vec<WrittenMutation>,
    failure_policy: Option<String>,
    reinvocation_policy: Option<String>,
}

/// What a policy or a binding is about.
#[derive(Debug)]
pub(in crate::admission) struct Matching {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    selectors: Selectors,
    is_exact: bool,
}

impl Matching {
    fn new(it: MatchResources) -> Self {
        Self {
            selectors: Selectors::new(it.namespace_selector.as_ref(), it.object_selector.as_ref()),
            // Only the default that the server fills in is a loose one.
            is_exact: it.match_policy.as_deref() != Some("Equivalent"),
            rules: it.resource_rules,
            excluded: it.exclude_resource_rules,
        }
    }

    /// As what it means the object, if it does.
    pub(super) async fn meant(
        &self,
        admission: &Admission<'_>,
        it: Option<&Value>,
    ) -> Result<Option<Meant>> {
        if admission.meant(&self.excluded, self.is_exact, it).await?.is_some() {
            return Ok(None);
        }
        let meant = match self.rules.is_empty() {
            true => Some(admission.as_sent()),
            false => admission.meant(&self.rules, self.is_exact, it).await?,
        };
        let is_selected = meant.is_some() && admission.is_selected(&self.selectors, it).await?;
        Ok(meant.filter(|_| is_selected))
    }
}

/// What must hold.
#[derive(Debug)]
pub(super) struct Validation {
    pub expression: Expression,
    pub message: String,
    pub message_expression: Option<Expression>,
    pub reason: Option<String>,
}

/// What changes.
#[derive(Debug)]
pub(super) enum Mutation {
    Apply(Expression),
    Patch(Expression),
}

/// A compiled policy of either kind.
#[derive(Debug)]
pub(in crate::admission) struct Policy {
    pub(super) params: Option<ParamKind>,
    pub(super) matching: Matching,
    pub(super) conditions: Conditions,
    pub(super) variables: Own,
    pub(super) validations: Vec<Validation>,
    pub(super) annotations: Vec<(String, Expression)>,
    pub(super) mutations: Vec<Mutation>,
    /// Whether what cannot be evaluated refuses the request.
    pub(super) fails: bool,
    pub(super) is_reinvoked: bool,
}

/// The variables of expressions, of which some are compiled one after the other.
#[derive(Debug)]
pub(in crate::admission) struct Declared(Vec<(String, Decl)>);

impl Declared {
    pub(in crate::admission) fn new(base: Vec<(&'static str, Decl)>) -> Self {
        let base = base.into_iter().chain([no_variables()]);
        Self(base.map(|(name, it)| (name.to_owned(), it)).collect())
    }

    pub(in crate::admission) fn compile(&self, source: &str, wants: Wants) -> Expression {
        let list: Vec<(&str, Decl)> =
            self.0.iter().map(|(name, it)| (name.as_str(), it.clone())).collect();
        Expression::new(source, &list, wants)
    }

    /// Compiles a variable, which those after it can use.
    pub(in crate::admission) fn variable(&mut self, it: &Variable) -> Expression {
        let expression = self.compile(&it.expression, Wants::Anything);
        self.0.push((format!("variables.{}", it.name), expression.decl()));
        expression
    }
}

/// Compiles a policy. What is wrong with its expressions shows when they are asked.
pub(in crate::admission) fn compile(policy: &Value) -> Result<Policy, serde_json::Error> {
    let spec = policy.get("spec").unwrap_or(&Value::Null);
    let written = WrittenPolicy::deserialize(spec)?;
    let params = written.param_kind.is_some();
    let mut whole = Declared::new(declared(Has { params, authorizer: true }));
    let mut quiet = Declared::new(declared(Has { params, authorizer: false }));
    let mut variables = Own::default();
    for it in &written.variables {
        quiet.variable(it);
        variables.push(&it.name, whole.variable(it));
    }
    let fails = written.failure_policy.as_deref() != Some("Ignore");
    let validation = |it: WrittenValidation| Validation {
        expression: whole.compile(&it.expression, Wants::Bool),
        message_expression: Some(it.message_expression.trim())
            .filter(|it| !it.is_empty())
            .map(|source| quiet.compile(source, Wants::Text)),
        message: it.message,
        reason: it.reason,
    };
    let mutation = |it: WrittenMutation| match it.patch_type.as_str() {
        "JSONPatch" => {
            Mutation::Patch(whole.compile(it.json_patch.expression.trim(), Wants::Patches))
        }
        _ => {
            Mutation::Apply(whole.compile(it.apply_configuration.expression.trim(), Wants::Object))
        }
    };
    let annotation = |it: WrittenAnnotation| {
        (it.key, whole.compile(it.value_expression.trim(), Wants::TextOrNull))
    };
    Ok(Policy {
        conditions: Conditions::new(&written.match_conditions, fails, params),
        params: written.param_kind,
        matching: Matching::new(written.match_constraints.unwrap_or_default()),
        validations: written.validations.into_iter().map(validation).collect(),
        annotations: written.audit_annotations.into_iter().map(annotation).collect(),
        mutations: written.mutations.into_iter().map(mutation).collect(),
        variables,
        fails,
        is_reinvoked: written.reinvocation_policy.as_deref() == Some("IfNeeded"),
    })
}

impl Policy {
    fn expressions(&self) -> impl Iterator<Item = &Expression> {
        let of_validations = self
            .validations
            .iter()
            .flat_map(|it| std::iter::once(&it.expression).chain(it.message_expression.as_ref()));
        let of_mutations = self.mutations.iter().map(|it| match it {
            Mutation::Apply(it) | Mutation::Patch(it) => it,
        });
        of_validations.chain(of_mutations).chain(self.annotations.iter().map(|(_, it)| it))
    }

    /// Whether somebody has to be asked who may do what.
    pub(super) fn needs_judge(&self) -> bool {
        let name = "authorizer";
        self.conditions.uses(name)
            || self.expressions().any(|it| it.uses(name))
            || self.variables.use_it(name)
    }
}

/// Which parameters a binding gives its policy.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ParamRef {
    pub name: String,
    pub namespace: String,
    pub selector: Option<LabelSelector>,
    pub parameter_not_found_action: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WrittenBinding {
    policy_name: String,
    param_ref: Option<ParamRef>,
    match_resources: Option<MatchResources>,
    validation_actions: Vec<String>,
}

/// A compiled binding of either kind.
#[derive(Debug)]
pub(in crate::admission) struct Binding {
    pub(super) policy_name: String,
    pub(super) params: Option<ParamRef>,
    pub(super) matching: Option<Matching>,
    pub(super) actions: Vec<String>,
}

/// Compiles a binding.
pub(in crate::admission) fn compile_binding(binding: &Value) -> Result<Binding, serde_json::Error> {
    let spec = binding.get("spec").unwrap_or(&Value::Null);
    let written = WrittenBinding::deserialize(spec)?;
    Ok(Binding {
        policy_name: written.policy_name,
        params: written.param_ref,
        matching: written.match_resources.map(Matching::new),
        actions: written.validation_actions,
    })
}

impl Binding {
    /// Whether it puts its policy in force for this request.
    pub(super) async fn matches(
        &self,
        admission: &Admission<'_>,
        it: Option<&Value>,
    ) -> Result<bool> {
        match &self.matching {
            None => Ok(true),
            Some(matching) => Ok(matching.meant(admission, it).await?.is_some()),
        }
    }
}
