//! The cluster's keys as this server has them, and what is to be sealed.

use std::{fmt, sync::Arc};

use arc_swap::{ArcSwap, Guard};

use super::{ClusterKey, SealError};
use crate::store::Collection;

/// See the module. All partitions of a process share one; what it holds may change at any time.
pub struct Vault(ArcSwap<Settings>);

/// What a vault holds at one moment.
#[derive(Debug, Default)]
pub struct Settings {
    keys: Vec<ClusterKey>,
    sealed: Vec<Collection>,
}

impl Settings {
    /// The first key wraps, all unwrap. What is written to `sealed` is sealed; what lies there
    /// sealed is opened wherever it lies.
    pub fn new(keys: Vec<ClusterKey>, sealed: Vec<Collection>) -> Self {
        Self { keys, sealed }
    }

    /// Whether what is written to `collection` is to be sealed.
    pub fn seals(&self, collection: &Collection) -> bool {
        self.sealed.contains(collection)
    }

    /// The key that wraps what is made from now on.
    pub(super) fn first(&self) -> Result<&ClusterKey, SealError> {
        let none = || SealError::NoClusterKey { wanted: "any".into(), known: self.known() };
        self.keys.first().ok_or_else(none)
    }

    pub(super) fn by_id(&self, id: &str) -> Option<&ClusterKey> {
        self.keys.iter().find(|it| it.id() == id)
    }

    /// All keys, the one that wraps first.
    pub fn keys(&self) -> &[ClusterKey] {
        &self.keys
    }

    /// The keys in words.
    pub(super) fn known(&self) -> String {
        let named = |it: &ClusterKey| format!("{} ({})", it.id(), it.name());
        match self.keys.as_slice() {
            [] => "none".into(),
            keys => keys.iter().map(named).collect::<Vec<_>>().join(", "),
        }
    }
}

impl Default for Vault {
    /// Seals nothing and opens nothing.
    fn default() -> Self {
        Self(ArcSwap::from_pointee(Settings::default()))
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Vault").field(&self.settings()).finish()
    }
}

impl Vault {
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(settings)))
    }

    /// Goes by other keys, or seals otherwise, from now on.
    pub fn set(&self, settings: Settings) {
        self.0.store(Arc::new(settings));
    }

    /// What it holds now.
    pub fn settings(&self) -> Guard<Arc<Settings>> {
        self.0.load()
    }
}
