use super::*;

fn key(text: &str) -> ObjectKey {
    let (tenant, name) = text.split_once('/').unwrap();
    ObjectKey::new(&TenantName::parse(tenant).unwrap(), "ns", name)
}

fn with_priority(priority: i32) -> Candidate {
    let pod = serde_json::from_value(serde_json::json!({"spec": {"priority": priority}}));
    let tenant = TenantName::parse("a").unwrap();
    let pod = insula_client::Tenanted { tenant, object: pod.unwrap() };
    Candidate::of(&pod, &mut crate::pod::Shapes::default())
}

fn next(queue: &mut Queue, now: Instant) -> Option<(ObjectKey, Waiting)> {
    queue.take(now, |_| TURN).or_else(|| queue.take_early())
}

fn take(queue: &mut Queue, now: Instant) -> Option<String> {
    next(queue, now).map(|(key, _)| format!("{}/{}", key.tenant, key.name))
}

fn take_stuck(queue: &mut Queue, refused_by: u128, now: Instant) {
    let (key, waiting) = next(queue, now).unwrap();
    queue.stuck(&key, waiting, refused_by, now);
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn tenants_take_turns_and_priority_counts_within_one() {
    let now = Instant::now();
    let mut queue = Queue::default();
    for (name, priority) in [("a/1", 0), ("a/2", 9), ("a/3", 9), ("b/1", 5), ("b/2", -5)] {
        queue.put(&key(name), with_priority(priority), now);
    }
    let order: Vec<_> = std::iter::from_fn(|| take(&mut queue, now)).collect();
    assert_eq!(order, ["a/2", "b/1", "a/3", "b/2", "a/1"]);
}

/// A hundred thousand pods of one tenant wait; another's first is next all the same, also if
/// that tenant has more already.
#[test]
fn a_flood_of_one_tenant_is_not_before_anothers_first_pod() {
    let now = Instant::now();
    let mut queue = Queue::default();
    let shared = with_priority(1000);
    for n in 0..100_000 {
        queue.put(&key(&format!("flood/{n}")), shared.clone(), now);
    }
    let cost = |tenant: &TenantName| if tenant.as_str() == "has-much" { 9 * TURN } else { TURN };
    for n_before in [0, 1, 500] {
        for _ in 0..n_before {
            assert_eq!(queue.take(now, cost).unwrap().0.tenant.as_str(), "flood");
        }
        for tenant in ["has-none", "has-much"] {
            queue.put(&key(&format!("{tenant}/{n_before}")), with_priority(-5), now);
        }
        let next: Vec<_> = (0..3).map(|_| queue.take(now, cost).unwrap().0).collect();
        let others = next.iter().filter(|it| it.tenant.as_str() != "flood").count();
        assert_eq!(others, 2, "{next:?}");
        // What a turn cost is paid before the next one.
        for _ in 0..20 {
            queue.take(now, cost);
        }
    }
}

#[test]
fn a_stuck_pod_waits_for_what_helps_it() {
    let now = Instant::now();
    let mut queue = Queue::default();
    queue.put(&key("a/1"), with_priority(0), now);
    take_stuck(&mut queue, 5, now);
    queue.happened(now + 5 * SECOND, |_, refused_by| refused_by & 2 != 0);
    assert_eq!(take(&mut queue, now + 5 * SECOND), None);
    queue.happened(now + 5 * SECOND, |_, refused_by| refused_by & 4 != 0);
    assert_eq!(take(&mut queue, now + 5 * SECOND).as_deref(), Some("a/1"));
}

#[test]
fn help_that_comes_early_is_taken_if_nobody_else_looks() {
    let now = Instant::now();
    let mut queue = Queue::default();
    queue.put(&key("a/1"), with_priority(0), now);
    take_stuck(&mut queue, 1, now);
    queue.happened(now, |_, refused_by| refused_by == 1);
    queue.put(&key("a/2"), with_priority(0), now);
    assert_eq!(queue.next_alarm(), Some(now + SECOND));
    assert_eq!(take(&mut queue, now).as_deref(), Some("a/2"));
    assert_eq!(take(&mut queue, now).as_deref(), Some("a/1"));
    assert!(queue.alarms.is_empty() && queue.groups.is_empty());
}

#[test]
fn errors_are_waited_for_whoever_else_looks() {
    let now = Instant::now();
    let mut queue = Queue::default();
    queue.put(&key("a/1"), with_priority(0), now);
    let (first, waiting) = queue.take(now, |_| TURN).unwrap();
    queue.retry(&first, waiting, now);
    queue.put(&key("a/2"), with_priority(0), now);
    take_stuck(&mut queue, 1, now);
    queue.back_off(&key("a/2"), now);
    queue.happened(now, |_, _| true);
    assert_eq!(take(&mut queue, now), None);
    for name in ["a/1", "a/2"] {
        assert_eq!(take(&mut queue, now + SECOND).as_deref(), Some(name));
    }
}

/// Of many that are alike and find nothing one looks early for each happening; if it finds
/// something, so does the next.
#[test]
fn a_crowd_in_vain_looks_early_once_for_each_happening() {
    const N_PODS: usize = 10_000;
    let now = Instant::now();
    let mut queue = Queue::default();
    let shared = with_priority(0);
    for n in 0..N_PODS {
        queue.put(&key(&format!("a/{n}")), shared.clone(), now);
    }
    for _ in 0..N_PODS {
        take_stuck(&mut queue, 1, now);
    }
    for _ in 0..100 {
        queue.happened(now, |_, _| true);
        take_stuck(&mut queue, 1, now);
        assert_eq!(take(&mut queue, now), None);
    }
    queue.happened(now, |_, _| true);
    for _ in 0..5 {
        assert!(take(&mut queue, now).is_some(), "each finds something");
    }
    take_stuck(&mut queue, 1, now);
    assert_eq!(take(&mut queue, now), None);
    let later = now + SECOND;
    let n_later = std::iter::from_fn(|| take(&mut queue, later)).count();
    assert!((N_PODS - 200..N_PODS).contains(&n_later), "{n_later}: the others when they rested");
}

#[test]
fn backoff_doubles_to_ten_seconds() {
    let backoff = Backoff::default();
    let shown: Vec<_> = (0..7).map(|n| backoff.after(n).as_secs()).collect();
    assert_eq!(shown, [1, 1, 2, 4, 8, 10, 10]);
    assert_eq!(backoff.after(u32::MAX), backoff.longest);
}

#[test]
fn a_stuck_pod_looks_again_in_the_end() {
    let now = Instant::now();
    let mut queue = Queue::default();
    queue.put(&key("a/1"), with_priority(0), now);
    take_stuck(&mut queue, 0, now);
    assert_eq!(take(&mut queue, now + STUCK_LIMIT - SECOND), None);
    assert_eq!(take(&mut queue, now + STUCK_LIMIT).as_deref(), Some("a/1"));
}

#[test]
fn a_change_makes_a_pod_look_at_once_and_a_gate_stops_it() {
    let now = Instant::now();
    let mut queue = Queue::default();
    queue.put(&key("a/1"), with_priority(0), now);
    take_stuck(&mut queue, 0, now);
    queue.put(&key("a/1"), Candidate { is_gated: true, ..with_priority(0) }, now);
    assert_eq!(take(&mut queue, now + STUCK_LIMIT), None);
    queue.put(&key("a/1"), with_priority(0), now);
    assert_eq!(take(&mut queue, now).as_deref(), Some("a/1"));
    assert_eq!(queue.len(), 0);
}

#[test]
fn a_pod_that_is_gone_leaves_no_trace() {
    let now = Instant::now();
    let mut queue = Queue::default();
    for name in ["a/active", "a/off", "a/stuck"] {
        queue.put(&key(name), with_priority(0), now);
    }
    let (stuck, waiting) = queue.take(now, |_| TURN).unwrap();
    queue.stuck(&stuck, waiting, 1, now);
    let (off, waiting) = queue.take(now, |_| TURN).unwrap();
    queue.retry(&off, waiting, now);
    for name in ["a/active", "a/off", "a/stuck"] {
        assert!(queue.remove(&key(name)).is_some());
    }
    assert!(queue.alarms.is_empty() && queue.groups.is_empty());
    assert!(queue.line.is_empty() && queue.active.is_empty());
}
