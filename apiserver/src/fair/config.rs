//! What a tenant says of its own requests, read where it lies and kept until it changes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use http::{Method, Request, header};
use insula_api::names::TenantName;
use insula_partition::{
    snapshot::Snapshot,
    store::{Collection, ReadAt, Store as _},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use xxhash_rust::xxh3::Xxh3Default;

use super::{
    account::Account,
    flows::{Flows, LevelObject, SchemaObject},
};
use crate::{
    Server,
    body::full,
    error::Result,
    identity::{Identity, MASTERS},
    registry,
    scoped::Scoped,
};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// As upstream's servers call themselves when they write the condition.
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
/// After how many milliseconds it is looked whether anything has changed.
const LOOK: u64 = 100;
/// How long a request waits for what its tenant says, and then goes without.
const PATIENCE: Duration = Duration::from_millis(200);

/// What an account knows of its tenant's objects.
#[derive(Debug, Default)]
pub(super) struct Known {
    made: ArcSwapOption<Made>,
    /// In milliseconds: until then nobody looks.
    until: AtomicU64,
    was_used: AtomicBool,
}

impl Known {
    /// Whether it was asked for since somebody asked this.
    pub(super) fn was_used(&self) -> bool {
        self.was_used.swap(false, Relaxed)
    }
}

#[derive(Debug)]
struct Made {
    sources: [Snapshot; 2],
    digest: u64,
    seats: u32,
    flows: Arc<Flows>,
}

/// What changes with any of these objects of `tenant`, and with nobody else's.
fn digest(prefix: &str, sources: &[Snapshot; 2]) -> u64 {
    let mut hasher = Xxh3Default::new();
    for source in sources {
        for (key, entry) in source.range(prefix, None) {
            hasher.update(key.as_bytes());
            hasher.update(&entry.modified.0.to_le_bytes());
        }
        hasher.update(&[0xff]);
    }
    hasher.digest()
}

/// The objects of a tenant. What cannot be read is as if it were not there.
fn objects<T: DeserializeOwned>(prefix: &str, source: &Snapshot) -> Vec<T> {
    let read = |(key, entry): (&Arc<str>, &insula_partition::snapshot::Entry)| {
        let read = serde_json::from_slice(&entry.value.bytes());
        read.inspect_err(|error| tracing::error!(%key, %error, "it cannot be read")).ok()
    };
    source.range(prefix, None).filter_map(read).collect()
}

impl Server {
    /// The flows of `tenant`. What was changed a tenth of a second ago is in force.
    pub(super) async fn flows_of(&self, tenant: &TenantName, account: &Account) -> Arc<Flows> {
        let known = &account.known;
        known.was_used.store(true, Relaxed);
        let now = self.fair.millis();
        let made = known.made.load_full();
        let until = known.until.load(Relaxed);
        let is_ours = || known.until.compare_exchange(until, now + LOOK, Relaxed, Relaxed).is_ok();
        if until <= now && is_ours() {
            let looked = self.looked(tenant, account, made.as_deref());
            match tokio::time::timeout(PATIENCE, looked).await {
                Ok(Ok(flows)) => return flows,
                Ok(Err(error)) => {
                    tracing::debug!(%tenant, %error, "its flow schemas cannot be read now");
                }
                Err(_) => tracing::debug!(%tenant, "its flow schemas cannot be read in time"),
            }
        }
        match made {
            Some(made) => made.flows.clone(),
            None => {
                let seats = self.fair.seats_of(account);
                Arc::new(Flows::new(&[], &[], seats, &self.fair.counters, None))
            }
        }
    }

    async fn looked(
        &self,
        tenant: &TenantName,
        account: &Account,
        before: Option<&Made>,
    ) -> Result<Arc<Flows>> {
        let key = registry::shard_of_tenant(tenant);
        let store = Scoped::new(self.partitions.place(&key).store, key);
        let read =
            async |resource: &str| store.read(&Collection::new(GROUP, resource), ReadAt::Any).await;
        let sources = [read("flowschemas").await?, read("prioritylevelconfigurations").await?];
        account.follow(self.rates_of(tenant).await?);
        let seats = self.fair.seats_of(account);
        let is_same = |made: &&Made| {
            made.sources.iter().zip(&sources).all(|(old, new)| old.is_same(new))
                && made.seats == seats
        };
        if let Some(made) = before.filter(is_same) {
            return Ok(made.flows.clone());
        }
        let prefix = registry::key(tenant, "", "");
        let digest = digest(&prefix, &sources);
        let flows = match before.filter(|it| it.digest == digest && it.seats == seats) {
            Some(made) => made.flows.clone(),
            None => {
                let schemas: Vec<SchemaObject> = objects(&prefix, &sources[0]);
                let levels: Vec<LevelObject> = objects(&prefix, &sources[1]);
                self.settle(tenant, &schemas, &levels);
                let flows = before.map(|it| &*it.flows);
                Arc::new(Flows::new(&schemas, &levels, seats, &self.fair.counters, flows))
            }
        };
        let made = Made { sources, digest, seats, flows: flows.clone() };
        account.known.made.store(Some(Arc::new(made)));
        Ok(flows)
    }

    /// Has schemas say whether their levels are there.
    fn settle(&self, tenant: &TenantName, schemas: &[SchemaObject], levels: &[LevelObject]) {
        let wrong = schemas.iter().filter_map(|it| {
            let [status, reason, message] = it.dangling(levels)?;
            let name = it.metadata.name.clone();
            let body = json!({
                "apiVersion": format!("{GROUP}/v1"), "kind": "FlowSchema",
                "metadata": {"name": name},
                "status": {"conditions": [{
                    "type": "Dangling", "status": status, "reason": reason, "message": message,
                    "lastTransitionTime": insula_api::time::now(),
                }]},
            });
            Some((name, body.to_string()))
        });
        let wrong: Vec<(String, String)> = wrong.collect();
        let (false, Some(server)) = (wrong.is_empty(), self.myself()) else { return };
        let tenant = tenant.clone();
        self.tasks.spawn(async move {
            let caller = Identity::new(TenantName::system(), "system:apiserver", &[MASTERS]);
            for (name, body) in wrong {
                let uri = format!(
                    "/tenants/{tenant}/apis/{GROUP}/v1/flowschemas/{name}/status\
                     ?fieldManager={MANAGER}&force=true"
                );
                let request = Request::builder()
                    .method(Method::PATCH)
                    .uri(uri)
                    .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
                    .body(full(body));
                let Ok(request) = request else { continue };
                let answer = server.handle_trusted(request, caller.clone()).await;
                if !answer.status().is_success() {
                    // The next change, or the next server that looks, tries again.
                    let code = answer.status().as_u16();
                    tracing::info!(%tenant, name, code, "a flow schema's condition is not written");
                }
            }
        });
    }
}
