//! Deployments of many tenants roll while the replicas of the controllers are killed, paused, cut
//! off, replaced and given wrong clocks: at no moment are there more pods, or fewer, than their
//! owners allow, and at the end there are exactly those that were asked for.
//!
//! Each run is random but for its seed, which is printed when something is wrong.
//! `INSULA_SEED` sets it; `INSULA_TENANTS`, `INSULA_DEPLOYMENTS` (of each tenant) and
//! `INSULA_SECONDS` (of faults) make a larger run.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

mod fleet;
mod history;
mod hollow;
mod rolling;

use fleet::Fleet;
use rolling::Size;

#[test]
fn nothing_is_too_much_or_too_little_while_replicas_fail() {
    let size = Size::from_environment();
    let fleet = Fleet::up();
    fleet.run(async |fleet| rolling::run(fleet, size).await);
}
