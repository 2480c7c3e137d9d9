//! Cables that take time: frames between two taps, each handed on when it is due.
//!
//! Not every kernel can delay packets (`netem` is often left out), so it is done here: the cable
//! of a host with a latency is a tap on its side and one on the switch's, and a process of the
//! lab carries frames from one to the other. It ends with the lab.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::ioctl;

use crate::{
    error::{LabError, Result},
    process,
};

/// A cable: network namespaces and names of its two taps, and the time from one to the other.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    pub(crate) ends: [(String, String); 2],
    pub(crate) latency: Duration,
}

/// Longest frame: what a tap's default MTU gives, and the head.
const FRAME: usize = 2048;
/// Frames on their way; what comes on top is lost, as on a real cable.
const QUEUE: usize = 10_000;

/// Takes over a tap of a namespace.
fn open(namespace: &str, tap: &str) -> Result<File> {
    const PATH: &str = "/dev/net/tun";
    const TUNSETIFF: ioctl::Opcode = 0x4004_54ca;
    const IFF_TAP: u16 = 0x0002;
    const IFF_NO_PI: u16 = 0x1000;
    /// `struct ifreq` of the kernel: a name, then a union of which the flags are the beginning.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    let (namespace, tap) = (namespace.to_owned(), tap.to_owned());
    let opened = thread::spawn(move || {
        process::enter(&namespace)?;
        let failed = |source| LabError::io("open", PATH, source);
        let file = OpenOptions::new().read(true).write(true).open(PATH).map_err(failed)?;
        let mut request = Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
        for (to, from) in request.name[..15].iter_mut().zip(tap.bytes()) {
            *to = from;
        }
        #[allow(unsafe_code, reason = "taking over a tap has no safe form")]
        // SAFETY: TUNSETIFF reads one `struct ifreq`, whose layout `Request` has, and keeps no
        // pointer to it. The kernel writes the name back into the same memory, which is ours.
        let taken =
            unsafe { ioctl::ioctl(&file, ioctl::Setter::<TUNSETIFF, Request>::new(request)) };
        taken.map_err(|error| LabError::io("take over a tap of", PATH, error.into()))?;
        Ok(file)
    });
    opened.join().unwrap_or_else(|_| Err(LabError::Invalid("a thread ended in a panic".into())))
}

/// Frames on their way, with the moment in which each arrives.
#[derive(Debug, Default)]
struct Way {
    frames: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    more: Condvar,
}

impl Way {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Vec<u8>)>> {
        self.frames.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Carries frames until the process ends, or a tap goes.
pub(crate) fn run(wires: &[Wire]) -> Result<()> {
    let mut carriers = Vec::new();
    for wire in wires {
        let [one, other] = &wire.ends;
        let (one, other) = (open(&one.0, &one.1)?, open(&other.0, &other.1)?);
        let copy =
            |file: &File| file.try_clone().map_err(|source| LabError::io("open", "a tap", source));
        for (from, to) in [(copy(&one)?, copy(&other)?), (other, one)] {
            let latency = wire.latency;
            let way = Arc::new(Way::default());
            let taken = way.clone();
            carriers.push(thread::spawn(move || take(from, &way, latency)));
            carriers.push(thread::spawn(move || hand_on(to, &taken)));
        }
    }
    for carrier in carriers {
        // It ends when its tap does, which is when the lab does.
        let _ = carrier.join();
    }
    Ok(())
}

fn take(mut tap: File, way: &Way, latency: Duration) {
    let mut frame = [0; FRAME];
    while let Ok(length) = tap.read(&mut frame) {
        let due = Instant::now() + latency;
        let mut frames = way.lock();
        if frames.len() < QUEUE {
            frames.push_back((due, frame[..length].to_vec()));
            way.more.notify_one();
        }
    }
}

fn hand_on(mut tap: File, way: &Way) {
    loop {
        let mut frames = way.lock();
        let (due, frame) = loop {
            match frames.pop_front() {
                Some(frame) => break frame,
                None => {
                    frames =
                        way.more.wait(frames).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
            }
        };
        drop(frames);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // A tap that is down loses what it is given, like any interface.
        let _ = tap.write(&frame);
    }
}
