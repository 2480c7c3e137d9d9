//! Turns: how writes that are limited by what a tenant has come one after the other.
//!
//! An etcd compares keys and adds nothing up. So a server adds up what it has followed, and has its
//! write done only if no other limited write of the tenant was done meanwhile: each of them renews
//! one key of the tenant, and is refused if that was renewed since. What others freed and is not
//! followed yet only makes the sum too high; so whoever would refuse looks again first.
//!
//! # Invariants
//!
//! * Whoever has followed a turn has followed the change that was made in it.
//! * Writes without limits renew no turn and are not waited for: what they add may be missed by a
//!   limited write that is judged at the same moment.

use std::hash::{BuildHasher as _, RandomState};

use tokio::sync::{Mutex, MutexGuard};

use super::{EtcdStore, Offsets};
use crate::{
    map::Shard,
    quota::Limit,
    store::{Change, Collection, StoreError, Write},
};

/// The collection of the tenants' turns. They count for nobody.
pub(crate) const TURNS: &str = "insula.io/turns";

/// Tenants of one server that share a place in line wait for each other without need.
const PLACES: usize = 64;

/// Those of this server who wait for their turn, by tenant.
#[derive(Debug)]
pub(super) struct Turns {
    places: Box<[Mutex<()>]>,
    hasher: RandomState,
}

impl Default for Turns {
    fn default() -> Self {
        let places = (0..PLACES).map(|_| Mutex::new(())).collect();
        Self { places, hasher: RandomState::new() }
    }
}

impl Turns {
    pub(super) async fn wait(&self, tenant: &str) -> MutexGuard<'_, ()> {
        let place = self.hasher.hash_one(tenant) as usize % PLACES;
        self.places[place].lock().await
    }
}

/// A write that is limited.
pub(super) struct Limited<'a> {
    pub(super) tenant: &'a str,
    collection: &'a str,
    key: &'a str,
    value: &'a [u8],
    within: &'a [Limit],
}

impl<'a> Limited<'a> {
    pub(super) fn of(write: &'a Write) -> Option<Self> {
        let (collection, key) = (write.collection.as_str(), &*write.key);
        let within = write.within.as_deref().filter(|_| write.by_move.is_none())?;
        let Change::Put(value) = &write.change else { return None };
        let Shard::Tenant(tenant) = Shard::of(collection, key) else { return None };
        Some(Self { tenant, collection, key, value, within })
    }
}

/// The key to be renewed, and as of when it was judged.
pub(super) struct Turn {
    pub(super) key: String,
    /// As etcd counts; 0 if there was none yet.
    pub(super) at: i64,
}

impl EtcdStore {
    /// Whether the write fits, and the turn that it has then.
    pub(super) async fn judge(
        &self,
        it: &Limited<'_>,
        offsets: &Offsets,
    ) -> Result<Turn, StoreError> {
        let own = format!("{}//turn", it.tenant);
        let ask = || {
            let at = (it.collection, it.key);
            let judge = |contents: &mut crate::state::Contents| {
                contents.judge(at, it.value, it.within, (TURNS, &own))
            };
            self.state.apply(judge)
        };
        let (mut seen, mut verdict) = ask();
        if verdict.is_err() {
            self.catch_up().await?;
            (seen, verdict) = ask();
        }
        verdict?;
        let at = seen.map_or(0, |it| offsets.etcd(it).unwrap_or(i64::MAX));
        Ok(Turn { key: self.keys.of(&Collection::of(TURNS), &own), at })
    }
}
