//! Random clusters that kube-scheduler 1.36 judged too: the nodes that will do for a pod, how far
//! the score of each is behind the best, and what is said when none will, are the same.
//!
//! `answers.txt` holds what its default profile found, called as the scheduler itself calls it,
//! with every node looked at. A line is a cluster: its seed, a checksum of its objects, and for
//! each pod, after a `|`, the nodes that will do with how far they are behind the best (nothing if
//! there is only one), or what is said, and, if pods can end for it, on which node which ones.
//!
//! With `INSULA_SNAPSHOTS=FILE` the clusters are written to a file, one JSON object a line, for
//! whoever has such a scheduler to record the answers anew.

mod snapshot;

use std::{collections::BTreeMap, fmt::Write as _};

use k8s_openapi::api::{
    core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Service},
    policy::v1::PodDisruptionBudget,
    storage::v1::{CSINode, StorageClass},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::de::DeserializeOwned;
use snapshot::Snapshot;

use super::*;
use crate::outlook::Promise;

const ANSWERS: &str = include_str!("answers.txt");
const N_SEEDS: u64 = 2_000;

fn read<T: DeserializeOwned>(it: &Value) -> Tenanted<T> {
    let object = serde_json::from_value(it.clone()).unwrap();
    Tenanted { tenant: TenantName::parse("acme").unwrap(), object }
}

fn key(it: &Value) -> ObjectKey {
    let text = |name: &str| it["metadata"][name].as_str().unwrap_or_default().to_owned();
    ObjectKey::new(&TenantName::parse("acme").unwrap(), &text("namespace"), &text("name"))
}

/// A core that knows all of a cluster but the pods without nodes.
fn know(all: &Snapshot) -> Core {
    let mut core = Core::new(vec![Profile::default()]);
    for it in &all.nodes {
        core.put_node(&key(it).name, &read::<Node>(it).object);
    }
    let world = &mut core.world;
    for it in &all.namespaces {
        let (key, labels) = (key(it), read::<Namespace>(it).object.metadata.labels);
        world.set_namespace(&key.tenant, &key.name, labels);
    }
    for it in &all.services {
        let spec = read::<Service>(it).object.spec;
        world.workloads.set_service(&key(it), spec.and_then(|it| it.selector));
    }
    for it in &all.replica_sets {
        let set: k8s_openapi::api::apps::v1::ReplicaSet = read(it).object;
        let selector = set.spec.and_then(|it| insula_client::compile(&it.selector).ok());
        world.workloads.set_controller("ReplicaSet", &key(it), selector);
    }
    for it in &all.classes {
        world.storage.put_class(&key(it), Some(&read::<StorageClass>(it)));
    }
    for it in &all.volumes {
        world.storage.put_volume(&key(it), Some(&read::<PersistentVolume>(it)));
    }
    for it in &all.claims {
        world.storage.put_claim(&key(it), Some(&read::<PersistentVolumeClaim>(it)));
    }
    for it in &all.drivers {
        world.storage.put_limits(&key(it).name, Some(&read::<CSINode>(it).object));
    }
    for it in &all.budgets {
        world.budgets.put(&key(it), Some(&read::<PodDisruptionBudget>(it)));
    }
    for it in &all.pods {
        core.put_pod(&read(it));
    }
    for it in &all.nominated {
        let shape = core.shapes.of(&read(it));
        let node = it["status"]["nominatedNodeName"].as_str().unwrap_or_default();
        let row = core.world.nodes.row(node).unwrap();
        core.world.nominations.set(&key(it), Some((row, shape)));
    }
    core
}

/// What is found for a pod, in the words of `answers.txt`.
fn judge(core: &mut Core, pod: &Tenanted<Pod>) -> String {
    let (key, shape) = (pod.key(), core.shapes.of(pod));
    let taken = match core.decide(&key, &shape) {
        Decision::Take { row, .. } => core.world.nodes.name(row).to_owned(),
        Decision::None(failure) => {
            let Some(Promise::Here { row, victims }) = failure.promise else {
                // Where the answers were recorded this was left out.
                return failure.message.replace(" no new claims to deallocate,", "");
            };
            let mut victims: Vec<&str> = victims.iter().map(|it| &*it.name).collect();
            victims.sort_unstable();
            let node = core.world.nodes.name(row);
            return format!("{} {node} without {}", failure.message, victims.join(" "));
        }
    };
    let outlook = core.outlooks.get_mut(&shape.id).map(|(_, it)| it).unwrap();
    let totals = outlook.totals(&core.profiles[0], &mut core.world, &mut core.tables, &key);
    let totals: BTreeMap<String, i64> = totals.into_iter().collect();
    assert_eq!(totals.get(&taken), totals.values().max(), "{taken} is not the best of {totals:?}");
    if totals.len() == 1 {
        return taken;
    }
    let best = totals[&taken];
    let told: Vec<String> =
        totals.iter().map(|(name, score)| format!("{name}={}", best - score)).collect();
    told.join(" ")
}

/// What each plugin adds to the scores of all nodes.
fn details(core: &mut Core, pod: &Tenanted<Pod>) -> String {
    let shape = core.shapes.of(pod);
    let rows: Vec<usize> = core.world.nodes.rows().collect();
    let mut out = String::new();
    for (weight, score) in &Profile::default().scores {
        let Some(rate) = score.prepare(&mut core.world, &shape) else { continue };
        let mut scores = vec![0; rows.len()];
        rate.go_over(&core.world, &rows, &vec![1; rows.len()], &mut scores);
        let scores: Vec<i64> = scores.iter().map(|it| weight * it).collect();
        writeln!(out, "  {}: {scores:?}", score.name()).unwrap();
    }
    out
}

/// What was found, without scores.
fn names(found: &str) -> Vec<&str> {
    found.split(' ').map(|it| it.split('=').next().unwrap_or_default()).collect()
}

#[test]
fn decisions_are_those_of_kube_scheduler() {
    if let Ok(path) = std::env::var("INSULA_SNAPSHOTS") {
        let mut out = String::new();
        for seed in 0..N_SEEDS {
            let text = serde_json::to_string(&snapshot::snapshot(seed)).unwrap();
            writeln!(out, "{} {text}", crc32fast::hash(text.as_bytes())).unwrap();
        }
        std::fs::write(path, out).unwrap();
        return;
    }
    let mut differences = Vec::new();
    let mut n_pods = 0;
    for line in ANSWERS.lines() {
        let mut parts = line.split('|');
        let head = parts.next().unwrap_or_default();
        let (seed, sum) = head.split_once(' ').unwrap();
        let all = snapshot::snapshot(seed.parse().unwrap());
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(
            crc32fast::hash(text.as_bytes()).to_string(),
            sum,
            "{seed} is another cluster than was judged"
        );
        let mut core = know(&all);
        for (it, expected) in all.pending.iter().zip(parts) {
            n_pods += 1;
            let mut found = judge(&mut core, &read(it));
            // Device claims get in the way of its preemption here, whether a pod has any or not.
            if !expected.contains("preemption:")
                && let Some((said, _)) = found.split_once(" preemption:")
            {
                found.truncate(said.len());
            }
            // Of nodes that are equally good to make room on, both take any.
            if expected.contains(" without ")
                && (0..2 * all.nodes.len()).any(|_| judge(&mut core, &read(it)) == expected)
            {
                continue;
            }
            // Upstream's score of free resources overlooks what a pod asks for as a whole.
            let is_same = match it["spec"]["resources"].is_object() {
                true => names(&found) == names(expected),
                false => found == expected,
            };
            if !is_same {
                let name = &key(it).name;
                let details = details(&mut core, &read(it));
                differences
                    .push(format!("{seed} {name}\n  ours  {found}\n  peers {expected}\n{details}"));
            }
        }
    }
    let n = differences.len();
    differences.truncate(20);
    assert_eq!(n, 0, "of {n_pods} pods, {n} are judged otherwise:\n{}", differences.join("\n"));
    assert_eq!(n_pods, 6 * N_SEEDS);
}
