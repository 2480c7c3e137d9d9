//! What each tenant has in a partition, summed from its live values as they change.
//!
//! The number of objects and their bytes are kept for every tenant: two additions a write. What
//! only quotas ask for, by namespace and by what is in pods, services and claims, is summed when a
//! quota first asks and kept from then on, for that tenant alone. A sum depends on the live values
//! and on nothing else, so there is nothing to store, to repair, or to take along in a move.
//!
//! # Invariants
//!
//! * A sum never differs from what counting again would find.
//! * What a value weighs, [`insula_api::quota::weight`], is a part of what the log means: members
//!   of a group that disagreed about it would part. Its answers are pinned by a test there.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
};

use insula_api::{
    quantity::{Format, Quantity},
    quota::{
        amounts::{Amounts, put_in, take_out},
        weight,
    },
};

use super::contents::Shelf;
use crate::{
    etcd::TURNS,
    fences::OWN,
    map::Shard,
    quota::{BYTES, Excess, Limit, OBJECTS},
    seal::DOCUMENTS,
    snapshot::Entry,
    store::{Revision, Usage},
};

/// What the platform keeps of tenants, and for them: it is nobody's use.
const NOT_COUNTED: [&str; 3] = [TURNS, DOCUMENTS, "insula.io/tenantquotas"];

/// By tenant.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    tenants: HashMap<Box<str>, Tally>,
    /// Of all tenants, so far.
    changes: u64,
}

#[derive(Debug, Default)]
struct Tally {
    all: Usage,
    /// Only of tenants of which a quota asked.
    parts: Option<Box<Parts>>,
}

/// What quotas ask for.
#[derive(Debug, Default)]
struct Parts {
    total: Amounts,
    /// Empty for what is in no namespace.
    namespaces: HashMap<Box<str>, Amounts>,
}

/// One value that is there or is about to be.
struct Weighed<'a> {
    collection: &'a str,
    value: &'a [u8],
    /// See [`bytes_of`].
    bytes: u64,
}

/// What a value and its key count: without the digits of its revision, so that the same object
/// weighs the same at every time and in every partition.
fn bytes_of(key: &str, length: usize, revision: Revision) -> u64 {
    let digits = revision.0.checked_ilog10().unwrap_or(0) as usize + 1;
    (key.len() + length.saturating_sub(digits)) as u64
}

/// Whose the key is, and in which namespace; `None` for what is no tenant's.
fn owner<'a>(collection: &str, key: &'a str) -> Option<(&'a str, &'a str)> {
    if collection.starts_with(OWN) || NOT_COUNTED.contains(&collection) {
        return None;
    }
    let Shard::Tenant(tenant) = Shard::of(collection, key) else { return None };
    let rest = key.get(tenant.len() + 1..)?;
    Some((tenant, rest.split_once('/')?.0))
}

fn number(of: u64) -> Quantity {
    Quantity::new(i64::try_from(of).unwrap_or(i64::MAX), Format::DecimalSi)
}

impl Weighed<'_> {
    /// All that it uses.
    fn amounts(&self) -> Amounts {
        let mut all = weight::of(self.collection, self.value);
        all.insert(OBJECTS.into(), number(1));
        all.insert(BYTES.into(), number(self.bytes));
        all
    }
}

impl Parts {
    fn change(&mut self, namespace: &str, more: &Amounts, less: &Amounts) {
        if !self.namespaces.contains_key(namespace) {
            self.namespaces.insert(namespace.into(), Amounts::new());
        }
        let of_namespace = self.namespaces.get_mut(namespace).into_iter();
        for sum in of_namespace.chain([&mut self.total]) {
            put_in(sum, more);
            take_out(sum, less);
        }
        if self.namespaces.get(namespace).is_some_and(Amounts::is_empty) {
            self.namespaces.remove(namespace);
        }
    }

    fn of(&self, namespaces: Option<&BTreeSet<String>>, name: &str) -> Quantity {
        let Some(namespaces) = namespaces else {
            return self.total.get(name).copied().unwrap_or(Quantity::ZERO);
        };
        let parts = namespaces.iter().filter_map(|it| self.namespaces.get(it.as_str())?.get(name));
        parts.fold(Quantity::ZERO, |sum, it| sum.exact_add(*it))
    }
}

impl Tallies {
    pub(super) fn clear(&mut self) {
        self.tenants.clear();
    }

    /// A value came, changed or went.
    pub(super) fn change(
        &mut self,
        collection: &str,
        key: &str,
        new: Option<&Entry>,
        old: Option<&Entry>,
    ) {
        let Some((tenant, namespace)) = owner(collection, key) else { return };
        let bytes = |it: &Entry| bytes_of(key, it.value.len(), it.modified);
        self.changes += 1;
        let tally = match self.tenants.get_mut(tenant) {
            Some(tally) => tally,
            None => self.tenants.entry(tenant.into()).or_default(),
        };
        if let Some(new) = new {
            tally.all.objects += 1;
            tally.all.bytes += bytes(new);
        }
        if let Some(old) = old {
            tally.all.objects -= 1;
            tally.all.bytes -= bytes(old);
        }
        if let Some(parts) = &mut tally.parts {
            let weigh = |it: &Entry| {
                let value = &it.value.stored();
                Weighed { collection, value, bytes: bytes(it) }.amounts()
            };
            let (more, less) = (new.map(weigh), old.map(weigh));
            parts.change(namespace, &more.unwrap_or_default(), &less.unwrap_or_default());
        }
        tally.all.changes = self.changes;
        if tally.all.objects == 0 {
            self.tenants.remove(tenant);
        }
    }

    /// What a tenant has in all.
    pub(super) fn usage(&self, tenant: &str) -> Usage {
        self.tenants.get(tenant).map(|it| it.all).unwrap_or_default()
    }

    /// All tenants that have something, with what they have.
    pub(super) fn all(&self) -> Vec<(String, Usage)> {
        self.tenants.iter().map(|(tenant, it)| (tenant.to_string(), it.all)).collect()
    }

    /// What a tenant has of what is named, in all or in some of its namespaces.
    pub(super) fn amounts(
        &mut self,
        shelves: &[Shelf],
        tenant: &str,
        namespaces: Option<&BTreeSet<String>>,
        names: &[&str],
    ) -> Amounts {
        let usage = self.usage(tenant);
        let is_simple = |name: &&str| namespaces.is_none() && matches!(*name, OBJECTS | BYTES);
        if names.iter().all(is_simple) {
            let of = |name: &str| if name == OBJECTS { usage.objects } else { usage.bytes };
            return names.iter().map(|name| ((*name).to_owned(), number(of(name)))).collect();
        }
        let parts = self.parts(shelves, tenant);
        names.iter().map(|name| ((*name).to_owned(), parts.of(namespaces, name))).collect()
    }

    /// Whether a tenant may have `new` in the place of `old`.
    pub(super) fn check(
        &mut self,
        shelves: &[Shelf],
        (collection, key): (&str, &str),
        new: &[u8],
        old: Option<&Entry>,
        limits: &[Limit],
    ) -> Result<(), Excess> {
        let Some((tenant, namespace)) = owner(collection, key) else { return Ok(()) };
        let about = |limit: &&Limit| {
            limit.namespaces.as_ref().is_none_or(|names| names.contains(namespace))
        };
        let mut more: Option<Amounts> = None;
        for limit in limits.iter().filter(about) {
            let more = more.get_or_insert_with(|| {
                // It has no revision yet.
                let bytes = (key.len() + new.len()) as u64;
                let mut more = Weighed { collection, value: new, bytes }.amounts();
                if let Some(old) = old {
                    let bytes = bytes_of(key, old.value.len(), old.modified);
                    let value = &old.value.stored();
                    take_out(&mut more, &Weighed { collection, value, bytes }.amounts());
                }
                more.retain(|_, it| !it.is_zero() && !it.is_negative());
                more
            });
            let names: Vec<&str> =
                limit.hard.keys().filter(|it| more.contains_key(*it)).map(String::as_str).collect();
            if names.is_empty() {
                continue;
            }
            let used = self.amounts(shelves, tenant, limit.namespaces.as_ref(), &names);
            let exceeds = |name: &&str| {
                let (used, more) = (used.get(*name), more.get(*name));
                let (Some(used), Some(more)) = (used, more) else { return false };
                limit.hard.get(*name).is_some_and(|hard| *hard < used.exact_add(*more))
            };
            let names: Vec<&str> = names.into_iter().filter(exceeds).collect();
            if names.is_empty() {
                continue;
            }
            let only = |of: &Amounts| -> Amounts {
                names
                    .iter()
                    .filter_map(|name| Some(((*name).to_owned(), *of.get(*name)?)))
                    .collect()
            };
            let (requested, used, limited) = (only(more), only(&used), only(&limit.hard));
            return Err(Excess { quota: limit.quota.clone(), requested, used, limited });
        }
        Ok(())
    }

    /// A tenant's parts, summed now if nobody asked before.
    fn parts(&mut self, shelves: &[Shelf], tenant: &str) -> &Parts {
        let tally = self.tenants.entry(tenant.into()).or_default();
        tally.parts.get_or_insert_with(|| Box::new(count(shelves, tenant)))
    }
}

/// Counts again.
fn count(shelves: &[Shelf], tenant: &str) -> Parts {
    let (mut parts, nothing) = (Parts::default(), Amounts::new());
    let prefix = format!("{tenant}/");
    for shelf in shelves {
        let collection = shelf.collection.as_str();
        let from =
            shelf.entries.range::<_, str>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        for (key, entry) in from.take_while(|(key, _)| key.starts_with(&prefix)) {
            let Some((_, namespace)) = owner(collection, key) else { continue };
            let bytes = bytes_of(key, entry.value.len(), entry.modified);
            let value = &entry.value.stored();
            let more = Weighed { collection, value, bytes }.amounts();
            parts.change(namespace, &more, &nothing);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        ring::RingLimits,
        state::{Image, State},
        store::{Expect, Tenants as _},
    };

    fn state(image: Image) -> std::sync::Arc<State> {
        State::new(image, RingLimits::default())
    }

    const NAMES: [&str; 6] =
        [OBJECTS, BYTES, "pods", "requests.cpu", "count/secrets", "requests.storage"];

    /// What is changed: tenant, namespace, name and kind by number, and what it asks for; nothing
    /// asked is a delete.
    type Op = (u8, u8, u8, u8, Option<(u16, bool)>);

    fn value(kind: u8, (amount, is_big): (u16, bool)) -> String {
        let metadata = r#""metadata":{"resourceVersion":""}"#;
        // Twice the largest amount there can be: sums must not forget what they were made of.
        let cpu = if is_big { "9223372036854775807".to_owned() } else { format!("{amount}m") };
        match kind {
            0 => format!(
                r#"{{{metadata},"spec":{{"containers":[{{"resources":{{"requests":{{"cpu":"{cpu}"}}}}}}]}},"status":{{"phase":"{}"}}}}"#,
                if amount % 5 == 0 { "Failed" } else { "Running" }
            ),
            1 => format!(
                r#"{{{metadata},"spec":{{"resources":{{"requests":{{"storage":"{amount}Ki"}}}}}}}}"#
            ),
            2 => format!(r#"{{{metadata},"data":"{}"}}"#, "x".repeat(usize::from(amount) * 20)),
            _ => "nothing that can be read".into(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// A sum that was kept while things changed is what counting all of it finds.
        #[test]
        fn sums_are_what_counting_again_finds(
            ops in prop::collection::vec(
                (0..2_u8, 0..4_u8, 0..3_u8, 0..4_u8, any::<Option<(u16, bool)>>()),
                1..120,
            ),
            asked in 0..60_usize,
        ) {
            let kept = state(Image::default());
            for (n, op) in ops.iter().enumerate() {
                if n == asked {
                    kept.amounts("t0", None, &NAMES);
                }
                let (tenant, namespace, name, kind, what): Op = *op;
                let collection = ["core/pods", "core/persistentvolumeclaims", "core/secrets", "x.y/z"];
                let collection = collection[usize::from(kind)];
                // One of the namespaces is none.
                let namespace = ["", "a", "b", "c"][usize::from(namespace)];
                let key = format!("t{tenant}/{namespace}/{name}");
                let value = what.map(|it| value(kind, it));
                let value = value.as_deref().map(str::as_bytes);
                let _ = kept.apply(|contents| {
                    contents.write(collection, &key, Expect::Anything, value, None, &[])
                });
            }
            let counted = state(kept.image());
            let some = BTreeSet::from(["a".to_owned(), "c".to_owned()]);
            for tenant in ["t0", "t1"] {
                let (kept_all, all) = (kept.usage(tenant), counted.usage(tenant));
                prop_assert_eq!((kept_all.objects, kept_all.bytes), (all.objects, all.bytes));
                for namespaces in [None, Some(&some)] {
                    prop_assert_eq!(
                        kept.amounts(tenant, namespaces, &NAMES),
                        counted.amounts(tenant, namespaces, &NAMES)
                    );
                }
                // And by the simplest count there is.
                let prefix = format!("{tenant}/");
                let image = kept.image();
                let live = image.collections.iter().flat_map(|(_, entries)| entries.keys());
                let count = live.filter(|key| key.starts_with(&prefix)).count();
                prop_assert_eq!(count as u64, all.objects);
            }
        }
    }

    #[test]
    fn what_the_platform_keeps_is_nobodys() {
        assert_eq!(owner("core/pods", "acme/ns/p"), Some(("acme", "ns")));
        assert_eq!(owner("core/nodes", "acme//p"), Some(("acme", "")));
        for (collection, key) in [
            ("core/pods", "system/ns/p"),
            ("core/pods", "k"),
            ("insula/fences", "table"),
            (TURNS, "acme//turn"),
            ("insula.io/tenantquotas", "acme//platform"),
        ] {
            assert_eq!(owner(collection, key), None, "{collection} {key}");
        }
    }
}
