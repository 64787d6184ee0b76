//! The state that results from the records of `_schemas`, and the decision which record a registration must write. No
//! IO.

use super::record::Record;
use crate::{Error, Level, Registered, Result, Version};
use schemas::ids::SchemaId;
use schemas::schema::Schema;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The registry's state.
#[derive(Default)]
pub(super) struct State {
    by_id: BTreeMap<SchemaId, Arc<str>>,
    /// Ids by normalized JSON, so that equal schemas share an id.
    by_schema: HashMap<String, SchemaId>,
    subjects: BTreeMap<String, BTreeMap<u32, Entry>>,
    levels: HashMap<Option<String>, Level>,
}

struct Entry {
    id: SchemaId,
    deleted: bool,
}

/// What must be done to register a schema.
pub(super) enum Decision {
    /// No record: the schema is already registered under this id.
    Known(SchemaId),
    /// This record, which registers the schema under this id.
    Write(SchemaId, Record),
}

impl State {
    /// Applies a record.
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Schema {
                subject,
                version,
                id,
                schema,
                deleted,
            } => {
                self.by_schema.entry(normalized(&schema)).or_insert(id);
                self.by_id.insert(id, schema.into());
                self.subjects
                    .entry(subject)
                    .or_default()
                    .insert(version, Entry { id, deleted });
            }
            Record::SchemaTombstone { subject, version } => {
                if let Some(versions) = self.subjects.get_mut(&subject) {
                    versions.remove(&version);
                }
            }
            Record::Config {
                subject,
                level: Some(level),
            } => {
                self.levels.insert(subject, level);
            }
            Record::Config { subject, level: None } => {
                self.levels.remove(&subject);
            }
        }
    }

    /// The JSON of a schema.
    pub(super) fn text(&self, id: SchemaId) -> Option<Arc<str>> {
        self.by_id.get(&id).cloned()
    }

    fn active(&self, subject: &str) -> impl DoubleEndedIterator<Item = (u32, SchemaId)> {
        let versions = self.subjects.get(subject).into_iter().flatten();
        versions
            .filter(|(_, entry)| !entry.deleted)
            .map(|(version, entry)| (*version, entry.id))
    }

    fn registered(&self, subject: &str, version: u32, id: SchemaId) -> Registered {
        let schema = self.by_id.get(&id).map(|text| text.to_string()).unwrap_or_default();
        Registered {
            subject: subject.to_owned(),
            version,
            id,
            schema,
        }
    }

    /// The version of a subject with this schema.
    pub(super) fn find(&self, subject: &str, schema: &str) -> Option<Registered> {
        let wanted = *self.by_schema.get(&normalized(schema))?;
        let (version, id) = self.active(subject).find(|(_, id)| *id == wanted)?;
        Some(self.registered(subject, version, id))
    }

    /// All subjects with an active version.
    pub(super) fn subjects(&self) -> Vec<String> {
        self.subjects
            .keys()
            .filter(|subject| self.active(subject).next().is_some())
            .cloned()
            .collect()
    }

    /// The versions of a subject.
    pub(super) fn versions(&self, subject: &str) -> Result<Vec<u32>> {
        let versions: Vec<u32> = self.active(subject).map(|(version, _)| version).collect();
        if versions.is_empty() {
            return Err(Error::SubjectNotFound {
                subject: subject.to_owned(),
            });
        }
        Ok(versions)
    }

    /// One version of a subject.
    pub(super) fn version(&self, subject: &str, version: Version) -> Result<Registered> {
        self.versions(subject)?;
        let found = match version {
            Version::Latest => self.active(subject).next_back(),
            Version::Number(number) => self.active(subject).find(|(version, _)| *version == number),
        };
        let (number, id) = found.ok_or_else(|| Error::VersionNotFound {
            version: version.to_string(),
        })?;
        Ok(self.registered(subject, number, id))
    }

    /// The subjects and versions that use this id.
    pub(super) fn uses(&self, id: SchemaId) -> Vec<(String, u32)> {
        let all = self
            .subjects
            .keys()
            .flat_map(|subject| self.active(subject).map(move |(v, id)| (subject, v, id)));
        all.filter(|(.., used)| *used == id)
            .map(|(subject, version, _)| (subject.clone(), version))
            .collect()
    }

    /// The compatibility level that is set for a subject; the global level for `None`.
    pub(super) fn own_level(&self, subject: Option<&str>) -> Option<Level> {
        let own = self.levels.get(&subject.map(str::to_owned)).copied();
        // There is always a global level.
        own.or_else(|| subject.is_none().then(Level::default))
    }

    /// The effective compatibility level of a subject.
    pub(super) fn level_of(&self, subject: &str) -> Level {
        self.own_level(Some(subject))
            .or_else(|| self.own_level(None))
            .unwrap_or_default()
    }

    /// Decides what the registration of a schema requires. Does not change the state.
    pub(super) fn decide(&self, subject: &str, new: &Schema) -> Result<Decision> {
        if let Some(found) = self.find(subject, new.text()) {
            return Ok(Decision::Known(found.id));
        }
        let level = self.level_of(subject);
        let compared = if level.is_transitive() { usize::MAX } else { 1 };
        let mut conflicts = Vec::new();
        for (version, id) in self.active(subject).rev().take(compared) {
            let old = self.by_id.get(&id).map(|text| Schema::parse(text));
            // Schemas of another type, or schemas that only a less strict registry accepts, cannot be compared.
            match old {
                Some(Ok(old)) => conflicts.extend(level.conflicts(new, &old, version)),
                Some(Err(e)) if level != Level::None => {
                    conflicts.push(format!("version {version} is not an Avro schema: {e}"))
                }
                _ => {}
            }
        }
        if !conflicts.is_empty() {
            return Err(Error::Incompatible {
                subject: subject.to_owned(),
                conflicts,
            });
        }
        let known = self.by_schema.get(&normalized(new.text())).copied();
        let next = self.by_id.last_key_value().map_or(1, |(id, _)| id.0.saturating_add(1));
        let id = known.unwrap_or(SchemaId(next));
        let last = self
            .subjects
            .get(subject)
            .and_then(|versions| versions.last_key_value());
        let record = Record::Schema {
            subject: subject.to_owned(),
            version: last.map_or(1, |(version, _)| version.saturating_add(1)),
            id,
            schema: new.text().to_owned(),
            deleted: false,
        };
        Ok(Decision::Write(id, record))
    }
}

/// Normalizes the JSON of a schema: sorted properties, no white space.
fn normalized(schema: &str) -> String {
    fn sort(value: &Value, out: &mut String) {
        match value {
            Value::Object(object) => {
                let mut entries: Vec<_> = object.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                out.push('{');
                for (at, (key, value)) in entries.into_iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    out.push_str(&Value::from(key.as_str()).to_string());
                    out.push(':');
                    sort(value, out);
                }
                out.push('}');
            }
            Value::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    sort(item, out);
                }
                out.push(']');
            }
            scalar => out.push_str(&scalar.to_string()),
        }
    }
    let Ok(value) = serde_json::from_str::<Value>(schema) else {
        return schema.to_owned();
    };
    // `{"type":"long"}` and `"long"` are equivalent.
    let mut value = &value;
    while let Some(inner) = value
        .as_object()
        .filter(|object| object.len() == 1)
        .and_then(|object| object.get("type"))
    {
        value = inner;
    }
    let mut out = String::with_capacity(schema.len());
    sort(value, &mut out);
    out
}
