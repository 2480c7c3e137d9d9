//! A pod's cells: the one-word status that people and scripts rely on.

use insula_api::object;
use serde_json::Value;

use super::{at, cells, items, number, text};

fn always_restarts(container: &Value) -> bool {
    text(container, "restartPolicy") == "Always"
}

/// The spec of the init container that a status belongs to.
fn init_spec<'a>(pod: &'a Value, status: &Value) -> Option<&'a Value> {
    items(pod, "spec.initContainers").iter().find(|it| text(it, "name") == text(status, "name"))
}

fn is_ready(status: &Value) -> bool {
    status.get("ready") == Some(&Value::Bool(true))
}

fn condition(pod: &Value, kind: &str) -> Option<(String, String)> {
    let found = items(pod, "status.conditions").iter().find(|it| text(it, "type") == kind)?;
    Some((text(found, "status").to_owned(), text(found, "reason").to_owned()))
}

/// `ready/total` containers; sidecars count.
pub(super) fn ready(pod: &Value) -> Value {
    let sidecars = items(pod, "spec.initContainers").iter().filter(|it| always_restarts(it));
    let total = items(pod, "spec.containers").len() + sidecars.count();
    let running = |it: &&Value| is_ready(it) && at(it, "state.running").is_some();
    let ready_sidecars = items(pod, "status.initContainerStatuses")
        .iter()
        .filter(|status| init_spec(pod, status).is_some_and(always_restarts))
        .filter(running);
    let ready = items(pod, "status.containerStatuses").iter().filter(running).count();
    format!("{}/{total}", ready + ready_sidecars.count()).into()
}

fn terminated(state: &Value) -> String {
    let (reason, signal) = (text(state, "reason"), number(state, "signal"));
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", number(state, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// The status of the first init container that is not done, if there is one.
fn initializing(pod: &Value) -> Option<String> {
    let total = items(pod, "spec.initContainers").len();
    for (index, status) in items(pod, "status.initContainerStatuses").iter().enumerate() {
        let sidecar = init_spec(pod, status).is_some_and(always_restarts);
        if let Some(state) = at(status, "state.terminated") {
            if number(state, "exitCode") == 0 {
                continue;
            }
            return Some(format!("Init:{}", terminated(state)));
        }
        if sidecar && status.get("started") == Some(&Value::Bool(true)) {
            continue;
        }
        return Some(match text(status, "state.waiting.reason") {
            "" | "PodInitializing" => format!("Init:{index}/{total}"),
            reason => format!("Init:{reason}"),
        });
    }
    None
}

/// What `kubectl get pods` shows as status.
pub(super) fn status(pod: &Value) -> Value {
    let mut shown = match text(pod, "status.reason") {
        "" => text(pod, "status.phase").to_owned(),
        reason => reason.to_owned(),
    };
    if let Some((status, reason)) = condition(pod, "PodScheduled")
        && status == "False"
        && reason == "SchedulingGated"
    {
        shown = reason;
    }
    let initializing = initializing(pod);
    let initialized = condition(pod, "Initialized").is_some_and(|(status, _)| status == "True");
    match initializing {
        Some(text) if !initialized => shown = text,
        _ => {
            let mut running = false;
            for status in items(pod, "status.containerStatuses").iter().rev() {
                if !text(status, "state.waiting.reason").is_empty() {
                    shown = text(status, "state.waiting.reason").to_owned();
                } else if let Some(state) = at(status, "state.terminated") {
                    shown = terminated(state);
                } else if is_ready(status) && at(status, "state.running").is_some() {
                    running = true;
                }
            }
            // One container is done while another still runs.
            if shown == "Completed" && running {
                let ready = condition(pod, "Ready").is_some_and(|(status, _)| status == "True");
                shown = if ready { "Running".into() } else { "NotReady".into() };
            }
        }
    }
    if object::is_deleting(pod) {
        let lost = text(pod, "status.reason") == "NodeLost";
        let over = matches!(text(pod, "status.phase"), "Succeeded" | "Failed");
        shown = match (lost, over) {
            (true, _) => "Unknown".into(),
            (false, true) => shown,
            (false, false) => "Terminating".into(),
        };
    }
    shown.into()
}

/// Restarts, with the time since the last one.
pub(super) fn restarts(pod: &Value) -> Value {
    let sidecars = items(pod, "status.initContainerStatuses")
        .iter()
        .filter(|status| init_spec(pod, status).is_some_and(always_restarts));
    let statuses: Vec<&Value> =
        items(pod, "status.containerStatuses").iter().chain(sidecars).collect();
    let count: i64 = statuses.iter().map(|it| number(it, "restartCount")).sum();
    let last = statuses.iter().map(|it| text(it, "lastState.terminated.finishedAt")).max();
    match last.filter(|last| !last.is_empty() && 0 < count) {
        Some(last) => {
            let ago = cells::since(Some(last));
            format!("{count} ({} ago)", ago.as_str().unwrap_or_default()).into()
        }
        None => count.to_string().into(),
    }
}

/// `true/total` readiness gates.
pub(super) fn readiness_gates(pod: &Value) -> Value {
    let gates = items(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let passed = gates.iter().filter(|gate| {
        condition(pod, text(gate, "conditionType")).is_some_and(|(status, _)| status == "True")
    });
    format!("{}/{}", passed.count(), gates.len()).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(pod: &Value, expected: &str) {
        assert_eq!(status(pod), expected);
    }

    #[test]
    fn statuses() {
        check(&json!({"status": {"phase": "Pending"}}), "Pending");
        check(
            &json!({"status": {"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}}),
            "CrashLoopBackOff",
        );
        check(
            &json!({"status": {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}}),
            "ExitCode:3",
        );
        check(
            &json!({"metadata": {"deletionTimestamp": "x"}, "status": {"phase": "Running"}}),
            "Terminating",
        );
        check(
            &json!({"spec": {"initContainers": [{"name": "a"}, {"name": "b"}]},
                    "status": {"phase": "Pending", "initContainerStatuses": [
                        {"name": "a", "state": {"terminated": {"exitCode": 0}}},
                        {"name": "b", "state": {"running": {}}}]}}),
            "Init:1/2",
        );
    }

    #[test]
    fn ready_counts_containers() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]},
            "status": {"containerStatuses": [{"ready": true, "state": {"running": {}}}, {"ready": false}]}});
        assert_eq!(ready(&pod), "1/2");
    }
}
