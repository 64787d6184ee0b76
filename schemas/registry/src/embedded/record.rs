//! Records of the topic `_schemas`, compatible with Confluent's registry and Karapace.
//!
//! Keys have one canonical form, because log compaction compares bytes. Unknown fields and record types are ignored.

use crate::Level;
use schemas::ids::SchemaId;
use serde::{Deserialize, Serialize};

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
    /// Parses a record; `None` for types that are not supported here (`NOOP`, modes, contexts).
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
            _ => Ok(None),
        }
    }

    /// Encodes key and value. This code never writes tombstones, so their value is empty.
    pub(super) fn write(&self) -> (Vec<u8>, Vec<u8>) {
        match self {
            Record::Schema {
                subject,
                version,
                id,
                schema,
                deleted,
            } => (
                json(&SchemaKey {
                    keytype: "SCHEMA",
                    subject,
                    version: *version,
                    magic: 1,
                }),
                json(&SchemaValue {
                    subject: subject.into(),
                    version: *version,
                    id: id.0,
                    schema: schema.into(),
                    deleted: *deleted,
                }),
            ),
            Record::SchemaTombstone { subject, version } => (
                json(&SchemaKey {
                    keytype: "SCHEMA",
                    subject,
                    version: *version,
                    magic: 1,
                }),
                Vec::new(),
            ),
            Record::Config { subject, level } => (
                json(&ConfigKey {
                    keytype: "CONFIG",
                    subject: subject.as_deref(),
                    magic: 0,
                }),
                json(&ConfigValue {
                    level: level.unwrap_or_default().name().to_owned(),
                }),
            ),
        }
    }
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
        ] {
            let (k, v) = record.write();
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
        assert_eq!(Record::read(Some(mode), Some(br#"{"mode":"READWRITE"}"#)), Ok(None));
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
