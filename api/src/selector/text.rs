//! The text form of label selectors.
//!
//! ```text
//! selector    = [ requirement { "," requirement } ]
//! requirement = [ "!" ] key | key comparison
//! comparison  = ( "=" | "==" | "!=" | ">" | "<" ) value | ( "in" | "notin" ) "(" values ")"
//! ```

use super::{Operator, Requirement, SelectorError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// Anything that is no symbol: a key, a value, or one of the words `in` and `notin`.
    Word(&'a str),
    Not,
    Equals,
    NotEquals,
    Greater,
    Less,
    Open,
    Close,
    Comma,
    End,
}

impl Token<'_> {
    fn shown(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Not => "!",
            Self::Equals => "=",
            Self::NotEquals => "!=",
            Self::Greater => ">",
            Self::Less => "<",
            Self::Open => "(",
            Self::Close => ")",
            Self::Comma => ",",
            Self::End => "",
        }
    }
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Token<'a> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let ends_word = |c: char| " \t\r\n=!(),<>".contains(c);
        let end = self.rest.find(ends_word).unwrap_or(self.rest.len());
        if end != 0 {
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            return Token::Word(word);
        }
        for (symbol, token) in [
            ("==", Token::Equals),
            ("=", Token::Equals),
            ("!=", Token::NotEquals),
            ("!", Token::Not),
            ("(", Token::Open),
            (")", Token::Close),
            (",", Token::Comma),
            (">", Token::Greater),
            ("<", Token::Less),
        ] {
            if let Some(rest) = self.rest.strip_prefix(symbol) {
                self.rest = rest;
                return token;
            }
        }
        Token::End
    }

    fn peek(&self) -> Token<'a> {
        Tokens { rest: self.rest }.next()
    }
}

fn wrong<T>(found: Token<'_>, expected: &'static str) -> Result<T, SelectorError> {
    Err(SelectorError::Syntax { found: found.shown().to_owned(), comma: ",", expected })
}

pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut tokens = Tokens { rest: text };
    let mut requirements = Vec::new();
    if tokens.peek() == Token::End {
        return Ok(requirements);
    }
    loop {
        match tokens.peek() {
            Token::Word(_) | Token::Not => (),
            other if requirements.is_empty() => {
                return wrong(other, "!, identifier, or 'end of string'");
            }
            other => return wrong(other, "identifier after ','"),
        }
        let found = requirement(&mut tokens);
        requirements.push(found.map_err(|it| SelectorError::Requirement(Box::new(it)))?);
        if super::MOST < requirements.len() {
            return Err(SelectorError::TooMany);
        }
        match tokens.next() {
            Token::End => return Ok(requirements),
            Token::Comma => (),
            other => return wrong(other, "',' or 'end of string'"),
        }
    }
}

fn requirement(tokens: &mut Tokens<'_>) -> Result<Requirement, SelectorError> {
    let mut first = tokens.next();
    let negated = first == Token::Not;
    if negated {
        first = tokens.next();
    }
    // A word that could be an operator is one, but at the beginning.
    let key = match first {
        Token::Word(key) => key,
        other => return wrong(other, "identifier"),
    };
    if negated {
        return Requirement::new(key, Operator::DoesNotExist, [""; 0]);
    }
    let operator = match tokens.peek() {
        Token::End | Token::Comma => return Requirement::new(key, Operator::Exists, [""; 0]),
        Token::Equals => Operator::In,
        Token::NotEquals => Operator::NotIn,
        Token::Greater => Operator::GreaterThan,
        Token::Less => Operator::LessThan,
        Token::Word("in") => {
            tokens.next();
            return Requirement::new(key, Operator::In, values(tokens)?);
        }
        Token::Word("notin") => {
            tokens.next();
            return Requirement::new(key, Operator::NotIn, values(tokens)?);
        }
        other => return wrong(other, "in, notin, =, ==, !=, gt, lt"),
    };
    tokens.next();
    let value = match tokens.peek() {
        Token::Word(value) => {
            tokens.next();
            value
        }
        Token::End | Token::Comma => "",
        other => return wrong(other, "identifier"),
    };
    Requirement::new(key, operator, [value])
}

/// What stands between two commas may be empty and then is the empty value.
fn values<'a>(tokens: &mut Tokens<'a>) -> Result<Vec<&'a str>, SelectorError> {
    match tokens.next() {
        Token::Open => (),
        // Upstream leaves out the comma.
        other => {
            let found = other.shown().to_owned();
            return Err(SelectorError::Syntax { found, comma: "", expected: "'('" });
        }
    }
    let mut values = Vec::new();
    loop {
        match tokens.peek() {
            Token::Word(value) => {
                tokens.next();
                values.push(value);
            }
            Token::Comma | Token::Close => values.push(""),
            other if values.is_empty() => return wrong(other, "',', ')' or identifier"),
            other => return wrong(other, "',', or identifier"),
        }
        match tokens.next() {
            Token::Comma => (),
            Token::Close => return Ok(values),
            other => return wrong(other, "',' or ')'"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::selector::Selector;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(Selector::parse(text).unwrap().to_string(), expected, "{text:?}");
    }

    #[test]
    fn grammar() {
        check("", "");
        check("  ", "");
        check("x=a,y=b,z=c", "x=a,y=b,z=c");
        check("x == a", "x=a");
        check(" x!= a ,y", "x!=a,y");
        check("x= , z=w", "x=,z=w");
        check("!x", "!x");
        check("! x", "!x");
        check("x in (b , a)", "x in (a,b)");
        check("x in (a)", "x=a");
        check("x notin (a,a)", "x!=a");
        check("x in ()", "x=");
        check("x in (a,)", "x in (,a)");
        check("x in (in,notin)", "x in (in,notin)");
        check("x=in", "x=in");
        check("x>1,y<2", "x>1,y<2");
        check("z,a", "a,z");
        check("a.b/c=d", "a.b/c=d");
    }

    #[test]
    fn refused() {
        for text in [
            ",",
            "x,",
            ",x",
            "x,,y",
            "x=a||y=b",
            "x==a==b",
            "!x=a",
            "!",
            "x in",
            "x in a",
            "x in (a",
            "x in (a b)",
            "x in (a))",
            "x<a",
            "x>",
            "x=(a)",
            "x<1<2",
            "x y",
            "=",
            "=x",
            "x=-",
            "ä=b",
        ] {
            assert!(Selector::parse(text).is_err(), "{text:?}");
        }
    }
}
