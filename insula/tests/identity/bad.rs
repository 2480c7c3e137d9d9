//! What nobody is let in with: each refused, and written down once.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use insula_api::names::TenantName;
use insula_apiserver::tokens::{API_AUDIENCE, Bound, Claims, Keys, Kubernetes};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
};
use serde_json::{Value, json};

use crate::harness::{Cloud, issuer::now, socket::Stream};

const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
";

/// What is sent: a path, and arguments of `curl`.
struct Sent {
    name: &'static str,
    path: String,
    more: Vec<String>,
    expected: &'static [u16],
}

const MAPS: &str = "/tenants/acme/api/v1/namespaces/default/configmaps";

fn sent(name: &'static str, path: &str, headers: &[&str], expected: &'static [u16]) -> Sent {
    let more = headers.iter().flat_map(|it| ["-H".to_owned(), (*it).to_owned()]).collect();
    Sent { name, path: path.to_owned(), more, expected }
}

fn bearer(name: &'static str, token: &str) -> Sent {
    sent(name, MAPS, &[&format!("Authorization: Bearer {token}")], &[401])
}

/// A token with these claims in the place of good ones, signed by nobody or by `key`.
fn jwt(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |it: &Value| URL_SAFE_NO_PAD.encode(it.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

/// A certificate of the cloud's authority with this subject.
fn certificate(cloud: &Cloud, dir: &Path, file: &str, subject: &[(&str, &[u8])]) -> Vec<String> {
    let read = |name: &str| fs::read_to_string(cloud.path(&format!("pki/{name}"))).unwrap();
    let ca = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), ca).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for (kind, text) in subject {
        let kind = match *kind {
            "CN" => DnType::CommonName,
            "O" => DnType::OrganizationName,
            _ => DnType::OrganizationalUnitName,
        };
        params.distinguished_name.push(kind, std::str::from_utf8(text).unwrap());
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let made = params.signed_by(&key, &issuer).unwrap();
    let (crt, pem) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
    fs::write(&crt, made.pem()).unwrap();
    fs::write(&pem, key.serialize_pem()).unwrap();
    ["--cert", crt.to_str().unwrap(), "--key", pem.to_str().unwrap()].map(str::to_owned).into()
}

/// A certificate with two tenants, which the library that makes certificates does not make.
fn two_tenants(cloud: &Cloud, dir: &Path) -> Vec<String> {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let pki = |name: &str| cloud.path(&format!("pki/{name}")).to_str().unwrap().to_owned();
    let run = |args: &[&str]| {
        let out = std::process::Command::new("openssl").args(args).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    let subject = "/CN=dev/O=tenant:acme/O=tenant:globex/O=acme-admins";
    run(&[
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        subject,
        "-keyout",
        &path("two.key"),
        "-out",
        &path("two.csr"),
    ]);
    fs::write(dir.join("two.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    run(&[
        "x509",
        "-req",
        "-in",
        &path("two.csr"),
        "-CA",
        &pki("ca.crt"),
        "-CAkey",
        &pki("ca.key"),
        "-set_serial",
        "7",
        "-days",
        "1",
        "-extfile",
        &path("two.ext"),
        "-out",
        &path("two.crt"),
    ]);
    ["--cert".to_owned(), path("two.crt"), "--key".to_owned(), path("two.key")].into()
}

#[test]
fn bad_credentials_are_refused_and_written_down_once() {
    let dir = tempfile::tempdir().unwrap();
    let (cloud, log) = Cloud::audited(dir.path(), POLICY);
    let (acme, _) = cloud.tenants();
    let good = acme.ok(&["create", "token", "default"]).trim().to_owned();
    let of_globex = cloud.user("globex", "dev", "globex-admins");
    let of_globex = of_globex.ok(&["create", "token", "default"]).trim().to_owned();
    let keys = Keys::open_or_create(&cloud.path("pki/sa.key")).unwrap();
    let uid = acme.ok(&["get", "sa", "default", "-o", "jsonpath={.metadata.uid}"]);
    let claims = |tenant: &str, audience: &str, begin: i64, life: i64| {
        let kubernetes = Kubernetes {
            tenant: TenantName::parse(tenant).unwrap(),
            namespace: "default".into(),
            serviceaccount: Bound { name: "default".into(), uid: uid.clone() },
            pod: None,
            secret: None,
            node: None,
        };
        Claims::new(kubernetes, vec![audience.into()], begin, life)
    };
    let at = i64::try_from(now()).unwrap();
    let sign = |claims: &Claims| keys.sign(claims).unwrap();
    let other_dir = tempfile::tempdir().unwrap();
    let other = Keys::open_or_create(&other_dir.path().join("sa.key")).unwrap();
    let body: Vec<&str> = good.split('.').collect();
    let value = serde_json::to_value(claims("acme", API_AUDIENCE, at, 3600)).unwrap();
    let kid = jsonwebtoken::decode_header(&good).unwrap().kid.unwrap();
    // Signed with what everybody can read, as if it were a shared secret.
    let (_, jwks, _) = acme.curl("/openid/v1/jwks", &[]);
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(kid.clone());
    let confused =
        jsonwebtoken::encode(&header, &value, &EncodingKey::from_secret(jwks.as_bytes())).unwrap();
    let mut of_all = value.clone();
    of_all["kubernetes.io"]["tenant"] = "all".into();
    // As all tokens once were: with the key of the file, by one issuer.
    let signed_by_ours = |value: &Value| {
        let pem = fs::read_to_string(cloud.path("pki/sa.key")).unwrap();
        let mut header = Header::new(Algorithm::ES256);
        header.kid = kid.strip_suffix(".acme").map(str::to_owned);
        let key = EncodingKey::from_ec_pem(pem.as_bytes()).unwrap();
        let mut value = value.clone();
        value["iss"] = API_AUDIENCE.into();
        jsonwebtoken::encode(&header, &value, &key).unwrap()
    };
    let with_good_old = format!("Authorization: Bearer {}", signed_by_ours(&value));
    assert_eq!(crate::bare(&cloud, "/version", &["-H", &with_good_old]).0, 200);
    let globex: Vec<&str> = of_globex.split('.').collect();
    let mut look_alike = value.clone();
    look_alike["kubernetes.io"]["tenant"] = "\u{430}cme".into();
    let es256 = json!({"alg": "ES256", "typ": "JWT", "kid": kid});
    let groups = "x".repeat(900);
    let large = format!("a.{}.c", URL_SAFE_NO_PAD.encode("x".repeat(200_000)));
    let larger = "x".repeat(300_000);
    let mut all = vec![
        bearer("expired", &sign(&claims("acme", API_AUDIENCE, at - 7200, 3600))),
        bearer("not yet valid", &sign(&claims("acme", API_AUDIENCE, at + 3600, 3600))),
        bearer("for somebody else", &sign(&claims("acme", "vault", at, 3600))),
        bearer(
            "signed by a stranger",
            &other.sign(&claims("acme", API_AUDIENCE, at, 3600)).unwrap(),
        ),
        bearer(
            "a stranger's signature",
            &format!(
                "{}.{}.{}",
                body[0],
                body[1],
                other
                    .sign(&claims("acme", API_AUDIENCE, at, 3600))
                    .unwrap()
                    .rsplit('.')
                    .next()
                    .unwrap()
            ),
        ),
        bearer(
            "another tenant's claims",
            &format!("{}.{}.{}", body[0], of_globex.split('.').nth(1).unwrap(), body[2]),
        ),
        bearer("another tenant's key id", &format!("{}.{}.{}", globex[0], body[1], body[2])),
        bearer("another tenant's key", &format!("{}.{}.{}", globex[0], body[1], globex[2])),
        bearer("nobody signed it", &jwt(&json!({"alg": "none"}), &value, "")),
        bearer(
            "nobody signed it, with our key id",
            &jwt(&json!({"alg": "none", "kid": kid}), &value, ""),
        ),
        bearer("an algorithm of shared secrets", &confused),
        bearer(
            "a key id of nobody",
            &jwt(&json!({"alg": "ES256", "kid": "../../sa"}), &value, "AA"),
        ),
        bearer("no signature", &jwt(&es256, &value, "")),
        bearer("tenant all", &signed_by_ours(&of_all)),
        bearer("a look-alike tenant", &signed_by_ours(&look_alike)),
        bearer(
            "no tenant",
            &signed_by_ours(&{
                let mut it = value.clone();
                it["kubernetes.io"].as_object_mut().unwrap().remove("tenant");
                it
            }),
        ),
        bearer(
            "an account that is gone",
            &sign(&{
                let mut it = claims("acme", API_AUDIENCE, at, 3600);
                it.kubernetes.serviceaccount.uid = "another".into();
                it
            }),
        ),
        bearer("no token", "x"),
        bearer("nothing", ""),
        bearer("three dots", "..."),
        bearer("two dots", ".."),
        bearer("a bootstrap token of nobody", "abcdef.0123456789abcdef"),
        bearer("a large token", &large),
        bearer("too large a token", &larger),
        sent(
            "another tenant's token",
            MAPS,
            &[&format!("Authorization: Bearer {of_globex}")],
            &[403],
        ),
        sent("a password", MAPS, &["Authorization: Basic YTpi"], &[401]),
        sent("two words", MAPS, &["Authorization: Bearer a b"], &[401]),
        sent("no text", MAPS, &["Authorization: Bearer \u{e4}\u{f6}"], &[401]),
        sent(
            "headers of a proxy",
            MAPS,
            &["X-Remote-User: admin", "X-Remote-Group: system:masters"],
            &[401],
        ),
        sent("a passport", MAPS, &["X-Insula-Passport: a.b.c"], &[401, 403]),
        sent(
            "a protocol",
            MAPS,
            &[
                "Upgrade: websocket",
                "Connection: Upgrade",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.YQ, v5.channel.k8s.io",
            ],
            &[401],
        ),
        sent("a look-alike in the path", "/tenants/%D0%B0cme/api/v1/namespaces", &[], &[401]),
        sent("a slash in the path", "/tenants/acme%2Fx/api/v1/namespaces", &[], &[401]),
        sent("up in the path", "/tenants/../api/v1/namespaces", &[], &[401]),
        sent("a colon in the path", "/tenants/system:masters/api/v1/namespaces", &[], &[401]),
        sent("two tenants in the path", "/tenants/acme/api/v1/tenants/globex/pods", &[], &[401]),
        sent("all tenants", "/tenants/all/api/v1/pods", &[], &[401]),
    ];
    let with_good = format!("Authorization: Bearer {good}");
    for (name, path) in [
        ("a look-alike, known", "/tenants/%D0%B0cme/api/v1/namespaces"),
        ("a colon, known", "/tenants/acme:x/api/v1/namespaces"),
        ("capitals, known", "/tenants/Acme/api/v1/namespaces"),
        ("all, known", "/tenants/all/api/v1/pods"),
    ] {
        all.push(sent(name, path, &[&with_good], &[403]));
    }
    let mut certified = |name: &'static str, subject: &[(&str, &[u8])]| {
        let more = certificate(&cloud, dir.path(), &format!("c{}", all.len()), subject);
        all.push(Sent { name, path: MAPS.into(), more, expected: &[401] });
    };
    certified("no tenant in it", &[("CN", b"dev"), ("O", b"acme-admins")]);
    certified("no name in it", &[("O", b"tenant:acme")]);
    certified("an empty tenant", &[("CN", b"dev"), ("O", b"tenant:")]);
    certified("tenant all in it", &[("CN", b"dev"), ("O", b"tenant:all")]);
    certified("a look-alike in it", &[("CN", b"dev"), ("O", "tenant:\u{430}cme".as_bytes())]);
    certified("twice the word", &[("CN", b"dev"), ("O", b"tenant:tenant:acme")]);
    certified("a path in it", &[("CN", b"dev"), ("O", b"tenant:../acme")]);
    certified("a line end in it", &[("CN", b"de\nv"), ("O", b"tenant:acme")]);
    let many = vec![b"g".as_slice(); 3000].join(&b"\x1f"[..]);
    certified("thousands of groups", &[("CN", b"dev"), ("O", b"tenant:acme"), ("OU", &many)]);
    certified("a long name", &[("CN", groups.repeat(2).as_bytes()), ("O", b"tenant:acme")]);
    let more = two_tenants(&cloud, dir.path());
    all.push(Sent { name: "two tenants in it", path: MAPS.into(), more, expected: &[401] });

    for (index, it) in all.iter().enumerate() {
        let id = format!("bad-{index}");
        let certificate: Vec<&str> =
            it.more.iter().map(String::as_str).filter(|_| it.more[0] != "-H").collect();
        let (code, body) = match certificate.as_slice() {
            // Byte by byte as it is: `curl` cuts heads that are long.
            [] => {
                let headers: Vec<&str> = it.more.chunks(2).map(|it| it[1].as_str()).collect();
                raw(acme.connect_unknown(), &it.path, &id, &headers).unwrap()
            }
            certificate => {
                let id = format!("Audit-ID: {id}");
                crate::bare(&cloud, &it.path, &[certificate, &["-H", &id]].concat())
            }
        };
        assert!(it.expected.contains(&code), "{}: {code} {body}", it.name);
        if code == 401 {
            let said: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(said["message"], "Unauthorized", "{}: {body}", it.name);
        }
        let lines = lines(&log, &id);
        assert_eq!(lines.len(), 1, "{}: {lines:#?}", it.name);
        assert_eq!(lines[0]["responseStatus"]["code"], code, "{}", it.name);
        // Who it is was proven, or it was not.
        let is_known = it.name == "an account that is gone" || code == 403;
        let named = lines[0]["user"].get("username").is_some();
        assert_eq!(named, is_known && it.name != "a passport", "{}", it.name);
    }
    // A head that is larger than any has no request in it, and nobody who asked.
    let endless = format!("X-A: {}", "x".repeat(2 << 20));
    let found = raw(acme.connect_unknown(), MAPS, "endless", &[&endless]);
    assert!(found.as_ref().is_none_or(|it| it.0 == 431), "{found:?}");
    // Whoever is good still is.
    let (code, body) = crate::with_token(&cloud, "/api/v1/namespaces/default", &good);
    assert!(code == 403 && body.contains("system:serviceaccount:default:default"), "{body}");
    assert!(!cloud.log().contains(&good));
}

/// Sends these headers as they are: status and body; `None` if nothing comes back.
fn raw(mut stream: Stream, path: &str, id: &str, headers: &[&str]) -> Option<(u16, String)> {
    let more: String = headers.iter().map(|it| format!("{it}\r\n")).collect();
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAudit-ID: {id}\r\n{more}\r\n");
    // Whoever has read enough may answer before it has come to the end.
    let _ = stream.write_all(head.as_bytes());
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let code = line.split(' ').nth(1)?.parse().ok()?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    Some((code, String::from_utf8(body).unwrap()))
}

/// The lines of a request, as soon as they are there, and what comes soon after.
fn lines(log: &Path, id: &str) -> Vec<Value> {
    let read = || -> Vec<Value> {
        let text = fs::read_to_string(log).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |it| it.0);
        let all = whole.lines().filter(|it| it.contains(&format!("\"{id}\"")));
        all.map(|it| serde_json::from_str(it).unwrap()).collect()
    };
    for _ in 0..200 {
        if !read().is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    read()
}
