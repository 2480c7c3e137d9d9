//! What the platform shows, as tenants on several partitions see them through kubectl.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use harness::{Cloud, Kubectl, create};
use serde_json::{Value, json};

const NAMES: [&str; 3] = ["get", "storageclasses", "-o=jsonpath={.items[*].metadata.name}"];

fn storage(name: &str, provisioner: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": name}, "provisioner": provisioner,
    })
}

/// A watch by stock kubectl, which lists and goes on from there.
struct Watch {
    child: Child,
    events: Receiver<String>,
}

impl Watch {
    fn begin(user: &Kubectl) -> Self {
        let path = "jsonpath={.type} {.object.metadata.name} {.object.provisioner}{\"\\n\"}";
        let args = ["get", "storageclasses", "-w", "--output-watch-events", "-o", path];
        let mut child = user.command().args(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, events) = channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|it| tell.send(it)));
        Self { child, events }
    }

    #[track_caller]
    fn next_is(&self, wanted: &str) {
        let told = self.events.recv_timeout(Duration::from_secs(60));
        assert_eq!(told.as_deref(), Ok(wanted));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn tenants_see_what_the_platform_shows_beside_their_own() {
    let mut cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let admin = cloud.admin();
    // On two partitions, of which one has what is the platform's.
    for (tenant, partition) in [("acme", "p1"), ("globex", "p2")] {
        let patch = format!(r#"{{"spec":{{"partition":"{partition}"}}}}"#);
        admin.ok(&["patch", "tenant", tenant, "--type=merge", "-p", &patch]);
        admin.until(&["get", "tenant", tenant, "-o=jsonpath={.status.partition}"], |at| {
            at == partition
        });
    }
    create(&acme, &storage("own", "acme.example.com"));
    create(&acme, &storage("slow", "acme.example.com"));
    let [of_acme, of_globex] = [&acme, &globex].map(Watch::begin);
    of_acme.next_is("ADDED own acme.example.com");
    of_acme.next_is("ADDED slow acme.example.com");

    create(&admin, &storage("fast", "platform.example.com"));
    of_acme.next_is("ADDED fast platform.example.com");
    of_globex.next_is("ADDED fast platform.example.com");
    create(&admin, &storage("slow", "platform.example.com"));
    of_globex.next_is("ADDED slow platform.example.com");
    globex.until(&NAMES, |names| names == "fast slow");
    // What a tenant had before hides what came then.
    assert_eq!(acme.ok(&NAMES), "fast own slow");
    let provisioner = ["get", "storageclass", "slow", "-o=jsonpath={.provisioner}"];
    assert_eq!(acme.ok(&provisioner), "acme.example.com");
    assert_eq!(globex.ok(&provisioner), "platform.example.com");
    // It says whose it is, and pages are as of one list.
    let whose = globex.ok(&["get", "--raw", "/apis/storage.k8s.io/v1/storageclasses/fast"]);
    assert_eq!(serde_json::from_str::<Value>(&whose).unwrap()["metadata"]["tenant"], "system");
    let page = acme.ok(&["get", "--raw", "/apis/storage.k8s.io/v1/storageclasses?limit=2"]);
    let page: Value = serde_json::from_str(&page).unwrap();
    let rest = format!(
        "/apis/storage.k8s.io/v1/storageclasses?limit=2&continue={}",
        page["metadata"]["continue"].as_str().unwrap()
    );
    let rest: Value = serde_json::from_str(&acme.ok(&["get", "--raw", &rest])).unwrap();
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!(rest["items"][0]["metadata"]["name"], "slow");

    // It is not theirs to change, and its name is taken.
    let told = "it is the platform's, you see it but cannot change it";
    for args in [
        &["delete", "storageclass", "fast"][..],
        &["label", "storageclass", "fast", "a=b"],
        &["patch", "storageclass", "fast", "-p", r#"{"allowVolumeExpansion":true}"#],
    ] {
        let said = globex.fails(args);
        assert!(said.contains(told) && said.contains("(Forbidden)"), "{args:?}: {said}");
    }
    let out = globex.feed(&["create", "-f", "-"], &storage("fast", "x.example.com").to_string());
    let (_, said) = harness::texts(&out);
    assert!(said.contains("\"fast\" already exists"), "{said}");
    // Who deletes all that it has deletes that.
    let all = "/apis/storage.k8s.io/v1/storageclasses";
    let (code, _, body) = acme.curl(&acme.url(all), &["-X", "DELETE"]);
    assert_eq!(code, 200, "{body}");
    of_acme.next_is("DELETED own acme.example.com");
    // What was hidden is seen now.
    of_acme.next_is("MODIFIED slow platform.example.com");
    assert_eq!(acme.ok(&NAMES), "fast slow");

    // The platform changes and removes its own.
    admin.ok(&["label", "storageclass", "fast", "tier=gold"]);
    of_globex.next_is("MODIFIED fast platform.example.com");
    of_acme.next_is("MODIFIED fast platform.example.com");
    globex.ok(&["get", "storageclasses", "-l", "tier=gold", "--no-headers"]);
    admin.ok(&["delete", "storageclass", "slow"]);
    of_globex.next_is("DELETED slow platform.example.com");
    of_acme.next_is("DELETED slow platform.example.com");
    create(&acme, &storage("slow", "acme.example.com"));
    of_acme.next_is("ADDED slow acme.example.com");

    // A claim that names no class gets the tenant's own default, or else the platform's.
    let default = "storageclass.kubernetes.io/is-default-class=true";
    admin.ok(&["annotate", "storageclass", "fast", default]);
    of_globex.next_is("MODIFIED fast platform.example.com");
    of_acme.next_is("MODIFIED fast platform.example.com");
    for (user, class) in [(&acme, "fast"), (&globex, "fast"), (&acme, "slow")] {
        if class == "slow" {
            user.ok(&["annotate", "storageclass", "slow", default]);
        }
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": format!("of-{class}")},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        });
        create(user, &claim);
        let given = ["get", "pvc", &format!("of-{class}"), "-o=jsonpath={.spec.storageClassName}"];
        assert_eq!(user.ok(&given), class);
    }

    // A definition that is shared is seen as such.
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com", "labels": {"insula.io/shared": "true"}},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}},
            }],
        },
    });
    create(&admin, &definition);
    let crds = ["get", "crd", "-o=jsonpath={.items[*].metadata.name}"];
    for user in [&acme, &globex] {
        user.until(&crds, |names| names == "widgets.example.com");
        let wait = ["wait", "--for=condition=Established", "crd/widgets.example.com"];
        user.ok(&[&wait[..], &["--timeout=60s"]].concat());
        let widget = json!({
            "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"},
        });
        create(user, &widget);
        let said = user.fails(&["delete", "crd", "widgets.example.com"]);
        assert!(said.contains(told), "{said}");
    }
    admin.ok(&["delete", "crd", "widgets.example.com", "--timeout=60s"]);
    for user in [&acme, &globex] {
        user.until(&crds, str::is_empty);
    }

    // A crash, and a move to the other partition, change nothing of it.
    drop((of_acme, of_globex));
    cloud.kill();
    cloud.again();
    assert_eq!(globex.ok(&NAMES), "fast");
    admin.ok(&["patch", "tenant", "acme", "--type=merge", "-p", r#"{"spec":{"partition":"p2"}}"#]);
    admin.until(&["get", "tenant", "acme", "-o=jsonpath={.status.partition}"], |at| at == "p2");
    assert_eq!(acme.ok(&NAMES), "fast slow");
    // The platform sees its own once, and of all tenants each one's own.
    assert_eq!(admin.ok(&NAMES), "fast");
    let all = admin.ok(&["get", "--raw", "/tenants/all/apis/storage.k8s.io/v1/storageclasses"]);
    let all: Value = serde_json::from_str(&all).unwrap();
    assert_eq!(all["items"].as_array().unwrap().len(), 2);
}
