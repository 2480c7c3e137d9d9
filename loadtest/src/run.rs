//! One run from beginning to end: look whether it can be done, make places, do the steps, clean
//! up, and say what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use insula_metrics::Collector;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    LoadError, Means, NodePool, NodesWanted,
    engine::{Prepared, Run},
    follow,
    measure::{Measurements, Processes, Recorder, Watched},
    places::{Leftovers, Places},
    progress::Progress,
    report::{Ending, Machine, Report, SCHEMA, Server, Times, WatchReport, calls},
    scenario::{PodState, Scenario, Slo, Step, Threshold},
    target::Target,
    template::Template,
    verdict,
};

/// How often what is measured is put together, and processes are looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often the target is asked for its own metrics, which are long: in intervals.
const METRICS_EVERY: u32 = 5;
/// The timer by which the generator measures itself.
const OWN_TIMER: Duration = Duration::from_millis(20);
/// Pods that a hollow node takes, if a scenario does not say.
const PODS_PER_NODE: u64 = 110;

/// What a run is to do, and how.
#[derive(Debug, Clone)]
pub struct Options {
    pub scenario: Scenario,
    pub kubeconfig: PathBuf,
    /// Connections that requests take in turn.
    pub connections: usize,
    /// No request takes longer.
    pub timeout: Duration,
    /// Whether tenants are made, where the target has them.
    pub tenants: bool,
    /// Remove what earlier runs left, in place of refusing to begin.
    pub cleanup: bool,
    /// How long removing may take.
    pub patience: Duration,
    /// Processes on this machine whose CPU and memory are followed, by name.
    pub processes: Vec<(String, u32)>,
    /// How to end what scenarios kill, by name; processes are, if there is no command.
    pub commands: Vec<(String, String)>,
    /// Whether the operator sees to the nodes that the scenario asks for.
    pub nodes_running: bool,
    /// What repeats this run.
    pub command: Vec<String>,
    /// Our own version.
    pub client: String,
    /// Show nothing meanwhile.
    pub quiet: bool,
}

/// A run that can begin.
pub struct LoadTest {
    options: Options,
    run: Arc<Run>,
    pool: Option<Arc<dyn NodePool>>,
    notes: Vec<String>,
    machine: Machine,
}

impl std::fmt::Debug for LoadTest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadTest").field("run", &self.run.id).finish_non_exhaustive()
    }
}

impl LoadTest {
    /// Looks whether the run can be done: nothing is made, and only what `cleanup` asks for is
    /// removed.
    pub async fn prepare(
        options: Options,
        pool: Option<Arc<dyn NodePool>>,
    ) -> Result<Self, LoadError> {
        let scenario = options.scenario.clone();
        let means = means(&options);
        needs(&scenario, &options, &means, pool.is_some())?;
        let target = Target::connect(
            &options.kubeconfig,
            options.connections,
            options.timeout,
            options.tenants,
        )
        .await?;
        let mut notes = Vec::new();
        let wants_move = scenario.steps.iter().any(|it| matches!(it, Step::MoveTenant(_)));
        if !target.has_tenants {
            if wants_move {
                let text =
                    "the scenario moves tenants, and the target has none that this user may move";
                return Err(LoadError::Needs(text.into()));
            }
            notes
                .push("The target was tested without tenants: namespaces took their place.".into());
        }
        let mut prepared = BTreeMap::new();
        for (name, object) in &scenario.templates {
            let resource = target.resource(object).await?;
            let template = Template::of_object(object, name);
            let is_pod = object["kind"] == "Pod";
            let n_pods = n_pods(object);
            prepared
                .insert(name.clone(), Arc::new(Prepared { template, resource, is_pod, n_pods }));
        }
        if wants_running_pods(&scenario) && scenario.nodes.is_none() {
            has_nodes(&target).await?;
        }
        let id = format!("{:08x}", rand::random::<u32>());
        let places = Places::plan(&scenario, &id, target.has_tenants);
        let progress = Progress::new(options.quiet);
        leftovers(&target, &places, &options, &progress).await?;
        let watched = options.processes.iter();
        let watched = watched.map(|(name, pid)| Watched { name: name.clone(), pid: *pid });
        let recorder = Arc::new(Recorder::new(Processes::new(watched.collect())));
        sample_target(&target, &recorder).await;
        measurable_memory(&scenario, &recorder, &options)?;
        let run = Run::new(id, scenario, target, places, prepared, recorder, means, progress);
        Ok(Self { options, run: Arc::new(run), pool, notes, machine: Machine::here() })
    }

    /// What is measured, for who shows it while it runs.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![Box::new(Measurements(self.run.recorder.clone()))]
    }

    /// Does it, until `shutdown`. However it ends, there is a report, and what was made is removed,
    /// unless that takes longer than until `hurry`.
    pub async fn run(mut self, shutdown: CancellationToken, hurry: CancellationToken) -> Report {
        let began = jiff::Timestamp::now();
        let run = self.run.clone();
        let sampling = CancellationToken::new();
        let samplers = sample(&run, &sampling);
        run.progress.say(&format!("run {} of scenario {}", run.id, run.scenario.name));
        let set_up = shutdown.run_until_cancelled(Box::pin(self.set_up())).await;
        let (steps, mut failure) = match set_up {
            Some(Ok(())) => Box::pin(run.steps(&shutdown)).await,
            Some(Err(error)) => (Vec::new(), Some(insula_client::chain(&error))),
            None => (Vec::new(), None),
        };
        sampling.cancel();
        for sampler in samplers {
            // It ends by its token.
            let _ = sampler.await;
        }
        let seconds = run.recorder.begun.elapsed().as_secs_f64();
        let generator = run.recorder.own.report();
        run.progress.show("removing what was made".into());
        if hurry.run_until_cancelled(Box::pin(self.clean_up())).await.is_none() {
            let text = "What was made was not removed: the next run does that, with --cleanup";
            self.notes.push(text.into());
            run.progress.say(text);
        }
        run.progress.finish();
        let thresholds = verdict::thresholds(&run.scenario, &run.recorder);
        let ending = match (shutdown.is_cancelled(), &failure) {
            (true, _) => Ending::Interrupted,
            (false, None) if thresholds.iter().all(|it| it.held) => Ending::Passed,
            _ => Ending::Failed,
        };
        if failure.is_none() && ending == Ending::Failed {
            let n = thresholds.iter().filter(|it| !it.held).count();
            failure = Some(format!("{n} of {} thresholds were missed", thresholds.len()));
        }
        let (lag, events, reopened) = run.recorder.lag.read();
        let startup = &run.recorder.startup;
        let phases = startup.phases();
        let phases = phases.iter().filter(|it| !it.1.is_empty());
        Report {
            schema: SCHEMA.into(),
            run: run.id.clone(),
            scenario: run.scenario.name.clone(),
            description: run.scenario.description.clone(),
            command: self.options.command.clone(),
            began: began.to_string(),
            seconds,
            ending,
            reason: failure,
            machine: self.machine,
            client: self.options.client.clone(),
            server: Server {
                version: run.target.version.clone(),
                has_tenants: run.target.has_tenants,
                tenants: run.places.tenants.len(),
                namespaces: run.places.all.len(),
                connections: run.target.n_connections(),
            },
            notes: self.notes,
            steps,
            calls: calls(&run.recorder),
            pod_startup: phases.map(|it| (it.0.to_owned(), Times::of(&it.1))).collect(),
            pods_scheduled_per_second: startup.scheduled_per_second(),
            pods: match startup.reached(PodState::Created) {
                0 => BTreeMap::new(),
                _ => startup.counts().iter().map(|it| (it.0.to_owned(), it.1)).collect(),
            },
            watch: run.scenario.watches().then(|| WatchReport {
                events,
                reopened,
                lag: Times::of(&lag),
            }),
            processes: run.recorder.processes.report(),
            slos: verdict::slos(&run.recorder),
            thresholds,
            generator,
        }
    }

    async fn set_up(&self) -> Result<(), LoadError> {
        let run = &self.run;
        let begun = Instant::now();
        let n = run.places.all.len();
        let mut made = 0_u64;
        let make = run.places.make(&run.target, &run.recorder, &run.id, |more| {
            made += more;
            run.progress.show(format!("setup: {made} tenants and namespaces"));
        });
        let text = "waiting for tenants and namespaces (tenants need the target's controllers)";
        run.progress.patiently(text, make).await?;
        if let (Some(nodes), Some(pool), false) =
            (&run.scenario.nodes, &self.pool, self.options.nodes_running)
        {
            let wanted = NodesWanted {
                run: run.id.clone(),
                count: nodes.count.0,
                pods: nodes.pods.map_or(PODS_PER_NODE, |it| it.0),
                start_delay: nodes.start_delay.map_or(Duration::ZERO, |it| it.0),
            };
            run.progress.show(format!("setup: {} hollow nodes", wanted.count));
            let running = pool.start(&self.options.kubeconfig, wanted).await;
            *run.nodes.lock().await = Some(running.map_err(LoadError::Nodes)?);
        }
        if run.scenario.makes_pods() {
            let follow = follow::follow_pods(run).await;
            follow.map_err(|source| LoadError::Setup {
                what: "a watch of the run's pods".into(),
                source: Box::new(source),
            })?;
        }
        run.progress.say(&format!("setup: {n} namespaces, {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Removes what was made, and notes what could not be.
    async fn clean_up(&mut self) {
        let run = &self.run;
        let nodes = run.nodes.lock().await.take();
        if let Some(nodes) = nodes
            && let Err(error) = nodes.stop().await
        {
            self.notes.push(format!("Hollow nodes could not be removed: {error}"));
        }
        let resources: Vec<_> = run.prepared.values().map(|it| it.resource.clone()).collect();
        let patience = self.options.patience;
        let remove = run.places.remove(&run.target, &run.id, &resources, patience);
        let seconds = patience.as_secs();
        let text = format!(
            "waiting up to {seconds} s until all that was made is gone (the target's controllers \
             empty namespaces)"
        );
        let left = run.progress.patiently(&text, remove).await;
        if !left.is_empty() {
            let text = format!("Not everything could be removed: {}", left.join("; "));
            run.progress.say(&text);
            self.notes.push(text);
        }
    }
}

/// How to end what scenarios kill.
fn means(options: &Options) -> Vec<(String, Means)> {
    let commands = options.commands.iter();
    let commands = commands.map(|(name, it)| (name.clone(), Means::Command(it.clone())));
    let processes = options.processes.iter();
    commands.chain(processes.map(|(name, pid)| (name.clone(), Means::Process(*pid)))).collect()
}

/// Whether the operator gave what the scenario needs.
fn needs(
    scenario: &Scenario,
    options: &Options,
    means: &[(String, Means)],
    has_pool: bool,
) -> Result<(), LoadError> {
    for step in &scenario.steps {
        if let Step::Kill(kill) = step
            && !means.iter().any(|it| it.0 == kill.target.value)
        {
            let name = &kill.target.value;
            return Err(LoadError::Needs(format!(
                "the scenario kills {name:?}: say how, with --command {name}=COMMAND, or with \
                 --process {name}=PID for a process on this machine"
            )));
        }
        if matches!(step, Step::Storm(_)) && options.nodes_running {
            let text = "a storm is for hollow nodes of the run, not for nodes that run already";
            return Err(LoadError::Needs(text.into()));
        }
    }
    if scenario.nodes.is_some() && !has_pool && !options.nodes_running {
        return Err(LoadError::Needs(
            "the scenario needs hollow nodes: start some with `insula loadtest nodes`, and say so \
             with --nodes-running"
                .into(),
        ));
    }
    Ok(())
}

/// Whether something depends on pods that run.
fn wants_running_pods(scenario: &Scenario) -> bool {
    let runs = |state: PodState| matches!(state, PodState::Running | PodState::Ready);
    let by_step = scenario.steps.iter().any(|it| matches!(it, Step::WaitFor(it) if runs(it.pods)));
    let by_threshold = scenario.thresholds.iter().any(|it| match &it.value {
        Threshold::Slo(Slo::PodStartup) => true,
        Threshold::PodStartup(it) => runs(it.until),
        _ => false,
    });
    by_step || by_threshold
}

async fn has_nodes(target: &Target) -> Result<(), LoadError> {
    let list = target.read(&format!("{}?limit=1", target.nodes())).await;
    let is_empty = list.is_ok_and(|it| it["items"].as_array().is_none_or(Vec::is_empty));
    match is_empty {
        true => Err(LoadError::Needs(
            "cannot be measured: the scenario wants pods to run, and the target has no nodes"
                .into(),
        )),
        false => Ok(()),
    }
}

/// Pods that come of an object.
fn n_pods(object: &Value) -> u64 {
    if object["kind"] == "Pod" {
        return 1;
    }
    if object.pointer("/spec/template/spec/containers").is_none() {
        return 0;
    }
    let spec = &object["spec"];
    let count = spec["replicas"].as_u64().or_else(|| spec["completions"].as_u64());
    count.unwrap_or(1)
}

async fn leftovers(
    target: &Target,
    places: &Places,
    options: &Options,
    progress: &Progress,
) -> Result<(), LoadError> {
    // Those that run already are not left over.
    let has_nodes = options.scenario.nodes.is_some() && !options.nodes_running;
    let found = Leftovers::find(target, &places.tenants, has_nodes).await;
    let found = found.map_err(|it| LoadError::Setup {
        what: "a list of what earlier runs left".into(),
        source: Box::new(it),
    })?;
    if found.runs.is_empty() {
        return Ok(());
    }
    let runs: Vec<&str> = found.runs.iter().map(String::as_str).collect();
    let runs = runs.join(", ");
    if !options.cleanup {
        return Err(LoadError::Leftovers { runs });
    }
    progress.say(&format!("removing what earlier runs left: {runs}"));
    let text = "waiting until it is gone (the target's controllers empty namespaces)";
    let left = progress.patiently(text, found.remove(target, options.patience)).await;
    match left.is_empty() {
        true => Ok(()),
        false => Err(LoadError::Cleanup(left.join("; "))),
    }
}

/// A threshold on memory needs somebody who tells it.
fn measurable_memory(
    scenario: &Scenario,
    recorder: &Recorder,
    options: &Options,
) -> Result<(), LoadError> {
    let mut known: BTreeSet<String> = options.processes.iter().map(|it| it.0.clone()).collect();
    known.extend(recorder.processes.report().into_iter().map(|it| it.name));
    for threshold in &scenario.thresholds {
        if let Threshold::Memory(it) = &threshold.value
            && !known.contains(&it.process.value)
        {
            let name = &it.process.value;
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(LoadError::Needs(format!(
                "cannot be measured: a threshold is about the memory of {name:?}, and known are \
                 {known}; name a process with --process {name}=PID"
            )));
        }
    }
    Ok(())
}

/// Asks the target for its own metrics, once. Who may not read them does without.
async fn sample_target(target: &Target, recorder: &Recorder) {
    if let Ok(answer) = target.order(http::Method::GET, "/metrics", None).await {
        let at = recorder.begun.elapsed().as_secs_f64();
        recorder.processes.told(at, &String::from_utf8_lossy(&answer.body));
    }
}

type Task = tokio::task::JoinHandle<()>;

/// Puts together what is measured, and looks at processes, until `stop`.
fn sample(run: &Arc<Run>, stop: &CancellationToken) -> [Task; 2] {
    let (own, token) = (run.recorder.clone(), stop.clone());
    let timer = tokio::spawn(async move {
        while !token.is_cancelled() {
            let before = Instant::now();
            tokio::time::sleep(OWN_TIMER).await;
            own.own.timer(before.elapsed().saturating_sub(OWN_TIMER));
        }
    });
    let (run, token) = (run.clone(), stop.clone());
    let sampler = tokio::spawn(async move {
        let mut turn = 0_u32;
        let mut before = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => (),
                () = token.cancelled() => {
                    run.recorder.tick(before.elapsed().as_secs_f64());
                    run.recorder.processes.sample(run.recorder.begun.elapsed().as_secs_f64());
                    return;
                }
            }
            let recorder = &run.recorder;
            recorder.tick(before.elapsed().as_secs_f64());
            before = Instant::now();
            recorder.processes.sample(recorder.begun.elapsed().as_secs_f64());
            if turn.is_multiple_of(METRICS_EVERY) {
                token.run_until_cancelled(sample_target(&run.target, recorder)).await;
            }
            turn += 1;
            run.progress.show(state(recorder));
        }
    });
    [timer, sampler]
}

/// What there is so far, in a line.
fn state(recorder: &Recorder) -> String {
    let (mut answered, mut failed) = (0, 0);
    for series in recorder.all() {
        let (good, bad) = series.read(|it| (it.n_answered(), it.n_failed));
        answered += good;
        failed += bad;
    }
    let running = recorder.startup.reached(PodState::Running);
    format!("{answered} answered, {failed} failed, {running} pods running")
}
