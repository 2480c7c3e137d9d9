//! Slow, silent and greedy clients: each is cut off or told to come again, holds little until
//! then, and keeps nobody else from being served.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use harness::{Cloud, Kubectl, socket::Stream};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// What is given up after so long may take longer on a busy machine.
const LATE: Duration = Duration::from_secs(25);

fn tcp(cloud: &Cloud) -> TcpStream {
    let address = cloud.endpoint.trim_start_matches("https://");
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream
}

/// Reads until the other end closes, and gives what it said.
fn rest(stream: &mut impl std::io::Read) -> String {
    let mut said = Vec::new();
    // How it was closed is its own affair.
    let _ = stream.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

/// Sends a byte of `text` now and then until nobody takes it; gives what was said meanwhile.
fn trickle(mut stream: Stream, text: &str) -> String {
    stream.sock.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut said = Vec::new();
    let mut byte = [0; 4096];
    for letter in text.bytes().cycle() {
        let is_sent = stream.write_all(&[letter]).and_then(|()| stream.flush()).is_ok();
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(n) => said.extend_from_slice(&byte[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && is_sent => (),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// What `work` gives, which has to take from `least` on, and not much longer.
fn within<T>(least: u64, work: impl FnOnce() -> T) -> T {
    let (begin, least) = (Instant::now(), Duration::from_secs(least));
    let made = work();
    let took = begin.elapsed();
    assert!(least - Duration::from_secs(2) <= took && took <= least + LATE, "it took {took:?}");
    made
}

#[test]
fn whoever_comes_to_no_end_is_cut_off() {
    let cloud = Cloud::without_node();
    let admin = cloud.admin();
    thread::scope(|scope| {
        // No TLS.
        scope.spawn(|| within(10, || assert_eq!(rest(&mut tcp(&cloud)), "")));
        // TLS, and nothing in it.
        scope.spawn(|| {
            let mut stream = admin.connect();
            stream.conn.complete_io(&mut stream.sock).unwrap();
            within(30, || assert_eq!(rest(&mut stream), ""));
        });
        // A head without an end, and nothing but pings over HTTP/2.
        let ping = "\0\0\x08\x06\0\0\0\0\0abcdefgh";
        for (begin, more) in [(&b"GET /version HTTP/1.1\r\nA: "[..], "a"), (h2::BEGIN, ping)] {
            let mut stream = admin.connect();
            stream.write_all(begin).unwrap();
            scope.spawn(move || within(30, || trickle(stream, more)));
        }
        // A connection that is of no more use.
        scope.spawn(|| {
            let mut stream = admin.connect();
            write!(stream, "GET /version HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
            let said = within(30, || rest(&mut stream));
            assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        });
        // A body that does not come.
        scope.spawn(|| {
            let mut stream = admin.connect();
            let head =
                "Host: h\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n";
            write!(stream, "POST {MAPS} HTTP/1.1\r\n{head}").unwrap();
            let said = within(60, || trickle(stream, " "));
            assert!(said.starts_with("HTTP/1.1 504"), "{said}");
            assert!(
                said.contains("request did not complete within the allotted timeout"),
                "{said}"
            );
        });
        // Meanwhile others are served.
        for _ in 0..20 {
            let begin = Instant::now();
            admin.ok(&["get", "--raw", "/version"]);
            assert!(begin.elapsed() < LATE);
        }
    });
}

/// Objects of about `size` bytes each.
fn fill(admin: &Kubectl, count: usize, size: usize) {
    let data = "x".repeat(size);
    let maps = (0..count).map(|n| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m{n}}}\ndata: {{a: {data}}}\n"
        )
    });
    let out = admin.feed(&["create", "-f", "-"], &maps.collect::<String>());
    assert!(out.status.success(), "{}", harness::texts(&out).1);
}

fn ask(user: &Kubectl, path: &str) -> Stream {
    let mut stream = user.connect();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    stream.flush().unwrap();
    stream
}

#[test]
fn what_is_asked_for_and_not_read_is_not_kept() {
    let cloud = Cloud::without_node();
    let admin = cloud.admin();
    fill(&admin, 40, 700 << 10);
    let before = cloud.memory();
    // 28 MB for each of them, who read only the first line.
    let mut codes = Vec::new();
    let mut readers = Vec::new();
    for _ in 0..40 {
        let mut stream = ask(&admin, MAPS);
        let mut line = [0; 12];
        stream.read_exact(&mut line).unwrap();
        codes.push(String::from_utf8(line.to_vec()).unwrap());
        readers.push(stream);
    }
    let held = cloud.memory().saturating_sub(before) >> 20;
    assert!(held < 1000, "{held} MiB");
    assert_eq!(codes[0], "HTTP/1.1 200");
    let refused = codes.iter().position(|code| code == "HTTP/1.1 429");
    assert!(refused.is_some_and(|it| (10..25).contains(&it)), "{codes:?}");
    let said = rest(&mut readers[refused.unwrap()]);
    assert!(said.to_lowercase().contains("retry-after: 1") && said.contains("TooManyRequests"));
    // Short answers are given as ever; long ones when those who read none have gone.
    admin.ok(&["get", "--raw", &format!("{MAPS}?limit=1")]);
    drop(readers);
    admin.until(&["get", "--raw", MAPS], |list| list.contains("m39"));
}

#[test]
fn watches_that_are_not_read_hold_little() {
    let cloud = Cloud::without_node();
    let admin = cloud.admin();
    fill(&admin, 1, 100 << 10);
    let watches: Vec<Stream> = (0..100)
        .map(|_| {
            let mut stream = ask(&admin, &format!("{MAPS}?watch=1&resourceVersion=0"));
            stream.read_exact(&mut [0; 12]).unwrap();
            stream
        })
        .collect();
    let before = cloud.memory();
    // What a single one of them would have to be sent is more than all may hold.
    let path = format!("{MAPS}/m0");
    for n in 0..300 {
        let patch = format!(r#"{{"metadata":{{"labels":{{"n":"{n}"}}}}}}"#);
        let kind = "Content-Type: application/merge-patch+json";
        let (code, _, body) = admin.curl(&path, &["-X", "PATCH", "-H", kind, "-d", &patch]);
        assert_eq!(code, 200, "{body}");
    }
    let held = cloud.memory().saturating_sub(before) >> 20;
    assert!(held < 400, "{held} MiB");
    drop(watches);
}

#[test]
fn an_address_has_only_so_many_connections() {
    // The platform's own parts come from this address as well, but over no connection.
    let cloud = Cloud::start(false, &["--connections-per-address", "10"]);
    let admin = cloud.admin();
    let is_served = |stream: &mut Stream| {
        let asked = write!(stream, "GET /version HTTP/1.1\r\nHost: h\r\n\r\n");
        let mut line = [0; 12];
        asked.and_then(|()| stream.flush()).and_then(|()| stream.read_exact(&mut line)).is_ok()
            && line == *b"HTTP/1.1 200"
    };
    let mut streams: Vec<Stream> = (0..14).map(|_| admin.connect()).collect();
    let served = streams.iter_mut().map(&is_served).filter(|it| *it).count();
    assert_eq!(served, 10);
    drop(streams);
    // As soon as the server has seen that they are gone.
    let begin = Instant::now();
    while !is_served(&mut admin.connect()) {
        assert!(begin.elapsed() < LATE, "nobody gets in");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The beginning of HTTP/2, and a request as frames.
mod h2 {
    pub(crate) const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A request that is whole.
    pub(crate) fn get(stream: u32, path: &str) -> Vec<u8> {
        let length = u8::try_from(path.len()).unwrap();
        // Method and scheme by their numbers, path and authority as they are.
        let head = [&[0x82, 0x87, 0x04, length], path.as_bytes(), &[0x01, 1, b'h']].concat();
        frame(1, 0x5, stream, &head)
    }

    pub(crate) fn reset(stream: u32) -> Vec<u8> {
        frame(3, 0, stream, &8_u32.to_be_bytes())
    }

    /// The kinds of frames, their streams, and their contents.
    pub(crate) fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
        let mut out = Vec::new();
        while let Some((head, rest)) = bytes.split_at_checked(9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let Some((payload, after)) = rest.split_at_checked(length) else { break };
            out.push((head[3], stream, payload.to_vec()));
            bytes = after;
        }
        out
    }
}

/// All that comes within a time.
fn heard(stream: &mut Stream, time: Duration) -> Vec<u8> {
    let begin = Instant::now();
    stream.sock.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (mut said, mut some) = (Vec::new(), vec![0; 64 << 10]);
    while begin.elapsed() < time {
        match stream.read(&mut some) {
            Ok(0) => break,
            Ok(n) => said.extend_from_slice(&some[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => (),
            Err(_) => break,
        }
    }
    said
}

#[test]
fn streams_of_one_connection_are_bounded() {
    let cloud = Cloud::without_node();
    let admin = cloud.admin();
    let mut stream = admin.connect();
    stream.write_all(h2::BEGIN).unwrap();
    for n in 0..400 {
        stream.write_all(&h2::get(2 * n + 1, &format!("{MAPS}?watch=1"))).unwrap();
    }
    stream.flush().unwrap();
    let frames = h2::frames(&heard(&mut stream, Duration::from_secs(3)));
    let refused = frames.iter().filter(|(kind, _, why)| *kind == 3 && why == &[0, 0, 0, 7]).count();
    assert_eq!(refused, 150, "{:?}", frames.len());
}

#[test]
fn resets_in_a_row_end_the_connection_alone() {
    let cloud = Cloud::without_node();
    let admin = cloud.admin();
    admin.ok(&["get", "--raw", "/version"]);
    let before = cloud.memory();
    let ended = (0..4).filter(|_| {
        let mut stream = admin.connect();
        let mut attack = h2::BEGIN.to_vec();
        for n in 0..20_000 {
            attack.extend(h2::get(2 * n + 1, MAPS));
            attack.extend(h2::reset(2 * n + 1));
        }
        // It may be closed before it has heard all.
        let is_sent = stream.write_all(&attack).and_then(|()| stream.flush()).is_ok();
        let frames = h2::frames(&heard(&mut stream, Duration::from_secs(1)));
        // ENHANCE_YOUR_CALM
        !is_sent || frames.iter().any(|(kind, _, why)| *kind == 7 && why[4..8] == [0, 0, 0, 11])
    });
    assert_eq!(ended.count(), 4);
    let begin = Instant::now();
    admin.ok(&["get", "--raw", "/version"]);
    assert!(begin.elapsed() < LATE);
    let held = cloud.memory().saturating_sub(before) >> 20;
    assert!(held < 200, "{held} MiB");
}
