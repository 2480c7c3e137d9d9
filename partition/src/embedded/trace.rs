//! raft's log lines, told as ours.

use std::fmt::Write as _;

use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record, Serializer};

/// A logger for one partition's raft group. Its everyday chatter is `debug` here.
pub(crate) fn logger(partition: &str) -> Logger {
    Logger::root(ToTracing { partition: partition.to_owned() }, slog::o!())
}

struct ToTracing {
    partition: String,
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        let enabled = match record.level() {
            Level::Critical | Level::Error | Level::Warning => true,
            _ => tracing::enabled!(target: "insula_partition::raft", tracing::Level::DEBUG),
        };
        if !enabled {
            return Ok(());
        }
        let mut fields = Fields(String::new());
        // Writing to a string does not fail, and a field that cannot print itself is no loss.
        let _ = record.kv().serialize(record, &mut fields);
        let (partition, message, fields) = (&self.partition, record.msg(), fields.0);
        match record.level() {
            Level::Critical | Level::Error => {
                tracing::error!(target: "insula_partition::raft", partition, fields, "{message}");
            }
            Level::Warning => {
                tracing::warn!(target: "insula_partition::raft", partition, fields, "{message}");
            }
            _ => tracing::debug!(target: "insula_partition::raft", partition, fields, "{message}"),
        }
        Ok(())
    }
}

struct Fields(String);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        Ok(write!(self.0, " {key}={value}")?)
    }
}
