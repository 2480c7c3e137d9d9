//! What to do with an object, given its owners.

use insula_client::Propagation;

use super::graph::OwnerState;

/// What to do with an object whose owners were looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has an owner that stays, or none at all.
    Keep,
    /// It has one that stays; these others are to be no longer named.
    Drop { owners: Vec<String> },
    /// Nothing keeps it.
    Delete { propagation: Propagation },
}

/// Decides. An owner that is `Unknown` here was looked for and does not exist.
pub(super) fn judge(
    owners: &[(String, OwnerState)],
    has_dependents: bool,
    finalizers: Option<Propagation>,
) -> Verdict {
    let is_solid = |it: &&(String, OwnerState)| it.1 == OwnerState::Solid;
    if owners.is_empty() {
        return Verdict::Keep;
    }
    if owners.iter().any(|it| is_solid(&it)) {
        let gone: Vec<String> =
            owners.iter().filter(|it| !is_solid(it)).map(|(uid, _)| uid.clone()).collect();
        return if gone.is_empty() { Verdict::Keep } else { Verdict::Drop { owners: gone } };
    }
    let is_waited_for = owners.iter().any(|(_, state)| *state == OwnerState::Waiting);
    // What an owner waits for, waits in turn for what it owns; otherwise the owner would go
    // before the last of them.
    let propagation = if is_waited_for && has_dependents {
        Propagation::Foreground
    } else {
        finalizers.unwrap_or(Propagation::Background)
    };
    Verdict::Delete { propagation }
}

#[cfg(test)]
mod tests {
    use OwnerState::{Solid, Unknown, Waiting};

    use super::*;

    #[track_caller]
    fn check(states: &[OwnerState], has_dependents: bool, expected: Verdict) {
        let owners: Vec<_> =
            states.iter().enumerate().map(|(n, state)| (n.to_string(), *state)).collect();
        assert_eq!(judge(&owners, has_dependents, None), expected);
    }

    fn delete(propagation: Propagation) -> Verdict {
        Verdict::Delete { propagation }
    }

    #[test]
    fn verdicts() {
        check(&[], true, Verdict::Keep);
        check(&[Solid, Solid], true, Verdict::Keep);
        check(
            &[Unknown, Solid, Waiting],
            true,
            Verdict::Drop { owners: vec!["0".into(), "2".into()] },
        );
        check(&[Unknown], true, delete(Propagation::Background));
        check(&[Waiting], false, delete(Propagation::Background));
        check(&[Waiting, Unknown], true, delete(Propagation::Foreground));
    }

    #[test]
    fn the_objects_own_finalizers_choose_the_way() {
        let owners = [("0".to_owned(), Unknown)];
        assert_eq!(judge(&owners, true, Some(Propagation::Orphan)), delete(Propagation::Orphan));
    }
}
