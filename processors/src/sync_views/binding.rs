//! The view rules, bound to the schemas with which the records of a source stream were written.
//!
//! `prepare` fetches schemas, so that a step does no IO. If the registry does not know a schema, or the schema is
//! incompatible with the rules, the records that use it become dead letters.

use crate::dead_letter::RecordError;
use crate::input::{self, FetchSchema, Unavailable, schema_id};
use event_log::{ErrorAction, RecordSlice};
use std::collections::HashMap;
use std::sync::Arc;
use streams::{Error, Stage};
use views::rules::{Bound, Relation, SourceRules};

/// Bound rules by schema id and table.
pub(super) struct Bindings {
    rules: Arc<SourceRules>,
    fetch: FetchSchema,
    bound: HashMap<(u32, Arc<str>), Arc<Bound>>,
    /// Ids that cannot be used, with the reason.
    unusable: HashMap<u32, String>,
}

impl Bindings {
    pub(super) fn new(rules: Arc<SourceRules>, fetch: FetchSchema) -> Self {
        Bindings {
            rules,
            fetch,
            bound: HashMap::new(),
            unusable: HashMap::new(),
        }
    }

    /// Fetches the schemas that records need and that are not bound yet.
    pub(super) fn prepare(&mut self, records: RecordSlice<'_>) -> Result<(), Error> {
        let (mut last, rules) = (None, self.rules.clone());
        for record in records.iter() {
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
            // A redriven record is looked up again, because its schema may have been registered in the meantime.
            let known = self.unusable.contains_key(&id) && record.header(schemas::headers::REPLAYED).is_none();
            if !known && !self.bound.keys().any(|(i, t)| *i == id && **t == *table) {
                self.fetch(id, table)?;
            }
        }
        Ok(())
    }

    /// The rules bound to the schema of a value, which `prepare` has fetched.
    pub(super) fn get(&self, value: &[u8], table: &str, relation: &Relation) -> Result<Arc<Bound>, RecordError> {
        let id =
            schema_id(value).ok_or_else(|| RecordError::new(Stage::ValueConverter, "the value has no schema id"))?;
        let known = self
            .bound
            .iter()
            .find(|((known, name), _)| *known == id && **name == *table);
        known.map(|(_, bound)| bound.clone()).ok_or_else(|| {
            let reason = self.unusable.get(&id).cloned();
            let reason = reason.unwrap_or_else(|| {
                format!(
                    "schema {id} is incompatible with the view rules of `{}`",
                    relation.name()
                )
            });
            RecordError::new(Stage::ValueConverter, reason)
        })
    }

    fn fetch(&mut self, id: u32, table: &str) -> Result<(), Error> {
        let Some(relation) = self.rules.relation(table).cloned() else {
            return Ok(());
        };
        let text = match (self.fetch)(id) {
            Ok(text) => text,
            Err(Unavailable {
                reason,
                action: ErrorAction::DeadLetter,
            }) => {
                self.unusable.insert(id, reason);
                return Ok(());
            }
            Err(Unavailable { reason, action }) => {
                return Err(Error::Processor {
                    name: "sync-views".into(),
                    reason,
                    action,
                });
            }
        };
        match relation.bind(&text) {
            Ok(bound) => drop(self.bound.insert((id, table.into()), Arc::new(bound))),
            Err(error) => drop(self.unusable.insert(id, error.to_string())),
        }
        Ok(())
    }
}
