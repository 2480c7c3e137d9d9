//! client-go's informers, as stock kubectl has them: what waits for a change sees it in a store
//! that is filled by a list and a watch, or by a watch alone, and that outlives the server.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{Cloud, Kubectl, texts};

const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: Metadata
  resources: [{group: '', resources: [configmaps]}]
  verbs: [list, watch]
- level: None
";

/// Whether the informer begins with a watch that first tells what there is.
#[derive(Clone, Copy)]
struct Streaming(bool);

impl Streaming {
    fn begin(self, user: &Kubectl, args: &[&str]) -> Child {
        let mut command = user.command();
        command.env("KUBE_FEATURE_WatchListClient", self.0.to_string()).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// What a command that must succeed has printed at its end.
#[track_caller]
fn end(child: Child) -> String {
    let out = child.wait_with_output().unwrap();
    let (stdout, stderr) = texts(&out);
    assert!(out.status.success(), "{stdout}{stderr}");
    stdout
}

/// The URIs of watches that have begun, as soon as there are more than `count`.
#[track_caller]
fn watches(log: &Path, count: usize) -> Vec<String> {
    let begin = Instant::now();
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |it| it.0);
        let events = whole.lines().map(|it| serde_json::from_str::<serde_json::Value>(it).unwrap());
        let begun = events.filter(|it| it["verb"] == "watch" && it["stage"] == "ResponseStarted");
        let uris: Vec<String> =
            begun.map(|it| it["requestURI"].as_str().unwrap().to_owned()).collect();
        if count < uris.len() {
            return uris;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{} of {count}\n{text}", uris.len());
        thread::sleep(Duration::from_millis(50));
    }
}

fn informers_outlive_the_server(streaming: Streaming) {
    let dir = tempfile::tempdir().unwrap();
    let (policy, log) = (dir.path().join("policy.yaml"), dir.path().join("audit.log"));
    fs::write(&policy, POLICY).unwrap();
    let audit = |it: &Path| it.to_str().unwrap().to_owned();
    let (policy, path) = (audit(&policy), audit(&log));
    // Nothing but kubectl is to look at the maps.
    let mut cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    cloud.terminate();
    let options = ["--without", "controllers,scheduler"];
    let audited = ["--audit-policy-file", &policy, "--audit-log-path", &path];
    cloud.again_with(&[&options[..], &audited].concat());
    acme.ok(&["create", "configmap", "c", "--from-literal=k=old"]);

    let seen = ["wait", "--for=jsonpath={.data.k}=new", "configmap/c", "--timeout=120s"];
    let gone = ["wait", "--for=delete", "configmap/c", "--timeout=120s"];
    let (seen, gone) = (streaming.begin(&acme, &seen), streaming.begin(&acme, &gone));
    let uris = watches(&log, 1);
    for uri in &uris {
        assert_eq!(uri.contains("sendInitialEvents=true"), streaming.0, "{uris:#?}");
    }

    // Each finds its way back, and what has changed behind its back.
    let before = uris.len();
    cloud.terminate();
    cloud.again();
    acme.ok(&["patch", "configmap", "c", "--type=merge", "-p", r#"{"data":{"k":"new"}}"#]);
    assert_eq!(end(seen), "configmap/c condition met\n");
    watches(&log, before);
    acme.ok(&["delete", "configmap", "c"]);
    assert_eq!(end(gone), "configmap/c condition met\n");
}

#[test]
fn informers_that_list_outlive_the_server() {
    informers_outlive_the_server(Streaming(false));
}

#[test]
fn informers_that_stream_outlive_the_server() {
    informers_outlive_the_server(Streaming(true));
}
