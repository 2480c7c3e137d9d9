//! Running rules, within a budget.

use std::{borrow::Cow, sync::Arc};

use insula_api::field::FieldError;
use insula_cel::{Budget, Decl, EvalError, Program, Value as Cel};
use serde_json::Value;

use super::Compiled;
use crate::{
    path::Path,
    schema::{Rule, Schema, Type},
    validate::counterpart,
};

/// What one run of a rule may cost.
const MAX_COST: u64 = 1_000_000;
/// What all rules may cost for one object.
const MAX_COST_OF_ALL: u64 = 10_000_000;

/// What rules say of an object; `old` is what it was, if it was.
pub fn validate(schema: &Schema, it: &Value, old: Option<&Value>) -> Vec<FieldError> {
    validate_at(schema, it, old, &Path::Root)
}

/// As [`validate`], of a value at `path`.
pub(crate) fn validate_at(
    schema: &Schema,
    it: &Value,
    old: Option<&Value>,
    path: &Path<'_>,
) -> Vec<FieldError> {
    let mut run = Run { errors: Vec::new(), left: MAX_COST_OF_ALL, is_over: false };
    run.node(schema, it, old, path);
    run.errors
}

struct Run {
    errors: Vec<FieldError>,
    left: u64,
    /// The budget is spent: nothing more is run.
    is_over: bool,
}

impl Run {
    fn node(&mut self, schema: &Schema, it: &Value, old: Option<&Value>, path: &Path<'_>) {
        if !schema.has_rules || self.is_over || it.is_null() {
            return;
        }
        if let Some(programs) = &schema.programs {
            for (rule, compiled) in schema.rules.iter().zip(&programs.list) {
                // What did not change is tolerated, unless the rule is about changes.
                let is_about = match (compiled.is_transition, old) {
                    (true, None) => rule.optional_old_self,
                    (true, Some(_)) => true,
                    (false, old) => old != Some(it),
                };
                if is_about && !self.is_over {
                    self.rule(schema, rule, compiled, &programs.decl, (it, old), path);
                }
            }
        }
        match it {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if let Some(below) = schema.field(name) {
                        let old = old.and_then(|old| old.get(name));
                        let path = match schema.properties.contains_key(name) {
                            true => path.field(name),
                            false => path.key(name),
                        };
                        self.node(below, value, old, &path);
                    }
                }
            }
            Value::Array(items) => {
                let Some(below) = &schema.items else { return };
                for (index, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| counterpart(&schema.list, item, old));
                    self.node(below, item, old, &path.index(index));
                }
            }
            _ => (),
        }
    }

    fn rule(
        &mut self,
        schema: &Schema,
        rule: &Rule,
        compiled: &Compiled,
        decl: &Decl,
        (it, old): (&Value, Option<&Value>),
        path: &Path<'_>,
    ) {
        let before = old.map(|old| Cel::of_json(old, decl));
        let before = match (rule.optional_old_self, before) {
            (true, before) => Cel::Optional(before.map(Arc::new)),
            (false, before) => before.unwrap_or(Cel::Null),
        };
        let variables = [("self", Cel::of_json(it, decl)), ("oldSelf", before)];
        let found = self.run(&compiled.rule, &variables);
        let why = match found {
            Ok(Cel::Bool(true)) => return,
            Ok(_) => {
                let message = compiled.message.as_ref().and_then(|message| {
                    let made = self.run(message, &variables).ok()?;
                    let text = made.as_text()?.trim().to_owned();
                    (!text.is_empty() && !text.contains(['\n', '\r'])).then_some(text)
                });
                let given = rule.message.trim();
                message.unwrap_or_else(|| match given {
                    "" => format!("failed rule: {}", shown(rule)),
                    given => given.to_owned(),
                })
            }
            // That a rule says nothing is not what the rule would say.
            Err(error) => return self.silent(schema, rule, path, &error),
        };
        self.is_over |= self.left == 0;
        self.errors.push(error(rule, schema, place(path, &rule.field_path), it, &why));
    }

    /// A rule that came to no end.
    fn silent(&mut self, schema: &Schema, rule: &Rule, path: &Path<'_>, error: &EvalError) {
        let why = match error {
            EvalError::Budget if self.left == 0 => {
                "validation failed due to running out of cost budget, no further validation rules will be run".into()
            }
            EvalError::Budget => {
                self.is_over = true;
                format!("'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {}", shown(rule))
            }
            _ => format!("{error} evaluating rule: {}", shown(rule)),
        };
        self.is_over |= self.left == 0;
        let kind = schema.kind.map_or("", Type::as_str).into();
        self.errors.push(FieldError::invalid(place(path, ""), &kind, &why));
    }

    /// Runs a program within what is left.
    fn run<'a>(
        &mut self,
        program: &'a Program,
        variables: &[(&'a str, Cel<'a>)],
    ) -> Result<Cel<'a>, EvalError> {
        let limit = self.left.min(MAX_COST);
        let mut budget = Budget::new(limit);
        let found = program.eval(variables, &mut budget);
        self.left -= limit - budget.left();
        found
    }
}

/// A rule in one line, for messages.
fn shown(rule: &Rule) -> Cow<'_, str> {
    match rule.rule.contains('\n') {
        true => rule.rule.split_whitespace().collect::<Vec<_>>().join(" ").into(),
        false => rule.rule.trim().into(),
    }
}

/// A place, and what is `below` it, as messages show it.
fn place(path: &Path<'_>, below: &str) -> String {
    let field = format!("{path}{below}");
    match field.trim_start_matches('.') {
        "" => "<nil>".to_owned(),
        field => field.to_owned(),
    }
}

fn error(rule: &Rule, schema: &Schema, field: String, it: &Value, why: &str) -> FieldError {
    let is_large = matches!(schema.kind, Some(Type::Object | Type::Array));
    match rule.reason.as_str() {
        "FieldValueForbidden" => FieldError::forbidden(field, why),
        "FieldValueRequired" => FieldError::required(field, why),
        // What is large is not repeated.
        "FieldValueDuplicate" if is_large => {
            let mut error = FieldError::duplicate(field, it);
            error.message = "Duplicate value".into();
            error
        }
        "FieldValueDuplicate" => FieldError::duplicate(field, it),
        _ if is_large => FieldError::invalid_whole(field, why),
        _ => FieldError::invalid(field, it, why),
    }
}
