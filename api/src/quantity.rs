//! Amounts of resources: `500m` CPUs, `1Gi` of memory, `3` devices.
//!
//! Reads and writes what Kubernetes does, in the same canonical form: no fraction, the largest
//! suffix that allows that, and the family of suffixes that the amount was written in.
//!
//! # Invariants
//!
//! * An amount is a whole number of nanos; what is finer rounds away from zero, so that who asks
//!   for some gets some.
//! * Arithmetic saturates. Amounts with a binary suffix end at 2^63-1 units, all others at 10^29.
//! * Equality and order look at the amount, not at how it is written.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Nanos in one unit.
const UNIT: i128 = 1_000_000_000;
/// Nanos in the largest amount with a binary suffix.
const MAX_BINARY: i128 = (i64::MAX as i128) * UNIT;
/// Nanos in the largest amount.
const MAX: i128 = 10_i128.pow(38);
/// Digits that fit an `i128` whatever they are.
const MAX_DIGITS: u32 = 37;

/// The family of suffixes that an amount is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// `n u m k M G T P E`
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`
    BinarySi,
    /// `e3`
    DecimalExponent,
}

/// An amount of a resource.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error(
        "quantities must match the regular expression \
         '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Number,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A whole number of units.
    pub fn new(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * UNIT, format }
    }

    /// A whole number of thousandths, such as millicores.
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (UNIT / 1000), format: Format::DecimalSi }
    }

    /// Reads an amount such as `1.5Gi`.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let is_number = |byte: u8| byte.is_ascii_digit() || byte == b'.';
        let end = unsigned.bytes().position(|byte| !is_number(byte)).unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        if number.is_empty() || !suffix.bytes().all(is_suffix_byte) {
            return Err(QuantityError::Format);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || whole.len() + fraction.len() == 0 {
            return Err(QuantityError::Number);
        }
        let (format, power) = Power::parse(suffix)?;
        let mut digits = Digits::default();
        digits.push_whole(whole);
        digits.push_fraction(fraction);
        let mut nanos = digits.nanos(power).min(MAX);
        if format == Format::BinarySi {
            nanos = nanos.min(MAX_BINARY);
        }
        // Below one unit the binary suffixes say nothing.
        let format =
            if nanos < UNIT && format == Format::BinarySi { Format::DecimalSi } else { format };
        let nanos = if text.starts_with('-') { -nanos } else { nanos };
        Ok(Self { nanos, format })
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whole units, rounded away from zero.
    pub fn value(&self) -> i64 {
        saturate(div_away_from_zero(self.nanos, UNIT))
    }

    /// Whole thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i64 {
        saturate(div_away_from_zero(self.nanos, UNIT / 1000))
    }

    /// Whole thousandths, rounded towards zero, of sums too.
    pub fn wide_milli(&self) -> i128 {
        self.nanos / (UNIT / 1000)
    }

    /// The sum, in the format of the first amount that is not zero.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: clamp(self.nanos.saturating_add(other.nanos)), format }
    }

    /// The difference, in the format of the first amount that is not zero.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: clamp(self.nanos.saturating_sub(other.nanos)), format }
    }

    /// The sum, also where it is more than one amount can be: sums that are kept while amounts
    /// come and go must not forget any.
    #[must_use]
    pub fn exact_add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }

    /// As [`Quantity::exact_add`].
    #[must_use]
    pub fn exact_sub(self, other: Self) -> Self {
        self.exact_add(Self { nanos: -other.nanos, ..other })
    }

    /// The amount `n` times.
    #[must_use]
    pub fn saturating_mul(self, n: i64) -> Self {
        Self { nanos: clamp(self.nanos.saturating_mul(n.into())), ..self }
    }
}

fn is_suffix_byte(byte: u8) -> bool {
    byte.is_ascii_digit() || b"eEinumkKMGTP+-".contains(&byte)
}

fn clamp(nanos: i128) -> i128 {
    nanos.clamp(-MAX, MAX)
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn div_away_from_zero(value: i128, divisor: i128) -> i128 {
    let (quotient, rest) = (value / divisor, value % divisor);
    quotient + rest.signum()
}

/// What a suffix multiplies by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    Ten(i32),
    Two(u32),
}

impl Power {
    fn parse(suffix: &str) -> Result<(Format, Self), QuantityError> {
        let power = match suffix {
            "n" => Self::Ten(-9),
            "u" => Self::Ten(-6),
            "m" => Self::Ten(-3),
            "" => Self::Ten(0),
            "k" => Self::Ten(3),
            "M" => Self::Ten(6),
            "G" => Self::Ten(9),
            "T" => Self::Ten(12),
            "P" => Self::Ten(15),
            "E" => Self::Ten(18),
            "Ki" => Self::Two(10),
            "Mi" => Self::Two(20),
            "Gi" => Self::Two(30),
            "Ti" => Self::Two(40),
            "Pi" => Self::Two(50),
            "Ei" => Self::Two(60),
            _ => {
                let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
                let exponent = exponent.parse::<i32>().map_err(|_| QuantityError::Suffix)?;
                return Ok((Format::DecimalExponent, Self::Ten(exponent)));
            }
        };
        let format =
            if matches!(power, Self::Two(_)) { Format::BinarySi } else { Format::DecimalSi };
        Ok((format, power))
    }
}

/// Decimal digits as a number times a power of ten, however many there are.
#[derive(Debug, Default)]
struct Digits {
    mantissa: i128,
    n_digits: u32,
    exponent: i64,
    /// Whether a digit other than 0 did not fit. It counts when rounding.
    rest: bool,
}

impl Digits {
    fn push_whole(&mut self, digits: &str) {
        for digit in digits.bytes() {
            if !self.push(digit) {
                self.exponent += 1;
            }
        }
    }

    fn push_fraction(&mut self, digits: &str) {
        for digit in digits.bytes() {
            if self.push(digit) {
                self.exponent -= 1;
            }
        }
    }

    /// Returns whether the digit fits.
    fn push(&mut self, digit: u8) -> bool {
        if self.n_digits == MAX_DIGITS {
            self.rest |= digit != b'0';
            return false;
        }
        self.mantissa = self.mantissa * 10 + i128::from(digit - b'0');
        if self.mantissa != 0 {
            self.n_digits += 1;
        }
        true
    }

    fn nanos(&self, power: Power) -> i128 {
        if self.mantissa == 0 && !self.rest {
            return 0;
        }
        let (mantissa, exponent) = match power {
            Power::Ten(ten) => (self.mantissa, self.exponent + i64::from(ten)),
            Power::Two(two) => (self.mantissa.saturating_mul(1 << two), self.exponent),
        };
        let shift = exponent + 9;
        match (u32::try_from(shift), u32::try_from(-shift)) {
            (Ok(up), _) => {
                let factor = 10_i128.checked_pow(up).unwrap_or(i128::MAX);
                mantissa.saturating_mul(factor)
            }
            (_, Ok(down)) => match 10_i128.checked_pow(down) {
                Some(divisor) => {
                    let rest = self.rest || mantissa % divisor != 0;
                    mantissa / divisor + i128::from(rest)
                }
                None => 1,
            },
            // An exponent beyond all numbers.
            _ if shift < 0 => 1,
            _ => i128::MAX,
        }
    }
}

impl fmt::Display for Quantity {
    /// Writes the canonical form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * UNIT;
        let binary = self.format == Format::BinarySi && !small && self.nanos % UNIT == 0;
        if binary {
            const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
            let (number, n_steps) = strip_factor(self.nanos / UNIT, 1024, SUFFIXES.len() - 1);
            return write!(f, "{number}{}", SUFFIXES[n_steps]);
        }
        const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        if self.format == Format::DecimalExponent {
            let (number, n_steps) = strip_factor(self.nanos, 1000, usize::MAX);
            // At most 13 steps fit an i128.
            let exponent = i32::try_from(n_steps).unwrap_or(i32::MAX) * 3 - 9;
            return match exponent {
                0 => write!(f, "{number}"),
                _ => write!(f, "{number}e{exponent}"),
            };
        }
        let (number, n_steps) = strip_factor(self.nanos, 1000, SUFFIXES.len() - 1);
        write!(f, "{number}{}", SUFFIXES[n_steps])
    }
}

/// Divides by `factor` as long as nothing remains; says how often.
fn strip_factor(mut number: i128, factor: i128, max: usize) -> (i128, usize) {
    let mut n_steps = 0;
    while n_steps < max && number % factor == 0 {
        number /= factor;
        n_steps += 1;
    }
    (number, n_steps)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Hash for Quantity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nanos.hash(state);
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    /// Accepts texts and numbers.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                Quantity::parse(text.trim()).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
                Ok(Quantity::new(number, Format::DecimalSi))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity { nanos: i128::from(number) * UNIT, format: Format::DecimalSi })
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Quantity, E> {
                Quantity::parse(&number.to_string()).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, canonical: &str) {
        let quantity = Quantity::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(quantity.to_string(), canonical, "{text:?}");
    }

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("+1", "1"),
            ("001", "1"),
            ("1.", "1"),
            (".5", "500m"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("100", "100"),
            ("12000000", "12M"),
            ("1000000000000000000000", "1000E"),
            ("100E", "100E"),
            ("1E", "1E"),
            ("-1.5", "-1500m"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("0.5Mi", "512Ki"),
            ("1000Ki", "1000Ki"),
            ("-2048Ki", "-2Mi"),
            ("0.1Ki", "102400m"),
            ("1025.5Ki", "1050112"),
            ("8Ei", "9223372036854775807"),
            ("9223372036854775807Ki", "9223372036854775807"),
            ("-100Ei", "-9223372036854775807"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("1e+3", "1e3"),
            ("12e2", "1200"),
            ("1e0", "1"),
            ("1500e-3", "1500e-3"),
            ("1e-3", "1e-3"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("1.0000000001", "1000000001n"),
            ("1e-100", "1e-9"),
            ("0.00000000000000000000000000000000000000000000000000001", "1n"),
        ] {
            check(text, canonical);
        }
    }

    #[test]
    fn saturation() {
        let huge = "9".repeat(200);
        for text in [huge.as_str(), "1e2000000000", "1e30", "1e38"] {
            assert_eq!(Quantity::parse(text).unwrap().nanos, MAX, "{text}");
        }
        let max = Quantity::parse("1e38").unwrap();
        assert_eq!(max.saturating_add(max), max);
        assert_eq!(max.value(), i64::MAX);
        assert_eq!(Quantity::parse(&format!("0{huge}Ei")).unwrap().nanos, MAX_BINARY);
    }

    #[test]
    fn refused() {
        use QuantityError::{Format, Number, Suffix};
        for (text, expected) in [
            ("", Format),
            ("-", Format),
            ("Ki", Format),
            ("aoeu", Format),
            (" 1", Format),
            ("1 ", Format),
            ("1_0", Format),
            ("--1", Format),
            ("١", Format),
            ("1.1.1", Number),
            (".", Number),
            ("1i", Suffix),
            ("1e", Suffix),
            ("1e1.5", Format),
            ("1K", Suffix),
            ("1ki", Suffix),
            ("1mi", Suffix),
            ("1-", Suffix),
            ("1e-", Suffix),
            ("1e99999999999", Suffix),
        ] {
            assert_eq!(Quantity::parse(text), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn whole_values_round_away_from_zero() {
        let quantity = |text| Quantity::parse(text).unwrap();
        assert_eq!((quantity("1.1").value(), quantity("1.1").milli_value()), (2, 1100));
        assert_eq!((quantity("-1.1").value(), quantity("1u").milli_value()), (-2, 1));
    }

    #[test]
    fn sums_keep_the_format() {
        let add = |a: &str, b: &str| {
            Quantity::parse(a).unwrap().saturating_add(Quantity::parse(b).unwrap()).to_string()
        };
        assert_eq!(add("1Gi", "1G"), "2073741824");
        assert_eq!(add("1Gi", "1024Mi"), "2Gi");
        assert_eq!(add("0", "1Gi"), "1Gi");
        assert_eq!(add("500m", "0.5"), "1");
    }

    #[test]
    fn json_texts_and_numbers() {
        for json in ["\"1.5\"", "1.5", "\" 1500m \""] {
            let quantity: Quantity = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&quantity).unwrap(), "\"1500m\"");
        }
        assert_eq!(serde_json::from_str::<Quantity>("3").unwrap().value(), 3);
        assert!(serde_json::from_str::<Quantity>("true").is_err());
    }

    fn amounts() -> impl Strategy<Value = String> {
        let number = prop_oneof!["[0-9]{1,15}", "[0-9]{0,8}\\.[0-9]{1,12}"];
        let suffix = "|n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[0-9]|e-[0-9]|E1[0-2]";
        ("[+-]?", number, suffix).prop_map(|(sign, number, suffix)| sign + &number + &suffix)
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_stable_and_equal(text in amounts()) {
            let quantity = Quantity::parse(&text).unwrap();
            let canonical = quantity.to_string();
            let again = Quantity::parse(&canonical).unwrap();
            prop_assert_eq!(again, quantity);
            prop_assert_eq!(again.to_string(), canonical.clone());
            prop_assert!(!canonical.contains('.'));
        }

        #[test]
        fn order_is_that_of_numbers(a in -1_000_000_i64..1_000_000, b in -1_000_000_i64..1_000_000) {
            let milli = |n: i64| Quantity::parse(&format!("{n}m")).unwrap();
            prop_assert_eq!(milli(a).cmp(&milli(b)), a.cmp(&b));
            prop_assert_eq!(milli(a).saturating_add(milli(b)).milli_value(), a + b);
            prop_assert_eq!(milli(a).saturating_sub(milli(b)).milli_value(), a - b);
        }

        #[test]
        fn no_text_panics(text in "[-+0-9.eEinumkKMGTP]{0,40}|\\PC{0,20}") {
            let _ = Quantity::parse(&text).map(|quantity| quantity.to_string());
        }
    }
}
