//! What a controller wrote and its local copy has to show before it looks again.
//!
//! Who plans by objects that others see too, and that may be changed again at once, must not plan
//! by its own past: a deployment that has just scaled one set up, and does not see it yet, would
//! give a second one the same room. What was written in another epoch is void: before a replica
//! takes an owner up again its local copy shows all that was written before.

use std::{cmp::Ordering, collections::HashMap, time::Duration};

use insula_client::{ObjectKey, fence::Fence, newer_version};
use parking_lot::Mutex;
use tokio::time::Instant;

/// After this, an object that never showed is believed to have gone before anybody saw it.
const EXPIRY: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Written(Mutex<HashMap<ObjectKey, Notes>>);

#[derive(Debug)]
struct Notes {
    /// Versions of what was written, by name.
    versions: HashMap<String, String>,
    since: Instant,
    /// The epoch in which they were written.
    fence: Option<Fence>,
}

impl Written {
    /// Notes that `name` was written for `owner`, and has this version by it.
    pub(crate) fn note(&self, owner: &ObjectKey, name: &str, version: &str) {
        let mut owners = self.0.lock();
        let fence = Fence::current();
        let notes = owners
            .entry(owner.clone())
            .and_modify(|it| {
                if it.fence != fence {
                    it.versions.clear();
                }
            })
            .or_insert_with(|| Notes {
                versions: HashMap::new(),
                since: Instant::now(),
                fence: None,
            });
        notes.fence = fence;
        notes.since = Instant::now();
        notes.versions.insert(name.to_owned(), version.to_owned());
    }

    /// What was written by that name is gone.
    pub(crate) fn gone(&self, owner: &ObjectKey, name: &str) {
        if let Some(notes) = self.0.lock().get_mut(owner) {
            notes.versions.remove(name);
        }
    }

    /// Forgets an owner that is gone.
    pub(crate) fn forget(&self, owner: &ObjectKey) {
        self.0.lock().remove(owner);
    }

    /// Whether the local copy, of which `shown` tells versions, shows all that was written.
    pub(crate) fn is_shown(
        &self,
        owner: &ObjectKey,
        shown: impl Fn(&str) -> Option<String>,
    ) -> bool {
        let mut owners = self.0.lock();
        let Some(notes) = owners.get_mut(owner) else { return true };
        if notes.fence != Fence::current() || EXPIRY <= notes.since.elapsed() {
            owners.remove(owner);
            return true;
        }
        notes.versions.retain(|name, written| {
            let order = shown(name).and_then(|it| newer_version(&it, written));
            !matches!(order, Some(Ordering::Greater | Ordering::Equal))
        });
        if notes.versions.is_empty() {
            owners.remove(owner);
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;

    use super::*;

    fn owner() -> ObjectKey {
        ObjectKey::new(&TenantName::parse("acme").unwrap(), "ns", "web")
    }

    fn shows(it: &Written, version: Option<&str>) -> bool {
        it.is_shown(&owner(), |name| version.filter(|_| name == "a").map(str::to_owned))
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_has_to_show() {
        let it = Written::default();
        assert!(shows(&it, None));
        it.note(&owner(), "a", "7");
        assert!(!shows(&it, None));
        assert!(!shows(&it, Some("6")));
        assert!(shows(&it, Some("7")));
        assert!(shows(&it, None), "it was seen");
        it.note(&owner(), "a", "8");
        assert!(shows(&it, Some("10")));
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_shows_is_forgotten() {
        let it = Written::default();
        it.note(&owner(), "a", "7");
        it.gone(&owner(), "a");
        assert!(shows(&it, None));
        it.note(&owner(), "a", "7");
        tokio::time::advance(EXPIRY).await;
        assert!(shows(&it, None));
    }

    #[tokio::test(start_paused = true)]
    async fn another_epoch_knows_nothing_of_it() {
        let epoch = |n| Fence::new("controllers", n).unwrap();
        let it = Written::default();
        epoch(1).around(async { it.note(&owner(), "a", "7") }).await;
        epoch(1).around(async { assert!(!shows(&it, None)) }).await;
        epoch(2).around(async { assert!(shows(&it, None)) }).await;
    }
}
