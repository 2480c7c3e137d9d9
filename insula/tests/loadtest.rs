//! Load tests, as an operator runs them: against a real cloud, with all that can go wrong.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use harness::{Cloud, insula};
use serde_json::{Value, json};

/// A machine that pods can be bound to, and which nobody hears of.
const NODE: &str = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "hollow"}}"#;
const STATUS: &str = r#"{"status": {"allocatable": {"cpu": "64", "memory": "64Gi", "pods": "1000"},
    "conditions": [{"type": "Ready", "status": "True"}]}}"#;

/// Density as far as it goes without agents: until pods are scheduled.
const DENSITY: &str = r"
name: small-density
tenants: [{ name: main, count: 2 }]
templates:
  pod:
    apiVersion: v1
    kind: Pod
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers: [{name: c, image: none}]
steps:
  - watch: { name: watches, template: pod, count: 2 }
  - create: { name: fill, template: pod, count: 30, rate: 15 }
  - waitFor: { name: filled, pods: scheduled, timeout: 120s }
  - list: { name: lists, template: pod, scope: cluster, limit: 20, count: 5 }
  - get: { name: reads, template: pod, count: 20, concurrency: 2 }
  - delete: { name: away, template: pod, gracePeriodSeconds: 0 }
  - waitFor: { name: gone, pods: gone, timeout: 60s }
thresholds:
  - errors: { atMost: 0 }
  - podStartup: { until: scheduled, percentile: 50, atMost: 60s }
  - watchLag: { atMost: 60s }
  - memory: { process: server, atMost: 4Gi }
";

/// One that goes on until somebody ends it.
const ENDLESS: &str = r"
name: endless
tenants: [{ name: main, count: 2 }]
templates:
  config: { apiVersion: v1, kind: ConfigMap }
steps:
  - create: { name: fill, template: config, count: 20 }
  - churn: { name: churn, template: config, rate: 20, duration: 1h }
";

fn loadtest(cloud: &Cloud, dir: &Path, arguments: &[&str]) -> Command {
    let mut command = insula();
    command.args(["loadtest", "run"]).args(arguments);
    command.arg("--kubeconfig").arg(cloud.path("admin.kubeconfig"));
    command.arg("--out").arg(dir.join("report"));
    command
}

#[track_caller]
fn ends(out: &Output, code: i32) -> (String, String) {
    let [told, said] =
        [&out.stdout, &out.stderr].map(|it| String::from_utf8_lossy(it).into_owned());
    assert_eq!(out.status.code(), Some(code), "{told}\n{said}");
    (told, said)
}

/// A run that goes on; it does not outlive its test.
struct Running(Option<Child>);

impl Running {
    fn begin(command: &mut Command) -> Self {
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    /// Sends a signal, and waits until it has ended.
    fn end(mut self, signal: &str) -> Output {
        let child = self.0.take().unwrap();
        let id = child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        child.wait_with_output().unwrap()
    }

    fn wait(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn report(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("report/report.json")).unwrap()).unwrap()
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Tenants of load tests that are there.
fn left(cloud: &Cloud) -> String {
    cloud.admin().ok(&["get", "tenants", "-l", "insula.io/loadtest-run", "-o", "name"])
}

#[test]
fn a_small_density_passes_and_writes_both_reports() {
    let (cloud, dir) = (Cloud::without_node(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    let admin = cloud.admin();
    admin.ok(&["create", "-f", &write(dir, "node.yaml", NODE)]);
    admin.ok(&["patch", "node", "hollow", "--subresource", "status", "-p", STATUS]);
    let scenario = write(dir, "density.yaml", DENSITY);
    let process = format!("server={}", cloud.id());
    let out = loadtest(&cloud, dir, &[&scenario, "--process", &process]).output().unwrap();
    let (told, _) = ends(&out, 0);
    assert!(told.contains("held") && told.contains("passed"), "{told}");
    let whole = report(dir);
    assert_eq!(whole["ending"], "passed");
    let call = |step: &str| {
        let calls = whole["calls"].as_array().unwrap();
        calls.iter().find(|it| it["step"] == step).unwrap_or_else(|| panic!("{step}")).clone()
    };
    assert_eq!((&call("fill")["verb"], &call("fill")["answered"]), (&json!("create"), &json!(30)));
    assert_eq!(call("lists")["scope"], "cluster");
    assert_eq!(call("away")["answered"], 30);
    assert!(0.0 < call("reads")["latency"]["p99"].as_f64().unwrap());
    assert_eq!(whole["pods"]["scheduled"], 30);
    // Each pod is made, and bound, and deleted; two watches are told.
    assert_eq!(whole["watch"]["lag"]["count"], 60, "{}", whole["watch"]);
    let server = |figure: &str| whole["processes"][0][figure].as_u64().unwrap();
    assert!(1_000_000 < server("memoryMost"));
    // Thirty pods were sent to it, and told to two watches.
    assert!(10_000 < server("received") && 10_000 < server("sent"), "{}", whole["processes"]);
    let page = fs::read_to_string(dir.join("report/report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("loadtest run"), "{page}");
    assert!(!page.contains("http://") && !page.contains("<script"), "it needs nothing else");
    assert_eq!(left(&cloud), "");

    // Beside itself nothing is worse; beside one that was slower, much is.
    let first = dir.join("report");
    let compare = |second: &Path| {
        let mut command = insula();
        command.args(["loadtest", "compare", "--fail-above", "1.5"]).arg(&first).arg(second);
        command.output().unwrap()
    };
    let (told, _) = ends(&compare(&first), 0);
    assert!(told.contains("fill: create pods, 99 % ms") && told.contains("the same"), "{told}");
    let mut slower = whole.clone();
    let p99 = call("fill")["latency"]["p99"].as_f64().unwrap();
    let calls = slower["calls"].as_array_mut().unwrap();
    let fill = calls.iter_mut().find(|it| it["step"] == "fill").unwrap();
    fill["latency"]["p99"] = json!(p99 * 2.0);
    let (told, _) = ends(&compare(Path::new(&write(dir, "b.json", &slower.to_string()))), 1);
    assert!(told.contains("2.00 worse"), "{told}");
}

/// What is shipped, small: every scenario that needs no nodes and no operator.
#[test]
fn tenants_move_while_they_write_and_metrics_tell_of_it() {
    let (cloud, dir) = (Cloud::without_node(), tempfile::tempdir().unwrap());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    let mut command = loadtest(&cloud, dir.path(), &["live-move", "--small", "--listen", &listen]);
    // What it may take on a busy machine is not what this is about.
    command.args(["--set", "calm=3s"]);
    let running = Running::begin(&mut command);
    let begun = Instant::now();
    let metrics = loop {
        let text = scrape(&listen).unwrap_or_default();
        if text.contains(r#"insula_loadtest_requests_total{resource="configmaps",step="writes""#) {
            break text;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{text}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(metrics.contains("insula_loadtest_latency_seconds{quantile=\"0.99\""), "{metrics}");
    let out = running.wait();
    assert!(matches!(out.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&out.stderr));
    let whole = report(dir.path());
    let calls = whole["calls"].as_array().unwrap();
    let moved = calls.iter().find(|it| it["verb"] == "move").unwrap();
    assert_eq!((&moved["answered"], &moved["failed"]), (&json!(2), &json!(0)));
    let writes = calls.iter().find(|it| it["step"] == "writes").unwrap();
    assert_eq!(writes["failed"], 0, "writes wait while their tenant moves: {writes}");
    assert_eq!(left(&cloud), "");
}

#[test]
fn hollow_nodes_run_the_pods_of_a_scenario_and_all_come_back_at_once() {
    let cloud = Cloud::without_node();
    let dir = tempfile::tempdir().unwrap();
    let mut command = loadtest(&cloud, dir.path(), &["node-storm", "--small"]);
    let out = command.output().unwrap();
    // What it may take on a busy machine is not what this is about.
    assert!(matches!(out.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&out.stderr));
    let whole = report(dir.path());
    let calls = whole["calls"].as_array().unwrap();
    let of = |step: &str| calls.iter().find(|it| it["step"] == step).unwrap();
    assert_eq!((&of("fill")["answered"], &of("fill")["failed"]), (&json!(60), &json!(0)));
    assert_eq!(of("reads")["failed"], 0);
    assert!(whole["reason"].is_null(), "every step was done: {}", whole["reason"]);
    assert_eq!(cloud.admin().ok(&["get", "nodes", "-o", "name"]), "");
    assert_eq!(left(&cloud), "");
}

fn scrape(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn an_interrupted_run_reports_and_leaves_nothing() {
    let (cloud, dir) = (Cloud::without_node(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    let scenario = write(dir, "endless.yaml", ENDLESS);
    let admin = cloud.admin();
    // Begins, and returns when both of its places have something.
    let begin = |extra: &[&str]| {
        let running = Running::begin(loadtest(&cloud, dir, &[&scenario]).args(extra));
        let path = "/tenants/all/api/v1/configmaps?labelSelector=insula.io/loadtest-run";
        let begun = Instant::now();
        loop {
            let found: Value = serde_json::from_str(&admin.ok(&["get", "--raw", path])).unwrap();
            let items = found["items"].as_array().unwrap().iter();
            let place = |it: &Value| {
                format!("{}/{}", it["metadata"]["tenant"], it["metadata"]["namespace"])
            };
            let places: BTreeSet<String> = items.map(place).collect();
            if places.len() == 2 {
                return running;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{places:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let (told, _) = ends(&begin(&[]).end("-INT"), 3);
    assert!(told.contains("interrupted"), "{told}");
    let whole = report(dir);
    assert_eq!(whole["ending"], "interrupted");
    let calls = whole["calls"].as_array().unwrap();
    let made = calls.iter().filter(|it| it["verb"] == "create" && it["resource"] == "configmaps");
    let answered: u64 = made.filter_map(|it| it["answered"].as_u64()).sum();
    assert_ne!(answered, 0, "what was measured until then: {calls:?}");
    assert_eq!(left(&cloud), "");

    // Who is killed cleans nothing up; the next run says so, and does it if it is told to.
    begin(&["--no-tenants"]).end("-KILL");
    let namespaces = ["get", "namespaces", "-l", "insula.io/loadtest-run", "-o", "name"];
    assert_eq!(admin.ok(&namespaces).lines().count(), 2);
    let next = ["watch-fan-out", "--small", "--set", "time=1s", "--no-tenants"];
    let (_, said) = ends(&loadtest(&cloud, dir, &next).output().unwrap(), 2);
    assert!(said.contains("earlier runs left") && said.contains("--cleanup"), "{said}");
    let out = loadtest(&cloud, dir, &next).arg("--cleanup").output().unwrap();
    assert!(matches!(out.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(report(dir)["server"]["hasTenants"], false);
    assert_eq!(admin.ok(&namespaces), "");
}

#[test]
fn what_is_wrong_is_said_before_anything_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let run = |arguments: &[&str]| {
        let mut command = insula();
        command.args(["loadtest", "run"]).args(arguments).arg("--out").arg(dir.join("report"));
        let (_, said) = ends(&command.env_remove("KUBECONFIG").output().unwrap(), 2);
        said
    };
    let typo = write(dir, "typo.yaml", &ENDLESS.replace("rate: 20", "rat: 20"));
    let said = run(&[&typo]);
    for part in ["typo.yaml", "line 8 column 45", "unknown field `rat`", "concurrency"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let said = run(&["densty"]);
    assert!(said.contains("no scenario \"densty\"") && said.contains("density, load"), "{said}");
    assert!(run(&["load"]).contains("--kubeconfig"));

    // Nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    let config = write(dir, "kubeconfig", &config.to_string());
    let said = run(&["load", "--small", "--kubeconfig", &config]);
    assert!(
        said.contains("the target refuses") && said.contains("is the server running"),
        "{said}"
    );
    let said = run(&["partition-failover", "--kubeconfig", &config]);
    assert!(said.contains("--command server=COMMAND"), "{said}");
    assert!(!dir.join("report/report.json").exists(), "nothing was measured");

    let listed = insula().args(["loadtest", "run", "--list"]).output().unwrap();
    let (told, _) = ends(&listed, 0);
    assert!(told.lines().count() == 13 && told.contains("noisy-neighbour"), "{told}");
}
