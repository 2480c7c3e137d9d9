//! Probes, sidecars, and files that change under a running pod.

use serde_json::json;

use super::{exec, sleeper, with};
use crate::testing::{Lab, container_status, is_ready, phase_of, shell_container};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_decide_on_traffic_and_life() {
    let lab = Lab::start().await;
    let quick = |action: serde_json::Value| {
        with(action, json!({"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 5}))
    };
    let probed = with(
        sleeper("c"),
        json!({
            "startupProbe": with(quick(exec("test -e /tmp/started")), json!({"failureThreshold": 100})),
            "readinessProbe": quick(exec("test -e /tmp/ready")),
            "livenessProbe": quick(exec("test ! -e /tmp/sick"))}),
    );
    let http = with(
        shell_container("h", "echo ok > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"),
        json!({"ports": [{"name": "web", "containerPort": 8080}],
            "readinessProbe": quick(json!({"httpGet": {"path": "/index.html", "port": "web"}})),
            "livenessProbe": with(quick(json!({"tcpSocket": {"port": 8080}})), json!({"failureThreshold": 10}))}),
    );
    let pod = lab.create(
        "probed",
        json!({"terminationGracePeriodSeconds": 1, "containers": [probed, http]}),
    );
    let is = |name: &'static str, started: bool, ready: bool| {
        move |pod: &k8s_openapi::api::core::v1::Pod| {
            container_status(pod, name)
                .is_some_and(|it| it.started == Some(started) && it.ready == ready)
        }
    };
    lab.wait(&pod, "h ready", is("h", true, true)).await;
    let seen = lab.wait(&pod, "c running", is("c", false, false)).await;
    assert_eq!(phase_of(&seen), "Running");
    lab.wait_event(&pod, "Unhealthy: Startup probe failed").await;
    lab.shell(&seen, "c", "touch /tmp/started").await;
    lab.wait(&pod, "c started", is("c", true, false)).await;
    lab.shell(&seen, "c", "touch /tmp/ready").await;
    lab.wait(&pod, "ready", is_ready).await;
    lab.shell(&seen, "c", "rm /tmp/ready").await;
    lab.wait(&pod, "not ready", |pod| !is_ready(pod)).await;
    lab.shell(&seen, "c", "touch /tmp/sick").await;
    let again = lab.wait(&pod, "restarted", |pod| {
        container_status(pod, "c").is_some_and(|it| it.restart_count == 1)
    });
    again.await;
    let expected = "Killing: Container c failed liveness probe, will be restarted";
    assert!(lab.cluster.has_event(pod.uid(), expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_run_beside_and_end_last() {
    let lab = Lab::start().await;
    let sidecar = with(
        shell_container(
            "side",
            "echo up > /work/side; trap 'exit 0' TERM; while :; do sleep 0.1; done",
        ),
        json!({"restartPolicy": "Always", "volumeMounts": [{"name": "work", "mountPath": "/work"}],
            "startupProbe": with(exec("test -e /work/side"), json!({"periodSeconds": 1}))}),
    );
    let main = with(
        shell_container("main", "cat /work/side"),
        json!({"volumeMounts": [{"name": "work", "mountPath": "/work"}]}),
    );
    let pod = lab.create(
        "job",
        json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 5,
        "initContainers": [sidecar], "containers": [main],
        "volumes": [{"name": "work", "emptyDir": {"medium": "Memory"}}]}),
    );
    let done = lab.wait_phase(&pod, "Succeeded").await;
    assert_eq!(lab.log(&pod, "main", 0), "up");
    let side = container_status(&done, "side").unwrap();
    assert!(side.state.as_ref().unwrap().terminated.is_some());
    assert!(lab.cluster.has_event(pod.uid(), "Killing: Stopping container side"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_follow_what_they_show() {
    let lab = Lab::start().await;
    lab.cluster.set_config_map("settings", json!({"a": "1", "gone": "x"}));
    let container = with(
        sleeper("c"),
        json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "s", "mountPath": "/s"}]}),
    );
    let pod = lab.create("files", json!({"terminationGracePeriodSeconds": 1, "containers": [container],
        "volumes": [
            {"name": "v", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"name": "s", "configMap": {"name": "settings"}}]}));
    let seen = lab.wait(&pod, "ready", is_ready).await;
    assert_eq!(lab.shell(&seen, "c", "cat /v/labels /s/a").await, "app=\"files\"1");
    lab.cluster.set_config_map("settings", json!({"a": "2", "new": "y"}));
    // A change of the pod itself is followed at once, and with it all else.
    lab.cluster.update(pod.uid(), |pod| {
        pod.metadata.labels.get_or_insert_default().insert("b".to_owned(), "c".to_owned());
    });
    let follow = async {
        while lab.shell(&seen, "c", "ls /s | xargs; cat /v/labels /s/a").await
            != "a new\napp=\"files\"\nb=\"c\"2"
        {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(crate::testing::PATIENCE, follow).await.expect("the files follow");
}
