//! A limit at which a process is killed again and again: never exceeded, and no drift.

use std::{
    io::{BufRead, BufReader, Write as _},
    sync::Arc,
    time::Duration,
};

use super::{
    crash::{busy_options, child_command},
    open, p1,
};
use crate::{
    contract::{limited::*, pods, write},
    quota::{Limit, OBJECTS},
    store::{Change, Expect, ReadAt, Store, StoreError},
};

const MOST: usize = 40;

fn most() -> Limit {
    limit(None, &[(OBJECTS, &MOST.to_string()), ("requests.cpu", &MOST.to_string())])
}

/// Writers that make and delete at the limit, and say when one was refused.
pub(super) async fn write_until_killed(store: Arc<dyn Store>) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..12_u32 {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0_u32.. {
                let key = format!("acme/ns{}/{writer}-{}", n % 3, n % 7);
                let create = within(write(&key, Expect::Anything, pod(1, "Running")), &most());
                match store.write(create).await {
                    Ok(_) => (),
                    Err(StoreError::Exceeded(_)) => {
                        std::io::stdout().lock().write_all(b"refused\n").unwrap();
                    }
                    Err(error) => panic!("{error}"),
                }
                let key = format!("acme/ns{}/{writer}-{}", n % 3, (n + 3) % 7);
                let delete = write(&key, Expect::Present, Change::Delete);
                match store.write(delete).await {
                    Ok(_) | Err(StoreError::Conflict { .. }) => (),
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    writers.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_leaves_a_limit_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4_u64 {
        let mut child = child_command(dir.path(), "limited").spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("refused")), "nobody came to the limit");
        let rest = std::thread::spawn(move || lines.count());
        std::thread::sleep(Duration::from_millis(20 + round * 90));
        child.kill().unwrap();
        child.wait().unwrap();
        rest.join().unwrap();

        let embedded = open(dir.path(), &busy_options()).await.unwrap();
        let store = p1(&embedded);
        let count = async || {
            let found = store.read(&pods(), ReadAt::Latest).await.unwrap();
            found.range("acme/", None).count()
        };
        let there = count().await;
        assert!(there <= MOST, "{there}");
        let tenants = store.tenants().unwrap();
        assert_eq!(tenants.usage("acme").objects, there as u64);
        let cpu = tenants.amounts("acme", None, &["requests.cpu"]);
        assert_eq!(cpu["requests.cpu"].value(), there as i64);
        for n in there..MOST {
            let key = format!("acme/rest/{round}-{n}");
            let create = write(&key, Expect::Absent, pod(1, "Running"));
            store.write(within(create, &most())).await.unwrap();
        }
        let more = write("acme/rest/more", Expect::Absent, pod(1, "Running"));
        let refused = store.write(within(more, &most())).await;
        assert!(matches!(refused, Err(StoreError::Exceeded(_))), "{refused:?}");
        // Room for the next round.
        let found = store.read(&pods(), ReadAt::Latest).await.unwrap();
        for (key, _) in found.range("acme/rest/", None) {
            store.write(write(key, Expect::Present, Change::Delete)).await.unwrap();
        }
        embedded.shutdown().await.unwrap();
    }
}
