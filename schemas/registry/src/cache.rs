//! A registry with a cache. Schemas are immutable, so each is fetched once and kept for the lifetime of the process.
//!
//! Concurrent requests for an id share one call. Failures are cached for a short time, so that invalid records do not
//! cause many calls. The latest version of a subject can change and is never cached.

use crate::{Deleted, Deletion, Error, Level, Manage, Mode, Registered, Registry, Result, SharedRegistry, Version};
use schemas::ids::SchemaId;
use schemas::schema::Schema;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a missing id is cached. A registry that follows another one learns a new schema a moment later.
const MISSING_FOR: Duration = Duration::from_secs(1);
/// How long the unavailability of the registry is cached.
const UNAVAILABLE_FOR: Duration = Duration::from_millis(250);

/// Adds a cache of compiled schemas to a registry. A catalog is a [`Registry`] too.
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
    /// Creates an empty cache for a registry.
    pub fn new(inner: SharedRegistry) -> Self {
        Catalog {
            inner,
            slots: Mutex::default(),
            changed: Condvar::new(),
            registered: Mutex::default(),
        }
    }

    /// The compiled schema with this id. Blocks while it is fetched for the first time.
    ///
    /// # Errors
    /// [`Error::SchemaNotFound`]; [`Error::InvalidSchema`] if it is not an Avro schema; [`Error::Unavailable`].
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
        // The guard also clears the entry if this thread panics, because other threads must not wait forever.
        let mut guard = LoadGuard {
            catalog: self,
            id,
            result: None,
        };
        let loaded = self.load(id);
        guard.result = Some(loaded.clone());
        loaded
    }

    fn load(&self, id: SchemaId) -> Result<Arc<Schema>> {
        let text = self.inner.by_id(id)?;
        let schema = Schema::parse(&text).map_err(|e| Error::InvalidSchema {
            reason: format!("schema {id}: {e}"),
        })?;
        Ok(Arc::new(schema))
    }

    /// Registers a compiled schema. Makes no call if the same text was registered under this subject before.
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

struct LoadGuard<'c> {
    catalog: &'c Catalog,
    id: SchemaId,
    result: Option<Result<Arc<Schema>>>,
}

impl Drop for LoadGuard<'_> {
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
    // Each change under these locks is a single insertion, so the value is consistent even if a lock is poisoned.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Catalog {
    /// Forgets which schemas are registered, because a deleted one must be registered again.
    fn deleted<T>(&self, result: Result<T>) -> Result<T> {
        locked(&self.registered).clear();
        result
    }
}

impl Manage for Catalog {
    fn list_subjects(&self, deleted: Deleted) -> Result<Vec<String>> {
        self.inner.list_subjects(deleted)
    }

    fn list_versions(&self, subject: &str, deleted: Deleted) -> Result<Vec<u32>> {
        self.inner.list_versions(subject, deleted)
    }

    fn any_version(&self, subject: &str, version: Version) -> Result<Registered> {
        self.inner.any_version(subject, version)
    }

    fn delete_subject(&self, subject: &str, deletion: Deletion) -> Result<Vec<u32>> {
        self.deleted(self.inner.delete_subject(subject, deletion))
    }

    fn delete_version(&self, subject: &str, version: Version, deletion: Deletion) -> Result<u32> {
        self.deleted(self.inner.delete_version(subject, version, deletion))
    }

    fn remove_level(&self, subject: Option<&str>) -> Result<Level> {
        self.inner.remove_level(subject)
    }

    fn mode(&self, subject: Option<&str>) -> Result<Option<Mode>> {
        self.inner.mode(subject)
    }

    fn set_mode(&self, subject: Option<&str>, mode: Mode) -> Result<()> {
        self.inner.set_mode(subject, mode)
    }

    fn remove_mode(&self, subject: &str) -> Result<Mode> {
        self.inner.remove_mode(subject)
    }
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
        // Even a schema that cannot be compiled here has a text.
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

    fn description(&self) -> String {
        self.inner.description()
    }
}

#[cfg(test)]
mod tests;
