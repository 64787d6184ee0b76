//! Golden tests of the reports, and tests of the checked topology.
//!
//! A case is `cases/NAME.toml`, which is appended to `base.toml`; `cases/NAME.out` is the expected report.
//! Run with `UPDATE_EXPECT=1` to regenerate the reports.

use crate::{Embedded, Input, Outcome, Segment, check};
use expect_test::expect_file;
use std::path::Path;

/// A valid topology to which the cases are appended.
const BASE: &str = include_str!("cases/base.toml");

const FILES: Embedded = Embedded(&[
    ("not.json", "{\n  \"type\": \"record\"\n  \"name\": \"A\"\n}"),
    ("string.avsc", "\"string\""),
    (
        "bad.avsc",
        "{\"type\": \"record\", \"name\": \"A\", \"fields\": [{\"name\": \"a\", \"type\": \"lang\"}]}",
    ),
    (
        "default.avsc",
        "{\"type\": \"record\", \"name\": \"A\", \"fields\": [\n  {\"name\": \"a\", \"type\": \"long\", \"default\": \"x\"}]}",
    ),
    (
        "good.avsc",
        r#"{"type": "record", "name": "A", "fields": [
            {"name": "id", "type": "long"},
            {"name": "price", "type": "double"},
            {"name": "place", "type": {"type": "record", "name": "Place", "fields": [
                {"name": "city", "type": ["null", "string"], "default": null}]}},
            {"name": "maybe", "type": ["null", "long"], "default": null}]}"#,
    ),
]);

fn run(text: &str) -> Outcome {
    check("topology.toml", text, &FILES)
}

#[test]
fn reports_match_golden_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check/cases");
    let mut cases: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "toml") && !path.ends_with("base.toml"))
        .collect();
    cases.sort();
    assert!(cases.len() >= 17, "only {} cases were found", cases.len());
    for case in cases {
        let more = std::fs::read_to_string(&case).unwrap();
        let outcome = run(&format!("{BASE}{more}"));
        assert_eq!(
            outcome.topology.is_none(),
            outcome.report.has_errors(),
            "{}",
            case.display()
        );
        assert!(
            !outcome.report.findings().is_empty(),
            "{} has no findings",
            case.display()
        );
        expect_file![case.with_extension("out")].assert_eq(&outcome.report.render(false));
    }
}

#[test]
fn findings_serialize_as_json() {
    let outcome = run(&format!("{BASE}\n[view_log]\npartitions = 129\n"));
    let json = serde_json::to_value(outcome.report.findings()).unwrap();
    let expected = serde_json::json!([{
        "severity": "error", "file": "topology.toml", "line": 24, "column": 14,
        "message": "[view_log] cannot have 129 partitions; the limit is 128",
        "help": "set `partitions` to a number from 1 to 128"
    }]);
    assert_eq!(json, expected);
    assert_eq!(outcome.report.to_string(), "topology.toml: 1 error");
    assert_eq!(run(BASE).report.render(false), "topology.toml: no problems\n");
}

#[test]
fn topology_name_must_be_a_valid_prefix() {
    for (name, message) in [
        ("my.shop", "topology name `my.shop` is invalid"),
        ("_shop", "topology name `_shop` is invalid"),
        (&"a".repeat(64), "is invalid"),
        ("trunkline", "topology name `trunkline` is reserved"),
    ] {
        let text = BASE.replace("name = \"shop\"\n[[", &format!("name = \"{name}\"\n[["));
        let report = run(&text).report.render(false);
        assert!(report.contains(message), "{report}");
    }
}

#[test]
fn view_templates_resolve_to_columns() {
    let topology = run(&BASE
        .replace(
            "name = \"user:{id}\"",
            "name = \"user:{tenant}:{id}\"\nscope = \"tenant:{tenant}\"",
        )
        .replace("user:{customer_id}", "user:{status}:{customer_id}")
        .replace("user:{sub}", "user:{tenant}:{sub}"))
    .into_result()
    .unwrap();
    let view = &topology.views[0];
    assert_eq!(view.input, Input::Table { source: 0, table: 0 });
    assert_eq!(
        view.bucket_name,
        [Segment::Literal("user".into()), Segment::Param(2), Segment::Param(1)]
    );
    assert_eq!(view.scope_name, [Segment::Literal("tenant".into()), Segment::Param(2)]);
    assert_eq!(view.columns(), [0, 1, 2, 3, 4, 5, 6]);
    let mut out = String::from(">");
    let values = [None, Some("7"), Some("a:b")];
    let written = view.write_bucket(&mut out, |at| values[at].map(Into::into));
    assert_eq!((written, out.as_str()), (Ok(true), ">user:a%3Ab:7"));
    assert_eq!(topology.scope_of("user:a%3Ab:7").as_deref(), Some("tenant:a%3Ab"));
    assert_eq!(view.write_bucket(&mut out, |_| None), Ok(false));
    let long = "x".repeat(600);
    assert!(view.write_bucket(&mut out, |_| Some((&long).into())).is_err());
    assert_eq!(out, ">user:a%3Ab:7");
}

#[test]
fn rules_version_depends_on_device_visible_parts() {
    let version = |text: &str| run(text).into_result().unwrap().rules_version;
    let base = version(BASE);
    assert_eq!(
        base, 18_096_345_345_797_747_513,
        "a changed version makes every device start over"
    );
    let same = [
        format!("# a comment\n{BASE}"),
        BASE.replace("user:{id}", "user:{customer}"),
        BASE.replace("name = \"shop\"\n[[", "name = \"other\"\n[["),
        format!("{BASE}[[table]]\nsource = \"shop\"\nname = \"more\"\ncolumns = {{ id = \"int8\" }}\n"),
    ];
    for text in same {
        assert_eq!(version(&text), base, "{text}");
    }
    let other = [
        BASE.replace("customer_id = \"int8\", status", "customer_id = \"text\", status"),
        BASE.replace(
            "bucket = \"user:{customer_id}\"",
            "bucket = \"user:{customer_id}\"\nfields = [\"id\"]",
        ),
        BASE.replace(
            "bucket = \"user:{customer_id}\"",
            "bucket = \"user:{customer_id}\"\nwhere = \"id > 3\"",
        ),
        BASE.replace("bucket = \"user:{customer_id}\"", "bucket = \"user:{status}\""),
        BASE.replace("name = \"user:{id}\"", "name = \"user:{id}\"\nscope = \"all\""),
        format!("{BASE}[view_log]\npartitions = 8\n"),
    ];
    for text in other {
        assert_ne!(version(&text), base, "{text}");
    }
}
