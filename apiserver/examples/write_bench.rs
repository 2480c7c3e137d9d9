//! What writes cost: CPU of the whole process per request, without network and clients.
//!
//! Requests enter where those of the controllers do, and everything behind is real: the gate,
//! admission, validation, field ownership, and a durable store.
//!
//! `cargo run --release -p insula-apiserver --example write_bench [REQUESTS [LINE]]`, where LINE is
//! a part of the name of the lines to be measured, beside the creations that they need.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench stops at what it did not expect, and prints"
)]

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use insula_api::names::TenantName;
use insula_apiserver::{
    Server,
    identity::{Identity, MASTERS},
};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Requests that are under way at once.
const CLIENTS: usize = 32;
const PODS: &str = "/api/v1/namespaces/bench/pods";

async fn send(
    server: &Arc<Server>,
    method: Method,
    uri: &str,
    media_type: &str,
    body: &Value,
) -> (StatusCode, Bytes) {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header(header::CONTENT_TYPE, media_type)
        .header(header::USER_AGENT, "bench/1")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let caller = Identity::new(TenantName::system(), "bench", &[MASTERS]);
    let response = server.handle_trusted(request, caller).await;
    let code = response.status();
    (code, response.into_body().collect().await.unwrap().to_bytes())
}

/// A pod as a workload controller makes them, about 2.5 KB once it is stored.
fn pod(n: usize) -> Value {
    let container = |name: &str| {
        json!({
            "name": name, "image": "registry.example/team/application:1.2.3",
            "args": ["--listen=:8080", "--log-level=info"],
            "env": [
                {"name": "REGION", "value": "north"},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            ],
            "ports": [{"containerPort": 8080, "name": "http"}, {"containerPort": 9090, "name": "metrics"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}],
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("web-{n:06}"),
            "labels": {"app": "web", "pod-template-hash": "5498fb8654", "tier": "front"},
            "annotations": {"example.com/revision": "7"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5498fb8654",
                "uid": "8a7c1b1e-0000-4000-8000-000000000000", "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "containers": [container("application"), container("sidecar")],
            "volumes": [{"name": "config", "configMap": {"name": "web"}}],
        },
    })
}

fn status(n: usize) -> Value {
    json!({"status": {
        "phase": "Running", "podIP": format!("10.0.{}.{}", n / 250, n % 250),
        "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "ContainersReady", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ],
    }})
}

/// Microseconds of CPU that this process has used.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let mut nanos: f64 = text.split(' ').next().and_then(|it| it.parse().ok()).unwrap_or(0.0);
    // The file of the process is that of its first thread.
    nanos = std::fs::read_dir("/proc/self/task").map_or(nanos, |tasks| {
        let of = |task: std::io::Result<std::fs::DirEntry>| -> Option<f64> {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse().ok()
        };
        tasks.filter_map(of).sum()
    });
    nanos / 1e3
}

/// Sends `count` requests, `CLIENTS` at a time, and prints what one costs.
async fn measure<F>(name: &str, server: &Arc<Server>, count: usize, expected: StatusCode, make: F)
where
    F: Fn(usize) -> (Method, String, &'static str, Value) + Send + Sync + 'static,
{
    let wanted = std::env::args().nth(2).unwrap_or_default();
    if !name.contains("create") && !name.contains(&wanted) {
        return;
    }
    let make = Arc::new(make);
    let (begun, used) = (Instant::now(), cpu());
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (server, make) = (server.clone(), make.clone());
            tokio::spawn(async move {
                for n in (client..count).step_by(CLIENTS) {
                    let (method, uri, media_type, body) = make(n);
                    let (code, body) = send(&server, method, &uri, media_type, &body).await;
                    assert_eq!(code, expected, "{}", String::from_utf8_lossy(&body));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (took, used) = (begun.elapsed().as_secs_f64(), cpu() - used);
    let (each, rate) = (used / count as f64, count as f64 / took);
    println!("{name:32} {each:8.1} us CPU {rate:10.0} /s");
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let count: usize = std::env::args().nth(1).and_then(|it| it.parse().ok()).unwrap_or(20_000);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::alone(dir.path()).await.unwrap();
    let json = "application/json";
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}});
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    for (uri, body) in
        [("/api/v1/namespaces", &namespace), ("/api/v1/namespaces/bench/serviceaccounts", &account)]
    {
        let (code, body) = send(&server, Method::POST, uri, json, body).await;
        assert_eq!(code, StatusCode::CREATED, "{}", String::from_utf8_lossy(&body));
    }
    let at = |n: usize, part: &str| format!("{PODS}/web-{n:06}{part}");
    // The cost of asking, which every line has in it.
    measure(
        "bodies alone, sent nowhere",
        &server,
        count,
        StatusCode::METHOD_NOT_ALLOWED,
        move |n| (Method::POST, "/nowhere".into(), json, pod(n)),
    )
    .await;
    for round in 0..2 {
        let first = round * count;
        measure("create", &server, count, StatusCode::CREATED, move |n| {
            (Method::POST, PODS.into(), json, pod(first + n))
        })
        .await;
    }
    let (_, stored) = send(&server, Method::GET, &at(0, ""), json, &Value::Null).await;
    println!("a pod has {} bytes", stored.len());
    let merge = "application/merge-patch+json";
    for _ in 0..2 {
        measure("patch status", &server, count, StatusCode::OK, move |n| {
            (Method::PATCH, at(n, "/status"), merge, status(n))
        })
        .await;
        measure("patch a label", &server, count, StatusCode::OK, move |n| {
            let text = format!("{:?}", Instant::now());
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            let body = json!({"metadata": {"labels": {"moment": digits}}});
            (Method::PATCH, at(n, ""), merge, body)
        })
        .await;
    }
    let probe = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"}});
    let uri = "/api/v1/namespaces/bench/configmaps/probe?fieldManager=bench";
    let apply = "application/apply-patch+yaml";
    if send(&server, Method::PATCH, uri, apply, &probe).await.0 != StatusCode::CREATED {
        return;
    }
    let applied = move |name: &str, n: usize| {
        let uri = format!("{PODS}/applied-{n:06}?fieldManager=bench");
        let mut body = pod(n);
        body["metadata"]["name"] = format!("applied-{n:06}").into();
        body["metadata"]["labels"]["change"] = name.into();
        (Method::PATCH, uri, apply, body)
    };
    measure("apply, created", &server, count, StatusCode::CREATED, move |n| applied("a", n)).await;
    measure("apply, the same", &server, count, StatusCode::OK, move |n| applied("a", n)).await;
    measure("apply, a label changed", &server, count, StatusCode::OK, move |n| applied("b", n))
        .await;
}
