//! Bad storage: objects that are too large, directories and etcds of somebody else, broken maps.
//! Each is refused in words that say what to do, and nothing is changed.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::process::{Command, Stdio};

use harness::{Cloud, Kubectl, etcd::Etcd, insula, servers::Servers, texts};

/// A Deployment with so many bytes in one variable.
fn deployment(name: &str, bytes: usize) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\n\
         spec: {{replicas: 0, selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, \
         spec: {{containers: [{{name: c, image: i, env: [{{name: A, value: {}}}]}}]}}}}}}\n",
        "x".repeat(bytes)
    )
}

/// 1.5 MiB are stored, more are refused, by create as by patch, and what is there stays.
fn limits(user: &Kubectl) {
    let create = |text: &str| texts(&user.feed(&["create", "-f", "-"], text));
    let (_, said) = create(&deployment("large", 1_400_000));
    assert_eq!(said, "");
    for bytes in [1_600_000, 3_200_000] {
        let (_, said) = create(&deployment("larger", bytes));
        assert!(said.contains("RequestEntityTooLarge") && said.contains("limit is"), "{said}");
    }
    let field = "{.spec.template.spec.containers[0].env[*].name}";
    let path = format!("jsonpath={field}");
    let more = format!(
        r#"{{"spec":{{"template":{{"spec":{{"containers":[{{"name":"c","env":[{{"name":"B","value":"{}"}}]}}]}}}}}}}}"#,
        "y".repeat(100_000)
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    for round in 0..3 {
        std::fs::write(file.path(), more.replace("\"B\"", &format!("\"B{round}\""))).unwrap();
        let patch = ["patch", "deployment", "large", "--patch-file", file.path().to_str().unwrap()];
        let (_, said) = texts(&user.run(&patch));
        if round == 0 {
            assert_eq!(said, "");
        } else {
            assert!(said.contains("Request entity too large: limit is 1572864"), "{said}");
        }
    }
    let names = user.ok(&["get", "deployment", "large", "-o", &path]);
    assert!(names.contains('A') && names.contains("B0") && !names.contains("B1"), "{names}");
    let body = format!("@{}", file.path().to_str().unwrap());
    std::fs::write(file.path(), deployment("larger", 1_600_000)).unwrap();
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let post = ["-X", "POST", "-H", "content-type: application/yaml", "--data-binary", &body];
    let (code, _, body) = user.curl(path, &post);
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &status["kind"], &status["code"]), (413, &"Status".into(), &413.into()));
    assert_eq!(status["reason"], "RequestEntityTooLarge");
}

#[test]
fn objects_that_are_too_large() {
    let cloud = Cloud::without_node();
    limits(&cloud.tenants().0);
}

#[test]
fn objects_that_are_too_large_for_an_etcd() {
    let etcd = Etcd::start();
    let cloud = Cloud::start(false, &["--store", &format!("etcd=one={}", etcd.url)]);
    limits(&cloud.tenants().0);
}

/// What a start says that must fail.
#[track_caller]
fn refused(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = texts(&out);
    assert!(!out.status.success(), "{stdout}{stderr}");
    stderr.lines().filter(|it| it.starts_with("error: ")).collect()
}

fn up(dir: &std::path::Path, etcd: &Etcd) -> Command {
    let mut command = insula();
    command.arg("up").arg("--data-dir").arg(dir).args(["--listen", "127.0.0.1:0"]);
    command.args(["--without", "node", "--store", &format!("etcd=one={}", etcd.url)]);
    command
}

#[test]
fn an_etcd_of_another_cluster_or_of_something_else() {
    let (ours, other, foreign) = (Etcd::start(), Etcd::start(), Etcd::start());
    let store = |etcd: &Etcd| format!("etcd=one={}", etcd.url);
    let mut cloud = Cloud::start(false, &["--store", &store(&ours)]);
    drop(Cloud::start(false, &["--store", &store(&other)]));
    cloud.terminate();
    let said = refused(&mut up(&cloud.data_dir(), &other));
    assert!(said.contains("of cluster"), "{said}");
    foreign.ctl(None, &["put", "/insula/somebody", "else"]);
    let said = refused(&mut up(&cloud.path("new"), &foreign));
    assert!(said.contains("something else") && said.contains("prefix"), "{said}");
    assert_eq!(
        foreign.ctl(None, &["get", "--prefix", "", "--keys-only"]).trim(),
        "/insula/somebody"
    );
    // It is as it was.
    cloud.again();
}

#[test]
fn a_map_that_is_none() {
    let etcd = Etcd::start();
    let mut cloud = Cloud::start(false, &["--store", &format!("etcd=one={}", etcd.url)]);
    cloud.terminate();
    let all = etcd.ctl(None, &["get", "--prefix", "", "--keys-only"]);
    let key = all
        .lines()
        .find(|it| it.ends_with("partitionmaps/current"))
        .unwrap_or_else(|| panic!("{all}"));
    let map = etcd.ctl(None, &["get", "--print-value-only", key]);
    let map = map.trim_end();
    let slots = r#""slots":[{"first":0,"last":16383,"partition":"one"}]"#;
    assert!(map.contains(slots), "{map}");
    for (instead, expected) in [
        (r#""slots":[{"first":0,"last":16000,"partition":"one"}]"#, "slot 16001 has no partition"),
        (
            r#""slots":[{"first":0,"last":16383,"partition":"one"},{"first":7,"last":7,"partition":"one"}]"#,
            "slot 7 has two partitions",
        ),
        (r#""slots":[{"first":0,"last":16383,"partition":"two"}]"#, "two is not one of the map's"),
    ] {
        etcd.ctl(None, &["put", key, &map.replace(slots, instead)]);
        let said = refused(&mut up(&cloud.data_dir(), &etcd));
        assert!(said.contains(expected) && said.contains("partition map"), "{said}");
    }
    etcd.ctl(None, &["put", key, map]);
    cloud.again();
    // While it runs, the last good one counts.
    let (acme, _) = cloud.tenants();
    let now = etcd.ctl(None, &["get", "--print-value-only", key]);
    etcd.ctl(None, &["put", key, "{}"]);
    acme.ok(&["create", "configmap", "c"]);
    cloud.log_until("the last good one is in force");
    etcd.ctl(None, &["put", key, now.trim_end()]);
    acme.ok(&["get", "configmap", "c"]);
    cloud.admin().ok(&["get", "partitions"]);
}

#[test]
fn a_directory_that_was_copied_from_another_server() {
    let mut servers = Servers::new();
    servers.add("s1", "all", &[]);
    servers.add("s2", "all", &[]);
    servers.terminate("s2");
    let (from, to) = (servers.path("pki/servers/s1/data"), servers.path("pki/servers/s2/data"));
    std::fs::rename(&to, to.with_extension("kept")).unwrap();
    assert!(Command::new("cp").arg("-a").arg(&from).arg(&to).status().unwrap().success());
    let mut command = insula();
    let config = servers.path("pki/servers/s2/apiserver.yaml");
    let said = refused(command.args(["apiserver", "--config"]).arg(config));
    assert!(said.contains("s1") && said.contains("s2") && said.contains("data"), "{said}");
    std::fs::remove_dir_all(&to).unwrap();
    std::fs::rename(to.with_extension("kept"), &to).unwrap();
    servers.start("s2");
}
