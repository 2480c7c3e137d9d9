//! The metadata of all objects of all tenants that this replica cares for, watched once for all who
//! follow it.
//!
//! Built-in resources are found by discovery; those of which controllers have a whole copy anyway
//! ([`Informers`]) are followed there. Custom ones are each tenant's own, but what many
//! tenants call the same lies in one collection: there is one watch for each name that anybody
//! has defined, over all tenants, and none where nobody has. In which version a tenant serves a
//! resource, and under which kind, is asked when somebody has to know, and kept until its
//! definitions change.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::future::join_all;
use insula_api::{names::TenantName, slots::Slots};
use insula_client::{
    Backoff, Client, Discovery, Error, Informer, PartialObject, ResourceRef, chain,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::informers::{Informers, LocalCopy, MetaChange, with_platform};

const REFRESH: Duration = Duration::from_secs(30);
/// How long is waited for copies, some of which may be of what nobody can show just now.
const CATCH_UP: Duration = Duration::from_secs(3);
/// Most tenants whose own resources are kept in mind.
const MAX_TENANTS: usize = 256;
/// How many objects of a resource lie ready to be looked at. Who follows them keeps what it needs.
const N_PLAIN: usize = 32;
/// The version by which custom resources of all tenants are asked for: each may have others.
const ANY_VERSION: &str = "all";

/// Hears of every change to every object.
type Handler = Arc<dyn Fn(&Arc<ResourceRef>, &MetaChange<'_>) + Send + Sync>;

/// See the module. Cheap to clone; clones share the watches.
#[derive(Clone)]
pub(crate) struct Everything {
    shared: Arc<Shared>,
}

impl fmt::Debug for Everything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watches = self.shared.watches.lock();
        let n_watched = watches.built_in.len() + watches.custom.len();
        f.debug_struct("Everything").field("n_watched", &n_watched).finish_non_exhaustive()
    }
}

struct Shared {
    client: Client,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Copies that there are anyway, by group and plural.
    copies: HashMap<(String, String), Arc<dyn LocalCopy>>,
    /// Held while a handler or a watch comes, so that none misses the other.
    watches: Mutex<Watches>,
    /// What tenant `system` serves, which is what all do.
    common: Mutex<Arc<Kinds>>,
    /// What tenants serve beside that.
    own: Mutex<HashMap<TenantName, Arc<Kinds>>>,
    discovered: watch::Sender<bool>,
    definitions: OnceLock<Informer<PartialObject>>,
    /// How many tenants have a definition of this name.
    defined: Mutex<BTreeMap<String, usize>>,
    redefined: Notify,
}

struct Watches {
    /// Of tenants in these slots.
    slots: Slots,
    handlers: Vec<Handler>,
    built_in: BTreeMap<ResourceRef, Watched>,
    custom: BTreeMap<ResourceRef, Watched>,
}

struct Watched {
    copy: Arc<dyn LocalCopy>,
    /// `None` if it is others' too, who keep it.
    stop: Option<CancellationToken>,
}

/// Resources that are served, by what names them.
#[derive(Debug, Default)]
struct Kinds {
    by_kind: BTreeMap<(String, String), ResourceRef>,
    by_name: BTreeMap<(String, String), ResourceRef>,
}

impl Kinds {
    fn of(discovery: &Discovery, known: Option<&Self>) -> Self {
        let mut kinds = Self::default();
        for it in &discovery.resources {
            let name = (it.resource.group.to_string(), it.resource.plural.to_string());
            if known.is_some_and(|known| known.by_name.contains_key(&name)) {
                continue;
            }
            let kind = (it.resource.group.to_string(), it.resource.kind.to_string());
            kinds.by_kind.entry(kind).or_insert_with(|| it.resource.clone());
            kinds.by_name.entry(name).or_insert_with(|| it.resource.clone());
        }
        kinds
    }

    fn kind(&self, group: &str, kind: &str) -> Option<&ResourceRef> {
        self.by_kind.get(&(group.to_owned(), kind.to_owned()))
    }

    fn name(&self, group: &str, plural: &str) -> Option<&ResourceRef> {
        self.by_name.get(&(group.to_owned(), plural.to_owned()))
    }
}

impl Everything {
    /// Of tenants in these slots.
    pub(crate) fn new(
        client: Client,
        informers: &Informers,
        slots: Slots,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        let shared = Shared {
            client,
            tasks,
            shutdown,
            copies: informers.by_resource(),
            watches: Mutex::new(Watches {
                slots,
                handlers: Vec::new(),
                built_in: BTreeMap::new(),
                custom: BTreeMap::new(),
            }),
            common: Mutex::new(Arc::default()),
            own: Mutex::new(HashMap::new()),
            discovered: watch::channel(false).0,
            definitions: OnceLock::new(),
            defined: Mutex::new(BTreeMap::new()),
            redefined: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Calls `handler` for every object there is, then for every change. It must be quick.
    pub(crate) fn on_change(
        &self,
        handler: impl Fn(&Arc<ResourceRef>, &MetaChange<'_>) + Send + Sync + 'static,
    ) {
        let handler: Handler = Arc::new(handler);
        let mut watches = self.shared.watches.lock();
        for (resource, it) in watches.built_in.iter().chain(&watches.custom) {
            follow(it, resource, &handler);
        }
        watches.handlers.push(handler);
    }

    /// Begins to watch.
    pub(crate) fn start(&self) {
        let it = self.clone();
        let discover = async move {
            let mut backoff = Backoff::new(Duration::from_millis(100), REFRESH);
            loop {
                match it.refresh().await {
                    Ok(()) => {
                        backoff.reset();
                        it.shared.discovered.send_replace(true);
                        tokio::time::sleep(REFRESH).await;
                    }
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "discovery failed");
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
            }
        };
        let it = self.clone();
        let define = async move {
            loop {
                it.shared.redefined.notified().await;
                it.follow_definitions();
            }
        };
        for work in
            [futures::future::Either::Left(discover), futures::future::Either::Right(define)]
        {
            let shutdown = self.shared.shutdown.clone();
            self.shared.tasks.spawn(shutdown.run_until_cancelled_owned(work));
        }
        self.watch_definitions();
    }

    /// Tells every handler once more of the objects of tenants that `which` chooses, but for those
    /// of [`Informers`], which tell of theirs themselves.
    pub(crate) fn retell(&self, which: &(dyn Fn(&TenantName) -> bool + Sync)) {
        self.own_copies().iter().for_each(|copy| copy.retell(which));
    }

    /// Is of tenants in these slots from now on.
    pub(crate) fn select(&self, slots: &Slots) {
        self.shared.watches.lock().slots.clone_from(slots);
        self.own_copies().iter().for_each(|copy| copy.select(slots));
        if let Some(definitions) = self.shared.definitions.get() {
            definitions.select(&with_platform(slots));
        }
    }

    /// How many objects there are, but for those of [`Informers`].
    pub(crate) fn n_objects(&self) -> usize {
        let definitions = self.shared.definitions.get().map_or(0, Informer::len);
        definitions + self.own_copies().iter().map(|copy| copy.n_objects()).sum::<usize>()
    }

    /// Waits until all that was written before the call is known, as far as it can be had soon: of
    /// some resource a server may not be able to show anything, and others have to go on.
    pub(crate) async fn caught_up(&self) {
        let all = async {
            if let Some(definitions) = self.shared.definitions.get() {
                definitions.caught_up().await;
                self.follow_definitions();
            }
            let copies = self.own_copies();
            join_all(copies.iter().map(|copy| copy.caught_up())).await
        };
        if tokio::time::timeout(CATCH_UP, all).await.is_err() {
            tracing::warn!("some resources do not answer; going on without them");
        }
    }

    /// Those that nobody else keeps.
    fn own_copies(&self) -> Vec<Arc<dyn LocalCopy>> {
        self.followed(|it| it.stop.is_some())
    }

    fn followed(&self, which: fn(&Watched) -> bool) -> Vec<Arc<dyn LocalCopy>> {
        let watches = self.shared.watches.lock();
        let all = watches.built_in.values().chain(watches.custom.values());
        all.filter(|it| which(it)).map(|it| it.copy.clone()).collect()
    }

    /// Waits until all objects are known of all resources that are known by then.
    pub(crate) async fn synced(&self) {
        // Cannot fail while `self` holds the sender.
        let _ = self.shared.discovered.subscribe().wait_for(|it| *it).await;
        if let Some(definitions) = self.shared.definitions.get() {
            definitions.synced().await;
            self.follow_definitions();
        }
        for copy in self.followed(|_| true) {
            copy.synced().await;
        }
    }

    /// The resource that serves a kind to a tenant, in the version that its group prefers.
    pub(crate) async fn of_kind(
        &self,
        tenant: &TenantName,
        group: &str,
        kind: &str,
    ) -> Result<Option<ResourceRef>, Error> {
        if let Some(found) = self.shared.common.lock().kind(group, kind) {
            return Ok(Some(found.clone()));
        }
        Ok(self.own(tenant).await?.kind(group, kind).cloned())
    }

    /// A tenant's resource by its name.
    pub(crate) async fn of_name(
        &self,
        tenant: &TenantName,
        group: &str,
        plural: &str,
    ) -> Result<Option<ResourceRef>, Error> {
        if let Some(found) = self.shared.common.lock().name(group, plural) {
            return Ok(Some(found.clone()));
        }
        Ok(self.own(tenant).await?.name(group, plural).cloned())
    }

    /// How a tenant's objects of a watched resource can be asked for; `None` if it has none of
    /// that name any longer.
    pub(crate) async fn resolve(
        &self,
        resource: &ResourceRef,
        tenant: &TenantName,
    ) -> Result<Option<ResourceRef>, Error> {
        match &*resource.version {
            ANY_VERSION => self.of_name(tenant, &resource.group, &resource.plural).await,
            _ => Ok(Some(resource.clone())),
        }
    }

    /// What a tenant has defined itself.
    async fn own(&self, tenant: &TenantName) -> Result<Arc<Kinds>, Error> {
        if let Some(known) = self.shared.own.lock().get(tenant) {
            return Ok(known.clone());
        }
        let discovery = self.shared.client.tenant(tenant).discover().await?;
        let common = self.shared.common.lock().clone();
        let found = Arc::new(Kinds::of(&discovery, Some(&common)));
        if discovery.failures.is_empty() {
            let mut own = self.shared.own.lock();
            if MAX_TENANTS <= own.len() {
                own.clear();
            }
            own.insert(tenant.clone(), found.clone());
        }
        Ok(found)
    }

    async fn refresh(&self) -> Result<(), Error> {
        let discovery = self.shared.client.system().discover().await?;
        let is_whole = discovery.failures.is_empty();
        let found: BTreeSet<ResourceRef> = discovery
            .resources
            .iter()
            // Events own nothing, nothing owns them, and there are many.
            .filter(|it| it.can(&["list", "watch", "delete"]) && it.resource.plural != "events")
            // What `system` has defined is one of many tenants'.
            .filter(|it| !self.is_defined(&it.resource))
            .map(|it| it.resource.clone())
            .collect();
        // Unknown is not absent: keep what is known until discovery is whole again.
        if is_whole || self.shared.common.lock().by_name.is_empty() {
            *self.shared.common.lock() = Arc::new(Kinds::of(&discovery, None));
        }
        let mut watches = self.shared.watches.lock();
        let Watches { handlers, built_in, slots, .. } = &mut *watches;
        if is_whole {
            keep(built_in, &found, handlers);
        }
        self.watch(built_in, found, slots, handlers);
        Ok(())
    }

    fn is_defined(&self, resource: &ResourceRef) -> bool {
        self.shared.defined.lock().contains_key(&resource.to_string())
    }

    /// Follows which names tenants have defined.
    fn watch_definitions(&self) {
        let definitions = ResourceRef {
            group: Cow::Borrowed("apiextensions.k8s.io"),
            version: Cow::Borrowed("v1"),
            plural: Cow::Borrowed("customresourcedefinitions"),
            kind: Cow::Borrowed("CustomResourceDefinition"),
            namespaced: false,
        };
        // What the platform shares all tenants have.
        let slots = with_platform(&self.shared.watches.lock().slots);
        let informer = self.informer(&definitions, slots, self.shared.shutdown.clone());
        let it = Arc::downgrade(&self.shared);
        informer.on_change(move |change| {
            let Some(shared) = it.upgrade() else { return };
            // A change of any kind may be one of versions.
            shared.own.lock().remove(&change.key.tenant);
            let mut defined = shared.defined.lock();
            let name = change.key.name.to_string();
            match (change.old.is_some(), change.new.is_some()) {
                (false, true) => *defined.entry(name).or_default() += 1,
                (true, false) => {
                    let left = defined.get(&name).copied().unwrap_or(0).saturating_sub(1);
                    match left {
                        0 => drop(defined.remove(&name)),
                        left => drop(defined.insert(name, left)),
                    }
                }
                _ => return,
            }
            shared.redefined.notify_one();
        });
        if self.shared.definitions.set(informer).is_err() {
            tracing::error!("definitions are watched twice");
        }
    }

    /// Watches what somebody has defined, and nothing else.
    fn follow_definitions(&self) {
        let wanted: BTreeSet<ResourceRef> = self
            .shared
            .defined
            .lock()
            .keys()
            .filter_map(|name| name.split_once('.'))
            .map(|(plural, group)| ResourceRef {
                group: Cow::Owned(group.to_owned()),
                version: Cow::Borrowed(ANY_VERSION),
                plural: Cow::Owned(plural.to_owned()),
                kind: Cow::Borrowed(""),
                namespaced: false,
            })
            .collect();
        let mut watches = self.shared.watches.lock();
        let Watches { handlers, custom, slots, .. } = &mut *watches;
        keep(custom, &wanted, handlers);
        self.watch(custom, wanted, slots, handlers);
    }

    fn informer(
        &self,
        resource: &ResourceRef,
        slots: Slots,
        stop: CancellationToken,
    ) -> Informer<PartialObject> {
        let objects = self.shared.client.all().resource::<PartialObject>(resource.clone());
        Informer::builder(objects)
            .slots(slots)
            .trim(|object| {
                object.metadata.labels = None;
                object.metadata.annotations = None;
                object.metadata.managed_fields = None;
            })
            .pack_beyond(N_PLAIN)
            .start(&self.shared.tasks, stop)
    }

    /// Watches what is wanted and not yet watched.
    fn watch(
        &self,
        watched: &mut BTreeMap<ResourceRef, Watched>,
        wanted: BTreeSet<ResourceRef>,
        slots: &Slots,
        handlers: &[Handler],
    ) {
        for resource in wanted {
            watched.entry(resource).or_insert_with_key(|resource| {
                let name = (resource.group.to_string(), resource.plural.to_string());
                let it = match self.shared.copies.get(&name) {
                    Some(copy) => Watched { copy: copy.clone(), stop: None },
                    None => {
                        let stop = self.shared.shutdown.child_token();
                        let copy = Arc::new(self.informer(resource, slots.clone(), stop.clone()));
                        Watched { copy, stop: Some(stop) }
                    }
                };
                for handler in handlers {
                    follow(&it, resource, handler);
                }
                it
            });
        }
    }
}

fn follow(it: &Watched, resource: &ResourceRef, handler: &Handler) {
    let (handler, resource) = (handler.clone(), Arc::new(resource.clone()));
    it.copy.on_change(Box::new(move |change| handler(&resource, change)));
}

/// Stops what is not wanted; its objects are told as gone.
fn keep(
    watched: &mut BTreeMap<ResourceRef, Watched>,
    wanted: &BTreeSet<ResourceRef>,
    handlers: &[Handler],
) {
    watched.retain(|resource, it| {
        let Some(stop) = it.stop.as_ref().filter(|_| !wanted.contains(resource)) else {
            return true;
        };
        stop.cancel();
        let resource = Arc::new(resource.clone());
        it.copy.tell_gone(&|change| handlers.iter().for_each(|handler| handler(&resource, change)));
        false
    });
}
