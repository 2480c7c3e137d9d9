//! Pods and their templates: what their parts may be together.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    formats::Format,
    metadata,
    rules::{self, At, Check, quantity},
};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("apimachinery.pkg.apis.meta.v1.LabelSelectorRequirement", requirement),
    ("api.core.v1.Affinity", affinity),
    ("api.core.v1.ContainerPort", port),
    ("api.core.v1.EphemeralContainer", ephemeral_container),
    ("api.core.v1.EnvFromSource", env_from),
    ("api.core.v1.EnvVar", env),
    ("api.core.v1.EnvVarSource", env_source),
    ("api.core.v1.LifecycleHandler", handler),
    ("api.core.v1.NodeSelector", node_selector),
    ("api.core.v1.NodeSelectorRequirement", node_requirement),
    ("api.core.v1.PodAffinityTerm", affinity_term),
    ("api.core.v1.PodSpec", spec),
    ("api.core.v1.PodTemplateSpec", template),
    ("api.core.v1.Probe", handler),
    ("api.core.v1.ResourceRequirements", resources),
    ("api.core.v1.SeccompProfile", |it| profile(it, "seccomp")),
    ("api.core.v1.AppArmorProfile", |it| profile(it, "AppArmor")),
    ("api.core.v1.SecurityContext", security),
    ("api.core.v1.Sysctl", sysctl),
    ("api.core.v1.Toleration", toleration),
    ("api.core.v1.TopologySpreadConstraint", spread),
    ("api.core.v1.Volume", volume),
    ("api.core.v1.HostPathVolumeSource", host_path),
    ("api.core.v1.VolumeMount", mount),
];

/// Ways to get a volume. The order is that of upstream's checks.
const VOLUMES: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

fn text<'a>(it: &'a Value, field: &str) -> &'a str {
    it.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(it: &'a Value, field: &str) -> &'a [Value] {
    it.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn spec(it: &mut At<'_>) {
    if it.has("virtualMachine") {
        // It is what the pod consists of.
        it.take_back("containers", Some("FieldValueRequired"));
    }
    let value = it.it;
    let volumes: HashSet<&str> = list(value, "volumes").iter().map(|it| text(it, "name")).collect();
    let claims: HashSet<&str> =
        list(value, "resourceClaims").iter().map(|it| text(it, "name")).collect();
    let mut names: HashSet<&str> =
        list(value, "containers").iter().map(|it| text(it, "name")).collect();
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        for (index, container) in list(value, field).iter().enumerate() {
            let at = format!("{field}[{index}]");
            uses(it, container, &at, &volumes, &claims);
            let name = text(container, "name");
            if field != "containers" && !name.is_empty() && !names.insert(name) {
                it.duplicate(&format!("{at}.name"), &name.into());
            }
            probes(it, container, field, &at);
        }
    }
    let regular: HashSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|field| list(value, field))
        .map(|it| text(it, "name"))
        .collect();
    for (index, container) in list(value, "ephemeralContainers").iter().enumerate() {
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !regular.contains(target) {
            let at = it.at(&format!("ephemeralContainers[{index}].targetContainerName"));
            it.errors.push(not_found(at, target));
        }
    }
    host_ports(it);
    host_network(it);
    security_of_pod(it);
    dns(it);
    let mut kinds = HashSet::new();
    for (index, constraint) in list(value, "topologySpreadConstraints").iter().enumerate() {
        let key = (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
        if !kinds.insert(key) {
            let shown = Value::from(format!("{{{}, {}}}", key.0, key.1));
            let at = format!(
                "topologySpreadConstraints[{}].{{topologyKey, whenUnsatisfiable}}",
                index.saturating_sub(1)
            );
            it.duplicate(&at, &shown);
        }
    }
    for (index, claim) in list(value, "resourceClaims").iter().enumerate() {
        let n = ["resourceClaimName", "resourceClaimTemplateName"]
            .iter()
            .filter(|field| claim.get(**field).is_some())
            .count();
        if n != 1 {
            let why = match n {
                0 => "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
                _ => {
                    "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
                }
            };
            it.invalid(&format!("resourceClaims[{index}]"), claim, why);
        }
    }
    let is_unset =
        |index: usize| text(&list(value, "readinessGates")[index], "conditionType").is_empty();
    for index in 0..list(value, "readinessGates").len() {
        if is_unset(index) {
            let at = format!("readinessGates[{index}].conditionType");
            for why in Format::Qualified.check("") {
                it.invalid(&at, &"".into(), &why);
            }
        }
    }
}

fn not_found(field: String, name: &str) -> FieldError {
    let message = format!("Not found: {name:?}");
    FieldError { field, reason: "FieldValueNotFound", message }
}

/// What a container has of the pod it is in.
fn uses(
    it: &mut At<'_>,
    container: &Value,
    at: &str,
    volumes: &HashSet<&str>,
    claims: &HashSet<&str>,
) {
    let mut places = HashSet::new();
    for (kind, field, place) in
        [("volumeMounts", "mountPath", "mount"), ("volumeDevices", "devicePath", "device")]
    {
        for (index, mount) in list(container, kind).iter().enumerate() {
            let name = text(mount, "name");
            let at = format!("{at}.{kind}[{index}]");
            if !volumes.contains(name) {
                let field = it.at(&format!("{at}.name"));
                it.errors.push(not_found(field, name));
            }
            let target = text(mount, field);
            if !target.is_empty() && !places.insert((place, target)) {
                it.invalid(&format!("{at}.{field}"), &target.into(), "must be unique");
            }
        }
    }
    let wanted = container.get("resources").map(|it| list(it, "claims")).unwrap_or_default();
    for (index, claim) in wanted.iter().enumerate() {
        let name = text(claim, "name");
        if !claims.contains(name) {
            let field = it.at(&format!("{at}.resources.claims[{index}].name"));
            it.errors.push(not_found(field, name));
        }
    }
}

/// Which probes and hooks a container of its list may have.
fn probes(it: &mut At<'_>, container: &Value, list_of: &str, at: &str) {
    const HOOKS: [&str; 4] = ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"];
    let stays = text(container, "restartPolicy") == "Always";
    match list_of {
        "initContainers" => {
            if let Some(policy) = container.get("restartPolicy").filter(|_| !stays) {
                let allowed = ["Always"];
                it.unsupported(&format!("{at}.restartPolicy"), policy, &allowed);
            }
            if !stays {
                for field in HOOKS.iter().filter(|field| container.get(**field).is_some()) {
                    let why = "may not be set for init containers without restartPolicy=Always";
                    it.forbidden(&format!("{at}.{field}"), why);
                }
                return;
            }
        }
        "ephemeralContainers" => return,
        _ => {
            if let Some(policy) = container.get("restartPolicy") {
                let allowed = ["Always", "Never", "OnFailure"];
                if !allowed.contains(&policy.as_str().unwrap_or_default()) {
                    it.unsupported(&format!("{at}.restartPolicy"), policy, &allowed);
                }
            }
        }
    }
    for field in ["livenessProbe", "startupProbe"] {
        let threshold = container.get(field).and_then(|it| it.get("successThreshold"));
        if let Some(threshold) = threshold.filter(|it| **it != 1) {
            it.invalid(&format!("{at}.{field}.successThreshold"), threshold, "must be 1");
        }
    }
    let grace =
        container.get("readinessProbe").and_then(|it| it.get("terminationGracePeriodSeconds"));
    if let Some(grace) = grace.filter(|it| !it.is_null()) {
        let field = format!("{at}.readinessProbe.terminationGracePeriodSeconds");
        it.invalid(&field, grace, "must not be set for readinessProbes");
    }
}

/// No two containers that run at once have the same port of the node.
fn host_ports(it: &mut At<'_>) {
    let value = it.it;
    let mut seen = HashSet::new();
    for (index, container) in list(value, "containers").iter().enumerate() {
        for (at, port) in list(container, "ports").iter().enumerate() {
            let Some(number) = port.get("hostPort").filter(|it| **it != 0) else { continue };
            let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if !seen.insert(key.clone()) {
                let field = format!("containers[{index}].ports[{at}].hostPort");
                it.duplicate(&field, &key.into());
            }
        }
    }
}

/// In the network of the node, a port is the node's.
fn host_network(it: &mut At<'_>) {
    let value = it.it;
    if value.get("hostNetwork") != Some(&Value::Bool(true)) {
        return;
    }
    for field in ["containers", "initContainers"] {
        for (index, container) in list(value, field).iter().enumerate() {
            for (at, port) in list(container, "ports").iter().enumerate() {
                let host = port.get("hostPort").filter(|it| **it != 0);
                if host.is_some_and(|host| Some(host) != port.get("containerPort")) {
                    let field = format!("{field}[{index}].ports[{at}].containerPort");
                    let why = "must match `hostPort` when `hostNetwork` is true";
                    it.invalid(&field, &port["containerPort"], why);
                }
            }
        }
    }
}

fn security_of_pod(it: &mut At<'_>) {
    let value = it.it;
    let Some(context) = value.get("securityContext") else { return };
    let shares = value.get("shareProcessNamespace") == Some(&true.into());
    if shares && value.get("hostPID") == Some(&true.into()) {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        it.invalid("securityContext.shareProcessNamespace", &true.into(), why);
    }
    for (index, sysctl) in list(context, "sysctls").iter().enumerate() {
        let name = text(sysctl, "name").replace('/', ".");
        for (prefix, host, what) in [
            ("net.", "hostNetwork", "hostNetwork"),
            ("kernel.shm", "hostIPC", "hostIPC"),
            ("kernel.msg", "hostIPC", "hostIPC"),
            ("kernel.sem", "hostIPC", "hostIPC"),
            ("fs.mqueue.", "hostIPC", "hostIPC"),
        ] {
            if name.starts_with(prefix) && value.get(host) == Some(&true.into()) {
                let why = format!("may not be specified when '{what}' is true");
                it.invalid(
                    &format!("securityContext.sysctls[{index}].name"),
                    &sysctl["name"],
                    &why,
                );
            }
        }
    }
}

fn dns(it: &mut At<'_>) {
    let value = it.it;
    let config = value.get("dnsConfig");
    if text(value, "dnsPolicy") == "None" {
        if config.is_none() {
            it.required("dnsConfig", "must provide `dnsConfig` when `dnsPolicy` is None");
        } else if config.is_some_and(|it| list(it, "nameservers").is_empty()) {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            it.required("dnsConfig.nameservers", why);
        }
    }
    let Some(config) = config else { return };
    if 3 < list(config, "nameservers").len() {
        let why = "must not have more than 3 nameservers";
        it.invalid("dnsConfig.nameservers", &config["nameservers"], why);
    }
    let searches = list(config, "searches");
    if 32 < searches.len() {
        let why = "must not have more than 32 search paths";
        it.invalid("dnsConfig.searches", &config["searches"], why);
    }
    let size: usize = searches.iter().map(|it| it.as_str().unwrap_or_default().len() + 1).sum();
    if 2049 < size {
        let why = "must not have more than 2048 characters (including spaces) in the search list";
        it.invalid("dnsConfig.searches", &config["searches"], why);
    }
    for (index, search) in searches.iter().enumerate() {
        let name = search.as_str().unwrap_or_default();
        let name = name.strip_suffix('.').unwrap_or(name).replace('_', "a");
        if search != "." {
            for why in Format::Subdomain.check(&name) {
                it.invalid(&format!("dnsConfig.searches[{index}]"), search, &why);
            }
        }
    }
}

fn template(it: &mut At<'_>) {
    let found = it.get("metadata").cloned().unwrap_or_default();
    if let Some(labels) = found.get("labels") {
        let path = it.at("labels");
        rules::labels(labels, &path, it.errors);
    }
    if let Some(Value::Object(found)) = found.get("annotations") {
        let path = it.at("annotations");
        metadata::annotations(found, &path, it.errors);
    }
    if it.get("spec").is_some_and(|it| !list(it, "ephemeralContainers").is_empty()) {
        it.forbidden(
            "spec.ephemeralContainers",
            "ephemeral containers not allowed in pod template",
        );
    }
}

fn ephemeral_container(it: &mut At<'_>) {
    for field in [
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "ports",
        "resizePolicy",
        "restartPolicy",
    ] {
        let is_set = match it.get(field) {
            Some(Value::Array(list)) => !list.is_empty(),
            other => other.is_some(),
        };
        if is_set {
            it.forbidden(field, "cannot be set for an Ephemeral Container");
        }
    }
    let is_sized = |it: &Value| it.as_object().is_some_and(|it| !it.is_empty());
    if it.get("resources").is_some_and(is_sized) {
        it.forbidden("resources", "cannot be set for an Ephemeral Container");
    }
    for (index, mount) in it.list("volumeMounts").to_vec().iter().enumerate() {
        for field in ["subPath", "subPathExpr"] {
            if !text(mount, field).is_empty() {
                let why = "cannot be set for an Ephemeral Container";
                it.forbidden(&format!("volumeMounts[{index}].{field}"), why);
            }
        }
    }
}

fn port(it: &mut At<'_>) {
    if it.number("containerPort") == Some(0) {
        it.take_back("containerPort", None);
        it.required("containerPort", "");
    }
}

fn env(it: &mut At<'_>) {
    if it.has("valueFrom") && !it.text("value").is_empty() {
        let why = "may not be specified when `value` is not empty";
        it.invalid("valueFrom", &"".into(), why);
    }
}

fn env_source(it: &mut At<'_>) {
    const SOURCES: [&str; 5] =
        ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let path = it.path.to_string();
    match SOURCES.iter().filter(|field| it.has(field)).count() {
        0 => {
            let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            it.errors.push(FieldError::invalid(path, &"".into(), why));
        }
        1 => (),
        _ => {
            let why = "may not have more than one field specified at a time";
            it.errors.push(FieldError::invalid(path, &"".into(), why));
        }
    }
}

fn env_from(it: &mut At<'_>) {
    let path = it.path.to_string();
    match ["configMapRef", "secretRef"].iter().filter(|field| it.has(field)).count() {
        0 => {
            let why = "must specify one of: `configMapRef` or `secretRef`";
            it.errors.push(FieldError::invalid(path, &"".into(), why));
        }
        1 => (),
        _ => {
            let why = "may not have more than one field specified at a time";
            it.errors.push(FieldError::invalid(path, &"".into(), why));
        }
    }
}

fn handler(it: &mut At<'_>) {
    it.one_of(
        &["exec", "httpGet", "tcpSocket", "grpc", "sleep"],
        "must specify a handler type",
        "may not specify more than 1 handler type",
    );
}

fn volume(it: &mut At<'_>) {
    it.one_of(VOLUMES, "must specify a volume type", "may not specify more than 1 volume type");
}

fn host_path(it: &mut At<'_>) {
    let path = it.text("path").to_owned();
    if path.split('/').any(|it| it == "..") {
        it.invalid("path", &path.into(), "must not contain '..'");
    }
}

fn mount(it: &mut At<'_>) {
    if !it.text("subPath").is_empty() && !it.text("subPathExpr").is_empty() {
        let shown = it.text("subPathExpr").into();
        it.invalid("subPathExpr", &shown, "subPathExpr and subPath are mutually exclusive");
    }
}

/// Whether a pod may ask for less of it than it may have.
fn is_overcommitted(name: &str) -> bool {
    let native = !name.contains('/')
        || name.split('/').next().is_some_and(|it| it.contains("kubernetes.io"));
    native && !name.starts_with("hugepages-")
}

fn resources(it: &mut At<'_>) {
    const STANDARD: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "storage"];
    let map = |field: &str| it.get(field).and_then(Value::as_object).cloned().unwrap_or_default();
    let (limits, requests) = (map("limits"), map("requests"));
    for (field, amounts) in [("limits", &limits), ("requests", &requests)] {
        for (name, value) in amounts {
            let at = format!("{field}[{name}]");
            let mut wrong = Format::Qualified.check(name);
            let is_known = STANDARD.contains(&&**name) || name.starts_with("hugepages-");
            if wrong.is_empty() && !name.contains('/') && !is_known {
                wrong.push("must be a standard resource type or fully qualified".into());
                wrong.push("must be a standard resource for containers".into());
            }
            for why in wrong {
                it.invalid(&at, &name.as_str().into(), &why);
            }
            let Some(amount) = quantity(value) else { continue };
            if amount.is_negative() {
                it.invalid(&at, value, rules::NEGATIVE);
            }
            if !is_overcommitted(name) && amount.milli_value() % 1000 != 0 {
                it.invalid(&at, value, "must be an integer");
            }
        }
    }
    for (name, value) in &requests {
        let Some(request) = quantity(value) else { continue };
        let shown = Value::from(request.to_string());
        match limits.get(name).and_then(quantity) {
            Some(limit) if request != limit && !is_overcommitted(name) => {
                let why = format!("must be equal to {name} limit of {limit}");
                it.invalid("requests", &shown, &why);
            }
            Some(limit) if limit < request => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                it.invalid("requests", &shown, &why);
            }
            None if !is_overcommitted(name) => {
                it.required("limits", "Limit must be set for non overcommitable resources");
            }
            _ => (),
        }
    }
    let has = |name: &dyn Fn(&str) -> bool| limits.keys().chain(requests.keys()).any(|it| name(it));
    if has(&|it| it.starts_with("hugepages-")) && !has(&|it| matches!(it, "cpu" | "memory")) {
        let path = it.path.to_string();
        it.errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

fn security(it: &mut At<'_>) {
    if it.get("allowPrivilegeEscalation") != Some(&Value::Bool(false)) {
        return;
    }
    let path = it.path.to_string();
    if it.get("privileged") == Some(&Value::Bool(true)) {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        it.errors.push(FieldError::invalid(path.clone(), it.it, why));
    }
    let added = it.get("capabilities").map(|it| list(it, "add")).unwrap_or_default();
    if added.iter().any(|it| it == "CAP_SYS_ADMIN") {
        let why =
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        it.errors.push(FieldError::invalid(path, it.it, why));
    }
}

/// A profile from the node is named; others are not.
fn profile(it: &mut At<'_>, of: &str) {
    let kind = it.get("type").cloned().unwrap_or_default();
    match kind.as_str().unwrap_or_default() {
        "Localhost" if it.text("localhostProfile").is_empty() => {
            let why = match of {
                "seccomp" => "must be set when seccomp type is Localhost",
                _ => "must be set when AppArmor type is Localhost",
            };
            it.required("localhostProfile", why);
        }
        "RuntimeDefault" | "Unconfined" if it.has("localhostProfile") => {
            let shown = it.text("localhostProfile").into();
            let why = match of {
                "seccomp" => "can only be set when seccomp type is Localhost",
                _ => "can only be set when AppArmor type is Localhost",
            };
            it.invalid("localhostProfile", &shown, why);
        }
        "Localhost" | "RuntimeDefault" | "Unconfined" => (),
        "" => it.required("type", "type is required when seccompProfile is set"),
        _ => it.unsupported("type", &kind, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

fn sysctl(it: &mut At<'_>) {
    let name = it.text("name").to_owned();
    let segment = |it: &str| {
        let edge =
            |it: Option<char>| it.is_some_and(|it| it.is_ascii_lowercase() || it.is_ascii_digit());
        let inner =
            |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || matches!(it, b'-' | b'_');
        edge(it.chars().next()) && edge(it.chars().next_back()) && it.bytes().all(inner)
    };
    let is = name.len() <= 253 && name.split(['.', '/']).all(segment);
    if !is && !name.is_empty() {
        let why = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
        it.invalid("name", &name.into(), why);
    }
}

fn toleration(it: &mut At<'_>) {
    let text = |field: &str| it.text(field).to_owned();
    let (key, operator, value, effect) =
        (text("key"), text("operator"), text("value"), text("effect"));
    if key.is_empty() && operator != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        it.invalid("operator", &operator.as_str().into(), why);
    }
    if it.has("tolerationSeconds") && effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        it.invalid("effect", &effect.as_str().into(), why);
    }
    match &*operator {
        "" | "Equal" => {
            let wrong = Format::LabelValue.check(&value);
            if !wrong.is_empty() && !value.is_empty() {
                it.invalid("operator", &value.into(), &wrong.join(";"));
            }
        }
        "Exists" if !value.is_empty() => {
            it.invalid(
                "operator",
                &value.into(),
                "value must be empty when `operator` is 'Exists'",
            );
        }
        "Exists" => (),
        _ => it.unsupported("operator", &operator.into(), &["Equal", "Exists"]),
    }
    let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    if !effect.is_empty() && !effects.contains(&&*effect) {
        it.unsupported("effect", &effect.into(), &effects);
    }
}

fn spread(it: &mut At<'_>) {
    if it.number("maxSkew").is_none_or(|it| it == 0) {
        it.take_back("maxSkew", None);
        it.invalid("maxSkew", &0.into(), "must be greater than zero");
    }
    if it.text("topologyKey").is_empty() {
        it.required("topologyKey", "can not be empty");
    } else {
        let key = it.text("topologyKey").to_owned();
        for why in Format::Qualified.check(&key) {
            it.invalid("topologyKey", &key.as_str().into(), &why);
        }
    }
    let allowed = ["DoNotSchedule", "ScheduleAnyway"];
    let when = it.text("whenUnsatisfiable").to_owned();
    if !allowed.contains(&&*when) {
        it.unsupported("whenUnsatisfiable", &when.as_str().into(), &allowed);
    }
    if let Some(domains) = it.number("minDomains") {
        if domains <= 0 {
            it.invalid("minDomains", &domains.into(), "must be greater than zero");
        }
        if when != "DoNotSchedule" {
            let why =
                format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
            it.invalid("minDomains", &domains.into(), &why);
        }
    }
    label_keys(it, "matchLabelKeys");
}

/// Keys that stand for requirements of the selector beside them.
fn label_keys(it: &mut At<'_>, field: &str) {
    let keys = it.list(field).to_vec();
    if !keys.is_empty() && !it.has("labelSelector") {
        it.forbidden(field, "must not be specified when labelSelector is not set");
    }
    for (index, key) in keys.iter().enumerate() {
        for why in Format::Qualified.check(key.as_str().unwrap_or_default()) {
            it.invalid(&format!("{field}[{index}]"), key, &why);
        }
    }
}

fn affinity_term(it: &mut At<'_>) {
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        label_keys(it, field);
    }
    let key = it.text("topologyKey").to_owned();
    if key.is_empty() {
        it.required("topologyKey", "can not be empty");
    }
    for why in Format::Qualified.check(&key) {
        it.invalid("topologyKey", &key.as_str().into(), &why);
    }
}

fn affinity(it: &mut At<'_>) {
    let required = it
        .get("nodeAffinity")
        .and_then(|it| it.get("requiredDuringSchedulingIgnoredDuringExecution"));
    if required.is_some_and(|it| list(it, "nodeSelectorTerms").is_empty()) {
        let at = "nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
        it.required(at, "must have at least one node selector term");
    }
}

fn node_selector(it: &mut At<'_>) {
    for (index, term) in it.list("nodeSelectorTerms").to_vec().iter().enumerate() {
        for (at, field) in list(term, "matchFields").iter().enumerate() {
            if text(field, "key") != "metadata.name" {
                let at = format!("nodeSelectorTerms[{index}].matchFields[{at}].key");
                it.invalid(&at, &field["key"], "not a valid field selector key");
            }
        }
    }
}

fn node_requirement(it: &mut At<'_>) {
    let values = it.list("values").to_vec();
    let operator = it.get("operator").cloned().unwrap_or_default();
    match operator.as_str().unwrap_or_default() {
        "In" | "NotIn" if values.is_empty() => {
            it.required("values", "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => it.forbidden(
            "values",
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        "Gt" | "Lt" if values.len() != 1 => {
            it.required("values", "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => (),
        _ => it.invalid("operator", &operator, "not a valid selector operator"),
    }
    if it.text("key").is_empty() {
        for why in Format::Qualified.check("") {
            it.invalid("key", &"".into(), &why);
        }
    }
}

/// One requirement of a label selector.
fn requirement(it: &mut At<'_>) {
    let values = it.list("values").to_vec();
    let operator = it.get("operator").cloned().unwrap_or_else(|| "".into());
    match operator.as_str().unwrap_or_default() {
        "In" | "NotIn" if values.is_empty() => {
            it.required("values", "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => it.forbidden(
            "values",
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => (),
        _ => it.invalid("operator", &operator, "not a valid selector operator"),
    }
    if it.text("key").is_empty() {
        for why in Format::Qualified.check("") {
            it.invalid("key", &"".into(), &why);
        }
    }
}
