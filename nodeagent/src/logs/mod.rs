//! Container logs: the files that the runtime writes.

mod line;
mod tail;

pub(crate) use self::tail::last_text;
