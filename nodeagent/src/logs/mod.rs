//! Container logs: the files that the runtime writes.

mod line;
mod read;
mod tail;

pub(crate) use self::{
    read::{LogOptions, read},
    tail::last_text,
};
