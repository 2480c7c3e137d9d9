//! Keeps what quotas say is used, and sums it over time for bills.
//!
//! Every [`EVERY`] the server that leads a partition compares the quotas there with what the
//! store has summed, and writes the status of those that differ. So a tenant in which nothing
//! happens costs a look, and one in which much happens a write every two seconds.
//!
//! # What is billed
//!
//! `status.total` of the platform's quota is the sum of what was used, times the seconds for which
//! it was, from `status.since` to `status.time`; since then there was what `status.used` says,
//! until now. A reader adds that: `total + used * (now - time)`. What changed within one interval
//! is taken to have changed at its end, so each change adds an error of at most [`EVERY`] times
//! what changed; if a server ends unclean, or the tenant moves, that of the time until another one
//! looks.

use std::{collections::HashMap, sync::Arc, time::Duration};

use insula_api::{
    names::TenantName,
    object::{self, Stored},
    quantity::Quantity,
    quota::amounts::{self, Amounts},
};
use insula_metrics::{Collector, write::Writer};
use insula_partition::{
    quota::{BYTES, OBJECTS},
    store::{Change, Collection, Expect, ReadAt, Revision, Store, StoreError, Write},
};
use jiff::Timestamp;
use prometheus_client::encoding::DescriptorEncoder;
use serde_json::{Map, Value, json};

use super::{GROUP, IN_FLIGHT, PLATFORM, RESOURCE, WATCHES, hard, is_kept};
use crate::{
    Server,
    error::{ApiError, Result},
    registry,
};

/// How often is looked.
const EVERY: Duration = Duration::from_secs(2);
/// Quotas after which others get their turn.
const STEP: usize = 64;
/// Tenants that a server tells of in its metrics.
const SHOWN: usize = 1000;

/// What a quota looked like when it was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    modified: Revision,
    changes: u64,
}

/// Looks until the server ends.
pub(crate) async fn look_after(server: Arc<Server>) {
    let looking = async {
        let mut seen = HashMap::new();
        loop {
            tokio::time::sleep(EVERY).await;
            let mut now = HashMap::new();
            for partition in server.partitions.names() {
                if let Err(error) = look(&server, &partition, &seen, &mut now).await {
                    tracing::debug!(partition, %error, "quotas are looked at again later");
                }
            }
            seen = now;
        }
    };
    let _ = server.shutdown.run_until_cancelled(looking).await;
}

/// Whether this server is the one that keeps the quotas of a partition.
fn keeps(server: &Server, partition: &str, store: &dyn Store) -> bool {
    let stats = store.stats();
    // All servers of an etcd do; who is late changes nothing.
    server.partitions.is_local(partition)
        && (stats.backend == "etcd" || stats.leader == server.partitions.server_name())
}

async fn look(
    server: &Server,
    partition: &str,
    seen: &HashMap<Arc<str>, Seen>,
    now: &mut HashMap<Arc<str>, Seen>,
) -> Result<()> {
    let Some(store) = server.partitions.store(partition) else { return Ok(()) };
    if !keeps(server, partition, &*store) {
        return Ok(());
    }
    let collection = Collection::new(GROUP, RESOURCE);
    let snapshot = store.read(&collection, ReadAt::Any).await?;
    for (at, (key, entry)) in snapshot.range("", None).enumerate() {
        if at % STEP == STEP - 1 {
            tokio::task::yield_now().await;
        }
        let Some(tenant) = whose(server, partition, key) else { continue };
        let Some(tenants) = store.tenants() else { return Ok(()) };
        let changes = tenants.usage(tenant.as_str()).changes;
        let as_now = Seen { modified: entry.modified, changes };
        if seen.get(key) == Some(&as_now) {
            now.insert(key.clone(), as_now);
            continue;
        }
        let mut stored = Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        let namespaces = server.namespaces_of(&tenant, &stored.object).await?;
        let used = {
            let hard = hard(&stored.object);
            let names = names(&hard, object::name(&stored.object));
            let Some(tenants) = store.tenants() else { return Ok(()) };
            tenants.amounts(tenant.as_str(), namespaces.as_ref(), &names)
        };
        if !renew(&mut stored.object, &used, Timestamp::now()) {
            // What namespaces it is about may change without anything that it counts.
            if namespaces.is_none() {
                now.insert(key.clone(), as_now);
            }
            continue;
        }
        let write = Write::durable(
            collection.clone(),
            key.clone(),
            Expect::At(entry.modified),
            Change::Put(stored.encoded().into()),
        );
        match store.write(write).await {
            // Whoever changed it has it looked at again.
            Ok(_) | Err(StoreError::Conflict { .. } | StoreError::Moving { .. }) => (),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The tenant that a quota is of, if its place is this partition.
fn whose(server: &Server, partition: &str, key: &str) -> Option<TenantName> {
    let tenant = TenantName::parse(key.split('/').next()?).ok()?;
    let place = server.partitions.place(&registry::shard_of_tenant(&tenant));
    (!tenant.is_system() && *place.partition == *partition).then_some(tenant)
}

/// What is measured of a quota: what it limits, and of the platform's always how much there is.
fn names<'a>(hard: &'a Amounts, quota: &str) -> Vec<&'a str> {
    let mut names: Vec<&str> = hard.keys().map(String::as_str).filter(|it| is_kept(it)).collect();
    if quota == PLATFORM {
        names.extend([OBJECTS, BYTES].into_iter().filter(|it| !hard.contains_key(*it)));
    }
    names
}

/// Brings a quota's status up to date: whether there was something to change.
fn renew(quota: &mut Value, used: &Amounts, now: Timestamp) -> bool {
    let told = |of: &Amounts| -> Map<String, Value> {
        of.iter().map(|(name, it)| (name.clone(), it.to_string().into())).collect()
    };
    let (hard, shown) = (told(&hard(quota)), told(used));
    let status = &quota["status"];
    if status["hard"].as_object() == Some(&hard) && status["used"].as_object() == Some(&shown) {
        return false;
    }
    let mut new = json!({"hard": hard, "used": shown});
    if object::name(quota) == PLATFORM {
        let before = amounts::read(status.get("used"));
        let since = status["since"].as_str().map(str::to_owned);
        new["total"] = total(status, &before, used, now).into();
        new["since"] = since.unwrap_or_else(|| now.to_string()).into();
        new["time"] = now.to_string().into();
        if let Some(counted) = status.get("counted") {
            new["counted"] = counted.clone();
        }
    }
    quota["status"] = new;
    true
}

/// Millionths in one.
const MILLIONTHS: i128 = 1_000_000;

/// Sums until now what was used before, in units times seconds.
fn total(status: &Value, before: &Amounts, used: &Amounts, now: Timestamp) -> Map<String, Value> {
    let then = status["time"].as_str().and_then(|it| it.parse::<Timestamp>().ok());
    // A clock that was set back adds nothing.
    let millis = then.map_or(0, |it| (now.as_millisecond() - it.as_millisecond()).max(0));
    let known = |name: &str| status["total"][name].as_str().map_or(0, parse);
    let all = status["total"].as_object().into_iter().flatten().map(|(name, _)| name);
    let all: std::collections::BTreeSet<&String> = all.chain(used.keys()).collect();
    let sum = |name: &String| {
        let was = before.get(name).map_or(0, Quantity::wide_milli);
        known(name).saturating_add(was.saturating_mul(millis.into()))
    };
    all.into_iter().map(|name| (name.clone(), print(sum(name)).into())).collect()
}

pub(super) fn print(millionths: i128) -> String {
    format!("{}.{:06}", millionths / MILLIONTHS, millionths % MILLIONTHS)
}

/// What [`print`] wrote.
pub(super) fn parse(text: &str) -> i128 {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let number = |text: &str| text.parse::<i128>().unwrap_or(0);
    number(whole).saturating_mul(MILLIONTHS).saturating_add(number(part))
}

/// What the platform's quotas say, for metrics: of at most [`SHOWN`] tenants of this server.
#[derive(Debug, Default)]
pub(crate) struct Shown(Vec<Row>);

#[derive(Debug)]
struct Row {
    tenant: TenantName,
    used: Amounts,
    hard: Amounts,
}

impl Shown {
    pub(crate) async fn read(server: &Server) -> Self {
        let mut rows = Vec::new();
        for partition in server.partitions.names() {
            let Some(store) = server.partitions.store(&partition) else { continue };
            let collection = Collection::new(GROUP, RESOURCE);
            if !keeps(server, &partition, &*store) {
                continue;
            }
            // Of a store that cannot be read there is nothing to tell.
            let Ok(snapshot) = store.read(&collection, ReadAt::Any).await else { continue };
            for (key, entry) in snapshot.range("", None) {
                let is_platforms = key.ends_with(&format!("//{PLATFORM}"));
                let Some(tenant) = whose(server, &partition, key).filter(|_| is_platforms) else {
                    continue;
                };
                if rows.len() == SHOWN {
                    break;
                }
                let Ok(quota) = server.parsed.of(&entry.value) else { continue };
                let hard = hard(&quota);
                let Some(tenants) = store.tenants() else { break };
                let mut used = tenants.amounts(tenant.as_str(), None, &names(&hard, PLATFORM));
                let [in_flight, watches] = server.fair.under_way(&tenant);
                for (name, count) in [(IN_FLIGHT, in_flight), (WATCHES, watches)] {
                    let format = insula_api::quantity::Format::DecimalSi;
                    used.insert(name.into(), Quantity::new(count.into(), format));
                }
                rows.push(Row { tenant, used, hard });
            }
        }
        Self(rows)
    }
}

impl Collector for Shown {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        type Which = fn(&Row) -> &Amounts;
        let mut writer = Writer(encoder);
        let families: [(&str, &str, Which); 2] = [
            ("insula_tenant_usage", "What a tenant with a quota uses", |it| &it.used),
            ("insula_tenant_limit", "What a tenant may use", |it| &it.hard),
        ];
        for (name, help, which) in families {
            let mut family = writer.gauges(name, help)?;
            for row in &self.0 {
                for (resource, amount) in which(row) {
                    let labels = [("tenant", row.tenant.as_str()), ("resource", resource)];
                    family.fraction(&labels, amount.wide_milli() as f64 / 1000.0)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(rows: &[(&str, &str)]) -> Amounts {
        let parse = |text: &str| Quantity::parse(text).unwrap();
        rows.iter().map(|(name, it)| ((*name).to_owned(), parse(it))).collect()
    }

    #[test]
    fn what_was_used_is_summed_over_time() {
        let at = |second: i64| Timestamp::from_second(1_000_000 + second).unwrap();
        let mut quota = json!({
            "metadata": {"name": PLATFORM}, "spec": {"hard": {"requests.cpu": "4"}},
        });
        let first = amounts(&[(OBJECTS, "2"), ("requests.cpu", "1500m")]);
        assert!(renew(&mut quota, &first, at(0)));
        assert!(!renew(&mut quota, &first, at(100)), "nothing is written for time that passes");
        let second = amounts(&[(OBJECTS, "3"), ("requests.cpu", "0")]);
        assert!(renew(&mut quota, &second, at(1000)));
        let total = |quota: &Value, name: &str| quota["status"]["total"][name].clone();
        assert_eq!(total(&quota, OBJECTS), "2000.000000");
        assert_eq!(total(&quota, "requests.cpu"), "1500.000000");
        assert_eq!(quota["status"]["since"], at(0).to_string());
        // What is no longer limited keeps its sum; a clock that was set back takes nothing away.
        assert!(renew(&mut quota, &amounts(&[(OBJECTS, "4")]), at(500)));
        assert_eq!(total(&quota, OBJECTS), "2000.000000");
        assert!(renew(&mut quota, &amounts(&[(OBJECTS, "5")]), at(501)));
        assert_eq!(total(&quota, OBJECTS), "2004.000000");
        assert_eq!(total(&quota, "requests.cpu"), "1500.000000");
        assert_eq!(parse(&print(i128::from(u64::MAX) * 77)), i128::from(u64::MAX) * 77);
    }

    #[test]
    fn a_tenants_own_quota_has_no_sums() {
        let mut quota = json!({"metadata": {"name": "own"}, "spec": {"hard": {"pods": "4"}}});
        assert!(renew(&mut quota, &amounts(&[("pods", "1")]), Timestamp::now()));
        let expected = json!({"hard": {"pods": "4"}, "used": {"pods": "1"}});
        assert_eq!(quota["status"], expected);
    }
}
