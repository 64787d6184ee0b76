//! Text format of dates and timestamps, for the full range of PostgreSQL, which exceeds the years of RFC 3339.
//!
//! Every day of an `i32` and every microsecond of an `i64` has exactly one text, from which the value can be parsed.
//! The calendar is the proleptic Gregorian calendar with astronomical years (1 BC is year 0). The maximum and minimum
//! values are `infinity` and `-infinity`.

use crate::json::write_padded;

/// Microseconds per day.
pub const DAY_MICROS: i64 = 86_400_000_000;

/// Days since 1970-01-01 of a civil date. The day is not validated: day 32 belongs to the next month.
///
/// The algorithm counts years from March, so that the leap day is the last day of a year (Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms").
pub fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let month = i64::from(month);
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month (1 to 12) and day (1 to 31) of a number of days since 1970-01-01.
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    // Both are 31 or less by construction.
    (
        year,
        u32::try_from(month).unwrap_or_default(),
        u32::try_from(day).unwrap_or_default(),
    )
}

/// Number of days in a month.
pub fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Writes a date, without quotes: `2024-02-29`, `+012024-02-29`, `-000043-03-15`, `infinity`, `-infinity`.
pub fn write_date(out: &mut Vec<u8>, days: i32) {
    match days {
        i32::MAX => out.extend_from_slice(b"infinity"),
        i32::MIN => out.extend_from_slice(b"-infinity"),
        _ => write_civil(out, i64::from(days)),
    }
}

fn write_civil(out: &mut Vec<u8>, days: i64) {
    let (year, month, day) = civil_from_days(days);
    if (1..=9999).contains(&year) {
        write_padded(out, year.unsigned_abs(), 4);
    } else {
        out.push(if year < 0 { b'-' } else { b'+' });
        write_padded(out, year.unsigned_abs(), 6);
    }
    out.push(b'-');
    write_padded(out, u64::from(month), 2);
    out.push(b'-');
    write_padded(out, u64::from(day), 2);
}

/// Writes microseconds since midnight, without quotes: `17:05:09`, `17:05:09.25`. Hours can exceed 23.
pub fn write_time(out: &mut Vec<u8>, micros: i64) {
    if micros < 0 {
        out.push(b'-');
    }
    let micros = micros.unsigned_abs();
    let seconds = micros / 1_000_000;
    write_padded(out, seconds / 3600, 2);
    out.push(b':');
    write_padded(out, seconds / 60 % 60, 2);
    out.push(b':');
    write_padded(out, seconds % 60, 2);
    let fraction = micros % 1_000_000;
    if fraction != 0 {
        out.push(b'.');
        write_padded(out, fraction, 6);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

/// Writes microseconds since 1970-01-01T00:00:00, without quotes: `2024-02-29T17:05:09.25`, with `Z` when `utc`;
/// `infinity` and `-infinity` for the maximum and minimum.
pub fn write_timestamp(out: &mut Vec<u8>, micros: i64, utc: bool) {
    match micros {
        i64::MAX => out.extend_from_slice(b"infinity"),
        i64::MIN => out.extend_from_slice(b"-infinity"),
        _ => {
            write_civil(out, micros.div_euclid(DAY_MICROS));
            out.push(b'T');
            write_time(out, micros.rem_euclid(DAY_MICROS));
            if utc {
                out.push(b'Z');
            }
        }
    }
}

/// Parses the output of [`write_date`]; `None` for anything else.
pub fn parse_date(text: &str) -> Option<i32> {
    match text {
        "infinity" => return Some(i32::MAX),
        "-infinity" => return Some(i32::MIN),
        _ => {}
    }
    let (days, rest) = civil(text.as_bytes())?;
    let days = i32::try_from(days).ok()?;
    (rest.is_empty() && days != i32::MAX && days != i32::MIN).then_some(days)
}

/// Parses a time of day, `hh:mm:ss[.f…]`, to microseconds since midnight. At most six fractional digits are accepted.
pub fn parse_time(text: &str) -> Option<i64> {
    let (micros, rest) = clock(text.as_bytes())?;
    rest.is_empty().then_some(micros)
}

/// Parses a timestamp, `YYYY-MM-DDThh:mm:ss[.f…]`, to microseconds since 1970. With `zone`, the text must end with `Z`
/// or `±hh:mm` (RFC 3339); without, it must not. A space instead of the `T` is accepted.
pub fn parse_timestamp(text: &str, zone: bool) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (days, rest) = civil(text.as_bytes())?;
    let (b'T' | b't' | b' ', rest) = rest.split_first().map(|(b, rest)| (*b, rest))? else {
        return None;
    };
    let (micros, rest) = clock(rest)?;
    let offset_minutes = match (zone, rest) {
        (false, []) | (true, [b'Z' | b'z']) => 0,
        (true, [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2]) => {
            let (hours, minutes) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let minutes = hours * 60 + minutes;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    let total =
        i128::from(days) * i128::from(DAY_MICROS) + i128::from(micros) - i128::from(offset_minutes) * 60_000_000;
    i64::try_from(total)
        .ok()
        .filter(|total| *total != i64::MAX && *total != i64::MIN)
}

fn digits(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() || bytes.len() > 9 {
        return None;
    }
    bytes
        .iter()
        .try_fold(0, |sum, b| b.is_ascii_digit().then(|| sum * 10 + i64::from(b - b'0')))
}

/// Parses a leading `[±]Y…-MM-DD`; returns days and the rest.
fn civil(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (sign, unsigned) = match bytes.split_first()? {
        (b'+', rest) => (Some(1), rest),
        (b'-', rest) => (Some(-1), rest),
        _ => (None, bytes),
    };
    let length = unsigned.iter().position(|b| *b == b'-')?;
    // ISO 8601: years have four digits without a sign, or at least six digits with a sign.
    if (sign.is_none() && length != 4) || (sign.is_some() && length < 6) {
        return None;
    }
    let year = digits(unsigned.get(..length)?)? * sign.unwrap_or(1);
    let [b'-', m1, m2, b'-', d1, d2, rest @ ..] = unsigned.get(length..)? else {
        return None;
    };
    let month = u32::try_from(digits(&[*m1, *m2])?).ok()?;
    let day = u32::try_from(digits(&[*d1, *d2])?).ok()?;
    if !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    Some((days_from_civil(year, month, day), rest))
}

/// Parses a leading `hh:mm:ss[.f…]`; returns microseconds and the rest. 24:00:00 and second 60 are rejected.
fn clock(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let [h1, h2, b':', m1, m2, b':', s1, s2, rest @ ..] = bytes else {
        return None;
    };
    let (hour, minute, second) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?, digits(&[*s1, *s2])?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = hour * 3600 + minute * 60 + second;
    let Some(fraction) = rest.strip_prefix(b".") else {
        return Some((seconds * 1_000_000, rest));
    };
    let length = fraction
        .iter()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(fraction.len());
    if length == 0 || length > 6 {
        return None;
    }
    let micros = (length..6).fold(digits(fraction.get(..length)?)?, |value, _| value * 10);
    Some((seconds * 1_000_000 + micros, fraction.get(length..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn date(days: i32) -> String {
        let mut out = Vec::new();
        write_date(&mut out, days);
        String::from_utf8(out).unwrap()
    }

    fn timestamp(micros: i64, utc: bool) -> String {
        let mut out = Vec::new();
        write_timestamp(&mut out, micros, utc);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn every_day_reads_back(days: i32) {
            prop_assert_eq!(parse_date(&date(days)), Some(days));
        }

        #[test]
        fn every_microsecond_reads_back(micros: i64, utc: bool) {
            prop_assert_eq!(parse_timestamp(&timestamp(micros, utc), utc), Some(micros));
        }

        #[test]
        fn jiff_agrees_on_the_years_it_knows(micros in -62_135_596_800_000_000i64..253_402_207_200_000_000) {
            let expected = jiff::Timestamp::from_microsecond(micros).unwrap();
            let text = timestamp(micros, true);
            prop_assert_eq!(text.parse::<jiff::Timestamp>().unwrap(), expected);
            prop_assert_eq!(text, expected.to_string());
        }

        #[test]
        fn an_offset_is_taken_off(micros in -1_000_000_000_000_000i64..4_000_000_000_000_000, hours in 0i64..24, minutes in 0i64..60) {
            let local = timestamp(micros, false);
            let offset = (hours * 60 + minutes) * 60_000_000;
            prop_assert_eq!(parse_timestamp(&format!("{local}+{hours:02}:{minutes:02}"), true), Some(micros - offset));
            prop_assert_eq!(parse_timestamp(&format!("{local}-{hours:02}:{minutes:02}"), true), Some(micros + offset));
        }

        #[test]
        fn garbage_is_none(text in "[-+0-9T:.Zaé ]{0,32}") {
            // Accepted texts are canonical, except for the variants that RFC 3339 allows.
            if let Some(micros) = parse_timestamp(&text, true) {
                prop_assert_eq!(parse_timestamp(&timestamp(micros, true), true), Some(micros));
            }
            if let Some(days) = parse_date(&text) {
                prop_assert_eq!(parse_date(&date(days)), Some(days));
            }
        }
    }

    #[test]
    fn text_is_as_documented() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(19_782), "2024-02-29");
        assert_eq!(date(-719_162), "0001-01-01");
        assert_eq!(date(-719_163), "+000000-12-31");
        assert_eq!(date(2_932_896), "9999-12-31");
        assert_eq!(date(2_932_897), "+010000-01-01");
        assert_eq!(date(i32::MAX - 1), "+5881580-07-10");
        assert_eq!(date(i32::MAX), "infinity");
        assert_eq!(timestamp(1_732_390_000_123_450, true), "2024-11-23T19:26:40.12345Z");
        assert_eq!(timestamp(-1, false), "1969-12-31T23:59:59.999999");
        assert_eq!(timestamp(0, true), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(i64::MIN, true), "-infinity");
        assert_eq!(parse_time("23:59:59.5"), Some(86_399_500_000));
        assert_eq!(
            parse_timestamp("2024-02-29 00:00:00Z", true),
            parse_timestamp("2024-02-29T00:00:00z", true)
        );
        for wrong in [
            "2023-02-29",
            "2024-13-01",
            "2024-00-01",
            "24-01-01",
            "2024-1-1",
            "",
            "-",
            "+2024-01-01",
            "2024-01-01x",
        ] {
            assert_eq!(parse_date(wrong), None, "{wrong}");
        }
        for wrong in [
            "24:00:00",
            "00:60:00",
            "00:00:60",
            "0:00:00",
            "00:00:00.",
            "00:00:00.1234567",
        ] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
        assert_eq!(parse_timestamp("2024-01-01T00:00:00", true), None);
        assert_eq!(parse_timestamp("2024-01-01T00:00:00Z", false), None);
    }
}
