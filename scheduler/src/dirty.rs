//! Keys that changed and were not yet looked at, each once, in the order they came.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A set that remembers the order, filled by informers and emptied by the scheduler.
#[derive(Debug)]
pub(crate) struct Dirty<K> {
    keys: Mutex<(Vec<K>, HashSet<K>)>,
    changed: Arc<Notify>,
}

impl<K: Clone + Eq + Hash> Dirty<K> {
    /// `changed` is notified of every key.
    pub(crate) fn new(changed: Arc<Notify>) -> Self {
        Self { keys: Mutex::new((Vec::new(), HashSet::new())), changed }
    }

    pub(crate) fn add(&self, key: K) {
        {
            let mut keys = self.keys.lock();
            if !keys.1.insert(key.clone()) {
                return;
            }
            keys.0.push(key);
        }
        self.changed.notify_one();
    }

    pub(crate) fn take(&self) -> Vec<K> {
        let mut keys = self.keys.lock();
        keys.1.clear();
        std::mem::take(&mut keys.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_once_and_in_order() {
        let dirty = Dirty::new(Arc::new(Notify::new()));
        for key in [3, 1, 3, 2, 1] {
            dirty.add(key);
        }
        assert_eq!(dirty.take(), [3, 1, 2]);
        dirty.add(1);
        assert_eq!(dirty.take(), [1]);
        assert!(dirty.take().is_empty());
    }
}
