//! The same steps end in the same objects whoever runs the controllers: ours, or
//! kube-controller-manager 1.36.2, unmodified, on our API server, whose objects are recorded in
//! `upstream.json`.
//!
//! What differs by chance (identities, times, addresses, drawn and hashed names) is taken out of
//! both. With `INSULA_KUBE_CONTROLLER_MANAGER=PATH` the recording is made anew.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

#[path = "../harness/mod.rs"]
mod harness;
mod plain;
mod pretend;
mod steps;

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
};

use harness::{Cloud, Kubectl};
use serde_json::{Value, json};

/// Whatever the steps make, or controllers make of it.
const KINDS: &str = "deployments,replicasets,statefulsets,daemonsets,jobs,cronjobs,\
    replicationcontrollers,pods,services,endpoints,endpointslices,poddisruptionbudgets,\
    horizontalpodautoscalers,persistentvolumeclaims,persistentvolumes,resourcequotas,\
    serviceaccounts,configmaps,controllerrevisions,namespaces,events";

fn recording() -> std::path::PathBuf {
    harness::root().join("insula/tests/final_objects/upstream.json")
}

/// Upstream's controllers, for a tenant. Ended with this.
struct Manager(std::process::Child);

impl Manager {
    fn start(program: &str, cloud: &Cloud, user: &Kubectl) -> Self {
        let kubeconfig = user.kubeconfig().to_str().unwrap();
        let log = fs::File::create(std::env::temp_dir().join("controller-manager.log")).unwrap();
        let child = Command::new(program)
            .args(["--kubeconfig", kubeconfig, "--authentication-kubeconfig", kubeconfig])
            .args(["--authorization-kubeconfig", kubeconfig, "--secure-port", "0"])
            .args(
                std::env::var("INSULA_KUBE_CONTROLLER_MANAGER_ARGS")
                    .iter()
                    .flat_map(|it| it.split(' ')),
            )
            .arg("--root-ca-file")
            .arg(cloud.path("ca.crt"))
            .arg("--service-account-private-key-file")
            .arg(cloud.path("pki/sa.key"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_objects_are_those_that_upstreams_controllers_make() {
    let peer = std::env::var("INSULA_KUBE_CONTROLLER_MANAGER").ok();
    let mut cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let _manager = peer.as_ref().map(|program| {
        cloud.terminate();
        cloud.again_with(&["--without", "controllers"]);
        Manager::start(program, &cloud, &acme)
    });
    let nodes = pretend::Nodes::start(&cloud.admin(), &acme);
    steps::run(&acme);
    let objects = plain::settled(&acme, KINDS);
    nodes.stop();
    let found: BTreeMap<String, Value> = plain::plain(objects);
    if peer.is_some() {
        fs::write(recording(), serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
        return;
    }
    let recorded = fs::read_to_string(recording()).unwrap();
    let recorded: BTreeMap<String, Value> = serde_json::from_str(&recorded).unwrap();
    let mut differences = Vec::new();
    harness::json::differences("", &json!(recorded), &json!(found), &mut differences);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
