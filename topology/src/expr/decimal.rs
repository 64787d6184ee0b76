//! Exact comparison of decimal numbers given as text, such as `-12.50`, `Infinity` or `NaN`.

use std::cmp::Ordering;

/// Compares two numbers by value: `1.0` is equal to `1`. `None` if one of them is not a number; `NaN` has no order.
pub(super) fn compare(a: &str, b: &str) -> Option<Ordering> {
    let (a, b) = (Number::parse(a)?, Number::parse(b)?);
    let by_size = a.size().cmp(&b.size());
    Some(match (a.is_negative(), b.is_negative()) {
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
        (false, false) => by_size,
        (true, true) => by_size.reverse(),
    })
}

/// Compares a number with a double, which has the value of its shortest decimal form.
pub(super) fn compare_double(a: &str, b: f64) -> Option<Ordering> {
    if b.is_infinite() {
        return compare(a, if b > 0.0 { "Infinity" } else { "-Infinity" });
    }
    compare(a, &b.to_string())
}

struct Number<'t> {
    has_sign: bool,
    is_infinite: bool,
    /// Digits before the point, without leading zeros.
    whole: &'t str,
    /// Digits after the point, without trailing zeros.
    fraction: &'t str,
}

impl<'t> Number<'t> {
    fn parse(text: &'t str) -> Option<Self> {
        let (has_sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let is_infinite = digits == "Infinity";
        let (whole, fraction) = match digits {
            "Infinity" => ("", ""),
            _ => digits.split_once('.').unwrap_or((digits, "")),
        };
        let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let is_number = is_infinite || !(whole.is_empty() && fraction.is_empty());
        (is_number && are_digits(whole) && are_digits(fraction)).then(|| Number {
            has_sign,
            is_infinite,
            whole: whole.trim_start_matches('0'),
            fraction: fraction.trim_end_matches('0'),
        })
    }

    /// Whether it is less than zero.
    fn is_negative(&self) -> bool {
        self.has_sign && (self.is_infinite || !self.whole.is_empty() || !self.fraction.is_empty())
    }

    /// Orders numbers by their absolute value: more digits before the point are a greater number.
    fn size(&self) -> (bool, usize, &str, &str) {
        (self.is_infinite, self.whole.len(), self.whole, self.fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_by_value() {
        let ordered = [
            "-Infinity",
            "-10.5",
            "-10.25",
            "-9",
            "-0.1",
            "0",
            "0.05",
            "0.5",
            "1",
            "9.99",
            "10",
            "10.01",
            "100",
            "Infinity",
        ];
        for (at, a) in ordered.iter().enumerate() {
            for (other, b) in ordered.iter().enumerate() {
                assert_eq!(compare(a, b), Some(at.cmp(&other)), "{a} {b}");
            }
        }
        for (a, b) in [("1.0", "1"), ("-0.00", "0"), ("007.50", "7.5"), ("12.", "12")] {
            assert_eq!(compare(a, b), Some(Ordering::Equal), "{a} {b}");
        }
        for text in ["NaN", "", ".", "1e3", "x", "-"] {
            assert_eq!(compare(text, "1"), None, "{text}");
        }
        assert_eq!(compare_double("10.10", 10.1), Some(Ordering::Equal));
        assert_eq!(compare_double("1", 1e300), Some(Ordering::Less));
        assert_eq!(compare_double("1", f64::NEG_INFINITY), Some(Ordering::Greater));
        assert_eq!(compare_double("1", f64::NAN), None);
    }
}
