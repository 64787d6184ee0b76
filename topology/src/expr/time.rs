//! Text formats of timestamps and durations, as in CEL: RFC 3339 with a time zone, and durations such as `1h30m`, `300s`
//! or `1.5h`.

use jiff::{SignedDuration, Timestamp};

/// Microseconds per second.
pub(super) const MICROS_PER_SECOND: i64 = 1_000_000;
/// Microseconds per day.
pub(super) const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// Parses an RFC 3339 text to microseconds since 1970.
pub(super) fn parse_timestamp(text: &str) -> Option<i64> {
    // jiff also accepts a space instead of `T` and lower case, which CEL does not.
    if text.as_bytes().get(10) != Some(&b'T') || text.contains(['[', ' ']) {
        return None;
    }
    text.parse::<Timestamp>().ok().map(Timestamp::as_microsecond)
}

/// Formats as RFC 3339 in UTC without trailing zeros of the fraction; `None` for infinity.
pub(super) fn write_timestamp(micros: i64) -> Option<String> {
    Timestamp::from_microsecond(micros)
        .ok()
        .map(|instant| instant.to_string())
}

/// Parses a duration to microseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let legal = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'h' | 'm' | 's' | 'u' | 'n' | 'µ');
    if !text.chars().all(legal) {
        return None;
    }
    let duration = text.parse::<SignedDuration>().ok()?;
    i64::try_from(duration.as_micros()).ok()
}
