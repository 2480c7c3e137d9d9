//! What goes over the wire: encodings, forms, and what is said where they cannot be had.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    io::{Read as _, Write as _},
    process::Stdio,
};

use harness::{Cloud, Kubectl, socket::Socket};
use insula_api::{proto, schema::Schema};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PROTOBUF: &str = "Accept: application/vnd.kubernetes.protobuf";

fn get(user: &Kubectl, path: &str, accept: &str) -> (u16, String, Vec<u8>) {
    user.fetch(path, &["-A", "test", "-H", accept])
}

fn message(body: &[u8]) -> (String, Value) {
    let (gvk, value) = proto::decode(Schema::built_in(), body, None).unwrap();
    (gvk.kind, value)
}

fn json_of(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

#[test]
fn protobuf_in_and_out() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "configmap", "c", "--from-literal=a=1"]);

    let (code, headers, body) = get(&acme, &format!("{MAPS}/c"), PROTOBUF);
    assert!(code == 200 && headers.contains("content-type: application/vnd.kubernetes.protobuf"));
    let (kind, whole) = message(&body);
    let (_, _, text) = get(&acme, &format!("{MAPS}/c"), "Accept: application/json");
    let mut json = json_of(&text);
    // The one field that the messages do not have.
    json["metadata"].as_object_mut().unwrap().remove("tenant");
    assert_eq!((kind.as_str(), &whole), ("ConfigMap", &json));

    let (_, _, body) = get(&acme, &format!("{MAPS}?limit=1"), PROTOBUF);
    let (kind, list) = message(&body);
    assert_eq!((kind.as_str(), &list["items"][0]["data"]), ("ConfigMapList", &json!({"a": "1"})));
    assert_eq!(list["metadata"]["remainingItemCount"], 1);
    assert!(list["items"][0].get("kind").is_none());

    // What one server sends another takes.
    let file = cloud.path("body");
    std::fs::write(&file, &get(&acme, &format!("{MAPS}/c"), PROTOBUF).2).unwrap();
    let data = format!("@{}", file.display());
    let put = ["-X", "PUT", "-H", "Content-Type: application/vnd.kubernetes.protobuf"];
    let more = [&put[..], &["--data-binary", &data, "-H", PROTOBUF]].concat();
    let (code, _, body) = acme.fetch(&format!("{MAPS}/c"), &more);
    assert_eq!((code, message(&body).1), (200, whole));

    // Answers that are no objects, and errors.
    let (code, headers, body) = get(&acme, &format!("{MAPS}/none"), PROTOBUF);
    let (kind, status) = message(&body);
    assert_eq!((code, kind.as_str(), &status["reason"]), (404, "Status", &json!("NotFound")));
    assert!(headers.contains("vnd.kubernetes.protobuf"));
    assert_eq!(status["details"]["name"], "none");
    let (code, _, body) = acme.fetch(&format!("{MAPS}/c"), &["-X", "DELETE", "-H", PROTOBUF]);
    let (kind, status) = message(&body);
    assert_eq!((code, kind.as_str(), &status["status"]), (200, "Status", &json!("Success")));

    // Metadata alone, of what is built in and of what is not.
    let partial =
        "Accept: application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let (_, _, body) = get(&acme, "/api/v1/namespaces/default", partial);
    let (kind, meta) = message(&body);
    assert_eq!(
        (kind.as_str(), &meta["metadata"]["name"]),
        ("PartialObjectMetadata", &json!("default"))
    );
    assert!(meta.get("spec").is_none());
    let list = partial.replace("Metadata;", "MetadataList;");
    let (code, headers, _) = get(&acme, "/api/v1/namespaces", &list);
    assert!(code == 200 && headers.contains("vnd.kubernetes.protobuf"));
}

#[test]
fn watches_in_protobuf_are_frames() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "configmap", "first"]);
    let query = "fieldSelector=metadata.name!=kube-root-ca.crt&timeoutSeconds=20\
                 &sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = acme
        .curl_command()
        .args(["-sSN", "-H", PROTOBUF, &acme.url(&format!("{MAPS}?watch=1&{query}"))])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stream = watch.stdout.take().unwrap();
    let mut next = || {
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame).unwrap();
        // WatchEvent {1: type, 2: {1: object}}, without an envelope of its own.
        let end = 2 + frame[1] as usize;
        let kind = String::from_utf8(frame[2..end].to_vec()).unwrap();
        let object = frame.windows(4).position(|it| it == b"k8s\0").unwrap();
        (kind, message(&frame[object..]).1)
    };
    let (kind, object) = next();
    assert_eq!((kind.as_str(), &object["metadata"]["name"]), ("ADDED", &json!("first")));
    let (kind, object) = next();
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(object["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    acme.ok(&["create", "configmap", "second"]);
    acme.ok(&["delete", "configmap", "first"]);
    assert_eq!(next().1["metadata"]["name"], "second");
    let (kind, object) = next();
    assert_eq!((kind.as_str(), &object["metadata"]["name"]), ("DELETED", &json!("first")));
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn what_can_be_had_and_what_cannot() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "configmap", "c", "--from-literal=a=1"]);
    let one = format!("{MAPS}/c");
    let all = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
    for (path, accept, code, expected) in [
        (&*one, "application/json;q=0.1,application/yaml", 200, "apiVersion: v1"),
        (MAPS, "application/yaml", 200, "items:"),
        (&one, "text/html,*/*;q=0.1", 200, r#"{"apiVersion":"v1""#),
        (&one, "application/json;as=Table;g=meta.k8s.io;v=v1beta1", 200, "meta.k8s.io/v1beta1"),
        (&one, "text/html", 406, "Available representations: application/json, application/yaml"),
        (&one, "application/cbor", 406, "406: Not Acceptable"),
        (&one, "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1", 406, all),
        (
            &one,
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            406,
            "is not a list",
        ),
        (MAPS, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", 406, "is a list"),
        (
            &format!("{MAPS}?watch=1&timeoutSeconds=1"),
            "application/yaml",
            406,
            "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch",
        ),
    ] {
        let (found, _, body) = get(&acme, path, &format!("Accept: {accept}"));
        let text = String::from_utf8_lossy(&body);
        assert!(found == code && text.contains(expected), "{accept}: {found} {text}");
    }
    // Indented where a person reads.
    let plain = acme.fetch(&one, &["-A", "test"]).2;
    for more in [&["-A", "curl/8"][..], &["-A", "test", "-H", "Accept: application/json;pretty=1"]]
    {
        let pretty = acme.fetch(&one, more).2;
        assert!(plain.len() < pretty.len() && json_of(&plain) == json_of(&pretty), "{more:?}");
    }
    assert_eq!(acme.fetch(&format!("{one}?pretty=false"), &[]).2, plain);

    // A review has no rows.
    let review = r#"{"spec":{"resourceAttributes":{"verb":"get","resource":"pods"}}}"#;
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let table = "Accept: application/json;as=Table;g=meta.k8s.io;v=v1";
    let (code, _, _) = acme.fetch(reviews, &["-d", review, "-H", table, "-H", "Content-Type:"]);
    assert_eq!(code, 406);
    let (code, _, body) =
        acme.fetch(reviews, &["-d", review, "-H", PROTOBUF, "-H", "Content-Type:"]);
    assert_eq!((code, &message(&body).1["status"]["allowed"]), (201, &json!(true)));

    // Writes are answered in the same forms.
    let patch = ["-X", "PATCH", "-H", "Content-Type: application/merge-patch+json", "-H", table];
    let (_, _, body) = acme.fetch(&one, &[&patch[..], &["-d", r#"{"data":{"b":"2"}}"#]].concat());
    assert_eq!(json_of(&body)["rows"][0]["cells"][1], 2);

    // Bodies in no known encoding.
    for (kind, code) in [("application/cbor", 415), ("text/plain", 415), ("application/yaml", 201)]
    {
        let body = "metadata: {name: fromyaml}";
        let kind = format!("Content-Type: {kind}");
        let (found, _, body) = acme.fetch(MAPS, &["-H", &kind, "-d", body]);
        let text = String::from_utf8_lossy(&body);
        assert_eq!(found, code, "{kind}: {text}");
        if code == 415 {
            assert!(text.contains(&format!("accepted media types include: {all}")), "{text}");
        }
    }
}

#[test]
fn long_answers_are_compressed() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let body = json!({"metadata": {"name": "long"}, "data": {"a": "x".repeat(200_000)}});
    let mut create = acme
        .curl_command()
        .args(["-sS", "-H", "Content-Type: application/json", "--data-binary", "@-"])
        .arg(acme.url(MAPS))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    create.stdin.take().unwrap().write_all(body.to_string().as_bytes()).unwrap();
    assert!(create.wait().unwrap().success());
    let (_, headers, body) = acme.fetch(&format!("{MAPS}/long"), &["--compressed"]);
    assert!(headers.contains("content-encoding: gzip"), "{headers}");
    assert_eq!(json_of(&body)["data"]["a"].as_str().unwrap().len(), 200_000);
    let (_, headers, _) = acme.fetch(&format!("{MAPS}/long"), &[]);
    assert!(!headers.contains("content-encoding"), "{headers}");
}

#[test]
fn watches_over_websockets_and_old_paths() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "configmap", "first"]);
    let prefix = "/tenants/acme/api/v1";
    for (path, first) in [
        (
            format!(
                "{prefix}/namespaces/default/configmaps?watch=1&resourceVersion=0&timeoutSeconds=3"
            ),
            "first",
        ),
        (format!("{prefix}/watch/namespaces/default/configmaps/first?timeoutSeconds=3"), "first"),
    ] {
        let mut socket = Socket::open(acme.connect(), &path, "");
        let (kind, content) = socket.next();
        let event = json_of(&content);
        assert_eq!(
            (kind, &event["type"], &event["object"]["metadata"]["name"]),
            (1, &json!("ADDED"), &json!(first))
        );
        // Its end is clean.
        while socket.next().0 != 8 {}
    }
}

#[test]
fn options_of_reads() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "configmap", "c"]);
    let (_, _, body) = acme.fetch(MAPS, &[]);
    let revision: u64 =
        json_of(&body)["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let invalid = r#"ListOptions.meta.k8s.io \"\" is invalid: "#;
    for (query, code, expected) in [
        (format!("resourceVersion={revision}&resourceVersionMatch=Exact"), 200, "items"),
        (format!("resourceVersion={revision}&limit=1"), 200, "continue"),
        ("resourceVersion=0&resourceVersionMatch=NotOlderThan".into(), 200, "items"),
        (
            "resourceVersionMatch=Exact".into(),
            422,
            "is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersion=0&resourceVersionMatch=Exact".into(),
            422,
            "is forbidden for resourceVersion",
        ),
        ("resourceVersion=1&resourceVersionMatch=Newest".into(), 422, "Unsupported value"),
        ("sendInitialEvents=true".into(), 422, invalid),
        (
            "watch=1&sendInitialEvents=true".into(),
            422,
            "requires setting resourceVersionMatch to NotOlderThan",
        ),
        (
            "watch=1&resourceVersionMatch=NotOlderThan".into(),
            422,
            "unless sendInitialEvents is provided",
        ),
        ("continue=e30".into(), 400, "continue key is not valid"),
        ("resourceVersion=x".into(), 400, "invalid"),
        ("timeout=soon".into(), 400, "invalid timeout specified in the request URL"),
        (format!("resourceVersion={}", revision + 1000), 504, "Too large resource version"),
    ] {
        let (found, _, body) = acme.fetch(&format!("{MAPS}?{query}"), &[]);
        let text = String::from_utf8(body).unwrap();
        assert!(found == code && text.contains(expected), "{query}: {found} {text}");
    }
    let (code, headers, body) =
        acme.fetch(&format!("{MAPS}/c?resourceVersion={}", revision + 1000), &[]);
    let status = json_of(&body);
    assert_eq!(
        (code, &status["details"]["causes"][0]["reason"]),
        (504, &json!("ResourceVersionTooLarge"))
    );
    assert!(headers.contains("retry-after: 1"), "{headers}");
    // A broken body says what it should have been.
    for (body, expected) in [
        ("{", "the object provided is unrecognized (must be of type ConfigMap)"),
        (
            r#"{"kind":"ConfigMap","apiVersion":"v1","data":[1]}"#,
            r#"ConfigMap in version \"v1\" cannot be handled as a ConfigMap: "#,
        ),
    ] {
        let (code, _, said) =
            acme.fetch(MAPS, &["-H", "Content-Type: application/json", "-d", body]);
        let said = String::from_utf8(said).unwrap();
        assert!(code == 400 && said.contains(expected), "{said}");
    }
}

#[test]
fn documents_are_cached_and_kubectl_reads_both_forms() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let (_, headers, body) = acme.fetch("/openapi/v3", &[]);
    let tag = |headers: &str| {
        let line = headers.lines().find(|it| it.starts_with("etag: ")).unwrap();
        line.trim_start_matches("etag: ").trim().to_uppercase()
    };
    let condition = format!("If-None-Match: {}", tag(&headers));
    assert_eq!(acme.fetch("/openapi/v3", &["-H", &condition]).0, 304);
    let url =
        json_of(&body)["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let (code, headers, _) = acme.fetch(&url, &[]);
    assert!(
        code == 200 && headers.contains("public, immutable") && headers.contains("expires: "),
        "{headers}"
    );
    let (code, headers, _) = acme.fetch("/openapi/v3/apis/apps/v1?hash=0", &[]);
    assert!(
        code == 301 && headers.contains(&format!("location: /tenants/acme{}", url.to_lowercase())),
        "{headers}"
    );
    let (code, headers, _) = acme.fetch("/openapi/v3/apis/apps/v1", &[]);
    assert!(code == 200 && headers.contains("no-cache, private"), "{headers}");

    let asked = "Accept: application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let (code, headers, body) = acme.fetch("/openapi/v2", &["-H", asked]);
    assert!(code == 200 && headers.contains("proto-openapi.spec.v2.v1.0+protobuf"), "{headers}");
    assert!(100_000 < body.len());
    let condition = format!("If-None-Match: {}", tag(&headers));
    assert_eq!(acme.fetch("/openapi/v2", &["-H", asked, "-H", &condition]).0, 304);
    assert_eq!(acme.fetch("/openapi/v2", &["-H", "Accept: text/html"]).0, 406);
    // kubectl parses it.
    let said = acme.ok(&["explain", "deployments.spec.replicas", "--output=plaintext-openapiv2"]);
    assert!(said.contains("FIELD:    replicas <integer>"), "{said}");
}

#[test]
fn health_is_told_check_by_check() {
    let cloud = Cloud::without_node();
    let admin = cloud.admin();
    for (path, code, expected) in [
        ("/healthz", 200, "ok"),
        ("/livez/ping", 200, "ok"),
        ("/readyz/etcd", 200, "ok"),
        ("/readyz?verbose", 200, "[+]shutdown ok\nreadyz check passed\n"),
        ("/readyz?verbose&exclude=etcd", 200, "[+]etcd excluded: ok\n"),
        (
            "/livez?verbose&exclude=x",
            200,
            "warn: some health checks cannot be excluded: no matches for \"x\"",
        ),
        ("/livez/none", 404, "404 page not found"),
    ] {
        let (found, _, body) = admin.curl(path, &[]);
        assert!(found == code && body.contains(expected), "{path}: {found} {body}");
    }
    let (_, _, body) = admin.curl("/", &[]);
    assert!(body.contains("\"/apis/apps/v1\"") && body.contains("\"/livez/ping\""), "{body}");
}

#[test]
fn acting_as_somebody_else() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let guest = cloud.user("acme", "guest", "guests");
    acme.ok(&["create", "configmap", "c"]);
    acme.ok(&["create", "rolebinding", "jane", "--clusterrole=view", "--user=jane"]);

    // An administrator may be anybody, and is then nobody else.
    assert_eq!(
        acme.ok(&["get", "configmap", "c", "--as=jane", "-o", "name"]).trim(),
        "configmap/c"
    );
    let said = acme.fails(&["create", "configmap", "d", "--as=jane"]);
    assert!(said.contains(r#"User "jane" cannot create resource "configmaps""#), "{said}");
    let who =
        ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"];
    let said = acme.ok(&[&who[..], &["--as=jane", "--as-group=ops", "--as-uid=7"]].concat());
    assert_eq!(said, r#"jane ["ops","system:authenticated"]"#);
    let said = acme.ok(&[&who[..], &["--as=system:serviceaccount:default:default"]].concat());
    assert!(said.contains("system:serviceaccounts:default"), "{said}");

    // Others only whom they are let.
    let one = format!("{MAPS}/c");
    let ask = |headers: &[&str]| {
        let more: Vec<&str> = headers.iter().flat_map(|it| ["-H", *it]).collect();
        let (code, _, body) = guest.curl(&one, &more);
        (code, json_of(body.as_bytes())["message"].as_str().unwrap_or_default().to_owned())
    };
    let refusal = r#"configmaps "c" is forbidden: User "guest" cannot impersonate-on:user-info:get resource "configmaps" in API group "" in the namespace "default""#;
    assert_eq!(ask(&["Impersonate-User: jane"]), (403, refusal.to_owned()));
    acme.ok(&[
        "create",
        "clusterrole",
        "be-jane",
        "--verb=impersonate",
        "--resource=users",
        "--resource-name=jane",
    ]);
    acme.ok(&["create", "clusterrolebinding", "be-jane", "--clusterrole=be-jane", "--user=guest"]);
    guest.until(&["get", "configmap", "c", "--as=jane"], |_| true);
    assert_eq!(ask(&["Impersonate-User: jane"]).0, 200);
    assert!(ask(&["Impersonate-User: dev"]).1.contains("cannot impersonate"));
    let (code, said) = ask(&["Impersonate-User: jane", "Impersonate-Group: acme-admins"]);
    assert!(code == 403 && said.contains("cannot impersonate"), "{said}");

    // Or for what: this one only for reading what is named, and nobody who is everything.
    let narrow = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: be-bob}\nrules:\n\
        - {apiGroups: [authentication.k8s.io], resources: [users], resourceNames: [bob], verbs: ['impersonate:user-info']}\n\
        - {apiGroups: [''], resources: [configmaps], verbs: ['impersonate-on:user-info:get']}\n";
    assert!(acme.feed(&["create", "-f", "-"], narrow).status.success());
    acme.ok(&["create", "clusterrolebinding", "be-bob", "--clusterrole=be-bob", "--user=guest"]);
    acme.ok(&["create", "rolebinding", "bob", "--clusterrole=view", "--user=bob"]);
    guest.until(&["get", "configmap", "c", "--as=bob"], |_| true);
    let said = guest.fails(&["get", "configmaps", "--as=bob"]);
    assert!(said.contains("cannot impersonate-on:user-info:list"), "{said}");
    let (code, said) = ask(&["Impersonate-User: bob", "Impersonate-Group: system:masters"]);
    assert!(code == 403 && said.contains("impersonating the system:masters group"), "{said}");

    // Nobody leaves the tenant: not by a name, and not by a group that means much elsewhere.
    for more in [&["--as=system:admin", "--as-group=system:masters"][..], &["--as=dev"]] {
        let path = ["get", "--raw", "/tenants/acme/api/v1/namespaces/default/configmaps/c"];
        let said = globex.fails(&[&path[..], more].concat());
        assert!(said.contains("Forbidden"), "{said}");
        let said = globex.fails(&[&["get", "--raw", "/apis/insula.io/v1/tenants"], more].concat());
        assert!(said.contains("Forbidden"), "{said}");
    }
    let (code, _, body) = acme.curl(MAPS, &["-H", "Impersonate-Group: ops"]);
    assert!(code == 400 && body.contains("} without impersonating a user name"), "{body}");
}

#[test]
fn connections_are_renewed_as_often_as_told() {
    for (chance, once) in [("0", true), ("1", false)] {
        let cloud = Cloud::start(false, &["--goaway-chance", chance]);
        let admin = cloud.admin();
        let url = admin.url("/version");
        let mut command = admin.curl_command();
        command.args(["-sS", "--http2", "-w", "%{http_code} %{num_connects}\\n"]);
        // The last request may be under way when its connection is told to be the last.
        for _ in 0..10 {
            command.args(["-o", "/dev/null", &url]);
        }
        let (stdout, stderr) = harness::texts(&command.output().unwrap());
        let counts = stdout.lines().map(|line| {
            let (code, count) = line.split_once(' ').unwrap();
            assert_eq!(code, "200", "{stderr}");
            count.parse::<u32>().unwrap()
        });
        let made: u32 = counts.sum();
        assert_eq!(made == 1, once, "{chance}: {stdout}{stderr}");
    }
}

#[test]
fn documents_of_openapi_are_messages_too() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let path = "/openapi/v3/apis/apps/v1";
    for name in [
        "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
    ] {
        let (code, headers, body) = get(&acme, path, &format!("Accept: {name}"));
        assert_eq!(code, 200, "{headers}");
        let is = "content-type: application/com.github.proto-openapi.spec.v3.v1.0+protobuf";
        assert!(headers.contains(is), "{headers}");
        assert!(body.starts_with(b"\x0a\x053.0.0"));
        let name = b"io.k8s.api.apps.v1.Deployment";
        assert!(body.windows(name.len()).any(|it| it == name));
    }
    let (code, headers, _) = get(&acme, path, "Accept: application/json");
    assert!(code == 200 && headers.contains("content-type: application/json"), "{headers}");
    assert_eq!(get(&acme, path, "Accept: text/html").0, 406);
}

#[test]
fn tls_is_as_new_as_the_operator_says() {
    const HEALTH: &str = "/healthz";
    let old = ["--tls-max", "1.2"];
    let cloud = Cloud::without_node();
    let admin = cloud.admin();
    assert_eq!(admin.curl(HEALTH, &[]).0, 200);
    let refused = admin.try_curl(HEALTH, &old).unwrap_err();
    // In the words of OpenSSL, which was told why.
    assert!(refused.contains("protocol version"), "{refused}");
    drop(cloud);

    let cloud = Cloud::start(false, &["--tls-min-version", "VersionTLS12"]);
    let admin = cloud.admin();
    assert_eq!((admin.curl(HEALTH, &old).0, admin.curl(HEALTH, &[]).0), (200, 200));
}
