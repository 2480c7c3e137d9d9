//! How much a write may let a tenant have in all.
//!
//! A write can carry limits; it then happens only if what the tenant has with it stays within
//! them. What a tenant has is summed from the live values of the partition, see
//! `state/tally.rs`, so the sum is right by construction: after a crash, after a move, and
//! however many write at once. A raft group judges a write where all its writes have one order,
//! when it is applied; an etcd by a key that every such write of a tenant renews, see
//! [`crate::etcd`].
//!
//! # Invariants
//!
//! * A write that does not raise an amount is never refused because of it: who is above a limit
//!   can still make things smaller.
//! * The judgement depends on the live values and the write alone, never on a clock: all members
//!   of a group come to the same.
//!
//! # Layout
//!
//! ```text
//! limits: count u64 | limit..
//! limit:  quota text | 0, or 1 and the namespaces: count u64, text.. | amounts
//! excess: quota text | requested, used, limited: amounts
//! amounts: count u64 | name text, amount text..
//! ```

use std::{collections::BTreeSet, fmt};

use insula_api::{quantity::Quantity, quota::amounts::Amounts};

use crate::{
    codec::{Reader, put_text},
    wire::put_u64,
};

/// All objects, of whatever kind.
pub const OBJECTS: &str = "insula.io/objects";
/// Bytes of all objects as they are kept, with their keys.
pub const BYTES: &str = "insula.io/bytes";

/// What one quota allows. Names are those of resource quotas, and [`OBJECTS`] and [`BYTES`].
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// The quota's name, for who is refused.
    pub quota: String,
    /// It is about what these have together; `None` for all of the tenant.
    pub namespaces: Option<BTreeSet<String>>,
    pub hard: Amounts,
}

/// What a write would have gone beyond: of the quota's amounts those that do not fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Excess {
    pub quota: String,
    pub requested: Amounts,
    pub used: Amounts,
    pub limited: Amounts,
}

/// In upstream's words of resource quotas.
impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |of: &Amounts| {
            let one = |name| format!("{name}={}", of.get(name).unwrap_or(&Quantity::ZERO));
            self.requested.keys().map(one).collect::<Vec<_>>().join(",")
        };
        let (requested, used) = (told(&self.requested), told(&self.used));
        let (quota, limited) = (&self.quota, told(&self.limited));
        write!(
            f,
            "exceeded quota: {quota}, requested: {requested}, used: {used}, limited: {limited}"
        )
    }
}

pub(crate) fn put_limits(out: &mut Vec<u8>, limits: &[Limit]) {
    put_u64(out, limits.len() as u64);
    for limit in limits {
        put_text(out, &limit.quota);
        out.push(u8::from(limit.namespaces.is_some()));
        if let Some(namespaces) = &limit.namespaces {
            put_u64(out, namespaces.len() as u64);
            namespaces.iter().for_each(|it| put_text(out, it));
        }
        put_amounts(out, &limit.hard);
    }
}

/// At least the bytes that limits take.
pub(crate) fn size_of_limits(limits: &[Limit]) -> usize {
    // Lengths, and an amount as text.
    const AROUND: usize = 48;
    let amounts = |limit: &Limit| limit.hard.keys().map(|it| it.len() + AROUND).sum::<usize>();
    let namespaces = |limit: &Limit| {
        limit.namespaces.iter().flatten().map(|it| it.len() + AROUND).sum::<usize>()
    };
    limits.iter().map(|it| it.quota.len() + AROUND + amounts(it) + namespaces(it)).sum()
}

pub(crate) fn read_limits(reader: &mut Reader<'_>) -> Option<Vec<Limit>> {
    let count = reader.u64()?;
    let limit = |reader: &mut Reader<'_>| {
        let quota = reader.text()?.to_owned();
        let namespaces = match reader.byte()? {
            0 => None,
            1 => {
                let count = reader.u64()?;
                Some((0..count).map(|_| reader.text().map(str::to_owned)).collect::<Option<_>>()?)
            }
            _ => return None,
        };
        Some(Limit { quota, namespaces, hard: read_amounts(reader)? })
    };
    (0..count).map(|_| limit(reader)).collect()
}

pub(crate) fn put_excess(out: &mut Vec<u8>, it: &Excess) {
    put_text(out, &it.quota);
    [&it.requested, &it.used, &it.limited].into_iter().for_each(|of| put_amounts(out, of));
}

pub(crate) fn read_excess(reader: &mut Reader<'_>) -> Option<Excess> {
    Some(Excess {
        quota: reader.text()?.to_owned(),
        requested: read_amounts(reader)?,
        used: read_amounts(reader)?,
        limited: read_amounts(reader)?,
    })
}

fn put_amounts(out: &mut Vec<u8>, amounts: &Amounts) {
    put_u64(out, amounts.len() as u64);
    for (name, amount) in amounts {
        put_text(out, name);
        put_text(out, &amount.to_string());
    }
}

fn read_amounts(reader: &mut Reader<'_>) -> Option<Amounts> {
    let count = reader.u64()?;
    let one = |reader: &mut Reader<'_>| {
        Some((reader.text()?.to_owned(), Quantity::parse(reader.text()?).ok()?))
    };
    (0..count).map(|_| one(reader)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn amounts(rows: &[(&str, &str)]) -> Amounts {
        let parse = |text: &str| Quantity::parse(text).unwrap();
        rows.iter().map(|(name, it)| ((*name).to_owned(), parse(it))).collect()
    }

    #[test]
    fn limits_and_excesses_read_back() {
        let limits = vec![
            Limit { quota: "platform".into(), namespaces: None, hard: amounts(&[(BYTES, "1Gi")]) },
            Limit {
                quota: "own".into(),
                namespaces: Some(BTreeSet::from(["a".into(), "b".into()])),
                hard: amounts(&[("requests.cpu", "1500m"), ("pods", "3")]),
            },
        ];
        let mut out = Vec::new();
        put_limits(&mut out, &limits);
        assert!(out.len() <= size_of_limits(&limits));
        let mut reader = Reader::new(&out);
        assert_eq!(read_limits(&mut reader).unwrap(), limits);
        assert!(reader.is_empty());
        for cut in 0..out.len() {
            assert!(read_limits(&mut Reader::new(&out[..cut])).is_none(), "cut at {cut}");
        }
        let excess = Excess {
            quota: "platform".into(),
            requested: amounts(&[("pods", "1")]),
            used: amounts(&[("pods", "3")]),
            limited: amounts(&[("pods", "3")]),
        };
        let mut out = Vec::new();
        put_excess(&mut out, &excess);
        assert_eq!(read_excess(&mut Reader::new(&out)).unwrap(), excess);
        assert_eq!(
            excess.to_string(),
            "exceeded quota: platform, requested: pods=1, used: pods=3, limited: pods=3"
        );
    }
}
