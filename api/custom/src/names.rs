//! Names in definitions: RFC 1035 labels, and upstream's words for what is none.

use insula_api::formats;
pub use insula_api::formats::{LABEL_1035, SUBDOMAIN};

/// Why `text` is no DNS-1035 label.
pub fn label_error(text: &str) -> Option<String> {
    let found = formats::label_1035(text);
    (!found.is_empty()).then(|| found.join(","))
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
