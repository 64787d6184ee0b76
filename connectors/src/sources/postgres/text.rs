//! Parsers from PostgreSQL's text output of values to Avro values.
//!
//! The connections request one canonical output (`DateStyle ISO`, `TimeZone UTC`, `bytea_output hex`,
//! `extra_float_digits`; see `server`). Parsers return `None` for any other format and for values outside the range of
//! the Avro type; values are never rounded. They support infinity and years before 1 and after 9999, do not allocate
//! and do not panic.

use schemas::time;

/// Days from 1970-01-01, as Avro's `date`: `2024-02-29`, `0044-03-15 BC`, `infinity`.
///
/// `infinity` and `-infinity` are represented by the maximum and the minimum (docs/reference/formats.md).
pub fn date(text: &[u8]) -> Option<i32> {
    match text {
        b"infinity" => return Some(i32::MAX),
        b"-infinity" => return Some(i32::MIN),
        _ => {}
    }
    let (text, before_christ) = strip_era(text);
    let mut reader = Digits { bytes: text };
    let days = reader.date(before_christ)?;
    if !reader.bytes.is_empty() {
        return None;
    }
    i32::try_from(days).ok()
}

/// Microseconds from 1970-01-01 00:00, as Avro's `local-timestamp-micros`: `2024-02-29 12:34:56.789`.
pub fn timestamp(text: &[u8]) -> Option<i64> {
    instant(text, false)
}

/// Microseconds from 1970-01-01 00:00 UTC, as Avro's `timestamp-micros`: `2024-02-29 12:34:56.789+00`.
pub fn timestamptz(text: &[u8]) -> Option<i64> {
    instant(text, true)
}

fn instant(text: &[u8], zoned: bool) -> Option<i64> {
    match text {
        b"infinity" => return Some(i64::MAX),
        b"-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (text, before_christ) = strip_era(text);
    let mut reader = Digits { bytes: text };
    let days = reader.date(before_christ)?;
    reader.skip(b' ')?;
    let micros = reader.time()?;
    let zone = if zoned { reader.zone()? } else { 0 };
    if !reader.bytes.is_empty() {
        return None;
    }
    days.checked_mul(86_400_000_000)?.checked_add(micros)?.checked_sub(zone)
}

fn strip_era(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

struct Digits<'a> {
    bytes: &'a [u8],
}

impl Digits<'_> {
    fn date(&mut self, before_christ: bool) -> Option<i64> {
        let (year, digits) = self.number(7)?;
        if digits < 4 || year == 0 {
            return None;
        }
        self.skip(b'-')?;
        let month = self.two(12)?;
        self.skip(b'-')?;
        let day = self.two(31)?;
        let year = if before_christ { 1 - year } else { year };
        let (month, day) = (u32::try_from(month).ok()?, u32::try_from(day).ok()?);
        if month == 0 || day == 0 || day > time::days_in_month(year, month) {
            return None;
        }
        Some(time::days_from_civil(year, month, day))
    }

    /// `12:34:56` with up to six fractional digits, in µs. PostgreSQL also allows 24:00:00.
    fn time(&mut self) -> Option<i64> {
        let hours = self.two(24)?;
        self.skip(b':')?;
        let minutes = self.two(59)?;
        self.skip(b':')?;
        let seconds = self.two(60)?;
        let mut micros = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000;
        if self.skip(b'.').is_some() {
            let (fraction, digits) = self.number(6)?;
            micros += fraction * 10_i64.pow(6 - digits);
        }
        Some(micros)
    }

    /// `+00`, `-03:30`, `+05:45:10`, in µs east of UTC.
    fn zone(&mut self) -> Option<i64> {
        let sign = match self.bytes.split_first()? {
            (b'+', rest) => {
                self.bytes = rest;
                1
            }
            (b'-', rest) => {
                self.bytes = rest;
                -1
            }
            _ => return None,
        };
        let mut seconds = self.two(24)? * 3600;
        if self.skip(b':').is_some() {
            seconds += self.two(59)? * 60;
        }
        if self.skip(b':').is_some() {
            seconds += self.two(59)?;
        }
        Some(sign * seconds * 1_000_000)
    }

    fn two(&mut self, max: i64) -> Option<i64> {
        let (digits, rest) = self.bytes.split_first_chunk::<2>()?;
        let [tens, ones] = digits.map(|b| b.wrapping_sub(b'0'));
        if tens > 9 || ones > 9 {
            return None;
        }
        self.bytes = rest;
        let value = i64::from(tens) * 10 + i64::from(ones);
        (value <= max).then_some(value)
    }

    /// One to `digits_max` digits: the value and the number of digits.
    fn number(&mut self, digits_max: usize) -> Option<(i64, u32)> {
        let count = self.bytes.iter().take_while(|b| b.is_ascii_digit()).count();
        if count == 0 || count > digits_max {
            return None;
        }
        let (digits, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        let value = digits.iter().fold(0, |sum, b| sum * 10 + i64::from(b - b'0'));
        Some((value, u32::try_from(count).ok()?))
    }

    fn skip(&mut self, byte: u8) -> Option<()> {
        self.bytes = self.bytes.strip_prefix(&[byte])?;
        Some(())
    }
}

/// `t` or `f`.
pub fn bool(text: &[u8]) -> Option<bool> {
    match text {
        b"t" => Some(true),
        b"f" => Some(false),
        _ => None,
    }
}

/// An integer; `None` if it exceeds 64 bits.
pub fn i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    // Negative numbers are accumulated, because their range includes `i64::MIN`.
    let value = digits.iter().try_fold(0_i64, |sum, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            None
        } else {
            sum.checked_mul(10)?.checked_sub(i64::from(digit))
        }
    })?;
    if negative { Some(value) } else { value.checked_neg() }
}

/// An integer; `None` if it exceeds 32 bits.
pub fn i32(text: &[u8]) -> Option<i32> {
    i32::try_from(i64(text)?).ok()
}

/// A double: `1.5`, `1e-300`, `NaN`, `Infinity`, `-Infinity`.
pub fn f64(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A float: as [`f64`].
pub fn f32(text: &[u8]) -> Option<f32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Appends the bytes of a `bytea` (`\x48656c6c6f`) to `out`; returns whether it was valid. If not, some bytes may have
/// been appended.
pub fn bytea(text: &[u8], out: &mut Vec<u8>) -> bool {
    let Some(hex) = text.strip_prefix(b"\\x") else {
        return false;
    };
    if hex.len() % 2 != 0 {
        return false;
    }
    out.reserve(hex.len() / 2);
    hex.chunks_exact(2).all(|pair| {
        let digits = (hex_digit(pair.first()), hex_digit(pair.last()));
        let (Some(high), Some(low)) = digits else { return false };
        out.push(high << 4 | low);
        true
    })
}

fn hex_digit(byte: Option<&u8>) -> Option<u8> {
    match byte? {
        b @ b'0'..=b'9' => Some(b - b'0'),
        b @ b'a'..=b'f' => Some(b - b'a' + 10),
        b @ b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dates_of_all_eras() {
        let cases = [
            ("1970-01-01", 0),
            ("1969-12-31", -1),
            ("2000-02-29", 11_016),
            ("2024-02-29", 19_782),
            ("9999-12-31", 2_932_896),
            ("10000-01-01", 2_932_897),
            ("5874897-12-31", 2_145_042_905),
            ("0001-01-01", -719_162),
            ("0001-12-31 BC", -719_163),
            ("0001-01-01 BC", -719_528),
            ("4713-11-24 BC", -2_440_222),
            ("infinity", i32::MAX),
            ("-infinity", i32::MIN),
        ];
        for (text, days) in cases {
            assert_eq!(date(text.as_bytes()), Some(days), "{text}");
        }
        for bad in [
            "",
            "1970-1-1",
            "1970-13-01",
            "1970-00-01",
            "2023-02-29",
            "1900-02-29",
            "01/02/2020",
            "0000-01-01",
            "1970-01-01 ",
            "1970-01-01 BC ",
            "infinit",
            "999-01-01",
            "99999999-01-01",
        ] {
            assert_eq!(date(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn instants_with_fractions_and_zones() {
        let cases = [
            ("1970-01-01 00:00:00", 0),
            ("1970-01-01 00:00:00.000001", 1),
            ("1970-01-01 00:00:01.5", 1_500_000),
            ("1969-12-31 23:59:59.999999", -1),
            ("2024-02-29 12:34:56.789", 1_709_210_096_789_000),
            ("0044-03-15 10:00:00 BC", -63_517_788_000_000_000),
            ("infinity", i64::MAX),
            ("-infinity", i64::MIN),
        ];
        for (text, micros) in cases {
            assert_eq!(timestamp(text.as_bytes()), Some(micros), "{text}");
        }
        assert_eq!(timestamptz(b"1970-01-01 00:00:00+00"), Some(0));
        assert_eq!(timestamptz(b"1970-01-01 00:00:00-03:30"), Some(12_600_000_000));
        assert_eq!(timestamptz(b"1970-01-01 05:45:10+05:45:10"), Some(0));
        assert_eq!(
            timestamptz(b"0001-01-01 00:00:00+00 BC"),
            Some(-719_528 * 86_400_000_000)
        );
        // The last years of PostgreSQL's range exceed 64 bits of microseconds since 1970.
        assert_eq!(timestamp(b"294276-12-31 23:59:59"), None);
        for bad in [
            "1970-01-01",
            "1970-01-01 00:00",
            "1970-01-01T00:00:00",
            "1970-01-01 00:00:00+00",
            "1970-01-01 25:00:00",
            "1970-01-01 00:00:00.1234567",
            "1970-01-01 00:00:00.",
        ] {
            assert_eq!(timestamp(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(timestamptz(b"1970-01-01 00:00:00"), None);
    }

    #[test]
    fn numbers_and_bytes() {
        assert_eq!((bool(b"t"), bool(b"f"), bool(b"true")), (Some(true), Some(false), None));
        for value in [0, 1, -1, i64::MAX, i64::MIN] {
            assert_eq!(i64(value.to_string().as_bytes()), Some(value));
        }
        for bad in [
            "",
            "-",
            "+1",
            "9223372036854775808",
            "-9223372036854775809",
            "1.0",
            " 1",
            "00000000000000000001",
        ] {
            assert_eq!(i64(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!((i32(b"-2147483648"), i32(b"2147483648")), (Some(i32::MIN), None));
        assert_eq!(f64(b"-Infinity"), Some(f64::NEG_INFINITY));
        assert!(f64(b"NaN").is_some_and(f64::is_nan));
        assert_eq!(
            (f64(b"5e-324"), f32(b"0.1"), f64(b"x")),
            (Some(5e-324), Some(0.1), None)
        );
        let mut out = vec![1];
        assert!(bytea(b"\\x00ffAb", &mut out));
        assert_eq!(out, [1, 0, 255, 0xab]);
        for bad in ["", "\\x0", "\\x0g", "00", "\\000"] {
            assert!(!bytea(bad.as_bytes(), &mut out), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn integers_round_trip(value: i64) {
            prop_assert_eq!(i64(value.to_string().as_bytes()), Some(value));
        }

        #[test]
        fn arbitrary_text_does_not_panic(text: Vec<u8>, digits in "[0-9:+. -]{0,40}( BC)?") {
            for text in [&text[..], digits.as_bytes()] {
                let _ = (date(text), timestamp(text), timestamptz(text), i64(text), f64(text), bytea(text, &mut Vec::new()));
            }
        }
    }
}
