//! `proxy` of pods and services, to a small server of this test's own. No node needed.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use harness::{Cloud, own_address, texts};
use serde_json::{Value, json};

/// Answers each request with what it was; after an upgrade, each line with itself.
fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let prefix = format!("{name}: ");
        let found = lines.iter().find(|it| it.to_lowercase().starts_with(&prefix));
        found.map(|it| it[prefix.len()..].to_owned())
    };
    let mut stream = stream;
    if header("upgrade").is_some() {
        stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n",
        )?;
        let mut line = String::new();
        reader.read_line(&mut line)?;
        return stream.write_all(format!("again {line}").as_bytes());
    }
    let length = header("content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let told = json!({
        "line": lines[0], "body": String::from_utf8_lossy(&body), "host": header("host"),
        "authorization": header("authorization"), "at": header("x-forwarded-uri"),
    });
    let text = told.to_string();
    let head =
        "HTTP/1.1 418 Teapot\r\nContent-Type: application/json\r\nX-Own: yes\r\nConnection: close";
    stream.write_all(format!("{head}\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes())
}

/// Serves on a free port.
fn listen(address: IpAddr) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that goes away early is its own affair.
            thread::spawn(move || serve(stream));
        }
    });
    port
}

#[test]
fn what_pods_and_services_serve_is_reached_through_the_server() {
    let mut cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let address = own_address();
    let port = listen(address);
    let manifests = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\n\
         spec: {{containers: [{{name: c, image: i, ports: [{{containerPort: {port}}}]}}]}}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: local}}\n\
         spec: {{containers: [{{name: c, image: i}}]}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: s}}\n\
         spec: {{ports: [{{name: web, port: 80}}, {{name: other, port: 81}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: s-1, labels: {{kubernetes.io/service-name: s}}}}\n\
         endpoints: [{{addresses: [{address}]}}]\nports: [{{name: web, port: {port}}}]\n"
    );
    let out = acme.feed(&["create", "-f", "-"], &manifests);
    assert!(out.status.success(), "{}", texts(&out).1);
    for (name, ip) in [("p", address.to_string()), ("local", "127.0.0.1".into())] {
        let patch = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}}).to_string();
        acme.ok(&["patch", "pod", name, "--subresource=status", "--type=merge", "-p", &patch]);
    }

    let base = "/api/v1/namespaces/default";
    let told = |path: &str, more: &[&str]| -> Value {
        let (code, headers, body) = acme.curl(&format!("{base}/{path}"), more);
        assert!(code == 418 && headers.contains("x-own: yes"), "{path}: {code} {body}");
        serde_json::from_str(&body).unwrap()
    };
    let found = told("pods/p/proxy/a//b%20c/?x=1&y", &[]);
    assert_eq!(found["line"], "GET /a//b%20c/?x=1&y HTTP/1.1");
    assert_eq!(found["host"], format!("{address}:{port}"));
    assert!(found["at"].as_str().unwrap().ends_with("/pods/p/proxy/a//b%20c/"), "{found}");
    for name in [
        format!("pods/p:{port}"),
        format!("pods/http:p:{port}"),
        "services/s:web".into(),
        "services/http:s:80".into(),
    ] {
        assert_eq!(told(&format!("{name}/proxy/x"), &[])["line"], "GET /x HTTP/1.1", "{name}");
    }
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let more = ["-X", method, "-d", "content", "-H", "Authorization: Bearer secret"];
        let found = told("services/s:web/proxy/x", &more);
        assert_eq!((&found["body"], &found["authorization"]), (&json!("content"), &Value::Null));
        assert_eq!(found["line"], format!("{method} /x HTTP/1.1"));
    }

    // A page needs a path that ends in a slash.
    let (code, headers, _) = acme.curl(&format!("{base}/pods/p/proxy?q=1"), &[]);
    assert!(code == 301 && headers.contains("/namespaces/default/pods/p/proxy/?q=1"), "{headers}");

    // Upgrades pass.
    let mut stream = acme.connect();
    stream
        .write_all(
            format!(
                "GET /tenants/acme{base}/services/s:web/proxy/u HTTP/1.1\r\nHost: x\r\n\
                 Connection: Upgrade\r\nUpgrade: lines\r\n\r\n"
            )
            .as_bytes(),
        )
        .unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 101"), "{line}");
    while line.trim_end() != "" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    reader.get_mut().write_all(b"hello\n").unwrap();
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "again hello\n");

    // What cannot be reached, and what must not be.
    for (path, code, expected) in [
        ("pods/none/proxy/", 404, r#"pods \"none\" not found"#),
        ("services/s:83/proxy/", 503, r#"no service port 83 found for service \"s\""#),
        ("services/s:other/proxy/", 503, r#"no endpoints available for service \"s\""#),
        ("pods/ftp:p:1/proxy/", 400, "invalid pod request"),
        ("pods/local:80/proxy/", 400, "address not allowed"),
        ("pods/p:1/proxy/", 503, "error trying to reach service: dial tcp"),
    ] {
        let (found, _, body) = acme.curl(&format!("{base}/{path}"), &[]);
        assert!(found == code && body.contains(expected), "{path}: {found} {body}");
    }
    let denied = globex.fails(&["get", "--raw", &format!("/tenants/acme{base}/pods/p/proxy/")]);
    assert!(denied.contains("Forbidden"), "{denied}");
    assert_eq!(acme.curl("/api/v1/nodes/n/proxy/", &[]).0, 403);

    // An administrator closes one network and opens another.
    let local = listen(Ipv4Addr::LOCALHOST.into());
    cloud.terminate();
    let closed = format!("{address}/32");
    // The server itself is at this host: its own address has to be named whole.
    cloud.again_with(&["--outbound-deny", &closed, "--outbound-allow", "127.0.0.0/8,127.0.0.1/32"]);
    for path in ["pods/p/proxy/".to_owned(), "services/s:web/proxy/".to_owned()] {
        let (code, _, body) = acme.curl(&format!("{base}/{path}"), &[]);
        assert!(code == 400 && body.contains("address not allowed"), "{path}: {code} {body}");
    }
    assert_eq!(acme.curl(&format!("{base}/pods/local:{local}/proxy/"), &[]).0, 418);
}
