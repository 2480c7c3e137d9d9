//! The parts of one range of addresses, and which of them nodes have.

use std::collections::HashMap;

use ipnet::IpNet;

/// The most parts that a range may have: one for each of so many nodes.
const MOST: u32 = 1 << 16;

/// A range from which each node gets a part of the same size.
#[derive(Debug)]
pub(crate) struct Pool {
    range: IpNet,
    /// The prefix length of a part.
    prefix: u8,
    n_parts: u32,
    /// How many hold each part: more than one if they were given by hand.
    held: HashMap<u32, u32>,
    /// Where to look next, so that a part that was let go of rests for a while.
    next: u32,
}

/// A range that cannot be divided as was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{range} has no parts with a prefix of {prefix} bits, or more than 65536")]
pub struct PoolError {
    pub range: IpNet,
    pub prefix: u8,
}

/// The first address of a network, as a number.
fn first(net: &IpNet) -> u128 {
    match net {
        IpNet::V4(net) => u128::from(u32::from(net.network())),
        IpNet::V6(net) => u128::from(net.network()),
    }
}

impl Pool {
    pub(crate) fn new(range: IpNet, prefix: u8) -> Result<Self, PoolError> {
        let range = range.trunc();
        let wrong = PoolError { range, prefix };
        let bits = prefix.checked_sub(range.prefix_len()).ok_or_else(|| wrong.clone())?;
        if range.max_prefix_len() < prefix
            || MOST < 1u32.checked_shl(bits.into()).unwrap_or(u32::MAX)
        {
            return Err(wrong);
        }
        Ok(Self { range, prefix, n_parts: 1 << bits, held: HashMap::new(), next: 0 })
    }

    /// The parts that `net` lies in or covers.
    fn parts(&self, net: &IpNet) -> std::ops::Range<u32> {
        let is_near = self.range.contains(net) || net.contains(&self.range);
        if !is_near {
            return 0..0;
        }
        if net.contains(&self.range) {
            return 0..self.n_parts;
        }
        let shift = u32::from(self.range.max_prefix_len() - self.prefix);
        let index = |address: u128| u32::try_from((address - first(&self.range)) >> shift);
        let begin = index(first(net)).unwrap_or(self.n_parts);
        let more = self.prefix.saturating_sub(net.prefix_len());
        begin..begin.saturating_add(1 << more).min(self.n_parts)
    }

    /// `net` is somebody's.
    pub(crate) fn hold(&mut self, net: &IpNet) {
        for part in self.parts(net) {
            *self.held.entry(part).or_default() += 1;
        }
    }

    /// One who had `net` does not have it any more.
    pub(crate) fn release(&mut self, net: &IpNet) {
        for part in self.parts(net) {
            let left = self.held.get(&part).copied().unwrap_or(0).saturating_sub(1);
            match left {
                0 => drop(self.held.remove(&part)),
                left => drop(self.held.insert(part, left)),
            }
        }
    }

    /// A part that nobody has, which is held from now on.
    pub(crate) fn take(&mut self) -> Option<IpNet> {
        let order = (self.next..self.n_parts).chain(0..self.next);
        let part = order.into_iter().find(|part| !self.held.contains_key(part))?;
        self.next = (part + 1) % self.n_parts;
        let shift = u32::from(self.range.max_prefix_len() - self.prefix);
        let address = first(&self.range) + (u128::from(part) << shift);
        let address = match self.range {
            IpNet::V4(_) => std::net::IpAddr::V4(u32::try_from(address).ok()?.into()),
            IpNet::V6(_) => std::net::IpAddr::V6(address.into()),
        };
        let net = IpNet::new(address, self.prefix).ok()?;
        self.hold(&net);
        Some(net)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn parts_are_given_in_turn() {
        let mut pool = Pool::new(net("10.0.0.0/22"), 24).unwrap();
        pool.hold(&net("10.0.1.0/24"));
        let mut take = || pool.take().map(|it| it.to_string());
        assert_eq!(take().as_deref(), Some("10.0.0.0/24"));
        assert_eq!(take().as_deref(), Some("10.0.2.0/24"));
        assert_eq!(take().as_deref(), Some("10.0.3.0/24"));
        assert_eq!(take(), None);
        pool.release(&net("10.0.2.0/24"));
        assert_eq!(pool.take(), Some(net("10.0.2.0/24")));
        let mut six = Pool::new(net("fd00::/56"), 64).unwrap();
        assert_eq!(six.take(), Some(net("fd00::/64")));
        assert_eq!(six.take(), Some(net("fd00:0:0:1::/64")));
    }

    #[test]
    fn what_others_have_is_respected_whatever_its_size() {
        let mut pool = Pool::new(net("10.0.0.0/22"), 24).unwrap();
        pool.hold(&net("10.0.0.0/23"));
        pool.hold(&net("10.0.2.128/25"));
        pool.hold(&net("192.168.0.0/24"));
        assert_eq!(pool.take(), Some(net("10.0.3.0/24")));
        assert_eq!(pool.take(), None);
        // Given twice by hand: one may go, and it is still the other's.
        pool.hold(&net("10.0.2.0/24"));
        pool.release(&net("10.0.2.128/25"));
        assert_eq!(pool.take(), None);
        let mut inside = Pool::new(net("10.0.0.0/24"), 26).unwrap();
        inside.hold(&net("10.0.0.0/8"));
        assert_eq!(inside.take(), None);
    }

    #[test]
    fn ranges_that_cannot_be_divided() {
        assert!(Pool::new(net("10.0.0.0/24"), 16).is_err());
        assert!(Pool::new(net("10.0.0.0/24"), 33).is_err());
        assert!(Pool::new(net("10.0.0.0/7"), 24).is_err());
        assert!(Pool::new(net("10.0.0.0/8"), 24).is_ok());
    }

    proptest! {
        /// Whatever is taken and let go of, nothing is given to two.
        #[test]
        fn nothing_is_given_twice(steps in prop::collection::vec(any::<Option<u8>>(), 1..200)) {
            let mut pool = Pool::new(net("10.0.0.0/20"), 24).unwrap();
            let mut given: Vec<IpNet> = Vec::new();
            for step in steps {
                match step {
                    Some(which) if !given.is_empty() => {
                        let it = given.swap_remove(usize::from(which) % given.len());
                        pool.release(&it);
                    }
                    _ => match pool.take() {
                        Some(it) => {
                            prop_assert!(!given.contains(&it));
                            given.push(it);
                        }
                        None => prop_assert_eq!(given.len(), 16),
                    },
                }
            }
        }
    }
}
