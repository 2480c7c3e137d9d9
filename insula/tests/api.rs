//! The API through stock kubectl: objects, patches, tables, watches, errors. No node needed.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use harness::{Cloud, Kubectl, texts};
use serde_json::Value;

#[test]
fn objects_of_many_kinds_live_their_life() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();

    // Generators send protobuf, and have no way back to JSON.
    acme.ok(&["create", "configmap", "c", "--from-literal=a=1"]);
    acme.ok(&["create", "secret", "generic", "s", "--from-literal=password=x"]);
    acme.ok(&["create", "deployment", "web", "--image=localhost/insula/busybox:1", "--replicas=3"]);
    acme.ok(&["create", "job", "once", "--image=localhost/insula/busybox:1"]);
    acme.ok(&["create", "cronjob", "often", "--image=x:1", "--schedule=* * * * *"]);
    acme.ok(&["create", "service", "clusterip", "svc", "--tcp=80:8080"]);
    acme.ok(&["create", "role", "r", "--verb=get", "--resource=pods"]);
    acme.ok(&["create", "rolebinding", "rb", "--role=r", "--user=someone"]);
    acme.ok(&["create", "quota", "q", "--hard=pods=10"]);
    acme.ok(&["create", "poddisruptionbudget", "pdb", "--selector=app=web", "--min-available=1"]);
    acme.ok(&["create", "priorityclass", "high", "--value=1000"]);
    acme.ok(&["create", "ingress", "i", "--rule=a.example/=svc:80"]);

    assert_eq!(acme.ok(&["get", "configmap", "c", "-o", "jsonpath={.data.a}"]), "1");
    assert_eq!(acme.ok(&["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"]), "3");
    let table = acme.ok(&["get", "deployment", "web", "-o", "wide"]);
    assert!(table.contains("SELECTOR") && table.contains("app=web"), "{table}");

    // Each way of changing an object.
    acme.ok(&["scale", "deployment", "web", "--replicas=2"]);
    acme.ok(&["set", "image", "deployment/web", "busybox=x:2"]);
    acme.ok(&["label", "deployment", "web", "tier=front"]);
    acme.ok(&[
        "patch",
        "deployment",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/metadata/annotations","value":{"x":"y"}}]"#,
    ]);
    acme.ok(&[
        "patch",
        "deployment",
        "web",
        "--type=merge",
        "-p",
        r#"{"spec":{"minReadySeconds":1}}"#,
    ]);
    acme.ok(&["patch", "deployment", "web", "-p", r#"{"spec":{"template":{"spec":{"containers":[{"name":"busybox","env":[{"name":"A","value":"b"}]}]}}}}"#]);
    let fields = "jsonpath={.spec.replicas} {.spec.minReadySeconds} {.metadata.labels.tier} {.metadata.annotations.x} {.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[0].name}";
    assert_eq!(acme.ok(&["get", "deployment", "web", "-o", fields]), "2 1 front y x:2 A");

    // Apply: create, no change, change.
    let manifest = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: applied\ndata:\n  k: {value}\n"
        )
    };
    for (value, expected) in [("a", "created"), ("a", "unchanged"), ("b", "configured")] {
        let (stdout, stderr) = texts(&acme.feed(&["apply", "-f", "-"], &manifest(value)));
        assert!(stdout.contains(expected), "{stdout}{stderr}");
    }

    acme.ok(&["delete", "configmap", "c"]);
    let gone = acme.fails(&["get", "configmap", "c"]);
    assert_eq!(gone.trim(), r#"Error from server (NotFound): configmaps "c" not found"#);
    let again = acme.fails(&["create", "secret", "generic", "s"]);
    assert!(again.contains(r#"secrets "s" already exists"#), "{again}");
}

#[test]
fn a_no_op_changes_nothing_and_a_stale_write_is_refused() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "configmap", "c", "--from-literal=a=1"]);
    let revision =
        || acme.ok(&["get", "configmap", "c", "-o", "jsonpath={.metadata.resourceVersion}"]);
    let first = revision();
    acme.ok(&["patch", "configmap", "c", "--type=merge", "-p", r#"{"data":{"a":"1"}}"#]);
    assert_eq!(revision(), first, "a patch that changes nothing writes nothing");

    let stale = acme.ok(&["get", "configmap", "c", "-o", "yaml"]);
    acme.ok(&["patch", "configmap", "c", "--type=merge", "-p", r#"{"data":{"a":"2"}}"#]);
    let out = acme.feed(&["replace", "-f", "-"], &stale.replace("a: \"1\"", "a: \"3\""));
    let (_, stderr) = texts(&out);
    assert!(stderr.contains("the object has been modified"), "{stderr}");
    assert_eq!(acme.ok(&["get", "configmap", "c", "-o", "jsonpath={.data.a}"]), "2");
}

#[test]
fn lists_come_in_pages_and_watches_follow() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let many: String = (0..25)
        .map(|n| format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{n:02}, labels: {{odd: \"{}\"}}}}\n", n % 2))
        .collect();
    let (_, stderr) = texts(&acme.feed(&["create", "-f", "-"], &many));
    assert_eq!(stderr, "");
    let names = acme.ok(&["get", "configmap", "--chunk-size=4", "-o", "name", "-l", "odd"]);
    assert_eq!(names.lines().count(), 25);
    let odd = acme.ok(&["get", "configmap", "-l", "odd=1", "-o", "name"]);
    assert_eq!(odd.lines().count(), 12);
    let one = acme.ok(&["get", "configmap", "--field-selector=metadata.name=c07", "-o", "name"]);
    assert_eq!(one.trim(), "configmap/c07");

    // A page is a view of one moment, whatever happens meanwhile.
    let tenant = "/tenants/acme/api/v1/namespaces/default/configmaps";
    let page = acme.ok(&["get", "--raw", &format!("{tenant}?limit=10&labelSelector=odd")]);
    acme.ok(&["delete", "configmap", "c20"]);
    let token = page.split(r#""continue":""#).nth(1).unwrap().split('"').next().unwrap();
    let rest = acme.ok(&[
        "get",
        "--raw",
        &format!("{tenant}?limit=100&labelSelector=odd&continue={token}"),
    ]);
    assert!(rest.contains(r#""name":"c20""#), "the deleted one is still in the list");

    // What is deleted of a collection can be a page, too; the answer says where the next begins.
    let page = acme.ok(&["delete", "--raw", &format!("{tenant}?limit=3&labelSelector=odd%3D0")]);
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page["kind"], "ConfigMapList");
    let names = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap().iter();
        items.map(|it| it["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&page), ["c00", "c02", "c04"]);
    let token = page["metadata"]["continue"].as_str().unwrap();
    let next = format!("{tenant}?limit=2&labelSelector=odd%3D0&continue={token}");
    let next: Value = serde_json::from_str(&acme.ok(&["delete", "--raw", &next])).unwrap();
    assert_eq!(names(&next), ["c06", "c08"]);
    let left = acme.ok(&["get", "configmap", "-l", "odd=0", "-o", "name"]);
    assert_eq!(left.lines().count(), 7, "{left}");

    // Watch until the named change has come.
    let mut watch = acme
        .command()
        .args(["get", "configmap", "--watch-only", "-o", "name"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    acme.ok(&["create", "configmap", "watched"]);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "configmap/watched");
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn tenants_do_not_see_each_other() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    // The same names in both, with their own content.
    acme.ok(&["create", "configmap", "same", "--from-literal=of=acme"]);
    globex.ok(&["create", "configmap", "same", "--from-literal=of=globex"]);
    for (user, tenant) in [(&acme, "acme"), (&globex, "globex")] {
        assert_eq!(user.ok(&["get", "configmap", "same", "-o", "jsonpath={.data.of}"]), tenant);
        let all =
            user.ok(&["get", "configmap", "-A", "-o", "jsonpath={.items[*].metadata.tenant}"]);
        assert!(all.split_whitespace().all(|it| it == tenant), "{all}");
    }

    // The three forms of the same path.
    let own = [
        "/api/v1/namespaces/default/configmaps/same",
        "/api/v1/tenants/acme/namespaces/default/configmaps/same",
        "/tenants/acme/api/v1/namespaces/default/configmaps/same",
    ];
    for path in own {
        assert!(acme.ok(&["get", "--raw", path]).contains(r#""of":"acme""#), "{path}");
    }
    // Another's, one that is not there, and everybody's: the same words.
    let mut denials = Vec::new();
    for tenant in ["globex", "nobody", "all", "system"] {
        for path in [
            format!("/api/v1/tenants/{tenant}/namespaces/default/configmaps/same"),
            format!("/tenants/{tenant}/api/v1/namespaces/default/configmaps/same"),
            format!("/tenants/{tenant}/api/v1/configmaps"),
            format!("/tenants/{tenant}/api/v1/configmaps?watch=true"),
            format!("/tenants/{tenant}/version"),
            format!("/tenants/{tenant}/apis/apps/v1"),
            format!("/tenants/{tenant}/openapi/v3"),
        ] {
            let said = acme.fails(&["get", "--raw", &path]);
            assert!(said.contains("Forbidden"), "{path}: {said}");
            if path.ends_with("/configmaps/same") {
                denials.push(said);
            }
        }
    }
    denials.dedup();
    assert_eq!(denials.len(), 1, "a denial tells nothing of what is there: {denials:?}");

    // The platform's own kinds are closed.
    for path in [
        "/apis/insula.io/v1/tenants",
        "/apis/insula.io/v1/tenants/acme",
        "/apis/insula.io/v1/partitions",
    ] {
        let said = acme.fails(&["get", "--raw", path]);
        assert!(said.contains("Forbidden"), "{path}: {said}");
    }
    let shown = acme.ok(&["api-resources", "--api-group=insula.io", "-o", "name"]);
    let own = "authenticationconfigurations.insula.io\ntenantquotas.insula.io\n";
    assert_eq!(shown, own, "what is a tenant's own");
    let tenant = "apiVersion: insula.io/v1\nkind: Tenant\nmetadata: {name: mine}\n";
    assert!(!acme.feed(&["create", "--validate=false", "-f", "-"], tenant).status.success());

    // A body cannot choose a tenant either.
    let stolen = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, tenant: globex}\n";
    let (_, stderr) = texts(&acme.feed(&["create", "-f", "-"], stolen));
    assert!(stderr.contains("tenant of the provided object does not match"), "{stderr}");

    // The platform reads across.
    let all = cloud.admin().ok(&["get", "--raw", "/tenants/all/api/v1/configmaps"]);
    assert!(all.contains(r#""of":"acme""#) && all.contains(r#""of":"globex""#));
}

#[test]
fn a_user_without_rights_gets_none() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let guest = cloud.user("acme", "guest", "nobodies");
    let said = guest.fails(&["get", "pods"]);
    assert!(said.contains(r#"User "guest" cannot list resource "pods""#), "{said}");
    acme.ok(&["create", "clusterrolebinding", "guests", "--clusterrole=view", "--group=nobodies"]);
    guest.until(&["get", "pods"], |_| true);
    assert!(guest.fails(&["create", "configmap", "x"]).contains("is forbidden"));
    assert!(guest.fails(&["get", "secrets"]).contains("Forbidden"));
    // Who may write bindings cannot give more than they have.
    acme.ok(&[
        "create",
        "role",
        "binder",
        "--verb=create",
        "--resource=rolebindings.rbac.authorization.k8s.io",
    ]);
    acme.ok(&["create", "rolebinding", "binder", "--role=binder", "--group=nobodies"]);
    let said = guest.fails(&[
        "create",
        "rolebinding",
        "up",
        "--clusterrole=cluster-admin",
        "--user=guest",
    ]);
    assert!(said.contains("attempting to grant RBAC permissions not currently held"), "{said}");
    assert_eq!(guest.run(&["auth", "can-i", "create", "pods"]).stdout, b"no\n");
    // A superuser's group means nothing in a tenant.
    let fake = cloud.user("acme", "root", "system:masters");
    assert!(fake.fails(&["get", "secrets"]).contains("Forbidden"));
}

#[test]
fn deletion_cascades_and_namespaces_empty_themselves() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "namespace", "n"]);
    acme.ok(&["-n", "n", "create", "configmap", "c"]);
    acme.until(&["-n", "n", "get", "serviceaccount", "default"], |_| true);
    acme.until(&["-n", "n", "get", "configmap", "kube-root-ca.crt"], |_| true);
    acme.ok(&["-n", "n", "create", "deployment", "d", "--image=x:1", "--replicas=2"]);
    acme.until(&["-n", "n", "get", "pods", "-o", "name"], |it| it.lines().count() == 2);
    acme.ok(&["-n", "n", "delete", "deployment", "d"]);
    acme.until(&["-n", "n", "get", "pods,replicasets", "-o", "name"], |it| it.is_empty());
    acme.ok(&["delete", "namespace", "n", "--timeout=60s"]);
    assert!(acme.fails(&["get", "namespace", "n"]).contains("NotFound"));
    is_closed_while_it_goes(&acme);
    let said = acme.fails(&["delete", "namespace", "default"]);
    assert!(said.contains("this namespace may not be deleted"), "{said}");

    // A tenant goes with all it has.
    let admin = cloud.admin();
    admin.ok(&["delete", "tenant", "acme", "--timeout=60s"]);
    let left = admin.ok(&["get", "--raw", "/tenants/all/api/v1/configmaps"]);
    assert!(!left.contains(r#""tenant":"acme""#), "{left}");
    assert!(admin.fails(&["delete", "tenant", "system"]).contains("may not be deleted"));
}

/// What goes takes in nothing, and no events either: it would never be empty.
fn is_closed_while_it_goes(acme: &Kubectl) {
    const HELD: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: held, namespace: going, finalizers: [example.com/held]}
";
    acme.ok(&["create", "namespace", "going"]);
    assert!(acme.feed(&["create", "-f", "-"], HELD).status.success());
    acme.ok(&["delete", "namespace", "going", "--wait=false"]);
    let events = "
apiVersion: v1
kind: Event
metadata: {name: e, namespace: going}
involvedObject: {kind: ConfigMap, name: held, namespace: going}
---
apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: f, namespace: going}
regarding: {kind: ConfigMap, name: held, namespace: going}
eventTime: 2026-01-01T00:00:00.000000Z
reportingController: t
reportingInstance: t
type: Normal
reason: Held
action: Hold
";
    let (made, said) = texts(&acme.feed(&["create", "-f", "-"], events));
    assert_eq!(made, "", "{said}");
    assert_eq!(said.matches("because it is being terminated").count(), 2, "{said}");
    acme.ok(&[
        "-n",
        "going",
        "patch",
        "configmap",
        "held",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/metadata/finalizers"}]"#,
    ]);
    acme.ok(&["wait", "--for=delete", "namespace/going", "--timeout=60s"]);
}

#[test]
fn everything_is_there_after_a_crash() {
    let mut cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    for n in 0..20 {
        acme.ok(&["create", "configmap", &format!("c{n}"), "--from-literal=a=b"]);
    }
    globex.ok(&["create", "secret", "generic", "s", "--from-literal=a=b"]);
    let before = acme.ok(&["get", "configmap", "-o", "yaml"]);
    cloud.kill();
    cloud.again();
    assert_eq!(
        acme.ok(&["get", "configmap", "-o", "yaml"]).lines().count(),
        before.lines().count()
    );
    globex.ok(&["get", "secret", "s"]);
    cloud.terminate();
    cloud.again();
    assert_eq!(acme.ok(&["get", "configmap", "-o", "name"]).lines().count(), 21);
}

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: things, singular: thing, kind: Thing}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
";

/// Clients tell an API that is absent from an object that is: the one is said in plain text. Whoever
/// may not ask learns neither.
#[test]
fn paths_that_mean_nothing() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let guest = cloud.user("acme", "guest", "guests");
    let out = acme.feed(&["create", "-f", "-"], DEFINITION);
    assert!(out.status.success(), "{}", texts(&out).1);
    acme.ok(&["wait", "--for=condition=Established", "crd/things.example.com", "--timeout=30s"]);

    let nowhere = "404 page not found\n";
    let unknown = "the server could not find the requested resource";
    let things = "/apis/example.com/v1/namespaces/default/things";
    for (user, path, told) in [
        (&acme, "/apis/nope.example.com/v1".to_owned(), nowhere),
        (&acme, "/apis/nope.example.com/v1/namespaces/default/nopes/x".to_owned(), nowhere),
        (&acme, "/apis/example.com/v2".to_owned(), nowhere),
        (&acme, things.replace("things", "nopes"), nowhere),
        (&globex, things.to_owned(), nowhere),
        (&acme, format!("{things}/x/nope"), r#"things.example.com \"x\" not found"#),
        (&acme, "/apis/apps/v1/namespaces/default/nopes".to_owned(), unknown),
        (&acme, "/apis/apps/v9".to_owned(), unknown),
    ] {
        let (code, headers, body) = user.curl(&path, &[]);
        assert!(code == 404 && body.contains(told), "{path}: {code} {body}");
        assert_eq!(headers.contains("content-type: text/plain"), told == nowhere, "{path}");
    }
    for path in ["/apis/nope.example.com/v1/nopes", "/apis/apps/v1/namespaces/default/nopes"] {
        let (code, _, body) = guest.curl(path, &[]);
        assert!(code == 403 && body.contains("cannot list resource"), "{path}: {code} {body}");
    }
}
