//! What nodes and pods use, as stock kubectl asks for it: told on node feeds, by real agents too.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::time::{Duration, Instant};

use harness::{Cloud, Kubectl, create, feed::Feed, servers::Servers, texts};
use insula_hollow::{HollowNodes, Mode, Options, Target};
use serde_json::{Value, json};

/// Makes a pod that is never run; returns its uid.
fn pod(kubectl: &Kubectl, name: &str, node: &str) -> String {
    let it = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "i"}]},
    });
    create(kubectl, &it);
    kubectl.ok(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"])
}

/// A cloud without nodes, whose scheduler has these profiles, and two nodes, hollow.
async fn with_profiles(profiles: &str) -> (Cloud, HollowNodes) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("scheduler.yaml");
    let head = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";
    std::fs::write(&config, format!("{head}profiles: {profiles}\n")).unwrap();
    // It is read before it is ready.
    let cloud = Cloud::start(false, &["--scheduler-config", config.to_str().unwrap()]);
    let admin = cloud.admin();
    let options = Options { mode: Mode::Feed, ..Options::new(2) };
    let target = Target::Kubeconfig(admin.kubeconfig().to_owned());
    let hollow = HollowNodes::start(options, target).await.unwrap();
    admin.until(&["get", "nodes", "-o", "name"], |it| it.lines().count() == 2);
    (cloud, hollow)
}

/// What an agent says of its node: a core, a gibibyte, and a quarter of both for each pod.
fn usage(node: &str, uids: &[&str]) -> Value {
    let used = json!({"cpu": 250_000_000, "memory": 256 << 20});
    let pods: Vec<_> = uids.iter().map(|uid| json!([uid, [["main", used]]])).collect();
    let node = json!({"name": node, "cpu": 1_000_000_000, "memory": 1 << 30, "pods": pods});
    json!({"usage": {"window": 15_000, "nodes": [node]}})
}

fn node(admin: &Kubectl, name: &str) {
    create(admin, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
    let room = r#"{"status":{"allocatable":{"cpu":"4","memory":"4Gi"}}}"#;
    admin.ok(&["patch", "node", name, "--subresource=status", "--type=merge", "-p", room]);
}

async fn feed(user: &Kubectl, node: &str) -> Feed {
    let open = json!({"open": {"nodes": [node]}});
    let mut feed = Feed::open(user.kubeconfig(), open).await.unwrap();
    feed.told(1).await;
    assert_eq!(feed.beat().await["wants"], json!(["usage"]));
    feed
}

/// Words of a line of a table.
fn line<'a>(table: &'a str, first: &str) -> Vec<&'a str> {
    let words = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.into_iter().find(|it| it.first() == Some(&first)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_see_what_their_own_pods_use() {
    let cloud = Cloud::start(false, &["--partitions", "2"]);
    let (admin, (acme, globex)) = (cloud.admin(), cloud.tenants());
    for name in ["n1", "n2"] {
        node(&admin, name);
    }
    let a = pod(&acme, "a", "n1");
    let b = pod(&acme, "b", "n1");
    let g = pod(&globex, "g", "n1");
    let h = pod(&globex, "h", "n2");
    let agent = cloud.user("system", "system:node:n1", "system:nodes");
    let mut feed = feed(&agent, "n1").await;
    // Of pods on other nodes, and of other nodes, it may say what it likes.
    feed.say(&usage("n1", &[&a, &g, &h, "nonsense"])).await;
    feed.say(&usage("n2", &[&h])).await;

    let top = acme.until(&["top", "pod"], |it| !line(it, "a").is_empty());
    assert_eq!(line(&top, "a"), ["a", "250m", "256Mi"]);
    assert_eq!(line(&top, "b"), Vec::<&str>::new(), "{b} is not measured");
    let top = globex.ok(&["top", "pod", "-A", "--containers"]);
    assert_eq!(line(&top, "default"), ["default", "g", "main", "250m", "256Mi"]);
    assert!(!top.contains(" h ") && !top.contains(" a "), "{top}");
    let none = acme.run(&["top", "pod", "-l", "app=b"]);
    assert!(!texts(&none).0.contains("256Mi"), "{:?}", texts(&none));
    assert_eq!(line(&acme.ok(&["top", "pod", "-l", "app=a"]), "a")[1], "250m");
    assert_eq!(line(&acme.ok(&["top", "pod", "a"]), "a")[1], "250m");
    let missing = acme.run(&["top", "pod", "b"]);
    assert!(texts(&missing).1.contains("NotFound"), "{:?}", texts(&missing));
    let path = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/a";
    let raw: Value = serde_json::from_str(&acme.ok(&["get", "--raw", path])).unwrap();
    assert_eq!((&raw["kind"], &raw["window"]), (&json!("PodMetrics"), &json!("15.000s")));
    assert_eq!(raw["containers"][0]["usage"], json!({"cpu": "250000000n", "memory": "262144Ki"}));

    // What whole nodes use is the platform's business.
    let top = admin.ok(&["top", "node"]);
    assert_eq!(line(&top, "n1"), ["n1", "1000m", "25%", "1024Mi", "25%"]);
    assert!(line(&top, "n2").iter().all(|it| !it.contains("Mi")), "{top}");
    let refused = acme.run(&["top", "node"]);
    assert!(texts(&refused).1.contains("Forbidden"), "{:?}", texts(&refused));
}

const VERSION: &str = "metrics.k8s.io/v1beta1";

/// The paths of the group that the documents of OpenAPI have, v3 and v2, and whether its v3
/// document is one of ours.
fn documented(user: &Kubectl) -> (bool, bool, bool) {
    let get =
        |path: &str| serde_json::from_str::<Value>(&user.ok(&["get", "--raw", path])).unwrap();
    let path = format!("apis/{VERSION}");
    let index = get("/openapi/v3");
    let v2 = get("/openapi/v2");
    let pods = format!("/{path}/namespaces/{{namespace}}/pods");
    let in_v2 = v2["paths"].get(&pods).is_some();
    assert_eq!(in_v2, v2["definitions"].get(PODS).is_some(), "paths go with definitions");
    let out = user.run(&["get", "--raw", &format!("/openapi/v3/{path}")]);
    let ours = out.status.success() && texts(&out).0.contains(PODS);
    (index["paths"].get(&path).is_some(), in_v2, ours)
}

const PODS: &str = "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics";

/// What clients ask a server of metrics for before they read any.
#[test]
fn the_group_is_described_until_a_tenant_has_its_own() {
    let cloud = Cloud::start(false, &[]);
    let (admin, (acme, globex)) = (cloud.admin(), cloud.tenants());
    let all = (true, true, true);
    let both = "nodes.metrics.k8s.io\npods.metrics.k8s.io\n";
    let own = "pods.metrics.k8s.io\n";
    for (user, listed) in [(&admin, both), (&acme, own), (&globex, own)] {
        assert_eq!(documented(user), all);
        let of_group = ["api-resources", "--api-group=metrics.k8s.io", "-o", "name"];
        assert_eq!(user.ok(&of_group), listed);
    }
    let explained = acme.ok(&["explain", "pods.containers", "--api-version", VERSION]);
    for expected in ["KIND:       PodMetrics", "<[]ContainerMetrics>", "usage", "cpu on average"] {
        assert!(explained.contains(expected), "{expected}: {explained}");
    }
    let explained = admin.ok(&["explain", "nodes", "--api-version", VERSION]);
    assert!(explained.contains("What a node uses."), "{explained}");

    // Somebody else has it, who is not there.
    let service = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1", "insecureSkipTLSVerify": true,
            "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"namespace": "default", "name": "metrics-server"},
        },
    });
    create(&acme, &service);
    assert_eq!(documented(&acme), (false, false, false));
    // A definition says what it says.
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "gauges.metrics.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
        },
        "spec": {
            "group": "metrics.k8s.io", "scope": "Namespaced",
            "names": {"plural": "gauges", "kind": "Gauge"},
            "versions": [{
                "name": "v1beta1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}},
            }],
        },
    });
    create(&globex, &definition);
    globex.ok(&["wait", "--for=condition=Established", "crd/gauges.metrics.k8s.io"]);
    assert_eq!(documented(&globex), (true, false, false));
    let explained = globex.ok(&["explain", "gauges", "--api-version", VERSION]);
    assert!(explained.contains("KIND:       Gauge"), "{explained}");
    assert_eq!(documented(&admin), all, "theirs is theirs alone");

    acme.ok(&["delete", "apiservice", "v1beta1.metrics.k8s.io"]);
    globex.ok(&["delete", "crd", "gauges.metrics.k8s.io"]);
    for user in [&acme, &globex] {
        assert_eq!(documented(user), all, "ours is back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_server_tells_what_another_has_heard() {
    let mut servers = Servers::new();
    servers.add("s1", "all", &[]);
    servers.add("s2", "none", &[]);
    servers.controllers("s1");
    servers.tenants("s1");
    let admin = servers.admin("s1");
    node(&admin, "n1");
    let acme = servers.user("s1", "acme", "dev", "acme-admins");
    acme.until(&["get", "serviceaccount", "default"], |_| true);
    let uid = pod(&acme, "a", "n1");
    // Whoever has no partition has feeds all the same.
    let agent = servers.user("s2", "system", "system:node:n1", "system:nodes");
    let mut feed = feed(&agent, "n1").await;
    feed.say(&usage("n1", &[&uid])).await;
    for server in ["s1", "s2"] {
        let acme = servers.user(server, "acme", "dev", "acme-admins");
        let top = acme.until(&["top", "pod"], |it| !line(it, "a").is_empty());
        assert_eq!(line(&top, "a"), ["a", "250m", "256Mi"], "by {server}");
        let top = servers.admin(server).ok(&["top", "node"]);
        assert_eq!(line(&top, "n1")[1], "1000m", "by {server}");
    }
}

/// Two nodes, of which the one has pods that ask for much and use nothing, and the other one that
/// asks for nothing and uses most of it: who goes by what is used prefers the first.
#[tokio::test(flavor = "multi_thread")]
async fn pods_go_where_less_is_used() {
    let profiles = "[{plugins: {score: {enabled: [{name: LoadAware, weight: 100}]}}}]";
    let (cloud, hollow) = with_profiles(profiles).await;
    let (admin, (acme, globex)) = (cloud.admin(), cloud.tenants());
    let on = |name: &str, node: &str, asks: Value, uses: Value| {
        let container = json!({"name": "c", "image": "i", "resources": {"requests": asks}});
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "annotations": uses},
            "spec": {"nodeName": node, "containers": [container]},
        })
    };
    let idle = json!({"hollow.insula.io/cpu": "0", "hollow.insula.io/memory": "0"});
    create(&acme, &on("idle", "hollow-0", json!({"cpu": "3", "memory": "24Gi"}), idle));
    let busy = json!({"hollow.insula.io/cpu": "3", "hollow.insula.io/memory": "24Gi"});
    create(&acme, &on("busy", "hollow-1", json!({}), busy));
    let top = admin.until(&["top", "node"], |it| line(it, "hollow-1").get(1) == Some(&"3000m"));
    assert_eq!(line(&top, "hollow-0"), ["hollow-0", "0m", "0%", "0Mi", "0%"], "{top}");
    assert_eq!(line(&acme.ok(&["top", "pod"]), "busy"), ["busy", "3000m", "24576Mi"]);

    // The scheduler looks every quarter of a minute.
    let until = Instant::now() + Duration::from_secs(90);
    for n in 0.. {
        let name = format!("p{n}");
        let pod = on(&name, "", json!({"cpu": "10m"}), json!({}));
        create(&globex, &pod);
        let node = ["get", "pod", &name, "-o", "jsonpath={.spec.nodeName}"];
        if globex.until(&node, |it| !it.is_empty()) == "hollow-0" {
            break;
        }
        assert!(Instant::now() < until, "pods go to the busy node");
        globex.ok(&["delete", "pod", &name, "--now"]);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    hollow.stop().await;
}

/// A node that uses nearly all it has, and one that uses nothing: who would have to leave is told so,
/// for as long as it is so. The scheduler itself ends nobody.
#[tokio::test(flavor = "multi_thread")]
async fn pods_are_told_that_they_would_be_better_off_elsewhere() {
    let profiles = "[{plugins: {multiPoint: {enabled: [{name: DeschedulingHints}]}}, \
                    pluginConfig: [{name: DeschedulingHints, args: {intervalSeconds: 2}}]}]";
    let (cloud, hollow) = with_profiles(profiles).await;
    let (acme, globex) = cloud.tenants();
    // Nobody makes these pods anew in truth, but that is what they say.
    let pod = |name: &str, uses: &str, owners: Value| {
        let requests = json!({"requests": {"cpu": "500m"}});
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "ownerReferences": owners,
                "annotations": {"hollow.insula.io/cpu": uses, "hollow.insula.io/memory": "0"},
            },
            "spec": {
                "nodeName": "hollow-1",
                "containers": [{"name": "c", "image": "i", "resources": requests}],
            },
        })
    };
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"},
    });
    create(&acme, &config_map);
    let uid = acme.ok(&["get", "configmap", "owner", "-o", "jsonpath={.metadata.uid}"]);
    let owners = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "controller": true,
    }]);
    create(&acme, &pod("web", "500m", owners));
    create(&globex, &pod("hog", "3400m", json!([])));
    let said = |name: &'static str| {
        let of_hint = "insula.io/DeschedulingHint";
        let path = format!(
            "jsonpath={{range .status.conditions[?(@.type==\"{of_hint}\")]}}{{.status}} {{.reason}} \
             {{.message}}{{end}}"
        );
        ["get".to_owned(), "pod".to_owned(), name.to_owned(), "-o".to_owned(), path]
    };
    let web = said("web");
    let web: Vec<&str> = web.iter().map(String::as_str).collect();
    let hint = acme.until(&web, |it| it.starts_with("True"));
    assert_eq!(
        hint,
        "True NodeOverutilized node hollow-1 uses 97% of its cpu; node hollow-0 has room for it"
    );
    let events = ["get", "events", "-o", "jsonpath={.items[*].reason}"];
    acme.until(&events, |it| it.contains("DeschedulingHint"));
    // Nobody would make it anew.
    let hog = said("hog");
    let hog: Vec<&str> = hog.iter().map(String::as_str).collect();
    assert_eq!(globex.ok(&hog), "");

    globex.ok(&["delete", "pod", "hog", "--now"]);
    let hint = acme.until(&web, |it| !it.starts_with("True"));
    assert_eq!(hint, "False WellPlaced ");
    hollow.stop().await;
}

/// What keeps a fifth of a core busy.
fn busy() -> Value {
    json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [{
            "name": "main", "image": "localhost/insula/busybox:1",
            "command": ["sh", "-c", "while true; do :; done"],
            "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "200m"}},
        }],
    })
}

#[test]
fn agents_measure_their_pods() {
    let cloud = Cloud::with_node();
    let (acme, globex) = cloud.tenants();
    let it = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "busy"}, "spec": busy(),
    });
    create(&acme, &it);
    // Nobody brings a server of metrics: an autoscaler finds what it goes by all the same.
    let scaled = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": busy()},
        },
    });
    create(&globex, &scaled);
    globex.ok(&["autoscale", "deployment", "web", "--cpu-percent=40", "--min=1", "--max=2"]);
    let number =
        |text: &str| -> u64 { text.trim_end_matches(char::is_alphabetic).parse().unwrap() };
    let is_busy = |it: &str| line(it, "busy").get(1).is_some_and(|cpu| 20 <= number(cpu));
    acme.until(&["top", "pod"], is_busy);
    let top = cloud.admin().ok(&["top", "node"]);
    let of_node = line(&top, top.lines().nth(1).unwrap().split_whitespace().next().unwrap());
    assert!(20 <= number(of_node[1]) && 0 < number(of_node[3]), "{top}");
    globex.until(&["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"], |it| it == "2");
    let events = ["get", "events", "-o", "jsonpath={.items[*].reason}"];
    globex.until(&events, |it| it.contains("SuccessfulRescale"));
}
