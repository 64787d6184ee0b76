//! A dead letter: the record that failed, and the error in its headers.
//!
//! The errors headers follow the record's own headers. If a redriven record becomes a dead letter again, it has the
//! errors headers twice: the first ones name the original offset of the record, the last ones the last error.

use super::PartitionRange;
use crate::{Decoded, Error, Result};
use event_log::{Header, Millis, Offset, RecordRef, TopicInfo};
use schemas::headers::{MISSING, REPLAYED, errors};
use schemas::key::{Part, Parts};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ops::Range;
use topology::Names;

/// Which dead letters of a topic.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Filter {
    /// Only this partition.
    pub partition: Option<i32>,
    /// Only the dead letter at this offset of the dead-letter topic.
    pub offset: Option<Offset>,
    /// Only this stage.
    pub stage: Option<String>,
    /// Only dead letters whose error type or message contains this text.
    pub reason: Option<String>,
    /// Only records with this key, given as JSON text.
    pub key: Option<String>,
    /// Only dead letters that were written at this time (ms) or later.
    pub since: Option<Millis>,
}

impl Filter {
    /// The partitions to read.
    pub(super) fn partitions(&self, info: &TopicInfo) -> Result<Range<i32>> {
        match self.partition {
            None => Ok(0..info.partitions),
            Some(one) if (0..info.partitions).contains(&one) => Ok(one..one + 1),
            Some(other) => Err(Error::Rejected(format!(
                "topic {} has {} partitions, numbered from 0; there is no partition {other}",
                info.name, info.partitions
            ))),
        }
    }

    /// The part of the ranges that can contain the dead letters.
    pub(super) fn narrow(&self, ranges: Vec<PartitionRange>) -> Vec<PartitionRange> {
        let Some(offset) = self.offset else { return ranges };
        let one = |range: PartitionRange| PartitionRange {
            from: range.from.max(offset),
            to: range.to.min(offset.saturating_add(1)),
            ..range
        };
        ranges.into_iter().map(one).collect()
    }

    pub(super) fn matches(&self, letter: &View<'_, '_>) -> bool {
        let record = letter.record;
        let is_stage = |stage: &String| letter.text(errors::STAGE).eq_ignore_ascii_case(stage);
        let has_reason = |text: &String| {
            letter.reason().contains(text.as_str()) || letter.text(errors::EXCEPTION_CLASS_NAME).contains(text.as_str())
        };
        self.offset.is_none_or(|offset| record.offset() == offset)
            && self.since.is_none_or(|since| record.timestamp() >= since)
            && self.stage.as_ref().is_none_or(is_stage)
            && self.reason.as_ref().is_none_or(has_reason)
            && self.key.as_ref().is_none_or(|key| record.key() == Some(key.as_bytes()))
    }
}

/// The record of a dead letter before it failed.
#[derive(Debug, Clone, Serialize)]
pub struct Origin {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset; `None` for a timer, and for a row that a source could not publish.
    pub offset: Option<Offset>,
}

/// A dead letter, decoded.
#[derive(Debug, Serialize)]
pub struct Letter {
    /// The record in the dead-letter topic. Its headers contain the errors headers.
    #[serde(flatten)]
    pub record: Decoded,
    /// The record in its original topic.
    pub origin: Origin,
    /// Application or connector that wrote the dead letter.
    pub application: String,
    /// Stage in which the processing failed.
    pub stage: String,
    /// Type of the error.
    pub error_type: String,
    /// The error and its causes.
    pub reason: String,
    /// Whether the dead letter was redriven.
    pub redriven: bool,
    /// Why the dead letter cannot be redriven.
    pub refusal: Option<String>,
}

/// A dead letter in a batch.
pub(super) struct View<'r, 'b> {
    pub record: &'r RecordRef<'b>,
    origin: &'r str,
    /// Number of the record's own headers.
    own_headers: usize,
}

impl<'r, 'b> View<'r, 'b> {
    /// The dead letter in a record of the dead-letter topic of `origin`; `None` for a redrive mark.
    pub fn of(record: &'r RecordRef<'b>, origin: &'r str) -> Option<Self> {
        if super::marks::is_mark(record) {
            return None;
        }
        // A record of another pipeline can have its own errors headers, which name another topic.
        let mut headers = record.headers().iter();
        let first = headers.position(|(name, value)| name == errors::TOPIC && value == Some(origin.as_bytes()));
        Some(View {
            record,
            origin,
            own_headers: first.unwrap_or(usize::MAX),
        })
    }

    /// The headers of the record before it failed.
    pub fn own_headers(&self) -> impl Iterator<Item = Header<'b>> {
        self.record.headers().iter().take(self.own_headers)
    }

    /// The last value of an errors header.
    pub fn text(&self, name: &str) -> Cow<'b, str> {
        String::from_utf8_lossy(self.record.header(name).unwrap_or_default())
    }

    pub fn reason(&self) -> Cow<'b, str> {
        self.text(errors::EXCEPTION_MESSAGE)
    }

    /// Application, stage and type of the error.
    pub fn cause(&self) -> (String, String, String) {
        let text = |name| self.text(name).into_owned();
        (
            text(errors::CONNECTOR_NAME),
            text(errors::STAGE),
            text(errors::EXCEPTION_CLASS_NAME),
        )
    }

    /// The original offset of the record: that of its first dead letter.
    pub fn original_offset(&self) -> Option<Offset> {
        let mut errors = self.record.headers().iter().skip(self.own_headers);
        let (_, offset) = errors.find(|(name, _)| *name == errors::OFFSET)?;
        std::str::from_utf8(offset?).ok()?.parse().ok()
    }

    pub fn origin(&self) -> Origin {
        Origin {
            topic: self.origin.to_owned(),
            partition: self.record.partition().partition,
            offset: self.original_offset(),
        }
    }

    pub fn describe(&self, record: Decoded, redriven: bool) -> Letter {
        let (application, stage, error_type) = self.cause();
        Letter {
            record,
            origin: self.origin(),
            application,
            stage,
            error_type,
            reason: self.reason().into_owned(),
            redriven,
            refusal: self.refusal(),
        }
    }

    /// Why the dead letter cannot be redriven, and what to do instead.
    pub fn refusal(&self) -> Option<String> {
        if self.own_headers == usize::MAX {
            return Some(format!(
                "its headers do not name topic {}, so it was not written by a processor or connector of this topic",
                self.origin
            ));
        }
        if self.original_offset().is_none() {
            return Some(match self.unpublished_row() {
                Some((source, table)) => format!(
                    "the source could not publish this row, so the dead letter does not contain it; update the row in the \
                     database, or snapshot its table with `trunkline connect snapshot {source} {table}`"
                ),
                None => String::from(
                    "it contains no record, because the effects of a timer were rejected; its message names the timer",
                ),
            });
        }
        let has_own = self.own_headers().any(|(name, _)| name != REPLAYED);
        let is_empty = self.record.key().is_none() && self.record.value().is_none() && !has_own;
        is_empty.then(|| {
            String::from(
                "only the position of the record is left, because the dead-letter topic rejected its contents; raise \
                 max.message.bytes of the dead-letter topic for later ones, and write a newer record with the same key",
            )
        })
    }

    /// Source and table of a row that a source could not publish.
    fn unpublished_row(&self) -> Option<(String, String)> {
        self.record.header(MISSING)?;
        let mut parts = Parts::new(self.record.key()?).ok()?;
        let mut text = || match parts.next() {
            Some(Ok(Part::Str(text))) => Some(text.into_owned()),
            _ => None,
        };
        let table = text().filter(|first| first == "~missing").and_then(|_| text())?;
        let names = Names::owning(self.origin)?;
        let source = names.local(self.origin).strip_prefix("change.")?;
        Some((source.to_owned(), table))
    }
}
