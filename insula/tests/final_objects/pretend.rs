//! Nodes that are none: they are ready, and what is bound to them runs, fails or ends at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::Kubectl;

const NAMES: [&str; 2] = ["node-a", "node-b"];
/// How often a node is heard of, at least between two rounds.
const BEAT: Duration = Duration::from_secs(5);
/// The exit code of a pod that ends by itself.
const EXIT: &str = "test.insula.dev/exit-code";

/// See the [module](self).
pub(crate) struct Nodes {
    ends: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Nodes {
    pub(crate) fn start(admin: &Kubectl, user: &Kubectl) -> Self {
        for name in NAMES {
            let node = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            });
            admin.feed(&["create", "-f", "-"], &node.to_string());
        }
        let ends = Arc::new(AtomicBool::new(false));
        let (until, admin, user) = (
            ends.clone(),
            Kubectl::new(admin.kubeconfig().to_owned()),
            Kubectl::new(user.kubeconfig().to_owned()),
        );
        let thread = thread::spawn(move || {
            let mut beaten: Option<Instant> = None;
            while !until.load(Ordering::Relaxed) {
                // By the clock: on a busy machine a round takes long.
                if beaten.is_none_or(|at| BEAT < at.elapsed()) {
                    NAMES.iter().for_each(|name| beat(&admin, name));
                    beaten = Some(Instant::now());
                }
                run_pods(&user);
                thread::sleep(Duration::from_millis(300));
            }
        });
        Self { ends, thread }
    }

    pub(crate) fn stop(self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

fn beat(admin: &Kubectl, name: &str) {
    let amounts = json!({"cpu": "16", "memory": "32Gi", "pods": "110"});
    let conditions = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"].map(|it| {
        let status = if it == "Ready" { "True" } else { "False" };
        json!({
            "type": it, "status": status, "reason": "Pretended", "message": "",
            "lastHeartbeatTime": now(), "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    });
    let status = json!({"status": {
        "capacity": amounts, "allocatable": amounts, "conditions": conditions,
    }});
    admin.run(&[
        "patch",
        "node",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status.to_string(),
    ]);
    admin.run(&["taint", "node", name, "node.kubernetes.io/not-ready-"]);
}

fn run_pods(user: &Kubectl) {
    let out = user.run(&["get", "pods", "-A", "-o", "json"]);
    let Ok(list) = serde_json::from_slice::<Value>(&out.stdout) else { return };
    for pod in list["items"].as_array().into_iter().flatten() {
        let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
        let (namespace, name) =
            (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        if pod["spec"]["nodeName"].is_null() {
            continue;
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            user.run(&[
                "delete",
                "pod",
                "-n",
                &namespace,
                &name,
                "--grace-period=0",
                "--force",
                "--wait=false",
            ]);
            continue;
        }
        let phase = text(&pod["status"]["phase"]);
        let exit = pod["metadata"]["annotations"][EXIT].as_str();
        let status = match (phase.as_str(), exit) {
            ("Pending", _) => running(pod),
            ("Running", Some(code)) => ended(pod, code.parse().unwrap()),
            _ => continue,
        };
        let patch = json!({"status": status}).to_string();
        user.run(&[
            "patch",
            "pod",
            "-n",
            &namespace,
            &name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ]);
    }
}

fn conditions(is_ready: bool) -> Value {
    let status = if is_ready { "True" } else { "False" };
    let all =
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    json!(all.map(|it| {
        let status = if it.ends_with("eady") && it != "Initialized" { status } else { "True" };
        json!({"type": it, "status": status, "lastTransitionTime": now()})
    }))
}

fn running(pod: &Value) -> Value {
    let address = pod["metadata"]["uid"].as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&address[at..at + 2], 16).unwrap();
    let address = format!("10.{}.{}.{}", byte(0), byte(2), byte(4).max(1));
    let container = &pod["spec"]["containers"][0];
    json!({
        "phase": "Running", "startTime": now(), "hostIP": "192.0.2.1", "podIP": address,
        "podIPs": [{"ip": address}], "conditions": conditions(true),
        "containerStatuses": [{
            "name": container["name"], "image": container["image"], "imageID": "", "ready": true,
            "restartCount": 0, "started": true, "state": {"running": {"startedAt": now()}},
        }],
    })
}

fn ended(pod: &Value, code: i32) -> Value {
    let container = &pod["spec"]["containers"][0];
    json!({
        "phase": if code == 0 { "Succeeded" } else { "Failed" },
        "conditions": conditions(false),
        "containerStatuses": [{
            "name": container["name"], "image": container["image"], "imageID": "", "ready": false,
            "restartCount": 0, "started": false,
            "state": {"terminated": {"exitCode": code, "startedAt": now(), "finishedAt": now()}},
        }],
    })
}
