//! Do we answer as Kubernetes' own API server does?
//!
//! A corpus of requests, good and bad, is sent to a cloud, and the answers are compared with those
//! that Kubernetes 1.36's API server gave to the same requests (`expected/`), after what differs
//! from run to run is taken out. `open.txt` names the answers that still differ, and `meant.yaml`
//! those that are meant to, and why; a difference that is in neither fails the test, and so does
//! one that is gone and still listed.
//!
//! * `INSULA_RECORD=KUBECONFIG` asks the server of that file instead, an API server alone with an
//!   empty store and with a user `dev` of group `system:masters`, and writes what it answers.
//! * `INSULA_OPEN=write` writes `open.txt` anew.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

mod answer;
mod compare;
mod corpus;
#[path = "../harness/mod.rs"]
mod harness;
mod run;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use answer::Answer;
use harness::Cloud;

/// Answers by the name of the request.
type Answers = BTreeMap<String, Answer>;

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_as_upstreams() {
    if let Some(peer) = std::env::var_os("INSULA_RECORD") {
        let peer = PathBuf::from(peer);
        for (name, answers) in run::all(&peer, &peer).await {
            fs::write(here(&format!("expected/{name}.json")), lines(&answers)).unwrap();
        }
        return;
    }
    let mut cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    // From here on only what is asked for happens.
    cloud.terminate();
    cloud.again_with(&["--without", "controllers,scheduler"]);
    let admin = cloud.admin();
    let mut differing = BTreeMap::new();
    let mut asked = 0;
    for (name, answers) in run::all(acme.kubeconfig(), admin.kubeconfig()).await {
        let expected = fs::read_to_string(here(&format!("expected/{name}.json"))).unwrap();
        let mut expected: Answers = serde_json::from_str(&expected).unwrap();
        // What is taken out by now may be in what was recorded before.
        expected.values_mut().for_each(|it| answer::still(&mut it.body));
        asked += answers.len();
        assert_eq!(
            expected.keys().collect::<Vec<_>>(),
            answers.keys().collect::<Vec<_>>(),
            "{name}: the corpus has changed; record it again"
        );
        for (request, expected) in &expected {
            let differences = compare::differences(expected, &answers[request]);
            if !differences.is_empty() {
                differing.insert(request.clone(), differences);
            }
        }
    }
    judge(&differing, asked);
}

/// As JSON, with a line for each request.
fn lines(answers: &Answers) -> String {
    let line = |(request, answer)| {
        let answer = serde_json::to_string(answer).unwrap();
        format!("{}: {answer}", serde_json::to_string(request).unwrap())
    };
    format!("{{\n{}\n}}\n", answers.iter().map(line).collect::<Vec<_>>().join(",\n"))
}

/// Holds what differs against the lists of what may.
fn judge(differing: &BTreeMap<String, Vec<String>>, asked: usize) {
    let meant = fs::read_to_string(here("meant.yaml")).unwrap();
    let meant: BTreeMap<String, String> = serde_saphyr::from_str(&meant).unwrap();
    let is_meant = |request: &str| meant.keys().any(|it| matches(it, request));
    let left: BTreeSet<&str> =
        differing.keys().map(String::as_str).filter(|it| !is_meant(it)).collect();
    if std::env::var_os("INSULA_OPEN").is_some() {
        let lines: Vec<&str> = left.iter().copied().collect();
        fs::write(here("open.txt"), lines.join("\n") + "\n").unwrap();
    }
    let open = fs::read_to_string(here("open.txt")).unwrap();
    let open: BTreeSet<&str> = open.lines().filter(|it| !it.is_empty()).collect();
    let verbose = std::env::var_os("INSULA_VERBOSE").is_some();
    for request in left.iter().filter(|it| verbose || !open.contains(*it)) {
        eprintln!("{request}");
        for difference in &differing[*request] {
            eprintln!("    {difference}");
        }
    }
    let new: Vec<_> = left.difference(&open).collect();
    let gone: Vec<_> = open.difference(&left).collect();
    eprintln!(
        "{asked} requests, {} answers differ, {} as meant",
        left.len(),
        differing.len() - left.len()
    );
    assert!(new.is_empty(), "answers that differ from upstream's: {new:#?}");
    assert!(gone.is_empty(), "no longer differing, take them out of open.txt: {gone:#?}");
}

/// Whether `pattern`, with `*` at its end or its beginning, means `request`.
fn matches(pattern: &str, request: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => request.ends_with(end),
        (_, Some(begin)) => request.starts_with(begin),
        _ => pattern == request,
    }
}

/// A file beside this one.
fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential").join(name)
}
