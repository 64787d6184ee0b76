//! Records of the topic `_schemas`, compatible with Confluent's registry and Karapace.
//!
//! Keys have one canonical form, because log compaction compares bytes. Unknown fields and record types are ignored.

use crate::{Level, Mode};
use schemas::ids::SchemaId;
use serde::{Deserialize, Serialize};

/// Key type of [`Record::LastId`].
const LAST_ID: &str = "TRUNKLINE_LAST_ID";

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// A version of a subject.
    Schema {
        /// Subject.
        subject: String,
        /// Version, from 1.
        version: u32,
        /// Id.
        id: SchemaId,
        /// The schema's JSON.
        schema: String,
        /// Whether the version is deleted (soft delete). Its id remains valid.
        deleted: bool,
    },
    /// A permanently deleted version of a subject.
    SchemaTombstone {
        /// Subject.
        subject: String,
        /// Version.
        version: u32,
    },
    /// All versions of a subject up to this one are deleted softly. Written by Confluent's registry.
    DeleteSubject {
        /// Subject.
        subject: String,
        /// Version.
        version: u32,
    },
    /// The greatest id that was assigned. Written before a permanent deletion, because an id must never be assigned again,
    /// and the record that contains it will be compacted away. Other registries ignore the record.
    LastId(SchemaId),
    /// A mode of a subject, or the global one.
    Mode {
        /// Subject; `None` for the global mode.
        subject: Option<String>,
        /// The mode; `None` removes it.
        mode: Option<Mode>,
    },
    /// A compatibility level of a subject, or the global one.
    Config {
        /// Subject; `None` for the global level.
        subject: Option<String>,
        /// The compatibility level; `None` removes it.
        level: Option<Level>,
    },
}

#[derive(Deserialize)]
struct AnyKey {
    keytype: String,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    version: Option<u32>,
}

// The order of the fields is that of Confluent's keys.
#[derive(Serialize)]
struct SchemaKey<'a> {
    keytype: &'static str,
    subject: &'a str,
    version: u32,
    magic: u8,
}

#[derive(Serialize)]
struct ConfigKey<'a> {
    keytype: &'static str,
    subject: Option<&'a str>,
    magic: u8,
}

#[derive(Serialize)]
struct ModeKey<'a> {
    keytype: &'static str,
    subject: Option<&'a str>,
    prefix: bool,
    magic: u8,
}

#[derive(Serialize)]
struct PlainKey {
    keytype: &'static str,
    magic: u8,
}

#[derive(Serialize, Deserialize)]
struct ModeValue {
    mode: String,
}

#[derive(Serialize, Deserialize)]
struct DeleteSubjectValue {
    subject: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct LastIdValue {
    id: u32,
}

#[derive(Serialize, Deserialize)]
struct SchemaValue<'a> {
    subject: std::borrow::Cow<'a, str>,
    version: u32,
    id: u32,
    schema: std::borrow::Cow<'a, str>,
    #[serde(default)]
    deleted: bool,
}

#[derive(Serialize, Deserialize)]
struct ConfigValue {
    #[serde(rename = "compatibilityLevel")]
    level: String,
}

impl Record {
    /// Parses a record; `None` for types that are not supported here (`NOOP`, contexts, modes that this registry does not
    /// have).
    pub(super) fn read(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Option<Record>, String> {
        let key: AnyKey = serde_json::from_slice(key.unwrap_or_default()).map_err(|e| format!("key: {e}"))?;
        match (key.keytype.as_str(), value) {
            ("SCHEMA", Some(value)) => {
                let value: SchemaValue<'_> = serde_json::from_slice(value).map_err(|e| format!("value: {e}"))?;
                Ok(Some(Record::Schema {
                    subject: value.subject.into_owned(),
                    version: value.version,
                    id: SchemaId(value.id),
                    schema: value.schema.into_owned(),
                    deleted: value.deleted,
                }))
            }
            ("SCHEMA", None) => match (key.subject, key.version) {
                (Some(subject), Some(version)) => Ok(Some(Record::SchemaTombstone { subject, version })),
                _ => Err("key: subject or version is missing".to_owned()),
            },
            ("CONFIG", Some(value)) => {
                let value: ConfigValue = serde_json::from_slice(value).map_err(|e| format!("value: {e}"))?;
                let level = value.level.parse().map_err(|e: crate::Error| e.to_string())?;
                Ok(Some(Record::Config {
                    subject: key.subject,
                    level: Some(level),
                }))
            }
            ("CONFIG", None) => Ok(Some(Record::Config {
                subject: key.subject,
                level: None,
            })),
            ("MODE", Some(value)) => {
                let value: ModeValue = serde_json::from_slice(value).map_err(|e| format!("value: {e}"))?;
                let mode = value.mode.parse().ok();
                Ok(mode.map(|mode| Record::Mode {
                    subject: key.subject,
                    mode: Some(mode),
                }))
            }
            ("MODE", None) => Ok(Some(Record::Mode {
                subject: key.subject,
                mode: None,
            })),
            ("DELETE_SUBJECT", Some(value)) => {
                let value: DeleteSubjectValue = serde_json::from_slice(value).map_err(|e| format!("value: {e}"))?;
                Ok(Some(Record::DeleteSubject {
                    subject: value.subject,
                    version: value.version,
                }))
            }
            (LAST_ID, Some(value)) => {
                let value: LastIdValue = serde_json::from_slice(value).map_err(|e| format!("value: {e}"))?;
                Ok(Some(Record::LastId(SchemaId(value.id))))
            }
            _ => Ok(None),
        }
    }

    /// Encodes key and value; the value of a tombstone is `None`.
    pub(super) fn write(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        match self {
            Record::Schema {
                subject,
                version,
                id,
                schema,
                deleted,
            } => {
                let value = SchemaValue {
                    subject: subject.into(),
                    version: *version,
                    id: id.0,
                    schema: schema.into(),
                    deleted: *deleted,
                };
                (schema_key(subject, *version), Some(json(&value)))
            }
            Record::SchemaTombstone { subject, version } => (schema_key(subject, *version), None),
            Record::DeleteSubject { subject, version } => {
                let value = DeleteSubjectValue {
                    subject: subject.clone(),
                    version: *version,
                };
                (subject_key("DELETE_SUBJECT", Some(subject)), Some(json(&value)))
            }
            Record::LastId(id) => {
                let (keytype, magic) = (LAST_ID, 0);
                (
                    json(&PlainKey { keytype, magic }),
                    Some(json(&LastIdValue { id: id.0 })),
                )
            }
            Record::Mode { subject, mode } => {
                let key = ModeKey {
                    keytype: "MODE",
                    subject: subject.as_deref(),
                    prefix: false,
                    magic: 0,
                };
                let value = mode.map(|mode| ModeValue {
                    mode: mode.name().to_owned(),
                });
                (json(&key), value.as_ref().map(json))
            }
            Record::Config { subject, level } => {
                let value = level.map(|level| ConfigValue {
                    level: level.name().to_owned(),
                });
                (subject_key("CONFIG", subject.as_deref()), value.as_ref().map(json))
            }
        }
    }
}

fn schema_key(subject: &str, version: u32) -> Vec<u8> {
    json(&SchemaKey {
        keytype: "SCHEMA",
        subject,
        version,
        magic: 1,
    })
}

fn subject_key(keytype: &'static str, subject: Option<&str>) -> Vec<u8> {
    json(&ConfigKey {
        keytype,
        subject,
        magic: 0,
    })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a struct of strings and numbers is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_match_confluents_and_round_trip() {
        let schema = Record::Schema {
            subject: "s".to_owned(),
            version: 2,
            id: SchemaId(7),
            schema: "\"long\"".to_owned(),
            deleted: false,
        };
        let config = Record::Config {
            subject: None,
            level: Some(Level::Full),
        };
        for (record, key, value) in [
            (
                schema,
                r#"{"keytype":"SCHEMA","subject":"s","version":2,"magic":1}"#,
                r#"{"subject":"s","version":2,"id":7,"schema":"\"long\"","deleted":false}"#,
            ),
            (
                config,
                r#"{"keytype":"CONFIG","subject":null,"magic":0}"#,
                r#"{"compatibilityLevel":"FULL"}"#,
            ),
            (
                Record::Mode {
                    subject: Some("s".to_owned()),
                    mode: Some(Mode::ReadOnly),
                },
                r#"{"keytype":"MODE","subject":"s","prefix":false,"magic":0}"#,
                r#"{"mode":"READONLY"}"#,
            ),
            (
                Record::LastId(SchemaId(9)),
                r#"{"keytype":"TRUNKLINE_LAST_ID","magic":0}"#,
                r#"{"id":9}"#,
            ),
        ] {
            let (k, v) = record.write();
            let v = v.unwrap();
            assert_eq!(
                (std::str::from_utf8(&k).unwrap(), std::str::from_utf8(&v).unwrap()),
                (key, value)
            );
            assert_eq!(Record::read(Some(&k), Some(&v)), Ok(Some(record)));
        }
    }

    #[test]
    fn unknown_records_are_ignored_and_invalid_ones_rejected() {
        assert_eq!(Record::read(Some(br#"{"keytype":"NOOP","magic":0}"#), None), Ok(None));
        let mode = br#"{"keytype":"MODE","subject":null,"prefix":false,"magic":0}"#;
        assert_eq!(Record::read(Some(mode), Some(br#"{"mode":"IMPORT"}"#)), Ok(None));
        let deleted = br#"{"keytype":"DELETE_SUBJECT","subject":"s","magic":0}"#;
        let read = Record::read(Some(deleted), Some(br#"{"subject":"s","version":3}"#));
        let (subject, version) = ("s".to_owned(), 3);
        assert_eq!(read, Ok(Some(Record::DeleteSubject { subject, version })));
        // The tombstone of a deletion changes nothing.
        assert_eq!(Record::read(Some(deleted), None), Ok(None));
        let newer = br#"{"subject":"s","version":1,"id":1,"md5Bytes":"x","schema":"\"int\"","schemaType":"AVRO","deleted":true}"#;
        let read = Record::read(
            Some(br#"{"keytype":"SCHEMA","subject":"s","version":1,"magic":1}"#),
            Some(newer),
        );
        assert!(matches!(read, Ok(Some(Record::Schema { deleted: true, .. }))));
        assert!(Record::read(None, None).is_err());
        assert!(Record::read(Some(b"\x00"), Some(b"x")).is_err());
    }
}
