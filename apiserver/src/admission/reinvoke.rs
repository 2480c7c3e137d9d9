//! The second round: whoever changes objects may be asked again when others changed them since.
//!
//! If a webhook or a policy changed the object, the chain runs once more. The platform's own
//! plugins then see it as it is; of webhooks and policies only those come again that ask for it
//! and were asked before the change.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Admission;

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    Policies,
    Webhooks,
}

/// What is remembered from one round to the next.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    is_second: bool,
    is_wanted: bool,
    has_changed: bool,
    policies: Memory,
    webhooks: Memory,
}

#[derive(Debug, Default)]
struct Memory {
    /// Asked since the last change, and to be asked again after the next.
    asked: BTreeSet<String>,
    due: BTreeSet<String>,
    /// The object as they left it.
    left: Option<Value>,
}

impl Memory {
    fn require(&mut self) {
        self.due.append(&mut self.asked);
    }
}

impl Rounds {
    fn memory(&mut self, round: Round) -> &mut Memory {
        match round {
            Round::Policies => &mut self.policies,
            Round::Webhooks => &mut self.webhooks,
        }
    }

    fn done(&mut self, round: Round, id: &str, changed: bool, is_reinvoked: bool) {
        if changed {
            self.memory(round).require();
            self.is_wanted = true;
            self.has_changed = true;
        }
        if is_reinvoked {
            self.memory(round).asked.insert(id.to_owned());
        }
    }

    fn begin(&mut self, round: Round, it: &Value) -> usize {
        let is_second = self.is_second;
        let memory = self.memory(round);
        if is_second && memory.left.as_ref().is_some_and(|left| left != it) {
            memory.require();
        }
        usize::from(is_second)
    }
}

impl Admission<'_> {
    /// The number of the round that begins.
    pub(super) fn begin_round(&self, round: Round, it: &Value) -> usize {
        self.rounds.lock().begin(round, it)
    }

    pub(super) fn end_round(&self, round: Round, it: &Value) {
        let mut rounds = self.rounds.lock();
        if !rounds.is_second && (rounds.is_wanted || !rounds.memory(round).asked.is_empty()) {
            rounds.memory(round).left = Some(it.clone());
        }
    }

    /// Whether it is this one's turn: in the second round only who is to be asked again.
    pub(super) fn is_due(&self, round: Round, id: &str) -> bool {
        let mut rounds = self.rounds.lock();
        !rounds.is_second || rounds.memory(round).due.contains(id)
    }

    /// Remembers that one was asked.
    pub(super) fn done(&self, round: Round, id: &str, changed: bool, is_reinvoked: bool) {
        self.rounds.lock().done(round, id, changed, is_reinvoked);
    }

    /// Whether the chain is to run again; asked once.
    pub(super) fn begin_again(&self) -> bool {
        let mut rounds = self.rounds.lock();
        let again = rounds.is_wanted && !rounds.is_second;
        rounds.is_second |= again;
        again
    }

    /// Whether somebody else than the platform changed the object.
    pub(crate) fn has_changed(&self) -> bool {
        self.rounds.lock().has_changed
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_was_asked_before_a_change_is_asked_again() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.begin(Round::Webhooks, &json!(1)), 0);
        rounds.done(Round::Webhooks, "a", false, true);
        rounds.done(Round::Webhooks, "b", false, false);
        rounds.done(Round::Webhooks, "c", true, true);
        assert!(rounds.is_wanted);
        rounds.webhooks.left = Some(json!(2));
        rounds.is_second = true;
        // Nothing changed since, so c, who changed it, is not asked again.
        assert_eq!(rounds.begin(Round::Webhooks, &json!(2)), 1);
        assert_eq!(rounds.webhooks.due.iter().collect::<Vec<_>>(), ["a"]);
        // Something did.
        rounds.begin(Round::Webhooks, &json!(3));
        assert_eq!(rounds.webhooks.due.iter().collect::<Vec<_>>(), ["a", "c"]);
    }
}
