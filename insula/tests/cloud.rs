//! A cloud with real containers, through stock kubectl.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{process::Stdio, time::Duration};

use harness::{Cloud, Kubectl, texts};

const IMAGE: &str = "--image=localhost/insula/busybox:1";
/// A program that says something, and ends as soon as it is asked to.
const SERVE: &str = "trap 'exit 0' TERM; echo hello from $HOSTNAME; while true; do sleep 0.2; done";

fn serve(user: &Kubectl, name: &str, replicas: u32) {
    let replicas = format!("--replicas={replicas}");
    user.ok(&["create", "deployment", name, IMAGE, &replicas, "--", "sh", "-c", SERVE]);
    user.ok(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
}

fn pods(user: &Kubectl) -> Vec<String> {
    let names = user.ok(&["get", "pods", "-o", "name"]);
    let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
    names.sort();
    names
}

/// The tour of the README: two tenants, the same names, and a restart that disturbs nothing.
#[test]
fn two_tenants_run_the_same_names_and_a_restart_disturbs_nothing() {
    let mut cloud = Cloud::with_node();
    let nodes = cloud.admin().ok(&["get", "nodes"]);
    assert!(nodes.contains(" Ready "), "{nodes}");
    let (acme, globex) = cloud.tenants();
    serve(&acme, "web", 3);
    serve(&globex, "web", 2);
    assert_eq!((pods(&acme).len(), pods(&globex).len()), (3, 2));

    let wide = acme.ok(&["get", "pods", "-o", "wide"]);
    assert!(wide.matches("Running").count() == 3 && wide.matches("1/1").count() == 3, "{wide}");
    let pod = pods(&acme)[0].clone();
    let log = acme.ok(&["logs", &pod]);
    assert_eq!(log.trim(), format!("hello from {}", pod.trim_start_matches("pod/")));
    assert!(acme.ok(&["describe", &pod]).contains("Started container busybox"));

    // Exec: output, exit code, and standard input to its end.
    let out = acme.run(&["exec", &pod, "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    let (stdout, stderr) = texts(&out);
    assert_eq!((stdout.as_str(), out.status.code()), ("out\n", Some(7)), "{stderr}");
    assert!(stderr.starts_with("err\n"), "{stderr}");
    let (stdout, _) = texts(&acme.feed(&["exec", "-i", &pod, "--", "cat"], "through\n"));
    assert_eq!(stdout, "through\n");
    let token = acme.ok(&[
        "exec",
        &pod,
        "--",
        "cat",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
    ]);
    assert_eq!(token.split('.').count(), 3);

    // Another tenant's user reaches neither logs nor exec.
    for path in ["log", "exec?command=id&stdout=true"] {
        let path = format!(
            "/tenants/acme/api/v1/namespaces/default/pods/{}/{path}",
            pod.trim_start_matches("pod/")
        );
        assert!(globex.fails(&["get", "--raw", &path]).contains("Forbidden"));
    }

    // Down and up again: the same containers, with the same start, still run.
    let started = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount} {.status.podIP}{\"\\n\"}{end}";
    let before = acme.ok(&["get", "pods", "-o", started]);
    let processes = acme.ok(&["exec", &pod, "--", "cat", "/proc/1/stat"]);
    cloud.terminate();
    cloud.again();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(acme.ok(&["get", "pods", "-o", started]), before);
    let after = acme.ok(&["exec", &pod, "--", "cat", "/proc/1/stat"]);
    let begun = |stat: &str| stat.split_whitespace().nth(21).unwrap().to_owned();
    assert_eq!(begun(&after), begun(&processes), "the process is the same");

    acme.ok(&["scale", "deployment", "web", "--replicas=1"]);
    acme.until(&["get", "pods", "-o", "name"], |it| it.lines().count() == 1);
    acme.ok(&["delete", "deployment", "web"]);
    acme.until(&["get", "pods", "-o", "name"], str::is_empty);
    assert_eq!(pods(&globex).len(), 2, "the other tenant's are untouched");
}

#[test]
fn rollouts_replace_pods_and_can_be_undone() {
    let cloud = Cloud::with_node();
    let (acme, _) = cloud.tenants();
    serve(&acme, "web", 2);
    let first = pods(&acme);
    acme.ok(&["set", "env", "deployment/web", "A=b"]);
    acme.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    acme.until(&["get", "pods", "-o", "name"], |it| it.lines().count() == 2);
    let second = pods(&acme);
    assert!(first.iter().all(|it| !second.contains(it)), "{first:?} {second:?}");
    assert_eq!(acme.ok(&["exec", &second[0], "--", "sh", "-c", "echo $A"]), "b\n");
    let history = acme.ok(&["rollout", "history", "deployment/web"]);
    assert!(history.contains("1 ") && history.contains("2 "), "{history}");
    acme.ok(&["rollout", "undo", "deployment/web"]);
    acme.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    acme.until(&["get", "pods", "-o", "name"], |it| it.lines().count() == 2);
    assert_eq!(acme.ok(&["exec", &pods(&acme)[0], "--", "sh", "-c", "echo $A"]), "\n");
}

const POD: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green, file.conf: "line\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hidden}
---
apiVersion: v1
kind: Pod
metadata: {name: full, labels: {app: full}}
spec:
  initContainers:
  - name: prepare
    image: localhost/insula/busybox:1
    command: [sh, -c, "echo prepared > /scratch/state"]
    volumeMounts: [{name: work, mountPath: /scratch}]
  containers:
  - name: main
    image: localhost/insula/busybox:1
    command: [sh, -c, "trap 'exit 0' TERM; while true; do sleep 0.2; done"]
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: BOTH, value: "$(COLOUR)-$(WHO)"}
    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
    readinessProbe: {exec: {command: [test, -f, /scratch/state]}, periodSeconds: 1}
    volumeMounts:
    - {name: work, mountPath: /scratch}
    - {name: settings, mountPath: /etc/settings}
    - {name: keys, mountPath: /etc/keys, readOnly: true}
    - {name: about, mountPath: /etc/about}
    - {name: host, mountPath: /host}
  volumes:
  - {name: work, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
  - {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: host, hostPath: {path: /proc, type: Directory}}
"#;

#[test]
fn a_pod_gets_what_its_manifest_says() {
    let cloud = Cloud::with_node();
    let (acme, _) = cloud.tenants();
    cloud.trust("acme");
    let told = ["get", "events", "-o", "jsonpath={.items[*].reason}"];
    cloud
        .admin()
        .until(&told, |it| it.contains("NodeReady") && it.contains("NodeHasNoDiskPressure"));
    let (_, stderr) = texts(&acme.feed(&["create", "-f", "-"], POD));
    assert_eq!(stderr, "");
    acme.ok(&["wait", "--for=condition=Ready", "pod/full", "--timeout=60s"]);
    let says = |script: &str| acme.ok(&["exec", "full", "--", "sh", "-c", script]);
    assert_eq!(says("echo $COLOUR $PASSWORD $WHO $BOTH"), "green hidden full green-full\n");
    assert_eq!(
        says("cat /scratch/state /etc/settings/file.conf /etc/keys/password"),
        "prepared\nline\nhidden"
    );
    assert_eq!(says("cat /etc/about/labels").trim(), r#"app="full""#);
    assert_eq!(says("stat -L -c %a /etc/keys/password"), "400\n");
    assert!(says("cat /host/self/stat").contains("cat"));
    assert_eq!(says("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace"), "default");
    assert_eq!(
        acme.ok(&["get", "pod", "full", "-o", "jsonpath={.status.qosClass} {.status.phase}"]),
        "Burstable Running"
    );

    // A config map's change arrives in the volume.
    acme.ok(&[
        "patch",
        "configmap",
        "settings",
        "--type=merge",
        "-p",
        r#"{"data":{"colour":"red"}}"#,
    ]);
    acme.until(&["exec", "full", "--", "cat", "/etc/settings/colour"], |it| it == "red");
}

#[test]
fn failures_are_told_and_restarts_back_off() {
    let cloud = Cloud::with_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&["run", "missing", "--image=localhost/insula/nothing:1", "--image-pull-policy=Never"]);
    acme.ok(&["run", "crash", IMAGE, "--", "sh", "-c", "echo bye; exit 3"]);
    acme.ok(&["run", "done", IMAGE, "--restart=Never", "--", "true"]);
    acme.ok(&["run", "failed", IMAGE, "--restart=Never", "--", "sh", "-c", "exit 4"]);
    acme.ok(&["run", "hungry", IMAGE, "--overrides", r#"{"spec":{"containers":[{"name":"hungry","image":"localhost/insula/busybox:1","resources":{"requests":{"memory":"1000Ti"}}}]}}"#]);

    let status = |pod: &str, wanted: &str| {
        acme.until(&["get", "pod", pod], |it| it.contains(wanted));
    };
    status("missing", "ErrImageNeverPull");
    status("crash", "CrashLoopBackOff");
    status("done", "Completed");
    status("failed", "Error");
    assert_eq!(
        acme.ok(&[
            "get",
            "pod",
            "failed",
            "-o",
            "jsonpath={.status.phase} {.status.containerStatuses[0].state.terminated.exitCode}"
        ]),
        "Failed 4"
    );
    assert_eq!(acme.ok(&["logs", "crash"]), "bye\n");
    acme.until(&["logs", "crash", "--previous"], |it| it == "bye\n");
    let event = "jsonpath={.items[*].message}";
    let said = acme
        .until(&["get", "events", "--field-selector=reason=FailedScheduling", "-o", event], |it| {
            !it.is_empty()
        });
    assert!(said.contains("0/1 nodes are available: 1 Insufficient memory"), "{said}");
    let condition = r#"jsonpath={.status.conditions[?(@.type=="PodScheduled")].reason}"#;
    assert_eq!(acme.ok(&["get", "pod", "hungry", "-o", condition]), "Unschedulable");

    // A pull that fails says so; nothing on this machine answers on that port.
    acme.ok(&["run", "pull", "--image=127.0.0.1:1/nothing:1"]);
    acme.until(&["get", "pod", "pull"], |it| {
        it.contains("ErrImagePull") || it.contains("ImagePullBackOff")
    });
}

#[test]
fn logs_are_followed_while_they_are_written() {
    let cloud = Cloud::with_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&[
        "run",
        "count",
        IMAGE,
        "--restart=Never",
        "--",
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.5; done",
    ]);
    acme.until(&["get", "pod", "count"], |it| it.contains("Running") || it.contains("Completed"));
    let follow =
        acme.command().args(["logs", "-f", "count"]).stdout(Stdio::piped()).output().unwrap();
    let (stdout, _) = texts(&follow);
    assert_eq!(stdout.lines().count(), 6, "{stdout}");
    assert_eq!(acme.ok(&["logs", "count", "--tail=2"]), "line 5\nline 6\n");
}

/// A node that is drained of pods schedules none, and taints keep pods away.
#[test]
fn selectors_taints_and_cordons_decide_where_pods_go() {
    let cloud = Cloud::with_node();
    let (acme, _) = cloud.tenants();
    let admin = cloud.admin();
    let node = admin.ok(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    acme.ok(&[
        "run",
        "picky",
        IMAGE,
        "--overrides",
        r#"{"spec":{"nodeSelector":{"disk":"ssd"}}}"#,
        "--",
        "sleep",
        "1000",
    ]);
    let message = |pod: &str| {
        acme.until(
            &[
                "get",
                "pod",
                pod,
                "-o",
                r#"jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}"#,
            ],
            |it| !it.is_empty(),
        )
    };
    assert!(
        message("picky").contains("didn't match Pod's node affinity/selector"),
        "{}",
        message("picky")
    );
    admin.ok(&["label", "node", &node, "disk=ssd"]);
    acme.until(&["get", "pod", "picky"], |it| it.contains("Running"));

    admin.ok(&["taint", "node", &node, "only=some:NoSchedule"]);
    acme.ok(&["run", "tainted", IMAGE, "--", "sleep", "1000"]);
    assert!(message("tainted").contains("untolerated taint"), "{}", message("tainted"));
    admin.ok(&["taint", "node", &node, "only-"]);
    acme.until(&["get", "pod", "tainted"], |it| it.contains("Running"));

    admin.ok(&["cordon", &node]);
    acme.ok(&["run", "kept-out", IMAGE, "--", "sleep", "1000"]);
    assert!(message("kept-out").contains("unschedulable"), "{}", message("kept-out"));
    admin.ok(&["uncordon", &node]);
    acme.until(&["get", "pod", "kept-out"], |it| it.contains("Running"));
}
