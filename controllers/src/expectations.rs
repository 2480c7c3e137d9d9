//! What a controller has asked for and not yet seen come true.
//!
//! Between a write and its event the local copy is out of date; a controller that counted pods
//! meanwhile would create them twice. So it notes each write before it sends it, and counts only
//! when nothing is outstanding. What was asked for in another epoch is void: before a replica takes
//! an owner up again its local copy shows all that was written before.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use insula_client::fence::Fence;
use parking_lot::Mutex;
use tokio::time::Instant;

/// After this, a write that nothing was heard of is believed lost.
const EXPIRY: Duration = Duration::from_secs(300);

/// Outstanding writes, by the uid of the owner they are for.
#[derive(Debug, Default)]
pub(crate) struct Expectations {
    owners: Mutex<HashMap<String, Outstanding>>,
}

#[derive(Debug)]
struct Outstanding {
    /// Names of objects to be created.
    creates: HashSet<String>,
    /// Uids of objects to be deleted.
    deletes: HashSet<String>,
    since: Instant,
    /// The epoch in which they were asked for.
    fence: Option<Fence>,
}

impl Expectations {
    /// Notes that `name` is about to be created.
    pub(crate) fn expect_create(&self, owner: &str, name: &str) {
        self.change(owner, |it| {
            it.creates.insert(name.to_owned());
        });
    }

    /// Notes that the object with `uid` is about to be deleted.
    pub(crate) fn expect_delete(&self, owner: &str, uid: &str) {
        self.change(owner, |it| {
            it.deletes.insert(uid.to_owned());
        });
    }

    fn change(&self, owner: &str, change: impl FnOnce(&mut Outstanding)) {
        let mut owners = self.owners.lock();
        let outstanding = owners.entry(owner.to_owned()).or_insert_with(|| Outstanding {
            creates: HashSet::new(),
            deletes: HashSet::new(),
            since: Instant::now(),
            fence: None,
        });
        let fence = Fence::current();
        if outstanding.fence != fence {
            outstanding.creates.clear();
            outstanding.deletes.clear();
            outstanding.fence = fence;
        }
        change(outstanding);
        outstanding.since = Instant::now();
    }

    /// The object was seen, or will never be.
    pub(crate) fn created(&self, owner: &str, name: &str) {
        self.settle(owner, |it| it.creates.remove(name));
    }

    /// The object's deletion was seen, or will never be.
    pub(crate) fn deleted(&self, owner: &str, uid: &str) {
        self.settle(owner, |it| it.deletes.remove(uid));
    }

    fn settle(&self, owner: &str, settle: impl FnOnce(&mut Outstanding) -> bool) {
        let mut owners = self.owners.lock();
        if let Some(outstanding) = owners.get_mut(owner) {
            settle(outstanding);
            if outstanding.creates.is_empty() && outstanding.deletes.is_empty() {
                owners.remove(owner);
            }
        }
    }

    /// Whether the deletion of the object with `uid` was asked for and not seen yet.
    pub(crate) fn is_leaving(&self, owner: &str, uid: &str) -> bool {
        self.owners.lock().get(owner).is_some_and(|it| it.deletes.contains(uid))
    }

    /// Forgets an owner that is gone.
    pub(crate) fn forget(&self, owner: &str) {
        self.owners.lock().remove(owner);
    }

    /// Whether the local copy shows all that was written for this owner.
    pub(crate) fn are_met(&self, owner: &str) -> bool {
        let mut owners = self.owners.lock();
        match owners.get(owner) {
            None => true,
            Some(outstanding) if outstanding.fence != Fence::current() => {
                owners.remove(owner);
                true
            }
            Some(outstanding) if EXPIRY <= outstanding.since.elapsed() => {
                tracing::warn!(owner, ?outstanding, "writes were never seen");
                owners.remove(owner);
                true
            }
            Some(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn met_when_all_was_seen() {
        let it = Expectations::default();
        assert!(it.are_met("o"));
        it.expect_create("o", "a");
        it.expect_delete("o", "u");
        assert!(!it.are_met("o") && it.are_met("other"));
        it.created("o", "a");
        it.created("o", "a");
        assert!(!it.are_met("o"));
        it.deleted("o", "u");
        assert!(it.are_met("o"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_for_in_another_epoch_is_void() {
        let it = Expectations::default();
        let epoch = |number| Fence::new("t.1", number).unwrap();
        epoch(1).around(async { it.expect_create("o", "a") }).await;
        assert!(!epoch(1).around(async { it.are_met("o") }).await);
        assert!(epoch(2).around(async { it.are_met("o") }).await);
        epoch(1).around(async { it.expect_create("o", "a") }).await;
        epoch(2).around(async { it.expect_create("o", "b") }).await;
        it.created("o", "b");
        assert!(epoch(2).around(async { it.are_met("o") }).await);
    }

    #[tokio::test(start_paused = true)]
    async fn lost_writes_expire() {
        let it = Expectations::default();
        it.expect_create("o", "a");
        tokio::time::advance(EXPIRY - Duration::from_secs(1)).await;
        assert!(!it.are_met("o"));
        it.expect_create("o", "b");
        tokio::time::advance(EXPIRY - Duration::from_secs(1)).await;
        assert!(!it.are_met("o"), "the newest write counts");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(it.are_met("o"));
    }
}
