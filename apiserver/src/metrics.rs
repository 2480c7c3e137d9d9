//! What Prometheus sees. Names are upstream's where the meaning is the same.

use std::{sync::Arc, time::Duration};

use http::Method;
use insula_api::resources::Scope;
use insula_partition::partitions::Partitions;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{Server, call::Call, registry::Served};

/// What requests are told apart by: never tenants, namespaces or names, so that there are few.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    pub verb: &'static str,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub scope: &'static str,
    pub component: &'static str,
    pub dry_run: &'static str,
}

impl Labels {
    /// Of a request that is not about a resource, or not let in.
    pub(crate) fn plain(method: &Method) -> Self {
        let verb = match method.as_str() {
            "GET" | "HEAD" => "GET",
            "POST" => "POST",
            "PUT" => "PUT",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            _ => "other",
        };
        Self {
            verb,
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
            scope: "",
            component: "apiserver",
            dry_run: "",
        }
    }

    pub(crate) fn of(call: &Call) -> Self {
        let resource = &call.served.resource;
        let sub = &*call.path.subresource;
        let streams = matches!(sub, "exec" | "attach" | "portforward" | "proxy");
        let content = call.headers.get(http::header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
        let verb = match call.verb {
            _ if streams => "CONNECT",
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" => "POST",
            "update" => "PUT",
            "patch" if content.is_some_and(|it| it.starts_with("application/apply-patch")) => {
                "APPLY"
            }
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "other",
        };
        let scope = match (call.path.name.is_empty(), resource.scope) {
            (true, Scope::Namespaced) if !call.path.namespace.is_empty() => "namespace",
            (true, _) if call.verb != "create" => "cluster",
            _ => "resource",
        };
        let (group, version, name) = names(&call.served);
        Self {
            verb,
            group,
            version,
            resource: name,
            subresource: sub.to_owned(),
            scope,
            component: "apiserver",
            dry_run: if call.query.get("dryRun") == Some("All") { "All" } else { "" },
        }
    }

    /// Whether it only reads.
    fn reads(&self) -> bool {
        matches!(self.verb, "GET" | "LIST" | "WATCH")
    }
}

/// Group, version and name. What tenants define is one, or there would be as many labels as they
/// like.
fn names(served: &Served) -> (String, String, String) {
    let resource = &served.resource;
    match served.custom() {
        None => (resource.group.clone(), resource.version.clone(), resource.name.clone()),
        Some(_) => (String::new(), String::new(), "customresources".into()),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
    dry_run: &'static str,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    request_kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watched {
    group: String,
    version: String,
    resource: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Partition {
    partition: String,
}

/// Counters of one server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    durations: Family<Labels, Histogram>,
    sizes: Family<Labels, Histogram>,
    under_way: Family<Kind, Gauge>,
    long_running: Family<Labels, Gauge>,
    watch_events: Family<Watched, Counter>,
    watch_bytes: Family<Watched, Counter>,
    objects: Family<Partition, Gauge>,
    bytes: Family<Partition, Gauge>,
    revision: Family<Partition, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let durations = Family::<Labels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_5, 2.0, 18))
        });
        let sizes = Family::<Labels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(1000.0, 10.0, 7))
        });
        let it = Self {
            registry: Registry::default(),
            requests: Family::default(),
            durations,
            sizes,
            under_way: Family::default(),
            long_running: Family::default(),
            watch_events: Family::default(),
            watch_bytes: Family::default(),
            objects: Family::default(),
            bytes: Family::default(),
            revision: Family::default(),
        };
        registry.register("apiserver_request", "Requests answered", it.requests.clone());
        registry.register(
            "apiserver_request_duration_seconds",
            "Time from a request's head to its answer's",
            it.durations.clone(),
        );
        registry.register(
            "apiserver_response_sizes",
            "Bytes of answers that are known whole",
            it.sizes.clone(),
        );
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests under way, but for those that go on",
            it.under_way.clone(),
        );
        registry.register(
            "apiserver_longrunning_requests",
            "Watches, logs and streams that are open",
            it.long_running.clone(),
        );
        registry.register(
            "apiserver_watch_events",
            "Events sent to watches",
            it.watch_events.clone(),
        );
        registry.register(
            "insula_watch_event_bytes",
            "Bytes of events sent to watches",
            it.watch_bytes.clone(),
        );
        registry.register("insula_partition_objects", "Live objects", it.objects.clone());
        registry.register("insula_partition_bytes", "Bytes of live objects", it.bytes.clone());
        registry.register("insula_partition_revision", "Newest revision", it.revision.clone());
        Self { registry, ..it }
    }
}

impl Metrics {
    /// Counts an answer; `size` if it is known whole.
    pub(crate) fn record(&self, labels: &Labels, code: u16, took: Duration, size: Option<usize>) {
        let Labels { verb, group, version, resource, subresource, scope, component, dry_run } =
            labels.clone();
        let answered = Answered {
            verb,
            group,
            version,
            resource,
            subresource,
            scope,
            component,
            dry_run,
            code,
        };
        self.requests.get_or_create(&answered).inc();
        if !matches!(verb, "WATCH" | "CONNECT") {
            self.durations.get_or_create(labels).observe(took.as_secs_f64());
        }
        if let (Some(size), "GET" | "LIST") = (size, verb) {
            self.sizes.get_or_create(labels).observe(size as f64);
        }
    }

    /// A request is under way, until what is returned is dropped.
    pub(crate) fn under_way(&self, labels: &Labels) -> UnderWay {
        let request_kind = if labels.reads() { "readOnly" } else { "mutating" };
        let gauge = self.under_way.get_or_create(&Kind { request_kind }).clone();
        gauge.inc();
        UnderWay(gauge)
    }

    /// Counters of the events and bytes that one watch sends.
    pub(crate) fn watched(&self, served: &Served) -> (Counter, Counter) {
        let (group, version, resource) = names(served);
        let label = Watched { group, version, resource };
        (
            self.watch_events.get_or_create(&label).clone(),
            self.watch_bytes.get_or_create(&label).clone(),
        )
    }

    /// The text of `/metrics`.
    pub(crate) fn text(&self, partitions: &Partitions) -> String {
        for name in partitions.names() {
            let Some(stats) = partitions.store(&name).map(|it| it.stats()) else { continue };
            let label = Partition { partition: name.to_string() };
            let set = |family: &Family<Partition, Gauge>, value: u64| {
                family.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            set(&self.objects, stats.objects);
            set(&self.bytes, stats.bytes);
            set(&self.revision, stats.revision.0);
        }
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut out, &self.registry);
        out
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay(Gauge);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A request that goes on, until this is dropped.
#[derive(Debug)]
pub(crate) struct LongRunning(Gauge);

impl LongRunning {
    pub(crate) fn new(server: &Arc<Server>, labels: &Labels) -> Self {
        let gauge = server.metrics.long_running.get_or_create(labels).clone();
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for LongRunning {
    fn drop(&mut self) {
        self.0.dec();
    }
}
