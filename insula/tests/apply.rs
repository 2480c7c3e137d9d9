//! Field ownership and server-side apply, through stock kubectl. No node needed.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use harness::{Cloud, Kubectl, texts};
use serde_json::{Value, json};

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 1
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: a
        image: x:1
        ports:
        - containerPort: 80
";

/// Applies on the server; what it prints and whether it worked.
fn apply(kubectl: &Kubectl, manifest: &str, args: &[&str]) -> (bool, String) {
    let mut all = vec!["apply", "--server-side", "-f", "-"];
    all.extend(args);
    let out = kubectl.feed(&all, manifest);
    let (stdout, stderr) = texts(&out);
    (out.status.success(), stdout + &stderr)
}

#[track_caller]
fn applied(kubectl: &Kubectl, manifest: &str, args: &[&str]) -> String {
    let (worked, text) = apply(kubectl, manifest, args);
    assert!(worked, "{text}");
    text
}

fn object(kubectl: &Kubectl, args: &[&str]) -> Value {
    let mut all = vec!["get", "-o", "json", "--show-managed-fields"];
    all.extend(args);
    serde_json::from_str(&kubectl.ok(&all)).unwrap()
}

/// The entry of a manager, without its time.
#[track_caller]
fn entry(object: &Value, manager: &str, operation: &str, subresource: &str) -> Value {
    let list = object["metadata"]["managedFields"].as_array().unwrap();
    let found = list.iter().find(|it| {
        it["manager"] == manager
            && it["operation"] == operation
            && it.get("subresource").and_then(Value::as_str).unwrap_or_default() == subresource
    });
    let found = found.unwrap_or_else(|| panic!("no {operation} of {manager}: {list:#?}"));
    assert!(found["time"].is_string() && found["fieldsType"] == "FieldsV1", "{found}");
    found["fieldsV1"].clone()
}

fn managers(object: &Value) -> Vec<String> {
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |it: &Value, field: &str| it[field].as_str().unwrap_or_default().to_owned();
    list.iter()
        .map(|it| {
            format!("{} {} {}", text(it, "manager"), text(it, "operation"), text(it, "subresource"))
                .trim()
                .to_owned()
        })
        .collect()
}

#[test]
fn appliers_own_conflict_share_and_take() {
    let cloud = Cloud::start(false, &["--without", "controllers,scheduler"]);
    let acme = cloud.admin();
    let out = applied(&acme, DEPLOYMENT, &[]);
    assert!(out.contains("deployment.apps/web serverside-applied"), "{out}");
    let web = object(&acme, &["deployment", "web"]);
    assert_eq!(
        entry(&web, "kubectl", "Apply", ""),
        json!({
            "f:metadata": {"f:labels": {"f:app": {}}},
            "f:spec": {
                "f:replicas": {}, "f:selector": {},
                "f:template": {
                    "f:metadata": {"f:labels": {"f:app": {}}},
                    "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {
                        ".": {}, "f:name": {}, "f:image": {},
                        "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                    }}},
                },
            },
        })
    );
    assert_eq!(web["spec"]["template"]["spec"]["restartPolicy"], "Always", "it is defaulted");

    // The same again writes nothing.
    applied(&acme, DEPLOYMENT, &[]);
    let again = object(&acme, &["deployment", "web"]);
    assert_eq!(again["metadata"]["resourceVersion"], web["metadata"]["resourceVersion"]);

    // Somebody else wants another value.
    let other = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {replicas: 3}
";
    let (worked, text) = apply(&acme, other, &["--field-manager=ops"]);
    assert!(!worked);
    assert!(
        text.contains(r#"Apply failed with 1 conflict: conflict with "kubectl": .spec.replicas"#),
        "{text}"
    );
    // A dry run changes nothing; force takes.
    applied(&acme, other, &["--field-manager=ops", "--force-conflicts", "--dry-run=server"]);
    assert_eq!(object(&acme, &["deployment", "web"])["spec"]["replicas"], 1);
    applied(&acme, other, &["--field-manager=ops", "--force-conflicts"]);
    let taken = object(&acme, &["deployment", "web"]);
    assert_eq!(taken["spec"]["replicas"], 3);
    assert_eq!(taken["metadata"]["generation"], 2);
    assert_eq!(entry(&taken, "ops", "Apply", ""), json!({"f:spec": {"f:replicas": {}}}));
    assert!(entry(&taken, "kubectl", "Apply", "")["f:spec"].get("f:replicas").is_none());

    // The first gives it up, and leaves it to the other.
    applied(&acme, &DEPLOYMENT.replace("  replicas: 1\n", ""), &[]);
    assert_eq!(object(&acme, &["deployment", "web"])["spec"]["replicas"], 3);
    // Agreeing shares; nobody's change passes without the other.
    applied(&acme, &DEPLOYMENT.replace("replicas: 1", "replicas: 3"), &[]);
    let (_, text) = apply(&acme, &other.replace('3', "4"), &["--field-manager=ops"]);
    assert!(text.contains(r#"conflict with "kubectl": .spec.replicas"#), "{text}");

    // What is applied no longer goes: a port, then a whole container that came with another.
    let two = DEPLOYMENT.replace("replicas: 1", "replicas: 3").replace(
        "        ports:\n        - containerPort: 80\n",
        "      - name: b\n        image: x:2\n",
    );
    applied(&acme, &two, &[]);
    let web = object(&acme, &["deployment", "web"]);
    let containers = web["spec"]["template"]["spec"]["containers"].as_array().unwrap().clone();
    assert_eq!(containers.len(), 2);
    assert!(containers[0].get("ports").is_none(), "{}", containers[0]);

    // A scale is an update through a part, and takes without asking.
    acme.ok(&["scale", "deployment", "web", "--replicas=5"]);
    let web = object(&acme, &["deployment", "web"]);
    assert_eq!(entry(&web, "kubectl", "Update", "scale"), json!({"f:spec": {"f:replicas": {}}}));
    assert!(!managers(&web).contains(&"ops Apply".to_owned()), "{:?}", managers(&web));
    let (_, text) = apply(&acme, &two, &[]);
    assert!(
        text.contains(
            r#"conflict with "kubectl" with subresource "scale" using apps/v1: .spec.replicas"#
        ),
        "{text}"
    );

    // What is wrong with a configuration is told.
    let twice = DEPLOYMENT.replace("      - name: a\n", "      - name: a\n      - name: a\n");
    let (_, text) = apply(&acme, &twice, &["--validate=ignore"]);
    assert!(
        text.contains(r#".spec.template.spec.containers: duplicate entries for key [name="a"]"#),
        "{text}"
    );
    let (_, text) =
        apply(&acme, &DEPLOYMENT.replace("replicas", "replica"), &["--validate=ignore"]);
    assert!(text.contains(".spec.replica: field not declared in schema"), "{text}");
}

#[test]
fn every_write_has_a_manager() {
    let cloud = Cloud::start(false, &["--without", "controllers,scheduler"]);
    let acme = cloud.admin();
    // A generator sends protobuf.
    acme.ok(&["create", "configmap", "c", "--from-literal=a=1", "--from-literal=b=1"]);
    let it = object(&acme, &["configmap", "c"]);
    assert_eq!(
        entry(&it, "kubectl-create", "Update", ""),
        json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}})
    );
    // Each way of changing it.
    acme.ok(&["label", "configmap", "c", "x=1"]);
    acme.ok(&["label", "configmap", "c", "x=2", "--overwrite", "--field-manager=other"]);
    acme.ok(&["annotate", "configmap", "c", "y=1"]);
    acme.ok(&[
        "patch",
        "configmap",
        "c",
        "--type=merge",
        "-p",
        r#"{"data":{"a":"2"}}"#,
        "--field-manager=merger",
    ]);
    acme.ok(&[
        "patch",
        "configmap",
        "c",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/data/b"}]"#,
    ]);
    let mut edit = acme.command();
    edit.args(["edit", "configmap", "c"]).env("KUBE_EDITOR", "sed -i 's/a: \"2\"/a: \"3\"/'");
    let out = edit.output().unwrap();
    assert!(out.status.success(), "{:?}", texts(&out));
    let it = object(&acme, &["configmap", "c"]);
    assert_eq!(it["data"], json!({"a": "3"}));
    assert_eq!(entry(&it, "kubectl-edit", "Update", ""), json!({"f:data": {"f:a": {}}}));
    assert_eq!(entry(&it, "kubectl-create", "Update", ""), json!({"f:data": {}}));
    assert_eq!(entry(&it, "other", "Update", ""), json!({"f:metadata": {"f:labels": {"f:x": {}}}}));
    assert_eq!(
        entry(&it, "kubectl-annotate", "Update", ""),
        json!({"f:metadata": {"f:annotations": {".": {}, "f:y": {}}}})
    );
    assert!(!managers(&it).contains(&"merger Update".to_owned()), "{:?}", managers(&it));

    // A PUT of what was read changes nothing, managers included.
    let out = acme.feed(&["replace", "-f", "-"], &it.to_string());
    assert!(out.status.success(), "{:?}", texts(&out));
    assert_eq!(object(&acme, &["configmap", "c"]), it);

    // Nobody sees managers who does not ask.
    assert!(!acme.ok(&["get", "configmap", "c", "-o", "yaml"]).contains("managedFields"));
    assert!(
        acme.ok(&["get", "configmap", "c", "-o", "yaml", "--show-managed-fields"])
            .contains("manager: kubectl-edit")
    );

    // They can be forgotten, and are not remembered again before somebody applies.
    acme.ok(&[
        "patch",
        "configmap",
        "c",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/metadata/managedFields","value":[{}]}]"#,
    ]);
    acme.ok(&["label", "configmap", "c", "x=3", "--overwrite"]);
    assert_eq!(managers(&object(&acme, &["configmap", "c"])), Vec::<String>::new());
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: \"3\"}\n";
    applied(&acme, config, &[]);
    let it = object(&acme, &["configmap", "c"]);
    assert_eq!(managers(&it), ["kubectl Apply", "before-first-apply Update"]);
    assert_eq!(
        entry(&it, "before-first-apply", "Update", "")["f:data"],
        json!({".": {}, "f:a": {}})
    );
}

#[test]
fn client_side_apply_moves_over() {
    let cloud = Cloud::start(false, &["--without", "controllers,scheduler"]);
    let acme = cloud.admin();
    let out = acme.feed(&["apply", "-f", "-"], DEPLOYMENT);
    assert!(out.status.success(), "{:?}", texts(&out));
    let web = object(&acme, &["deployment", "web"]);
    assert_eq!(managers(&web), ["kubectl-client-side-apply Update"]);
    assert!(acme.ok(&["apply", "view-last-applied", "deployment", "web"]).contains("replicas: 1"));

    // kubectl itself moves what the client applied over to the server's managers.
    let changed = DEPLOYMENT.replace("x:1", "x:2");
    applied(&acme, &changed, &[]);
    let web = object(&acme, &["deployment", "web"]);
    assert_eq!(web["spec"]["template"]["spec"]["containers"][0]["image"], "x:2");
    assert_eq!(managers(&web)[0], "kubectl Apply", "{:?}", managers(&web));
    assert!(
        !managers(&web).contains(&"kubectl-client-side-apply Update".to_owned()),
        "{:?}",
        managers(&web)
    );
    let last = acme.ok(&["apply", "view-last-applied", "deployment", "web"]);
    assert!(last.contains("x:2"), "the annotation follows: {last}");

    // A diff says what would be, and writes nothing.
    let revision = web["metadata"]["resourceVersion"].clone();
    let out = acme.feed(
        &["diff", "--server-side", "-f", "-"],
        &changed.replace("replicas: 1", "replicas: 7"),
    );
    let (stdout, stderr) = texts(&out);
    assert!(stdout.contains("+  replicas: 7"), "{stdout}{stderr}");
    assert_eq!(object(&acme, &["deployment", "web"])["metadata"]["resourceVersion"], revision);

    // And back: applying in the client still works.
    let out = acme.feed(&["apply", "-f", "-"], &changed.replace("replicas: 1", "replicas: 2"));
    assert!(out.status.success(), "{:?}", texts(&out));
    assert_eq!(object(&acme, &["deployment", "web"])["spec"]["replicas"], 2);
}
