//! What this node and its containers use: read every quarter of a minute, told on the node feed.
//!
//! CPU is the mean between two readings: of the node from `/proc/stat`, of containers as the runtime
//! counts it. Memory is what could not be had back at once: without files that nobody has looked at
//! lately, as the kubelet has it.

use std::{collections::HashMap, fs, io, sync::Arc, time::Duration};

use insula_client::chain;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    cri::v1::ContainerStats,
    machine::memory_used,
    node::Node,
    pod::identity::{AGENT, CONTAINER_NAME, POD_UID},
};

const PERIOD: Duration = Duration::from_secs(15);
/// Between the first reading and the second, before which nothing is known.
const FIRST: Duration = Duration::from_secs(3);
/// Of `/proc/stat`, in every kernel that there is: 100 a second.
const NANOS_PER_TICK: u64 = 10_000_000;

/// What a node or a container uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Used {
    /// Billionths of a processor.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
}

/// What one node uses, as feeds have it.
#[derive(Debug, Serialize)]
pub struct NodeUsage<'a> {
    pub name: &'a str,
    #[serde(flatten)]
    pub used: Used,
    /// Pods by their uids: what each container uses.
    pub pods: Vec<(&'a str, Vec<(&'a str, Used)>)>,
}

/// What some nodes used within a time, as feeds have it.
pub fn usage(window: Duration, nodes: &[NodeUsage<'_>]) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Document<'a> {
        window: u128,
        nodes: &'a [NodeUsage<'a>],
    }
    serde_json::to_string(&Document { window: window.as_millis(), nodes })
}

/// Has the newest measurement until it is told. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter(Arc<Mutex<Option<String>>>);

/// One reading.
#[derive(Debug, Default)]
struct Reading {
    /// CPU time of the whole machine, in nanoseconds.
    cpu: u64,
    /// Of containers: when, and how much CPU time they had used, both in nanoseconds.
    containers: HashMap<String, (i64, u64)>,
}

impl Meter {
    /// What was measured since this was called last, as feeds have it.
    pub(crate) fn take(&self) -> Option<String> {
        self.0.lock().take()
    }

    /// Measures until `shutdown`.
    pub(crate) async fn run(self, node: Arc<Node>, shutdown: CancellationToken) {
        let mut last: Option<(Instant, Reading)> = None;
        let agent = node.config.agent_id();
        loop {
            let labels = [(AGENT, &*agent)];
            let stats = node.runtime.list_container_stats(&labels).await;
            let read = match (stats, machine_cpu(), memory_used()) {
                (Ok(stats), Ok(cpu), Ok(memory)) => Ok((stats, cpu, memory)),
                (Err(error), ..) => Err(chain(&error)),
                (_, Err(error), _) | (.., Err(error)) => Err(error.to_string()),
            };
            let pause = match read {
                Ok((stats, cpu, memory)) => {
                    let now = Instant::now();
                    let reading =
                        Reading { cpu, containers: stats.iter().filter_map(of).collect() };
                    let pause = if last.is_some() { PERIOD } else { FIRST };
                    if let Some((then, before)) = last {
                        let name = &node.config.node_name;
                        let window = now - then;
                        let used = measured(name, &before, &reading, window, memory, &stats);
                        *self.0.lock() = usage(window, &[used]).ok();
                    }
                    last = Some((now, reading));
                    pause
                }
                Err(error) => {
                    tracing::debug!(error, "what is used here cannot be read");
                    PERIOD
                }
            };
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }
}

/// What a container had used.
fn of(it: &ContainerStats) -> Option<(String, (i64, u64))> {
    let cpu = it.cpu.as_ref()?;
    let used = cpu.usage_core_nano_seconds.as_ref()?.value;
    Some((it.attributes.as_ref()?.id.clone(), (cpu.timestamp, used)))
}

/// CPU time of the whole machine so far, in nanoseconds.
fn machine_cpu() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/stat")?;
    busy_ticks(&text)
        .map(|it| it.saturating_mul(NANOS_PER_TICK))
        .ok_or_else(|| io::Error::other("/proc/stat does not tell of CPU time"))
}

/// Of `user nice system idle iowait irq softirq steal`: all but what was not used here.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|it| it.parse().ok()).collect();
    let [user, nice, system, _idle, _waiting, irq, soft_irq, ..] = ticks[..] else { return None };
    Some(user + nice + system + irq + soft_irq)
}

/// Per second, of what was used within `nanos`.
fn rate(used: u64, nanos: u128) -> u64 {
    let per_second = u128::from(used) * 1_000_000_000 / nanos.max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

fn measured<'a>(
    node: &'a str,
    before: &Reading,
    now: &Reading,
    window: Duration,
    memory: u64,
    stats: &'a [ContainerStats],
) -> NodeUsage<'a> {
    let mut pods: HashMap<&str, Vec<(&str, Used)>> = HashMap::new();
    for it in stats {
        let Some((id, (at, used))) = of(it) else { continue };
        let Some(attributes) = &it.attributes else { continue };
        let label = |name| attributes.labels.get(name);
        let (Some(uid), Some(name)) = (label(POD_UID), label(CONTAINER_NAME)) else { continue };
        let Some((then, had)) = before.containers.get(&id) else { continue };
        // A runtime that has nothing new to say says the same again.
        let Ok(nanos @ 1..) = u64::try_from(at - then) else { continue };
        let memory = it.memory.as_ref().and_then(|it| it.working_set_bytes.as_ref());
        let cpu = rate(used.saturating_sub(*had), nanos.into());
        let memory = memory.map_or(0, |it| it.value);
        pods.entry(uid).or_default().push((name, Used { cpu, memory }));
    }
    let cpu = rate(now.cpu.saturating_sub(before.cpu), window.as_nanos());
    NodeUsage { name: node, used: Used { cpu, memory }, pods: pods.into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cri::v1::{ContainerAttributes, CpuUsage, MemoryUsage, UInt64Value};

    #[test]
    fn waiting_is_not_working() {
        assert_eq!(busy_ticks("cpu  10 1 5 1000 7 2 3 9 0 0\ncpu0 1 1 1 1\n"), Some(21));
        assert_eq!(busy_ticks("intr 5\n"), None);
        assert!(machine_cpu().unwrap() > 0);
    }

    fn stats(id: &str, seconds: i64, used: u64) -> ContainerStats {
        let labels = [(POD_UID, "u"), (CONTAINER_NAME, "main")];
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        ContainerStats {
            attributes: Some(ContainerAttributes { id: id.into(), labels }),
            cpu: Some(CpuUsage {
                timestamp: seconds * 1_000_000_000,
                usage_core_nano_seconds: Some(UInt64Value { value: used }),
            }),
            memory: Some(MemoryUsage { working_set_bytes: Some(UInt64Value { value: 4096 }) }),
        }
    }

    #[test]
    fn two_readings_make_a_rate() {
        let reading = |cpu, stats: &[ContainerStats]| Reading {
            cpu,
            containers: stats.iter().filter_map(of).collect(),
        };
        let before = reading(1_000, &[stats("a", 10, 100), stats("b", 10, 100)]);
        // One has not been read anew, one was not there before.
        let now = [stats("a", 20, 5_000_000_100), stats("b", 10, 100), stats("c", 20, 7)];
        let after = reading(10_000_001_000, &now);
        let window = Duration::from_secs(10);
        let told = usage(window, &[measured("n", &before, &after, window, 77, &now)]).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&told).unwrap(),
            json!({"window": 10_000, "nodes": [{
                "name": "n", "cpu": 1_000_000_000, "memory": 77,
                "pods": [["u", [["main", {"cpu": 500_000_000, "memory": 4096}]]]],
            }]})
        );
    }
}
