//! Amounts of resources as the runtime and the downward API want them: whole numbers.

use insula_api::quantity::Quantity as Amount;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

fn amount(quantity: &Quantity) -> Option<Amount> {
    // The API server admits no text that is not one.
    Amount::parse(&quantity.0).ok()
}

/// A quantity in thousandths, rounded up.
pub(crate) fn millis(quantity: &Quantity) -> Option<i64> {
    amount(quantity).map(|it| it.milli_value())
}

/// A quantity as a whole number, rounded up.
pub(crate) fn whole(quantity: &Quantity) -> Option<i64> {
    amount(quantity).map(|it| it.value())
}

/// `value / divisor`, rounded up. `None` for a divisor that is not positive.
pub(crate) fn divided(value: &Quantity, divisor: &Quantity) -> Option<i64> {
    let (value, divisor) = (amount(value)?, amount(divisor)?);
    if divisor.milli_value() % 1000 == 0 {
        // Whole divisors, such as 1Mi, keep amounts beyond what thousandths can hold exact.
        return div_ceil(value.value(), divisor.value());
    }
    div_ceil(value.milli_value(), divisor.milli_value())
}

fn div_ceil(value: i64, divisor: i64) -> Option<i64> {
    (divisor > 0).then(|| {
        let quotient = value / divisor;
        if value % divisor > 0 { quotient + 1 } else { quotient }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_rounds_up() {
        let of = |text: &str| Quantity(text.to_owned());
        assert_eq!(divided(&of("250m"), &of("1")), Some(1));
        assert_eq!(divided(&of("250m"), &of("1m")), Some(250));
        assert_eq!(divided(&of("64Mi"), &of("1Mi")), Some(64));
        assert_eq!(divided(&of("4Pi"), &of("1Gi")), Some(4 << 20));
        assert_eq!(divided(&of("1"), &of("0")), None);
        assert_eq!(divided(&of("x"), &of("1")), None);
        assert_eq!(whole(&of("1500m")), Some(2));
        assert_eq!(millis(&of("100u")), Some(1));
    }
}
