//! Delays that grow with repeated failure and never fall into step with one another.

use std::time::Duration;

use rand::Rng;

/// An exponential delay with jitter: between half and all of `base * 2^n`, at most `ceiling`.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    ceiling: Duration,
    n_failures: u32,
}

impl Backoff {
    pub fn new(base: Duration, ceiling: Duration) -> Self {
        Self { base, ceiling, n_failures: 0 }
    }

    /// The delay after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let delay = Self::delay(self.base, self.ceiling, self.n_failures);
        self.n_failures = self.n_failures.saturating_add(1);
        delay
    }

    /// Forgets all failures.
    pub fn reset(&mut self) {
        self.n_failures = 0;
    }

    /// The delay after `n_failures` earlier failures.
    pub fn delay(base: Duration, ceiling: Duration, n_failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(n_failures).unwrap_or(u32::MAX);
        let full = base.saturating_mul(factor).min(ceiling);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_ceiling() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        for expected in [100, 200, 400, 800, 1600, 2000, 2000] {
            let delay = backoff.next_delay().as_millis();
            assert!((expected / 2..=expected).contains(&delay), "{delay} for {expected}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }

    #[test]
    fn many_failures_do_not_overflow() {
        let ceiling = Duration::from_secs(5);
        assert!(Backoff::delay(Duration::from_secs(1), ceiling, u32::MAX) <= ceiling);
    }
}
