//! How much of one tenant may be under way at the same time.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use insula_api::names::TenantName;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many at once of each tenant. Who has none under way costs nothing for long.
#[derive(Debug)]
pub(crate) struct Turns {
    at_once: usize,
    known: Mutex<HashMap<TenantName, Weak<Semaphore>>>,
}

impl Turns {
    pub(crate) fn new(at_once: usize) -> Self {
        Self { at_once, known: Mutex::default() }
    }

    fn of(&self, tenant: &TenantName) -> Arc<Semaphore> {
        let mut known = self.known.lock();
        if let Some(found) = known.get(tenant).and_then(Weak::upgrade) {
            return found;
        }
        // Before it grows: then each is looked at a constant number of times.
        if known.len() == known.capacity() {
            known.retain(|_, it| 0 < it.strong_count());
        }
        let made = Arc::new(Semaphore::new(self.at_once));
        known.insert(tenant.clone(), Arc::downgrade(&made));
        made
    }

    /// Waits for a turn. `None` never comes: nobody closes the queue.
    pub(crate) async fn wait(&self, tenant: &TenantName) -> Option<OwnedSemaphorePermit> {
        self.of(tenant).acquire_owned().await.ok()
    }

    /// A turn, if there is one at once.
    pub(crate) fn take(&self, tenant: &TenantName) -> Option<OwnedSemaphorePermit> {
        self.of(tenant).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_so_many_and_not_those_of_others() {
        let (turns, acme) = (Turns::new(3), TenantName::parse("acme").unwrap());
        let held: Vec<_> = (0..3).map(|_| turns.take(&acme).unwrap()).collect();
        assert!(turns.take(&acme).is_none());
        for n in 0..100 {
            assert!(turns.take(&TenantName::parse(&format!("other-{n}")).unwrap()).is_some());
        }
        assert!(turns.take(&acme).is_none(), "forgetting others does not forget what is held");
        assert!(turns.known.lock().len() < 100);
        drop(held);
        assert!(turns.take(&acme).is_some());
    }

    #[tokio::test]
    async fn who_waits_waits_for_its_own() {
        let turns = Turns::new(1);
        let (acme, globex) =
            (TenantName::parse("acme").unwrap(), TenantName::parse("globex").unwrap());
        let held = turns.wait(&acme).await;
        let mut next = std::pin::pin!(turns.wait(&acme));
        assert!(futures::poll!(next.as_mut()).is_pending());
        assert!(turns.wait(&globex).await.is_some());
        drop(held);
        assert!(next.await.is_some());
    }
}
