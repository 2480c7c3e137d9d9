//! A clock that is set back an hour, while a server runs and across its restart.
//!
//! What is stored has no clock: nothing is lost and revisions grow. What is signed has one: tokens
//! that were issued in what is now the future are refused until then.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use insula_lab::{file::LabFile, lab::Lab};
use jiff::SignedDuration;

const HOUR: SignedDuration = SignedDuration::from_hours(-1);
const LIMIT: Duration = Duration::from_secs(60);

/// A lab, taken down when dropped.
struct Up {
    lab: Lab,
    kubeconfig: PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for Up {
    fn drop(&mut self) {
        if thread::panicking() {
            for name in ["s1", "s2"] {
                eprintln!("{}", std::fs::read_to_string(self.lab.log(name)).unwrap_or_default());
            }
        }
        let _ = self.lab.down();
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_insula");

impl Up {
    fn new(dir: tempfile::TempDir, file: &str, kubeconfig: &Path) -> Self {
        let at = dir.path().join("lab");
        let lab = Lab::up(LabFile::parse(file).unwrap(), &at, Path::new(PROGRAM)).unwrap();
        Self { lab, kubeconfig: kubeconfig.into(), _dir: dir }
    }

    fn command(&self, kubeconfig: &Path) -> Command {
        let mut command = self.lab.command("client", "kubectl").unwrap();
        command.arg("--kubeconfig").arg(kubeconfig).env_remove("KUBECONFIG");
        command.arg("--cache-dir").arg(self.lab.dir().join("cache"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(&self.kubeconfig).args(args).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "kubectl {}: {said}", args.join(" "));
        String::from_utf8(out.stdout).unwrap()
    }

    #[track_caller]
    fn until(&self, args: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let out = self.run(args);
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            if out.status.success() && wanted(&text) {
                return text;
            }
            assert!(begin.elapsed() < LIMIT, "kubectl {}: still {text}", args.join(" "));
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn revision(&self, of: &str) -> u64 {
        let path = "jsonpath={.metadata.resourceVersion}";
        self.ok(&["get", "configmap", of, "-o", path]).parse().unwrap()
    }

    /// Sets the clock of `process`, and waits until it has noticed.
    fn set_clock(&self, process: &str, offset: SignedDuration) {
        self.lab.skew(process, offset).unwrap();
        let begin = Instant::now();
        loop {
            self.run(&["delete", "configmap", "clock", "--ignore-not-found"]);
            self.ok(&["create", "configmap", "clock"]);
            let path = "jsonpath={.metadata.creationTimestamp}";
            let made: jiff::Timestamp =
                self.ok(&["get", "configmap", "clock", "-o", path]).parse().unwrap();
            let off = made.duration_since(jiff::Timestamp::now()) - offset;
            if off.abs() < SignedDuration::from_secs(30) {
                return;
            }
            assert!(begin.elapsed() < LIMIT, "{process} still believes that it is {made}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What a bearer of `token` is told.
    fn with_token(&self, token: &str) -> String {
        let ca = self.kubeconfig.with_file_name("ca.crt");
        let mut command = self.command(Path::new("/dev/null"));
        command.arg("--server").arg("https://10.77.0.11:6443").arg("--certificate-authority");
        let out = command.arg(ca).args(["--token", token, "get", "configmaps"]).output().unwrap();
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    /// The lines of a watch.
    fn watch(&self, args: &[&str]) -> (std::process::Child, mpsc::Receiver<String>) {
        let mut command = self.command(&self.kubeconfig);
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, seen) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        (child, seen)
    }
}

/// Waits for a line that contains `text`.
#[track_caller]
fn hears(seen: &mpsc::Receiver<String>, text: &str) {
    while !seen.recv_timeout(LIMIT).unwrap().contains(text) {}
}

/// Authenticated, and then told that it may not: it has no role.
const KNOWN: &str = "system:serviceaccount:default:default";

#[test]
fn a_server_whose_clock_is_set_back() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("lab/hosts/s1/run");
    let file = format!(
        "
networks: {{core: 10.77.0.0/24}}
hosts:
  client: {{on: {{core: {{address: 10.77.0.100}}}}}}
  s1:
    on: {{core: {{address: 10.77.0.11}}}}
    run:
      s1:
        command: [{PROGRAM}, up, --data-dir, '{{dir}}/run', --listen, '{{address}}:6443',
                  --without, 'node,scheduler']
        ready: {{line: 'ready '}}
        skew: 0s
"
    );
    let up = Up::new(dir, &file, &run.join("admin.kubeconfig"));
    up.until(&["get", "serviceaccount", "default", "-o", "name"], |it| !it.is_empty());
    up.ok(&["create", "configmap", "before"]);
    let before = up.revision("before");
    let token = up.ok(&["create", "token", "default"]);
    assert!(up.with_token(&token).contains(KNOWN));
    let (watch, seen) = up.watch(&["get", "configmaps", "--watch", "-o", "name"]);
    hears(&seen, "before");
    let (of_map, told) =
        up.watch(&["get", "partitions", "--watch", "-o", "jsonpath={.metadata.labels}{'\\n'}"]);

    up.set_clock("s1", HOUR);
    up.ok(&["create", "configmap", "back"]);
    assert!(before < up.revision("back"));
    up.ok(&["label", "configmap", "before", "a=b"]);
    assert!(up.revision("back") < up.revision("before"));
    hears(&seen, "back");
    up.ok(&["label", "partition", "p1", "clock=back"]);
    hears(&told, "clock");
    let said = up.with_token(&token);
    assert!(said.contains("Unauthorized") || said.contains("logged in"), "{said}");
    let newer = up.ok(&["create", "token", "default"]);
    assert!(up.with_token(&newer).contains(KNOWN));
    let part = up.ok(&["get", "--raw", "/apis/insula.io/v1/partitions"]);
    let part: serde_json::Value = serde_json::from_str(&part).unwrap();
    for mut child in [watch, of_map] {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    // Once more, behind a crash.
    let last = up.revision("before");
    up.lab.kill("s1").unwrap();
    up.lab.start("s1").unwrap();
    up.ok(&["create", "configmap", "again"]);
    assert!(last < up.revision("again"));
    assert_eq!(up.revision("before"), last);
    assert!(up.with_token(&newer).contains(KNOWN));
    // What is made from the map has its revisions from the clock.
    let from = part["metadata"]["resourceVersion"].as_str().unwrap();
    let path = "/apis/insula.io/v1/partitions?watch=1&timeoutSeconds=120&resourceVersion=";
    let (mut of_map, told) = up.watch(&["get", "--raw", &format!("{path}{from}")]);
    // From a revision of the future it tells what happens once it is there: when, nobody says.
    let is_told = (0..100).any(|n| {
        up.ok(&["label", "partition", "p1", &format!("clock=again-{n}"), "--overwrite"]);
        told.recv_timeout(Duration::from_secs(1)).is_ok_and(|it| it.contains("again"))
    });
    assert!(is_told);
    of_map.kill().unwrap();
    of_map.wait().unwrap();
    up.set_clock("s1", SignedDuration::ZERO);
    assert!(up.with_token(&token).contains(KNOWN));
    assert!(up.revision("again") < up.revision("clock"));
}

#[test]
fn a_server_whose_clock_is_behind_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let make = |args: &[&str]| {
        let (verb, rest) = args.split_first().unwrap();
        let mut command = Command::new(PROGRAM);
        let out = command.args(["pki", verb, "--dir"]).arg(&pki).args(rest).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    make(&["init", "--server", "https://10.77.0.12:6443"]);
    make(&["server", "--name", "s1", "--address", "10.77.0.11:6443"]);
    let join = ["--join", "s1=10.77.0.11:6443", "--serve", "none"];
    make(&[&["server", "--name", "s2", "--address", "10.77.0.12:6443"], &join[..]].concat());
    let config = |name: &str| pki.join("servers").join(name).join("apiserver.yaml");
    let process = |name: &str, more: &str| {
        let config = config(name);
        format!(
            "{{command: [{PROGRAM}, apiserver, --config, '{}'], ready: {{line: 'ready '}}{more}}}",
            config.display()
        )
    };
    let file = format!(
        "
networks: {{core: 10.77.0.0/24}}
hosts:
  client: {{on: {{core: {{address: 10.77.0.100}}}}}}
  s1: {{on: {{core: {{address: 10.77.0.11}}}}, run: {{s1: {}}}}}
  s2: {{on: {{core: {{address: 10.77.0.12}}}}, run: {{s2: {}}}}}
",
        process("s1", ""),
        process("s2", ", after: [s1], skew: 0s")
    );
    let up = Up::new(dir, &file, &pki.join("admin.kubeconfig"));
    up.ok(&["create", "configmap", "before"]);
    up.lab.skew("s2", HOUR).unwrap();
    let begin = Instant::now();
    let said = loop {
        let out = up.run(&["get", "configmaps"]);
        if !out.status.success() {
            break String::from_utf8(out.stderr).unwrap();
        }
        assert!(begin.elapsed() < LIMIT, "nobody noticed");
        thread::sleep(Duration::from_millis(100));
    };
    assert!(said.contains("the clock of server s2 is 3") && said.contains("s1"), "{said}");
    up.lab.skew("s2", SignedDuration::ZERO).unwrap();
    up.until(&["get", "configmap", "before", "-o", "name"], |it| it.contains("before"));
    up.ok(&["create", "configmap", "after"]);
}
