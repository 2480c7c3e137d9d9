//! What names and labels must look like, and upstream's words for those that do not.

use crate::names::is_dns1123_subdomain;

/// What a DNS-1123 subdomain is.
pub const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
/// What a DNS-1123 label is.
pub const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
/// What a DNS-1035 label is.
pub const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// What upstream counts lengths in, in its words.
pub const BYTES: &str = "bytes";
pub const CHARACTERS: &str = "characters";

/// What is wrong with a DNS-1123 subdomain.
pub fn subdomain(text: &str) -> Vec<String> {
    bounded(text, 253, CHARACTERS, is_subdomain_of_any_length(text), SUBDOMAIN)
}

/// What is wrong with a DNS-1123 label.
pub fn label(text: &str) -> Vec<String> {
    let is = is_dns1123_label_of_any_length(text);
    let message = if is_subdomain_of_any_length(text) { "must not contain dots" } else { LABEL };
    bounded(text, 63, CHARACTERS, is, message)
}

/// What is wrong with a DNS-1035 label.
pub fn label_1035(text: &str) -> Vec<String> {
    let starts = text.starts_with(|it: char| it.is_ascii_lowercase());
    bounded(text, 63, CHARACTERS, starts && is_dns1123_label_of_any_length(text), LABEL_1035)
}

/// What is wrong with the value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    bounded(text, 63, BYTES, is_label_value_of_any_length(text), LABEL_VALUE)
}

/// What is wrong with a key of labels: `name` or `prefix/name`.
pub fn qualified(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let name = match text.split_once('/') {
        Some((prefix, name)) if !name.contains('/') => {
            if prefix.is_empty() {
                found.push("prefix part must be non-empty".to_owned());
            } else {
                let wrong =
                    bounded(prefix, 253, BYTES, is_subdomain_of_any_length(prefix), SUBDOMAIN);
                found.extend(wrong.into_iter().map(|it| format!("prefix part {it}")));
            }
            name
        }
        Some(_) => {
            let why = QUALIFIED.strip_prefix("name part must").unwrap_or(QUALIFIED);
            found.push(format!(
                "a valid label key must{} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                why
            ));
            return found;
        }
        None => text,
    };
    if name.is_empty() {
        found.push("name part must be non-empty".to_owned());
    } else if 63 < name.len() {
        found.push("name part must be no more than 63 bytes".to_owned());
    }
    if name.is_empty() || !is_label_value_of_any_length(name) {
        found.push(QUALIFIED.to_owned());
    }
    found
}

/// What is wrong with a text that has `limit` bytes at most, which upstream calls `unit`, and
/// otherwise is what it should be if it `is`.
pub fn bounded(text: &str, limit: usize, unit: &str, is: bool, message: &str) -> Vec<String> {
    let mut found = Vec::new();
    if limit < text.len() {
        found.push(format!("must be no more than {limit} {unit}"));
    }
    if !is {
        found.push(message.to_owned());
    }
    found
}

/// Whether only the length of a DNS-1123 label may be wrong.
pub fn is_dns1123_label_of_any_length(text: &str) -> bool {
    let inner = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether only the length of a DNS-1123 subdomain may be wrong.
pub fn is_subdomain_of_any_length(text: &str) -> bool {
    is_dns1123_subdomain(text) || text.split('.').all(is_dns1123_label_of_any_length)
}

fn is_label_value_of_any_length(text: &str) -> bool {
    let edge = |it: Option<char>| it.is_none_or(|it| it.is_ascii_alphanumeric());
    let inner = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_' | b'.');
    edge(text.chars().next()) && edge(text.chars().next_back()) && text.bytes().all(inner)
}
