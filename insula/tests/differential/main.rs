//! Do we answer as Kubernetes' own API server does?
//!
//! A corpus of requests, good and bad, is sent to a cloud, and the answers are compared with those
//! that Kubernetes 1.36's API server gave to the same requests (`expected/`), after what differs
//! from run to run is taken out. `open.txt` names the answers that still differ, with where and a
//! digest of how, and `meant.yaml` those that are meant to, and why (and, where it says `at`, in
//! which places alone); a difference that is in
//! neither fails the test, and so does one that is gone, or has become another, and is still
//! listed as it was.
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
    collections::BTreeMap,
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
    // The peer's pods may ask for anything.
    cloud.trust("acme");
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
    let meant: BTreeMap<String, Meant> = serde_saphyr::from_str(&meant).unwrap();
    let is_meant = |request: &str, difference: &str| {
        meant.iter().any(|(pattern, it)| matches(pattern, request) && it.covers(difference))
    };
    let left: BTreeMap<&str, String> = differing
        .iter()
        .filter_map(|(request, differences)| {
            let others = differences.iter().filter(|it| !is_meant(request, it));
            let others: Vec<&str> = others.map(String::as_str).collect();
            (!others.is_empty()).then(|| (request.as_str(), mark(&others)))
        })
        .collect();
    if std::env::var_os("INSULA_OPEN").is_some() {
        let lines: String =
            left.iter().map(|(request, mark)| format!("{request}\t{mark}\n")).collect();
        fs::write(here("open.txt"), lines).unwrap();
    }
    let open = fs::read_to_string(here("open.txt")).unwrap();
    let open: BTreeMap<&str, &str> = open.lines().filter_map(|it| it.split_once('\t')).collect();
    let verbose = std::env::var_os("INSULA_VERBOSE").is_some();
    let is_known = |request: &str, mark: &str| open.get(request).is_some_and(|it| *it == mark);
    for (request, _) in left.iter().filter(|(it, mark)| verbose || !is_known(it, mark)) {
        eprintln!("{request}");
        for difference in &differing[*request] {
            eprintln!("    {difference}");
        }
    }
    eprintln!(
        "{asked} requests, {} answers differ, {} as meant",
        left.len(),
        differing.len() - left.len()
    );
    let (known, new): (Vec<&str>, Vec<&str>) =
        left.keys().copied().partition(|it| open.contains_key(it));
    let other: Vec<&str> = known.into_iter().filter(|it| !is_known(it, &left[it])).collect();
    let gone: Vec<&&str> = open.keys().filter(|it| !left.contains_key(*it)).collect();
    assert!(new.is_empty(), "answers that differ from upstream's: {new:#?}");
    assert!(other.is_empty(), "they differ in another way than open.txt says: {other:#?}");
    assert!(gone.is_empty(), "no longer differing, take them out of open.txt: {gone:#?}");
}

/// What is meant to differ: all of an answer, or certain places of it.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Meant {
    All(#[allow(dead_code, reason = "it is read by people")] String),
    Places {
        at: Vec<String>,
        #[allow(dead_code, reason = "it is read by people")]
        why: String,
    },
}

impl Meant {
    fn covers(&self, difference: &str) -> bool {
        let place = difference.split_once(": ").map_or(difference, |(place, _)| place);
        match self {
            Self::All(_) => true,
            Self::Places { at, .. } => at.iter().any(|it| place.ends_with(it.as_str())),
        }
    }
}

/// Where an answer differs, and a digest of how.
fn mark(differences: &[&str]) -> String {
    const SHOWN: usize = 4;
    let places: Vec<&str> =
        differences.iter().filter_map(|it| it.split_once(": ")).map(|(place, _)| place).collect();
    let more = places.len().saturating_sub(SHOWN);
    let shown = places.iter().take(SHOWN).copied().collect::<Vec<_>>().join(" ");
    let more = if 0 < more { format!(" and {more} more") } else { String::new() };
    format!("{:08x} {shown}{more}", digest(&differences.join("\n")))
}

/// FNV-1a: the same in all builds, for all time.
fn digest(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
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
