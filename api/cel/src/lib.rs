//! The Common Expression Language, as Kubernetes uses it, with bounded cost.
//!
//! An expression is parsed ([`parse`]), checked against the types of its variables ([`check`]),
//! estimated ([`cost`]) and then evaluated ([`eval`]) over JSON, without copying it. Rules come
//! from tenants and run inside the API server of all of them, so everything is bounded: the
//! length and depth of an expression, what it may cost by estimate, and what it may really cost.
//!
//! *Absent:* protobuf messages, user-defined functions, I/O, clocks.

pub mod ast;
pub mod authorizer;
pub mod check;
pub mod cost;
pub mod decl;
pub mod escape;
pub mod eval;
mod functions;
mod lex;
pub mod made;
mod operators;
pub mod parse;
mod patterns;
pub mod regex;
mod signatures;
pub mod value;

pub use self::{
    authorizer::Authorizer,
    check::CheckError,
    decl::{Decl, Type},
    eval::{Budget, EvalError, Variables},
    parse::ParseError,
    value::Value,
};

use self::{ast::Expr, patterns::Patterns};

/// Why `source` cannot be an expression, whatever variables there are.
pub fn syntax(source: &str) -> Result<(), CompileError> {
    parse::parse(source)
        .map(drop)
        .map_err(|error| CompileError::new(source, error.at, error.message))
}

/// A checked expression.
#[derive(Debug)]
pub struct Program {
    expr: Expr,
    patterns: Patterns,
    source: String,
    result: Type,
}

/// Why a text is no program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("compilation failed: ERROR: <input>:{line}:{column}: {message}\n | {text}\n | {}^", ".".repeat(column.saturating_sub(1)))]
pub struct CompileError {
    pub line: usize,
    pub column: usize,
    pub message: String,
    /// The line of the source.
    pub text: String,
}

impl CompileError {
    fn new(source: &str, at: usize, message: String) -> Self {
        let before = source.get(..at).unwrap_or(source);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |it| it + 1);
        let column = before.get(start..).map_or(0, |it| it.chars().count()) + 1;
        let text = source.lines().nth(line - 1).unwrap_or_default().chars().take(256).collect();
        Self { line, column, message, text }
    }
}

impl Program {
    /// Compiles `source` with variables of these types.
    pub fn compile(source: &str, variables: &[(&str, Decl)]) -> Result<Self, CompileError> {
        Self::compile_with(source, variables, false)
    }

    /// As [`Program::compile`], of what may also make objects and patches; see [`made`].
    pub fn compile_patch(source: &str, variables: &[(&str, Decl)]) -> Result<Self, CompileError> {
        Self::compile_with(source, variables, true)
    }

    fn compile_with(
        source: &str,
        variables: &[(&str, Decl)],
        makes: bool,
    ) -> Result<Self, CompileError> {
        let expr = parse::parse(source)
            .map_err(|error| CompileError::new(source, error.at, error.message))?;
        let result = check::check(&expr, variables, makes)
            .map_err(|error| CompileError::new(source, error.at, error.message))?;
        let patterns = Patterns::of(&expr);
        Ok(Self { expr, patterns, source: source.to_owned(), result })
    }

    /// The type of what it comes to.
    pub fn result(&self) -> &Type {
        &self.result
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it speaks of a variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.expr.uses(variable)
    }

    /// The fields of a variable that it speaks of.
    pub fn fields_of(&self, variable: &str) -> Vec<&str> {
        let mut found = Vec::new();
        self.expr.each(&mut |it| {
            if let ast::Node::Select { of, field, .. } | ast::Node::Has { of, field } = &it.node
                && matches!(&of.node, ast::Node::Variable(name) if name == variable)
            {
                found.push(field.as_str());
            }
        });
        found
    }

    /// All texts that are written in it, as they come.
    pub fn texts(&self) -> Vec<&str> {
        let mut texts = Vec::new();
        self.expr.each(&mut |it| {
            if let ast::Node::Text(text) = &it.node {
                texts.push(text.as_str());
            }
        });
        texts
    }

    /// What it costs at most, by the sizes that the variables can have.
    pub fn estimate(&self, variables: &[(&str, Decl)]) -> u64 {
        cost::estimate(&self.expr, &self.patterns, variables)
    }

    /// Evaluates it.
    pub fn eval<'a>(
        &'a self,
        variables: &[(&'a str, Value<'a>)],
        budget: &mut Budget,
    ) -> Result<Value<'a>, EvalError> {
        self.eval_over(&variables, budget)
    }

    /// As [`Program::eval`], of variables of which some may be computed on the way.
    pub fn eval_over<'a>(
        &'a self,
        variables: &dyn Variables<'a>,
        budget: &mut Budget,
    ) -> Result<Value<'a>, EvalError> {
        eval::eval(&self.expr, &self.patterns, variables, budget)
    }
}
