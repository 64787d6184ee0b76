//! A changed row, as it is stored in a replica and sent in a page.

use crate::BucketId;
use crate::replica::bytes::{decode_row, decode_row_key};
use event_log::Offset;

/// A row that is written or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Bucket.
    pub bucket: BucketId,
    /// Offset in `view.log`.
    pub offset: Offset,
    value: Vec<u8>,
}

/// Fields of a [`Change`], borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeParts<'a> {
    /// View.
    pub view: &'a str,
    /// Elements of the row key's JSON array, without brackets.
    pub key: &'a str,
    /// Version.
    pub version: [u8; 17],
    /// Row as JSON; `None` if the row is deleted.
    pub json: Option<&'a [u8]>,
}

impl Change {
    pub(crate) fn from_store(key: &[u8], value: &[u8]) -> Option<Self> {
        let (bucket, offset) = decode_row_key(key)?;
        decode_row(value)?;
        Some(Change {
            bucket,
            offset,
            value: value.to_vec(),
        })
    }

    /// Decodes the fields.
    pub fn parts(&self) -> ChangeParts<'_> {
        let row = decode_row(&self.value).expect("`from_store` has decoded the value");
        ChangeParts {
            view: row.view,
            key: row.key,
            version: row.version,
            json: row.json,
        }
    }
}
