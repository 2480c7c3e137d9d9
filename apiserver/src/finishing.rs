//! Work that is finished even if nobody waits for it any more.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::runtime::Handle;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::error::{ApiError, Result};

/// Whoever waits drives it, which costs nothing; dropped before its end, the rest becomes a task.
///
/// Call within a runtime.
pub(crate) struct Finishing<'t, T: Send + 'static> {
    tasks: &'t TaskTracker,
    /// Whoever shuts down waits for it from the beginning.
    _counted: TaskTrackerToken,
    runtime: Handle,
    /// Until it has ended.
    work: Option<BoxFuture<'static, T>>,
}

impl<'t, T: Send + 'static> Finishing<'t, Result<T>> {
    /// A panic of `work` is an error of who waits for it.
    pub(crate) fn new(
        tasks: &'t TaskTracker,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Self {
        let work = AssertUnwindSafe(work).catch_unwind().map(|ended| {
            ended.unwrap_or_else(|_| Err(ApiError::internal("the request could not be handled")))
        });
        let (counted, runtime) = (tasks.token(), Handle::current());
        Self { tasks, _counted: counted, runtime, work: Some(work.boxed()) }
    }
}

impl<T: Send + 'static> Future for Finishing<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // Nobody asks what has ended.
        let Some(work) = &mut self.work else { return Poll::Pending };
        let ended = work.poll_unpin(context);
        if ended.is_ready() {
            self.work = None;
        }
        ended
    }
}

impl<T: Send + 'static> Drop for Finishing<'_, T> {
    fn drop(&mut self) {
        if let Some(rest) = self.work.take() {
            self.tasks.spawn_on(rest, &self.runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    #[tokio::test]
    async fn who_waits_gets_what_it_comes_to() {
        let tasks = TaskTracker::new();
        let found = Finishing::new(&tasks, async {
            tokio::task::yield_now().await;
            Ok(7)
        });
        assert_eq!(tasks.len(), 1, "whoever shuts down waits for it");
        assert_eq!(found.await.unwrap(), 7);
        assert_eq!(tasks.len(), 0);
    }

    #[tokio::test]
    async fn goes_on_when_nobody_waits_any_more() {
        let tasks = TaskTracker::new();
        let (go, may) = oneshot::channel::<()>();
        let (says, said) = oneshot::channel();
        let work = Finishing::new(&tasks, async move {
            may.await.map_err(ApiError::internal)?;
            says.send(7).map_err(ApiError::internal)
        });
        timeout(Duration::from_millis(1), work).await.unwrap_err();
        assert_eq!(tasks.len(), 1, "and for what became a task");
        go.send(()).unwrap();
        assert_eq!(said.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn is_finished_even_if_it_was_never_begun() {
        let tasks = TaskTracker::new();
        let (says, said) = oneshot::channel();
        drop(Finishing::new(&tasks, async move { says.send(7).map_err(ApiError::internal) }));
        assert_eq!(said.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let tasks = TaskTracker::new();
        let work = Finishing::<Result<()>>::new(&tasks, async { panic!("as the test wants") });
        assert_eq!(work.await.unwrap_err().code.as_u16(), 500);
    }
}
