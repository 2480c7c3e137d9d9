//! `insula lab` as a user runs it.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

fn lab(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_insula"))
        .arg("lab")
        .args(args)
        .env("INSULA_LAB_DIR", dir)
        .output()
        .unwrap()
}

#[track_caller]
fn ok(dir: &Path, args: &[&str]) -> String {
    let out = lab(dir, args);
    let (stdout, stderr) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "insula lab {}: {stdout}{stderr}", args.join(" "));
    stdout.into_owned()
}

const FILE: &str = "
networks: {core: 10.77.0.0/24}
hosts:
  far:
    on: {core: {address: 10.77.0.2, latency: 100ms}}
    run:
      echo: {command: [sh, -c, 'while :; do busybox nc -l -p 7000 -e cat; done'], ready: {port: 7000}}
  near: {on: {core: {address: 10.77.0.1}}}
";

#[test]
fn a_lab_is_made_used_and_taken_down() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lab.yaml");
    fs::write(&file, FILE).unwrap();
    let kept = dir.path().join("lab");

    let missing = lab(&kept, &["status"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("there is no lab in"));

    let shown = ok(&kept, &["up", "--file", file.to_str().unwrap()]);
    let echo = shown.lines().find(|line| line.contains("echo")).unwrap();
    assert!(echo.starts_with("far") && echo.contains("Running"), "{shown}");
    // Whatever fails below, nothing stays behind.
    let outcome = std::panic::catch_unwind(|| use_it(&kept));
    ok(&kept, &["down"]);
    outcome.unwrap();
    let again = lab(&kept, &["down"]);
    assert!(!again.status.success());
}

fn use_it(kept: &Path) {
    let ask = ["exec", "near", "--", "sh", "-c", "echo hello | busybox nc -w 3 10.77.0.2 7000"];
    let begin = Instant::now();
    assert_eq!(ok(kept, &ask), "hello\n");
    // There and back for the handshake, and again for the word.
    assert!(Duration::from_millis(400) <= begin.elapsed(), "{:?}", begin.elapsed());

    ok(kept, &["cut", "near", "far"]);
    let ask = ["exec", "near", "--", "busybox", "nc", "-w", "1", "10.77.0.2", "7000"];
    assert!(!lab(kept, &ask).status.success());
    ok(kept, &["heal"]);

    ok(kept, &["kill", "echo"]);
    assert!(ok(kept, &["status"]).contains("Ended"));
    ok(kept, &["start", "echo"]);
    ok(kept, &["pause", "echo"]);
    assert!(ok(kept, &["status"]).contains("Paused"));
    ok(kept, &["resume", "echo"]);
    ok(kept, &["stop", "echo"]);

    let typed = lab(kept, &["kill", "ehco"]);
    let said = String::from_utf8_lossy(&typed.stderr).into_owned();
    assert!(said.contains("no process \"ehco\"; it has echo"), "{said}");
    let filled = lab(kept, &["fill", "far"]);
    assert!(String::from_utf8_lossy(&filled.stderr).contains("give it `disk:`"));
}

#[test]
fn a_lab_without_a_file_is_a_cloud() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("lab");
    let shown = ok(&kept, &["up", "--servers", "1"]);
    assert!(shown.contains("s1") && shown.contains("controllers"), "{shown}");
    let kubeconfig = kept.join("pki/admin.kubeconfig");
    let kubectl = ["exec", "client", "--", "kubectl", "--kubeconfig", kubeconfig.to_str().unwrap()];
    let outcome = std::panic::catch_unwind(|| {
        let all = ok(&kept, &[&kubectl[..], &["get", "partitions", "-o", "name"]].concat());
        assert!(all.contains("/p1") && all.contains("/p2"), "{all}");
    });
    ok(&kept, &["down"]);
    outcome.unwrap();
}

#[test]
fn what_is_missing_is_said_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("lab");
    let refused = |command: &mut Command, more: &[&str]| {
        command.args(["lab", "up"]).args(more).env("INSULA_LAB_DIR", &kept);
        let out = command.output().unwrap();
        assert!(!out.status.success() && !kept.exists(), "{out:?}");
        String::from_utf8(out.stderr).unwrap()
    };
    let insula = || Command::new(env!("CARGO_BIN_EXE_insula"));

    // The build directory may be closed to others, so it goes where they can run it.
    let program = dir.path().join("insula");
    fs::hard_link(env!("CARGO_BIN_EXE_insula"), &program)
        .or_else(|_| fs::copy(env!("CARGO_BIN_EXE_insula"), &program).map(drop))
        .unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(dir.path(), open).unwrap();
    let mut nobody = Command::new("setpriv");
    let said = refused(
        nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program),
        &[],
    );
    assert!(said.contains("a lab needs root") && said.contains("sudo"), "{said}");

    // A machine with little on it.
    let tools = dir.path().join("bin");
    fs::create_dir(&tools).unwrap();
    let path = std::env::var("PATH").unwrap();
    let find =
        |tool: &str| path.split(':').map(|dir| Path::new(dir).join(tool)).find(|it| it.exists());
    let file = dir.path().join("lab.yaml");
    fs::write(&file, FILE.replace("ready:", "flushDelay: 1ms, ready:")).unwrap();
    for missing in ["ip", "nft", "nsenter", "strace"] {
        let said = refused(insula().env("PATH", &tools), &["--file", file.to_str().unwrap()]);
        let expected = format!("{missing} cannot be run; `make deps` installs it");
        assert!(said.contains(&expected), "{said}");
        std::os::unix::fs::symlink(find(missing).unwrap(), tools.join(missing)).unwrap();
    }
}
