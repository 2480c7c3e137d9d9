use insula_api::names::TenantName;
use k8s_openapi::{
    api::{
        apps::v1::{DeploymentSpec, DeploymentStrategy, ReplicaSetStatus, RollingUpdateDeployment},
        core::v1::{Container, PodSpec},
    },
    apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString},
};

use super::{super::revision::new_set, *};

/// A deployment of template `version`, rolling with the given limits.
fn deployment(version: i32, desired: i32, surge: i32, unavailable: i32) -> Tenanted<Deployment> {
    let mut it = Deployment::default();
    it.metadata.name = Some("web".into());
    it.metadata.uid = Some("d".into());
    let rolling = RollingUpdateDeployment {
        max_surge: Some(IntOrString::Int(surge)),
        max_unavailable: Some(IntOrString::Int(unavailable)),
    };
    let mut spec = DeploymentSpec {
        replicas: Some(desired),
        strategy: Some(DeploymentStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(rolling),
        }),
        ..DeploymentSpec::default()
    };
    let container = Container { image: Some(format!("app:{version}")), ..Container::default() };
    spec.template.spec = Some(PodSpec { containers: vec![container], ..PodSpec::default() });
    it.spec = Some(spec);
    Tenanted { tenant: TenantName::parse("acme").unwrap(), object: it }
}

/// The set of template `version` with so many replicas, of which so many are available.
fn set(like: &Tenanted<Deployment>, version: i32, size: i32, available: i32) -> Set {
    let mut of = deployment(version, 1, 0, 0);
    of.object.spec.as_mut().unwrap().replicas = like.spec.as_ref().unwrap().replicas;
    of.object.spec.as_mut().unwrap().strategy = like.spec.as_ref().unwrap().strategy.clone();
    let mut it = new_set(&of, size, version.into()).unwrap();
    it.metadata.name = Some(format!("web-{version}"));
    it.metadata.uid = Some(format!("s{version}"));
    it.metadata.creation_timestamp =
        Some(Time(jiff::Timestamp::from_second(version.into()).unwrap()));
    it.metadata.generation = Some(1);
    it.status = Some(ReplicaSetStatus {
        replicas: size,
        ready_replicas: Some(available),
        available_replicas: Some(available),
        observed_generation: Some(1),
        ..ReplicaSetStatus::default()
    });
    Arc::new(Tenanted { tenant: of.tenant, object: it })
}

/// Actions as `+3` (create), `web-1=2` (scale), `web-1~` (annotate) and `-web-1` (delete).
fn shown(plan: &Plan) -> Vec<String> {
    let shown = |action: &Action| match action {
        Action::Create { replicas, .. } => format!("+{replicas}"),
        Action::Change { set, replicas: Some(target), .. } => format!("{}={target}", set.name()),
        Action::Change { set, .. } => format!("{}~", set.name()),
        Action::Delete { set } => format!("-{}", set.name()),
    };
    plan.actions.iter().map(shown).collect()
}

#[track_caller]
fn check(deployment: &Tenanted<Deployment>, sets: &[Set], expected: &[&str]) {
    let observed = Observed::new(deployment, sets.to_vec(), |_| false);
    assert_eq!(shown(&plan(&observed)), expected);
}

#[test]
fn the_first_set_has_all_replicas() {
    let d = deployment(1, 3, 1, 1);
    check(&d, &[], &["+3"]);
    check(&d, &[set(&d, 1, 3, 3)], &[]);
}

#[test]
fn a_rolling_update_walks_within_its_limits() {
    let d = deployment(2, 4, 1, 1);
    let s = |version, size, available| set(&d, version, size, available);
    check(&d, &[s(1, 4, 4)], &["+1"]);
    // 5 pods, 4 of them available, at least 3 must be: one old pod may go.
    check(&d, &[s(1, 4, 4), s(2, 1, 0)], &["web-1=3"]);
    check(&d, &[s(1, 3, 3), s(2, 1, 0)], &["web-2=2"]);
    check(&d, &[s(1, 3, 3), s(2, 2, 0)], &[]);
    check(&d, &[s(1, 3, 3), s(2, 2, 2)], &["web-1=1"]);
    check(&d, &[s(1, 1, 1), s(2, 2, 2)], &["web-2=4"]);
    check(&d, &[s(1, 1, 1), s(2, 4, 2)], &[]);
    check(&d, &[s(1, 1, 1), s(2, 4, 3)], &["web-1=0"]);
    check(&d, &[s(1, 0, 0), s(2, 4, 4)], &[]);
}

#[test]
fn unavailable_old_pods_go_first_and_beyond_the_limit() {
    let d = deployment(3, 4, 0, 1);
    let s = |version, size, available| set(&d, version, size, available);
    check(&d, &[s(1, 2, 0), s(2, 2, 2), s(3, 0, 0)], &["web-1=1"]);
    let d = deployment(3, 10, 2, 3);
    let s = |version, size, available| set(&d, version, size, available);
    check(&d, &[s(1, 8, 8), s(2, 4, 0), s(3, 0, 0)], &["web-1=7", "web-2=0"]);
}

#[test]
fn what_a_set_is_to_lose_counts_as_lost() {
    let d = deployment(3, 3, 1, 1);
    let s = |version, size, available| set(&d, version, size, available);
    // Four are said to be available, but the one of the first set is on its way out.
    check(&d, &[s(1, 0, 1), s(2, 2, 2), s(3, 2, 1)], &["web-2=1"]);
}

#[test]
fn a_set_is_not_enlarged_before_it_was_seen_to_shrink() {
    let d = deployment(2, 3, 1, 1);
    let mut shrunk = set(&d, 2, 1, 3);
    let old = set(&d, 1, 1, 1);
    Arc::make_mut(&mut shrunk).object.metadata.generation = Some(2);
    check(&d, &[old.clone(), shrunk], &[]);
    check(&d, &[old, set(&d, 2, 1, 1)], &["web-2=3"]);
}

#[test]
fn rolling_back_reuses_the_old_set() {
    let mut d = deployment(1, 2, 1, 0);
    let sets = [set(&d, 1, 0, 0), set(&d, 2, 2, 2)];
    check(&d, &sets, &["web-1~"]);
    d.object.spec.as_mut().unwrap().revision_history_limit = Some(0);
    check(&d, &sets, &["web-1~"]);
}

#[test]
fn rollover_in_the_midst_of_a_rollout() {
    let d = deployment(3, 3, 1, 0);
    let s = |version, size, available| set(&d, version, size, available);
    check(&d, &[s(1, 3, 3), s(2, 1, 0)], &["+0"]);
    check(&d, &[s(1, 3, 3), s(2, 1, 0), s(3, 0, 0)], &["web-2=0"]);
    check(&d, &[s(1, 3, 3), s(2, 0, 0), s(3, 0, 0)], &["web-3=1"]);
}

#[test]
fn recreate_waits_for_the_end_of_all_old_pods() {
    let mut d = deployment(2, 3, 0, 0);
    d.object.spec.as_mut().unwrap().strategy =
        Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None });
    let s = |version, size, available| set(&d, version, size, available);
    let shown_with =
        |sets: &[Set], old_run: bool| shown(&plan(&Observed::new(&d, sets.to_vec(), |_| old_run)));
    assert_eq!(shown_with(&[s(1, 3, 3)], true), ["web-1=0"]);
    assert!(shown_with(&[s(1, 0, 0)], true).is_empty());
    assert_eq!(shown_with(&[s(1, 0, 0)], false), ["+3"]);
    assert_eq!(shown_with(&[s(1, 0, 0), s(2, 0, 0)], false), ["web-2=3"]);
}

#[test]
fn scaling_changes_the_one_active_set() {
    let before = deployment(1, 3, 1, 1);
    let after = deployment(1, 5, 1, 1);
    check(&after, &[set(&before, 1, 3, 3)], &["web-1=5"]);
    let down = deployment(1, 0, 1, 1);
    check(&down, &[set(&before, 1, 3, 3)], &["web-1=0"]);
}

#[test]
fn scaling_in_a_rollout_keeps_proportions() {
    let before = deployment(2, 10, 2, 2);
    let sets = [set(&before, 1, 8, 8), set(&before, 2, 4, 0)];
    // 12 become 18: 8 grow to 12, 4 to 6.
    check(&deployment(2, 15, 3, 2), &sets, &["web-1=12", "web-2=6"]);
    check(&deployment(2, 5, 1, 2), &sets, &["web-1=4", "web-2=2"]);
    check(&deployment(2, 0, 1, 2), &sets, &["web-1=0", "web-2=0"]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let before = deployment(1, 3, 1, 1);
    let mut d = deployment(2, 5, 1, 1);
    d.object.spec.as_mut().unwrap().paused = Some(true);
    check(&d, &[set(&before, 1, 3, 3)], &["web-1=5"]);
    check(&d, &[set(&d, 1, 5, 5)], &[]);
}

#[test]
fn old_sets_beyond_the_history_limit_go_when_idle() {
    let mut d = deployment(4, 1, 1, 0);
    d.object.spec.as_mut().unwrap().revision_history_limit = Some(1);
    let s = |version, size, available| set(&d, version, size, available);
    check(&d, &[s(1, 0, 0), s(2, 0, 0), s(3, 0, 0), s(4, 1, 1)], &["-web-1", "-web-2"]);
    check(&d, &[s(1, 0, 0), s(2, 0, 0), s(3, 0, 0), s(4, 1, 0)], &[]);
    let mut busy = s(1, 0, 0);
    Arc::make_mut(&mut busy).object.metadata.generation = Some(2);
    check(&d, &[busy, s(2, 0, 0), s(3, 0, 0), s(4, 1, 1)], &["-web-2"]);
}

#[test]
fn a_deployment_that_goes_away_changes_nothing() {
    let mut d = deployment(2, 3, 1, 1);
    d.object.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    check(&d, &[set(&d, 1, 3, 3)], &[]);
}

/// Carries out a plan at once, and lets `n` more pods of the new set become available.
fn step(d: &Tenanted<Deployment>, sets: &mut Vec<Set>, version: i32, ready: i32) -> bool {
    let actions = plan(&Observed::new(d, sets.clone(), |_| false)).actions;
    for action in &actions {
        match action {
            Action::Create { replicas, .. } => sets.push(set(d, version, *replicas, 0)),
            Action::Change { set: changed, replicas, annotations, .. } => {
                let it = sets.iter_mut().find(|it| it.uid() == changed.uid()).unwrap();
                let it = &mut Arc::make_mut(it).object;
                it.metadata.annotations.get_or_insert_default().extend(annotations.clone());
                if let Some(target) = replicas {
                    it.spec.as_mut().unwrap().replicas = Some(*target);
                    let status = it.status.as_mut().unwrap();
                    status.replicas = *target;
                    status.available_replicas = status.available_replicas.map(|n| n.min(*target));
                }
            }
            Action::Delete { set } => sets.retain(|it| it.uid() != set.uid()),
        }
    }
    let mut moved = !actions.is_empty();
    for it in sets.iter_mut() {
        let status = Arc::make_mut(it).object.status.as_mut().unwrap();
        let now = (status.available_replicas.unwrap_or(0) + ready).min(status.replicas);
        moved |= status.available_replicas != Some(now);
        status.available_replicas = Some(now);
    }
    moved
}

proptest::proptest! {
    /// Whatever the numbers, a rollout ends, never has too many pods, and takes no pod away
    /// that is needed to stay available.
    #[test]
    fn every_rollout_ends_within_its_limits(
        desired in 0..20, surge in 0..6, unavailable in 0..6, old_size in 0..25, ready in 1..4,
    ) {
        let d = deployment(2, desired, surge, unavailable);
        let limits = Limits::of(&d);
        let mut sets = vec![set(&d, 1, old_size, old_size)];
        let available = |sets: &[Set]| sets.iter().map(|it| available(it)).sum::<i32>();
        let mut n_steps = 0;
        loop {
            let before: i32 = sets.iter().map(|it| replicas(it)).sum();
            let available_before = available(&sets);
            let moved = step(&d, &mut sets, 2, ready);
            let total: i32 = sets.iter().map(|it| replicas(it)).sum();
            proptest::prop_assert!(total <= limits.most().max(before), "{total} pods");
            let floor = limits.fewest_available().min(available_before);
            proptest::prop_assert!(floor <= available(&sets), "below {floor}");
            if !moved {
                break;
            }
            n_steps += 1;
            proptest::prop_assert!(n_steps < 500, "no end: {sets:?}");
        }
        let sizes: Vec<i32> = sets.iter().map(|it| replicas(it)).collect();
        proptest::prop_assert_eq!(sizes, vec![0, desired]);
    }
}
