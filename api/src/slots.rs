//! The hash buckets that tenants fall into, and blocks of them.
//!
//! What a tenant has lives on the partition that has its slot, and is cared for by the replica
//! of the controllers that holds its block. The hash, and the number of slots, are written on
//! disks; the number of blocks is written in tables of who holds what.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

/// Number of hash buckets.
pub const SLOTS: u16 = 16_384;
/// Number of blocks: enough to share them evenly among tens of replicas, and few enough for a
/// table of all to be one object.
pub const BLOCKS: u16 = 256;
const SLOTS_OF_BLOCK: u16 = SLOTS / BLOCKS;

/// The bucket that a name hashes to.
pub fn slot_of(name: &str) -> u16 {
    (xxh3_64(name.as_bytes()) % u64::from(SLOTS)) as u16
}

/// Neighbouring slots that are held as one: one of [`BLOCKS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(u16);

impl Block {
    /// The block that a tenant falls into.
    pub fn of_tenant(name: &str) -> Self {
        Self(slot_of(name) / SLOTS_OF_BLOCK)
    }

    /// The block that a node falls into, by its name.
    pub fn of_node(name: &str) -> Self {
        Self::of_tenant(name)
    }

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..BLOCKS).map(Self)
    }

    /// Its number, below [`BLOCKS`].
    pub fn number(self) -> u16 {
        self.0
    }

    /// What a write for it, by the component that `table` is about, is called.
    pub fn task(self, table: &str) -> String {
        format!("{table}.{}", self.0)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text names no blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of whole blocks of {SLOTS_OF_BLOCK} slots, FIRST-LAST")]
pub struct BlocksError(String);

/// Slots that belong to a number of blocks.
pub fn n_slots(n_blocks: usize) -> usize {
    n_blocks * usize::from(SLOTS_OF_BLOCK)
}

/// Writes blocks, in order, as ranges of slots.
pub fn ranges(blocks: impl IntoIterator<Item = Block>) -> Vec<String> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for Block(block) in blocks {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == block => *last = block,
            _ => ranges.push((block, block)),
        }
    }
    let slots = |(first, last)| {
        format!("{}-{}", first * SLOTS_OF_BLOCK, last * SLOTS_OF_BLOCK + (SLOTS_OF_BLOCK - 1))
    };
    ranges.into_iter().map(slots).collect()
}

/// Reads back what [`ranges`] wrote.
pub fn blocks<'a>(ranges: impl IntoIterator<Item = &'a str>) -> Result<Vec<Block>, BlocksError> {
    let mut blocks = Vec::new();
    for range in ranges {
        let read = || {
            let (first, last) = range.split_once('-')?;
            let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
            let whole = first % SLOTS_OF_BLOCK == 0
                && last % SLOTS_OF_BLOCK == SLOTS_OF_BLOCK - 1
                && first <= last
                && last < SLOTS;
            whole.then_some((first / SLOTS_OF_BLOCK, last / SLOTS_OF_BLOCK))
        };
        let (first, last) = read().ok_or_else(|| BlocksError(range.chars().take(64).collect()))?;
        blocks.extend((first..=last).map(Block));
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_back() {
        let of = |numbers: &[u16]| numbers.iter().copied().map(Block).collect::<Vec<_>>();
        for numbers in [&[][..], &[0], &[0, 1, 2], &[3, 5, 6, 255]] {
            let written = ranges(of(numbers));
            assert_eq!(blocks(written.iter().map(String::as_str)).unwrap(), of(numbers));
        }
        assert_eq!(ranges(Block::all()), ["0-16383"]);
        assert_eq!(ranges(of(&[1, 3])), ["64-127", "192-255"]);
        for wrong in ["", "0", "0-62", "1-63", "64-63", "16384-16447", "0-63-", "-0-63", "0-99999"]
        {
            assert_eq!(blocks([wrong]), Err(BlocksError(wrong.into())), "{wrong}");
        }
    }

    #[test]
    fn a_block_is_of_neighbouring_slots() {
        // That the hash stays as it is is shown where it is written on disks: in `partition`.
        for name in ["system", "acme", "globex"] {
            let slot = slot_of(name);
            assert!(slot < SLOTS);
            assert_eq!(Block::of_tenant(name).number(), slot / 64);
            let block = Block::of_tenant(name);
            assert_eq!(ranges([block]), [format!("{}-{}", slot / 64 * 64, slot / 64 * 64 + 63)]);
        }
        assert_eq!(n_slots(Block::all().count()), usize::from(SLOTS));
    }
}
