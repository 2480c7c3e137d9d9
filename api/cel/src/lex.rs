//! From text to tokens.

/// A token and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub at: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Int(i64),
    /// 9223372036854775808, which is an int only behind a minus.
    MinInt,
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Name(String),
    Sign(&'static str),
}

/// What is wrong, and where.
pub(crate) type Wrong = (usize, String);

const SIGNS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "(", ")", "[", "]", "{", "}", ".", ",", ":", "?", "!", "<",
    ">", "+", "-", "*", "/", "%",
];

pub(crate) fn tokens(source: &str) -> Result<Vec<Token>, Wrong> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(next) = source[at..].chars().next() {
        let rest = &source[at..];
        if next.is_whitespace() {
            at += next.len_utf8();
            continue;
        }
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        let (kind, length) = if let Some(found) = text(rest) {
            found.map_err(|message| (at, message))?
        } else if next.is_ascii_digit()
            || (next == '.' && rest[1..].starts_with(|it: char| it.is_ascii_digit()))
        {
            number(rest).ok_or_else(|| (at, "invalid number".to_owned()))?
        } else if next.is_ascii_alphabetic() || next == '_' {
            let end = rest.find(|it: char| !(it.is_ascii_alphanumeric() || it == '_'));
            let name = &rest[..end.unwrap_or(rest.len())];
            (Kind::Name(name.to_owned()), name.len())
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let sign = sign.ok_or_else(|| {
                (at, format!("Syntax error: token recognition error at: '{next}'"))
            })?;
            (Kind::Sign(sign), sign.len())
        };
        out.push(Token { at, kind });
        at += length;
    }
    Ok(out)
}

fn number(rest: &str) -> Option<(Kind, usize)> {
    if let Some(digits) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
        let end = digits.find(|it: char| !it.is_ascii_hexdigit()).unwrap_or(digits.len());
        let value = u64::from_str_radix(&digits[..end], 16).ok()?;
        if digits[end..].starts_with(['u', 'U']) {
            return Some((Kind::Uint(value), end + 3));
        }
        return Some((Kind::Int(i64::try_from(value).ok()?), end + 2));
    }
    let digits = |from: usize| {
        let text = &rest[from..];
        from + text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len())
    };
    let mut end = digits(0);
    let mut is_double = false;
    if rest[end..].starts_with('.') && rest[end + 1..].starts_with(|it: char| it.is_ascii_digit()) {
        is_double = true;
        end = digits(end + 1);
    }
    if rest[end..].starts_with(['e', 'E']) {
        let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
        let behind = digits(end + 1 + sign);
        if end + 1 + sign < behind {
            is_double = true;
            end = behind;
        }
    }
    let text = &rest[..end];
    if is_double {
        return Some((Kind::Double(text.parse().ok()?), end));
    }
    if rest[end..].starts_with(['u', 'U']) {
        return Some((Kind::Uint(text.parse().ok()?), end + 1));
    }
    match text.parse::<i64>() {
        Ok(value) => Some((Kind::Int(value), end)),
        Err(_) if text.parse::<u64>() == Ok(1 << 63) => Some((Kind::MinInt, end)),
        Err(_) => None,
    }
}

/// A literal text or bytes, if one begins here.
fn text(rest: &str) -> Option<Result<(Kind, usize), String>> {
    let prefix = rest.find(['"', '\'']).filter(|it| *it <= 2)?;
    let (mut is_raw, mut is_bytes) = (false, false);
    for letter in rest[..prefix].chars() {
        match letter {
            'r' | 'R' if !is_raw => is_raw = true,
            'b' | 'B' if !is_bytes => is_bytes = true,
            _ => return None,
        }
    }
    let body = &rest[prefix..];
    let quote = ["\"\"\"", "'''", "\"", "'"].iter().find(|it| body.starts_with(**it))?;
    Some(quoted(body, quote, is_raw, is_bytes).map(|(kind, length)| (kind, prefix + length)))
}

fn quoted(body: &str, quote: &str, is_raw: bool, is_bytes: bool) -> Result<(Kind, usize), String> {
    let unterminated = || "Syntax error: unterminated string".to_owned();
    let mut out: Vec<u8> = Vec::new();
    let mut at = quote.len();
    loop {
        let rest = body.get(at..).ok_or_else(unterminated)?;
        if rest.starts_with(quote) {
            at += quote.len();
            break;
        }
        let next = rest.chars().next().ok_or_else(unterminated)?;
        if next == '\n' && quote.len() == 1 {
            return Err(unterminated());
        }
        if next == '\\' && !is_raw {
            at += escaped(&rest[1..], is_bytes, &mut out)? + 1;
            continue;
        }
        let mut buffer = [0; 4];
        out.extend_from_slice(next.encode_utf8(&mut buffer).as_bytes());
        at += next.len_utf8();
    }
    if is_bytes {
        return Ok((Kind::Bytes(out), at));
    }
    let text = String::from_utf8(out).map_err(|_| "invalid UTF-8 in string".to_owned())?;
    Ok((Kind::Text(text), at))
}

/// Reads what follows a backslash; its length.
fn escaped(rest: &str, is_bytes: bool, out: &mut Vec<u8>) -> Result<usize, String> {
    let bad = || "Syntax error: invalid escape in string".to_owned();
    let mut push = |code: u32| -> Result<(), String> {
        if is_bytes && code < 256 {
            out.push(u8::try_from(code).map_err(|_| bad())?);
            return Ok(());
        }
        let letter = char::from_u32(code).ok_or_else(bad)?;
        let mut buffer = [0; 4];
        out.extend_from_slice(letter.encode_utf8(&mut buffer).as_bytes());
        Ok(())
    };
    let next = rest.chars().next().ok_or_else(bad)?;
    let simple = match next {
        'a' => Some(7),
        'b' => Some(8),
        'f' => Some(12),
        'n' => Some(10),
        'r' => Some(13),
        't' => Some(9),
        'v' => Some(11),
        '\\' | '?' | '"' | '\'' | '`' => Some(next as u32),
        _ => None,
    };
    if let Some(code) = simple {
        push(code)?;
        return Ok(1);
    }
    let (skip, width, radix) = match next {
        'x' | 'X' => (1, 2, 16),
        'u' => (1, 4, 16),
        'U' => (1, 8, 16),
        '0'..='3' => (0, 3, 8),
        _ => return Err(bad()),
    };
    let digits = rest.get(skip..skip + width).ok_or_else(bad)?;
    push(u32::from_str_radix(digits, radix).map_err(|_| bad())?)?;
    Ok(skip + width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(source: &str, expected: &[Kind]) {
        let found: Vec<Kind> = tokens(source).unwrap().into_iter().map(|it| it.kind).collect();
        assert_eq!(found, expected, "{source}");
    }

    #[test]
    fn literals() {
        check(
            "1 0x10 2u 1.5 .5 1e3",
            &[
                Kind::Int(1),
                Kind::Int(16),
                Kind::Uint(2),
                Kind::Double(1.5),
                Kind::Double(0.5),
                Kind::Double(1000.0),
            ],
        );
        check(
            r#"'a\'b' "\n\x41\u00e9" r'\d' b'\xff' '''a'b'''"#,
            &[
                Kind::Text("a'b".into()),
                Kind::Text("\nA\u{e9}".into()),
                Kind::Text("\\d".into()),
                Kind::Bytes(vec![255]),
                Kind::Text("a'b".into()),
            ],
        );
        check(
            "a.b // no\n<= 1",
            &[
                Kind::Name("a".into()),
                Kind::Sign("."),
                Kind::Name("b".into()),
                Kind::Sign("<="),
                Kind::Int(1),
            ],
        );
    }

    #[test]
    fn what_is_none() {
        for bad in ["'a", "'\\q'", "#", "99999999999999999999", "'a\nb'"] {
            assert!(tokens(bad).is_err(), "{bad}");
        }
    }
}
