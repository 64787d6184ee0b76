//! Instants and spans of time, as texts.
//!
//! Guarantees: the texts are CEL's: RFC 3339 with a zone, and durations such as `1h30m`, `300s`, `1.5h`.
//! Never: asks what time it is.

use jiff::{SignedDuration, Timestamp};

/// Microseconds in a second.
pub(super) const MICROS_PER_SECOND: i64 = 1_000_000;
/// Microseconds in a day.
pub(super) const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// Microseconds since 1970 of an RFC 3339 text.
pub(super) fn parse_timestamp(text: &str) -> Option<i64> {
    // jiff also reads a space for the `T` and lower case; RFC 3339 as CEL has it does not.
    if text.as_bytes().get(10) != Some(&b'T') || text.contains(['[', ' ']) {
        return None;
    }
    text.parse::<Timestamp>().ok().map(Timestamp::as_microsecond)
}

/// RFC 3339 in UTC, the fraction's trailing zeros dropped; `None` for infinity.
pub(super) fn write_timestamp(micros: i64) -> Option<String> {
    Timestamp::from_microsecond(micros)
        .ok()
        .map(|instant| instant.to_string())
}

/// Microseconds of a duration's text.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let legal = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'h' | 'm' | 's' | 'u' | 'n' | 'µ');
    if !text.chars().all(legal) {
        return None;
    }
    let duration = text.parse::<SignedDuration>().ok()?;
    i64::try_from(duration.as_micros()).ok()
}
