//! Expressions, parsed.

/// An expression and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Expr {
    pub at: usize,
    pub node: Node,
}

/// What an expression is.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Variable(String),
    /// `of.field`, or `of.?field`.
    Select {
        of: Box<Expr>,
        field: String,
        is_optional: bool,
    },
    /// `has(of.field)`.
    Has {
        of: Box<Expr>,
        field: String,
    },
    /// `of[index]`, or `of[?index]`.
    Index {
        of: Box<Expr>,
        index: Box<Expr>,
        is_optional: bool,
    },
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    If {
        condition: Box<Expr>,
        then: Box<Expr>,
        otherwise: Box<Expr>,
    },
    /// Items; optional ones are left out if they are none.
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
    /// `name{field: value}`; optional fields are left out if they are none.
    Struct {
        name: String,
        fields: Vec<(String, Expr, bool)>,
    },
    Call {
        target: Option<Box<Expr>>,
        function: String,
        arguments: Vec<Expr>,
    },
    Loop(Box<Loop>),
    /// `cel.bind(name, value, body)`.
    Bind {
        name: String,
        value: Box<Expr>,
        body: Box<Expr>,
    },
    /// `of.optMap(name, body)`; `flat` for `optFlatMap`.
    OptionalMap {
        of: Box<Expr>,
        name: String,
        body: Box<Expr>,
        flat: bool,
    },
}

/// A macro over the items of a list, or the keys of a map.
#[derive(Debug, Clone, PartialEq)]
pub struct Loop {
    pub kind: LoopKind,
    pub range: Expr,
    /// The item or the key; in the two-variable forms the index or the key.
    pub first: String,
    /// In the two-variable forms the item or the value.
    pub second: Option<String>,
    pub filter: Option<Expr>,
    pub body: Expr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopKind {
    All,
    Exists,
    ExistsOne,
    Filter,
    /// To a list.
    Map,
    /// To a map with the same keys.
    TransformMap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
}

impl Operator {
    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "_+_",
            Self::Subtract => "_-_",
            Self::Multiply => "_*_",
            Self::Divide => "_/_",
            Self::Remainder => "_%_",
            Self::Equal => "_==_",
            Self::NotEqual => "_!=_",
            Self::Less => "_<_",
            Self::LessOrEqual => "_<=_",
            Self::Greater => "_>_",
            Self::GreaterOrEqual => "_>=_",
            Self::In => "@in",
        }
    }
}

impl Expr {
    /// Whether it speaks of a variable.
    pub fn uses(&self, variable: &str) -> bool {
        let mut found = false;
        self.each(&mut |it| found |= matches!(&it.node, Node::Variable(name) if name == variable));
        found
    }

    /// Visits it and all that it is made of.
    pub fn each<'a>(&'a self, visit: &mut impl FnMut(&'a Self)) {
        visit(self);
        match &self.node {
            Node::Select { of, .. } | Node::Has { of, .. } => of.each(visit),
            Node::Index { of, index, .. } => [of, index].into_iter().for_each(|it| it.each(visit)),
            Node::Not(it) | Node::Negate(it) => it.each(visit),
            Node::Binary(_, left, right) => {
                [left, right].into_iter().for_each(|it| it.each(visit));
            }
            Node::And(list) | Node::Or(list) => list.iter().for_each(|it| it.each(visit)),
            Node::If { condition, then, otherwise } => {
                [condition, then, otherwise].into_iter().for_each(|it| it.each(visit));
            }
            Node::List(items) => items.iter().for_each(|(it, _)| it.each(visit)),
            Node::Map(entries) => entries.iter().for_each(|(key, it, _)| {
                key.each(visit);
                it.each(visit);
            }),
            Node::Struct { fields, .. } => fields.iter().for_each(|(_, it, _)| it.each(visit)),
            Node::Call { target, arguments, .. } => {
                target.iter().for_each(|it| it.each(visit));
                arguments.iter().for_each(|it| it.each(visit));
            }
            Node::Loop(it) => {
                it.range.each(visit);
                it.filter.iter().for_each(|it| it.each(visit));
                it.body.each(visit);
            }
            Node::Bind { value, body, .. } => {
                [value, body].into_iter().for_each(|it| it.each(visit))
            }
            Node::OptionalMap { of, body, .. } => {
                [of, body].into_iter().for_each(|it| it.each(visit));
            }
            Node::Null
            | Node::Bool(_)
            | Node::Int(_)
            | Node::Uint(_)
            | Node::Double(_)
            | Node::Text(_)
            | Node::Bytes(_)
            | Node::Variable(_) => (),
        }
    }
}

/// Whether `name` is `base.field`.
pub(crate) fn is_qualified(name: &str, base: &str, field: &str) -> bool {
    name.strip_prefix(base).and_then(|rest| rest.strip_prefix('.')) == Some(field)
}
