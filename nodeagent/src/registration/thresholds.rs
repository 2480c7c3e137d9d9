//! How little may be left of memory, disk and processes before a node says that it is short of it.
//!
//! Written as upstream's agent has them, `nodefs.available<10%,memory.available<100Mi`
//! (<https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>).

use std::str::FromStr;

use insula_api::quantity::Quantity;

/// Below these amounts the node is under pressure, and no pod is promised the last of them.
///
/// Where there is none, the node never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    pub(super) memory: Option<Threshold>,
    pub(super) disk: Option<Threshold>,
    pub(super) inodes: Option<Threshold>,
    pub(super) processes: Option<Threshold>,
}

/// An amount, or a share of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threshold {
    Amount(u64),
    /// In hundredths of a percent.
    Share(u64),
}

/// Why a text is no list of thresholds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    #[error("{0:?} is not SIGNAL<AMOUNT, such as nodefs.available<10%")]
    Syntax(String),
    #[error(
        "unknown signal {0:?}: there are memory.available, nodefs.available, nodefs.inodesFree \
         and pid.available"
    )]
    Signal(String),
    #[error("{0} is given twice")]
    Twice(String),
    #[error("{0:?} is neither an amount, such as 100Mi, nor a share from 0% to 100%")]
    Amount(String),
}

impl Default for Thresholds {
    /// Those of upstream, and one for processes.
    fn default() -> Self {
        Self {
            memory: Some(Threshold::Amount(100 << 20)),
            disk: Some(Threshold::Share(1000)),
            inodes: Some(Threshold::Share(500)),
            processes: Some(Threshold::Share(500)),
        }
    }
}

impl Threshold {
    fn parse(text: &str) -> Option<Self> {
        let Some(share) = text.strip_suffix('%') else {
            let amount = Quantity::parse(text).ok()?.value();
            return u64::try_from(amount).ok().map(Self::Amount);
        };
        // As an amount, which takes fractions and refuses what is no number.
        let share = Quantity::parse(share).ok()?.saturating_mul(100).value();
        u64::try_from(share).ok().filter(|it| *it <= 10_000).map(Self::Share)
    }

    /// How much it is where there is `all`.
    pub(super) fn of(self, all: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Share(share) => {
                let amount = u128::from(all) * u128::from(share) / 10_000;
                u64::try_from(amount).unwrap_or(u64::MAX)
            }
        }
    }
}

impl FromStr for Thresholds {
    type Err = ThresholdError;

    /// As with upstream's agent, what is not named has no threshold.
    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let mut found = Self { memory: None, disk: None, inodes: None, processes: None };
        for part in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            let Some((signal, amount)) = part.split_once('<') else {
                return Err(ThresholdError::Syntax(part.to_owned()));
            };
            let place = match signal {
                "memory.available" => &mut found.memory,
                "nodefs.available" => &mut found.disk,
                "nodefs.inodesFree" => &mut found.inodes,
                "pid.available" => &mut found.processes,
                other => return Err(ThresholdError::Signal(other.to_owned())),
            };
            let amount = Threshold::parse(amount)
                .ok_or_else(|| ThresholdError::Amount(amount.to_owned()))?;
            if place.replace(amount).is_some() {
                return Err(ThresholdError::Twice(signal.to_owned()));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let said = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,\
                    pid.available<5%";
        assert_eq!(said.parse(), Ok(Thresholds::default()));
        let nothing: Thresholds = "".parse().unwrap();
        assert_eq!((nothing.memory, nothing.disk), (None, None));
        let some: Thresholds = " nodefs.available<0.5% , pid.available<1k".parse().unwrap();
        assert_eq!(some.disk, Some(Threshold::Share(50)));
        assert_eq!(some.processes, Some(Threshold::Amount(1000)));
        assert_eq!((some.memory, some.inodes), (None, None));
    }

    #[test]
    fn what_is_none_is_refused() {
        let why = |text: &str| text.parse::<Thresholds>().unwrap_err().to_string();
        assert_eq!(
            why("nodefs.available=3"),
            "\"nodefs.available=3\" is not SIGNAL<AMOUNT, such as nodefs.available<10%"
        );
        assert!(why("disk<3%").starts_with("unknown signal \"disk\": there are memory.available"));
        assert_eq!(why("pid.available<1,pid.available<2"), "pid.available is given twice");
        for amount in ["", "%", "-1", "-1%", "101%", "NaN%", "1x", "1Ki%x"] {
            let said = why(&format!("memory.available<{amount}"));
            assert!(said.contains("is neither an amount"), "{amount}: {said}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(Threshold::Share(1000).of(252), 25);
        assert_eq!(Threshold::Share(10_000).of(u64::MAX), u64::MAX);
        assert_eq!(Threshold::Amount(7).of(3), 7);
    }
}
