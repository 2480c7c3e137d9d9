//! Counters and histograms that cost next to nothing to add to.
//!
//! What counts is done on the way of a request: no lock is taken there and nothing is allocated.
//! [`Histogram`] is a row of atomic numbers; a [`Table`] finds the counters of some labels without
//! a lock, and grows only as long as there are labels it has not seen. What is seldom, a scrape,
//! pays: [`mod@write`] turns all of it into what Prometheus reads.

mod histogram;
mod table;
pub mod write;

pub use histogram::Histogram;
pub use prometheus_client::{collector::Collector, encoding::DescriptorEncoder as Encoder};
pub use table::{Names, Table};
