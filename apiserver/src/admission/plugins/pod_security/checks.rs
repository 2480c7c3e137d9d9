//! What pods may not ask for: one row per rule, with the level and the versions it belongs to.

use std::collections::BTreeSet;

use insula_api::object;
use serde_json::Value;

use super::policy::{Level, Standard, Version};
use crate::admission::plugins::pods::{containers, list};

/// The newest version that has rules of its own.
const NEWEST: u32 = 35;

/// Something that a pod may not ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub reason: String,
    pub detail: String,
}

/// A pod, or a template of one.
pub(super) struct Pod<'a> {
    annotations: Option<&'a Value>,
    spec: &'a Value,
}

type Check = fn(&Pod<'_>, u32) -> Option<Finding>;

/// One rule.
struct Row {
    level: Level,
    since: u32,
    /// The first version in which a stricter rule of the restricted level says the same.
    replaced: Option<u32>,
    check: Check,
}

const fn baseline(since: u32, replaced: Option<u32>, check: Check) -> Row {
    Row { level: Level::Baseline, since, replaced, check }
}

const fn restricted(since: u32, check: Check) -> Row {
    Row { level: Level::Restricted, since, replaced: None, check }
}

static ROWS: &[Row] = &[
    baseline(0, None, app_armor),
    baseline(0, Some(22), capabilities),
    baseline(0, None, host_namespaces),
    baseline(0, Some(0), host_paths),
    baseline(0, None, host_ports),
    baseline(34, None, probe_hosts),
    baseline(0, None, privileged),
    baseline(0, Some(35), proc_mount_unless_mapped),
    baseline(0, None, se_linux),
    baseline(0, Some(19), seccomp),
    baseline(0, None, sysctls),
    baseline(0, None, host_process),
    restricted(8, privilege_escalation),
    restricted(22, dropped_capabilities),
    restricted(35, proc_mount),
    restricted(0, volumes),
    restricted(0, run_as_non_root),
    restricted(23, run_as_user),
    restricted(19, needed_seccomp),
];

/// All that a pod asks for and may not.
pub(super) fn run(standard: Standard, pod: &Pod<'_>) -> Vec<Finding> {
    let version = match standard.version {
        Version::Latest => NEWEST,
        Version::Minor(minor) => minor.min(NEWEST),
    };
    let is_strict = standard.level == Level::Restricted;
    let rows = ROWS.iter().filter(|it| {
        let is_replaced = is_strict && it.replaced.is_some_and(|since| since <= version);
        it.level <= standard.level && it.since <= version && !is_replaced
    });
    rows.filter_map(|it| (it.check)(pod, version)).collect()
}

impl<'a> Pod<'a> {
    pub(super) fn of(it: &'a Value) -> Self {
        static NOTHING: Value = Value::Null;
        Self {
            annotations: object::metadata(it).get("annotations"),
            spec: it.get("spec").unwrap_or(&NOTHING),
        }
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        containers(self.spec).map(|(_, it)| it)
    }

    /// Names of the containers that `is_bad`.
    fn bad(&self, mut is_bad: impl FnMut(&Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|it| is_bad(it)).map(|it| object::text(it, &["name"])).collect()
    }

    fn context(&self, path: &[&str]) -> Option<&'a Value> {
        context(self.spec, path)
    }

    fn is_windows(&self) -> bool {
        object::text(self.spec, &["os", "name"]) == "windows"
    }

    /// Its users are nobody on the host.
    fn is_mapped(&self) -> bool {
        self.spec.get("hostUsers") == Some(&Value::Bool(false))
    }
}

/// A field of the security context of a pod or container.
fn context<'a>(it: &'a Value, path: &[&str]) -> Option<&'a Value> {
    object::at(it.get("securityContext")?, path).filter(|it| !it.is_null())
}

fn found(reason: impl Into<String>, detail: impl Into<String>) -> Option<Finding> {
    Some(Finding { reason: reason.into(), detail: detail.into() })
}

fn quoted<'a>(list: impl IntoIterator<Item = &'a str>) -> String {
    list.into_iter().map(|it| format!("\"{it}\"")).collect::<Vec<_>>().join(", ")
}

fn plural<'a>(one: &'a str, many: &'a str, n: usize) -> &'a str {
    if n == 1 { one } else { many }
}

/// `container "a"` or `containers "a", "b"`.
fn these(names: &[&str]) -> String {
    let what = plural("container", "containers", names.len());
    format!("{what} {}", quoted(names.iter().copied()))
}

/// The pod and the containers that set something bad.
fn setters(pod: bool, containers: &[&str]) -> Option<String> {
    match (pod, containers) {
        (false, []) => None,
        (true, []) => Some("pod".into()),
        (false, names) => Some(these(names)),
        (true, names) => Some(format!("pod and {}", these(names))),
    }
}

fn app_armor(pod: &Pod<'_>, _: u32) -> Option<Finding> {
    const KEY: &str = "container.apparmor.security.beta.kubernetes.io/";
    let mut values = BTreeSet::new();
    let mut is_bad = |it: Option<&Value>| {
        let kind = it.and_then(|it| it.get("type")).and_then(Value::as_str);
        let bad = it.is_some() && !matches!(kind, Some("RuntimeDefault" | "Localhost"));
        if bad {
            values.insert(kind.unwrap_or_default().to_owned());
        }
        bad
    };
    let of_pod = is_bad(pod.context(&["appArmorProfile"]));
    let names = pod.bad(|it| is_bad(context(it, &["appArmorProfile"])));
    let mut values: Vec<String> = values.into_iter().collect();
    let annotations = pod.annotations.and_then(Value::as_object).into_iter().flatten();
    let mut forbidden: Vec<String> = annotations
        .filter_map(|(key, it)| Some((key, it.as_str()?)))
        .filter(|(key, it)| {
            let is_fine = matches!(*it, "" | "runtime/default") || it.starts_with("localhost/");
            key.starts_with(KEY) && !is_fine
        })
        .map(|(key, it)| format!("{key}={it:?}"))
        .collect();
    forbidden.sort();
    let of_annotations = (!forbidden.is_empty())
        .then(|| plural("annotation", "annotations", forbidden.len()).to_owned());
    values.extend(forbidden);
    let all: Vec<String> = setters(of_pod, &names).into_iter().chain(of_annotations).collect();
    if all.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    let values = quoted(values.iter().map(String::as_str));
    found(reason, format!("{} must not set AppArmor profile type to {values}", all.join(" and ")))
}

/// The capabilities of a container in `add` or `drop`.
fn capabilities_of<'a>(it: &'a Value, which: &str) -> impl Iterator<Item = &'a str> {
    let found = context(it, &["capabilities"]).map(|it| list(it, which));
    found.into_iter().flatten().filter_map(Value::as_str)
}

/// The containers that add what they may not, and what that is.
fn added<'a>(pod: &Pod<'a>, allowed: &[&str]) -> (Vec<&'a str>, BTreeSet<String>) {
    let mut forbidden = BTreeSet::new();
    let names = pod.bad(|it| {
        let bad: Vec<&str> =
            capabilities_of(it, "add").filter(|it| !allowed.contains(it)).collect();
        forbidden.extend(bad.iter().map(|it| (*it).to_owned()));
        !bad.is_empty()
    });
    (names, forbidden)
}

fn not_added(names: &[&str], forbidden: &BTreeSet<String>) -> String {
    format!(
        "{} must not include {} in securityContext.capabilities.add",
        these(names),
        quoted(forbidden.iter().map(String::as_str))
    )
}

fn capabilities(pod: &Pod<'_>, _: u32) -> Option<Finding> {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let (names, forbidden) = added(pod, &ALLOWED);
    if names.is_empty() {
        return None;
    }
    found("non-default capabilities", not_added(&names, &forbidden))
}

fn dropped_capabilities(pod: &Pod<'_>, version: u32) -> Option<Finding> {
    if 25 <= version && pod.is_windows() {
        return None;
    }
    let missing = pod.bad(|it| !capabilities_of(it, "drop").any(|it| it == "ALL"));
    let (names, forbidden) = added(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !missing.is_empty() {
        let who = these(&missing);
        details.push(format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]"));
    }
    if !names.is_empty() {
        details.push(not_added(&names, &forbidden));
    }
    if details.is_empty() {
        return None;
    }
    found("unrestricted capabilities", details.join("; "))
}

fn host_namespaces(pod: &Pod<'_>, _: u32) -> Option<Finding> {
    let is_set = |field: &&str| pod.spec.get(*field) == Some(&Value::Bool(true));
    let fields = ["hostNetwork", "hostPID", "hostIPC"];
    let set: Vec<String> =
        fields.iter().filter(|it| is_set(it)).map(|it| format!("{it}=true")).collect();
    if set.is_empty() {
        return None;
    }
    found("host namespaces", set.join(", "))
}

fn host_paths(pod: &Pod<'_>, _: u32) -> Option<Finding> {
    let volumes = list(pod.spec, "volumes").filter(|it| it.get("hostPath").is_some());
    let names: Vec<&str> = volumes.map(|it| object::text(it, &["name"])).collect();
    if names.is_empty() {
        return None;
    }
    let what = plural("volume", "volumes", names.len());
    found("hostPath volumes", format!("{what} {}", quoted(names)))
}

fn host_ports(pod: &Pod<'_>, _: u32) -> Option<Finding> {
    let mut ports = BTreeSet::new();
    let names = pod.bad(|it| {
        let own: Vec<String> = list(it, "ports")
            .filter_map(|it| it["hostPort"].as_i64())
            .filter(|it| *it != 0)
            .map(|it| it.to_string())
            .collect();
        let is_bad = !own.is_empty();
        ports.extend(own);
        is_bad
    });
    if names.is_empty() {
        return None;
    }
    let (use_, what) =
        (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", ports.len()));
    let ports: Vec<String> = ports.into_iter().collect();
    found("hostPort", format!("{} {use_} {what} {}", these(&names), ports.join(", ")))
}

fn probe_hosts(pod: &Pod<'_>, _: u32) -> Option<Finding> {
    const HANDLERS: [&[&str]; 5] = [
        &["livenessProbe"],
        &["readinessProbe"],
        &["startupProbe"],
        &["lifecycle", "postStart"],
        &["lifecycle", "preStop"],
    ];
    let mut hosts = BTreeSet::new();
    let names = pod.bad(|it| {
        let handlers = HANDLERS.iter().filter_map(|path| object::at(it, path));
        let own: Vec<String> = handlers
            .flat_map(|it| ["httpGet", "tcpSocket"].map(|how| object::text(it, &[how, "host"])))
            .filter(|it| !it.is_empty())
            .map(str::to_owned)
            .collect();
        let is_bad = !own.is_empty();
        hosts.extend(own);
        is_bad
    });
    if names.is_empty() {
        return None;
    }
    let names: BTreeSet<&str> = names.into_iter().collect();
    let names: Vec<&str> = names.into_iter().collect();
    let use_ = plural("uses", "use", names.len());
    let what = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    let hosts = quoted(hosts.iter().map(String::as_str));
    found("probe or lifecycle host", format!("{} {use_} {what} {hosts}", these(&names)))
}

fn privileged(pod: &Pod<'_>, _: u32) -> Option<Finding> {
    let names = pod.bad(|it| context(it, &["privileged"]) == Some(&Value::Bool(true)));
    if names.is_empty() {
        return None;
    }
    let who = these(&names);
    found("privileged", format!("{who} must not set securityContext.privileged=true"))
}

fn proc_mount(pod: &Pod<'_>, _: u32) -> Option<Finding> {
    let mut kinds = BTreeSet::new();
    let names = pod.bad(|it| {
        let kind = context(it, &["procMount"]).and_then(Value::as_str);
        let bad = kind.filter(|it| *it != "Default");
        kinds.extend(bad.map(str::to_owned));
        bad.is_some()
    });
    if names.is_empty() {
        return None;
    }
    let kinds = quoted(kinds.iter().map(String::as_str));
    let who = these(&names);
    found("procMount", format!("{who} must not set securityContext.procMount to {kinds}"))
}

fn proc_mount_unless_mapped(pod: &Pod<'_>, version: u32) -> Option<Finding> {
    if 35 <= version && pod.is_mapped() { None } else { proc_mount(pod, version) }
}

fn se_linux(pod: &Pod<'_>, version: u32) -> Option<Finding> {
    let mut types = BTreeSet::new();
    let (mut has_user, mut has_role) = (false, false);
    let mut is_bad = |it: Option<&Value>| {
        let Some(it) = it else { return false };
        let kind = object::text(it, &["type"]);
        let is_known = matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (31 <= version && kind == "container_engine_t");
        if !is_known {
            types.insert(kind.to_owned());
        }
        let user = !object::text(it, &["user"]).is_empty();
        let role = !object::text(it, &["role"]).is_empty();
        has_user |= user;
        has_role |= role;
        !is_known || user || role
    };
    let of_pod = is_bad(pod.context(&["seLinuxOptions"]));
    let names = pod.bad(|it| is_bad(context(it, &["seLinuxOptions"])));
    let who = setters(of_pod, &names)?;
    let mut what = Vec::new();
    if !types.is_empty() {
        let word = plural("type", "types", types.len());
        what.push(format!("{word} {}", quoted(types.iter().map(String::as_str))));
    }
    if has_user {
        what.push("user may not be set".into());
    }
    if has_role {
        what.push("role may not be set".into());
    }
    let what = what.join("; ");
    found("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {what}"))
}

/// Those that set a seccomp profile that is none of the good ones.
fn bad_seccomp(pod: &Pod<'_>) -> Option<Finding> {
    let mut kinds = BTreeSet::new();
    let mut is_bad = |it: Option<&Value>| {
        let Some(it) = it else { return false };
        let kind = object::text(it, &["type"]);
        let bad = !matches!(kind, "Localhost" | "RuntimeDefault");
        if bad {
            kinds.insert(kind.to_owned());
        }
        bad
    };
    let of_pod = is_bad(pod.context(&["seccompProfile"]));
    let names = pod.bad(|it| is_bad(context(it, &["seccompProfile"])));
    let who = setters(of_pod, &names)?;
    let kinds = quoted(kinds.iter().map(String::as_str));
    let detail = format!("{who} must not set securityContext.seccompProfile.type to {kinds}");
    found("seccompProfile", detail)
}

fn seccomp(pod: &Pod<'_>, version: u32) -> Option<Finding> {
    if 19 <= version {
        return bad_seccomp(pod);
    }
    let names = pod.containers().map(|it| {
        format!("container.seccomp.security.alpha.kubernetes.io/{}", object::text(it, &["name"]))
    });
    let keys = std::iter::once("seccomp.security.alpha.kubernetes.io/pod".to_owned()).chain(names);
    let forbidden: BTreeSet<String> = keys
        .filter_map(|key| {
            let value = pod.annotations?.get(&key)?.as_str()?;
            let is_fine = matches!(value, "runtime/default" | "docker/default")
                || value.starts_with("localhost/");
            (!is_fine).then(|| format!("{key}={value:?}"))
        })
        .collect();
    if forbidden.is_empty() {
        return None;
    }
    let what = plural("annotation", "annotations", forbidden.len());
    let forbidden: Vec<String> = forbidden.into_iter().collect();
    found("seccompProfile", format!("forbidden {what} {}", forbidden.join(", ")))
}

fn needed_seccomp(pod: &Pod<'_>, version: u32) -> Option<Finding> {
    if 25 <= version && pod.is_windows() {
        return None;
    }
    let bad = bad_seccomp(pod);
    if bad.is_some() {
        return bad;
    }
    if pod.context(&["seccompProfile"]).is_some() {
        return None;
    }
    let names = pod.bad(|it| context(it, &["seccompProfile"]).is_none());
    if names.is_empty() {
        return None;
    }
    let who = these(&names);
    found(
        "seccompProfile",
        format!(
            "pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
        ),
    )
}

fn sysctls(pod: &Pod<'_>, version: u32) -> Option<Finding> {
    /// Each with the version since which it is harmless.
    const ALLOWED: [(&str, u32); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let is_allowed =
        |name: &str| ALLOWED.iter().any(|(it, since)| *it == name && *since <= version);
    let all = pod.context(&[]).map(|it| list(it, "sysctls")).into_iter().flatten();
    let names = all.map(|it| object::text(it, &["name"]));
    let bad: Vec<&str> = names.filter(|it| !is_allowed(it)).collect();
    if bad.is_empty() {
        return None;
    }
    found("forbidden sysctls", bad.join(", "))
}

fn host_process(pod: &Pod<'_>, _: u32) -> Option<Finding> {
    let path = ["windowsOptions", "hostProcess"];
    let is_bad = |it: Option<&Value>| it == Some(&Value::Bool(true));
    let names = pod.bad(|it| is_bad(context(it, &path)));
    let who = setters(is_bad(pod.context(&path)), &names)?;
    let detail = format!("{who} must not set securityContext.windowsOptions.hostProcess=true");
    found("hostProcess", detail)
}

fn privilege_escalation(pod: &Pod<'_>, version: u32) -> Option<Finding> {
    if 25 <= version && pod.is_windows() {
        return None;
    }
    let path = ["allowPrivilegeEscalation"];
    let names = pod.bad(|it| context(it, &path) != Some(&Value::Bool(false)));
    if names.is_empty() {
        return None;
    }
    let detail =
        format!("{} must set securityContext.allowPrivilegeEscalation=false", these(&names));
    found("allowPrivilegeEscalation != false", detail)
}

fn volumes(pod: &Pod<'_>, _: u32) -> Option<Finding> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let mut kinds = BTreeSet::new();
    let mut names = Vec::new();
    for volume in list(pod.spec, "volumes") {
        let fields = volume.as_object().into_iter().flatten();
        let mut sources = fields.filter(|(name, it)| *name != "name" && !it.is_null());
        let source = sources.next().map(|(name, _)| name.as_str());
        if source.is_none_or(|it| !ALLOWED.contains(&it)) {
            kinds.insert(source.unwrap_or("unknown"));
            names.push(object::text(volume, &["name"]));
        }
    }
    if names.is_empty() {
        return None;
    }
    let (volume, use_) =
        (plural("volume", "volumes", names.len()), plural("uses", "use", names.len()));
    let what = plural("restricted volume type", "restricted volume types", kinds.len());
    let detail = format!("{volume} {} {use_} {what} {}", quoted(names), quoted(kinds));
    found("restricted volume types", detail)
}

fn run_as_non_root(pod: &Pod<'_>, version: u32) -> Option<Finding> {
    if 35 <= version && pod.is_mapped() {
        return None;
    }
    let path = ["runAsNonRoot"];
    let of_pod = pod.context(&path).and_then(Value::as_bool);
    let reason = "runAsNonRoot != true";
    let bad = pod.bad(|it| context(it, &path) == Some(&Value::Bool(false)));
    if let Some(who) = setters(of_pod == Some(false), &bad) {
        let detail = format!("{who} must not set securityContext.runAsNonRoot=false");
        return found(reason, detail);
    }
    let names = pod.bad(|it| context(it, &path).is_none());
    if of_pod == Some(true) || names.is_empty() {
        return None;
    }
    let who = these(&names);
    found(reason, format!("pod or {who} must set securityContext.runAsNonRoot=true"))
}

fn run_as_user(pod: &Pod<'_>, version: u32) -> Option<Finding> {
    if 35 <= version && pod.is_mapped() {
        return None;
    }
    let path = ["runAsUser"];
    let is_root = |it: Option<&Value>| it.and_then(Value::as_i64) == Some(0);
    let names = pod.bad(|it| is_root(context(it, &path)));
    let who = setters(is_root(pod.context(&path)), &names)?;
    found("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

#[cfg(test)]
mod tests;
