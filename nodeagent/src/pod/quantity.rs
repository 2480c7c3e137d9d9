//! Amounts of resources as the runtime and the downward API want them: whole numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity in thousandths, rounded up. `None` for a text that is no quantity or beyond all
/// machines; the API server admits none such.
pub(crate) fn millis(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let end = digits.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || whole.len() > 24 || fraction.contains('.') {
        return None;
    }
    // numerator / 10^scale, times the suffix.
    let fraction = &fraction[..fraction.len().min(9)];
    let mut numerator: i128 = format!("{whole}{fraction}").parse().ok()?;
    let mut scale = i32::try_from(fraction.len()).ok()?;
    match suffix {
        "" => {}
        "n" => scale += 9,
        "u" => scale += 6,
        "m" => scale += 3,
        "k" => scale -= 3,
        "M" => scale -= 6,
        "G" => scale -= 9,
        "T" => scale -= 12,
        "P" => scale -= 15,
        "E" => scale -= 18,
        "Ki" => numerator = numerator.checked_shl(10)?,
        "Mi" => numerator = numerator.checked_shl(20)?,
        "Gi" => numerator = numerator.checked_shl(30)?,
        "Ti" => numerator = numerator.checked_shl(40)?,
        "Pi" => numerator = numerator.checked_shl(50)?,
        "Ei" => numerator = numerator.checked_shl(60)?,
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            scale = scale.checked_sub(exponent)?;
        }
    }
    let shift = 3 - scale;
    let power = 10_i128.checked_pow(shift.unsigned_abs())?;
    let magnitude = if shift < 0 {
        numerator.checked_add(power - 1)? / power
    } else {
        numerator.checked_mul(power)?
    };
    Some(sign * magnitude)
}

/// A quantity as a whole number, rounded up.
pub(crate) fn whole(quantity: &Quantity) -> Option<i64> {
    i64::try_from(div_ceil(millis(quantity)?, 1000)).ok()
}

/// `value / divisor`, rounded up.
pub(crate) fn divided(value: &Quantity, divisor: &Quantity) -> Option<i128> {
    let divisor = millis(divisor)?;
    (divisor > 0).then_some(())?;
    Some(div_ceil(millis(value)?, divisor))
}

fn div_ceil(value: i128, divisor: i128) -> i128 {
    let quotient = value / divisor;
    if value % divisor > 0 { quotient + 1 } else { quotient }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<i128>) {
        assert_eq!(millis(&Quantity(text.to_owned())), expected, "{text:?}");
    }

    #[test]
    fn texts() {
        check("1", Some(1000));
        check("250m", Some(250));
        check("0.1", Some(100));
        check("1.5Gi", Some(1_610_612_736_000));
        check("64Mi", Some(67_108_864_000));
        check("128M", Some(128_000_000_000));
        check("1e3", Some(1_000_000));
        check("12E", Some(12_000_000_000_000_000_000_000));
        check("1n", Some(1));
        check("-1500u", Some(-2));
        check(".5", Some(500));
        for bad in ["", "m", "1x", "1.2.3", "--1", "1ki", "99999999999999999999999999"] {
            check(bad, None);
        }
    }

    #[test]
    fn division_rounds_up() {
        let of = |text: &str| Quantity(text.to_owned());
        assert_eq!(divided(&of("250m"), &of("1")), Some(1));
        assert_eq!(divided(&of("250m"), &of("1m")), Some(250));
        assert_eq!(divided(&of("64Mi"), &of("1Mi")), Some(64));
        assert_eq!(divided(&of("1"), &of("0")), None);
        assert_eq!(whole(&of("1500m")), Some(2));
    }
}
