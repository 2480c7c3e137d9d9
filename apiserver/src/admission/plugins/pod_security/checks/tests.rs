use serde_json::json;

use super::*;

fn told(level: Level, version: Version, pod: &Value) -> Vec<String> {
    let findings = run(Standard { level, version }, &Pod::of(pod));
    findings.iter().map(|it| format!("{} ({})", it.reason, it.detail)).collect()
}

fn pod(spec: &Value, context: &Value) -> Value {
    let mut spec = spec.clone();
    spec["containers"] = json!([{"name": "c", "securityContext": context}]);
    json!({"metadata": {}, "spec": spec})
}

/// As strict as it gets.
fn good() -> Value {
    json!({
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"},
    })
}

#[test]
fn baseline_is_upstreams() {
    for (spec, context, expected) in [
        (
            json!({"hostNetwork": true, "hostPID": true}),
            json!({}),
            "host namespaces (hostNetwork=true, hostPID=true)",
        ),
        (
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
            json!({}),
            "hostPath volumes (volume \"v\")",
        ),
        (
            json!({}),
            json!({"privileged": true}),
            "privileged (container \"c\" must not set securityContext.privileged=true)",
        ),
        (
            json!({}),
            json!({"capabilities": {"add": ["NET_ADMIN", "CHOWN"]}}),
            "non-default capabilities (container \"c\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
        ),
        (
            json!({}),
            json!({"procMount": "Unmasked"}),
            "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            json!({"securityContext": {"seLinuxOptions": {"type": "x", "user": "u"}}}),
            json!({}),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set)",
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
            json!({}),
            "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "a"}, {"name": "net.ipv4.tcp_rmem"}]}}),
            json!({}),
            "forbidden sysctls (a)",
        ),
        (
            json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
            json!({}),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
        (
            json!({}),
            json!({"appArmorProfile": {"type": "Unconfined"}}),
            "forbidden AppArmor profile (container \"c\" must not set AppArmor profile type to \"Unconfined\")",
        ),
    ] {
        let it = pod(&spec, &context);
        assert_eq!(told(Level::Baseline, Version::Latest, &it), [expected]);
        assert!(told(Level::Privileged, Version::Latest, &it).is_empty());
    }
    let mut it = pod(&json!({}), &json!({}));
    it["spec"]["containers"][0]["ports"] = json!([{"hostPort": 80}, {"hostPort": 81}]);
    it["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"host": "h"}});
    assert_eq!(
        told(Level::Baseline, Version::Latest, &it),
        [
            "hostPort (container \"c\" uses hostPorts 80, 81)",
            "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"h\")",
        ]
    );
    assert_eq!(told(Level::Baseline, Version::Minor(33), &it).len(), 1);
    it["metadata"]["annotations"] =
        json!({"seccomp.security.alpha.kubernetes.io/pod": "unconfined"});
    assert!(
        told(Level::Baseline, Version::Minor(18), &it)[1]
            .starts_with("seccompProfile (forbidden annotation")
    );
}

#[test]
fn restricted_is_upstreams() {
    assert_eq!(
        told(Level::Restricted, Version::Latest, &pod(&json!({}), &json!({}))),
        [
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)",
            "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"])",
            "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)",
            "seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
        ]
    );
    assert!(told(Level::Restricted, Version::Latest, &pod(&json!({}), &good())).is_empty());
    let spec = json!({"volumes": [{"name": "a", "nfs": {}}, {"name": "b", "hostPath": {}}, {"name": "c", "secret": {}}]});
    assert_eq!(
        told(Level::Restricted, Version::Latest, &pod(&spec, &good())),
        [
            "restricted volume types (volumes \"a\", \"b\" use restricted volume types \"hostPath\", \"nfs\")"
        ]
    );
    let mut context = good();
    context["runAsUser"] = 0.into();
    assert_eq!(
        told(Level::Restricted, Version::Latest, &pod(&json!({}), &context)),
        ["runAsUser=0 (container \"c\" must not set runAsUser=0)"]
    );
    // Users that are nobody on the host may be root.
    let mapped = json!({"hostUsers": false});
    assert!(told(Level::Restricted, Version::Latest, &pod(&mapped, &context)).is_empty());
    assert_eq!(told(Level::Restricted, Version::Minor(34), &pod(&mapped, &context)).len(), 1);
    let windows = pod(&json!({"os": {"name": "windows"}}), &json!({"runAsNonRoot": true}));
    assert!(told(Level::Restricted, Version::Latest, &windows).is_empty());
    assert_eq!(told(Level::Restricted, Version::Minor(24), &windows).len(), 3);
}
