//! Rules bound to the schemas that a line's records were written with.
//!
//! Guarantees: a schema is fetched before the step that needs it; what the registry does not know, or what does not fit the
//! rules, refuses the records and nothing else. Never: IO in a step.

use super::{Refused, SyncViews, Unavailable, input};
use event_log::{ErrorAction, RecordBatch};
use std::ops::Range;
use std::sync::Arc;
use streams::{Error, Stage};
use views::rules::{Bound, Relation};

impl SyncViews {
    /// Fetches the schemas of records that are not known yet.
    pub(super) fn learn(&mut self, records: &RecordBatch, range: Range<usize>) -> Result<(), Error> {
        let (mut last, rules) = (None, self.config.rules.clone());
        for record in range.filter_map(|i| records.get(i)) {
            let Some(id) = record.value().and_then(schema_id) else {
                continue;
            };
            let Some(table) = input::table_of(&record, rules.event()) else {
                continue;
            };
            if last == Some((id, table)) {
                continue;
            }
            last = Some((id, table));
            // What is sent again may be so because its schema is there now.
            let known = self.unknown.contains_key(&id) && record.header(schemas::headers::REPLAYED).is_none();
            if !known && !self.bound.keys().any(|(i, t)| *i == id && **t == *table) {
                self.fetch(id, table)?;
            }
        }
        Ok(())
    }

    /// The rules bound to the schema that a value was written with; `prepare` has fetched it.
    pub(super) fn bound(&self, value: &[u8], table: &str, relation: &Relation) -> Result<Arc<Bound>, Refused> {
        let id = schema_id(value).ok_or_else(|| Refused::new(Stage::ValueConverter, "the value has no schema id"))?;
        let known = self
            .bound
            .iter()
            .find(|((known, name), _)| *known == id && **name == *table);
        known.map(|(_, bound)| bound.clone()).ok_or_else(|| {
            let why = self.unknown.get(&id).cloned();
            let why = why.unwrap_or_else(|| format!("schema {id} does not fit `{}`", relation.name()));
            Refused::new(Stage::ValueConverter, why)
        })
    }

    fn fetch(&mut self, id: u32, table: &str) -> Result<(), Error> {
        let Some(relation) = self.config.rules.relation(table).cloned() else {
            return Ok(());
        };
        let text = match (self.config.fetch)(id) {
            Ok(text) => text,
            Err(Unavailable {
                reason,
                fate: ErrorAction::DeadLetter,
            }) => {
                self.unknown.insert(id, reason);
                return Ok(());
            }
            Err(Unavailable { reason, fate }) => {
                return Err(Error::Processor {
                    name: "sync-views".into(),
                    reason,
                    fate,
                });
            }
        };
        match relation.bind(&text) {
            Ok(bound) => drop(self.bound.insert((id, table.into()), Arc::new(bound))),
            Err(error) => drop(self.unknown.insert(id, error.to_string())),
        }
        Ok(())
    }
}

/// The schema id of a framed value.
pub(crate) fn schema_id(value: &[u8]) -> Option<u32> {
    match value.first_chunk::<5>() {
        Some([0, a, b, c, d]) => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}
