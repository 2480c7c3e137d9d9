//! The hash buckets that tenants fall into, and blocks of them.
//!
//! What a tenant has lives on the partition that has its slot, and is cared for by the replica
//! of the controllers that holds its block. The hash, and the number of slots, are written on
//! disks; the number of blocks is written in tables of who holds what.

use std::{fmt, str::FromStr};

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

/// A set of slots, as lists and watches over all tenants are asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct Slots(Box<[u64; BLOCKS as usize]>);

// A slot of a block is a bit of the block's word.
const _: () = assert!(SLOTS_OF_BLOCK == u64::BITS as u16);

/// The most ranges that a set may be written as: every other block, and some slots beside.
pub const MOST_RANGES: usize = 256;

/// Why a text is no set of slots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotsError {
    #[error("{0:?} is no range of slots, FIRST-LAST, of which the last is {last}", last = SLOTS - 1)]
    Range(String),
    #[error("more than {MOST_RANGES} ranges of slots")]
    TooMany,
}

impl Slots {
    /// Without any.
    pub fn none() -> Self {
        Self(Box::new([0; BLOCKS as usize]))
    }

    /// With every one.
    pub fn all() -> Self {
        Self(Box::new([u64::MAX; BLOCKS as usize]))
    }

    /// Those of whole blocks.
    pub fn of(blocks: impl IntoIterator<Item = Block>) -> Self {
        let mut slots = Self::none();
        for Block(block) in blocks {
            if let Some(word) = slots.0.get_mut(usize::from(block)) {
                *word = u64::MAX;
            }
        }
        slots
    }

    /// These, and that of a tenant.
    #[must_use]
    pub fn with_tenant(mut self, name: &str) -> Self {
        self.insert(slot_of(name));
        self
    }

    /// Those that are in either.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(word, other)| *word |= other);
        self
    }

    /// Those that `other` has not.
    #[must_use]
    pub fn without(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(word, other)| *word &= !other);
        self
    }

    /// Whether it has the slot of a tenant. A hash of a short name: some nanoseconds.
    pub fn has_tenant(&self, name: &str) -> bool {
        self.has(slot_of(name))
    }

    /// Whether it has no slot.
    pub fn is_none(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Whether it has every slot.
    pub fn is_all(&self) -> bool {
        self.0.iter().all(|word| *word == u64::MAX)
    }

    fn has(&self, slot: u16) -> bool {
        let word = self.0.get(usize::from(slot / SLOTS_OF_BLOCK));
        word.is_some_and(|word| word >> (slot % SLOTS_OF_BLOCK) & 1 == 1)
    }

    fn insert(&mut self, slot: u16) {
        if let Some(word) = self.0.get_mut(usize::from(slot / SLOTS_OF_BLOCK)) {
            *word |= 1 << (slot % SLOTS_OF_BLOCK);
        }
    }
}

/// As ranges, `0-63,128-128`, in order.
impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut slots = (0..SLOTS).filter(|slot| self.has(*slot)).peekable();
        let mut comma = "";
        while let Some(first) = slots.next() {
            let mut last = first;
            while let Some(next) = slots.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{comma}{first}-{last}")?;
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slots({self})")
    }
}

/// What [`Slots`] are written as; ranges may overlap, and come in any order.
impl FromStr for Slots {
    type Err = SlotsError;

    fn from_str(text: &str) -> Result<Self, SlotsError> {
        let mut slots = Self::none();
        for (nth, range) in text.split(',').enumerate() {
            if MOST_RANGES <= nth {
                return Err(SlotsError::TooMany);
            }
            // Not what else a number may be written as, such as `+7`.
            let number = |text: &str| {
                let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse::<u16>().ok().filter(|it| is_plain && *it < SLOTS)
            };
            let read = || {
                let (first, last) = range.split_once('-')?;
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(first..=last)
            };
            let wrong = || SlotsError::Range(range.chars().take(64).collect());
            read().ok_or_else(wrong)?.for_each(|slot| slots.insert(slot));
        }
        Ok(slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_slots_read_back() {
        let blocks = [Block(0), Block(1), Block(3), Block(255)];
        let some = Slots::of(blocks);
        assert_eq!(some.to_string(), "0-127,192-255,16320-16383");
        let every_other = Slots::of(Block::all().filter(|it| it.number() % 2 == 0));
        let one = Slots::none().with_tenant("system");
        for slots in [some, every_other.with_tenant("system"), one, Slots::all()] {
            assert_eq!(slots.to_string().parse(), Ok(slots));
        }
        assert_eq!(Slots::all().to_string(), "0-16383");
        assert_eq!("5-9,0-6,3-3".parse::<Slots>().map(|it| it.to_string()), Ok("0-9".into()));
        for wrong in
            ["", "7", "0-", "-1", "2-1", "0-16384", "+0-1", "0-1,", "a-b", "0-1-2", "0-99999"]
        {
            let shown = wrong.split(',').next_back().unwrap_or_default();
            assert_eq!(wrong.parse::<Slots>(), Err(SlotsError::Range(shown.into())), "{wrong}");
        }
        let many = |n| vec!["0-0"; n].join(",").parse::<Slots>();
        assert!(many(MOST_RANGES).is_ok());
        assert_eq!(many(MOST_RANGES + 1), Err(SlotsError::TooMany));
    }

    #[test]
    fn a_tenant_is_in_its_blocks_slots() {
        for name in ["system", "acme", "globex"] {
            let of_block = Slots::of([Block::of_tenant(name)]);
            let alone = Slots::none().with_tenant(name);
            assert!(of_block.has_tenant(name) && alone.has_tenant(name));
            let others = Slots::all().without(&of_block);
            assert!(!others.has_tenant(name) && !others.is_all() && !others.is_none());
            assert!(alone.clone().without(&of_block).is_none());
            assert!(others.with(&of_block).is_all());
        }
    }

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
