//! Tables under whatever moves do to them, and what they let through.

use proptest::prelude::*;

use super::*;

fn scope() -> impl Strategy<Value = Scope> {
    let slots = (0_u16..16, 0_u16..8);
    prop_oneof![
        "[a-d]".prop_map(Scope::Tenant),
        slots.prop_map(|(first, len)| Scope::slots(first * 1024, first * 1024 + len * 128)),
    ]
}

fn state() -> impl Strategy<Value = FenceState> {
    use FenceState::{Closed, Frozen, Importing, Leaving, Open};
    prop::sample::select(vec![Leaving, Frozen, Closed, Importing, Open])
}

fn fence(move_id: &str, scope: Scope, state: FenceState, token: u64) -> Fence {
    let other = "elsewhere".into();
    let move_id = move_id.into();
    Fence { move_id, scope, state, token, since: Revision(0), other, other_at: None, moved: true }
}

fn keys() -> Vec<String> {
    ('a'..='f').map(|name| format!("{name}/ns/x")).collect()
}

fn parsed(table: &Table, written: u64) -> Fences {
    Fences::parse(&serde_json::to_vec(table).unwrap(), Revision(written))
}

/// By the rule: the newest fence whose scope has the key counts.
fn by_rule<'a>(table: &'a Table, key: &str) -> Option<&'a Fence> {
    let shard = Shard::of("core/pods", key);
    table.fences.iter().rev().find(|fence| fence.scope.contains(shard))
}

proptest! {
    #[test]
    fn the_newest_fence_counts(all in prop::collection::vec((scope(), state()), 0..8)) {
        let all = all.into_iter().zip(1..).map(|((scope, state), n)| {
            fence(&format!("m{n}"), scope, state, n)
        });
        let table = Table { latest: 0, fences: all.collect() };
        let fences = parsed(&table, 7);
        for key in keys() {
            let expected = by_rule(&table, &key);
            let shown = expected.is_none_or(|it| !it.state.hides());
            prop_assert_eq!(fences.hides("core/pods", &key), !shown);
            let writes = expected.is_none_or(|it| it.state.takes_writes());
            prop_assert_eq!(fences.check_write("core/pods", &key, None).is_ok(), writes);
            for token in 0..10 {
                let mine = expected.is_some_and(|it| it.state.hides() && it.token == token);
                let taken = fences.check_write("core/pods", &key, Some(token)).is_ok();
                prop_assert_eq!(taken, mine);
            }
            // A partition's own values are never held up.
            prop_assert!(fences.check_write(FENCES, TABLE, None).is_ok());
        }
    }

    /// Tidying up changes no answer to anybody who can still ask.
    #[test]
    fn tidying_changes_no_answer(
        all in prop::collection::vec((scope(), state(), 1_u64..100), 0..8), compacted in 0_u64..100,
        latest in 0_u64..10,
    ) {
        let all = all.into_iter().zip(1..).map(|((scope, state, since), n)| {
            Fence { since: Revision(since), ..fence(&format!("m{n}"), scope, state, n) }
        });
        let table = Table { latest, fences: all.collect() };
        let mut tidied = table.clone();
        tidied.tidy(Revision(compacted));
        prop_assert!(tidied.fences.len() <= table.fences.len());
        let (before, after) = (parsed(&table, 200), parsed(&tidied, 200));
        for key in keys() {
            prop_assert_eq!(before.hides("core/pods", &key), after.hides("core/pods", &key));
            let writes = |it: &Fences| it.check_write("core/pods", &key, None).is_ok();
            prop_assert_eq!(writes(&before), writes(&after));
            let shard = ShardKey::of("core/pods", &key);
            for revision in (compacted..120).map(Revision) {
                let read = |it: &Fences| it.check_read(&shard, revision).is_ok();
                prop_assert_eq!(read(&before), read(&after));
            }
        }
        // Moves that go on keep what they put up.
        let goes_on = |it: &&Fence| latest < it.token;
        let kept = |table: &Table| table.fences.iter().filter(goes_on).cloned().collect::<Vec<_>>();
        prop_assert_eq!(kept(&table), kept(&tidied));
    }

    /// Whoever acts with an older token than somebody else has used changes nothing.
    #[test]
    fn old_tokens_change_nothing(
        steps in prop::collection::vec((0_u8..5, 0_usize..3, 1_u64..20, state()), 0..40),
    ) {
        let mut table = Table::default();
        let mut newest = [0_u64; 3];
        for (what, n, token, state) in steps {
            let id = format!("m{n}");
            let scope = Scope::Tenant(id.clone());
            let before = table.clone();
            let done = match what {
                0 => table.claim(fence(&id, scope, state, token)),
                1 => table.change(&id, token, |it| it.state = state),
                2 => table.abandon(&id, token),
                3 => table.finish(&id, token),
                _ => {
                    table.tidy(Revision(0));
                    continue;
                }
            };
            if token < newest[n] && before.of(&id).is_some() {
                prop_assert!(done.is_err());
            }
            if done.is_err() {
                prop_assert_eq!(&table, &before);
            } else {
                newest[n] = newest[n].max(token);
            }
            // A move that ended comes back with a newer token only.
            if before.of(&id).is_none() && token <= before.latest && what < 2 {
                prop_assert!(done.is_err());
            }
            prop_assert!(before.latest <= table.latest);
        }
    }
}

#[test]
fn a_table_that_cannot_be_read_lets_nothing_through() {
    let fences = Fences::parse(b"{\"fences\":7}", Revision(1));
    let damaged = |it: Result<(), StoreError>| matches!(it, Err(StoreError::Damaged { .. }));
    assert!(damaged(fences.check_write("core/pods", "a/b/c", None)));
    assert!(damaged(fences.check_read(&ShardKey::System, Revision(9))));
    assert!(damaged(fences.check_history(Revision(9))));
}

#[test]
fn the_table_is_pinned() {
    let mut table = Table::default();
    table.claim(fence("m1", Scope::Tenant("acme".into()), FenceState::Leaving, 3)).unwrap();
    table.change("m1", 3, |it| it.state = FenceState::Closed).unwrap();
    table.finish("m1", 3).unwrap();
    let expected = concat!(
        r#"{"latest":3,"fences":[{"move":"m1","scope":{"tenant":"acme"},"state":"closed","#,
        r#""token":3,"since":0,"other":"elsewhere","moved":true}]}"#,
    );
    assert_eq!(serde_json::to_string(&table).unwrap(), expected);
    // The revision of the write stands for itself.
    assert_eq!(parsed(&table, 9).table().fences[0].since, Revision(9));
}
