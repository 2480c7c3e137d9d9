//! Writing in somebody's place: what a task writes carries the epoch in which it may.
//!
//! A fence is the future's own, not the client's: one client serves many reconciles at a time,
//! each for another part of the work. What the future spawns is not fenced.

use std::{fmt, sync::Arc};

use http::HeaderValue;

/// The header that says for what, and in which epoch, a write is made.
pub(crate) const HEADER: &str = "insula-fence";

tokio::task_local! {
    static CURRENT: Fence;
}

/// For what, and in which epoch, writes are made. The server refuses those of old epochs.
#[derive(Clone, PartialEq, Eq)]
pub struct Fence {
    header: Arc<HeaderValue>,
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fence").field(&self.header).finish()
    }
}

impl Fence {
    /// `task` is of letters, digits, dots and dashes; `None` if it is not.
    pub fn new(task: &str, epoch: u64) -> Option<Self> {
        let header = HeaderValue::from_str(&format!("{task}={epoch}")).ok()?;
        Some(Self { header: Arc::new(header) })
    }

    /// The one that is in force where this is called.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Does `work` with every write fenced.
    pub async fn around<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    /// As it is written where several writes share a request: `TASK=EPOCH`.
    pub fn text(&self) -> &str {
        // It was made of a text.
        self.header.to_str().unwrap_or_default()
    }

    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }
}
