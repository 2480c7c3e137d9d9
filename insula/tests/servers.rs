//! Several API servers: any of them answers any request, and dying disturbs only what it held.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use harness::{Kubectl, servers::Servers};

/// Waits until a partition is served by exactly these servers.
#[track_caller]
fn until_served(admin: &Kubectl, partition: &str, servers: &str) {
    let path = "jsonpath={.status.ready}";
    admin.until(&["get", "partition", partition, "-o", path], |ready| {
        let mut names: Vec<String> = serde_json::from_str(ready).unwrap_or_default();
        names.sort();
        names.join(",") == servers
    });
}

/// Tries until it works, as a client does while a leader is elected.
#[track_caller]
fn eventually(user: &Kubectl, args: &[&str]) -> String {
    user.until(args, |_| true)
}

/// p1 on s1, p2 on s2, nothing on s3; acme on p1 and globex on p2.
fn apart() -> Servers {
    let mut servers = Servers::new();
    servers.add("s1", "all", &[]);
    servers.add("s2", "p2", &[]);
    servers.add("s3", "none", &[]);
    servers.controllers("s3");
    let admin = servers.admin("s3");
    until_served(&admin, "p2", "s1,s2");
    admin.ok(&["patch", "partition", "p2", "--type=merge", "-p", r#"{"spec":{"servers":["s2"]}}"#]);
    until_served(&admin, "p2", "s2");
    until_served(&admin, "p1", "s1");
    servers.tenants("s3");
    for (tenant, partition) in [("acme", "p1"), ("globex", "p2")] {
        let patch = format!(r#"{{"spec":{{"partition":"{partition}"}}}}"#);
        admin.ok(&["patch", "tenant", tenant, "--type=merge", "-p", &patch]);
        admin.until(&["get", "tenant", tenant, "-o", "jsonpath={.status.partition}"], |at| {
            at == partition
        });
    }
    servers
}

#[test]
fn any_server_answers_for_every_tenant() {
    let servers = apart();
    for (server, n) in [("s1", 1), ("s2", 2), ("s3", 3)] {
        for tenant in ["acme", "globex"] {
            let dev = servers.user(server, tenant, "dev", &format!("{tenant}-admins"));
            let name = format!("from-{server}");
            dev.ok(&["create", "configmap", &name, "--from-literal", &format!("n={n}")]);
            let found = dev.ok(&["get", "configmap", &name, "-o", "jsonpath={.data.n}"]);
            assert_eq!(found, n.to_string());
            dev.ok(&["label", "configmap", &name, "x=y"]);
        }
    }
    for server in ["s1", "s2", "s3"] {
        for tenant in ["acme", "globex"] {
            let dev = servers.user(server, tenant, "dev", &format!("{tenant}-admins"));
            let names = dev.ok(&["get", "configmap", "-l", "x=y", "-o", "name"]);
            assert_eq!(names.lines().count(), 3, "{server} {tenant}: {names}");
        }
        // Across tenants, and so across partitions, for the platform.
        let admin = servers.admin(server);
        let url = format!("https://{}/api/v1/tenants/all/configmaps", servers.address(server));
        let (code, body) = servers.curl(&admin, &format!("{url}?labelSelector=x%3Dy"), &[]);
        assert_eq!(code, 200, "{body}");
        let list: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(list["items"].as_array().unwrap().len(), 6, "{server}");
        let version = list["metadata"]["resourceVersion"].as_str().unwrap();
        assert!(version.contains("p1=") && version.contains("p2="), "{version}");
    }
}

#[test]
fn a_watch_through_another_server_follows() {
    let mut servers = apart();
    let dev = servers.user("s3", "globex", "dev", "globex-admins");
    let mut watch = dev
        .command()
        .args(["get", "configmap", "--watch", "-l", "w=1", "-o", "name"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let (sender, seen) = std::sync::mpsc::channel();
    thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    // It may take a moment until the watch is there; from then on nothing is missed.
    let writer = servers.user("s2", "globex", "dev", "globex-admins");
    for n in 0..5 {
        let name = format!("w{n}");
        writer.ok(&["create", "configmap", &name]);
        writer.ok(&["label", "configmap", &name, "w=1"]);
        let line = seen.recv_timeout(Duration::from_secs(120)).expect("no event");
        assert!(line.ends_with(&name), "{line}");
    }
    watch.kill().unwrap();
    watch.wait().unwrap();

    // A server that ends in good order ends its watches.
    servers.terminate("s3");
    servers.start("s3");
    let names = dev.ok(&["get", "configmap", "-l", "w=1", "-o", "name"]);
    assert_eq!(names.lines().count(), 5, "{names}");
}

#[test]
fn tenants_stay_apart_however_requests_travel() {
    let servers = apart();
    let paths = [
        "/api/v1/tenants/globex/namespaces/default/pods",
        "/api/v1/tenants/globex/namespaces/default/secrets/x",
        "/api/v1/tenants/nobody/namespaces/default/pods",
        "/tenants/globex/api",
    ];
    for path in paths {
        let mut answers = Vec::new();
        for server in ["s1", "s2", "s3"] {
            let dev = servers.user(server, "acme", "dev", "acme-admins");
            let url = format!("https://{}{path}", servers.address(server));
            answers.push(servers.curl(&dev, &url, &[]));
        }
        assert_eq!(answers[0].0, 403, "{path}: {}", answers[0].1);
        assert!(answers.iter().all(|it| *it == answers[0]), "{path}: {answers:?}");
    }
    // Without rights the answer is the same, whether decided here or there.
    let url = |server: &str| {
        let path = "/api/v1/tenants/acme/namespaces/default/secrets";
        format!("https://{}{path}", servers.address(server))
    };
    let guest = |server: &str| servers.user(server, "acme", "guest", "guests");
    let here = servers.curl(&guest("s1"), &url("s1"), &[]);
    let there = servers.curl(&guest("s3"), &url("s3"), &[]);
    assert_eq!((here.0, &here), (403, &there));

    // What only servers may say.
    let dev = servers.user("s1", "acme", "dev", "acme-admins");
    let forged = ["-H", "x-insula-passport: eyJhbGciOiJIUzI1NiJ9.e30.AAAA"];
    let (code, body) = servers.curl(&dev, &url("s1"), &forged);
    assert_eq!(code, 403, "{body}");
    let root = servers.admin("s1");
    let (code, body) = servers.curl(&root, &url("s1"), &forged);
    assert_eq!(code, 403, "{body}");
    // A tenant may call its users what it likes.
    let posing = servers.user("s1", "acme", "system:insula-server:s2", "system:insula-servers");
    for user in [&posing, &dev, &root] {
        let call = format!("https://{}/insula/peer/v1/call", servers.address("s1"));
        let (code, body) = servers.curl(user, &call, &["-X", "POST", "-d", "x"]);
        assert_eq!(code, 403, "{body}");
    }
}

#[test]
fn logs_and_exec_go_through_other_servers() {
    let mut servers = apart();
    servers.node("s1");
    let dev = |server: &str| servers.user(server, "globex", "dev", "globex-admins");
    let script = "echo hello; trap 'exit 0' TERM; while true; do sleep 1; done";
    dev("s3").ok(&[
        "run",
        "web",
        "--image=localhost/insula/busybox:1",
        "--restart=Never",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let phase = ["get", "pod", "web", "-o", "jsonpath={.status.phase}"];
    dev("s3").until(&phase, |phase| phase == "Running");
    for server in ["s1", "s2", "s3"] {
        dev(server).until(&["logs", "web"], |log| log == "hello\n");
        let mut following = dev(server)
            .command()
            .args(["logs", "-f", "web"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(following.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "hello\n", "{server}");
        assert_eq!(following.try_wait().unwrap(), None, "it follows");
        following.kill().unwrap();
        following.wait().unwrap();
        let out = dev(server).run(&["exec", "web", "--", "sh", "-c", "echo out; exit 7"]);
        assert_eq!((out.status.code(), &*out.stdout), (Some(7), &b"out\n"[..]), "{server}");
        let fed = dev(server).feed(&["exec", "-i", "web", "--", "cat"], "through\n");
        assert_eq!(fed.stdout, b"through\n", "{server}");
        let spdy = dev(server)
            .command()
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
            .args(["exec", "web", "--", "echo", "spdy"])
            .output()
            .unwrap();
        assert_eq!(spdy.stdout, b"spdy\n", "{server}");
        // Another tenant's user reaches neither.
        let stranger = servers.user(server, "acme", "dev", "acme-admins");
        let path = "/tenants/globex/api/v1/namespaces/default/pods/web/log";
        assert!(stranger.fails(&["get", "--raw", path]).contains("Forbidden"));
    }
    dev("s3").ok(&["delete", "pod", "web"]);
}

#[test]
fn a_server_dies_and_comes_back() {
    let mut servers = Servers::new();
    servers.add("s1", "all", &[]);
    servers.add("s2", "all", &[]);
    servers.add("s3", "all", &[]);
    for partition in ["p1", "p2", "meta"] {
        until_served(&servers.admin("s3"), partition, "s1,s2,s3");
    }
    servers.controllers("s2");
    servers.tenants("s2");
    let dev = |servers: &Servers, at: &str| servers.user(at, "acme", "dev", "acme-admins");
    for round in 0..3 {
        let victim = ["s1", "s3", "s2"][round];
        let other = ["s2", "s1", "s3"][round];
        let name = format!("r{round}");
        dev(&servers, victim).ok(&["create", "configmap", &format!("{name}-before")]);
        servers.kill(victim);
        let begin = Instant::now();
        let user = dev(&servers, other);
        eventually(&user, &["get", "configmap", &format!("{name}-before")]);
        eventually(&user, &["apply", "-f", &configmap(&servers, &format!("{name}-during"))]);
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(30), "it took {took:?}");
        servers.start(victim);
        let again = dev(&servers, victim);
        eventually(&again, &["get", "configmap", &format!("{name}-during")]);
        eventually(&again, &["apply", "-f", &configmap(&servers, &format!("{name}-after"))]);
    }
    // All at once, and another partition than there were at the beginning.
    let partition = servers.path("p3.yaml");
    let text = "apiVersion: insula.io/v1\nkind: Partition\nmetadata: {name: p3}\n\
                spec: {servers: [s1, s2, s3]}\n";
    std::fs::write(&partition, text).unwrap();
    servers.admin("s2").ok(&["create", "-f", partition.to_str().unwrap()]);
    until_served(&servers.admin("s2"), "p3", "s1,s2,s3");
    for server in ["s1", "s2", "s3"] {
        servers.kill(server);
    }
    let lines: Vec<_> = ["s3", "s2", "s1"].map(|server| servers.spawn(server)).into();
    for lines in lines {
        let line = lines.recv_timeout(Duration::from_secs(120)).expect("not ready again");
        assert!(line.starts_with("ready"), "{line}");
    }
    let names = eventually(&dev(&servers, "s1"), &["get", "configmap", "-o", "name"]);
    for round in 0..3 {
        for when in ["before", "during", "after"] {
            assert!(names.contains(&format!("r{round}-{when}")), "{names}");
        }
    }
    for server in ["s1", "s2", "s3"] {
        servers.terminate(server);
    }
}

/// A manifest of a config map, as a file.
fn configmap(servers: &Servers, name: &str) -> String {
    let path = servers.path(&format!("{name}.yaml"));
    let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A client that writes and reads again and again, and what it went through.
struct Steady {
    stop: Arc<AtomicBool>,
    client: thread::JoinHandle<Went>,
}

#[derive(Debug, Default)]
struct Went {
    done: usize,
    slowest: Duration,
    /// Statuses and bodies of what was not done.
    failures: Vec<(u16, String)>,
}

impl Steady {
    fn start(user: Kubectl) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let client = thread::spawn(move || {
            let path = "/api/v1/namespaces/default/configmaps";
            let mut went = Went::default();
            while !stopped.load(Ordering::Relaxed) {
                let new =
                    r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"n"}}"#;
                let json = ["-H", "content-type: application/json", "-d", new];
                for more in [&json[..], &[]] {
                    let begin = Instant::now();
                    let (code, _, body) = user.curl(&format!("{path}?limit=1"), more);
                    went.slowest = went.slowest.max(begin.elapsed());
                    if matches!(code, 200 | 201) {
                        went.done += 1;
                    } else {
                        went.failures.push((code, body));
                    }
                }
            }
            went
        });
        Self { stop, client }
    }

    /// Ends it; it must have done something.
    fn end(self) -> Went {
        self.stop.store(true, Ordering::Relaxed);
        let went = self.client.join().unwrap();
        assert!(0 < went.done, "{went:?}");
        went
    }
}

#[test]
fn servers_come_and_go_while_clients_work() {
    let mut servers = apart();
    let steady = |servers: &Servers, at: &str, tenant: &str| {
        Steady::start(servers.user(at, tenant, "steady", &format!("{tenant}-admins")))
    };
    let (here, there) = (steady(&servers, "s1", "acme"), steady(&servers, "s3", "globex"));
    // A fourth one comes, has a copy of p1, and leaves in good order.
    servers.add("s4", "p1", &[]);
    let admin = servers.admin("s3");
    until_served(&admin, "p1", "s1,s4");
    let late = servers.user("s4", "acme", "dev", "acme-admins");
    late.ok(&["create", "configmap", "through-s4"]);
    let alone = r#"{"spec":{"servers":["s1"]}}"#;
    admin.ok(&["patch", "partition", "p1", "--type=merge", "-p", alone]);
    until_served(&admin, "p1", "s1");
    servers.terminate("s4");
    admin.ok(&["delete", "server", "s4"]);
    assert!(!admin.ok(&["get", "servers", "-o", "name"]).contains("s4"));
    for went in [here.end(), there.end()] {
        assert!(went.failures.is_empty() && went.slowest < Duration::from_secs(15), "{went:?}");
    }

    // s2 dies: that is the trouble of globex alone, and it ends when s2 is back.
    let globex = servers.user("s3", "globex", "dev", "globex-admins");
    globex.ok(&["create", "configmap", "kept"]);
    let (here, there) = (steady(&servers, "s1", "acme"), steady(&servers, "s3", "globex"));
    servers.kill("s2");
    let path = "/api/v1/namespaces/default/configmaps/kept";
    let begin = Instant::now();
    // kubectl would try again and again by itself.
    let (code, headers, body) = globex.curl(path, &[]);
    assert!(code == 503 && headers.contains("retry-after: "), "{code} {headers} {body}");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    servers.start("s2");
    eventually(&globex, &["get", "configmap", "kept"]);
    let went = here.end();
    assert!(went.failures.is_empty() && went.slowest < Duration::from_secs(15), "{went:?}");
    let went = there.end();
    assert!(went.failures.iter().all(|(code, _)| matches!(code, 503 | 504)), "{went:?}");
    assert!(!went.failures.is_empty());
}

#[test]
fn who_follows_is_told_when_a_server_ends() {
    let mut servers = apart();
    let dev = servers.user("s3", "globex", "dev", "globex-admins");
    dev.ok(&["create", "configmap", "c"]);
    let mut watch = dev
        .command()
        .args(["get", "configmap", "c", "--watch", "-o", "name"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "configmap/c");
    // That was a list; this is the watch.
    dev.ok(&["label", "configmap", "c", "a=b"]);
    assert_eq!(lines.next().unwrap().unwrap(), "configmap/c");
    let begin = Instant::now();
    servers.terminate("s3");
    assert!(watch.wait().unwrap().success(), "the watch did not end well");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}

#[test]
fn definitions_are_served_by_every_server_at_once() {
    let servers = apart();
    let of = |server: &str| servers.user(server, "acme", "dev", "acme-admins");
    let definition = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, kind: Widget}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {size: {type: integer, maximum: 9}}}}
"#;
    let feed = |server: &str, input: &str| {
        let out = of(server).feed(&["create", "--validate=false", "-f", "-"], input);
        harness::texts(&out)
    };
    // acme lives on s1; its definition comes through s2 and its objects through s3.
    let (made, said) = feed("s2", definition);
    assert!(made.contains("created"), "{said}");
    let widget = "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\nsize: 3\n";
    let (made, said) = feed("s3", widget);
    assert!(made.contains("created"), "right after the definition: {said}");
    let (_, said) = feed("s2", &widget.replace("{name: w}", "{name: x}").replace('3', "10"));
    assert!(said.contains("size in body should be less than or equal to 9"), "{said}");
    for server in ["s1", "s2", "s3"] {
        assert_eq!(of(server).ok(&["get", "widgets", "-o", "jsonpath={.items[*].size}"]), "3");
    }
    // It moves with its tenant.
    let admin = servers.admin("s3");
    admin.ok(&["patch", "tenant", "acme", "--type=merge", "-p", r#"{"spec":{"partition":"p2"}}"#]);
    admin.until(&["get", "tenant", "acme", "-o", "jsonpath={.status.partition}"], |at| at == "p2");
    assert_eq!(eventually(&of("s1"), &["get", "widget", "w", "-o", "jsonpath={.size}"]), "3");
    of("s1").ok(&["delete", "crd", "widgets.example.com"]);
    let gone = of("s3").fails(&["get", "--raw", "/apis/example.com/v1/widgets"]);
    assert!(gone.contains("could not find the requested resource"), "{gone}");
}

#[test]
fn a_group_that_became_one_knows_it_after_a_crash() {
    let mut servers = Servers::new();
    for name in ["s1", "s2", "s3"] {
        servers.add(name, "all", &[]);
    }
    let admin = servers.admin("s2");
    let members = |names: &str| format!(r#"{{"spec":{{"servers":[{names}]}}}}"#);
    let change = |partition: &str, names: &str| {
        let patch = members(names);
        admin.ok(&["patch", "partition", partition, "--type=merge", "-p", &patch]);
    };
    for partition in ["p1", "p2", "meta"] {
        until_served(&admin, partition, "s1,s2,s3");
    }
    servers.controllers("s2");
    servers.tenants("s2");
    let dev = servers.user("s2", "acme", "dev", "acme-admins");
    for round in 0..4_u32 {
        let name = format!("r{round}");
        dev.ok(&["create", "configmap", &name]);
        change("p1", r#""s1""#);
        if round == 3 {
            until_served(&admin, "p1", "s1");
        } else {
            // Somewhere on the way.
            thread::sleep(Duration::from_millis(u64::from(round) * 150));
        }
        servers.kill("s1");
        servers.start("s1");
        let found = eventually(&dev, &["get", "configmap", "-o", "name"]);
        assert!(found.contains(&name), "{found}");
        until_served(&admin, "p1", "s1");
        change("p1", r#""s1","s2","s3""#);
        until_served(&admin, "p1", "s1,s2,s3");
    }
    // All three are others in the end.
    change("p1", r#""s2","s3""#);
    until_served(&admin, "p1", "s2,s3");
    for server in ["s2", "s3"] {
        servers.kill(server);
    }
    for lines in ["s2", "s3"].map(|server| servers.spawn(server)) {
        let line = lines.recv_timeout(Duration::from_secs(120)).unwrap();
        assert!(line.starts_with("ready"), "{line}");
    }
    assert!(eventually(&dev, &["get", "configmap", "-o", "name"]).contains("r3"));
}
