use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::pod::observed::Sandbox;

fn instance(name: &str, attempt: u32, state: State) -> (String, Instance) {
    let instance = Instance {
        id: format!("{name}{attempt}"),
        sandbox_id: "s".to_owned(),
        attempt,
        state,
        spec_image: "i".to_owned(),
        image: "i".to_owned(),
        image_ref: "sha256:1".to_owned(),
        restart_delay: Duration::ZERO,
        message_file: String::new(),
        message_from_log: false,
    };
    (name.to_owned(), instance)
}

fn running(name: &str) -> (String, Instance) {
    instance(name, 0, State::Running { started_at: Timestamp::UNIX_EPOCH })
}

fn exited(name: &str, attempt: u32, exit_code: i32) -> (String, Instance) {
    let state = State::Exited {
        exit_code,
        reason: String::new(),
        message: String::new(),
        started_at: Some(Timestamp::UNIX_EPOCH),
        finished_at: Timestamp::UNIX_EPOCH,
    };
    instance(name, attempt, state)
}

struct Case {
    pod: Value,
    instances: Vec<(String, Instance)>,
    waiting: Vec<(&'static str, &'static str)>,
    unready: &'static str,
    is_over: bool,
    failure: Option<Failure>,
}

fn case(spec: Value, instances: Vec<(String, Instance)>) -> Case {
    let pod = json!({"metadata": {"name": "p", "generation": 3}, "spec": spec, "status": {}});
    Case { pod, instances, waiting: Vec::new(), unready: "", is_over: false, failure: None }
}

impl Case {
    fn status(&self) -> PodStatus {
        let pod: Pod = serde_json::from_value(self.pod.clone()).unwrap();
        let mut observed = Observed {
            sandboxes: vec![Sandbox {
                id: "s".to_owned(),
                attempt: 0,
                is_ready: !self.is_over,
                ips: vec!["10.0.0.9".parse().unwrap()],
            }],
            ..Observed::default()
        };
        for (name, instance) in self.instances.clone() {
            observed.containers.entry(name).or_default().push(instance);
        }
        let waiting = self.waiting.iter().map(|(name, reason)| {
            ((*name).to_owned(), Waiting { reason, message: "m".to_owned() })
        });
        status(&Report {
            pod: &pod,
            spec: pod.spec.as_ref().unwrap(),
            observed: &observed,
            waiting: &waiting.collect(),
            health: &|id| Health { started: true, ready: !self.unready.contains(&id[..1]) },
            last_words: &|id| (id == "a0").then(|| "bye".to_owned()),
            failure: self.failure.as_ref(),
            is_over: self.is_over,
            host_ip: "192.0.2.1".parse().unwrap(),
            runtime_name: "containerd",
            now: Timestamp::from_second(1000).unwrap(),
        })
    }

    /// Phase, the conditions that are true, and each container's state.
    fn words(&self) -> String {
        let status = self.status();
        let mut words = vec![status.phase.clone().unwrap()];
        let conditions = status.conditions.iter().flatten();
        let is_true = |it: &&PodCondition| it.status == "True" && it.type_ != "PodScheduled";
        words.extend(conditions.filter(is_true).map(|it| it.type_.clone()));
        let all = [&status.init_container_statuses, &status.container_statuses];
        for it in all.into_iter().flatten().flatten() {
            let state = it.state.clone().unwrap();
            words.push(if let Some(waiting) = state.waiting {
                format!("{}:{}", it.name, waiting.reason.unwrap())
            } else if let Some(terminated) = state.terminated {
                format!("{}:{}", it.name, terminated.reason.unwrap())
            } else {
                format!("{}:{}", it.name, if it.ready { "ready" } else { "running" })
            });
        }
        words.join(" ")
    }
}

fn spec(policy: &str, init: &[&str], main: &[&str]) -> Value {
    let list = |names: &[&str]| -> Value {
        let of = |name: &&str| match name.strip_suffix('+') {
            Some(name) => json!({"name": name, "image": "i", "restartPolicy": "Always"}),
            None => json!({"name": name, "image": "i"}),
        };
        names.iter().map(of).collect()
    };
    json!({"restartPolicy": policy, "initContainers": list(init), "containers": list(main)})
}

#[test]
fn on_the_way_to_running() {
    let of = |instances| case(spec("Always", &["i", "j"], &["a"]), instances).words();
    assert_eq!(
        of(vec![]),
        "Pending PodReadyToStartContainers i:PodInitializing j:PodInitializing a:PodInitializing"
    );
    assert_eq!(
        of(vec![exited("i", 0, 0), running("j")]),
        "Pending PodReadyToStartContainers i:Completed j:running a:PodInitializing"
    );
    assert_eq!(
        of(vec![exited("i", 0, 0), exited("j", 0, 0), running("a")]),
        "Running PodReadyToStartContainers Initialized Ready ContainersReady i:Completed j:Completed a:ready"
    );
    let plain = case(spec("Always", &[], &["a"]), vec![]).words();
    assert_eq!(plain, "Pending PodReadyToStartContainers Initialized a:ContainerCreating");
}

#[test]
fn readiness() {
    let mut of = case(spec("Always", &[], &["a", "b"]), vec![running("a"), running("b")]);
    of.unready = "b";
    assert_eq!(of.words(), "Running PodReadyToStartContainers Initialized a:ready b:running");
    let status = of.status();
    let ready = status.conditions.iter().flatten().find(|it| it.type_ == "Ready").unwrap();
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [b]"));
    assert_eq!(ready.observed_generation, Some(3));

    let mut gated = case(spec("Always", &[], &["a"]), vec![running("a")]);
    gated.pod["spec"]["readinessGates"] = json!([{"conditionType": "x/y"}]);
    assert_eq!(
        gated.words(),
        "Running PodReadyToStartContainers Initialized ContainersReady a:ready"
    );
    gated.pod["status"]["conditions"] = json!([{"type": "x/y", "status": "True"}]);
    assert!(gated.words().contains(" Ready "), "{}", gated.words());
    assert!(gated.words().contains("x/y"), "a condition of others stays");
}

#[test]
fn restarts_and_ends() {
    let mut crash = case(spec("Always", &[], &["a"]), vec![exited("a", 1, 3), exited("a", 0, 2)]);
    crash.waiting = vec![("a", "CrashLoopBackOff")];
    assert_eq!(crash.words(), "Running PodReadyToStartContainers Initialized a:CrashLoopBackOff");
    let status = crash.status();
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.restart_count, 1);
    let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.container_id.as_deref()), (3, Some("containerd://a1")));

    let of = |policy: &str, code, is_over| {
        let mut of = case(spec(policy, &[], &["a"]), vec![exited("a", 0, code)]);
        of.is_over = is_over;
        of.words()
    };
    assert_eq!(of("Never", 0, true), "Succeeded Initialized a:Completed");
    assert_eq!(of("Never", 1, true), "Failed Initialized a:Error");
    assert_eq!(of("OnFailure", 1, false), "Running PodReadyToStartContainers Initialized a:Error");
    // A pod that was deleted and whose container ended badly.
    assert_eq!(of("Always", 137, true), "Failed Initialized a:Error");
    assert_eq!(of("Always", 0, true), "Succeeded Initialized a:Completed");
}

#[test]
fn an_end_is_never_taken_back() {
    let mut of = case(spec("Always", &[], &["a"]), vec![running("a")]);
    of.pod["status"] = json!({"phase": "Failed", "reason": "Evicted"});
    assert!(of.words().starts_with("Failed "));
}

#[test]
fn a_failure_shows_when_all_has_ended() {
    let failure = Failure { reason: "DeadlineExceeded".to_owned(), message: "late".to_owned() };
    let mut of = case(spec("Always", &[], &["a"]), vec![running("a")]);
    of.pod["status"] = json!({"phase": "Running"});
    of.failure = Some(failure);
    assert_eq!(of.status().reason, None);
    assert_eq!(of.status().phase.as_deref(), Some("Running"));
    of.instances = vec![exited("a", 0, 143)];
    of.is_over = true;
    assert_eq!(of.status().reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(of.status().phase.as_deref(), Some("Failed"));
}

#[test]
fn addresses_and_times() {
    let mut of = case(spec("Never", &[], &["a"]), vec![running("a")]);
    of.pod["status"] = json!({"startTime": "2020-01-01T00:00:00Z", "podIP": "10.0.0.1", "qosClass": "BestEffort",
        "conditions": [{"type": "Initialized", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
                       {"type": "Ready", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"}]});
    let status = of.status();
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.9"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    let time = |type_: &str| {
        let found = status.conditions.iter().flatten().find(|it| it.type_ == type_).unwrap();
        found.last_transition_time.as_ref().unwrap().0.as_second()
    };
    assert_eq!(time("Initialized"), 1_577_836_800, "unchanged since then");
    assert_eq!(time("Ready"), 1000, "changed now");

    of.pod["spec"]["hostNetwork"] = json!(true);
    assert_eq!(of.status().pod_ip.as_deref(), Some("192.0.2.1"));
    of.pod["spec"]["hostNetwork"] = json!(false);
    of.is_over = true;
    of.instances = vec![exited("a", 0, 0)];
    assert_eq!(of.status().pod_ip.as_deref(), Some("10.0.0.1"), "kept after the end");
    let words = of.status().container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(words.terminated.unwrap().message.as_deref(), Some("bye"));
}
