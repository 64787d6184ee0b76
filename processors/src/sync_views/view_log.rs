//! Writing the records of `view.log`: rows, marks, and the markers that begin and end a source transaction.
//!
//! An end marker makes all earlier records of its writer in its partition visible (docs/protocol/view-sync.md, "Records
//! of view.log"). The caller therefore keeps a set of the partitions to which it has written since their last end
//! marker.

use event_log::{Header, OutRecord};
use schemas::version::Version;
use std::sync::Arc;
use streams::Output;
use views::record::{self, SchemaIds, Writer, Written};

/// A row of a view, or its removal.
pub(super) struct ViewRow<'r> {
    pub(super) bucket: &'r str,
    pub(super) view: &'r str,
    /// Elements of the JSON array that is the row key.
    pub(super) row_key: &'r str,
    /// `None` removes the row.
    pub(super) json: Option<&'r [u8]>,
    pub(super) partition: i32,
    pub(super) version: Version,
}

/// Writes to `view.log` as one writer.
pub(super) struct ViewLog {
    topic: Arc<str>,
    /// Writer id, in the header of each row and mark.
    id: String,
    writer: Writer,
}

impl ViewLog {
    pub(super) fn new(topic: Arc<str>, id: String, schemas: SchemaIds) -> Self {
        ViewLog {
            topic,
            writer: Writer::new(id.clone(), schemas),
            id,
        }
    }

    pub(super) fn row(&mut self, row: &ViewRow<'_>, output: &mut Output) {
        let version = row.version.to_bytes();
        let headers: [Header<'_>; 2] = [
            (record::WRITER, Some(self.id.as_bytes())),
            (record::VERSION, Some(&version)),
        ];
        let written = self.writer.row(row.bucket, row.view, row.row_key, row.json);
        send(&self.topic, row.partition, written, headers, output);
    }

    pub(super) fn stale_mark(&mut self, view: &str, stale: bool, partition: i32, output: &mut Output) {
        let headers: [Header<'_>; 1] = [(record::WRITER, Some(self.id.as_bytes()))];
        let written = self.writer.stale_mark(view, stale);
        send(&self.topic, partition, written, headers, output);
    }

    pub(super) fn loaded_mark(&mut self, view: &str, loaded: bool, partition: i32, output: &mut Output) {
        let headers: [Header<'_>; 1] = [(record::WRITER, Some(self.id.as_bytes()))];
        let written = self.writer.loaded_mark(view, loaded);
        send(&self.topic, partition, written, headers, output);
    }

    pub(super) fn begin_marker(&mut self, last: Version, partition: i32, output: &mut Output) {
        let headers: [Header<'_>; 1] = [(record::WRITER, Some(self.id.as_bytes()))];
        let written = self.writer.transaction_begin(last);
        send(&self.topic, partition, written, headers, output);
    }

    pub(super) fn end_marker(&mut self, last: Version, at_ms: i64, partition: i32, output: &mut Output) {
        let written = self.writer.transaction_end(last, at_ms);
        send(&self.topic, partition, written, [], output);
    }
}

fn send<'h>(
    topic: &Arc<str>,
    partition: i32,
    written: Written<'_>,
    headers: impl IntoIterator<Item = Header<'h>>,
    output: &mut Output,
) {
    let (key, value) = written;
    let record = OutRecord {
        topic,
        partition: Some(partition),
        timestamp: None,
        key: Some(key),
        value,
    };
    output.send(record, headers);
}
