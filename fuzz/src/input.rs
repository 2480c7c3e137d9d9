//! Taking an input apart: bytes that a mutation has been through still have to mean something.

use std::sync::LazyLock;

use insula_api::{
    resources::Resource,
    schema::{Gvk, Schema, TypeId},
};
use serde_json::Value;

/// What stands between the parts of an input.
const BETWEEN: &[u8] = b"\n---\n";

/// The parts of an input; what is not there is empty.
pub fn parts<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut rest = input;
    std::array::from_fn(|at| {
        let end = rest.windows(BETWEEN.len()).position(|it| it == BETWEEN);
        match end.filter(|_| at + 1 < N) {
            Some(end) => {
                let part = &rest[..end];
                rest = &rest[end + BETWEEN.len()..];
                part
            }
            None => std::mem::take(&mut rest),
        }
    })
}

/// As text; none if it is not.
pub fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// As any JSON that is not too deep for everything else.
pub fn json(bytes: &[u8]) -> Option<Value> {
    insula_api::decode::json(Schema::built_in(), None, bytes).ok().map(|it| it.value)
}

/// Kinds that are served, by name: `apps/v1 Deployment`.
static KINDS: LazyLock<Vec<(String, Gvk, TypeId)>> = LazyLock::new(|| {
    let schema = Schema::built_in();
    let mut kinds: Vec<_> = insula_api::resources::built_in()
        .iter()
        .map(Resource::gvk)
        .filter_map(|it| {
            schema.by_kind(&it).map(|id| (format!("{} {}", it.api_version(), it.kind), it, id))
        })
        .collect();
    kinds.sort_by(|one, two| one.0.cmp(&two.0));
    kinds.dedup_by(|one, two| one.0 == two.0);
    kinds
});

/// The kind that `name` names; some kind, if it names none.
pub fn kind(name: &[u8]) -> (&'static Gvk, TypeId) {
    let found = KINDS.iter().find(|(known, ..)| known.as_bytes() == name);
    let sum = name.iter().fold(7_usize, |sum, it| sum.wrapping_mul(31).wrapping_add((*it).into()));
    let (_, kind, id) = found.unwrap_or(&KINDS[sum % KINDS.len()]);
    (kind, *id)
}

/// All kinds, by name.
pub fn kinds() -> impl Iterator<Item = (&'static str, &'static Gvk, TypeId)> {
    KINDS.iter().map(|(name, kind, id)| (name.as_str(), kind, *id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_come_apart() {
        assert_eq!(parts::<2>(b"a\n---\nb\n---\nc"), [&b"a"[..], b"b\n---\nc"]);
        assert_eq!(parts::<3>(b"a\n---\nb"), [&b"a"[..], b"b", b""]);
        assert_eq!(parts::<2>(b""), [b"", b""]);
        assert_eq!(kind(b"apps/v1 Deployment").0.kind, "Deployment");
        assert!(60 < kinds().count());
        kind(b"nonsense");
    }
}
