//! Long work in pieces, between which it is the turn of others.
//!
//! What takes milliseconds, as making a list of thousands of objects, would keep a processor from
//! everybody for as long: threads that the kernel does not take it from, tasks of the same thread
//! anyway. Done in pieces that each take some tens of microseconds, who waits behind it waits for
//! one of them; and each is a turn of whoever asked (`turn.rs`).

use tokio::task::yield_now;

/// So much is copied before it is the turn of others, in bytes. A turn costs some microseconds
/// of its own: this is forty times as much.
const PIECE: usize = 256 * 1024;
/// How many times longer than copying it takes to read a text and say it in other words.
const READING: usize = 16;
/// What each object costs beside its bytes, in bytes that would be copied meanwhile.
const EACH: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    done: usize,
}

impl Pieces {
    /// An object of so many bytes was copied, or just looked at.
    pub(crate) async fn copied(&mut self, bytes: usize) {
        self.done += bytes + EACH;
        if PIECE <= self.done {
            self.done = 0;
            yield_now().await;
        }
    }

    /// So many bytes were read and said in other words.
    pub(crate) async fn read(&mut self, bytes: usize) {
        self.copied(bytes.saturating_mul(READING)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn others_have_their_turn_after_each_piece() {
        let mut pieces = Pieces::default();
        let copying = async {
            for _ in 0..1000 {
                pieces.copied(PIECE / 10).await;
            }
        };
        let mut copying = pin!(copying);
        let mut turns = 1;
        while poll!(&mut copying).is_pending() {
            turns += 1;
        }
        assert!((95..=105).contains(&turns), "{turns}");
    }
}
