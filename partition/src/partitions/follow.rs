//! Keeps what is open in step with the map, and the map in step with `meta`.

use std::{sync::Arc, time::Duration};

use super::{Held, META, Shared, stored_map};
use crate::{
    error::chain,
    etcd::{EtcdConfig, EtcdStore},
    map::{Backend, PartitionInfo},
    ring::RingLimits,
    store::StoreError,
};

/// How long to wait before trying again what failed.
const PAUSE: Duration = Duration::from_millis(500);

/// Follows until the task is ended.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        if let Err(error) = follow(&shared).await {
            tracing::debug!(error = chain(&error), "lost the partition map; reading it again");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let mut after = shared.meta.progress();
    loop {
        if let Some((map, _)) = stored_map::read_map(&*shared.meta).await? {
            shared.adopt(map);
        }
        let all_open = step(shared).await;
        let mut watcher = shared.meta.watch(&stored_map::map_collection(), after)?;
        let changed = watcher.next();
        let limit = if all_open { Duration::from_secs(60) } else { PAUSE };
        if let Ok(events) = tokio::time::timeout(limit, changed).await {
            after = events?.last().map_or(after, |event| event.revision);
        }
    }
}

/// Opens what the map has and closes what it no longer has. Whether all of it was done.
async fn step(shared: &Arc<Shared>) -> bool {
    let map = shared.view.load().map.clone();
    let mut all = true;
    let mut changed = false;
    for info in map.infos() {
        if shared.open.lock().contains_key(&info.name) {
            continue;
        }
        match open(shared, info).await {
            Ok(Some(held)) => {
                shared.open.lock().insert(info.name.clone(), held);
                changed = true;
            }
            Ok(None) => all = false,
            Err(error) => {
                tracing::warn!(partition = info.name, error = chain(&error), "not open yet");
                all = false;
            }
        }
    }
    let gone: Vec<_> = {
        let mut open = shared.open.lock();
        let gone = open.extract_if(|name, _| name != META && map.info(name).is_none());
        gone.map(|(_, held)| held).collect()
    };
    for held in gone {
        changed = true;
        if let Err(error) = held.store.shutdown().await {
            tracing::warn!(partition = %held.name, error = chain(&error), "could not be closed");
        }
    }
    if changed {
        shared.refresh();
    }
    all
}

async fn open(
    shared: &Arc<Shared>,
    info: &PartitionInfo,
) -> Result<Option<Held>, crate::error::OpenError> {
    match &info.backend {
        Backend::Embedded => Ok(None),
        Backend::Etcd(place) => {
            let access = &shared.config.etcd;
            let access = access.get(&info.name).or_else(|| access.get("*"));
            let config = EtcdConfig::of(place, access);
            let store = EtcdStore::open(&info.name, &config, RingLimits::default()).await?;
            let map = shared.map();
            store.identify(Some(map.cluster()), map.cluster()).await?;
            let name = info.name.as_str().into();
            Ok(Some(Held { name, store: Arc::new(store), local: true }))
        }
    }
}
