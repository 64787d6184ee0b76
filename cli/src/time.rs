//! Times as people give them on the command line.
//!
//! Guarantees: what cannot be read is an error with an example. Never: a guess.

use anyhow::{Context, Result, anyhow};
use jiff::{SignedDuration, Timestamp};

/// A time in ms: RFC 3339, or a span back from now such as `15m` or `2h 30m`.
pub fn instant(text: &str, now_ms: i64) -> Result<i64> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at.as_millisecond());
    }
    let back = span(text).map_err(|_| {
        anyhow!("`{text}` is neither a time such as 2026-11-23T09:00:00Z nor a span back from now such as 15m")
    })?;
    Ok(now_ms - back)
}

/// A span in ms, such as `90s` or `12h`.
pub fn span(text: &str) -> Result<i64> {
    let span: SignedDuration = text
        .parse()
        .with_context(|| format!("`{text}` is not a span such as 90s or 12h"))?;
    i64::try_from(span.as_millis()).context("the span is too long")
}

/// A time in ms as RFC 3339.
pub fn show(at_ms: i64) -> String {
    Timestamp::from_millisecond(at_ms).map_or_else(|_| at_ms.to_string(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_instants_or_spans_back_from_now() {
        assert_eq!(instant("1970-01-01T00:00:01Z", 9).unwrap(), 1000);
        assert_eq!(instant("15m", 1_000_000).unwrap(), 100_000);
        assert_eq!(span("1h 30m").unwrap(), 5_400_000);
        assert!(instant("yesterday", 0).unwrap_err().to_string().contains("15m"));
    }
}
