//! What runs pods, through stock kubectl and with real containers: jobs, cron jobs, stateful sets,
//! daemon sets and replication controllers.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use harness::{Cloud, Kubectl, create};
use serde_json::{Value, json};

const IMAGE: &str = "localhost/insula/busybox:1";
/// Ends as soon as it is asked to.
const SERVE: &str = "trap 'exit 0' TERM; while true; do sleep 0.2; done";

fn template(labels: &Value, restart: &str, command: &str) -> Value {
    json!({
        "metadata": {"labels": labels},
        "spec": {
            "restartPolicy": restart, "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "c", "image": IMAGE, "command": ["sh", "-c", command]}],
        },
    })
}

fn job(name: &str, command: &str, spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["template"] = template(&json!({"app": name}), "Never", command);
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})
}

fn get(user: &Kubectl, what: &[&str]) -> Value {
    let args = [&["get"], what, &["-o", "json"]].concat();
    serde_json::from_str(&user.ok(&args)).unwrap()
}

fn names(user: &Kubectl, selector: &str) -> Vec<String> {
    let text =
        user.ok(&["get", "pods", "-l", selector, "-o", "jsonpath={.items[*].metadata.name}"]);
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn jobs_end_one_way_or_the_other_and_are_taken_away() {
    let cloud = Cloud::with_node();
    let (acme, globex) = cloud.tenants();
    let indexed = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"});
    create(&acme, &job("all", "echo $JOB_COMPLETION_INDEX of $HOSTNAME", &indexed));
    let policy = json!({"backoffLimit": 3, "podFailurePolicy": {"rules": [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
    ]}});
    create(&acme, &job("bad", "exit 42", &policy));
    create(&acme, &job("short", "true", &json!({"ttlSecondsAfterFinished": 1})));
    create(&acme, &job("later", SERVE, &json!({"suspend": true})));
    // The same name in another tenant is another job.
    create(&globex, &job("all", "true", &json!({})));

    acme.ok(&["wait", "--for=condition=complete", "job/all", "--timeout=60s"]);
    acme.ok(&["wait", "--for=condition=failed", "job/bad", "--timeout=60s"]);
    globex.ok(&["wait", "--for=condition=complete", "job/all", "--timeout=60s"]);
    acme.until(&["get", "jobs", "-o", "name"], |it| !it.contains("short"));

    let all = get(&acme, &["job", "all"]);
    assert_eq!(all["status"]["completedIndexes"], "0-2");
    assert_eq!((&all["status"]["succeeded"], &all["status"]["active"]), (&json!(3), &Value::Null));
    assert_eq!(all["status"]["uncountedTerminatedPods"], json!({}));
    let logs = acme.ok(&["logs", "-l", "app=all", "--tail=-1"]);
    let mut lines: Vec<&str> = logs.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["0 of all-0", "1 of all-1", "2 of all-2"]);
    let bad = get(&acme, &["job", "bad"]);
    let failed = &bad["status"]["conditions"][1];
    assert_eq!(
        (&failed["type"], &failed["reason"]),
        (&json!("Failed"), &json!("PodFailurePolicy"))
    );
    assert!(failed["message"].as_str().unwrap().contains("failed with exit code 42 matching"));
    assert_eq!(bad["status"]["failed"], 1, "{bad}");

    assert!(names(&acme, "app=later").is_empty());
    acme.ok(&["patch", "job", "later", "-p", r#"{"spec":{"suspend":false}}"#]);
    acme.until(&["get", "job", "later", "-o", "jsonpath={.status.ready}"], |it| it == "1");
    let events = acme.ok(&["get", "events", "--field-selector", "involvedObject.name=later"]);
    assert!(events.contains("Suspended") && events.contains("Resumed"), "{events}");

    // What keeps pods until they are counted keeps none for good.
    acme.ok(&["delete", "job", "all", "--cascade=orphan"]);
    acme.ok(&["delete", "pods", "-l", "app=all", "--timeout=30s"]);
    acme.ok(&["delete", "jobs", "--all", "--timeout=60s"]);
    acme.until(&["get", "pods", "-o", "name"], str::is_empty);
    assert_eq!(get(&globex, &["jobs"])["items"].as_array().unwrap().len(), 1);
}

#[test]
fn stateful_sets_have_names_and_an_order() {
    let cloud = Cloud::with_node();
    let (acme, _) = cloud.tenants();
    let labels = json!({"app": "db"});
    let claim = json!({
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    });
    let mut set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {
            "replicas": 3, "serviceName": "db", "selector": {"matchLabels": labels},
            "template": template(&labels, "Always", SERVE),
        },
    });
    create(&acme, &set);
    acme.ok(&["rollout", "status", "statefulset/db", "--timeout=90s"]);
    let pods = get(&acme, &["pods", "-l", "app=db", "--sort-by=.metadata.creationTimestamp"]);
    let items = pods["items"].as_array().unwrap();
    let mut names: Vec<_> =
        items.iter().map(|it| it["metadata"]["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["db-0", "db-1", "db-2"]);
    // Each began when the one before it was ready.
    let ready = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let found = conditions.iter().find(|it| it["type"] == "Ready").unwrap();
        found["lastTransitionTime"].as_str().unwrap().to_owned()
    };
    for pair in items.windows(2) {
        assert!(
            ready(&pair[0]).as_str() <= pair[1]["metadata"]["creationTimestamp"].as_str().unwrap()
        );
    }
    assert_eq!(acme.ok(&["exec", "db-1", "--", "hostname"]).trim(), "db-1");

    // A new version goes from the last to the first; the names stay.
    let before = get(&acme, &["pod", "db-0"])["metadata"]["uid"].clone();
    acme.ok(&["set", "env", "statefulset/db", "A=b"]);
    acme.ok(&["rollout", "status", "statefulset/db", "--timeout=90s"]);
    assert_ne!(get(&acme, &["pod", "db-0"])["metadata"]["uid"], before);
    assert_eq!(acme.ok(&["exec", "db-2", "--", "sh", "-c", "echo $A"]), "b\n");
    let history = acme.ok(&["rollout", "history", "statefulset/db"]);
    assert!(history.contains("1 ") && history.contains("2 "), "{history}");
    acme.ok(&["rollout", "undo", "statefulset/db"]);
    acme.ok(&["rollout", "status", "statefulset/db", "--timeout=90s"]);
    assert_eq!(acme.ok(&["exec", "db-2", "--", "sh", "-c", "echo $A"]), "\n");

    // Down from the end; what is deleted by hand comes back under its name.
    acme.ok(&["scale", "statefulset", "db", "--replicas=1"]);
    acme.until(&["get", "pods", "-l", "app=db", "-o", "name"], |it| it == "pod/db-0\n");
    let before = get(&acme, &["pod", "db-0"])["metadata"]["uid"].clone();
    acme.ok(&["delete", "pod", "db-0"]);
    acme.ok(&["wait", "--for=condition=ready", "pod/db-0", "--timeout=60s"]);
    assert_ne!(get(&acme, &["pod", "db-0"])["metadata"]["uid"], before);

    // Claims are made before the pods that use them, and stay.
    set["metadata"]["name"] = "kept".into();
    set["spec"]["volumeClaimTemplates"] = json!([claim]);
    create(&acme, &set);
    acme.until(&["get", "pvc", "-o", "name"], |it| it.contains("data-kept-0"));
    let pod = get(&acme, &["pod", "kept-0"]);
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let claimed = volumes.iter().find(|it| it["name"] == "data").unwrap();
    assert_eq!(claimed["persistentVolumeClaim"]["claimName"], "data-kept-0");
    acme.ok(&["delete", "statefulset", "kept", "db", "--timeout=60s"]);
    acme.until(&["get", "pods", "-o", "name"], str::is_empty);
    assert!(acme.ok(&["get", "pvc", "-o", "name"]).contains("data-kept-0"));
}

#[test]
fn daemon_sets_and_replication_controllers() {
    let cloud = Cloud::with_node();
    let (acme, _) = cloud.tenants();
    let labels = json!({"app": "agent"});
    create(
        &acme,
        &json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
            "spec": {"selector": {"matchLabels": labels}, "template": template(&labels, "Always", SERVE)},
        }),
    );
    acme.ok(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    let status = get(&acme, &["daemonset", "agent"])["status"].clone();
    assert_eq!(
        (&status["desiredNumberScheduled"], &status["numberAvailable"]),
        (&json!(1), &json!(1))
    );
    let first = names(&acme, "app=agent");
    acme.ok(&["set", "env", "daemonset/agent", "A=b"]);
    acme.ok(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    let second = names(&acme, "app=agent");
    assert!(second.len() == 1 && second != first, "{first:?} {second:?}");
    acme.ok(&["rollout", "undo", "daemonset/agent"]);
    acme.ok(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);

    // A node that is closed keeps them; one that drives them away does not.
    let admin = cloud.admin();
    let node = admin.ok(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    admin.ok(&["cordon", &node]);
    let there = names(&acme, "app=agent");
    admin.ok(&["taint", "node", &node, "maintenance=now:NoExecute"]);
    acme.until(&["get", "pods", "-l", "app=agent", "-o", "name"], str::is_empty);
    admin.ok(&["taint", "node", &node, "maintenance-"]);
    acme.ok(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    assert_ne!(names(&acme, "app=agent"), there);
    admin.ok(&["uncordon", &node]);

    let labels = json!({"app": "old"});
    create(
        &acme,
        &json!({
            "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "old"},
            "spec": {"replicas": 2, "template": template(&labels, "Always", SERVE)},
        }),
    );
    acme.until(&["get", "rc", "old", "-o", "jsonpath={.status.readyReplicas}"], |it| it == "2");
    acme.ok(&["delete", "rc", "old", "--timeout=60s"]);
    acme.ok(&["delete", "daemonset", "agent", "--timeout=60s"]);
    acme.until(&["get", "pods", "-o", "name"], str::is_empty);
}

#[test]
fn cron_jobs_make_jobs_in_time() {
    let cloud = Cloud::with_node();
    let (acme, _) = cloud.tenants();
    let run = job("x", "echo tick", &json!({}));
    let cron = |name: &str, schedule: &str, more: &Value| {
        let mut spec = more.clone();
        spec["schedule"] = schedule.into();
        spec["jobTemplate"] = json!({"spec": run["spec"]});
        json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": spec})
    };
    create(&acme, &cron("often", "@every 2s", &json!({"successfulJobsHistoryLimit": 1})));
    create(&acme, &cron("never", "@every 2s", &json!({"suspend": true})));
    acme.until(&["get", "cronjob", "often", "-o", "jsonpath={.status.lastSuccessfulTime}"], |it| {
        !it.is_empty()
    });
    // At most one is made for a minute: its name says for which.
    let jobs = get(&acme, &["jobs"]);
    for it in jobs["items"].as_array().unwrap() {
        let name = it["metadata"]["name"].as_str().unwrap();
        let minutes: i64 = name.strip_prefix("often-").unwrap().parse().unwrap();
        let at = &it["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
        let at: jiff::Timestamp = at.as_str().unwrap().parse().unwrap();
        assert_eq!(minutes, at.as_second() / 60);
        assert_eq!(it["metadata"]["ownerReferences"][0]["kind"], "CronJob");
    }
    let by_hand = acme.ok(&["create", "job", "by-hand", "--from=cronjob/never"]);
    assert!(by_hand.contains("created"), "{by_hand}");
    acme.ok(&["wait", "--for=condition=complete", "job/by-hand", "--timeout=60s"]);
    acme.ok(&["delete", "cronjobs", "--all"]);
    acme.until(&["get", "jobs,pods", "-o", "name"], str::is_empty);
}

#[test]
fn services_tell_who_is_behind_them() {
    let cloud = Cloud::with_node();
    let (acme, globex) = cloud.tenants();
    for user in [&acme, &globex] {
        let serve =
            ["create", "deployment", "web", "--image", IMAGE, "--replicas=2", "--port=8080"];
        user.ok(&[&serve[..], &["--", "sh", "-c", SERVE]].concat());
        user.ok(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
        user.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    }
    let addresses = |user: &Kubectl| {
        let path = "jsonpath={.items[*].status.podIP}";
        let text = user.ok(&["get", "pods", "-l", "app=web", "-o", path]);
        let mut all: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        all.sort();
        all
    };
    let told = |user: &Kubectl, path: &str, what: &[&str]| {
        let wanted = addresses(user);
        user.until(&[&["get"], what, &["-o", path]].concat(), |text| {
            let mut all: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            all.sort();
            all == wanted
        });
    };
    for user in [&acme, &globex] {
        told(user, "jsonpath={.subsets[*].addresses[*].ip}", &["endpoints", "web"]);
        let slices = ["endpointslices", "-l", "kubernetes.io/service-name=web"];
        told(user, "jsonpath={.items[*].endpoints[*].addresses[*]}", &slices);
    }
    let slices = get(&acme, &["endpointslices", "-l", "kubernetes.io/service-name=web"]);
    let slice = &slices["items"][0];
    assert_eq!((&slice["ports"][0]["port"], &slice["addressType"]), (&json!(8080), &json!("IPv4")));
    assert_eq!(slice["endpoints"][0]["targetRef"]["kind"], "Pod");

    acme.ok(&["scale", "deployment", "web", "--replicas=1"]);
    acme.until(&["get", "pods", "-l", "app=web", "-o", "name"], |it| it.lines().count() == 1);
    told(&acme, "jsonpath={.subsets[*].addresses[*].ip}", &["endpoints", "web"]);
    acme.ok(&["delete", "service", "web"]);
    let left = ["get", "endpoints,endpointslices", "-l", "app=web", "-o", "name"];
    acme.until(&left, str::is_empty);
    assert_eq!(addresses(&globex).len(), 2);
    told(&globex, "jsonpath={.subsets[*].addresses[*].ip}", &["endpoints", "web"]);
}
