//! Control records and their released schemas. A test fails if a released schema file was changed.

use super::*;
use crate::codec::{Datum, Row};
use crate::evolution::compatible;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

/// The encoding of the types and the general codec with the released schema must agree, in both directions.
macro_rules! check {
    ($event:expr, $($field:expr),*) => {{
        let event = $event;
        let mut body = Vec::new();
        event.encode(&mut body);
        let fields = [$($field),*];
        let mut row = Row::new();
        schema_of(&event).decode(&body, &mut row).unwrap();
        assert_eq!(row.first(), Some(&Datum::Int(1)));
        assert_eq!(&row[1..], &fields);
        let mut again = Vec::new();
        schema_of(&event).encode(&row, &mut again).unwrap();
        assert_eq!(again, body);
        let mut value = Vec::new();
        event.write(SchemaId(7), &mut value);
        assert_eq!(Event::read(&value), Ok(event.clone()));
        for length in 0..body.len() {
            assert_ne!(Event::decode(&body[..length]).ok(), Some(event.clone()), "cut after {length} bytes");
        }
        body[0] = 4;
        let newer = wrong(&event, &body);
        assert!(newer.to_string().ends_with("has format 2, but this version of trunkline reads formats up to 1; upgrade trunkline"), "{newer}");
    }};
}

fn schema_of<'a, E: Event<'a>>(_: &E) -> &'static Schema {
    E::schema()
}

fn wrong<'a, E: Event<'a> + Debug>(_: &E, body: &'a [u8]) -> EventError {
    E::decode(body).unwrap_err()
}

#[test]
fn records_match_their_released_schemas() {
    let version = crate::version::Version::default().to_bytes();
    check!(ViewRow { row: b"{}" }, Datum::Bytes(b"{}"));
    check!(
        TransactionEnd {
            version: &version,
            at: -5
        },
        Datum::Bytes(&version),
        Datum::Long(-5)
    );
    check!(TransactionBegin { version: &version }, Datum::Bytes(&version));
    check!(Grant { principal: "corp:42" }, Datum::Str("corp:42"));
    check!(Stale { stale: true }, Datum::Bool(true));
    check!(Loaded { loaded: true }, Datum::Bool(true));
    let chunk = ChunkEnd {
        table: "orders",
        from: None,
        to: Some("[\"17\"]"),
        snapshot: "s-1",
        low: "0/16B3748",
        is_final: true,
    };
    check!(
        chunk,
        Datum::Str("orders"),
        Datum::Null,
        Datum::Str("[\"17\"]"),
        Datum::Str("s-1"),
        Datum::Str("0/16B3748"),
        Datum::Bool(true)
    );
    let position = ConnectorPosition {
        position: "{}",
        complete: "0/1",
        updated_at: 9,
    };
    check!(position, Datum::Str("{}"), Datum::Str("0/1"), Datum::Long(9));
}

#[test]
fn names_are_those_of_the_schemas() {
    assert_eq!(<TransactionEnd<'_> as Event<'_>>::NAME, TransactionEnd::schema().name());
    assert_eq!(Stale::subject("shop.view.log"), "shop.view.log-trunkline.Stale");
    assert!(matches!(Stale::read(b"{"), Err(EventError::Frame { .. })));
}

/// All released files: name without version → version → text.
fn files() -> BTreeMap<String, BTreeMap<u32, String>> {
    let mut found: BTreeMap<String, BTreeMap<u32, String>> = BTreeMap::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("avro")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(stem) = name.strip_suffix(".avsc") else {
            continue;
        };
        let (record, version) = stem
            .rsplit_once(".v")
            .expect("a schema's file is named <record>.v<N>.avsc");
        let version = version.parse().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        found.entry(record.to_owned()).or_default().insert(version, text);
    }
    found
}

#[test]
fn released_schemas_do_not_change() {
    let released = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("avro/RELEASED")).unwrap();
    let released: Vec<&str> = released.lines().filter(|line| !line.starts_with('#')).collect();
    let mut now = Vec::new();
    for (record, versions) in files() {
        for (version, text) in versions {
            let schema = Schema::parse(&text).unwrap();
            // The canonical form does not include defaults and properties, so the text is hashed too.
            let hash = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
            now.push(format!("{record}.v{version} {} {hash:016x}", schema.fingerprint()));
        }
    }
    assert_eq!(
        now, released,
        "released schemas must not change: add a new version and its line in RELEASED"
    );
}

#[test]
fn new_version_reads_the_previous_one() {
    for (record, versions) in files() {
        let mut before: Option<Schema> = None;
        for (version, text) in versions {
            let schema = Schema::parse(&text).unwrap();
            assert_eq!(schema.name(), format!("trunkline.{record}"));
            assert_eq!(schema.fields().first().map(|field| &*field.name), Some("format"));
            if let Some(before) = before.replace(schema.clone()) {
                assert_eq!(compatible(&schema, &before), Ok(()), "{record}.v{version}");
            }
        }
    }
    assert_eq!(files().len(), RELEASED.len());
}
