//! Match conditions: expressions that all must hold before a webhook or a policy is asked.

use insula_cel::{Decl, Value};
use serde::Deserialize;

use super::expression::{CONDITIONS_BUDGET, Expression, Has, Wants, declared};

/// A condition as it is written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(in crate::admission) struct MatchCondition {
    pub name: String,
    pub expression: String,
}

/// Compiled conditions.
#[derive(Debug)]
pub(in crate::admission) struct Conditions {
    list: Vec<Expression>,
    /// Whether what cannot be evaluated refuses the request; else nobody is asked.
    fails: bool,
}

impl Conditions {
    pub(in crate::admission) fn new(list: &[MatchCondition], fails: bool, params: bool) -> Self {
        let declared: Vec<(&str, Decl)> = declared(Has { params, authorizer: true });
        let compile =
            |it: &MatchCondition| Expression::new(it.expression.trim(), &declared, Wants::Bool);
        Self { list: list.iter().map(compile).collect(), fails }
    }

    pub(in crate::admission) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(in crate::admission) fn uses(&self, variable: &str) -> bool {
        self.list.iter().any(|it| it.uses(variable))
    }

    /// Whether all hold. Says why that cannot be told, where that refuses the request.
    pub(in crate::admission) fn hold<'a>(
        &'a self,
        variables: &[(&'a str, Value<'a>)],
    ) -> Result<bool, String> {
        let mut left = CONDITIONS_BUDGET;
        let (mut errors, mut holds) = (Vec::new(), true);
        // One that is false decides, but what those after it cost is counted all the same.
        for condition in &self.list {
            match condition.run(&variables, &mut left) {
                Ok(Ok(Value::Bool(false))) => holds = false,
                Ok(Ok(_)) => (),
                Ok(Err(error)) => errors.push(error),
                Err(error) => return if self.fails { Err(error.to_string()) } else { Ok(false) },
            }
        }
        match (errors.as_slice(), self.fails) {
            _ if !holds => Ok(false),
            ([], _) => Ok(true),
            (_, false) => Ok(false),
            ([one], true) => Err(one.clone()),
            (many, true) => Err(format!("[{}]", many.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(sources: &[&str], fails: bool) -> Result<bool, String> {
        let list: Vec<MatchCondition> = sources
            .iter()
            .map(|it| MatchCondition { name: "a".into(), expression: (*it).to_owned() })
            .collect();
        let conditions = Conditions::new(&list, fails, false);
        let object = serde_json::json!({"a": 1});
        let decl = Decl::of(insula_cel::decl::DeclKind::Dyn);
        let variables = [("object", Value::of_json(&object, &decl))];
        let found = conditions.hold(&variables);
        drop(variables);
        found
    }

    #[test]
    fn false_decides_before_errors() {
        assert_eq!(hold(&["object.a == 1"], true), Ok(true));
        assert_eq!(hold(&["object.b == 1", "object.a == 2"], true), Ok(false));
        assert_eq!(hold(&["object.b == 1"], false), Ok(false));
        assert_eq!(
            hold(&["object.b == 1"], true),
            Err("expression 'object.b == 1' resulted in error: no such key: b".into())
        );
        assert!(
            hold(&["object.b == 1", "object.c == 1"], true).unwrap_err().starts_with("[expression")
        );
    }
}
