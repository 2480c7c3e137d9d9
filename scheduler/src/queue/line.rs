//! Whose turn it is: start-time fair queueing among tenants.
//!
//! A turn moves its tenant forward by what it costs, and the tenant that is least far goes next.
//! Who comes anew starts where the others are: it is not ahead for having been idle, and what it
//! did not use others had. Who leaves stays as far as it was until the others have come as far, so
//! nobody gains by coming one pod at a time.
//!
//! # Invariants
//!
//! * Whoever comes has its first turn after at most one turn of each of the others.

use std::collections::{BTreeSet, HashMap};

use insula_api::names::TenantName;

/// What a turn of a tenant costs that has nothing.
pub(crate) const TURN: u64 = 1 << 16;

#[derive(Debug, Clone, Copy)]
struct Place {
    passed: u64,
    /// Of equals, who came first.
    number: u64,
    is_in_line: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Line {
    order: BTreeSet<(u64, u64, TenantName)>,
    places: HashMap<TenantName, Place>,
    /// How far the tenant was that had the last turn.
    now: u64,
    n_numbers: u64,
}

impl Line {
    /// `tenant` waits for its turn from now on.
    pub(crate) fn enter(&mut self, tenant: &TenantName) {
        let passed = match self.places.get(tenant) {
            Some(place) if place.is_in_line => return,
            Some(place) => place.passed.max(self.now),
            None => self.now,
        };
        self.put(tenant.clone(), passed);
    }

    /// `tenant` waits no longer.
    pub(crate) fn leave(&mut self, tenant: &TenantName) {
        if let Some(place) = self.places.get_mut(tenant).filter(|it| it.is_in_line) {
            place.is_in_line = false;
            self.order.remove(&(place.passed, place.number, tenant.clone()));
        }
        if self.order.is_empty() {
            self.places.clear();
        }
    }

    /// The tenant whose turn it is; it waits for its next one. `cost` is what a turn of it costs,
    /// [`TURN`] or more for an average tenant.
    pub(crate) fn next(&mut self, cost: impl FnOnce(&TenantName) -> u64) -> Option<TenantName> {
        let (passed, _, tenant) = self.order.pop_first()?;
        self.now = passed;
        let passed = passed.saturating_add(cost(&tenant).max(1));
        self.put(tenant.clone(), passed);
        Some(tenant)
    }

    fn put(&mut self, tenant: TenantName, passed: u64) {
        self.n_numbers += 1;
        let number = self.n_numbers;
        self.places.insert(tenant.clone(), Place { passed, number, is_in_line: true });
        self.order.insert((passed, number, tenant));
    }

    /// Forgets who left and would start anew where the others are.
    pub(crate) fn sweep(&mut self) {
        let now = self.now;
        self.places.retain(|_, it| it.is_in_line || now < it.passed);
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> TenantName {
        TenantName::parse(name).unwrap()
    }

    #[test]
    fn turns_are_as_many_as_they_are_cheap() {
        let mut line = Line::default();
        for name in ["rich", "poor", "middle"] {
            line.enter(&named(name));
        }
        let cost = |tenant: &TenantName| match tenant.as_str() {
            "rich" => 8 * TURN,
            "middle" => 2 * TURN,
            _ => TURN,
        };
        let mut turns: HashMap<TenantName, usize> = HashMap::new();
        for _ in 0..13_000 {
            *turns.entry(line.next(cost).unwrap()).or_default() += 1;
        }
        for (name, expected) in [("rich", 1000), ("middle", 4000), ("poor", 8000_usize)] {
            assert!(turns[&named(name)].abs_diff(expected) < 3, "{turns:?}");
        }
    }

    #[test]
    fn who_comes_one_at_a_time_gains_nothing() {
        let mut line = Line::default();
        let (flood, drop) = (named("flood"), named("drop"));
        line.enter(&flood);
        let mut turns = [0_usize; 2];
        for _ in 0..1000 {
            line.enter(&drop);
            let next = line.next(|_| TURN).unwrap();
            turns[usize::from(next == drop)] += 1;
            if next == drop {
                line.leave(&drop);
            }
        }
        assert!(turns[0].abs_diff(500) < 3, "{turns:?}");
    }

    #[test]
    fn nothing_is_kept_of_who_is_gone() {
        let mut line = Line::default();
        for n in 0..100 {
            let tenant = named(&format!("t{n}"));
            line.enter(&tenant);
            line.next(|_| TURN);
            line.leave(&tenant);
        }
        assert!(line.is_empty() && line.places.is_empty());
        line.enter(&named("a"));
        line.enter(&named("b"));
        line.next(|_| TURN);
        line.leave(&named("a"));
        line.next(|_| TURN);
        line.next(|_| TURN);
        line.sweep();
        assert_eq!(line.places.len(), 1);
    }
}
