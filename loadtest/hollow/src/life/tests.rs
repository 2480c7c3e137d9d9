use k8s_openapi::{api::core::v1::Container, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde_json::{Value, json};

use super::*;
use crate::behaviour::Span;

fn shape(policy: &str, behaviour: Behaviour) -> Shape {
    let spec = PodSpec {
        containers: vec![Container { name: "c".to_owned(), ..Container::default() }],
        restart_policy: Some(policy.to_owned()),
        ..PodSpec::default()
    };
    let restarts = Restarts::of(&spec);
    Shape { spec, behaviour, restarts, uses: Box::default() }
}

fn exact() -> Behaviour {
    Behaviour {
        start_after: Span::millis(100, 100),
        stop_after: Span::millis(50, 50),
        ..Behaviour::default()
    }
}

fn life() -> Life {
    Life::of(&Pod::default(), 0, Ipv4Addr::new(10, 0, 0, 1), 0)
}

/// What a pod does until nothing comes by itself, and when.
fn steps(life: &mut Life, shape: &Shape, most: usize) -> Vec<(Millis, Step)> {
    let (mut now, mut done) = (0, Vec::new());
    while done.len() < most {
        match plan(life, shape, now) {
            Step::Rest => break,
            Step::Until(at) => {
                assert!(now < at, "time goes on");
                now = at;
            }
            step @ Step::To(stage, code) => {
                life.enter(stage, code, now);
                done.push((now, step));
            }
            Step::Tell => {
                life.tell();
                done.push((now, Step::Tell));
            }
            Step::Remove => {
                done.push((now, Step::Remove));
                break;
            }
        }
    }
    done
}

#[track_caller]
fn check(
    policy: &str,
    behaviour: Behaviour,
    deletion: Option<Deletion>,
    wanted: &[(Millis, Step)],
) {
    let mut life = life();
    life.deletion = deletion;
    let found = steps(&mut life, &shape(policy, behaviour), wanted.len() + 1);
    assert!(found.starts_with(wanted), "{found:?} is not {wanted:?}");
}

use Stage::{Accepted, Ended, Failing, Ready, Running};
use Step::To;

#[test]
fn lives_go_as_they_are_to() {
    check("Always", exact(), None, &[(0, To(Accepted, 0)), (100, To(Ready, 0))]);
    let later = Behaviour { ready_after: Span::millis(30, 30), ..exact() };
    let wanted = [(0, To(Accepted, 0)), (100, To(Running, 0)), (130, To(Ready, 0))];
    check("Always", later.clone(), None, &wanted);
    let job = Behaviour { exit_after: Some(Span::millis(1000, 1000)), exit_code: 0, ..exact() };
    check(
        "Never",
        job.clone(),
        None,
        &[(0, To(Accepted, 0)), (100, To(Ready, 0)), (1100, To(Ended, 0))],
    );
    let bad = Behaviour { exit_code: 3, ..job };
    check(
        "Never",
        bad.clone(),
        None,
        &[(0, To(Accepted, 0)), (100, To(Ready, 0)), (1100, To(Ended, 3))],
    );
    // Started again: at once, then after ever longer.
    check(
        "OnFailure",
        bad,
        None,
        &[
            (0, To(Accepted, 0)),
            (100, To(Ready, 0)),
            (1100, To(Failing, 3)),
            (1100, To(Running, 0)),
            (1100, To(Ready, 0)),
            (2100, To(Failing, 3)),
            (12_100, To(Running, 0)),
            (12_100, To(Ready, 0)),
            (13_100, To(Failing, 3)),
            (33_100, To(Running, 0)),
        ],
    );
}

#[test]
fn faults_keep_pods_from_being_ready() {
    let with = |fault| Behaviour { fault: Some(fault), ..exact() };
    let mut life = life();
    let shape_of = |fault| shape("Always", with(fault));
    assert_eq!(steps(&mut life, &shape_of(Fault::Image), 9), [(0, To(Accepted, 0))]);
    let status = json!(life.status(&shape_of(Fault::Image), "u", Ipv4Addr::LOCALHOST));
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "ImagePullBackOff");
    let mut life = self::life();
    let wanted = [(0, To(Accepted, 0)), (100, To(Running, 0))];
    assert_eq!(steps(&mut life, &shape_of(Fault::NeverReady), 9), wanted);
}

#[test]
fn who_is_deleted_ends_and_goes() {
    let deletion = |grace| Some(Deletion { heard: 0, grace });
    let of = |stage, behaviour: Behaviour, grace| {
        let mut life = Life { stage, deletion: deletion(grace), ..life() };
        steps(&mut life, &shape("Always", behaviour), 9)
    };
    assert_eq!(of(Ready, exact(), 30_000), [(50, To(Ended, 0)), (50, Step::Remove)]);
    let slow = Behaviour { stop_after: Span::millis(60_000, 60_000), ..exact() };
    assert_eq!(of(Ready, slow, 30_000), [(30_000, To(Ended, 137)), (30_000, Step::Remove)]);
    assert_eq!(of(Ready, exact(), 0), [(0, Step::Remove)]);
    for stage in [Stage::New, Accepted, Failing, Ended] {
        assert_eq!(of(stage, exact(), 30_000), [(0, Step::Remove)], "{stage:?}");
    }
}

#[test]
fn a_specification_that_was_seen_is_told_of() {
    let shape = shape("Always", exact());
    let of = |generation| {
        let metadata = ObjectMeta { generation: Some(generation), ..ObjectMeta::default() };
        Pod { metadata, ..Pod::default() }
    };
    let mut life = Life::of(&of(1), 0, Ipv4Addr::LOCALHOST, 0);
    assert_eq!(steps(&mut life, &shape, 9), [(0, To(Accepted, 0)), (100, To(Ready, 0))]);
    let seen = |life: &Life| life.status(&shape, "u", Ipv4Addr::LOCALHOST).observed_generation;
    assert_eq!(seen(&life), Some(1));
    assert!(life.hear(&of(2), 200));
    assert_eq!((seen(&life.as_told()), seen(&life)), (Some(1), Some(2)));
    assert_eq!(steps(&mut life, &shape, 9), [(0, Step::Tell)]);
    assert!(!life.hear(&of(2), 300));
    assert_eq!(steps(&mut life, &shape, 9), []);
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a str {
    let all = status["conditions"].as_array().unwrap();
    all.iter().find(|it| it["type"] == kind).unwrap()["status"].as_str().unwrap()
}

#[test]
fn statuses_are_as_agents_write_them() {
    let shape = shape("Never", Behaviour::default());
    let mut life = life();
    let said = |life: &Life| json!(life.status(&shape, "u", Ipv4Addr::new(100, 64, 0, 1)));
    life.enter(Accepted, 0, 5_000);
    let status = said(&life);
    assert_eq!(
        (&status["phase"], &status["startTime"]),
        (&json!("Pending"), &json!("1970-01-01T00:00:05Z"))
    );
    assert_eq!(condition(&status, "Ready"), "False");
    life.enter(Ready, 0, 7_000);
    let status = said(&life);
    assert_eq!(status["phase"], "Running");
    assert_eq!((&status["podIP"], &status["hostIP"]), (&json!("10.0.0.1"), &json!("100.64.0.1")));
    assert_eq!(condition(&status, "Ready"), "True");
    assert_eq!(
        status["containerStatuses"][0]["state"]["running"]["startedAt"],
        "1970-01-01T00:00:07Z"
    );
    life.enter(Ended, 3, 9_000);
    let status = said(&life);
    assert_eq!((&status["phase"], condition(&status, "Ready")), (&json!("Failed"), "False"));
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(3), &json!("Error")));
}

/// Who is started again goes on from what the API has.
#[test]
fn a_life_is_known_by_its_status() {
    let shape = shape("Never", Behaviour::default());
    let mut life = life();
    life.scheduled = 1_000;
    for (stage, code, at) in [(Accepted, 0, 2_000), (Ready, 0, 3_000), (Ended, 9, 4_000)] {
        life.enter(stage, code, at);
        let status = life.status(&shape, "u", Ipv4Addr::LOCALHOST);
        let pod = Pod { status: Some(status), ..Pod::default() };
        let known = Life::of(&pod, 0, Ipv4Addr::UNSPECIFIED, 99_000);
        assert_eq!((known.stage, known.code), (stage, code));
        assert_eq!(known.scheduled, 1_000);
        assert_eq!(known.accepted, 2_000);
        if stage != Accepted {
            assert_eq!((known.started, known.address), (3_000, life.address));
        }
    }
}
