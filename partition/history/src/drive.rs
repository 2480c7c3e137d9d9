//! Random clients of anything that keeps values, reproducible from a seed.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;

use crate::{
    op::{Action, Expect, Id, Outcome, Seen},
    record::Recorder,
};

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The write was not as demanded: it did not happen.
    Conflict,
    /// It did not happen, for any other reason.
    Refused,
    /// It may have happened.
    Unknown,
}

/// What is tested.
pub trait Subject: Send + Sync + 'static {
    /// The live value of `key`, as fresh as a linearizable read is.
    fn get(&self, key: u32) -> BoxFuture<'_, Result<Option<Seen>, Failure>>;

    /// Writes value `id`; gives the write's revision, if the answer says it.
    fn put(&self, key: u32, id: Id, expect: Expect) -> BoxFuture<'_, Result<Option<u64>, Failure>>;

    /// Ends the value; gives the revision of that, if the answer says it.
    fn delete(&self, key: u32, expect: Expect) -> BoxFuture<'_, Result<Option<u64>, Failure>>;
}

/// How a client behaves.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Keys 0 to this, exclusive. Few keys, many conflicts.
    pub keys: u32,
    /// When it ends.
    pub until: Instant,
    /// Longest pause between two calls.
    pub pause: Duration,
    /// A call that takes longer is given up; a write may then have happened.
    pub patience: Duration,
    /// Whether there are writes that demand nothing.
    pub blind: bool,
}

/// Runs one client. What it does follows from `seed`; when it does it depends on the subject.
pub async fn client(
    number: u32,
    seed: u64,
    plan: Plan,
    subject: Arc<dyn Subject>,
    recorder: Arc<Recorder>,
) {
    let mut random = StdRng::seed_from_u64(seed ^ (u64::from(number) << 32));
    let mut known: HashMap<u32, Seen> = HashMap::new();
    while Instant::now() < plan.until {
        let key = random.random_range(0..plan.keys);
        let expect = match (random.random_range(0..10), known.get(&key)) {
            (0..6, Some(seen)) => Expect::Version(*seen),
            (0..6, None) | (6, _) => Expect::Absent,
            (8.., _) if plan.blind => Expect::Anything,
            _ => Expect::Present,
        };
        let begin = recorder.now();
        let what = random.random_range(0..10);
        let (action, answer) = match what {
            0..4 => (Action::Get, timely(plan, subject.get(key)).await.map(Outcome::Found)),
            4..9 => {
                let id = recorder.id();
                let answer = timely(plan, subject.put(key, id, expect)).await;
                (Action::Put { id, expect }, answer.map(Outcome::Done))
            }
            _ => {
                let answer = timely(plan, subject.delete(key, expect)).await;
                (Action::Delete { expect }, answer.map(Outcome::Done))
            }
        };
        let outcome = match answer {
            Ok(outcome) => Some(outcome),
            Err(Failure::Conflict) => Some(Outcome::Conflict),
            Err(Failure::Unknown) => Some(Outcome::Unknown),
            Err(Failure::Refused) => None,
        };
        match (action, outcome) {
            (_, Some(Outcome::Found(Some(seen)))) => drop(known.insert(key, seen)),
            (Action::Put { id, .. }, Some(Outcome::Done(Some(revision)))) => {
                known.insert(key, Seen { id, revision });
            }
            (_, Some(Outcome::Found(None) | Outcome::Done(_) | Outcome::Conflict)) => {
                known.remove(&key);
            }
            _ => {}
        }
        if let Some(outcome) = outcome {
            recorder.note(number, key, begin, action, outcome);
        }
        let pause = plan.pause.mul_f64(random.random());
        // Who was not served waits, so that an outage is no flood.
        let served = !matches!(outcome, None | Some(Outcome::Unknown));
        let pause = if served { pause } else { pause.max(Duration::from_millis(30)) };
        tokio::time::sleep(pause).await;
    }
}

async fn timely<T>(plan: Plan, call: BoxFuture<'_, Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(plan.patience, call).await.unwrap_or(Err(Failure::Unknown))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::FutureExt as _;
    use parking_lot::Mutex;

    use super::*;
    use crate::linear::{self, Revisions};

    /// A store in memory; `forgets` loses every such write after it was acknowledged.
    #[derive(Default)]
    struct Memory {
        state: Mutex<(BTreeMap<u32, Seen>, u64)>,
        forgets: Option<u64>,
    }

    impl Memory {
        fn write(&self, key: u32, id: Option<Id>, expect: Expect) -> Result<Option<u64>, Failure> {
            let mut state = self.state.lock();
            let found = state.0.get(&key).copied();
            let met = match expect {
                Expect::Absent => found.is_none(),
                Expect::Present => found.is_some(),
                Expect::Anything => true,
                Expect::Version(seen) => found == Some(seen),
            };
            if !met || (id.is_none() && found.is_none()) {
                return Err(Failure::Conflict);
            }
            state.1 += 1;
            let revision = state.1;
            if self.forgets.is_some_and(|every| revision.is_multiple_of(every)) {
                return Ok(Some(revision));
            }
            match id {
                Some(id) => drop(state.0.insert(key, Seen { id, revision })),
                None => drop(state.0.remove(&key)),
            }
            Ok(Some(revision))
        }
    }

    impl Subject for Memory {
        fn get(&self, key: u32) -> BoxFuture<'_, Result<Option<Seen>, Failure>> {
            async move { Ok(self.state.lock().0.get(&key).copied()) }.boxed()
        }
        fn put(
            &self,
            key: u32,
            id: Id,
            expect: Expect,
        ) -> BoxFuture<'_, Result<Option<u64>, Failure>> {
            async move { self.write(key, Some(id), expect) }.boxed()
        }
        fn delete(&self, key: u32, expect: Expect) -> BoxFuture<'_, Result<Option<u64>, Failure>> {
            async move { self.write(key, None, expect) }.boxed()
        }
    }

    async fn run(subject: Memory) -> Arc<Recorder> {
        let (subject, recorder) = (Arc::new(subject), Arc::new(Recorder::default()));
        let plan = Plan {
            keys: 3,
            until: Instant::now() + Duration::from_secs(2),
            pause: Duration::from_millis(20),
            patience: Duration::from_secs(1),
            blind: true,
        };
        let clients = (0..6).map(|n| {
            tokio::spawn(client(n, 7, plan, subject.clone() as Arc<dyn Subject>, recorder.clone()))
        });
        futures::future::join_all(clients).await;
        recorder
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_store_passes() {
        let recorder = run(Memory::default()).await;
        assert!(500 < recorder.ops().len());
        linear::check(&recorder.ops(), Revisions::Stay).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_forgets_is_found() {
        let recorder = run(Memory { forgets: Some(50), ..Memory::default() }).await;
        let violation = linear::check(&recorder.ops(), Revisions::Stay).unwrap_err();
        assert!(violation.to_string().contains("not linearizable"), "{violation}");
    }
}
