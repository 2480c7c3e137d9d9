//! Fairness: a tenant's flow schemas and priority levels decide among its own requests, and what
//! it keeps itself from doing is nobody else's concern.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    io::{Read as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use harness::{Cloud, Kubectl, socket::Stream};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Of 600 seats, by shares: the defaults have 245.
const SEATS_OF_ONE_SHARE: usize = 3;

/// A level with one share that neither lends nor borrows, and a schema that leads users to it.
fn narrow(name: &str, response: &str, users: &[&str]) -> String {
    let subjects: Vec<String> =
        users.iter().map(|it| format!("{{kind: User, user: {{name: {it}}}}}")).collect();
    let subjects = subjects.join(", ");
    format!(
        "apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
metadata: {{name: {name}}}
spec:
  type: Limited
  limited:
    nominalConcurrencyShares: 1
    lendablePercent: 0
    borrowingLimitPercent: 0
    limitResponse: {response}
---
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
metadata: {{name: {name}}}
spec:
  matchingPrecedence: 50
  priorityLevelConfiguration: {{name: {name}}}
  rules:
  - subjects: [{subjects}]
    resourceRules:
    - {{verbs: ['*'], apiGroups: ['*'], resources: ['*'], namespaces: ['*'], clusterScope: true}}
"
    )
}

const REJECT: &str = "{type: Reject}";
const QUEUE: &str = "{type: Queue, queuing: {queues: 1, handSize: 1, queueLengthLimit: 2}}";

fn apply(user: &Kubectl, what: &str) {
    let out = user.feed(&["apply", "-f", "-"], what);
    assert!(out.status.success(), "{}", harness::texts(&out).1);
}

/// A write whose body does not come: it is under way until it does.
struct Slow(Stream);

impl Slow {
    fn begin(user: &Kubectl) -> Self {
        let mut stream = user.connect();
        let head = "Host: h\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n";
        write!(stream, "POST {MAPS} HTTP/1.1\r\n{head}").unwrap();
        stream.flush().unwrap();
        Self(stream)
    }

    fn finish(mut self) -> String {
        writeln!(self.0, "{{}}").unwrap();
        self.0.flush().unwrap();
        let mut said = vec![0; 4096];
        let n = self.0.read(&mut said).unwrap();
        String::from_utf8_lossy(&said[..n]).into_owned()
    }
}

/// What is asked for until the answer has this code.
#[track_caller]
fn until_code(user: &Kubectl, wanted: u16) -> (String, String) {
    let begin = Instant::now();
    loop {
        let (code, headers, body) = user.curl(MAPS, &[]);
        if code == wanted {
            return (headers.to_lowercase(), body);
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{code} {headers} {body}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn uid(user: &Kubectl, kind: &str, name: &str) -> String {
    user.ok(&["get", kind, name, "-o", "jsonpath={.metadata.uid}"])
}

#[test]
fn a_tenants_levels_bound_its_own_requests_and_nobody_elses() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let batch = cloud.user("acme", "batch", "acme-admins");
    apply(&acme, &narrow("batch", REJECT, &["batch"]));
    let told = format!("x-kubernetes-pf-flowschema-uid: {}", uid(&acme, "flowschema", "batch"));
    let begin = Instant::now();
    while !until_code(&batch, 200).0.contains(&told) {
        assert!(begin.elapsed() < Duration::from_secs(120), "it is not in force");
    }
    let level = uid(&acme, "prioritylevelconfiguration", "batch");
    let (headers, _) = until_code(&batch, 200);
    assert!(headers.contains(&format!("x-kubernetes-pf-prioritylevel-uid: {level}")), "{headers}");
    // Another user is of another schema, and so is everybody in another tenant.
    // Those are the defaults', which a tenant has without objects.
    let others = cloud.user("globex", "batch", "globex-admins");
    for user in [&acme, &others] {
        assert!(!until_code(user, 200).0.contains("x-kubernetes-pf"));
    }
    let exempt = uid(&cloud.admin(), "flowschema", "exempt");
    assert!(until_code(&cloud.admin(), 200).0.contains(&exempt));

    let slow: Vec<Slow> = (0..SEATS_OF_ONE_SHARE).map(|_| Slow::begin(&batch)).collect();
    let (headers, body) = until_code(&batch, 429);
    assert!(headers.contains("retry-after: 1\r\n") && headers.contains(&told), "{headers}");
    assert!(headers.contains("content-type: text/plain"), "{headers}");
    assert_eq!(body, "Too many requests, please try again later.\n");
    for user in [&acme, &globex, &others, &cloud.admin()] {
        assert_eq!(user.curl(MAPS, &[]).0, 200);
    }
    // The stock client comes again, and gets on when there is a seat.
    thread::scope(|scope| {
        let (begin, asks) = (Instant::now(), scope.spawn(|| batch.run(&["get", "--raw", MAPS])));
        thread::sleep(Duration::from_millis(2500));
        assert!(!asks.is_finished());
        for it in slow {
            let said = it.finish();
            assert!(said.starts_with("HTTP/1.1 4") && !said.starts_with("HTTP/1.1 429"), "{said}");
        }
        let out = asks.join().unwrap();
        assert!(out.status.success(), "{}", harness::texts(&out).1);
        assert!(Duration::from_secs(2) < begin.elapsed());
    });
    until_code(&batch, 200);
    let metrics = cloud.admin().ok(&["get", "--raw", "/metrics"]);
    let counted = |name: &str, more: &str| {
        let begin = format!("apiserver_flowcontrol_{name}{{");
        metrics.lines().any(|it| {
            it.starts_with(&begin)
                && it.contains("priority_level=\"batch\"")
                && it.contains("flow_schema=\"batch\"")
                && it.contains(more)
        })
    };
    assert!(counted("rejected_requests_total", "reason=\"concurrency-limit\""), "{metrics}");
    assert!(counted("dispatched_requests_total", ""), "{metrics}");
}

#[test]
fn who_finds_no_seat_waits_in_a_queue() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let batch = cloud.user("acme", "batch", "acme-admins");
    apply(&acme, &narrow("batch", QUEUE, &["batch"]));
    let told = uid(&acme, "flowschema", "batch");
    while !until_code(&batch, 200).0.contains(&told) {}
    let slow: Vec<Slow> = (0..SEATS_OF_ONE_SHARE).map(|_| Slow::begin(&batch)).collect();
    thread::sleep(Duration::from_millis(500));
    thread::scope(|scope| {
        let ask = || batch.curl(MAPS, &[]).0;
        let waiting = [scope.spawn(ask), scope.spawn(ask)];
        thread::sleep(Duration::from_millis(1000));
        assert!(waiting.iter().all(|it| !it.is_finished()));
        // Two wait, and there is no room for a third.
        assert_eq!(ask(), 429);
        drop(slow);
        for it in waiting {
            assert_eq!(it.join().unwrap(), 200);
        }
    });
}

#[test]
fn schemas_say_whether_their_level_is_there() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let condition = "jsonpath={.status.conditions[?(@.type=='Dangling')].status}";
    let get = |name| ["get", "flowschema", name, "-o", condition];
    assert_eq!(cloud.admin().ok(&get("global-default")), "False");
    let all = narrow("later", REJECT, &["somebody"]);
    let (level, schema) = all.split_once("---\n").unwrap();
    apply(&acme, schema);
    acme.until(&get("later"), |it| it == "True");
    apply(&acme, level);
    acme.until(&get("later"), |it| it == "False");
    acme.ok(&["delete", "prioritylevelconfiguration", "later"]);
    acme.until(&get("later"), |it| it == "True");
    let said = acme.ok(&["get", "flowschema", "later", "--no-headers"]);
    assert!(said.trim_end().ends_with("True"), "{said}");
}

#[test]
fn a_tenant_that_floods_does_not_keep_another_waiting() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let data = "x".repeat(4000);
    let maps = (0..300).map(|n| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m{n}}}\ndata: {{a: {data}}}\n"
        )
    });
    let out = acme.feed(&["create", "-f", "-"], &maps.collect::<String>());
    assert!(out.status.success(), "{}", harness::texts(&out).1);
    let count = |name: &str| -> f64 {
        let metrics = cloud.admin().ok(&["get", "--raw", "/metrics"]);
        let line = metrics.lines().find(|it| it.starts_with(&format!("{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let before = count("insula_turns_waited_total");
    // More than two processors' work, for a debug build, on connections of its own each.
    let mut streams: Vec<Stream> = (0..25)
        .map(|_| {
            let mut stream = acme.connect();
            for n in 1..=10 {
                let end = if n == 10 { "Connection: close\r\n" } else { "" };
                write!(stream, "GET {MAPS} HTTP/1.1\r\nHost: h\r\n{end}\r\n").unwrap();
            }
            stream.flush().unwrap();
            stream
        })
        .collect();
    thread::scope(|scope| {
        let readers: Vec<_> = streams
            .iter_mut()
            .map(|stream| {
                scope.spawn(|| {
                    let mut said = Vec::new();
                    stream.read_to_end(&mut said).unwrap();
                    let answers = said.windows(12).filter(|it| *it == b"HTTP/1.1 200").count();
                    assert_eq!(answers, 10);
                })
            })
            .collect();
        let mut asked = 0;
        while readers.iter().any(|it| !it.is_finished()) {
            let begin = Instant::now();
            assert_eq!(globex.curl(MAPS, &[]).0, 200);
            assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
            asked += 1;
        }
        assert!(0 < asked);
    });
    assert!(before < count("insula_turns_waited_total"), "the noisy one took its turns in line");
}
