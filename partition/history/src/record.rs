//! Notes operations while they happen.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::op::{Action, Id, Op, Outcome};

/// A history in the making, shared by all clients.
#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ops: Vec<Op>,
    next_id: Id,
}

impl Default for Recorder {
    fn default() -> Self {
        let inner = Inner { ops: Vec::new(), next_id: 1 };
        Self { start: Instant::now(), inner: Mutex::new(inner) }
    }
}

impl Recorder {
    /// A name for the next value.
    pub fn id(&self) -> Id {
        let mut inner = self.inner.lock();
        inner.next_id += 1;
        inner.next_id - 1
    }

    /// Nanoseconds since the beginning.
    pub fn now(&self) -> u64 {
        let elapsed: Duration = self.start.elapsed();
        elapsed.as_nanos() as u64
    }

    /// Notes an operation that began at `begin` and ended now.
    pub fn note(&self, client: u32, key: u32, begin: u64, action: Action, outcome: Outcome) {
        let end = self.now();
        self.inner.lock().ops.push(Op { client, key, begin, end, action, outcome });
    }

    /// All that was noted so far.
    pub fn ops(&self) -> Vec<Op> {
        self.inner.lock().ops.clone()
    }
}
