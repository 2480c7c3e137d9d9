use std::time::Duration;

use futures::poll;

use super::*;
use crate::fair::counters::AllCounters;

fn limited(name: &str, shares: u32, lendable: u32, borrowing: Option<u32>) -> Spec {
    let queuing = Some(Queuing { queues: 4, hand: 2, length: 3 });
    let limited = Limited { shares, lendable, borrowing, queuing };
    Spec { name: name.into(), limited: Some(limited) }
}

fn refusing(mut spec: Spec) -> Spec {
    if let Some(limited) = &mut spec.limited {
        limited.queuing = None;
    }
    spec
}

fn asks<'a>(counters: &'a Counters, level: usize, width: u32) -> Asks<'a> {
    Asks { level, width, hash: 7, patience: Duration::from_secs(15), counters }
}

async fn taken(levels: &Arc<Levels>, asks: Asks<'_>) -> Seat {
    levels.take(asks).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_level_has_its_part_and_refuses_more() {
    let all = AllCounters::default();
    let counters = all.of("a", "a");
    let only = Some(0);
    let specs = vec![
        refusing(limited("a", 30, 0, only)),
        refusing(limited("b", 10, 0, only)),
        Spec { name: "exempt".into(), limited: None },
    ];
    let levels = Arc::new(Levels::new(specs, 40));
    let mut held = Vec::new();
    for _ in 0..30 {
        held.push(taken(&levels, asks(&counters, 0, 1)).await);
    }
    let refused = levels.take(asks(&counters, 0, 1)).await;
    assert_eq!(refused.unwrap_err(), Rejected::ConcurrencyLimit);
    assert!(levels.take(asks(&counters, 2, 1)).await.unwrap().is_none());
    held.push(taken(&levels, asks(&counters, 1, 10)).await);
    assert!(levels.take(asks(&counters, 1, 1)).await.is_err());
    held.clear();
    // Wider than there are seats.
    let wide = taken(&levels, asks(&counters, 1, 100)).await;
    assert!(levels.take(asks(&counters, 1, 1)).await.is_err());
    drop(wide);
    taken(&levels, asks(&counters, 1, 1)).await;
}

#[tokio::test]
async fn what_is_lent_comes_back() {
    let all = AllCounters::default();
    let counters = all.of("a", "a");
    let specs = vec![
        refusing(limited("busy", 10, 0, None)),
        limited("lends", 10, 50, None),
        refusing(limited("keeps", 10, 0, None)),
    ];
    let levels = Arc::new(Levels::new(specs, 30));
    let mut held = Vec::new();
    for _ in 0..15 {
        held.push(taken(&levels, asks(&counters, 0, 1)).await);
    }
    assert!(levels.take(asks(&counters, 0, 1)).await.is_err(), "half of one other's, not more");
    let mut own = Vec::new();
    for _ in 0..10 {
        own.push(taken(&levels, asks(&counters, 1, 1)).await);
    }
    // Now the first one has too many, and gets no more before it has fewer than its own.
    held.truncate(9);
    held.push(taken(&levels, asks(&counters, 0, 1)).await);
    assert!(levels.take(asks(&counters, 0, 1)).await.is_err());
    let mut next = Box::pin(levels.take(asks(&counters, 1, 1)));
    assert!(poll!(&mut next).is_pending());
}

#[tokio::test]
async fn who_waits_is_served_in_turn_and_queues_are_bounded() {
    let all = AllCounters::default();
    let counters = all.of("a", "a");
    let levels = Arc::new(Levels::new(vec![limited("a", 1, 0, None)], 1));
    let held = taken(&levels, asks(&counters, 0, 1)).await;
    let (mut greedy, mut full) = (Vec::new(), 0);
    for _ in 0..10 {
        let mut waits = Box::pin(levels.take(asks(&counters, 0, 1)));
        match poll!(&mut waits) {
            std::task::Poll::Pending => greedy.push(waits),
            std::task::Poll::Ready(it) => {
                assert_eq!(it.unwrap_err(), Rejected::QueueFull);
                full += 1;
            }
        }
    }
    assert_eq!((greedy.len(), full), (6, 4), "a hand of two queues of three");
    // Another flow has another hand: it is behind one of each queue at most.
    let other = Asks { hash: 2, ..asks(&counters, 0, 1) };
    let mut other = Box::pin(levels.take(other));
    assert!(poll!(&mut other).is_pending());
    drop(held);
    let mut before = 0;
    while poll!(&mut other).is_pending() {
        before += 1;
        let mut served = None;
        for (at, it) in greedy.iter_mut().enumerate() {
            if let std::task::Poll::Ready(it) = poll!(it) {
                served = Some((at, it.unwrap()));
                break;
            }
        }
        let (at, seat) = served.unwrap();
        drop(greedy.remove(at));
        drop(seat);
    }
    assert!(before <= 2, "{before}");
}

#[tokio::test]
async fn who_waits_too_long_is_refused_and_who_goes_is_forgotten() {
    let all = AllCounters::default();
    let counters = all.of("a", "a");
    let levels = Arc::new(Levels::new(vec![limited("a", 1, 0, None)], 1));
    let held = taken(&levels, asks(&counters, 0, 1)).await;
    let impatient = Asks { patience: Duration::from_millis(20), ..asks(&counters, 0, 1) };
    assert_eq!(levels.take(impatient).await.unwrap_err(), Rejected::TimeOut);
    {
        let mut gone = Box::pin(levels.take(asks(&counters, 0, 1)));
        assert!(poll!(&mut gone).is_pending());
    }
    // Its seat came, and it did not look.
    let mut late = Box::pin(levels.take(asks(&counters, 0, 1)));
    assert!(poll!(&mut late).is_pending());
    drop(held);
    drop(late);
    assert_eq!(levels.levels[0].waiting.load(SeqCst), 0);
    assert_eq!(levels.levels[0].used.load(SeqCst), 0);
}

/// Many at once, on several threads: seats are never more than there are, and none is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn seats_are_neither_lost_nor_made() {
    let counters = AllCounters::default().of("a", "a");
    let specs = vec![limited("a", 1, 100, None), limited("b", 1, 100, None)];
    let levels = Arc::new(Levels::new(specs, 6));
    let under_way = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = (0..16_usize)
        .map(|n| {
            let (levels, counters, under_way) =
                (levels.clone(), counters.clone(), under_way.clone());
            tokio::spawn(async move {
                let mut served = 0;
                for round in 0..500 {
                    let width = u32::try_from((n + round) % 2 + 1).unwrap();
                    let asks = Asks { hash: n as u64, ..asks(&counters, n % 2, width) };
                    let Ok(Some(seat)) = levels.take(asks).await else { continue };
                    served += 1;
                    // What was lent and is asked back counts twice for a moment.
                    assert!(under_way.fetch_add(width, SeqCst) + width <= 12);
                    if round % 3 == 0 {
                        tokio::task::yield_now().await;
                    }
                    under_way.fetch_sub(width, SeqCst);
                    drop(seat);
                }
                served
            })
        })
        .collect();
    for task in tasks {
        assert!(0 < task.await.unwrap());
    }
    for level in &levels.levels {
        assert_eq!((level.used.load(SeqCst), level.waiting.load(SeqCst)), (0, 0));
    }
    assert_eq!(levels.levels.iter().map(|it| it.limit.load(SeqCst)).sum::<u32>(), 6);
}
