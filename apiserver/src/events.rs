//! Events by which the server says what it did, in its own name or in that of whoever asked for it.

use insula_api::{object, time};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Something that happened to an object.
#[derive(Debug)]
pub(crate) struct Occurrence<'a> {
    /// The object, as an `ObjectReference`.
    pub about: Value,
    pub is_good: bool,
    pub reason: &'a str,
    pub message: &'a str,
    pub component: &'a str,
    pub instance: &'a str,
}

impl Occurrence<'_> {
    /// The event, in the namespace of its object, under a name of its own.
    pub(crate) fn event(self) -> Value {
        let name = object::text(&self.about, &["name"]);
        let name = format!("{name}.{:x}", Timestamp::now().as_nanosecond());
        self.event_named(&name)
    }

    pub(crate) fn event_named(self, name: &str) -> Value {
        let Self { about, is_good, reason, message, component, instance } = self;
        let namespace = match object::text(&about, &["namespace"]) {
            // Events about objects outside namespaces are kept in the first one.
            "" => "default",
            own => own,
        };
        let now = time::now();
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "reason": reason,
            "message": message,
            "type": if is_good { "Normal" } else { "Warning" },
            "source": {"component": component},
            "reportingComponent": component, "reportingInstance": instance,
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
            "involvedObject": about,
        })
    }
}
