//! What goes wrong, and what must hold all the same.
//!
//! `SEEDS=FIRST-LAST` runs others than the first ones; a failure names its seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use insula_api::slots::Block;
use rand::Rng as _;

use super::{
    super::core::{Core, owner},
    Event, N_BLOCKS, REQUEST, Replica, Request, Sim, Time, What, Without,
};

impl Sim {
    fn join(&mut self) -> usize {
        let at = self.replicas.len();
        let name: Arc<str> = format!("r{at}").into();
        let view = self.version();
        self.replicas.push(Replica {
            name: name.clone(),
            core: Core::new(name, N_BLOCKS),
            is_up: true,
            paused_until: 0,
            second: self.rng.random_range(900..1_100),
            views: [view; 2],
            will_look: [false; 2],
            renewals: 0,
            is_leaving: false,
            served: BTreeMap::new(),
            under_way: BTreeMap::new(),
            draining: BTreeSet::new(),
            expected: BTreeMap::new(),
            catching_up: Vec::new(),
        });
        for event in [Event::Beat, Event::Work] {
            self.after(1, What::At(at, event));
        }
        at
    }

    fn leave(&mut self, at: usize) {
        self.replicas[at].is_leaving = true;
        self.replicas[at].core.leave();
        self.renew(at);
        self.plan(at);
    }

    fn run(&mut self, until: Time) {
        while self.step(until) {}
    }

    /// Whether every block is served by exactly the one whose it is, as the table says.
    fn is_settled(&self) -> bool {
        let up: Vec<_> = self.replicas.iter().filter(|it| it.is_up && !it.is_leaving).collect();
        Block::all().take(N_BLOCKS).all(|block| {
            let wanted = owner(block, up.iter().map(|it| &it.name));
            let held = self.latest().table.claim(block);
            let serve = up.iter().filter(|it| it.served.contains_key(&block));
            let serving: Vec<_> = serve.map(|it| &it.name).collect();
            held.map(|claim| &claim.holder) == wanted && serving.iter().copied().eq(wanted)
        })
    }

    /// How long it takes until all is as it should be.
    fn settles_within(&mut self, patience: Time) -> Option<Time> {
        let begun = self.now;
        while self.step(begun + patience) {
            if self.is_settled() {
                return Some(self.now - begun);
            }
        }
        None
    }

    fn random_up(&mut self) -> Option<usize> {
        let up: Vec<usize> = (0..self.replicas.len())
            .filter(|at| self.replicas[*at].is_up && !self.replicas[*at].is_leaving)
            .collect();
        (!up.is_empty()).then(|| up[self.rng.random_range(0..up.len())])
    }

    /// Half a minute of faults, and then peace.
    fn storm(&mut self) -> Result<(), String> {
        for _ in 0..3 {
            self.join();
        }
        self.slow = 40;
        let mut quiet_at = self.now;
        while self.now < 30_000 {
            quiet_at += self.rng.random_range(50..1_500);
            self.run(quiet_at);
            let n_up = self.replicas.iter().filter(|it| it.is_up && !it.is_leaving).count();
            match (self.rng.random_range(0..9), self.random_up()) {
                (0, _) if n_up < 5 => drop(self.join()),
                (1, Some(at)) if 1 < n_up => self.leave(at),
                (2, Some(at)) if 1 < n_up => self.replicas[at].is_up = false,
                (3 | 4, Some(at)) => {
                    let pause = self.rng.random_range(100..9_000);
                    self.replicas[at].paused_until = self.now + pause;
                }
                _ => (),
            }
            // So that there is something to do wherever something else happens.
            for block in Block::all().take(N_BLOCKS) {
                if self.rng.random_range(0..3) == 0 {
                    self.send(Request::Delete(block));
                }
            }
            if let Some(why) = &self.duplicate {
                return Err(why.clone());
            }
        }
        self.slow = 0;
        let paused = self.replicas.iter().map(|it| it.paused_until).max().unwrap_or(0);
        self.run(paused.max(self.now) + REQUEST);
        if !self.is_settled() && self.settles_within(20_000).is_none() {
            return Err(format!(
                "not settled at {} ms: {:?}",
                self.now,
                self.latest().table.spec()
            ));
        }
        self.run(self.now + 2_000);
        match (&self.duplicate, self.latest().objects.len()) {
            (Some(why), _) => Err(why.clone()),
            (None, N_BLOCKS) => Ok(()),
            (None, n) => Err(format!("only {n} objects are there")),
        }
    }
}

fn seeds() -> std::ops::RangeInclusive<u64> {
    let asked = std::env::var("SEEDS").ok();
    let range = asked.as_deref().and_then(|text| text.split_once('-'));
    range.map_or(1..=80, |(first, last)| first.parse().unwrap()..=last.parse().unwrap())
}

#[test]
fn never_two_and_never_none_for_long() {
    let (mut n_refused, mut n_created) = (0, 0);
    for seed in seeds() {
        let mut sim = Sim::new(seed, Without::Nothing);
        if let Err(why) = sim.storm() {
            panic!("seed {seed}: {why}");
        }
        n_refused += sim.n_refused;
        n_created += sim.n_created;
    }
    // Else nothing was tried.
    assert!(n_refused != 0 && n_refused < n_created, "{n_refused} of {n_created} refused");
}

#[test]
fn what_is_left_out_is_missed() {
    for without in [Without::Fences, Without::CatchingUp] {
        let found = (1..=400).any(|seed| Sim::new(seed, without).storm().is_err());
        assert!(found, "without {without:?} nothing happens");
    }
}

#[test]
fn a_crash_is_made_up_for_within_five_seconds_and_a_leave_within_one() {
    for seed in 1..=40 {
        let mut sim = Sim::new(seed, Without::Nothing);
        for _ in 0..3 {
            sim.join();
        }
        sim.run(5_000);
        assert!(sim.is_settled(), "seed {seed}");
        // One that holds something.
        let block = Block::all().next().unwrap();
        let holder = sim.latest().table.claim(block).unwrap().holder.clone();
        let holder = sim.replicas.iter().position(|it| it.name == holder).unwrap();
        sim.replicas[holder].is_up = false;
        let took = sim.settles_within(60_000).unwrap();
        assert!((1_500..5_000).contains(&took), "seed {seed}: a crash took {took} ms");
        sim.run(sim.now + 1_000);
        sim.join();
        let took = sim.settles_within(60_000).unwrap();
        assert!(took < 1_500, "seed {seed}: joining took {took} ms");
        sim.run(sim.now + 1_000);
        let holder = sim.latest().table.claim(block).unwrap().holder.clone();
        let holder = sim.replicas.iter().position(|it| it.name == holder).unwrap();
        sim.leave(holder);
        let took = sim.settles_within(60_000).unwrap();
        assert!(took < 1_000, "seed {seed}: leaving took {took} ms");
        assert_eq!(sim.duplicate, None, "seed {seed}");
    }
}

#[test]
fn only_a_share_moves() {
    let names: Vec<Arc<str>> = (0..9).map(|n| format!("host-{n}").into()).collect();
    for n in 1..names.len() {
        let mut moved = 0;
        for block in Block::all() {
            let (before, after) = (owner(block, &names[..n]), owner(block, &names[..=n]));
            if before != after {
                assert_eq!(after, Some(&names[n]), "it moves to the new one only");
                moved += 1;
            }
        }
        let share = Block::all().count() / (n + 1);
        assert!((share / 2..share * 2).contains(&moved), "{moved} of {share}");
    }
}
