//! Names in definitions: RFC 1035 labels, and upstream's words for what is none.

/// What a DNS-1035 label is.
pub const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
/// What a DNS-1123 subdomain is.
pub const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// Why `text` is no DNS-1035 label.
pub fn label_error(text: &str) -> Option<String> {
    let alnum = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let well_formed = bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(|&byte| alnum(byte))
        && bytes.iter().all(|&byte| alnum(byte) || byte == b'-');
    match (bytes.len() <= 63, well_formed) {
        (true, true) => None,
        (true, false) => Some(LABEL_1035.to_owned()),
        (false, true) => Some("must be no more than 63 bytes".to_owned()),
        (false, false) => Some(format!("must be no more than 63 bytes,{LABEL_1035}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["a", "crontabs", "v1beta1", "a-b"] {
            assert_eq!(label_error(good), None, "{good}");
        }
        for bad in ["", "1a", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert!(label_error(bad).is_some(), "{bad}");
        }
    }
}
