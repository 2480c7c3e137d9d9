//! Client libraries of others, unmodified.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod client_go;
#[path = "../harness/mod.rs"]
mod harness;
mod kube_rs;

use std::process::Command;

use harness::{Cloud, root};

/// `install/deps.sh` makes it.
const PYTHON: &str = "/var/lib/insula/python/bin/python";

#[test]
fn the_official_python_client_speaks_of_every_kind() {
    let mut cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    // Nobody else is to change what it looks at.
    cloud.terminate();
    cloud.again_with(&["--without", "controllers,scheduler"]);
    let tests = root().join("insula/tests");
    let out = Command::new(PYTHON)
        .arg(tests.join("clients/every_kind.py"))
        .args([acme.kubeconfig(), cloud.admin().kubeconfig()])
        .arg(tests.join("differential/corpus"))
        .output()
        .unwrap();
    let (told, wrong) = harness::texts(&out);
    assert!(out.status.success(), "{told}\n{wrong}\n{}", cloud.log());
    assert!(60 < told.lines().count(), "{told}");
}
