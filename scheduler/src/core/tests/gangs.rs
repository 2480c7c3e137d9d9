//! Groups of which all pods have places, or none.

use super::*;
use crate::core::{Found, Member, Outcome};

/// So many pods of a gang of four, and what they ask for.
fn gang(core: &mut Core, n_pods: usize, cpu: &str, priority: i32) -> Vec<Member> {
    let labels = json!({
        "pod-group.scheduling.sigs.k8s.io/name": "g",
        "pod-group.scheduling.sigs.k8s.io/min-available": "4",
    });
    let members = (0..n_pods).map(|n| {
        let mut value = asking(cpu, "1");
        value["metadata"] = json!({"labels": labels});
        value["spec"]["priority"] = json!(priority);
        let pod = pod(&format!("g{n}"), value);
        let shape = core.shapes.of(&pod);
        core.world.gangs.wait(&pod.key(), &shape);
        Member { key: pod.key(), uid: pod.uid().into(), shape }
    });
    members.collect()
}

fn two_nodes() -> Core {
    core(vec![("a", node("4", "4Gi", |_| ())), ("b", node("4", "4Gi", |_| ()))])
}

/// What is held on the nodes, and what is promised.
fn held(core: &Core) -> (Vec<i64>, usize) {
    let cpu = core.world.nodes.resource(CPU).unwrap();
    (cpu.held.clone(), core.world.nominations.rows().count())
}

fn places(core: &Core, found: &[Found]) -> Vec<String> {
    let shown = found.iter().map(|it| match it {
        Found::Place { row, .. } => core.world.nodes.name(*row).to_owned(),
        Found::PlaceAfter { row, victims, .. } => {
            let victims: Vec<_> = victims.iter().map(|it| &*it.name).collect();
            format!("{} after {}", core.world.nodes.name(*row), victims.join(" "))
        }
        Found::None(_) => "none".to_owned(),
        Found::Unasked => "unasked".to_owned(),
    });
    shown.collect()
}

#[test]
fn all_have_places_or_none_and_nothing_is_changed_by_deciding() {
    let mut core = two_nodes();
    let members = gang(&mut core, 4, "2", 0);
    let before = held(&core);
    let decision = core.decide_group(&members);
    assert_eq!(decision.outcome, Outcome::Fits);
    let mut on = places(&core, &decision.found);
    on.sort();
    assert_eq!(on, ["a", "a", "b", "b"]);
    assert_eq!(held(&core), before);
    assert_eq!(core.world.gangs.counts(&members[0].shape), (0, 4));

    bind(&mut core, "other", "a", asking("1", "1"));
    let before = held(&core);
    let decision = core.decide_group(&members);
    let why = "waiting for minCount pods from a gang to be scheduled";
    assert_eq!(decision.outcome, Outcome::TooFew(why));
    let found = places(&core, &decision.found);
    assert_eq!(found.iter().filter(|it| *it == "none").count(), 1, "{found:?}");
    assert_eq!(held(&core), before);
}

/// The first that has no place ends the search: the others cannot be enough.
#[test]
fn what_cannot_be_enough_is_not_looked_for() {
    let mut core = two_nodes();
    let members = gang(&mut core, 4, "5", 0);
    let decision = core.decide_group(&members);
    assert_eq!(places(&core, &decision.found), ["none", "unasked", "unasked", "unasked"]);
    let decision = core.decide_group(&members[..3]);
    assert_eq!(places(&core, &decision.found), ["unasked"; 3]);
}

/// More than have to have places: some may go without.
#[test]
fn enough_is_enough() {
    let mut core = two_nodes();
    let members = gang(&mut core, 6, "2", 0);
    let decision = core.decide_group(&members);
    assert_eq!(decision.outcome, Outcome::Fits);
    let on = places(&core, &decision.found);
    assert_eq!(on.iter().filter(|it| *it == "none").count(), 2, "{on:?}");
}

/// Pods that have places count, and so the last one needs no more than its own.
#[test]
fn those_that_have_places_count() {
    let mut core = two_nodes();
    let members = gang(&mut core, 4, "2", 0);
    assert!(core.group_to_decide(&members[0].shape).is_some());
    for (n, member) in members.iter().enumerate() {
        let held = Held {
            uid: member.uid.clone(),
            shape: member.shape.clone(),
            row: n % 2,
            started: 0,
            is_assumed: false,
        };
        core.world.hold(&member.key, held);
    }
    assert_eq!(core.world.gangs.counts(&members[0].shape), (4, 4));
    assert_eq!(core.group_to_decide(&members[0].shape), None);
}

/// Others end for a group only if all of it has room then.
#[test]
fn nobody_ends_for_a_group_that_does_not_fit_whole() {
    for (n_low, outcome) in [
        (2, Outcome::FitsAfterPreemption),
        (0, Outcome::TooFew("waiting for minCount pods from a gang to be scheduled")),
    ] {
        let mut core = two_nodes();
        for n in 0..2 {
            let priority = if n < n_low { 0 } else { 200 };
            bind_with(&mut core, &format!("there{n}"), "a", "2", priority);
        }
        let members = gang(&mut core, 4, "2", 100);
        let before = held(&core);
        let decision = core.decide_group(&members);
        assert_eq!(decision.outcome, outcome);
        let mut on = places(&core, &decision.found);
        on.sort();
        if 0 < n_low {
            assert_eq!(on, ["a after there0", "a after there1", "b", "b"]);
        }
        assert_eq!(held(&core), before);
        assert_eq!(core.world.pods_on(0).count(), 2);
    }
}
