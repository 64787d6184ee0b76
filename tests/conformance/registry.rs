//! One test suite for every registry: the embedded registry on the embedded log, on Kafka and through its REST API, and
//! a real registry with Confluent's API.
//!
//! The real registry may be shared: subjects are unique, and the global compatibility level is not changed.

use crate::support;
use crate::support::registry::{memory_log, remote, serve};
use registry::embedded::Embedded;
use registry::{Catalog, Deleted, Deletion, Error, Level, Mode, Registry, Version};
use schemas::evolution;
use schemas::ids::SchemaId;
use schemas::schema::Schema;
use std::collections::BTreeMap;
use std::sync::Arc;

fn record(fields: &str) -> String {
    format!(r#"{{"type":"record","name":"Order","namespace":"shop","fields":[{fields}]}}"#)
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> u32 {
    result.expect_err("a rejection").code()
}

/// Behaviour of every registry.
fn suite(registry: &dyn Registry) {
    let subject = common(registry);
    let subject = subject.as_str();
    let incompatible = record(r#"{"name":"id","type":"string"}"#);
    registry.set_level(Some(subject), Level::None).expect("a level");
    let third = registry.register(subject, &incompatible).expect("anything goes now");
    assert_eq!(registry.latest(subject).expect("the latest").id, third);
}

/// Tests that every registry must pass, including Apicurio, where the compatibility level NONE of a subject means the
/// global level. Returns the subject.
fn common(registry: &dyn Registry) -> String {
    let subject = format!("{}/{}", support::unique("suite"), "with a slash");
    let subject = subject.as_str();
    let first = record(r#"{"name":"id","type":"long"}"#);
    let second = record(r#"{"name":"id","type":"long"},{"name":"note","type":["null","string"],"default":null}"#);
    let incompatible = record(r#"{"name":"id","type":"string"}"#);

    assert_eq!(code(registry.versions(subject)), 40401);
    assert_eq!(code(registry.latest(subject)), 40401);
    let id = registry.register(subject, &first).expect("a new subject");
    assert_eq!(
        registry.register(subject, &first),
        Ok(id),
        "registering again changes nothing"
    );
    registry.set_level(Some(subject), Level::Backward).expect("a level");
    assert_eq!(registry.level(Some(subject)), Ok(Some(Level::Backward)));
    let other = registry.register(subject, &second).expect("a compatible version");
    assert_ne!(other, id);
    assert_eq!(registry.versions(subject), Ok(vec![1, 2]));
    assert!(registry.subjects().expect("subjects").contains(&subject.to_owned()));

    let latest = registry.latest(subject).expect("the latest");
    assert_eq!(
        (latest.version, latest.id, latest.subject.as_str()),
        (2, other, subject)
    );
    let same = |text: &str, expected: &str| {
        let (text, expected) = (
            Schema::parse(text).expect("a schema"),
            Schema::parse(expected).expect("a schema"),
        );
        assert_eq!(text.canonical_form(), expected.canonical_form());
    };
    same(&latest.schema, &second);
    same(&registry.by_id(id).expect("by id"), &first);
    assert_eq!(registry.version(subject, Version::Number(1)).expect("version 1").id, id);
    let found = registry.lookup(subject, &first).expect("a look-up");
    assert_eq!((found.version, found.id), (1, id));
    assert!(registry.uses(other).expect("uses").contains(&(subject.to_owned(), 2)));

    assert_eq!(code(registry.version(subject, Version::Number(9))), 40402);
    assert_eq!(code(registry.by_id(SchemaId(2_000_000_000))), 40403);
    assert_eq!(code(registry.lookup(subject, &incompatible)), 40403);
    assert_eq!(code(registry.register(subject, "{\"type\":\"nothing\"}")), 42201);
    let rejected = registry
        .register(subject, &incompatible)
        .expect_err("an incompatible schema");
    assert_eq!(rejected.code(), 409, "{rejected}");
    let conflicts = registry
        .test_compatibility(subject, Version::Latest, &incompatible)
        .expect("a test");
    assert!(!conflicts.is_empty());
    assert_eq!(
        registry.test_compatibility(subject, Version::Latest, &second),
        Ok(vec![])
    );
    subject.to_owned()
}

/// Deletions, listings and modes.
fn management(registry: &dyn Registry) {
    let subject = support::unique("managed");
    let subject = subject.as_str();
    let first = record(r#"{"name":"id","type":"long"}"#);
    let second = record(r#"{"name":"id","type":"long"},{"name":"note","type":["null","string"],"default":null}"#);
    for schema in [&first, &second] {
        registry.register(subject, schema).expect("a version");
    }
    let listed = |deleted| {
        let subjects = registry.list_subjects(deleted).expect("subjects");
        subjects.iter().any(|other| other == subject)
    };
    let (soft, permanent) = (Deletion::Soft, Deletion::Permanent);
    assert_eq!(code(registry.delete_subject(subject, permanent)), 40405);
    assert_eq!(registry.delete_version(subject, Version::Number(1), soft), Ok(1));
    assert_eq!(code(registry.delete_version(subject, Version::Number(1), soft)), 40406);
    assert_eq!(
        code(registry.delete_version(subject, Version::Number(2), permanent)),
        40407
    );
    assert_eq!(registry.list_versions(subject, Deleted::Exclude), Ok(vec![2]));
    assert_eq!(registry.list_versions(subject, Deleted::Only), Ok(vec![1]));
    let deleted = registry
        .any_version(subject, Version::Number(1))
        .expect("a deleted version");
    assert_eq!((deleted.version, deleted.subject.as_str()), (1, subject));
    assert_eq!(registry.delete_subject(subject, soft), Ok(vec![2]));
    assert_eq!(code(registry.delete_subject(subject, soft)), 40404);
    assert_eq!((listed(Deleted::Exclude), listed(Deleted::Only)), (false, true));
    let again = registry.register(subject, &first).expect("a new version");
    assert_eq!(again, deleted.id, "the id of a deleted schema remains");
    assert_eq!(registry.versions(subject), Ok(vec![3]));
    assert_eq!(registry.delete_subject(subject, soft), Ok(vec![3]));
    assert_eq!(registry.delete_subject(subject, permanent), Ok(vec![1, 2, 3]));
    assert!(!listed(Deleted::Include));

    assert_eq!(registry.mode(Some(subject)), Ok(None));
    registry.set_mode(Some(subject), Mode::ReadOnly).expect("a mode");
    assert_eq!(registry.mode(Some(subject)), Ok(Some(Mode::ReadOnly)));
    assert_eq!(code(registry.register(subject, &first)), 42205);
    assert_eq!(registry.remove_mode(subject), Ok(Mode::ReadOnly));
    assert_eq!(code(registry.remove_mode(subject)), 40409);
    registry.set_level(Some(subject), Level::Full).expect("a level");
    assert_eq!(registry.remove_level(Some(subject)), Ok(Level::Full));
    assert_eq!(code(registry.remove_level(Some(subject))), 40408);
}

#[test]
fn embedded_registry_passes_the_suite() {
    let registry = Embedded::open(memory_log()).expect("a registry");
    suite(&registry);
    management(&registry);
}

#[cfg(feature = "external")]
#[test]
fn embedded_registry_on_kafka_survives_a_restart() {
    let log = event_log::kafka::KafkaLog::connect(event_log::kafka::Config::new(support::kafka())).expect("a log");
    let registry = Embedded::open(log.clone()).expect("a registry");
    suite(&registry);
    let subject = support::unique("survives");
    let id = registry.register(&subject, "\"long\"").expect("a schema");
    drop(registry);
    let again = Embedded::open(log).expect("a registry");
    assert_eq!(again.latest(&subject).expect("the latest").id, id);
}

#[cfg(feature = "external")]
#[test]
fn concurrent_registries_on_kafka_assign_unique_ids() {
    let kafka = || event_log::kafka::KafkaLog::connect(event_log::kafka::Config::new(support::kafka())).expect("a log");
    let registries = [
        Embedded::open(kafka()).expect("a registry"),
        Embedded::open(kafka()).expect("a registry"),
    ];
    let subject = support::unique("two");
    let register = &|who: usize, at: usize| {
        // Every second schema is registered by both writers.
        let name = if at.is_multiple_of(2) {
            format!("both{at}")
        } else {
            format!("own{who}_{at}")
        };
        let schema = record(&format!(r#"{{"name":"{name}","type":["null","int"],"default":null}}"#));
        let id = registries[who]
            .register(&format!("{subject}-{who}-{at}"), &schema)
            .expect("a schema id");
        (name, id)
    };
    let given: Vec<(String, SchemaId)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|who| scope.spawn(move || (0..10).map(|at| register(who, at)).collect::<Vec<_>>()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a writer"))
            .collect()
    });
    let mut by_id = BTreeMap::new();
    for (name, id) in given {
        let before = by_id.insert(id, name.clone());
        assert!(
            before.is_none_or(|before| before == name),
            "id {id} stands for two schemas"
        );
    }
    assert_eq!(by_id.len(), 15, "five shared schemas and five of each");
}

#[test]
fn embedded_registry_behind_its_api_passes_the_suite() {
    let served = serve(Arc::new(Embedded::open(memory_log()).expect("a registry")));
    suite(&*remote(&served.url));
    suite(&Catalog::new(remote(&served.url)));
    management(&*remote(&served.url));
    management(&Catalog::new(remote(&served.url)));
}

#[cfg(feature = "external")]
#[test]
fn real_registry_passes_the_suite() {
    common(&*remote(&support::registry_url()));
    common(&Catalog::new(remote(&support::registry_url())));
}

/// Compares the compatibility rules with those of a registry that uses Avro's Java library.
#[test]
fn real_registry_agrees_on_compatibility() {
    let registry = remote(&support::registry_url());
    let field = |name: &str, ty: &str| format!(r#"{{"name":"{name}","type":{ty}}}"#);
    let with_default =
        |name: &str, ty: &str, default: &str| format!(r#"{{"name":"{name}","type":{ty},"default":{default}}}"#);
    let status = |symbols: &str, rest: &str| {
        field(
            "s",
            &format!(r#"{{"type":"enum","name":"S","symbols":[{symbols}]{rest}}}"#),
        )
    };
    let schemas: Vec<String> = [
        field("a", "\"int\""),
        field("a", "\"long\""),
        field("a", "\"string\""),
        field("a", "\"bytes\""),
        field("a", "\"double\""),
        field("a", r#"["null","int"]"#),
        field("a", r#"["null","string","long"]"#),
        with_default("b", "\"int\"", "0"),
        with_default("a", "\"long\"", "1"),
        field("a", r#"{"type":"array","items":"int"}"#),
        field("a", r#"{"type":"array","items":"long"}"#),
        field("a", r#"{"type":"map","values":"int"}"#),
        field("a", r#"{"type":"fixed","name":"F","size":2}"#),
        field("a", r#"{"type":"fixed","name":"F","size":3}"#),
        field(
            "a",
            r#"{"type":"record","name":"I","fields":[{"name":"x","type":"int"}]}"#,
        ),
        field(
            "a",
            r#"{"type":"record","name":"I","fields":[{"name":"y","type":"int","default":1}]}"#,
        ),
        status(r#""A""#, ""),
        status(r#""A","B""#, ""),
        status(r#""A""#, r#","default":"A""#),
        r#"{"name":"z","aliases":["a"],"type":"long"}"#.to_owned(),
        String::new(),
    ]
    .iter()
    .map(|fields| record(fields))
    .collect();
    for old in &schemas {
        let subject = support::unique("agrees");
        registry.register(&subject, old).expect("a schema");
        registry.set_level(Some(&subject), Level::Backward).expect("a level");
        for new in &schemas {
            let theirs = registry
                .test_compatibility(&subject, Version::Latest, new)
                .expect("a test")
                .is_empty();
            let (reader, writer) = (
                Schema::parse(new).expect("a schema"),
                Schema::parse(old).expect("a schema"),
            );
            let ours = evolution::compatible(&reader, &writer);
            assert_eq!(ours.is_ok(), theirs, "reader {new}\nwriter {old}\n{ours:?}");
        }
    }
}
