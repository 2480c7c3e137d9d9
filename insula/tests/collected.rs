//! What becomes of objects that others own, of what quotas count and of networks that services
//! have addresses of, with stock kubectl: for what tenants define themselves as for what is built
//! in. No node needed.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::thread;

use harness::{Cloud, Kubectl, create, texts};

/// A definition of widgets in one version.
fn widgets(version: &str, scope: &str) -> String {
    format!(
        r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: widgets.example.com}}
spec:
  group: example.com
  scope: {scope}
  names: {{plural: widgets, singular: widget, kind: Widget}}
  versions:
  - name: {version}
    served: true
    storage: true
    schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}
"#
    )
}

fn define(kubectl: &Kubectl, version: &str, scope: &str) {
    create(kubectl, &widgets(version, scope));
    let definition = "crd/widgets.example.com";
    kubectl.ok(&["wait", "--for=condition=Established", "--timeout=30s", definition]);
}

/// A widget, or a config map, that is owned by a widget of which `(name, uid)` are given.
fn object(kind: &str, name: &str, version: &str, owner: Option<(&str, &str)>) -> String {
    let api_version = if kind == "Widget" { format!("example.com/{version}") } else { "v1".into() };
    let owners = owner.map_or_else(String::new, |(name, uid)| {
        format!(
            r#", ownerReferences: [{{apiVersion: example.com/{version}, kind: Widget, name: {name}, uid: {uid}, blockOwnerDeletion: true}}]"#
        )
    });
    format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: {name}{owners}}}\n")
}

fn uid(kubectl: &Kubectl, name: &str) -> String {
    kubectl.ok(&["get", "widget", name, "-o", "jsonpath={.metadata.uid}"])
}

/// `top` owns `middle`, both widgets, and `middle` owns the config map `bottom`.
fn family(kubectl: &Kubectl, version: &str) {
    create(kubectl, &object("Widget", "top", version, None));
    let top = uid(kubectl, "top");
    create(kubectl, &object("Widget", "middle", version, Some(("top", &top))));
    let middle = uid(kubectl, "middle");
    create(kubectl, &object("ConfigMap", "bottom", version, Some(("middle", &middle))));
}

const NAMES: [&str; 5] = ["get", "widgets,configmaps", "-o", "name", "--ignore-not-found"];
const ROOT: &str = "configmap/kube-root-ca.crt";

/// Until nothing of a family is left.
fn until_gone(kubectl: &Kubectl) {
    kubectl.until(&NAMES, |it| it.trim() == ROOT);
}

#[test]
fn custom_resources_own_and_are_owned() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    // The same name means another thing to each.
    define(&acme, "v1", "Namespaced");
    define(&globex, "v2", "Cluster");
    create(&globex, &object("Widget", "top", "v2", None));
    for kubectl in [&acme, &globex] {
        kubectl.until(&["get", "configmaps", "-o", "name"], |it| it.trim() == ROOT);
    }

    family(&acme, "v1");
    acme.ok(&["delete", "widget", "top", "--cascade=foreground", "--timeout=60s"]);
    // It went last.
    assert_eq!(acme.ok(&NAMES).trim(), ROOT);

    family(&acme, "v1");
    acme.ok(&["delete", "widget", "top", "--cascade=background"]);
    until_gone(&acme);

    family(&acme, "v1");
    acme.ok(&["delete", "widget", "top", "--cascade=orphan", "--timeout=60s"]);
    let owners = ["get", "widget", "middle", "-o", "jsonpath={.metadata.ownerReferences}"];
    assert_eq!(acme.ok(&owners), "");
    acme.ok(&["get", "configmap", "bottom"]);

    // Of a cluster, and in another version.
    let top = uid(&globex, "top");
    create(&globex, &object("ConfigMap", "bottom", "v2", Some(("top", &top))));
    globex.ok(&["delete", "widget", "top", "--cascade=foreground", "--timeout=60s"]);
    until_gone(&globex);

    // What is defined later is followed as well.
    globex.ok(&["delete", "crd", "widgets.example.com", "--timeout=60s"]);
    define(&globex, "v3", "Namespaced");
    family(&globex, "v3");
    globex.ok(&["delete", "widget", "top", "--cascade=foreground", "--timeout=60s"]);
    until_gone(&globex);

    // And goes with its namespace.
    acme.ok(&["create", "namespace", "short"]);
    let inside = object("Widget", "inside", "v1", None);
    let out = acme.feed(&["create", "-n", "short", "-f", "-"], &inside);
    assert!(out.status.success(), "{:?}", texts(&out));
    acme.ok(&["delete", "namespace", "short", "--timeout=60s"]);
    let left = acme.ok(&["get", "widgets", "--all-namespaces", "-o", "name"]);
    assert_eq!(left.trim(), "widget.example.com/middle");
}

#[test]
fn claims_go_when_their_pods_end() {
    let cloud = Cloud::start(false, &["--without", "scheduler"]);
    let (acme, _globex) = cloud.tenants();
    let objects = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: c}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: nowhere, containers: [{name: c, image: i}], volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]}\n";
    let out = acme.feed(&["create", "-f", "-"], objects);
    assert!(out.status.success(), "{:?}", texts(&out));
    acme.ok(&["delete", "pvc", "c", "--wait=false"]);
    // Another claim that nobody uses goes before it.
    let other = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: other}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n";
    assert!(acme.feed(&["create", "-f", "-"], other).status.success());
    acme.ok(&["delete", "pvc", "other", "--timeout=60s"]);
    assert_ne!(acme.ok(&["get", "pvc", "c", "-o", "jsonpath={.metadata.deletionTimestamp}"]), "");
    let ended = r#"{"status":{"phase":"Succeeded"}}"#;
    acme.ok(&["patch", "pod", "p", "--subresource=status", "--type=merge", "-p", ended]);
    acme.ok(&["wait", "--for=delete", "pvc/c", "--timeout=60s"]);
}

/// Many at once take what there is, and what comes to nothing costs nothing.
#[test]
fn quotas_are_taken_by_many_at_once() {
    // Nobody counts again: what requests do to the quota is all that is done to it.
    let cloud = Cloud::start(false, &["--without", "controllers,scheduler"]);
    let acme = cloud.admin();
    let quota = r#"{"apiVersion":"v1","kind":"ResourceQuota","metadata":{"name":"q"},"spec":{"hard":{"configmaps":"30"}}}"#;
    let out = acme.feed(&["create", "-f", "-"], quota);
    assert!(out.status.success(), "{:?}", texts(&out));
    let counted = r#"{"status":{"hard":{"configmaps":"30"},"used":{"configmaps":"0"}}}"#;
    acme.ok(&["patch", "quota", "q", "--subresource=status", "--type=merge", "-p", counted]);
    let used = || acme.ok(&["get", "quota", "q", "-o", "jsonpath={.status.used.configmaps}"]);
    let create = |name: &str| {
        let map =
            format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}}}}"#);
        let path = "/api/v1/namespaces/default/configmaps";
        acme.curl(path, &["-X", "POST", "-H", "content-type: application/json", "-d", &map])
    };
    let codes: Vec<u16> = thread::scope(|scope| {
        let all: Vec<_> =
            (0..40).map(|n| scope.spawn(move || create(&format!("m{n}")).0)).collect();
        all.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let count = |code: u16| codes.iter().filter(|it| **it == code).count();
    assert_eq!((count(201), count(403)), (30, 10), "{codes:?}");
    assert_eq!(used(), "30");
    acme.ok(&[
        "patch",
        "quota",
        "q",
        "--type=merge",
        "-p",
        r#"{"spec":{"hard":{"configmaps":"40"}}}"#,
    ]);
    let more = r#"{"status":{"hard":{"configmaps":"40"}}}"#;
    acme.ok(&["patch", "quota", "q", "--subresource=status", "--type=merge", "-p", more]);
    let (taken, _) = codes.iter().enumerate().find(|(_, code)| **code == 201).unwrap();
    assert_eq!(create(&format!("m{taken}")).0, 409, "its name is taken");
    assert_eq!(used(), "30", "it was given back");
}

/// What a quota says is used.
fn until_used(kubectl: &Kubectl, name: &str, wanted: &str) {
    let path = format!("jsonpath={{.status.used.{}}}", name.replace('.', "\\."));
    kubectl.until(&["-n", "counted", "get", "quota", "q", "-o", &path], |it| it == wanted);
}

#[test]
fn quotas_count_what_there_is() {
    let cloud = Cloud::without_node();
    let (acme, _globex) = cloud.tenants();
    define(&acme, "v1", "Namespaced");
    acme.ok(&["create", "namespace", "counted"]);
    let run = |args: &[&str]| acme.ok(&[&["-n", "counted"], args].concat());
    let feed = |manifest: &str| acme.feed(&["-n", "counted", "create", "-f", "-"], manifest);
    run(&["wait", "--for=create", "--timeout=30s", ROOT]);
    run(&["create", "configmap", "before"]);
    let hard =
        "configmaps=3,count/widgets.example.com=1,pods=2,requests.cpu=1,services.nodeports=1";
    run(&["create", "quota", "q", &format!("--hard={hard}")]);

    // What was there before is found.
    until_used(&acme, "configmaps", "2");
    for name in ["count/widgets.example.com", "pods", "requests.cpu", "services.nodeports"] {
        until_used(&acme, name, "0");
    }
    assert_eq!(run(&["get", "quota", "q", "-o", "jsonpath={.status.hard.pods}"]), "2");

    // What is over is refused, until something goes.
    assert!(feed(&object("Widget", "one", "v1", None)).status.success());
    until_used(&acme, "count/widgets.example.com", "1");
    let refused = feed(&object("Widget", "two", "v1", None));
    let said = texts(&refused).1;
    assert!(said.contains("exceeded quota: q, requested: count/widgets.example.com=1"), "{said}");
    run(&["delete", "widget", "one"]);
    until_used(&acme, "count/widgets.example.com", "0");
    assert!(feed(&object("Widget", "two", "v1", None)).status.success());

    run(&["create", "configmap", "last"]);
    run(&["delete", "configmap", "before", "last"]);
    until_used(&acme, "configmaps", "1");

    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i, resources: {requests: {cpu: 600m}}}]}\n";
    assert!(feed(pod).status.success());
    until_used(&acme, "requests.cpu", "600m");
    // What has ended uses nothing, though it is there.
    let ended = r#"{"status":{"phase":"Succeeded"}}"#;
    run(&["patch", "pod", "p", "--subresource=status", "--type=merge", "-p", ended]);
    until_used(&acme, "requests.cpu", "0");
    run(&["get", "pod", "p"]);

    let service = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"type":"NodePort","ports":[{"port":80}]}}"#;
    assert!(feed(service).status.success());
    until_used(&acme, "services.nodeports", "1");
    run(&["patch", "service", "s", "-p", r#"{"spec":{"type":"ClusterIP"}}"#]);
    until_used(&acme, "services.nodeports", "0");

    // What the quota asks for changes.
    let more = r#"{"spec":{"hard":{"secrets":"5"}}}"#;
    run(&["patch", "quota", "q", "--type=merge", "-p", more]);
    until_used(&acme, "secrets", "0");
}

#[test]
fn tenants_watch_what_they_see_of_nodes() {
    let cloud = Cloud::without_node();
    let (acme, _globex) = cloud.tenants();
    let node = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","annotations":{"a":"hidden"},"labels":{"zone":"z"}},"spec":{"providerID":"hidden","unschedulable":true}}"#;
    let out = cloud.admin().feed(&["create", "-f", "-"], node);
    assert!(out.status.success(), "{:?}", texts(&out));
    let seen = acme.ok(&["get", "--raw", "/api/v1/nodes?watch=true&timeoutSeconds=1"]);
    assert!(seen.contains(r#""type":"ADDED""#) && seen.contains(r#""zone":"z""#), "{seen}");
    assert!(seen.contains(r#""unschedulable":true"#) && !seen.contains("hidden"), "{seen}");
    // The form that others share is made of the whole.
    let admin = cloud.admin();
    let whole = admin.ok(&["get", "--raw", "/api/v1/nodes?watch=true&timeoutSeconds=1"]);
    assert!(whole.contains("hidden"), "{whole}");
    let seen = acme.ok(&["get", "--raw", "/api/v1/nodes?watch=true&timeoutSeconds=1"]);
    assert!(!seen.contains("hidden"), "{seen}");
    let said = acme.fails(&["delete", "node", "n1"]);
    assert!(said.contains("forbidden"), "{said}");
}

#[test]
fn services_have_addresses_of_networks_that_stay_meanwhile() {
    let cloud = Cloud::without_node();
    let (acme, _globex) = cloud.tenants();
    let network = |name: &str, cidr: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: {name}}}\nspec: {{cidrs: [{cidr}]}}\n"
        )
    };
    let wait = |name: &str, ready: &str| {
        let until = format!("--for=condition=Ready={ready}");
        acme.ok(&["wait", &until, "--timeout=30s", &format!("servicecidr/{name}")]);
    };
    let service = |name: &str, address: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {address}, ports: [{{port: 80}}]}}\n"
        )
    };
    let refused = acme.feed(&["create", "-f", "-"], &service("early", "10.66.0.7"));
    assert!(!refused.status.success());
    create(&acme, &network("more", "10.66.0.0/24"));
    wait("more", "True");
    create(&acme, &service("own", "10.66.0.7"));

    acme.ok(&["delete", "servicecidr", "more", "--wait=false"]);
    wait("more", "False");
    let refused = acme.feed(&["create", "-f", "-"], &service("late", "10.66.0.8"));
    assert!(!refused.status.success());
    // Another with room for the address takes it over.
    create(&acme, &network("wide", "10.66.0.0/16"));
    acme.ok(&["wait", "--for=delete", "--timeout=60s", "servicecidr/more"]);
    acme.ok(&["delete", "servicecidr", "wide", "--wait=false"]);
    wait("wide", "False");
    acme.ok(&["delete", "service", "own"]);
    acme.ok(&["wait", "--for=delete", "--timeout=60s", "servicecidr/wide"]);
}
