//! Names that more than one part of the system must read the same way.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A tenant's name: a DNS-1123 label of at most 63 bytes. Cheap to clone.
///
/// `all` is reserved: it stands for every tenant in cross-tenant reads and can never be one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantName(Arc<str>);

/// The platform's own tenant.
pub const SYSTEM: &str = "system";
/// Stands for every tenant in the paths of cross-tenant reads.
pub const ALL: &str = "all";

/// Why a text is not the name of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error(
        "{0:?} is not a tenant name: at most 63 lower-case letters, digits or '-', \
         beginning and ending with a letter or digit"
    )]
    NotALabel(String),
    #[error("tenant name \"all\" is reserved")]
    Reserved,
}

impl TenantName {
    /// Accepts what can be the name of a tenant.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        if name == ALL {
            return Err(NameError::Reserved);
        }
        if !is_dns1123_label(name) {
            return Err(NameError::NotALabel(name.chars().take(80).collect()));
        }
        Ok(Self(name.into()))
    }

    /// The platform's own tenant.
    pub fn system() -> Self {
        Self(SYSTEM.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_system(&self) -> bool {
        &*self.0 == SYSTEM
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TenantName {
    type Error = NameError;
    fn try_from(name: String) -> Result<Self, NameError> {
        Self::parse(&name)
    }
}

impl From<TenantName> for String {
    fn from(name: TenantName) -> Self {
        name.0.as_ref().to_owned()
    }
}

/// RFC 1123 label: 1 to 63 of `[a-z0-9-]`, beginning and ending with `[a-z0-9]`.
pub fn is_dns1123_label(text: &str) -> bool {
    let alnum = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => {
            bytes.len() <= 63
                && alnum(first)
                && alnum(last)
                && bytes.iter().all(|&byte| alnum(byte) || byte == b'-')
        }
        _ => false,
    }
}

/// RFC 1123 subdomain: labels (without their length limit) joined by dots, at most 253 bytes.
pub fn is_dns1123_subdomain(text: &str) -> bool {
    let label = |label: &str| {
        let alnum = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = label.as_bytes();
        bytes.first().is_some_and(|&byte| alnum(byte))
            && bytes.last().is_some_and(|&byte| alnum(byte))
            && bytes.iter().all(|&byte| alnum(byte) || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: bool) {
        assert_eq!(TenantName::parse(name).is_ok(), expected, "{name:?}");
    }

    #[test]
    fn tenant_names() {
        check("acme", true);
        check("a", true);
        check("0-9", true);
        check(&"a".repeat(63), true);
        check(&"a".repeat(64), false);
        for bad in ["", "all", "-a", "a-", "A", "a.b", "a/b", "..", "a:b", "ä", "a b"] {
            check(bad, false);
        }
    }

    #[test]
    fn subdomains() {
        assert!(is_dns1123_subdomain("a.b-c.d"));
        for bad in ["", "a..b", ".a", "a.", "a.-b", "A.b"] {
            assert!(!is_dns1123_subdomain(bad), "{bad:?}");
        }
    }
}
