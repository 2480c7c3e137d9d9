//! What is read of JSON and YAML, and what is refused.

use serde_json::json as value;

use super::*;
use crate::schema::Gvk;

fn decode(kind: &Gvk, text: &str) -> Result<Decoded, DecodeError> {
    let schema = Schema::built_in();
    json(schema, schema.by_kind(kind), text.as_bytes())
}

fn deployment(text: &str) -> Result<Decoded, DecodeError> {
    decode(&Gvk::new("apps", "v1", "Deployment"), text)
}

#[test]
fn aliases_repeat_a_little() {
    let read = |text: &str| yaml(Schema::built_in(), None, text.as_bytes());
    let decoded = read("a: &a {x: 1}\nb: [*a, *a]\n").unwrap();
    assert_eq!(decoded.value, value!({"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}]}));
    // Each line is nine times the one before.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..9 {
        let before = format!("*a{}, ", n - 1).repeat(9);
        bomb.push_str(&format!("a{n}: &a{n} [{before}]\n"));
    }
    let begin = std::time::Instant::now();
    assert!(matches!(read(&bomb), Err(DecodeError::Syntax(_))));
    assert!(begin.elapsed() < std::time::Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn schemas_within_schemas_have_types() {
    let kind = Gvk::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let read = |schema: &str| {
        let text = format!(
            r#"{{"spec":{{"versions":[{{"name":"v1","schema":{{"openAPIV3Schema":{schema}}}}}]}}}}"#
        );
        let it = decode(&kind, &text)?;
        let found = it.value.pointer("/spec/versions/0/schema/openAPIV3Schema").cloned();
        Ok::<_, DecodeError>((found.unwrap_or_default(), it.findings))
    };
    // What is unknown there is left out, and not told.
    let (found, findings) = read(r#"{"items":{"type":"string","tpye":"x"}}"#).unwrap();
    assert_eq!((found, findings.len()), (value!({"items": {"type": "string"}}), 0));
    let (found, _) = read(r#"{"items":[{"type":"string","x":1}]}"#).unwrap();
    assert_eq!(found, value!({"items": [{"type": "string"}]}));
    let (found, _) = read(r#"{"additionalProperties":false}"#).unwrap();
    assert_eq!(found, value!({"additionalProperties": false}));
    let (_, findings) = read(r#"{"items":{},"tpye":1}"#).unwrap();
    assert_eq!(findings.len(), 1, "outside it is told");
    for bad in [
        r#"{"items":{"enum":{"a":1}}}"#,
        r#"{"items":[{"enum":{"a":1}}]}"#,
        r#"{"additionalProperties":{"maxLength":"x"}}"#,
        r#"{"dependencies":{"a":[1]}}"#,
        r#"{"items":true}"#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[test]
fn findings_name_the_whole_path() {
    let decoded = deployment(
        r#"{"spec":{"replicas":1,"replicas":2,"template":{"spec":{"containers":[{"name":"a","imag":"b"}]}},"foo":1}}"#,
    )
    .unwrap();
    assert_eq!(
        decoded.findings,
        [
            r#"duplicate field "spec.replicas""#,
            r#"unknown field "spec.template.spec.containers[0].imag""#,
            r#"unknown field "spec.foo""#
        ]
    );
    assert_eq!(decoded.value["spec"]["replicas"], 2);
}

#[test]
fn nulls_are_absent() {
    let decoded = deployment(r#"{"metadata":{"creationTimestamp":null,"name":"a"}}"#).unwrap();
    assert_eq!(decoded.value, value!({"metadata": {"name": "a"}}));
}

#[test]
fn a_wrong_type_says_where() {
    let error = deployment(r#"{"spec":{"replicas":"three"}}"#).unwrap_err();
    assert!(
        error.to_string().starts_with(
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        ),
        "{error}"
    );
    let error = deployment(r#"{"spec":{"template":{"spec":{"containers":[{"env":{}}]}}}}"#);
    assert_eq!(
        error.unwrap_err().to_string(),
        "json: cannot unmarshal object into Go struct field \
         Container.spec.template.spec.containers.env of type []v1.EnvVar"
    );
}

#[test]
fn yaml_is_decoded_alike() {
    let schema = Schema::built_in();
    let id = schema.by_kind(&Gvk::new("", "v1", "ConfigMap"));
    let decoded = yaml(schema, id, b"kind: ConfigMap\ndata:\n  a: b\nbogus: 1\n").unwrap();
    assert_eq!(decoded.value, value!({"kind": "ConfigMap", "data": {"a": "b"}}));
    assert_eq!(decoded.findings, [r#"unknown field "bogus""#]);
}

#[test]
fn a_key_twice_is_told_as_upstream_does() {
    let decoded = yaml(Schema::built_in(), None, b"a: 1\nb: 2\na: 3\n").unwrap();
    assert_eq!(decoded.value, value!({"a": 3, "b": 2}));
    let told = "yaml: unmarshal errors:\n  line 3: key \"a\" already set in map";
    assert_eq!(decoded.findings, [told]);
    assert!(yaml(Schema::built_in(), None, b"a: [").is_err());
}

#[test]
fn what_has_nothing_in_it_is_absent_where_go_leaves_it_out() {
    let pod = Gvk::new("", "v1", "Pod");
    let text = r#"{"spec":{"tolerations":[],"nodeSelector":{},"securityContext":{}}}"#;
    let decoded = decode(&pod, text).unwrap();
    assert_eq!(decoded.value, value!({"spec": {"securityContext": {}}}));
    let schema = Schema::built_in();
    let raw: Value = serde_json::from_str(text).unwrap();
    let sent = applied(schema, schema.by_kind(&pod), raw.clone()).unwrap();
    assert_eq!(sent.value, raw);
    let role = decode(&Gvk::new("rbac.authorization.k8s.io", "v1", "Role"), r#"{"rules":[]}"#);
    assert_eq!(role.unwrap().value, value!({"rules": []}));
}

#[test]
fn go_says_where_base64_and_times_end() {
    assert_eq!(not_base64("aGk="), None);
    assert_eq!(not_base64("not base64"), Some(3));
    assert_eq!(not_base64("aGkab"), Some(4));
    assert!(bad_time("nope", SECONDS).ends_with("cannot parse \"nope\" as \"2006\""));
    let found = bad_time("2024-01-01 00:00", SECONDS);
    assert!(found.ends_with("cannot parse \" 00:00\" as \"T\""), "{found}");
}

#[test]
fn depth_is_bounded() {
    let text = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    assert!(json(Schema::built_in(), None, text.as_bytes()).is_err());
}

#[test]
fn quantities_are_canonical() {
    let pod = Gvk::new("", "v1", "Pod");
    let decoded = decode(
        &pod,
        r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"1000m","memory":64}}}]}}"#,
    )
    .unwrap();
    let limits = &decoded.value["spec"]["containers"][0]["resources"]["limits"];
    assert_eq!(*limits, value!({"cpu": "1", "memory": "64"}));
}

#[test]
fn go_has_names_of_its_own() {
    let error = |text: &str| deployment(text).unwrap_err().to_string();
    let of_pod = |text: &str| error(&format!(r#"{{"spec":{{"template":{{"spec":{text}}}}}}}"#));
    let whole = "json: cannot unmarshal";
    assert_eq!(
        of_pod(r#"{"restartPolicy":1}"#),
        format!(
            "{whole} number into Go struct field PodSpec.spec.template.spec.restartPolicy of type v1.RestartPolicy"
        )
    );
    assert_eq!(
        of_pod(r#"{"volumes":[{"configMap":{"name":1}}]}"#),
        format!(
            "{whole} number into Go struct field ConfigMapVolumeSource.spec.template.spec.volumes.VolumeSource.configMap.LocalObjectReference.name of type string"
        )
    );
    assert_eq!(
        error(r#"{"spec":{"strategy":{"rollingUpdate":{"maxSurge":[]}}}}"#),
        format!(
            "{whole} array into Go struct field RollingUpdateDeployment.spec.strategy.rollingUpdate.maxSurge of type int32"
        )
    );
    let amounts =
        |text: &str| of_pod(&format!(r#"{{"containers":[{{"resources":{{"limits":{text}}}}}]}}"#));
    assert!(amounts("[]").ends_with("of type v1.ResourceList"), "{}", amounts("[]"));
    assert!(amounts(r#"{"cpu":true}"#).starts_with("quantities must match"));
}

#[test]
fn what_is_zero_is_not_there() {
    let read = |text: &str| deployment(&format!(r#"{{"spec":{text}}}"#)).unwrap().value;
    let found = read(r#"{"paused":false,"minReadySeconds":0,"replicas":0}"#);
    assert_eq!(found, value!({"spec": {"replicas": 0}}), "a pointer says something");
    let found = read(r#"{"template":{"spec":{"containers":[null,{"args":[null]}]}}}"#);
    let wanted = value!({"spec": {"template": {"spec": {"containers": [{}, {"args": [""]}]}}}});
    assert_eq!(found, wanted);
}

/// What comes after the first of several documents is not read.
#[test]
fn the_first_document_counts() {
    let read = |text: &str| yaml(Schema::built_in(), None, text.as_bytes()).unwrap().value;
    let expected = serde_json::json!({"a": "1\n-- x\n"});
    let first = "# b\n---\na: |\n  1\n  -- x\n";
    assert_eq!(read(first), expected);
    assert_eq!(read(&format!("{first}---\nb: [\n")), expected);
    assert_eq!(read("---\n"), Value::Null);
}
