//! Tables: a pod's spec and what the runtime has, written in a line, against the plan.
//!
//! The runtime's side reads `name.attempt=state`, in the newest sandbox unless it begins with `-`:
//! `run`, `made`, `N` for an exit code now, `N@S` for one S seconds ago. `sandbox` and `old` stand
//! for a ready sandbox and one that is not.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_000_000;

fn spec(policy: &str, init: &str, main: &str) -> PodSpec {
    let list = |names: &str| -> Value {
        names
            .split_whitespace()
            .map(|name| match name.strip_suffix('+') {
                Some(name) => json!({"name": name, "image": "i", "restartPolicy": "Always"}),
                None => json!({"name": name, "image": "i"}),
            })
            .collect()
    };
    serde_json::from_value(json!({
        "restartPolicy": policy, "initContainers": list(init), "containers": list(main)}))
    .unwrap()
}

fn observed(text: &str) -> Observed {
    let mut observed = Observed::default();
    for word in text.split_whitespace() {
        if word == "sandbox" || word == "old" {
            let is_ready = word == "sandbox";
            let attempt = u32::from(is_ready);
            let ips = if is_ready { vec!["10.0.0.1".parse().unwrap()] } else { Vec::new() };
            observed.sandboxes.push(Sandbox { id: word.to_owned(), attempt, is_ready, ips });
            continue;
        }
        let (sandbox, word) = match word.strip_prefix('-') {
            Some(word) => ("old", word),
            None => ("sandbox", word),
        };
        let (id, state) = word.split_once('=').unwrap();
        let (name, attempt) = id.split_once('.').unwrap();
        let at = |seconds| Timestamp::from_second(NOW - seconds).unwrap();
        let state = match state {
            "run" => State::Running { started_at: at(60) },
            "made" => State::Created,
            exited => {
                let (code, ago) = exited.split_once('@').unwrap_or((exited, "0"));
                let ago: i64 = ago.parse().unwrap();
                State::Exited {
                    exit_code: code.parse().unwrap(),
                    reason: String::new(),
                    message: String::new(),
                    started_at: Some(at(ago + 1)),
                    finished_at: at(ago),
                }
            }
        };
        let attempt: u32 = attempt.parse().unwrap();
        let delay = if attempt == 0 { 0 } else { 10 << (attempt - 1).min(5) };
        observed.containers.entry(name.to_owned()).or_default().push(Instance {
            id: id.to_owned(),
            sandbox_id: sandbox.to_owned(),
            attempt,
            state,
            spec_image: "i".to_owned(),
            image: "i".to_owned(),
            image_ref: "i".to_owned(),
            restart_delay: Duration::from_secs(delay).min(MAX_DELAY),
            message_file: String::new(),
            message_from_log: false,
        });
    }
    for all in observed.containers.values_mut() {
        all.sort_by_key(|it| std::cmp::Reverse(it.attempt));
    }
    observed.sandboxes.sort_by_key(|it| std::cmp::Reverse(it.attempt));
    observed
}

fn plan_of(spec: &PodSpec, observed: &Observed, is_ending: bool) -> Plan {
    plan(&World {
        spec,
        observed,
        is_ending,
        has_started: &|id| !id.starts_with("slow"),
        failed_probe: &|id| id.starts_with("sick").then_some(FailedProbe::Liveness),
        now: Timestamp::from_second(NOW).unwrap(),
    })
}

/// The plan in words.
fn words(plan: &Plan) -> String {
    let mut words = Vec::new();
    words.extend(plan.stop.iter().map(|it| format!("stop:{}", it.id)));
    words.extend(plan.stop_sandboxes.iter().map(|it| format!("end:{it}")));
    words.extend(plan.remove_sandboxes.iter().map(|it| format!("drop:{it}")));
    words.extend(plan.remove.iter().map(|it| format!("remove:{it}")));
    words.extend(plan.new_sandbox.iter().map(|it| format!("sandbox:{it}")));
    let start = |it: &Start| {
        format!("start:{}.{}/{}", it.container, it.attempt, it.restart_delay.as_secs())
    };
    words.extend(plan.start.iter().map(start));
    words.extend(plan.backing_off.iter().map(|(name, it)| format!("wait:{name}/{}", it.as_secs())));
    words.extend(plan.is_over.then(|| "over".to_owned()));
    words.join(" ")
}

#[track_caller]
fn check(policy: &str, init: &str, main: &str, seen: &str, expected: &str) {
    let plan = plan_of(&spec(policy, init, main), &observed(seen), false);
    assert_eq!(words(&plan), expected, "{policy} [{init}] [{main}] with {seen:?}");
}

#[track_caller]
fn check_end(init: &str, main: &str, seen: &str, expected: &str) {
    let plan = plan_of(&spec("Always", init, main), &observed(seen), true);
    assert_eq!(words(&plan), expected, "[{init}] [{main}] with {seen:?}");
}

#[test]
fn from_nothing_to_running() {
    check("Always", "", "a b", "", "sandbox:0");
    check("Always", "", "a b", "sandbox", "start:a.0/0 start:b.0/0");
    check("Always", "", "a b", "sandbox a.0=run", "start:b.0/0");
    check("Always", "", "a b", "sandbox a.0=run b.0=run", "");
    check("Always", "", "a", "sandbox a.0=made", "remove:a.0 start:a.0/0");
}

#[test]
fn init_containers_run_in_order() {
    check("Always", "i j", "a", "sandbox", "start:i.0/0");
    check("Always", "i j", "a", "sandbox i.0=run", "");
    check("Always", "i j", "a", "sandbox i.0=0", "start:j.0/0");
    check("Always", "i j", "a", "sandbox i.0=0 j.0=0", "start:a.0/0");
    check("Always", "i j", "a", "sandbox i.0=1", "start:i.1/10");
    check("Always", "i j", "a", "sandbox i.1=1", "wait:i/10");
    check("Never", "i j", "a", "sandbox i.0=1", "over");
    // What is done stays done, also when it was cleaned away.
    check("Always", "i j", "a", "sandbox a.0=run", "");
}

#[test]
fn sidecars_start_before_and_run_beside() {
    check("Always", "s+ i", "a", "sandbox", "start:s.0/0");
    check("Always", "s+ i", "a", "sandbox s.0=run", "start:i.0/0");
    check("Always", "slow+ i", "a", "sandbox slow.0=run", "");
    check("Always", "s+ i", "a", "sandbox s.0=1 i.0=run", "start:s.1/10");
    check("Never", "s+", "a", "sandbox s.0=0 a.0=run", "start:s.1/10");
    check("Never", "s+", "a", "sandbox s.0=run a.0=0", "stop:s.0");
    check("Never", "s+", "a", "sandbox s.0=0 a.0=0", "over");
}

#[test]
fn restarts_follow_the_policy_and_wait_longer_each_time() {
    check("Never", "", "a b", "sandbox a.0=1 b.0=run", "");
    check("Never", "", "a b", "sandbox a.0=1 b.0=0", "over");
    check("OnFailure", "", "a b", "sandbox a.0=0 b.0=1", "start:b.1/10");
    check("OnFailure", "", "a b", "sandbox a.0=0 b.0=0", "over");
    check("Always", "", "a", "sandbox a.0=0", "start:a.1/10");
    check("Always", "", "a", "sandbox a.1=0@9", "wait:a/10");
    check("Always", "", "a", "sandbox a.1=0@10", "start:a.2/20");
    check("Always", "", "a", "sandbox a.5=0@160", "start:a.6/300");
    check("Always", "", "a", "sandbox a.9=0@300", "start:a.10/300");
}

#[test]
fn a_good_run_is_rewarded() {
    let mut seen = observed("sandbox a.5=1");
    let instance = &mut seen.containers.get_mut("a").unwrap()[0];
    if let State::Exited { started_at, .. } = &mut instance.state {
        *started_at = Timestamp::from_second(NOW - 600).ok();
    }
    let plan = plan_of(&spec("Always", "", "a"), &seen, false);
    assert_eq!(words(&plan), "start:a.6/10");
}

#[test]
fn what_is_wrong_is_stopped_first() {
    check("Always", "", "sick", "sandbox sick.0=run", "stop:sick.0");
    let mut other = spec("Always", "", "a");
    other.containers[0].image = Some("j".to_owned());
    assert_eq!(words(&plan_of(&other, &observed("sandbox a.0=run"), false)), "stop:a.0");
}

#[test]
fn a_lost_sandbox_is_replaced() {
    check("Always", "", "a", "old -a.0=255", "sandbox:1");
    check("Always", "i", "a", "old -i.0=0 -a.0=255", "sandbox:1");
    check("Always", "", "a", "old -a.0=run", "end:old");
    // In the new one all starts anew, init containers too, and counts on.
    check("Always", "i", "a", "old sandbox -i.0=0 -a.0=255", "start:i.1/10");
    check("Always", "i", "a", "old sandbox -i.0=0 -a.0=255 i.1=0", "start:a.1/10");
    check("Never", "", "a", "old -a.0=255", "over");
    check("OnFailure", "", "a b", "old sandbox -a.0=0 -b.0=1", "start:b.1/10");
    check("Always", "", "a", "old sandbox -a.0=1 a.1=run", "");
    check("Always", "", "a", "old sandbox -a.0=1 a.1=1@99 a.2=run", "drop:old remove:a.0");
}

#[test]
fn the_end_comes_to_main_containers_first() {
    check_end("", "a b", "sandbox a.0=run b.0=run", "stop:a.0 stop:b.0");
    check_end("s+ t+", "a", "sandbox s.0=run t.0=run a.0=run", "stop:a.0");
    check_end("s+ t+", "a", "sandbox s.0=run t.0=run a.0=0", "stop:t.0");
    check_end("s+ t+", "a", "sandbox s.0=run t.0=0 a.0=0", "stop:s.0");
    check_end("i", "a", "sandbox i.0=run", "stop:i.0");
    check_end("", "a", "sandbox a.0=1", "over");
    check_end("", "a", "", "over");
}

fn anything() -> impl Strategy<Value = String> {
    let state = prop_oneof!["run", "made", "0", "1", "1@15", "0@400"];
    let instance = ("[-]?", "[aibs]", 0_u32..4, state)
        .prop_map(|(old, name, attempt, state)| format!("{old}{name}.{attempt}={state}"));
    (prop::collection::vec(instance, 0..6), any::<bool>(), any::<bool>()).prop_map(
        |(instances, sandbox, old)| {
            let mut seen = std::collections::BTreeSet::new();
            let mut words: Vec<String> = instances
                .into_iter()
                .filter(|it| seen.insert(it.trim_start_matches('-')[..3].to_owned()))
                .collect();
            words.extend(sandbox.then(|| "sandbox".to_owned()));
            words.extend(old.then(|| "old".to_owned()));
            words.join(" ")
        },
    )
}

proptest! {
    /// Whatever is seen, what the head of the module promises holds.
    #[test]
    fn invariants(text in anything(), policy in "Always|OnFailure|Never", is_ending: bool) {
        let (spec, seen) = (spec(&policy, "s+ i", "a b"), observed(&text));
        let plan = plan_of(&spec, &seen, is_ending);
        let runs = |name: &str| seen.containers.get(name).into_iter().flatten().any(Instance::is_running);
        if is_ending || plan.is_over {
            prop_assert!(plan.start.is_empty() && plan.new_sandbox.is_none());
        }
        for start in &plan.start {
            prop_assert!(usable_sandbox(&spec, &seen).is_some());
            prop_assert!(!runs(&start.container) || seen.latest(&start.container).is_some_and(|it| !it.is_running()));
        }
        // Something to do, something to wait for, or the end: a pod never gets stuck.
        let waits = seen.instances().any(|(_, it)| it.is_running()) || !plan.backing_off.is_empty();
        let acts = !words(&plan).is_empty();
        prop_assert!(acts || waits, "stuck with {text:?}");
    }
}
