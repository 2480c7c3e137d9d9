//! Whether an expression makes sense for variables of certain types.

use crate::{
    ast::{Expr, Loop, LoopKind, Node, Operator, is_qualified},
    decl::{Decl, Type},
    functions, made, operators,
    signatures::{self, Signature},
};

/// Why it does not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CheckError {
    pub at: usize,
    pub message: String,
}

type Result<T, E = CheckError> = std::result::Result<T, E>;

/// The type of what `expr` comes to.
pub fn check(expr: &Expr, variables: &[(&str, Decl)], makes: bool) -> Result<Type> {
    let variables = variables.iter().map(|(name, decl)| ((*name).to_owned(), decl.kind()));
    Checker { variables: variables.collect(), makes }.node(expr)
}

struct Checker {
    variables: Vec<(String, Type)>,
    /// Whether objects and patches can be made.
    makes: bool,
}

fn wrong(at: usize, message: String) -> CheckError {
    CheckError { at, message }
}

fn no_overload(at: usize, function: &str, arguments: &[Type]) -> CheckError {
    let arguments: Vec<String> = arguments.iter().map(Type::to_string).collect();
    let arguments = arguments.join(", ");
    wrong(at, format!("found no matching overload for '{function}' applied to '({arguments})'"))
}

impl Checker {
    fn node(&mut self, expr: &Expr) -> Result<Type> {
        let at = expr.at;
        Ok(match &expr.node {
            Node::Null => Type::Null,
            Node::Bool(_) => Type::Bool,
            Node::Int(_) => Type::Int,
            Node::Uint(_) => Type::Uint,
            Node::Double(_) => Type::Double,
            Node::Text(_) => Type::Text,
            Node::Bytes(_) => Type::Bytes,
            Node::Variable(name) => self.variable(at, name)?,
            Node::Select { of, field, is_optional } => {
                if let Some(found) = self.qualified(of, field) {
                    return Ok(found);
                }
                let of = self.node(of)?;
                let found = select(at, &of, field)?;
                match (&of, is_optional) {
                    (Type::Optional(_), _) | (_, true) => Type::Optional(Box::new(found)),
                    _ => found,
                }
            }
            Node::Has { of, field } => {
                if self.qualified(of, field).is_some() {
                    return Ok(Type::Bool);
                }
                let of = self.node(of)?;
                select(at, &of, field)?;
                Type::Bool
            }
            Node::Index { of, index, is_optional } => {
                let of = self.node(of)?;
                let index = self.node(index)?;
                let found = element(at, &of, &index)?;
                match (&of, is_optional) {
                    (Type::Optional(_), _) | (_, true) => Type::Optional(Box::new(found)),
                    _ => found,
                }
            }
            Node::Not(inner) => {
                let inner_type = self.node(inner)?;
                self.wants(at, "!_", &inner_type, &Type::Bool)?
            }
            Node::Negate(inner) => match self.node(inner)? {
                it @ (Type::Int | Type::Double | Type::Duration | Type::Dyn) => it,
                it => return Err(no_overload(at, "-_", &[it])),
            },
            Node::Binary(operator, left, right) => {
                let left = self.node(left)?;
                let right = self.node(right)?;
                binary(at, *operator, left, right)?
            }
            Node::And(list) | Node::Or(list) => {
                let name = if matches!(expr.node, Node::And(_)) { "_&&_" } else { "_||_" };
                for it in list {
                    let found = self.node(it)?;
                    self.wants(it.at, name, &found, &Type::Bool)?;
                }
                Type::Bool
            }
            Node::If { condition, then, otherwise } => {
                let condition_type = self.node(condition)?;
                self.wants(at, "_?_:_", &condition_type, &Type::Bool)?;
                let then = self.node(then)?;
                let otherwise = self.node(otherwise)?;
                match common(&then, &otherwise) {
                    Some(found) => found,
                    None => return Err(no_overload(at, "_?_:_", &[Type::Bool, then, otherwise])),
                }
            }
            Node::List(items) => {
                let mut of: Option<Type> = None;
                for (item, is_optional) in items {
                    let found = inner(self.node(item)?, *is_optional);
                    of = Some(of.map_or_else(
                        || found.clone(),
                        |of| common(&of, &found).unwrap_or(Type::Dyn),
                    ));
                }
                Type::List(Box::new(of.unwrap_or(Type::Dyn)))
            }
            Node::Map(entries) => {
                let (mut keys, mut values): (Option<Type>, Option<Type>) = (None, None);
                for (key, value, is_optional) in entries {
                    let key = self.node(key)?;
                    let value = inner(self.node(value)?, *is_optional);
                    let join = |of: Option<Type>, found: Type| match of {
                        Some(of) => common(&of, &found).unwrap_or(Type::Dyn),
                        None => found,
                    };
                    keys = Some(join(keys, key));
                    values = Some(join(values, value));
                }
                let (key, value) = (keys.unwrap_or(Type::Dyn), values.unwrap_or(Type::Dyn));
                Type::Map(Box::new(key), Box::new(value))
            }
            Node::Struct { name, fields } => self.make(at, name, fields)?,
            Node::Call { target, function, arguments } => {
                self.call(at, target.as_deref(), function, arguments)?
            }
            Node::Loop(it) => self.iterate(it)?,
            Node::Bind { name, value, body } => {
                let value = self.node(value)?;
                self.with(&[(name, value)], body)?
            }
            Node::OptionalMap { of, name, body, flat } => {
                let value = match self.node(of)? {
                    Type::Optional(inner) => *inner,
                    Type::Dyn => Type::Dyn,
                    other => return Err(no_overload(at, "optMap", &[other])),
                };
                let body = self.with(&[(name, value)], body)?;
                if *flat { body } else { Type::Optional(Box::new(body)) }
            }
        })
    }

    fn variable(&self, at: usize, name: &str) -> Result<Type> {
        let found = self.variables.iter().rev().find(|(known, _)| known == name);
        match found {
            Some((_, kind)) => Ok(kind.clone()),
            None if operators::kind_named(name).is_some() => Ok(Type::Kind),
            None => Err(wrong(at, format!("undeclared reference to '{name}' (in container '')"))),
        }
    }

    /// A variable whose name has a dot.
    fn qualified(&self, of: &Expr, field: &str) -> Option<Type> {
        let Node::Variable(base) = &of.node else { return None };
        let found = self.variables.iter().rev().find(|(name, _)| is_qualified(name, base, field));
        found.map(|(_, kind)| kind.clone())
    }

    fn make(&mut self, at: usize, name: &str, fields: &[(String, Expr, bool)]) -> Result<Type> {
        if !self.makes || !made::is_known(name) {
            return Err(wrong(at, format!("undeclared reference to '{name}' (in container '')")));
        }
        for (field, value, is_optional) in fields {
            let found = inner(self.node(value)?, *is_optional);
            match made::field_of(name, field) {
                None => return Err(wrong(value.at, format!("undefined field '{field}'"))),
                Some(true) if !matches!(found, Type::Text | Type::Dyn) => {
                    let message = format!(
                        "expected type of field '{field}' is 'string' but provided type is '{found}'"
                    );
                    return Err(wrong(value.at, message));
                }
                Some(_) => (),
            }
        }
        Ok(Type::Made(name.into()))
    }

    fn wants(&self, at: usize, function: &str, found: &Type, wanted: &Type) -> Result<Type> {
        if assignable(found, wanted, &mut [None, None]) {
            return Ok(wanted.clone());
        }
        Err(no_overload(at, function, std::slice::from_ref(found)))
    }

    fn with(&mut self, variables: &[(&String, Type)], body: &Expr) -> Result<Type> {
        let n_variables = self.variables.len();
        self.variables.extend(variables.iter().map(|(name, it)| ((*name).clone(), it.clone())));
        let found = self.node(body);
        self.variables.truncate(n_variables);
        found
    }

    fn call(
        &mut self,
        at: usize,
        target: Option<&Expr>,
        function: &str,
        arguments: &[Expr],
    ) -> Result<Type> {
        let is_variable = |name: &str| self.variables.iter().any(|(known, _)| known == name);
        let namespace = match target.map(|it| &it.node) {
            Some(Node::Variable(name)) if !is_variable(name) && functions::is_namespace(name) => {
                Some(name.clone())
            }
            _ => None,
        };
        let name = match &namespace {
            Some(namespace) => format!("{namespace}:{function}"),
            None => function.to_owned(),
        };
        let target = match (target, &namespace) {
            (Some(target), None) => Some(self.node(target)?),
            _ => None,
        };
        let arguments: Vec<Type> =
            arguments.iter().map(|it| self.node(it)).collect::<Result<_>>()?;
        let mut is_known = false;
        let mut found: Option<Type> = None;
        let makes = self.makes;
        let is_offered = |it: &&Signature| makes || !it.name.starts_with("jsonpatch:");
        for it in signatures::all().iter().filter(|it| it.name == name).filter(is_offered) {
            is_known = true;
            if let Some(result) = result_of(it, target.as_ref(), &arguments) {
                found = Some(match found {
                    Some(other) if other != result => Type::Dyn,
                    _ => result,
                });
            }
        }
        let shown = name.replace(':', ".");
        match found {
            Some(found) => Ok(found),
            None if !is_known => {
                Err(wrong(at, format!("undeclared reference to '{shown}' (in container '')")))
            }
            None => Err(match target {
                None => no_overload(at, &shown, &arguments),
                Some(target) => {
                    let arguments: Vec<String> = arguments.iter().map(Type::to_string).collect();
                    let applied = format!("{target}.({})", arguments.join(", "));
                    let message =
                        format!("found no matching overload for '{shown}' applied to '{applied}'");
                    wrong(at, message)
                }
            }),
        }
    }

    fn iterate(&mut self, it: &Loop) -> Result<Type> {
        let range = self.node(&it.range)?;
        let (first, second) = match (&range, &it.second) {
            (Type::List(item), None) => ((**item).clone(), Type::Dyn),
            (Type::List(item), Some(_)) => (Type::Int, (**item).clone()),
            (Type::Map(key, value), _) => ((**key).clone(), (**value).clone()),
            (Type::Dyn, _) => (Type::Dyn, Type::Dyn),
            (other, _) => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                return Err(wrong(it.range.at, message));
            }
        };
        let mut variables = vec![(&it.first, first.clone())];
        if let Some(name) = &it.second {
            variables.push((name, second));
        }
        if let Some(filter) = &it.filter {
            let found = self.with(&variables, filter)?;
            self.wants(filter.at, "_?_:_", &found, &Type::Bool)?;
        }
        let body = self.with(&variables, &it.body)?;
        let is_condition = !matches!(it.kind, LoopKind::Map | LoopKind::TransformMap);
        if is_condition {
            self.wants(it.body.at, "_&&_", &body, &Type::Bool)?;
        }
        Ok(match it.kind {
            LoopKind::All | LoopKind::Exists | LoopKind::ExistsOne => Type::Bool,
            LoopKind::Filter => Type::List(Box::new(first)),
            LoopKind::Map => Type::List(Box::new(body)),
            LoopKind::TransformMap => Type::Map(Box::new(first), Box::new(body)),
        })
    }
}

fn inner(it: Type, is_optional: bool) -> Type {
    match it {
        Type::Optional(inner) if is_optional => *inner,
        other => other,
    }
}

fn select(at: usize, of: &Type, field: &str) -> Result<Type> {
    match of {
        Type::Dyn => Ok(Type::Dyn),
        Type::Map(_, value) => Ok((**value).clone()),
        Type::Made(name) => match made::field_of(name, field) {
            Some(true) => Ok(Type::Text),
            Some(false) => Ok(Type::Dyn),
            None => Err(wrong(at, format!("undefined field '{field}'"))),
        },
        Type::Object(fields) => match fields.fields.get(field) {
            Some((_, decl)) => Ok(decl.kind()),
            None => Err(wrong(at, format!("undefined field '{field}'"))),
        },
        Type::Optional(inner) => select(at, inner, field),
        other => Err(wrong(at, format!("type '{other}' does not support field selection"))),
    }
}

fn element(at: usize, of: &Type, index: &Type) -> Result<Type> {
    match (of, index) {
        (Type::Dyn, _) => Ok(Type::Dyn),
        (Type::List(item), Type::Int | Type::Uint | Type::Double | Type::Dyn) => {
            Ok((**item).clone())
        }
        (Type::Map(key, value), index) if common(key, index).is_some() => Ok((**value).clone()),
        (Type::Optional(inner), index) => element(at, inner, index),
        (of, index) => Err(no_overload(at, "_[_]", &[of.clone(), index.clone()])),
    }
}

fn binary(at: usize, operator: Operator, left: Type, right: Type) -> Result<Type> {
    use Operator::{
        Add, Divide, Equal, Greater, GreaterOrEqual, In, Less, LessOrEqual, Multiply, NotEqual,
        Remainder, Subtract,
    };
    use Type::{Bool, Bytes, Double, Duration, Dyn, Int, List, Map, Text, Timestamp, Uint};
    let refuse = |left: Type, right: Type| Err(no_overload(at, operator.name(), &[left, right]));
    let is_number = |it: &Type| matches!(it, Int | Uint | Double);
    match (operator, &left, &right) {
        (Equal | NotEqual, left_type, right_type) => {
            let comparable = common(left_type, right_type).is_some()
                || *left_type == Type::Null
                || *right_type == Type::Null
                || (is_number(left_type) && is_number(right_type));
            if comparable { Ok(Bool) } else { refuse(left, right) }
        }
        (In, item, List(of)) if common(item, of).is_some() => Ok(Bool),
        (In, key, Map(of, _)) if common(key, of).is_some() => Ok(Bool),
        (In, _, Dyn) => Ok(Bool),
        (In, ..) => refuse(left, right),
        (Less | LessOrEqual | Greater | GreaterOrEqual, Dyn, _)
        | (Less | LessOrEqual | Greater | GreaterOrEqual, _, Dyn) => Ok(Bool),
        // What the other side can be is said by the one that is known.
        (_, Dyn, known) | (_, known, Dyn) => Ok(match (operator, known) {
            (Add | Subtract | Multiply | Divide | Remainder, Int | Uint) => known.clone(),
            (Add | Subtract | Multiply | Divide, Double) | (Add, Text | Bytes | List(_)) => {
                known.clone()
            }
            _ => Dyn,
        }),
        (Less | LessOrEqual | Greater | GreaterOrEqual, left_type, right_type) => {
            let ordered = matches!(
                (left_type, right_type),
                (Bool, Bool)
                    | (Text, Text)
                    | (Bytes, Bytes)
                    | (Timestamp, Timestamp)
                    | (Duration, Duration)
            ) || (is_number(left_type) && is_number(right_type));
            if ordered { Ok(Bool) } else { refuse(left, right) }
        }
        (Add | Subtract | Multiply | Divide, Int, Int) | (Remainder, Int, Int) => Ok(Int),
        (Add | Subtract | Multiply | Divide | Remainder, Uint, Uint) => Ok(Uint),
        (Add | Subtract | Multiply | Divide, Double, Double) => Ok(Double),
        (Add, Text, Text) => Ok(Text),
        (Add, Bytes, Bytes) => Ok(Bytes),
        (Add, List(one), List(two)) => match common(one, two) {
            Some(item) => Ok(List(Box::new(item))),
            None => refuse(left, right),
        },
        (Add | Subtract, Timestamp, Duration) | (Add, Duration, Timestamp) => Ok(Timestamp),
        (Subtract, Timestamp, Timestamp) | (Add | Subtract, Duration, Duration) => Ok(Duration),
        _ => refuse(left, right),
    }
}

/// What both types are, if they go together.
fn common(left: &Type, right: &Type) -> Option<Type> {
    match (left, right) {
        (left, right) if left == right => Some(left.clone()),
        (Type::Dyn, _) | (_, Type::Dyn) => Some(Type::Dyn),
        (Type::Null, other @ (Type::Object(_) | Type::Optional(_)))
        | (other @ (Type::Object(_) | Type::Optional(_)), Type::Null) => Some(other.clone()),
        (Type::List(left), Type::List(right)) => {
            common(left, right).map(|it| Type::List(Box::new(it)))
        }
        (Type::Optional(left), Type::Optional(right)) => {
            common(left, right).map(|it| Type::Optional(Box::new(it)))
        }
        (Type::Map(key, value), Type::Map(other_key, other_value)) => {
            let (key, value) = (common(key, other_key)?, common(value, other_value)?);
            Some(Type::Map(Box::new(key), Box::new(value)))
        }
        _ => None,
    }
}

/// Whether a value of `found` can be where `wanted` is asked for.
fn assignable(found: &Type, wanted: &Type, bound: &mut [Option<Type>; 2]) -> bool {
    match (found, wanted) {
        (found, Type::Any(index)) => {
            let Some(slot) = bound.get_mut(usize::from(*index)) else { return false };
            let joined = match slot {
                None => Some(found.clone()),
                Some(known) => common(known, found),
            };
            let is_fitting = joined.is_some();
            *slot = joined.or_else(|| slot.take());
            is_fitting
        }
        (Type::Dyn, _) | (_, Type::Dyn) => true,
        (Type::List(found), Type::List(wanted))
        | (Type::Optional(found), Type::Optional(wanted)) => assignable(found, wanted, bound),
        (Type::Map(key, value), Type::Map(wanted_key, wanted_value)) => {
            assignable(key, wanted_key, bound) && assignable(value, wanted_value, bound)
        }
        // An object can be walked like a map.
        (Type::Object(_), Type::Map(..)) => true,
        (found, wanted) => found == wanted,
    }
}

fn result_of(it: &Signature, target: Option<&Type>, arguments: &[Type]) -> Option<Type> {
    let mut bound = [None, None];
    let fits = match (target, &it.target) {
        (None, None) => true,
        (Some(found), Some(wanted)) => assignable(found, wanted, &mut bound),
        _ => false,
    };
    let mut pairs = arguments.iter().zip(&it.arguments);
    let all = fits
        && arguments.len() == it.arguments.len()
        && pairs.all(|(found, wanted)| assignable(found, wanted, &mut bound));
    all.then(|| substituted(&it.result, &bound))
}

fn substituted(it: &Type, bound: &[Option<Type>; 2]) -> Type {
    match it {
        Type::Any(index) => bound.get(usize::from(*index)).cloned().flatten().unwrap_or(Type::Dyn),
        Type::List(inner) => Type::List(Box::new(substituted(inner, bound))),
        Type::Optional(inner) => Type::Optional(Box::new(substituted(inner, bound))),
        Type::Map(key, value) => {
            Type::Map(Box::new(substituted(key, bound)), Box::new(substituted(value, bound)))
        }
        other => other.clone(),
    }
}
