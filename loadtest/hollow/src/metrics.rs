//! How many nodes and pods there are, and whether heartbeats are on time.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use insula_metrics::{Collector, Encoder, Histogram, write::Writer};

use crate::{Shared, life::Stage};

/// How late heartbeats are, in seconds.
const LATE: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// All that is counted.
pub(crate) struct Counters {
    pub(crate) registered: AtomicU64,
    pub(crate) listening: AtomicU64,
    pub(crate) pods: AtomicU64,
    pub(crate) ready: AtomicU64,
    pub(crate) started: AtomicU64,
    pub(crate) ended: AtomicU64,
    pub(crate) removed: AtomicU64,
    pub(crate) beats: AtomicU64,
    pub(crate) failures: AtomicU64,
    /// From when a heartbeat was due until it was acknowledged.
    pub(crate) late: Histogram,
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts().fmt(f)
    }
}

impl Default for Counters {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            registered: zero(),
            listening: zero(),
            pods: zero(),
            ready: zero(),
            started: zero(),
            ended: zero(),
            removed: zero(),
            beats: zero(),
            failures: zero(),
            late: Histogram::new(LATE),
        }
    }
}

/// How things are at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nodes that the server knows.
    pub registered: u64,
    /// Nodes that hear of their pods.
    pub listening: u64,
    /// Pods that nodes have now, and those of them that are ready.
    pub pods: u64,
    pub ready: u64,
    /// Pods that became ready, ended and were removed, since the beginning.
    pub started: u64,
    pub ended: u64,
    pub removed: u64,
    /// Heartbeats that were acknowledged.
    pub beats: u64,
    /// Requests that failed and were to be tried again.
    pub failures: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listening, pods, ready, started, ended, removed, beats, failures, .. } = self;
        write!(
            f,
            "{listening} nodes, {pods} pods, {ready} of them ready; so far {started} started, \
             {ended} ended, {removed} removed, {beats} heartbeats, {failures} failures"
        )
    }
}

impl Counters {
    /// A pod has come from one stage to another.
    pub(crate) fn moved(&self, from: Stage, to: Stage) {
        match (from == Stage::Ready, to == Stage::Ready) {
            (false, true) => {
                self.ready.fetch_add(1, Relaxed);
                self.started.fetch_add(1, Relaxed);
            }
            (true, false) => {
                self.ready.fetch_sub(1, Relaxed);
            }
            _ => {}
        }
        if from != to && to == Stage::Ended {
            self.ended.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let of = |it: &AtomicU64| it.load(Relaxed);
        Counts {
            registered: of(&self.registered),
            listening: of(&self.listening),
            pods: of(&self.pods),
            ready: of(&self.ready),
            started: of(&self.started),
            ended: of(&self.ended),
            removed: of(&self.removed),
            beats: of(&self.beats),
            failures: of(&self.failures),
        }
    }
}

/// Shows them.
#[derive(Debug, Clone)]
pub struct Hollow(pub(crate) Arc<Shared>);

impl Collector for Hollow {
    fn encode(&self, encoder: Encoder<'_>) -> fmt::Result {
        let counters = &self.0.counters;
        let it = counters.counts();
        let mut writer = Writer(encoder);
        for (name, help, number) in [
            ("insula_hollow_nodes_registered", "Hollow nodes that the server knows", it.registered),
            ("insula_hollow_nodes_listening", "Hollow nodes that hear of pods", it.listening),
            ("insula_hollow_pods", "Pods of hollow nodes", it.pods),
            ("insula_hollow_pods_ready", "Pods of hollow nodes that are ready", it.ready),
        ] {
            writer.gauges(name, help)?.number(&[], number)?;
        }
        for (name, help, number) in [
            ("insula_hollow_pods_started", "Pods that became ready", it.started),
            ("insula_hollow_pods_ended", "Pods whose containers ended for good", it.ended),
            ("insula_hollow_pods_removed", "Pods that were removed", it.removed),
            ("insula_hollow_heartbeats", "Heartbeats that were acknowledged", it.beats),
            ("insula_hollow_failures", "Requests that failed and are tried again", it.failures),
        ] {
            writer.counters(name, help)?.number(&[], number)?;
        }
        let help = "From when a heartbeat was due until it was acknowledged";
        let mut family = writer.histograms("insula_hollow_heartbeat_delay_seconds", help)?;
        family.histogram(&[], &counters.late)
    }
}
