//! The text forms of PostgreSQL types that have no equivalent in Avro, as PostgreSQL prints them.

use crate::time;

/// Whether a text is a value of a PostgreSQL type, given by its catalog name. Types without a rule accept any text.
pub(crate) fn is_value(pg_type: &str, text: &str) -> bool {
    match pg_type {
        "numeric" => is_numeric(text),
        "time" => is_time(text),
        "timetz" => is_time_with_zone(text),
        "interval" => is_interval(text),
        _ => true,
    }
}

/// An example of a type with a rule, for errors.
pub(crate) fn example(pg_type: &str) -> Option<&'static str> {
    Some(match pg_type {
        "numeric" => "12.50",
        "time" => "13:45:00",
        "timetz" => "13:45:00+02",
        "interval" => "1 day 02:03:04",
        _ => return None,
    })
}

/// Digits with an optional fraction, without an exponent.
fn is_numeric(text: &str) -> bool {
    if matches!(text, "NaN" | "Infinity" | "-Infinity") {
        return true;
    }
    let number = text.strip_prefix('-').unwrap_or(text);
    match number.split_once('.') {
        Some((whole, fraction)) => is_digits(whole) && is_digits(fraction),
        None => is_digits(number),
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_time(text: &str) -> bool {
    text == "24:00:00" || time::parse_time(text).is_some()
}

/// A time, and an offset of hours, optionally with minutes and seconds.
fn is_time_with_zone(text: &str) -> bool {
    let Some(at) = text.rfind(['+', '-']) else { return false };
    let (time, offset) = text.split_at(at);
    let mut parts = offset.get(1..).unwrap_or_default().split(':');
    let is_part = |part: &str| part.len() == 2 && is_digits(part);
    is_time(time) && parts.clone().count() <= 3 && parts.all(is_part)
}

/// The style `postgres`: `1 year 2 mons -3 days 04:05:06.789`. A time may have more than 24 hours.
fn is_interval(text: &str) -> bool {
    let mut words = text.split(' ').peekable();
    if words.peek().is_none_or(|first| first.is_empty()) {
        return false;
    }
    while let Some(word) = words.next() {
        let unsigned = word.strip_prefix(['-', '+']).unwrap_or(word);
        if unsigned.contains(':') {
            return words.next().is_none() && is_duration(unsigned);
        }
        let unit = words.next().unwrap_or_default();
        if !is_digits(unsigned) || !matches!(unit, "year" | "years" | "mon" | "mons" | "day" | "days") {
            return false;
        }
    }
    true
}

fn is_duration(text: &str) -> bool {
    let Some((hours, rest)) = text.split_once(':') else {
        return false;
    };
    // The hours are not limited, so they are replaced by hours of a day.
    hours.len() >= 2 && is_digits(hours) && time::parse_time(&format!("00:{rest}")).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_form_that_postgresql_prints() {
        let accepted = [
            ("numeric", "0"),
            ("numeric", "-12.50"),
            ("numeric", "NaN"),
            ("numeric", "-Infinity"),
            ("time", "23:59:59.123456"),
            ("time", "24:00:00"),
            ("timetz", "13:45:00+02"),
            ("timetz", "13:45:00.5-03:30"),
            ("interval", "00:00:00"),
            ("interval", "1 year 2 mons -3 days +04:05:06.789"),
            ("interval", "-1 days"),
            ("interval", "123456:00:01"),
            ("inet", "anything"),
        ];
        for (ty, text) in accepted {
            assert!(is_value(ty, text), "{ty} {text:?}");
        }
        let rejected = [
            ("numeric", ""),
            ("numeric", "1,50"),
            ("numeric", "1e3"),
            ("numeric", "12."),
            ("numeric", "+1"),
            ("time", "25:00:00"),
            ("time", "noon"),
            ("timetz", "13:45:00"),
            ("timetz", "13:45:00+2"),
            ("interval", ""),
            ("interval", "tomorrow"),
            ("interval", "1 fortnight"),
            ("interval", "1 day 02:61:00"),
            ("interval", "02:00:00 1 day"),
        ];
        for (ty, text) in rejected {
            assert!(!is_value(ty, text), "{ty} {text:?}");
        }
        for ty in ["numeric", "time", "timetz", "interval"] {
            assert!(is_value(ty, example(ty).unwrap()), "{ty}");
        }
    }
}
