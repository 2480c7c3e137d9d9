//! What is sealed lies nowhere as it is: all files are searched. And everything works as if it
//! were not.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use harness::{Cloud, Kubectl, etcd::Etcd, insula, servers::Servers, texts};

/// What must lie nowhere. Of 24 bytes, so that its base64 has no end of its own.
const WORD: &str = "kept-from-all-eyes-2f91c";
/// What is changed to later.
const LATER: &str = "and-so-is-what-follows-3";
/// What is no secret, so that looking for something finds it.
const OPEN: &str = "for-everybody-to-see-77d";

/// Whether any file below `dir`, but its keys, has `word` or its base64.
fn lies_in(dir: &Path, word: &str) -> Option<std::path::PathBuf> {
    let forms = [word.to_owned(), STANDARD.encode(word)];
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            let found = lies_in(&path, word).filter(|_| !path.ends_with("pki"));
            if found.is_some() {
                return found;
            }
            continue;
        }
        // It may be gone meanwhile.
        let Ok(bytes) = fs::read(&path) else { continue };
        let has = |form: &String| memchr::memmem::find(&bytes, form.as_bytes()).is_some();
        if forms.iter().any(has) {
            return Some(path);
        }
    }
    None
}

#[track_caller]
fn is_sealed_in(dir: &Path) {
    for word in [WORD, LATER] {
        assert_eq!(lies_in(dir, word), None, "{word} lies in {}", dir.display());
    }
    assert!(lies_in(dir, OPEN).is_some(), "nothing is found in {}", dir.display());
}

fn fill(user: &Kubectl) {
    user.ok(&["create", "configmap", "open", &format!("--from-literal=a={OPEN}")]);
    let literal = format!("--from-literal=password={WORD}");
    user.ok(&["create", "secret", "generic", "made", &literal]);
    // What is applied is kept in an annotation as well.
    let (stdout, stderr) = texts(&user.feed(&["apply", "-f", "-"], &applied(WORD)));
    assert!(stdout.contains("created"), "{stderr}");
}

fn applied(word: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: applied, labels: {{app: web}}}}\n\
         stringData: {{password: {word}}}\n"
    )
}

fn password(user: &Kubectl, name: &str) -> String {
    let text = user.ok(&["get", "secret", name, "-o", "jsonpath={.data.password}"]);
    String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
}

fn revision(user: &Kubectl, name: &str) -> String {
    user.ok(&["get", "secret", name, "-o", "jsonpath={.metadata.resourceVersion}"])
}

/// `insula keys`; what it prints.
#[track_caller]
fn keys(cloud: &Cloud, args: &[&str]) -> String {
    let (verb, rest) = args.split_first().unwrap();
    let mut command = insula();
    command.args(["keys", verb, "--data-dir"]).arg(cloud.data_dir()).args(rest);
    let out = command.env_remove("KUBECONFIG").output().unwrap();
    let (stdout, stderr) = texts(&out);
    assert!(out.status.success(), "{stdout}{stderr}");
    stdout
}

#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Reads, lists, watches, selects, applies and patches, as anywhere.
fn works_as_usual(user: &Kubectl) {
    assert_eq!((password(user, "made"), password(user, "applied")), (WORD.into(), WORD.into()));
    let names = |args: &[&str]| user.ok(&[&["get", "secrets", "-o", "name"], args].concat());
    assert_eq!(names(&[]), "secret/applied\nsecret/made\n");
    assert_eq!(names(&["-l", "app=web"]), "secret/applied\n");
    assert_eq!(names(&["--field-selector", "type=Opaque"]).lines().count(), 2);
    assert_eq!(names(&["--field-selector", "type=other"]), "");
    assert!(user.ok(&["get", "secrets"]).contains("Opaque"));
    let listed = user.ok(&["get", "secrets", "-o", "jsonpath={.items[*].data.password}"]);
    assert_eq!(listed, [STANDARD.encode(WORD), STANDARD.encode(WORD)].join(" "));
    // What changes nothing writes nothing, though it would be sealed otherwise each time.
    let before = revision(user, "applied");
    assert!(user.feed(&["apply", "-f", "-"], &applied(WORD)).status.success());
    assert_eq!(revision(user, "applied"), before);
    let patch = format!(r#"{{"stringData":{{"password":"{LATER}"}}}}"#);
    let mut watch = user.command();
    watch.args(["get", "secret", "made", "-w", "-o", "jsonpath={.data.password}{\"\\n\"}"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut told = watch.stdout.take().unwrap();
    let mut line = vec![0; STANDARD.encode(WORD).len() + 1];
    told.read_exact(&mut line).unwrap();
    user.ok(&["patch", "secret", "made", "--type=merge", "-p", &patch]);
    told.read_exact(&mut line).unwrap();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(String::from_utf8(line).unwrap().trim(), STANDARD.encode(LATER));
    let side = user.feed(
        &["apply", "--server-side", "--force-conflicts", "-f", "-"],
        &applied(LATER).replace("applied", "made"),
    );
    assert!(side.status.success(), "{:?}", texts(&side));
    assert_eq!(password(user, "made"), LATER);
    let back = format!(r#"{{"stringData":{{"password":"{WORD}"}}}}"#);
    user.ok(&["patch", "secret", "made", "--type=merge", "-p", &back]);
    user.ok(&["label", "secret", "made", "app-"]);
}

#[test]
fn secrets_lie_nowhere_as_they_are() {
    let mut cloud = Cloud::start(false, &["--partitions", "2"]);
    let (acme, globex) = cloud.tenants();
    fill(&acme);
    fill(&globex);
    works_as_usual(&acme);
    is_sealed_in(&cloud.data_dir());

    cloud.kill();
    cloud.again();
    works_as_usual(&acme);
    cloud.terminate();
    is_sealed_in(&cloud.data_dir());
    cloud.again();
    works_as_usual(&acme);

    // To the other partition.
    let admin = cloud.admin();
    let place = ["get", "tenant", "acme", "-o", "jsonpath={.status.partition}"];
    let other = if admin.ok(&place) == "p1" { "p2" } else { "p1" };
    let pin = format!(r#"{{"spec":{{"partition":"{other}"}}}}"#);
    admin.ok(&["patch", "tenant", "acme", "--type=merge", "-p", &pin]);
    admin.until(&place, |it| it == other);
    works_as_usual(&acme);
    works_as_usual(&globex);
    is_sealed_in(&cloud.data_dir());

    // Another key of the cluster, without a client being told of anything.
    let before = revision(&acme, "made");
    let old = keys(&cloud, &["list", "--encryption"]);
    let old = old.split('\t').next().unwrap();
    let known = keys(&cloud, &["rotate", "--encryption"]);
    assert_eq!(known.lines().count(), 2, "{known}");
    eventually("the old key wraps nothing", || {
        let status = keys(&cloud, &["status"]);
        status.contains(&format!("{old}\tunwraps\t0 data keys")) && status.contains(" 0 lost")
    });
    keys(&cloud, &["remove", "--encryption", old]);
    eventually("the old key is gone", || !keys(&cloud, &["status"]).contains(old));
    assert_eq!(revision(&acme, "made"), before);
    works_as_usual(&acme);
    works_as_usual(&globex);

    // Other keys of the tenants.
    let status = keys(&cloud, &["reseal", "--renew"]);
    assert!(status.contains(" 0 with an older data key, 0 not sealed yet, 0 lost"), "{status}");
    works_as_usual(&acme);

    // Nobody but the platform is told of any of that.
    let refused = acme.fails(&["get", "--raw", "/insula/encryption"]);
    assert_eq!(refused, acme.fails(&["get", "--raw", "/insula/nothing"]));

    let parent = tempfile::Builder::new().prefix("ins").tempdir_in("/tmp").unwrap();
    let (file, new) = (parent.path().join("backup"), parent.path().join("new"));
    let mut backup = insula();
    backup.args(["backup", "--out"]).arg(&file).arg("--data-dir").arg(cloud.data_dir());
    assert!(backup.env_remove("KUBECONFIG").output().unwrap().status.success());
    let out = insula().args(["restore", "--from"]).arg(&file).arg("--data-dir").arg(&new).output();
    assert!(out.unwrap().status.success());
    // Whoever restores has no keys: what lies there now is what was in the backup.
    is_sealed_in(&new);
    let copied =
        std::process::Command::new("cp").arg("-a").arg(cloud.path("pki")).arg(&new).status();
    assert!(copied.unwrap().success());
    cloud.terminate();
    is_sealed_in(&cloud.data_dir());
    let restored = Cloud::restored(parent.path(), &new, &[]);
    works_as_usual(&restored.user("acme", "dev", "acme-admins"));
    assert_eq!(password(&restored.user("globex", "dev", "globex-admins"), "made"), WORD);
}

#[test]
fn a_key_that_is_missing_is_named_and_nothing_else_breaks() {
    let mut cloud = Cloud::start(false, &["--partitions", "1"]);
    let (acme, globex) = cloud.tenants();
    fill(&acme);
    acme.ok(&["create", "secret", "generic", "other", "--from-literal=a=b"]);
    // What is to go though nobody can read it: with its namespace, and with its owner.
    acme.ok(&["create", "namespace", "doomed"]);
    acme.ok(&["create", "secret", "generic", "in", "-n", "doomed", "--from-literal=a=b"]);
    let owner = acme.ok(&["get", "configmap", "open", "-o", "jsonpath={.metadata.uid}"]);
    let owned = format!(
        r#"{{"apiVersion":"v1","kind":"Secret","metadata":{{"name":"owned","ownerReferences":[{{"apiVersion":"v1","kind":"ConfigMap","name":"open","uid":"{owner}"}}]}}}}"#
    );
    assert!(acme.feed(&["create", "-f", "-"], &owned).status.success());
    let id = keys(&cloud, &["list", "--encryption"]);
    let id = id.split('\t').next().unwrap();
    cloud.terminate();
    let (file, aside) = (cloud.path("pki/encryption.yaml"), cloud.path("pki/aside.yaml"));
    fs::rename(&file, &aside).unwrap();
    // Neither without a file nor with one that has other keys.
    let other = configuration(&[STANDARD.encode([7; 32])], "secrets", true);
    for text in [None, Some(other)] {
        if let Some(text) = text {
            fs::write(&file, text).unwrap();
        }
        let said = cloud.refuses(&[]);
        assert!(said.contains(id) && said.contains("--accept-lost-keys"), "{said}");
    }
    fs::remove_file(&file).unwrap();
    cloud.again_with(&["--accept-lost-keys"]);
    for args in [&["get", "secret", "made"][..], &["get", "secrets"], &["get", "secrets", "-A"]] {
        let said = acme.fails(args);
        assert!(said.contains(id) && said.contains("put that key back"), "{said}");
    }
    for args in [
        &["patch", "secret", "made", "--type=merge", "-p", r#"{"stringData":{"a":"b"}}"#][..],
        &["create", "secret", "generic", "more", "--from-literal=a=b"],
    ] {
        let said = acme.fails(args);
        assert!(said.contains(id), "{said}");
    }
    assert_eq!(acme.ok(&["get", "configmap", "open", "-o", "jsonpath={.data.a}"]), OPEN);
    globex.ok(&["create", "secret", "generic", "theirs", "--from-literal=a=b"]);
    assert!(keys(&cloud, &["status"]).contains("lost: "));
    // It may go, though nobody can read it.
    acme.ok(&["delete", "secret", "other", "--wait=false"]);
    acme.ok(&["delete", "namespace", "doomed", "--timeout=120s"]);
    acme.ok(&["delete", "configmap", "open"]);
    eventually("the owned secret is collected", || {
        texts(&acme.run(&["get", "secret", "owned"])).1.contains("not found")
    });
    acme.ok(&["create", "configmap", "open", &format!("--from-literal=a={OPEN}")]);
    // Beside the new one, which has sealed something meanwhile.
    let both = [secret_of(&file), secret_of(&aside)];
    fs::write(&file, configuration(&both, "secrets", true)).unwrap();
    eventually("the key is back", || acme.run(&["get", "secret", "made"]).status.success());
    works_as_usual(&acme);
    globex.ok(&["get", "secret", "theirs"]);
}

#[test]
fn what_was_there_before_is_sealed_and_other_kinds_too() {
    let mut cloud = Cloud::start(false, &["--partitions", "1"]);
    let (acme, _) = cloud.tenants();
    let file = cloud.path("pki/encryption.yaml");
    let key = [secret_of(&file)];
    fs::write(&file, configuration(&key, "secrets", false)).unwrap();
    eventually("secrets are written as they are", || {
        acme.ok(&["delete", "secret", "before", "--ignore-not-found"]);
        acme.ok(&["create", "secret", "generic", "before", &format!("--from-literal=a={WORD}")]);
        lies_in(&cloud.path("partitions"), WORD).is_some()
    });
    fs::write(&file, configuration(&key, "secrets, widgets.example.com", true)).unwrap();
    eventually("all is sealed", || {
        let status = keys(&cloud, &["status"]);
        status.contains("values: 1 sealed, 0 with an older data key, 0 not sealed yet, 0 lost")
    });
    let definition = r#"{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition",
        "metadata":{"name":"widgets.example.com"},"spec":{"group":"example.com","scope":"Namespaced",
        "names":{"plural":"widgets","kind":"Widget"},"versions":[{"name":"v1","served":true,
        "storage":true,"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":
        "object","properties":{"word":{"type":"string"}}}}}}}]}}"#;
    acme.feed(&["create", "-f", "-"], definition);
    acme.ok(&["wait", "--for=condition=Established", "crd/widgets.example.com"]);
    let widget = format!(
        r#"{{"apiVersion":"example.com/v1","kind":"Widget","metadata":{{"name":"w"}},"spec":{{"word":"{LATER}"}}}}"#
    );
    let out = acme.feed(&["create", "-f", "-"], &widget);
    assert!(out.status.success(), "{:?}", texts(&out));
    assert_eq!(acme.ok(&["get", "widget", "w", "-o", "jsonpath={.spec.word}"]), LATER);
    assert_eq!(lies_in(&cloud.path("partitions"), LATER), None);
    cloud.kill();
    cloud.again();
    assert_eq!(acme.ok(&["get", "widgets", "-o", "jsonpath={.items[*].spec.word}"]), LATER);
}

/// The only key in a file that the program wrote.
fn secret_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|it| it.trim().strip_prefix("secret: ")).unwrap();
    line.trim_matches(['"', '\'']).to_owned()
}

/// A file as an operator writes it.
fn configuration(secrets: &[String], resources: &str, seals: bool) -> String {
    let named = secrets.iter().enumerate();
    let keys: Vec<_> = named.map(|(n, it)| format!("{{name: k{n}, secret: \"{it}\"}}")).collect();
    let mut providers =
        [format!("aesgcm: {{keys: [{}]}}", keys.join(", ")), "identity: {}".to_owned()];
    if !seals {
        providers.reverse();
    }
    let [first, second] = providers;
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [{resources}]\n  providers:\n  - {first}\n  - {second}\n"
    )
}

#[test]
fn an_etcd_is_given_nothing_to_read() {
    let mut etcd = Etcd::start();
    let mut cloud = Cloud::start(false, &["--store", &format!("etcd=e1={}", etcd.url)]);
    let (acme, _) = cloud.tenants();
    fill(&acme);
    works_as_usual(&acme);
    cloud.kill();
    etcd.kill();
    is_sealed_in(etcd.data_dir());
    etcd.again();
    cloud.again();
    works_as_usual(&acme);
    cloud.terminate();
    assert_eq!(lies_in(&cloud.data_dir(), WORD), None);
    is_sealed_in(etcd.data_dir());
}

#[test]
fn other_servers_open_what_they_ask_for() {
    let mut servers = Servers::new();
    servers.add("s1", "all", &[]);
    servers.add("s2", "none", &[]);
    let (first, second) = (servers.admin("s1"), servers.admin("s2"));
    let literal = format!("--from-literal=password={WORD}");
    second.ok(&["create", "secret", "generic", "made", &literal]);
    assert_eq!(password(&first, "made"), WORD);
    assert_eq!(password(&second, "made"), WORD);
    // A list over all tenants comes out of what the second server follows itself.
    let all = format!("https://{}/api/v1/tenants/all/secrets", servers.address("s2"));
    eventually("the other server lists it", || {
        let (code, body) = servers.curl(&second, &all, &[]);
        code == 200 && body.contains(&STANDARD.encode(WORD))
    });
    // Another tenant's, whose key came later than all that is followed.
    servers.controllers("s1");
    servers.tenants("s1");
    let acme = servers.user("s1", "acme", "dev", "acme-admins");
    acme.ok(&["create", "secret", "generic", "later", &format!("--from-literal=a={LATER}")]);
    eventually("the other server lists it, too", || {
        let (code, body) = servers.curl(&second, &all, &[]);
        code == 200 && body.contains(&STANDARD.encode(LATER))
    });
    assert_eq!(lies_in(&servers.path("pki/servers"), LATER), None);
    assert_eq!(lies_in(&servers.path("pki/servers"), WORD), None);
}
