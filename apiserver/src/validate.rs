//! Validation: what is wrong with an object, in upstream's words.
//!
//! Metadata is checked alike for every resource; kinds that run things have rules of their own.

use std::collections::HashSet;

use insula_api::{
    names::{is_dns1123_label, is_dns1123_subdomain},
    object,
    quantity::Quantity,
    resources::Resource,
    selector::is_label_value,
};
use serde_json::{Map, Value};

use crate::{custom, error::FieldError, registry::Served};

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
/// All annotations of an object together, in bytes.
const ANNOTATIONS: usize = 256 * 1024;
/// Data of one secret or config map, in bytes.
const DATA: usize = 1024 * 1024;

type Errors = Vec<FieldError>;

/// Checks a new object.
pub(crate) fn create(served: &Served, it: &Value) -> Errors {
    let resource = &served.resource;
    let mut errors = Vec::new();
    metadata(resource, it, &mut errors);
    match served.custom() {
        Some(custom) => errors.extend(custom.check(it, None, "")),
        None if custom::holds_definitions(served) => errors.extend(custom::check(it, None)),
        None => kind(resource, it, &mut errors),
    }
    errors
}

/// Checks what becomes of an object.
pub(crate) fn update(served: &Served, subresource: &str, old: &Value, new: &Value) -> Errors {
    let resource = &served.resource;
    let mut errors = Vec::new();
    metadata(resource, new, &mut errors);
    if object::is_deleting(old) {
        let had = object::finalizers(old);
        let added: Vec<&str> =
            object::finalizers(new).into_iter().filter(|it| !had.contains(it)).collect();
        if !added.is_empty() {
            let why = "no new finalizers can be added if the object is being deleted, found new finalizers";
            let why = format!("{why} {added:?}");
            errors.push(FieldError::forbidden("metadata.finalizers", &why));
        }
    }
    if let Some(custom) = served.custom() {
        errors.extend(custom.check(new, Some(old), subresource));
    } else if custom::holds_definitions(served) {
        if subresource.is_empty() {
            errors.extend(custom::check(new, Some(old)));
        }
    } else if subresource.is_empty() {
        kind(resource, new, &mut errors);
        immutable(resource, old, new, &mut errors);
    }
    errors
}

/// Names of these may hold anything but `/` and `%`.
fn has_path_name(resource: &Resource) -> bool {
    resource.group == "rbac.authorization.k8s.io"
}

fn metadata(resource: &Resource, it: &Value, errors: &mut Errors) {
    let name = object::name(it);
    let shown = Value::from(name);
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else if has_path_name(resource) {
        if name == "." || name == ".." || name.contains(['/', '%']) {
            let why = "may not be '.' or '..' and may not contain '/' or '%'";
            errors.push(FieldError::invalid("metadata.name", &shown, why));
        }
    } else if resource.name == "namespaces"
        || resource.name == "services"
        || resource.name == "tenants"
    {
        if 63 < name.len() {
            errors.push(FieldError::invalid(
                "metadata.name",
                &shown,
                "must be no more than 63 bytes",
            ));
        } else if !is_dns1123_label(name) {
            errors.push(FieldError::invalid("metadata.name", &shown, LABEL));
        }
        if resource.name == "tenants" && name == insula_api::names::ALL {
            errors.push(FieldError::invalid("metadata.name", &shown, "\"all\" is reserved"));
        }
    } else if 253 < name.len() {
        errors.push(FieldError::invalid("metadata.name", &shown, "must be no more than 253 bytes"));
    } else if !is_dns1123_subdomain(name) {
        errors.push(FieldError::invalid("metadata.name", &shown, SUBDOMAIN));
    }
    let metadata = object::metadata(it);
    labels(metadata.get("labels"), "metadata.labels", errors);
    if let Some(Value::Object(annotations)) = metadata.get("annotations") {
        for key in annotations.keys() {
            qualified_name(&key.to_lowercase(), key, "metadata.annotations", errors);
        }
        let size: usize = annotations
            .iter()
            .map(|(key, value)| key.len() + value.as_str().unwrap_or_default().len())
            .sum();
        if ANNOTATIONS < size {
            errors.push(FieldError::too_long("metadata.annotations", ANNOTATIONS));
        }
    }
    let owners = metadata.get("ownerReferences").and_then(Value::as_array);
    let mut controllers = 0;
    for (index, owner) in owners.into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if object::text(owner, &[field]).is_empty() {
                let path = format!("metadata.ownerReferences[{index}].{field}");
                let value = Value::from("");
                errors.push(FieldError::invalid(
                    path,
                    &value,
                    &format!("{field} must not be empty"),
                ));
            }
        }
        controllers += usize::from(owner.get("controller") == Some(&Value::Bool(true)));
    }
    if 1 < controllers {
        let why = "Only one reference can have Controller set to true";
        errors.push(FieldError::forbidden("metadata.ownerReferences", why));
    }
}

fn labels(value: Option<&Value>, path: &str, errors: &mut Errors) {
    let Some(Value::Object(labels)) = value else { return };
    for (key, value) in labels {
        qualified_name(key, key, path, errors);
        let text = value.as_str().unwrap_or_default();
        if 63 < text.len() {
            errors.push(FieldError::invalid(path, value, "must be no more than 63 bytes"));
        } else if !is_label_value(text) {
            errors.push(FieldError::invalid(path, value, LABEL_VALUE));
        }
    }
}

/// `name` or `prefix/name`.
fn qualified_name(key: &str, shown: &str, path: &str, errors: &mut Errors) {
    let (prefix, name) = match key.rsplit_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let shown = Value::from(shown);
    if prefix.is_some_and(|prefix| !is_dns1123_subdomain(prefix)) {
        errors.push(FieldError::invalid(path, &shown, &format!("prefix part {SUBDOMAIN}")));
    }
    if 63 < name.len() {
        errors.push(FieldError::invalid(path, &shown, "name part must be no more than 63 bytes"));
    } else if name.is_empty() || !is_label_value(name) {
        errors.push(FieldError::invalid(path, &shown, QUALIFIED));
    }
}

fn kind(resource: &Resource, it: &Value, errors: &mut Errors) {
    match (&*resource.group, &*resource.name) {
        ("", "pods") => pod_spec(&it["spec"], "spec", errors),
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets") => {
            workload(it, errors);
        }
        ("", "replicationcontrollers") => template(it, errors),
        ("", "secrets" | "configmaps") => data(it, errors),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            if object::text(it, &["roleRef", "name"]).is_empty() {
                errors.push(FieldError::required("roleRef.name", ""));
            }
            let kind = object::text(it, &["roleRef", "kind"]);
            let allowed: &[&str] = match &*resource.name {
                "rolebindings" => &["Role", "ClusterRole"],
                _ => &["ClusterRole"],
            };
            if !allowed.contains(&kind) {
                errors.push(FieldError::unsupported("roleRef.kind", &kind.into(), allowed));
            }
        }
        ("", "services") => service(it, errors),
        _ => (),
    }
}

fn list<'a>(it: &'a Value, field: &str) -> &'a [Value] {
    it.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn service(it: &Value, errors: &mut Errors) {
    let spec = &it["spec"];
    let kind = object::text(spec, &["type"]);
    let allowed = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !allowed.contains(&kind) {
        errors.push(FieldError::unsupported("spec.type", &kind.into(), &allowed));
    }
    let headless = object::text(spec, &["clusterIP"]) == "None";
    if list(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    for (index, port) in list(spec, "ports").iter().enumerate() {
        port_number(port.get("port"), &format!("spec.ports[{index}].port"), errors);
        if 1 < list(spec, "ports").len() && object::text(port, &["name"]).is_empty() {
            errors.push(FieldError::required(format!("spec.ports[{index}].name"), ""));
        }
    }
}

fn port_number(value: Option<&Value>, path: &str, errors: &mut Errors) {
    match value.and_then(Value::as_i64) {
        Some(1..=65535) => (),
        Some(other) => {
            let why = "must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid(path, &other.into(), why));
        }
        None => errors.push(FieldError::required(path, "")),
    }
}

fn data(it: &Value, errors: &mut Errors) {
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in it.get(field).and_then(Value::as_object).into_iter().flatten() {
            size += value.as_str().unwrap_or_default().len();
            let valid = !key.is_empty()
                && key.len() <= 253
                && key != "."
                && !key.starts_with("..")
                && key
                    .bytes()
                    .all(|it| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_' | b'.'));
            if !valid {
                let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
                errors.push(FieldError::invalid(
                    format!("{field}[{key}]"),
                    &key.as_str().into(),
                    why,
                ));
            }
        }
    }
    if DATA < size {
        errors.push(FieldError::too_long("data", DATA));
    }
}

fn workload(it: &Value, errors: &mut Errors) {
    let spec = &it["spec"];
    let replicas = spec.get("replicas").and_then(Value::as_i64);
    if replicas.is_some_and(|it| it < 0) {
        let why = "must be greater than or equal to 0";
        errors.push(FieldError::invalid("spec.replicas", &spec["replicas"], why));
    }
    let Some(selector) = spec.get("selector").filter(|it| it.is_object()) else {
        errors.push(FieldError::required("spec.selector", ""));
        return template(it, errors);
    };
    let wanted = selector.get("matchLabels").and_then(Value::as_object);
    let expressions = list(selector, "matchExpressions");
    if wanted.is_none_or(Map::is_empty) && expressions.is_empty() {
        let why = "empty selector is invalid for deployment";
        errors.push(FieldError::invalid("spec.selector", selector, why));
    }
    let none = Map::new();
    let labels =
        spec.pointer("/template/metadata/labels").and_then(Value::as_object).unwrap_or(&none);
    let equal = wanted.into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let expressed = expressions.iter().all(|it| {
        let key = object::text(it, &["key"]);
        let value = labels.get(key);
        let listed = value.is_some_and(|value| list(it, "values").contains(value));
        match object::text(it, &["operator"]) {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    if !equal || !expressed {
        let why = "`selector` does not match template `labels`";
        let shown = Value::Object(labels.clone());
        errors.push(FieldError::invalid("spec.template.metadata.labels", &shown, why));
    }
    template(it, errors);
}

fn template(it: &Value, errors: &mut Errors) {
    let Some(template) = it["spec"].get("template").filter(|it| it.is_object()) else {
        errors.push(FieldError::required("spec.template", ""));
        return;
    };
    labels(template.pointer("/metadata/labels"), "spec.template.labels", errors);
    pod_spec(&template["spec"], "spec.template.spec", errors);
    let policy = &template["spec"]["restartPolicy"];
    if policy.is_string() && policy != "Always" {
        errors.push(FieldError::unsupported(
            "spec.template.spec.restartPolicy",
            policy,
            &["Always"],
        ));
    }
}

fn pod_spec(spec: &Value, path: &str, errors: &mut Errors) {
    let vm = spec.get("virtualMachine").is_some_and(Value::is_object);
    let containers = list(spec, "containers");
    if containers.is_empty() && !vm {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut volumes = HashSet::new();
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let name = object::text(volume, &["name"]);
        let at = format!("{path}.volumes[{index}].name");
        label(name, &at, errors);
        if !volumes.insert(name) {
            errors.push(FieldError::duplicate(at, &name.into()));
        }
    }
    let mut names = HashSet::new();
    for field in ["initContainers", "containers"] {
        for (index, it) in list(spec, field).iter().enumerate() {
            let at = format!("{path}.{field}[{index}]");
            container(it, &at, &volumes, errors);
            let name = object::text(it, &["name"]);
            if !name.is_empty() && !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), &name.into()));
            }
        }
    }
    one_of(spec, "restartPolicy", path, &["Always", "Never", "OnFailure"], errors);
    one_of(
        spec,
        "dnsPolicy",
        path,
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        errors,
    );
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if let Some(seconds @ ..0) = grace {
        let at = format!("{path}.terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(at, &seconds.into(), "must be greater than or equal to 0"));
    }
    for (key, _) in spec.get("nodeSelector").and_then(Value::as_object).into_iter().flatten() {
        qualified_name(key, key, &format!("{path}.nodeSelector"), errors);
    }
}

fn one_of(spec: &Value, field: &str, path: &str, allowed: &[&str], errors: &mut Errors) {
    if let Some(value) = spec.get(field)
        && !allowed.contains(&value.as_str().unwrap_or_default())
    {
        errors.push(FieldError::unsupported(format!("{path}.{field}"), value, allowed));
    }
}

fn label(name: &str, path: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if 63 < name.len() {
        errors.push(FieldError::invalid(path, &name.into(), "must be no more than 63 bytes"));
    } else if !is_dns1123_label(name) {
        errors.push(FieldError::invalid(path, &name.into(), LABEL));
    }
}

fn container(it: &Value, path: &str, volumes: &HashSet<&str>, errors: &mut Errors) {
    label(object::text(it, &["name"]), &format!("{path}.name"), errors);
    if object::text(it, &["image"]).trim().is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    }
    one_of(it, "imagePullPolicy", path, &["Always", "IfNotPresent", "Never"], errors);
    for (index, port) in list(it, "ports").iter().enumerate() {
        port_number(
            port.get("containerPort"),
            &format!("{path}.ports[{index}].containerPort"),
            errors,
        );
        one_of(
            port,
            "protocol",
            &format!("{path}.ports[{index}]"),
            &["SCTP", "TCP", "UDP"],
            errors,
        );
    }
    for (index, env) in list(it, "env").iter().enumerate() {
        let name = object::text(env, &["name"]);
        let at = format!("{path}.env[{index}].name");
        if name.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if name.contains('=') || !name.bytes().all(|it| (0x20..0x7f).contains(&it)) {
            let why = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            errors.push(FieldError::invalid(at, &name.into(), why));
        }
    }
    let mut paths = HashSet::new();
    for (index, mount) in list(it, "volumeMounts").iter().enumerate() {
        let name = object::text(mount, &["name"]);
        if !volumes.contains(name) {
            let mut error =
                FieldError::invalid(format!("{path}.volumeMounts[{index}].name"), &name.into(), "");
            error.reason = "FieldValueNotFound";
            error.message = format!("Not found: {name:?}");
            errors.push(error);
        }
        let target = object::text(mount, &["mountPath"]);
        if target.is_empty() {
            errors
                .push(FieldError::required(format!("{path}.volumeMounts[{index}].mountPath"), ""));
        } else if !paths.insert(target) {
            let at = format!("{path}.volumeMounts[{index}].mountPath");
            errors.push(FieldError::invalid(at, &target.into(), "must be unique"));
        }
    }
    resources(it, path, errors);
}

fn resources(it: &Value, path: &str, errors: &mut Errors) {
    let amounts =
        |kind: &str| it.get("resources").and_then(|it| it.get(kind)).and_then(Value::as_object);
    let parse = |value: &Value| value.as_str().and_then(|text| Quantity::parse(text).ok());
    for kind in ["limits", "requests"] {
        for (name, value) in amounts(kind).into_iter().flatten() {
            if parse(value).is_some_and(|it| it.is_negative()) {
                let at = format!("{path}.resources.{kind}[{name}]");
                errors.push(FieldError::invalid(at, value, "must be greater than or equal to 0"));
            }
        }
    }
    for (name, request) in amounts("requests").into_iter().flatten() {
        let limit = amounts("limits").and_then(|limits| limits.get(name));
        if let (Some(request), Some(limit)) = (parse(request), limit.and_then(parse))
            && limit < request
        {
            let at = format!("{path}.resources.requests");
            let why = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(at, &request.to_string().into(), &why));
        }
    }
}

fn immutable(resource: &Resource, old: &Value, new: &Value, errors: &mut Errors) {
    let unchanged = |path: &[&str], errors: &mut Errors| {
        if object::at(old, path) != object::at(new, path) {
            let value = object::at(new, path).cloned().unwrap_or_default();
            errors.push(FieldError::invalid(path.join("."), &value, "field is immutable"));
        }
    };
    match (&*resource.group, &*resource.name) {
        ("apps", _) if resource.name != "controllerrevisions" => {
            unchanged(&["spec", "selector"], errors);
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings")
            if old.get("roleRef") != new.get("roleRef") =>
        {
            let why = "cannot change roleRef";
            errors.push(FieldError::invalid("roleRef", &new["roleRef"], why));
        }
        ("", "secrets" | "configmaps") => {
            if old.get("immutable") == Some(&Value::Bool(true)) {
                let why = "field is immutable when `immutable` is set";
                for field in ["data", "binaryData", "immutable"] {
                    if old.get(field) != new.get(field) {
                        errors.push(FieldError::forbidden(field, why));
                    }
                }
            }
            if resource.name == "secrets" {
                unchanged(&["type"], errors);
            }
        }
        ("", "pods") => pod_update(old, new, errors),
        ("batch", "jobs") => unchanged(&["spec", "template"], errors),
        _ => (),
    }
}

fn pod_update(old: &Value, new: &Value, errors: &mut Errors) {
    // What may change is taken over; the rest must be equal.
    let mut allowed = old["spec"].clone();
    for field in
        ["activeDeadlineSeconds", "tolerations", "schedulingGates", "terminationGracePeriodSeconds"]
    {
        match new["spec"].get(field) {
            Some(value) => allowed[field] = value.clone(),
            None => {
                if let Some(spec) = allowed.as_object_mut() {
                    spec.remove(field);
                }
            }
        }
    }
    for field in ["containers", "initContainers"] {
        let images: Vec<Option<Value>> =
            list(&new["spec"], field).iter().map(|it| it.get("image").cloned()).collect();
        let containers = allowed.get_mut(field).and_then(Value::as_array_mut);
        for (it, image) in containers.into_iter().flatten().zip(images) {
            if let Some(image) = image {
                it["image"] = image;
            }
        }
    }
    if allowed != new["spec"] {
        let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        errors.push(FieldError::forbidden("spec", why));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::registry::Registry;

    fn pods() -> Arc<Served> {
        Registry::built_in().get("", "v1", "pods").unwrap().clone()
    }

    #[track_caller]
    fn check(it: Value, expected: &[&str]) {
        let errors = create(&pods(), &it);
        let got: Vec<String> =
            errors.iter().map(|it| format!("{}: {}", it.field, it.message)).collect();
        assert_eq!(got.len(), expected.len(), "{got:?}");
        for (got, expected) in got.iter().zip(expected) {
            assert!(got.starts_with(expected), "{got}");
        }
    }

    #[test]
    fn pods_are_checked() {
        check(
            json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
            &[],
        );
        check(json!({"metadata": {"name": "a"}, "spec": {}}), &["spec.containers: Required value"]);
        check(
            json!({"metadata": {"name": "A"}, "spec": {"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}]}}),
            &[
                "metadata.name: Invalid value: \"A\"",
                "spec.containers[0].image: Required value",
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ],
        );
    }

    #[test]
    fn only_images_change() {
        let old = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "1"}]}});
        let new = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "2"}]}});
        assert_eq!(update(&pods(), "", &old, &new), []);
        let bad = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "2", "tty": true}]}});
        assert_eq!(update(&pods(), "", &old, &bad).len(), 1);
    }
}
