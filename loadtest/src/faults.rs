//! Steps that do something to the target, or wait for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::Method;
use serde_json::{Value, json};

use crate::{
    engine::Run,
    measure::{Outcome, Times, outcome},
    scenario::{Kill, MoveTenant, PodState, Storm, WaitFor},
};

const LOOK: Duration = Duration::from_millis(20);
const TENANTS: &str = "/apis/insula.io/v1/tenants";
const PARTITIONS: &str = "/apis/insula.io/v1/partitions";
/// The partition that knows of all others; tenants live elsewhere.
const META: &str = "meta";
const MERGE: &str = "application/merge-patch+json";

/// How to end what a scenario calls by a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Means {
    /// A process on this machine, which is killed.
    Process(u32),
    /// A command of the operator, run by the shell.
    Command(String),
}

/// Waits until so many pods have got so far.
pub(crate) async fn wait_for(run: &Arc<Run>, step: &WaitFor) -> Result<u64, String> {
    let startup = &run.recorder.startup;
    let wanted = step.count.map_or_else(|| run.n_pods_expected(), |it| it.0);
    let reached = || match step.pods {
        PodState::Gone => startup.reached(PodState::Created) <= startup.reached(PodState::Gone),
        state => wanted <= startup.reached(state),
    };
    let deadline = Instant::now() + step.timeout.0;
    while !reached() {
        if deadline <= Instant::now() {
            let states: Vec<String> =
                startup.counts().iter().map(|(state, n)| format!("{n} {state}")).collect();
            let wanted = match step.pods {
                PodState::Gone => "for all pods to be gone".to_owned(),
                state => format!("for {wanted} pods to be {state:?}").to_lowercase(),
            };
            let seconds = step.timeout.0.as_secs();
            return Err(format!("waited {seconds} s {wanted}: there are {}", states.join(", ")));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(startup.reached(step.pods))
}

/// Ends a process of the target.
pub(crate) async fn kill(run: &Arc<Run>, step: &Kill) -> Result<u64, String> {
    let name = &step.target.value;
    let means = run.means.iter().find(|it| it.0 == *name).map(|it| &it.1);
    match means {
        None => Err(format!("nobody said how to kill {name}")),
        Some(Means::Process(pid)) => {
            let pid = i32::try_from(*pid).ok().and_then(rustix::process::Pid::from_raw);
            let pid = pid.ok_or_else(|| format!("{name} has no process id"))?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)
                .map_err(|error| format!("cannot kill {name}: {error}"))?;
            Ok(1)
        }
        Some(Means::Command(command)) => {
            let out = tokio::process::Command::new("sh").args(["-c", command]).output().await;
            let out = out.map_err(|error| format!("cannot run {command:?}: {error}"))?;
            if !out.status.success() {
                let said = String::from_utf8_lossy(&out.stderr);
                return Err(format!("{command:?} failed: {}", said.trim()));
            }
            Ok(1)
        }
    }
}

/// Moves tenants, one after the other.
pub(crate) async fn move_tenants(
    run: &Arc<Run>,
    name: &str,
    step: &MoveTenant,
) -> Result<u64, String> {
    let series = run.recorder.series(name, "move", "tenants.insula.io", "resource");
    let places = run.places.of(step.tenants.as_ref().map(|it| it.value.as_str()));
    let mut tenants: Vec<&str> =
        places.iter().filter_map(|it| Some(run.places.home(*it)?.0.name())).collect();
    tenants.dedup();
    for (n, tenant) in tenants.iter().enumerate() {
        let begun = Instant::now();
        let moved = tokio::time::timeout(step.timeout.0, move_one(run, tenant, step)).await;
        let times = Times { intended: begun, sent: begun, done: Instant::now() };
        match moved {
            Ok(Ok(())) => series.count(times, &Outcome::Answered),
            Ok(Err(error)) => {
                series.count(times, &outcome(&error));
                return Err(format!("cannot move tenant {tenant}: {error}"));
            }
            Err(_) => {
                let seconds = step.timeout.0.as_secs();
                return Err(format!("tenant {tenant} did not move within {seconds} s, after {n}"));
            }
        }
    }
    Ok(tenants.len() as u64)
}

async fn move_one(run: &Run, tenant: &str, step: &MoveTenant) -> Result<(), insula_client::Error> {
    let path = format!("{TENANTS}/{tenant}");
    let lives_on =
        |it: &Value| it.pointer("/status/partition").and_then(Value::as_str).map(str::to_owned);
    let target = match &step.partition {
        Some(partition) => partition.clone(),
        None => {
            let here = lives_on(&run.target.read(&path).await?).unwrap_or_default();
            let list = run.target.read(PARTITIONS).await?;
            let items = list["items"].as_array().into_iter().flatten();
            let mut names: Vec<&str> =
                items.filter_map(|it| it.pointer("/metadata/name")?.as_str()).collect();
            names.retain(|it| *it != META);
            names.sort_unstable();
            let next = names.iter().find(|it| here.as_str() < **it).or_else(|| names.first());
            next.map_or_else(|| here.clone(), |it| (*it).to_owned())
        }
    };
    let body = json!({"spec": {"partition": target}}).to_string();
    run.target.order(Method::PATCH, &path, Some((MERGE, body.into()))).await?;
    while lives_on(&run.target.read(&path).await?).as_deref() != Some(target.as_str()) {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Has all hollow nodes come back at once.
pub(crate) async fn storm(run: &Arc<Run>, name: &str, step: &Storm) -> Result<u64, String> {
    let nodes = run.nodes.lock().await;
    let Some(nodes) = &*nodes else {
        return Err("the hollow nodes are not this run's: nobody to reconnect".into());
    };
    let series = run.recorder.series(name, "reconnect", "nodes", "cluster");
    let begun = Instant::now();
    let done = tokio::time::timeout(step.timeout.0, nodes.reconnect()).await;
    let times = Times { intended: begun, sent: begun, done: Instant::now() };
    match done {
        Ok(Ok(())) => {
            series.count(times, &Outcome::Answered);
            Ok(1)
        }
        Ok(Err(error)) => Err(format!("nodes did not come back: {error}")),
        Err(_) => Err(format!("nodes were not back within {} s", step.timeout.0.as_secs())),
    }
}
