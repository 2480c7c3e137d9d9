//! A local copy of a collection that follows the server.
//!
//! One task lists the collection, then watches it. Readers see a consistent map from key to
//! object, with indexes. Handlers learn of every change, in order, after the map shows it.
//!
//! # Invariants
//!
//! * A handler hears of an object's changes in order, and never twice of the same change, however
//!   often the server replays it.
//! * Changes missed while the watch was down reach handlers as the difference between the old
//!   copy and the new list; none is skipped but intermediate states may be.
//! * Readers never wait for the network.
//!
//! An informer over all tenants may be of some slots only, and of others at any time
//! ([`Informer::select`]).

mod copied;
mod packed;
mod reflect;
mod store;

use std::{fmt, sync::Arc, time::Duration};

use insula_api::{names::TenantName, slots::Slots};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::store::IndexId;
use self::{
    copied::Known,
    reflect::Reflector,
    store::{IndexFn, Store},
};
use crate::{Collection, Object, ObjectKey, Tenanted};

/// A change to one object. At least one of `old` and `new` is there.
#[derive(Debug)]
pub struct Change<'a, K> {
    pub key: &'a ObjectKey,
    /// `None` if the object is new.
    pub old: Option<&'a Arc<Tenanted<K>>>,
    /// `None` if the object is gone.
    pub new: Option<&'a Arc<Tenanted<K>>>,
}

impl<K> Change<'_, K> {
    /// The newest state known: the present one, or the last if the object is gone.
    pub fn latest(&self) -> Option<&Arc<Tenanted<K>>> {
        self.new.or(self.old)
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;
type Trim<K> = Box<dyn Fn(&mut K) + Send + Sync>;

/// A local copy of a collection. Cheap to clone; clones share the copy.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

// Not derived: that would ask for `K: Clone`.
impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Object> fmt::Debug for Informer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informer").field("n_objects", &self.len()).finish_non_exhaustive()
    }
}

struct Shared<K> {
    store: RwLock<Store<K>>,
    /// Held while a change is shown and told, so that a new handler misses none.
    handlers: Mutex<Vec<Handler<K>>>,
    /// Whose objects they are; all tenants' objects say so themselves.
    tenant: Arc<str>,
    trim: Option<Trim<K>>,
    signals: Arc<Signals>,
}

/// What readers and the task behind a copy tell each other.
struct Signals {
    synced: watch::Sender<bool>,
    /// How often somebody asked to be told when the copy is as new as the server was then, and
    /// the last of these that was answered.
    asked: watch::Sender<u64>,
    answered: watch::Sender<u64>,
    /// The slots whose tenants are to be shown.
    wanted: watch::Sender<Slots>,
}

impl<K: Object> Informer<K> {
    /// Begins to describe an informer of `collection`.
    pub fn builder(collection: impl Into<Collection<K>>) -> InformerBuilder<K> {
        InformerBuilder {
            collection: collection.into(),
            label_selector: None,
            field_selector: None,
            indexes: Vec::new(),
            trim: None,
            n_plain: usize::MAX,
            slots: Slots::all(),
            idle_limit: reflect::IDLE_LIMIT,
        }
    }

    /// Waits until the copy is complete. Returns `false` if the informer stopped before.
    pub async fn synced(&self) -> bool {
        self.shared.signals.synced.subscribe().wait_for(|synced| *synced).await.is_ok()
    }

    /// Whether the copy has been complete once.
    pub fn has_synced(&self) -> bool {
        *self.shared.signals.synced.borrow()
    }

    /// Has an informer over all tenants be of those in these slots from now on. Of what it shows
    /// already nothing is read again. Objects that it is to show no longer are gone for handlers,
    /// too; which shows nobody that they were deleted.
    pub fn select(&self, slots: &Slots) {
        self.shared.signals.wanted.send_if_modified(|wanted| {
            let is_new = wanted != slots;
            if is_new {
                wanted.clone_from(slots);
            }
            is_new
        });
    }

    /// Waits until the copy, and so the handlers too, know of everything that was written before
    /// the call, of all that was selected by then. Returns `false` if the informer stopped before.
    pub async fn caught_up(&self) -> bool {
        let mut answered = self.shared.signals.answered.subscribe();
        let mut number = 0;
        self.shared.signals.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        answered.wait_for(|answered| number <= *answered).await.is_ok()
    }

    /// Tells every handler once more of the objects that `which` chooses, as if they were new.
    pub fn retell(&self, which: impl Fn(&ObjectKey) -> bool) {
        let handlers = self.shared.handlers.lock();
        self.each(which, |change| handlers.iter().for_each(|handler| handler(change)));
    }

    /// Calls `tell` with every object that `which` chooses, as if it were new. Nothing may change
    /// meanwhile: the caller holds the handlers.
    fn each(&self, which: impl Fn(&ObjectKey) -> bool, tell: impl Fn(&Change<'_, K>)) {
        let keys = {
            let store = self.shared.store.read();
            store.keys().filter(|key| which(key)).cloned().collect::<Vec<_>>()
        };
        for key in &keys {
            // Not all at once: unpacked they take several times the room.
            let object = self.shared.store.read().peek(key);
            if let Some(object) = &object {
                tell(&Change { key, old: None, new: Some(object) });
            }
        }
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Tenanted<K>>> {
        self.shared.store.read().get(key)
    }

    /// Whether there is such an object; it is not unpacked.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.shared.store.read().contains(key)
    }

    /// All objects, by key.
    pub fn list(&self) -> Vec<Arc<Tenanted<K>>> {
        let store = self.shared.store.read();
        store.keys().filter_map(|key| store.peek(key)).collect()
    }

    /// The objects of one namespace, by name. With an empty namespace: a tenant's objects that
    /// have none.
    pub fn in_namespace(&self, tenant: &TenantName, namespace: &str) -> Vec<Arc<Tenanted<K>>> {
        self.shared.store.read().in_namespace(tenant, namespace)
    }

    /// The objects of one tenant, by key.
    pub fn in_tenant(&self, tenant: &TenantName) -> Vec<Arc<Tenanted<K>>> {
        self.shared.store.read().in_tenant(tenant)
    }

    /// The objects that an index files under `value`, by key.
    pub fn indexed(&self, index: IndexId, value: &str) -> Vec<Arc<Tenanted<K>>> {
        self.shared.store.read().indexed(index, value)
    }

    /// The objects that an index files under those values that begin with `prefix`, and that
    /// `is_meant` chooses by what follows it; by key. It is asked about each value once, however
    /// many objects there are, and what is filed under others is not unpacked.
    pub fn indexed_where(
        &self,
        index: IndexId,
        prefix: &str,
        is_meant: impl FnMut(&str) -> bool,
    ) -> Vec<Arc<Tenanted<K>>> {
        self.shared.store.read().indexed_where(index, prefix, is_meant)
    }

    /// What they are called; none is unpacked.
    pub fn keys_where(
        &self,
        index: IndexId,
        prefix: &str,
        is_meant: impl FnMut(&str) -> bool,
    ) -> Vec<ObjectKey> {
        let store = self.shared.store.read();
        store.keys_where(index, prefix, is_meant).into_iter().cloned().collect()
    }

    /// Shows each of those under one value once. Unlike with [`Self::indexed`] they are not all
    /// unpacked at the same time.
    pub fn each_indexed(
        &self,
        index: IndexId,
        value: &str,
        mut look: impl FnMut(&Arc<Tenanted<K>>),
    ) {
        for key in &self.keys_indexed(index, value) {
            let object = self.shared.store.read().peek_indexed(index, value, key);
            object.iter().for_each(&mut look);
        }
    }

    /// What they are called; none is unpacked.
    pub fn keys_indexed(&self, index: IndexId, value: &str) -> Vec<ObjectKey> {
        self.shared.store.read().keys_indexed(index, value).cloned().collect()
    }

    /// How many they are; none is unpacked.
    pub fn n_indexed(&self, index: IndexId, value: &str) -> usize {
        self.shared.store.read().keys_indexed(index, value).count()
    }

    pub fn len(&self) -> usize {
        self.shared.store.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `handler` for every object there is, then for every change.
    ///
    /// The informer waits for the handler: it must be quick, must not block, and must not call
    /// this function.
    pub fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock();
        self.each(|_| true, &handler);
        handlers.push(Box::new(handler));
    }
}

/// Describes an informer before it starts.
pub struct InformerBuilder<K> {
    collection: Collection<K>,
    label_selector: Option<String>,
    field_selector: Option<String>,
    indexes: Vec<IndexFn<K>>,
    trim: Option<Trim<K>>,
    n_plain: usize,
    slots: Slots,
    idle_limit: Duration,
}

impl<K: Object> fmt::Debug for InformerBuilder<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InformerBuilder")
            .field("resource", self.collection.resource())
            .field("n_indexes", &self.indexes.len())
            .finish_non_exhaustive()
    }
}

impl<K: Object> InformerBuilder<K> {
    /// Copies only objects whose labels match.
    pub fn label_selector(mut self, selector: impl Into<String>) -> Self {
        self.label_selector = Some(selector.into());
        self
    }

    /// Copies only objects whose fields match.
    pub fn field_selector(mut self, selector: impl Into<String>) -> Self {
        self.field_selector = Some(selector.into());
        self
    }

    /// Adds an index. `values` says under what an object is filed; values that mean something
    /// only within a tenant must carry it.
    pub fn index(
        &mut self,
        values: impl Fn(&Tenanted<K>) -> Vec<String> + Send + Sync + 'static,
    ) -> IndexId {
        self.indexes.push(Box::new(values));
        IndexId(self.indexes.len() - 1)
    }

    /// Drops from each object what no reader needs, to save memory. `managedFields` always go.
    pub fn trim(mut self, trim: impl Fn(&mut K) + Send + Sync + 'static) -> Self {
        self.trim = Some(Box::new(trim));
        self
    }

    /// Keeps no more than `n` objects as they are, those that were looked at lately. The others lie
    /// packed, in a tenth of the room, and take some microseconds to look at.
    pub fn pack_beyond(mut self, n: usize) -> Self {
        self.n_plain = n;
        self
    }

    /// Begins with tenants in these slots alone; see [`Informer::select`].
    pub fn slots(mut self, slots: Slots) -> Self {
        self.slots = slots;
        self
    }

    /// After how long without an event, bookmarks included, a watch counts as dead.
    pub fn idle_limit(mut self, limit: Duration) -> Self {
        self.idle_limit = limit;
        self
    }

    /// Starts the task, which ends at `shutdown`.
    pub fn start(self, tasks: &TaskTracker, shutdown: CancellationToken) -> Informer<K> {
        let signals = Arc::new(Signals {
            synced: watch::channel(false).0,
            asked: watch::channel(0).0,
            answered: watch::channel(0).0,
            wanted: watch::channel(self.slots).0,
        });
        let shared = Arc::new(Shared {
            store: RwLock::new(Store::new(self.indexes, self.n_plain)),
            handlers: Mutex::new(Vec::new()),
            tenant: self.collection.tenant.clone(),
            trim: self.trim,
            signals: signals.clone(),
        });
        let reflector = Reflector {
            collection: self.collection.untyped(),
            accept_list: K::ACCEPT_LIST,
            accept: K::ACCEPT,
            label_selector: self.label_selector,
            field_selector: self.field_selector,
            idle_limit: self.idle_limit,
            copied: shared.clone(),
            signals,
            known: Known::default(),
            gain: None,
            losing: Vec::new(),
        };
        tasks.spawn(shutdown.run_until_cancelled_owned(reflector.run()));
        Informer { shared }
    }
}
