//! The words of operations: what is asked, what it takes and how it is called.

use serde_json::{Map, Value, json};

pub(super) const JSON: &str = "application/json";
pub(super) const YAML: &str = "application/yaml";
pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// A parameter's name and type.
pub(super) type Parameter = (&'static str, &'static str);

/// Of lists, and of deletions of what a list has.
pub(super) const COLLECTION: &[Parameter] = &[
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("shardSelector", "string"),
    ("timeoutSeconds", "integer"),
];
pub(super) const WATCH: &[Parameter] = &[("allowWatchBookmarks", "boolean"), ("watch", "boolean")];
pub(super) const DELETE: &[Parameter] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
pub(super) const WRITE: &[Parameter] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
pub(super) const FORCE: &[Parameter] = &[("force", "boolean")];
pub(super) const PRETTY: &[Parameter] = &[("pretty", "string")];
pub(super) const REVISION: &[Parameter] = &[("resourceVersion", "string")];
pub(super) const LOG: &[Parameter] = &[
    ("container", "string"),
    ("follow", "boolean"),
    ("insecureSkipTLSVerifyBackend", "boolean"),
    ("limitBytes", "integer"),
    ("previous", "boolean"),
    ("sinceSeconds", "integer"),
    ("stream", "string"),
    ("tailLines", "integer"),
    ("timestamps", "boolean"),
];

/// The parameters of a connection.
pub(super) fn connecting(kind: &str) -> &'static [Parameter] {
    match kind {
        "PodExecOptions" => &[
            ("command", "string"),
            ("container", "string"),
            ("stderr", "boolean"),
            ("stdin", "boolean"),
            ("stdout", "boolean"),
            ("tty", "boolean"),
        ],
        "PodAttachOptions" => &[
            ("container", "string"),
            ("stderr", "boolean"),
            ("stdin", "boolean"),
            ("stdout", "boolean"),
            ("tty", "boolean"),
        ],
        "PodPortForwardOptions" => &[("ports", "integer")],
        _ => &[("path", "string")],
    }
}

/// A path that is asked for one document, such as what resources there are.
pub(super) fn single(
    id: &str,
    tag: &str,
    description: &str,
    answer: &Value,
    types: &[&str],
) -> Value {
    json!({"get": {
        "operationId": id, "tags": [tag], "description": description,
        "responses": responses(&[("200", answer.clone())], types),
    }})
}

/// As [`single`], of what is sent as objects are.
pub(super) fn described(id: &str, tag: &str, description: &str, answer: &Value) -> Value {
    single(id, tag, description, answer, &[JSON, PROTOBUF, YAML])
}

pub(super) fn responses(answers: &[(&str, Value)], media_types: &[&str]) -> Value {
    let mut out = json!({"401": {"description": "Unauthorized"}});
    for (code, schema) in answers {
        let description = match *code {
            "201" => "Created",
            "202" => "Accepted",
            _ => "OK",
        };
        out[*code] = json!({"description": description, "content": content(schema, media_types)});
    }
    out
}

pub(super) fn content(schema: &Value, media_types: &[&str]) -> Map<String, Value> {
    media_types.iter().map(|it| ((*it).to_owned(), json!({ "schema": schema }))).collect()
}

pub(super) fn parameter((name, kind): &(&str, &str)) -> Value {
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

/// What a group version is called in documents: `rbacAuthorization_v1`, `RbacAuthorizationV1`.
pub(super) fn names(group: &str, version: &str) -> (String, String) {
    let (tag, name) = group_names(group);
    (format!("{tag}_{version}"), format!("{name}{}", capital(version)))
}

/// What a group is called: `rbacAuthorization`, `RbacAuthorization`.
pub(super) fn group_names(group: &str) -> (String, String) {
    let group = if group.is_empty() { "core" } else { group };
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    let name: String = short.split(|it: char| !it.is_ascii_alphanumeric()).map(capital).collect();
    let mut rest = name.chars();
    let first = rest.next().map(|it| it.to_ascii_lowercase());
    (first.into_iter().chain(rest).collect(), name)
}

pub(super) fn capital(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(|it| it.to_ascii_uppercase());
    first.into_iter().chain(rest).collect()
}

pub(super) fn with_article(kind: &str) -> String {
    let article = match kind.chars().next() {
        _ if kind.ends_with('s') && !kind.ends_with("ss") => "",
        Some('A' | 'E' | 'I' | 'O' | 'U') => "an ",
        _ => "a ",
    };
    format!("{article}{kind}")
}
