//! What a state shows its readers and watchers.

use bytes::Bytes;

use super::*;
use crate::store::Expect;

fn state() -> Arc<State> {
    State::new(Image::default(), RingLimits { events: 4, bytes: 1 << 20, fresh: Duration::ZERO })
}

fn put(state: &State, key: &str, value: &str) -> Revision {
    let write = |contents: &mut Contents| {
        contents.write("core/pods", key, Expect::Anything, Some(value.as_bytes()), None, &[])
    };
    state.apply(write).unwrap().revision
}

fn pods() -> Collection {
    Collection::new("", "pods")
}

#[tokio::test]
async fn reads_exactly_an_older_revision() {
    let state = state();
    let first = put(&state, "a", "1");
    put(&state, "b", "2");
    put(&state, "a", "3");
    state
        .apply(|contents| contents.write("core/pods", "b", Expect::Present, None, None, &[]))
        .unwrap();
    let old = state.read(&pods(), ReadAt::Exactly(first)).await.unwrap();
    assert_eq!(old.revision(), first);
    assert_eq!(old.get("a").unwrap().value.bytes().as_ref(), "1");
    assert_eq!(old.len(), 1);
    assert_eq!(
        state.read(&pods(), ReadAt::Latest).await.unwrap().get("a").unwrap().value.bytes().as_ref(),
        "3"
    );
    assert_eq!((state.totals().objects, state.totals().bytes), (1, 2));
}

#[tokio::test]
async fn history_that_left_the_ring_is_compacted() {
    let state = state();
    let first = put(&state, "a", "1");
    for n in 0..5 {
        put(&state, "a", &n.to_string());
    }
    let read = state.read(&pods(), ReadAt::Exactly(first)).await;
    assert!(matches!(read, Err(StoreError::Compacted { oldest: Revision(2), .. })));
    // Others of the collection may still be told of all that they did: it is seen when it looks.
    let watched = state.watch(&pods(), first).unwrap().next().await;
    assert!(matches!(watched, Err(StoreError::Compacted { .. })));
    // A collection without a ring of its own is not affected.
    assert!(state.watch(&Collection::new("", "nodes"), first).is_ok());
}

#[tokio::test]
async fn lost_revisions_are_compacted_but_their_ends_are_not() {
    let state = state();
    let before = put(&state, "a", "1");
    state.apply(|contents| contents.skip(100));
    let after = put(&state, "a", "2");
    assert_eq!(after, Revision(before.0 + 101));
    let inside = state.watch(&pods(), Revision(before.0 + 50));
    assert!(matches!(inside, Err(StoreError::Compacted { .. })));
    let mut watcher = state.watch(&pods(), before).unwrap();
    assert_eq!(watcher.next().await.unwrap()[0].revision, after);
}

#[tokio::test]
async fn a_closed_state_ends_its_watches() {
    let state = state();
    let mut watcher = state.watch(&pods(), Revision(0)).unwrap();
    let waiting = tokio::spawn(async move { watcher.next().await });
    tokio::task::yield_now().await;
    state.close("the partition was shut down");
    assert!(matches!(waiting.await.unwrap(), Err(StoreError::Unavailable { .. })));
}

#[tokio::test]
async fn a_reset_sends_watchers_back_to_the_list() {
    let state = state();
    put(&state, "a", "1");
    let mut watcher = state.watch(&pods(), Revision(1)).unwrap();
    let entry = Entry { value: Bytes::from_static(b"9").into(), modified: Revision(9) };
    let entries = OrdMap::unit("z".into(), entry);
    state.apply(|contents| {
        contents.reset(Image { revision: Revision(9), collections: vec![(pods(), entries)] });
    });
    assert!(matches!(watcher.next().await, Err(StoreError::Compacted { .. })));
    assert_eq!(state.totals().objects, 1);
    assert_eq!(state.revision(), Revision(9));
}

#[tokio::test]
async fn a_revision_that_never_comes_is_in_the_future() {
    let state = state();
    let reached = state.reach(Revision(5), Duration::from_millis(5)).await;
    assert!(matches!(reached, Err(StoreError::Future { requested: Revision(5), .. })));
}

#[tokio::test]
async fn pages_of_an_older_revision_are_undone_once() {
    let state = State::new(
        Image::default(),
        RingLimits { events: 4, bytes: 1 << 20, fresh: Duration::ZERO },
    );
    let first = put(&state, "a", "1");
    put(&state, "a", "2");
    for _ in 0..3 {
        let old = state.read(&pods(), ReadAt::Exactly(first)).await.unwrap();
        assert_eq!(old.get("a").unwrap().value.bytes().as_ref(), "1");
    }
    assert_eq!(state.roots.len(), 1);
    // A list that is under way can be finished, even if the ring has moved on.
    for n in 0..6 {
        put(&state, "a", &n.to_string());
    }
    let old = state.read(&pods(), ReadAt::Exactly(first)).await.unwrap();
    assert_eq!(old.get("a").unwrap().value.bytes().as_ref(), "1");
    // What was compacted stays so.
    state.apply(|contents| contents.compact(Revision(first.0 + 1))).unwrap();
    let gone = state.read(&pods(), ReadAt::Exactly(first)).await;
    assert!(matches!(gone, Err(StoreError::Compacted { .. })));
    for revision in first.0 + 2..first.0 + 6 {
        drop(state.read(&pods(), ReadAt::Exactly(Revision(revision))).await);
    }
    assert!(state.roots.len() <= 16);
}

/// A tenant that shares its lane with `acme`, or does not.
fn neighbour(shares: bool) -> String {
    let lane = |name: &str| Lane::of(Shard::Tenant(name));
    let mut names = (0..).map(|n| format!("t{n}"));
    names.find(|name| (lane(name) == lane("acme")) == shares).unwrap()
}

#[tokio::test]
async fn what_other_tenants_do_neither_wakes_a_watch_nor_ends_it() {
    for shares in [false, true] {
        let state = state();
        let begun = put(&state, "acme/ns/a", "1");
        let acme = ShardKey::Tenant("acme".into());
        let mut watcher = state.watch(&pods(), begun).unwrap().scoped(acme).unwrap();
        let other = neighbour(shares);
        let mut waiting = Box::pin(watcher.next());
        for n in 0..20 {
            let woken = futures::poll!(&mut waiting).is_ready();
            assert!(!woken, "it has nothing to tell");
            put(&state, &format!("{other}/ns/a"), &n.to_string());
        }
        let own = put(&state, "acme/ns/a", "2");
        let events = waiting.await.unwrap();
        let seen: Vec<_> = events.iter().map(|event| event.revision).collect();
        assert_eq!(seen, [own]);
        put(&state, &format!("{other}/ns/a"), "last");
        assert_eq!(watcher.progress().unwrap(), Some(state.revision()));
    }
}

#[tokio::test]
async fn only_those_who_watch_a_lane_are_woken() {
    let state = state();
    let begun = put(&state, "acme/ns/a", "1");
    state.watch(&Collection::new("", "nodes"), begun).unwrap();
    let wakeups = |collection: &str, name: &str| {
        let shelf = state.contents.read().index[&Collection::new("", collection)];
        let feed = CollectionFeed { state: state.clone(), shelf, of: None };
        feed.of_shard(&ShardKey::Tenant(name.into())).unwrap().wakeups()
    };
    let mut mine = wakeups("pods", "acme");
    let mut others = wakeups("pods", &neighbour(false));
    let mut elsewhere = wakeups("nodes", "acme");
    for wakeups in [&mut mine, &mut others, &mut elsewhere] {
        wakeups.mark_unchanged();
    }
    put(&state, "acme/ns/b", "1");
    let woken = [&mine, &others, &elsewhere].map(|it| it.has_changed().unwrap());
    assert_eq!(woken, [true, false, false]);
    state.close("the test is over");
    let woken = [&mine, &others, &elsewhere].map(|it| it.has_changed().unwrap());
    assert_eq!(woken, [true, true, true]);
}
