//! The state that results from the records of `_schemas`, and the decision which record a registration must write. No
//! IO.

use super::record::Record;
use crate::{Deleted, Deletion, Error, Level, Mode, Registered, Result, Version};
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
    modes: HashMap<Option<String>, Mode>,
    /// The greatest id that was ever assigned, including those of permanently deleted schemas.
    last_id: u32,
}

struct Entry {
    id: SchemaId,
    deleted: bool,
}

/// What a change must write, and its result.
pub(super) struct Decision<T> {
    /// The records; empty if nothing changes.
    pub(super) records: Vec<Record>,
    pub(super) result: T,
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
                self.last_id = self.last_id.max(id.0);
                self.by_schema.entry(normalized(&schema)).or_insert(id);
                self.by_id.insert(id, schema.into());
                self.subjects
                    .entry(subject)
                    .or_default()
                    .insert(version, Entry { id, deleted });
            }
            Record::SchemaTombstone { subject, version } => self.remove(&subject, version),
            Record::DeleteSubject { subject, version } => {
                let versions = self.subjects.get_mut(&subject).into_iter().flatten();
                for (_, entry) in versions.filter(|(number, _)| **number <= version) {
                    entry.deleted = true;
                }
            }
            Record::LastId(id) => self.last_id = self.last_id.max(id.0),
            Record::Mode {
                subject,
                mode: Some(mode),
            } => {
                self.modes.insert(subject, mode);
            }
            Record::Mode { subject, mode: None } => {
                self.modes.remove(&subject);
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

    /// Removes a version, and its schema if no other version uses it.
    fn remove(&mut self, subject: &str, version: u32) {
        let Some(versions) = self.subjects.get_mut(subject) else {
            return;
        };
        let removed = versions.remove(&version);
        if versions.is_empty() {
            self.subjects.remove(subject);
        }
        let Some(Entry { id, .. }) = removed else { return };
        let mut entries = self.subjects.values().flat_map(BTreeMap::values);
        if entries.all(|entry| entry.id != id)
            && let Some(text) = self.by_id.remove(&id)
        {
            let text = normalized(&text);
            if self.by_schema.get(&text) == Some(&id) {
                self.by_schema.remove(&text);
            }
        }
    }

    /// The JSON of a schema.
    pub(super) fn text(&self, id: SchemaId) -> Option<Arc<str>> {
        self.by_id.get(&id).cloned()
    }

    fn active(&self, subject: &str) -> impl DoubleEndedIterator<Item = (u32, SchemaId)> {
        self.listed(subject, Deleted::Exclude)
    }

    /// Versions of a subject with their ids.
    fn listed(&self, subject: &str, deleted: Deleted) -> impl DoubleEndedIterator<Item = (u32, SchemaId)> {
        let versions = self.subjects.get(subject).into_iter().flatten();
        versions
            .filter(move |(_, entry)| deleted.contains(entry.deleted))
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

    /// All subjects with such a version.
    pub(super) fn subjects(&self, deleted: Deleted) -> Vec<String> {
        self.subjects
            .keys()
            .filter(|subject| self.listed(subject, deleted).next().is_some())
            .cloned()
            .collect()
    }

    /// Such versions of a subject.
    pub(super) fn versions(&self, subject: &str, deleted: Deleted) -> Result<Vec<u32>> {
        let versions: Vec<u32> = self.listed(subject, deleted).map(|(version, _)| version).collect();
        if versions.is_empty() {
            return Err(Error::SubjectNotFound {
                subject: subject.to_owned(),
            });
        }
        Ok(versions)
    }

    /// One of such versions of a subject.
    pub(super) fn version(&self, subject: &str, version: Version, deleted: Deleted) -> Result<Registered> {
        self.versions(subject, deleted)?;
        let found = match version {
            Version::Latest => self.listed(subject, deleted).next_back(),
            Version::Number(number) => self.listed(subject, deleted).find(|(version, _)| *version == number),
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

    /// The mode that is set for a subject; the global mode for `None`.
    pub(super) fn own_mode(&self, subject: Option<&str>) -> Option<Mode> {
        let own = self.modes.get(&subject.map(str::to_owned)).copied();
        // There is always a global mode.
        own.or_else(|| subject.is_none().then(Mode::default))
    }

    /// Fails if the mode of a subject forbids changes.
    fn check_writable(&self, subject: &str) -> Result<()> {
        let global = self.own_mode(None).unwrap_or_default();
        let effective = self.own_mode(Some(subject)).unwrap_or(global);
        if global == Mode::ReadOnlyOverride || effective != Mode::ReadWrite {
            return Err(Error::ReadOnly {
                subject: subject.to_owned(),
            });
        }
        Ok(())
    }

    /// Decides what the deletion of all versions of a subject requires. Returns the versions.
    pub(super) fn delete_subject(&self, subject: &str, deletion: Deletion) -> Result<Decision<Vec<u32>>> {
        self.check_writable(subject)?;
        let named = || subject.to_owned();
        let all = self.versions(subject, Deleted::Include)?;
        let active = self.versions(subject, Deleted::Exclude).unwrap_or_default();
        match deletion {
            Deletion::Soft if active.is_empty() => Err(Error::SubjectDeleted { subject: named() }),
            Deletion::Permanent if !active.is_empty() => Err(Error::SubjectNotDeleted { subject: named() }),
            Deletion::Soft => Ok(Decision {
                records: active
                    .iter()
                    .filter_map(|version| self.deleted(subject, *version))
                    .collect(),
                result: active,
            }),
            Deletion::Permanent => Ok(Decision {
                records: self.tombstones(subject, &all),
                result: all,
            }),
        }
    }

    /// Decides what the deletion of one version requires. Returns its number.
    pub(super) fn delete_version(&self, subject: &str, version: Version, deletion: Deletion) -> Result<Decision<u32>> {
        self.check_writable(subject)?;
        // The latest version is the latest that can be deleted in this way.
        let listed = match (version, deletion) {
            (Version::Latest, Deletion::Soft) => Deleted::Exclude,
            (Version::Latest, Deletion::Permanent) => Deleted::Only,
            (Version::Number(_), _) => Deleted::Include,
        };
        let result = self.version(subject, version, listed)?.version;
        let is_deleted = self.entry(subject, result).is_some_and(|entry| entry.deleted);
        let (subject_name, number) = (subject.to_owned(), result.to_string());
        match deletion {
            Deletion::Soft if is_deleted => Err(Error::VersionDeleted {
                subject: subject_name,
                version: number,
            }),
            Deletion::Permanent if !is_deleted => Err(Error::VersionNotDeleted {
                subject: subject_name,
                version: number,
            }),
            Deletion::Soft => Ok(Decision {
                records: self.deleted(subject, result).into_iter().collect(),
                result,
            }),
            Deletion::Permanent => Ok(Decision {
                records: self.tombstones(subject, &[result]),
                result,
            }),
        }
    }

    fn entry(&self, subject: &str, version: u32) -> Option<&Entry> {
        self.subjects.get(subject)?.get(&version)
    }

    /// The record of a version that is deleted softly.
    fn deleted(&self, subject: &str, version: u32) -> Option<Record> {
        let id = self.entry(subject, version)?.id;
        Some(Record::Schema {
            subject: subject.to_owned(),
            version,
            id,
            schema: self.by_id.get(&id)?.to_string(),
            deleted: true,
        })
    }

    /// The records that remove versions permanently.
    fn tombstones(&self, subject: &str, versions: &[u32]) -> Vec<Record> {
        let tombstone = |version: &u32| Record::SchemaTombstone {
            subject: subject.to_owned(),
            version: *version,
        };
        let last_id = Record::LastId(SchemaId(self.last_id));
        [last_id].into_iter().chain(versions.iter().map(tombstone)).collect()
    }

    /// Decides what the registration of a schema requires. Returns its id.
    pub(super) fn register(&self, subject: &str, new: &Schema) -> Result<Decision<SchemaId>> {
        if let Some(found) = self.find(subject, new.text()) {
            let (records, result) = (Vec::new(), found.id);
            return Ok(Decision { records, result });
        }
        self.check_writable(subject)?;
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
        let id = known.unwrap_or(SchemaId(self.last_id.saturating_add(1)));
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
        Ok(Decision {
            records: vec![record],
            result: id,
        })
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
