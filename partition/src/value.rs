//! Where a value carries its revision.
//!
//! "What is stored is what is sent": a value is the JSON of an object as clients get it, except
//! for its `resourceVersion`, which is known only once the write has its place in the history.
//! A writer leaves an empty placeholder as the first field of `metadata`, and the store fills it
//! in once, when it applies the change:
//!
//! ```text
//! written: {"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"","name":...
//! kept:    {"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"42","name":...
//! ```
//!
//! # Invariants
//!
//! * `apiVersion`, `kind` and `metadata` come first, in this order, so the first occurrence of
//!   the marker in the head of a value is the object's own. Nothing earlier can contain it: the
//!   quotes inside a JSON string are escaped.
//! * A value without the marker in its head (not an object of ours) is kept as it is.

use bytes::Bytes;

use crate::store::Revision;

const MARKER: &[u8] = br#""metadata":{"resourceVersion":""#;

/// `apiVersion` and `kind` are at most a few hundred bytes; the marker begins within this many.
const HEAD: usize = 1024;

/// Where the revision's digits begin, if `value` has the marker.
fn digits_at(value: &[u8]) -> Option<usize> {
    let head = &value[..value.len().min(HEAD)];
    let at = head.windows(MARKER.len()).position(|window| window == MARKER)?;
    Some(at + MARKER.len())
}

/// `value` with `revision` in the place of the one it holds, which may be empty.
pub fn with_revision(value: &Bytes, revision: Revision) -> Bytes {
    spliced(value, revision).map_or_else(|| value.clone(), Bytes::from)
}

/// As [`with_revision`], but always in memory of its own, so that it pins no larger buffer.
pub(crate) fn own_with_revision(value: &[u8], revision: Revision) -> Bytes {
    spliced(value, revision).map_or_else(|| Bytes::copy_from_slice(value), Bytes::from)
}

/// `value` with the revision that `other` has, if both have a place for it. Always in memory of its
/// own.
pub(crate) fn with_revision_of(value: &[u8], other: &[u8]) -> Bytes {
    let digits = digits_at(other).map(|at| {
        let end = other[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        &other[at..at + end]
    });
    let filled = digits.and_then(|digits| filled(value, digits));
    filled.map_or_else(|| Bytes::copy_from_slice(value), Bytes::from)
}

fn spliced(value: &[u8], revision: Revision) -> Option<Vec<u8>> {
    let mut buffer = [0; 20];
    filled(value, decimal(revision.0, &mut buffer))
}

/// The capacity is exact: a full `Vec` becomes `Bytes` without a second allocation.
fn filled(value: &[u8], digits: &[u8]) -> Option<Vec<u8>> {
    let start = digits_at(value)?;
    let old = value[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut out = Vec::with_capacity(value.len() - old + digits.len());
    out.extend_from_slice(&value[..start]);
    out.extend_from_slice(digits);
    out.extend_from_slice(&value[start + old..]);
    Some(out)
}

/// `number` in decimal, at the end of `buffer`, which fits every `u64`.
fn decimal(mut number: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &buffer[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &'static str, revision: u64, expected: &str) {
        let out = with_revision(&Bytes::from_static(value.as_bytes()), Revision(revision));
        assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
    }

    #[test]
    fn fills_the_placeholder() {
        check(
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"","name":"a"}}"#,
            42,
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"42","name":"a"}}"#,
        );
    }

    #[test]
    fn replaces_an_older_revision() {
        check(
            r#"{"kind":"Pod","metadata":{"resourceVersion":"7"}}"#,
            1000,
            r#"{"kind":"Pod","metadata":{"resourceVersion":"1000"}}"#,
        );
    }

    #[test]
    fn writes_the_extremes() {
        for revision in [0, 9, 10, u64::MAX] {
            check(
                r#"{"metadata":{"resourceVersion":""}}"#,
                revision,
                &format!(r#"{{"metadata":{{"resourceVersion":"{revision}"}}}}"#),
            );
        }
    }

    #[test]
    fn leaves_other_values_alone() {
        let escaped = r#"{"a":"\"metadata\":{\"resourceVersion\":\"\""}"#;
        check(escaped, 1, escaped);
        check("", 1, "");
    }
}
