//! Aggregated APIs, as kubectl sees them: group versions that a tenant's own server has.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use harness::{
    Cloud, Kubectl,
    extension::{Extension, GROUP, Mode},
    servers::Servers,
    texts,
};
use serde_json::{Value, json};

const NAME: &str = "v1.wardle.example.com";
const ROOT: &str = "/apis/wardle.example.com/v1/namespaces/default/flunders";

#[track_caller]
fn apply(kubectl: &Kubectl, manifest: &str) -> String {
    let out = kubectl.feed(&["apply", "-f", "-"], manifest);
    let (stdout, stderr) = texts(&out);
    assert!(out.status.success(), "{stdout}{stderr}");
    stderr
}

/// Waits until the condition has this reason, and gives its message.
#[track_caller]
fn condition(kubectl: &Kubectl, reason: &str) -> String {
    let path = "jsonpath={.status.conditions[0].reason}: {.status.conditions[0].message}";
    kubectl
        .until(&["get", "apiservice", NAME, "-o", path], |it| it.starts_with(&format!("{reason}:")))
}

/// Waits until `is` holds.
#[track_caller]
fn eventually(what: &str, is: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < Duration::from_secs(120), "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// An extension server of the tenant, registered and available.
#[track_caller]
fn registered(kubectl: &Kubectl) -> Extension {
    let extension = Extension::start(kubectl);
    apply(kubectl, &extension.service());
    apply(kubectl, &extension.registration().to_string());
    assert_eq!(condition(kubectl, "Passed"), "Passed: all checks passed");
    extension
}

fn flunder(name: &str) -> String {
    json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "Flunder",
        "metadata": {"name": name}, "spec": {"reference": "a"},
    })
    .to_string()
}

fn groups(kubectl: &Kubectl) -> Vec<String> {
    let list: Value = serde_json::from_str(&kubectl.ok(&["get", "--raw", "/apis"])).unwrap();
    let groups = list["groups"].as_array().unwrap();
    groups.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
}

/// The group as aggregated discovery has it.
fn discovered(kubectl: &Kubectl) -> Value {
    let accept = "Accept: application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let (code, _, body) = kubectl.curl("/apis", &["-H", accept]);
    assert_eq!(code, 200);
    let list: Value = serde_json::from_str(&body).unwrap();
    let items = list["items"].as_array().unwrap();
    items.iter().find(|it| it["metadata"]["name"] == GROUP).cloned().unwrap_or_default()
}

#[test]
fn what_is_built_in_has_objects() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let list = acme.ok(&["get", "apiservices"]);
    let row = |name: &str| {
        let found = list.lines().find(|it| it.starts_with(&format!("{name} ")));
        found.map(|it| it.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(row("v1.apps"), Some("v1.apps Local True".into()));
    assert_eq!(row("v1."), Some("v1. Local True".into()));
    assert_eq!(row("v1.insula.io"), Some("v1.insula.io Local True".into()));
    let label = "kube-aggregator.kubernetes.io/automanaged=onstart";
    assert_eq!(acme.ok(&["get", "apiservices", "-l", label]).lines().count(), list.lines().count());
    assert!(cloud.admin().ok(&["get", "apiservices"]).contains("v1.insula.io"));
    let described = acme.ok(&["describe", "apiservice", "v1.batch"]);
    assert!(described.contains("Local APIServices are always available"), "{described}");

    // Changing one keeps it from then on, and has it where it says.
    assert_eq!(groups(&acme)[..2], ["apiregistration.k8s.io", "apps"]);
    let patch = r#"{"spec":{"groupPriorityMinimum":17999},"metadata":{"labels":{"mine":"yes"}}}"#;
    acme.ok(&["patch", "apiservice", "v1.batch", "--type=merge", "-p", patch]);
    assert_eq!(groups(&acme)[..2], ["apiregistration.k8s.io", "batch"]);
    assert_eq!(groups(&globex)[..2], ["apiregistration.k8s.io", "apps"]);
    assert_eq!(acme.ok(&["get", "apiservices", "-l", "mine=yes", "-o", "name"]).lines().count(), 1);
    acme.ok(&["delete", "apiservice", "v1.batch", "--timeout=30s"]);
    assert_eq!(groups(&acme)[..2], ["apiregistration.k8s.io", "apps"]);

    // Deleting what is built in begins it anew.
    let uid = ["get", "apiservice", "v1.batch", "-o", "jsonpath={.metadata.uid}"];
    let before = acme.ok(&uid);
    acme.ok(&["delete", "apiservice", "v1.batch", "--timeout=30s"]);
    assert_ne!(acme.ok(&uid), before);
    acme.ok(&["get", "jobs"]);
    // It cannot be given to somebody else.
    let patch = r#"{"spec":{"service":{"namespace":"default","name":"mine"}}}"#;
    let said = acme.fails(&["patch", "apiservice", "v1.batch", "--type=merge", "-p", patch]);
    assert!(said.contains("spec.service: Forbidden"), "{said}");
    let out = acme.feed(
        &["create", "-f", "-"],
        r#"{"apiVersion":"apiregistration.k8s.io/v1","kind":"APIService","metadata":{"name":"v1.apps"},
            "spec":{"group":"apps","version":"v1","groupPriorityMinimum":1,"versionPriority":1}}"#,
    );
    assert!(texts(&out).1.contains(r#""v1.apps" already exists"#), "{out:?}");
}

#[test]
fn definitions_register_their_group_versions() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let mut watch = acme
        .command()
        .args(["get", "apiservices", "-w", "--output-watch-events"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, lines) = mpsc::channel();
    let stdout = watch.stdout.take().unwrap();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let told = |text: &str| {
        let begin = Instant::now();
        loop {
            let line = lines.recv_timeout(Duration::from_secs(120)).unwrap();
            if line.contains(text) {
                return line;
            }
            assert!(begin.elapsed() < Duration::from_secs(120), "{text}");
        }
    };
    told("v1.apps");
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": {"type": "object"}}}],
        },
    });
    apply(&acme, &definition.to_string());
    let name = "v1.stable.example.com";
    assert!(told(name).starts_with("ADDED"));
    let path = "jsonpath={.metadata.labels.kube-aggregator\\.kubernetes\\.io/automanaged} {.spec.groupPriorityMinimum} {.spec.versionPriority}";
    assert_eq!(acme.ok(&["get", "apiservice", name, "-o", path]), "true 1000 100");
    globex.fails(&["get", "apiservice", name]);
    // Whatever is done to it, it stays as it is made.
    acme.ok(&["delete", "apiservice", name, "--timeout=30s"]);
    acme.until(&["get", "apiservice", name, "-o", path], |it| it == "true 1000 100");
    let patch = r#"{"spec":{"versionPriority":7}}"#;
    acme.ok(&["patch", "apiservice", name, "--type=merge", "-p", patch]);
    acme.until(&["get", "apiservice", name, "-o", path], |it| it == "true 1000 100");
    acme.ok(&["delete", "crd", "foos.stable.example.com"]);
    while !told(name).starts_with("DELETED") {}
    eventually("it goes with its definition", || {
        !acme.run(&["get", "apiservice", name]).status.success()
    });
    watch.kill().unwrap();
    watch.wait().unwrap();
    // Tenants end all the same.
    cloud.admin().ok(&["delete", "tenant", "acme", "--timeout=60s"]);
}

#[test]
fn an_extension_server_is_a_part_of_the_api() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let extension = registered(&acme);

    // Discovery, in both forms, and OpenAPI.
    assert!(acme.ok(&["api-resources"]).contains("flunders"));
    let version = &discovered(&acme)["versions"][0];
    assert_eq!((&version["freshness"], &version["version"]), (&json!("Current"), &json!("v1")));
    assert!(
        acme.ok(&["get", "--raw", "/apis/wardle.example.com"])
            .contains(r#""wardle.example.com/v1""#)
    );
    assert!(acme.ok(&["get", "--raw", "/apis/wardle.example.com/v1"]).contains("flunders"));
    assert!(acme.ok(&["explain", "flunders.spec"]).contains("What it refers to."));
    let old = acme.ok(&["get", "--raw", "/openapi/v2"]);
    let old: Value = serde_json::from_str(&old).unwrap();
    assert!(old["definitions"]["com.example.wardle.v1.Flunder"].is_object());
    let old = acme.ok(&["explain", "flunders.spec", "--output=plaintext-openapiv2"]);
    assert!(old.contains("What it refers to."), "{old}");

    // Objects.
    let out = acme.feed(&["create", "-f", "-"], &flunder("one"));
    assert!(out.status.success(), "{:?}", texts(&out));
    assert!(acme.ok(&["get", "fl"]).contains("one"));
    let mut watch = acme
        .command()
        .args(["get", "flunders", "-w", "-o", "name"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "flunder.wardle.example.com/one");
    let out = acme.feed(&["create", "-f", "-"], &flunder("two"));
    assert!(out.status.success(), "{:?}", texts(&out));
    assert_eq!(lines.next().unwrap().unwrap(), "flunder.wardle.example.com/two");
    watch.kill().unwrap();
    watch.wait().unwrap();
    acme.ok(&["delete", "flunder", "two", "--wait=false"]);
    let said = acme.fails(&["get", "flunder", "two"]);
    assert!(said.contains("NotFound"), "{said}");

    // Every form of the path, as the platform and as its own.
    let admin = cloud.admin();
    for path in [
        "/tenants/acme/apis/wardle.example.com/v1/namespaces/default/flunders/one",
        "/apis/wardle.example.com/v1/tenants/acme/namespaces/default/flunders/one",
    ] {
        assert!(admin.ok(&["get", "--raw", path]).contains(r#""one""#), "{path}");
        let last = extension.seen().pop().unwrap();
        assert!(last.line.starts_with(&format!("GET {ROOT}/one ")), "{}", last.line);
        let said = globex.fails(&["get", "--raw", path]);
        assert!(said.contains("forbidden"), "{said}");
    }
    let said = admin.fails(&["get", "--raw", ROOT]);
    assert!(said.contains("could not find the requested resource"), "{said}");

    // Who asks is told in headers, and nobody else says so.
    let smuggled = [
        "X-Remote-User: root",
        "X-Remote-Group: system:masters",
        "X_Remote_Extra_Scopes: all",
        "X-Remote-Uid: 0",
        "Connection: X-Remote-User",
    ];
    let smuggled: Vec<&str> = smuggled.iter().flat_map(|it| ["-H", it]).collect();
    let (code, _, _) = acme.curl(&format!("{ROOT}/one"), &smuggled);
    assert_eq!(code, 200);
    let last = extension.seen().pop().unwrap();
    assert_eq!(last.all("x-remote-user"), ["dev"]);
    assert_eq!(last.all("x-remote-group"), ["acme-admins", "system:authenticated"]);
    for gone in ["x-remote-uid", "x_remote_extra_scopes", "authorization"] {
        assert!(last.all(gone).is_empty(), "{gone}: {last:?}");
    }

    // What the rules of the tenant do not allow does not get there.
    let stranger = cloud.user("acme", "stranger", "nobody");
    let before = extension.seen().len();
    let said = stranger.fails(&["get", "--raw", &format!("{ROOT}/one")]);
    assert!(said.contains(r#"cannot get resource "flunders""#), "{said}");
    assert_eq!(extension.seen().len(), before);

    // A namespace takes with it what the extension server has in it.
    acme.ok(&["create", "namespace", "short"]);
    let out = acme.feed(&["create", "-n", "short", "-f", "-"], &flunder("gone"));
    assert!(out.status.success(), "{:?}", texts(&out));
    assert_eq!(extension.objects(), 2);
    acme.ok(&["delete", "namespace", "short", "--timeout=60s"]);
    assert_eq!(extension.objects(), 1);

    // Old servers have only the old form of discovery.
    extension.set_new(false);
    let patch = r#"{"spec":{"versionPriority":11,"service":{"port":443,"namespace":"default","name":"ext"},"insecureSkipTLSVerify":true,"caBundle":null}}"#;
    acme.ok(&["patch", "apiservice", NAME, "--type=merge", "-p", patch]);
    eventually("found by the old form", || {
        discovered(&acme)["versions"][0]["resources"][0]["subresources"].is_null()
            && discovered(&acme)["versions"][0]["resources"][0]["responseKind"]["group"] == GROUP
    });

    acme.ok(&["delete", "apiservice", NAME]);
    assert!(!groups(&acme).iter().any(|it| it == GROUP));
    let said = acme.fails(&["get", "--raw", ROOT]);
    assert!(said.contains("could not find the requested resource"), "{said}");
}

#[test]
fn bodies_and_connections_pass_as_they_come() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let extension = registered(&acme);

    // An upgraded connection.
    let mut stream = acme.connect();
    let path = format!("{ROOT}/one/echo");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\
         X-Remote-User: root\r\n\r\n"
    )
    .unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        reader.read_line(&mut head).unwrap();
    }
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    for text in ["hello\n", "there\n"] {
        reader.get_mut().write_all(text.as_bytes()).unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, format!("again {text}"));
    }
    drop(reader);
    assert_eq!(extension.seen().last().unwrap().all("x-remote-user"), ["dev"]);

    // A large body goes through, larger than what is taken for objects that are kept here.
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(20 * 1024 * 1024).unwrap();
    let sent = format!("@{}", file.path().display());
    let (code, _, body) =
        acme.curl(&format!("{ROOT}/one/size"), &["-X", "POST", "--data-binary", &sent]);
    assert_eq!((code, body.as_str()), (200, r#"{"size":20971520}"#));

    // An endless answer goes as fast as it is read, and is not collected.
    let mut stream = acme.connect();
    let path = format!("{ROOT}/one/endless");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut piece = [0; 1024];
    stream.read_exact(&mut piece).unwrap();
    let before = cloud.memory();
    let sent = || {
        let before = extension.sent();
        thread::sleep(Duration::from_millis(500));
        (before, extension.sent())
    };
    eventually("it waits for its reader", || {
        let (before, after) = sent();
        before == after
    });
    let taken = extension.sent();
    assert!(taken < 64 << 20, "{taken} bytes are on their way to who reads none");
    let mut rest = vec![0; 1 << 20];
    for _ in 0..200 {
        stream.read_exact(&mut rest).unwrap();
    }
    let grown = cloud.memory().saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes more for a stream");
    drop(stream);
    eventually("it ends with its reader", || {
        let (before, after) = sent();
        before == after && 0 < extension.refused()
    });

    // Nobody is sent elsewhere, and nobody is believed who says that nothing was done.
    let (code, headers, body) = acme.curl(&format!("{ROOT}/one/away"), &[]);
    assert_eq!(code, 502);
    assert!(!headers.contains("location:"), "{headers}");
    assert!(body.contains("attempted to redirect"), "{body}");
    let before = extension.seen().len();
    let (code, headers, _) = acme.curl(&format!("{ROOT}/one/misdirected"), &["-X", "POST"]);
    assert_eq!((code, extension.seen().len()), (502, before + 1));
    assert!(!headers.contains("x-insula-epoch"), "{headers}");
}

#[test]
fn a_tenants_servers_are_its_own() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let extension = registered(&acme);
    // Nothing of it is seen elsewhere.
    assert!(!globex.ok(&["api-resources"]).contains("flunders"));
    let said = globex.fails(&["get", "--raw", ROOT]);
    assert!(said.contains("could not find the requested resource"), "{said}");
    // Its service is none of another tenant's.
    apply(&globex, &extension.registration().to_string());
    let message = condition(&globex, "ServiceNotFound");
    assert_eq!(message, r#"ServiceNotFound: service/ext in "default" is not present"#);
    // Who knows its address gets no further: it does not believe another's front proxy.
    apply(&globex, &extension.service());
    condition(&globex, "FailedDiscoveryCheck");
    let before = extension.seen().len();
    let (code, _, body) = globex.curl(ROOT, &[]);
    assert_eq!((code, body.as_str()), (503, "service unavailable\n"));
    assert_eq!(extension.seen().len(), before);
    let ca = |of: &Kubectl| {
        let path = "jsonpath={.data.requestheader-client-ca-file}";
        let name = "extension-apiserver-authentication";
        of.ok(&["get", "configmap", "-n", "kube-system", name, "-o", path])
    };
    assert_ne!(ca(&acme), ca(&globex));

    // This host is nobody's.
    let port: u16 = cloud.endpoint.rsplit(':').next().unwrap().parse().unwrap();
    let external = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "host", "namespace": "default"},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    });
    apply(&globex, &external.to_string());
    let patch = json!({"spec": {
        "service": {"namespace": "default", "name": "host", "port": port},
        "caBundle": null, "insecureSkipTLSVerify": true,
    }});
    globex.ok(&["patch", "apiservice", NAME, "--type=merge", "-p", &patch.to_string()]);
    let begin = Instant::now();
    loop {
        let message = condition(&globex, "FailedDiscoveryCheck");
        if message.contains("is not an address that a tenant's server may have") {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{message}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_extension_server_that_fails_takes_nothing_with_it() {
    let mut cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let extension = Extension::start(&acme);
    apply(&acme, &extension.registration().to_string());
    condition(&acme, "ServiceNotFound");
    assert!(acme.ok(&["get", "apiservice", NAME]).contains("False (ServiceNotFound)"));
    let (code, _, body) = acme.curl(ROOT, &[]);
    assert_eq!((code, body.as_str()), (503, "service unavailable\n"));
    assert_eq!(discovered(&acme)["versions"][0]["freshness"], "Stale");

    // Step by step it gets there.
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "ext", "namespace": "default"},
        "spec": {"ports": [{"port": 80}]},
    });
    apply(&acme, &service.to_string());
    assert_eq!(
        condition(&acme, "ServicePortError"),
        r#"ServicePortError: service/ext in "default" is not listening on port 443"#
    );
    acme.ok(&["delete", "service", "ext"]);
    let service: Value = serde_json::from_str(&extension.service()).unwrap();
    apply(&acme, &service["items"][0].to_string());
    assert_eq!(
        condition(&acme, "EndpointsNotFound"),
        r#"EndpointsNotFound: cannot find endpointslices for service/ext in "default""#
    );
    let empty = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "ext-1", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "ext"},
        },
        "addressType": "IPv4", "ports": [], "endpoints": [],
    });
    apply(&acme, &empty.to_string());
    assert_eq!(
        condition(&acme, "MissingEndpoints"),
        "MissingEndpoints: endpointslices for service/ext in \"default\" have no addresses with port name \"\""
    );
    apply(&acme, &extension.service());
    condition(&acme, "Passed");
    eventually("its group is current", || {
        discovered(&acme)["versions"][0]["freshness"] == "Current"
    });

    // Another certificate than the one that is trusted.
    let other = Extension::start(&acme);
    let patch = json!({"spec": {"caBundle": other.bundle}}).to_string();
    acme.ok(&["patch", "apiservice", NAME, "--type=merge", "-p", &patch]);
    let message = condition(&acme, "FailedDiscoveryCheck");
    assert!(message.contains("failing or missing response from https://"), "{message}");
    assert!(message.contains("x509: certificate signed by unknown authority"), "{message}");
    let patch = json!({"spec": {"caBundle": extension.bundle}}).to_string();
    acme.ok(&["patch", "apiservice", NAME, "--type=merge", "-p", &patch]);
    condition(&acme, "Passed");

    // A watch breaks off with its server, and goes on with the next.
    let url = acme.url(&format!("{ROOT}?watch=true"));
    let mut watch = acme.curl_command();
    let mut watch = watch.args(["-sS", "-N", &url]).stdout(Stdio::piped()).spawn().unwrap();
    eventually("it is watched", || {
        extension.seen().iter().any(|it| it.line.contains("watch=true"))
    });
    extension.set_mode(Mode::Down);
    let ended = watch.wait_with_output_within(Duration::from_secs(20));
    assert!(ended, "the watch hangs");
    let (code, _, body) = acme.curl(ROOT, &[]);
    assert_eq!(code, 503, "{body}");
    acme.ok(&["get", "configmaps"]);
    // A look at it, which would come by itself within half a minute.
    acme.ok(&["annotate", "service", "ext", "look=1"]);
    condition(&acme, "FailedDiscoveryCheck");
    assert_eq!(discovered(&acme)["versions"][0]["freshness"], "Stale");
    assert_eq!(discovered(&acme)["versions"][0]["resources"][0]["resource"], "flunders");

    // It comes back by itself.
    extension.set_mode(Mode::Answers);
    condition(&acme, "Passed");
    assert!(acme.feed(&["create", "-f", "-"], &flunder("one")).status.success());

    // One that says nothing is given up on.
    extension.set_mode(Mode::Silent);
    let begin = Instant::now();
    let (code, _, _) = acme.curl(&format!("{ROOT}?timeout=1s"), &[]);
    assert!(code == 504 || code == 503, "{code}");
    assert!(begin.elapsed() < Duration::from_secs(10));
    acme.ok(&["annotate", "service", "ext", "look=2", "--overwrite"]);
    let message = condition(&acme, "FailedDiscoveryCheck");
    assert!(message.contains("context deadline exceeded"), "{message}");
    // It does not keep its tenant, and nobody waits for it.
    cloud.admin().ok(&["delete", "tenant", "acme", "--timeout=60s"]);
    cloud.terminate();
}

/// Waiting that ends.
trait Within {
    fn wait_with_output_within(&mut self, limit: Duration) -> bool;
}

impl Within for std::process::Child {
    fn wait_with_output_within(&mut self, limit: Duration) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < limit {
            if self.try_wait().unwrap().is_some() {
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.kill();
        let _ = self.wait();
        false
    }
}

#[test]
fn several_servers_share_the_work() {
    let mut servers = Servers::new();
    for (name, serve) in [("s1", "all"), ("s2", "all"), ("s3", "all"), ("s4", "none")] {
        servers.add(name, serve, &[]);
    }
    servers.controllers("s2");
    servers.tenants("s2");
    let user = |server: &str| servers.user(server, "acme", "dev", "acme-admins");
    let extension = registered(&user("s2"));
    // One of them looked, and all know.
    let looks = || {
        let seen = extension.seen();
        seen.iter().filter(|it| it.line == "GET /apis/wardle.example.com/v1 HTTP/1.1").count()
    };
    assert!(looks() < 3, "{} servers looked", looks());
    for server in ["s1", "s2", "s3", "s4"] {
        let dev = user(server);
        assert!(dev.ok(&["api-resources"]).contains("flunders"), "{server}");
        let out = dev.feed(&["create", "-f", "-"], &flunder(&format!("from-{server}")));
        assert!(out.status.success(), "{server}: {:?}", texts(&out));
        let last = extension.seen().pop().unwrap();
        assert_eq!(last.all("x-remote-user"), ["dev"], "{server}");
        dev.ok(&["get", "flunder", "from-s1"]);
    }
    assert_eq!(extension.objects(), 4);
    let uid = |server: &str| {
        user(server).ok(&["get", "apiservice", "v1.apps", "-o", "jsonpath={.metadata.uid}"])
    };
    assert_eq!(uid("s1"), uid("s4"));
    // Whoever goes, somebody else looks.
    let dev = user("s2");
    servers.kill("s1");
    extension.set_mode(Mode::Down);
    dev.until(&["annotate", "service", "ext", "look=1", "--overwrite"], |_| true);
    condition(&dev, "FailedDiscoveryCheck");
    extension.set_mode(Mode::Answers);
    condition(&dev, "Passed");
}

#[test]
fn extension_servers_ask_who_somebody_is() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let name = "extension-apiserver-authentication";
    let map = acme.ok(&["get", "configmap", "-n", "kube-system", name, "-o", "json"]);
    let data = serde_json::from_str::<Value>(&map).unwrap()["data"].clone();
    assert_ne!(data["client-ca-file"], data["requestheader-client-ca-file"]);
    let ours = std::fs::read_to_string(cloud.path("ca.crt")).unwrap();
    assert!(!map.contains(ours.lines().nth(2).unwrap()), "all tenants' clients are not its own");
    assert_eq!(data["requestheader-allowed-names"], r#"["front-proxy-client"]"#);
    assert_eq!(data["requestheader-username-headers"], r#"["X-Remote-User"]"#);
    assert_eq!(data["requestheader-group-headers"], r#"["X-Remote-Group"]"#);
    assert_eq!(data["requestheader-extra-headers-prefix"], r#"["X-Remote-Extra-"]"#);
    let tracking = "kube-apiserver-legacy-service-account-token-tracking";
    let since = acme.ok(&[
        "get",
        "configmap",
        "-n",
        "kube-system",
        tracking,
        "-o",
        "jsonpath={.data.since}",
    ]);
    assert_eq!(since.len(), "2026-01-01".len(), "{since}");

    // An extension server's account, as its manifests grant it.
    acme.ok(&["create", "serviceaccount", "ext"]);
    let account = "--serviceaccount=default:ext";
    acme.ok(&[
        "create",
        "clusterrolebinding",
        "ext",
        "--clusterrole=system:auth-delegator",
        account,
    ]);
    let role = "--role=extension-apiserver-authentication-reader";
    acme.ok(&["create", "rolebinding", "ext", "-n", "kube-system", role, account]);
    let token = acme.ok(&["create", "token", "ext"]);
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let as_account = |path: &str, more: &[&str]| {
        let url = acme.url(path);
        let ca = acme.kubeconfig().with_extension("ca");
        let out = std::process::Command::new("curl")
            .args(["-sS", "--cacert", ca.to_str().unwrap(), "-H", &bearer])
            .args(more)
            .arg(url)
            .output()
            .unwrap();
        serde_json::from_slice::<Value>(&out.stdout).unwrap()
    };
    acme.curl("/version", &[]);
    let read = as_account(&format!("/api/v1/namespaces/kube-system/configmaps/{name}"), &[]);
    assert_eq!(read["data"], data);
    let other = as_account("/api/v1/namespaces/kube-system/configmaps/kube-root-ca.crt", &[]);
    assert_eq!(other["code"], 403);
    let review = |kind: &str, group: &str, spec: Value| {
        let it = json!({"apiVersion": format!("{group}/v1"), "kind": kind, "spec": spec});
        let path = format!("/apis/{group}/v1/{}s", kind.to_lowercase());
        let body = it.to_string();
        as_account(&path, &["-H", "Content-Type: application/json", "-d", &body])["status"].clone()
    };
    let who = review("TokenReview", "authentication.k8s.io", json!({"token": token.trim()}));
    assert_eq!(who["user"]["username"], "system:serviceaccount:default:ext", "{who}");
    globex.ok(&["create", "serviceaccount", "ext"]);
    let theirs = globex.ok(&["create", "token", "ext"]);
    let who = review("TokenReview", "authentication.k8s.io", json!({"token": theirs.trim()}));
    assert_ne!(who["authenticated"], true, "another tenant's: {who}");
    for (groups, allowed) in [(json!(["acme-admins"]), true), (json!(["nobody"]), false)] {
        let attributes = json!({"verb": "get", "group": GROUP, "resource": "flunders"});
        let spec = json!({"user": "x", "groups": groups, "resourceAttributes": attributes});
        let status = review("SubjectAccessReview", "authorization.k8s.io", spec);
        assert_eq!(status["allowed"], allowed, "{status}");
    }
}
