//! Where frames and requests of other servers arrive, each for the part that its first byte names.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture, stream::BoxStream};

use crate::{
    embedded::{self, Embedded},
    peers::PeerService,
    remote::{self, RemoteService},
};

/// See the module. Parts come as they are opened; what is for one that is not there is refused.
#[derive(Default)]
pub(super) struct Desk {
    pub(super) embedded: OnceLock<Arc<Embedded>>,
    pub(super) remote: OnceLock<RemoteService>,
}

/// Whom something is for.
enum Part<'a> {
    Embedded(&'a Arc<Embedded>),
    Remote(&'a RemoteService),
}

impl Desk {
    fn part(&self, frame: &[u8]) -> Result<Part<'_>, String> {
        let known = match frame.first() {
            Some(&embedded::TAG) => self.embedded.get().map(Part::Embedded),
            Some(&remote::TAG) => self.remote.get().map(Part::Remote),
            _ => return Err("this server does not know what it was asked".into()),
        };
        known.ok_or_else(|| "this server is not ready to answer that yet".into())
    }
}

impl PeerService for Desk {
    fn receive(&self, from: &str, frame: Bytes) {
        if let Ok(Part::Embedded(embedded)) = self.part(&frame) {
            embedded.receive(from, &frame);
        }
    }

    fn answer(&self, from: &str, request: Bytes) -> BoxFuture<'_, Result<Bytes, String>> {
        let from = from.to_owned();
        async move {
            match self.part(&request)? {
                Part::Embedded(embedded) => embedded.answer(&from, request).await,
                Part::Remote(remote) => remote.answer(&request).await,
            }
        }
        .boxed()
    }

    fn pieces(
        &self,
        from: &str,
        request: Bytes,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, String>> {
        let from = from.to_owned();
        async move {
            match self.part(&request)? {
                Part::Embedded(embedded) => embedded.pieces(&from, request).await,
                Part::Remote(remote) => remote.pieces(&request),
            }
        }
        .boxed()
    }
}
