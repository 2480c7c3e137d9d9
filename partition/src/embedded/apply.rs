//! Doing what an entry says.

use super::{
    command::{self, Command, UnknownCommand},
    reply::Reply,
};
use crate::state::State;

/// Commands applied under one lock, so that readers wait for microseconds only.
const STEP: usize = 64;

/// Applies an entry's commands in order and answers each. Also used when the log is replayed.
pub(crate) fn apply_commands(
    state: &State,
    data: &[u8],
    replies: Vec<Reply>,
) -> Result<(), UnknownCommand> {
    let mut commands = command::commands(data);
    let mut replies = replies.into_iter();
    let mut outcomes = Vec::with_capacity(STEP);
    loop {
        let unknown = state.apply(|contents| {
            for command in commands.by_ref().take(STEP) {
                let outcome = match command? {
                    Command::Put { expect, collection, key, value, by_move, epoch, within } => {
                        contents
                            .check_epoch(epoch)
                            .and_then(|()| {
                                contents.write(
                                    collection,
                                    key,
                                    expect,
                                    Some(value),
                                    by_move,
                                    &within,
                                )
                            })
                            .map(Some)
                    }
                    Command::Delete { expect, collection, key, by_move, epoch } => contents
                        .check_epoch(epoch)
                        .and_then(|()| contents.write(collection, key, expect, None, by_move, &[]))
                        .map(Some),
                    Command::Raise { revision } => {
                        contents.raise(revision);
                        Ok(None)
                    }
                    Command::Skip { count } => {
                        contents.skip(count);
                        Ok(None)
                    }
                    Command::Compact { revision } => contents.compact(revision).map(|()| None),
                };
                outcomes.push(outcome);
            }
            Ok(())
        });
        let last = outcomes.len() < STEP;
        for outcome in outcomes.drain(..) {
            replies.next().unwrap_or(Reply::Nobody).send(outcome);
        }
        unknown?;
        if last {
            return Ok(());
        }
    }
}
