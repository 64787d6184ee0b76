//! The view rules, bound to the schemas with which the records of a source stream were written.
//!
//! `prepare` fetches schemas, so that a step does no IO. If the registry does not know a schema, or the schema is
//! incompatible with the rules, the records that use it become dead letters. The state has the text of each schema that
//! its rows use, so that rows can be read again with other rules.

use super::state::{FORMAT, StateError, damaged, open};
use crate::dead_letter::RecordError;
use crate::input::{self, BoundSchemas, FetchSchema, LoadedMark, schema_id};
use event_log::RecordSlice;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use streams::{Error, Stage, State};
use views::rules::{Bound, Relation, SourceRules};

/// Bound rules by table and schema id.
pub(super) struct Bindings {
    rules: Arc<SourceRules>,
    fetch: FetchSchema,
    tables: HashMap<String, BoundSchemas<Bound>>,
    /// Texts of the schemas that were fetched.
    texts: BTreeMap<u32, String>,
    /// Ids of schemas that may not be in the state.
    unsaved: BTreeSet<u32>,
}

/// State key of a schema.
fn schema_key(id: u32) -> Vec<u8> {
    format!("[\"schema\",\"{id}\"]").into_bytes()
}

impl Bindings {
    pub(super) fn new(rules: Arc<SourceRules>, fetch: FetchSchema) -> Self {
        Bindings {
            rules,
            fetch,
            tables: HashMap::new(),
            texts: BTreeMap::new(),
            unsaved: BTreeSet::new(),
        }
    }

    /// Called when the state was restored or rolled back.
    pub(super) fn restored(&mut self) {
        self.unsaved = self.texts.keys().copied().collect();
    }

    /// Stores the texts of new schemas.
    pub(super) fn save(&mut self, state: &mut State) -> Result<(), Error> {
        for id in std::mem::take(&mut self.unsaved) {
            let key = schema_key(id);
            if let Some(text) = self.texts.get(&id)
                && state.get(&key)?.is_none()
            {
                state.put(&key, [&[FORMAT], text.as_bytes()].concat());
            }
        }
        Ok(())
    }

    /// The rules bound to a schema that rows of the state use, or why they cannot be bound.
    pub(super) fn stored(
        &mut self,
        id: u32,
        relation: &Arc<Relation>,
        state: &State,
    ) -> Result<Result<Arc<Bound>, String>, Error> {
        let schemas = self.tables.entry(relation.name().to_owned()).or_default();
        if let Ok(bound) = schemas.get(id) {
            return Ok(Ok(bound.clone()));
        }
        let Some(bytes) = state.get(&schema_key(id))? else {
            return Ok(Err(format!("schema {id} is not in the state")));
        };
        let text = open(&bytes).map_err(|e| damaged(&e))?;
        let text = std::str::from_utf8(text).map_err(|_| damaged(&StateError::Damaged("a schema")))?;
        schemas.bind(id, text, |text| relation.bind(text).map_err(|error| error.to_string()));
        Ok(schemas.get(id).cloned())
    }

    /// Fetches the schemas that records need and that are not bound yet.
    pub(super) fn prepare(&mut self, records: RecordSlice<'_>) -> Result<(), Error> {
        let (mut last, mut failed) = (None, None);
        for record in records.iter() {
            let Some(id) = record
                .value()
                .and_then(schema_id)
                .filter(|_| !LoadedMark::is_in(&record))
            else {
                continue;
            };
            let Some(table) = input::table_of(&record, self.rules.event()) else {
                continue;
            };
            if last == Some((id, table)) {
                continue;
            }
            last = Some((id, table));
            let Some(relation) = self.rules.relation(table) else {
                continue;
            };
            if !self.tables.contains_key(table) {
                self.tables.insert(table.to_owned(), BoundSchemas::default());
            }
            let Some(schemas) = self.tables.get_mut(table) else {
                continue;
            };
            let (texts, unsaved) = (&mut self.texts, &mut self.unsaved);
            let prepared = schemas.prepare(id, &self.fetch, |text| {
                if texts.insert(id, text.to_owned()).is_none() {
                    unsaved.insert(id);
                }
                relation.bind(text).map_err(|error| error.to_string())
            });
            // The other schemas are fetched as well, so that those of one batch are waited for together.
            failed = failed.or(prepared.err());
        }
        match failed {
            None => Ok(()),
            Some(error) => Err(Error::Processor {
                name: "sync-views".into(),
                reason: error.reason,
                action: error.action,
            }),
        }
    }

    /// The rules bound to the schema of a value, which `prepare` has fetched.
    pub(super) fn get(&self, value: &[u8], table: &str) -> Result<Arc<Bound>, RecordError> {
        let id =
            schema_id(value).ok_or_else(|| RecordError::new(Stage::ValueConverter, "the value has no schema id"))?;
        let bound = match self.tables.get(table) {
            Some(schemas) => schemas.get(id).cloned(),
            None => Err(format!("schema {id} is unknown")),
        };
        bound.map_err(|reason| RecordError::new(Stage::ValueConverter, reason))
    }
}
