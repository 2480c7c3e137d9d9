//! Watches: those that a scenario opens, and the one that follows the run's pods.

use std::{collections::HashMap, sync::Arc, time::Instant};

use bytes::Bytes;
use insula_client::{Error, Follow};
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Prepared, Run},
    measure::{Outcome, Series, Times, outcome},
    places::collection,
    scenario::{Scope, Watch},
    target::{Resource, Target},
    template::RUN_LABEL,
};

/// How long a watch that cannot be opened waits before it tries again.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(250);
const REVISION: &[u8] = br#""resourceVersion":""#;
const TENANT: &[u8] = br#""tenant":""#;
const BOOKMARK: &[u8] = br#"{"type":"BOOKMARK""#;

/// One watch to be.
struct Plan {
    path: String,
    /// Whose events these are; unknown where it is about all tenants.
    tenant: Option<usize>,
}

/// Opens the watches of a step and returns when all are open; they live until `stop`.
pub(crate) async fn open(
    run: &Arc<Run>,
    name: &str,
    step: &Watch,
    stop: &CancellationToken,
) -> Result<u64, String> {
    let Some(prepared) = run.prepared.get(&step.template.value) else { return Ok(0) };
    let plans = plan(run, step, prepared);
    let series = run.recorder.series(name, "watch", &prepared.name(), step.scope.name());
    let tenants: Arc<HashMap<String, usize>> = Arc::new(
        run.places.tenants.iter().enumerate().map(|(at, it)| (it.name().to_owned(), at)).collect(),
    );
    let (opened, mut is_open) = tokio::sync::mpsc::unbounded_channel();
    let mut n_open = 0;
    for plan in plans {
        for _ in 0..step.count.0 {
            let watch = Watcher {
                run: run.clone(),
                path: plan.path.clone(),
                tenant: plan.tenant,
                tenants: tenants.clone(),
                series: series.clone(),
            };
            let (stop, opened) = (stop.clone(), opened.clone());
            run.tasks.spawn(async move {
                let _ = stop.run_until_cancelled(watch.live(opened)).await;
            });
            n_open += 1;
        }
    }
    drop(opened);
    for _ in 0..n_open {
        match is_open.recv().await {
            Some(Ok(())) => (),
            Some(Err(error)) => return Err(format!("cannot watch: {error}")),
            None => break,
        }
    }
    Ok(n_open)
}

fn plan(run: &Run, step: &Watch, prepared: &Prepared) -> Vec<Plan> {
    let mine = format!("?labelSelector={RUN_LABEL}%3D{}", run.id);
    let pool = run.pool(&step.template.value, step.tenants.as_ref().map(|it| it.value.as_str()));
    if step.scope == Scope::Cluster {
        let path = run.everywhere(&prepared.resource) + &mine;
        let tenant = (!run.target.has_tenants).then_some(0);
        return vec![Plan { path, tenant }];
    }
    let mut plans: Vec<Plan> = Vec::new();
    for (home, place) in pool.places.iter().filter_map(|it| run.places.home(*it)) {
        let namespace = (step.scope == Scope::Namespace).then_some(place.namespace.as_str());
        let path = collection(home, &prepared.resource, namespace) + &mine;
        if plans.iter().all(|it| it.path != path) {
            plans.push(Plan { path, tenant: Some(place.tenant) });
        }
    }
    plans
}

/// A watch that is opened again when it ends.
struct Watcher {
    run: Arc<Run>,
    path: String,
    tenant: Option<usize>,
    tenants: Arc<HashMap<String, usize>>,
    series: Arc<Series>,
}

type Opened = tokio::sync::mpsc::UnboundedSender<Result<(), String>>;

impl Watcher {
    async fn live(self, opened: Opened) {
        let mut opened = Some(opened);
        loop {
            let begun = Instant::now();
            let follow = begin(self.run.target.connection(), &self.run.target, &self.path).await;
            let times = Times { intended: begun, sent: begun, done: Instant::now() };
            let became = follow.as_ref().map_or_else(outcome, |_| Outcome::Answered);
            self.series.count(times, &became);
            if let Some(opened) = opened.take() {
                let told = follow.as_ref().map(|_| ()).map_err(ToString::to_string);
                let is_bad = told.is_err();
                // Nobody listens any more if another watch failed.
                let _ = opened.send(told);
                if is_bad {
                    return;
                }
            }
            match follow {
                Ok(mut follow) => {
                    // However it ends, it is opened again.
                    while let Ok(Some(line)) = follow.next().await {
                        self.note(&line, Instant::now());
                    }
                    self.run.recorder.lag.reopened();
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    fn note(&self, line: &Bytes, at: Instant) {
        if line.starts_with(BOOKMARK) {
            return;
        }
        let revision = after(line, REVISION).and_then(|it| it.parse().ok());
        let tenant = self.tenant.or_else(|| self.tenants.get(after(line, TENANT)?).copied());
        if let (Some(revision), Some(tenant)) = (revision, tenant) {
            self.run.recorder.lag.received(tenant, revision, at);
        }
    }
}

/// The text after `mark`, up to the next quote.
fn after<'a>(line: &'a [u8], mark: &[u8]) -> Option<&'a str> {
    let at = Finder::new(mark).find(line)? + mark.len();
    let rest = line.get(at..)?;
    let end = memchr::memchr(b'"', rest)?;
    std::str::from_utf8(rest.get(..end)?).ok()
}

/// Opens a watch from now on.
async fn begin(
    client: &insula_client::Client,
    target: &Target,
    path: &str,
) -> Result<Follow, Error> {
    let list = target.read(&format!("{path}&limit=1")).await?;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let uri = format!(
        "{path}&watch=true&allowWatchBookmarks=true&resourceVersion={}",
        revision.replace(',', "%2C").replace('=', "%3D")
    );
    client.follow(&uri).await
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Follows the pods of the run until it is over. Returns when the watch is open.
pub(crate) async fn follow_pods(run: &Arc<Run>) -> Result<(), Error> {
    let pods = Resource { base: "/api/v1".into(), plural: "pods".into(), namespaced: true };
    let path = run.everywhere(&pods) + &format!("?labelSelector={RUN_LABEL}%3D{}", run.id);
    let mut follow = begin(run.target.control(), &run.target, &path).await?;
    let (run, over) = (run.clone(), run.over.clone());
    run.tasks.clone().spawn(async move {
        let work = async {
            loop {
                while let Ok(Some(line)) = follow.next().await {
                    if note_pod(&run, &line, Instant::now()).is_none() {
                        tracing::debug!("an event of a pod cannot be read");
                    }
                }
                run.recorder.lag.reopened();
                follow = loop {
                    match again(&run, &path).await {
                        Ok(follow) => break follow,
                        Err(error) => {
                            tracing::debug!(%error, "cannot follow pods");
                            tokio::time::sleep(AGAIN).await;
                        }
                    }
                };
            }
        };
        let _ = over.run_until_cancelled(work).await;
    });
    Ok(())
}

/// Opens the watch again; what happened meanwhile is seen now.
async fn again(run: &Arc<Run>, path: &str) -> Result<Follow, Error> {
    let follow = begin(run.target.control(), &run.target, path).await?;
    let list = run.target.read(path).await?;
    let at = Instant::now();
    for item in list["items"].as_array().into_iter().flatten() {
        if let Ok(pod) = serde_json::from_value(item.clone()) {
            run.recorder.startup.seen(&pod, at);
        }
    }
    Ok(follow)
}

fn note_pod(run: &Run, line: &[u8], at: Instant) -> Option<()> {
    if line.starts_with(BOOKMARK) {
        return Some(());
    }
    let event: Event<'_> = serde_json::from_slice(line).ok()?;
    let pod = || serde_json::from_str(event.object.get()).ok();
    match event.kind {
        "ADDED" | "MODIFIED" => run.recorder.startup.seen(&pod()?, at),
        "DELETED" => run.recorder.startup.gone(&pod()?),
        _ => (),
    }
    Some(())
}
