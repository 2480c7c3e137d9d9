//! The audit log and the metrics, as an operator reads them.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use harness::Cloud;
use serde_json::{Value, json};

const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
- level: None
  nonResourceURLs: ['/healthz*', '/livez*', '/readyz*', '/openapi*', '/api*']
- level: None
  tenants: [globex, system]
- level: Metadata
  omitStages: [RequestReceived]
  resources: [{group: '', resources: [secrets]}]
- level: RequestResponse
  resources: [{group: '', resources: [configmaps]}]
  verbs: [create, delete, watch]
- level: Metadata
  omitStages: [RequestReceived]
";

/// The events of the log that `wanted` is about, as soon as there are `count`.
#[track_caller]
fn events(log: &Path, count: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let begin = Instant::now();
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        // The last line may be on its way.
        let whole = text.rsplit_once('\n').map_or("", |it| it.0);
        let all = whole.lines().map(|it| serde_json::from_str::<Value>(it).unwrap());
        let found: Vec<Value> = all.filter(|it| wanted(it)).collect();
        if count <= found.len() {
            return found;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{} of {count}\n{text}", found.len());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn who_did_what_is_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let (cloud, log) = Cloud::audited(dir.path(), POLICY);
    let (acme, globex) = cloud.tenants();
    let maps = "/api/v1/namespaces/default/configmaps";
    let body = r#"{"metadata":{"name":"noted"},"data":{"a":"b"}}"#;
    let (code, headers, _) = acme.curl(
        maps,
        &[
            "-H",
            "Content-Type: application/json",
            "-H",
            "Audit-ID: mine",
            "-A",
            "test/1",
            "-d",
            body,
        ],
    );
    assert!(code == 201 && headers.contains("audit-id: mine"), "{headers}");
    let found = events(&log, 2, |it| it["auditID"] == "mine");
    let [received, complete] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!(received["stage"], "RequestReceived");
    assert_eq!(complete["stage"], "ResponseComplete");
    assert_eq!(complete["level"], "RequestResponse");
    assert_eq!(complete["user"]["username"], "dev");
    assert_eq!(complete["requestURI"], format!("/tenants/acme{maps}"));
    assert_eq!(complete["sourceIPs"], json!(["127.0.0.1"]));
    assert_eq!(complete["userAgent"], "test/1");
    assert_eq!(complete["verb"], "create");
    assert_eq!(
        complete["objectRef"],
        json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"})
    );
    assert_eq!(complete["requestObject"]["data"]["a"], "b");
    assert_eq!(complete["responseObject"]["metadata"]["name"], "noted");
    assert!(complete["responseObject"]["metadata"].get("managedFields").is_none());
    assert_eq!(complete["responseStatus"]["code"], 201);
    assert_eq!(complete["annotations"]["insula.io/tenant"], "acme");
    assert_eq!(complete["annotations"]["authorization.k8s.io/decision"], "allow");

    // Secrets are named only, other tenants not at all.
    acme.ok(&["create", "secret", "generic", "s", "--from-literal=password=hidden"]);
    globex.ok(&["create", "configmap", "quiet"]);
    acme.ok(&["delete", "configmap", "noted", "--as=somebody", "--as-group=acme-admins"]);
    let said = cloud.user("acme", "guest", "guests").fails(&["get", "--raw", maps]);
    assert!(said.contains("Forbidden"), "{said}");
    let found = events(&log, 1, |it| it["verb"] == "delete" && it["stage"] == "ResponseComplete");
    assert_eq!(found[0]["user"]["username"], "dev");
    assert_eq!(found[0]["impersonatedUser"]["username"], "somebody");
    let found = events(&log, 1, |it| {
        it["user"]["username"] == "guest" && it["objectRef"]["resource"] == "configmaps"
    });
    assert_eq!(found[0]["responseStatus"]["code"], 403);
    assert_eq!(found[0]["responseStatus"]["reason"], "Forbidden");
    assert_eq!(found[0]["annotations"]["authorization.k8s.io/decision"], "forbid");
    let found = events(&log, 1, |it| it["objectRef"]["resource"] == "secrets");
    assert_eq!(found[0]["level"], "Metadata");
    let text = fs::read_to_string(&log).unwrap();
    assert!(!text.contains("hidden") && !text.contains("globex") && !text.contains("quiet"));

    // What admission has to say of a request is written beside it.
    acme.ok(&["label", "namespace", "default", "pod-security.kubernetes.io/audit=restricted"]);
    let pod = r#"{"metadata":{"name":"noted"},"spec":{"containers":[{"name":"a","image":"a"}]}}"#;
    let json = "Content-Type: application/json";
    acme.curl("/api/v1/namespaces/default/pods", &["-H", json, "-H", "Audit-ID: loose", "-d", pod]);
    let found = events(&log, 1, |it| it["auditID"] == "loose");
    let said = &found[0]["annotations"];
    let violations = said["pod-security.kubernetes.io/audit-violations"].as_str().unwrap();
    assert!(
        violations.starts_with("would violate PodSecurity \"restricted:latest\": "),
        "{violations}"
    );
    assert_eq!(said["pod-security.kubernetes.io/enforce-policy"], "privileged:latest");

    // A watch begins and ends.
    acme.curl(&format!("{maps}?watch=1&timeoutSeconds=1"), &["-H", "Audit-ID: watched"]);
    let found = events(&log, 3, |it| it["auditID"] == "watched");
    let stages: Vec<&Value> = found.iter().map(|it| &it["stage"]).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
}

#[test]
fn requests_are_counted() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let maps = "/api/v1/namespaces/default/configmaps";
    acme.curl(maps, &[]);
    acme.curl(&format!("{maps}/none"), &[]);
    acme.curl(&format!("{maps}?watch=1&timeoutSeconds=1"), &[]);
    // They are of all tenants together, and for nobody in one.
    assert_eq!(acme.curl("/metrics", &[]).0, 403);
    let (_, _, text) = cloud.admin().curl("/metrics", &[]);
    let has = |name: &str, labels: &[&str]| {
        let found = text
            .lines()
            .any(|line| line.starts_with(name) && labels.iter().all(|it| line.contains(it)));
        assert!(found, "{name} {labels:?}\n{text}");
    };
    let of_maps = [r#"resource="configmaps""#, r#"version="v1""#, r#"component="apiserver""#];
    has(
        "apiserver_request_total{",
        &[&of_maps[..], &[r#"verb="LIST""#, r#"code="200""#, r#"scope="namespace""#]].concat(),
    );
    has(
        "apiserver_request_total{",
        &[&of_maps[..], &[r#"verb="GET""#, r#"code="404""#, r#"scope="resource""#]].concat(),
    );
    has("apiserver_request_duration_seconds_count{", &[&of_maps[..], &[r#"verb="LIST""#]].concat());
    has("apiserver_response_sizes_bucket{", &[&of_maps[..], &[r#"verb="LIST""#]].concat());
    has("apiserver_longrunning_requests{", &[&of_maps[..], &[r#"verb="WATCH""#]].concat());
    has("apiserver_watch_events_total{", &of_maps[..2]);
    has("apiserver_current_inflight_requests{", &[r#"request_kind="readOnly""#]);
    assert!(!text.contains("acme"), "no label names a tenant");
}

/// The value of the first line that begins with `name` and has all `labels`.
fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let mut lines = text.lines();
    let line =
        lines.find(|it| it.starts_with(name) && labels.iter().all(|label| it.contains(label)));
    let line = line.unwrap_or_else(|| panic!("{name} {labels:?}\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn parts_of_the_process_count_by_upstreams_names() {
    let cloud = Cloud::start(false, &[]);
    let (acme, _) = cloud.tenants();
    // A webhook that cannot be asked: one lets requests through, the other does not.
    for (name, policy) in [("open", "Ignore"), ("shut", "Fail")] {
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [{
                "name": format!("{name}.example.com"), "failurePolicy": policy,
                "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": "https://192.0.2.1:1/x"}, "timeoutSeconds": 1,
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                    "resources": [if policy == "Fail" { "secrets" } else { "configmaps" }]}],
            }],
        });
        let out = acme.feed(&["create", "-f", "-"], &configuration.to_string());
        assert!(out.status.success());
    }
    let policy = "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\nmetadata: {name: p}\nspec: {failurePolicy: Fail, matchConstraints: {resourceRules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [services]}]}, validations: [{expression: 'false'}]}\n---\napiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\nmetadata: {name: b}\nspec: {policyName: p, validationActions: [Deny]}\n";
    let out = acme.feed(&["create", "-f", "-"], policy);
    assert!(out.status.success());
    acme.ok(&["create", "configmap", "c"]);
    assert!(acme.fails(&["create", "secret", "generic", "s"]).contains("failed calling webhook"));
    assert!(acme.fails(&["create", "service", "clusterip", "s", "--tcp=80"]).contains("denied"));
    let (_, _, text) = cloud.admin().curl("/metrics", &[]);
    let counted = |name: &str, labels: &[&str]| {
        let value = value(&text, name, labels);
        assert!(1.0 <= value, "{name} {labels:?}: {value}");
    };
    let create = r#"operation="CREATE""#;
    for step in [r#"type="admit""#, r#"type="validate""#] {
        counted("apiserver_admission_step_admission_duration_seconds_count{", &[create, step]);
    }
    let name = "apiserver_admission_controller_admission_duration_seconds_count{";
    counted(name, &[create, r#"name="NamespaceLifecycle""#, r#"rejected="false""#]);
    counted(name, &[create, r#"name="ValidatingAdmissionWebhook""#, r#"rejected="true""#]);
    let (open, shut) = (r#"name="open.example.com""#, r#"name="shut.example.com""#);
    let name = "apiserver_admission_webhook_admission_duration_seconds_count{";
    counted(name, &[open, r#"rejected="false""#]);
    counted("apiserver_admission_webhook_fail_open_count{", &[open, r#"type="validating""#]);
    let calling = r#"error_type="calling_webhook_error""#;
    counted("apiserver_admission_webhook_rejection_count{", &[shut, calling]);
    counted("apiserver_admission_webhook_request_total{", &[shut, r#"rejected="true""#]);
    let labels = [r#"policy="p""#, r#"policy_binding="b""#, r#"enforcement_action="deny""#];
    counted("apiserver_validating_admission_policy_check_total{", &labels);
    counted("apiserver_validating_admission_policy_check_duration_seconds_count{", &labels);
    counted("apiserver_storage_objects{", &[r#"resource="configmaps""#]);
    counted(
        "apiserver_storage_objects{",
        &[r#"resource="clusterroles.rbac.authorization.k8s.io""#],
    );
    counted("rest_client_requests_total{", &[r#"method="GET""#, r#"code="200""#]);
    let queue = r#"name="root-ca-cert-publisher""#;
    counted("workqueue_adds_total{", &[queue]);
    counted("workqueue_work_duration_seconds_count{", &[queue]);
    assert!(0.0 <= value(&text, "workqueue_depth{", &[]));
    counted("process_resident_memory_bytes ", &[]);
    counted("process_open_fds ", &[]);
    assert!(0.0 < value(&text, "process_cpu_seconds_total ", &[]));
    assert_eq!(text.matches("# EOF").count(), 1, "one document");
}
