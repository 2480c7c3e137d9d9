//! From tokens to expressions. Macros are expanded here.

use crate::{
    ast::{Expr, Loop, LoopKind, Node, Operator},
    lex::{self, Kind, Token},
};

/// Longest expression, in bytes.
pub const MAX_LENGTH: usize = 64 * 1024;
/// What an expression begins with, in the words of upstream's parser.
const BEGIN: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
/// Deepest nesting of an expression.
pub const MAX_DEPTH: usize = 100;

/// Why a text is no expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    pub at: usize,
    pub message: String,
}

/// Parses an expression.
pub fn parse(source: &str) -> Result<Expr, ParseError> {
    if MAX_LENGTH < source.len() {
        let message = format!("expression code point size exceeds limit: {MAX_LENGTH}");
        return Err(ParseError { at: 0, message });
    }
    let tokens = lex::tokens(source).map_err(|(at, message)| ParseError { at, message })?;
    let mut parser = Parser { tokens, next: 0, end: source.len(), depth: 0 };
    let expr = parser.expression()?;
    match parser.peek() {
        None => Ok(expr),
        Some(_) => Err(parser.unexpected("<EOF>")),
    }
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    end: usize,
    depth: usize,
}

type Result<T, E = ParseError> = std::result::Result<T, E>;

fn expr(at: usize, node: Node) -> Expr {
    Expr { at, node }
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    fn at(&self) -> usize {
        self.peek().map_or(self.end, |it| it.at)
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Token { kind: Kind::Sign(it), .. }) if *it == sign)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token { kind: Kind::Name(it), .. }) if it == word)
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<()> {
        if self.take(sign) { Ok(()) } else { Err(self.unexpected(&format!("'{sign}'"))) }
    }

    fn unexpected(&self, wanted: &str) -> ParseError {
        let found = match self.peek().map(|it| &it.kind) {
            None => "<EOF>".to_owned(),
            Some(Kind::Sign(sign)) => (*sign).to_owned(),
            Some(Kind::Name(name)) => name.chars().take(64).collect(),
            Some(_) => "literal".to_owned(),
        };
        let message = format!("Syntax error: mismatched input '{found}' expecting {wanted}");
        ParseError { at: self.at(), message }
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if MAX_DEPTH < self.depth {
            let message = format!("expression recursion limit exceeded: {MAX_DEPTH}");
            return Err(ParseError { at: self.at(), message });
        }
        let found = inner(self);
        self.depth -= 1;
        found
    }

    fn expression(&mut self) -> Result<Expr> {
        self.deeper(|it| {
            let condition = it.or()?;
            let at = it.at();
            if !it.take("?") {
                return Ok(condition);
            }
            let then = it.or()?;
            it.expect(":")?;
            let otherwise = it.expression()?;
            Ok(expr(
                at,
                Node::If {
                    condition: condition.into(),
                    then: then.into(),
                    otherwise: otherwise.into(),
                },
            ))
        })
    }

    fn or(&mut self) -> Result<Expr> {
        let at = self.at();
        let mut list = vec![self.and()?];
        while self.take("||") {
            list.push(self.and()?);
        }
        match list.pop() {
            Some(one) if list.is_empty() => Ok(one),
            last => {
                list.extend(last);
                Ok(expr(at, Node::Or(list)))
            }
        }
    }

    fn and(&mut self) -> Result<Expr> {
        let at = self.at();
        let mut list = vec![self.relation()?];
        while self.take("&&") {
            list.push(self.relation()?);
        }
        match list.pop() {
            Some(one) if list.is_empty() => Ok(one),
            last => {
                list.extend(last);
                Ok(expr(at, Node::And(list)))
            }
        }
    }

    fn relation(&mut self) -> Result<Expr> {
        let mut left = self.sum()?;
        loop {
            let at = self.at();
            const SIGNS: &[(&str, Operator)] = &[
                ("==", Operator::Equal),
                ("!=", Operator::NotEqual),
                ("<=", Operator::LessOrEqual),
                (">=", Operator::GreaterOrEqual),
                ("<", Operator::Less),
                (">", Operator::Greater),
            ];
            let operator = if self.is_word("in") {
                self.next += 1;
                Operator::In
            } else {
                match SIGNS.iter().find(|(sign, _)| self.take(sign)) {
                    Some((_, operator)) => *operator,
                    None => return Ok(left),
                }
            };
            left = self.binary(at, operator, left, Self::sum)?;
        }
    }

    /// Chains grow to the left, and are as deep as they are long.
    fn binary(
        &mut self,
        at: usize,
        operator: Operator,
        left: Expr,
        right: fn(&mut Self) -> Result<Expr>,
    ) -> Result<Expr> {
        if MAX_DEPTH < depth(&left) {
            let message = format!("expression recursion limit exceeded: {MAX_DEPTH}");
            return Err(ParseError { at, message });
        }
        let right = right(self)?;
        Ok(expr(at, Node::Binary(operator, left.into(), right.into())))
    }

    fn sum(&mut self) -> Result<Expr> {
        let mut left = self.product()?;
        loop {
            let at = self.at();
            let operator = match () {
                () if self.take("+") => Operator::Add,
                () if self.take("-") => Operator::Subtract,
                () => return Ok(left),
            };
            left = self.binary(at, operator, left, Self::product)?;
        }
    }

    fn product(&mut self) -> Result<Expr> {
        let mut left = self.unary()?;
        loop {
            let at = self.at();
            let operator = match () {
                () if self.take("*") => Operator::Multiply,
                () if self.take("/") => Operator::Divide,
                () if self.take("%") => Operator::Remainder,
                () => return Ok(left),
            };
            left = self.binary(at, operator, left, Self::unary)?;
        }
    }

    fn unary(&mut self) -> Result<Expr> {
        let at = self.at();
        if self.take("!") {
            let inner = self.deeper(Self::unary)?;
            return Ok(expr(at, Node::Not(inner.into())));
        }
        if self.take("-") {
            let literal = match self.peek().map(|it| it.kind.clone()) {
                Some(Kind::Int(it)) => Some(Node::Int(-it)),
                Some(Kind::MinInt) => Some(Node::Int(i64::MIN)),
                Some(Kind::Double(it)) => Some(Node::Double(-it)),
                _ => None,
            };
            if let Some(literal) = literal {
                self.next += 1;
                return self.members(expr(at, literal));
            }
            let inner = self.deeper(Self::unary)?;
            return Ok(expr(at, Node::Negate(inner.into())));
        }
        let primary = self.primary()?;
        self.members(primary)
    }

    fn members(&mut self, mut of: Expr) -> Result<Expr> {
        let mut length = 0;
        loop {
            length += 1;
            let at = self.at();
            if MAX_DEPTH < length {
                let message = format!("expression recursion limit exceeded: {MAX_DEPTH}");
                return Err(ParseError { at, message });
            }
            if self.take(".") {
                let is_optional = self.take("?");
                let field = self.name()?;
                // Calls are where their arguments begin.
                let called = self.at();
                if !is_optional && self.take("(") {
                    let arguments = self.arguments(")")?;
                    of = call(called, Some(of), field, arguments)?;
                } else {
                    of = expr(at, Node::Select { of: of.into(), field, is_optional });
                }
            } else if self.take("[") {
                let is_optional = self.take("?");
                let index = self.expression()?;
                self.expect("]")?;
                of = expr(at, Node::Index { of: of.into(), index: index.into(), is_optional });
            } else {
                return Ok(of);
            }
        }
    }

    fn name(&mut self) -> Result<String> {
        match self.peek().map(|it| it.kind.clone()) {
            Some(Kind::Name(name)) => {
                self.next += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("IDENTIFIER")),
        }
    }

    fn arguments(&mut self, end: &str) -> Result<Vec<Expr>> {
        let mut list = Vec::new();
        while !self.take(end) {
            list.push(self.expression()?);
            if !self.take(",") {
                self.expect(end)?;
                break;
            }
        }
        Ok(list)
    }

    fn primary(&mut self) -> Result<Expr> {
        let at = self.at();
        let Some(token) = self.peek().cloned() else {
            return Err(self.unexpected(BEGIN));
        };
        if self.take("(") {
            let inner = self.expression()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.take("[") {
            return self.list(at);
        }
        if self.take("{") {
            return self.map(at);
        }
        // A leading dot only says that the name is an absolute one.
        if self.is(".")
            && matches!(self.tokens.get(self.next + 1), Some(Token { kind: Kind::Name(_), .. }))
        {
            self.next += 1;
            return self.primary();
        }
        self.next += 1;
        Ok(expr(
            at,
            match token.kind {
                Kind::Int(it) => Node::Int(it),
                Kind::Uint(it) => Node::Uint(it),
                Kind::Double(it) => Node::Double(it),
                Kind::Text(it) => Node::Text(it),
                Kind::Bytes(it) => Node::Bytes(it),
                Kind::Name(name) => match name.as_str() {
                    "true" => Node::Bool(true),
                    "false" => Node::Bool(false),
                    "null" => Node::Null,
                    _ if self.is("(") => {
                        let at = self.at();
                        self.next += 1;
                        let arguments = self.arguments(")")?;
                        return call(at, None, name, arguments);
                    }
                    _ => return self.named(at, name),
                },
                Kind::MinInt | Kind::Sign(_) => {
                    self.next -= 1;
                    return Err(self.unexpected(BEGIN));
                }
            },
        ))
    }

    /// A variable, or, if braces follow a name with dots, what is made of that name.
    fn named(&mut self, at: usize, name: String) -> Result<Expr> {
        let mut whole = name.clone();
        let mut ahead = self.next;
        let is_sign = |token: Option<&Token>, sign: &str| matches!(token, Some(Token { kind: Kind::Sign(it), .. }) if *it == sign);
        while is_sign(self.tokens.get(ahead), ".")
            && let Some(Token { kind: Kind::Name(part), .. }) = self.tokens.get(ahead + 1)
        {
            whole.push('.');
            whole.push_str(part);
            ahead += 2;
        }
        if !is_sign(self.tokens.get(ahead), "{") {
            return Ok(expr(at, Node::Variable(name)));
        }
        self.next = ahead + 1;
        let mut fields = Vec::new();
        while !self.take("}") {
            let is_optional = self.take("?");
            let field = self.name()?;
            self.expect(":")?;
            fields.push((field, self.expression()?, is_optional));
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(expr(at, Node::Struct { name: whole, fields }))
    }

    fn list(&mut self, at: usize) -> Result<Expr> {
        let mut items = Vec::new();
        while !self.take("]") {
            let is_optional = self.take("?");
            items.push((self.expression()?, is_optional));
            if !self.take(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok(expr(at, Node::List(items)))
    }

    fn map(&mut self, at: usize) -> Result<Expr> {
        let mut entries = Vec::new();
        while !self.take("}") {
            let is_optional = self.take("?");
            let key = self.expression()?;
            self.expect(":")?;
            entries.push((key, self.expression()?, is_optional));
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(expr(at, Node::Map(entries)))
    }
}

/// How deep a chain of operators is.
fn depth(it: &Expr) -> usize {
    let (mut depth, mut it) = (0, it);
    while let Node::Binary(_, left, _) = &it.node {
        depth += 1;
        it = left;
    }
    depth
}

/// A call, or the macro that it means.
fn call(
    at: usize,
    target: Option<Expr>,
    function: String,
    mut arguments: Vec<Expr>,
) -> Result<Expr> {
    let bad = |message: &str| ParseError { at, message: message.to_owned() };
    let Some(target) = target else {
        if function == "has" && arguments.len() == 1 {
            let argument = arguments.pop();
            let begin = argument.as_ref().map_or(at, |it| it.at);
            return match argument.map(|it| it.node) {
                Some(Node::Select { of, field, is_optional: false }) => {
                    Ok(expr(at, Node::Has { of, field }))
                }
                _ => {
                    let message = "invalid argument to has() macro".to_owned();
                    Err(ParseError { at: begin, message })
                }
            };
        }
        return Ok(expr(at, Node::Call { target: None, function, arguments }));
    };
    if function == "bind" && target.node == Node::Variable("cel".into()) && arguments.len() == 3 {
        let mut rest = arguments.into_iter();
        if let (Some(name), Some(value), Some(body)) = (rest.next(), rest.next(), rest.next()) {
            let name = variable(name)
                .ok_or_else(|| bad("cel.bind() variable name must be a simple identifier"))?;
            return Ok(expr(at, Node::Bind { name, value: value.into(), body: body.into() }));
        }
        return Err(bad("invalid arguments to cel.bind()"));
    }
    if matches!(function.as_str(), "optMap" | "optFlatMap") && arguments.len() == 2 {
        let (Some(body), Some(name)) = (arguments.pop(), arguments.pop()) else {
            return Err(bad("invalid arguments to optMap()"));
        };
        let name = variable(name)
            .ok_or_else(|| bad("optMap() variable name must be a simple identifier"))?;
        let flat = function == "optFlatMap";
        return Ok(expr(
            at,
            Node::OptionalMap { of: target.into(), name, body: body.into(), flat },
        ));
    }
    match loop_of(&function, arguments.len()) {
        Some((kind, two, filtered)) => {
            let mut rest = arguments.into_iter();
            let mut name = || {
                rest.next().and_then(variable).ok_or_else(|| bad("argument must be a simple name"))
            };
            let first = name()?;
            let second = if two { Some(name()?) } else { None };
            let filter = if filtered { rest.next() } else { None };
            let body = rest.next().ok_or_else(|| bad("a macro needs a body"))?;
            let range = target;
            Ok(expr(at, Node::Loop(Box::new(Loop { kind, range, first, second, filter, body }))))
        }
        None => Ok(expr(at, Node::Call { target: Some(target.into()), function, arguments })),
    }
}

fn variable(it: Expr) -> Option<String> {
    match it.node {
        Node::Variable(name) => Some(name),
        _ => None,
    }
}

/// The macro of a name and a number of arguments: with two variables, with a filter.
fn loop_of(function: &str, n_arguments: usize) -> Option<(LoopKind, bool, bool)> {
    Some(match (function, n_arguments) {
        ("all", 2) => (LoopKind::All, false, false),
        ("all", 3) => (LoopKind::All, true, false),
        ("exists", 2) => (LoopKind::Exists, false, false),
        ("exists", 3) => (LoopKind::Exists, true, false),
        ("exists_one" | "existsOne", 2) => (LoopKind::ExistsOne, false, false),
        ("exists_one" | "existsOne", 3) => (LoopKind::ExistsOne, true, false),
        ("filter", 2) => (LoopKind::Filter, false, false),
        ("map", 2) => (LoopKind::Map, false, false),
        ("map", 3) => (LoopKind::Map, false, true),
        ("transformList", 3) => (LoopKind::Map, true, false),
        ("transformList", 4) => (LoopKind::Map, true, true),
        ("transformMap", 3) => (LoopKind::TransformMap, true, false),
        ("transformMap", 4) => (LoopKind::TransformMap, true, true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn precedence() {
        let it = parse("a + b * c == d && !e || f ? g : h").unwrap();
        let Node::If { condition, .. } = it.node else { panic!("{it:?}") };
        let Node::Or(list) = condition.node else { panic!("{condition:?}") };
        let Node::And(list) = &list[0].node else { panic!("{list:?}") };
        let Node::Binary(Operator::Equal, left, _) = &list[0].node else { panic!("{list:?}") };
        assert!(matches!(left.node, Node::Binary(Operator::Add, ..)));
    }

    #[test]
    fn macros() {
        let it = parse("self.items.all(x, x.size() < 3)").unwrap();
        assert!(matches!(it.node, Node::Loop(it) if it.kind == LoopKind::All && it.first == "x"));
        assert!(
            matches!(parse("has(self.a.b)").unwrap().node, Node::Has { field, .. } if field == "b")
        );
        assert!(parse("has(self)").is_err());
        assert!(parse("[1].all(1, true)").is_err());
        assert!(matches!(parse("cel.bind(x, 1, x + 1)").unwrap().node, Node::Bind { .. }));
    }

    #[test]
    fn depth_is_bounded() {
        for bad in [
            format!("{}1{}", "(".repeat(500), ")".repeat(500)),
            format!("{}true", "!".repeat(500)),
            vec!["1"; 500].join(" + "),
            format!("a{}", ".b".repeat(500)),
            "a".repeat(MAX_LENGTH + 1),
        ] {
            assert!(parse(&bad).is_err());
        }
        // Chains of conditions are as long as they like.
        assert!(parse(&vec!["true"; 2000].join(" && ")).is_ok());
    }

    #[test]
    fn what_is_none() {
        for bad in ["", "1 +", "a b", "(1", "[1", "{1}", "a.", "a..b", "1 ? 2", "a.b(", "."] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(source in "[a-c0-9.+*()\\[\\]{}?:!&|<>='\"\\\\, -]{0,40}") {
            let _ = parse(&source);
        }
    }
}
