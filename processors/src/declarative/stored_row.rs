//! The encoding of a table's row in the state: its version, what it contributes, and the values that its source may omit.

use super::delta::Contribution;
use super::names::named;
use super::values::{json, read_array, read_byte, read_bytes, read_number, write_bytes, write_number};
use crate::input::JobError;
use event_log::Millis;
use schemas::codec::Datum;
use schemas::version::Version;
use serde_json::{Map, Value, json};

/// Format of rows in the state.
const FORMAT: u8 = 1;

/// A column's name and value.
pub type Kept = (String, Vec<u8>);

/// A value in the state that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A newer release wrote the value.
    #[error("its state has format {0}, but this release reads up to format {FORMAT}; update Trunkline")]
    Newer(u8),
    /// The bytes are corrupt.
    #[error("its state is corrupt: {0} cannot be decoded")]
    Damaged(&'static str),
}

impl From<JobError> for StateError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Newer(format) => StateError::Newer(format),
            JobError::Damaged(what) => StateError::Damaged(what),
        }
    }
}

/// The stored contribution of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowContribution {
    /// Key of the group or pair.
    pub key: Vec<u8>,
    /// Order among rows.
    pub order: u128,
    /// Time of the row, in ms.
    pub time: Millis,
    /// The values, encoded.
    pub values: Vec<u8>,
}

impl RowContribution {
    /// The contribution as part of a delta.
    pub fn as_contribution(&self) -> Contribution<'_> {
        Contribution {
            key: &self.key,
            order: self.order,
            time: self.time,
            values: &self.values,
        }
    }
}

/// A row after its last change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// Version.
    pub version: Version,
    /// When it was deleted, by the processor's clock in ms.
    pub deleted_ms: Option<Millis>,
    /// What the row contributes.
    pub contribution: Option<RowContribution>,
    /// Large values that the source may omit when they do not change, by column name. A deleted row has them only until
    /// the same row is written under another key.
    pub kept: Vec<Kept>,
}

/// The first part of an encoded row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowHeader {
    /// Version.
    pub version: Version,
    /// Whether the row is deleted.
    pub is_deleted: bool,
}

impl Row {
    /// Encodes the row, including the format byte.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.version.to_bytes());
        out.extend_from_slice(&self.deleted_ms.unwrap_or(i64::MIN).to_be_bytes());
        out.push(u8::from(self.contribution.is_some()));
        if let Some(contribution) = &self.contribution {
            write_bytes(&mut out, &contribution.key);
            out.extend_from_slice(&contribution.order.to_be_bytes());
            out.extend_from_slice(&contribution.time.to_be_bytes());
            write_bytes(&mut out, &contribution.values);
        }
        write_number(&mut out, u64::try_from(self.kept.len()).unwrap_or(u64::MAX));
        for (name, value) in &self.kept {
            write_bytes(&mut out, name.as_bytes());
            write_bytes(&mut out, value);
        }
        out
    }

    /// Decodes only what determines whether a sweep removes the row.
    pub fn header(mut bytes: &[u8]) -> Result<RowHeader, StateError> {
        let (version, deleted_ms) = Self::read_header(&mut bytes)?;
        Ok(RowHeader {
            version,
            is_deleted: deleted_ms.is_some(),
        })
    }

    fn read_header(rest: &mut &[u8]) -> Result<(Version, Option<Millis>), StateError> {
        match read_byte(rest) {
            Some(FORMAT) => {}
            Some(found) => return Err(StateError::Newer(found)),
            None => return Err(StateError::Damaged("a row")),
        }
        let mut header = || {
            let version = Version::from_bytes(&read_array::<17>(rest)?).ok()?;
            let deleted = i64::from_be_bytes(read_array(rest)?);
            Some((version, (deleted != i64::MIN).then_some(deleted)))
        };
        header().ok_or(StateError::Damaged("a row"))
    }

    /// Decodes the output of [`Self::encode`].
    pub fn decode(mut bytes: &[u8]) -> Result<Row, StateError> {
        let rest = &mut bytes;
        let (version, deleted_ms) = Self::read_header(rest)?;
        let mut body = || {
            let contribution = match read_byte(rest)? {
                0 => None,
                _ => Some(RowContribution {
                    key: read_bytes(rest)?.to_vec(),
                    order: u128::from_be_bytes(read_array(rest)?),
                    time: i64::from_be_bytes(read_array(rest)?),
                    values: read_bytes(rest)?.to_vec(),
                }),
            };
            let mut kept = Vec::new();
            for _ in 0..read_number(rest)? {
                let name = std::str::from_utf8(read_bytes(rest)?).ok()?.to_owned();
                kept.push((name, read_bytes(rest)?.to_vec()));
            }
            Some(Row {
                version,
                deleted_ms,
                contribution,
                kept,
            })
        };
        body().ok_or(StateError::Damaged("a row"))
    }
}

/// A row of the state as JSON; `names` are the names of the values of its contribution. `None` if the bytes are not a
/// row.
pub fn readable(bytes: &[u8], names: &[String]) -> Option<Value> {
    let row = Row::decode(bytes).ok()?;
    let contribution = match &row.contribution {
        Some(contribution) => json!({
            "key": serde_json::from_slice::<Value>(&contribution.key).ok()?,
            "time_ms": contribution.time,
            "values": named(names, &contribution.values)?,
        }),
        None => Value::Null,
    };
    let kept = row.kept.into_iter().map(|(name, value)| {
        let value = String::from_utf8(value).map_or_else(|e| json(&Datum::Bytes(e.as_bytes())), Value::from);
        (name, value)
    });
    Some(json!({
        "version": readable_version(row.version),
        "deleted_ms": row.deleted_ms,
        "contribution": contribution,
        "kept": kept.collect::<Map<_, _>>(),
    }))
}

/// A version as JSON.
pub fn readable_version(version: Version) -> Value {
    json!({ "source_epoch": version.source_epoch, "position": version.position, "ordinal": version.ordinal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_round_trips_and_truncation_is_an_error() {
        let contribution = RowContribution {
            key: b"[1]".to_vec(),
            order: 77,
            time: -3,
            values: vec![3, 1],
        };
        let row = Row {
            version: Version {
                source_epoch: 1,
                position: 9,
                ordinal: 2,
            },
            deleted_ms: Some(5),
            contribution: Some(contribution),
            kept: vec![("note".into(), b"long".to_vec())],
        };
        for row in [row, Row::default()] {
            let bytes = row.encode();
            assert_eq!(Row::decode(&bytes), Ok(row));
            for cut in 0..bytes.len() {
                assert!(Row::decode(&bytes[..cut]).is_err(), "{cut} bytes");
            }
        }
        assert_eq!(Row::decode(&[2]), Err(StateError::Newer(2)));
    }
}
