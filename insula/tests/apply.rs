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
    // Who only keeps the annotation changed nothing, and so has no time: it comes first.
    assert_eq!(managers(&web), ["kubectl-last-applied Apply", "kubectl Apply"]);
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

/// Every manager of an object, how it came to its fields, in which version, and which.
fn who_has(object: &Value) -> Value {
    let mut list: Vec<Value> = object["metadata"]["managedFields"].as_array().unwrap().clone();
    list.sort_by_key(|it| it["manager"].to_string());
    list.iter()
        .map(|it| {
            json!([it["manager"], it["operation"], it["apiVersion"], it["fieldsV1"]["f:spec"]])
        })
        .collect()
}

/// As upstream's server answers to the same.
#[test]
fn managers_of_another_version_have_their_fields_in_it() {
    let cloud = Cloud::start(false, &["--without", "controllers,scheduler"]);
    let acme = cloud.admin();
    let by = |manager: &str| format!("--field-manager={manager}");
    let scaler = |version: &str, spec: &str| {
        format!(
            "apiVersion: autoscaling/{version}\nkind: HorizontalPodAutoscaler\nmetadata: {{name: h}}\nspec: {{{spec}}}\n"
        )
    };
    let target = "scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}";
    let metrics = "metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]";
    let whole = scaler("v2", &format!("maxReplicas: 5, minReplicas: 2, {target}, {metrics}"));
    applied(&acme, &whole, &[&by("a")]);
    // What version 1 says in one field is a list in version 2.
    let percent = scaler("v1", "targetCPUUtilizationPercentage: 70");
    let (worked, text) = apply(&acme, &percent, &[&by("b")]);
    assert!(!worked, "{text}");
    let conflict = r#"Apply failed with 1 conflict: conflict with "a": .spec.metrics"#;
    assert!(text.contains(conflict), "{text}");
    applied(&acme, &percent, &[&by("b"), "--force-conflicts"]);
    let get = ["hpa.v2.autoscaling", "h"];
    let of_target = json!({"f:apiVersion": {}, "f:kind": {}, "f:name": {}});
    let of_b = json!(["b", "Apply", "autoscaling/v1", {"f:targetCPUUtilizationPercentage": {}}]);
    assert_eq!(
        who_has(&object(&acme, &get)),
        json!([
            ["a", "Apply", "autoscaling/v2",
             {"f:maxReplicas": {}, "f:minReplicas": {}, "f:scaleTargetRef": of_target}],
            of_b,
        ])
    );
    // Who applied in version 2 goes on in version 1: what it leaves out goes.
    let less = scaler("v1", &format!("maxReplicas: 6, {target}"));
    applied(&acme, &less, &[&by("a"), "--force-conflicts"]);
    let scaled = object(&acme, &get);
    assert_eq!(
        who_has(&scaled),
        json!([
            ["a", "Apply", "autoscaling/v1", {"f:maxReplicas": {}, "f:scaleTargetRef": {}}],
            of_b,
        ])
    );
    assert_eq!(scaled["spec"]["minReplicas"], 1, "the default");
    let target = &scaled["spec"]["metrics"][0]["resource"]["target"];
    assert_eq!(target["averageUtilization"], 70);
    // An update in one version takes from who wrote in another.
    let more = r#"{"spec":{"metrics":[{"type":"Resource","resource":{"name":"cpu","target":{"type":"Utilization","averageUtilization":90}}}]}}"#;
    acme.ok(&["patch", get[0], get[1], "--type=merge", &by("c"), "-p", more]);
    assert_eq!(
        who_has(&object(&acme, &get)),
        json!([
            ["a", "Apply", "autoscaling/v1", {"f:maxReplicas": {}, "f:scaleTargetRef": {}}],
            ["c", "Update", "autoscaling/v2", {"f:metrics": {}}],
        ])
    );
}

#[test]
fn managers_of_another_group_are_forgotten() {
    let cloud = Cloud::start(false, &["--without", "controllers,scheduler"]);
    let acme = cloud.admin();
    let core = "apiVersion: v1\nkind: Event\nmetadata: {name: e}\ninvolvedObject: {kind: Pod, namespace: default, name: p}\nreason: r\nmessage: m\ntype: Normal\ncount: 2\nsource: {component: c}\n";
    applied(&acme, core, &["--field-manager=a"]);
    let other = "apiVersion: events.k8s.io/v1\nkind: Event\nmetadata: {name: e, labels: {x: z}}\ndeprecatedCount: 2\n";
    applied(&acme, other, &["--field-manager=b"]);
    let event = object(&acme, &["events.v1.events.k8s.io", "e"]);
    assert_eq!(managers(&event), ["b Apply"]);
    let message = ["-p", r#"{"message":"n"}"#, "--type=merge", "--field-manager=c"];
    acme.ok(&[&["patch", "events.v1.", "e"], message.as_slice()].concat());
    assert_eq!(managers(&object(&acme, &["events.v1.", "e"])), ["c Update"]);
}

#[test]
fn versions_of_custom_resources_that_are_gone_have_no_managers() {
    let cloud = Cloud::start(false, &["--without", "controllers,scheduler"]);
    let acme = cloud.admin();
    let version = |name: &str, storage: bool, fields: &str| {
        format!(
            "  - name: {name}\n    served: true\n    storage: {storage}\n    schema: {{openAPIV3Schema: {{type: object, properties: {{spec: {{type: object, properties: {{{fields}}}}}}}}}}}\n"
        )
    };
    let set = "l: {type: array, items: {type: string}, x-kubernetes-list-type: set}";
    let list = "l: {type: array, items: {type: string}}";
    let text = |name: &str| format!("{name}: {{type: string}}");
    let (a, b) = (text("a"), text("b"));
    let mut definition = format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: gadgets.example.com}}\nspec:\n  group: example.com\n  scope: Namespaced\n  names: {{plural: gadgets, kind: Gadget}}\n  versions:\n{}{}",
        version("v1", true, &format!("{a}, {b}, {set}")),
        version("v2", false, &format!("{a}, {b}, {list}")),
    );
    let third = version("v3", false, &format!("{a}, {b}, {list}"));
    definition += &third;
    let created = acme.feed(&["create", "-f", "-"], &definition);
    assert!(created.status.success(), "{}", texts(&created).1);
    let ready =
        ["get", "crd", "gadgets.example.com", "-o", "jsonpath={.status.conditions[*].status}"];
    acme.until(&ready, |it| it == "True True");
    let gadget = |version: &str, spec: &str| {
        format!(
            "apiVersion: example.com/{version}\nkind: Gadget\nmetadata: {{name: g}}\nspec: {{{spec}}}\n"
        )
    };
    applied(&acme, &gadget("v1", "a: '1', l: [x]"), &["--field-manager=one"]);
    applied(&acme, &gadget("v1", "l: [w]"), &["--field-manager=two"]);
    applied(&acme, &gadget("v3", "b: '1'"), &["--field-manager=old"]);
    let get = ["gadgets.v1.example.com", "g"];
    let items = |of: &str| json!({ format!("v:{of:?}"): {} });
    assert_eq!(
        who_has(&object(&acme, &get)),
        json!([
            ["old", "Apply", "example.com/v3", {"f:b": {}}],
            ["one", "Apply", "example.com/v1", {"f:a": {}, "f:l": items("x")}],
            ["two", "Apply", "example.com/v1", {"f:l": items("w")}],
        ])
    );
    // In version 2 the list is one thing: whoever applies it takes every item.
    applied(&acme, &gadget("v2", "l: [z]"), &["--field-manager=three"]);
    applied(&acme, &gadget("v2", "a: '2'"), &["--field-manager=one"]);
    let of_old = json!(["old", "Apply", "example.com/v3", {"f:b": {}}]);
    let of_one = json!(["one", "Apply", "example.com/v2", {"f:a": {}}]);
    let of_three = json!(["three", "Apply", "example.com/v2", {"f:l": {}}]);
    let it = object(&acme, &get);
    assert_eq!(it["spec"], json!({"a": "2", "b": "1", "l": ["z"]}));
    assert_eq!(who_has(&it), json!([of_old, of_one, of_three]));
    // And whoever adds an item changes it.
    let more = gadget("v1", "l: [q]");
    let (worked, text) = apply(&acme, &more, &["--field-manager=two"]);
    assert!(!worked && text.contains(r#"conflict with "three": .spec.l"#), "{text}");
    applied(&acme, &more, &["--field-manager=two", "--force-conflicts"]);
    let of_two = json!(["two", "Apply", "example.com/v1", {"f:l": items("q")}]);
    let it = object(&acme, &get);
    assert_eq!(it["spec"]["l"], json!(["z", "q"]));
    assert_eq!(who_has(&it), json!([of_old, of_one, of_two]));
    // A version goes, and with it who wrote in it.
    let shorter = definition.replace(&third, "");
    let replaced = acme.feed(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &shorter);
    assert!(replaced.status.success(), "{}", texts(&replaced).1);
    applied(&acme, &gadget("v2", "a: '3'"), &["--field-manager=one"]);
    let left = object(&acme, &get);
    assert_eq!(left["spec"], json!({"a": "3", "b": "1", "l": ["z", "q"]}));
    assert_eq!(who_has(&left), json!([of_one, of_two]));
}
