//! How errors are put into words.

use std::error::Error;

/// An error and each of its causes, separated by `: `.
///
/// No error of ours repeats its cause in its own text, so whoever handles it prints this once.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::fmt::Error);

    #[test]
    fn causes_follow_their_effect() {
        let inner = std::fmt::Error;
        assert_eq!(chain(&Outer(inner)), format!("outer: {inner}"));
    }
}
