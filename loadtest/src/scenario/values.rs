//! Numbers and times in scenarios, written out or as `$NAME` of a variable.
//!
//! Variables are put in while a scenario is read, so that what is wrong with one is said with the
//! line and column where it is used. serde hands nothing down to those who decode; so what there
//! are lies beside the thread meanwhile.

use std::{cell::RefCell, collections::BTreeMap, fmt, marker::PhantomData, time::Duration};

use jiff::SignedDuration;
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};
use serde_json::Value;

/// What variables are, by name: numbers, or texts such as `30s`.
pub type Variables = BTreeMap<String, Value>;

thread_local! {
    static KNOWN: RefCell<Variables> = const { RefCell::new(BTreeMap::new()) };
}

/// Reads something while there are these variables.
pub(crate) fn with_variables<T>(variables: &Variables, read: impl FnOnce() -> T) -> T {
    let before = KNOWN.replace(variables.clone());
    let done = read();
    KNOWN.set(before);
    done
}

/// What `$NAME` stands for.
fn variable(name: &str) -> Result<Value, String> {
    KNOWN.with_borrow(|known| {
        known.get(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            match names.is_empty() {
                true => format!("there is no variable ${name}, and none at all"),
                false => format!("there is no variable ${name}; there are: {}", names.join(", ")),
            }
        })
    })
}

/// The name that `$NAME` stands for.
pub(crate) fn named(name: &str) -> Result<String, String> {
    match variable(name)? {
        Value::String(text) => Ok(text),
        other => Err(format!("${name} is {other}, and no name")),
    }
}

/// What is a number or a text.
trait Scalar: Sized {
    const EXPECTED: &'static str;
    fn of_number(number: f64) -> Result<Self, String>;
    fn of_text(text: &str) -> Result<Self, String>;

    fn of_value(value: &Value) -> Result<Self, String> {
        match value {
            Value::Number(number) => Self::of_number(number.as_f64().unwrap_or(f64::NAN)),
            Value::String(text) => Self::of_text(text),
            _ => Err(format!("not {}", Self::EXPECTED)),
        }
    }
}

struct ScalarVisitor<T>(PhantomData<T>);

impl<T: Scalar> Visitor<'_> for ScalarVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or $NAME of a variable", T::EXPECTED)
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of a load test are far below 2^53")]
    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        T::of_number(number as f64).map_err(E::custom)
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of a load test are far below 2^53")]
    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        T::of_number(number as f64).map_err(E::custom)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        T::of_number(number).map_err(E::custom)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        let read = match text.strip_prefix('$') {
            Some(name) => variable(name).and_then(|it| T::of_value(&it)),
            None => T::of_text(text),
        };
        read.map_err(E::custom)
    }
}

/// A whole number, not negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Count(pub u64);

/// The most of anything: a billion.
const MOST: f64 = 1e9;

impl Scalar for Count {
    const EXPECTED: &'static str = "a whole number";

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be whole and in range"
    )]
    fn of_number(number: f64) -> Result<Self, String> {
        if number.fract() == 0.0 && (0.0..=MOST).contains(&number) {
            Ok(Self(number as u64))
        } else {
            Err(format!("{number} is no whole number from 0 to {MOST}"))
        }
    }

    fn of_text(text: &str) -> Result<Self, String> {
        Err(format!("{text:?} is no whole number"))
    }
}

/// A number above 0, such as requests a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Number(pub f64);

impl Scalar for Number {
    const EXPECTED: &'static str = "a number above 0";

    fn of_number(number: f64) -> Result<Self, String> {
        let good = 0.0 < number && number <= MOST;
        good.then_some(Self(number)).ok_or_else(|| format!("{number} is not above 0"))
    }

    fn of_text(text: &str) -> Result<Self, String> {
        // A share, as `1%`.
        let share = text.strip_suffix('%').and_then(|it| it.trim().parse::<f64>().ok());
        share.map_or_else(
            || Err(format!("{text:?} is no number")),
            |share| Self::of_number(share / 100.0),
        )
    }
}

/// A time such as `500ms`, `30s`, `5m` or `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Scalar for Span {
    const EXPECTED: &'static str = "a time such as 500ms, 30s or 5m";

    fn of_number(number: f64) -> Result<Self, String> {
        Err(format!("{number} has no unit: write {number}s, for seconds"))
    }

    fn of_text(text: &str) -> Result<Self, String> {
        let read: Option<SignedDuration> = text.parse().ok();
        let time = read.and_then(|it| Duration::try_from(it).ok());
        time.map(Self).ok_or_else(|| format!("{text:?} is not {}", Self::EXPECTED))
    }
}

/// An amount of memory in bytes, such as `512Mi` or `1.5Gi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Scalar for Bytes {
    const EXPECTED: &'static str = "bytes, or a size such as 512Mi";

    fn of_number(number: f64) -> Result<Self, String> {
        Self::scaled(number, 1.0).ok_or_else(|| format!("{number} is no size"))
    }

    fn of_text(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, f64); 3] =
            [("Ki", 1024.0), ("Mi", 1_048_576.0), ("Gi", 1_073_741_824.0)];
        let found = UNITS.iter().find_map(|(unit, factor)| {
            Self::scaled(text.strip_suffix(unit)?.trim().parse().ok()?, *factor)
        });
        found.ok_or_else(|| format!("{text:?} is no size such as 512Mi"))
    }
}

impl Bytes {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes are below 2^50, and not negative"
    )]
    fn scaled(number: f64, factor: f64) -> Option<Self> {
        (0.0..=1e15).contains(&(number * factor)).then_some(Self((number * factor) as u64))
    }
}

macro_rules! scalars {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(ScalarVisitor(PhantomData))
            }
        }

        #[cfg(test)]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "description": format!("{}, or $NAME of a variable", Self::EXPECTED),
                    "type": ["number", "string"],
                })
            }
        }
    )*};
}
scalars!(Count, Number, Span, Bytes);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check<'de, T: Deserialize<'de> + PartialEq + fmt::Debug>(
        text: &'de str,
        expected: Result<T, &str>,
    ) {
        let known = json!({"pods": 30, "time": "2m"});
        let Value::Object(known) = known else { unreachable!() };
        let known = known.into_iter().collect();
        let read = with_variables(&known, || serde_saphyr::from_str::<T>(text));
        match expected {
            Ok(expected) => assert_eq!(read.unwrap(), expected, "{text}"),
            Err(message) => {
                let error = read.unwrap_err().to_string();
                assert!(error.contains(message), "{text}: {error}");
            }
        }
    }

    #[test]
    fn values() {
        check("7", Ok(Count(7)));
        check("$pods", Ok(Count(30)));
        check("$pods", Ok(Number(30.0)));
        check("$time", Ok(Span(Duration::from_secs(120))));
        check("500ms", Ok(Span(Duration::from_millis(500))));
        check("1%", Ok(Number(0.01)));
        check("1.5Gi", Ok(Bytes(3 << 29)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        check::<Count>("1.5", Err("1.5 is no whole number"));
        check::<Count>("$pod", Err("there is no variable $pod; there are: pods, time"));
        check::<Count>("$time", Err("\"2m\" is no whole number"));
        check::<Span>("30", Err("30 has no unit: write 30s"));
        check::<Span>("soon", Err("\"soon\" is not a time such as"));
        check::<Number>("0", Err("0 is not above 0"));
        check::<Bytes>("5 apples", Err("no size"));
    }
}
