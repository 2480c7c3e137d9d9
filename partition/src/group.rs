//! One embedded partition without a map around it: a raft group whose members are named by hand.
//! For benches and for tests of faults; servers have [`crate::partitions::Partitions`].

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture, stream::BoxStream};

use crate::{
    embedded::{Embedded, EmbeddedOptions, EmbeddedStore, Identity},
    error::OpenError,
    peers::{PeerService, Peers},
    store::{Store, StoreError},
    wal::LogCounts,
};

const NAME: &str = "p1";

/// This process's member of the group.
#[derive(Debug)]
pub struct GroupMember {
    embedded: Arc<Embedded>,
    store: Arc<EmbeddedStore>,
}

impl GroupMember {
    /// Opens member number `member` in the directory `dir`; `servers` names all members, which
    /// must be the same everywhere and always.
    pub async fn open(
        dir: &Path,
        member: u64,
        servers: &BTreeMap<u64, String>,
        peers: Arc<dyn Peers>,
    ) -> Result<Arc<Self>, OpenError> {
        let Some(server) = servers.get(&member).cloned() else {
            let what = format!("number {member} is none of the members");
            return Err(OpenError::Config { what });
        };
        let identity = Identity { cluster: "group".into(), server, member };
        let (dir, way) = (dir.to_owned(), peers.clone());
        let open = move || Embedded::open(&dir, &identity, way, &EmbeddedOptions::default());
        let cut_short = |error| OpenError::Config { what: format!("cut short: {error}") };
        let embedded = tokio::task::spawn_blocking(open).await.map_err(cut_short)??;
        embedded.create(NAME, servers).await?;
        let Some(store) = embedded.store(NAME) else {
            return Err(OpenError::Config { what: "the group is gone".into() });
        };
        let group = Arc::new(Self { embedded, store });
        let service: Arc<dyn PeerService> = group.clone();
        peers.deliver_to(Arc::downgrade(&service));
        Ok(group)
    }

    pub fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// Whether this member decides the order of writes now.
    pub fn leads(&self) -> bool {
        self.store.standing().leads
    }

    /// What the log did since it was opened.
    pub fn log_counts(&self) -> LogCounts {
        self.embedded.log_counts()
    }

    /// Hands over the lead and ends in good order.
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        self.embedded.clone().shutdown().await
    }
}

impl PeerService for GroupMember {
    fn receive(&self, from: &str, frame: Bytes) {
        self.embedded.receive(from, &frame);
    }

    fn answer(&self, from: &str, request: Bytes) -> BoxFuture<'_, Result<Bytes, String>> {
        let from = from.to_owned();
        async move { self.embedded.answer(&from, request).await }.boxed()
    }

    fn pieces(
        &self,
        from: &str,
        request: Bytes,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, String>> {
        let from = from.to_owned();
        async move { self.embedded.pieces(&from, request).await }.boxed()
    }
}
