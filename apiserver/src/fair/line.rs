//! The line in which tenants that use much wait for their turns.
//!
//! A turn is one poll of a request, or of the body of a watch: what a processor does without a
//! break. There are as many seats as processors. Whoever gets one goes to the end of the runtime's
//! own queue first, so that everybody else who is ready is heard before; whoever waits is in
//! nobody's way. So a tenant that uses little finds at most a few turns before it, however many
//! requests others have sent.
//!
//! Seats are given out by start-time fair queueing: each tenant's next turn begins, in virtual
//! time, where its last one ended, or now; the earliest is next. A turn moves its tenant on by what
//! it took divided by the tenant's weight; until that is known, by what turns usually take.
//!
//! # Invariants
//!
//! * A seat that is given and not taken within [`TAKEN_WITHIN`] goes to the next.
//! * Nobody holds a seat while it waits for anything else.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::Waker,
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::account::{Account, WEIGHT};

/// What a turn is taken to cost before it is known, in nanoseconds.
const USUAL: u64 = 50_000;
/// How long a seat is kept for who does not come.
const TAKEN_WITHIN: Duration = Duration::from_millis(50);

const WAITING: u8 = 0;
const GIVEN: u8 = 1;
/// The seat is in use.
const TAKEN: u8 = 2;
/// It came too late: the seat is another's.
const LATE: u8 = 3;
const GONE: u8 = 4;

/// Somebody in the line.
#[derive(Debug)]
pub(super) struct Waiter {
    state: AtomicU8,
    waker: AtomicWaker,
}

/// How far a waiter is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Waiting,
    /// It is its turn; whether it has a seat for it, which it has to give back.
    Turn {
        seated: bool,
    },
}

impl Waiter {
    fn new(state: u8) -> Arc<Self> {
        Arc::new(Self { state: AtomicU8::new(state), waker: AtomicWaker::new() })
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Asks again; `waker` is woken when it is its turn.
    pub(super) fn ask(&self, waker: &Waker) -> Standing {
        self.waker.register(waker);
        if self.change(GIVEN, TAKEN) {
            return Standing::Turn { seated: true };
        }
        match self.state.load(Ordering::Acquire) {
            WAITING => Standing::Waiting,
            _ => Standing::Turn { seated: false },
        }
    }

    /// Whether it has a seat that waits for it.
    pub(super) fn is_given(&self) -> bool {
        self.state.load(Ordering::Acquire) == GIVEN
    }

    fn give(&self) -> bool {
        self.change(WAITING, GIVEN)
    }
}

/// The waiters of one tenant.
#[derive(Debug)]
struct Queue {
    account: Arc<Account>,
    waiters: VecDeque<Arc<Waiter>>,
    /// Its place in the order.
    start: u64,
}

#[derive(Debug, Default)]
struct State {
    free: usize,
    /// Virtual time: where the turn began that was given last.
    now: u64,
    queues: HashMap<u64, Queue>,
    /// Tenants that wait, by where their next turns begin.
    order: BTreeSet<(u64, u64)>,
    given: VecDeque<(Instant, Arc<Waiter>, Arc<Account>)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Line {
    seats: usize,
    began: Instant,
    state: Mutex<State>,
    /// Somebody waits, where nobody did.
    is_used: Notify,
    waited: AtomicU64,
    late: AtomicU64,
}

impl Line {
    pub(super) fn new(seats: usize) -> Arc<Self> {
        let state = State { free: seats, ..State::default() };
        Arc::new(Self {
            seats,
            began: Instant::now(),
            state: Mutex::new(state),
            is_used: Notify::new(),
            waited: AtomicU64::new(0),
            late: AtomicU64::new(0),
        })
    }

    /// In nanoseconds since the line began.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Counts what a tenant used, in a turn or for it.
    pub(super) fn charge(&self, account: &Account, cost: u64) {
        account.charge(self.now(), cost, self.seats as u64);
    }

    /// How many turns were waited for, and how many seats were given in vain.
    pub(crate) fn counts(&self) -> [u64; 2] {
        [&self.waited, &self.late].map(|it| it.load(Ordering::Relaxed))
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().queues.values().map(|it| it.waiters.len()).sum()
    }

    /// Stands in line for a turn.
    pub(super) fn stand(&self, account: &Arc<Account>) -> Arc<Waiter> {
        self.waited.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        let start = state.now.max(account.finish.load(Ordering::Relaxed));
        if 0 < state.free && state.order.is_empty() {
            state.free -= 1;
            let waiter = Waiter::new(GIVEN);
            state.given(start, &waiter, account);
            drop(state);
            self.is_used.notify_one();
            return waiter;
        }
        let waiter = Waiter::new(WAITING);
        let queue = state.queues.entry(account.id).or_insert_with(|| Queue {
            account: account.clone(),
            waiters: VecDeque::new(),
            start,
        });
        queue.waiters.push_back(waiter.clone());
        let place = (queue.start, account.id);
        state.order.insert(place);
        waiter
    }

    /// A turn is over that took `cost` nanoseconds.
    pub(super) fn over(&self, account: &Arc<Account>, cost: u64) {
        let mut state = self.state.lock();
        state.correct(account, cost);
        state.free += 1;
        state.give();
    }

    /// Somebody goes who may have a seat.
    pub(super) fn leave(&self, account: &Arc<Account>, waiter: &Waiter) {
        if waiter.state.swap(GONE, Ordering::AcqRel) == GIVEN {
            self.over(account, 0);
        }
    }

    /// Gives seats to others that were not taken.
    fn look(&self) -> bool {
        let mut state = self.state.lock();
        while let Some((given, waiter, _)) = state.given.front()
            && (TAKEN_WITHIN <= given.elapsed() || !waiter.is_given())
        {
            let Some((_, waiter, account)) = state.given.pop_front() else { break };
            if waiter.change(GIVEN, LATE) {
                self.late.fetch_add(1, Ordering::Relaxed);
                state.correct(&account, 0);
                state.free += 1;
            }
        }
        state.give();
        !state.given.is_empty() || !state.order.is_empty()
    }

    /// Looks after seats that are not taken, for as long as the server runs.
    pub(super) async fn look_after(&self) {
        loop {
            self.is_used.notified().await;
            loop {
                tokio::time::sleep(TAKEN_WITHIN / 2).await;
                if !self.look() {
                    break;
                }
            }
        }
    }
}

fn virtual_cost(account: &Account, cost: u64) -> u64 {
    let weight = u64::from(account.weight.load(Ordering::Relaxed).max(1));
    cost.saturating_mul(u64::from(WEIGHT)) / weight
}

impl State {
    /// A seat was given for a turn that begins at `start`.
    fn given(&mut self, start: u64, waiter: &Arc<Waiter>, account: &Arc<Account>) {
        self.now = self.now.max(start);
        let finish = start.saturating_add(virtual_cost(account, USUAL));
        account.finish.store(finish, Ordering::Relaxed);
        // What was taken is of no more interest.
        while let Some((_, first, _)) = self.given.front()
            && !first.is_given()
        {
            self.given.pop_front();
        }
        self.given.push_back((Instant::now(), waiter.clone(), account.clone()));
    }

    /// The cost of a turn is known.
    fn correct(&mut self, account: &Account, cost: u64) {
        let usual = virtual_cost(account, USUAL);
        let finish = account.finish.load(Ordering::Relaxed);
        let finish = finish.saturating_add(virtual_cost(account, cost)).saturating_sub(usual);
        account.finish.store(finish, Ordering::Relaxed);
        if let Some(queue) = self.queues.get_mut(&account.id) {
            self.order.remove(&(queue.start, account.id));
            queue.start = self.now.max(finish);
            self.order.insert((queue.start, account.id));
        }
    }

    /// Gives free seats to who is next.
    fn give(&mut self) {
        while 0 < self.free
            && let Some((start, id)) = self.order.pop_first()
        {
            let Some(mut queue) = self.queues.remove(&id) else { continue };
            let next = std::iter::from_fn(|| queue.waiters.pop_front()).find(|it| it.give());
            if let Some(waiter) = next {
                self.free -= 1;
                self.given(start, &waiter, &queue.account);
                waiter.waker.wake();
                queue.start = self.now.max(queue.account.finish.load(Ordering::Relaxed));
            }
            if !queue.waiters.is_empty() {
                self.order.insert((queue.start, id));
                self.queues.insert(id, queue);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: u64, weight: u32) -> Arc<Account> {
        let account = Account::new(id);
        account.weight.store(weight, Ordering::Relaxed);
        Arc::new(account)
    }

    /// Two tenants that always have requests waiting: how often it is the first one's turn of
    /// `turns`, if its turns take that many times as long.
    #[track_caller]
    fn shares(weights: [u32; 2], costs: [u64; 2], turns: usize) -> [usize; 2] {
        let line = Line::new(1);
        let accounts = [account(1, weights[0]), account(2, weights[1])];
        let mut waiting: Vec<(usize, Arc<Waiter>)> = Vec::new();
        for n in 0..20 {
            waiting.push((n % 2, line.stand(&accounts[n % 2])));
        }
        let mut count = [0, 0];
        for _ in 0..turns {
            let at = waiting.iter().position(|(_, it)| it.is_given()).unwrap();
            let (which, waiter) = waiting.swap_remove(at);
            assert_eq!(waiter.ask(Waker::noop()), Standing::Turn { seated: true });
            count[which] += 1;
            waiting.push((which, line.stand(&accounts[which])));
            line.over(&accounts[which], costs[which]);
        }
        count
    }

    #[test]
    fn turns_are_given_by_weight_and_cost() {
        assert_eq!(shares([100, 100], [USUAL, USUAL], 100), [50, 50]);
        let [first, second] = shares([300, 100], [USUAL, USUAL], 400);
        assert!((295..=305).contains(&first), "{first} {second}");
        let [first, second] = shares([100, 100], [USUAL * 9, USUAL], 1000);
        assert!((95..=105).contains(&first), "{first} {second}");
    }

    #[test]
    fn who_comes_first_to_an_empty_line_need_not_pay_for_what_was_before() {
        let line = Line::new(1);
        let (old, new) = (account(1, 100), account(2, 100));
        for _ in 0..1000 {
            let waiter = line.stand(&old);
            assert_eq!(waiter.ask(Waker::noop()), Standing::Turn { seated: true });
            line.over(&old, 1_000_000);
        }
        let held = line.stand(&old);
        let waiting = [line.stand(&old), line.stand(&new), line.stand(&old)];
        let given = || waiting.iter().map(|it| it.is_given()).collect::<Vec<_>>();
        assert_eq!(held.ask(Waker::noop()), Standing::Turn { seated: true });
        line.over(&old, 1_000_000);
        assert_eq!(given(), [false, true, false], "the new one is not behind the old one's next");
    }

    #[test]
    fn a_seat_is_nobodys_for_ever() {
        let line = Line::new(1);
        let (one, other) = (account(1, 100), account(2, 100));
        let (absent, gone, waits) = (line.stand(&one), line.stand(&other), line.stand(&other));
        line.leave(&other, &gone);
        assert!(absent.is_given() && !waits.is_given());
        std::thread::sleep(TAKEN_WITHIN);
        assert!(line.look());
        assert!(waits.is_given());
        assert_eq!(absent.ask(Waker::noop()), Standing::Turn { seated: false });
        line.leave(&other, &waits);
        assert_eq!(line.state.lock().free, 1);
        line.leave(&one, &absent);
        assert_eq!(line.state.lock().free, 1, "it has been given back already");
        assert!(!line.look(), "nobody is left");
    }
}
