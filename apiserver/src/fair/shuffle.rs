//! Which queues a flow may wait in: a hand of them, dealt by the flow's hash, so that few flows
//! share all of their queues with a greedy one.

/// Largest hand; validation allows no larger one.
const MOST: usize = 10;

/// Calls `take` with each of `hand` different queues of `queues`, as `hash` deals them.
pub(super) fn deal(hash: u64, queues: usize, hand: usize, mut take: impl FnMut(usize)) {
    let hand = hand.min(queues).min(MOST);
    let mut hash = hash;
    let mut dealt = [0; MOST];
    for n in 0..hand {
        let left = (queues - n) as u64;
        let mut card = (hash % left) as usize;
        hash /= left;
        // The n-th of those that are left: all that are dealt and not above it come before.
        for &other in &dealt[..n] {
            if other <= card {
                card += 1;
            }
        }
        let at = dealt[..n].partition_point(|other| *other < card);
        dealt.copy_within(at..n, at + 1);
        dealt[at] = card;
        take(card);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn hand(hash: u64, queues: usize, hand: usize) -> Vec<usize> {
        let mut dealt = Vec::new();
        deal(hash, queues, hand, |it| dealt.push(it));
        dealt
    }

    proptest! {
        #[test]
        fn cards_are_different_and_of_the_deck(hash: u64, queues in 1..200_usize, size in 0..12_usize) {
            let dealt = hand(hash, queues, size);
            prop_assert_eq!(dealt.len(), size.min(queues).min(MOST));
            prop_assert!(dealt.iter().all(|it| *it < queues));
            prop_assert_eq!(dealt.iter().collect::<BTreeSet<_>>().len(), dealt.len());
        }
    }

    #[test]
    fn every_hand_is_dealt_as_often() {
        let mut count = [0; 8];
        for hash in 0..8 * 7 * 6_u64 {
            deal(hash, 8, 3, |it| count[it] += 1);
        }
        assert_eq!(count, [8 * 7 * 6 * 3 / 8; 8]);
    }
}
