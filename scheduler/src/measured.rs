//! What nodes use, as the metrics API of Kubernetes tells it (`metrics.k8s.io`, which whoever
//! measures serves: a metrics server, or objects of that kind).

use std::{sync::Arc, time::Duration};

use insula_client::{Client, chain};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::requests::{CPU, MEMORY, amount};

/// How often it is asked for: as often as metrics servers measure.
const EVERY: Duration = Duration::from_secs(15);
const PATH: &str = "/apis/metrics.k8s.io/v1beta1/nodes";

/// What a node uses: CPU in thousandths, memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu: i64,
    pub(crate) memory: i64,
}

impl Usage {
    /// With so much more.
    pub(crate) fn more(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_add(other.cpu),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    /// With so much less, and at least nothing.
    pub(crate) fn less(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(other.cpu).max(0),
            memory: self.memory.saturating_sub(other.memory).max(0),
        }
    }
}

/// What is measured of all nodes that are, by their names.
type Usages = Vec<(String, Usage)>;

/// What was measured last, until it is taken. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measurements {
    latest: Arc<Mutex<Option<Usages>>>,
}

impl Measurements {
    /// What was measured since this was called last: of all nodes that are measured.
    pub(crate) fn take(&self) -> Option<Usages> {
        self.latest.lock().take()
    }

    /// Asks again and again, until `shutdown`. What cannot be learned is not known.
    pub(crate) async fn follow(
        self,
        client: Client,
        changed: Arc<Notify>,
        shutdown: CancellationToken,
    ) {
        let mut was_told = false;
        loop {
            let usages = match client.document(PATH).await {
                Ok(list) => {
                    was_told = false;
                    read(&list)
                }
                Err(error) => {
                    if !was_told {
                        tracing::warn!(error = chain(&error), "what nodes use is not known");
                        was_told = true;
                    }
                    Vec::new()
                }
            };
            *self.latest.lock() = Some(usages);
            changed.notify_one();
            if shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                return;
            }
        }
    }
}

fn read(list: &Value) -> Usages {
    let items = list["items"].as_array().into_iter().flatten();
    let usage = |it: &Value| {
        let of = |name: &str| Some(amount(name, &Quantity(it["usage"][name].as_str()?.to_owned())));
        let name = it["metadata"]["name"].as_str()?.to_owned();
        Some((name, Usage { cpu: of(CPU)?, memory: of(MEMORY)? }))
    };
    items.filter_map(usage).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_said_whole_is_not_known() {
        let node = |name: &str, usage: Value| json!({"metadata": {"name": name}, "usage": usage});
        let list = json!({"items": [
            node("a", json!({"cpu": "1500m", "memory": "1Ki"})), node("b", json!({"cpu": "1"})),
            node("c", json!({"cpu": "250000000n", "memory": "1"})), {},
        ]});
        let usage = |cpu, memory| Usage { cpu, memory };
        assert_eq!(read(&list), [("a".into(), usage(1500, 1024)), ("c".into(), usage(250, 1))]);
    }
}
