//! Policies that refuse.

use futures::{FutureExt as _, future::BoxFuture};
use http::StatusCode;
use insula_cel::Value as Cel;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Context, bindings_of,
    params::{self, Found},
    variables::Computed,
    written::{Binding, Policy, Validation},
};
use crate::{
    admission::{
        Admission,
        rules::{
            compiled::Entry,
            expression::{BUDGET, OutOfBudget},
        },
    },
    error::{ApiError, Result},
    metrics::Checked,
};

/// Longest message that an expression may make, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;
/// Longest value of an annotation, in bytes.
const MAX_ANNOTATION: usize = 10 * 1024;

/// Something that a policy found wrong.
#[derive(Debug, Clone)]
struct Denial {
    /// Which of its expressions.
    index: usize,
    message: String,
    reason: Option<String>,
    /// What kept an expression from being evaluated, as metrics have it.
    error: &'static str,
}

/// An expression was evaluated, and is false.
const NO_ERROR: &str = "no_error";
/// It could not be.
const INVALID: &str = "invalid_error";
/// It, and those before it, cost too much.
const OUT_OF_BUDGET: &str = "out_of_budget";

impl Denial {
    fn failed(index: usize, message: impl Into<String>) -> Self {
        Self { index, message: message.into(), reason: None, error: INVALID }
    }

    fn out_of_budget(error: OutOfBudget) -> Self {
        Self { error: OUT_OF_BUDGET, ..Self::failed(0, error.to_string()) }
    }
}

/// What one evaluation of a policy came to.
#[derive(Debug, Default)]
struct Outcome {
    denials: Vec<Denial>,
    /// That refuse whatever the binding says.
    faults: Vec<Denial>,
    /// That refuse nothing, because the policy says so.
    passed: Vec<Denial>,
    annotations: Vec<(String, String)>,
}

/// Has all policies of the tenant look at the object.
pub(in crate::admission) fn validate<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let found = admission.server.rules.validating_policies.of(admission).await?;
        let Some((policies, bindings)) = found else { return Ok(()) };
        let mut refused: Option<ApiError> = None;
        for policy in policies.iter() {
            let mut own = bindings_of(policy, &bindings).peekable();
            if own.peek().is_none() {
                continue;
            }
            let own: Vec<&Entry<Binding>> = own.collect();
            let error = run(admission, policy, &own, it).await?;
            refused = refused.or(error);
        }
        refused.map_or(Ok(()), Err)
    }
    .boxed()
}

/// Runs one policy with all its bindings. Returns the first refusal.
async fn run(
    admission: &Admission<'_>,
    entry: &Entry<Policy>,
    bindings: &[&Entry<Binding>],
    it: Option<&Value>,
) -> Result<Option<ApiError>> {
    let policy = &entry.compiled;
    let unusable = |binding: Option<&str>, why: &str| {
        let what = if binding.is_some() { "binding" } else { "policy" };
        let denial = Denial::failed(0, format!("failed to configure {what}: {why}"));
        policy.fails.then(|| refusal(admission, it, &entry.name, binding, &denial))
    };
    let meant = match policy.matching.meant(admission, it).await {
        Ok(Some(meant)) => meant,
        Ok(None) => return Ok(None),
        Err(error) => return Ok(unusable(None, &error.message)),
    };
    let served = match &policy.params {
        None => None,
        Some(kind) => match params::resource_of(admission, kind).await? {
            Some(served) => Some(served),
            None => {
                let (group, version) =
                    kind.api_version.split_once('/').unwrap_or(("", &kind.api_version));
                let why = format!(
                    "failed to find resource referenced by paramKind: '{group}/{version}, Kind={}'",
                    kind.kind
                );
                return Ok(unusable(None, &why));
            }
        },
    };
    let mut refused = None;
    let mut annotations: Vec<(String, Vec<String>)> = Vec::new();
    let mut context = None;
    for binding in bindings {
        match binding.compiled.matches(admission, it).await {
            Ok(true) => (),
            Ok(false) => continue,
            Err(error) => {
                refused = refused.or_else(|| unusable(Some(&binding.name), &error.message));
                continue;
            }
        }
        let params = binding.compiled.params.as_ref();
        let found = params::find(admission, served.as_ref(), params).await?;
        if let Found::Unusable(why) = &found {
            refused = refused.or_else(|| unusable(Some(&binding.name), why));
            continue;
        }
        let context = match &mut context {
            Some(context) => context,
            none => {
                let made = Context::new(admission, &meant, it, policy.needs_judge()).await?;
                none.insert(made)
            }
        };
        for param in found.each() {
            admission.go_on().await?;
            let begun = Instant::now();
            let outcome = evaluate(admission, policy, context, param);
            let took = begun.elapsed();
            let count = |denial: &Denial, action: &'static str| {
                admission.server.metrics.admissions().checked(Checked {
                    policy: &entry.name,
                    binding: &binding.name,
                    error_type: denial.error,
                    action,
                    took,
                });
            };
            outcome.passed.iter().for_each(|it| count(it, "allow"));
            outcome.faults.iter().for_each(|it| count(it, "deny"));
            for denial in &outcome.denials {
                for action in &binding.compiled.actions {
                    match action.as_str() {
                        "Deny" => count(denial, "deny"),
                        "Warn" => count(denial, "warn"),
                        "Audit" => count(denial, "audit"),
                        _ => (),
                    }
                }
                let error = act(admission, it, entry, binding, denial);
                refused = refused.or(error);
            }
            for fault in &outcome.faults {
                let error = refusal(admission, it, &entry.name, Some(&binding.name), fault);
                refused = refused.or(Some(error));
            }
            for (key, value) in outcome.annotations {
                match annotations.iter_mut().find(|(known, _)| *known == key) {
                    Some((_, values)) if values.contains(&value) => (),
                    Some((_, values)) => values.push(value),
                    None => annotations.push((key, vec![value])),
                }
            }
        }
    }
    for (key, values) in annotations {
        admission.call.remarks.annotate(format!("{}/{key}", entry.name), || values.join(", "));
    }
    Ok(refused)
}

/// Does what the binding says about a denial.
fn act(
    admission: &Admission<'_>,
    it: Option<&Value>,
    policy: &Entry<Policy>,
    binding: &Entry<Binding>,
    denial: &Denial,
) -> Option<ApiError> {
    let mut refused = None;
    for action in &binding.compiled.actions {
        match action.as_str() {
            "Deny" => {
                let error = refusal(admission, it, &policy.name, Some(&binding.name), denial);
                refused = Some(error);
            }
            "Warn" => admission.call.remarks.warn(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                policy.name, binding.name, denial.message
            )),
            "Audit" => {
                let key = "validation.policy.admission.k8s.io/validation_failure";
                admission.call.remarks.annotate(key, || {
                    let value = json!([{
                        "message": denial.message, "policy": policy.name,
                        "binding": binding.name, "expressionIndex": denial.index,
                        "validationActions": binding.compiled.actions,
                    }]);
                    value.to_string()
                });
            }
            _ => (),
        }
    }
    refused
}

fn refusal(
    admission: &Admission<'_>,
    it: Option<&Value>,
    policy: &str,
    binding: Option<&str>,
    denial: &Denial,
) -> ApiError {
    let with = binding.map(|it| format!(" with binding '{it}'")).unwrap_or_default();
    let message =
        format!("ValidatingAdmissionPolicy '{policy}'{with} denied request: {}", denial.message);
    let mut error = admission.forbidden(it, &message);
    (error.reason, error.code) = match denial.reason.as_deref() {
        Some("Forbidden") => ("Forbidden", StatusCode::FORBIDDEN),
        Some("Unauthorized") => ("Unauthorized", StatusCode::UNAUTHORIZED),
        Some("RequestEntityTooLarge") => ("RequestEntityTooLarge", StatusCode::PAYLOAD_TOO_LARGE),
        _ => ("Invalid", StatusCode::UNPROCESSABLE_ENTITY),
    };
    if let Some(details) = &mut error.details {
        details["causes"] = json!([{ "message": message }]);
    }
    error
}

/// Evaluates a policy with one parameter.
fn evaluate(
    admission: &Admission<'_>,
    policy: &Policy,
    context: &Context<'_>,
    param: Option<&Value>,
) -> Outcome {
    let values = context.variables(admission, param);
    let mut outcome = Outcome::default();
    let failed = |outcome: &mut Outcome, denial: Denial| match policy.fails {
        true => outcome.denials.push(denial),
        false => outcome.passed.push(denial),
    };
    match policy.conditions.hold(&values) {
        Ok(true) => (),
        Ok(false) => return outcome,
        Err(why) => {
            failed(&mut outcome, Denial::failed(0, why));
            return outcome;
        }
    }
    let computed = Computed::new(&policy.variables, values, BUDGET);
    let found: Result<Vec<_>, OutOfBudget> =
        policy.validations.iter().map(|it| computed.run(&it.expression)).collect();
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            failed(&mut outcome, Denial::out_of_budget(error));
            return outcome;
        }
    };
    // All messages are made, wanted or not: what they cost decides for all.
    let plain = |is_wanted: bool| match is_wanted {
        true => context.plain_variables(admission, param),
        false => Vec::new(),
    };
    let expressions = policy.validations.iter().map(|it| it.message_expression.as_ref());
    let has_messages = expressions.clone().any(|it| it.is_some());
    let of_messages = Computed::new(&policy.variables, plain(has_messages), computed.left());
    let messages: Result<Vec<_>, OutOfBudget> =
        expressions.map(|it| it.map(|it| of_messages.run(it)).transpose()).collect();
    for (index, (validation, found)) in policy.validations.iter().zip(found).enumerate() {
        let denial = match (&messages, found) {
            (_, Err(error)) => Denial::failed(index, error),
            (Err(error), _) => {
                let why = format!("failed messageExpression: {error}");
                Denial { error: OUT_OF_BUDGET, ..Denial::failed(index, why) }
            }
            (_, Ok(Cel::Bool(true))) => continue,
            (Ok(messages), Ok(_)) => {
                let message = words(validation, messages.get(index).and_then(Option::as_ref));
                let reason = validation.reason.clone();
                outcome.denials.push(Denial { index, message, reason, error: NO_ERROR });
                continue;
            }
        };
        failed(&mut outcome, denial);
    }
    let of_annotations =
        Computed::new(&policy.variables, plain(!policy.annotations.is_empty()), BUDGET);
    for (index, (key, expression)) in policy.annotations.iter().enumerate() {
        match of_annotations.run(expression) {
            Ok(Ok(Cel::Text(text))) => {
                let mut text = text.trim().to_owned();
                let end = (0..=MAX_ANNOTATION).rev().find(|end| text.is_char_boundary(*end));
                text.truncate(end.unwrap_or(0).min(text.len()));
                if !text.is_empty() {
                    outcome.annotations.push((key.clone(), text));
                }
            }
            Ok(Ok(_)) => (),
            Ok(Err(error)) if policy.fails => outcome.faults.push(Denial::failed(index, error)),
            Ok(Err(error)) => outcome.passed.push(Denial::failed(index, error)),
            // Nothing else counts then.
            Err(error) => {
                outcome = Outcome::default();
                failed(&mut outcome, Denial::out_of_budget(error));
                break;
            }
        }
    }
    outcome
}

/// What is said of a validation that does not hold; `made` is what its expression came to.
fn words(validation: &Validation, made: Option<&Result<Cel<'_>, String>>) -> String {
    let made = match made {
        Some(Ok(Cel::Text(text))) => text.trim(),
        _ => "",
    };
    if !made.is_empty() && made.len() <= MAX_MESSAGE && !made.contains('\n') {
        return made.to_owned();
    }
    match validation.message.trim() {
        "" => format!("failed expression: {}", validation.expression.source.trim()),
        message => message.to_owned(),
    }
}
