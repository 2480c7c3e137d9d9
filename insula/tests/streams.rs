//! Streams of a pod by every protocol that clients have, on real containerd.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use harness::{Cloud, socket::Socket, texts};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: localhost/insula/busybox:1
    command: [sh, -c, 'echo first; echo second; while true; do sleep 1; done']
";

const BINARY: u8 = 2;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;

/// All messages of one kind until the end.
fn rest(mut socket: Socket, kind: u8) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        match socket.next() {
            (CLOSE, _) => return all,
            (found, content) => {
                assert_eq!(found, kind);
                all.push(content);
            }
        }
    }
}

#[test]
fn logs_and_commands_over_websockets() {
    let cloud = Cloud::with_node();
    let (acme, _) = cloud.tenants();
    acme.until(&["get", "serviceaccount", "default"], |_| true);
    let (_, stderr) = texts(&acme.feed(&["create", "-f", "-"], POD));
    assert_eq!(stderr, "");
    acme.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=120s"]);
    acme.until(&["logs", "p"], |it| it == "first\nsecond\n");
    let pod = "/tenants/acme/api/v1/namespaces/default/pods/p";

    for protocol in ["", "binary.k8s.io"] {
        let found = rest(Socket::open(acme.connect(), &format!("{pod}/log"), protocol), BINARY);
        assert_eq!(found.concat(), b"first\nsecond\n", "{protocol}");
    }
    let socket =
        Socket::open(acme.connect(), &format!("{pod}/log?tailLines=1"), "base64.binary.k8s.io");
    let found: Vec<Vec<u8>> =
        rest(socket, TEXT).iter().map(|it| STANDARD.decode(it).unwrap()).collect();
    assert_eq!(found.concat(), b"second\n");

    // Commands: what they say, and how they end.
    let run = format!("{pod}/exec?stdout=1&command=sh&command=-c&command=");
    let failing = format!("{run}echo%20out;exit%207");
    for protocol in ["", "channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let found = rest(Socket::open(acme.connect(), &failing, protocol), BINARY);
        assert_eq!(found[0], [1], "{protocol}: that there is somebody is told first");
        let of = |channel: u8| -> Vec<u8> {
            let of = found.iter().filter(|it| it[0] == channel);
            of.flat_map(|it| it[1..].to_vec()).collect()
        };
        assert_eq!(of(1), b"out\n", "{protocol}");
        let end = String::from_utf8(of(3)).unwrap();
        match protocol {
            "" | "channel.k8s.io" => assert!(end.contains("exit code 7"), "{end}"),
            _ => assert!(
                end.contains(r#""reason":"ExitCode","message":"7""#)
                    || end.contains(r#""message":"7""#),
                "{end}"
            ),
        }
    }
    for protocol in ["base64.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let found = rest(Socket::open(acme.connect(), &format!("{run}echo%20out"), protocol), TEXT);
        let out = found
            .iter()
            .filter(|it| it[0] == b'1')
            .flat_map(|it| STANDARD.decode(&it[1..]).unwrap());
        assert_eq!(out.collect::<Vec<_>>(), b"out\n", "{protocol}");
    }

    // Ports as pairs of channels, each of which says first which port it is of.
    let serve = "echo hello >/tmp/index.html; httpd -p 8080 -h /tmp";
    acme.ok(&["exec", "p", "--", "sh", "-c", serve]);
    let mut socket =
        Socket::open(acme.connect(), &format!("{pod}/portforward?ports=8080"), "v4.channel.k8s.io");
    let port = 8080_u16.to_le_bytes();
    for channel in 0..2 {
        assert_eq!(socket.next(), (BINARY, [&[channel], &port[..]].concat()));
    }
    socket.send(BINARY, b"\0GET /index.html HTTP/1.0\r\n\r\n");
    let mut page = String::new();
    while !page.ends_with("hello\n") {
        let (_, content) = socket.next();
        assert_eq!(content[0], 0, "{content:?}");
        page.push_str(std::str::from_utf8(&content[1..]).unwrap());
    }

    // A token where a browser can put one.
    acme.ok(&[
        "create",
        "rolebinding",
        "all",
        "--clusterrole=admin",
        "--serviceaccount=default:default",
    ]);
    let token = acme.ok(&["create", "token", "default"]);
    let token = URL_SAFE_NO_PAD.encode(token.trim());
    let protocols = format!("base64url.bearer.authorization.k8s.io.{token}, binary.k8s.io");
    let path = "/api/v1/namespaces/default/pods/p/log";
    let found = rest(Socket::open(acme.connect_unknown(), path, &protocols), BINARY);
    assert_eq!(found.concat(), b"first\nsecond\n");

    // The node's agent, for those of the platform.
    let admin = cloud.admin();
    let node = admin.ok(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    assert_eq!(admin.curl(&format!("/api/v1/nodes/{node}/proxy/healthz"), &[]).0, 200);
}
