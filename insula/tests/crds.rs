//! Custom resources through stock kubectl, in ordinary tenants. No node needed.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use harness::{Cloud, Kubectl, create, texts, webhook::Webhook};

/// A definition with most of what definitions have.
const CRONTABS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.labelSelector}
    selectableFields: [{jsonPath: .spec.color}]
    additionalPrinterColumns:
    - {name: Spec, type: string, jsonPath: .spec.cronSpec, description: When it runs}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status', priority: 1}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            description: What is asked of a cron tab.
            required: [cronSpec]
            properties:
              cronSpec: {type: string, pattern: '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$', description: 'When it runs, as cron has it.'}
              image: {type: string}
              replicas: {type: integer, minimum: 1, maximum: 10, default: 1}
              color: {type: string, enum: [red, green, blue]}
              port: {x-kubernetes-int-or-string: true}
              ports:
                type: array
                maxItems: 3
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [port]
                items:
                  type: object
                  required: [port]
                  properties: {port: {type: integer}, protocol: {type: string, default: TCP}}
              labels: {type: object, additionalProperties: {type: string}}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
          status:
            type: object
            properties:
              replicas: {type: integer}
              labelSelector: {type: string}
              conditions: {type: array, items: {type: object, properties: {type: {type: string}, status: {type: string}}}}
"#;

const TAB: &str = "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: tab}\nspec: {cronSpec: '* * * * */5', image: x}\n";

/// Creates what must be refused; what is said.
#[track_caller]
fn refused(kubectl: &Kubectl, args: &[&str], manifest: &str) -> String {
    let out = kubectl.feed(args, manifest);
    let (stdout, stderr) = texts(&out);
    assert!(!out.status.success(), "accepted: {stdout}");
    stderr
}

fn established(kubectl: &Kubectl, name: &str) {
    kubectl.ok(&["wait", "--for=condition=Established", "--timeout=30s", &format!("crd/{name}")]);
}

#[test]
fn a_definition_is_served_and_its_objects_live_their_life() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    create(&acme, CRONTABS);
    established(&acme, "crontabs.stable.example.com");
    let names = acme.ok(&["get", "crd", "crontabs.stable.example.com", "-o", "jsonpath={.status.acceptedNames.listKind} {.status.storedVersions} {.status.conditions[*].reason}"]);
    assert_eq!(names, r#"CronTabList ["v1"] NoConflicts InitialNamesAccepted"#);
    let resources = acme.ok(&["api-resources", "--api-group=stable.example.com", "--no-headers"]);
    let columns: Vec<&str> = resources.split_whitespace().collect();
    assert_eq!(columns, ["crontabs", "ct", "stable.example.com/v1", "true", "CronTab"]);
    let others = globex.ok(&["api-resources", "--api-group=stable.example.com", "--no-headers"]);
    assert_eq!(others, "");
    let explained = acme.ok(&["explain", "crontab.spec.cronSpec"]);
    assert!(explained.contains("When it runs, as cron has it."), "{explained}");
    let explained = acme.ok(&["explain", "crontab"]);
    assert!(explained.contains("APIVersion defines"), "{explained}");
    let explained = acme.ok(&["explain", "crontab.metadata"]);
    for words in ["Standard object's metadata", "CreationTimestamp is a timestamp"] {
        assert!(explained.contains(words), "{explained}");
    }

    create(&acme, TAB);
    let fields = "jsonpath={.spec.replicas} {.metadata.generation} {.metadata.tenant} {.status}";
    assert_eq!(acme.ok(&["get", "ct", "tab", "-o", fields]), "1 1 acme ");
    let table = acme.ok(&["get", "crontabs", "-o", "wide"]);
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "SPEC", "REPLICAS", "READY", "AGE"]);
    assert!(table.contains("* * * * */5   1"), "{table}");
    assert!(acme.ok(&["get", "all"]).contains("crontab.stable.example.com/tab"));

    // Patches, and a replica count by its own name.
    acme.ok(&["patch", "ct", "tab", "--type=merge", "-p", r#"{"spec":{"color":"red"}}"#]);
    acme.ok(&[
        "patch",
        "ct",
        "tab",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/spec/image","value":"y"}]"#,
    ]);
    let strategic = acme.fails(&[
        "patch",
        "ct",
        "tab",
        "--type=strategic",
        "-p",
        r#"{"spec":{"color":"red"}}"#,
    ]);
    assert!(
        strategic.contains("UnsupportedMediaType") || strategic.contains("unknown format"),
        "{strategic}"
    );
    acme.ok(&["scale", "ct", "tab", "--replicas=3"]);
    acme.ok(&["label", "ct", "tab", "a=b"]);
    let fields = "jsonpath={.spec.replicas} {.spec.color} {.spec.image} {.metadata.labels.a} {.metadata.generation}";
    assert_eq!(acme.ok(&["get", "ct", "tab", "-o", fields]), "3 red y b 4");

    // The status is written apart, and counts no generation.
    acme.ok(&["patch", "ct", "tab", "--type=merge", "-p", r#"{"status":{"replicas":7}}"#]);
    let status = r#"{"status":{"replicas":3,"labelSelector":"a=b","conditions":[{"type":"Ready","status":"True"}]},"spec":{"image":"no"}}"#;
    acme.ok(&["patch", "ct", "tab", "--subresource=status", "--type=merge", "-p", status]);
    let fields = "jsonpath={.status.replicas} {.spec.image} {.metadata.generation}";
    assert_eq!(acme.ok(&["get", "ct", "tab", "-o", fields]), "3 y 4");
    let scale = acme.ok(&[
        "get",
        "--raw",
        "/tenants/acme/apis/stable.example.com/v1/namespaces/default/crontabs/tab/scale",
    ]);
    assert!(scale.contains(r#""selector":"a=b""#), "{scale}");
    assert!(acme.ok(&["get", "ct", "-o", "wide", "--no-headers"]).contains("True"));

    // Apply, three times.
    let applied = |image: &str| {
        TAB.replace("tab}", "applied}").replace("image: x", &format!("image: {image}"))
    };
    for (image, expected) in [("a", "created"), ("a", "unchanged"), ("b", "configured")] {
        let (stdout, stderr) = texts(&acme.feed(&["apply", "-f", "-"], &applied(image)));
        assert!(stdout.contains(expected), "{stdout}{stderr}");
    }
    let red = acme.ok(&["get", "ct", "--field-selector=spec.color=red", "-o", "name"]);
    assert_eq!(red.trim(), "crontab.stable.example.com/tab");
    let bad = acme.fails(&["get", "ct", "--field-selector=spec.image=y"]);
    assert!(bad.contains("field label not supported: spec.image"), "{bad}");

    acme.ok(&["delete", "ct", "--all"]);
    let gone = acme.fails(&["get", "ct", "tab"]);
    assert_eq!(
        gone.trim(),
        r#"Error from server (NotFound): crontabs.stable.example.com "tab" not found"#
    );
}

#[test]
fn unknown_fields_go_and_wrong_values_are_refused() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    create(&acme, CRONTABS);
    established(&acme, "crontabs.stable.example.com");
    let of = |spec: &str| {
        format!(
            "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {{name: x}}\nspec: {{cronSpec: '* * * * *', {spec}}}\n"
        )
    };
    let strict = |spec: &str| refused(&acme, &["create", "-f", "-"], &of(spec));
    let said = strict("bogus: 1");
    assert!(said.contains(r#"strict decoding error: unknown field "spec.bogus""#), "{said}");
    let said = strict("ports: [{port: 1, x: 2}]");
    assert!(said.contains(r#"unknown field "spec.ports[0].x""#), "{said}");
    let prefix = r#"The CronTab "x" is invalid: "#;
    for (spec, why) in [
        (
            "replicas: 11",
            "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
        ),
        (
            "image: 7",
            r#"spec.image: Invalid value: "integer": spec.image in body must be of type string: "integer""#,
        ),
        (
            "color: pink",
            r#"spec.color: Unsupported value: "pink": supported values: "red", "green", "blue""#,
        ),
        (
            "port: true",
            r#"spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean""#,
        ),
        ("ports: [{port: 1}, {port: 1}]", r#"spec.ports[1]: Duplicate value: {"port":1}"#),
        (
            "labels: {a: 1}",
            r#"spec.labels.a: Invalid value: "integer": spec.labels.a in body must be of type string: "integer""#,
        ),
    ] {
        let said = strict(spec);
        assert_eq!(said.trim(), format!("{prefix}{why}"));
    }
    let said = refused(
        &acme,
        &["create", "-f", "-"],
        "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: x}\nspec: {}\n",
    );
    assert_eq!(said.trim(), format!("{prefix}spec.cronSpec: Required value"));
    let said =
        refused(&acme, &["create", "-f", "-"], &of("color: red").replace("'* * * * *'", "never"));
    assert!(
        said.contains(
            r"spec.cronSpec in body should match '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$'"
        ),
        "{said}"
    );

    // What is not checked is dropped; what is kept freely is kept.
    let loose = of("bogus: 1, free: {any: {thing: [1]}}, ports: [{port: 2}]");
    let out = acme.feed(&["create", "--validate=warn", "-f", "-"], &loose);
    let (_, stderr) = texts(&out);
    assert!(stderr.contains(r#"Warning: unknown field "spec.bogus""#), "{stderr}");
    let fields = "jsonpath={.spec.bogus}|{.spec.free.any.thing[0]}|{.spec.ports[0].protocol}";
    assert_eq!(acme.ok(&["get", "ct", "x", "-o", fields]), "|1|TCP");
    let metadata = of("color: red").replace("{name: x}", "{name: other, bogus: 1}");
    let said = refused(&acme, &["create", "-f", "-"], &metadata);
    assert!(said.contains(r#"unknown field "metadata.bogus""#), "{said}");
    // An update without a revision is no update.
    let item = "/tenants/acme/apis/stable.example.com/v1/namespaces/default/crontabs/x";
    let body = r#"{"apiVersion":"stable.example.com/v1","kind":"CronTab","metadata":{"name":"x"},"spec":{"cronSpec":"* * * * *"}}"#;
    let said = refused(&acme, &["replace", "--raw", item, "-f", "-"], body);
    let why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
    assert!(said.contains(why), "{said}");
}

#[test]
fn fields_are_owned_by_the_schema() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    create(&acme, CRONTABS);
    established(&acme, "crontabs.stable.example.com");
    let apply = |manager: &str, spec: &str, more: &[&str]| {
        let manifest = format!(
            "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {{name: tab}}\nspec: {{{spec}}}\n"
        );
        let manager = format!("--field-manager={manager}");
        let args = [&["apply", "--server-side", manager.as_str(), "-f", "-"], more].concat();
        texts(&acme.feed(&args, &manifest))
    };
    let (made, said) = apply("one", "cronSpec: '* * * * *', ports: [{port: 1}]", &[]);
    assert!(made.contains("serverside-applied"), "{said}");
    // Items of a map belong to whoever brings them; scalars to one.
    let (_, said) = apply("two", "cronSpec: '* * * * *', ports: [{port: 2, protocol: UDP}]", &[]);
    assert_eq!(said, "");
    let ports = "jsonpath={.spec.ports[*].port} {.spec.ports[*].protocol}";
    assert_eq!(acme.ok(&["get", "ct", "tab", "-o", ports]), "1 2 TCP UDP");
    let (_, said) = apply("two", "cronSpec: '1 * * * *'", &[]);
    let conflict = r#"conflict with "one": .spec.cronSpec"#;
    assert!(said.contains(conflict), "{said}");
    let (_, said) = apply("two", "cronSpec: '1 * * * *'", &["--force-conflicts"]);
    assert_eq!(said, "");
    assert_eq!(acme.ok(&["get", "ct", "tab", "-o", ports]), "1 TCP");
    let (_, said) = apply("two", "cronSpec: '1 * * * *', bogus: 1", &[]);
    assert!(said.contains(".spec.bogus: field not declared in schema"), "{said}");
}

#[test]
fn tenants_have_definitions_of_their_own() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let of = |field: &str, scope: &str| {
        format!(
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: widgets.example.com}}\nspec:\n  group: example.com\n  scope: {scope}\n  names: {{plural: widgets, kind: Widget}}\n  versions:\n  - name: v1\n    served: true\n    storage: true\n    schema: {{openAPIV3Schema: {{type: object, properties: {{{field}: {{type: string}}}}}}}}\n"
        )
    };
    create(&acme, &of("red", "Namespaced"));
    create(&globex, &of("blue", "Cluster"));
    for tenant in [&acme, &globex] {
        established(tenant, "widgets.example.com");
    }
    let widget = |field: &str| {
        format!("apiVersion: example.com/v1\nkind: Widget\nmetadata: {{name: w}}\n{field}: x\n")
    };
    create(&acme, &widget("red"));
    create(&globex, &widget("blue"));
    refused(&acme, &["create", "-f", "-"], &widget("blue"));
    refused(&globex, &["create", "-f", "-"], &widget("red"));
    assert_eq!(
        acme.ok(&[
            "get",
            "widget",
            "-A",
            "--no-headers",
            "-o",
            "custom-columns=A:.red,B:.blue,C:.metadata.namespace"
        ])
        .split_whitespace()
        .collect::<Vec<_>>(),
        ["x", "<none>", "default"]
    );
    assert_eq!(
        globex
            .ok(&[
                "get",
                "widget",
                "--no-headers",
                "-o",
                "custom-columns=A:.red,B:.blue,C:.metadata.namespace"
            ])
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["<none>", "x", "<none>"]
    );
    // Neither reaches the other's by any form of a path.
    for path in [
        "/tenants/globex/apis/example.com/v1/widgets",
        "/apis/example.com/v1/tenants/globex/widgets",
    ] {
        assert!(acme.fails(&["get", "--raw", path]).contains("Forbidden"), "{path}");
    }
    // The platform does, and sees them as their tenant has them.
    let admin = cloud.admin();
    assert!(
        admin
            .ok(&["get", "--raw", "/tenants/globex/apis/example.com/v1/widgets/w"])
            .contains(r#""blue":"x""#)
    );
    assert!(admin.fails(&["get", "--raw", "/apis/example.com/v1/widgets"]).contains("NotFound"));
    // The end of one is not the other's.
    acme.ok(&["delete", "crd", "widgets.example.com"]);
    let gone = acme.fails(&["get", "--raw", "/tenants/acme/apis/example.com/v1/widgets"]);
    assert!(gone.contains("the server could not find the requested resource"), "{gone}");
    globex.ok(&["get", "widget", "w"]);
}

#[test]
fn a_definition_goes_when_its_objects_are_gone() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    create(&acme, CRONTABS);
    established(&acme, "crontabs.stable.example.com");
    create(&acme, TAB);
    let held = TAB.replace("{name: tab}", "{name: held, finalizers: [example.com/hold]}");
    create(&acme, &held);
    acme.ok(&["delete", "crd", "crontabs.stable.example.com", "--wait=false"]);
    // What nothing holds goes; what is held waits, and the definition with it.
    let path = "/tenants/acme/apis/stable.example.com/v1/namespaces/default/crontabs";
    acme.until(&["get", "--raw", path], |list| !list.contains(r#""name":"tab""#));
    acme.until(&["get", "--raw", path], |list| list.contains("deletionTimestamp"));
    let reason = "jsonpath={.status.conditions[?(@.type==\"Terminating\")].reason}";
    acme.until(&["get", "crd", "crontabs.stable.example.com", "-o", reason], |it| {
        it == "InstanceDeletionInProgress"
    });
    let (_, late) = texts(&acme.feed(&["create", "--raw", path, "-f", "-"], TAB));
    assert!(late.contains("MethodNotAllowed"), "{late}");
    // Updates still work, or nothing could let go of what it holds.
    let held = format!("{path}/held");
    let object = acme.ok(&["get", "--raw", &held]);
    let released = object.replace(r#""finalizers":["example.com/hold"],"#, "");
    assert_ne!(object, released);
    let (_, said) = texts(&acme.feed(&["replace", "--raw", &held, "-f", "-"], &released));
    assert_eq!(said, "");
    acme.ok(&["wait", "--for=delete", "--timeout=30s", "crd/crontabs.stable.example.com"]);
    // It can come again, and begins empty.
    create(&acme, CRONTABS);
    established(&acme, "crontabs.stable.example.com");
    assert_eq!(acme.ok(&["get", "crontabs", "-o", "name"]), "");
}

#[test]
fn bad_definitions_are_refused_in_upstreams_words() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let prefix = r#"The CustomResourceDefinition "crontabs.stable.example.com" is invalid: "#;
    // What all versions have alike is told of the definition, as upstream does.
    let schema = "spec.validation.openAPIV3Schema";
    for (from, to, why) in [
        (
            "type: integer, minimum: 1",
            "type: int, minimum: 1",
            format!(
                r#"{schema}.properties[spec].properties[replicas].type: Unsupported value: "int": supported values: "array", "boolean", "integer", "number", "object", "string""#
            ),
        ),
        (
            "image: {type: string}",
            "image: {}",
            format!(
                "{schema}.properties[spec].properties[image].type: Required value: must not be empty for specified object fields"
            ),
        ),
        (
            "default: 1}",
            "default: none}",
            format!(
                r#"{schema}.properties[spec].properties[replicas].default: Invalid value: "string":  in body must be of type integer: "string""#
            ),
        ),
        (
            "scope: Namespaced",
            "scope: Galaxy",
            r#"spec.scope: Unsupported value: "Galaxy": supported values: "Cluster", "Namespaced""#
                .to_owned(),
        ),
    ] {
        let said = refused(&acme, &["create", "-f", "-"], &CRONTABS.replace(from, to));
        assert_eq!(said.trim(), format!("{prefix}{why}"));
    }
    let said = refused(
        &acme,
        &["create", "-f", "-"],
        &CRONTABS.replace("storage: true", "storage: false"),
    );
    assert!(said.contains("must have exactly one version marked as storage version"), "{said}");
    let said =
        refused(&acme, &["create", "-f", "-"], &CRONTABS.replace("stable.example.com", "apps"));
    assert!(said.contains("should be a domain with at least one dot"), "{said}");
    let said = refused(
        &acme,
        &["create", "-f", "-"],
        &CRONTABS.replace("stable.example.com", "rbac.authorization.k8s.io"),
    );
    assert!(said.contains("is one of the built-in groups"), "{said}");
    create(&acme, CRONTABS);
    established(&acme, "crontabs.stable.example.com");
    // Another of the same kind gets no names.
    let other =
        CRONTABS.replace("crontabs", "cronrows").replace("singular: crontab", "singular: cronrow");
    create(&acme, &other);
    let conditions = "jsonpath={.status.conditions[*].status} {.status.conditions[*].reason}";
    acme.until(&["get", "crd", "cronrows.stable.example.com", "-o", conditions], |it| {
        it == "False False ListKindConflict NotAccepted"
    });
    // Until they are free.
    acme.ok(&["delete", "crd", "crontabs.stable.example.com"]);
    established(&acme, "cronrows.stable.example.com");
    let scope = acme.fails(&[
        "patch",
        "crd",
        "cronrows.stable.example.com",
        "--type=merge",
        "-p",
        r#"{"spec":{"scope":"Cluster"}}"#,
    ]);
    assert!(
        scope.contains(r#"spec.scope: Invalid value: "Cluster": field is immutable"#),
        "{scope}"
    );
}

#[test]
fn controllers_list_and_watch_and_versions_are_one() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let two = CRONTABS.replace(
        "  - name: v1\n",
        "  - name: v1beta1\n    served: true\n    storage: false\n    deprecated: true\n    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {cronSpec: {type: string}, extra: {type: string, default: here}}}}}}\n  - name: v1\n",
    );
    create(&acme, &two);
    established(&acme, "crontabs.stable.example.com");
    create(&acme, TAB);
    let list = "/tenants/acme/apis/stable.example.com/v1/namespaces/default/crontabs";
    let first = acme.ok(&["get", "--raw", list]);
    assert!(
        first.contains(r#""kind":"CronTabList""#) && first.contains(r#""name":"tab""#),
        "{first}"
    );
    let revision = first
        .split(r#""metadata":{"resourceVersion":""#)
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap()
        .to_owned();
    let mut watch = acme
        .command()
        .args(["get", "--raw", &format!("{list}?watch=true&allowWatchBookmarks=true&resourceVersion={revision}&timeoutSeconds=60")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(watch.stdout.take().unwrap()).lines();
    acme.ok(&["patch", "ct", "tab", "--type=merge", "-p", r#"{"spec":{"color":"red"}}"#]);
    create(&acme, &TAB.replace("{name: tab}", "{name: second}"));
    acme.ok(&["delete", "ct", "tab"]);
    for (kind, name) in [("MODIFIED", "tab"), ("ADDED", "second"), ("DELETED", "tab")] {
        let event = events.next().unwrap().unwrap();
        assert!(
            event.contains(&format!(r#""type":"{kind}""#))
                && event.contains(&format!(r#""name":"{name}""#)),
            "{event}"
        );
        assert!(event.contains(r#""apiVersion":"stable.example.com/v1""#), "{event}");
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
    // The other version: its own fields, and a warning. What it fills in it fills in where it is
    // sent, not where it is read.
    let out = acme.run(&[
        "get",
        "crontabs.v1beta1.stable.example.com",
        "second",
        "-o",
        "jsonpath={.apiVersion} {.spec.extra} {.spec.image}",
    ]);
    let (stdout, stderr) = texts(&out);
    assert_eq!(stdout, "stable.example.com/v1beta1  ");
    assert!(
        stderr.contains("Warning: stable.example.com/v1beta1 CronTab is deprecated"),
        "{stderr}"
    );
    assert_eq!(
        acme.ok(&[
            "get",
            "ct",
            "second",
            "-o",
            "jsonpath={.apiVersion} {.spec.extra}{.spec.image}"
        ]),
        "stable.example.com/v1 x"
    );
    // A version that objects may be kept in cannot go.
    let gone = acme.fails(&["patch", "crd", "crontabs.stable.example.com", "--type=json", "-p", r#"[{"op":"remove","path":"/spec/versions/1"},{"op":"replace","path":"/spec/versions/0/storage","value":true}]"#]);
    assert!(
        gone.contains("missing from spec.versions; v1 was previously a storage version"),
        "{gone}"
    );
    // Objects of a namespace go with it.
    acme.ok(&["create", "namespace", "other"]);
    create(&acme, &TAB.replace("{name: tab}", "{name: tab, namespace: other}"));
    acme.ok(&["delete", "namespace", "other"]);
    assert!(acme.fails(&["get", "ct", "tab", "-n", "other"]).contains("NotFound"));
}

#[test]
fn rules_hold_for_values_and_for_changes() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let rules = |first: &str| {
        CRONTABS.replace(
            "            description: What is asked of a cron tab.\n",
            &format!("            description: What is asked of a cron tab.\n            x-kubernetes-validations:\n            - {first}\n            - {{rule: '!has(oldSelf.image) || self.image == oldSelf.image', message: image is immutable}}\n"),
        )
    };
    let said = refused(&acme, &["create", "-f", "-"], &rules("{rule: 'self.bogus > 1'}"));
    let place = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule";
    assert!(said.contains(place) && said.contains("undefined field 'bogus'"), "{said}");
    create(
        &acme,
        &rules(
            "{rule: \"!has(self.color) || self.color != 'red' || self.replicas > 1\", messageExpression: \"'red needs more than %d'.format([self.replicas])\", fieldPath: .replicas}",
        ),
    );
    established(&acme, "crontabs.stable.example.com");
    let red = TAB.replace("image: x", "image: x, color: red");
    let said = refused(&acme, &["create", "-f", "-"], &red);
    let why =
        r#"The CronTab "tab" is invalid: spec.replicas: Invalid value: red needs more than 1"#;
    assert_eq!(said.trim(), why);
    create(&acme, &red.replace("color: red", "color: red, replicas: 2"));
    let change = ["patch", "ct", "tab", "--type=merge", "-p", r#"{"spec":{"image":"y"}}"#];
    let said = acme.fails(&change);
    assert!(said.contains("spec: Invalid value: image is immutable"), "{said}");
    acme.ok(&["label", "ct", "tab", "a=b"]);
}

/// A definition with two versions that a webhook converts between.
fn sockets(conversion: &str) -> String {
    let version = |name: &str, storage: bool, fields: &str| {
        format!(
            "  - name: {name}\n    served: true\n    storage: {storage}\n    schema: {{openAPIV3Schema: {{type: object, properties: {{spec: {{type: object, properties: {{{fields}}}}}}}}}}}\n"
        )
    };
    let old = version("v1", true, "host: {type: string}, port: {type: integer}");
    let new = version("v2", false, "endpoint: {type: string}");
    format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: sockets.example.com}}\nspec:\n  group: example.com\n  scope: Namespaced\n  names: {{plural: sockets, kind: Socket}}\n  conversion: {{strategy: Webhook, webhook: {{conversionReviewVersions: [v1], clientConfig: {conversion}}}}}\n  versions:\n{old}{new}"
    )
}

#[test]
fn webhooks_convert_between_versions() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let webhook = Webhook::start();
    let config = format!("{{url: '{}', caBundle: {}}}", webhook.url, webhook.bundle);
    create(&acme, &sockets(&config));
    established(&acme, "sockets.example.com");
    let old = "apiVersion: example.com/v1\nkind: Socket\nmetadata: {name: old}\nspec: {host: a, port: 80}\n";
    create(&acme, old);
    assert_eq!(webhook.asked(), 0, "what is in the storage version is not converted");
    let v2 = |name: &str, fields: &str| {
        acme.ok(&["get", "sockets.v2.example.com", name, "-o", &format!("jsonpath={fields}")])
    };
    assert_eq!(v2("old", "{.apiVersion} {.spec.endpoint}{.spec.host}"), "example.com/v2 a:80");
    create(
        &acme,
        "apiVersion: example.com/v2\nkind: Socket\nmetadata: {name: new}\nspec: {endpoint: 'b:81'}\n",
    );
    let v1 = ["get", "sockets.v1.example.com", "new", "-o", "jsonpath={.spec.host} {.spec.port}"];
    assert_eq!(acme.ok(&v1), "b 81");
    // Lists, patches and watches of the other version.
    let list =
        acme.ok(&["get", "sockets.v2.example.com", "-o", "jsonpath={.items[*].spec.endpoint}"]);
    assert_eq!(list, "b:81 a:80");
    acme.ok(&[
        "patch",
        "sockets.v2.example.com",
        "old",
        "--type=merge",
        "-p",
        r#"{"spec":{"endpoint":"c:82"}}"#,
    ]);
    assert_eq!(v2("old", "{.spec.endpoint}"), "c:82");
    let watch =
        "/tenants/acme/apis/example.com/v2/namespaces/default/sockets?watch=true&timeoutSeconds=1";
    let events = acme.ok(&["get", "--raw", watch]);
    assert!(events.contains(r#""endpoint":"c:82""#), "{events}");
    // Who wrote in one version is asked for in it when somebody writes in the other.
    let apply = |version: &str, manager: &str, spec: &str| {
        let manifest = format!(
            "apiVersion: example.com/{version}\nkind: Socket\nmetadata: {{name: both}}\nspec: {{{spec}}}\n"
        );
        let manager = format!("--field-manager={manager}");
        texts(&acme.feed(&["apply", "--server-side", &manager, "-f", "-"], &manifest)).1
    };
    assert_eq!(apply("v1", "one", "host: a, port: 80"), "");
    let said = apply("v2", "two", "endpoint: 'a:81'");
    assert!(said.contains(r#"conflict with "one": .spec.port"#), "{said}");
    assert_eq!(apply("v2", "two", "endpoint: 'a:80'"), "");
    assert_eq!(apply("v1", "one", "host: a"), "");
    assert_eq!(v2("both", "{.spec.endpoint}"), "a:80", "the other still has it");
    acme.ok(&["delete", "sockets.v2.example.com", "--all"]);
    // Whom nobody answers for, and where nobody may be.
    create(&globex, &sockets("{url: 'https://127.0.0.1:6443/convert'}"));
    established(&globex, "sockets.example.com");
    create(&globex, old);
    let said = globex.fails(&["get", "sockets.v2.example.com", "old"]);
    let why = r#"conversion webhook for example.com/v2, Kind=Socket failed: Post "https://127.0.0.1:6443/convert?timeout=30s": 127.0.0.1:6443 is not an address that a tenant's server may have"#;
    assert!(said.contains(why), "{said}");
    globex.ok(&["get", "sockets.v1.example.com", "old"]);
}

#[test]
fn definitions_are_published() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let v2 = "/openapi/v2";
    let before = acme.ok(&["get", "--raw", v2]);
    assert!(!before.contains("com.example.stable.v1.CronTab"));
    assert!(before.contains(r#""io.k8s.api.core.v1.Pod":{"#));
    create(&acme, CRONTABS);
    established(&acme, "crontabs.stable.example.com");
    let after = acme.ok(&["get", "--raw", v2]);
    assert!(after.contains(r#""com.example.stable.v1.CronTab":{"#), "no definition");
    assert!(after.contains(r#""com.example.stable.v1.CronTabList":{"#), "no list");
    assert!(after.contains("/apis/stable.example.com/v1/namespaces/{namespace}/crontabs"));
    assert!(!globex.ok(&["get", "--raw", v2]).contains("CronTab\""));
    let index = acme.ok(&["get", "--raw", "/openapi/v3"]);
    assert!(index.contains("apis/stable.example.com/v1"), "{index}");
    assert!(!globex.ok(&["get", "--raw", "/openapi/v3"]).contains("stable.example.com"));
    acme.ok(&["delete", "crd", "crontabs.stable.example.com"]);
    assert_eq!(acme.ok(&["get", "--raw", v2]), before);
}
