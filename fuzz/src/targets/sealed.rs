//! Sealed values, as somebody else may have left them in a store.

use insula_partition::seal;

/// A value that may be sealed.
pub(super) fn values(bytes: &[u8]) {
    let Ok(parts) = seal::parts(bytes) else { return };
    let husk = parts.husk();
    assert!(husk.starts_with(b"{") && !husk.contains(&0));
    assert!(husk.len() + parts.body().len() < bytes.len());
    assert!(bytes.ends_with(parts.body()));
}
