//! What is stored and asked for.

use std::time::Instant;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{Failure, JSON, client::Client};

pub(crate) const PODS: &str = "/api/v1/namespaces/bench/pods";
pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/bench/configmaps";
/// Config maps that are put again and again.
const MAPS: usize = 100;

/// The namespace and what is in it before anything is measured.
pub(crate) async fn prepare(client: &Client) -> Result<(), Failure> {
    let bench = json!({"metadata": {"name": "bench"}});
    let account = json!({"metadata": {"name": "default"}});
    let mut all = vec![
        ("/api/v1/namespaces".to_owned(), bench),
        ("/api/v1/namespaces/bench/serviceaccounts".to_owned(), account),
    ];
    for n in 0..MAPS {
        let map = json!({"metadata": {"name": format!("map-{n}")}, "data": {"a": "b"}});
        all.push((CONFIG_MAPS.to_owned(), map));
    }
    for (path, body) in all {
        let (code, answer) = client.ask(Method::POST, &path, JSON, body.to_string()).await?;
        // A controller may have been faster.
        if code != StatusCode::CREATED && code != StatusCode::CONFLICT {
            return Err(format!("{path}: {}", String::from_utf8_lossy(&answer)).into());
        }
    }
    Ok(())
}

/// A pod as a workload controller makes them: about 2.5 KB as clients get it.
pub(crate) fn pod(n: usize) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("web-{n:06}"),
            "labels": {"app": "web", "pod-template-hash": "5498fb8654"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5498fb8654",
                "uid": "8a7c1b1e-0000-4000-8000-000000000000", "controller": true,
            }],
        },
        "spec": {
            "nodeName": format!("n{}", n % 100),
            "containers": [{
                "name": "application", "image": "registry.example/team/application:1.2.3",
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
            }],
        },
    })
    .to_string()
}

/// A merge patch that changes a label to what it never was.
pub(crate) fn label(name: &str, n: usize) -> String {
    json!({"metadata": {"labels": {name: moment(n)}}}).to_string()
}

/// The path of a config map, and one that differs from all before.
pub(crate) fn config_map(n: usize) -> (String, String) {
    let name = format!("map-{}", n % MAPS);
    let data: Value = json!({"a": "x".repeat(1024), "moment": moment(n)});
    (format!("{CONFIG_MAPS}/{name}"), json!({"metadata": {"name": name}, "data": data}).to_string())
}

/// Part of a pod, for server-side apply.
pub(crate) fn applied(n: usize) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("web-{n:06}"), "labels": {"applied": moment(n)}},
    })
    .to_string()
}

/// Letters and digits that come but once.
fn moment(n: usize) -> String {
    let text = format!("{:?}", Instant::now());
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    format!("{n}-{digits}")
}
