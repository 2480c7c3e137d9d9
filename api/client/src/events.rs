//! Records what happened to an object as Events that users can read.
//!
//! Recording never blocks and never fails: events wait in a bounded queue, and one task writes
//! them. Repeats of an event raise the `count` of the first; those that differ in their messages
//! alone do so too once there are some. One object cannot flood: after a burst its events are
//! admitted slowly. All of that is as upstream does it. An event is written by the epoch in which it
//! was recorded: who was replaced says nothing any more.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use insula_api::names::TenantName;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Client, Kind, Patch, Tenanted, chain, fence::Fence};

/// Events waiting to be written.
const MAX_WAITING: usize = 4096;
/// Events remembered, to count their repeats.
const MAX_REMEMBERED: usize = 4096;
/// Events one object may cause at once, and how long until it may cause one more.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// So many events that differ in their messages alone are one, until there was none for a while.
const SIMILAR: usize = 10;
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
const COMBINED: &str = "(combined from similar events): ";
/// The longest message that the API accepts.
const MAX_MESSAGE: usize = 1024;
/// How long writing goes on after shutdown began.
const DRAIN: Duration = Duration::from_secs(3);

/// Whether an event is good news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        })
    }
}

/// Records events under one component's name. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventRecorder {
    component: Arc<str>,
    host: Arc<str>,
    queue: mpsc::Sender<Occurrence>,
    n_dropped: Arc<AtomicU64>,
}

/// What the event is made of when it is written: of these thousands may wait, and an event takes
/// several times the room.
#[derive(Debug)]
struct Occurrence {
    tenant: TenantName,
    about: ObjectReference,
    event_type: EventType,
    reason: Box<str>,
    message: Box<str>,
    component: Arc<str>,
    host: Arc<str>,
    at: Timestamp,
    /// By which it may be written, if that is limited.
    fence: Option<Fence>,
}

impl EventRecorder {
    /// Starts the writing task, which ends after `shutdown` once its queue is written.
    ///
    /// `component` is the source that users see, such as `replicaset-controller`; `host` may be
    /// empty.
    pub fn start(
        client: Client,
        component: &str,
        host: &str,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let writer = Writer { client, memory: Memory::default() };
        tasks.spawn(writer.run(waiting, shutdown));
        let n_dropped = Arc::default();
        Self { component: component.into(), host: host.into(), queue, n_dropped }
    }

    /// The component and the host in whose name it records.
    pub fn name(&self) -> (&str, &str) {
        (&self.component, &self.host)
    }

    /// The same queue under another component's name.
    pub fn named(&self, component: &str) -> Self {
        Self { component: component.into(), ..self.clone() }
    }

    /// Records that something happened to `object`.
    pub fn record<K: Kind>(
        &self,
        object: &Tenanted<K>,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record_about(&object.tenant, reference(object), event_type, reason, message.into());
    }

    /// Records that something happened to the object that `about` names, for example to a
    /// container of a pod.
    pub fn record_about(
        &self,
        tenant: &TenantName,
        about: ObjectReference,
        event_type: EventType,
        reason: &str,
        message: String,
    ) {
        let occurrence = Occurrence {
            tenant: tenant.clone(),
            about,
            event_type,
            reason: reason.into(),
            message: cut(message).into(),
            component: self.component.clone(),
            host: self.host.clone(),
            at: Timestamp::now(),
            fence: Fence::current(),
        };
        if let Err(error) = self.queue.try_send(occurrence) {
            // In a burst there are thousands: told when there are twice as many.
            let n_dropped = self.n_dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if n_dropped.is_power_of_two() {
                tracing::warn!(component = %self.component, reason, n_dropped, %error, "events dropped");
            }
        }
    }
}

impl Occurrence {
    fn event(self) -> Event {
        let Self { about, at, component, host, .. } = self;
        let namespace = about.namespace.clone().filter(|it| !it.is_empty());
        let name = about.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", at.as_nanosecond())),
                // Events about objects outside namespaces are kept in the first one.
                namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
                ..ObjectMeta::default()
            },
            involved_object: about,
            reason: Some(self.reason.into()),
            message: Some(self.message.into()),
            type_: Some(self.event_type.to_string()),
            source: Some(EventSource {
                component: Some(component.to_string()),
                host: Some(host.to_string()).filter(|host| !host.is_empty()),
            }),
            reporting_component: Some(component.to_string()),
            reporting_instance: Some(host.to_string()),
            first_timestamp: Some(Time(at)),
            last_timestamp: Some(Time(at)),
            count: Some(1),
            ..Event::default()
        }
    }
}

/// Names an object as events, bindings and the like do.
fn reference<K: Kind>(object: &Tenanted<K>) -> ObjectReference {
    let resource = K::resource();
    let meta = object.object.meta();
    ObjectReference {
        api_version: Some(resource.api_version()),
        kind: Some(resource.kind.into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// Cuts a message to what the API accepts, between characters.
fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE - 3).rev().find(|&at| message.is_char_boundary(at));
        message.truncate(end.unwrap_or_default());
        message.push_str("...");
    }
    message
}

/// The task that writes.
struct Writer {
    client: Client,
    memory: Memory,
}

impl Writer {
    async fn run(mut self, mut waiting: mpsc::Receiver<Occurrence>, shutdown: CancellationToken) {
        loop {
            let occurrence = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                occurrence = waiting.recv() => occurrence,
            };
            match occurrence {
                Some(occurrence) => self.write_fenced(occurrence).await,
                None => return,
            }
        }
        waiting.close();
        let drain = async {
            while let Some(occurrence) = waiting.recv().await {
                self.write_fenced(occurrence).await;
            }
        };
        if tokio::time::timeout(DRAIN, drain).await.is_err() {
            tracing::warn!(n_lost = waiting.len(), "events lost at shutdown");
        }
    }

    async fn write_fenced(&mut self, mut occurrence: Occurrence) {
        let fence = occurrence.fence.take();
        let write = Box::pin(self.write(occurrence));
        match fence {
            Some(fence) => fence.around(write).await,
            None => write.await,
        }
    }

    async fn write(&mut self, occurrence: Occurrence) {
        let tenant = occurrence.tenant.clone();
        let mut event = occurrence.event();
        let now = Instant::now();
        let mut identity = Identity::of(&self.memory.hasher, &tenant, &event);
        if self.memory.combines(identity, now) {
            let message = event.message.unwrap_or_default();
            event.message = Some(cut(format!("{COMBINED}{message}")));
            identity.whole = identity.alike;
        }
        let verdict = self.memory.admit(identity, now);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let events = self.client.tenant(&tenant).namespaced::<Event>(&namespace);
        let written = match verdict {
            Verdict::Drop => return,
            Verdict::Count { name, count } => {
                let patch = Patch::Strategic(json!({
                    "count": count,
                    "lastTimestamp": event.last_timestamp,
                    "message": event.message,
                }));
                match events.patch(&name, &patch).await {
                    // It expired meanwhile: begin a new one.
                    Err(error) if error.is_not_found() => events.create(&event).await,
                    other => other,
                }
            }
            Verdict::Create => events.create(&event).await,
        };
        match written {
            Ok(written) => self.memory.remember(
                identity,
                written.name().to_owned(),
                written.count.unwrap_or(1),
                Instant::now(),
            ),
            // Expected at the end of a namespace or tenant; events are not worth a retry.
            Err(error) => tracing::debug!(error = chain(&error), "event not written"),
        }
    }
}

/// What an event is known by: hashes of 64 bits by a key of this process, so that the memory of
/// thousands of them is small, and two are not taken for one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    /// The object that it is about and who saw it: the unit of flood protection.
    origin: u64,
    /// All but the message, and but the part of the object.
    alike: u64,
    message: u64,
    /// Events with the same are repeats of one another.
    whole: u64,
}

impl Identity {
    fn of(hasher: &RandomState, tenant: &TenantName, event: &Event) -> Self {
        let about = &event.involved_object;
        let origin = hasher.hash_one((
            tenant,
            &event.metadata.namespace,
            &event.reporting_component,
            &about.kind,
            &about.name,
            &about.uid,
        ));
        let alike = hasher.hash_one((origin, &event.type_, &event.reason));
        let message = hasher.hash_one(&event.message);
        Self { origin, alike, message, whole: hasher.hash_one((alike, &about.field_path, message)) }
    }
}

/// Messages, as their hashes, that events have had that are alike in all else.
#[derive(Debug)]
struct Messages {
    hashes: Vec<u64>,
    at: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Create,
    Count { name: String, count: i32 },
    Drop,
}

/// What was written lately, and how much each object may still cause.
#[derive(Debug, Default)]
struct Memory {
    hasher: RandomState,
    /// By the whole of what they are known by, or by what many have that are alike.
    written: HashMap<u64, Written>,
    similar: HashMap<u64, Messages>,
    allowances: HashMap<u64, Allowance>,
}

#[derive(Debug)]
struct Written {
    name: String,
    count: i32,
    at: Instant,
}

#[derive(Debug)]
struct Allowance {
    tokens: f64,
    at: Instant,
}

impl Memory {
    /// Whether there were enough that differ from an event in their messages alone: then it is one
    /// more of them.
    fn combines(&mut self, identity: Identity, now: Instant) -> bool {
        forget_oldest(&mut self.similar, |it| it.at);
        let new = || Messages { hashes: Vec::new(), at: now };
        let messages = self.similar.entry(identity.alike).or_insert_with(new);
        if SIMILAR_WITHIN < now.duration_since(messages.at) {
            messages.hashes.clear();
        }
        messages.at = now;
        let is_known = messages.hashes.contains(&identity.message);
        if !is_known && messages.hashes.len() + 1 < SIMILAR {
            messages.hashes.push(identity.message);
            return false;
        }
        !is_known
    }

    fn admit(&mut self, identity: Identity, now: Instant) -> Verdict {
        forget_oldest(&mut self.allowances, |it| it.at);
        let allowance =
            self.allowances.entry(identity.origin).or_insert(Allowance { tokens: BURST, at: now });
        let earned = now.duration_since(allowance.at).as_secs_f64() / REFILL.as_secs_f64();
        allowance.tokens = (allowance.tokens + earned).min(BURST);
        allowance.at = now;
        if allowance.tokens < 1.0 {
            return Verdict::Drop;
        }
        allowance.tokens -= 1.0;
        match self.written.get(&identity.whole) {
            Some(it) => Verdict::Count { name: it.name.clone(), count: it.count.saturating_add(1) },
            None => Verdict::Create,
        }
    }

    fn remember(&mut self, identity: Identity, name: String, count: i32, at: Instant) {
        forget_oldest(&mut self.written, |it| it.at);
        self.written.insert(identity.whole, Written { name, count, at });
    }
}

/// Makes room by forgetting the older half of a full map.
fn forget_oldest<V>(map: &mut HashMap<u64, V>, at: impl Fn(&V) -> Instant) {
    if map.len() < MAX_REMEMBERED {
        return;
    }
    let mut times: Vec<_> = map.values().map(&at).collect();
    let middle = times.len() / 2;
    let (_, median, _) = times.select_nth_unstable(middle);
    let median = *median;
    map.retain(|_, value| at(value) > median);
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    fn of_reason(object: &str, reason: &str, message: &str) -> Identity {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let about = ObjectReference { name: Some(object.to_owned()), ..ObjectReference::default() };
        let event = Event {
            involved_object: about,
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            ..Event::default()
        };
        Identity::of(&HASHER, &TenantName::parse("acme").unwrap(), &event)
    }

    fn identity(object: &str, message: &str) -> Identity {
        of_reason(object, "Tested", message)
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_are_counted() {
        let mut memory = Memory::default();
        let now = Instant::now();
        assert_eq!(memory.admit(identity("a", "m"), now), Verdict::Create);
        memory.remember(identity("a", "m"), "a.1".into(), 1, now);
        let expected = Verdict::Count { name: "a.1".into(), count: 2 };
        assert_eq!(memory.admit(identity("a", "m"), now), expected);
        assert_eq!(memory.admit(identity("a", "other"), now), Verdict::Create);
        assert_eq!(memory.admit(identity("b", "m"), now), Verdict::Create);
    }

    #[tokio::test(start_paused = true)]
    async fn one_object_cannot_flood_and_does_not_block_others() {
        let mut memory = Memory::default();
        let start = Instant::now();
        for n in 0..25 {
            assert_eq!(memory.admit(identity("a", &n.to_string()), start), Verdict::Create);
        }
        assert_eq!(memory.admit(identity("a", "more"), start), Verdict::Drop);
        assert_eq!(memory.admit(identity("b", "more"), start), Verdict::Create);
        let later = start + REFILL + Duration::from_secs(1);
        assert_eq!(memory.admit(identity("a", "more"), later), Verdict::Create);
        assert_eq!(memory.admit(identity("a", "still more"), later), Verdict::Drop);
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_say_nearly_the_same_are_one() {
        let mut memory = Memory::default();
        let start = Instant::now();
        let saying = |n: usize| identity("a", &format!("pod {n}"));
        for n in 1..SIMILAR {
            assert!(!memory.combines(saying(n), start), "{n}");
        }
        assert!(memory.combines(saying(10), start) && memory.combines(saying(11), start));
        assert_eq!(saying(10).alike, saying(11).alike);
        // One that has been said is said again, and what is of another kind counts by itself.
        assert!(!memory.combines(saying(3), start));
        assert!(!memory.combines(of_reason("a", "Other", "pod 12"), start));
        assert!(!memory.combines(identity("b", "pod 12"), start));
        let later = start + SIMILAR_WITHIN + Duration::from_secs(1);
        assert!(!memory.combines(saying(12), later));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_keeps_the_newest() {
        let mut memory = Memory::default();
        for n in 0..3 * MAX_REMEMBERED {
            tokio::time::advance(Duration::from_millis(1)).await;
            let identity = identity(&n.to_string(), "m");
            memory.combines(identity, Instant::now());
            memory.admit(identity, Instant::now());
            memory.remember(identity, format!("{n}"), 1, Instant::now());
        }
        assert!(memory.written.len() <= MAX_REMEMBERED);
        assert!(memory.allowances.len() <= MAX_REMEMBERED);
        assert!(memory.similar.len() <= MAX_REMEMBERED);
        let last = (3 * MAX_REMEMBERED - 1).to_string();
        assert!(memory.written.contains_key(&identity(&last, "m").whole));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let cut = cut("ä".repeat(2000));
        assert!(cut.len() <= MAX_MESSAGE && cut.ends_with("ä..."), "{}", cut.len());
    }
}
