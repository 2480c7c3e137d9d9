//! Sets of completion indexes, as a Job's status writes them: `1,3-5,7`.

use std::fmt;

/// Disjoint intervals in order, no two of which touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads what a status says, as far as it is below `end`. What cannot be read is left out:
    /// only controllers write there.
    pub(super) fn parse(text: &str, end: i32) -> Self {
        let mut it = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>())
                && 0 <= first
                && first <= last
                && first < end
            {
                it.insert_all(first, last.min(end - 1));
            }
        }
        it
    }

    pub(super) fn insert(&mut self, index: i32) {
        self.insert_all(index, index);
    }

    fn insert_all(&mut self, mut first: i32, mut last: i32) {
        let from = self.0.partition_point(|(_, end)| end.saturating_add(1) < first);
        let to = self.0.partition_point(|(start, _)| *start <= last.saturating_add(1));
        if let Some((start, _)) = self.0.get(from).filter(|_| from < to) {
            first = first.min(*start);
        }
        if let Some((_, end)) = to.checked_sub(1).filter(|it| from <= *it).map(|it| self.0[it]) {
            last = last.max(end);
        }
        self.0.splice(from..to.max(from), [(first, last)]);
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, end)| *end < index);
        self.0.get(at).is_some_and(|(start, _)| *start <= index)
    }

    /// How many there are.
    pub(super) fn len(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of these are among `others`.
    pub(super) fn n_common(&self, others: &Self) -> i32 {
        let mut n = 0;
        for (first, last) in &self.0 {
            let from = others.0.partition_point(|(_, end)| end < first);
            for (start, end) in others.0[from..].iter().take_while(|(start, _)| start <= last) {
                n += last.min(end) - first.max(start) + 1;
            }
        }
        n
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (first, last)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                // Two in a row are written one by one, as upstream does.
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str, n: i32) {
        let read = Indexes::parse(text, 100);
        assert_eq!((read.to_string().as_str(), read.len()), (expected, n));
    }

    #[test]
    fn what_a_status_says_is_read_back() {
        check("", "", 0);
        check("1,3-5,7", "1,3-5,7", 5);
        check("1,2", "1,2", 2);
        check("1,2,3", "1-3", 3);
        check("98-200", "98,99", 2);
        check("x,-3,5-2,7", "7", 1);
    }

    proptest! {
        #[test]
        fn like_a_set(left: Vec<u8>, right: Vec<u8>) {
            let plain = |them: &[u8]| them.iter().map(|it| i32::from(*it)).collect::<BTreeSet<_>>();
            let made = |them: &[u8]| {
                let mut it = Indexes::default();
                them.iter().for_each(|n| it.insert(i32::from(*n)));
                it
            };
            let (a, b) = (made(&left), made(&right));
            let (plain_a, plain_b) = (plain(&left), plain(&right));
            prop_assert_eq!(usize::try_from(a.len()).unwrap(), plain_a.len());
            for n in 0..256 {
                prop_assert_eq!(a.contains(n), plain_a.contains(&n));
            }
            let common = plain_a.intersection(&plain_b).count();
            prop_assert_eq!(usize::try_from(a.n_common(&b)).unwrap(), common);
            prop_assert_eq!(Indexes::parse(&a.to_string(), 256), a);
        }
    }
}
