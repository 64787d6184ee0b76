//! The generated topology passes the check.

use super::*;
use crate::{Embedded, check};
use expect_test::expect_file;
use proptest::prelude::*;

fn column(name: &str, pg_type: &str, nullable: bool) -> FoundColumn {
    FoundColumn {
        name: name.to_string(),
        pg_type: pg_type.to_string(),
        nullable,
    }
}

#[test]
fn generated_topology_matches_golden_file() {
    let tables = [
        FoundTable {
            schema: "public".into(),
            name: "orders".into(),
            columns: vec![
                column("id", "bigint", false),
                column("customer_id", "bigint", true),
                column("state", "order_state", false),
                column("total", "numeric(10,2)", true),
                column("placed at", "timestamp with time zone", true),
            ],
            key: vec!["id".into()],
        },
        FoundTable {
            schema: "sales".into(),
            name: "rates".into(),
            columns: vec![column("day", "date", false), column("rate", "double precision", false)],
            key: vec![],
        },
        FoundTable {
            schema: "public".into(),
            name: "a.b".into(),
            columns: vec![column("id", "int", false)],
            key: vec![],
        },
        FoundTable {
            schema: "public".into(),
            name: "of_a_generated_key".into(),
            columns: vec![column("n", "int", false)],
            key: vec!["id".into()],
        },
        FoundTable {
            schema: "public".into(),
            name: "nothing".into(),
            columns: vec![],
            key: vec![],
        },
    ];
    let views = LeftOut {
        what: "view public.totals".into(),
        reason: "PostgreSQL does not replicate views".into(),
    };
    let inferred = topology("My Shop", &tables, std::slice::from_ref(&views));
    assert_eq!((inferred.tables, inferred.left_out.len()), (2, 4));
    let text = inferred.text;
    expect_file!["shop.toml"].assert_eq(&text);
    let outcome = check("topology.toml", &text, &Embedded(&[]));
    assert!(outcome.topology.is_some(), "{}", outcome.report.render(false));
    assert_eq!(outcome.report.warnings(), 0);
    let open = topology(
        "shop",
        &[FoundTable {
            key: vec!["day".into()],
            ..tables[1].clone()
        }],
        &[],
    );
    let outcome = check("topology.toml", &open.text, &Embedded(&[]));
    let warned: Vec<String> = outcome
        .report
        .findings()
        .into_iter()
        .map(|finding| finding.message)
        .collect();
    assert_eq!(
        warned,
        ["no membership grants access to bucket `everyone`, so no device can read it"]
    );
}

#[test]
fn empty_database_gives_a_valid_topology() {
    let outcome = check("topology.toml", &topology("", &[], &[]).text, &Embedded(&[]));
    assert!(outcome.topology.is_some(), "{}", outcome.report.render(false));
    assert_eq!(outcome.report.warnings(), 1);
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z_]{1,8}",
        "[A-Za-z0-9 '\"#.~é-]{1,10}",
        Just("user_id".to_string()),
        Just("public".to_string())
    ]
}

fn any_table() -> impl Strategy<Value = FoundTable> {
    let types = prop_oneof![
        Just("bigint".to_string()),
        Just("text".to_string()),
        Just("jsonb".to_string()),
        Just("\"My Type\"".to_string()),
        Just("character varying(20)[]".to_string()),
        "[a-z0-9_ ()]{0,8}",
    ];
    let columns = proptest::collection::vec((any_name(), types, any::<bool>()), 0..5);
    (any_name(), any_name(), columns, 0usize..3).prop_map(|(schema, name, columns, keys)| {
        let mut columns: Vec<FoundColumn> = columns.iter().map(|(n, t, null)| column(n, t, *null)).collect();
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        columns.dedup_by(|a, b| a.name == b.name);
        let mut key: Vec<String> = columns.iter().take(keys).map(|column| column.name.clone()).collect();
        if keys == 2 {
            key.push("generated".to_string());
        }
        FoundTable {
            schema,
            name,
            columns,
            key,
        }
    })
}

proptest! {
    #[test]
    fn random_tables_give_a_valid_topology(name in any_name(), tables in proptest::collection::vec(any_table(), 0..5)) {
        let mut tables = tables;
        tables.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
        tables.dedup_by(|a, b| (&a.schema, &a.name) == (&b.schema, &b.name));
        let text = topology(&name, &tables, &[]).text;
        let outcome = check("topology.toml", &text, &Embedded(&[]));
        prop_assert!(outcome.topology.is_some(), "{}\n{}", text, outcome.report.render(false));
    }
}
