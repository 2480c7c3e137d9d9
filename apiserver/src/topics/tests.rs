//! Against a collection whose history is a list.

use std::time::Duration;

use futures::FutureExt as _;
use insula_partition::snapshot::Entry;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

use super::*;

/// A collection of pods whose history is a list.
struct Pods {
    kept: Mutex<Kept>,
    changed: Mutex<Option<watch::Sender<u64>>>,
}

#[derive(Default)]
struct Kept {
    events: Vec<Arc<Event>>,
    floor: Revision,
    last: u64,
    n_reads: usize,
}

impl Pods {
    fn new() -> Arc<Self> {
        Arc::new(Self { kept: Mutex::default(), changed: Mutex::new(Some(watch::Sender::new(0))) })
    }

    /// Pod `name` is on a node, and was on another.
    fn put(&self, name: &str, was: Option<&str>, is: &str) {
        let mut kept = self.kept.lock();
        kept.last += 1;
        let revision = Revision(kept.last);
        let entry = |node: &str| {
            let text = json!({"metadata": {"name": name}, "spec": {"nodeName": node}}).to_string();
            Entry { value: bytes::Bytes::from(text).into(), modified: revision }
        };
        kept.events.push(Arc::new(Event {
            revision,
            key: format!("acme/ns/{name}").into(),
            entry: entry(is),
            previous: was.map(entry),
            deleted: false,
        }));
        drop(kept);
        self.wake();
    }

    fn wake(&self) {
        if let Some(changed) = &*self.changed.lock() {
            changed.send_modify(|count| *count += 1);
        }
    }

    fn forget(&self, floor: u64) {
        let mut kept = self.kept.lock();
        kept.floor = Revision(floor);
        kept.events.retain(|event| floor < event.revision.0);
    }

    fn close(&self) {
        self.changed.lock().take();
    }

    fn n_reads(&self) -> usize {
        self.kept.lock().n_reads
    }
}

impl Feed for Pods {
    fn changes(
        &self,
        after: Revision,
        limit: usize,
    ) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
        let mut kept = self.kept.lock();
        kept.n_reads += 1;
        if after < kept.floor {
            return Err(StoreError::Compacted { requested: after, oldest: kept.floor });
        }
        let newer = kept.events.iter().filter(|event| after < event.revision);
        Ok((newer.take(limit).cloned().collect(), Revision(kept.last)))
    }

    fn fences(&self) -> Arc<Fences> {
        Fences::none()
    }

    fn wakeups(&self) -> watch::Receiver<u64> {
        match &*self.changed.lock() {
            Some(changed) => changed.subscribe(),
            None => watch::channel(0).1,
        }
    }
}

fn topics() -> Topics {
    Topics::new(TaskTracker::new(), CancellationToken::new())
}

fn watch_of(topics: &Topics, pods: &Arc<Pods>, after: u64, topic: (Field, &str)) -> Watcher {
    let scope = Scope::new(&"p1".into(), &Whose::All, &Collection::new("", "pods"));
    let topic = Topic { field: topic.0, value: topic.1.into() };
    topics.narrow(Watcher::new(pods.clone(), Revision(after)), Revision(after), scope, &topic)
}

fn on(topics: &Topics, pods: &Arc<Pods>, node: &str) -> Watcher {
    watch_of(topics, pods, 0, (Field::Node, node))
}

/// Names of what is told next, which must be soon.
async fn told(watcher: &mut Watcher) -> Vec<String> {
    let next = tokio::time::timeout(Duration::from_secs(20), watcher.next()).await;
    let events = next.expect("nothing was told").unwrap();
    events.iter().map(|event| event.key.rsplit('/').next().unwrap().to_owned()).collect()
}

/// Has the tasks that file do so.
async fn rest() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn each_is_woken_for_what_it_is_about() {
    let (topics, pods) = (topics(), Pods::new());
    let (mut first, mut second) = (on(&topics, &pods, "n1"), on(&topics, &pods, "n2"));
    assert!(first.next().now_or_never().is_none());
    assert!(second.next().now_or_never().is_none());
    rest().await;
    let before = pods.n_reads();
    for name in ["a", "b", "c"] {
        pods.put(name, None, "n2");
    }
    assert_eq!(told(&mut second).await, ["a", "b", "c"]);
    assert!(first.next().now_or_never().is_none());
    assert_eq!(pods.n_reads() - before, 1, "all is read by one");
    // Who is elsewhere now is told of to both.
    pods.put("a", Some("n2"), "n1");
    assert_eq!(told(&mut first).await, ["a"]);
    assert_eq!(told(&mut second).await, ["a"]);
    assert_eq!(first.progress().unwrap(), Some(Revision(4)));
}

#[tokio::test]
async fn who_is_told_of_nothing_goes_on_with_history() {
    let (topics, pods) = (topics(), Pods::new());
    let mut quiet = on(&topics, &pods, "n1");
    assert!(quiet.next().now_or_never().is_none());
    pods.put("a", None, "n2");
    assert_eq!(quiet.progress().unwrap(), Some(Revision(1)));
    // Of another collection: nobody is woken here.
    pods.kept.lock().last = 7;
    rest().await;
    assert_eq!(quiet.progress().unwrap(), Some(Revision(7)));
}

#[tokio::test]
async fn objects_have_names_too() {
    let (topics, pods) = (topics(), Pods::new());
    let mut named = watch_of(&topics, &pods, 0, (Field::Name, "b"));
    assert!(named.next().now_or_never().is_none());
    rest().await;
    pods.put("a", None, "n1");
    pods.put("b", None, "n1");
    assert_eq!(told(&mut named).await, ["b"]);
}

#[tokio::test]
async fn who_begins_in_the_past_is_told_of_it() {
    let (topics, pods) = (topics(), Pods::new());
    pods.put("a", None, "n1");
    pods.put("b", None, "n1");
    let mut late = watch_of(&topics, &pods, 2, (Field::Node, "n1"));
    assert!(late.next().now_or_never().is_none());
    rest().await;
    // Its board has begun where the other one did, and knows less.
    let mut early = watch_of(&topics, &pods, 1, (Field::Node, "n1"));
    assert_eq!(told(&mut early).await, ["b"]);
    pods.put("c", None, "n1");
    assert_eq!(told(&mut early).await, ["c"]);
    assert_eq!(told(&mut late).await, ["c"]);
}

#[tokio::test]
async fn who_is_far_behind_reads_all() {
    let (topics, pods) = (topics(), Pods::new());
    let mut slow = on(&topics, &pods, "n1");
    assert!(slow.next().now_or_never().is_none());
    let names: Vec<String> = (0..2 * NOTES).map(|n| format!("p{n}")).collect();
    for name in &names {
        pods.put(name, None, "n1");
        rest().await;
    }
    let mut all = Vec::new();
    while all.len() < names.len() {
        all.extend(told(&mut slow).await);
    }
    assert_eq!(all, names);
}

#[tokio::test]
async fn history_that_is_gone_is_said_to_be() {
    let (topics, pods) = (topics(), Pods::new());
    let mut slow = on(&topics, &pods, "n1");
    let mut other = watch_of(&topics, &pods, 4, (Field::Node, "n2"));
    assert!(slow.next().now_or_never().is_none());
    pods.put("a", None, "n1");
    pods.forget(3);
    rest().await;
    let error = slow.next().now_or_never().unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
    // The board goes on from what there is.
    pods.kept.lock().last = 4;
    pods.put("b", None, "n2");
    assert_eq!(told(&mut other).await, ["b"]);
}

#[tokio::test]
async fn a_partition_that_is_opened_anew_is_filed_anew() {
    let (topics, pods) = (topics(), Pods::new());
    let mut watcher = on(&topics, &pods, "n1");
    assert!(watcher.next().now_or_never().is_none());
    rest().await;
    pods.close();
    rest().await;
    let error = watcher.next().now_or_never().unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    // While somebody still holds what was closed.
    let pods = Pods::new();
    let mut again = on(&topics, &pods, "n1");
    assert!(again.next().now_or_never().is_none());
    rest().await;
    pods.put("a", None, "n1");
    assert_eq!(told(&mut again).await, ["a"]);
}

#[tokio::test]
async fn what_nobody_reads_is_let_go_of() {
    let (topics, pods) = (topics(), Pods::new());
    let watcher = on(&topics, &pods, "n1");
    rest().await;
    drop(watcher);
    pods.wake();
    rest().await;
    assert_eq!(topics.tasks.len(), 0, "its task goes on");
    assert_eq!(Arc::strong_count(&pods), 1);
}

/// Whatever happens in whatever order: each is told of all that is about its topic, once, in order.
#[tokio::test]
async fn nothing_is_left_out() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (topics, pods) = (topics(), Pods::new());
        let mut readers: Vec<(u64, u64, Watcher)> = Vec::new();
        let mut placed: HashMap<u64, u64> = HashMap::new();
        for _ in 0..400 {
            match rng.random_range(0..10) {
                0..5 => {
                    let (pod, node) = (rng.random_range(0..20_u64), rng.random_range(0..4_u64));
                    let was = placed.insert(pod, node).map(|was| format!("n{was}"));
                    pods.put(&format!("p{pod}"), was.as_deref(), &format!("n{node}"));
                }
                5 if readers.len() < 8 => {
                    let node = rng.random_range(0..4_u64);
                    let after = rng.random_range(0..=pods.kept.lock().last);
                    let name = format!("n{node}");
                    let watcher = watch_of(&topics, &pods, after, (Field::Node, &name));
                    readers.push((node, after, watcher));
                }
                6 if !readers.is_empty() => {
                    let index = rng.random_range(0..readers.len());
                    check(&pods, &mut readers[index], seed);
                    if rng.random_bool(0.2) {
                        readers.swap_remove(index);
                    }
                }
                7 => tokio::task::yield_now().await,
                8 => rest().await,
                _ => (),
            }
        }
        rest().await;
        for reader in &mut readers {
            while check(&pods, reader, seed) {}
            let about = |event: &&Arc<Event>| is_about(event, reader.0);
            let last = pods.kept.lock().events.iter().filter(about).map(|it| it.revision).max();
            assert!(
                last.is_none_or(|last| last.0 <= reader.1),
                "seed {seed}: something is missing"
            );
        }
    }
}

fn is_about(event: &Event, node: u64) -> bool {
    let name = format!("n{node}");
    [Some(&event.entry), event.previous.as_ref()].into_iter().flatten().any(|entry| {
        let pod: serde_json::Value = serde_json::from_slice(&entry.value.bytes()).unwrap();
        pod["spec"]["nodeName"] == *name
    })
}

/// Reads what there is, which must go on from where the reader was. Returns whether there was any.
fn check(pods: &Pods, (node, after, watcher): &mut (u64, u64, Watcher), seed: u64) -> bool {
    let Some(events) = watcher.next().now_or_never() else { return false };
    let events = events.unwrap();
    let last = events.last().unwrap().revision.0;
    let told = events.iter().filter(|event| is_about(event, *node)).map(|it| it.revision.0);
    let kept = pods.kept.lock();
    let passed = kept.events.iter().filter(|it| *after < it.revision.0 && it.revision.0 <= last);
    let wanted = passed.filter(|event| is_about(event, *node)).map(|it| it.revision.0);
    assert!(told.eq(wanted), "seed {seed}: node n{node} from {after} to {last}");
    *after = last;
    true
}
