//! Times and durations of the command line.

use anyhow::{Context, Result, anyhow};
use jiff::{SignedDuration, Timestamp};

/// Parses an RFC 3339 time, or a duration before now such as `15m` or `2h 30m`, to milliseconds since 1970.
pub fn instant(text: &str, now_ms: i64) -> Result<i64> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at.as_millisecond());
    }
    let back = duration(text).map_err(|_| {
        anyhow!(
            "`{text}` is not a time; write RFC 3339 such as 2026-11-23T09:00:00Z, or a duration before now such as 15m"
        )
    })?;
    Ok(now_ms - back)
}

/// Parses a duration such as `90s` or `12h` to milliseconds.
pub fn duration(text: &str) -> Result<i64> {
    let duration: SignedDuration = text
        .parse()
        .with_context(|| format!("`{text}` is not a duration; write one such as 90s or 12h"))?;
    i64::try_from(duration.as_millis()).context("the duration is too long; use a shorter one")
}

/// Formats milliseconds since 1970 as RFC 3339.
pub fn show(at_ms: i64) -> String {
    Timestamp::from_millisecond(at_ms).map_or_else(|_| at_ms.to_string(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_times_and_durations_before_now() {
        assert_eq!(instant("1970-01-01T00:00:01Z", 9).unwrap(), 1000);
        assert_eq!(instant("15m", 1_000_000).unwrap(), 100_000);
        assert_eq!(duration("1h 30m").unwrap(), 5_400_000);
        assert!(instant("yesterday", 0).unwrap_err().to_string().contains("15m"));
    }
}
