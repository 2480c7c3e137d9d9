//! The authorizer: what an expression asks of those who know who may do what.
//!
//! An expression puts a question together step by step and ends it with `check`. Who answers is
//! the host's affair ([`Authorizer`]); it answers from memory, so evaluation never waits.

use std::{fmt, sync::Arc};

use crate::{
    decl::{Decl, DeclKind, Type},
    eval::{Budget, EvalError, Result},
    value::Value,
};

/// What one check costs.
pub(crate) const COST: u64 = 350_000;

pub(crate) const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
pub(crate) const PATH_CHECK: &str = "kubernetes.authorization.PathCheck";
pub(crate) const GROUP_CHECK: &str = "kubernetes.authorization.GroupCheck";
pub(crate) const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";
pub(crate) const DECISION: &str = "kubernetes.authorization.Decision";

/// Answers whether somebody may do something.
pub trait Authorizer: Send + Sync {
    fn decide(&self, check: &Check) -> Decision;
}

/// A question.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    /// Namespace and name of the service account that is asked about; else it is the caller.
    pub account: Option<(String, String)>,
    /// Set if it is not about a resource.
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
    pub verb: String,
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    /// Why there is none.
    pub error: Option<String>,
}

/// A question on its way, or its answer.
#[derive(Clone)]
pub struct Asking<'a> {
    of: &'a dyn Authorizer,
    check: Check,
    step: Step,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Authorizer,
    Path,
    Group,
    Resource,
    Decided(Decision),
}

impl fmt::Debug for Asking<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asking").field("check", &self.check).field("step", &self.step).finish()
    }
}

/// Declares `authorizer`.
pub fn authorizer_decl() -> Decl {
    Decl::of(DeclKind::Type(Type::Library(AUTHORIZER)))
}

/// Declares `authorizer.requestResource`.
pub fn resource_check_decl() -> Decl {
    Decl::of(DeclKind::Type(Type::Library(RESOURCE_CHECK)))
}

impl<'a> Asking<'a> {
    /// The value of `authorizer`.
    pub fn authorizer(of: &'a dyn Authorizer) -> Value<'a> {
        Value::Asking(Arc::new(Self { of, check: Check::default(), step: Step::Authorizer }))
    }

    /// The value of `authorizer.requestResource`: a question about `check`, but for its verb.
    pub fn resource(of: &'a dyn Authorizer, check: Check) -> Value<'a> {
        Value::Asking(Arc::new(Self { of, check, step: Step::Resource }))
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self.step {
            Step::Authorizer => AUTHORIZER,
            Step::Path => PATH_CHECK,
            Step::Group => GROUP_CHECK,
            Step::Resource => RESOURCE_CHECK,
            Step::Decided(_) => DECISION,
        }
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.check == other.check && self.step == other.step
    }

    pub(crate) fn method(
        &self,
        function: &str,
        arguments: &[Value<'a>],
        budget: &mut Budget,
    ) -> Result<Value<'a>> {
        if let Step::Decided(decision) = &self.step {
            return match (function, arguments) {
                ("allowed", []) => Ok(Value::Bool(decision.allowed)),
                ("reason", []) => Ok(Value::text(decision.reason.clone())),
                ("errored", []) => Ok(Value::Bool(decision.error.is_some())),
                ("error", []) => Ok(Value::text(decision.error.clone().unwrap_or_default())),
                _ => Err(EvalError::no_overload(function)),
            };
        }
        let texts: Vec<&str> = arguments.iter().filter_map(Value::as_text).collect();
        let mut next = self.clone();
        let check = &mut next.check;
        match (&self.step, function, texts.as_slice()) {
            (Step::Authorizer, "path", [path]) => {
                if path.is_empty() {
                    return Err(EvalError::failed("path must not be empty"));
                }
                check.path = Some((*path).to_owned());
                next.step = Step::Path;
            }
            (Step::Authorizer, "group", [group]) => {
                check.group = (*group).to_owned();
                next.step = Step::Group;
            }
            (Step::Authorizer, "serviceAccount", [namespace, name]) => {
                check.account = Some(((*namespace).to_owned(), (*name).to_owned()));
            }
            (Step::Group, "resource", [resource]) => {
                check.resource = (*resource).to_owned();
                next.step = Step::Resource;
            }
            (Step::Resource, "subresource", [text]) => check.subresource = (*text).to_owned(),
            (Step::Resource, "namespace", [text]) => check.namespace = (*text).to_owned(),
            (Step::Resource, "name", [text]) => check.name = (*text).to_owned(),
            (Step::Resource, "fieldSelector", [text]) => check.field_selector = (*text).to_owned(),
            (Step::Resource, "labelSelector", [text]) => check.label_selector = (*text).to_owned(),
            (Step::Path | Step::Resource, "check", [verb]) => {
                budget.spend(COST)?;
                check.verb = (*verb).to_owned();
                next.step = Step::Decided(self.of.decide(check));
            }
            _ => return Err(EvalError::no_overload(function)),
        }
        Ok(Value::Asking(Arc::new(next)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Program;

    struct OnlyPods;

    impl Authorizer for OnlyPods {
        fn decide(&self, check: &Check) -> Decision {
            let allowed = check.resource == "pods" && check.verb == "get"
                || check.path.as_deref() == Some("/healthz");
            Decision { allowed, reason: check.namespace.clone(), error: None }
        }
    }

    #[test]
    fn questions_are_asked_and_paid_for() {
        let variables = [
            ("authorizer", authorizer_decl()),
            ("authorizer.requestResource", resource_check_decl()),
        ];
        let check = Check { resource: "pods".into(), ..Check::default() };
        let values = [
            ("authorizer", Asking::authorizer(&OnlyPods)),
            ("authorizer.requestResource", Asking::resource(&OnlyPods, check)),
        ];
        for (source, expected) in [
            ("authorizer.group('').resource('pods').check('get').allowed()", true),
            ("authorizer.group('').resource('pods').check('put').allowed()", false),
            ("authorizer.path('/healthz').check('get').allowed()", true),
            ("authorizer.requestResource.check('get').allowed()", true),
            ("authorizer.requestResource.namespace('n').check('get').reason() == 'n'", true),
            (
                "authorizer.serviceAccount('a', 'b').group('').resource('x').check('get').errored()",
                false,
            ),
        ] {
            let program = Program::compile(source, &variables).unwrap();
            let estimate = program.estimate(&variables);
            let mut budget = Budget::new(10_000_000);
            let found = program.eval(&values, &mut budget).unwrap();
            assert!(matches!(found, Value::Bool(it) if it == expected), "{source}");
            let spent = 10_000_000 - budget.left();
            assert!(COST <= spent && spent <= estimate, "{source}: {spent} of {estimate}");
        }
        assert!(Program::compile("authorizer.check('get')", &variables).is_err());
        assert!(Program::compile("authorizer.group('').check('get')", &variables).is_err());
    }
}
