//! What members on different servers say to each other, and who may say it.
//!
//! ```text
//! frame:    head | message..          request: head | kind u8 | partition text | body
//! head:     'E' | version u8 | cluster text | member u64 | starts u64 | lot u64
//! message:  partition text | life u32 | raft's message bytes
//! answer:   0 body | 1 error | 2 (this server does not lead)
//! ```
//!
//! Heartbeats of all groups to one server are gathered for a moment and travel together.
//!
//! # Invariants
//!
//! * Nothing is taken from another cluster, from a server whose number belongs to another name,
//!   or from any but the newest process of a server, see [`super::directory`].
//! * `life` grows each time a server begins anew with a group, so that what it promised in a
//!   former life, before it was let go, never counts for the new one.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use raft::eraftpb::{Message, MessageType};
use raft_prost::Message as _;

use super::directory::Identity;
use crate::{
    codec::{Reader, put_bytes, put_text},
    peers::Peers,
    store::StoreError,
    wal::frame::GroupId,
    wire,
};

/// Every frame and request of the embedded backend begins with this.
pub(crate) const TAG: u8 = b'E';

/// Changes with the layout above.
const VERSION: u8 = 1;

/// How long a heartbeat waits for others to travel with.
const GATHER: Duration = Duration::from_millis(2);

/// A frame is sent once it has this many bytes.
const FRAME: usize = 2 << 20;

/// What a request asks for.
pub(crate) const WRITE: u8 = 1;
pub(crate) const COMPACT: u8 = 2;
pub(crate) const MEMBERS: u8 = 3;
pub(crate) const IMAGE: u8 = 4;
pub(crate) const RAISE: u8 = 5;

/// A message as it came out of a frame.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) partition: String,
    pub(crate) life: GroupId,
    pub(crate) message: Message,
}

/// See the module.
pub(crate) struct Post {
    identity: Identity,
    starts: u64,
    /// Tells two processes apart that think they are the same.
    lot: u64,
    pub(crate) peers: Arc<dyn Peers>,
    servers: RwLock<BTreeMap<u64, Arc<str>>>,
    /// The newest process of each member that was heard of: its count of starts, and its lot.
    heard: Mutex<HashMap<u64, (u64, u64)>>,
    gathering: Mutex<Gathering>,
    called: Condvar,
}

#[derive(Debug, Default)]
struct Gathering {
    /// By member: the messages of a frame.
    heartbeats: BTreeMap<u64, Vec<u8>>,
    stopped: bool,
}

impl std::fmt::Debug for Post {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Post").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Post {
    pub(crate) fn new(
        identity: Identity,
        starts: u64,
        servers: &BTreeMap<u64, String>,
        peers: Arc<dyn Peers>,
    ) -> Arc<Self> {
        let servers = servers.iter().map(|(id, name)| (*id, name.as_str().into())).collect();
        Arc::new(Self {
            identity,
            starts,
            lot: RandomState::new().build_hasher().finish(),
            peers,
            servers: RwLock::new(servers),
            heard: Mutex::default(),
            gathering: Mutex::default(),
            called: Condvar::new(),
        })
    }

    /// Starts the thread that sends what was gathered. It ends with [`Post::stop`].
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<std::thread::JoinHandle<()>> {
        let post = Arc::downgrade(self);
        std::thread::Builder::new().name("heartbeats".into()).spawn(move || run(&post))
    }

    pub(crate) fn stop(&self) {
        self.gathering.lock().stopped = true;
        self.called.notify_all();
    }

    pub(crate) fn member(&self) -> u64 {
        self.identity.member
    }

    /// Learns what servers are called.
    pub(crate) fn know(&self, servers: &BTreeMap<u64, String>) {
        let known = servers.iter().map(|(id, name)| (*id, Arc::from(name.as_str())));
        self.servers.write().extend(known);
    }

    pub(crate) fn name(&self, member: u64) -> Option<Arc<str>> {
        self.servers.read().get(&member).cloned()
    }

    /// The server's name, or its number if nobody said its name yet.
    pub(crate) fn call_it(&self, member: u64) -> String {
        self.name(member).map_or_else(|| format!("number {member}"), |name| name.to_string())
    }

    /// Sends what a member of `partition` has to say.
    pub(crate) fn send(&self, partition: &str, life: GroupId, messages: Vec<Message>) {
        let mut now: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for message in messages {
            let to = message.to;
            if can_wait(&message) {
                let mut gathering = self.gathering.lock();
                let first = gathering.heartbeats.is_empty();
                put_message(gathering.heartbeats.entry(to).or_default(), partition, life, &message);
                if first {
                    self.called.notify_one();
                }
                continue;
            }
            let frame = now.entry(to).or_default();
            put_message(frame, partition, life, &message);
            if FRAME <= frame.len() {
                self.dispatch(to, &std::mem::take(frame));
            }
        }
        for (to, mut messages) in now {
            // In order: what was gathered before goes before.
            if let Some(gathered) = self.gathering.lock().heartbeats.remove(&to) {
                messages.splice(..0, gathered);
            }
            self.dispatch(to, &messages);
        }
    }

    fn dispatch(&self, to: u64, messages: &[u8]) {
        if messages.is_empty() {
            return;
        }
        let Some(name) = self.name(to) else {
            tracing::debug!(member = to, "nobody said yet what server this member is");
            return;
        };
        let mut frame = self.head();
        frame.extend_from_slice(messages);
        self.peers.send(&name, frame.into());
    }

    /// Begins a frame or a request.
    fn head(&self) -> Vec<u8> {
        let mut out = vec![TAG, VERSION];
        put_text(&mut out, &self.identity.cluster);
        for number in [self.identity.member, self.starts, self.lot] {
            wire::put_u64(&mut out, number);
        }
        out
    }

    /// Begins a request about `partition`.
    pub(crate) fn request(&self, kind: u8, partition: &str) -> Vec<u8> {
        let mut out = self.head();
        out.push(kind);
        put_text(&mut out, partition);
        out
    }

    /// Who sent this, if anything may be taken from it.
    fn sender(&self, from: &str, reader: &mut Reader<'_>) -> Result<u64, String> {
        let other = || "it is of another version".to_owned();
        if (reader.byte(), reader.byte()) != (Some(TAG), Some(VERSION)) {
            return Err(other());
        }
        let cluster = reader.text().ok_or_else(other)?;
        if cluster != self.identity.cluster {
            return Err(format!("it belongs to cluster {cluster}, not {}", self.identity.cluster));
        }
        let mut number = || reader.u64().ok_or_else(other);
        let (member, starts, lot) = (number()?, number()?, number()?);
        if member == self.identity.member {
            return Err(format!("it has this server's own number {member}"));
        }
        match self.name(member) {
            Some(name) if *name != *from => {
                return Err(format!("number {member} is server {name}, not {from}"));
            }
            Some(_) => {}
            None => drop(self.servers.write().insert(member, from.into())),
        }
        let mut heard = self.heard.lock();
        let newest = heard.entry(member).or_insert((starts, lot));
        if newest.0 < starts {
            *newest = (starts, lot);
        }
        if *newest != (starts, lot) {
            return Err(format!("another process of server {from} is newer, or was here before"));
        }
        Ok(member)
    }

    /// Takes a frame apart. What must not be taken is dropped, and why is logged.
    pub(crate) fn open_frame(&self, from: &str, frame: &Bytes) -> Vec<Letter> {
        let mut reader = Reader::new(frame);
        let sender = match self.sender(from, &mut reader) {
            Ok(sender) => sender,
            Err(reason) => {
                tracing::warn!(from, reason, "refused a message of another server");
                return Vec::new();
            }
        };
        let mut letters = Vec::new();
        while !reader.is_empty() {
            match letter(&mut reader) {
                Some(letter) if letter.message.from == sender => letters.push(letter),
                // A question that a member that does not lead passed on. Taken for its own it would
                // say that the sender's life is that of the member which asked.
                Some(_) => {}
                None => {
                    tracing::warn!(from, "a message of another server cannot be read");
                    break;
                }
            }
        }
        letters
    }

    /// Takes the head off a request: who asks, for what, of which partition; the rest is its body.
    pub(crate) fn open_request<'a>(
        &self,
        from: &str,
        request: &'a [u8],
    ) -> Result<(u64, u8, &'a str, Reader<'a>), String> {
        let mut reader = Reader::new(request);
        let member = self.sender(from, &mut reader)?;
        let malformed = || "the request cannot be read".to_owned();
        let kind = reader.byte().ok_or_else(malformed)?;
        let partition = reader.text().ok_or_else(malformed)?;
        Ok((member, kind, partition, reader))
    }
}

/// Whether a little later is as good.
fn can_wait(message: &Message) -> bool {
    let kind = message.get_msg_type();
    let heartbeat = matches!(kind, MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse);
    // One with a context is a round of reads, and somebody waits for it.
    heartbeat && message.context.is_empty()
}

fn put_message(out: &mut Vec<u8>, partition: &str, life: GroupId, message: &Message) {
    put_text(out, partition);
    out.extend_from_slice(&life.to_le_bytes());
    put_bytes(out, &message.encode_to_vec());
}

fn letter(reader: &mut Reader<'_>) -> Option<Letter> {
    let partition = reader.text()?.to_owned();
    let life = reader.u32()?;
    let message = Message::decode(reader.bytes()?).ok()?;
    Some(Letter { partition, life, message })
}

fn run(post: &Weak<Post>) {
    loop {
        let Some(post) = post.upgrade() else { return };
        let mut gathering = post.gathering.lock();
        if gathering.stopped {
            return;
        }
        if gathering.heartbeats.is_empty() {
            // Now and then it looks whether anybody still needs it.
            post.called.wait_for(&mut gathering, Duration::from_secs(1));
            continue;
        }
        drop(gathering);
        std::thread::sleep(GATHER);
        let gathered = std::mem::take(&mut post.gathering.lock().heartbeats);
        for (to, messages) in gathered {
            post.dispatch(to, &messages);
        }
    }
}

/// What a request to the leader gave.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    Done(Result<T, StoreError>),
    /// Nothing was done: the server that was asked does not lead.
    NotLeader,
}

impl<T> Answer<T> {
    pub(crate) fn encode(self, put: impl FnOnce(&mut Vec<u8>, &T)) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Done(Ok(value)) => {
                out.push(0);
                put(&mut out, &value);
            }
            Self::Done(Err(error)) => {
                out.push(1);
                wire::put_error(&mut out, &error);
            }
            Self::NotLeader => out.push(2),
        }
        out.into()
    }

    /// `None` if it cannot be read.
    pub(crate) fn decode(
        answer: &[u8],
        read: impl FnOnce(&mut Reader<'_>) -> Option<T>,
    ) -> Option<Self> {
        let mut reader = Reader::new(answer);
        Some(match reader.byte()? {
            0 => Self::Done(Ok(read(&mut reader)?)),
            1 => Self::Done(Err(wire::read_error(&mut reader)?)),
            2 => Self::NotLeader,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::Nobody;

    fn post(cluster: &str, server: &str, member: u64, starts: u64) -> Arc<Post> {
        let identity = Identity { cluster: cluster.into(), server: server.into(), member };
        let servers = BTreeMap::from([(1, "s1".into()), (2, "s2".into())]);
        Post::new(identity, starts, &servers, Arc::new(Nobody))
    }

    /// Whether `to` takes a frame with one message of `from`, which travels as the server `name`.
    fn takes(to: &Post, from: &Post, name: &str) -> bool {
        let mut frame = from.head();
        put_message(&mut frame, "p1", 7, &Message { from: 2, to: 1, ..Message::default() });
        let letters = to.open_frame(name, &frame.into());
        letters.iter().all(|letter| (&*letter.partition, letter.life) == ("p1", 7))
            && letters.len() == 1
    }

    #[test]
    fn only_the_newest_process_of_a_known_server_is_heard() {
        let ours = post("c", "s1", 1, 1);
        assert!(takes(&ours, &post("c", "s2", 2, 4), "s2"));
        // A copy of the directory that was started as often, and one that lags behind.
        assert!(!takes(&ours, &post("c", "s2", 2, 4), "s2"));
        assert!(!takes(&ours, &post("c", "s2", 2, 3), "s2"));
        let restarted = post("c", "s2", 2, 5);
        assert!(takes(&ours, &restarted, "s2") && takes(&ours, &restarted, "s2"));
        // Another name for a number, another cluster, and this server's own number.
        assert!(!takes(&ours, &post("c", "s3", 2, 9), "s3"));
        assert!(!takes(&ours, &post("d", "s2", 2, 9), "s2"));
        assert!(!takes(&ours, &post("c", "s4", 1, 9), "s4"));
    }

    #[test]
    fn noise_is_nothing() {
        let ours = post("c", "s1", 1, 1);
        let sender = post("c", "s2", 2, 1);
        let whole = sender.request(WRITE, "p1");
        for length in 0..whole.len() {
            assert!(ours.open_request("s2", &whole[..length]).is_err());
        }
        let mut frame = sender.head();
        frame.extend_from_slice(b"not a message");
        assert!(ours.open_frame("s2", &frame.into()).is_empty());
    }
}
