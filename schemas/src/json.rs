//! Canonical JSON output: strings, numbers and base64, written directly to bytes.
//!
//! Equal values have equal text (shortest escapes, numbers as in ECMAScript), so keys can be compared as bytes. Nothing is
//! allocated except to grow the output.

use std::io::Write;

/// Escape of each byte: 0 for none, `u` for `\u00xx`, else the character after the backslash.
const ESCAPE: [u8; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 0x20 {
        table[at] = b'u';
        at += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[0x22] = b'"';
    table[0x5c] = b'\\';
    table
};

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes a quoted string.
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    let mut from = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let escape = escape_of(byte);
        if escape == 0 {
            continue;
        }
        out.extend_from_slice(bytes.get(from..at).unwrap_or_default());
        from = at + 1;
        if escape == b'u' {
            out.extend_from_slice(b"\\u00");
            push_hex(out, byte);
        } else {
            out.extend_from_slice(&[b'\\', escape]);
        }
    }
    out.extend_from_slice(bytes.get(from..).unwrap_or_default());
    out.push(b'"');
}

/// The escape of a byte; 0 if the byte needs no escape.
pub(crate) fn escape_of(byte: u8) -> u8 {
    ESCAPE[usize::from(byte)]
}

/// Writes a byte as two hexadecimal digits in lower case.
pub(crate) fn push_hex(out: &mut Vec<u8>, byte: u8) {
    out.push(HEX[usize::from(byte >> 4)]);
    out.push(HEX[usize::from(byte & 15)]);
}

/// Writes an integer in decimal.
pub fn write_i64(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    write_u64(out, value.unsigned_abs());
}

/// Writes an integer in decimal.
pub fn write_u64(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // A remainder modulo ten fits into a byte.
        digits[at] = b'0' + u8::try_from(value % 10).unwrap_or_default();
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes `value` in decimal with leading zeros up to `width` digits, at most 20.
pub(crate) fn write_padded(out: &mut Vec<u8>, mut value: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    while value > 0 {
        at -= 1;
        digits[at] = b'0' + u8::try_from(value % 10).unwrap_or_default();
        value /= 10;
    }
    let first = at.min(digits.len().saturating_sub(width));
    out.extend_from_slice(&digits[first..]);
}

/// Writes a number as in ECMAScript; `NaN`, `Infinity` and `-Infinity` as strings.
pub fn write_f64(out: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        let mut text = [0u8; 32];
        let mut rest = &mut text[..];
        // 17 digits, a dot, two signs and a three-digit exponent fit into 32 bytes.
        let _ = write!(rest, "{value:e}");
        let left = rest.len();
        lay_out(out, &text[..text.len() - left]);
    } else {
        write_special(out, value.is_nan(), value.is_sign_negative());
    }
}

/// Writes a number with the fewest digits that identify the 32-bit float; see [`write_f64`].
pub fn write_f32(out: &mut Vec<u8>, value: f32) {
    if value.is_finite() {
        let mut text = [0u8; 32];
        let mut rest = &mut text[..];
        let _ = write!(rest, "{value:e}");
        let left = rest.len();
        lay_out(out, &text[..text.len() - left]);
    } else {
        write_special(out, value.is_nan(), value.is_sign_negative());
    }
}

fn write_special(out: &mut Vec<u8>, nan: bool, negative: bool) {
    out.extend_from_slice(match (nan, negative) {
        (true, _) => b"\"NaN\"",
        (false, false) => b"\"Infinity\"",
        (false, true) => b"\"-Infinity\"",
    });
}

/// Converts Rust's `{:e}` format (`-1.25e-7`) to that of ECMAScript's Number::toString (ECMA-262, 6.1.6.1.20).
fn lay_out(out: &mut Vec<u8>, scientific: &[u8]) {
    let (negative, rest) = match scientific.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, scientific),
    };
    let split = rest.iter().position(|b| *b == b'e').unwrap_or(rest.len());
    let (mantissa, exponent) = rest.split_at(split);
    let exponent: i32 = std::str::from_utf8(exponent.get(1..).unwrap_or_default())
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_default();
    let mut digits = [0u8; 20];
    let mut count = 0;
    for byte in mantissa.iter().filter(|b| **b != b'.').take(digits.len()) {
        digits[count] = *byte;
        count += 1;
    }
    let digits = &digits[..count];
    if digits == b"0" {
        // ECMAScript writes -0 as 0, and the two must be equal as keys.
        out.push(b'0');
        return;
    }
    if negative {
        out.push(b'-');
    }
    let point = exponent + 1;
    let length = i32::try_from(count).unwrap_or_default();
    let zeros = |n: i32| std::iter::repeat_n(b'0', usize::try_from(n).unwrap_or_default());
    if length <= point && point <= 21 {
        out.extend_from_slice(digits);
        out.extend(zeros(point - length));
    } else if 0 < point && point <= 21 {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or_default());
        out.extend_from_slice(whole);
        out.push(b'.');
        out.extend_from_slice(fraction);
    } else if -6 < point && point <= 0 {
        out.extend_from_slice(b"0.");
        out.extend(zeros(-point));
        out.extend_from_slice(digits);
    } else {
        let (first, fraction) = digits.split_at(1);
        out.extend_from_slice(first);
        if !fraction.is_empty() {
            out.push(b'.');
            out.extend_from_slice(fraction);
        }
        out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
        write_u64(out, u64::from(exponent.unsigned_abs()));
    }
}

/// Writes bytes as a quoted base64 string (standard alphabet, padded).
pub fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    out.push(b'"');
    let from = out.len();
    let length =
        base64::encoded_len(bytes.len(), true).expect("the encoded length of bytes in memory does not overflow");
    out.resize(from + length, 0);
    // The slice has exactly the encoded length, so encoding cannot fail.
    let _ = engine.encode_slice(bytes, &mut out[from..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn f64_text(value: f64) -> String {
        let mut out = Vec::new();
        write_f64(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_printed_as_in_ecmascript() {
        let cases = [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (1e21, "1e+21"),
            (123_456_789_012_345_680_000.0, "123456789012345680000"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (1.25e-7, "1.25e-7"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (100.0, "100"),
            (1234.5678, "1234.5678"),
            (f64::NAN, "\"NaN\""),
            (f64::INFINITY, "\"Infinity\""),
            (f64::NEG_INFINITY, "\"-Infinity\""),
        ];
        for (value, text) in cases {
            assert_eq!(f64_text(value), text);
        }
        let mut out = Vec::new();
        write_f32(&mut out, 0.1);
        assert_eq!(out, b"0.1");
    }

    proptest! {
        #[test]
        fn a_float_reads_back_as_itself(value in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL) {
            prop_assert_eq!(f64_text(value).parse::<f64>().unwrap(), value);
        }

        #[test]
        fn a_float32_is_also_the_shortest_text_of_its_own_float64(value in proptest::num::f32::NORMAL) {
            let mut out = Vec::new();
            write_f32(&mut out, value);
            let text = String::from_utf8(out).unwrap();
            prop_assert_eq!(text.parse::<f32>().unwrap(), value);
            prop_assert_eq!(f64_text(text.parse::<f64>().unwrap()), text);
        }

        #[test]
        fn integers_are_decimal(value: i64) {
            let mut out = Vec::new();
            write_i64(&mut out, value);
            prop_assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }

        #[test]
        fn strings_read_back_and_equal_those_of_serde(text: String) {
            let mut out = Vec::new();
            write_str(&mut out, &text);
            prop_assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&text).unwrap());
        }

        #[test]
        fn base64_equals_the_library(bytes: Vec<u8>) {
            use base64::Engine as _;
            let mut out = Vec::new();
            write_base64(&mut out, &bytes);
            let expected = format!("\"{}\"", base64::engine::general_purpose::STANDARD.encode(&bytes));
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
