//! Patterns as Go's regular expressions read them, on the `regex` crate.
//!
//! Both are linear in the text. They differ in small things, which are translated: in Go `\d`,
//! `\w`, `\s` and `\b` are ASCII, and a class knows neither nesting nor operators on sets.

use regex::{Regex, RegexBuilder};

/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 16 * 1024;
/// Largest compiled pattern, in bytes.
const MAX_COMPILED: usize = 2 * 1024 * 1024;
/// As above, for patterns that are compiled when they are needed.
const MAX_SMALL: usize = 128 * 1024;

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("the pattern is longer than {MAX_PATTERN} bytes")]
    TooLong,
    #[error("error parsing regexp: {0}")]
    Syntax(String),
}

/// Compiles a pattern in Go's syntax.
pub fn compile(pattern: &str) -> Result<Regex, PatternError> {
    compile_to(pattern, MAX_COMPILED)
}

/// As [`compile`], of what comes up in evaluation, where it must be quick.
pub(crate) fn compile_small(pattern: &str) -> Result<Regex, PatternError> {
    compile_to(pattern, MAX_SMALL)
}

fn compile_to(pattern: &str, limit: usize) -> Result<Regex, PatternError> {
    if MAX_PATTERN < pattern.len() {
        return Err(PatternError::TooLong);
    }
    RegexBuilder::new(&translate(pattern))
        .size_limit(limit)
        .dfa_size_limit(MAX_COMPILED)
        .build()
        .map_err(|error| {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            PatternError::Syntax(last.trim_start_matches("error: ").to_owned())
        })
}

fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern.chars().peekable();
    // Inside a class, and whether nothing of it was read yet.
    let mut class: Option<bool> = None;
    while let Some(next) = rest.next() {
        match (next, class) {
            ('\\', _) => {
                let Some(escaped) = rest.next() else {
                    out.push('\\');
                    break;
                };
                if escaped == 'Q' && class.is_none() {
                    quote(&mut rest, &mut out);
                } else {
                    escape(escaped, class.is_some(), &mut out);
                }
                class = class.map(|_| false);
            }
            ('[', None) => {
                out.push('[');
                if rest.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                class = Some(true);
            }
            // A named class, such as `[:alpha:]`.
            ('[', Some(_)) if rest.peek() == Some(&':') => {
                out.push('[');
                for inner in rest.by_ref() {
                    out.push(inner);
                    if inner == ']' {
                        break;
                    }
                }
                class = Some(false);
            }
            // A bracket that comes first stands for itself.
            (']', Some(true)) => {
                out.push_str("\\]");
                class = Some(false);
            }
            (']', Some(false)) => {
                out.push(']');
                class = None;
            }
            ('[' | '&' | '~', Some(_)) => {
                out.push('\\');
                out.push(next);
                class = Some(false);
            }
            ('-', Some(_)) if rest.peek() == Some(&'-') => {
                out.push_str("\\-");
                class = Some(false);
            }
            (other, _) => {
                out.push(other);
                class = class.map(|_| false);
            }
        }
    }
    out
}

fn quote(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) {
    let mut quoted = String::new();
    while let Some(next) = rest.next() {
        if next == '\\' && rest.next_if_eq(&'E').is_some() {
            break;
        }
        quoted.push(next);
    }
    out.push_str(&regex::escape(&quoted));
}

fn escape(escaped: char, in_class: bool, out: &mut String) {
    let text = match (escaped, in_class) {
        ('d', true) => "0-9",
        ('d', false) => "[0-9]",
        ('D', _) => "[^0-9]",
        ('w', true) => "0-9A-Za-z_",
        ('w', false) => "[0-9A-Za-z_]",
        ('W', _) => "[^0-9A-Za-z_]",
        ('s', true) => "\\t\\n\\f\\r ",
        ('s', false) => "[\\t\\n\\f\\r ]",
        ('S', _) => "[^\\t\\n\\f\\r ]",
        ('b', false) => "(?-u:\\b)",
        ('B', false) => "(?-u:\\B)",
        _ => {
            out.push('\\');
            out.push(escaped);
            return;
        }
    };
    out.push_str(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, text: &str, expected: bool) {
        assert_eq!(compile(pattern).unwrap().is_match(text), expected, "{pattern} {text}");
    }

    #[test]
    fn as_go_reads_them() {
        check(r"^\d+$", "12", true);
        check(r"^\d+$", "\u{0661}", false);
        check(r"^[\w.-]+$", "a_b.c-d", true);
        check(r"^[\w.-]+$", "\u{e9}", false);
        check(r"^[^\s]+$", "a b", false);
        check(r"^[[:alpha:]]+$", "abc", true);
        check(r"^[a[&&]+$", "[a&", true);
        check(r"^[]a]+$", "]a", true);
        check(r"^\Qa.b\E$", "a.b", true);
        check(r"^\Qa.b\E$", "axb", false);
        check(r"^(\d+|(\*(/\d+)?))(\s+(\d+|(\*(/\d+)?))){4}$", "* * */5 1 *", true);
        check(r"^a\/b$", "a/b", true);
    }

    #[test]
    fn bad_patterns() {
        assert!(matches!(compile("("), Err(PatternError::Syntax(_))));
        assert!(matches!(compile("(?=a)"), Err(PatternError::Syntax(_))));
        assert!(matches!(compile("((a{999}){999}){999}"), Err(PatternError::Syntax(_))));
        assert_eq!(compile(&"a".repeat(20_000)).unwrap_err(), PatternError::TooLong);
    }
}
