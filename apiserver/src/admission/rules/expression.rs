//! Expressions of rules: compiled once, run within a budget.

use std::sync::LazyLock;

use insula_cel::{
    Budget, Decl, EvalError, Program, Type, Value, Variables,
    authorizer::{authorizer_decl, resource_check_decl},
    decl::{DeclKind, Fields},
    made,
};

/// What one expression may cost.
const PER_CALL: u64 = 1_000_000;
/// What all expressions of one policy may cost for one request, and all its conditions.
pub(crate) const BUDGET: u64 = 10_000_000;
pub(crate) const CONDITIONS_BUDGET: u64 = 2_500_000;

/// There is nothing left to spend: nothing more is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "validation failed due to running out of cost budget, no further validation rules will be run"
)]
pub(crate) struct OutOfBudget;

/// What an expression has to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    Bool,
    Text,
    TextOrNull,
    /// An object of which a part is applied.
    Object,
    /// JSON patches.
    Patches,
    Anything,
}

/// Which variables an expression has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Has {
    pub params: bool,
    pub authorizer: bool,
}

/// An expression, or why it is none.
#[derive(Debug)]
pub(crate) struct Expression {
    pub source: String,
    program: Result<Program, String>,
}

impl Wants {
    fn mismatch(self, found: &Type) -> Option<String> {
        let is_patch = |it: &Type| matches!(it, Type::Made(name) if &**name == made::PATCH);
        let fits = match self {
            Self::Bool => *found == Type::Bool,
            Self::Text => *found == Type::Text,
            Self::TextOrNull => matches!(found, Type::Text | Type::Null),
            Self::Object => matches!(found, Type::Made(name) if &**name == made::OBJECT),
            Self::Patches => matches!(found, Type::List(item) if is_patch(item)),
            Self::Anything => true,
        };
        let wanted = match self {
            Self::Bool => "bool",
            Self::Text => "string",
            Self::TextOrNull => "one of [string null_type]",
            Self::Object => "Object",
            Self::Patches => "list(JSONPatch)",
            Self::Anything => "anything",
        };
        (!fits).then(|| format!("must evaluate to {wanted} but got {found}"))
    }
}

impl Expression {
    pub(crate) fn new(source: &str, declared: &[(&str, Decl)], wants: Wants) -> Self {
        let compiled = match wants {
            Wants::Object | Wants::Patches => Program::compile_patch(source, declared),
            _ => Program::compile(source, declared),
        };
        let program = compiled.map_err(|error| error.to_string()).and_then(|program| {
            match wants.mismatch(program.result()) {
                None => Ok(program),
                Some(why) => Err(why),
            }
        });
        Self { source: source.to_owned(), program }
    }

    /// What is wrong with it.
    pub(crate) fn error(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }

    /// The declaration of a variable that has its value.
    pub(crate) fn decl(&self) -> Decl {
        let kind = self.program.as_ref().map_or(Type::Dyn, |it| it.result().clone());
        Decl::of(DeclKind::Type(kind))
    }

    /// The fields of a variable that it speaks of.
    pub(crate) fn fields_of(&self, variable: &str) -> Vec<&str> {
        self.program.as_ref().map_or_else(|_| Vec::new(), |it| it.fields_of(variable))
    }

    pub(crate) fn uses(&self, variable: &str) -> bool {
        self.program.as_ref().is_ok_and(|it| it.uses(variable))
    }

    /// Runs it, and says what it comes to or why it comes to nothing.
    pub(crate) fn run<'a>(
        &'a self,
        variables: &dyn Variables<'a>,
        left: &mut u64,
    ) -> Result<Result<Value<'a>, String>, OutOfBudget> {
        if let Some(error) = self.error() {
            return Ok(Err(format!("compilation error: {error}")));
        }
        let found = self.eval(variables, left)?;
        Ok(found
            .map_err(|error| format!("expression '{}' resulted in error: {error}", self.source)))
    }

    /// As [`Expression::run`], with the bare reason.
    pub(crate) fn eval<'a>(
        &'a self,
        variables: &dyn Variables<'a>,
        left: &mut u64,
    ) -> Result<Result<Value<'a>, String>, OutOfBudget> {
        let program = match &self.program {
            Ok(program) => program,
            Err(error) => return Ok(Err(error.clone())),
        };
        let limit = PER_CALL.min(*left);
        let mut budget = Budget::new(limit);
        let found = program.eval_over(variables, &mut budget);
        *left -= limit - budget.left();
        if matches!(found, Err(EvalError::Budget)) && limit < PER_CALL {
            return Err(OutOfBudget);
        }
        Ok(found.map_err(|error| error.to_string()))
    }
}

fn object(name: &str, fields: &[(&str, Decl)]) -> Decl {
    let fields =
        fields.iter().map(|(name, it)| ((*name).to_owned(), ((*name).to_owned(), it.clone())));
    Decl::of(DeclKind::Object(Fields { name: name.to_owned(), fields: fields.collect() }.into()))
}

fn of(kind: DeclKind) -> Decl {
    Decl::of(kind)
}

/// What is known of nothing.
pub(super) static DYN: LazyLock<Decl> = LazyLock::new(|| of(DeclKind::Dyn));

/// The type of `request`.
pub(super) static REQUEST: LazyLock<Decl> = LazyLock::new(|| {
    let text = || of(DeclKind::Text);
    let texts = || of(DeclKind::List(text().into()));
    let kind = object(
        "kubernetes.GroupVersionKind",
        &[("group", text()), ("version", text()), ("kind", text())],
    );
    let resource = object(
        "kubernetes.GroupVersionResource",
        &[("group", text()), ("version", text()), ("resource", text())],
    );
    let user = object(
        "kubernetes.UserInfo",
        &[
            ("username", text()),
            ("uid", text()),
            ("groups", texts()),
            ("extra", of(DeclKind::Map(texts().into()))),
        ],
    );
    object(
        "kubernetes.AdmissionRequest",
        &[
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", text()),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", of(DeclKind::Bool)),
            ("options", of(DeclKind::Dyn)),
        ],
    )
});

/// The type of `namespaceObject`.
pub(super) static NAMESPACE: LazyLock<Decl> = LazyLock::new(|| {
    let text = || of(DeclKind::Text);
    let texts = || of(DeclKind::List(text().into()));
    let labels = || of(DeclKind::Map(text().into()));
    let condition = object(
        "kubernetes.NamespaceCondition",
        &[
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", of(DeclKind::Timestamp)),
            ("message", text()),
            ("reason", text()),
        ],
    );
    let metadata = object(
        "kubernetes.NamespaceMetadata",
        &[
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", labels()),
            ("annotations", labels()),
            ("UID", text()),
            ("creationTimestamp", of(DeclKind::Timestamp)),
            ("deletionGracePeriodSeconds", of(DeclKind::Int)),
            ("deletionTimestamp", of(DeclKind::Timestamp)),
            ("generation", of(DeclKind::Int)),
            ("resourceVersion", text()),
            ("finalizers", texts()),
        ],
    );
    let spec = object("kubernetes.NamespaceSpec", &[("finalizers", texts())]);
    let status = object(
        "kubernetes.NamespaceStatus",
        &[("conditions", of(DeclKind::List(condition.into()))), ("phase", text())],
    );
    object("kubernetes.Namespace", &[("metadata", metadata), ("spec", spec), ("status", status)])
});

/// The variables of an expression, with objects of which nothing is known.
pub(crate) fn declared(has: Has) -> Vec<(&'static str, Decl)> {
    declared_with(has, &DYN, &DYN)
}

/// The variables of an expression, with what is known of objects and parameters.
pub(crate) fn declared_with(has: Has, object: &Decl, params: &Decl) -> Vec<(&'static str, Decl)> {
    let mut list = vec![
        ("object", object.clone()),
        ("oldObject", object.clone()),
        ("request", REQUEST.clone()),
        ("namespaceObject", NAMESPACE.clone()),
    ];
    if has.params {
        list.push(("params", params.clone()));
    }
    if has.authorizer {
        list.push(("authorizer", authorizer_decl()));
        list.push(("authorizer.requestResource", resource_check_decl()));
    }
    list
}

/// `variables`, of which the single ones are declared with their dots.
pub(crate) fn no_variables() -> (&'static str, Decl) {
    ("variables", object("kubernetes.variables", &[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(source: &str, wants: Wants) -> Option<String> {
        let has = Has { params: false, authorizer: true };
        Expression::new(source, &declared(has), wants).error().map(str::to_owned)
    }

    #[test]
    fn expressions_come_to_what_is_wanted() {
        assert_eq!(error("request.operation == 'CREATE'", Wants::Bool), None);
        assert_eq!(
            error("request.name", Wants::Bool).unwrap(),
            "must evaluate to bool but got string"
        );
        assert_eq!(error("null", Wants::TextOrNull), None);
        assert_eq!(error("Object{}", Wants::Object), None);
        assert_eq!(error("[JSONPatch{op: 'test'}]", Wants::Patches), None);
        assert_eq!(
            error("[1]", Wants::Patches).unwrap(),
            "must evaluate to list(JSONPatch) but got list(int)"
        );
        assert!(
            error("Object{}", Wants::Anything)
                .unwrap()
                .contains("undeclared reference to 'Object'")
        );
        assert!(
            error("params.x", Wants::Anything)
                .unwrap()
                .contains("undeclared reference to 'params'")
        );
        assert!(error("namespaceObject.metadata.labels['a'] == 'b'", Wants::Bool).is_none());
        assert!(error("request.what", Wants::Anything).unwrap().contains("undefined field 'what'"));
    }

    #[test]
    fn what_one_costs_the_others_lack() {
        let none: &[(&str, Value<'_>)] = &[];
        let all = Expression::new("[1, 2, 3].all(x, x > 0)", &[], Wants::Bool);
        let mut left = 1000;
        assert!(matches!(all.run(&none, &mut left), Ok(Ok(Value::Bool(true)))));
        assert!(left < 1000);
        left = 2;
        assert_eq!(all.run(&none, &mut left).map(|_| ()), Err(OutOfBudget));
        let ten = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 0]";
        let nested = ["a", "b", "c", "d", "e", "f"]
            .iter()
            .fold("true".to_owned(), |body, name| format!("{ten}.all({name}, {body})"));
        let dear = Expression::new(&nested, &[], Wants::Bool);
        left = BUDGET;
        let found = dear.run(&none, &mut left).unwrap();
        assert!(
            found.is_err_and(|it| it.ends_with("operation cancelled: actual cost limit exceeded"))
        );
        assert_eq!(left, BUDGET - PER_CALL);
    }
}
