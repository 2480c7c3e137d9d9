//! What lies at the same place in many tenants is mostly the same text: it lies as what differs
//! from one of them.
//!
//! Every tenant begins with the same roles, classes and services, and in each of its namespaces
//! controllers put the same account and certificates: a uid, a time, a revision and the tenant's
//! name differ. A [`Templates`] remembers, for places (`namespace/name` in a collection) where
//! tenants keep having something, one tenant's value; another's is packed against it.
//!
//! It knows no kinds and is never told what to expect: a place that nobody else uses soon makes
//! room for one that many do. The platform's own tenant is left alone, and so are values too short
//! to gain, or long enough to be packed for themselves.

use std::sync::Arc;

use bytes::Bytes;
use lz4_flex::block;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::{LONG, Text};
use crate::{map::SYSTEM, seal::is_sealed};

/// Values below this length stay as they are, in bytes: what it takes to say what differs, and to
/// look it up, is more than half of it.
const SHORT: usize = 320;
/// How many places are remembered. Two that fall together take turns.
const PLACES: usize = 1024;
/// A place that was useful this often is kept through as many uses of another.
const MOST_CREDIT: u8 = 16;

/// A value that another tenant has as well, but for little.
#[derive(Debug)]
pub(super) struct Alike {
    pub(super) template: Bytes,
    packed: Box<[u8]>,
    /// Of what it was made of.
    pub(super) length: u32,
}

impl Alike {
    /// The value; `None` if memory is damaged.
    pub(super) fn bytes(&self) -> Option<Bytes> {
        let length = self.length as usize;
        let value = block::decompress_with_dict(&self.packed, length, &self.template);
        value.map(Bytes::from).ok()
    }

    /// Bytes that it takes itself.
    pub(super) fn held(&self) -> usize {
        self.packed.len() + size_of::<Self>()
    }
}

/// See the module.
pub(crate) struct Templates {
    /// Empty before the first value.
    places: Box<[Option<Place>]>,
}

impl std::fmt::Debug for Templates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Templates").finish_non_exhaustive()
    }
}

/// A place where several tenants may have the same.
struct Place {
    /// Which it is, as a hash.
    of: u64,
    /// Whose value the template is, as a hash. It is no template for its own later versions: what
    /// one tenant changes all the time is no template at all.
    tenant: u64,
    template: Bytes,
    credit: u8,
}

impl Place {
    fn new(of: u64, tenant: u64, template: Bytes) -> Self {
        Self { of, tenant, template, credit: 1 }
    }
}

impl Templates {
    pub(crate) fn new() -> Self {
        Self { places: Box::default() }
    }

    /// A value of `collection` at `key` (`tenant/namespace/name`) that will lie there for a while.
    /// What is sealed stays as it came: whoever keeps the keys takes it from here.
    pub(crate) fn keep(&mut self, collection: &str, key: &str, value: Bytes) -> Text {
        if is_sealed(&value) {
            return value.into();
        }
        let place = key.split_once('/').filter(|(tenant, _)| *tenant != SYSTEM);
        let Some((tenant, place)) = place.filter(|_| (SHORT..LONG).contains(&value.len())) else {
            return Text::kept(value);
        };
        let (of, tenant) = (hash(collection, place), xxh3_64(tenant.as_bytes()));
        if self.places.is_empty() {
            self.places = (0..PLACES).map(|_| None).collect();
        }
        let slot = &mut self.places[(of % PLACES as u64) as usize];
        match slot {
            Some(known) if known.of == of && known.tenant == tenant => value.into(),
            Some(known) if known.of == of => match alike(&known.template, &value) {
                Some(it) => {
                    known.credit = known.credit.saturating_add(1).min(MOST_CREDIT);
                    Text::alike(it)
                }
                None => {
                    known.credit -= 1;
                    if known.credit == 0 {
                        *known = Place::new(of, tenant, value.clone());
                    }
                    value.into()
                }
            },
            Some(known) if 1 < known.credit => {
                known.credit -= 1;
                value.into()
            }
            _ => {
                *slot = Some(Place::new(of, tenant, value.clone()));
                value.into()
            }
        }
    }
}

fn hash(collection: &str, place: &str) -> u64 {
    let mut hasher = Xxh3Default::new();
    hasher.update(collection.as_bytes());
    // No name has it: one's end is not the other's beginning.
    hasher.update(&[0]);
    hasher.update(place.as_bytes());
    hasher.digest()
}

/// `value` as what differs from `template`, if that is little.
pub(super) fn alike(template: &Bytes, value: &Bytes) -> Option<Arc<Alike>> {
    let length = u32::try_from(value.len()).ok()?;
    let packed = block::compress_with_dict(value, template);
    (packed.len() + size_of::<Alike>() <= value.len() / 2).then(|| {
        let template = template.clone();
        Arc::new(Alike { template, packed: packed.into(), length })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A role of a tenant, as it is stored.
    fn role(tenant: &str, uid: u128, revision: u64) -> Bytes {
        let rules = r#"{"apiGroups":["apps"],"resources":["deployments"],"verbs":["get","list"]},"#;
        let uid = uid.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        format!(
            r#"{{"kind":"ClusterRole","metadata":{{"resourceVersion":"{revision}","name":"view","tenant":"{tenant}","uid":"{uid:032x}"}},"rules":[{}]}}"#,
            rules.repeat(6)
        )
        .into()
    }

    #[test]
    fn what_other_tenants_have_too_lies_as_what_differs() {
        let mut templates = Templates::new();
        for n in 0..100_u32 {
            let tenant = format!("t{n}");
            let value = role(&tenant, u128::from(n), 1000 + u64::from(n));
            let text =
                templates.keep("rbac/clusterroles", &format!("{tenant}//view"), value.clone());
            assert_eq!(&*text.bytes(), &value);
            assert_eq!(text.len(), value.len());
            assert_eq!(text.clone().into_bytes(), value);
            assert_eq!(text, Text::from(value.clone()));
            let is_first = n == 0;
            assert_eq!(text.is_packed(), !is_first);
            assert!(is_first || text.held() * 3 < value.len(), "{}", text.held());
        }
    }

    #[test]
    fn what_nobody_else_has_or_the_platform_has_lies_as_it_is() {
        let mut templates = Templates::new();
        for n in 0..50_u32 {
            let value = role("x", u128::from(n), 7);
            // The same object again and again, objects of the platform, and other places.
            for key in ["acme//view".to_owned(), "system//view".into(), format!("acme//view{n}")] {
                let text = templates.keep("rbac/clusterroles", &key, value.clone());
                assert!(!text.is_packed(), "{key}");
            }
            let text =
                templates.keep("core/configmaps", &format!("t{n}/ns/name"), Bytes::from("{}"));
            assert!(!text.is_packed(), "too short");
        }
    }

    #[test]
    fn a_place_that_many_use_outlasts_others_and_a_useless_one_makes_room() {
        let mut templates = Templates::new();
        let mut packed = 0;
        for n in 0..4_000_u32 {
            // Names that are never seen again fall on every place.
            let key = format!("t{n}/ns/web-{n}");
            templates.keep("core/pods", &key, role("p", u128::from(n), 1));
            let (tenant, key) = (format!("t{n}"), format!("t{n}//view"));
            let value = role(&tenant, u128::from(n), 2);
            packed += u32::from(templates.keep("rbac/clusterroles", &key, value).is_packed());
        }
        assert!(3_900 < packed, "{packed} of 4000");
    }

    proptest! {
        #[test]
        fn a_value_is_what_it_was(
            values in prop::collection::vec(
                (0..4_u8, 0..3_u8, prop::collection::vec(any::<u8>(), 0..8), 0..900_usize),
                1..60,
            ),
        ) {
            let mut templates = Templates::new();
            for (tenant, place, part, length) in values {
                let value: Bytes = part.iter().copied().cycle().take(length).collect();
                let key = format!("t{tenant}//p{place}");
                let text = templates.keep("a/b", &key, value.clone());
                prop_assert_eq!(text.bytes().into_owned(), value.clone());
                prop_assert_eq!(text.len(), value.len());
            }
        }
    }
}
