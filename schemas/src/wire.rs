//! Confluent's framing of a value: `0x00`, schema id (4 bytes, big endian), Avro body.
//!
//! Guarantees: what [`frame`] begins, [`unframe`] and every Confluent deserialiser read. Never: a look at the body.

use crate::ids::SchemaId;

/// Bytes before the Avro body.
pub const FRAME_LENGTH: usize = 5;

/// Why a value is not framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Too short for a frame.
    #[error(
        "value of {0} bytes is too short for a schema id; is the producer's serialiser Confluent's Avro serialiser?"
    )]
    Short(usize),
    /// Another first byte than 0.
    #[error(
        "value begins with byte {0:#04x} and not with 0x00; is the producer's serialiser Confluent's Avro serialiser?"
    )]
    Magic(u8),
}

/// Begins a value: the Avro body is to follow.
pub fn frame(id: SchemaId, out: &mut Vec<u8>) {
    out.push(0);
    out.extend_from_slice(&id.0.to_be_bytes());
}

/// Splits a value into schema id and Avro body.
///
/// # Errors
/// [`WireError`] when the bytes do not begin with a frame.
pub fn unframe(value: &[u8]) -> Result<(SchemaId, &[u8]), WireError> {
    match value {
        [0, a, b, c, d, body @ ..] => Ok((SchemaId(u32::from_be_bytes([*a, *b, *c, *d])), body)),
        [magic, ..] if *magic != 0 => Err(WireError::Magic(*magic)),
        _ => Err(WireError::Short(value.len())),
    }
}

/// The registry's subject of a record on a topic: `<topic>-<full record name>`, so that a topic can carry several
/// records (Confluent's TopicRecordNameStrategy).
pub fn subject(topic: &str, record: &str) -> String {
    format!("{topic}-{record}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_split_again() {
        let mut out = Vec::new();
        frame(SchemaId(0x0102_0304), &mut out);
        out.extend_from_slice(b"body");
        assert_eq!(out, b"\x00\x01\x02\x03\x04body");
        assert_eq!(unframe(&out), Ok((SchemaId(0x0102_0304), b"body".as_slice())));
    }

    #[test]
    fn what_is_not_framed_is_refused() {
        assert_eq!(unframe(b""), Err(WireError::Short(0)));
        assert_eq!(unframe(b"\x00\x01"), Err(WireError::Short(2)));
        assert_eq!(unframe(b"{\"a\":1}"), Err(WireError::Magic(b'{')));
    }
}
