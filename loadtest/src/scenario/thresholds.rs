//! What has to be measured for a run to pass.

use serde::Deserialize;

use super::{
    steps::{Name, PodState},
    values::{Bytes, Count, Number, Span},
};

/// One condition on what was measured.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Threshold {
    /// A service level objective of Kubernetes, by name.
    Slo(Slo),
    /// How long requests take.
    Latency(Latency),
    /// How many requests fail.
    Errors(Errors),
    /// How many requests a second are answered.
    Throughput(Throughput),
    /// For how long nothing is answered at a time.
    Outage(Outage),
    /// How long a change takes to reach watches.
    WatchLag(WatchLag),
    /// How long pods take to get somewhere.
    PodStartup(PodStartup),
    /// How much memory a process of the target takes at most.
    Memory(Memory),
    /// How much longer requests of one step take than the same of another.
    Ratio(Ratio),
}

/// The objectives, which are about the 99th percentile of each pair of verb and resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Slo {
    /// Requests that change one object: at most 1 s.
    ApiMutating,
    /// Requests that read: one object 1 s, a namespace's 5 s, more 30 s.
    ApiReadOnly,
    /// Pods without volumes and image pulls are seen running at most 5 s after they were asked for.
    PodStartup,
}

impl Slo {
    pub const ALL: [Self; 3] = [Self::ApiMutating, Self::ApiReadOnly, Self::PodStartup];

    /// As it is written in scenarios.
    pub fn name(self) -> &'static str {
        match self {
            Self::ApiMutating => "api-mutating",
            Self::ApiReadOnly => "api-read-only",
            Self::PodStartup => "pod-startup",
        }
    }
}

fn ninety_nine() -> Number {
    Number(99.0)
}

written! {
    /// See [`Threshold::Latency`].
    pub struct Latency {
        /// Of which step; of all by default.
        pub step: Option<Name>,
        /// Of which verb; of each by default.
        pub verb: Option<String>,
        /// 99 by default.
        #[serde(default = "ninety_nine")]
        pub percentile: Number,
        pub at_most: Span,
    }

    /// See [`Threshold::Errors`].
    pub struct Errors {
        /// Of which step; of all by default.
        pub step: Option<Name>,
        /// How many.
        pub at_most: Option<Count>,
        /// Which share of all requests, as `1%`.
        pub at_most_share: Option<Number>,
    }

    /// See [`Threshold::Throughput`].
    pub struct Throughput {
        pub step: Name,
        pub at_least: Number,
    }

    /// See [`Threshold::Outage`].
    pub struct Outage {
        pub step: Name,
        pub at_most: Span,
    }

    /// See [`Threshold::WatchLag`].
    pub struct WatchLag {
        #[serde(default = "ninety_nine")]
        pub percentile: Number,
        pub at_most: Span,
    }

    /// See [`Threshold::PodStartup`].
    pub struct PodStartup {
        /// From being asked for until here.
        pub until: PodState,
        #[serde(default = "ninety_nine")]
        pub percentile: Number,
        pub at_most: Span,
    }

    /// See [`Threshold::Memory`].
    pub struct Memory {
        /// As named by `--process NAME=PID`, or `target` for what the target's own metrics say.
        pub process: Name,
        pub at_most: Bytes,
    }

    /// See [`Threshold::Ratio`].
    pub struct Ratio {
        pub of: Name,
        pub to: Name,
        #[serde(default = "ninety_nine")]
        pub percentile: Number,
        pub at_most: Number,
    }
}

impl Threshold {
    /// The steps that it names.
    pub(crate) fn steps(&self) -> Vec<&Name> {
        match self {
            Self::Latency(it) => it.step.iter().collect(),
            Self::Errors(it) => it.step.iter().collect(),
            Self::Throughput(it) => vec![&it.step],
            Self::Outage(it) => vec![&it.step],
            Self::Ratio(it) => vec![&it.of, &it.to],
            Self::Slo(_) | Self::WatchLag(_) | Self::PodStartup(_) | Self::Memory(_) => Vec::new(),
        }
    }
}
