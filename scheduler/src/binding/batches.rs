//! Bindings of one partition go together, where the server takes them so.
//!
//! Nothing is waited for: a request carries what has come while the ones before were under way.
//! So one pod is bound at once, and of many in a hurry hundreds go by one request.

use std::{collections::HashMap, sync::Arc};

use insula_api::{kinds::MAX_POD_BINDINGS, names::TenantName};
use insula_client::{Informer, ObjectKey, Tenant};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::writer::{Ready, Writer};
use crate::offers::{OURS, offers};

/// Requests for a partition at the same time.
const PER_PARTITION: usize = 2;
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
        if !offers(writer.client(), OURS, "partitions/bindings").await {
            return None;
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
