//! Tests the checks of one table.

use super::*;
use crate::sources::postgres::catalog::{Published, samples};
use crate::sources::postgres::replacements::Replacements;
use std::collections::BTreeMap;
use topology::Mask;

fn declared(columns: &[(&str, &str)], key: Option<&[&str]>) -> Declared {
    let column = |(name, ty): &(&str, &str)| DeclaredColumn::declared(name, ty);
    let key = key.map(|k| k.iter().map(|s| (*s).to_owned()).collect());
    Declared::new(
        TableName::new("orders").unwrap(),
        columns.iter().map(column).collect(),
        key,
    )
}

fn actual(identity: char, primary_key: &[&str]) -> Table {
    let column = |name: &str, ty: &str, nullable| Column {
        nullable,
        generated: name == "total",
        ..samples::column(name, ty)
    };
    let columns = vec![
        column("id", "int8", false),
        column("note", "varchar", true),
        column("tags", "_text", true),
        column("total", "int4", true),
    ];
    Table {
        replica_identity: identity,
        primary_key: primary_key.iter().map(|s| (*s).to_owned()).collect(),
        ..samples::table("orders", columns)
    }
}

fn problems(declared: &Declared, actual: &Table) -> Vec<String> {
    let (_, found) = check_table(declared, actual, READING);
    found.into_iter().map(|p| format!("{} -> {}", p.what, p.fix)).collect()
}

#[test]
fn matching_table_yields_its_key() {
    let fits = declared(&[("note", "text?"), ("id", "int8"), ("tags", "text[]?")], None);
    assert_eq!(
        check_table(&fits, &actual('d', &["id"]), READING),
        (vec![1], Vec::new())
    );
    let keyed = declared(&[("id", "int8"), ("note", "text?")], Some(&["note", "id"]));
    assert_eq!(
        check_table(&keyed, &actual('f', &[]), READING),
        (vec![1, 0], Vec::new())
    );
}

#[test]
fn missing_key_names_the_statement() {
    let text = problems(&declared(&[("id", "int8")], None), &actual('d', &[]));
    assert_eq!(
        text,
        [
            "table orders has no primary key and no declared key -> ALTER TABLE \"public\".\"orders\" ADD PRIMARY KEY (…); \
             or declare key = [\"…\"] in the topology, CREATE UNIQUE INDEX on these columns, and ALTER TABLE \
             \"public\".\"orders\" REPLICA IDENTITY FULL"
        ]
    );
    let text = problems(&declared(&[("id", "int8")], Some(&["id"])), &actual('d', &[]));
    assert!(
        text[0].ends_with("-> ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY FULL"),
        "{text:?}"
    );
}

#[test]
fn differing_columns_name_the_declaration() {
    let wrong = declared(
        &[("id", "int4"), ("note", "text"), ("total", "int4?"), ("gone", "text?")],
        None,
    );
    assert_eq!(
        problems(&wrong, &actual('d', &["id"])),
        [
            "column id of table orders is int8, but is declared as int4 -> write id = \"int8\" in [[table]] orders",
            "column note of table orders is nullable, but is declared as not null -> write note = \"varchar?\" in \
             [[table]] orders; or ALTER TABLE \"public\".\"orders\" ALTER COLUMN \"note\" SET NOT NULL",
            "column total of table orders is generated, and PostgreSQL does not replicate generated columns -> remove total from \
             the columns of [[table]] orders",
            "table orders has no column gone -> remove gone from the columns of [[table]] orders",
        ]
    );
    let undeclared_key = declared(&[("note", "text?")], None);
    assert!(
        problems(&undeclared_key, &actual('d', &["id"]))[0]
            .contains("key column id of table orders is missing in the declared columns")
    );
}

#[test]
fn incomplete_reading_and_deferrable_keys_name_the_statement() {
    let fits = declared(&[("id", "int8")], None);
    let hidden = Table {
        row_security: true,
        has_children: true,
        ..actual('d', &["id"])
    };
    let text = problems(&fits, &hidden);
    assert!(text[0].contains("row-level security") && text[0].ends_with("ALTER ROLE \"app\" BYPASSRLS"));
    assert!(text[1].contains("other tables inherit from table orders"));
    let deferrable = Table {
        deferrable_key: true,
        ..actual('d', &["id"])
    };
    let text = problems(&fits, &deferrable);
    assert!(text[0].contains("is deferrable") && text[0].ends_with("REPLICA IDENTITY FULL"));
}

const READING: Reading<'_> = Reading {
    user: "app",
    publication: "p",
    is_first: false,
    known: Some(&[]),
    is_own: false,
};

/// A publication with or without the table.
fn publication(orders: Option<Published>) -> Publication {
    let key = (String::from("public"), String::from("orders"));
    Publication {
        oid: 1,
        changed_by: 0,
        owned: true,
        all_tables: false,
        operations: Vec::new(),
        via_root: false,
        has_schemas: false,
        replacements: Replacements::default(),
        tables: orders.into_iter().map(|published| (key.clone(), published)).collect(),
    }
}

#[test]
fn table_that_cannot_be_added_to_the_publication_is_its_own_problem() {
    let table = declared(&[("id", "int8")], None);
    let problem = |publication: &Publication, table_owned| {
        let actual = Table {
            owned: table_owned,
            ..actual('d', &["id"])
        };
        check_published(READING, publication, &table, &actual).map(|p| format!("{} -> {}", p.what, p.fix))
    };
    assert_eq!(problem(&publication(None), true), None);
    let foreign = Publication {
        owned: false,
        ..publication(None)
    };
    for text in [problem(&foreign, true), problem(&publication(None), false)] {
        let text = text.unwrap();
        assert!(
            text.contains("does not contain table orders, and user app cannot add it"),
            "{text}"
        );
        assert!(
            text.ends_with(r#"ALTER PUBLICATION "p" ADD TABLE "public"."orders""#),
            "{text}"
        );
    }
    let all = Publication {
        all_tables: true,
        ..publication(None)
    };
    assert!(problem(&all, true).unwrap().contains("is FOR ALL TABLES"));
}

#[test]
fn declared_key_needs_a_unique_index() {
    let key = |columns: &[&str]| declared(&[("id", "int8"), ("note", "text?")], Some(columns));
    let text = problems(&key(&["note"]), &actual('f', &["id"]));
    assert!(
        text[0].contains("no unique index of table orders covers its declared key (note)"),
        "{text:?}"
    );
    assert!(
        text[0].contains(r#"CREATE UNIQUE INDEX ON "public"."orders" ("note")"#),
        "{text:?}"
    );
    assert_eq!(check_table(&key(&["note", "id"]), &actual('f', &["id"]), READING).1, []);
}

#[test]
fn other_relations_and_unlogged_tables_are_described() {
    let table = declared(&[("id", "int8")], None);
    let name = (String::from("public"), String::from("orders"));
    let mut catalog = Catalog::default();
    let what = |catalog: &Catalog| check(&table, catalog, READING).unwrap_err().cause();
    assert_eq!(what(&catalog), "table orders does not exist");
    catalog.other_kinds.insert(name, String::from("materialized view"));
    assert_eq!(
        what(&catalog),
        "orders is a materialized view, and PostgreSQL only replicates tables"
    );
    let unlogged = Table {
        unlogged: true,
        ..actual('d', &["id"])
    };
    assert!(problems(&table, &unlogged)[0].ends_with(r#"ALTER TABLE "public"."orders" SET LOGGED"#));
    let generated_key = problems(&table, &actual('d', &["id", "total"]));
    assert!(
        generated_key[0].contains("key column total of table orders is generated"),
        "{generated_key:?}"
    );
}

#[test]
fn wider_types_and_nulls_are_tolerated_once_the_table_was_published() {
    let table = declared(&[("id", "int4"), ("note", "text")], None);
    let name = (String::from("public"), String::from("orders"));
    let catalog = Catalog {
        tables: BTreeMap::from([(name, actual('d', &["id"]))]),
        ..Catalog::default()
    };
    let checked = |is_first| check(&table, &catalog, Reading { is_first, ..READING });
    assert_eq!(checked(true).unwrap_err().problems.len(), 2);
    assert_eq!(checked(false).unwrap().key, [0]);
}

#[test]
fn publication_must_cover_columns_rows_and_partitions() {
    let table = declared(&[("id", "int8"), ("note", "text?")], None);
    let problem = |columns: Option<&[&str]>, filter: Option<&str>, partitioned| {
        let published = Published {
            columns: columns.map(|c| c.iter().map(|s| (*s).to_owned()).collect()),
            row_filter: filter.map(str::to_owned),
            ..Published::default()
        };
        let actual = Table {
            partitioned,
            ..actual('d', &["id"])
        };
        check_published(READING, &publication(Some(published)), &table, &actual).map(|p| p.what)
    };
    assert_eq!(problem(None, None, false), None);
    assert!(
        problem(Some(&["id"]), None, false)
            .unwrap()
            .contains("does not publish column note")
    );
    assert!(
        problem(None, Some("(id > 1)"), false)
            .unwrap()
            .contains("row filter (id > 1)")
    );
    assert!(
        problem(None, None, true)
            .unwrap()
            .contains("partitions of table orders")
    );
}

#[test]
fn column_is_added_to_a_list_only_in_a_publication_of_the_connector() {
    let table = declared(&[("id", "int8"), ("note", "text?")], None);
    let published = Published {
        columns: Some(vec![String::from("id")]),
        has_list: true,
        is_named: true,
        ..Published::default()
    };
    let problem = |is_own| {
        let reading = Reading { is_own, ..READING };
        check_published(
            reading,
            &publication(Some(published.clone())),
            &table,
            &actual('d', &["id"]),
        )
    };
    assert_eq!(problem(true), None);
    assert!(problem(false).unwrap().what.contains("does not publish column note"));
}

#[test]
fn permission_for_single_columns_suffices() {
    let without = |hidden: &[&str]| {
        let mut table = actual('d', &["id"]);
        for column in &mut table.columns {
            column.readable = !hidden.contains(&column.name.as_str());
        }
        problems(&declared(&[("id", "int8"), ("note", "text?")], None), &table)
    };
    assert_eq!(without(&["tags", "total"]), [""; 0]);
    assert_eq!(
        without(&["note"]),
        [
            "user app has no permission to read column note of table orders -> GRANT SELECT (\"note\") ON \
          \"public\".\"orders\" TO \"app\"; or remove it from the columns of [[table]] orders"
        ]
    );
    assert!(without(&["id", "note"])[0].contains("no permission to read table orders"));
}

#[test]
fn dropped_column_is_null_and_a_renamed_one_is_named() {
    let known = |number| ColumnRecord {
        name: String::from("gone"),
        number,
        ..ColumnRecord::default()
    };
    let problem = |ty, known: &[ColumnRecord], is_first| {
        let reading = Reading {
            known: Some(known),
            is_first,
            ..READING
        };
        let table = declared(&[("id", "int8"), ("gone", ty)], None);
        check_table(&table, &actual('d', &["id"]), reading)
            .1
            .pop()
            .map(|p| p.what)
    };
    assert_eq!(problem("text?", &[known(9)], false), None);
    let missing = Some(String::from("table orders has no column gone"));
    assert_eq!(
        problem("text?", &[], false),
        missing,
        "declared later, and never existed"
    );
    assert_eq!(problem("text", &[known(9)], false), missing);
    // All columns of the table have the number 1.
    assert_eq!(
        problem("text?", &[known(1)], false).unwrap(),
        "column gone of table orders was renamed to id"
    );
}

#[test]
fn masked_column_may_have_any_type_but_must_not_be_the_key() {
    let masked = |column: &str, ty, mask| {
        let mut declared = declared(&[("id", "int8"), (column, ty)], None);
        declared.masks.insert(column.to_owned(), mask);
        problems(&declared, &actual('d', &["id"]))
    };
    assert_eq!(masked("tags", "text?", Mask::Hash), [""; 0]);
    assert_eq!(masked("tags", "date?", Mask::Null), [""; 0]);
    let mut key = declared(&[("id", "int8")], None);
    key.masks.insert(String::from("id"), Mask::Hash);
    let text = problems(&key, &actual('d', &["id"]));
    assert!(text[0].contains("key column id of table orders is masked"), "{text:?}");
}

#[test]
fn declared_types_must_have_the_values_of_the_actual_type() {
    for (declared, actual) in [
        ("text", "citext"),
        ("state", "text"),
        ("int2", "int4"),
        ("_text", "_varchar"),
        ("_int4", "_int2"),
        ("text", "_text"),
        ("text", "numeric"),
        ("json", "jsonb"),
        ("_numeric", "_numeric"),
    ] {
        assert!(fits_type(declared, actual), "{declared} {actual}");
    }
    for (declared, actual) in [
        ("numeric", "text"),
        ("text", "jsonb"),
        ("text", "int4"),
        ("_text", "text"),
        ("varchar", "_text"),
        ("_text", "_int4"),
        ("_numeric", "_text"),
        ("_int4", "_int8"),
    ] {
        assert!(!fits_type(declared, actual), "{declared} {actual}");
    }
}
