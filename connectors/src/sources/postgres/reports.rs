//! The states of a source's tables, for reports and metrics.

use super::static_record::{StaticRecord, TableRecord};
use crate::status::{TableProgress, TableReport, TableState};
use std::sync::Arc;

/// The states of the tables according to a static record.
#[derive(Default)]
pub(super) struct Reports {
    tables: Arc<[TableReport]>,
    of: Option<Reported>,
}

/// What the states of the tables depend on.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Reported {
    pub(super) source: StaticRecord,
    pub(super) is_streaming: bool,
    /// The table whose snapshot is running.
    pub(super) progress: Option<(String, TableProgress)>,
}

impl Reports {
    pub(super) fn update(&mut self, now: Reported) {
        if self.of.as_ref() == Some(&now) {
            return;
        }
        let report = |(name, table): (&String, &TableRecord)| {
            let stopped = table.needs_snapshot.as_ref();
            let state = match (stopped, &table.snapshot) {
                (_, Some(_)) => TableState::Snapshotting,
                (Some(_), None) => TableState::NeedsSnapshot,
                (None, None) if now.is_streaming => TableState::Running,
                (None, None) => TableState::Snapshotting,
            };
            let progress = now.progress.as_ref().filter(|(table, _)| table == name);
            TableReport {
                table: name.clone(),
                state,
                cause: stopped.filter(|_| table.snapshot.is_none()).map(|s| s.cause.clone()),
                fix: stopped.filter(|_| table.snapshot.is_none()).map(|s| s.fix.clone()),
                progress: progress.map(|(_, progress)| *progress),
            }
        };
        self.tables = now.source.content().tables.iter().map(report).collect();
        self.of = Some(now);
    }

    /// The states after the last update.
    pub(super) fn tables(&self) -> Arc<[TableReport]> {
        Arc::clone(&self.tables)
    }
}
