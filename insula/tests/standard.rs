//! The platform's own admission, as kubectl sees it: limits, quotas, pod security and classes.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::thread;

use harness::{Cloud, create, refused, texts};
use serde_json::{Value, json};

fn pod(name: &str, container: &Value) -> Value {
    let mut whole = json!({"name": "c", "image": "x"});
    for (field, value) in container.as_object().unwrap() {
        whole[field] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
           "spec": {"containers": [whole]}})
}

#[test]
fn limit_ranges_fill_in_and_refuse() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    create(
        &acme,
        &json!({
            "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"},
            "spec": {"limits": [
                {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"},
                 "max": {"cpu": "1"}},
                {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}},
            ]},
        }),
    );
    create(&acme, &pod("a", &json!({})));
    let fields = "jsonpath={.spec.containers[0].resources.requests.cpu} {.spec.containers[0].resources.limits.cpu} {.status.qosClass}";
    assert_eq!(acme.ok(&["get", "pod", "a", "-o", fields]), "100m 500m Burstable");
    let said = refused(&acme, &pod("b", &json!({"resources": {"limits": {"cpu": "2"}}})));
    assert!(
        said.contains(
            "pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
        ),
        "{said}"
    );
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "big"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}});
    let said = refused(&acme, &claim);
    assert!(
        said.contains("maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"),
        "{said}"
    );
}

#[test]
fn quotas_are_charged_once() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "ns", "q"]);
    acme.until(&["-n", "q", "get", "cm", "kube-root-ca.crt", "-o", "name"], |it| !it.is_empty());
    let quota = |name: &str, hard: &Value, used: &Value| {
        let it = json!({"apiVersion": "v1", "kind": "ResourceQuota",
            "metadata": {"name": name, "namespace": "q"}, "spec": {"hard": hard}});
        create(&acme, &it);
        // What the controller of quotas counts.
        let status = json!({"status": {"hard": hard, "used": used}}).to_string();
        acme.ok(&[
            "-n",
            "q",
            "patch",
            "quota",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ]);
    };
    quota("maps", &json!({"count/configmaps": "20"}), &json!({"count/configmaps": "10"}));
    // Many at the same time: exactly as many as there is room for.
    let maps: Vec<String> = (0..4)
        .map(|each| {
            let maps: Vec<Value> = (0..5)
                .map(|it| {
                    json!({"apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": format!("m{each}-{it}"), "namespace": "q"}})
                })
                .collect();
            json!({"apiVersion": "v1", "kind": "List", "items": maps}).to_string()
        })
        .collect();
    thread::scope(|scope| {
        for list in &maps {
            scope.spawn(|| acme.feed(&["create", "--validate=false", "-f", "-"], list));
        }
    });
    let names = acme.ok(&["-n", "q", "get", "cm", "-o", "jsonpath={.items[*].metadata.name}"]);
    assert_eq!(names.split(' ').filter(|it| it.starts_with('m')).count(), 10, "{names}");
    let used = acme.ok(&[
        "-n",
        "q",
        "get",
        "quota",
        "maps",
        "-o",
        r"jsonpath={.status.used.count/configmaps}",
    ]);
    assert_eq!(used, "20");
    let said = acme.fails(&["-n", "q", "create", "cm", "more"]);
    assert!(said.contains("configmaps \"more\" is forbidden: exceeded quota: maps, requested: count/configmaps=1, used: count/configmaps=20, limited: count/configmaps=20"), "{said}");
    acme.ok(&["-n", "q", "delete", "quota", "maps"]);
    quota(
        "cpu",
        &json!({"requests.cpu": "1", "pods": "5"}),
        &json!({"requests.cpu": "900m", "pods": "0"}),
    );
    let mut it = pod("p", &json!({}));
    it["metadata"]["namespace"] = "q".into();
    assert!(refused(&acme, &it).contains("failed quota: cpu: must specify requests.cpu for: c"));
    it["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "200m"}});
    let said = refused(&acme, &it);
    assert!(said.contains("exceeded quota: cpu, requested: requests.cpu=200m, used: requests.cpu=900m, limited: requests.cpu=1"), "{said}");
    it["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
    let dry = acme.feed(&["create", "--dry-run=server", "-f", "-"], &it.to_string());
    assert!(dry.status.success(), "{dry:?}");
    create(&acme, &it);
    let fields = r"jsonpath={.status.used.requests\.cpu} {.status.used.pods}";
    assert_eq!(acme.ok(&["-n", "q", "get", "quota", "cpu", "-o", fields]), "1 1");
}

/// Tenants share machines: without the platform's word none of their pods gets hold of one.
#[test]
fn tenants_keep_to_the_baseline() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let host = |name: &str| {
        let mut it = pod(name, &json!({}));
        it["spec"]["volumes"] = json!([{"name": "all", "hostPath": {"path": "/"}}]);
        it
    };
    let violates = "violates PodSecurity \"baseline:latest\": hostPath volumes (volume \"all\")";
    let refused_for = |it: &Value| {
        let said = refused(&acme, it);
        assert!(said.contains(violates), "{said}");
    };
    refused_for(&host("a"));
    // What a tenant says of itself does not count.
    let label = "pod-security.kubernetes.io/enforce=privileged";
    acme.ok(&["label", "ns", "default", label]);
    refused_for(&host("a"));
    acme.fails(&["label", "tenant", "acme", label]);
    create(&acme, &pod("plain", &json!({})));
    // Neither does what comes in by another way.
    let debugged = ["debug", "plain", "--profile=sysadmin", "--image=a", "--", "true"];
    let said = acme.fails(&debugged);
    assert!(said.contains("violates PodSecurity \"baseline:latest\": privileged"), "{said}");
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
                 "template": {"metadata": {"labels": {"a": "b"}}, "spec": host("a")["spec"]}},
    });
    let said = create(&acme, &deployment);
    assert!(said.contains(&format!("Warning: would {}", violates.replacen('s', "", 1))), "{said}");
    let events =
        ["get", "events", "-o", "jsonpath={.items[?(@.reason==\"FailedCreate\")].message}"];
    acme.until(&events, |it| it.contains(violates));

    let admin = cloud.admin();
    let said = admin.fails(&["label", "tenant", "acme", "pod-security.kubernetes.io/enforce=much"]);
    assert!(said.contains("must be one of privileged, baseline, restricted"), "{said}");
    create(&admin, &host("of-the-platform"));
    cloud.trust("acme");
    create(&acme, &host("a"));
    admin.ok(&[
        "label",
        "tenant",
        "acme",
        "pod-security.kubernetes.io/enforce=restricted",
        "--overwrite",
    ]);
    let said = refused(&acme, &pod("b", &json!({})));
    assert!(said.contains("violates PodSecurity \"restricted:latest\""), "{said}");
}

#[test]
fn namespaces_say_what_pods_may_do() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    cloud.trust("acme");
    let it = pod("a", &json!({"securityContext": {"privileged": true}}));
    create(&acme, &it);
    let said = acme.run(&["label", "ns", "default", "pod-security.kubernetes.io/enforce=baseline"]);
    let said = texts(&said).1;
    assert!(said.contains("Warning: existing pods in namespace \"default\" violate the new PodSecurity enforce level \"baseline:latest\""), "{said}");
    assert!(said.contains("Warning: a: privileged"), "{said}");
    let mut other = it.clone();
    other["metadata"]["name"] = "b".into();
    let said = refused(&acme, &other);
    assert!(said.contains("pods \"b\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)"), "{said}");
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}},
                 "template": {"metadata": {"labels": {"a": "b"}}, "spec": it["spec"]}},
    });
    let said = create(&acme, &deployment);
    assert!(
        said.contains("Warning: would violate PodSecurity \"baseline:latest\": privileged"),
        "{said}"
    );
    let said = acme.fails(&[
        "label",
        "ns",
        "default",
        "--overwrite",
        "pod-security.kubernetes.io/enforce=much",
    ]);
    assert!(said.contains("must be one of privileged, baseline, restricted"), "{said}");
}

#[test]
fn classes_decide_what_is_left_out() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let class = |name: &str| {
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "x/y",
            "metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}})
    };
    create(&acme, &class("own"));
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    create(&acme, &claim);
    let fields = "jsonpath={.spec.storageClassName} {.metadata.finalizers[0]}";
    assert_eq!(acme.ok(&["get", "pvc", "c", "-o", fields]), "own kubernetes.io/pvc-protection");
    let grow = r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#;
    let said = acme.fails(&["patch", "pvc", "c", "-p", grow]);
    assert!(said.contains("spec is immutable after creation except resources.requests"), "{said}");
    // Nobody uses it.
    acme.ok(&["delete", "pvc", "c", "--timeout=30s"]);
    create(
        &acme,
        &json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": "web", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": "x.y/z"}}),
    );
    create(
        &acme,
        &json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"},
        "spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}}),
    );
    assert_eq!(acme.ok(&["get", "ingress", "i", "-o", "jsonpath={.spec.ingressClassName}"]), "web");
    let mut it = pod("r", &json!({}));
    it["spec"]["runtimeClassName"] = "none".into();
    let said = refused(&acme, &it);
    assert!(
        said.contains("pods \"r\" is forbidden: pod rejected: RuntimeClass \"none\" not found"),
        "{said}"
    );
    create(
        &acme,
        &json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "heavy"},
        "handler": "h", "overhead": {"podFixed": {"cpu": "250m"}},
        "scheduling": {"nodeSelector": {"kind": "heavy"}}}),
    );
    it["spec"]["runtimeClassName"] = "heavy".into();
    create(&acme, &it);
    let fields = "jsonpath={.spec.overhead.cpu} {.spec.nodeSelector.kind}";
    assert_eq!(acme.ok(&["get", "pod", "r", "-o", fields]), "250m heavy");
    let priority = |name: &str, value: i64| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "globalDefault": true,
               "metadata": {"name": name}, "value": value})
    };
    create(&acme, &priority("usual", 7));
    assert!(
        refused(&acme, &priority("other", 8)).contains(
            "PriorityClass usual is already marked as default. Only one default can exist"
        )
    );
    create(&acme, &pod("p", &json!({})));
    let fields = "jsonpath={.spec.priority} {.spec.priorityClassName}";
    assert_eq!(acme.ok(&["get", "pod", "p", "-o", fields]), "7 usual");
}
