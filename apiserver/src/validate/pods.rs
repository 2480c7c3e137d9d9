//! Pods and their templates: what their parts may be together.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    at::{At, Check},
    containers,
    formats::Format,
    metadata, rule,
};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("api.core.v1.HostPathVolumeSource", host_path),
    ("api.core.v1.PodSpec", spec),
    ("api.core.v1.PodTemplateSpec", template),
    ("api.core.v1.Sysctl", sysctl),
    ("api.core.v1.Volume", volume),
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

pub(super) fn text<'a>(it: &'a Value, field: &str) -> &'a str {
    it.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn list<'a>(it: &'a Value, field: &str) -> &'a [Value] {
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
            it.errors.push(FieldError::not_found(at, target));
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
    for (index, gate) in list(value, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        for why in Format::Qualified.check(name) {
            it.invalid(&format!("schedulingGates[{index}]"), &name.into(), &why);
        }
    }
    host_users(it);
    if let Some(amounts) = value.get("overhead") {
        containers::overhead(it, amounts);
    }
    operating_system(it);
}

fn operating_system(it: &mut At<'_>) {
    let Some(name) = it.get("os").map(|it| text(it, "name").to_owned()) else { return };
    match &*name {
        "linux" | "windows" => (),
        "" => it.required("os.name", ""),
        _ => it.unsupported("os", &name.into(), &["linux", "windows"]),
    }
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
                it.errors.push(FieldError::not_found(field, name));
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
            it.errors.push(FieldError::not_found(field, name));
        }
    }
}

/// Which probes and hooks a container of its list may have.
fn probes(it: &mut At<'_>, container: &Value, list_of: &str, at: &str) {
    const HOOKS: [&str; 4] = ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"];
    let stays = text(container, "restartPolicy") == "Always";
    match list_of {
        "initContainers" => {
            restart_policy(it, container, at);
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
            restart_policy(it, container, at);
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

/// Whether a container may be run again as it says, and by which rules.
fn restart_policy(it: &mut At<'_>, container: &Value, at: &str) {
    const POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
    let rules = list(container, "restartPolicyRules");
    match container.get("restartPolicy") {
        Some(policy) if !POLICIES.contains(&policy.as_str().unwrap_or_default()) => {
            it.unsupported(&format!("{at}.restartPolicy"), policy, &POLICIES);
        }
        None if !rules.is_empty() => {
            let why = "must specify restartPolicy when restart rules are used";
            it.required(&format!("{at}.restartPolicy"), why);
        }
        _ => (),
    }
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("{at}.restartPolicyRules[{index}]");
        let action = text(rule, "action");
        if action != "Restart" {
            it.unsupported(&format!("{at}.action"), &action.into(), &["Restart"]);
        }
        let Some(codes) = rule.get("exitCodes") else {
            it.required(&format!("{at}.exitCodes"), "must be specified");
            continue;
        };
        let operator = text(codes, "operator");
        if !["In", "NotIn"].contains(&operator) {
            it.unsupported(&format!("{at}.exitCodes.operator"), &operator.into(), &["In", "NotIn"]);
        }
        let n_values = list(codes, "values").len();
        if 255 < n_values {
            let at = it.at(&format!("{at}.exitCodes.values"));
            it.errors.push(FieldError::too_many(at, n_values, 255));
        }
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
    for (index, container) in list(value, "containers").iter().enumerate() {
        for (at, port) in list(container, "ports").iter().enumerate() {
            let host = port.get("hostPort").filter(|it| **it != 0);
            if let Some(host) = host.filter(|it| Some(*it) != port.get("containerPort")) {
                let field = format!("containers[{index}].ports[{at}].hostPort");
                let why = "must match `containerPort` when `hostNetwork` is true";
                it.invalid(&field, host, why);
            }
        }
    }
}

/// With users of its own, a pod has nothing of the node.
fn host_users(it: &mut At<'_>) {
    let value = it.it;
    if value.get("hostUsers") != Some(&Value::Bool(false)) {
        return;
    }
    for (field, shown) in
        [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")]
    {
        if value.get(field) == Some(&Value::Bool(true)) {
            it.forbidden(shown, "when `hostUsers` is false");
        }
    }
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for (index, container) in list(value, field).iter().enumerate() {
            if !list(container, "volumeDevices").is_empty() {
                let at = format!("{field}[{index}].volumeDevices");
                it.forbidden(&at, "when `hostUsers` is false");
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
        let name = name.strip_suffix('.').unwrap_or(name);
        if search != "." {
            for why in Format::Underscored.check(name) {
                it.invalid(&format!("dnsConfig.searches[{index}]"), search, &why);
            }
        }
    }
}

fn template(it: &mut At<'_>) {
    let found = it.get("metadata").cloned().unwrap_or_default();
    if let Some(labels) = found.get("labels") {
        let path = it.at("labels");
        rule::labels(labels, &path, it.errors);
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

fn volume(it: &mut At<'_>) {
    it.one_of(VOLUMES, "must specify a volume type", "may not specify more than 1 volume type");
}

fn host_path(it: &mut At<'_>) {
    let path = it.text("path").to_owned();
    if path.split('/').any(|it| it == "..") {
        it.invalid("path", &path.into(), "must not contain '..'");
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
