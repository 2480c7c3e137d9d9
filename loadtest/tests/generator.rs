//! The generator itself: its figures of a server whose behaviour is known are right.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, body::Incoming, server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use insula_loadtest::{
    LoadTest, Options,
    report::{Call, Ending, Report},
    scenario::Scenario,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long a request takes, and what it is answered; nothing is answered without a code.
type Behaviour = fn(turn: u64, since_first: Duration) -> (Duration, Option<StatusCode>);

#[derive(Debug, thiserror::Error)]
#[error("no answer")]
struct NoAnswer;

struct Server {
    behaviour: Behaviour,
    turns: AtomicU64,
    first: Mutex<Option<Instant>>,
    /// Namespaces that are there.
    namespaces: Mutex<Vec<String>>,
}

impl Server {
    /// As little of a Kubernetes API as a load test of config maps needs.
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, NoAnswer> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (code, body) = match (&method, path.as_str()) {
            (_, "/version") => (StatusCode::OK, json!({"gitVersion": "v0"})),
            (_, "/api/v1") => {
                let maps = json!({"name": "configmaps", "kind": "ConfigMap", "namespaced": true});
                (StatusCode::OK, json!({"resources": [maps]}))
            }
            (&Method::GET, "/api/v1/namespaces") => (StatusCode::OK, json!({"items": []})),
            (&Method::POST, "/api/v1/namespaces") => {
                use http_body_util::BodyExt as _;
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap();
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                self.namespaces.lock().unwrap().push(name);
                (StatusCode::CREATED, body)
            }
            _ if path.contains("/configmaps") && method != Method::DELETE => {
                let first = *self.first.lock().unwrap().get_or_insert_with(Instant::now);
                let turn = self.turns.fetch_add(1, Ordering::Relaxed);
                let (delay, code) = (self.behaviour)(turn, first.elapsed());
                tokio::time::sleep(delay).await;
                let code = code.ok_or(NoAnswer)?;
                let reason = (code == StatusCode::CONFLICT).then_some("Conflict");
                (
                    code,
                    json!({"kind": "Status", "apiVersion": "v1", "reason": reason,
                    "metadata": {"resourceVersion": turn.to_string()}}),
                )
            }
            (&Method::DELETE, _) => {
                let mut namespaces = self.namespaces.lock().unwrap();
                namespaces.retain(|it| !path.ends_with(it.as_str()));
                (StatusCode::OK, json!({}))
            }
            _ => (StatusCode::NOT_FOUND, json!({"reason": "NotFound", "code": 404})),
        };
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        *response.status_mut() = code;
        Ok(response)
    }
}

async fn start(behaviour: Behaviour, dir: &Path) -> (PathBuf, Arc<Server>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::new(Server {
        behaviour,
        turns: AtomicU64::new(0),
        first: Mutex::default(),
        namespaces: Mutex::default(),
    });
    let shared = server.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let server = shared.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { server.answer(request).await }
                });
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.max_concurrent_streams(10_000);
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    let path = dir.join("kubeconfig");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    std::fs::write(&path, config.to_string()).unwrap();
    (path, server)
}

/// Runs one step of config maps.
async fn run(behaviour: Behaviour, step: &str, thresholds: &str) -> (Report, Arc<Server>) {
    let dir = tempfile::tempdir().unwrap();
    let (kubeconfig, server) = start(behaviour, dir.path()).await;
    let text = format!(
        "name: t\ntemplates:\n  config: {{apiVersion: v1, kind: ConfigMap}}\nsteps:\n  - create: \
         {{name: s, template: config, {step}}}\nthresholds: [{thresholds}]\n"
    );
    let options = Options {
        scenario: Scenario::parse("t", &text, false, &[]).unwrap(),
        kubeconfig,
        connections: 2,
        timeout: Duration::from_secs(3),
        tenants: true,
        cleanup: false,
        patience: Duration::from_secs(60),
        processes: Vec::new(),
        commands: Vec::new(),
        nodes_running: false,
        command: vec!["test".into()],
        client: "test".into(),
        quiet: true,
    };
    let test = LoadTest::prepare(options, None).await.unwrap();
    let report = test.run(CancellationToken::new(), CancellationToken::new()).await;
    assert!(server.namespaces.lock().unwrap().is_empty(), "{:?}", report.notes);
    (report, server)
}

fn of_step(report: &Report) -> &Call {
    report.calls.iter().find(|it| it.key.step == "s").unwrap()
}

const OK: Option<StatusCode> = Some(StatusCode::CREATED);

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_kept_and_latency_is_that_of_the_server() {
    let steady: Behaviour = |_, _| (Duration::from_millis(20), OK);
    let (report, server) =
        run(steady, "rate: 200, count: 400", "throughput: {step: s, atLeast: 20}").await;
    let call = of_step(&report);
    assert_eq!(report.ending, Ending::Passed, "{:?}", report.thresholds);
    assert_eq!((call.answered, call.failed), (400, 0));
    assert_eq!(server.turns.load(Ordering::Relaxed), 400);
    assert!(call.rate <= 205.0, "{}", call.rate);
    // What it says of itself tells whether the machine let it keep the rate.
    assert!(100.0 < call.rate || !report.generator.bottlenecks.is_empty(), "{}", call.rate);
    assert!(20.0 <= call.latency.p50 && call.latency.p50 < 300.0, "{:?}", call.latency);
    let points: u64 = call.points.iter().map(|it| it.answered).sum();
    assert_eq!(points, 400, "all of it is in the points over time");
}

/// Nine of ten take 5 ms and one takes 400 ms: percentiles lie on the right side of that.
#[tokio::test(flavor = "multi_thread")]
async fn percentiles_are_those_of_the_server() {
    let mixed: Behaviour =
        |turn, _| (Duration::from_millis(if turn % 10 == 9 { 400 } else { 5 }), OK);
    let (report, _) = run(mixed, "concurrency: 20, count: 400", "").await;
    let times = of_step(&report).latency;
    assert!(5.0 <= times.p50 && times.p50 < 300.0, "{times:?}");
    assert!(400.0 <= times.p99 && 400.0 <= times.max, "{times:?}");
}

/// A server that stands still for a second, and a client that asks one thing at a time: few
/// requests see it, but all that were meant to be made meanwhile suffer it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stall_is_seen_by_all_who_would_have_asked() {
    let stalls: Behaviour = |_, since| {
        let (begin, end) = (Duration::from_secs(1), Duration::from_secs(2));
        let is_stalled = begin <= since && since < end;
        (if is_stalled { end - since } else { Duration::from_millis(1) }, OK)
    };
    let (report, _) =
        run(stalls, "rate: 50, count: 150, maxInFlight: 1", "outage: {step: s, atMost: 500ms}")
            .await;
    let call = of_step(&report);
    assert_eq!(call.answered, 150);
    // A third of all was meant to begin during the stall, half of them in its first half.
    assert!(400.0 < call.latency.p90, "{:?}", call.latency);
    assert!(call.service.p90 < call.latency.p90 / 2.0, "{:?} {:?}", call.service, call.latency);
    assert!(10 < report.generator.held_back);
    assert!(0.8 < call.longest_gap, "{}", call.longest_gap);
    assert_eq!(report.ending, Ending::Failed, "the outage is a threshold");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_counted_by_kind() {
    let bad: Behaviour = |turn, _| match turn % 10 {
        1 => (Duration::ZERO, Some(StatusCode::CONFLICT)),
        3 => (Duration::ZERO, Some(StatusCode::BAD_GATEWAY)),
        5 => (Duration::from_secs(60), OK),
        7 => (Duration::ZERO, None),
        _ => (Duration::ZERO, OK),
    };
    let (report, _) = run(bad, "concurrency: 10, count: 40", "errors: {atMost: 15}").await;
    let call = of_step(&report);
    assert_eq!(call.answered, 24, "{:?}", call.errors);
    let errors: Vec<(&str, u64)> =
        call.errors.iter().map(|(kind, n)| (kind.as_str(), *n)).collect();
    assert_eq!(errors, [("Conflict", 4), ("Connection", 4), ("HTTP 502", 4), ("Timeout", 4)]);
    assert!(3000.0 <= call.latency.max, "what ran out of time was slow: {:?}", call.latency);
    assert!(!report.thresholds[0].held);
}

/// A test that cannot keep its own time says so.
#[tokio::test(flavor = "current_thread")]
async fn a_generator_that_is_too_slow_says_so() {
    // One thread for server and client, which the server keeps for itself.
    let greedy: Behaviour = |_, _| {
        std::thread::sleep(Duration::from_millis(60));
        (Duration::ZERO, OK)
    };
    let (report, _) = run(greedy, "rate: 100, count: 100", "").await;
    let why = report.generator.bottlenecks.join("; ");
    assert!(why.contains("late"), "{:?}", report.generator);
}
