//! How a pod is to behave: what its annotations say, and what is usual.
//!
//! | annotation `hollow.insula.io/` | value | usual |
//! |---|---|---|
//! | `start-after` | how long it takes until its containers run | `100ms..500ms` |
//! | `ready-after` | how long after that it is ready | `0s` |
//! | `exit-after` | how long after that its containers end | never; `1s` where `restartPolicy` is not `Always` |
//! | `exit-code` | what they end with, 0 to 255 | `0` |
//! | `stop-after` | how long its containers take to end when they are told to | `0s..200ms` |
//! | `cpu`, `memory` | what each of its containers uses while it runs | what it requests |
//! | `fail` | `image`: its image cannot be pulled; `never-ready`: it runs and is not ready | |
//!
//! `cpu` and `memory` are quantities (`250m`, `64Mi`). A time is a number with a unit (`250ms`, `1.5s`, `2m`, `1h`), or a range of two of them
//! (`1s..3s`), in which each pod has a place of its own that does not change.

use std::{collections::BTreeMap, time::Duration};

use insula_api::quantity::Quantity;
use k8s_openapi::api::core::v1::PodSpec;

/// What the names of all annotations begin with.
pub const PREFIX: &str = "hollow.insula.io/";
/// The longest time there is: an annotation is any tenant's to write.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// A time, or a range in which each pod has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    pub from: Duration,
    pub to: Duration,
}

impl Span {
    pub const fn millis(from: u64, to: u64) -> Self {
        Self { from: Duration::from_millis(from), to: Duration::from_millis(to) }
    }

    /// Reads `250ms` or `1s..3s`.
    pub fn parse(text: &str) -> Result<Self, BadBehaviour> {
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let (from, to) = (duration(from)?, duration(to)?);
        match from <= to {
            true => Ok(Self { from, to }),
            false => Err(BadBehaviour(format!("{text:?} ends before it begins"))),
        }
    }

    /// The time of whoever has this `place`, a number that is as good as random.
    pub fn at(self, place: u64) -> Duration {
        let width = u64::try_from((self.to - self.from).as_millis()).unwrap_or(u64::MAX);
        self.from + Duration::from_millis(place % width.saturating_add(1))
    }
}

impl std::str::FromStr for Span {
    type Err = BadBehaviour;
    fn from_str(text: &str) -> Result<Self, BadBehaviour> {
        Self::parse(text)
    }
}

fn duration(text: &str) -> Result<Duration, BadBehaviour> {
    let text = text.trim();
    let bad = || BadBehaviour(format!("{text:?} is no time such as 250ms, 1.5s, 2m or 1h"));
    let at = text.find(|it: char| it.is_ascii_alphabetic()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(at);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    let number: f64 = number.parse().map_err(|_| bad())?;
    let found = Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
    Ok(found.min(LONGEST))
}

/// How much a quantity is, in parts of which `unit` are one.
pub(crate) fn amount(text: &str, unit: u32) -> Result<u64, BadBehaviour> {
    let parsed = Quantity::parse(text.trim()).ok().filter(|it| !it.is_negative());
    let parsed = parsed
        .ok_or_else(|| BadBehaviour(format!("{text:?} is no amount such as 250m, 2 or 64Mi")))?;
    let parts = parsed.wide_milli().saturating_mul(unit.into()) / 1000;
    Ok(u64::try_from(parts).unwrap_or(u64::MAX))
}

/// What is wrong with an annotation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadBehaviour(String);

/// What keeps a pod from becoming ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    Image,
    NeverReady,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Behaviour {
    pub start_after: Span,
    pub ready_after: Span,
    /// `None`: it runs for ever.
    pub exit_after: Option<Span>,
    pub exit_code: i32,
    pub stop_after: Span,
    /// Billionths of a processor that each container uses, if it is not what it requests.
    pub cpu: Option<u64>,
    /// The same of memory, in bytes.
    pub memory: Option<u64>,
    pub fault: Option<Fault>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            start_after: Span::millis(100, 500),
            ready_after: Span::millis(0, 0),
            exit_after: None,
            exit_code: 0,
            stop_after: Span::millis(0, 200),
            cpu: None,
            memory: None,
            fault: None,
        }
    }
}

impl Behaviour {
    /// The behaviour of a pod, where `usual` is that of pods that do not say.
    ///
    /// An annotation that is wrong is left out; what is wrong with it comes back beside.
    pub fn of(
        usual: &Self,
        annotations: Option<&BTreeMap<String, String>>,
        spec: &PodSpec,
    ) -> (Self, Vec<BadBehaviour>) {
        let mut it = usual.clone();
        if it.exit_after.is_none()
            && spec.restart_policy.as_deref().is_some_and(|it| it != "Always")
        {
            it.exit_after = Some(Span::millis(1000, 1000));
        }
        let mut wrong = Vec::new();
        for (name, value) in annotations.into_iter().flatten() {
            let Some(name) = name.strip_prefix(PREFIX) else { continue };
            if let Err(BadBehaviour(why)) = it.set(name, value) {
                wrong.push(BadBehaviour(format!("annotation {PREFIX}{name}: {why}")));
            }
        }
        (it, wrong)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), BadBehaviour> {
        match name {
            "start-after" => self.start_after = Span::parse(value)?,
            "ready-after" => self.ready_after = Span::parse(value)?,
            "exit-after" => self.exit_after = Some(Span::parse(value)?),
            "stop-after" => self.stop_after = Span::parse(value)?,
            "exit-code" => {
                let code: u8 = value.parse().map_err(|_| {
                    BadBehaviour(format!("{value:?} is no exit code from 0 to 255"))
                })?;
                self.exit_code = code.into();
            }
            "cpu" => self.cpu = Some(amount(value, 1_000_000_000)?),
            "memory" => self.memory = Some(amount(value, 1)?),
            "fail" => {
                self.fault = Some(match value {
                    "image" => Fault::Image,
                    "never-ready" => Fault::NeverReady,
                    _ => {
                        let why = format!("{value:?} is neither image nor never-ready");
                        return Err(BadBehaviour(why));
                    }
                });
            }
            _ => return Err(BadBehaviour("no such annotation".to_owned())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, from, to) in [
            ("250ms", 250, 250),
            ("1.5s", 1500, 1500),
            ("1s..2m", 1000, 120_000),
            ("0s..0s", 0, 0),
            ("1h", 3_600_000, 3_600_000),
        ] {
            assert_eq!(Span::parse(text), Ok(Span::millis(from, to)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1d", "2s..1s", "1s..", "NaNs", "infs"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
        assert_eq!(Span::parse("999999999h").unwrap().to, LONGEST);
    }

    #[test]
    fn amounts_are_read() {
        for (text, unit, amount) in [("250m", 1_000_000_000, 250_000_000), ("2Ki", 1, 2048)] {
            assert_eq!(super::amount(text, unit), Ok(amount), "{text}");
        }
        assert_eq!(super::amount("9E", 1_000_000_000), Ok(u64::MAX));
        for text in ["", "-1", "much"] {
            assert!(super::amount(text, 1).is_err(), "{text}");
        }
    }

    #[test]
    fn everyone_has_a_place_in_a_range() {
        let span = Span::millis(100, 109);
        let places = (0..1000).map(|place| span.at(place).as_millis());
        assert_eq!(places.clone().min(), Some(100));
        assert_eq!(places.max(), Some(109));
        assert_eq!(Span::millis(5, 5).at(u64::MAX), Duration::from_millis(5));
    }

    #[test]
    fn annotations_say_what_is_not_usual() {
        let all = [
            ("hollow.insula.io/exit-after", "2s"),
            ("hollow.insula.io/exit-code", "3"),
            ("hollow.insula.io/fail", "never-ready"),
            ("hollow.insula.io/cpu", "1.5"),
            ("hollow.insula.io/memory", "64Mi"),
            ("hollow.insula.io/start-after", "soon"),
            ("hollow.insula.io/typo", "1s"),
            ("other", "x"),
        ];
        let all = all.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (found, wrong) = Behaviour::of(&Behaviour::default(), Some(&all), &PodSpec::default());
        let wanted = Behaviour {
            exit_after: Some(Span::millis(2000, 2000)),
            exit_code: 3,
            cpu: Some(1_500_000_000),
            memory: Some(64 << 20),
            fault: Some(Fault::NeverReady),
            ..Behaviour::default()
        };
        assert_eq!(found, wanted);
        let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].contains("start-after: \"soon\" is no time"), "{wrong:?}");
        assert!(wrong[1].contains("typo: no such annotation"), "{wrong:?}");
    }

    #[test]
    fn pods_that_are_to_end_do() {
        let spec = |policy: &str| PodSpec {
            restart_policy: Some(policy.to_owned()),
            ..PodSpec::default()
        };
        let of = |policy| Behaviour::of(&Behaviour::default(), None, &spec(policy)).0.exit_after;
        assert_eq!(of("Always"), None);
        assert_eq!(of("Never"), Some(Span::millis(1000, 1000)));
        assert_eq!(of("OnFailure"), Some(Span::millis(1000, 1000)));
    }
}
