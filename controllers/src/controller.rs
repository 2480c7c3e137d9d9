//! What a controller is, and the loop that runs one.

use std::{fmt, future::poll_fn, pin::pin, sync::Arc, time::Duration};

use insula_client::chain;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use insula_membership::{Ownership, Permit};

use crate::queue::{Key, Queue};

/// When to look at a key again if nothing happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// When something that the controller watches asks for it.
    WhenChanged,
    /// Then at the latest.
    After(Duration),
}

/// Why a reconcile did not reach its end. The key is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A conflict, or that an object is gone, is nothing that anybody is told of.
    #[error("a request failed")]
    Request(#[from] insula_client::Error),
    /// The object is not what the API server should have let pass.
    #[error("{object} is invalid: {why}")]
    Invalid { object: String, why: String },
    /// The rest is not worth an error of its own.
    #[error("{0}")]
    Incomplete(String),
}

impl ReconcileError {
    /// Another writer was faster, or the object is gone: nothing an operator must know.
    fn is_expected(&self) -> bool {
        match self {
            Self::Request(error) => {
                error.is_conflict()
                    || error.is_superseded()
                    || error.is_not_found()
                    || error.is_already_exists()
                    || error.is_namespace_terminating()
            }
            Self::Invalid { .. } | Self::Incomplete(_) => false,
        }
    }

    /// Another replica has taken over.
    fn is_superseded(&self) -> bool {
        matches!(self, Self::Request(error) if error.is_superseded())
    }
}

/// Brings objects of one sort to what they ask for.
///
/// A reconcile gets a key and nothing else: after a restart, or in another replica, nobody could
/// tell it what changed. It may be run any number of times.
pub trait Controller: Send + Sync + 'static {
    /// As upstream names it in events and user agents.
    const NAME: &'static str;
    /// Reconciles at the same time.
    const WORKERS: usize = 8;
    /// How long a key is left alone after a pass that succeeded. What changes meanwhile is seen in
    /// one pass.
    const REST: Rest = Rest::NONE;
    /// What it reconciles, by name.
    type Key: Key;

    /// Registers with the informers whatever must lead to a reconcile.
    fn watch(self: &Arc<Self>, queue: &Queue<Self::Key>);

    /// Waits until all that a reconcile reads is there. `false` if that will never be.
    fn synced(&self) -> impl Future<Output = bool> + Send;

    /// Brings what `key` names to what it asks for. Never runs twice at once for one key.
    fn reconcile(
        &self,
        key: &Self::Key,
    ) -> impl Future<Output = Result<Next, ReconcileError>> + Send;
}

/// How long keys rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// At least so long.
    pub least: Duration,
    /// And so many times as long as the pass kept a processor busy.
    pub times: u32,
}

impl Rest {
    pub const NONE: Self = Self { least: Duration::ZERO, times: 0 };

    /// For those that count pods. Pods that become ready one after the other take longer than this;
    /// of those that do so together each would be written down alone.
    pub const COUNTING: Self = Self { least: Duration::from_millis(100), times: 0 };

    /// For those whose every pass looks at all pods that a selector matches: while ever more of them
    /// change, a key takes a tenth of a processor.
    pub const LOOKING: Self = Self { least: Duration::ZERO, times: 9 };

    /// The longest, whatever a pass took.
    const MOST: Duration = Duration::from_secs(10);
    /// What is shorter than this is not worth a clock.
    const WORTH: Duration = Duration::from_millis(10);

    /// After a pass that kept a processor busy for so long.
    pub(crate) fn after(self, busy: Duration) -> Duration {
        let rest = busy.saturating_mul(self.times).min(Self::MOST);
        if rest < Self::WORTH { self.least } else { rest.max(self.least) }
    }
}

/// Learns of each reconcile, and of what a replica among others has; for metrics.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    fn reconciled(&self, controller: &'static str, succeeded: bool, took: Duration);
    fn waiting(&self, controller: &'static str, n_keys: usize);
    /// So many objects of tenants are in the replica's local copies.
    fn copied(&self, n_objects: usize);
}

/// Observes nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn reconciled(&self, _controller: &'static str, _succeeded: bool, _took: Duration) {}
    fn waiting(&self, _controller: &'static str, _n_keys: usize) {}
    fn copied(&self, _n_objects: usize) {}
}

/// Runs `controller` until `shutdown`; then lets the reconciles that have begun end.
pub async fn run<C: Controller>(
    controller: Arc<C>,
    ownership: Arc<dyn Ownership>,
    observer: Arc<dyn Observer>,
    shutdown: CancellationToken,
) {
    let queue = Queue::new(C::NAME, ownership.clone(), C::REST);
    controller.watch(&queue);
    match shutdown.run_until_cancelled(controller.synced()).await {
        Some(true) => tracing::info!(controller = C::NAME, "running"),
        Some(false) | None => return,
    }
    let closing = queue.clone();
    let close_at_shutdown = async move {
        shutdown.cancelled().await;
        closing.close();
    };
    let dispatch = async {
        let tasks = TaskTracker::new();
        let places = Arc::new(Semaphore::new(C::WORKERS));
        // A closed semaphore does not occur: nobody closes it.
        while let Ok(place) = places.clone().acquire_owned().await {
            let Some(key) = queue.next().await else { break };
            observer.waiting(C::NAME, queue.len());
            let Some(permit) = ownership.begin(key.tenant()) else {
                queue.done(&key, Duration::ZERO);
                continue;
            };
            let pass = Pass {
                controller: controller.clone(),
                queue: queue.clone(),
                observer: observer.clone(),
                ownership: ownership.clone(),
                permit,
                key,
                busy: Duration::ZERO,
            };
            let span = tracing::debug_span!("reconcile", controller = C::NAME, key = %pass.key);
            tasks.spawn(
                async move {
                    pass.run().await;
                    drop(place);
                }
                .instrument(span),
            );
        }
        tasks.close();
        tasks.wait().await;
    };
    tokio::join!(close_at_shutdown, dispatch);
}

/// One reconcile of one key. Gives the key back when dropped, even by a panic.
struct Pass<C: Controller> {
    controller: Arc<C>,
    queue: Queue<C::Key>,
    observer: Arc<dyn Observer>,
    ownership: Arc<dyn Ownership>,
    permit: Permit,
    key: C::Key,
    /// How long it has kept a processor busy.
    busy: Duration,
}

impl<C: Controller> Pass<C> {
    async fn run(mut self) {
        let began = Instant::now();
        let mut busy = Duration::ZERO;
        let work = counted(&mut busy, self.controller.reconcile(&self.key));
        let result = match self.permit.fence.clone() {
            Some(fence) => fence.around(work).await,
            None => work.await,
        };
        self.busy = busy;
        self.observer.reconciled(C::NAME, result.is_ok(), began.elapsed());
        match result {
            Ok(next) => {
                self.queue.succeeded(&self.key);
                if let Next::After(delay) = next {
                    self.queue.add_after(self.key.clone(), delay);
                }
            }
            Err(error) => {
                if error.is_superseded() {
                    self.ownership.refused();
                }
                let delay = self.queue.retry(self.key.clone());
                // What goes away by itself within a second or so is no news.
                if error.is_expected() || delay < Duration::from_secs(1) {
                    tracing::debug!(error = chain(&error), ?delay, "to be retried");
                } else {
                    let (controller, key) = (C::NAME, &self.key);
                    tracing::warn!(controller, %key, error = chain(&error), ?delay, "reconcile failed");
                }
            }
        }
    }
}

impl<C: Controller> Drop for Pass<C> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(controller = C::NAME, key = %self.key, "reconcile panicked");
            self.queue.retry(self.key.clone());
        }
        self.queue.done(&self.key, self.busy);
    }
}

/// Counts how long `work` keeps a processor busy.
async fn counted<F: Future>(busy: &mut Duration, work: F) -> F::Output {
    let mut work = pin!(work);
    poll_fn(|context| {
        let began = std::time::Instant::now();
        let polled = work.as_mut().poll(context);
        *busy += began.elapsed();
        polled
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use insula_api::names::TenantName;
    use insula_client::ObjectKey;

    use super::*;
    use insula_membership::Sole;

    /// Fails, then panics, then asks to be called once more, then is content.
    #[derive(Default)]
    struct Moody {
        n_calls: AtomicUsize,
        n_running: AtomicUsize,
    }

    impl Controller for Moody {
        const NAME: &'static str = "moody";
        type Key = ObjectKey;

        fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
            queue.add(ObjectKey::new(&TenantName::parse("acme").unwrap(), "ns", "a"));
        }

        async fn synced(&self) -> bool {
            true
        }

        async fn reconcile(&self, _key: &ObjectKey) -> Result<Next, ReconcileError> {
            assert_eq!(self.n_running.fetch_add(1, Ordering::SeqCst), 0, "never twice at once");
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.n_running.fetch_sub(1, Ordering::SeqCst);
            match self.n_calls.fetch_add(1, Ordering::SeqCst) {
                0 => Err(ReconcileError::Incomplete("not yet".into())),
                1 => panic!("a bug"),
                2 => Ok(Next::After(Duration::from_secs(60))),
                _ => Ok(Next::WhenChanged),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_panics_are_retried_and_delays_kept() {
        let controller = Arc::new(Moody::default());
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(
            controller.clone(),
            Arc::new(Sole),
            Arc::new(Unobserved),
            shutdown.clone(),
        ));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(controller.n_calls.load(Ordering::SeqCst), 3);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(controller.n_calls.load(Ordering::SeqCst), 4);
        shutdown.cancel();
        running.await.unwrap();
    }

    /// Takes a minute.
    struct Slow {
        n_ended: AtomicUsize,
    }

    impl Controller for Slow {
        const NAME: &'static str = "slow";
        type Key = ObjectKey;

        fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
            for name in 0..20 {
                let acme = TenantName::parse("acme").unwrap();
                queue.add(ObjectKey::new(&acme, "ns", &name.to_string()));
            }
        }

        async fn synced(&self) -> bool {
            true
        }

        async fn reconcile(&self, _key: &ObjectKey) -> Result<Next, ReconcileError> {
            tokio::time::sleep(Duration::from_secs(60)).await;
            self.n_ended.fetch_add(1, Ordering::SeqCst);
            Ok(Next::WhenChanged)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_lets_what_runs_end_and_begins_nothing() {
        let controller = Arc::new(Slow { n_ended: AtomicUsize::new(0) });
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(
            controller.clone(),
            Arc::new(Sole),
            Arc::new(Unobserved),
            shutdown.clone(),
        ));
        tokio::time::sleep(Duration::from_secs(1)).await;
        shutdown.cancel();
        running.await.unwrap();
        assert_eq!(controller.n_ended.load(Ordering::SeqCst), Slow::WORKERS);
    }
}
