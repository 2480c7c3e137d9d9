//! Security contexts: as whom and with which rights a container runs.

use k8s_openapi::api::core::v1::{Container, PodSpec, SeccompProfile};

use super::env::ConfigError;
use crate::cri::{ImageRef, v1};

/// Parts of /proc and /sys that tell about, or reach into, the machine.
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Which namespaces a pod's containers share, and with whom.
pub(crate) fn namespaces(spec: &PodSpec) -> v1::NamespaceOption {
    let mode = |host: Option<bool>, otherwise| {
        if host == Some(true) { v1::NamespaceMode::Node } else { otherwise }
    };
    let pid = match spec.share_process_namespace {
        Some(true) => v1::NamespaceMode::Pod,
        _ => v1::NamespaceMode::Container,
    };
    v1::NamespaceOption {
        network: mode(spec.host_network, v1::NamespaceMode::Pod).into(),
        pid: mode(spec.host_pid, pid).into(),
        ipc: mode(spec.host_ipc, v1::NamespaceMode::Pod).into(),
        target_id: String::new(),
    }
}

/// The sandbox's own process needs no rights beyond those its containers' namespaces ask for.
pub(crate) fn of_sandbox(spec: &PodSpec) -> v1::LinuxSandboxSecurityContext {
    let pod = spec.security_context.as_ref();
    let is_privileged = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .any(|it| it.security_context.as_ref().is_some_and(|it| it.privileged == Some(true)));
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec)),
        run_as_user: pod.and_then(|it| it.run_as_user).map(int64),
        // Without a user the runtime refuses a group.
        run_as_group: pod
            .filter(|it| it.run_as_user.is_some())
            .and_then(|it| it.run_as_group)
            .map(int64),
        supplemental_groups: supplemental_groups(spec),
        privileged: is_privileged,
        seccomp: Some(profile(v1::security_profile::ProfileType::RuntimeDefault, "")),
        ..Default::default()
    }
}

/// The container's context over its pod's, over its image's.
pub(crate) fn of_container(
    pod_name: &str,
    spec: &PodSpec,
    container: &Container,
    image: &ImageRef,
) -> Result<v1::LinuxContainerSecurityContext, ConfigError> {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let user = own.and_then(|it| it.run_as_user).or_else(|| pod.and_then(|it| it.run_as_user));
    let group = own.and_then(|it| it.run_as_group).or_else(|| pod.and_then(|it| it.run_as_group));
    let non_root = own
        .and_then(|it| it.run_as_non_root)
        .or_else(|| pod.and_then(|it| it.run_as_non_root))
        .unwrap_or(false);
    let (user, username) = match (user, image.uid, image.username.as_str()) {
        (Some(user), ..) | (None, Some(user), _) => (Some(user), String::new()),
        (None, None, "") => (Some(0), String::new()),
        (None, None, name) => (None, name.to_owned()),
    };
    if non_root {
        let problem = match user {
            Some(0) => "container's runAsUser breaks non-root policy".to_owned(),
            Some(_) => String::new(),
            None => format!(
                "container has runAsNonRoot and image has non-numeric user ({username}), \
                 cannot verify user is non-root"
            ),
        };
        let by_image = own.and_then(|it| it.run_as_user).is_none()
            && pod.and_then(|it| it.run_as_user).is_none();
        let problem = match user {
            Some(0) if by_image => {
                "container has runAsNonRoot and image will run as root".to_owned()
            }
            _ => problem,
        };
        if !problem.is_empty() {
            return Err(ConfigError::Security(format!(
                "{problem} (pod: {pod_name:?}, container: {})",
                container.name
            )));
        }
    }

    let is_privileged = own.and_then(|it| it.privileged).unwrap_or(false);
    let is_unmasked =
        is_privileged || own.and_then(|it| it.proc_mount.as_deref()) == Some("Unmasked");
    let paths = |list: &[&str]| {
        if is_unmasked { Vec::new() } else { list.iter().map(|&it| it.to_owned()).collect() }
    };
    let capabilities = own.and_then(|it| it.capabilities.as_ref()).map(|it| v1::Capability {
        add_capabilities: it.add.clone().unwrap_or_default(),
        drop_capabilities: it.drop.clone().unwrap_or_default(),
        add_ambient_capabilities: Vec::new(),
    });
    Ok(v1::LinuxContainerSecurityContext {
        capabilities,
        privileged: is_privileged,
        namespace_options: Some(namespaces(spec)),
        run_as_user: user.map(int64),
        run_as_username: username,
        run_as_group: group.map(int64),
        readonly_rootfs: own.and_then(|it| it.read_only_root_filesystem).unwrap_or(false),
        supplemental_groups: supplemental_groups(spec),
        no_new_privs: own.and_then(|it| it.allow_privilege_escalation) == Some(false),
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp(
            own.and_then(|it| it.seccomp_profile.as_ref())
                .or_else(|| pod.and_then(|it| it.seccomp_profile.as_ref())),
        )),
        apparmor: None,
        supplemental_groups_policy: match pod
            .and_then(|it| it.supplemental_groups_policy.as_deref())
        {
            Some("Strict") => v1::SupplementalGroupsPolicy::Strict.into(),
            _ => v1::SupplementalGroupsPolicy::Merge.into(),
        },
    })
}

fn supplemental_groups(spec: &PodSpec) -> Vec<i64> {
    let Some(pod) = &spec.security_context else { return Vec::new() };
    pod.supplemental_groups.iter().flatten().copied().chain(pod.fs_group).collect()
}

fn seccomp(wanted: Option<&SeccompProfile>) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    match wanted.map(|it| it.type_.as_str()) {
        Some("RuntimeDefault") => profile(ProfileType::RuntimeDefault, ""),
        Some("Localhost") => profile(
            ProfileType::Localhost,
            wanted.and_then(|it| it.localhost_profile.as_deref()).unwrap_or_default(),
        ),
        _ => profile(ProfileType::Unconfined, ""),
    }
}

fn profile(kind: v1::security_profile::ProfileType, localhost: &str) -> v1::SecurityProfile {
    v1::SecurityProfile { profile_type: kind.into(), localhost_ref: localhost.to_owned() }
}

fn int64(value: i64) -> v1::Int64Value {
    v1::Int64Value { value }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn image(uid: Option<i64>, username: &str) -> ImageRef {
        ImageRef {
            id: "sha256:1".to_owned(),
            digest: "sha256:1".to_owned(),
            uid,
            username: username.to_owned(),
            size: 1,
        }
    }

    fn context(
        pod: Value,
        own: Value,
        image: &ImageRef,
    ) -> Result<v1::LinuxContainerSecurityContext, ConfigError> {
        let spec: PodSpec = serde_json::from_value(json!({
            "securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}))
        .unwrap();
        of_container("web", &spec, &spec.containers[0], image)
    }

    fn user(context: &v1::LinuxContainerSecurityContext) -> Option<i64> {
        context.run_as_user.as_ref().map(|it| it.value)
    }

    #[test]
    fn the_nearest_user_counts() {
        let of_image = image(Some(7), "");
        let user_of = |pod, own| user(&context(pod, own, &of_image).unwrap());
        assert_eq!(user_of(json!({"runAsUser": 1}), json!({"runAsUser": 2})), Some(2));
        assert_eq!(user_of(json!({"runAsUser": 1}), json!({})), Some(1));
        assert_eq!(user_of(json!({}), json!({})), Some(7));
        let named = context(json!({}), json!({}), &image(None, "daemon")).unwrap();
        assert_eq!((user(&named), named.run_as_username.as_str()), (None, "daemon"));
        assert_eq!(user(&context(json!({}), json!({}), &image(None, "")).unwrap()), Some(0));
    }

    #[test]
    fn root_is_refused_where_asked() {
        let refused = |own: Value, image: &ImageRef| {
            context(json!({"runAsNonRoot": true}), own, image).err().map(|it| it.to_string())
        };
        assert_eq!(refused(json!({}), &image(Some(9), "")), None);
        assert_eq!(
            refused(json!({}), &image(None, "")).unwrap(),
            "container has runAsNonRoot and image will run as root (pod: \"web\", container: c)"
        );
        assert!(refused(json!({"runAsUser": 0}), &image(Some(9), "")).is_some());
        assert!(refused(json!({}), &image(None, "daemon")).unwrap().contains("non-numeric"));
    }

    #[test]
    fn rights() {
        let own = json!({"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true});
        let pod = json!({"fsGroup": 5, "supplementalGroups": [6],
            "seccompProfile": {"type": "RuntimeDefault"}});
        let found = context(pod, own, &image(None, "")).unwrap();
        assert!(found.no_new_privs && found.readonly_rootfs && !found.privileged);
        assert_eq!(found.supplemental_groups, [6, 5]);
        assert_eq!(found.capabilities.unwrap().drop_capabilities, ["ALL"]);
        assert_eq!(found.seccomp.unwrap().profile_type, 0);
        assert!(!found.masked_paths.is_empty());
        let all = context(json!({}), json!({"privileged": true}), &image(None, "")).unwrap();
        assert!(all.privileged && all.masked_paths.is_empty());
    }
}
