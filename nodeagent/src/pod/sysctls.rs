//! Which settings of the kernel pods may have for themselves.
//!
//! Those that a namespace of the pod has, and that nobody else on the machine feels: the list is
//! that of upstream's kubelet, which calls them safe.

use k8s_openapi::api::core::v1::PodSpec;

use super::status::Failure;

/// What a setting is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Ipc,
    Net,
}

const SAFE: [(&str, Of); 12] = [
    ("kernel.shm_rmid_forced", Of::Ipc),
    ("net.ipv4.ip_local_port_range", Of::Net),
    ("net.ipv4.ip_local_reserved_ports", Of::Net),
    ("net.ipv4.ip_unprivileged_port_start", Of::Net),
    ("net.ipv4.ping_group_range", Of::Net),
    ("net.ipv4.tcp_fin_timeout", Of::Net),
    ("net.ipv4.tcp_keepalive_intvl", Of::Net),
    ("net.ipv4.tcp_keepalive_probes", Of::Net),
    ("net.ipv4.tcp_keepalive_time", Of::Net),
    ("net.ipv4.tcp_rmem", Of::Net),
    ("net.ipv4.tcp_syncookies", Of::Net),
    ("net.ipv4.tcp_wmem", Of::Net),
];

/// Why a pod does not run here at all, if it sets what it may not.
pub(crate) fn forbidden(spec: &PodSpec) -> Option<Failure> {
    let sysctls = spec.security_context.iter().flat_map(|it| it.sysctls.iter().flatten());
    let why = sysctls.map(|it| dotted(&it.name)).find_map(|name| {
        let Some((_, of)) = SAFE.iter().find(|(safe, _)| *safe == name) else {
            return Some(format!("{name:?} not allowlisted"));
        };
        let (is_the_hosts, which) = match of {
            Of::Ipc => (spec.host_ipc, "ipc"),
            Of::Net => (spec.host_network, "net"),
        };
        let is_the_hosts = is_the_hosts == Some(true);
        is_the_hosts.then(|| format!("{name:?} not allowed with host {which} enabled"))
    })?;
    Some(Failure {
        reason: "SysctlForbidden".to_owned(),
        message: format!("forbidden sysctl: {why}"),
    })
}

/// A name may be written with slashes, and then has dots within its parts.
fn dotted(name: &str) -> String {
    let has_slashes = name.find(['.', '/']).is_some_and(|at| name[at..].starts_with('/'));
    let swap = |it: char| match it {
        '.' => '/',
        '/' => '.',
        it => it,
    };
    if has_slashes { name.chars().map(swap).collect() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(spec: Value, expected: Option<&str>) {
        let mut pod = json!({"containers": []});
        for (key, value) in spec.as_object().unwrap() {
            pod[key] = value.clone();
        }
        let spec: PodSpec = serde_json::from_value(pod).unwrap();
        assert_eq!(forbidden(&spec).map(|it| it.message).as_deref(), expected);
    }

    #[test]
    fn only_what_concerns_the_pod_alone() {
        let of = |name: &str| json!({"sysctls": [{"name": name, "value": "1"}]});
        check(json!({}), None);
        check(json!({"securityContext": of("net.ipv4.tcp_syncookies")}), None);
        check(json!({"securityContext": of("net/ipv4/tcp_syncookies")}), None);
        let why = "forbidden sysctl: \"kernel.msgmax\" not allowlisted";
        check(json!({"securityContext": of("kernel.msgmax")}), Some(why));
        check(json!({"securityContext": of("kernel/msgmax")}), Some(why));
        let why = "forbidden sysctl: \"net.ipv4.tcp_rmem\" not allowed with host net enabled";
        let of_host = of("net.ipv4.tcp_rmem");
        check(json!({"securityContext": of_host, "hostNetwork": true}), Some(why));
        let why = "forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled";
        check(json!({"securityContext": of("kernel.shm_rmid_forced"), "hostIPC": true}), Some(why));
    }
}
