//! Runs a scenario: its steps in order, those in the background beside them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    faults::{self, Means},
    follow,
    measure::Recorder,
    nodes::RunningNodes,
    places::Places,
    pool::Pool,
    progress::Progress,
    report::StepReport,
    scenario::{Scenario, Step},
    target::{Resource, Target, prefix},
    template::Template,
    work::Load,
};

/// How long what was stopped may take to end.
const END: Duration = Duration::from_secs(5);
/// How long watches are listened to after the last step.
const LAST_EVENTS: Duration = Duration::from_millis(500);

/// A template that is ready to be used.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) template: Template,
    pub(crate) resource: Resource,
    pub(crate) is_pod: bool,
    /// Pods that an object has made, as it is written.
    pub(crate) n_pods: u64,
}

impl Prepared {
    /// As measurements call the resource: `pods`, `deployments.apps`.
    pub(crate) fn name(&self) -> String {
        let group = self.resource.base.strip_prefix("/apis/").and_then(|it| it.split('/').next());
        match group {
            Some(group) => format!("{}.{group}", self.resource.plural),
            None => self.resource.plural.clone(),
        }
    }
}

/// A template, and the group of tenants that has its objects.
type PoolKey = (String, Option<String>);

/// A scenario that runs.
pub(crate) struct Run {
    pub(crate) id: String,
    pub(crate) scenario: Scenario,
    pub(crate) target: Target,
    pub(crate) places: Places,
    pub(crate) prepared: BTreeMap<String, Arc<Prepared>>,
    pools: Mutex<BTreeMap<PoolKey, Arc<Pool>>>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) means: Vec<(String, Means)>,
    /// Whether watches are told of what is written, so that their lag is to be measured.
    pub(crate) is_watched: bool,
    pub(crate) nodes: tokio::sync::Mutex<Option<Box<dyn RunningNodes>>>,
    pub(crate) tasks: TaskTracker,
    /// The steps are done, and nothing is measured any more.
    pub(crate) over: CancellationToken,
    pub(crate) progress: Progress,
}

impl Run {
    #[allow(clippy::too_many_arguments, reason = "all that a run is made of, put together once")]
    pub(crate) fn new(
        id: String,
        scenario: Scenario,
        target: Target,
        places: Places,
        prepared: BTreeMap<String, Arc<Prepared>>,
        recorder: Arc<Recorder>,
        means: Vec<(String, Means)>,
        progress: Progress,
    ) -> Self {
        Self {
            is_watched: scenario.watches(),
            id,
            scenario,
            target,
            places,
            prepared,
            pools: Mutex::default(),
            recorder,
            means,
            nodes: tokio::sync::Mutex::new(None),
            tasks: TaskTracker::new(),
            over: CancellationToken::new(),
            progress,
        }
    }

    /// The objects of a template in a group.
    pub(crate) fn pool(&self, template: &str, group: Option<&str>) -> Arc<Pool> {
        let key = (template.to_owned(), group.map(str::to_owned));
        let mut pools = self.pools.lock();
        let new = || {
            let namespaced = self.prepared.get(template).is_none_or(|it| it.resource.namespaced);
            // Where no namespace of ours tells objects of runs apart, the name does.
            let run = if namespaced { String::new() } else { format!("lt-{}-", self.id) };
            let group_part = group.map_or_else(String::new, |it| format!("{it}-"));
            let name = format!("{run}{template}-{group_part}");
            Arc::new(Pool::new(name, self.places.of(group)))
        };
        pools.entry(key).or_insert_with(new).clone()
    }

    /// The path of a resource's objects everywhere.
    pub(crate) fn everywhere(&self, resource: &Resource) -> String {
        let all = self.target.has_tenants.then_some("all");
        format!("{}{}/{}", prefix(all), resource.base, resource.plural)
    }

    /// Pods that should come of what was created.
    pub(crate) fn n_pods_expected(&self) -> u64 {
        let pools = self.pools.lock();
        let of = |((template, _), pool): (&PoolKey, &Arc<Pool>)| {
            self.prepared.get(template).map_or(0, |it| it.n_pods * pool.n_asked())
        };
        pools.iter().map(of).sum()
    }

    /// Does all steps; what each of them did, and why it ended early, if it did.
    pub(crate) async fn steps(
        self: &Arc<Self>,
        shutdown: &CancellationToken,
    ) -> (Vec<StepReport>, Option<String>) {
        let done: Arc<Mutex<BTreeMap<usize, StepReport>>> = Arc::default();
        // Ends with the last step in the foreground.
        let stop = shutdown.child_token();
        let background = TaskTracker::new();
        let mut failure = None;
        for (index, step) in self.scenario.steps.iter().enumerate() {
            if shutdown.is_cancelled() {
                break;
            }
            if step.work().is_some_and(|it| it.pace.background) {
                let (run, stop, done) = (self.clone(), stop.clone(), done.clone());
                background.spawn(async move {
                    let (report, failed) = run.step(index, &stop).await;
                    if let Some(failed) = failed {
                        tracing::warn!(
                            step = report.name,
                            failed,
                            "a step in the background failed"
                        );
                    }
                    done.lock().insert(index, report);
                });
                continue;
            }
            let (report, failed) = self.step(index, &stop).await;
            done.lock().insert(index, report);
            if failed.is_some() {
                failure = failed;
                break;
            }
        }
        // Those in the background that end by themselves are waited for.
        background.close();
        let endless =
            self.scenario.steps.iter().filter_map(Step::work).any(|it| {
                it.pace.background && it.pace.count.is_none() && it.pace.duration.is_none()
            });
        if !endless && failure.is_none() {
            tokio::select! {
                () = background.wait() => (),
                () = shutdown.cancelled() => (),
            }
        }
        if self.is_watched && !shutdown.is_cancelled() {
            // What was written last is still on its way to watches.
            tokio::time::sleep(LAST_EVENTS).await;
        }
        stop.cancel();
        self.over.cancel();
        self.tasks.close();
        let ended = async {
            background.wait().await;
            self.tasks.wait().await;
        };
        if tokio::time::timeout(END, ended).await.is_err() {
            tracing::warn!("some requests did not end when they were stopped");
        }
        let reports = std::mem::take(&mut *done.lock()).into_values().collect();
        (reports, failure)
    }

    async fn step(
        self: &Arc<Self>,
        index: usize,
        stop: &CancellationToken,
    ) -> (StepReport, Option<String>) {
        let name = self.scenario.step_name(index);
        let begun = Instant::now();
        self.progress.step(&name);
        let done = match self.scenario.steps.get(index) {
            Some(step) => {
                let work = Box::pin(self.act(&name, step, stop));
                stop.run_until_cancelled(work).await.unwrap_or(Ok(0))
            }
            None => Ok(0),
        };
        let (verb, rate) = self
            .scenario
            .steps
            .get(index)
            .map_or(("", None), |it| (it.verb(), it.work().and_then(|it| it.pace.rate)));
        let report = StepReport {
            name: name.clone(),
            verb: verb.to_owned(),
            began: begun.saturating_duration_since(self.recorder.begun).as_secs_f64(),
            seconds: begun.elapsed().as_secs_f64(),
            wanted_rate: rate,
            failure: done.as_ref().err().cloned(),
        };
        self.progress.ended(&name, report.seconds, report.failure.as_deref());
        (report, done.err().map(|it| format!("step {name}: {it}")))
    }

    async fn act(
        self: &Arc<Self>,
        name: &str,
        step: &Step,
        stop: &CancellationToken,
    ) -> Result<u64, String> {
        if let (Some(work), Some(load)) = (step.work(), Load::new(self, name, step)) {
            load.drive(step, work.pace, stop).await;
            return Ok(0);
        }
        match step {
            Step::Watch(it) => follow::open(self, name, it, stop).await,
            Step::WaitFor(it) => faults::wait_for(self, it).await,
            Step::Kill(it) => faults::kill(self, it).await,
            Step::MoveTenant(it) => faults::move_tenants(self, name, it).await,
            Step::Storm(it) => faults::storm(self, name, it).await,
            Step::Measure(_) => {
                self.recorder.measure_anew();
                Ok(0)
            }
            Step::Pause(it) => {
                tokio::time::sleep(it.duration.0).await;
                Ok(0)
            }
            _ => Ok(0),
        }
    }
}
