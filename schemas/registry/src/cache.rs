//! A registry with a memory: ids are immutable, so what was read once is kept for the life of the process.
//!
//! Guarantees: one id is asked for once, however many threads want it at the same time; an id that does not exist is
//! asked for again only after a while, so that garbage on a topic does not become a flood of calls. Never: a look at a
//! subject's latest version that may be old: only what cannot change is kept.

use crate::{Error, Level, Registered, Registry, Result, SharedRegistry, Version};
use schemas::ids::SchemaId;
use schemas::schema::Schema;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an id that was not found, or a registry that was out of reach, is not asked again.
const MISSING_FOR: Duration = Duration::from_secs(5);
const UNAVAILABLE_FOR: Duration = Duration::from_millis(250);

/// A registry behind a permanent cache of compiled schemas. Implements [`Registry`] itself.
pub struct Catalog {
    inner: SharedRegistry,
    slots: Mutex<HashMap<SchemaId, Slot>>,
    changed: Condvar,
    registered: Mutex<HashMap<(String, String), SchemaId>>,
}

#[derive(Clone)]
enum Slot {
    Loading,
    Ready(Arc<Schema>),
    Failed(Error, Instant),
}

impl Catalog {
    /// Puts a memory before a registry.
    pub fn new(inner: SharedRegistry) -> Self {
        Catalog {
            inner,
            slots: Mutex::default(),
            changed: Condvar::new(),
            registered: Mutex::default(),
        }
    }

    /// The compiled schema of an id. Blocks while it is read for the first time.
    ///
    /// # Errors
    /// [`Error::SchemaNotFound`]; [`Error::InvalidSchema`] when it is no Avro schema; [`Error::Unavailable`].
    pub fn schema(&self, id: SchemaId) -> Result<Arc<Schema>> {
        let mut slots = locked(&self.slots);
        loop {
            match slots.get(&id) {
                Some(Slot::Ready(schema)) => return Ok(schema.clone()),
                Some(Slot::Failed(error, until)) if Instant::now() < *until => return Err(error.clone()),
                Some(Slot::Loading) => slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner),
                Some(Slot::Failed(..)) | None => break,
            }
        }
        slots.insert(id, Slot::Loading);
        drop(slots);
        // Whatever happens to this thread, the others must not wait for ever.
        let mut flight = Flight {
            catalog: self,
            id,
            result: None,
        };
        let loaded = self.load(id);
        flight.result = Some(loaded.clone());
        loaded
    }

    fn load(&self, id: SchemaId) -> Result<Arc<Schema>> {
        let text = self.inner.by_id(id)?;
        let schema = Schema::parse(&text).map_err(|e| Error::InvalidSchema {
            reason: format!("schema {id}: {e}"),
        })?;
        Ok(Arc::new(schema))
    }

    /// Registers a compiled schema; its text was registered under this subject before: no call.
    ///
    /// # Errors
    /// As [`Registry::register`].
    pub fn register_schema(&self, subject: &str, schema: &Arc<Schema>) -> Result<SchemaId> {
        let id = self.register(subject, schema.text())?;
        locked(&self.slots)
            .entry(id)
            .or_insert_with(|| Slot::Ready(schema.clone()));
        Ok(id)
    }
}

struct Flight<'c> {
    catalog: &'c Catalog,
    id: SchemaId,
    result: Option<Result<Arc<Schema>>>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut slots = locked(&self.catalog.slots);
        match self.result.take() {
            Some(Ok(schema)) => slots.insert(self.id, Slot::Ready(schema)),
            Some(Err(error)) => {
                let wait = if matches!(error, Error::Unavailable { .. }) {
                    UNAVAILABLE_FOR
                } else {
                    MISSING_FOR
                };
                slots.insert(self.id, Slot::Failed(error, Instant::now() + wait))
            }
            None => slots.remove(&self.id),
        };
        self.catalog.changed.notify_all();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is one insertion, so that a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry for Catalog {
    fn register(&self, subject: &str, schema: &str) -> Result<SchemaId> {
        let key = (subject.to_owned(), schema.to_owned());
        if let Some(id) = locked(&self.registered).get(&key) {
            return Ok(*id);
        }
        let id = self.inner.register(subject, schema)?;
        locked(&self.registered).insert(key, id);
        Ok(id)
    }

    fn lookup(&self, subject: &str, schema: &str) -> Result<Registered> {
        self.inner.lookup(subject, schema)
    }

    fn by_id(&self, id: SchemaId) -> Result<Arc<str>> {
        // A schema that does not compile here has a text all the same.
        match self.schema(id) {
            Ok(schema) => Ok(Arc::from(schema.text())),
            Err(Error::InvalidSchema { .. }) => self.inner.by_id(id),
            Err(error) => Err(error),
        }
    }

    fn uses(&self, id: SchemaId) -> Result<Vec<(String, u32)>> {
        self.inner.uses(id)
    }

    fn subjects(&self) -> Result<Vec<String>> {
        self.inner.subjects()
    }

    fn versions(&self, subject: &str) -> Result<Vec<u32>> {
        self.inner.versions(subject)
    }

    fn version(&self, subject: &str, version: Version) -> Result<Registered> {
        self.inner.version(subject, version)
    }

    fn test_compatibility(&self, subject: &str, version: Version, schema: &str) -> Result<Vec<String>> {
        self.inner.test_compatibility(subject, version, schema)
    }

    fn level(&self, subject: Option<&str>) -> Result<Option<Level>> {
        self.inner.level(subject)
    }

    fn set_level(&self, subject: Option<&str>, level: Level) -> Result<()> {
        self.inner.set_level(subject, level)
    }

    fn describe_self(&self) -> String {
        self.inner.describe_self()
    }
}

#[cfg(test)]
mod tests;
