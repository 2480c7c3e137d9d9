//! What is stored follows the keys: in the background, and when an administrator says so.
//!
//! `GET /insula/encryption` tells how it stands, `POST` makes a pass over all partitions and then
//! tells; `?renew=true` gives every tenant a new data key.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::Method;
use insula_partition::seal::{self, Settings, Standing};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    Server,
    error::{ApiError, Result, chain},
};

/// The path.
pub(crate) const PATH: [&str; 2] = ["insula", "encryption"];

/// How often it is looked whether the keys are others.
const LOOK: Duration = Duration::from_secs(1);

/// How often a pass is made if they are not: data keys that nothing needs any longer are dropped.
const PASS: Duration = Duration::from_secs(3600);

/// How long to wait before a pass that failed is made again.
const AGAIN: Duration = Duration::from_secs(10);

/// Makes passes over the partitions that this server is the first one of, for ever.
pub(crate) async fn look_after(server: Arc<Server>) {
    let mut done: Option<Arc<Settings>> = None;
    let mut due = Instant::now();
    loop {
        let wait = tokio::time::sleep(LOOK);
        if server.shutdown.run_until_cancelled(wait).await.is_none() {
            return;
        }
        let settings = Arc::clone(&server.partitions.vault().settings());
        let is_same = done.as_ref().is_some_and(|it| Arc::ptr_eq(it, &settings));
        if is_same && Instant::now() < due {
            continue;
        }
        due = Instant::now() + PASS;
        if let Some(Err(error)) = server.shutdown.run_until_cancelled(server.tidy_own()).await {
            tracing::warn!(%error, "what is sealed does not follow its keys yet");
            due = Instant::now() + AGAIN;
        }
        done = Some(settings);
    }
}

impl Server {
    async fn tidy_own(&self) -> Result<()> {
        for name in self.partitions.names() {
            let servers = self.partitions.servers_of(&name);
            let is_first =
                servers.first().is_none_or(|it| it.name == self.partitions.server_name());
            if is_first && self.partitions.is_local(&name) {
                self.tidy(&name, false).await?;
            }
        }
        Ok(())
    }

    async fn tidy(&self, name: &str, renew: bool) -> Result<()> {
        let Some(store) = self.partitions.store(name) else { return Ok(()) };
        Ok(Box::pin(seal::pass(&*store, self.partitions.vault(), renew)).await?)
    }

    /// Answers a request for [`PATH`].
    pub(crate) async fn encryption(&self, method: &Method, renew: bool) -> Result<Value> {
        let mut errors: BTreeMap<String, String> = BTreeMap::new();
        let mut all = Standing::default();
        for name in self.partitions.names() {
            let work = async {
                if method == Method::POST {
                    self.tidy(&name, renew).await?;
                }
                let store = self.partitions.store(&name);
                let store = store.ok_or_else(|| ApiError::unavailable("it is not there"))?;
                Ok::<_, ApiError>(seal::standing(&*store, self.partitions.vault()).await?)
            };
            match work.await {
                Ok(standing) => all.add(standing),
                Err(error) => drop(errors.insert(name, chain(&error))),
            }
        }
        let settings = self.partitions.vault().settings();
        let wraps = settings.keys().first().map(|it| it.id());
        let key = |it: &seal::ClusterKey| {
            json!({
                "id": it.id(),
                "name": it.name(),
                "wraps": Some(it.id()) == wraps,
                "dataKeys": all.data_keys.get(it.id()).copied().unwrap_or_default(),
            })
        };
        let mut answer = json!({ "keys": settings.keys().iter().map(key).collect::<Vec<_>>() });
        answer["stored"] = serde_json::to_value(&all).map_err(ApiError::internal)?;
        if !errors.is_empty() {
            answer["partitionsNotSeen"] = json!(errors);
        }
        Ok(answer)
    }
}
