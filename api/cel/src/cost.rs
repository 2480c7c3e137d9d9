//! What an expression costs at most, by the sizes that its variables can have.
//!
//! It follows the evaluator: one for each node, a tenth per character that is walked, and for
//! macros the body once per item. What has no declared size is as large as a request can be.

use crate::{
    ast::{Expr, LoopKind, Node, Operator, is_qualified},
    decl::{Decl, DeclKind},
    patterns::{self, Patterns},
};

/// Most bytes of an object, and so most characters of a text in it.
const MAX_REQUEST: u64 = 3 * 1024 * 1024;
/// A text of unknown size in what is computed.
const MAX_TEXT: u64 = MAX_REQUEST;

/// The cost of `expr`.
pub(crate) fn estimate(expr: &Expr, patterns: &Patterns, variables: &[(&str, Decl)]) -> u64 {
    let variables =
        variables.iter().map(|(name, decl)| ((*name).to_owned(), Shape::Decl(decl.clone())));
    Estimator { variables: variables.collect(), patterns }.node(expr).cost
}

/// Letters of what has a bounded text of its own, at most.
const WRITTEN: u64 = 64;

/// The fewest bytes that a value takes in JSON, with the comma behind it.
fn least_bytes(decl: &Decl) -> u64 {
    match &decl.kind {
        DeclKind::Bool => 5,
        DeclKind::Text | DeclKind::Bytes | DeclKind::List(_) | DeclKind::Map(_) => 3,
        DeclKind::Timestamp => 21,
        DeclKind::Duration => 5,
        DeclKind::Object(_) => 3,
        DeclKind::Dyn
        | DeclKind::Int
        | DeclKind::Double
        | DeclKind::Optional(_)
        | DeclKind::Type(_) => 2,
    }
}

/// How many characters, items or entries there are at most.
pub fn max_size(decl: &Decl) -> u64 {
    decl.max_size.unwrap_or_else(|| match &decl.kind {
        DeclKind::Text | DeclKind::Bytes | DeclKind::Dyn | DeclKind::Type(_) => MAX_REQUEST,
        DeclKind::Timestamp | DeclKind::Duration => 64,
        DeclKind::List(item) => MAX_REQUEST / least_bytes(item),
        // A key, its quotes and the colon.
        DeclKind::Map(value) => MAX_REQUEST / (least_bytes(value) + 4),
        DeclKind::Object(fields) => fields.fields.len() as u64,
        DeclKind::Bool | DeclKind::Int | DeclKind::Double | DeclKind::Optional(_) => 1,
    })
}

#[derive(Debug, Clone)]
enum Shape {
    Decl(Decl),
    /// A computed list or map, of so many of these.
    Many(u64, Box<Shape>),
    /// A computed text of so many characters.
    Text(u64),
    Scalar,
}

impl Shape {
    fn size(&self) -> u64 {
        match self {
            Self::Decl(decl) => max_size(decl),
            Self::Many(size, _) | Self::Text(size) => *size,
            Self::Scalar => 1,
        }
    }

    /// How many characters are walked to look at all of it.
    fn walk(&self) -> u64 {
        match self {
            Self::Decl(Decl { kind: DeclKind::Text | DeclKind::Bytes | DeclKind::Dyn, .. })
            | Self::Text(_) => self.size() / 10 + 1,
            Self::Decl(decl) => match &decl.kind {
                DeclKind::List(item) | DeclKind::Map(item) => {
                    self.size().saturating_mul(Self::Decl((**item).clone()).walk())
                }
                DeclKind::Object(fields) => {
                    let parts = fields.fields.values();
                    parts.fold(1, |sum: u64, (_, it)| {
                        sum.saturating_add(Self::Decl(it.clone()).walk())
                    })
                }
                _ => 1,
            },
            Self::Many(size, item) => size.saturating_mul(item.walk()),
            Self::Scalar => 1,
        }
        .min(MAX_REQUEST)
    }

    /// What it costs to look whether all of it is the same as something.
    fn compare(&self) -> u64 {
        match self {
            Self::Decl(Decl { kind: DeclKind::List(item) | DeclKind::Map(item), .. }) => {
                let each = Self::Decl((**item).clone()).compare();
                self.size().saturating_mul(each.saturating_add(1)).saturating_add(2)
            }
            Self::Many(size, item) => {
                size.saturating_mul(item.compare().saturating_add(1)).saturating_add(2)
            }
            Self::Decl(Decl { kind: DeclKind::Object(fields), .. }) => {
                let parts = fields.fields.values();
                parts.fold(2, |sum: u64, (_, it)| {
                    sum.saturating_add(Self::Decl(it.clone()).compare()).saturating_add(1)
                })
            }
            it => it.walk().saturating_add(1),
        }
        .min(MAX_REQUEST)
    }

    /// What it costs to lay out its items.
    fn lay_out(&self) -> u64 {
        self.size() / 10 + 1
    }

    fn item(&self) -> Self {
        match self {
            Self::Decl(Decl { kind: DeclKind::List(item) | DeclKind::Map(item), .. }) => {
                Self::Decl((**item).clone())
            }
            Self::Decl(Decl { kind: DeclKind::Optional(inner), .. }) => {
                Self::Decl((**inner).clone()).item()
            }
            Self::Decl(Decl { kind: DeclKind::Dyn, .. }) => Self::Decl(Decl::of(DeclKind::Dyn)),
            Self::Many(_, item) => (**item).clone(),
            _ => Self::Scalar,
        }
    }

    fn is_list(&self) -> bool {
        matches!(self, Self::Many(..) | Self::Decl(Decl { kind: DeclKind::List(_), .. }))
    }

    fn is_map(&self) -> bool {
        matches!(self, Self::Decl(Decl { kind: DeclKind::Map(_) | DeclKind::Object(_), .. }))
    }

    fn field(&self, name: &str) -> Self {
        match self {
            Self::Decl(Decl { kind: DeclKind::Object(fields), .. }) => {
                match fields.fields.get(name) {
                    Some((_, decl)) => Self::Decl(decl.clone()),
                    None => Self::Scalar,
                }
            }
            other => other.item(),
        }
    }
}

struct Estimate {
    cost: u64,
    shape: Shape,
}

struct Estimator<'p> {
    variables: Vec<(String, Shape)>,
    patterns: &'p Patterns,
}

/// A variable whose name has a dot.
fn qualified<'v>(of: &Expr, field: &str, variables: &'v [(String, Shape)]) -> Option<&'v Shape> {
    let Node::Variable(base) = &of.node else { return None };
    let found = variables.iter().rev().find(|(name, _)| is_qualified(name, base, field));
    found.map(|(_, shape)| shape)
}

impl Estimator<'_> {
    fn node(&mut self, expr: &Expr) -> Estimate {
        let made = |cost: u64, shape: Shape| Estimate { cost: cost.saturating_add(1), shape };
        match &expr.node {
            Node::Text(text) => made(0, Shape::Text(text.len() as u64)),
            Node::Bytes(bytes) => made(0, Shape::Text(bytes.len() as u64)),
            Node::Null | Node::Bool(_) | Node::Int(_) | Node::Uint(_) | Node::Double(_) => {
                made(0, Shape::Scalar)
            }
            Node::Variable(name) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                made(0, found.map_or(Shape::Scalar, |(_, shape)| shape.clone()))
            }
            Node::Select { of, field, .. } => {
                if let Some(found) = qualified(of, field, &self.variables) {
                    return made(0, found.clone());
                }
                let of = self.node(of);
                made(of.cost, of.shape.field(field))
            }
            Node::Has { of, .. } => made(self.node(of).cost, Shape::Scalar),
            Node::Index { of, index, .. } => {
                let of = self.node(of);
                let index = self.node(index);
                made(of.cost.saturating_add(index.cost), of.shape.item())
            }
            Node::Not(inner) | Node::Negate(inner) => made(self.node(inner).cost, Shape::Scalar),
            Node::Binary(operator, left, right) => {
                let (left, right) = (self.node(left), self.node(right));
                let cost = left.cost.saturating_add(right.cost);
                let walk = match operator {
                    Operator::Equal | Operator::NotEqual => {
                        left.shape.compare().min(right.shape.compare())
                    }
                    Operator::In if right.shape.is_map() => 1,
                    Operator::In => {
                        let each = left.shape.compare().min(right.shape.item().compare());
                        right
                            .shape
                            .size()
                            .saturating_mul(each)
                            .saturating_add(right.shape.lay_out())
                    }
                    Operator::Add => left.shape.walk().saturating_add(right.shape.walk()),
                    _ => left.shape.walk().min(right.shape.walk()),
                };
                let size = left.shape.size().saturating_add(right.shape.size());
                let shape = match (&left.shape, &right.shape) {
                    (Shape::Text(_), _) | (_, Shape::Text(_)) => Shape::Text(size.min(MAX_TEXT)),
                    (Shape::Many(_, item), _) => Shape::Many(size, item.clone()),
                    _ => Shape::Scalar,
                };
                made(cost.saturating_add(walk), shape)
            }
            Node::And(list) | Node::Or(list) => {
                let cost =
                    list.iter().fold(0, |sum: u64, it| sum.saturating_add(self.node(it).cost));
                made(cost, Shape::Scalar)
            }
            Node::If { condition, then, otherwise } => {
                let condition = self.node(condition);
                let (then, otherwise) = (self.node(then), self.node(otherwise));
                let larger = if then.shape.walk() < otherwise.shape.walk() {
                    otherwise.shape
                } else {
                    then.shape
                };
                made(condition.cost.saturating_add(then.cost.max(otherwise.cost)), larger)
            }
            Node::List(items) => {
                let mut cost: u64 = 0;
                let mut item = Shape::Scalar;
                for (it, _) in items {
                    let found = self.node(it);
                    cost = cost.saturating_add(found.cost);
                    if item.walk() <= found.shape.walk() {
                        item = found.shape;
                    }
                }
                made(cost, Shape::Many(items.len() as u64, Box::new(item)))
            }
            Node::Map(entries) => {
                let mut cost: u64 = 0;
                let mut item = Shape::Scalar;
                for (key, value, _) in entries {
                    let (key, value) = (self.node(key), self.node(value));
                    cost = cost.saturating_add(key.cost).saturating_add(value.cost);
                    if item.walk() <= value.shape.walk() {
                        item = value.shape;
                    }
                }
                made(cost, Shape::Many(entries.len() as u64, Box::new(item)))
            }
            Node::Struct { fields, .. } => {
                let cost = fields
                    .iter()
                    .fold(0, |sum: u64, (_, it, _)| sum.saturating_add(self.node(it).cost));
                made(cost, Shape::Decl(Decl::of(DeclKind::Dyn)))
            }
            Node::Call { target, function, arguments } => {
                self.call(target.as_deref(), function, arguments)
            }
            Node::Loop(it) => {
                let range = self.node(&it.range);
                let size = range.shape.size();
                let key = || Shape::Text(64);
                let (first, second) = match (&it.second, range.shape.is_map()) {
                    (None, true) => (key(), None),
                    (None, false) => (range.shape.item(), None),
                    (Some(name), true) => (key(), Some((name, range.shape.item()))),
                    (Some(name), false) => (Shape::Scalar, Some((name, range.shape.item()))),
                };
                let n_variables = self.variables.len();
                self.variables.push((it.first.clone(), first));
                if let Some((name, shape)) = second {
                    self.variables.push((name.clone(), shape));
                }
                let filter = it.filter.as_ref().map_or(0, |it| self.node(it).cost);
                let body = self.node(&it.body);
                self.variables.truncate(n_variables);
                let each = filter.saturating_add(body.cost).saturating_add(1);
                let shape = match it.kind {
                    LoopKind::Filter => Shape::Many(size, Box::new(range.shape.item())),
                    LoopKind::Map | LoopKind::TransformMap => {
                        Shape::Many(size, Box::new(body.shape))
                    }
                    LoopKind::All | LoopKind::Exists | LoopKind::ExistsOne => Shape::Scalar,
                };
                let cost = range.cost.saturating_add(range.shape.lay_out());
                made(cost.saturating_add(size.saturating_mul(each)), shape)
            }
            Node::Bind { name, value, body } => {
                let value = self.node(value);
                self.variables.push((name.clone(), value.shape));
                let body = self.node(body);
                self.variables.pop();
                made(value.cost.saturating_add(body.cost), body.shape)
            }
            Node::OptionalMap { of, name, body, .. } => {
                let of = self.node(of);
                self.variables.push((name.clone(), of.shape));
                let body = self.node(body);
                self.variables.pop();
                made(of.cost.saturating_add(body.cost), body.shape)
            }
        }
    }

    fn call(&mut self, target: Option<&Expr>, function: &str, arguments: &[Expr]) -> Estimate {
        let parts: Vec<Estimate> =
            target.into_iter().chain(arguments).map(|it| self.node(it)).collect();
        let mut own = if function == "check" { 2 + crate::authorizer::COST } else { 2 };
        let pattern = patterns::of_call(function, target.is_some(), arguments);
        if pattern.is_some_and(|it| !self.patterns.has(it)) {
            own += patterns::COST;
        }
        let cost = parts.iter().fold(own, |sum: u64, it| sum.saturating_add(it.cost));
        let walk = parts.iter().fold(0, |sum: u64, it| sum.saturating_add(it.shape.walk()));
        // Asking for a size, or whether there is a value, walks nothing.
        let walk = match function {
            "size" | "hasValue" | "value" | "orValue" | "or" | "type" | "dyn" => 0,
            // Each item with each, or with what is looked for.
            "distinct" | "contains" | "equivalent" | "intersects" | "indexOf" | "lastIndexOf" => {
                walk.saturating_add(of_pairs(&parts, function == "distinct"))
            }
            // Numbers may have many digits, and bytes two each.
            "format" => {
                let template = parts.first().map_or(0, |it| it.shape.size());
                walk.saturating_mul(3).saturating_add(template.saturating_mul(20))
            }
            "replace" => match parts.as_slice() {
                [text, _, to, ..] => {
                    let found = text.shape.size().saturating_add(1);
                    walk.saturating_mul(2)
                        .saturating_add(found.saturating_mul(to.shape.size()) / 10 + 1)
                }
                _ => walk,
            },
            "join" | "flatten" => {
                let (items, more) = (parts.first(), parts.get(1));
                let each = match (function, more, items) {
                    ("join", Some(separator), _) => separator.shape.size() / 10 + 1,
                    ("flatten", _, Some(items)) => items.shape.item().size(),
                    _ => 1,
                };
                let size = items.map_or(0, |it| it.shape.size());
                walk.saturating_add(size.saturating_mul(each)).saturating_add(1)
            }
            // The text once more.
            "matches" | "find" | "findAll" => walk.saturating_mul(2),
            _ => walk,
        };
        let longest = parts.iter().map(|it| it.shape.size()).max().unwrap_or(1);
        let first = parts.first().map_or(Shape::Scalar, |it| it.shape.clone());
        let shape = match function {
            "split" | "findAll" => Shape::Many(longest, Box::new(Shape::Text(longest))),
            "lowerAscii" | "upperAscii" | "trim" | "substring" | "find" | "charAt" => {
                Shape::Text(longest)
            }
            // Numbers, times and addresses come to a few letters.
            "string" => Shape::Text(longest.max(WRITTEN)),
            // Parts of what was given, which is carried on to its methods.
            "url" | "getScheme" | "getHost" | "getHostname" | "getPort" | "getEscapedPath" => {
                Shape::Text(first.size())
            }
            "getQuery" => {
                let texts = Shape::Many(longest, Box::new(Shape::Text(longest)));
                Shape::Many(longest, Box::new(texts))
            }
            "validate" => Shape::Many(1, Box::new(Shape::Text(WRITTEN))),
            "replace" | "join" | "format" => Shape::Text(walk.saturating_mul(10).min(MAX_TEXT)),
            "flatten" => {
                let (size, item) = (first.size(), first.item());
                Shape::Many(size.saturating_mul(item.size()), Box::new(item.item()))
            }
            "min" | "max" | "first" | "last" if target.is_some() => first.item(),
            "distinct" | "sort" | "slice" | "dyn" | "of" | "value" => first,
            "reverse" | "bytes" | "encode" | "decode" | "quote" | "escapeKey" => match first {
                Shape::Many(..) | Shape::Decl(Decl { kind: DeclKind::List(_), .. }) => first,
                // Each character may come to several. What a function belongs to may come first.
                _ => Shape::Text(longest.saturating_mul(4).saturating_add(4)),
            },
            // One or the other.
            "or" | "orValue" => {
                let larger = parts.into_iter().map(|it| it.shape).max_by_key(Shape::walk);
                larger.unwrap_or(Shape::Scalar)
            }
            _ => Shape::Scalar,
        };
        Estimate { cost: cost.saturating_add(walk), shape }
    }
}

/// What it costs to compare the items of lists with each other, or with something.
fn of_pairs(parts: &[Estimate], with_itself: bool) -> u64 {
    let lists = parts.iter().map(|it| &it.shape).filter(|it| it.is_list());
    let (mut pairs, mut each) = (1_u64, 0_u64);
    for list in lists {
        let size = if with_itself { list.size().saturating_pow(2) } else { list.size() };
        pairs = pairs.saturating_mul(size);
        each = each.max(list.item().compare());
    }
    pairs.saturating_mul(each)
}
