//! Bindings of one partition go together, where the server takes them so.
//!
//! Nothing is waited for: a request carries what has come while the ones before were under way.
//! So one pod is bound at once, and of many in a hurry hundreds go by one request.

use std::{collections::HashMap, sync::Arc, time::Duration};

use insula_api::{kinds::MAX_POD_BINDINGS, names::TenantName};
use insula_client::{Client, Error, Informer, ObjectKey, Tenant, chain};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::writer::{Ready, Writer};

/// Requests for a partition at the same time.
const PER_PARTITION: usize = 2;
/// How long to wait before a server that did not answer is asked again what it offers.
const PAUSE: Duration = Duration::from_secs(1);
/// Where the server lists what it offers.
const GROUP: &str = "/apis/insula.io/v1";

/// See the module.
#[derive(Debug)]
pub(super) struct Batches {
    writer: Arc<Writer>,
    tenants: Informer<Tenant>,
    lines: Mutex<HashMap<String, mpsc::UnboundedSender<Ready>>>,
}

impl Batches {
    /// Returns once it is known whether the server takes bindings together; `None` if not.
    pub(super) async fn find(
        writer: Arc<Writer>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Option<Self> {
        loop {
            match offers(writer.client(), "partitions/bindings").await {
                Ok(true) => break,
                Ok(false) => return None,
                Err(error) => {
                    tracing::debug!(error = chain(&error), "what is offered is not known yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        let tenants = writer.client().system().api::<Tenant>();
        let tenants = Informer::builder(tenants)
            .trim(|tenant: &mut Tenant| {
                tenant.spec = Default::default();
                if let Some(status) = &mut tenant.status {
                    status.conditions = Vec::new();
                }
            })
            .start(tasks, shutdown.clone());
        tenants.synced().await.then(|| Self { writer, tenants, lines: Mutex::default() })
    }

    /// Takes a pod whose tenant lives on a known partition; else gives it back.
    pub(super) fn take(&self, ready: Ready) -> Result<(), Ready> {
        let tenant = &ready.pod.tenant;
        let key = ObjectKey::new(&TenantName::system(), "", tenant.as_str());
        let known = self.tenants.get(&key);
        let status = known.as_ref().and_then(|it| it.status.as_ref());
        let Some(partition) = status.and_then(|it| it.partition.as_deref()) else {
            return Err(ready);
        };
        let mut lines = self.lines.lock();
        let line = lines.entry(partition.to_owned()).or_insert_with(|| {
            let (line, waiting) = mpsc::unbounded_channel();
            let work = work(self.writer.clone(), partition.to_owned(), waiting);
            self.writer.tasks().spawn(work);
            line
        });
        // Its end is there as long as this.
        line.send(ready).map_err(|error| error.0)
    }
}

/// Whether the server has this resource of ours.
pub(crate) async fn offers(client: &Client, resource: &str) -> Result<bool, Error> {
    match client.document(GROUP).await {
        Ok(list) => {
            let mut resources = list["resources"].as_array().into_iter().flatten();
            Ok(resources.any(|it| it["name"] == resource))
        }
        Err(error) if error.is_not_found() || error.is_forbidden() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends what waits for a partition, until nothing will come any more.
async fn work(writer: Arc<Writer>, partition: String, mut waiting: mpsc::UnboundedReceiver<Ready>) {
    let places = Arc::new(Semaphore::new(PER_PARTITION));
    // A closed semaphore does not occur: nobody closes it.
    while let Ok(place) = places.clone().acquire_owned().await {
        let mut all = Vec::new();
        if waiting.recv_many(&mut all, MAX_POD_BINDINGS).await == 0 {
            return;
        }
        let (writer, partition) = (writer.clone(), partition.clone());
        writer.clone().tasks().spawn(async move {
            writer.many(&partition, all).await;
            drop(place);
        });
    }
}
