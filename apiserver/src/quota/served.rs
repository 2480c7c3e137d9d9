//! Adds what this server counted of tenants' requests to what they are billed.
//!
//! Every [`EVERY`], and when it ends, a server adds what came since to `status.total` of the
//! tenant's quota of the platform, by compare-and-set, wherever that lies. With it goes when this
//! server did so: if it is not told whether a write happened, it finds that out by this before it
//! tries again. So nothing is counted twice; a server that is killed loses what it had not added.

use std::{sync::Arc, time::Duration};

use insula_api::{names::TenantName, object::Stored};
use insula_partition::store::{Change, Collection, Expect, ReadAt, StoreError, Write};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    GROUP, PLATFORM, RESOURCE, WATCHES,
    usage::{parse, print},
};
use crate::{
    Server,
    error::{ApiError, Result},
    fair::{Account, Amounts, Billed, Pieces},
    registry,
};

/// How often what was counted is added. A tenant that is asked for anything costs a write then.
const EVERY: Duration = Duration::from_secs(30);
/// How often it is tried if others write at the same time.
const TRIES: usize = 5;
/// How long it is remembered when a server last added anything.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// Adds until the server ends, and once more then.
pub(crate) async fn look_after(server: Arc<Server>) {
    let waiting = || server.shutdown.run_until_cancelled(tokio::time::sleep(EVERY));
    while waiting().await.is_some() {
        add_all(&server).await;
    }
    add_all(&server).await;
}

async fn add_all(server: &Server) {
    let mut pieces = Pieces::default();
    for tenant in server.fair.tenants().into_iter().filter(|it| !it.is_system()) {
        pieces.copied(0).await;
        let Some(account) = server.fair.account(&tenant) else { continue };
        if let Err(error) = add(server, &tenant, &account).await {
            tracing::debug!(%tenant, %error, "what it used is added to its bill later");
        }
    }
}

/// Adds what a tenant used, if it is billed at all.
async fn add(server: &Server, tenant: &TenantName, account: &Account) -> Result<()> {
    let collection = Collection::new(GROUP, RESOURCE);
    let key: Arc<str> = registry::key(tenant, "", PLATFORM).into();
    let name = server.partitions.server_name();
    for tried in 0..TRIES {
        let amounts = account.used.amounts();
        let is_in_doubt = {
            let billed = account.used.billed.lock();
            if billed.in_doubt.is_none() && billed.amounts == amounts {
                return Ok(());
            }
            billed.in_doubt.is_some()
        };
        let store = server.partitions.place(&registry::shard_of_tenant(tenant)).store;
        // What is at hand will do where a write on something older is refused.
        let at = if is_in_doubt || 0 < tried { ReadAt::Latest } else { ReadAt::Any };
        let snapshot = store.read(&collection, at).await?;
        let Some(entry) = snapshot.get(&key) else {
            // Nobody asks what it uses.
            *account.used.billed.lock() = Billed { amounts, in_doubt: None };
            return Ok(());
        };
        let mut stored = Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        let status = &mut stored.object["status"];
        // Whoever leads the partition begins it.
        if status["since"].is_null() {
            return Ok(());
        }
        let (since, mark) = {
            let mut billed = account.used.billed.lock();
            if let Some((mark, amounts)) = billed.in_doubt.take()
                && status["counted"][name] == mark
            {
                billed.amounts = amounts;
            }
            let mark = Timestamp::now().to_string();
            billed.in_doubt = Some((mark.clone(), amounts));
            (amounts.since(&billed.amounts), mark)
        };
        count(status, &since, name, &mark);
        let change = Change::Put(stored.encoded().into());
        let write =
            Write::durable(collection.clone(), key.clone(), Expect::At(entry.modified), change);
        match store.write(write).await {
            Ok(_) => {
                *account.used.billed.lock() = Billed { amounts, in_doubt: None };
                return Ok(());
            }
            // Nothing was written.
            Err(StoreError::Conflict { .. } | StoreError::Moving { .. }) => {
                account.used.billed.lock().in_doubt = None;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Adds `more`, which `server` counted, to a quota's status.
fn count(status: &mut Value, more: &Amounts, server: &str, mark: &str) {
    let ones = |it: u64| i128::from(it) * 1_000_000;
    let rows = [
        ("insula.io/read-requests", ones(more.reads)),
        ("insula.io/write-requests", ones(more.writes)),
        ("insula.io/bytes-received", ones(more.received)),
        ("insula.io/bytes-sent", ones(more.sent)),
        // As of all that is there for a time: how much, times seconds.
        (WATCHES, i128::from(more.watched) * 1000),
    ];
    for (name, more) in rows {
        let known = status["total"][name].as_str().map_or(0, parse);
        status["total"][name] = print(known.saturating_add(more)).into();
    }
    let mut counted = json!({});
    let now: Option<Timestamp> = mark.parse().ok();
    for (server, time) in status["counted"].as_object().into_iter().flatten() {
        let then: Option<Timestamp> = time.as_str().and_then(|it| it.parse().ok());
        if now.zip(then).is_some_and(|(now, then)| now.duration_since(then) < REMEMBERED) {
            counted[server] = time.clone();
        }
    }
    counted[server] = mark.into();
    status["counted"] = counted;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_in_doubt_is_added_once() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::alone(dir.path()).await.unwrap();
        let (acme, account) = (TenantName::parse("acme").unwrap(), Account::of_test(1));
        let used = &account.used;
        let add = async || add(&server, &acme, &account).await.unwrap();
        let collection = Collection::new(GROUP, RESOURCE);
        let key: Arc<str> = registry::key(&acme, "", PLATFORM).into();
        let store = server.partitions.place(&registry::shard_of_tenant(&acme)).store;
        let status = async || -> Value {
            let snapshot = store.read(&collection, ReadAt::Latest).await.unwrap();
            let it: Value =
                serde_json::from_slice(&snapshot.get(&key).unwrap().value.bytes()).unwrap();
            it["status"].clone()
        };
        let received = async || status().await["total"]["insula.io/bytes-received"].clone();
        used.received(5);
        add().await;
        let quota = json!({
            "apiVersion": "insula.io/v1", "kind": "TenantQuota", "metadata": {"name": PLATFORM},
            "spec": {"hard": {}}, "status": {"since": "2026-01-01T00:00:00Z", "total": {}},
        });
        let change = Change::Put(quota.to_string().into());
        let write = Write::durable(collection.clone(), key.clone(), Expect::Absent, change);
        store.write(write).await.unwrap();
        used.received(7);
        add().await;
        assert_eq!(received().await, "7.000000", "what came before the quota is dropped");
        let before = used.amounts();
        used.received(10);
        let after = used.amounts();
        add().await;
        // As if it had not been told so.
        let mark = status().await["counted"][server.partitions.server_name()].clone();
        let in_doubt = |mark: &str| Some((mark.to_owned(), after));
        *used.billed.lock() =
            Billed { amounts: before, in_doubt: in_doubt(mark.as_str().unwrap()) };
        add().await;
        assert_eq!(received().await, "17.000000", "it had happened");
        *used.billed.lock() = Billed { amounts: before, in_doubt: in_doubt("another time") };
        add().await;
        assert_eq!(received().await, "27.000000", "it had not happened");
    }

    #[test]
    fn several_servers_add_to_one_sum() {
        let more = Amounts { reads: 3, writes: 2, received: 10, sent: 700, watched: 1500 };
        let mut status = json!({"total": {"pods": "7.000000"}, "counted": {
            "gone": "2026-01-01T00:00:00Z", "other": "2026-01-02T10:00:00Z",
        }});
        count(&mut status, &more, "one", "2026-01-02T11:00:00Z");
        count(&mut status, &more, "other", "2026-01-02T11:00:01Z");
        assert_eq!(
            status,
            json!({
                "total": {
                    "pods": "7.000000", "insula.io/read-requests": "6.000000",
                    "insula.io/write-requests": "4.000000", "insula.io/bytes-received": "20.000000",
                    "insula.io/bytes-sent": "1400.000000", "insula.io/watches": "3.000000",
                },
                "counted": {"one": "2026-01-02T11:00:00Z", "other": "2026-01-02T11:00:01Z"},
            })
        );
    }
}
