//! Requests, by what they are about: counted without a lock, and without any allocation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::Method;
use insula_api::resources::{Resource, Scope, built_in};
use insula_metrics::{
    Histogram, Table,
    write::{Family, Writer},
};

use crate::call::Call;

const SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 5.0, 10.0,
    20.0, 30.0, 60.0,
];
const BYTES: &[f64] = &[1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// The codes that are told apart; any other is `other`.
const CODES: &[u16] = &[
    101, 200, 201, 202, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 405, 406, 408, 409, 410,
    412, 413, 415, 422, 429, 431, 499, 500, 501, 502, 503, 504,
];
const SUBRESOURCES: &[&str] = &[
    "approval",
    "attach",
    "binding",
    "ephemeralcontainers",
    "eviction",
    "exec",
    "finalize",
    "log",
    "portforward",
    "proxy",
    "resize",
    "scale",
    "status",
    "token",
];

/// Group, version and name of a resource. What tenants define is one, or there would be as many
/// labels as they like.
pub(crate) type Names = [&'static str; 3];

/// What requests about a resource are counted as.
pub(crate) fn names(resource: &Resource, is_custom: bool) -> Names {
    if is_custom {
        return ["", "", "customresources"];
    }
    let known = built_in().iter().find(|it| {
        it.name == resource.name && it.group == resource.group && it.version == resource.version
    });
    known.map_or(["", "", ""], |it| [&it.group, &it.version, &it.name])
}

/// What requests are told apart by: never tenants, namespaces or names, so that there are few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Labels {
    pub verb: &'static str,
    names: Names,
    pub subresource: &'static str,
    scope: &'static str,
    pub component: &'static str,
    dry_run: &'static str,
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
            names: ["", "", ""],
            subresource: "",
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
        let known = SUBRESOURCES.iter().find(|it| **it == sub);
        Self {
            verb,
            names: call.served.names,
            subresource: known.copied().unwrap_or_default(),
            scope,
            component: "apiserver",
            dry_run: if call.query.get("dryRun") == Some("All") { "All" } else { "" },
        }
    }

    /// Whether it only reads.
    pub(super) fn reads(&self) -> bool {
        matches!(self.verb, "GET" | "LIST" | "WATCH")
    }
}

/// All requests of some labels.
#[derive(Debug)]
pub(super) struct Series {
    /// By the place of the code in [`CODES`], and one more for all others.
    codes: [AtomicU64; CODES.len() + 1],
    durations: Histogram,
    sizes: Histogram,
    /// Those that go on at the moment.
    pub(super) open: AtomicU64,
}

impl Series {
    fn new() -> Self {
        Self {
            codes: std::array::from_fn(|_| AtomicU64::new(0)),
            durations: Histogram::new(SECONDS),
            sizes: Histogram::new(BYTES),
            open: AtomicU64::new(0),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Requests(Table<Labels, Series>);

impl Requests {
    pub(super) fn of(&self, labels: &Labels) -> Arc<Series> {
        self.0.get(labels, Series::new)
    }

    /// Counts an answer; `size` if it is known whole.
    pub(super) fn record(&self, labels: &Labels, code: u16, took: Duration, size: Option<usize>) {
        self.0.with(labels, Series::new, |series| {
            let at = CODES.binary_search(&code).unwrap_or(CODES.len());
            series.codes[at].fetch_add(1, Ordering::Relaxed);
            if !matches!(labels.verb, "WATCH" | "CONNECT") {
                series.durations.took(took);
            }
            if let (Some(size), "GET" | "LIST") = (size, labels.verb) {
                series.sizes.observe(size as f64);
            }
        });
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let all = self.0.all();
        let mut family = writer.counters("apiserver_request", "Requests answered")?;
        for (labels, series) in all.iter() {
            for (at, count) in series.codes.iter().enumerate() {
                let code = CODES.get(at).map(u16::to_string);
                labeled(labels, Some(code.as_deref().unwrap_or("other")), |labels| {
                    family.counted(labels, count)
                })?;
            }
        }
        let name = "apiserver_request_duration_seconds";
        let mut family = writer.histograms(name, "Time from a request's head to its answer's")?;
        each(&mut family, &all, |family, series, labels| {
            family.histogram(labels, &series.durations)
        })?;
        let name = "apiserver_response_sizes";
        let mut family = writer.histograms(name, "Bytes of answers that are known whole")?;
        each(&mut family, &all, |family, series, labels| family.histogram(labels, &series.sizes))?;
        let name = "apiserver_longrunning_requests";
        let mut family = writer.gauges(name, "Watches, logs and streams that are open")?;
        let goes_on = |labels: &Labels| {
            matches!(labels.verb, "WATCH" | "CONNECT") || labels.subresource == "log"
        };
        for (labels, series) in all.iter().filter(|(labels, _)| goes_on(labels)) {
            let open = series.open.load(Ordering::Relaxed);
            labeled(labels, None, |labels| family.number(labels, open))?;
        }
        Ok(())
    }
}

type All = std::collections::HashMap<Labels, Arc<Series>>;

fn each(
    family: &mut Family<'_>,
    all: &All,
    mut write: impl FnMut(&mut Family<'_>, &Series, &[(&str, &str)]) -> std::fmt::Result,
) -> std::fmt::Result {
    all.iter().try_for_each(|(labels, series)| {
        labeled(labels, None, |labels| write(family, series, labels))
    })
}

fn labeled(
    labels: &Labels,
    code: Option<&str>,
    write: impl FnOnce(&[(&str, &str)]) -> std::fmt::Result,
) -> std::fmt::Result {
    let Labels { verb, names: [group, version, resource], subresource, scope, .. } = *labels;
    let mut all = vec![
        ("verb", verb),
        ("group", group),
        ("version", version),
        ("resource", resource),
        ("subresource", subresource),
        ("scope", scope),
        ("component", labels.component),
        ("dry_run", labels.dry_run),
    ];
    all.extend(code.map(|code| ("code", code)));
    write(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found() {
        assert!(CODES.is_sorted());
        let requests = Requests::default();
        let labels = Labels::plain(&Method::GET);
        for code in [200, 200, 418] {
            requests.record(&labels, code, Duration::from_millis(1), Some(10));
        }
        let series = requests.of(&labels);
        let count = |at: usize| series.codes[at].load(Ordering::Relaxed);
        assert_eq!((count(1), count(CODES.len())), (2, 1));
    }

    #[test]
    fn names_are_those_of_built_in_resources() {
        let pods = built_in().iter().find(|it| it.name == "pods").unwrap();
        assert_eq!(names(pods, false), ["", "v1", "pods"]);
        let mut other = pods.clone();
        other.name = "gadgets".into();
        assert_eq!(names(&other, true)[2], "customresources");
        assert_eq!(names(&other, false), ["", "", ""]);
    }
}
