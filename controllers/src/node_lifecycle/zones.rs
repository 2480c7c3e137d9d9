//! How fast the pods of lost nodes are sent away: slowly where one node after the other is lost,
//! and not at all where so many are that it is rather this side that cannot hear.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

/// From one node to the next, in a zone that is mostly well, or lost altogether.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same in a large zone of which many nodes are lost.
const SLOW_INTERVAL: Duration = Duration::from_secs(100);
/// A zone with more nodes is large. In smaller ones that have lost many, nobody is sent away.
const LARGE: usize = 50;
/// Many are lost: more than [`FEW`], and this share of a zone, in percent.
const MANY_PERCENT: usize = 55;
const FEW: usize = 2;

/// What is known of the nodes, by zone.
#[derive(Debug, Default)]
pub(super) struct Zones {
    nodes: HashMap<String, Place>,
    zones: HashMap<Arc<str>, Zone>,
}

#[derive(Debug)]
struct Place {
    zone: Arc<str>,
    is_ready: bool,
}

#[derive(Debug, Default)]
struct Zone {
    n_nodes: usize,
    n_lost: usize,
    /// When the next node may be given up. `None`: at once.
    next: Option<Instant>,
}

impl Zone {
    fn is_down(&self) -> bool {
        self.n_lost == self.n_nodes
    }

    /// How long from one node to the next; `None` while none is given up.
    fn interval(&self) -> Option<Duration> {
        let many = FEW < self.n_lost && MANY_PERCENT * self.n_nodes <= 100 * self.n_lost;
        if self.is_down() || !many {
            Some(INTERVAL)
        } else {
            (LARGE < self.n_nodes).then_some(SLOW_INTERVAL)
        }
    }
}

impl Zones {
    /// A node is in `zone`, and ready or not.
    pub(super) fn saw(&mut self, node: &str, zone: &str, is_ready: bool) {
        if self.nodes.get(node).is_some_and(|it| &*it.zone == zone && it.is_ready == is_ready) {
            return;
        }
        self.forget(node);
        let zone: Arc<str> = match self.zones.get_key_value(zone) {
            Some((zone, _)) => zone.clone(),
            None => zone.into(),
        };
        let counts = self.zones.entry(zone.clone()).or_default();
        counts.n_nodes += 1;
        counts.n_lost += usize::from(!is_ready);
        self.nodes.insert(node.to_owned(), Place { zone, is_ready });
    }

    /// A node is gone.
    pub(super) fn forget(&mut self, node: &str) {
        let Some(place) = self.nodes.remove(node) else { return };
        let Some(zone) = self.zones.get_mut(&place.zone) else { return };
        zone.n_nodes -= 1;
        zone.n_lost -= usize::from(!place.is_ready);
        if zone.n_nodes == 0 {
            self.zones.remove(&place.zone);
        }
    }

    /// Whether no node at all is ready: then it is us who cannot hear, and nobody is sent away.
    pub(super) fn all_are_down(&self) -> bool {
        self.zones.values().all(Zone::is_down)
    }

    /// Takes the turn of a node that is to be given up; or says when to ask again.
    pub(super) fn turn(&mut self, node: &str, now: Instant) -> Result<(), Duration> {
        let place = self.nodes.get(node);
        let Some(zone) = place.and_then(|it| self.zones.get_mut(&it.zone)) else {
            return Err(INTERVAL);
        };
        // What happens to its zone meanwhile is seen when it asks again.
        let interval = zone.interval().ok_or(INTERVAL)?;
        match zone.next.filter(|next| now < *next) {
            Some(next) => Err((next - now).min(INTERVAL)),
            None => {
                zone.next = Some(now + interval);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(n_ready: usize, n_lost: usize) -> Zones {
        let mut zones = Zones::default();
        for n in 0..n_ready + n_lost {
            zones.saw(&n.to_string(), "a", n_lost <= n);
        }
        zones
    }

    /// How many of the first nodes are given up at once, and within 1,000 s.
    #[track_caller]
    fn check(n_ready: usize, n_lost: usize, expected: (usize, usize)) {
        let mut zones = zones(n_ready, n_lost);
        let begin = Instant::now();
        let mut given_up = vec![false; n_lost];
        let mut at_once = None;
        for second in 0..1000 {
            for (n, done) in given_up.iter_mut().enumerate().filter(|(_, done)| !**done) {
                let now = begin + Duration::from_secs(second);
                *done = zones.turn(&n.to_string(), now).is_ok();
            }
            at_once.get_or_insert_with(|| given_up.iter().filter(|it| **it).count());
        }
        let all = given_up.into_iter().filter(|it| *it).count();
        assert_eq!((at_once.unwrap_or_default(), all), expected);
    }

    #[test]
    fn nodes_are_given_up_one_by_one() {
        check(9, 1, (1, 1));
        check(1000, 500, (1, 100));
        // Many of a small zone, and of a large one.
        check(2, 3, (0, 0));
        check(1, 2, (1, 2));
        check(20, 40, (1, 10));
        // A zone of which nothing is left, beside others.
        check(0, 40, (1, 40));
    }

    #[test]
    fn all_are_down_only_if_every_zone_is() {
        let mut zones = Zones::default();
        assert!(zones.all_are_down());
        zones.saw("1", "a", true);
        zones.saw("2", "b", false);
        assert!(!zones.all_are_down());
        zones.saw("1", "a", false);
        assert!(zones.all_are_down());
        zones.saw("3", "c", true);
        assert!(!zones.all_are_down());
        zones.saw("3", "b", true);
        assert!(!zones.all_are_down());
        zones.forget("3");
        assert!(zones.all_are_down());
    }
}
