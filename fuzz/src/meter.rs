//! What a run takes: the time, and the most memory that its thread held at once.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    time::{Duration, Instant},
};

thread_local! {
    /// Bytes that this thread has taken and not given back; what others gave back for it counts
    /// as theirs, so it may be below zero.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, counting.
#[derive(Debug)]
pub struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn add(bytes: isize) {
    // A thread that is ending counts no more.
    let _ = HELD.try_with(|held| {
        held.set(held.get().wrapping_add(bytes));
        MOST.try_with(|most| most.set(most.get().max(held.get())))
    });
}

#[allow(unsafe_code, reason = "an allocator is; all it does is count and pass on")]
// SAFETY: every call goes to the system's allocator as it came, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size().cast_signed());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        add(-layout.size().cast_signed());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size.cast_signed() - layout.size().cast_signed());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// How long this thread has run: a machine that does something else meanwhile is no finding.
fn run_time() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// What something took.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// Of the thread, where that can be known.
    pub time: Duration,
    pub bytes: usize,
}

/// Runs `what`.
pub fn measure(what: impl FnOnce()) -> Used {
    let before = HELD.get();
    MOST.set(before);
    let (begin, run_before) = (Instant::now(), run_time());
    what();
    let run = run_before.zip(run_time()).map(|(before, after)| after.saturating_sub(before));
    let bytes = usize::try_from(MOST.get() - before).unwrap_or_default();
    Used { time: run.unwrap_or_else(|| begin.elapsed()), bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_at_once() {
        let used = measure(|| {
            for _ in 0..10 {
                drop(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        });
        assert!((1 << 20..2 << 20).contains(&used.bytes), "{used:?}");
    }
}
