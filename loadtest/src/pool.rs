//! The objects that a scenario has made of a template, and which of them are there.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

/// Objects of a template in the places of a group. Object `i` lies in place `i mod n`.
#[derive(Debug)]
pub(crate) struct Pool {
    /// What their names begin with.
    prefix: String,
    pub(crate) places: Vec<usize>,
    next: AtomicU64,
    /// Those that were made and not deleted, the oldest first.
    live: Mutex<VecDeque<u64>>,
}

impl Pool {
    pub(crate) fn new(prefix: String, places: Vec<usize>) -> Self {
        Self { prefix, places, next: AtomicU64::new(0), live: Mutex::default() }
    }

    /// The number of an object that is about to be made.
    pub(crate) fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn made(&self, index: u64) {
        self.live.lock().push_back(index);
    }

    /// How many were asked for.
    pub(crate) fn n_asked(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    pub(crate) fn n_live(&self) -> u64 {
        self.live.lock().len() as u64
    }

    /// Any that is there.
    pub(crate) fn any(&self) -> Option<u64> {
        let live = self.live.lock();
        (!live.is_empty()).then(|| live[rand::random_range(0..live.len())])
    }

    /// The one after those that had earlier turns.
    pub(crate) fn at(&self, turn: u64) -> Option<u64> {
        let live = self.live.lock();
        let n = u64::try_from(live.len()).ok().filter(|n| 0 < *n)?;
        live.get(usize::try_from(turn % n).ok()?).copied()
    }

    /// The oldest, which is about to be deleted.
    pub(crate) fn take(&self) -> Option<u64> {
        self.live.lock().pop_front()
    }

    pub(crate) fn name(&self, index: u64) -> String {
        format!("{}{index}", self.prefix)
    }

    /// Where an object lies: an index into `places`.
    pub(crate) fn place(&self, index: u64) -> usize {
        usize::try_from(index).unwrap_or(0) % self.places.len().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_come_and_go() {
        let pool = Pool::new("web-".into(), vec![4, 7]);
        assert_eq!((pool.any(), pool.take()), (None, None));
        for _ in 0..3 {
            pool.made(pool.next());
        }
        assert_eq!((pool.name(2), pool.place(2), pool.place(1)), ("web-2".into(), 0, 1));
        assert_eq!(
            (pool.at(4), pool.take(), pool.n_live(), pool.n_asked()),
            (Some(1), Some(0), 2, 3)
        );
        assert!(pool.any().is_some_and(|it| 0 < it));
    }
}
