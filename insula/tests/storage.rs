//! What happens to storage under a whole cloud: real etcds, and a disk that fills up.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use harness::{Cloud, texts};

/// A real etcd of one member.
struct Etcd {
    child: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Etcd {
    fn start() -> Self {
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}", listener.local_addr().unwrap())
        };
        let (url, peer) = (free(), free());
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, url, _dir: dir }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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
    cloud.terminate();
    cloud.again();
    assert_eq!(acme.ok(&["get", "pods", "-o", "name"]).lines().count(), 2);
    globex.ok(&["get", "configmap", "c"]);
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
