//! When requests begin.
//!
//! At a rate (an open loop) each has a moment at which it is meant to begin, whatever became of
//! those before; latency counts from then, so that a target that stalls is seen to be slow by all
//! who would have asked meanwhile. With a concurrency (a closed loop) one begins when another has
//! ended.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{measure::Recorder, scenario::Pace};

/// Requests at the same time, if a step does not say.
const CONCURRENCY: u64 = 8;
/// How long one who asks waits after a failure, in a closed loop: a target that is down is not to
/// be asked as fast as it refuses.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// Makes requests until there have been enough, time is over, or `stop`. What `each` returns is
/// whether it was answered.
pub(crate) async fn drive<F, R>(
    pace: Pace,
    recorder: &Arc<Recorder>,
    stop: &CancellationToken,
    each: F,
) where
    F: Fn(u64, Instant) -> R + Send + Sync + 'static,
    R: Future<Output = bool> + Send + 'static,
{
    let begun = Instant::now();
    let end = pace.duration.map(|it| begun + it);
    let turns = Turns { pace, begun, end, stop, each: Arc::new(each) };
    match pace.rate {
        Some(rate) => turns.at_rate(rate, recorder).await,
        None => turns.one_by_one().await,
    }
}

/// Requests that follow each other.
struct Turns<'a, F> {
    pace: Pace,
    begun: Instant,
    end: Option<Instant>,
    stop: &'a CancellationToken,
    each: Arc<F>,
}

impl<F, R> Turns<'_, F>
where
    F: Fn(u64, Instant) -> R + Send + Sync + 'static,
    R: Future<Output = bool> + Send + 'static,
{
    /// An open loop.
    async fn at_rate(self, rate: f64, recorder: &Arc<Recorder>) {
        let Self { pace, begun, end, stop, each } = self;
        let places = usize::try_from(pace.max_in_flight).unwrap_or(usize::MAX);
        let places = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        let under_way = TaskTracker::new();
        // Behind because the target took too long, not because we were late.
        let mut is_held = false;
        for turn in 0..pace.count.unwrap_or(u64::MAX) {
            #[allow(clippy::cast_precision_loss, reason = "turns are far below 2^53")]
            let intended = begun + Duration::from_secs_f64(turn as f64 / rate);
            if end.is_some_and(|end| end <= intended) || stop.is_cancelled() {
                break;
            }
            if Instant::now() < intended {
                is_held = false;
                tokio::select! {
                    () = tokio::time::sleep_until(intended.into()) => (),
                    () = stop.cancelled() => break,
                }
            }
            if !is_held {
                recorder.own.began(Instant::now().saturating_duration_since(intended));
            }
            let place = match places.clone().try_acquire_owned() {
                Ok(place) => place,
                Err(_) => {
                    is_held = true;
                    recorder.own.held_back();
                    tokio::select! {
                        place = places.clone().acquire_owned() => match place {
                            Ok(place) => place,
                            Err(_) => break,
                        },
                        () = stop.cancelled() => break,
                    }
                }
            };
            let (request, stop) = (each(turn, intended), stop.clone());
            under_way.spawn(async move {
                // Who stops is told nothing of what was under way.
                let _ = stop.run_until_cancelled(request).await;
                drop(place);
            });
        }
        under_way.close();
        under_way.wait().await;
    }

    /// A closed loop.
    async fn one_by_one(self) {
        let Self { pace, end, stop, each, .. } = self;
        let turns = Arc::new(AtomicU64::new(0));
        let count = pace.count.unwrap_or(u64::MAX);
        let workers = TaskTracker::new();
        for _ in 0..pace.concurrency.unwrap_or(CONCURRENCY).min(count) {
            let (turns, each, stop) = (turns.clone(), each.clone(), stop.clone());
            workers.spawn(async move {
                let work = async {
                    loop {
                        let (turn, now) = (turns.fetch_add(1, Ordering::Relaxed), Instant::now());
                        if count <= turn || end.is_some_and(|end| end <= now) {
                            return;
                        }
                        if !each(turn, now).await {
                            tokio::time::sleep(AFTER_FAILURE).await;
                        }
                    }
                };
                let _ = stop.run_until_cancelled(work).await;
            });
        }
        workers.close();
        workers.wait().await;
    }
}
