//! Ends: of pods, of the agent, of the runtime.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{exec, sleeper, with};
use crate::testing::{Lab, PATIENCE, container_id, container_status, is_ready, shell_container};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_restarts_disturbs_nothing() {
    let mut lab = Lab::start().await;
    let pod = lab
        .create("stay", json!({"terminationGracePeriodSeconds": 1, "containers": [sleeper("c")]}));
    let orphan = lab.create(
        "orphan",
        json!({"terminationGracePeriodSeconds": 1, "containers": [sleeper("c")]}),
    );
    let before = lab.wait(&pod, "ready", is_ready).await;
    lab.wait(&orphan, "ready", is_ready).await;
    lab.stop_agent().await;
    lab.cluster.delete_at_once(orphan.uid());
    // What a pod leaves that ended before it had a sandbox.
    let leftovers =
        [lab.config.pod_dir("0-0"), lab.config.pod_logs_dir.join("acme_default_gone_0-0")];
    let others = lab.config.pod_logs_dir.join("others");
    for path in leftovers.iter().chain([&others]) {
        std::fs::create_dir_all(path.join("c")).unwrap();
    }
    let n_patches = lab.cluster.n_patches();

    lab.start_agent();
    let gone = async {
        while lab.runtime.list_pod_sandboxes(&[]).await.unwrap().len() > 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the orphan goes");
    assert!(leftovers.iter().all(|it| !it.exists()) && others.exists());
    let after = lab.cluster.get(pod.uid()).unwrap();
    assert_eq!(container_id(&after, "c"), container_id(&before, "c"));
    assert_eq!(lab.cluster.n_patches(), n_patches, "nothing to tell");

    // While the runtime is away nothing is reported, and afterwards nothing was lost.
    lab.halt_runtime().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    lab.resume_runtime().await;
    assert_eq!(lab.shell(&after, "c", "echo alive").await, "alive");
    assert_eq!(lab.cluster.n_patches(), n_patches);
    lab.cluster.delete_gracefully(pod.uid(), 1);
    lab.wait_gone(&pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_have_their_time_to_end() {
    let lab = Lab::start().await;
    let said = lab.root().join("said");
    std::fs::create_dir(&said).unwrap();
    let volume = json!([{"name": "said", "hostPath": {"path": said.display().to_string()}}]);
    let mount = json!([{"name": "said", "mountPath": "/said"}]);
    let polite = shell_container(
        "c",
        "trap 'echo term >> /said/words; exit 0' TERM; while :; do sleep 0.1; done",
    );
    let hooks = json!({"preStop": exec("echo hook >> /said/words"), "postStart": exec("echo start > /said/words")});
    let polite = with(polite, json!({"lifecycle": hooks, "volumeMounts": mount}));
    let pod = lab.create("polite", json!({"containers": [polite], "volumes": volume}));
    let deaf = lab.create(
        "deaf",
        json!({"terminationGracePeriodSeconds": 600,
        "containers": [shell_container("c", "trap '' TERM; while :; do sleep 0.1; done")]}),
    );
    let forced = lab.create(
        "forced",
        json!({"terminationGracePeriodSeconds": 1, "containers": [sleeper("c")]}),
    );
    for pod in [&pod, &deaf, &forced] {
        lab.wait(pod, "ready", is_ready).await;
    }
    let begin = Instant::now();
    lab.cluster.delete_gracefully(pod.uid(), 30);
    lab.cluster.delete_gracefully(deaf.uid(), 600);
    lab.cluster.delete_at_once(forced.uid());
    lab.wait_gone(&pod).await;
    lab.wait_gone(&forced).await;
    assert_eq!(std::fs::read_to_string(said.join("words")).unwrap(), "start\nhook\nterm\n");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert!(lab.cluster.get(deaf.uid()).is_some(), "still has its time");
    // A second delete gives it less.
    lab.cluster.delete_gracefully(deaf.uid(), 1);
    lab.wait_gone(&deaf).await;
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    assert!(said.exists(), "what a host path leads to stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_out_of_time_fails() {
    let lab = Lab::start().await;
    let pod = lab.create(
        "late",
        json!({"activeDeadlineSeconds": 2, "terminationGracePeriodSeconds": 1,
        "containers": [sleeper("c")]}),
    );
    let failed = lab.wait_phase(&pod, "Failed").await;
    assert_eq!(failed.status.as_ref().unwrap().reason.as_deref(), Some("DeadlineExceeded"));
    let state = container_status(&failed, "c").unwrap().state.clone().unwrap();
    assert!(state.terminated.is_some());
}
