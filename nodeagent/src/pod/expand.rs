//! `$(NAME)` references in commands, arguments, environment values and sub paths.

/// Replaces each `$(NAME)` that `lookup` knows. `$$` stands for `$`, so `$$(NAME)` yields
/// `$(NAME)`; what is unknown or not closed stays as it is.
pub(crate) fn expand<'env>(input: &str, lookup: impl Fn(&str) -> Option<&'env str>) -> String {
    let mut output = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        output.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            output.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|it| it.split_once(')'))
        {
            match lookup(name) {
                Some(value) => output.push_str(value),
                None => output.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            output.push('$');
        }
    }
    output.push_str(rest);
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, expected: &str) {
        let lookup = |name: &str| match name {
            "A" => Some("a"),
            "EMPTY" => Some(""),
            "NESTED" => Some("$(A)"),
            _ => None,
        };
        assert_eq!(expand(input, lookup), expected, "{input:?}");
    }

    #[test]
    fn references() {
        check("x$(A)y$(A)", "xaya");
        check("$(EMPTY)|", "|");
        check("$(NESTED)", "$(A)");
        check("$(NONE)", "$(NONE)");
        check("$$(A)", "$(A)");
        check("$$$(A)", "$a");
        check("$A $ $(A", "$A $ $(A");
        check("ä$(A)ö$", "äaö$");
        check("", "");
    }
}
