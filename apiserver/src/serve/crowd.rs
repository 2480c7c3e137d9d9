//! How many connections each address has: one that opens too many leaves room for others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

/// Most connections of one address, unless it is set.
const MOST: usize = 10_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Crowd {
    most: AtomicUsize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

impl Default for Crowd {
    fn default() -> Self {
        Self { most: AtomicUsize::new(MOST), counts: Mutex::default() }
    }
}

impl Crowd {
    /// 0 for as many as there are file descriptors.
    pub(super) fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Counts another one, until what is returned is dropped; none if it is one too many.
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Present> {
        let most = self.most.load(Ordering::Relaxed);
        let mut counts = self.counts.lock();
        let count = counts.entry(from).or_default();
        if most != 0 && most <= *count {
            return None;
        }
        *count += 1;
        Some(Present { crowd: self.clone(), from })
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Present {
    crowd: Arc<Crowd>,
    from: IpAddr,
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts.lock();
        if let Some(count) = counts.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_room() {
        let crowd = Arc::new(Crowd::default());
        crowd.set_most(2);
        let [here, there] = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        let first = crowd.enter(here).unwrap();
        let _second = crowd.enter(here).unwrap();
        assert!(crowd.enter(here).is_none());
        assert!(crowd.enter(there).is_some());
        drop(first);
        assert!(crowd.enter(here).is_some());
        assert_eq!(crowd.counts.lock().len(), 1, "who has gone is forgotten");
        crowd.set_most(0);
        let many: Vec<Present> = (0..100).filter_map(|_| crowd.enter(there)).collect();
        assert_eq!(many.len(), 100);
    }
}
