//! Encoding of values in the state and in repartition topics: compact and self-describing, or sortable by their bytes.
//!
//! Truncated or corrupt bytes decode to `None`. Scalar values are decoded without allocation.

use schemas::codec::Datum;
use schemas::pg_types::AvroType;
use topology::expr::Cell;

/// Appends an unsigned number as a variable-length integer, seven bits per byte.
pub fn write_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Reads a variable-length integer.
pub fn read_number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for at in 0..10 {
        let byte = read_byte(rest)?;
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Appends a signed number in zigzag encoding, so that small numbers of either sign are short.
pub fn write_signed(out: &mut Vec<u8>, value: i64) {
    write_number(out, (value << 1 ^ value >> 63).cast_unsigned());
}

/// Reads a zigzag-encoded number.
pub fn read_signed(rest: &mut &[u8]) -> Option<i64> {
    let value = read_number(rest)?;
    Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
}

/// Appends bytes with their length.
pub fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_number(out, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    out.extend_from_slice(bytes);
}

/// Reads bytes with their length.
pub fn read_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(read_number(rest)?).ok()?;
    let (first, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(first)
}

/// Reads one byte.
pub fn read_byte(rest: &mut &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    Some(*first)
}

/// Reads a fixed number of bytes.
pub fn read_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*first)
}

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INT: u8 = 3;
const DOUBLE: u8 = 4;
const TEXT: u8 = 5;
const BYTES: u8 = 6;
const LIST: u8 = 7;
const RECORD: u8 = 8;

/// Appends a value. Maps and unions, which expressions cannot use, are written as null.
pub fn write(out: &mut Vec<u8>, datum: &Datum<'_>) {
    match datum {
        Datum::Null | Datum::Map(_) | Datum::Union(..) => out.push(NULL),
        Datum::Bool(value) => out.push(if *value { TRUE } else { FALSE }),
        Datum::Int(value) => write_int(out, i64::from(*value)),
        Datum::Long(value) => write_int(out, *value),
        Datum::Float(value) => write_double(out, f64::from(*value)),
        Datum::Double(value) => write_double(out, *value),
        Datum::Str(text) => tagged(out, TEXT, text.as_bytes()),
        Datum::Bytes(bytes) => tagged(out, BYTES, bytes),
        Datum::Array(items) => list(out, LIST, items),
        Datum::Record(fields) => list(out, RECORD, fields),
    }
}

/// Appends a value of an output column.
pub fn write_cell(out: &mut Vec<u8>, cell: &Cell<'_>) {
    match cell {
        Cell::Null => out.push(NULL),
        Cell::Bool(value) => out.push(if *value { TRUE } else { FALSE }),
        Cell::Int(value) => write_int(out, *value),
        Cell::Double(value) => write_double(out, *value),
        Cell::Text(text) => tagged(out, TEXT, text.as_bytes()),
        Cell::Bytes(bytes) => tagged(out, BYTES, bytes),
    }
}

fn write_int(out: &mut Vec<u8>, value: i64) {
    out.push(INT);
    write_signed(out, value);
}

fn write_double(out: &mut Vec<u8>, value: f64) {
    out.push(DOUBLE);
    out.extend_from_slice(&value.to_bits().to_be_bytes());
}

fn tagged(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    write_bytes(out, bytes);
}

fn list(out: &mut Vec<u8>, tag: u8, items: &[Datum<'_>]) {
    out.push(tag);
    write_number(out, u64::try_from(items.len()).unwrap_or(u64::MAX));
    items.iter().for_each(|item| write(out, item));
}

/// Reads a value. Every integer is read as `Long`, every float as `Double`.
pub fn read<'a>(rest: &mut &'a [u8]) -> Option<Datum<'a>> {
    read_within(rest, 0)
}

fn read_within<'a>(rest: &mut &'a [u8], depth: usize) -> Option<Datum<'a>> {
    Some(match read_byte(rest)? {
        NULL => Datum::Null,
        FALSE => Datum::Bool(false),
        TRUE => Datum::Bool(true),
        INT => Datum::Long(read_signed(rest)?),
        DOUBLE => Datum::Double(f64::from_bits(u64::from_be_bytes(read_array(rest)?))),
        TEXT => Datum::Str(std::str::from_utf8(read_bytes(rest)?).ok()?),
        BYTES => Datum::Bytes(read_bytes(rest)?),
        tag @ (LIST | RECORD) if depth < schemas::codec::DEPTH_MAX => {
            let mut items = Vec::new();
            for _ in 0..read_number(rest)? {
                items.push(read_within(rest, depth + 1)?);
            }
            if tag == LIST {
                Datum::Array(items)
            } else {
                Datum::Record(items)
            }
        }
        _ => return None,
    })
}

/// Reads exactly `count` values.
pub fn read_row<'a>(mut bytes: &'a [u8], count: usize) -> Option<Vec<Datum<'a>>> {
    let row: Option<Vec<Datum<'a>>> = (0..count).map(|_| read(&mut bytes)).collect();
    row.filter(|_| bytes.is_empty())
}

/// A value as JSON. Infinity and NaN are strings, bytes are `{"hex": …}`.
pub fn json(datum: &Datum<'_>) -> serde_json::Value {
    match datum {
        Datum::Null | Datum::Map(_) | Datum::Union(..) => serde_json::Value::Null,
        Datum::Bool(value) => (*value).into(),
        Datum::Int(value) => (*value).into(),
        Datum::Long(value) => (*value).into(),
        Datum::Float(value) => json(&Datum::Double(f64::from(*value))),
        Datum::Double(value) if value.is_finite() => (*value).into(),
        Datum::Double(value) => value.to_string().into(),
        Datum::Str(text) => (*text).into(),
        Datum::Bytes(bytes) => {
            let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
            serde_json::json!({ "hex": digits.collect::<String>() })
        }
        Datum::Array(items) | Datum::Record(items) => items.iter().map(json).collect(),
    }
}

/// Converts a value to the Avro type of its output column.
pub fn fitted(datum: Datum<'_>, ty: AvroType) -> Datum<'_> {
    match (datum, ty) {
        (Datum::Long(value), AvroType::Int | AvroType::Date) => i32::try_from(value).map_or(Datum::Null, Datum::Int),
        (Datum::Double(value), AvroType::Float) => Datum::Float(to_f32(value)),
        (datum, _) => datum,
    }
}

#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "the value of a float4 column was read from a float4"
)]
fn to_f32(value: f64) -> f32 {
    value as f32
}

/// Appends bytes whose order is the order of the values; `false` for a value without an order.
pub fn write_sortable(out: &mut Vec<u8>, datum: &Datum<'_>) -> bool {
    match datum {
        Datum::Bool(value) => out.push(u8::from(*value)),
        Datum::Int(value) => write_ordered(out, i64::from(*value)),
        Datum::Long(value) => write_ordered(out, *value),
        Datum::Float(value) => write_ordered_double(out, f64::from(*value)),
        Datum::Double(value) => write_ordered_double(out, *value),
        Datum::Str(text) => {
            // UTF-8 has no byte 0xff, so adding 1 to each byte reserves 0 for the end. A prefix of a text therefore
            // sorts before the text, or after it if all bytes are inverted.
            out.extend(text.bytes().map(|byte| byte.wrapping_add(1)));
            out.push(0);
        }
        _ => return false,
    }
    true
}

fn write_ordered(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&(value.cast_unsigned() ^ (1 << 63)).to_be_bytes());
}

/// Appends a double in PostgreSQL's order: minus zero equals zero, and NaN is the greatest value.
fn write_ordered_double(out: &mut Vec<u8>, value: f64) {
    let bits = if value.is_nan() {
        f64::NAN.to_bits() & !(1 << 63)
    } else {
        (value + 0.0).to_bits()
    };
    let ordered = if bits >> 63 == 1 { !bits } else { bits ^ (1 << 63) };
    out.extend_from_slice(&ordered.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sortable(datum: &Datum<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(write_sortable(&mut out, datum));
        out
    }

    #[test]
    fn values_round_trip_and_truncation_is_none() {
        let row = [
            Datum::Null,
            Datum::Bool(true),
            Datum::Long(i64::MIN),
            Datum::Long(77),
            Datum::Double(-0.5),
            Datum::Str("ä"),
            Datum::Bytes(b"\xff"),
            Datum::Record(vec![Datum::Array(vec![Datum::Long(1)]), Datum::Null]),
        ];
        let mut out = Vec::new();
        row.iter().for_each(|datum| write(&mut out, datum));
        assert_eq!(read_row(&out, row.len()).as_deref(), Some(row.as_slice()));
        for cut in 0..out.len() {
            assert_eq!(read_row(&out[..cut], row.len()), None, "{cut} bytes");
        }
    }

    #[test]
    fn sortable_bytes_order_values_also_inverted() {
        let ordered = [
            vec![
                Datum::Long(i64::MIN),
                Datum::Long(-1),
                Datum::Long(0),
                Datum::Long(7),
                Datum::Long(i64::MAX),
            ],
            vec![
                Datum::Double(f64::NEG_INFINITY),
                Datum::Double(-1.5),
                Datum::Double(0.0),
                Datum::Double(1e-300),
                Datum::Double(f64::INFINITY),
                Datum::Double(-f64::NAN),
            ],
            vec![
                Datum::Str(""),
                Datum::Str("\0"),
                Datum::Str("a"),
                Datum::Str("a\0"),
                Datum::Str("ab"),
                Datum::Str("\u{10ffff}"),
            ],
            vec![Datum::Bool(false), Datum::Bool(true)],
        ];
        for values in ordered {
            for pair in values.windows(2) {
                let (less, more) = (sortable(&pair[0]), sortable(&pair[1]));
                assert!(less < more, "{pair:?}");
                let inverted = |bytes: Vec<u8>| bytes.into_iter().map(|b| !b).collect::<Vec<_>>();
                assert!(inverted(less) > inverted(more), "{pair:?} inverted");
            }
        }
        assert_eq!(sortable(&Datum::Double(-0.0)), sortable(&Datum::Double(0.0)));
    }
}
