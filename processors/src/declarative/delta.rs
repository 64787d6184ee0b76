//! Deltas: what a row of an input contributed to a group or pair before a change, and what it contributes after it.
//!
//! A delta may be a record of a repartition topic. If it was written under another declaration of the processor or in a
//! newer format, reading it is an error.

use super::values::{read_array, read_byte, read_bytes, write_bytes};
use event_log::Millis;

/// Format of a record on a repartition topic.
const FORMAT: u8 = 1;
/// Greatest format that a later release may have. A greater first byte is another program's record.
const FORMAT_MAX: u8 = 15;

/// What a row contributes to one group or pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contribution<'a> {
    /// Key of the group or pair: a canonical JSON array.
    pub key: &'a [u8],
    /// Order of the row among the rows of its group: by source position, or by time and offset.
    pub order: u128,
    /// Time of the row, in ms.
    pub time: Millis,
    /// Encoded values of the contribution.
    pub values: &'a [u8],
}

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta<'a> {
    /// The row, unique among the rows of the same input; empty for an event.
    pub row: &'a [u8],
    /// Its contribution before the change.
    pub old: Option<Contribution<'a>>,
    /// Its contribution after the change.
    pub new: Option<Contribution<'a>>,
}

/// Why a record of a repartition topic cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// The record was written in the format of a newer release.
    #[error("the record has format {0}, but this release reads up to format {FORMAT}; update Trunkline")]
    Newer(u8),
    /// The record was written under another declaration of the processor.
    #[error("the record was written under another declaration of the processor; give the changed processor a new name")]
    Foreign,
    /// Not an encoded delta.
    #[error("the record is corrupt")]
    Damaged,
    /// The values do not have the types of the declaration.
    #[error("the values of the record do not have the types that the processor's declaration gives them")]
    Types,
}

impl<'a> Delta<'a> {
    /// Appends the value of a repartition record. Both contributions must have the record's key.
    pub fn write(&self, declaration: u64, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.extend_from_slice(&declaration.to_be_bytes());
        out.push(u8::from(self.old.is_some()) | u8::from(self.new.is_some()) << 1);
        write_bytes(out, self.row);
        for contribution in self.old.iter().chain(&self.new) {
            out.extend_from_slice(&contribution.order.to_be_bytes());
            out.extend_from_slice(&contribution.time.to_be_bytes());
            write_bytes(out, contribution.values);
        }
    }

    /// Parses a repartition record.
    pub fn read(declaration: u64, key: &'a [u8], mut bytes: &'a [u8]) -> Result<Self, DeltaError> {
        let rest = &mut bytes;
        match read_byte(rest) {
            Some(FORMAT) => {}
            Some(newer @ FORMAT..=FORMAT_MAX) => return Err(DeltaError::Newer(newer)),
            _ => return Err(DeltaError::Damaged),
        }
        let by = read_array(rest).map(u64::from_be_bytes).ok_or(DeltaError::Damaged)?;
        if by != declaration {
            return Err(DeltaError::Foreign);
        }
        let mut body = || {
            let flags = read_byte(rest)?;
            let row = read_bytes(rest)?;
            let mut contribution = |is_present: bool| {
                if !is_present {
                    return Some(None);
                }
                let order = u128::from_be_bytes(read_array(rest)?);
                let time = i64::from_be_bytes(read_array(rest)?);
                let values = read_bytes(rest)?;
                Some(Some(Contribution {
                    key,
                    order,
                    time,
                    values,
                }))
            };
            let (old, new) = (contribution(flags & 1 == 1)?, contribution(flags & 2 == 2)?);
            Some(Delta { row, old, new })
        };
        body().ok_or(DeltaError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delta_round_trips_and_rejects_foreign_or_truncated() {
        let contribution = |order| Contribution {
            key: b"[1]",
            order,
            time: -5,
            values: b"abc",
        };
        for (old, new) in [
            (None, Some(contribution(7))),
            (Some(contribution(1)), None),
            (Some(contribution(1)), Some(contribution(u128::MAX))),
        ] {
            let delta = Delta { row: b"17", old, new };
            let mut out = Vec::new();
            delta.write(9, &mut out);
            assert_eq!(Delta::read(9, b"[1]", &out), Ok(delta));
            assert_eq!(Delta::read(8, b"[1]", &out), Err(DeltaError::Foreign));
            for cut in 0..out.len() {
                assert_eq!(
                    Delta::read(9, b"[1]", &out[..cut]),
                    Err(DeltaError::Damaged),
                    "{cut} bytes"
                );
            }
            for (first, error) in [
                (0, DeltaError::Damaged),
                (2, DeltaError::Newer(2)),
                (b'{', DeltaError::Damaged),
            ] {
                out[0] = first;
                assert_eq!(Delta::read(9, b"[1]", &out), Err(error));
            }
        }
    }
}
