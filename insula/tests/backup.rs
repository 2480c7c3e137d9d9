//! `insula backup` of a running cloud, and `insula restore` to another one.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use harness::{Cloud, Kubectl, insula, texts};

/// Runs `insula` and gives whether it was well, and all that it said.
fn run(args: &[&str]) -> (bool, String) {
    let out = insula().args(args).env_remove("KUBECONFIG").output().unwrap();
    let (stdout, stderr) = texts(&out);
    (out.status.success(), stdout + &stderr)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_cloud_comes_back_from_its_backup() {
    let cloud = Cloud::start(false, &["--partitions", "2"]);
    let (acme, globex) = cloud.tenants();
    for n in 0..20 {
        acme.ok(&["create", "configmap", &format!("c{n}"), &format!("--from-literal=n={n}")]);
    }
    globex.ok(&["create", "secret", "generic", "s", "--from-literal=password=x"]);
    let before: u64 = acme
        .ok(&["get", "configmap", "c3", "-o", "jsonpath={.metadata.resourceVersion}"])
        .parse()
        .unwrap();

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cloud.backup");
    let data_dir = cloud.data_dir();
    let (well, said) = run(&["backup", "--data-dir", text(&data_dir), "--out", text(&file)]);
    assert!(well && said.contains("p1: ") && said.contains("p2: "), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (well, said) = run(&["backup", "--data-dir", text(&data_dir), "--out", text(&file)]);
    assert!(!well && said.contains("--force"), "{said}");

    // Nobody but the platform gets one; a tenant's administrator is told what anybody is.
    let refused = acme.fails(&["get", "--raw", "/insula/backup"]);
    let unknown = acme.fails(&["get", "--raw", "/insula/nothing"]);
    assert_eq!(refused, unknown);

    let (well, said) = run(&["restore", "--check", "--from", text(&file)]);
    assert!(well && said.contains("objects of cluster"), "{said}");

    // Damaged: refused, and no directory made.
    let damaged = dir.path().join("damaged.backup");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, &bytes).unwrap();
    let new = dir.path().join("new");
    let (well, said) = run(&["restore", "--from", text(&damaged), "--data-dir", text(&new)]);
    assert!(!well && said.contains("is damaged") && said.contains("block"), "{said}");
    assert!(!new.exists());

    // Another number of partitions, in the place of the cloud that is lost.
    let (well, said) =
        run(&["restore", "--from", text(&file), "--data-dir", text(&new), "--partitions", "3"]);
    assert!(well, "{said}");
    let (well, said) = run(&["restore", "--from", text(&file), "--data-dir", text(&new)]);
    assert!(!well && said.contains("holds data"), "{said}");
    // Keys and certificates are kept beside it, and then go on being good.
    let kept = dir.path().join("dev.kubeconfig");
    fs::copy(acme.kubeconfig(), &kept).unwrap();
    let token = acme.ok(&["create", "token", "default"]);
    assert!(!new.join("pki").exists());
    let copied = Command::new("cp").arg("-a").arg(data_dir.join("pki")).arg(&new).status();
    assert!(copied.unwrap().success());
    drop(cloud);

    let parent = tempfile::Builder::new().prefix("ins").tempdir_in("/tmp").unwrap();
    let restored = Cloud::restored(parent.path(), &new, &["--partitions", "3"]);
    let admin = restored.admin();
    let names = admin.ok(&["get", "partitions", "-o", "name"]);
    assert!(names.contains("/p3") && !names.contains("/p4"), "{names}");
    let acme = restored.user("acme", "dev", "acme-admins");
    assert_eq!(acme.ok(&["get", "configmap", "c7", "-o", "jsonpath={.data.n}"]), "7");
    let after: u64 = acme
        .ok(&["get", "configmap", "c3", "-o", "jsonpath={.metadata.resourceVersion}"])
        .parse()
        .unwrap();
    assert!(before < after, "{before} and then {after}");
    acme.ok(&["create", "configmap", "more", "--from-literal=a=1"]);
    let server = format!("{}/tenants/acme", restored.endpoint);
    let old = Kubectl::new(kept);
    assert_eq!(
        old.ok(&["get", "configmap", "c7", "--server", &server, "-o", "name"]),
        "configmap/c7\n"
    );
    let mut bearer = Command::new("kubectl");
    bearer.args(["--kubeconfig", "/dev/null", "--server", &server, "--token", &token]);
    bearer.arg("--certificate-authority").arg(restored.path("ca.crt"));
    let (_, said) = texts(&bearer.args(["get", "configmaps"]).output().unwrap());
    assert!(said.contains("system:serviceaccount:default:default"), "{said}");
    let globex = restored.user("globex", "dev", "globex-admins");
    globex.ok(&["get", "secret", "s"]);
    globex.fails(&["get", "configmap", "c7"]);
}
