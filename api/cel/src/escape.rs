//! Names of fields as identifiers: what CEL cannot spell is escaped.

/// Words that are no identifiers.
const KEYWORDS: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Whether `text` can name a variable.
pub fn is_identifier(text: &str) -> bool {
    let is_letter = |it: char| it.is_ascii_alphabetic() || it == '_';
    text.starts_with(is_letter)
        && text.chars().all(|it| is_letter(it) || it.is_ascii_digit())
        && !KEYWORDS.contains(&text)
}

/// The identifier of a field; `None` if it has none.
pub fn escape(name: &str) -> Option<String> {
    let mut letters = name.chars();
    let first = letters.next()?;
    if !(first.is_ascii_alphabetic() || matches!(first, '_' | '.' | '-' | '/')) {
        return None;
    }
    if KEYWORDS.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(next) = rest.chars().next() {
        if let Some(behind) = rest.strip_prefix("__") {
            out.push_str("__underscores__");
            rest = behind;
            continue;
        }
        match next {
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            it if it.is_ascii_alphanumeric() || it == '_' => out.push(it),
            _ => return None,
        }
        rest = &rest[next.len_utf8()..];
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            ("abc", Some("abc")),
            ("a-b", Some("a__dash__b")),
            ("a.b/c", Some("a__dot__b__slash__c")),
            ("namespace", Some("__namespace__")),
            ("a__b", Some("a__underscores__b")),
            ("1a", None),
            ("a b", None),
            ("", None),
        ] {
            assert_eq!(escape(name).as_deref(), expected, "{name}");
        }
    }
}
