//! What a change of an input does to groups and pairs: what a row contributed before, and what it contributes now.
//!
//! Guarantees: a delta that goes through a repartition topic is read as it was written; one of another declaration or
//! of a newer format is refused.
//! Never: a part without the key that it belongs to.

use super::values::{read_array, read_byte, read_bytes, write_bytes};
use event_log::Millis;

/// Format of a record on a repartition topic.
const FORMAT: u8 = 1;

/// What a row contributes to one group or pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// The key: a canonical JSON array.
    pub key: &'a [u8],
    /// Where the row stands among others: by its source's position, or by time and offset.
    pub order: u128,
    /// When it happened, in ms.
    pub time: Millis,
    /// Its values, as the shape wrote them.
    pub values: &'a [u8],
}

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta<'a> {
    /// The row, unique on its side; empty for an event.
    pub row: &'a [u8],
    /// What it contributed until now.
    pub old: Option<Part<'a>>,
    /// What it contributes from now on.
    pub new: Option<Part<'a>>,
}

/// Why a record of a repartition topic cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// Another format.
    #[error("the record has format {0}, this release reads up to {FORMAT}; update it")]
    Newer(u8),
    /// Written under another declaration.
    #[error("the record was keyed by another declaration of the processor")]
    Foreign,
    /// Not what was written.
    #[error("the record is damaged")]
    Damaged,
}

impl<'a> Delta<'a> {
    /// Appends what a repartition topic carries: the parts of one key.
    pub fn write(&self, declaration: u64, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.extend_from_slice(&declaration.to_be_bytes());
        out.push(u8::from(self.old.is_some()) | u8::from(self.new.is_some()) << 1);
        write_bytes(out, self.row);
        for part in self.old.iter().chain(&self.new) {
            out.extend_from_slice(&part.order.to_be_bytes());
            out.extend_from_slice(&part.time.to_be_bytes());
            write_bytes(out, part.values);
        }
    }

    /// Reads it back; the key is the record's.
    pub fn read(declaration: u64, key: &'a [u8], mut bytes: &'a [u8]) -> Result<Self, DeltaError> {
        let rest = &mut bytes;
        match read_byte(rest) {
            Some(FORMAT) => {}
            Some(other) => return Err(DeltaError::Newer(other)),
            None => return Err(DeltaError::Damaged),
        }
        let by = read_array(rest).map(u64::from_be_bytes).ok_or(DeltaError::Damaged)?;
        if by != declaration {
            return Err(DeltaError::Foreign);
        }
        let mut body = || {
            let flags = read_byte(rest)?;
            let row = read_bytes(rest)?;
            let mut part = |there: bool| {
                if !there {
                    return Some(None);
                }
                let order = u128::from_be_bytes(read_array(rest)?);
                let time = i64::from_be_bytes(read_array(rest)?);
                let values = read_bytes(rest)?;
                Some(Some(Part {
                    key,
                    order,
                    time,
                    values,
                }))
            };
            let (old, new) = (part(flags & 1 == 1)?, part(flags & 2 == 2)?);
            Some(Delta { row, old, new })
        };
        body().ok_or(DeltaError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_reads_back_and_a_foreign_or_cut_one_is_refused() {
        let part = |order| Part {
            key: b"[1]",
            order,
            time: -5,
            values: b"abc",
        };
        for (old, new) in [
            (None, Some(part(7))),
            (Some(part(1)), None),
            (Some(part(1)), Some(part(u128::MAX))),
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
            out[0] = 2;
            assert_eq!(Delta::read(9, b"[1]", &out), Err(DeltaError::Newer(2)));
        }
    }
}
