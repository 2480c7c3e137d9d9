//! Who holds which block of slots: the table that replicas change by compare-and-set.

use std::{collections::BTreeMap, sync::Arc};

use insula_api::{
    kinds::{SlotClaim, SlotTableSpec},
    slots::{self, BLOCKS, Block, BlocksError},
};

/// What a replica has claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) holder: Arc<str>,
    /// In which it writes.
    pub(super) epoch: u64,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// At which it was stored; a write of it is for exactly this one.
    pub(super) version: u64,
    /// The newest in which anything was claimed.
    pub(super) epoch: u64,
    claims: Vec<Option<Claim>>,
}

/// Who holds which blocks, as far as this replica has heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holders {
    by_block: Vec<Option<Arc<str>>>,
}

impl Holders {
    /// Of those that are named.
    pub fn of(holders: impl IntoIterator<Item = (Block, Arc<str>)>) -> Self {
        let mut by_block = vec![None; usize::from(BLOCKS)];
        for (block, holder) in holders {
            if let Some(place) = by_block.get_mut(usize::from(block.number())) {
                *place = Some(holder);
            }
        }
        Self { by_block }
    }

    /// Whether both blocks are the same replica's.
    pub fn are_same(&self, one: Block, other: Block) -> bool {
        let holder =
            |it: Block| self.by_block.get(usize::from(it.number())).and_then(Option::as_ref);
        holder(one).is_some_and(|it| holder(other) == Some(it))
    }
}

impl Table {
    /// In which nothing is claimed.
    pub(super) fn empty(version: u64) -> Self {
        Self { version, epoch: 0, claims: vec![None; usize::from(BLOCKS)] }
    }

    pub(super) fn claim(&self, block: Block) -> Option<&Claim> {
        self.claims.get(usize::from(block.number())).and_then(Option::as_ref)
    }

    pub(super) fn set(&mut self, block: Block, claim: Option<Claim>) {
        if let Some(place) = self.claims.get_mut(usize::from(block.number())) {
            *place = claim;
        }
    }

    pub(super) fn holders(&self) -> Holders {
        let holder = |it: &Option<Claim>| it.as_ref().map(|it| it.holder.clone());
        Holders { by_block: self.claims.iter().map(holder).collect() }
    }

    /// Reads what [`Table::spec`] wrote.
    pub(super) fn read(version: u64, spec: &SlotTableSpec) -> Result<Self, BlocksError> {
        let mut table = Self { epoch: spec.epoch, ..Self::empty(version) };
        for SlotClaim { holder, epoch, slots } in &spec.claims {
            let holder: Arc<str> = holder.as_str().into();
            for block in slots::blocks(slots.iter().map(String::as_str))? {
                table.set(block, Some(Claim { holder: holder.clone(), epoch: *epoch }));
            }
        }
        Ok(table)
    }

    /// As it is stored.
    pub(super) fn spec(&self) -> SlotTableSpec {
        let mut held: BTreeMap<(&str, u64), Vec<Block>> = BTreeMap::new();
        for block in Block::all() {
            if let Some(claim) = self.claim(block) {
                held.entry((&claim.holder, claim.epoch)).or_default().push(block);
            }
        }
        let claims = held.into_iter().map(|((holder, epoch), blocks)| SlotClaim {
            holder: holder.to_owned(),
            epoch,
            slots: slots::ranges(blocks),
        });
        SlotTableSpec { epoch: self.epoch, claims: claims.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_back() {
        let mut table = Table::empty(7);
        table.epoch = 12;
        for (number, block) in Block::all().enumerate().filter(|(number, _)| number % 5 != 0) {
            let holder = if number % 3 == 0 { "a" } else { "b" };
            let epoch = (number / 100) as u64;
            table.set(block, Some(Claim { holder: holder.into(), epoch }));
        }
        assert_eq!(Table::read(7, &table.spec()).unwrap(), table);
        assert_eq!(Table::read(3, &SlotTableSpec::default()).unwrap(), Table::empty(3));
    }
}
