//! Revisions that may be handed out before they are on disk.
//!
//! A relaxed write is acknowledged, with its revision, before the disk has it; if power goes, the
//! write may be lost, but its revision must not be given to another one. So before relaxed writes
//! are acknowledged a reservation is made durable: the highest revision that they may get. After
//! an unclean end, and only then, what was reserved is left out.
//!
//! While nobody makes relaxed writes there is no reservation, and an unclean end leaves out
//! nothing.

use std::time::{Duration, Instant};

/// Fewest and most revisions that are reserved at once.
const LEAST: u64 = 1 << 10;
pub(crate) const MOST: u64 = 1 << 16;

/// A reservation that lasted for less than this was too small.
const SHORT: Duration = Duration::from_secs(1);

/// A reservation is given back once nobody needed it for this long.
const UNUSED: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Reserve {
    /// Revisions up to this one are reserved, and the disk knows.
    durable: u64,
    size: u64,
    made: Option<Instant>,
    used: Option<Instant>,
}

impl Default for Reserve {
    fn default() -> Self {
        Self { durable: 0, size: LEAST, made: None, used: None }
    }
}

impl Reserve {
    /// A relaxed write may get a revision up to `needed`. Gives the reservation that must be made
    /// durable together with it, if there is none that covers it.
    pub(crate) fn relaxed(&mut self, needed: u64) -> Option<u64> {
        let now = Instant::now();
        self.used = Some(now);
        if needed <= self.durable {
            return None;
        }
        let short = self.made.is_some_and(|made| now.duration_since(made) < SHORT);
        self.size = if short { (2 * self.size).min(MOST) } else { LEAST };
        self.made = Some(now);
        Some(needed + self.size)
    }

    /// What the disk says is reserved.
    pub(crate) fn is_durable(&mut self, reserved: u64) {
        self.durable = reserved;
    }

    /// Whether a durable write should give the reservation back. It is gone as soon as this says
    /// so: nothing may be acknowledged early any more, whatever becomes of the write.
    pub(crate) fn give_back(&mut self) -> bool {
        let unused = self.used.is_none_or(|used| UNUSED < used.elapsed());
        let given = unused && self.durable != 0;
        if given {
            self.durable = 0;
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_while_it_is_short_lived() {
        let mut reserve = Reserve::default();
        assert_eq!(reserve.relaxed(10), Some(10 + LEAST));
        // Not durable yet.
        let again = reserve.relaxed(10).unwrap();
        assert_eq!(again, 10 + 2 * LEAST);
        reserve.is_durable(again);
        assert_eq!(reserve.relaxed(again), None);
        let mut needed = again;
        for _ in 0..20 {
            needed = reserve.relaxed(needed + 1).unwrap();
            reserve.is_durable(needed);
        }
        assert_eq!(reserve.size, MOST);
        // It was used just now.
        assert!(!reserve.give_back());
        reserve.used = None;
        assert!(reserve.give_back());
        assert!(!reserve.give_back());
        assert!(reserve.relaxed(1).is_some());
    }
}
