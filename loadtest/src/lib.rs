//! Load tests of any Kubernetes API: scenarios, measurements, reports.
//!
//! ```text
//! Scenario ── prepare ──> LoadTest ── run ──> Report ── write ──> report.json, report.html
//!  (YAML)     target, leftovers,   engine: steps         verdict, compare
//!             what is measurable   work, pace, follow
//!                                  measure: series, lag, startup, processes, own
//! ```
//!
//! # Invariants
//!
//! * Everything of a run carries its id as a label, lies in tenants or namespaces of its own, and
//!   is removed when it ends, however it ends.
//! * At a rate, latency counts from when a request was meant to begin.
//! * What cannot be measured is refused before anything is done.

mod engine;
mod faults;
mod follow;
mod measure;
mod nodes;
mod pace;
mod places;
mod pool;
mod progress;
pub mod report;
mod run;
pub mod scenario;
mod target;
mod template;
mod verdict;
mod work;

use insula_client::{ClientError, Error};

pub use self::{
    faults::Means,
    measure::{Generator, Key, Point, ProcessPoint, ProcessReport},
    nodes::{NodePool, NodesError, NodesWanted, RunningNodes},
    run::{LoadTest, Options},
    template::{RUN_LABEL, TEMPLATE_LABEL},
};

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the target refuses: {what}; {advice}")]
    Refused { what: String, advice: &'static str },
    #[error("the target does not answer")]
    NoAnswer,
    #[error("the target has no kind {kind} of {version}")]
    Kind { kind: String, version: String },
    #[error("cannot make {what}")]
    Setup {
        what: String,
        #[source]
        source: Box<Error>,
    },
    #[error("{what} was made, and did not get ready within {seconds} s: do the controllers run?")]
    NotReady { what: String, seconds: u64 },
    #[error(
        "earlier runs left tenants, namespaces or nodes behind: {runs}; remove them first with --cleanup"
    )]
    Leftovers { runs: String },
    #[error("cannot remove what earlier runs left: {0}")]
    Cleanup(String),
    /// What the scenario needs, and how to give it.
    #[error("{0}")]
    Needs(String),
    #[error("no hollow nodes")]
    Nodes(#[source] NodesError),
}
