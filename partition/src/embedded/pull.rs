//! How a member that is too far behind gets the state: raft's snapshot message says only that it
//! must, and from whom; the state itself is fetched in pieces, written down as a checkpoint, and
//! then put in place. Meanwhile the member goes on hearing and answering.
//!
//! ```text
//! first piece:  1 | index u64 | term u64 | revision u64 | membership bytes
//! next pieces:  2 | number u64 | check u64 | row..
//! last piece:   3 | pieces u64 | digest u64
//! ```
//!
//! What is fetched stands for a newer moment than the message tells of; the message is changed to
//! say so. A digest over all pieces makes sure that none is missing or damaged.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use raft::eraftpb::{ConfState, Message};
use raft_prost::Message as _;
use tokio::sync::oneshot;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    checkpoint::Description,
    checkpointer::{Checkpointer, Plan},
    image,
    post::{IMAGE, Post},
    raft_log::{Position, Pull},
};
use crate::{
    codec::{Reader, put_bytes},
    peers::{PeerError, Pieces},
    state::Image,
    store::{Revision, StoreError},
    wal::Wal,
    wire::put_u64s,
};

const FIRST: u8 = 1;
const ROWS: u8 = 2;
const LAST: u8 = 3;

/// A piece is sent once it has this many bytes.
const PIECE: usize = 256 << 10;

/// How long to wait for the next piece.
const PATIENCE: Duration = Duration::from_secs(20);

/// The state of a group with all that it stands for.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) image: Image,
    pub(crate) at: Position,
    pub(crate) conf: ConfState,
    /// Keeps the entries behind it for as long as it is being sent.
    #[allow(dead_code, reason = "it does its work by being there")]
    pub(crate) pull: Pull,
}

/// Where in an image the next piece begins.
struct Cursor {
    offer: Offer,
    collection: usize,
    after: Option<Arc<str>>,
    pieces: u64,
    hasher: Xxh3,
    begun: bool,
    ended: bool,
}

/// The pieces of an image. They are made one by one as they are taken.
pub(crate) fn pieces(offer: Offer) -> BoxStream<'static, Bytes> {
    let cursor = Cursor {
        offer,
        collection: 0,
        after: None,
        pieces: 0,
        hasher: Xxh3::new(),
        begun: false,
        ended: false,
    };
    stream::unfold(cursor, |mut cursor| async move {
        let piece = cursor.next()?;
        // Many pieces may be ready to be taken at once; others should have their turn.
        tokio::task::yield_now().await;
        Some((piece, cursor))
    })
    .boxed()
}

impl Cursor {
    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if !std::mem::replace(&mut self.begun, true) {
            let mut out = vec![FIRST];
            let Offer { image, at, conf, .. } = &self.offer;
            put_u64s(&mut out, [at.index, at.term, image.revision.0]);
            put_bytes(&mut out, &conf.encode_to_vec());
            return Some(out.into());
        }
        let rows = self.rows();
        if rows.is_empty() {
            self.ended = true;
            let mut out = vec![LAST];
            put_u64s(&mut out, [self.pieces, self.hasher.digest()]);
            return Some(out.into());
        }
        let check = xxh3_64(&rows);
        self.hasher.update(&check.to_le_bytes());
        let mut out = Vec::with_capacity(rows.len() + 17);
        out.push(ROWS);
        put_u64s(&mut out, [self.pieces, check]);
        out.extend_from_slice(&rows);
        self.pieces += 1;
        Some(out.into())
    }

    fn rows(&mut self) -> Vec<u8> {
        let mut rows = Vec::new();
        while let Some((collection, entries)) = self.offer.image.collections.get(self.collection) {
            let from = match &self.after {
                Some(after) => std::ops::Bound::Excluded(after.clone()),
                None => std::ops::Bound::Unbounded,
            };
            for (key, entry) in entries.range((from, std::ops::Bound::Unbounded)) {
                image::put_row(&mut rows, collection, key, entry);
                if PIECE <= rows.len() {
                    self.after = Some(key.clone());
                    return rows;
                }
            }
            self.collection += 1;
            self.after = None;
        }
        rows
    }
}

/// Why a state was not fetched. It will be offered again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error("nobody said yet what server the leader is")]
    Unknown,
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("the next piece of the state did not come in time")]
    Timeout,
    #[error("the state ended early")]
    Short,
    #[error("a piece of the state is damaged")]
    Damaged,
    #[error("the state could not be written down")]
    Checkpoint(#[from] StoreError),
}

/// What a state is fetched with.
#[derive(Debug)]
pub(crate) struct Puller {
    pub(crate) partition: String,
    pub(crate) post: Arc<Post>,
    pub(crate) wal: Arc<Wal>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) checkpointer: Arc<Checkpointer>,
}

impl Puller {
    /// Fetches the state that `message` tells of and writes it down. Gives the message changed to
    /// what was fetched.
    pub(crate) async fn pull(&self, mut message: Message) -> Result<(Message, Image), PullError> {
        let server = self.post.name(message.from).ok_or(PullError::Unknown)?;
        let request = self.post.request(IMAGE, &self.partition).into();
        let asked = tokio::time::timeout(PATIENCE, self.post.peers.stream(&server, request));
        let mut pieces = asked.await.map_err(|_| PullError::Timeout)??;
        let piece = next(&mut pieces).await?;
        let (at, conf, revision) = first(&piece).ok_or(PullError::Damaged)?;
        let mut builder = image::Builder::new(revision);
        let (mut count, mut hasher) = (0, Xxh3::new());
        loop {
            let piece = next(&mut pieces).await?;
            let last = add(&piece, &mut builder, &mut count, &mut hasher);
            if last.ok_or(PullError::Damaged)? {
                break;
            }
        }
        let image = builder.finish();

        // Entries behind it will be logged in this segment or later.
        let description = Description::new(at, &conf, self.wal.segment());
        let (done, written) = oneshot::channel();
        self.checkpointer.begin(&self.plan, image.clone(), description, Some(done));
        written.await.unwrap_or_else(|_| Err(super::shut_down()))?;

        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (at.index, at.term);
        metadata.conf_state = Some(conf);
        Ok((message, image))
    }
}

async fn next(pieces: &mut Pieces) -> Result<Bytes, PullError> {
    match tokio::time::timeout(PATIENCE, pieces.next()).await {
        Ok(Some(piece)) => Ok(piece?),
        Ok(None) => Err(PullError::Short),
        Err(_) => Err(PullError::Timeout),
    }
}

fn first(piece: &[u8]) -> Option<(Position, ConfState, Revision)> {
    let mut reader = Reader::new(piece);
    if reader.byte()? != FIRST {
        return None;
    }
    let at = Position { index: reader.u64()?, term: reader.u64()? };
    let revision = Revision(reader.u64()?);
    let conf = ConfState::decode(reader.bytes()?).ok()?;
    Some((at, conf, revision))
}

/// Adds a piece; says whether it was the last one, and all were there.
fn add(
    piece: &[u8],
    builder: &mut image::Builder,
    count: &mut u64,
    hasher: &mut Xxh3,
) -> Option<bool> {
    let mut reader = Reader::new(piece);
    match reader.byte()? {
        ROWS => {
            let (number, check) = (reader.u64()?, reader.u64()?);
            if number != *count || check != xxh3_64(reader.rest()) {
                return None;
            }
            *count += 1;
            hasher.update(&check.to_le_bytes());
            builder.add_rows(reader.rest())?;
            Some(false)
        }
        LAST => ((reader.u64()?, reader.u64()?) == (*count, hasher.digest())).then_some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::{embedded::raft_log::RaftLog, snapshot::Entry};

    fn offer(rows: u64) -> Offer {
        let mut builder = image::Builder::new(Revision(rows));
        for (collection, n) in
            ["core/nodes", "core/pods"].iter().flat_map(|c| (0..rows).map(move |n| (c, n)))
        {
            let value = Bytes::from(vec![b'x'; 1000]);
            let entry = Entry { value: value.into(), modified: Revision(n) };
            builder.add(collection, &format!("t/ns/{n:05}"), entry);
        }
        let at = Position { index: 9, term: 2 };
        let conf = ConfState { voters: vec![1, 2], ..ConfState::default() };
        let mut log = RaftLog::new(at, conf.clone(), Default::default(), VecDeque::new());
        Offer { image: builder.finish(), at, conf, pull: log.keep_for(2) }
    }

    async fn read(pieces: &[Bytes]) -> Option<(Position, Image)> {
        let (at, _, revision) = first(pieces.first()?)?;
        let mut builder = image::Builder::new(revision);
        let (mut count, mut hasher) = (0, Xxh3::new());
        for piece in &pieces[1..] {
            if add(piece, &mut builder, &mut count, &mut hasher)? {
                return Some((at, builder.finish()));
            }
        }
        None
    }

    #[tokio::test]
    async fn a_state_arrives_whole_or_not_at_all() {
        for rows in [0, 1, 2_000] {
            let sent: Vec<_> = pieces(offer(rows)).collect().await;
            let (at, image) = read(&sent).await.unwrap();
            assert_eq!(at.index, 9);
            assert_eq!(image.revision, Revision(rows));
            let counts: Vec<_> = image.collections.iter().map(|(_, rows)| rows.len()).collect();
            assert!(counts.iter().all(|count| *count == rows as usize), "{counts:?}");
            for missing in 0..sent.len() {
                let mut rest = sent.clone();
                rest.remove(missing);
                assert!(read(&rest).await.is_none(), "piece {missing} of {}", sent.len());
            }
            for (at, piece) in sent.iter().enumerate().skip(1) {
                let mut changed = piece.to_vec();
                *changed.last_mut().unwrap() ^= 1;
                let mut all = sent.clone();
                all[at] = changed.into();
                assert!(read(&all).await.is_none());
            }
        }
    }
}
