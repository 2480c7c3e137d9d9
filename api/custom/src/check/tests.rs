use serde_json::json;

use super::*;

fn good() -> Value {
    json!({
        "metadata": {"name": "crontabs.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "listKind": "CronTabList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"color": {"type": "string"}}}}}}}],
            "conversion": {"strategy": "None"},
        },
        "status": {"storedVersions": ["v1"]},
    })
}

#[track_caller]
fn refused(change: impl Fn(&mut Value), expected: &[&str]) {
    let mut it = good();
    change(&mut it);
    let errors = definition(&it, None);
    let texts: Vec<String> =
        errors.iter().map(|it| format!("{}: {}", it.field, it.message)).collect();
    assert_eq!(texts, expected);
}

#[test]
fn a_good_one_passes() {
    refused(|_| (), &[]);
    refused(
        |it| it["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.color"}]),
        &[],
    );
}

#[test]
fn names_and_scope() {
    refused(
        |it| it["metadata"]["name"] = json!("x.example.com"),
        &[
            r#"metadata.name: Invalid value: "x.example.com": must be spec.names.plural+"."+spec.group"#,
        ],
    );
    refused(
        |it| it["spec"]["scope"] = json!("Galaxy"),
        &[r#"spec.scope: Unsupported value: "Galaxy": supported values: "Cluster", "Namespaced""#],
    );
    refused(
        |it| it["spec"]["names"]["listKind"] = json!("CronTab"),
        &[
            r#"spec.names.listKind: Invalid value: "CronTab": kind and listKind may not be the same"#,
        ],
    );
}

#[test]
fn one_storage_version() {
    refused(
        |it| it["spec"]["versions"][0]["storage"] = json!(false),
        &[concat!(
            r#"spec.versions: Invalid value: [{"Name":"v1","Served":true,"Storage":false,"Deprecated":false,"DeprecationWarning":null,"Schema":null,"Subresources":null,"AdditionalPrinterColumns":null,"SelectableFields":null}]: "#,
            "must have exactly one version marked as storage version"
        )],
    );
    refused(
        |it| it["status"]["storedVersions"] = json!(["v1", "v0"]),
        &[
            r#"status.storedVersions[1]: Invalid value: "v0": missing from spec.versions; v0 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v0 and removes v0 from status.storedVersions"#,
        ],
    );
}

#[test]
fn schemas_and_more() {
    refused(
        |it| it["spec"]["versions"][0]["schema"] = json!({}),
        &["spec.versions[0].schema.openAPIV3Schema: Required value"],
    );
    refused(
        |it| {
            it["spec"]["versions"][0]["additionalPrinterColumns"] =
                json!([{"name": "A", "type": "text", "jsonPath": "spec"}])
        },
        &[
            r#"spec.additionalPrinterColumns[0].type: Invalid value: "text": must be one of boolean,date,integer,number,string"#,
            r#"spec.additionalPrinterColumns[0].JSONPath: Invalid value: "spec": must be a simple json path starting with ."#,
        ],
    );
    refused(
        |it| {
            it["spec"]["versions"][0]["selectableFields"] =
                json!([{"jsonPath": ".spec"}, {"jsonPath": ".spec.no"}])
        },
        &[
            r#"spec.selectableFields[0].jsonPath: Invalid value: ".spec": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."#,
            r#"spec.selectableFields[1].jsonPath: Invalid value: ".spec.no": is an invalid path: does not refer to a valid field"#,
        ],
    );
    refused(
        |it| it["spec"]["preserveUnknownFields"] = json!(true),
        &[
            "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        ],
    );
}

#[test]
fn what_may_not_change() {
    let mut old = good();
    old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    let mut new = old.clone();
    new["spec"]["scope"] = json!("Cluster");
    new["spec"]["names"]["kind"] = json!("Other");
    let errors = definition(&new, Some(&old));
    let fields: Vec<&str> = errors.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(fields, ["spec.scope", "spec.names.kind"]);
    assert_eq!(errors[0].message, r#"Invalid value: "Cluster": field is immutable"#);
}

#[test]
fn protected_groups() {
    let change = |it: &mut Value| {
        it["spec"]["group"] = json!("x.k8s.io");
        it["metadata"]["name"] = json!("crontabs.x.k8s.io");
    };
    refused(
        change,
        &[
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        ],
    );
    refused(
        |it| {
            change(it);
            it["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "https://x"});
        },
        &[],
    );
}
