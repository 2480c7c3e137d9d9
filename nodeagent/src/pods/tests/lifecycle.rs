//! Starting, running to the end, restarting, not starting.

use serde_json::json;

use super::sleeper;
use crate::testing::{Lab, container_status, is_ready, phase_of, shell_container as shell};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_all_that_pods_have() {
    let lab = Lab::start().await;
    lab.cluster.set_config_map("settings", json!({"color": "blue", "file.txt": "in a file"}));
    lab.cluster.set_secret("keys", json!({"password": "aHVudGVyMg=="}));
    let pod = lab.create("web", json!({
        "terminationGracePeriodSeconds": 5,
        "initContainers": [{
            "name": "first", "image": "localhost/insula/busybox:1",
            "command": ["sh", "-c", "echo prepared > /work/file"],
            "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
        "containers": [{
            "name": "main", "image": "localhost/insula/busybox:1",
            "command": ["sh", "-c", "echo $(GREETING); trap 'exit 0' TERM; while :; do sleep 0.1; done"],
            "env": [
                {"name": "WHO", "value": "world"},
                {"name": "GREETING", "value": "hello $(WHO)"},
                {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
                {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
            "securityContext": {"runAsUser": 1234, "readOnlyRootFilesystem": true,
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [
                {"name": "work", "mountPath": "/work"}, {"name": "settings", "mountPath": "/settings"},
                {"name": "one", "mountPath": "/one/renamed", "subPath": "file.txt"},
                {"name": "identity", "mountPath": "/identity"}]},
            sleeper("side")],
        "volumes": [
            {"name": "work", "emptyDir": {}},
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "one", "configMap": {"name": "settings"}},
            {"name": "identity", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}]}));
    let running = lab.wait(&pod, "ready", is_ready).await;
    let status = running.status.as_ref().unwrap();
    assert_eq!(phase_of(&running), "Running");
    let ip = status.pod_ip.clone().unwrap();
    assert_eq!(status.host_ip.as_deref(), Some("127.0.0.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"), "left as the server set it");
    let first = container_status(&running, "first").unwrap();
    assert_eq!(
        first.state.as_ref().unwrap().terminated.as_ref().unwrap().reason.as_deref(),
        Some("Completed")
    );
    let main = container_status(&running, "main").unwrap();
    assert!(main.image_id.starts_with("sha256:"), "{}", main.image_id);
    assert_eq!((main.restart_count, main.started), (0, Some(true)));

    let of = |command: &'static str| lab.shell(&running, "main", command);
    assert_eq!(of("cat /work/file").await, "prepared");
    assert_eq!(of("cat /settings/file.txt; echo; cat /one/renamed").await, "in a file\nin a file");
    assert_eq!(of("echo $GREETING $COLOR $PASSWORD").await, "hello world blue hunter2");
    assert_eq!(of("echo $POD_IP").await, ip);
    assert_eq!(of("id -u; id -g").await, "1234\n0");
    assert_eq!(of("touch /x 2>&1 || echo refused").await.lines().last(), Some("refused"));
    assert_eq!(of("grep -c . /identity/labels; cat /identity/token").await, "1\nacme/default/");
    assert_eq!(of("hostname; grep -c Kubernetes-managed /etc/hosts").await, "web\n1");
    assert!(of("cat /etc/hosts").await.contains(&format!("{ip}\tweb")));
    assert_eq!(of("grep NoNewPrivs /proc/self/status | cut -f2").await, "1");
    assert_eq!(lab.log(&pod, "main", 0), "hello world");
    for event in ["Pulled", "Created", "Started"] {
        assert!(lab.cluster.has_event(pod.uid(), event), "{event}");
    }
    // One write when all runs, perhaps one or two on the way there.
    assert!(lab.cluster.n_patches() <= 4, "{} writes", lab.cluster.n_patches());

    lab.cluster.delete_gracefully(pod.uid(), 20);
    let started = std::time::Instant::now();
    lab.wait_gone(&pod).await;
    assert!(started.elapsed().as_secs() < 20, "both containers end when asked");
    assert!(lab.cluster.has_event(pod.uid(), "Killing: Stopping container main"));
    assert!(lab.runtime.list_pod_sandboxes(&[]).await.unwrap().is_empty());
    assert!(!lab.config.pod_dir(pod.uid()).exists());
    assert!(std::fs::read_dir(&lab.config.pod_logs_dir).unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_end_are_restarted_or_not() {
    let lab = Lab::start().await;
    let job = lab.create(
        "job",
        json!({"restartPolicy": "Never", "containers": [
        shell("ok", "echo done > /dev/termination-log"), shell("bad", "exit 7")]}),
    );
    let done = lab
        .create("done", json!({"restartPolicy": "OnFailure", "containers": [shell("c", "true")]}));
    let crash = lab.create("crash", json!({"containers": [
        {"name": "c", "image": "localhost/insula/busybox:1", "terminationMessagePolicy": "FallbackToLogsOnError",
         "command": ["sh", "-c", "echo oh no; exit 3"]}]}));

    let failed = lab.wait_phase(&job, "Failed").await;
    let terminated = |name: &str| {
        let status = container_status(&failed, name).unwrap();
        status.state.as_ref().unwrap().terminated.clone().unwrap()
    };
    assert_eq!((terminated("ok").exit_code, terminated("bad").exit_code), (0, 7));
    assert_eq!(terminated("ok").message.as_deref(), Some("done\n"));
    assert_eq!(terminated("bad").reason.as_deref(), Some("Error"));
    lab.wait_phase(&done, "Succeeded").await;

    // The first restart comes at once, the second waits.
    let waiting = lab.wait(&crash, "in back-off", |pod| {
        let status = container_status(pod, "c");
        let waiting = status.and_then(|it| it.state.as_ref()?.waiting.as_ref());
        waiting.is_some_and(|it| it.reason.as_deref() == Some("CrashLoopBackOff"))
    });
    let waiting = waiting.await;
    let status = container_status(&waiting, "c").unwrap();
    assert_eq!(status.restart_count, 1);
    let last = status.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.message.as_deref()), (3, Some("oh no\n")));
    assert_eq!(phase_of(&waiting), "Running");
    let message = status.state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone().unwrap();
    assert!(message.starts_with("back-off 10s restarting failed container=c"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_cannot_be_made_is_tried_ever_less_often() {
    let lab = Lab::start().await;
    let with = |sysctl: &str| {
        json!({
            "securityContext": {"sysctls": [{"name": sysctl, "value": "no number"}]},
            "containers": [sleeper("c")],
        })
    };
    let begun = std::time::Instant::now();
    let odd = lab.create("odd", with("kernel.shm_rmid_forced"));
    let n_failures = || {
        let events = lab.cluster.events(odd.uid());
        events.iter().filter(|it| it.starts_with("FailedCreatePodSandBox")).count()
    };
    while n_failures() < 4 {
        assert!(begun.elapsed().as_secs() < 60, "{:?}", lab.cluster.events(odd.uid()));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // At least half of one second, of two and of four.
    assert!(3500 <= begun.elapsed().as_millis(), "{:?}", begun.elapsed());

    let rejected = lab.create("rejected", with("kernel.msgmax"));
    let rejected = lab.wait_phase(&rejected, "Failed").await;
    let status = rejected.status.as_ref().unwrap();
    assert_eq!(status.reason.as_deref(), Some("SysctlForbidden"));
    let message = "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted";
    assert_eq!(status.message.as_deref(), Some(message));
    for pod in [&odd, &rejected] {
        lab.cluster.delete_gracefully(pod.uid(), 1);
        lab.wait_gone(pod).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn classes_say_how_pods_are_run() {
    let lab = Lab::start().await;
    let of = |class: &str| json!({"runtimeClassName": class, "containers": [sleeper("c")]});
    lab.cluster.set_runtime_class("usual", "runc");
    lab.cluster.set_runtime_class("other", "nothing-of-this-name");
    let usual = lab.create("usual", of("usual"));
    let other = lab.create("other", of("other"));
    let absent = lab.create("absent", of("absent"));
    lab.wait(&usual, "ready", is_ready).await;
    let tells = async |pod: &k8s_openapi::api::core::v1::Pod, what: &str| {
        let begun = std::time::Instant::now();
        let uid = pod.metadata.uid.as_deref().unwrap();
        while !lab.cluster.events(uid).iter().any(|it| it.contains(what)) {
            assert!(begun.elapsed().as_secs() < 60, "{what}: {:?}", lab.cluster.events(uid));
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tells(&other, "no runtime for \"nothing-of-this-name\" is configured").await;
    tells(&absent, "Failed to create pod sandbox: RuntimeClass \"absent\" not found").await;
    for pod in [&usual, &other, &absent] {
        lab.cluster.delete_gracefully(pod.uid(), 1);
        lab.wait_gone(pod).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_pod_from_starting_is_told() {
    let lab = Lab::start().await;
    let reason = |name: &'static str| {
        move |pod: &k8s_openapi::api::core::v1::Pod| {
            let status = container_status(pod, "c");
            let waiting = status.and_then(|it| it.state.as_ref()?.waiting.as_ref());
            waiting.is_some_and(|it| it.reason.as_deref() == Some(name))
        }
    };
    let image = |image: &str, policy: &str| json!({"containers": [{"name": "c", "image": image, "imagePullPolicy": policy}]});
    let never = lab.create("never", image("localhost/none:1", "Never"));
    let invalid = lab.create("invalid", image("Bad Name", "IfNotPresent"));
    let absent = lab.create("absent", image("127.0.0.1:1/none:1", "IfNotPresent"));
    let env = lab.create(
        "env",
        json!({"containers": [{"name": "c", "image": "localhost/insula/busybox:1",
        "command": ["sleep", "100"], "envFrom": [{"configMapRef": {"name": "late"}}]}]}),
    );
    let volume = lab.create(
        "volume",
        json!({"containers": [sleeper("c")],
        "volumes": [{"name": "v", "configMap": {"name": "late"}}]}),
    );
    lab.wait(&never, "ErrImageNeverPull", reason("ErrImageNeverPull")).await;
    lab.wait(&invalid, "InvalidImageName", reason("InvalidImageName")).await;
    lab.wait(&absent, "ImagePullBackOff", reason("ImagePullBackOff")).await;
    lab.wait(&env, "CreateContainerConfigError", reason("CreateContainerConfigError")).await;
    let expected = "MountVolume.SetUp failed for volume \"v\" : configmap \"late\" not found";
    lab.wait_event(&volume, &format!("FailedMount: {expected}")).await;
    // What was missing comes, and the pods start by themselves.
    lab.cluster.set_config_map("late", json!({"k": "v"}));
    lab.wait(&env, "ready", is_ready).await;
    lab.wait(&volume, "ready", is_ready).await;
}
