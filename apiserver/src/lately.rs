//! What was made for tenants that asked lately: whoever asks nothing for a while is forgotten, and
//! so is whoever is no more.
//!
//! Two generations: what is used is in the young one, what was not used since the last turn is in
//! the old one, which the next turn drops. So a tenant costs nothing after two turns without a
//! request, and nothing is ever walked through.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use insula_api::names::TenantName;
use parking_lot::Mutex;

/// A turn. Who asks nothing for twice as long is forgotten for certain.
pub(crate) const TURN: Duration = Duration::from_secs(300);

/// See the module. What is kept has to be cheap to clone.
#[derive(Debug)]
pub(crate) struct Lately<T>(Mutex<Generations<T>>);

#[derive(Debug)]
struct Generations<T> {
    young: HashMap<TenantName, T>,
    old: HashMap<TenantName, T>,
    turned: Instant,
}

impl<T> Default for Lately<T> {
    fn default() -> Self {
        let (young, old) = (HashMap::new(), HashMap::new());
        Self(Mutex::new(Generations { young, old, turned: Instant::now() }))
    }
}

impl<T> Generations<T> {
    fn turn(&mut self, now: Instant) {
        if TURN <= now.saturating_duration_since(self.turned) {
            self.old = std::mem::take(&mut self.young);
            self.turned = now;
        }
    }
}

impl<T: Clone> Lately<T> {
    pub(crate) fn get(&self, tenant: &TenantName) -> Option<T> {
        let mut it = self.0.lock();
        if let Some(found) = it.young.get(tenant) {
            return Some(found.clone());
        }
        let found = it.old.remove(tenant)?;
        it.young.insert(tenant.clone(), found.clone());
        Some(found)
    }

    pub(crate) fn put(&self, tenant: &TenantName, made: T) {
        let mut it = self.0.lock();
        it.turn(Instant::now());
        it.young.insert(tenant.clone(), made);
    }
}

/// What every such memory does, whatever it is of.
pub(crate) trait Forgets {
    /// Drops what was not used for a while. To be called from time to time: else what nobody asks
    /// for stays as long as nobody else asks.
    fn tidy(&self, now: Instant);

    /// Of how many tenants something is kept.
    fn len(&self) -> usize;
}

impl<T> Lately<T> {
    /// Drops what is of one tenant.
    pub(crate) fn remove(&self, tenant: &TenantName) {
        let mut it = self.0.lock();
        it.young.remove(tenant);
        it.old.remove(tenant);
    }
}

impl<T> Forgets for Lately<T> {
    fn tidy(&self, now: Instant) {
        self.0.lock().turn(now);
    }

    fn len(&self) -> usize {
        let it = self.0.lock();
        it.young.len() + it.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantName {
        TenantName::parse(name).unwrap()
    }

    #[test]
    fn who_asks_is_remembered_and_who_does_not_is_forgotten() {
        let lately = Lately::default();
        for n in 0..100 {
            lately.put(&tenant(&format!("t{n}")), n);
        }
        let (acme, mut now) = (tenant("t7"), Instant::now());
        for _ in 0..5 {
            now += TURN;
            lately.tidy(now);
            assert_eq!(lately.get(&acme), Some(7));
        }
        assert_eq!(lately.len(), 1);
        assert_eq!(lately.get(&tenant("t8")), None);
        // A little later is no turn.
        lately.tidy(now + TURN / 2);
        assert_eq!(lately.len(), 1);
        lately.remove(&acme);
        assert_eq!(lately.len(), 0);
    }
}
