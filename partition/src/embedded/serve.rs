//! The receiving end of what members on other servers send and ask.

use bytes::Bytes;
use futures::{FutureExt, stream::BoxStream};
use tokio::{sync::oneshot, time::timeout};

use super::{
    Embedded, EmbeddedStore, Refusal,
    post::{Answer, COMPACT, IMAGE, MEMBERS, RAISE, WRITE},
    pull,
    writer::{Control, MembersProgress},
};
use crate::{
    codec::Reader,
    store::{Revision, StoreError},
    wire,
};

use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// How long a member may take to hand out its state.
const OFFER: Duration = Duration::from_secs(10);

impl Embedded {
    /// Takes in a frame of the server `from`. Never blocks. What it must not take in it drops.
    pub(crate) fn receive(&self, from: &str, frame: &Bytes) {
        let mut letters = self.post.open_frame(from, frame).into_iter().peekable();
        let groups = self.groups.read();
        while let Some(letter) = letters.next() {
            let partition = letter.partition;
            let mut messages = vec![(letter.life, letter.message)];
            while let Some(next) = letters.next_if(|next| next.partition == partition) {
                messages.push((next.life, next.message));
            }
            match groups.get(&partition) {
                // It is gone when it was just shut down.
                Some(group) => drop(group.store.control.send(Control::Messages(messages))),
                None => {
                    tracing::debug!(from, partition, "a message for a group without a member here")
                }
            }
        }
    }

    /// Answers a request of the server `from`; a refusal is its text.
    pub(crate) async fn answer(&self, from: &str, request: Bytes) -> Result<Bytes, String> {
        let (_, kind, partition, mut body) = self.post.open_request(from, &request)?;
        let store = self.named(partition)?;
        let malformed = || "the request cannot be read".to_owned();
        Ok(match kind {
            WRITE => {
                let write = wire::read_write(&mut body).ok_or_else(malformed)?;
                answer(store.write_here(write).await, wire::put_committed)
            }
            COMPACT | RAISE => {
                let revision = Revision(body.u64().ok_or_else(malformed)?);
                let done = if kind == COMPACT {
                    store.compact_here(revision).await
                } else {
                    store.raise_here(revision).await
                };
                answer(done, |_, ()| {})
            }
            MEMBERS => {
                let target = read_members(&mut body).ok_or_else(malformed)?;
                answer(store.step_here(target).await, put_progress)
            }
            _ => return Err("the request is of another version".into()),
        })
    }

    /// Answers a request of the server `from` with pieces.
    pub(crate) async fn pieces(
        &self,
        from: &str,
        request: Bytes,
    ) -> Result<BoxStream<'static, Bytes>, String> {
        let (member, kind, partition, _) = self.post.open_request(from, &request)?;
        if kind != IMAGE {
            return Err("the request is of another version".into());
        }
        let store = self.named(partition)?;
        let (reply, offer) = oneshot::channel();
        let gone = || format!("partition {partition} was shut down");
        store.control.send(Control::Offer(member, reply)).map_err(|_| gone())?;
        match timeout(OFFER, offer).await {
            Ok(Ok(offer)) => Ok(pull::pieces(offer)),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err("this member's disk is too slow".into()),
        }
    }

    fn named(&self, partition: &str) -> Result<Arc<EmbeddedStore>, String> {
        self.store(partition).ok_or_else(|| format!("partition {partition} has no member here"))
    }
}

impl EmbeddedStore {
    /// One step of a change of members, done by whoever leads.
    pub(super) async fn step_members(
        &self,
        target: &BTreeSet<u64>,
    ) -> Result<MembersProgress, StoreError> {
        let request = || {
            let mut out = self.post.request(MEMBERS, &self.name);
            target.iter().for_each(|id| wire::put_u64(&mut out, *id));
            out.into()
        };
        let here = || self.step_here(target.clone()).boxed();
        self.decide(here, request, read_progress).await
    }

    async fn step_here(&self, target: BTreeSet<u64>) -> Result<MembersProgress, Refusal> {
        let (reply, outcome) = oneshot::channel();
        self.control.send(Control::Members(target, reply)).map_err(|_| super::shut_down())?;
        outcome.await.unwrap_or_else(|_| Err(super::shut_down().into()))
    }
}

fn answer<T>(outcome: Result<T, Refusal>, put: impl FnOnce(&mut Vec<u8>, &T)) -> Bytes {
    let answer = match outcome {
        Ok(value) => Answer::Done(Ok(value)),
        Err(Refusal::Failed(error)) => Answer::Done(Err(error)),
        Err(Refusal::NotLeader) => Answer::NotLeader,
    };
    answer.encode(put)
}

fn read_members(body: &mut Reader<'_>) -> Option<BTreeSet<u64>> {
    let mut members = BTreeSet::new();
    while !body.is_empty() {
        members.insert(body.u64()?);
    }
    Some(members)
}

fn put_progress(out: &mut Vec<u8>, progress: &MembersProgress) {
    let (kind, text) = match progress {
        MembersProgress::Done => (0, ""),
        MembersProgress::Working(what) => (1, what.as_str()),
        MembersProgress::Refused(why) => (2, why.as_str()),
    };
    out.push(kind);
    crate::codec::put_bytes(out, text.as_bytes());
}

fn read_progress(reader: &mut Reader<'_>) -> Option<MembersProgress> {
    let kind = reader.byte()?;
    let text = std::str::from_utf8(reader.bytes()?).ok()?.to_owned();
    Some(match kind {
        0 => MembersProgress::Done,
        1 => MembersProgress::Working(text),
        2 => MembersProgress::Refused(text),
        _ => return None,
    })
}
