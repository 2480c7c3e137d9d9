//! Shapes, each kept once.

use std::{
    collections::HashMap,
    hash::RandomState,
    sync::{Arc, Weak},
};

use insula_client::Tenanted;

use super::{Pod, Shape};

/// All shapes that some pod has.
#[derive(Debug, Default)]
pub(crate) struct Shapes {
    known: HashMap<u64, Vec<Weak<Shape>>>,
    hasher: RandomState,
    n_given: u64,
    /// When there are so many entries, those that no pod has any more are dropped.
    limit: usize,
}

impl Shapes {
    /// The shape of a pod, which is the same for all pods that are alike.
    pub(crate) fn of(&mut self, pod: &Tenanted<Pod>) -> Arc<Shape> {
        self.shared(Shape::of(pod))
    }

    /// The shape that is like this one.
    pub(crate) fn shared(&mut self, mut shape: Shape) -> Arc<Shape> {
        let hash = shape.hash_with(&self.hasher);
        if self.limit <= self.known.len() {
            self.known.retain(|_, all| {
                all.retain(|it| 0 < it.strong_count());
                !all.is_empty()
            });
            self.limit = 1024.max(2 * self.known.len());
        }
        let all = self.known.entry(hash).or_default();
        if let Some(it) = all.iter().filter_map(Weak::upgrade).find(|it| shape.is_like(it)) {
            return it;
        }
        all.retain(|it| 0 < it.strong_count());
        self.n_given += 1;
        shape.id = self.n_given;
        let shape = Arc::new(shape);
        all.push(Arc::downgrade(&shape));
        shape
    }

    #[cfg(test)]
    pub(crate) fn n_known(&self) -> usize {
        self.known.len()
    }
}
