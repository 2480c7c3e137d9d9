//! What happens to storage under a whole cloud: real etcds, and a disk that fills up.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::process::{Command, Stdio};

use harness::{
    Cloud, Kubectl,
    etcd::{Certificates, Etcd, password},
    servers::Servers,
    texts,
};

#[test]
fn a_cloud_on_real_etcds() {
    let (first, second) = (Etcd::start(), Etcd::start());
    let store = format!("etcd=one={};two={}", first.url, second.url);
    let mut cloud = Cloud::start(false, &["--store", &store]);
    let partitions = cloud.admin().ok(&["get", "partitions"]);
    assert!(partitions.contains("one") && partitions.contains("two"), "{partitions}");
    let (acme, globex) = cloud.tenants();
    acme.ok(&["create", "deployment", "d", "--image=x:1", "--replicas=2"]);
    acme.until(&["get", "pods", "-o", "name"], |it| it.lines().count() == 2);
    globex.ok(&["create", "configmap", "c", "--from-literal=a=b"]);
    let metrics = cloud.admin().ok(&["get", "--raw", "/metrics"]);
    let made = r#"{operation="create",group="",resource="configmaps"}"#;
    for name in ["etcd_requests_total", "etcd_request_duration_seconds_count"] {
        assert!(metrics.contains(&format!("{name}{made} ")), "{name}: {metrics}");
    }
    assert!(metrics.contains("apiserver_storage_size_bytes{storage_cluster_id=\"one\"} "));
    cloud.terminate();
    cloud.again();
    assert_eq!(acme.ok(&["get", "pods", "-o", "name"]).lines().count(), 2);
    globex.ok(&["get", "configmap", "c"]);
}

/// Has a tenant live on `partition`.
fn settle(admin: &Kubectl, tenant: &str, partition: &str) {
    let patch = format!(r#"{{"spec":{{"partition":"{partition}"}}}}"#);
    admin.ok(&["patch", "tenant", tenant, "--type=merge", "-p", &patch]);
    let at = ["get", "tenant", tenant, "-o", "jsonpath={.status.partition}"];
    admin.until(&at, |at| at == partition);
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Asserts that a user is told to come back later, whatever is asked for.
#[track_caller]
fn is_unavailable(user: &Kubectl) {
    let new = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"meanwhile"}}"#;
    let json = ["-X", "POST", "-H", "content-type: application/json", "-d", new];
    for more in [&json[..], &[]] {
        let (code, headers, body) = user.curl(CONFIG_MAPS, more);
        assert_eq!(code, 503, "{body}");
        assert!(headers.contains("\r\nretry-after: 1"), "{headers}");
        assert!(body.contains("ServiceUnavailable") && body.contains("etcd"), "{body}");
    }
}

#[test]
fn an_etcd_that_is_down_is_its_tenants_trouble_alone() {
    let (mut one, mut two) = (Etcd::start(), Etcd::start());
    let store = format!("etcd=one={};two={}", one.url, two.url);
    let cloud = Cloud::start(false, &["--store", &store]);
    let admin = cloud.admin();
    let (acme, globex) = cloud.tenants();
    settle(&admin, "acme", "one");
    settle(&admin, "globex", "two");
    for (user, other, name) in [(&acme, &globex, "a"), (&globex, &acme, "b")] {
        let (down, up) = if name == "a" { (&mut one, &two) } else { (&mut two, &one) };
        user.ok(&["create", "configmap", &format!("{name}-before")]);
        let partition = if name == "a" { "one" } else { "two" };
        down.kill();
        let phase = ["get", "partition", partition, "-o", "jsonpath={.status.phase}"];
        admin.until(&phase, |phase| phase == "Unavailable");
        let message = ["get", "partition", partition, "-o", "jsonpath={.status.message}"];
        assert!(!admin.ok(&message).is_empty());
        is_unavailable(user);
        // Others go on, and read what is newest.
        other.ok(&["create", "configmap", &format!("{name}-meanwhile")]);
        other.ok(&["get", "configmap", &format!("{name}-meanwhile")]);
        let (code, _, body) =
            admin.curl(&format!("{}/api/v1/tenants/all/configmaps", cloud.endpoint), &[]);
        assert_eq!(code, 503, "{body}");
        down.again();
        user.until(&["get", "configmap", &format!("{name}-before")], |_| true);
        user.ok(&["create", "configmap", &format!("{name}-after")]);
        // What was refused is nowhere.
        let refused = format!("{}/default/meanwhile", if name == "a" { "acme" } else { "globex" });
        for etcd in [&*down, up] {
            let keys = etcd.ctl(None, &["get", "--prefix", "/insula", "--keys-only"]);
            assert!(keys.contains("configmaps") && !keys.contains(&refused), "{keys}");
        }
    }
}

#[test]
fn etcds_with_certificates_users_and_relaxed_ones() {
    let certificates = Certificates::new();
    let (main, relaxed) = (Etcd::with_tls(&certificates), Etcd::with_tls(&certificates));
    main.want_users(&certificates);
    relaxed.want_users(&certificates);
    let file = |name: &str| certificates.path(name).to_str().unwrap().to_owned();
    let secret = password(&certificates.path(""));
    // By flags, in one process.
    let store = format!("etcd=one={}", main.url);
    let second = format!("one={}", relaxed.url);
    let flags = [
        "--store",
        &store,
        "--etcd-relaxed",
        &second,
        "--etcd-ca",
        &file("ca.crt"),
        "--etcd-certificate",
        &file("client.crt"),
        "--etcd-key",
        &file("client.key"),
        "--etcd-user",
        "insula",
        "--etcd-password-file",
        secret.to_str().unwrap(),
    ];
    let mut cloud = Cloud::start(false, &flags);
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "configmap", "c"]);
    let event = "apiVersion: v1\nkind: Event\nmetadata: {name: e}\nreason: Test\n\
                 involvedObject: {kind: Pod, name: p, namespace: default}\n";
    let (_, said) = texts(&acme.feed(&["create", "-f", "-"], event));
    assert_eq!(said, "");
    let root = ["--user", "root:secret", "get", "--prefix", "/insula", "--keys-only"];
    let (here, there) =
        (main.ctl(Some(&certificates), &root), relaxed.ctl(Some(&certificates), &root));
    assert!(here.contains("acme/default/c") && !here.contains("acme/default/e"), "{here}");
    assert!(there.contains("acme/default/e") && !there.contains("acme/default/c"), "{there}");
    cloud.terminate();

    // By a file, as a server of a cluster, on the same etcds.
    let mut servers = Servers::new();
    let etcd = format!(
        "{{ca: {}, certificate: {}, key: {}, user: insula, passwordFile: {}}}",
        file("ca.crt"),
        file("client.crt"),
        file("client.key"),
        secret.display()
    );
    let begin = format!(
        "{{begin: {{etcd: [{{name: one, endpoints: ['{}'], relaxed: ['{}']}}]}}}}",
        main.url, relaxed.url
    );
    servers.configure("s1", &[("cluster", &begin), ("etcd", &format!("{{'*': {etcd}}}"))]);
    let acme = servers.user("s1", "acme", "dev", "acme-admins");
    acme.ok(&["get", "configmap", "c"]);
    acme.ok(&["get", "event", "e"]);
    acme.ok(&["create", "configmap", "d"]);
}

/// A small file system of its own, as a disk that fills up.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("insdisk").tempdir_in("/tmp").unwrap();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path());
        assert!(mount.status().unwrap().success());
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_writes_and_loses_none() {
    let disk = SmallDisk::new("400m");
    let mut cloud = Cloud::on(disk.0.path(), &[]);
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "configmap", "before", "--from-literal=a=b"]);
    // Nothing is left for anyone.
    let filler = disk.0.path().join("filler");
    let mut dd = Command::new("dd");
    dd.arg("if=/dev/zero")
        .arg(format!("of={}", filler.display()))
        .arg("bs=1M")
        .stderr(Stdio::null());
    assert!(!dd.status().unwrap().success(), "the disk is full");

    // Writes go on in what was set aside, then are refused in words.
    let big = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{generateName: big-}}\ndata: {{a: \"{}\"}}\n",
        "x".repeat(1 << 20)
    );
    let mut written = Vec::new();
    let said = loop {
        let (stdout, stderr) = texts(&acme.feed(&["create", "-f", "-", "-o", "name"], &big));
        if stdout.is_empty() {
            break stderr;
        }
        written.push(stdout.trim().to_owned());
        assert!(written.len() < 600, "the disk never filled up");
    };
    assert!(said.contains("ServiceUnavailable") || said.contains("unavailable"), "{said}");
    assert!(said.to_lowercase().contains("space") || said.contains("disk"), "{said}");
    // Reads go on, and what was acknowledged is there.
    acme.ok(&["get", "configmap", "before"]);
    let health = acme.fails(&["get", "--raw", "/readyz?verbose"]);
    assert!(health.contains("failed"), "{health}");

    std::fs::remove_file(&filler).unwrap();
    cloud.kill();
    cloud.again();
    let names = acme.ok(&["get", "configmap", "-o", "name"]);
    for name in ["configmap/before".to_owned()].iter().chain(&written) {
        assert!(names.lines().any(|it| it == name), "{name} was lost");
    }
    acme.ok(&["create", "configmap", "after"]);
}
