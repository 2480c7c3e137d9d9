//! Labs on this machine's kernel: real namespaces, real processes, real faults.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use insula_lab::{error::LabError, file::LabFile, lab::Lab, process::State};
use jiff::SignedDuration;

/// A lab that is taken down when the test ends, however it ends.
struct Up {
    lab: Lab,
    _dir: tempfile::TempDir,
}

impl Drop for Up {
    fn drop(&mut self) {
        let down = self.lab.down();
        if !thread::panicking() {
            down.unwrap();
        }
    }
}

fn up(text: &str) -> Up {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::up(LabFile::parse(text).unwrap(), dir.path(), Path::new("insula")).unwrap();
    Up { lab, _dir: dir }
}

/// Runs `work` in a thread that is on a host.
fn on<T: Send>(lab: &Lab, host: &str, work: impl FnOnce() -> T + Send) -> T {
    lab.on(host, work).unwrap()
}

fn reaches(lab: &Lab, from: &str, to: &str, port: u16) -> bool {
    let to = SocketAddr::from((lab.address(to).unwrap(), port));
    on(lab, from, || TcpStream::connect_timeout(&to, Duration::from_millis(700)).is_ok())
}

fn wait_for(what: &str, is_so: impl FnMut() -> bool) {
    wait_or(|| what.to_owned(), is_so);
}

/// Waits until it is so; `what` tells of it if it never is.
fn wait_or(what: impl Fn() -> String, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < end, "{}", what());
        thread::sleep(Duration::from_millis(20));
    }
}

const TWO: &str = "
networks: {core: 10.77.0.0/24}
hosts:
  a:
    on: {core: {address: 10.77.0.1}}
    run:
      etcd:
        command: [etcd, --data-dir, '{dir}/etcd', --listen-client-urls, 'http://{address}:2379',
                  --advertise-client-urls, 'http://{address}:2379', --listen-peer-urls, 'http://{address}:2380']
        ready: {port: 2379}
  b:
    on: {core: {address: 10.77.0.2}}
";

#[test]
fn processes_are_killed_paused_and_started_again() {
    let up = up(TWO);
    let lab = &up.lab;
    assert!(reaches(lab, "b", "a", 2379));
    assert_eq!(lab.state("etcd").unwrap(), State::Running);
    lab.pause("etcd").unwrap();
    wait_for("it is paused", || lab.state("etcd").unwrap() == State::Paused);
    lab.resume("etcd").unwrap();
    wait_for("it goes on", || lab.state("etcd").unwrap() == State::Running);
    lab.kill("etcd").unwrap();
    assert_eq!(lab.state("etcd").unwrap(), State::Ended);
    assert!(!reaches(lab, "b", "a", 2379));
    lab.start("etcd").unwrap();
    assert!(reaches(lab, "b", "a", 2379));
    // Another command of the same machine sees and does the same.
    let other = Lab::open(lab.dir()).unwrap();
    assert_eq!(other.state("etcd").unwrap(), State::Running);
    other.stop("etcd").unwrap();
    wait_for("it ended", || lab.state("etcd").unwrap() == State::Ended);
}

#[test]
fn networks_are_cut_and_healed() {
    let up = up(TWO);
    let lab = &up.lab;
    lab.cut("a", Some("b")).unwrap();
    assert!(!reaches(lab, "b", "a", 2379));
    lab.heal().unwrap();
    assert!(reaches(lab, "b", "a", 2379));
    lab.cut("b", None).unwrap();
    assert!(!reaches(lab, "b", "a", 2379));
    assert!(reaches(lab, "a", "a", 2379), "a host reaches itself");
    lab.heal().unwrap();
    assert!(reaches(lab, "b", "a", 2379));
    lab.cut_one_way("a", "b").unwrap();
    assert!(!reaches(lab, "b", "a", 2379));
    assert!(matches!(lab.cut("a", Some("c")), Err(LabError::Unknown { .. })));
}

#[test]
fn labs_do_not_see_each_other() {
    let (one, two) = (up(TWO), up(TWO));
    two.lab.kill("etcd").unwrap();
    assert!(reaches(&one.lab, "b", "a", 2379));
    assert!(!reaches(&two.lab, "b", "a", 2379));
}

#[test]
fn a_router_hides_those_behind_it() {
    let up = up("
networks: {core: 10.77.0.0/24, site: 10.78.0.0/24}
hosts:
  cloud: {on: {core: {address: 10.77.0.10}}}
  router:
    on: {core: {address: 10.77.0.1}, site: {address: 10.78.0.1}}
    router: {nat: [core]}
  edge: {on: {site: {address: 10.78.0.20}}, gateway: 10.78.0.1}
");
    let lab = &up.lab;
    let (ready, is_ready) = mpsc::channel();
    let to = SocketAddr::from((lab.address("cloud").unwrap(), 7000));
    let seen = thread::scope(|scope| {
        let server = scope.spawn(move || {
            lab.enter("cloud").unwrap();
            let listener = TcpListener::bind(to).unwrap();
            ready.send(()).unwrap();
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(b"hello").unwrap();
            peer.ip()
        });
        is_ready.recv().unwrap();
        let text = on(lab, "edge", || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(text, "hello");
        server.join().unwrap()
    });
    assert_eq!(seen, IpAddr::V4(lab.address("router").unwrap()));
    // Nobody reaches behind it from outside.
    assert!(!reaches(lab, "cloud", "edge", 7000));
}

#[test]
fn what_is_lost_is_lost() {
    let up = up("
networks: {core: 10.77.0.0/24}
hosts:
  a: {on: {core: {address: 10.77.0.1, loss: 0.3}}}
  b: {on: {core: {address: 10.77.0.2}}}
");
    let to = SocketAddr::from((up.lab.address("a").unwrap(), 7000));
    let socket = on(&up.lab, "a", || UdpSocket::bind(to).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    on(&up.lab, "b", || {
        let from = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..400 {
            from.send_to(b"x", to).unwrap();
        }
    });
    let mut received = 0;
    while socket.recv(&mut [0; 8]).is_ok() {
        received += 1;
    }
    // 280 expected; more than six standard deviations to either side.
    assert!((220..340).contains(&received), "{received} of 400");
}

#[test]
fn disks_are_filled_and_freed() {
    let up =
        up("{networks: {n: 10.0.0.0/24}, hosts: {a: {on: {n: {address: 10.0.0.1}}, disk: 4m}}}");
    let file = up.lab.host_dir("a").join("x");
    std::fs::write(&file, "before").unwrap();
    up.lab.fill("a").unwrap();
    let error = std::fs::write(up.lab.host_dir("a").join("y"), vec![0; 8192]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(std::fs::read(&file).unwrap(), b"before");
    up.lab.free("a").unwrap();
    wait_for("space", || std::fs::write(&file, vec![1; 8192]).is_ok());
}

/// Seconds since 1970 that a process said last.
fn last_time(log: &Path) -> Option<i64> {
    std::fs::read_to_string(log).ok()?.lines().last()?.trim().parse().ok()
}

#[test]
fn clocks_are_set() {
    let up = up("
networks: {n: 10.0.0.0/24}
hosts:
  a:
    on: {n: {address: 10.0.0.1}}
    run:
      clock: {command: [sh, -c, 'while :; do date +%s; sleep 0.1; done'], skew: 0s}
");
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        since.as_secs() as i64
    };
    let log = up.lab.log("clock");
    let off = || last_time(&log).map(|time| time - now());
    wait_for("the clock is right", || off().is_some_and(|off| off.abs() <= 2));
    up.lab.skew("clock", SignedDuration::from_secs(-3600)).unwrap();
    wait_for("the clock is late", || off().is_some_and(|off| (off + 3600).abs() <= 3));
}

#[test]
fn flushes_take_longer() {
    let begin = Instant::now();
    let _up = up("
networks: {n: 10.0.0.0/24}
hosts:
  a:
    on: {n: {address: 10.0.0.1}}
    run:
      flush:
        command: [sh, -c, 'echo x > {dir}/f; sync -d {dir}/f; sync -d {dir}/f; echo done; sleep 60']
        flushDelay: 400ms
        ready: {line: done}
");
    assert!(Duration::from_millis(800) <= begin.elapsed());
}

#[test]
fn running_processes_are_slowed_down() {
    let up = up("
networks: {n: 10.0.0.0/24}
hosts:
  a:
    on: {n: {address: 10.0.0.1}}
    run:
      flush:
        command: [sh, -c, 'echo x > {dir}/f; while :; do sync -d {dir}/f; echo flushed; done']
        ready: {line: flushed}
");
    let log = || std::fs::read_to_string(up.lab.log("flush")).unwrap();
    // How long a flush takes: whatever else the machine does, it is no less than it has to be.
    let each = || {
        let (begin, before) = (Instant::now(), log().lines().count());
        thread::sleep(Duration::from_millis(900));
        let n_flushes = log().lines().count() - before;
        begin.elapsed() / u32::try_from(n_flushes.max(1)).unwrap()
    };
    let told = |what: &str| {
        let log = log();
        let of_tracer: Vec<_> = log.lines().filter(|it| *it != "flushed").collect();
        format!("{what}: {of_tracer:?}")
    };
    up.lab.slow("flush", SignedDuration::from_millis(200)).unwrap();
    wait_or(|| told("it is slow"), || Duration::from_millis(150) <= each());
    up.lab.fast("flush").unwrap();
    wait_or(|| told("it is fast"), || each() < Duration::from_millis(100));
    assert_eq!(up.lab.state("flush").unwrap(), State::Running);
}

#[test]
fn a_lab_that_cannot_start_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let text = "
networks: {n: 10.0.0.0/24}
hosts:
  a:
    on: {n: {address: 10.0.0.1}}
    run: {broken: {command: [sh, -c, 'echo because of this; exit 3'], ready: {port: 1}}}
";
    let error = Lab::up(LabFile::parse(text).unwrap(), dir.path(), Path::new("insula"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("because of this"), "{error}");
    assert!(matches!(Lab::open(dir.path()), Err(LabError::NoLab(_))));
    // The same directory can be used again.
    let lab = Lab::begin(LabFile::parse(text).unwrap(), dir.path(), Path::new("insula")).unwrap();
    let again = Lab::begin(LabFile::parse(text).unwrap(), dir.path(), Path::new("insula"));
    assert!(matches!(again, Err(LabError::AlreadyUp(_))));
    assert!(Path::new("/run/netns").join(lab.namespace("a")).exists());
    lab.down().unwrap();
    assert!(!Path::new("/run/netns").join(lab.namespace("a")).exists());
}
