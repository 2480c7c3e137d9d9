//! What a power cut leaves of the log: of what was not flushed yet, anything.
//!
//! A killed process leaves its unflushed writes to the kernel, which keeps them; a machine without
//! power does not. So strace notes which writes of the log had not been flushed when the process
//! was killed, and those are torn before it starts again.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use harness::Cloud;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Writes of one file that no flush has followed: offset and length, in order.
type Unflushed = Vec<(u64, usize)>;

/// A call of the traced process that has begun: which, on which file, and with what.
struct Call<'a> {
    name: &'a str,
    path: &'a str,
    rest: &'a str,
}

/// Reads `NAME(FD</PATH>REST`.
fn call(text: &str) -> Option<Call<'_>> {
    let (name, arguments) = text.split_once('(')?;
    let (_, file) = arguments.split_once('<')?;
    let (path, rest) = file.split_once('>')?;
    Some(Call { name, path, rest })
}

/// Offset and length of a write: `, ""..., LENGTH, OFFSET)`.
fn range(rest: &str) -> Option<(u64, usize)> {
    let mut numbers = rest.split([')', '<']).next()?.rsplit(',').map(str::trim);
    let offset = numbers.next()?.parse().ok()?;
    Some((offset, numbers.next()?.parse().ok()?))
}

/// What the process had written to files below `dir` and not flushed when it was killed.
fn unflushed(trace: &str, dir: &Path) -> BTreeMap<PathBuf, Unflushed> {
    let mut files: BTreeMap<PathBuf, Unflushed> = BTreeMap::new();
    // Flushes that have begun, by thread: their file, and how much had been written to it.
    let mut flushing: HashMap<&str, (PathBuf, usize)> = HashMap::new();
    for line in trace.lines() {
        let Some((thread, text)) = line.split_once(' ') else { continue };
        let text = text.trim_start();
        if text.starts_with("<... f") {
            let begun = flushing.remove(thread);
            if let Some((path, count)) = begun.filter(|_| text.contains("= 0"))
                && let Some(writes) = files.get_mut(&path)
            {
                writes.drain(..count.min(writes.len()));
            }
            continue;
        }
        let Some(it) = call(text) else { continue };
        let path = PathBuf::from(it.path);
        if !path.starts_with(dir) {
            continue;
        }
        let writes = files.entry(path.clone()).or_default();
        match it.name {
            "pwrite64" => writes.extend(range(it.rest)),
            _ if it.rest.contains("unfinished") => {
                flushing.insert(thread, (path, writes.len()));
            }
            _ if it.rest.contains("= 0") => writes.clear(),
            _ => {}
        }
    }
    files.retain(|path, writes| path.exists() && !writes.is_empty());
    files
}

/// Has of each write what a disk may have of it: all, nothing, a part, or something else.
fn tear(path: &Path, writes: &Unflushed, random: &mut StdRng) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    for (offset, length) in writes {
        let mut bytes = vec![0; *length];
        file.read_exact_at(&mut bytes, *offset).unwrap();
        match random.random_range(0..4) {
            0 => {}
            1 => bytes.fill(0),
            2 => bytes[random.random_range(0..*length)..].fill(0),
            _ => random.fill(&mut bytes[..]),
        }
        file.write_all_at(&bytes, *offset).unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_torn_writes() {
    let seed = std::env::var("INSULA_SEED").ok().and_then(|it| it.parse().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let seed = seed.unwrap_or(now);
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let mut cloud = Cloud::under(&[
        "strace",
        "-f",
        "-y",
        "-s0",
        "--seccomp-bpf",
        "-e",
        "trace=pwrite64,fdatasync,fsync",
        "-o",
        trace.to_str().unwrap(),
    ]);
    let _ = cloud.tenants();
    let mut acknowledged: Vec<String> = Vec::new();
    let mut torn = 0;
    for round in 0..6 {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..4)
            .map(|n| {
                let tenant = ["acme", "globex"][n % 2];
                let user = cloud.user(tenant, &format!("w{n}"), &format!("{tenant}-admins"));
                let stop = stop.clone();
                thread::spawn(move || {
                    let mut done = Vec::new();
                    for count in 0.. {
                        let name = format!("r{round}-{n}-{count}");
                        let config = format!(
                            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"a":"{}"}}}}"#,
                            "x".repeat(5000)
                        );
                        let event = format!(
                            r#"{{"apiVersion":"v1","kind":"Event","metadata":{{"name":"{name}"}},"involvedObject":{{"namespace":"default"}}}}"#
                        );
                        for (kind, body) in [("events", &event), ("configmaps", &config)] {
                            if stop.load(Ordering::Relaxed) {
                                return done;
                            }
                            let path = format!("/api/v1/namespaces/default/{kind}");
                            let json = ["-H", "content-type: application/json", "-d", body];
                            let code = user.try_curl(&path, &json).map_or(0, |it| it.0);
                            if kind == "configmaps" && code == 201 {
                                done.push(format!("{tenant} {name}"));
                            }
                        }
                    }
                    done
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(random.random_range(700..1500)));
        cloud.kill();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            acknowledged.extend(writer.join().unwrap());
        }
        let log = cloud.data_dir().canonicalize().unwrap().join("partitions/log");
        for (path, writes) in unflushed(&fs::read_to_string(&trace).unwrap(), &log) {
            torn += writes.len();
            tear(&path, &writes, &mut random);
        }
        cloud.again();
        for tenant in ["acme", "globex"] {
            let user = cloud.user(tenant, "reader", &format!("{tenant}-admins"));
            let names = user.ok(&["get", "configmaps", "-o", "name"]);
            let all: std::collections::HashSet<&str> =
                names.lines().filter_map(|it| it.strip_prefix("configmap/")).collect();
            for it in &acknowledged {
                let (owner, name) = it.split_once(' ').unwrap();
                assert!(owner != tenant || all.contains(name), "seed {seed}: {it} was lost");
            }
        }
    }
    assert!(60 < acknowledged.len(), "only {} were written", acknowledged.len());
    assert!(0 < torn, "nothing was torn: the test shows nothing");
}

#[test]
fn traces_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("1.log"), dir.path().join("2.log"));
    fs::write(&one, "").unwrap();
    fs::write(&two, "").unwrap();
    let (one_name, two_name) = (one.display(), two.display());
    let trace = format!(
        "10 pwrite64(5<{one_name}>, \"\"..., 100, 0) = 100\n\
         10 fdatasync(5<{one_name}>) = 0\n\
         10 pwrite64(5<{one_name}>, \"\"..., 50, 100) = 50\n\
         11 fdatasync(5<{one_name}> <unfinished ...>\n\
         10 pwrite64(5<{one_name}>, \"\"..., 60, 150 <unfinished ...>\n\
         11 <... fdatasync resumed>) = 0\n\
         10 <... pwrite64 resumed>) = 60\n\
         10 pwrite64(6<{two_name}>, \"\"..., 7, 9) = 7\n\
         10 fdatasync(6<{two_name}> <unfinished ...>\n\
         10 +++ killed by SIGKILL +++\n"
    );
    let found = unflushed(&trace, dir.path());
    assert_eq!(found, [(one, vec![(150, 60)]), (two, vec![(9, 7)])].into());
}
