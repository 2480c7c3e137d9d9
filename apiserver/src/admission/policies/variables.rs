//! The variables of a policy: each is computed once, when an expression first asks for it.
//!
//! A variable may speak of those before it. These are computed before it and not while it is: a
//! long chain of them takes no more of the stack than one.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
};

use insula_cel::{Value as Cel, Variables};

use crate::admission::rules::expression::{Expression, OutOfBudget};

/// What expressions call all of them.
const NAME: &str = "variables";

/// The variables of one policy, compiled.
#[derive(Debug, Default)]
pub(super) struct Own {
    list: Vec<One>,
    by_name: HashMap<String, usize>,
}

#[derive(Debug)]
struct One {
    name: String,
    expression: Expression,
    /// The places of those that it speaks of.
    needs: Vec<usize>,
}

impl Own {
    /// Adds one, which comes after all that it speaks of.
    pub(super) fn push(&mut self, name: &str, expression: Expression) {
        let needs = expression.fields_of(NAME).into_iter();
        let needs = needs.filter_map(|it| self.by_name.get(it).copied()).collect();
        self.by_name.insert(name.to_owned(), self.list.len());
        self.list.push(One { name: name.to_owned(), expression, needs });
    }

    pub(super) fn use_it(&self, variable: &str) -> bool {
        self.list.iter().any(|it| it.expression.uses(variable))
    }
}

/// What the expressions of a policy speak of, and what they may still cost together.
pub(super) struct Computed<'a> {
    given: Vec<(&'a str, Cel<'a>)>,
    own: &'a Own,
    known: RefCell<Vec<Option<Cel<'a>>>>,
    left: Cell<u64>,
}

impl<'a> Computed<'a> {
    pub(super) fn new(own: &'a Own, given: Vec<(&'a str, Cel<'a>)>, budget: u64) -> Self {
        let known = RefCell::new(vec![None; own.list.len()]);
        Self { given, own, known, left: Cell::new(budget) }
    }

    pub(super) fn left(&self) -> u64 {
        self.left.get()
    }

    /// Runs an expression of the policy, with all that it has computed.
    pub(super) fn run(
        &self,
        expression: &'a Expression,
    ) -> Result<Result<Cel<'a>, String>, OutOfBudget> {
        let before = self.left.get();
        let mut left = before;
        let found = expression.run(self, &mut left)?;
        // What its variables cost has been taken meanwhile.
        match self.left.get().checked_sub(before - left) {
            Some(left) if 0 < left => self.left.set(left),
            _ => return Err(OutOfBudget),
        }
        Ok(found)
    }

    fn compute(&self, at: usize) -> Cel<'a> {
        let Some(One { name, expression, .. }) = self.own.list.get(at) else { return Cel::Null };
        let failed = |why: &str, error: &str| {
            Cel::Failed(format!("composited variable {name:?} fails to {why}: {error}").into())
        };
        if let Some(error) = expression.error() {
            return failed("compile", error);
        }
        let mut left = self.left.get();
        let found = expression.eval(self, &mut left);
        self.left.set(left);
        match found {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => failed("evaluate", &error),
            Err(error) => failed("evaluate", &error.to_string()),
        }
    }

    /// Those that are to be computed for the one at this place, which is the last of them.
    fn wanted(&self, at: usize) -> BTreeSet<usize> {
        let known = self.known.borrow();
        let (mut wanted, mut next) = (BTreeSet::new(), vec![at]);
        while let Some(at) = next.pop() {
            if known.get(at).is_some_and(Option::is_none) && wanted.insert(at) {
                next.extend(self.own.list.get(at).into_iter().flat_map(|it| &it.needs));
            }
        }
        wanted
    }
}

impl<'a> Variables<'a> for Computed<'a> {
    fn known(&self) -> &[(&'a str, Cel<'a>)] {
        &self.given
    }

    fn later(&self, base: &str, field: &str) -> Option<Cel<'a>> {
        let at = *self.own.by_name.get(field).filter(|_| base == NAME)?;
        for at in self.wanted(at) {
            let value = self.compute(at);
            if let Some(place) = self.known.borrow_mut().get_mut(at) {
                *place = Some(value);
            }
        }
        self.known.borrow().get(at)?.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{
        policies::written::{Declared, Variable},
        rules::expression::{BUDGET, Has, Wants, declared},
    };

    fn compiled(variables: &[(&str, &str)]) -> (Declared, Own) {
        let mut names = Declared::new(declared(Has { params: false, authorizer: false }));
        let mut own = Own::default();
        for (name, source) in variables {
            let it = Variable { name: (*name).to_owned(), expression: (*source).to_owned() };
            own.push(name, names.variable(&it));
        }
        (names, own)
    }

    #[test]
    fn only_what_is_asked_for_is_computed_and_once() {
        let ten = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 0]";
        let dear = format!("{ten}.all(a, {ten}.all(b, {ten}.all(c, true)))");
        let (names, own) =
            compiled(&[("dear", &dear), ("wrong", "1 / 0 == 1"), ("uses", "variables.dear")]);
        let run = |computed: &Computed<'_>, source: &str| {
            let expression = names.compile(source, Wants::Bool);
            // It is run within this function only.
            let expression: &'static Expression = Box::leak(Box::new(expression));
            let before = computed.left();
            let found = computed.run(expression).unwrap().map(|it| matches!(it, Cel::Bool(true)));
            (found, before - computed.left())
        };
        let own: &'static Own = Box::leak(Box::new(own));
        let computed = Computed::new(own, Vec::new(), BUDGET);
        let (found, cost) = run(&computed, "true || variables.dear || variables.wrong");
        assert_eq!(found, Ok(true));
        assert!(cost < 10, "{cost}");
        let (found, first) = run(&computed, "variables.uses && variables.dear");
        assert_eq!(found, Ok(true));
        let (found, again) = run(&computed, "variables.uses && variables.dear");
        assert_eq!(found, Ok(true));
        assert!(again < 10 && 1000 < first, "{first} {again}");
        let (found, _) = run(&computed, "variables.wrong");
        assert_eq!(
            found.unwrap_err(),
            "expression 'variables.wrong' resulted in error: \
             composited variable \"wrong\" fails to evaluate: division by zero"
        );
    }

    #[test]
    fn a_long_chain_takes_no_stack() {
        let names: Vec<String> = (0..3000).map(|it| format!("v{it}")).collect();
        let sources: Vec<String> = std::iter::once("true".to_owned())
            .chain(names.iter().map(|it| format!("variables.{it}")))
            .collect();
        let pairs: Vec<(&str, &str)> =
            names.iter().map(String::as_str).zip(sources.iter().map(String::as_str)).collect();
        let (declared, own) = compiled(&pairs);
        let last = declared.compile("variables.v2999", Wants::Bool);
        let computed = Computed::new(&own, Vec::new(), BUDGET);
        assert!(matches!(computed.run(&last), Ok(Ok(Cel::Bool(true)))));
    }

    #[test]
    fn what_they_cost_is_the_policys() {
        let (declared, own) = compiled(&[("a", "[1, 2, 3].all(x, x > 0)")]);
        let expression = declared.compile("variables.a", Wants::Bool);
        let computed = Computed::new(&own, Vec::new(), 5);
        assert!(computed.run(&expression).is_err());
    }
}
