//! Groups of three on servers of their own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    EmbeddedStore,
    cluster::{Cluster, names},
};
use crate::{
    contract::{contract_tests, pods, put, stored, value, write},
    store::{Change, Expect, ReadAt, Revision, Store, StoreError},
};

mod by_the_leader {
    use super::*;

    async fn empty() -> (Arc<dyn Store>, Cluster) {
        let cluster = Cluster::three().await;
        let leader = cluster.leader().await;
        (cluster.store(leader), cluster)
    }

    contract_tests!(empty);
}

mod by_a_follower {
    use super::*;

    async fn empty() -> (Arc<dyn Store>, Cluster) {
        let cluster = Cluster::three().await;
        let follower = cluster.follower().await;
        (cluster.store(follower), cluster)
    }

    contract_tests!(empty);
}

/// Elections take a second or two, and requests give up after five; the machine may be busy.
const AT_MOST: Duration = Duration::from_secs(20);

/// Puts until one is acknowledged; says how long it took.
async fn put_eventually(store: &EmbeddedStore, key: &str) -> (Revision, Duration) {
    let begun = Instant::now();
    loop {
        match store.write(write(key, Expect::Anything, value("x"))).await {
            Ok(committed) => return (committed.revision, begun.elapsed()),
            Err(_) => assert!(begun.elapsed() < 2 * AT_MOST, "never again"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_sees_what_any_acknowledged() {
    let cluster = Cluster::three().await;
    for n in 0..30_u64 {
        let text = n.to_string();
        let committed = put(&*cluster.store(1 + n % 3), "a", &text).await;
        for reader in 1..=3 {
            let found = cluster.store(reader).read(&pods(), ReadAt::Latest).await.unwrap();
            assert_eq!(found.get("a").unwrap().value, stored(&text, committed.revision));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_is_replaced_and_catches_up() {
    let cluster = Cluster::three().await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let before = put(&*cluster.store(leader), "a", "1").await.revision;
    let mut watcher = cluster.store(leader).watch(&pods(), before).unwrap();
    cluster.network.set_cut(&format!("s{leader}"), true);
    let (after, took) = put_eventually(&cluster.store(follower), "a").await;
    assert!(took < AT_MOST, "{took:?}");
    // Cut off, it refuses what it cannot know, within a bounded time, and serves what it has.
    let begun = Instant::now();
    let write = cluster.store(leader).write(write("a", Expect::Anything, value("lost"))).await;
    assert!(matches!(write, Err(StoreError::Unavailable { .. })), "{write:?}");
    let read = cluster.store(leader).read(&pods(), ReadAt::Latest).await;
    assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
    assert!(begun.elapsed() < AT_MOST, "{:?}", begun.elapsed());
    let stale = cluster.store(leader).read(&pods(), ReadAt::Any).await.unwrap();
    assert_eq!(stale.get("a").unwrap().modified, before);

    cluster.network.set_cut(&format!("s{leader}"), false);
    cluster.level().await;
    assert_eq!(watcher.next().await.unwrap()[0].revision, after);
    let read = cluster.store(leader).read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(read.get("a").unwrap().modified, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_it_says_so_and_recovers() {
    let cluster = Cluster::three().await;
    let revision = put(&*cluster.store(1), "a", "1").await.revision;
    for server in ["s2", "s3"] {
        cluster.network.set_cut(server, true);
    }
    let begun = Instant::now();
    let write = cluster.store(1).write(write("a", Expect::Anything, value("2"))).await;
    assert!(matches!(write, Err(StoreError::Unavailable { .. })), "{write:?}");
    let write = begun.elapsed();
    let begun = Instant::now();
    let read = cluster.store(1).read(&pods(), ReadAt::Latest).await;
    let Err(StoreError::Unavailable { reason, .. }) = read else { panic!("{read:?}") };
    assert!(reason.contains("s1, s2, s3"), "{reason}");
    assert!(write < AT_MOST && begun.elapsed() < AT_MOST);
    assert!(cluster.store(1).stats().unhealthy.is_some());
    assert!(cluster.store(1).read(&pods(), ReadAt::Any).await.is_ok());
    for server in ["s2", "s3"] {
        cluster.network.set_cut(server, false);
    }
    let (next, took) = put_eventually(&cluster.store(2), "b").await;
    assert!(revision < next && took < AT_MOST, "{took:?}");
    // The other two may have gone on before this one heard of it.
    let heard = async {
        while cluster.store(1).stats().unhealthy.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(AT_MOST, heard).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_leave_costs_next_to_nothing() {
    let mut cluster = Cluster::three().await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let store = cluster.store(follower);
    let writer = tokio::spawn(async move {
        let mut slowest = Duration::ZERO;
        for n in 0.. {
            let begun = Instant::now();
            put(&*store, "a", &n.to_string()).await;
            slowest = slowest.max(begun.elapsed());
            if 400 < n {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        slowest
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.stop(leader).await;
    let slowest = writer.await.unwrap();
    // An election would take a second at least.
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_by_one_restarted_nothing_is_lost() {
    let mut cluster = Cluster::three().await;
    let mut last = Revision(0);
    for id in [1, 2, 3, 1] {
        cluster.stop(id).await;
        let other = 1 + id % 3;
        last = put_eventually(&cluster.store(other), &format!("without-{id}")).await.0;
        cluster.start(id).await;
        cluster.leader().await;
    }
    cluster.level().await;
    for id in 1..=3 {
        let found = cluster.store(id).read(&pods(), ReadAt::Latest).await.unwrap();
        assert_eq!((found.len(), found.revision()), (3, last));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_grows_and_shrinks_while_it_is_written_to() {
    let mut cluster = Cluster::new(4).await;
    cluster.servers[&1].create("p1", &names(&[1])).await.unwrap();
    let big = Change::Put(Bytes::from(vec![b'x'; 4 << 10]));
    for n in 0..500 {
        let write = write(&format!("k{n}"), Expect::Absent, big.clone());
        cluster.store(1).write(write).await.unwrap();
    }
    let store = cluster.store(1);
    let writer = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for n in 0..150 {
            acknowledged.push(put_eventually(&store, &format!("w{n}")).await.0);
        }
        acknowledged
    });
    for id in [2, 3] {
        cluster.servers[&id].join("p1").await.unwrap();
    }
    let three = names(&[1, 2, 3]);
    cluster.servers[&1].change_members("p1", &three).await.unwrap();
    assert_eq!(cluster.servers[&2].members("p1").unwrap(), ["s1", "s2", "s3"]);
    // Whoever was thrown out is not missed, even if it leads; asked of a follower.
    cluster.servers[&4].join("p1").await.unwrap();
    cluster.servers[&2].change_members("p1", &names(&[2, 3, 4])).await.unwrap();
    // What was acknowledged through the one that goes stays.
    let acknowledged = writer.await.unwrap();
    cluster.servers[&1].remove("p1").await.unwrap();
    assert!(cluster.servers[&1].store("p1").is_none());
    cluster.stop(1).await;
    let leader = cluster.leader().await;
    assert_ne!(leader, 1);
    let found = cluster.store(4).read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(found.len(), 650);
    for (n, revision) in acknowledged.iter().enumerate() {
        assert_eq!(found.get(&format!("w{n}")).unwrap().modified, *revision);
    }
    // What is left of it in its log does not matter to the next start.
    cluster.start(1).await;
    assert!(cluster.servers[&1].groups().is_empty());
    // Down to one again.
    cluster.servers[&3].change_members("p1", &names(&[4])).await.unwrap();
    let (revision, _) = put_eventually(&cluster.store(4), "alone").await;
    let found = cluster.store(4).read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(found.get("alone").unwrap().modified, revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_lose_the_majority_is_refused() {
    let cluster = Cluster::three().await;
    cluster.network.set_cut("s3", true);
    let leader = loop {
        let leader = cluster.store(1).standing().leader.filter(|id| *id != 3);
        match leader {
            Some(leader) if cluster.store(leader).standing().silent.contains(&3) => break leader,
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let other = 3 - leader;
    let refused = cluster.servers[&leader].change_members("p1", &names(&[leader, 3])).await;
    let Err(StoreError::Unavailable { reason, .. }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("too few"), "{reason}");
    cluster.servers[&leader].change_members("p1", &names(&[leader, other])).await.unwrap();
    put(&*cluster.store(other), "a", "1").await;
}

/// Far behind, a member fetches the state while it goes on hearing of what is new.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_long_fetches_the_state() {
    let mut cluster = Cluster::three().await;
    let away = cluster.follower().await;
    put(&*cluster.store(away), "before", "x").await;
    cluster.stop(away).await;
    let writer = 1 + away % 3;
    let big = Change::Put(Bytes::from(vec![b'x'; 1 << 20]));
    // More than the leader keeps entry by entry.
    for n in 0..60 {
        let write = write(&format!("k{}", n % 20), Expect::Anything, big.clone());
        cluster.store(writer).write(write).await.unwrap();
    }
    cluster.start(away).await;
    cluster.leader().await;
    cluster.level().await;
    let found = cluster.store(away).read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(found.len(), 21);
    // The state that it fetched is its own: it comes back with it.
    let last = put(&*cluster.store(writer), "after", "x").await.revision;
    cluster.level().await;
    cluster.stop(away).await;
    cluster.start(away).await;
    let found = cluster.store(away).read(&pods(), ReadAt::NotOlderThan(last)).await.unwrap();
    assert_eq!(found.len(), 22);
}

/// A directory copied to another server, and one of another cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_copied_directory_is_refused() {
    use crate::{
        embedded::{Embedded, Identity},
        error::OpenError,
        peers::Nobody,
    };
    let mut cluster = Cluster::three().await;
    cluster.stop(2).await;
    let copy = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(cluster.dir(2).join("."))
        .arg(copy.path())
        .status();
    assert!(status.unwrap().success());
    for (cluster, server, member) in [("test", "s3", 3), ("test", "s2", 7), ("other", "s2", 2)] {
        let identity = Identity { cluster: cluster.into(), server: server.into(), member };
        let (dir, options) = (copy.path().to_owned(), super::options());
        let open = move || Embedded::open(&dir, &identity, Arc::new(Nobody), &options);
        let opened = tokio::task::spawn_blocking(open).await.unwrap();
        let error = opened.map(drop).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("s2 (number 2) of cluster test"), "{error}");
    }
}
