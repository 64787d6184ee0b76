//! Tests which differences between a table's record and the catalog need a snapshot.

use super::super::catalog::{Column, Partition, Publication, Published, samples};
use super::super::pgoutput;
use super::super::replacements::Replacements;
use super::*;
use schemas::pg_types::Column as DeclaredColumn;
use std::collections::BTreeSet;

fn declared(columns: &[(&str, &str)]) -> Declared {
    let columns = columns.iter().map(|(name, ty)| DeclaredColumn::declared(name, ty));
    Declared::new(TableName::new("orders").unwrap(), columns.collect(), None)
}

fn column(name: &str, number: i16, type_oid: u32, type_name: &str) -> Column {
    Column {
        number,
        type_oid,
        changed_by: 500,
        labels: BTreeMap::from([(1, String::from("open")), (2, String::from("paid"))]),
        ..samples::column(name, type_name)
    }
}

const COLUMNS: [(&str, &str); 3] = [("id", "int8"), ("n", "int4"), ("at", "timestamptz")];

/// The table's record from the start of the source epoch.
struct World {
    table: Table,
    published: Published,
    via_root: bool,
    publication_changed_by: u32,
    replacements: Replacements,
}

impl World {
    fn new() -> Self {
        let columns = vec![
            column("id", 1, 20, "int8"),
            column("n", 2, 23, "int4"),
            column("at", 3, 1184, "timestamptz"),
            column("other", 4, 25, "text"),
        ];
        World {
            table: Table {
                oid: 7,
                file_node: 107,
                partitioned: true,
                partitions: BTreeMap::from([(70, partition(170)), (71, partition(171))]),
                ..samples::table("orders", columns)
            },
            published: Published {
                memberships: BTreeSet::from([String::from("table 16")]),
                ..Published::default()
            },
            via_root: true,
            publication_changed_by: 600,
            replacements: Replacements::default(),
        }
    }

    fn catalog(self) -> Catalog {
        let pair = (self.table.schema.clone(), self.table.name.clone());
        Catalog {
            tables: BTreeMap::from([(pair.clone(), self.table)]),
            other_kinds: BTreeMap::new(),
            has_column_lists: true,
            publication: Some(Publication {
                oid: 1,
                changed_by: self.publication_changed_by,
                owned: true,
                all_tables: false,
                operations: Vec::new(),
                via_root: self.via_root,
                has_schemas: false,
                replacements: self.replacements,
                tables: BTreeMap::from([(pair, self.published)]),
            }),
        }
    }
}

fn partition(file_node: u32) -> Partition {
    Partition {
        file_node,
        attached_by: 700,
        settled_below: 690,
        began_empty: false,
    }
}

fn recorded() -> TableRecord {
    let checked = Checked {
        declared: declared(&COLUMNS),
        key: vec![0],
    };
    record(&checked, &World::new().catalog())
}

/// Returns the cause after a change of the catalog or the declaration; `None` if the table still matches.
fn cause(columns: &[(&str, &str)], change: impl FnOnce(&mut World)) -> Option<String> {
    let mut world = World::new();
    change(&mut world);
    match compare(&declared(columns), &recorded(), &world.catalog(), "p") {
        Verdict::Fits(_) => None,
        Verdict::NeedsSnapshot(cause) => Some(cause.text),
    }
}

type Change = fn(&mut World);

#[test]
fn differences_that_make_published_rows_wrong_need_a_snapshot() {
    let cases: [(Change, &str); 16] = [
        (|w| w.table.name = String::from("orders_old"), "no longer exists"),
        (|w| w.table.oid = 8, "was replaced: its OID is 8"),
        (|w| w.table.has_children = true, "inherit from table orders"),
        (|w| w.via_root = false, "no longer contains table orders"),
        (
            |w| w.published.row_filter = Some(String::from("(n > 1)")),
            "row filter (n > 1)",
        ),
        (
            |w| {
                w.published.columns = Some(vec![String::from("id"), String::from("at")]);
                w.published.has_list = true;
            },
            "no longer contains column n",
        ),
        (
            |w| w.table.primary_key = vec![String::from("id"), String::from("n")],
            "the key of table orders is (id, n), but its rows were read with key (id)",
        ),
        (|w| w.table.primary_key = Vec::new(), "the key of table orders is ()"),
        (
            |w| w.table.replica_identity = 'n',
            "replica identity of table orders lacks key column id",
        ),
        (
            |w| w.table.deferrable_key = true,
            "replica identity of table orders lacks key column id",
        ),
        (
            |w| drop(w.table.columns.remove(1)),
            "column n of table orders was dropped or renamed",
        ),
        (
            |w| w.table.columns[1].number = 9,
            "replaced by another column of that name",
        ),
        (
            |w| w.table.columns[1] = column("n", 2, 25, "text"),
            "type of column n of table orders changed from int4 to text",
        ),
        (|w| w.table.columns[2].type_modifier = 0, "type of column at"),
        (
            |w| w.table.partitions.retain(|oid, _| *oid != 70),
            "(OID 70) was detached or dropped",
        ),
        (
            |w| w.table.partitions.extend([(72, partition(172))]),
            "partition with rows (OID 72) was attached",
        ),
    ];
    for (change, want) in cases.into_iter().chain(changes_that_were_undone()) {
        let cause = cause(&COLUMNS, change).unwrap_or_else(|| panic!("fits, without {want}"));
        assert!(cause.contains(want), "{cause}: {want}");
    }
    let unread = cause(&[("id", "int8"), ("other", "text")], |_| {}).unwrap();
    assert!(unread.contains("column other of table orders is declared but was not part of the snapshot"));
    let wrong = cause(&[("id", "int8"), ("n", "text")], |_| {}).unwrap();
    assert!(wrong.contains("is int4, but is declared as text"), "{wrong}");
}

/// Changes that the values of the catalog alone do not show.
fn changes_that_were_undone() -> [(Change, &'static str); 6] {
    [
        (|w| w.table.columns[0].type_oid = 1_700, "type of column id"),
        (
            |w| w.published.memberships = BTreeSet::from([String::from("table 17")]),
            "removed from publication p and added again",
        ),
        (
            |w| w.publication_changed_by = 601,
            "the options of publication p were changed",
        ),
        (
            |w| (w.table.file_node, w.table.columns[1].changed_by) = (108, 501),
            "column n of table orders was changed and the table was rewritten",
        ),
        (
            |w| w.table.columns[1].labels = BTreeMap::from([(1, String::from("new")), (2, String::from("paid"))]),
            "label open of the type of column n of table orders was renamed",
        ),
        (
            |w| w.table.partitions.get_mut(&70).unwrap().attached_by = 701,
            "(OID 70) was detached and attached again",
        ),
    ]
}

#[test]
fn changed_mask_needs_a_snapshot() {
    let masked = |mask: Option<topology::Mask>| {
        let mut declared = declared(&[("id", "int8"), ("other", "text?")]);
        declared.masks.extend(mask.map(|mask| (String::from("other"), mask)));
        declared
    };
    let checked = Checked {
        declared: masked(Some(topology::Mask::Partial)),
        key: vec![0],
    };
    let record = record(&checked, &World::new().catalog());
    for (mask, want) in [
        (Some(topology::Mask::Partial), false),
        (Some(topology::Mask::Null), true),
        (None, true),
    ] {
        let verdict = compare(&masked(mask), &record, &World::new().catalog(), "p");
        let needs_snapshot =
            matches!(verdict, Verdict::NeedsSnapshot(cause) if cause.text.contains("the mask of column other"));
        assert_eq!(needs_snapshot, want, "{mask:?}");
    }
}

/// Another session changes a column list by replacing the table's entry, so the entry differs as well.
#[test]
fn changed_column_list_is_the_cause_rather_than_the_replaced_entry() {
    let with_list = |list: &[&str]| {
        let columns = list.iter().map(|column| (*column).to_owned()).collect();
        move |w: &mut World| {
            w.published = Published {
                columns: Some(columns),
                has_list: true,
                memberships: BTreeSet::from([String::from("table 17")]),
                ..Published::default()
            };
        }
    };
    let lacking = cause(&COLUMNS, with_list(&["id", "at"])).unwrap();
    assert_eq!(lacking, "publication p no longer contains column n of table orders");
    let without_key = cause(&COLUMNS, with_list(&["n", "at"])).unwrap();
    assert_eq!(
        without_key,
        "publication p no longer contains column id of table orders"
    );
    let other = cause(&COLUMNS, with_list(&["id", "n", "at", "other"])).unwrap();
    assert_eq!(
        other,
        "table orders was removed from publication p and added again with another column list, so changes may be lost"
    );
    // The connector's own list follows the declaration, so a column that is declared again may be missing in it.
    let changed = cause(&COLUMNS, |w| {
        w.table.columns[1] = column("n", 2, 25, "text");
        w.published.columns = Some(["id", "at"].map(str::to_owned).to_vec());
        w.published.has_list = true;
    });
    assert!(changed.unwrap().contains("type of column n"), "an automatic repair");
    // A renamed column is renamed in the list, too, so the list is not the cause.
    let renamed = cause(&COLUMNS, |w| {
        w.table.columns[1].name = String::from("m");
        w.published.columns = Some(["id", "m", "at"].map(str::to_owned).to_vec());
        w.published.has_list = true;
    });
    assert_eq!(renamed.unwrap(), "column n of table orders was dropped or renamed");
}

#[test]
fn table_outside_the_publication_needs_a_snapshot() {
    let mut catalog = World::new().catalog();
    catalog.publication.as_mut().unwrap().tables.clear();
    let verdict = compare(&declared(&COLUMNS), &recorded(), &catalog, "p");
    assert!(matches!(verdict, Verdict::NeedsSnapshot(cause) if cause.text.contains("no longer contains table orders")));
}

#[test]
fn harmless_differences_do_not_stop_a_table() {
    type Change = fn(&mut World);
    let cases: [Change; 13] = [
        |w| w.table.columns.push(column("added", 5, 25, "text")),
        |w| drop(w.table.columns.remove(3)),
        |w| w.table.columns[1] = column("n", 2, 20, "int8"),
        |w| w.table.replica_identity = 'f',
        |w| w.table.columns[1].nullable = true,
        |w| {
            let empty = Partition {
                began_empty: true,
                ..partition(172)
            };
            w.table.partitions.insert(72, empty);
        },
        |w| w.table.readable = false,
        // VACUUM FULL, and SET NOT NULL.
        |w| w.table.file_node = 108,
        |w| w.table.columns[1].changed_by = 501,
        // The undeclared column was rewritten.
        |w| (w.table.file_node, w.table.columns[3].changed_by) = (108, 501),
        |w| drop(w.table.columns[1].labels.insert(3, String::from("shipped"))),
        // It is published by its schema too, and then by its schema only.
        |w| w.published.memberships.extend([String::from("schema 18 5")]),
        // Its column list was changed in one transaction.
        |w| {
            let entry = std::mem::replace(&mut w.published.memberships, BTreeSet::from([String::from("table 17")]));
            w.replacements.record(&entry, "table 17");
        },
    ];
    for (at, change) in cases.into_iter().enumerate() {
        assert_eq!(cause(&COLUMNS, change), None, "case {at}");
    }
    // The column is declared with the wider type after ALTER TABLE … TYPE int8.
    let wider = [("id", "int8"), ("n", "int8"), ("at", "timestamptz")];
    assert_eq!(cause(&wider, |w| w.table.columns[1] = column("n", 2, 20, "int8")), None);
    // A column is removed from the declaration and added again.
    assert_eq!(cause(&COLUMNS[..2], |_| {}), None);
}

#[test]
fn truncated_partition_is_recognized_unless_the_whole_table_was_truncated() {
    let name = TableName::new("orders").unwrap();
    let mut world = World::new();
    world.table.partitions.insert(71, partition(999));
    let catalog = world.catalog();
    let cause = truncated_partition(&name, &recorded(), &catalog).unwrap();
    assert!(
        cause.is_migration && cause.text.contains("(OID 71) was truncated"),
        "{cause:?}"
    );
    assert_eq!(truncated_partition(&name, &recorded(), &World::new().catalog()), None);
    let mut unknown = recorded();
    unknown.partitions.values_mut().for_each(|known| known.file_node = 0);
    assert_eq!(truncated_partition(&name, &unknown, &catalog), None);
    record_file_nodes(&mut unknown, &name, &catalog);
    let file_nodes: Vec<u32> = unknown.partitions.values().map(|known| known.file_node).collect();
    assert_eq!(file_nodes, [170, 999]);
}

#[test]
fn relation_of_the_stream_must_fit() {
    let name = TableName::new("orders").unwrap();
    let sent = |name: &'static str, key, type_oid| pgoutput::Column {
        key,
        name,
        type_oid,
        type_modifier: -1,
    };
    let relation = |id, name, key, type_oid| Relation {
        id,
        schema: "public",
        name,
        replica_identity: b'd',
        columns: vec![sent("id", key, 20), sent("n", false, type_oid)],
    };
    let fits = relation(7, "orders", true, 23);
    assert_eq!(compare_relation(&name, &recorded(), &fits), None);
    assert_eq!(compare_type(&name, &recorded(), &fits, "n"), None);
    assert_eq!(
        compare_type(&name, &recorded(), &relation(7, "orders", true, 20), "n"),
        None
    );
    for (relation, want) in [
        (relation(8, "orders", true, 23), "was replaced"),
        (relation(7, "orders_old", true, 23), "was renamed to public.orders_old"),
        (relation(7, "orders", false, 23), "lacks key column id"),
    ] {
        let cause = compare_relation(&name, &recorded(), &relation).unwrap();
        assert!(!cause.is_migration && cause.text.contains(want), "{cause:?}");
    }
    let cause = compare_type(&name, &recorded(), &relation(7, "orders", true, 25), "n").unwrap();
    assert!(
        cause.is_migration && cause.text.contains("changed from int4 to text"),
        "{cause:?}"
    );
}

#[test]
fn dropped_column_that_returns_needs_a_snapshot() {
    let mut dropped = recorded();
    dropped.columns[2].number = 0;
    let mut world = World::new();
    world.table.columns.remove(2);
    let verdict = compare(&declared(&COLUMNS), &dropped, &world.catalog(), "p");
    assert!(matches!(verdict, Verdict::Fits(_)), "{verdict:?}");
    let name = TableName::new("orders").unwrap();
    assert_eq!(lacks_column(&name, &dropped, "at"), None);
    assert!(lacks_column(&name, &recorded(), "at").unwrap().is_migration);
    let verdict = compare(&declared(&COLUMNS), &dropped, &World::new().catalog(), "p");
    assert!(matches!(verdict, Verdict::NeedsSnapshot(cause) if cause.is_migration));
}

#[test]
fn changed_modifiers_that_may_round_values_are_recognized() {
    let rewritten = |type_name: &str, before, after| {
        let was = ColumnRecord {
            type_modifier: before,
            type_name: type_name.to_owned(),
            ..ColumnRecord::default()
        };
        let now = ColumnRecord {
            type_modifier: after,
            ..was.clone()
        };
        rewrites(&was, &now)
    };
    // numeric(10,2): ((10 << 16) | 2) + 4.
    let numeric = |precision: i32, scale: i32| ((precision << 16) | scale) + 4;
    assert!(!rewritten("numeric", numeric(10, 2), numeric(12, 2)));
    assert!(!rewritten("numeric", numeric(10, 2), -1));
    assert!(rewritten("numeric", numeric(10, 2), numeric(10, 1)));
    assert!(rewritten("numeric", -1, numeric(10, 2)));
    assert!(rewritten("timestamptz", -1, 0) && !rewritten("timestamptz", 0, -1));
    assert!(!rewritten("varchar", 14, 24));
}
