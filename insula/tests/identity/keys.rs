//! Keys and certificates that change while servers run and are used.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use jsonwebtoken::decode_header;
use serde_json::Value;

use crate::{
    bare, bare_at,
    harness::{Cloud, Kubectl, insula, servers::Servers},
};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// `insula keys` of a file; the ids, that which signs first.
#[track_caller]
fn keys(file: &Path, args: &[&str]) -> Vec<String> {
    let (verb, rest) = args.split_first().unwrap();
    let out = insula().args(["keys", verb, "--file"]).arg(file).args(rest).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

/// The key of the file from which that of the token's tenant is derived.
fn kid(token: &str) -> String {
    of_file(&decode_header(token).unwrap().kid.unwrap())
}

fn of_file(id: &str) -> String {
    id.strip_suffix(".acme").unwrap().to_owned()
}

#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(120), "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn token(user: &Kubectl) -> String {
    user.ok(&["create", "token", "default"]).trim().to_owned()
}

/// The ids of the keys that a server shows.
fn shown(ask: &dyn Fn(&str) -> (u16, String)) -> BTreeSet<String> {
    let (_, body) = ask("/openid/v1/jwks");
    let found: Value = serde_json::from_str(&body).unwrap();
    let keys = found["keys"].as_array().unwrap().iter();
    keys.map(|it| of_file(it["kid"].as_str().unwrap())).collect()
}

/// Asks for something with a token: status and body.
type Ask<'a> = Box<dyn Fn(&str) -> (u16, String) + Send + Sync + 'a>;

/// Requests with tokens, one after the other, until told to stop.
struct Load<'a> {
    ask: Ask<'a>,
    tokens: Mutex<Vec<String>>,
    is_over: AtomicBool,
    asked: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Load<'_> {
    fn run(&self) {
        let mut turn = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            let token = {
                let tokens = self.tokens.lock().unwrap();
                tokens[turn % tokens.len()].clone()
            };
            turn += 1;
            let (code, body) = (self.ask)(&token);
            self.asked.fetch_add(1, Ordering::SeqCst);
            if code != 200 {
                self.failed.lock().unwrap().push(format!("{}: {code} {body}", kid(&token)));
            }
        }
    }
}

/// Ends loads, also where a test stops early.
struct Ends<'a, 'b>(&'a [Load<'b>]);

impl Drop for Ends<'_, '_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|load| load.is_over.store(true, Ordering::SeqCst));
    }
}

/// Changes keys step by step with `change`, which has every server know them, while requests go on.
fn rotate_under_load(
    user: &Kubectl,
    endpoints: &[String],
    ca: &str,
    file: &Path,
    change: &dyn Fn(&[&str]) -> Vec<String>,
) {
    user.ok(&[
        "create",
        "rolebinding",
        "it",
        "--clusterrole=view",
        "--serviceaccount=default:default",
    ]);
    let old = token(user);
    let get = |endpoint: &str, token: &str| {
        let header = format!("Authorization: Bearer {token}");
        bare_at(endpoint, ca, &format!("/tenants/acme{MAPS}"), &["-H", &header])
    };
    let everywhere =
        |token: &str, code: u16| endpoints.iter().all(|endpoint| get(endpoint, token).0 == code);
    eventually("the binding is known", || everywhere(&old, 200));
    let loads: Vec<Load<'_>> = endpoints
        .iter()
        .map(|endpoint| Load {
            ask: Box::new(move |token| get(endpoint, token)),
            tokens: Mutex::new(vec![old.clone()]),
            is_over: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            failed: Mutex::default(),
        })
        .collect();
    let before = keys(file, &["list"]);
    thread::scope(|scope| {
        for load in &loads {
            scope.spawn(|| load.run());
        }
        let _ends = Ends(&loads);
        let ids = change(&["add"]);
        assert_eq!((ids.len(), &ids[0]), (2, &before[0]));
        // Every server knows it before anybody signs with it.
        for endpoint in endpoints {
            let ask = |path: &str| {
                let header = format!("Authorization: Bearer {old}");
                bare_at(endpoint, ca, path, &["-H", &header])
            };
            let wanted: BTreeSet<String> = ids.iter().cloned().collect();
            eventually("the new key is shown", || shown(&ask) == wanted);
        }
        assert_eq!(kid(&token(user)), before[0], "a new key does not sign");
        let ids = change(&["use", &ids[1]]);
        let mut new = String::new();
        eventually("the new key signs", || {
            new = token(user);
            for load in &loads {
                load.tokens.lock().unwrap().push(new.clone());
            }
            kid(&new) == ids[0]
        });
        thread::sleep(Duration::from_millis(1500));
        assert!(everywhere(&old, 200) && everywhere(&new, 200));
        for load in &loads {
            // What is going to be refused is not counted.
            load.tokens.lock().unwrap().retain(|it| kid(it) == ids[0]);
        }
        thread::sleep(Duration::from_millis(500));
        change(&["remove", &before[0]]);
        eventually("old tokens are refused", || everywhere(&old, 401));
        assert!(everywhere(&new, 200));
        thread::sleep(Duration::from_millis(500));
    });
    for load in &loads {
        let (asked, failed) = (load.asked.load(Ordering::SeqCst), load.failed.lock().unwrap());
        assert!(20 < asked && failed.is_empty(), "{asked} requests: {failed:#?}");
    }
}

#[test]
fn keys_of_tokens_follow_each_other_under_load() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let (file, ca) = (cloud.path("pki/sa.key"), cloud.path("ca.crt"));
    let change = |args: &[&str]| keys(&file, args);
    let endpoints = [cloud.endpoint.clone()];
    rotate_under_load(&acme, &endpoints, ca.to_str().unwrap(), &file, &change);
    // All at once, where there is one server.
    let before = keys(&file, &["list"]);
    let out = insula().args(["keys", "rotate", "--data-dir"]).arg(cloud.data_dir()).output();
    assert!(out.unwrap().status.success());
    let after = keys(&file, &["list"]);
    assert_eq!((after.len(), &after[1]), (2, &before[0]));
    eventually("it signs", || kid(&token(&acme)) == after[0]);
    // A file that cannot be read changes nothing, and is told of.
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, "no key").unwrap();
    cloud.log_until("there is no token key");
    assert_eq!(kid(&token(&acme)), after[0]);
    fs::write(&file, text).unwrap();
    let said = insula().args(["keys", "remove", "--file"]).arg(&file).arg(&after[0]).output();
    let said = String::from_utf8(said.unwrap().stderr).unwrap();
    assert!(said.contains("signs; have another sign first"), "{said}");
    // Extension servers are told whom to believe meanwhile: that of each key.
    let path = "jsonpath={.data.requestheader-client-ca-file}";
    let name = "extension-apiserver-authentication";
    acme.until(&["get", "configmap", "-n", "kube-system", name, "-o", path], |it| {
        it.matches("BEGIN CERTIFICATE").count() == 2
    });
}

/// One server has everything, the other sends all on: what they say of callers is signed by a key
/// that is derived from those of tokens.
#[test]
fn servers_understand_each_other_while_keys_change() {
    let mut servers = Servers::new();
    servers.add("s1", "all", &[]);
    servers.add("s2", "none", &[]);
    servers.controllers("s1");
    servers.tenants("s1");
    let acme = servers.user("s2", "acme", "dev", "acme-admins");
    let (file, ca) = (servers.path("pki/sa.key"), servers.path("pki/ca.crt"));
    let copies = ["s1", "s2"].map(|name| servers.path("pki/servers").join(name).join("sa.key"));
    let change = |args: &[&str]| {
        let ids = keys(&file, args);
        for copy in &copies {
            let new = copy.with_extension("new");
            fs::copy(&file, &new).unwrap();
            fs::rename(&new, copy).unwrap();
            // In between they differ.
            thread::sleep(Duration::from_millis(1500));
        }
        ids
    };
    let endpoints = ["s1", "s2"].map(|name| format!("https://{}", servers.address(name)));
    rotate_under_load(&acme, &endpoints, ca.to_str().unwrap(), &file, &change);
    assert!(!servers.log("s1").contains("a passport was refused"));

    // The certificate of a server, and what it shows to others, are read again as well.
    let serial = || {
        let mut stream = acme.connect();
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        stream.conn.peer_certificates().unwrap()[0].to_vec()
    };
    let before = serial();
    let address = servers.address("s2").to_owned();
    let made = insula()
        .args(["pki", "server", "--dir"])
        .arg(servers.path("pki"))
        .args(["--name", "s2", "--address", &address, "--listen", &address])
        .output()
        .unwrap();
    assert!(made.status.success());
    eventually("another certificate is shown", || serial() != before);
    acme.ok(&["get", "configmaps"]);
}

#[test]
fn who_is_trusted_is_read_again() {
    let cloud = Cloud::without_node();
    cloud.tenants();
    // Somebody of an authority that is not known.
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let out = insula().args(args).arg("--dir").arg(dir.path()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    run(&["pki", "init"]);
    let made = run(&[
        "pki",
        "kubeconfig",
        "--server",
        &cloud.endpoint,
        "--tenant",
        "acme",
        "--user",
        "new",
        "--group",
        "acme-admins",
    ]);
    let made: Value = serde_json::from_slice(&made).unwrap();
    let user = &made["users"][0]["user"];
    let mut more = Vec::new();
    for (flag, field) in [("--cert", "client-certificate-data"), ("--key", "client-key-data")] {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD.decode(user[field].as_str().unwrap());
        let path = dir.path().join(field);
        fs::write(&path, bytes.unwrap()).unwrap();
        more.extend([flag.to_owned(), path.to_str().unwrap().to_owned()]);
    }
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let refused = std::process::Command::new("curl")
        .args(["-sS", "--cacert", cloud.path("ca.crt").to_str().unwrap()])
        .args(&more)
        .arg(format!("{}{MAPS}", cloud.endpoint))
        .output()
        .unwrap();
    assert!(!refused.status.success(), "{}", String::from_utf8_lossy(&refused.stdout));
    // Both authorities are trusted, the first one goes on signing.
    let file = cloud.path("pki/ca.crt");
    let mut both = fs::read_to_string(&file).unwrap();
    both.push_str(&fs::read_to_string(dir.path().join("ca.crt")).unwrap());
    fs::write(&file, both).unwrap();
    cloud.log_until("the authority");
    assert_eq!(bare(&cloud, MAPS, &more).0, 200);
    cloud.admin().ok(&["get", "nodes"]);
}
