//! Keeps what is open in step with the map, and the map in step with `meta`.
//!
//! Each pass compares what is there with what the map wants and does what is missing; what takes
//! long goes on beside it. A pass that could not do everything is repeated soon.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::watch;

use super::{
    Shared,
    open::{access, servers_of},
    stored_map,
    view::Held,
};
use crate::{
    embedded::Embedded,
    error::{OpenError, chain},
    etcd::{self, EtcdConfig},
    map::{Backend, PartitionInfo, PartitionMap},
    remote::RemoteStore,
    ring::RingLimits,
    store::{Store, StoreError},
};

/// How long to wait before trying again what failed.
const PAUSE: Duration = Duration::from_millis(250);

/// How long to wait before trying an etcd again that could not be opened.
const ETCD_PAUSE: Duration = Duration::from_secs(2);

/// How often to look even if nothing says that anything changed.
const LOOK: Duration = Duration::from_secs(2);

/// How often an etcd's history is cut.
const COMPACT: Duration = Duration::from_secs(300);

/// Follows until the task is ended.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut told = String::new();
    loop {
        match follow(&shared).await {
            Err(error @ StoreError::Damaged { .. }) => {
                let text = chain(&error);
                if text != told {
                    tracing::error!(
                        error = text,
                        "the stored partition map cannot be used; the last good one is in force"
                    );
                    told = text;
                }
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "lost the partition map; reading it again");
            }
            Ok(()) => {}
        }
        step(&shared).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow(shared: &Arc<Shared>) -> Result<(), StoreError> {
    loop {
        let meta = shared.meta();
        let after = meta.progress();
        if let Some((map, _)) = stored_map::read_map(&*meta).await? {
            shared.adopt(map);
            shared.confirmed.store(true, Ordering::Release);
        }
        let done = step(shared).await;
        let mut watcher = meta.watch(&stored_map::map_collection(), after)?;
        let limit = if done { LOOK } else { PAUSE };
        if let Ok(changed) = tokio::time::timeout(limit, watcher.next()).await {
            changed?;
        }
    }
}

/// One pass. Whether everything is as it should be.
pub(super) async fn step(shared: &Arc<Shared>) -> bool {
    let map = shared.map();
    if let Some(embedded) = &shared.embedded {
        let servers = map.servers().iter().map(|it| (it.id, it.name.clone())).collect();
        if let Err(error) = embedded.know(servers).await {
            tracing::warn!(error = chain(&error), "names of servers could not be kept");
        }
    }
    let mut done = true;
    for info in std::iter::once(map.meta()).chain(map.infos()) {
        match place(shared, &map, info).await {
            Ok(as_wanted) => done &= as_wanted,
            Err(error) => {
                tracing::warn!(partition = info.name, error = chain(&error), "not as wanted yet");
                shared.failed(&info.name, chain(&error));
                done = false;
            }
        }
    }
    close_gone(shared, &map).await;
    shared.refresh();
    if let Err(error) = tell(shared, &map).await {
        tracing::debug!(error = chain(&error), "could not say what is ready here");
        done = false;
    }
    done
}

/// Opens a partition in the way that the map wants. Whether it is open in that way.
async fn place(
    shared: &Arc<Shared>,
    map: &PartitionMap,
    info: &PartitionInfo,
) -> Result<bool, OpenError> {
    match &info.backend {
        Backend::Etcd(place) => {
            if !shared.is_open(&info.name) && shared.begin_opening(&info.name) {
                let config = EtcdConfig::of(place, access(&shared.config, &info.name));
                tokio::spawn(open_etcd(shared.clone(), info.name.clone(), config));
            }
            Ok(shared.is_open(&info.name))
        }
        Backend::Embedded => match &shared.embedded {
            Some(embedded) => place_embedded(shared, embedded, map, info).await,
            None if shared.is_local(&info.name) => Ok(true),
            None => {
                elsewhere(shared, map, info);
                Ok(true)
            }
        },
    }
}

async fn open_etcd(shared: Arc<Shared>, name: String, config: EtcdConfig) {
    match open_one(&shared, &name, &config).await {
        Ok(store) => {
            shared.put(Held { name: name.as_str().into(), store, local: true });
            shared.refresh();
        }
        Err(error) => {
            tracing::error!(partition = name, error = chain(&error), "could not be opened");
            shared.failed(&name, chain(&error));
            tokio::time::sleep(ETCD_PAUSE).await;
        }
    }
    shared.end_opening(&name);
}

/// Opens an etcd and makes sure that it is the right one.
pub(super) async fn open_one(
    shared: &Shared,
    name: &str,
    config: &EtcdConfig,
) -> Result<Arc<dyn Store>, OpenError> {
    etcd::open_partition(name, config, shared.map().cluster(), &shared.config.vault).await
}

async fn place_embedded(
    shared: &Arc<Shared>,
    embedded: &Arc<Embedded>,
    map: &PartitionMap,
    info: &PartitionInfo,
) -> Result<bool, OpenError> {
    let server = shared.config.server.as_str();
    let me = map.server(server).map(|it| it.id);
    let wanted = info.servers.iter().any(|it| it == server);
    let here = embedded.store(&info.name);
    match (here, wanted, me) {
        (None, true, Some(me)) => {
            if info.first.contains(&me) {
                embedded.create(&info.name, &names(map, &info.first)).await?;
            } else {
                // Asked elsewhere until the group has taken this member in.
                elsewhere(shared, map, info);
                embedded.join(&info.name).await?;
            }
            Ok(false)
        }
        (None, _, _) => {
            elsewhere(shared, map, info);
            Ok(true)
        }
        (Some(store), wanted, me) => {
            let standing = store.standing();
            let is_member = me.is_some_and(|me| standing.voters.contains(&me));
            if is_member && !shared.is_local(&info.name) {
                shared.put(Held { name: info.name.as_str().into(), store, local: true });
            } else if !is_member
                && !wanted
                && info.is_settled()
                && !standing.voters.is_empty()
                && shared.confirmed.load(Ordering::Acquire)
            {
                // The group goes on without this member, and needs it no longer: before it is
                // settled, this one's vote may be the one that lets others lead.
                elsewhere(shared, map, info);
                shared.refresh();
                embedded.remove(&info.name).await?;
                return Ok(true);
            } else if !is_member {
                elsewhere(shared, map, info);
            }
            let as_wanted = change_members(shared, embedded, map, info);
            Ok(is_member == wanted && as_wanted)
        }
    }
}

fn names(map: &PartitionMap, ids: &[u64]) -> BTreeMap<u64, String> {
    let servers = map.servers().iter().filter(|server| ids.contains(&server.id));
    servers.map(|server| (server.id, server.name.clone())).collect()
}

/// Has the group's leader make its members those that the map wants. Whether they are.
fn change_members(
    shared: &Arc<Shared>,
    embedded: &Arc<Embedded>,
    map: &PartitionMap,
    info: &PartitionInfo,
) -> bool {
    let wanted: BTreeMap<u64, String> = map
        .servers()
        .iter()
        .filter(|server| info.servers.contains(&server.name))
        .map(|server| (server.id, server.name.clone()))
        .collect();
    let Some(standing) = embedded.standing(&info.name) else { return true };
    let as_wanted = standing.voters.iter().eq(wanted.keys()) && info.is_settled();
    let leads = embedded.leader(&info.name).as_deref() == Some(&shared.config.server);
    if as_wanted || !leads || wanted.is_empty() {
        return as_wanted;
    }
    if shared.begin_opening(&info.name) {
        let (shared, embedded, name) = (shared.clone(), embedded.clone(), info.name.clone());
        let servers = info.servers.clone();
        tokio::spawn(async move {
            let changed = embedded.change_members(&name, &wanted).await;
            if changed.is_ok() {
                tracing::info!(partition = name, members = ?wanted, "members changed");
                let settled = shared.change_map(|map| map.with_settled(&name, &servers)).await;
                if let Err(error) = settled {
                    // Found out anew with the next look.
                    tracing::debug!(partition = name, error = chain(&error), "not noted");
                }
            }
            if let Err(error) = changed {
                tracing::warn!(partition = name, error = chain(&error), "members not changed");
                tokio::time::sleep(PAUSE).await;
            }
            shared.end_opening(&name);
        });
    }
    false
}

/// Reaches a partition through the servers that have it.
fn elsewhere(shared: &Arc<Shared>, map: &PartitionMap, info: &PartitionInfo) {
    let mut servers = servers_of(map, info);
    servers.retain(|name| *name != shared.config.server);
    let mut remote = shared.remote.lock();
    match remote.get(&info.name) {
        Some(known) if !shared.is_local(&info.name) && shared.is_open(&info.name) => {
            known.send_if_modified(|known| {
                let changed = *known != servers && !servers.is_empty();
                if changed {
                    *known = servers;
                }
                changed
            });
        }
        _ => {
            let (known, names) = watch::channel(servers);
            let (name, peers) = (info.name.as_str(), shared.config.peers.clone());
            let vault = &shared.config.vault;
            let store = RemoteStore::new(name, peers, names, RingLimits::default(), vault);
            remote.insert(info.name.clone(), known);
            drop(remote);
            shared.put(Held { name: name.into(), store: Arc::new(store), local: false });
        }
    }
}

/// Closes what the map no longer has.
async fn close_gone(shared: &Arc<Shared>, map: &PartitionMap) {
    let gone: Vec<_> = {
        let mut open = shared.open.lock();
        let gone = open.extract_if(|name, _| map.info(name).is_none());
        gone.map(|(_, held)| held).collect()
    };
    if !gone.is_empty() {
        shared.refresh();
    }
    for held in gone {
        shared.remote.lock().remove(&*held.name);
        if let Err(error) = held.store.shutdown().await {
            tracing::warn!(partition = %held.name, error = chain(&error), "could not be closed");
        }
    }
    let Some(embedded) = &shared.embedded else { return };
    // By an old map a partition that came later must not be taken for one that is gone.
    if !shared.confirmed.load(Ordering::Acquire) || map.epoch() != shared.map().epoch() {
        return;
    }
    for name in embedded.groups() {
        if map.info(&name).is_none()
            && let Err(error) = embedded.remove(&name).await
        {
            tracing::warn!(partition = name, error = chain(&error), "could not be removed");
        }
    }
}

/// Says in the map where this server is, and what it has.
async fn tell(shared: &Arc<Shared>, map: &PartitionMap) -> Result<(), super::ChangeError> {
    let (name, address) = (&shared.config.server, &shared.config.address);
    let mut ready: Vec<String> = {
        let open = shared.open.lock();
        open.values().filter(|held| held.local).map(|held| held.name.to_string()).collect()
    };
    ready.sort();
    let told = map.server(name).is_some_and(|it| it.ready == ready && it.address == *address);
    // A server that an operator took out stays out until it is started anew.
    let removed = map.server(name).is_none() && shared.embedded.is_some();
    if !told && !removed {
        let change = shared
            .change_map(|map| map.with_server(name, address)?.with_ready(name, ready.clone()));
        change.await?;
    }
    Ok(())
}

/// Cuts the history of etcds that hold nothing but this cluster, until the task is ended.
pub(super) async fn compact(shared: Arc<Shared>) {
    let mut last: BTreeMap<String, crate::store::Revision> = BTreeMap::new();
    loop {
        tokio::time::sleep(COMPACT).await;
        let map = shared.map();
        let mut seen = BTreeMap::new();
        for info in std::iter::once(map.meta()).chain(map.infos()) {
            let Some(store) = shared.store(&info.name) else { continue };
            if !matches!(info.backend, Backend::Etcd(_)) {
                continue;
            }
            seen.insert(info.name.clone(), store.progress());
            if let Some(before) = last.get(&info.name)
                && let Err(error) = store.compact(*before).await
            {
                tracing::debug!(partition = info.name, error = chain(&error), "not compacted");
            }
        }
        last = seen;
    }
}
