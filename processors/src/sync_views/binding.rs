//! The view rules, bound to the schemas with which the records of a source stream were written.
//!
//! `prepare` fetches schemas, so that a step does no IO. If the registry does not know a schema, or the schema is
//! incompatible with the rules, the records that use it become dead letters. The state has the text of each schema that
//! its rows use, so that rows can be read again with other rules.

use super::state::{FORMAT, StateError, damaged, open};
use crate::dead_letter::RecordError;
use crate::input::{self, FetchSchema, Unavailable, schema_id};
use event_log::{ErrorAction, RecordSlice};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use streams::{Error, Stage, State};
use views::rules::{Bound, Relation, SourceRules};

/// Bound rules by schema id and table.
pub(super) struct Bindings {
    rules: Arc<SourceRules>,
    fetch: FetchSchema,
    bound: HashMap<(u32, Arc<str>), Arc<Bound>>,
    /// Ids that cannot be used, with the reason.
    unusable: HashMap<u32, String>,
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
            bound: HashMap::new(),
            unusable: HashMap::new(),
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
        let table = relation.name();
        let known = self
            .bound
            .iter()
            .find(|((known, name), _)| *known == id && **name == *table);
        if let Some((_, bound)) = known {
            return Ok(Ok(bound.clone()));
        }
        let Some(bytes) = state.get(&schema_key(id))? else {
            return Ok(Err(format!("schema {id} is not in the state")));
        };
        let text = open(&bytes).map_err(|e| damaged(&e))?;
        let text = std::str::from_utf8(text).map_err(|_| damaged(&StateError::Damaged("a schema")))?;
        match relation.bind(text) {
            Ok(bound) => {
                let bound = Arc::new(bound);
                self.bound.insert((id, table.into()), bound.clone());
                Ok(Ok(bound))
            }
            Err(error) => Ok(Err(error.to_string())),
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
        if self.texts.insert(id, text.clone()).is_none() {
            self.unsaved.insert(id);
        }
        match relation.bind(&text) {
            Ok(bound) => drop(self.bound.insert((id, table.into()), Arc::new(bound))),
            Err(error) => drop(self.unusable.insert(id, error.to_string())),
        }
        Ok(())
    }
}
