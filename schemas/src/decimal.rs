//! Avro decimals: a big-endian two's complement number and a scale, the number of digits after the decimal point. Conversion
//! to and from text is exact.

/// Maximum length of a decimal in bytes (about 600 digits). The limit bounds the quadratic conversion.
pub const BYTES_MAX: usize = 256;

/// Appends the text of a decimal, such as `-12.50`. Returns `None` and appends nothing if it is longer than
/// [`BYTES_MAX`].
pub fn write(out: &mut Vec<u8>, bytes: &[u8], scale: u32) -> Option<()> {
    if bytes.len() > BYTES_MAX {
        return None;
    }
    let scale = usize::try_from(scale).ok().filter(|scale| *scale <= 4 * BYTES_MAX)?;
    let negative = bytes.first().is_some_and(|b| *b >= 0x80);
    let mut magnitude = bytes.to_vec();
    if negative {
        negate(&mut magnitude);
    }
    // Digits, least significant first.
    let mut digits = Vec::new();
    while magnitude.iter().any(|b| *b != 0) {
        let mut rest = 0u16;
        for byte in &mut magnitude {
            let value = rest << 8 | u16::from(*byte);
            // Both conversions succeed, because value < 2560.
            *byte = u8::try_from(value / 10).unwrap_or_default();
            rest = value % 10;
        }
        digits.push(b'0' + u8::try_from(rest).unwrap_or_default());
    }
    while digits.len() <= scale {
        digits.push(b'0');
    }
    if negative {
        out.push(b'-');
    }
    for (at, digit) in digits.iter().enumerate().rev() {
        out.push(*digit);
        if at == scale && scale > 0 {
            out.push(b'.');
        }
    }
    Some(())
}

/// Parses decimal text to a two's complement number with `scale` digits after the point, as short as possible or
/// exactly `size` bytes long. `None` if the text is not a number, has more digits than the scale, or is longer than
/// `size`.
pub fn parse(text: &str, scale: u32, size: Option<usize>) -> Option<Vec<u8>> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let scale = usize::try_from(scale).ok()?;
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let dotted_well = !whole.is_empty() && !unsigned.ends_with('.');
    if !dotted_well
        || !plain(whole)
        || !plain(fraction)
        || fraction.len() > scale
        || whole.len() + scale > 2 * BYTES_MAX
    {
        return None;
    }
    // A leading zero byte keeps the sign bit clear.
    let mut bytes = vec![0u8];
    let padding = std::iter::repeat_n(b'0', scale - fraction.len());
    for digit in whole.bytes().chain(fraction.bytes()).chain(padding) {
        let mut carry = u16::from(digit - b'0');
        for byte in bytes.iter_mut().rev() {
            let value = u16::from(*byte) * 10 + carry;
            *byte = value.to_le_bytes()[0];
            carry = value >> 8;
        }
        if bytes.first().is_some_and(|b| *b >= 0x80) || carry > 0 {
            // The carry of a digit is at most 9, so a new first byte keeps the sign bit clear.
            bytes.insert(0, carry.to_le_bytes()[0]);
        }
    }
    if negative {
        negate(&mut bytes);
    }
    shorten(&mut bytes);
    match size {
        None => Some(bytes),
        Some(size) if bytes.len() <= size => {
            let sign = if bytes.first().is_some_and(|b| *b >= 0x80) {
                0xff
            } else {
                0
            };
            let mut wide = vec![sign; size - bytes.len()];
            wide.extend_from_slice(&bytes);
            Some(wide)
        }
        Some(_) => None,
    }
}

fn negate(bytes: &mut [u8]) {
    let mut carry = true;
    for byte in bytes.iter_mut().rev() {
        let (value, overflow) = (!*byte).overflowing_add(u8::from(carry));
        *byte = value;
        carry = overflow;
    }
}

/// Removes leading bytes that only repeat the sign.
fn shorten(bytes: &mut Vec<u8>) {
    while let [first, second, ..] = bytes.as_slice() {
        let repeats = (*first == 0 && *second < 0x80) || (*first == 0xff && *second >= 0x80);
        if !repeats {
            break;
        }
        bytes.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(bytes: &[u8], scale: u32) -> String {
        let mut out = Vec::new();
        write(&mut out, bytes, scale).unwrap();
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn integers_are_printed_as_such(value: i128) {
            prop_assert_eq!(text(&value.to_be_bytes(), 0), value.to_string());
            prop_assert_eq!(parse(&value.to_string(), 0, Some(16)).unwrap(), value.to_be_bytes().to_vec());
        }

        #[test]
        fn text_reads_back(value: i128, scale in 0u32..40) {
            let printed = text(&value.to_be_bytes(), scale);
            let bytes = parse(&printed, scale, None).unwrap();
            prop_assert_eq!(text(&bytes, scale), printed);
            prop_assert!(bytes.len() <= 16);
        }

        #[test]
        fn long_ones_read_back(bytes in prop::collection::vec(any::<u8>(), 1..200), scale in 0u32..20) {
            let printed = text(&bytes, scale);
            prop_assert_eq!(parse(&printed, scale, Some(bytes.len())).unwrap(), bytes);
        }
    }

    #[test]
    fn scale_places_the_decimal_point() {
        assert_eq!(text(&[0x04, 0xe2], 2), "12.50");
        assert_eq!(text(&[0xff], 3), "-0.001");
        assert_eq!(text(&[], 2), "0.00");
        assert_eq!(parse("12.5", 2, None), Some(vec![0x04, 0xe2]));
        for wrong in ["", "-", ".5", "5.", "1.234", "1e5", "+1", "1,0"] {
            assert_eq!(parse(wrong, 2, None), None, "{wrong}");
        }
        assert_eq!(parse("128", 0, Some(1)), None);
    }
}
