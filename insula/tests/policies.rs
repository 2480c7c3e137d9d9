//! Admission policies, as kubectl sees them: rules in CEL that refuse, warn and change.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use harness::{Cloud, Kubectl, create, refused};
use serde_json::{Value, json};

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
           "metadata": {"name": name}, "spec": spec})
}

/// What is written of config maps, but for those of the platform.
fn constraints() -> Value {
    json!({
        "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                           "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}],
        "objectSelector": {"matchExpressions": [{"key": "platform", "operator": "DoesNotExist"}]},
    })
}

fn map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// A policy about config maps with its binding.
fn validating(kubectl: &Kubectl, name: &str, spec: Value, binding: Value) {
    let mut whole = json!({"failurePolicy": "Fail", "matchConstraints": constraints(),
        "matchConditions": [{"name": "own", "expression": "request.name != 'kube-root-ca.crt'"}]});
    for (field, value) in spec.as_object().unwrap() {
        whole[field] = value.clone();
    }
    create(kubectl, &object("ValidatingAdmissionPolicy", name, &whole));
    let mut bound = json!({"policyName": name, "validationActions": ["Deny"]});
    for (field, value) in binding.as_object().unwrap() {
        bound[field] = value.clone();
    }
    create(kubectl, &object("ValidatingAdmissionPolicyBinding", name, &bound));
}

#[test]
fn policies_refuse() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let spec = json!({
        "variables": [
            {"name": "size", "expression": "has(object.data) ? size(object.data) : 0"},
            {"name": "twice", "expression": "variables.size * 2"},
        ],
        "validations": [
            {"expression": "variables.twice <= 4",
             "messageExpression": "'has ' + string(variables.size) + ' entries'"},
            {"expression": "!has(object.data) || object.data.all(key, key != 'bad')",
             "message": "nothing bad", "reason": "Forbidden"},
            {"expression": "request.operation != 'UPDATE' || oldObject.data == object.data"},
            {"expression": "namespaceObject.metadata.name == request.namespace"},
            {"expression": "authorizer.requestResource.check('create').allowed()"},
        ],
    });
    validating(&acme, "small", spec, json!({}));
    create(&acme, &map("a", &json!({"x": "1"})));
    let said = refused(&acme, &map("b", &json!({"x": "1", "y": "2", "z": "3"})));
    let why =
        "ValidatingAdmissionPolicy 'small' with binding 'small' denied request: has 3 entries";
    assert!(said.contains("The configmaps \"b\" is invalid") && said.contains(why), "{said}");
    let said = refused(&acme, &map("b", &json!({"bad": "1"})));
    assert!(
        said.contains("Error from server (Forbidden)") && said.contains("nothing bad"),
        "{said}"
    );
    let said = acme.fails(&["patch", "cm", "a", "-p", r#"{"data":{"x":"2"}}"#]);
    assert!(
        said.contains(
            "failed expression: request.operation != 'UPDATE' || oldObject.data == object.data"
        ),
        "{said}"
    );
    create(&globex, &map("b", &json!({"bad": "1"})));
    // Without its binding it does nothing.
    acme.ok(&["delete", "validatingadmissionpolicybinding", "small"]);
    create(&acme, &map("b", &json!({"bad": "1"})));
}

#[test]
fn policies_have_parameters_and_actions() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    create(
        &acme,
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"most": "1"},
        "metadata": {"name": "limit", "labels": {"limits": "yes", "platform": "yes"}}}),
    );
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [{"expression": "!has(object.data) || size(object.data) <= int(params.data.most)",
                         "messageExpression": "'at most ' + params.data.most"}],
    });
    let by_name =
        json!({"name": "limit", "namespace": "default", "parameterNotFoundAction": "Deny"});
    validating(&acme, "limit", spec, json!({"paramRef": by_name}));
    let two = json!({"a": "1", "b": "2"});
    assert!(refused(&acme, &map("a", &two)).contains("denied request: at most 1"));
    let bind = |spec: Value| {
        let patch = json!({"spec": spec}).to_string();
        acme.ok(&[
            "patch",
            "validatingadmissionpolicybinding",
            "limit",
            "--type=merge",
            "-p",
            &patch,
        ]);
    };
    bind(json!({"validationActions": ["Warn", "Audit"]}));
    let said = create(&acme, &map("a", &two));
    assert!(said.contains("Warning: Validation failed for ValidatingAdmissionPolicy 'limit' with binding 'limit': at most 1"), "{said}");
    bind(
        json!({"validationActions": ["Deny"], "paramRef": {"name": null, "selector": {"matchLabels": {"limits": "yes"}}}}),
    );
    assert!(refused(&acme, &map("b", &two)).contains("denied request: at most 1"));
    // Parameters that are not there.
    bind(json!({"paramRef": {"selector": {"matchLabels": {"limits": "no"}}}}));
    let said = refused(&acme, &map("b", &two));
    assert!(said.contains("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"), "{said}");
    bind(json!({"paramRef": {"parameterNotFoundAction": "Allow"}}));
    create(&acme, &map("b", &two));
    // What fails refuses, unless that is to be ignored.
    let spec = json!({"validations": [{"expression": "object.data.nothing == 'x'"}]});
    validating(&acme, "fails", spec, json!({}));
    let said = refused(&acme, &map("c", &two));
    assert!(
        said.contains(
            "expression 'object.data.nothing == 'x'' resulted in error: no such key: nothing"
        ),
        "{said}"
    );
    acme.ok(&[
        "patch",
        "validatingadmissionpolicy",
        "fails",
        "--type=merge",
        "-p",
        r#"{"spec":{"failurePolicy":"Ignore"}}"#,
    ]);
    create(&acme, &map("c", &two));
}

#[test]
fn policies_change_objects() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let policy = |name: &str, mutations: Value| {
        let spec = json!({
            "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["", "apps"], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["configmaps", "deployments"]}]},
            "matchConditions": [{"name": "own", "expression": "object.metadata.?labels[?'policy'].orValue('') == request.resource.resource"}],
            "variables": [{"name": "suffix", "expression": "'-' + object.metadata.name"}],
            "mutations": mutations,
        });
        create(&acme, &object("MutatingAdmissionPolicy", name, &spec));
        let bound = json!({"policyName": name});
        create(&acme, &object("MutatingAdmissionPolicyBinding", name, &bound));
    };
    policy(
        "apply",
        json!([
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
                "request.resource.resource == 'configmaps' ? Object{data: {'applied': 'yes' + variables.suffix}} : Object{spec: Object.spec{replicas: 0, template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'side', image: 'side:1'}]}}}}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.com/seen'), value: 'x' + string(size(object.metadata.labels))}]"}},
        ]),
    );
    let mut it = map("a", &json!({"own": "1"}));
    it["metadata"]["labels"] = json!({"policy": "configmaps"});
    create(&acme, &it);
    let found: Value = serde_json::from_str(&acme.ok(&["get", "cm", "a", "-o", "json"])).unwrap();
    assert_eq!(found["data"], json!({"own": "1", "applied": "yes-a"}));
    assert_eq!(found["metadata"]["labels"]["example.com/seen"], "x1");
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "labels": {"policy": "deployments"}},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}},
                 "template": {"metadata": {"labels": {"a": "b"}},
                              "spec": {"containers": [{"name": "main", "image": "main:1"}]}}},
    });
    create(&acme, &deployment);
    let fields = "jsonpath={.spec.replicas} {.spec.template.spec.containers[*].name} {.spec.template.spec.containers[*].terminationMessagePath}";
    let found = acme.ok(&["get", "deployment", "d", "-o", fields]);
    let path = "/dev/termination-log";
    // What policies add has its defaults like all else.
    let names: Vec<&str> = found.split(' ').collect();
    assert_eq!(names[0], "0", "{found}");
    assert!(names.contains(&"main") && names.contains(&"side"), "{found}");
    assert_eq!(names.iter().filter(|it| **it == path).count(), 2, "{found}");
    // What could drop what others put there is refused.
    policy(
        "atomic",
        json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
        "Object{spec: Object.spec{selector: Object.spec.selector{matchLabels: {'a': 'c'}}}}"}}]),
    );
    let mut other = deployment.clone();
    other["metadata"]["name"] = "e".into();
    let said = refused(&acme, &other);
    assert!(said.contains("policy 'atomic' with binding 'atomic' denied request: error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector"), "{said}");
}

#[test]
fn what_is_no_policy() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let spec = json!({"failurePolicy": "Fail", "matchConstraints": constraints(),
                      "validations": [{"expression": "object.x =="}, {"expression": "size(request.name)"},
                                      {"expression": "params.x == 1"}]});
    let said = refused(&acme, &object("ValidatingAdmissionPolicy", "bad", &spec));
    for part in [
        "spec.validations[0].expression: Invalid value: \"object.x ==\": compilation failed: ERROR: <input>:1:12: Syntax error",
        "spec.validations[1].expression: Invalid value: \"size(request.name)\": must evaluate to bool but got int",
        "undeclared reference to 'params'",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "bad"},
        "webhooks": [{
            "name": "short", "sideEffects": "Some", "admissionReviewVersions": ["v7"],
            "clientConfig": {"url": "http://x/?a=b"}, "timeoutSeconds": 31,
            "matchConditions": [{"name": "a", "expression": "... [] bad expression"}],
        }],
    });
    let said = refused(&acme, &hook);
    for part in [
        "webhooks[0].name: Invalid value: \"short\": should be a domain with at least three segments separated by dots",
        "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
        "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
        "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
        "query parameters are not permitted in the URL",
        "webhooks[0].matchConditions[0].expression: Invalid value: \"... [] bad expression\": compilation failed",
        "webhooks[0].admissionReviewVersions: Invalid value: [\"v7\"]: must include at least one of v1, v1beta1",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let binding = json!({"policyName": "x", "validationActions": ["Deny", "Warn"],
                         "paramRef": {"parameterNotFoundAction": "Deny"}});
    let said = refused(&acme, &object("ValidatingAdmissionPolicyBinding", "bad", &binding));
    for part in [
        "spec.validationActions: Invalid value: [\"Deny\",\"Warn\"]: must not contain both Deny and Warn",
        "spec.paramRef: Required value: one of name or selector must be specified",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[test]
fn expressions_are_held_against_the_kinds_they_are_about() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "kind": "CronTab"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": {
                    "replicas": {"type": "integer"}}}}}}}]},
    });
    create(&acme, &definition);
    acme.ok(&["wait", "--for=condition=Established", "crd/crontabs.example.com", "--timeout=30s"]);
    let policy = |name: &str, group: &str, resource: &str, expressions: &[&str]| {
        let validations: Vec<Value> =
            expressions.iter().map(|it| json!({ "expression": it })).collect();
        let spec = json!({"validations": validations, "matchConstraints": {"resourceRules": [{
            "apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": [resource]}]}});
        create(&acme, &object("ValidatingAdmissionPolicy", name, &spec));
        let text = acme
            .until(&["get", "validatingadmissionpolicy", name, "-o", "jsonpath={.status}"], |it| {
                it.contains("typeChecking")
            });
        let status: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status["observedGeneration"], 1);
        status["typeChecking"].clone()
    };
    let good = ["object.spec.replicas > 1", "object.metadata.labels['a'] == 'b'"];
    assert_eq!(policy("fine", "apps", "deployments", &good), json!({}));
    assert_eq!(policy("fine-custom", "example.com", "crontabs", &good), json!({}));
    let found = policy("bad", "apps", "deployments", &["object.spec.replicas > '1'"]);
    let warning = &found["expressionWarnings"][0];
    assert_eq!(warning["fieldRef"], "spec.validations[0].expression");
    let text = warning["warning"].as_str().unwrap();
    assert!(text.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'"), "{text}");
    let bad = ["object.spec.replicas > '1'", "object.spec.maxRetries < 10"];
    let found = policy("bad-custom", "example.com", "crontabs", &bad);
    let text = found["expressionWarnings"][1]["warning"].as_str().unwrap();
    assert!(text.contains("undefined field 'maxRetries'"), "{text}");
}
