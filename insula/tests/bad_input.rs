//! Bad input: each kind gets a clear message that says what to do; nothing is lost or hangs.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    fs,
    net::TcpListener,
    process::Output,
    time::{Duration, Instant},
};

use harness::{Cloud, insula, texts};

#[test]
fn manifests() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let create = |extra: &[&str], text: &str| -> (bool, String) {
        let args: Vec<&str> = ["create", "-f", "-"].iter().chain(extra).copied().collect();
        let out: Output = acme.feed(&args, text);
        let (_, stderr) = texts(&out);
        (out.status.success(), stderr)
    };
    // What kubectl itself cannot read never reaches us; send this one as it is.
    let (done, said) = create(
        &["--validate=false"],
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":[1]}"#,
    );
    assert!(!done && said.contains("cannot unmarshal array"), "{said}");

    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: NAME}\nbogus: 1\n";
    let (done, said) = create(&["--validate=strict"], &unknown.replace("NAME", "strict"));
    assert!(!done && said.contains(r#"strict decoding error: unknown field "bogus""#), "{said}");
    let (done, said) = create(&["--validate=warn"], &unknown.replace("NAME", "warn"));
    assert!(done && said.contains(r#"Warning: unknown field "bogus""#), "{said}");
    let (done, said) = create(&["--validate=ignore"], &unknown.replace("NAME", "ignore"));
    assert!(done && said.is_empty(), "{said}");

    let name = "a".repeat(254);
    let (done, said) =
        create(&[], &format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n"));
    assert!(!done && said.contains("must be no more than 253 characters"), "{said}");
    let (done, said) = create(
        &[],
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: A_b}]}\n",
    );
    assert!(
        !done
            && said.contains("spec.containers[0].name: Invalid value")
            && said.contains("spec.containers[0].image: Required value"),
        "{said}"
    );
    let (done, said) = create(
        &[],
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: i}]}}}\n",
    );
    assert!(!done && said.contains("`selector` does not match template `labels`"), "{said}");

    let big = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big}}\ndata: {{a: {}}}\n",
        "x".repeat(3 << 20)
    );
    let (done, said) = create(&[], &big);
    assert!(!done && said.contains("Request entity too large"), "{said}");
    let (done, said) = create(&[], &big.replace(&"x".repeat(3 << 20), &"x".repeat(2 << 20)));
    assert!(!done && said.contains("Too long"), "{said}");

    for (path, expected) in [
        ("/api/v1/namespaces/default/nothings", "could not find the requested resource"),
        ("/api/v1/namespaces/default/pods?labelSelector=a%20in", "unable to parse requirement"),
        ("/api/v1/namespaces/default/pods?fieldSelector=spec.nope=1", "label not supported"),
        ("/api/v1/namespaces/default/pods?limit=x", "invalid syntax"),
        ("/api/v1/namespaces/default/pods?continue=%21", "continue key is not valid"),
        ("/api/v1/namespaces/default/pods/..%2f..", "invalid path segment"),
        // As of any tenant that is not one's own.
        ("/tenants/Not_A_Tenant/api/v1/pods", "Forbidden"),
    ] {
        let said = acme.fails(&["get", "--raw", path]);
        assert!(said.contains(expected), "{path}: {said}");
    }
    for (name, expected) in
        [("all", "reserved"), ("Big", "lowercase RFC 1123 label"), ("acme", "already exists")]
    {
        let text = format!("apiVersion: insula.io/v1\nkind: Tenant\nmetadata: {{name: {name}}}\n");
        let (_, said) = texts(&cloud.admin().feed(&["create", "-f", "-"], &text));
        assert!(said.contains(expected), "{name}: {said}");
    }
}

/// A request with a body from a file, as `kind`.
fn send(user: &harness::Kubectl, how: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), body).unwrap();
    let data = format!("@{}", file.path().display());
    let kind = format!("Content-Type: {kind}");
    let (code, _, body) = user.curl(path, &["-X", how, "-H", &kind, "--data-binary", &data]);
    (code, body)
}

#[test]
fn requests_out_of_all_proportion() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "configmap", "c", "--from-literal=a=b"]);
    const MAPS: &str = "/api/v1/namespaces/default/configmaps";
    const JSON: &str = "application/json";
    let before = cloud.memory();
    let named = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":"#;

    // Bodies: deep, wide, packed, and in no language.
    let deep = format!("{named}{}{}}}", "[".repeat(500_000), "]".repeat(500_000));
    let wide: Vec<String> = (0..200_000).map(|n| format!("\"k{n}\":\"\"")).collect();
    let wide = format!("{named}{{{}}}}}", wide.join(","));
    let laughs: String =
        (1..9).map(|n| format!("a{n}: &a{n} [{}]\n", format!("*a{}, ", n - 1).repeat(9))).collect();
    let laughs = format!("apiVersion: v1\nkind: ConfigMap\na0: &a0 [x]\n{laughs}");
    let packed = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xab, 0x56];
    let protobuf = [&b"k8s\0\x12\xff\xff\xff\xff\x0f"[..], &[0x0a; 100_000]].concat();
    for (what, kind, body, expected) in [
        ("deep", JSON, deep.as_bytes(), 400),
        // Each key is what it says, but all of them are too much for one object.
        ("wide", JSON, wide.as_bytes(), 413),
        ("laughs", "application/yaml", laughs.as_bytes(), 400),
        ("packed", JSON, &packed, 400),
        ("cut", "application/vnd.kubernetes.protobuf", &protobuf, 400),
        ("latin", JSON, b"{\"apiVersion\":\"v1\",\"kind\":\"\xe9\"}", 400),
        ("nothing", JSON, b"", 400),
    ] {
        let begin = Instant::now();
        let (code, said) = send(&acme, "POST", MAPS, kind, body);
        let shown: String = said.chars().take(300).collect();
        assert_eq!(code, expected, "{what}: {shown}");
        assert!(said.contains("\"Failure\""), "{what}: {shown}");
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}: {:?}", begin.elapsed());
    }

    // Patches.
    let test = r#"{"op":"test","path":"/data/a","value":"b"}"#;
    let many = format!("[{}]", vec![test; 10_001].join(","));
    let path = format!("{MAPS}/c");
    let (code, said) = send(&acme, "PATCH", &path, "application/json-patch+json", many.as_bytes());
    assert_eq!(code, 413, "{said}");

    // Heads: a long path, a long query, many headers and long ones.
    let long = |length: usize| "x".repeat(length);
    let (code, _, said) = acme.curl(&format!("{MAPS}/{}", long(10_000)), &[]);
    assert_eq!(code, 400, "{said}");
    let terms = vec!["a=b"; 1001].join(",");
    let (code, _, said) = acme.curl(&format!("{MAPS}?labelSelector={terms}"), &[]);
    assert!(code == 400 && said.contains("at most 1000 requirements"), "{code} {said}");
    let parameters: String = (0..10_000).map(|_| "&a=b").collect();
    let many = format!("{MAPS}?limit=1{parameters}");
    assert_eq!(acme.curl(&many, &["--http1.1"]).0, 200);
    assert_eq!(acme.curl(&many, &["--http2"]).0, 200);
    // Long credentials, and much that somebody is impersonated with, are read: as much as curl
    // sends over HTTP/2.
    let token = format!("Authorization: Bearer {}", long(50_000));
    let (code, _, said) = acme.curl("/version", &["--http2", "-H", &token]);
    assert!(code == 200 || code == 401, "{code} {said}");
    let extras: Vec<String> =
        (0..40).map(|n| format!("Impersonate-Extra-e{n}: {}", long(1_000))).collect();
    let mut more = vec!["--http2", "-H", "Impersonate-User: eve", "-H", "Impersonate-Group: g"];
    for line in &extras {
        more.extend(["-H", line]);
    }
    let (code, _, said) = acme.curl(MAPS, &more);
    assert!(code == 403 && said.contains(r#"User \"eve\" cannot list"#), "{code} {said}");
    // What is longer than that is not.
    for (version, count) in [("--http1.1", 6), ("--http2", 13)] {
        let lines: Vec<String> = (0..count).map(|n| format!("A{n}: {}", long(90_000))).collect();
        let mut more = vec![version];
        for line in &lines {
            more.extend(["-H", line]);
        }
        match acme.try_curl("/version", &more) {
            Ok((code, _, said)) => assert_eq!(code, 431, "{version}: {said}"),
            // Or the connection is closed while it is still being said.
            Err(said) => assert!(!said.is_empty()),
        }
        assert_eq!(acme.curl("/version", &[version]).0, 200);
    }
    let held = cloud.memory().saturating_sub(before) >> 20;
    assert!(held < 300, "{held} MiB");
}

/// Runs a command that must fail soon, and returns what it says.
#[track_caller]
fn fails(command: &mut std::process::Command) -> String {
    let begin = Instant::now();
    let out = command.output().unwrap();
    let (stdout, stderr) = texts(&out);
    assert!(!out.status.success(), "{stdout}{stderr}");
    assert!(begin.elapsed() < Duration::from_secs(20), "took {:?}", begin.elapsed());
    stderr.lines().filter(|it| it.starts_with("error: ")).collect()
}

#[test]
fn starts_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let up = |extra: &[&str]| {
        let mut command = insula();
        command.arg("up").arg("--data-dir").arg(dir.path().join("run")).args(extra);
        command
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said =
        fails(up(&["--listen", &address, "--without", "node"]).stdin(std::process::Stdio::null()));
    assert!(
        said.contains(&format!("cannot listen on {address}")) && said.contains("--listen"),
        "{said}"
    );

    let said =
        fails(&mut up(&["--listen", "127.0.0.1:0", "--without", "node", "--store", "paper"]));
    assert!(said.contains("unknown store"), "{said}");

    let said = fails(
        up(&["--listen", "127.0.0.1:0", "--container-runtime-endpoint", "unix:///nowhere.sock"])
            .env("RUST_LOG", "off"),
    );
    assert!(said.contains("containerd is not running") && said.contains("make deps"), "{said}");

    let said = fails(insula().args([
        "kubeconfig",
        "--data-dir",
        "/nonexistent",
        "--tenant",
        "a",
        "--user",
        "u",
    ]));
    assert!(said.contains("start `insula up` first"), "{said}");
    let said = fails(
        insula()
            .args(["kubeconfig", "--data-dir"])
            .arg(dir.path())
            .args(["--tenant", "all", "--user", "u"]),
    );
    assert!(said.contains("reserved"), "{said}");
}

#[test]
fn a_directory_that_is_in_use_or_of_another_version() {
    let mut cloud = Cloud::without_node();
    let mut second = insula();
    second.arg("up").arg("--data-dir").arg(cloud.data_dir());
    let said = fails(second.args(["--listen", "127.0.0.1:0", "--without", "node"]));
    assert!(said.contains("is in use by process"), "{said}");
    cloud.terminate();

    let again = |extra: &[&str]| {
        let mut command = insula();
        command.arg("up").arg("--data-dir").arg(cloud.data_dir());
        fails(command.args(["--listen", "127.0.0.1:0", "--without", "node"]).args(extra))
    };
    let said = again(&["--partitions", "1"]);
    assert!(said.contains("p1,p2") && said.contains("drain"), "{said}");
    let format = walk(&cloud.data_dir()).into_iter().find(|it| it.ends_with("FORMAT")).unwrap();
    fs::write(&format, "999\n").unwrap();
    let said = again(&[]);
    assert!(said.contains("was written by another version of insula"), "{said}");
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { out.extend(walk(&path)) } else { out.push(path) }
    }
    out
}

#[test]
fn without_root_there_is_a_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        env!("CARGO_BIN_EXE_insula"),
        "up",
        "--data-dir",
    ]);
    let out = command.arg(dir.path()).args(["--listen", "127.0.0.1:0"]).output().unwrap();
    let (_, stderr) = texts(&out);
    // Where the build directory is closed to others, the program cannot even be started.
    if !stderr.contains("Permission denied") {
        assert!(stderr.contains("needs root") && stderr.contains("--without node"), "{stderr}");
    }
}
