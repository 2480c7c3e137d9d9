//! CPU, memory, disk and network of the target's processes over time: of those on this machine from
//! `/proc`, else what the target says of itself.

use std::{collections::BTreeMap, fs, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::network::{Carried, Traffic, sockets};

/// Points over time that are kept: beyond, each second one goes.
const MOST_POINTS: usize = 1_200;

/// A process on this machine, by the name that the operator gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) name: String,
    pub(crate) pid: u32,
}

/// What a process used, up to a moment. Sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessPoint {
    /// Seconds from the beginning of the run.
    pub at: f64,
    /// Seconds of processor time since the process began.
    pub cpu: f64,
    pub memory: u64,
    /// Since the process began; absent where it is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<u64>,
    /// What its TCP connections carried; absent where that is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
}

/// A process over the whole run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessReport {
    pub name: String,
    /// Seconds of processor time during the run.
    pub cpu_seconds: f64,
    pub memory_begin: u64,
    pub memory_most: u64,
    pub memory_end: u64,
    /// To disk, during the run; absent where that is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<u64>,
    /// By TCP, during the run; absent where that is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
    pub points: Vec<ProcessPoint>,
}

/// All that are watched.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    pub(crate) watched: Vec<Watched>,
    points: Mutex<BTreeMap<String, Vec<ProcessPoint>>>,
    /// By process id.
    traffic: Mutex<BTreeMap<u32, Traffic>>,
}

impl Processes {
    pub(crate) fn new(watched: Vec<Watched>) -> Self {
        Self { watched, ..Self::default() }
    }

    /// Looks at those on this machine.
    pub(crate) fn sample(&self, at: f64) {
        if self.watched.is_empty() {
            return;
        }
        // A kernel that does not tell leaves them unknown.
        let sockets = sockets().ok();
        let mut traffic = self.traffic.lock();
        for Watched { name, pid } in &self.watched {
            let traffic = traffic.entry(*pid).or_default();
            let carried = sockets.as_ref().and_then(|it| traffic.look(*pid, it));
            if let Some(point) = look(*pid, carried, at) {
                self.add(name, point);
            }
        }
    }

    /// Forgets what they used until now.
    pub(crate) fn measure_anew(&self) {
        self.points.lock().clear();
    }

    /// What the target said of itself, as Prometheus reads it.
    pub(crate) fn told(&self, at: f64, metrics: &str) {
        let read = |name: &str| metric(metrics, name);
        let cpu = read("process_cpu_seconds_total");
        let memory = read("process_resident_memory_bytes");
        if let (Some(cpu), Some(memory)) = (cpu, memory) {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "bytes of memory"
            )]
            let point = ProcessPoint { at, cpu, memory: memory as u64, ..ProcessPoint::default() };
            self.add(TARGET, point);
        }
    }

    fn add(&self, name: &str, point: ProcessPoint) {
        let mut all = self.points.lock();
        let points = all.entry(name.to_owned()).or_default();
        points.push(point);
        if MOST_POINTS <= points.len() {
            let mut keep = false;
            points.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    pub(crate) fn report(&self) -> Vec<ProcessReport> {
        let all = self.points.lock();
        let report = |(name, points): (&String, &Vec<ProcessPoint>)| {
            let (first, last) = (points.first()?, points.last()?);
            Some(ProcessReport {
                name: name.clone(),
                cpu_seconds: used(points),
                memory_begin: first.memory,
                memory_most: points.iter().map(|it| it.memory).max().unwrap_or(0),
                memory_end: last.memory,
                written: during(points, |it| it.written),
                sent: during(points, |it| it.sent),
                received: during(points, |it| it.received),
                points: points.clone(),
            })
        };
        all.iter().filter_map(report).collect()
    }
}

/// How much came to a count between the first and the last point that tell it.
fn during(points: &[ProcessPoint], count: impl Fn(&ProcessPoint) -> Option<u64>) -> Option<u64> {
    let first = points.iter().find_map(&count)?;
    Some(points.iter().rev().find_map(&count)?.saturating_sub(first))
}

/// Processor time over all points. A process that began anew counts from nothing.
fn used(points: &[ProcessPoint]) -> f64 {
    let steps = points.iter().zip(points.iter().skip(1));
    let more =
        steps.map(|(one, next)| if one.cpu <= next.cpu { next.cpu - one.cpu } else { next.cpu });
    more.fold(0.0, |sum, it| sum + it)
}

/// What the target's own metrics are called.
pub(crate) const TARGET: &str = "target";

/// A metric without labels.
pub(crate) fn metric(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.split_whitespace().next()?.parse().ok()
}

fn look(pid: u32, carried: Option<Carried>, at: f64) -> Option<ProcessPoint> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: u64 = field(&status, "VmRSS:")?.trim_end_matches(" kB").parse().ok()?;
    // Who may not look at another's disk does without.
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let bytes = |name| field(&io, name).and_then(|it| it.parse().ok());
    Some(ProcessPoint {
        at,
        cpu: cpu(&pid.to_string())?.as_secs_f64(),
        memory: kib * 1024,
        read: bytes("read_bytes:"),
        written: bytes("write_bytes:"),
        sent: carried.map(|it| it.sent),
        received: carried.map(|it| it.received),
    })
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// A process's processor time: its own and the kernel's for it.
fn cpu(pid: &str) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1)))
}

/// Our own processor time.
pub(crate) fn own_cpu() -> Duration {
    cpu("self").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_can_look_at_oneself() {
        let processes =
            Processes::new(vec![Watched { name: "me".into(), pid: std::process::id() }]);
        processes.sample(1.0);
        processes.told(
            1.0,
            "# HELP x\nprocess_cpu_seconds_total 1.5\nprocess_resident_memory_bytes 3e6\n",
        );
        let report = processes.report();
        assert_eq!(report.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["me", "target"]);
        assert!(1 << 20 < report[0].memory_most);
        assert_eq!((report[1].memory_most, report[1].points[0].cpu), (3_000_000, 1.5));
        let network = |it: &ProcessReport| (it.sent.is_some(), it.received.is_some());
        assert_eq!((network(&report[0]), network(&report[1])), ((true, true), (false, false)));
    }

    #[test]
    fn counts_are_of_the_run_alone() {
        let sent = |sent| ProcessPoint { sent, ..ProcessPoint::default() };
        let points = [sent(None), sent(Some(10)), sent(Some(15)), sent(Some(40)), sent(None)];
        assert_eq!(during(&points, |it| it.sent), Some(30));
        assert_eq!(during(&points, |it| it.received), None);
    }

    #[test]
    fn a_process_that_began_anew_goes_on_counting() {
        let at = |cpu| ProcessPoint { cpu, ..ProcessPoint::default() };
        assert!((used(&[at(5.0), at(7.0), at(0.5), at(1.0)]) - 3.0).abs() < 1e-9);
    }
}
