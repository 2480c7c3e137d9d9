//! What every backend promises of writes that may let a tenant have only so much.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use insula_api::quantity::Quantity;

use super::{pods, value, write};
use crate::{
    quota::{BYTES, Excess, Limit, OBJECTS},
    store::{Change, Collection, Committed, Expect, ReadAt, Revision, Store, StoreError, Write},
};

pub(crate) fn limit(namespaces: Option<&[&str]>, hard: &[(&str, &str)]) -> Limit {
    let parse = |text: &str| Quantity::parse(text).unwrap();
    Limit {
        quota: "q".into(),
        namespaces: namespaces.map(|it| it.iter().map(|it| (*it).to_owned()).collect()),
        hard: hard.iter().map(|(name, it)| ((*name).to_owned(), parse(it))).collect(),
    }
}

pub(crate) fn within(write: Write, limit: &Limit) -> Write {
    Write { within: Some([limit.clone()].into()), ..write }
}

/// A pod that asks for so many processors.
pub(crate) fn pod(cpu: u32, phase: &str) -> Change {
    let json = format!(
        r#"{{"kind":"Pod","metadata":{{"resourceVersion":"","name":"p"}},"spec":{{"containers":[{{"resources":{{"requests":{{"cpu":"{cpu}"}}}}}}]}},"status":{{"phase":"{phase}"}}}}"#
    );
    Change::Put(Bytes::from(json))
}

#[track_caller]
fn exceeded(outcome: Result<Committed, StoreError>) -> Excess {
    match outcome {
        Err(StoreError::Exceeded(excess)) => *excess,
        other => panic!("expected too much, not {other:?}"),
    }
}

pub(crate) async fn limits_are_kept(store: Arc<dyn Store>) {
    let two = limit(None, &[(OBJECTS, "2")]);
    let create = |key: &str, it: &Limit| within(write(key, Expect::Absent, value("1")), it);
    store.write(create("acme/a/1", &two)).await.unwrap();
    // Another tenant, and what has no tenant, are others' affairs.
    for n in 0..3 {
        store
            .write(create(&format!("globex/a/{n}"), &limit(None, &[(OBJECTS, "9")])))
            .await
            .unwrap();
    }
    let secrets = Collection::new("", "secrets");
    let other = Write { collection: secrets, ..create("acme/b/1", &two) };
    let second = store.write(other.clone()).await.unwrap();
    let excess = exceeded(store.write(create("acme/c/1", &two)).await);
    assert_eq!(
        excess.to_string(),
        "exceeded quota: q, requested: insula.io/objects=1, used: insula.io/objects=2, \
         limited: insula.io/objects=2"
    );
    // A conflict is told before a limit: nothing would come of it anyway.
    let again = store.write(create("acme/a/1", &two)).await;
    assert!(matches!(again, Err(StoreError::Conflict { .. })), "{again:?}");
    // What is there already may change, and what goes makes room at once.
    let change = Write { expect: Expect::At(second.revision), ..other.clone() };
    store.write(change).await.unwrap();
    // Whoever has more than allowed may still make it less, and change it.
    let none = limit(None, &[(OBJECTS, "0"), (BYTES, "0")]);
    let less = Change::Put(Bytes::from_static(br#"{"metadata":{"resourceVersion":""}}"#));
    store.write(within(write("acme/a/1", Expect::Present, less), &none)).await.unwrap();
    store.write(within(write("acme/a/1", Expect::Present, Change::Delete), &none)).await.unwrap();
    store.write(create("acme/c/1", &two)).await.unwrap();
    exceeded(store.write(create("acme/c/2", &two)).await);
    // Who says nothing is not limited.
    store.write(write("acme/c/2", Expect::Absent, value("1"))).await.unwrap();
}

pub(crate) async fn limits_are_of_bytes_kinds_and_namespaces(store: Arc<dyn Store>) {
    let put =
        |key: &str, change: Change, it: &Limit| within(write(key, Expect::Anything, change), it);
    let Change::Put(bytes) = value("1") else { unreachable!() };
    let size = ("acme/a/1".len() + bytes.len()) as u64;
    let bytes = limit(None, &[(BYTES, &(2 * size).to_string())]);
    for key in ["acme/a/1", "acme/a/2"] {
        store.write(put(key, value("1"), &bytes)).await.unwrap();
    }
    // At the limit a change of the same length goes on whatever the revision has grown to.
    for _ in 0..12 {
        store.write(put("acme/a/1", value("2"), &bytes)).await.unwrap();
    }
    let excess = exceeded(store.write(put("acme/a/1", value("22"), &bytes)).await);
    assert_eq!(excess.requested[BYTES].value(), 1);

    let cpu = limit(Some(&["b", "c"]), &[("requests.cpu", "5"), ("count/pods", "3")]);
    store.write(put("acme/b/1", pod(2, "Running"), &cpu)).await.unwrap();
    store.write(put("acme/c/1", pod(2, "Running"), &cpu)).await.unwrap();
    let excess = exceeded(store.write(put("acme/c/2", pod(2, "Pending"), &cpu)).await);
    assert_eq!((excess.requested.len(), excess.used["requests.cpu"].value()), (1, 4));
    // A namespace that the limit is not about.
    store.write(put("acme/d/1", pod(9, "Running"), &cpu)).await.unwrap();
    // Bigger by more than is left, by what is left, and smaller again.
    exceeded(store.write(put("acme/b/1", pod(4, "Running"), &cpu)).await);
    store.write(put("acme/b/1", pod(3, "Running"), &cpu)).await.unwrap();
    // One that has ended asks for nothing, and is still there.
    store.write(put("acme/c/1", pod(2, "Succeeded"), &cpu)).await.unwrap();
    store.write(put("acme/c/2", pod(2, "Running"), &cpu)).await.unwrap();
    let excess = exceeded(store.write(put("acme/c/3", pod(0, "Running"), &cpu)).await);
    assert_eq!(excess.requested["count/pods"].value(), 1);
    let Some(tenants) = store.tenants() else { return };
    let names = ["requests.cpu", "count/pods", OBJECTS];
    let shown = |of: Option<&BTreeSet<String>>| {
        tenants.amounts("acme", of, &names).into_values().map(|it| it.value()).collect::<Vec<_>>()
    };
    // In order of names: count/pods, insula.io/objects, requests.cpu.
    assert_eq!(shown(None), [6, 6, 14]);
    assert_eq!(shown(cpu.namespaces.as_ref()), [3, 3, 5]);
    assert_eq!(tenants.usage("acme").objects, 6);
    assert_eq!(tenants.usage("nobody").objects, 0);
}

/// Never above the limit at any revision, and up to it in the end.
pub(crate) async fn many_at_the_limit(store: Arc<dyn Store>) {
    const MOST: usize = 25;
    let begin = store.progress();
    let most = limit(None, &[(OBJECTS, &MOST.to_string()), ("requests.cpu", "25")]);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let (store, most) = (store.clone(), most.clone());
        writers.spawn(async move {
            let mut refused = 0;
            for n in 0..12 {
                let key = format!("acme/ns{}/{writer}-{n}", n % 3);
                let create = write(&key, Expect::Absent, pod(1, "Running"));
                match store.write(within(create, &most)).await {
                    Ok(_) if n % 4 == 3 => {
                        let delete = write(&key, Expect::Present, Change::Delete);
                        store.write(delete).await.unwrap();
                    }
                    Ok(_) => (),
                    Err(StoreError::Exceeded(_)) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            refused
        });
    }
    let refused: usize = writers.join_all().await.into_iter().sum();
    assert!(0 < refused);
    stays_within(&*store, begin, MOST).await;
    let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
    let mut there = snapshot.range("acme/", None).count();
    // Nothing was lost on the way: what is left can be had, and no more.
    while there < MOST {
        let create = write(&format!("acme/rest/{there}"), Expect::Absent, pod(1, "Running"));
        store.write(within(create, &most)).await.unwrap();
        there += 1;
    }
    let more = write("acme/rest/more", Expect::Absent, pod(1, "Running"));
    exceeded(store.write(within(more, &most)).await);
}

/// Replays what happened, and looks at each revision how many pods there were.
pub(crate) async fn stays_within(store: &dyn Store, after: Revision, most: usize) {
    let last =
        store.write(write("end/of/it", Expect::Anything, value("1"))).await.unwrap().revision;
    let mut watcher = store.watch(&pods(), after).unwrap();
    let (mut live, mut seen) = (BTreeSet::new(), after);
    while seen < last {
        for event in watcher.next().await.unwrap() {
            seen = event.revision;
            match event.deleted {
                _ if !event.key.starts_with("acme/") => continue,
                true => drop(live.remove(&event.key)),
                false => drop(live.insert(event.key.clone())),
            }
            assert!(live.len() <= most, "{} at {seen}", live.len());
        }
    }
}
