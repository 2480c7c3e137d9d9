//! Was a store correct while everything around it broke?
//!
//! Clients do random guarded writes and reads on a few keys and note when each call began, when
//! it ended and what it said ([`record`]). Afterwards two checkers look at the notes:
//!
//! * [`linear`]: there is an order of all operations of a key, each between its begin and its
//!   end, in which every answer is right (linearizability; Herlihy and Wing 1990). Keys are
//!   independent, so each is checked alone.
//! * [`chain`]: every watcher saw each version of every object once and in order.
//!
//! A call whose answer never came may have taken effect at any later time, or never: such calls
//! stay in the history with an open end.
//!
//! ```text
//! op      one operation as its client saw it
//! record  notes operations while they happen        drive   random clients with a seed
//! linear  the checker of reads and writes           chain   the checker of watches
//! ```
//!
//! # What is deliberately absent
//!
//! No knowledge of what is tested: a [`drive::Subject`] is three calls, implemented by whoever
//! tests a store, a partition or a whole API server.

pub mod chain;
pub mod drive;
pub mod linear;
pub mod op;
pub mod record;
