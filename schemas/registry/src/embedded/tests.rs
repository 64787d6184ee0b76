//! Embedded registries that share an in-memory log.

use super::*;
use crate::{Deletion, Manage as _, Mode};
use event_log::embedded::{Clock, Config, EmbeddedLog};
use std::collections::BTreeMap;

pub(crate) fn memory_log() -> SharedEventLog {
    let clock: Clock = Arc::new(|| 1_732_390_000_000);
    let mut config = Config::new(None, clock);
    config.clean_every = None;
    EmbeddedLog::open(config).unwrap()
}

fn record(fields: &str) -> String {
    format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)
}

fn numbered(at: usize) -> String {
    record(&format!(r#"{{"name":"f{at}","type":["null","int"],"default":null}}"#))
}

#[test]
fn state_is_rebuilt_from_the_log() {
    let log = memory_log();
    let first = Embedded::open(log.clone()).unwrap();
    let a = first.register("a", &numbered(1)).unwrap();
    let b = first.register("a", &numbered(2)).unwrap();
    first.set_level(Some("a"), Level::None).unwrap();
    first.set_level(None, Level::Full).unwrap();
    let c = first.register("a", "\"int\"").unwrap();
    assert_eq!((a, b, c), (SchemaId(1), SchemaId(2), SchemaId(3)));

    let second = Embedded::open(log).unwrap();
    assert_eq!(second.versions("a"), Ok(vec![1, 2, 3]));
    assert_eq!(second.level(Some("a")), Ok(Some(Level::None)));
    assert_eq!(second.level(None), Ok(Some(Level::Full)));
    assert_eq!(second.level(Some("b")), Ok(None));
    assert_eq!(&*second.by_id(b).unwrap(), numbered(2));
    assert_eq!(second.latest("a").unwrap().id, c);
}

#[test]
fn concurrent_registries_assign_unique_ids() {
    let log = memory_log();
    let registries = [
        Embedded::open(log.clone()).unwrap(),
        Embedded::open(log.clone()).unwrap(),
    ];
    // Each writer fences the other one again and again.
    let ids: Vec<(String, SchemaId)> = std::thread::scope(|scope| {
        let threads: Vec<_> = registries
            .iter()
            .enumerate()
            .map(|(who, registry)| {
                scope.spawn(move || {
                    let register = |at: usize| {
                        // Every second schema is registered by both writers.
                        let schema = if at.is_multiple_of(2) {
                            numbered(at)
                        } else {
                            numbered(1000 * (who + 1) + at)
                        };
                        let subject = format!("s{at}-{who}");
                        let id = registry.register(&subject, &schema).unwrap();
                        (schema, id)
                    };
                    (0..20).map(register).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut by_id: BTreeMap<SchemaId, String> = BTreeMap::new();
    for (schema, id) in ids {
        let before = by_id.insert(id, schema.clone());
        assert!(
            before.is_none_or(|before| before == schema),
            "id {id} refers to two schemas"
        );
    }
    assert_eq!(by_id.len(), 30, "ten shared schemas and ten of each");
    let third = Embedded::open(log).unwrap();
    for (id, schema) in by_id {
        assert_eq!(&*third.by_id(id).unwrap(), schema);
    }
}

#[test]
fn schemas_of_other_processes_are_found() {
    let log = memory_log();
    let (writer, reader) = (Embedded::open(log.clone()).unwrap(), Embedded::open(log).unwrap());
    let id = writer.register("a", "\"long\"").unwrap();
    assert_eq!(&*reader.by_id(id).unwrap(), "\"long\"");
    assert_eq!(reader.lookup("a", "{\"type\": \"long\"}").unwrap().version, 1);
    assert_eq!(reader.uses(id), Ok(vec![("a".to_owned(), 1)]));
}

#[test]
fn equal_schemas_share_an_id() {
    let registry = Embedded::open(memory_log()).unwrap();
    let id = registry
        .register("a", r#"{"type":"record","name":"R","fields":[]}"#)
        .unwrap();
    let spelled = "{\n \"name\": \"R\", \"fields\": [ ], \"type\": \"record\" }";
    assert_eq!(registry.register("a", spelled), Ok(id));
    assert_eq!(registry.register("b", spelled), Ok(id));
    assert_eq!(registry.versions("a"), Ok(vec![1]));
    assert_eq!(registry.uses(id).unwrap().len(), 2);
    let with_doc = r#"{"type":"record","name":"R","doc":"new","fields":[]}"#;
    assert_ne!(
        registry.register("a", with_doc),
        Ok(id),
        "documentation is part of the schema"
    );
}

#[test]
fn foreign_records_are_read_and_invalid_ones_skipped() {
    let log = memory_log();
    drop(Embedded::open(log.clone()).unwrap());
    let topic: Arc<str> = TOPIC.into();
    let mut batch = OutBatch::default();
    let mut push = |key: &str, value: Option<&str>| {
        let (key, value) = (Some(key.as_bytes()), value.map(str::as_bytes));
        batch.push(
            OutRecord {
                topic: &topic,
                partition: Some(0),
                timestamp: None,
                key,
                value,
            },
            [],
        );
    };
    push(r#"{"keytype":"NOOP","magic":0}"#, None);
    push("garbage", Some("more of it"));
    let key = |version: u32| format!(r#"{{"keytype":"SCHEMA","subject":"a","version":{version},"magic":1}}"#);
    let value = |version: u32, id: u32, deleted: bool| {
        format!(
            r#"{{"subject":"a","version":{version},"id":{id},"md5Bytes":"AA==","schema":"\"int\"","deleted":{deleted}}}"#
        )
    };
    push(&key(1), Some(&value(1, 40, true)));
    push(&key(2), Some(&value(2, 41, false).replace("int", "long")));
    push(&key(3), Some(&value(3, 42, false).replace("int", "string")));
    push(&key(3), None);
    // Confluent's registry marks the versions of a deleted subject with one record.
    push(
        &key(1).replace("\"a\"", "\"gone\""),
        Some(&value(1, 30, false).replace("\"a\"", "\"gone\"")),
    );
    push(
        r#"{"keytype":"DELETE_SUBJECT","subject":"gone","magic":0}"#,
        Some(r#"{"subject":"gone","version":1}"#),
    );
    // A schema with id 50 was removed permanently, and its records were compacted away.
    push(r#"{"keytype":"TRUNKLINE_LAST_ID","magic":0}"#, Some(r#"{"id":50}"#));
    log.append(&batch).unwrap();
    let registry = Embedded::open(log).unwrap();
    assert_eq!(registry.versions("a"), Ok(vec![2]));
    assert_eq!(registry.subjects(), Ok(vec!["a".to_owned()]));
    assert_eq!(
        &*registry.by_id(SchemaId(40)).unwrap(),
        "\"int\"",
        "the id of a deleted version remains"
    );
    assert_eq!(registry.set_level(Some("a"), Level::None), Ok(()));
    assert_eq!(
        registry.register("a", "\"bytes\""),
        Ok(SchemaId(51)),
        "new ids follow the greatest one that was ever assigned"
    );
    assert_eq!(registry.versions("a"), Ok(vec![2, 3]));
}

#[test]
fn deletions_and_modes_survive_a_restart() {
    let log = memory_log();
    let first = Embedded::open(log.clone()).unwrap();
    for (subject, at) in [("a", 1), ("a", 2), ("b", 3)] {
        first.register(subject, &numbered(at)).unwrap();
    }
    assert_eq!(first.delete_subject("b", Deletion::Soft), Ok(vec![1]));
    assert_eq!(first.delete_subject("b", Deletion::Permanent), Ok(vec![1]));
    assert_eq!(first.delete_version("a", Version::Latest, Deletion::Soft), Ok(2));
    first.set_mode(Some("a"), Mode::ReadOnly).unwrap();
    first.set_level(Some("a"), Level::Full).unwrap();
    assert_eq!(first.remove_level(Some("a")), Ok(Level::Full));

    let second = Embedded::open(log).unwrap();
    assert_eq!(second.list_subjects(Deleted::Include), Ok(vec!["a".to_owned()]));
    assert_eq!(second.list_versions("a", Deleted::Only), Ok(vec![2]));
    assert_eq!(second.level(Some("a")), Ok(None));
    let rejected = second.register("a", &numbered(4)).unwrap_err();
    assert_eq!(rejected.code(), 42205);
    assert_eq!(second.remove_mode("a"), Ok(Mode::ReadOnly));
    // Id 3 was assigned to the schema that is removed.
    assert_eq!(second.register("b", &numbered(4)), Ok(SchemaId(4)));
}

#[test]
fn topic_with_two_partitions_is_rejected() {
    let log = memory_log();
    let config = TopicConfig::new(Cleanup::Compact);
    log.create_topics(&[TopicSpec {
        name: TOPIC.to_owned(),
        partitions: 2,
        replication: None,
        config,
    }])
    .unwrap();
    let error = Embedded::open(log).err().unwrap().to_string();
    assert!(
        error.contains("the topic has 2 partitions but must have exactly one"),
        "{error}"
    );
}

#[test]
fn transitive_levels_compare_all_versions() {
    let registry = Embedded::open(memory_log()).unwrap();
    registry.set_level(Some("a"), Level::None).unwrap();
    registry
        .register("a", &record(r#"{"name":"x","type":"string"}"#))
        .unwrap();
    registry.register("a", &record("")).unwrap();
    let again = record(r#"{"name":"x","type":["null","int"],"default":null}"#);
    registry.set_level(Some("a"), Level::BackwardTransitive).unwrap();
    let error = registry.register("a", &again).unwrap_err();
    assert_eq!(error.code(), 409);
    assert!(
        error
            .to_string()
            .contains("version 1: x: writer's string is not a branch of reader's null or int"),
        "{error}"
    );
    registry.set_level(Some("a"), Level::Backward).unwrap();
    registry.register("a", &again).unwrap();
}
