//! Confluent's wire format of a value: `0x00`, schema id (4 bytes, big endian), Avro body.

use crate::ids::SchemaId;

/// Length of the bytes before the Avro body.
pub const FRAME_LENGTH: usize = 5;

/// Why a value has no valid frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Too short for a frame.
    #[error(
        "value of {0} bytes is too short for a schema id; check that the producer uses Confluent's Avro serializer"
    )]
    Short(usize),
    /// The first byte is not 0.
    #[error(
        "value starts with byte {0:#04x} instead of 0x00; check that the producer uses Confluent's Avro serializer"
    )]
    Magic(u8),
}

/// Appends the bytes before the Avro body.
pub fn frame(id: SchemaId, out: &mut Vec<u8>) {
    out.push(0);
    out.extend_from_slice(&id.0.to_be_bytes());
}

/// Splits a value into schema id and Avro body.
///
/// # Errors
/// [`WireError`] if the bytes do not start with `0x00` and a schema id.
pub fn unframe(value: &[u8]) -> Result<(SchemaId, &[u8]), WireError> {
    match value {
        [0, a, b, c, d, body @ ..] => Ok((SchemaId(u32::from_be_bytes([*a, *b, *c, *d])), body)),
        [magic, ..] if *magic != 0 => Err(WireError::Magic(*magic)),
        _ => Err(WireError::Short(value.len())),
    }
}

/// The registry subject of a record on a topic: `<topic>-<full record name>` (Confluent's TopicRecordNameStrategy), so that
/// a topic can contain several record types.
pub fn subject(topic: &str, record: &str) -> String {
    format!("{topic}-{record}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip() {
        let mut out = Vec::new();
        frame(SchemaId(0x0102_0304), &mut out);
        out.extend_from_slice(b"body");
        assert_eq!(out, b"\x00\x01\x02\x03\x04body");
        assert_eq!(unframe(&out), Ok((SchemaId(0x0102_0304), b"body".as_slice())));
    }

    #[test]
    fn invalid_frames_are_rejected() {
        assert_eq!(unframe(b""), Err(WireError::Short(0)));
        assert_eq!(unframe(b"\x00\x01"), Err(WireError::Short(2)));
        assert_eq!(unframe(b"{\"a\":1}"), Err(WireError::Magic(b'{')));
    }
}
