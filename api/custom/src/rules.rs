//! `x-kubernetes-validations`: rules in CEL about a value and what it was before.
//!
//! Rules are compiled with the definition, against types that its schema gives, and estimated
//! then: what could cost too much for the largest object is refused before there is any. When an
//! object is checked, each rule and all together have a budget, so that no estimate is trusted.

mod run;

use std::{collections::BTreeMap, sync::Arc};

use insula_api::field::FieldError;
use insula_cel::{
    CompileError, Decl, Program, Type as CelType,
    cost::max_size,
    decl::{DeclKind, Fields},
    escape::escape,
};

use crate::{
    path::Path,
    schema::{Additional, ListType, Rule, Schema, SchemaError, Type},
};

pub use self::run::validate;
pub(crate) use self::run::validate_at;

/// What one rule may cost by estimate, with all the places where it runs.
const MAX_ESTIMATE: u64 = 10_000_000;
/// What all rules of a schema may.
const MAX_ESTIMATE_OF_ALL: u64 = 100_000_000;

/// How many of the rules that cost most are named.
const MOST_TOLD: usize = 4;

/// The rules of one place, compiled.
#[derive(Debug)]
pub struct Programs {
    decl: Decl,
    list: Vec<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    rule: Program,
    message: Option<Program>,
    /// It is about a change, and so holds where nothing changed into this.
    is_transition: bool,
}

/// Something wrong with one rule.
enum Fault {
    Rule(CompileError),
    Message(CompileError),
    /// It does not come to what it should.
    RuleType(String),
    MessageType(String),
    UselessOptional,
}

/// `self` and `oldSelf`.
fn variables(decl: &Decl, is_optional: bool) -> [(&'static str, Decl); 2] {
    let old = match is_optional {
        true => Decl::of(DeclKind::Optional(Arc::new(decl.clone()))),
        false => decl.clone(),
    };
    [("self", decl.clone()), ("oldSelf", old)]
}

impl Compiled {
    fn new(rule: &Rule, decl: &Decl) -> Result<Self, Fault> {
        let variables = variables(decl, rule.optional_old_self);
        let program = Program::compile(&rule.rule, &variables).map_err(Fault::Rule)?;
        if !matches!(program.result(), CelType::Bool | CelType::Dyn) {
            return Err(Fault::RuleType("cel expression must evaluate to a bool".into()));
        }
        let is_transition = program.uses("oldSelf");
        if rule.optional_old_self && !is_transition {
            return Err(Fault::UselessOptional);
        }
        let message = match rule.message_expression.trim() {
            "" => None,
            text => {
                let message = Program::compile(text, &variables).map_err(Fault::Message)?;
                if !matches!(message.result(), CelType::Text | CelType::Dyn) {
                    let why = "messageExpression must evaluate to a string";
                    return Err(Fault::MessageType(why.into()));
                }
                Some(message)
            }
        };
        Ok(Self { rule: program, message, is_transition })
    }
}

/// Makes the rules of a schema ready to run.
pub fn compile(schema: &mut Schema) -> Result<(), SchemaError> {
    let mut fault = None;
    each(schema, &Path::Root, 1, true, &mut |schema, path, _, is_root| {
        let decl = declare(schema, is_root);
        let mut list = Vec::with_capacity(schema.rules.len());
        for rule in &schema.rules {
            match Compiled::new(rule, &decl) {
                Ok(compiled) => list.push(compiled),
                Err(Fault::Rule(error) | Fault::Message(error)) => {
                    fault = Some(SchemaError::Rule { path: path.to_string(), source: error });
                }
                Err(_) => {
                    let what = path.to_string();
                    fault = Some(SchemaError::Shape(what, "checked by a rule that is a condition"));
                }
            }
        }
        schema.programs = Some(Arc::new(Programs { decl, list }));
    });
    fault.map_or(Ok(()), Err)
}

/// What is wrong with the rules of a schema, which is otherwise as it should be.
pub fn check(schema: &mut Schema, path: &Path<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut total: u64 = 0;
    let mut expensive: Vec<(u64, String)> = Vec::new();
    each(schema, path, 1, true, &mut |schema, path, times, is_root| {
        let decl = declare(schema, is_root);
        let rules = path.field("x-kubernetes-validations");
        for (index, rule) in schema.rules.iter().enumerate() {
            let path = rules.index(index);
            let field = |name: &str| path.field(name).to_string();
            let n_errors = errors.len();
            texts(rule, schema, &path, &mut errors);
            if errors.len() != n_errors {
                continue;
            }
            match Compiled::new(rule, &decl) {
                Ok(compiled) => {
                    let variables = variables(&decl, rule.optional_old_self);
                    for (name, what, program) in [
                        ("rule", "estimated rule cost", Some(&compiled.rule)),
                        (
                            "messageExpression",
                            "estimated messageExpression cost",
                            compiled.message.as_ref(),
                        ),
                    ] {
                        let Some(program) = program else { continue };
                        let cost = program.estimate(&variables).saturating_mul(times);
                        total = total.saturating_add(cost);
                        if MAX_ESTIMATE_OF_ALL <= cost {
                            expensive.push((cost, field(name)));
                        }
                        if MAX_ESTIMATE < cost {
                            let why = over_budget(what, cost, MAX_ESTIMATE);
                            errors.push(FieldError::forbidden(field(name), &why));
                        }
                    }
                }
                Err(fault) => errors.push(told(&fault, rule, &field)),
            }
        }
    });
    if MAX_ESTIMATE_OF_ALL < total {
        expensive.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        for (_, field) in expensive.into_iter().take(MOST_TOLD) {
            let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            errors.push(FieldError::forbidden(field, why));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        let why = over_budget(what, total, MAX_ESTIMATE_OF_ALL);
        errors.push(FieldError::forbidden(path.to_string(), &why));
    }
    transitions(schema, path, None, &mut errors);
    errors
}

/// A rule as messages show it.
fn shown(rule: &Rule) -> String {
    const TYPE: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.ValidationRule";
    let mut it = serde_json::json!({"rule": rule.rule});
    for (field, text) in [
        ("message", &rule.message),
        ("messageExpression", &rule.message_expression),
        ("reason", &rule.reason),
        ("fieldPath", &rule.field_path),
    ] {
        if !text.is_empty() {
            it[field] = text.as_str().into();
        }
    }
    match insula_api::schema::Schema::built_in().by_name(TYPE) {
        Some(id) => insula_api::internal::line(id, "", &it),
        None => it.to_string(),
    }
}

fn told(fault: &Fault, rule: &Rule, field: &impl Fn(&str) -> String) -> FieldError {
    let shown = shown(rule);
    match fault {
        Fault::Rule(error) => FieldError::invalid_form(field("rule"), &shown, &error.to_string()),
        Fault::RuleType(why) => FieldError::invalid_form(field("rule"), &shown, why),
        Fault::Message(error) => {
            let why = format!("messageExpression {error}");
            FieldError::invalid_form(field("messageExpression"), &shown, &why)
        }
        Fault::MessageType(why) => {
            FieldError::invalid_form(field("messageExpression"), &shown, why)
        }
        Fault::UselessOptional => {
            let why = "may not be set if oldSelf is not used in rule";
            FieldError::invalid(field("optionalOldSelf"), &true.into(), why)
        }
    }
}

/// What is wrong with the texts of a rule.
fn texts(rule: &Rule, schema: &Schema, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    const REASONS: [&str; 4] =
        ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    let field = |name: &str| path.field(name).to_string();
    let has_breaks = |text: &str| text.contains(['\n', '\r']);
    let (text, message) = (rule.rule.trim(), rule.message.trim());
    if text.is_empty() {
        errors.push(FieldError::required(field("rule"), "rule is not specified"));
    } else if !rule.message.is_empty() && message.is_empty() {
        let shown = rule.message.as_str().into();
        errors.push(FieldError::invalid(
            field("message"),
            &shown,
            "must be non-empty if specified",
        ));
    } else if has_breaks(message) {
        let shown = rule.message.as_str().into();
        errors.push(FieldError::invalid(field("message"), &shown, "must not contain line breaks"));
    } else if has_breaks(text) && message.is_empty() {
        let why = "message must be specified if rule contains line breaks";
        errors.push(FieldError::required(field("message"), why));
    }
    if !rule.message_expression.is_empty() && rule.message_expression.trim().is_empty() {
        let why = "messageExpression must be non-empty if specified";
        errors.push(FieldError::required(field("messageExpression"), why));
    }
    if !rule.reason.is_empty() && !REASONS.contains(&rule.reason.as_str()) {
        let shown = rule.reason.as_str().into();
        errors.push(FieldError::unsupported(field("reason"), &shown, &REASONS));
    }
    if !rule.field_path.is_empty() {
        let mut wrong = |why: &str| {
            let shown = rule.field_path.as_str().into();
            errors.push(FieldError::invalid(field("fieldPath"), &shown, why));
        };
        if rule.field_path.trim().is_empty() {
            wrong("must be non-empty if specified");
        }
        if has_breaks(&rule.field_path) {
            wrong("must not contain line breaks");
        }
        let place = steps(&rule.field_path)
            .and_then(|it| it.into_iter().try_fold(schema, |schema, name| schema.field(name)));
        if place.is_none() {
            wrong("must be a valid path");
        }
    }
}

/// The names in the path of a field: `.name` and `['any name']`.
fn steps(path: &str) -> Option<Vec<&str>> {
    let (mut rest, mut names) = (path, Vec::new());
    while !rest.is_empty() {
        let (name, after) = match rest.strip_prefix("['") {
            Some(rest) => rest.split_once("']")?,
            None => {
                let rest = rest.strip_prefix('.')?;
                rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()))
            }
        };
        if name.is_empty() {
            return None;
        }
        names.push(name);
        rest = after;
    }
    Some(names)
}

fn over_budget(what: &str, cost: u64, limit: u64) -> String {
    // A factor is for people: tenths are enough, unless it is about one, and large ones say only
    // that. In millionths, so that nothing is rounded twice.
    let millionths = u128::from(cost) * 1_000_000 / u128::from(limit);
    let factor = match millionths {
        100_000_001.. => "more than 100x".to_owned(),
        1_500_000.. => {
            let tenths = (millionths + 50_000) / 100_000;
            format!("{}.{}x", tenths / 10, tenths % 10)
        }
        _ => format!("{}.{:06}x", millionths / 1_000_000, millionths % 1_000_000),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// Visits all places with rules, each with how often it can be in one object.
fn each(
    schema: &mut Schema,
    path: &Path<'_>,
    times: u64,
    is_root: bool,
    visit: &mut impl FnMut(&mut Schema, &Path<'_>, u64, bool),
) {
    if !schema.has_rules {
        return;
    }
    if !schema.rules.is_empty() {
        visit(schema, path, times, is_root);
    }
    let below = times.saturating_mul(max_size(&declare(schema, is_root)));
    let properties = path.field("properties");
    for (name, property) in &mut schema.properties {
        each(property, &properties.key(name), times, false, visit);
    }
    if let Some(Additional::Of(additional)) = &mut schema.additional {
        each(additional, &path.field("additionalProperties"), below, false, visit);
    }
    if let Some(items) = &mut schema.items {
        each(items, &path.field("items"), below, false, visit);
    }
}

/// Rules about changes need places that can be found again in what was before.
fn transitions(
    schema: &Schema,
    path: &Path<'_>,
    lost_at: Option<&str>,
    errors: &mut Vec<FieldError>,
) {
    if !schema.has_rules {
        return;
    }
    if let Some(lost_at) = lost_at {
        let rules = path.field("x-kubernetes-validations");
        for (index, rule) in schema.rules.iter().enumerate() {
            let decl = declare(schema, false);
            if Compiled::new(rule, &decl).is_ok_and(|it| it.is_transition) {
                let why = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {lost_at}"
                );
                let field = rules.index(index).field("rule").to_string();
                errors.push(FieldError::invalid(field, &rule.rule.as_str().into(), &why));
            }
        }
    }
    let here = path.to_string();
    let properties = path.field("properties");
    for (name, property) in &schema.properties {
        transitions(property, &properties.key(name), lost_at, errors);
    }
    if let Some(Additional::Of(additional)) = &schema.additional {
        transitions(additional, &path.field("additionalProperties"), lost_at, errors);
    }
    if let Some(items) = &schema.items {
        let is_keyed = matches!(schema.list, ListType::Map(_));
        let of_list = lost_at.or_else(|| (!is_keyed).then_some(here.as_str()));
        transitions(items, &path.field("items"), of_list, errors);
    }
}

/// What expressions see of a custom resource.
pub fn declared(schema: &Schema) -> Decl {
    declare(schema, true)
}

/// What rules see of a value.
fn declare(schema: &Schema, is_root: bool) -> Decl {
    let checks = schema.checks.as_deref();
    let limit = |of: fn(&crate::schema::Checks) -> Option<u64>| checks.and_then(of);
    if schema.int_or_string {
        return Decl::of(DeclKind::Dyn);
    }
    match schema.kind {
        None => Decl::of(DeclKind::Dyn),
        Some(Type::Boolean) => Decl::of(DeclKind::Bool),
        Some(Type::Integer) => Decl::of(DeclKind::Int),
        Some(Type::Number) => Decl::of(DeclKind::Double),
        Some(Type::String) => text(schema),
        Some(Type::Array) => {
            let item = schema.items.as_deref().map(|it| declare(it, false));
            let item = item.unwrap_or_else(|| Decl::of(DeclKind::Dyn));
            Decl::of(DeclKind::List(Arc::new(item))).at_most(limit(|it| it.max_items))
        }
        Some(Type::Object) => match &schema.additional {
            Some(Additional::Of(value)) => {
                let value = Arc::new(declare(value, false));
                Decl::of(DeclKind::Map(value)).at_most(limit(|it| it.max_properties))
            }
            Some(Additional::Anything) => Decl::of(DeclKind::Dyn),
            None if schema.properties.is_empty() && schema.preserve_unknown && !is_root => {
                Decl::of(DeclKind::Dyn)
            }
            None => object(schema, is_root || schema.embedded),
        },
    }
}

fn text(schema: &Schema) -> Decl {
    use crate::formats::Format;
    let Some(checks) = &schema.checks else { return Decl::of(DeclKind::Text) };
    let kind = match checks.format {
        Some(Format::Date | Format::DateTime) => DeclKind::Timestamp,
        Some(Format::Duration) => DeclKind::Duration,
        Some(Format::Byte) => DeclKind::Bytes,
        _ => DeclKind::Text,
    };
    let of_allowed = checks
        .allowed
        .as_ref()
        .and_then(|it| it.iter().filter_map(|it| it.as_str().map(|it| it.len() as u64)).max());
    // Lengths are those of characters, and each of them may be four bytes.
    let in_bytes = |it: u64| if kind == DeclKind::Bytes { it } else { it.saturating_mul(4) };
    let of_length = checks.max_length.map(in_bytes);
    Decl::of(kind).at_most(of_length.or(of_allowed))
}

fn object(schema: &Schema, has_head: bool) -> Decl {
    let mut fields: BTreeMap<String, (String, Decl)> = BTreeMap::new();
    let short = || Decl::of(DeclKind::Text).at_most(Some(253));
    if has_head {
        for name in ["apiVersion", "kind"] {
            fields.insert(name.into(), (name.into(), short()));
        }
        let names = ["name", "generateName"].map(|it| (it.to_owned(), (it.to_owned(), short())));
        let metadata = Fields { name: "ObjectMeta".into(), fields: BTreeMap::from_iter(names) };
        let metadata = Decl::of(DeclKind::Object(Arc::new(metadata)));
        fields.insert("metadata".into(), ("metadata".into(), metadata));
    }
    for (name, property) in &schema.properties {
        if has_head && name == "metadata" {
            continue;
        }
        if let Some(identifier) = escape(name) {
            fields.insert(identifier, (name.clone(), declare(property, false)));
        }
    }
    Decl::of(DeclKind::Object(Arc::new(Fields { name: "object".into(), fields })))
}

#[cfg(test)]
mod tests;
