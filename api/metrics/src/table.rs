//! Counters by labels.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use arc_swap::ArcSwap;

/// What there is for each of few keys. Nothing is ever taken out.
#[derive(Debug)]
pub struct Table<K, V> {
    known: ArcSwap<HashMap<K, Arc<V>>>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { known: ArcSwap::default() }
    }
}

impl<K: Clone + Eq + Hash, V> Table<K, V> {
    /// Looks at what there is for a key, made by `make` the first time.
    pub fn with<R>(&self, key: &K, make: impl Fn() -> V, look: impl FnOnce(&V) -> R) -> R {
        if let Some(it) = self.known.load().get(key) {
            return look(it);
        }
        look(&self.learn(key, make))
    }

    /// As [`Table::with`], to keep.
    pub fn get(&self, key: &K, make: impl Fn() -> V) -> Arc<V> {
        match self.known.load().get(key) {
            Some(it) => it.clone(),
            None => self.learn(key, make),
        }
    }

    #[cold]
    fn learn(&self, key: &K, make: impl Fn() -> V) -> Arc<V> {
        let made = Arc::new(make());
        let mut kept = made.clone();
        self.known.rcu(|known| {
            let mut known = HashMap::clone(known);
            kept = known.entry(key.clone()).or_insert_with(|| made.clone()).clone();
            known
        });
        kept
    }

    /// All there is.
    pub fn all(&self) -> Arc<HashMap<K, Arc<V>>> {
        self.known.load_full()
    }
}

/// Names that others choose, of which only so many are told apart.
#[derive(Debug)]
pub struct Names {
    most: usize,
    others: Arc<str>,
    known: ArcSwap<HashSet<Arc<str>>>,
}

/// What all others are called.
const OTHERS: &str = "others";

impl Names {
    pub fn new(most: usize) -> Self {
        Self { most, others: OTHERS.into(), known: ArcSwap::default() }
    }

    /// A name, or what names are called that came too late.
    pub fn of(&self, name: &str) -> Arc<str> {
        if let Some(it) = self.known.load().get(name) {
            return it.clone();
        }
        if self.most <= self.known.load().len() {
            return self.others.clone();
        }
        let new: Arc<str> = name.into();
        let before = self.known.rcu(|known| {
            let mut known = HashSet::clone(known);
            if known.len() < self.most {
                known.insert(new.clone());
            }
            known
        });
        match before.len() < self.most {
            true => new,
            false => self.others.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn everybody_counts_the_same() {
        let table = Table::<u8, AtomicU64>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..1000 {
                        let key = u8::try_from(n % 7).unwrap();
                        let add = |it: &AtomicU64| it.fetch_add(1, Ordering::Relaxed);
                        table.with(&key, AtomicU64::default, add);
                    }
                });
            }
        });
        let all = table.all();
        assert_eq!(all.len(), 7);
        assert_eq!(all.values().map(|it| it.load(Ordering::Relaxed)).sum::<u64>(), 4000);
    }

    #[test]
    fn only_so_many_names_are_told_apart() {
        let names = Names::new(2);
        for (name, told) in [("a", "a"), ("b", "b"), ("c", OTHERS), ("a", "a"), ("d", OTHERS)] {
            assert_eq!(&*names.of(name), told);
        }
    }
}
