//! W3C Trace Context: validation of the `traceparent` header of requests and records.
//!
//! Only valid headers (W3C Trace Context, section 3.2) are propagated; an invalid one counts as absent and is not
//! reported. Trunkline never starts a trace itself.

/// Name of the header, in requests and in records.
pub const PARENT: &str = "traceparent";

/// A valid `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent<'a> {
    /// The whole header.
    pub text: &'a str,
    /// Trace id: 32 hexadecimal digits, not all zero.
    pub trace: &'a str,
    /// Span id of the caller: 16 hexadecimal digits, not all zero.
    pub span: &'a str,
    /// Flags: 2 hexadecimal digits.
    pub flags: &'a str,
}

impl<'a> Parent<'a> {
    /// Parses a header; `None` when it is invalid. A later version may have additional fields.
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= LENGTH_MAX)?;
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, len: usize| {
            text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let valid = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
        let zero = |text: &str| text.bytes().all(|b| b == b'0');
        // Later versions may add fields; version 00 has exactly four.
        let extra = version == "00" && parts.next().is_some();
        (valid && !zero(trace) && !zero(span) && !extra).then_some(Parent {
            text,
            trace,
            span,
            flags,
        })
    }
}

/// Longer headers are not propagated, regardless of their version.
const LENGTH_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_header_counts_as_absent() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let of = |text: &str| Parent::parse(text.as_bytes()).map(|p| format!("{}/{}/{}", p.trace, p.span, p.flags));
        let good = format!("00-{trace}-00f067aa0ba902b7-01");
        assert_eq!(of(&good), Some(format!("{trace}/00f067aa0ba902b7/01")));
        assert!(of(&format!("01-{trace}-00f067aa0ba902b7-01-more")).is_some());
        for bad in [
            format!("{good}-more"),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            format!("01-{trace}-00f067aa0ba902b7-01-{}", "x".repeat(300)),
            "nonsense".into(),
            String::new(),
        ] {
            assert_eq!(of(&bad), None, "{bad}");
        }
        assert_eq!(Parent::parse(b"\xff\xfe"), None);
    }
}
