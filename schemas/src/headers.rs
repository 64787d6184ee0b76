//! Names of record headers, and the `tx` header, which orders the records of a change topic.
//!
//! The `tx` header is written in one canonical form and parsed from that form without allocation. The parser also
//! accepts any other order of the members, and unknown members. A newer format is rejected.

use crate::json;
use crate::version::{Lsn, Version};

/// Table of a change, as in its key.
pub const TABLE: &str = "table";
/// Position of a change in its source transaction: a [`Tx`].
pub const TX: &str = "tx";
/// Id of the snapshot, on rows of a snapshot chunk only.
pub const SNAPSHOT: &str = "snapshot";
/// On the tombstone of a row whose key changed: the new key, which is the key of the next record.
pub const MOVED_TO: &str = "moved-to";
/// On a row whose key changed: the old key, which is the key of the preceding tombstone.
pub const MOVED_FROM: &str = "moved-from";
/// Header of a record whose key begins with `~missing`: the reason why the change of the row, or changes of the table,
/// are not in the topic.
pub const MISSING: &str = "missing";
/// [`REPLAY`] or [`REDRIVE`]; absent from other records.
pub const REPLAYED: &str = "replayed";
/// Value of [`REPLAYED`]: written by a replay.
pub const REPLAY: &str = "replay";
/// Value of [`REPLAYED`]: written by a redrive from a dead-letter topic.
pub const REDRIVE: &str = "redrive";
/// Of a redrive mark in a dead-letter topic: the offsets of dead letters whose records were redriven, such as `5-9,12`.
pub const REDRIVEN: &str = "redriven";
/// Idempotency key of an event.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Writer of a record of `view.log`.
pub const WRITER: &str = "w";
/// Version of a record of `view.log`: 17 bytes.
pub const VERSION: &str = "v";

/// Kafka Connect's headers on dead letters.
pub mod errors {
    /// Topic of the record that failed.
    pub const TOPIC: &str = "__connect.errors.topic";
    /// Partition of the record that failed.
    pub const PARTITION: &str = "__connect.errors.partition";
    /// Offset of the record that failed.
    pub const OFFSET: &str = "__connect.errors.offset";
    /// Connector or processor that wrote the dead letter.
    pub const CONNECTOR_NAME: &str = "__connect.errors.connector.name";
    /// Task; for processors the partition number.
    pub const TASK_ID: &str = "__connect.errors.task.id";
    /// Step in which the processing failed: `VALUE_CONVERTER`, `TRANSFORMATION`, `TASK_PUT`, …
    pub const STAGE: &str = "__connect.errors.stage";
    /// Type whose code performed the step.
    pub const CLASS_NAME: &str = "__connect.errors.class.name";
    /// Type of the error.
    pub const EXCEPTION_CLASS_NAME: &str = "__connect.errors.exception.class.name";
    /// Message of the error.
    pub const EXCEPTION_MESSAGE: &str = "__connect.errors.exception.message";
    /// Message of the error and of all its causes.
    pub const EXCEPTION_STACKTRACE: &str = "__connect.errors.exception.stacktrace";
}

/// The format of `tx` that is written, and the newest format that can be read.
pub const TX_FORMAT: u32 = 1;

/// The `tx` header: the position of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tx {
    /// Source epoch.
    pub source_epoch: u32,
    /// Position of the source transaction: its commit LSN.
    pub position: Lsn,
    /// Ordinal in the source transaction, from 0.
    pub ordinal: u32,
    /// Whether this is the last record of the source transaction.
    pub last: bool,
    /// Commit time in ms since 1970.
    pub at_ms: i64,
}

/// Why a `tx` header could not be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TxError {
    /// The header was written by a newer version of Trunkline.
    #[error(
        "header tx has format {found}, but this version of trunkline reads formats up to {TX_FORMAT}; upgrade trunkline"
    )]
    Newer {
        /// The format found.
        found: u32,
    },
    /// Not the expected JSON.
    #[error("header tx is malformed: {0}")]
    Malformed(String),
}

#[derive(serde::Deserialize)]
struct AnyVersion {
    v: u32,
}

#[derive(serde::Deserialize)]
struct Fields<'a> {
    epoch: u32,
    #[serde(borrow)]
    pos: std::borrow::Cow<'a, str>,
    ord: u32,
    last: bool,
    at: i64,
}

impl Tx {
    /// The version of the row that the record contains.
    pub fn version(&self) -> Version {
        Version {
            source_epoch: self.source_epoch,
            position: self.position.0,
            ordinal: self.ordinal,
        }
    }

    /// Appends the header's value.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"v\":1,\"epoch\":");
        json::write_u64(out, u64::from(self.source_epoch));
        out.extend_from_slice(b",\"pos\":\"");
        self.position.write(out);
        out.extend_from_slice(b"\",\"ord\":");
        json::write_u64(out, u64::from(self.ordinal));
        out.extend_from_slice(if self.last {
            b",\"last\":true,\"at\":"
        } else {
            b",\"last\":false,\"at\":"
        });
        json::write_i64(out, self.at_ms);
        out.push(b'}');
    }

    /// Parses the header's value.
    ///
    /// # Errors
    /// [`TxError`] if it is malformed or has a newer format.
    pub fn parse(bytes: &[u8]) -> Result<Self, TxError> {
        match Self::parse_own_form(bytes) {
            Some(tx) => Ok(tx),
            None => Self::parse_any_form(bytes),
        }
    }

    /// Parses the canonical form of [`Tx::write`]; `None` for any other form, which may still be valid.
    fn parse_own_form(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(b"{\"v\":1,\"epoch\":")?;
        let (source_epoch, rest) = number(rest)?;
        let rest = rest.strip_prefix(b",\"pos\":\"")?;
        let quote = rest.iter().position(|b| *b == b'"')?;
        let position = Lsn::from_text(rest.get(..quote)?)?;
        let (ordinal, rest) = number(rest.get(quote..)?.strip_prefix(b"\",\"ord\":")?)?;
        let rest = rest.strip_prefix(b",\"last\":")?;
        let (last, rest) = match rest.strip_prefix(b"true") {
            Some(rest) => (true, rest),
            None => (false, rest.strip_prefix(b"false")?),
        };
        let (at, rest) = number(rest.strip_prefix(b",\"at\":")?)?;
        if rest != b"}" {
            return None;
        }
        Some(Tx {
            source_epoch: u32::try_from(source_epoch).ok()?,
            position,
            ordinal: u32::try_from(ordinal).ok()?,
            last,
            at_ms: i64::try_from(at).ok()?,
        })
    }

    fn parse_any_form(bytes: &[u8]) -> Result<Self, TxError> {
        let malformed = |e: serde_json::Error| TxError::Malformed(e.to_string());
        // The format is checked first, because a newer format may have other members.
        let AnyVersion { v } = serde_json::from_slice(bytes).map_err(malformed)?;
        if v != TX_FORMAT {
            return Err(TxError::Newer { found: v });
        }
        let fields: Fields<'_> = serde_json::from_slice(bytes).map_err(malformed)?;
        let position = fields
            .pos
            .parse()
            .map_err(|_| TxError::Malformed(format!("pos {:?} is not an LSN", fields.pos)))?;
        Ok(Tx {
            source_epoch: fields.epoch,
            position,
            ordinal: fields.ord,
            last: fields.last,
            at_ms: fields.at,
        })
    }
}

/// Parses up to 18 leading digits, so that the number cannot overflow.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = bytes.iter().position(|b| !b.is_ascii_digit()).unwrap_or(bytes.len());
    let (digits, rest) = bytes.split_at(length);
    let leading_zero = digits.first() == Some(&b'0') && length > 1;
    if length == 0 || length > 18 || leading_zero {
        return None;
    }
    Some((
        digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')),
        rest,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tx_reads_back(source_epoch: u32, position: u64, ordinal: u32, last: bool, at_ms: i64) {
            let tx = Tx { source_epoch, position: Lsn(position), ordinal, last, at_ms };
            let mut out = Vec::new();
            tx.write(&mut out);
            prop_assert_eq!(Tx::parse(&out).unwrap(), tx);
            prop_assert_eq!(Tx::parse_any_form(&out).unwrap(), tx);
        }

        #[test]
        fn garbage_is_an_error(bytes: Vec<u8>) {
            prop_assert!(Tx::parse(&bytes).is_err());
        }

        #[test]
        fn a_changed_byte_is_read_as_the_general_reader_reads_it(at in 0usize..70, byte: u8) {
            let tx = Tx { source_epoch: 1, position: Lsn(0x16b_3748), ordinal: 3, last: true, at_ms: 1_732_390_000_123 };
            let mut out = Vec::new();
            tx.write(&mut out);
            let length = out.len();
            out[at % length] = byte;
            prop_assert_eq!(Tx::parse(&out), Tx::parse_any_form(&out));
        }
    }

    #[test]
    fn canonical_form_is_written_and_any_order_parsed() {
        let tx = Tx {
            source_epoch: 1,
            position: Lsn(0x16b_3748),
            ordinal: 3,
            last: true,
            at_ms: 1_732_390_000_123,
        };
        let mut out = Vec::new();
        tx.write(&mut out);
        let text = r#"{"v":1,"epoch":1,"pos":"0/16B3748","ord":3,"last":true,"at":1732390000123}"#;
        assert_eq!(String::from_utf8(out).unwrap(), text);
        let other =
            br#"{ "at": 1732390000123, "x": [1], "ord": 3, "last": true, "pos": "0/16B3748", "epoch": 1, "v": 1 }"#;
        assert_eq!(Tx::parse(other), Ok(tx));
    }

    #[test]
    fn errors_name_the_member_or_both_formats() {
        assert_eq!(Tx::parse(br#"{"v":2,"at":"soon"}"#), Err(TxError::Newer { found: 2 }));
        let text = Tx::parse(br#"{"v":1,"epoch":1,"pos":"x","ord":3,"last":true,"at":1}"#)
            .unwrap_err()
            .to_string();
        assert_eq!(text, "header tx is malformed: pos \"x\" is not an LSN");
        let text = Tx::parse(br#"{"v":1,"epoch":1,"pos":"0/1","ord":3,"at":1}"#)
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("header tx is malformed: missing field `last`"),
            "{text}"
        );
    }
}
