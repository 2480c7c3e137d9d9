//! The log against the ways in which it can end.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{Piece, Wal, WalError, WalOptions, faults::FaultyDisk, frame::Kind, segment};
use crate::store::Durability;

/// What a group wrote: (group, payload).
type Written = Vec<(u32, Vec<u8>)>;

fn options() -> WalOptions {
    WalOptions { segment_bytes: 64 << 10, batch_bytes: 8 << 10, ..WalOptions::default() }
}

fn open(dir: &Path, options: WalOptions) -> Result<(Arc<Wal>, bool, Written), WalError> {
    let mut read = Vec::new();
    let (wal, clean) = Wal::open(dir, options, BTreeMap::new(), Some(1), true, |record| {
        if record.kind == Kind::Entry {
            read.push((record.group, record.payload.to_vec()));
        }
        Ok::<_, WalError>(())
    })?;
    Ok((wal, clean, read))
}

fn append(wal: &Wal, group: u32, payload: &[u8], durability: Durability) -> Result<(), WalError> {
    let mut piece = Piece::default();
    piece.entry(group, |out| out.extend_from_slice(payload));
    let ticket = wal.submit(piece);
    wal.settle(ticket, durability)
}

fn put(wal: &Wal, group: u32, payload: &[u8]) {
    append(wal, group, payload, Durability::Durable).unwrap();
}

/// Ends a log as a killed process does: nothing more is written.
fn kill(wal: Arc<Wal>) {
    wal.keeper.stop();
    let thread = wal.keeper_thread.lock().take();
    thread.unwrap().join().unwrap();
}

fn last_segment(dir: &Path, wal: &Wal) -> PathBuf {
    segment::path(dir, wal.segment())
}

#[test]
fn reads_back_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut written = Written::new();
    for round in 0..3_u8 {
        let (wal, clean, read) = open(dir.path(), options()).unwrap();
        assert!(clean);
        assert_eq!(read, written);
        for n in 0..100_u8 {
            let payload = vec![round ^ n; usize::from(n) * 20];
            put(&wal, u32::from(n % 3), &payload);
            written.push((u32::from(n % 3), payload));
        }
        wal.close().unwrap();
    }
    // Several segments were filled.
    assert!(2 < segment::list(dir.path()).unwrap().segments.len());
}

#[test]
fn what_stands_outlives_its_segment() {
    let dir = tempfile::tempdir().unwrap();
    let needs = BTreeMap::from([(1, 1)]);
    let (wal, _) =
        Wal::open(dir.path(), options(), needs, Some(1), true, |_| Ok::<_, WalError>(())).unwrap();
    let mut piece = Piece::default();
    piece.standing(7, b"voted");
    wal.settle(wal.submit(piece), Durability::Durable).unwrap();
    for n in 0..200_u8 {
        put(&wal, 1, &[n; 1000]);
    }
    let from = wal.segment();
    assert!(2 < from);
    wal.release(1, from);
    wal.close().unwrap();
    assert_eq!(segment::list(dir.path()).unwrap().segments[0], from);
    let mut standing = Vec::new();
    let reopened = Wal::open(dir.path(), options(), BTreeMap::new(), Some(from), false, |record| {
        if record.kind == Kind::Standing {
            standing.push((record.group, record.payload.to_vec()));
        }
        Ok::<_, WalError>(())
    });
    reopened.unwrap().0.close().unwrap();
    assert_eq!(standing, [(7, b"voted".to_vec())]);
}

#[test]
fn segments_are_recycled() {
    let dir = tempfile::tempdir().unwrap();
    let needs = BTreeMap::from([(1, 1)]);
    let (wal, _) =
        Wal::open(dir.path(), options(), needs, Some(1), true, |_| Ok::<_, WalError>(())).unwrap();
    for n in 0..1_000_u32 {
        put(&wal, 1, &n.to_le_bytes().repeat(250));
        wal.release(1, wal.segment());
    }
    let from = wal.segment();
    assert!(10 < from);
    kill(wal);
    assert!(segment::list(dir.path()).unwrap().segments.len() <= 2);
    let mut read = Vec::new();
    let (wal, _) = Wal::open(dir.path(), options(), BTreeMap::new(), Some(from), false, |record| {
        if record.kind == Kind::Entry {
            read.push(u32::from_le_bytes(record.payload[..4].try_into().unwrap()));
        }
        Ok::<_, WalError>(())
    })
    .unwrap();
    // A former life of the file never shows.
    let expected: Vec<_> = (1_000 - read.len() as u32..1_000).collect();
    assert_eq!(read, expected);
    wal.close().unwrap();
}

#[test]
fn a_lost_log_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let lost =
        Wal::open(
            dir.path(),
            options(),
            BTreeMap::new(),
            Some(1),
            false,
            |_| Ok::<_, WalError>(()),
        );
    assert!(matches!(lost, Err(WalError::Damaged { .. })));
    let (wal, ..) = open(dir.path(), options()).unwrap();
    (0..200_u8).for_each(|n| put(&wal, 1, &[n; 1000]));
    wal.close().unwrap();
    fs::remove_file(segment::path(dir.path(), 2)).unwrap();
    let error = open(dir.path(), options()).unwrap_err();
    assert!(error.to_string().contains("0000000000000002.log is missing"), "{error}");
}

#[test]
fn the_first_moments_may_be_cut_short() {
    let dir = tempfile::tempdir().unwrap();
    // The file was made, its header never reached the disk.
    fs::write(segment::path(dir.path(), 1), vec![0; 64 << 10]).unwrap();
    let (wal, _, read) = open(dir.path(), options()).unwrap();
    assert!(read.is_empty());
    put(&wal, 1, b"first");
    wal.close().unwrap();
    assert_eq!(open(dir.path(), options()).unwrap().2, [(1, b"first".to_vec())]);
}

#[test]
fn a_full_disk_keeps_the_queue_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new();
    let (wal, ..) = open(dir.path(), WalOptions { disk: disk.clone(), ..options() }).unwrap();
    put(&wal, 1, b"before");
    disk.set_full(true);
    let mut expected = vec![(1, b"before".to_vec())];
    let waiting = loop {
        let payload = vec![expected.len() as u8; 4_000];
        let mut piece = Piece::default();
        piece.entry(1, |out| out.extend_from_slice(&payload));
        let ticket = wal.submit(piece);
        expected.push((1, payload));
        match wal.settle(ticket, Durability::Durable) {
            Ok(()) => assert!(expected.len() < 1_000, "never full"),
            Err(error) => {
                assert!(matches!(error, WalError::Full(_)), "{error}");
                break ticket;
            }
        }
    };
    // It stays so, for everybody, until there is space.
    assert!(matches!(wal.settle(waiting, Durability::Durable), Err(WalError::Full(_))));
    assert!(matches!(wal.flush(), Err(WalError::Full(_))));
    disk.set_full(false);
    wal.settle(waiting, Durability::Durable).unwrap();
    wal.close().unwrap();
    assert_eq!(open(dir.path(), options()).unwrap().2, expected);
}

#[test]
fn a_failed_flush_is_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new();
    let (wal, ..) = open(dir.path(), WalOptions { disk: disk.clone(), ..options() }).unwrap();
    put(&wal, 1, b"kept");
    disk.fail_syncs();
    for _ in 0..2 {
        let failed = append(&wal, 1, b"unknown", Durability::Durable).unwrap_err();
        assert!(matches!(failed, WalError::Broken(_)), "{failed}");
    }
    kill(wal);
    assert_eq!(open(dir.path(), options()).unwrap().2[0], (1, b"kept".to_vec()));
}

#[test]
fn a_byte_changed_anywhere_before_the_end_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, ..) = open(dir.path(), options()).unwrap();
    for n in 0..150_u8 {
        put(&wal, 1, &[n; 1000]);
    }
    let last = last_segment(dir.path(), &wal);
    wal.close().unwrap();
    let used = |path: &Path| {
        let data = fs::read(path).unwrap();
        data.len() - data.iter().rev().take_while(|byte| **byte == 0).count()
    };
    let mut checked = 0;
    for number in segment::list(dir.path()).unwrap().segments {
        let path = segment::path(dir.path(), number);
        // The mark of a clean end, the log's last 40 bytes, is the one batch nobody vouches for.
        let end = if path == last { used(&path).saturating_sub(40) } else { used(&path) };
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for offset in (0..end as u64).step_by(97) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
            let error = open(dir.path(), options()).expect_err("a changed byte was not noticed");
            let text = error.to_string();
            assert!(text.contains("damaged") && text.contains(".log"), "{text}");
            file.write_all_at(&byte, offset).unwrap();
            checked += 1;
        }
    }
    assert!(1_000 < checked);
    // Nothing of this has changed the log.
    assert_eq!(open(dir.path(), options()).unwrap().2.len(), 150);
}

#[test]
fn a_shortened_segment_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, ..) = open(dir.path(), options()).unwrap();
    (0..10_u8).for_each(|n| put(&wal, 1, &[n; 1000]));
    let path = last_segment(dir.path(), &wal);
    wal.close().unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(3_000).unwrap();
    assert!(matches!(open(dir.path(), options()), Err(WalError::Damaged { .. })));
}

#[test]
fn relaxed_records_do_not_wait_for_a_busy_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new();
    let (wal, ..) = open(dir.path(), WalOptions { disk: disk.clone(), ..options() }).unwrap();
    disk.slow_down(Duration::from_millis(1500));
    std::thread::scope(|scope| {
        scope.spawn(|| put(&wal, 1, b"slow"));
        std::thread::sleep(Duration::from_millis(50));
        let begun = std::time::Instant::now();
        append(&wal, 2, b"quick", Durability::Relaxed).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1));
    });
    wal.flush().unwrap();
    kill(wal);
    let read = open(dir.path(), options()).unwrap().2;
    assert_eq!(read, [(1, b"slow".to_vec()), (2, b"quick".to_vec())]);
}

#[test]
fn groups_share_flushes() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new();
    let (wal, ..) = open(dir.path(), WalOptions { disk: disk.clone(), ..options() }).unwrap();
    disk.slow_down(Duration::from_millis(5));
    let before = wal.counts();
    std::thread::scope(|scope| {
        for group in 0..8 {
            let wal = &wal;
            scope.spawn(move || (0..20_u8).for_each(|n| put(wal, group, &[n; 10])));
        }
    });
    let after = wal.counts();
    let (batches, flushes) = (after.batches - before.batches, after.flushes - before.flushes);
    assert!(flushes <= batches && batches <= 160, "{flushes} flushes of {batches} batches");
    assert!(flushes < 100, "{flushes} flushes for 160 records of 8 groups");
    wal.close().unwrap();
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Append { group: u32, size: usize, durable: bool },
    Flush,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..3_u32, 0..6_000_usize, any::<bool>())
            .prop_map(|(group, size, durable)| Step::Append { group, size, durable }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// After a power cut, whatever happened before: what is read back is a prefix of what was
    /// written, and everything that was acknowledged as durable is in it.
    #[test]
    fn a_power_cut_loses_only_what_was_not_durable(
        steps in prop::collection::vec(step(), 1..60),
        sectors in prop::collection::vec(any::<bool>(), 1..50),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new();
        let faulty = || WalOptions { disk: disk.clone(), ..options() };
        let (mut wal, ..) = open(dir.path(), faulty()).unwrap();
        let mut written = Written::new();
        let mut durable = 0;
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append { group, size, durable: wait } => {
                    let payload = vec![n as u8; size];
                    let how = if wait { Durability::Durable } else { Durability::Relaxed };
                    append(&wal, group, &payload, how).unwrap();
                    written.push((group, payload));
                    if wait {
                        durable = written.len();
                    }
                }
                Step::Flush => {
                    wal.flush().unwrap();
                    durable = written.len();
                }
                Step::Reopen => {
                    kill(wal);
                    let (reopened, _, read) = open(dir.path(), faulty()).unwrap();
                    // A relaxed record may not even have left the process when it was killed.
                    prop_assert!(durable <= read.len() && written.starts_with(&read));
                    wal = reopened;
                    durable = read.len();
                    written = read;
                }
            }
        }
        let mut sectors = sectors.into_iter().cycle();
        disk.cut_power(|| sectors.next().unwrap());
        kill(wal);
        let (wal, _, read) = open(dir.path(), options()).unwrap();
        prop_assert!(durable <= read.len(), "{} of {durable} durable records are left", read.len());
        prop_assert!(written.starts_with(&read));
        // What was cut off stays so.
        put(&wal, 9, b"after");
        kill(wal);
        let (wal, _, again) = open(dir.path(), options()).unwrap();
        prop_assert!(again.starts_with(&read));
        prop_assert_eq!(&again[read.len()..], &[(9, b"after".to_vec())][..]);
        wal.close().unwrap();
    }
}
