//! Whether this server is well: `/healthz`, `/livez` and `/readyz`, as a whole and check by check.

use http::{Response, StatusCode};
use insula_partition::partitions::META;

use crate::{Server, answer, body::Body, request::Query};

/// A check by its name, and why it failed, if it did.
struct Check {
    name: String,
    failure: Option<String>,
}

/// The checks of `which`. A server that is alive may be unable to serve: only `/livez` is about
/// the process alone.
fn checks(server: &Server, which: &str) -> Vec<Check> {
    let ok = |name: &str| Check { name: name.to_owned(), failure: None };
    let mut checks = vec![ok("ping"), ok("log")];
    if which == "livez" {
        return checks;
    }
    // What others have is theirs to tell.
    let names = server.partitions.names();
    let here = names.iter().map(String::as_str).filter(|it| server.partitions.is_local(it));
    let stores: Vec<Check> = here
        .chain([META])
        .map(|name| {
            let store = server.partitions.store(name);
            let failure = store.and_then(|it| it.stats().unhealthy).map(|it| it.to_string());
            Check { name: format!("partition-{name}"), failure }
        })
        .collect();
    // As upstream calls its storage.
    let failure = stores.iter().find_map(|it| it.failure.clone());
    checks.push(Check { name: "etcd".into(), failure });
    checks.extend(stores);
    if which == "readyz" {
        let is_ending = server.shutdown.is_cancelled();
        let failure = is_ending.then(|| "process is shutting down".to_owned());
        checks.push(Check { name: "shutdown".into(), failure });
    }
    checks
}

/// The answer for `which`, or for one check of it.
pub(crate) fn answer(
    server: &Server,
    which: &str,
    check: &[&str],
    query: Option<&str>,
) -> Response<Body> {
    let checks = checks(server, which);
    if !check.is_empty() {
        let name = check.join("/");
        return match checks.into_iter().find(|it| it.name == name) {
            None => text(StatusCode::NOT_FOUND, "404 page not found\n".into()),
            Some(Check { failure: None, .. }) => text(StatusCode::OK, "ok".into()),
            Some(Check { name, failure: Some(why) }) => {
                tracing::warn!(check = name, why, "not well");
                let shown = "internal server error: reason withheld\n";
                text(StatusCode::INTERNAL_SERVER_ERROR, shown.into())
            }
        };
    }
    let query = Query::parse(query);
    let mut excluded: Vec<&str> = query.all("exclude").filter(|it| !it.is_empty()).collect();
    let (mut lines, mut failed) = (String::new(), Vec::new());
    let asked = excluded.clone();
    for Check { name, failure } in &checks {
        excluded.retain(|it| it != name);
        let line = match failure {
            _ if asked.contains(&name.as_str()) => format!("[+]{name} excluded: ok\n"),
            None => format!("[+]{name} ok\n"),
            Some(why) => {
                failed.push(format!("{name}: {why}"));
                format!("[-]{name} failed: reason withheld\n")
            }
        };
        lines.push_str(&line);
    }
    if !excluded.is_empty() {
        let names: Vec<String> = excluded.iter().map(|it| format!("{it:?}")).collect();
        lines.push_str(&format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            names.join(", ")
        ));
    }
    if !failed.is_empty() {
        tracing::debug!(which, ?failed, "not well");
        let shown = format!("{lines}{which} check failed\n");
        return text(StatusCode::INTERNAL_SERVER_ERROR, shown);
    }
    match query.all("verbose").next() {
        None => text(StatusCode::OK, "ok".into()),
        Some(_) => text(StatusCode::OK, format!("{lines}{which} check passed\n")),
    }
}

fn text(code: StatusCode, text: String) -> Response<Body> {
    let mut response = answer::bytes(code, text.into(), answer::TEXT);
    let nosniff = http::HeaderValue::from_static("nosniff");
    response.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}
