//! Compares a table's static record with the catalog and with the stream, to find changes of the table's definition
//! since its rows were read, and to decide whether its changes can still be published.
//!
//! The published rows are wrong after a difference for which the stream contains no row changes (a replaced table, a
//! rewritten column, an attached partition), and after changes that the stream lacks. The table then needs a snapshot.
//! Differences without such an effect are accepted and recorded.

use super::catalog::{self, Catalog, Table};
use super::check::{self, Checked};
use super::declared::Declared;
use super::pgoutput::Relation;
use super::static_record::{ColumnRecord, NeedsSnapshot, PartitionRecord, TableRecord};
use schemas::ids::TableName;
use std::collections::BTreeMap;

/// Result of a comparison with the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The changes of the table can be published. Contains the current record.
    Fits(Box<TableRecord>),
    /// The table needs a snapshot.
    NeedsSnapshot(Cause),
}

/// Why a table needs a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) text: String,
    /// Whether it is a usual migration, after which the table is read again without a request.
    pub(super) is_migration: bool,
}

impl Cause {
    fn migration(text: String) -> Self {
        Cause {
            text,
            is_migration: true,
        }
    }

    /// A cause after which an operator decides.
    pub(super) fn other(text: impl Into<String>) -> Self {
        Cause {
            text: text.into(),
            is_migration: false,
        }
    }
}

fn stop(cause: impl Into<String>) -> Verdict {
    Verdict::NeedsSnapshot(Cause::other(cause))
}

/// The fix of a table that needs a snapshot: `first`, if present, then a snapshot.
pub(super) fn fix(connector: &str, table: &str, first: Option<&str>) -> String {
    let snapshot = format!("trunkline connect snapshot {connector} {table}");
    match first {
        Some(first) => format!("{first}; then {snapshot}"),
        None => snapshot,
    }
}

/// The state of a table that needs a snapshot, before its readers are informed.
pub(super) fn needs_snapshot(connector: &str, table: &str, cause: String, first: Option<&str>) -> NeedsSnapshot {
    NeedsSnapshot {
        cause,
        fix: fix(connector, table, first),
        published: false,
        schema_rejected: false,
        automatic: false,
    }
}

/// The record of a table whose rows are about to be read.
pub(super) fn record(checked: &Checked, catalog: &Catalog) -> TableRecord {
    let declared = &checked.declared;
    let names = checked.key.iter().filter_map(|at| declared.columns.get(*at));
    let key = names.map(|c| c.name.clone()).collect();
    match catalog.table(&declared.name) {
        Some(table) => current(declared, key, table, catalog),
        None => TableRecord::default(),
    }
}

fn current(declared: &Declared, key: Vec<String>, table: &Table, catalog: &Catalog) -> TableRecord {
    let published = catalog.published(&declared.name);
    // A declared column that does not exist was dropped, which the check permits.
    let column = |c: &schemas::pg_types::Column| match table.column(&c.name) {
        Some(column) => column_record(declared, column),
        None => ColumnRecord {
            name: c.name.clone(),
            ..ColumnRecord::default()
        },
    };
    TableRecord {
        oid: table.oid,
        key,
        replica_identity: table.replica_identity.to_string(),
        file_node: table.file_node,
        columns: declared.columns.iter().map(column).collect(),
        row_filter: published.and_then(|p| p.row_filter.clone()),
        column_list: published.and_then(|p| p.columns.clone()),
        publication_changed_by: catalog.publication.as_ref().map_or(0, |p| p.changed_by),
        memberships: published.map(|p| p.memberships.clone()).unwrap_or_default(),
        partitions: table
            .partitions
            .iter()
            .map(|(oid, p)| (*oid, partition_record(p)))
            .collect(),
        needs_snapshot: None,
        snapshot: None,
    }
}

fn partition_record(partition: &catalog::Partition) -> PartitionRecord {
    PartitionRecord {
        file_node: partition.file_node,
        attached_by: partition.attached_by,
        settled_below: partition.settled_below,
    }
}

fn column_record(declared: &Declared, column: &catalog::Column) -> ColumnRecord {
    ColumnRecord {
        name: column.name.clone(),
        number: column.number,
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        type_name: column.type_name.clone(),
        changed_by: column.changed_by,
        labels: column.labels.clone(),
        mask: declared.masking(&column.name).map(|masking| masking.fingerprint()),
    }
}

/// Compares a table with the catalog. Ignores the file nodes of partitions; see [`truncated_partition`].
pub(super) fn compare(declared: &Declared, was: &TableRecord, catalog: &Catalog, publication: &str) -> Verdict {
    let name = &declared.name;
    let Some(table) = catalog.table(name) else {
        return stop(format!("table {name} no longer exists: it was dropped or renamed"));
    };
    if table.oid != was.oid {
        return stop(replaced(name, was.oid, table.oid));
    }
    if table.has_children {
        return stop(format!(
            "other tables inherit from table {name}, and the publication does not publish their changes as changes of that table"
        ));
    }
    if let Some(cause) = compare_publication(declared, was, catalog, publication) {
        return stop(cause);
    }
    let key = declared.key.as_ref().unwrap_or(&table.primary_key);
    if *key != was.key {
        return stop(format!(
            "the key of table {name} is ({}), but its rows were read with key ({})",
            key.join(", "),
            was.key.join(", ")
        ));
    }
    let identity = table.identity();
    if let Some(column) = key.iter().find(|column| !identity.contains(&column.as_str())) {
        return stop(identity_lacks(name, column));
    }
    if declared.key.is_some() && !table.is_unique(key) {
        return stop(check::not_unique(name, key));
    }
    if let Some(cause) = compare_columns(declared, was, table) {
        return Verdict::NeedsSnapshot(Cause::migration(cause));
    }
    // The connector's own list follows the declaration, so a column that is declared again is compared as a column first.
    if let Some(column) = unpublished_column(declared, was, catalog) {
        return stop(lacks_published(name, column, publication));
    }
    if let Some(cause) = compare_partitions(name, &was.partitions, &table.partitions) {
        return Verdict::NeedsSnapshot(Cause::migration(cause));
    }
    let mut now = current(declared, key.clone(), table, catalog);
    for (oid, partition) in &mut now.partitions {
        if let Some(known) = was.partitions.get(oid) {
            (partition.file_node, partition.settled_below) = (known.file_node, known.settled_below);
        }
    }
    now.snapshot.clone_from(&was.snapshot);
    // Keep columns that are no longer declared. They were read, so they may be declared again.
    now.columns.clone_from(&was.columns);
    for column in &mut now.columns {
        if let Some(found) = table.column(&column.name).filter(|c| c.number == column.number) {
            *column = column_record(declared, found);
        }
    }
    Verdict::Fits(Box::new(now))
}

/// Compares the publication of a table. The server decodes each change with the publication as it was at that time, so
/// changes are also lost if the publication was changed and changed back since the last comparison.
///
/// Another session can change a column list only by replacing the table's entry. The list is then the cause, because the
/// operator can recognize it.
fn compare_publication(declared: &Declared, was: &TableRecord, catalog: &Catalog, publication: &str) -> Option<String> {
    let name = &declared.name;
    let partitioned = catalog.table(name).is_some_and(|table| table.partitioned);
    let found = catalog.publication.as_ref().filter(|p| p.via_root || !partitioned);
    let (Some(found), Some(published)) = (found, catalog.published(name)) else {
        return Some(format!(
            "publication {publication} no longer contains table {name}, so changes were lost"
        ));
    };
    if let Some(filter) = &published.row_filter {
        return Some(format!(
            "publication {publication} has the row filter {filter} for table {name}, so changes were lost"
        ));
    }
    let is_same = found.replacements.connect(&was.memberships, &published.memberships);
    if !was.memberships.is_empty() && !is_same {
        if let Some(column) = unpublished_column(declared, was, catalog) {
            return Some(lacks_published(name, column, publication));
        }
        let has_other_list = published.has_list && published.columns != was.column_list;
        let with = if has_other_list {
            " with another column list"
        } else {
            ""
        };
        return Some(format!(
            "table {name} was removed from publication {publication} and added again{with}, so changes may be lost"
        ));
    }
    (found.changed_by != was.publication_changed_by).then(|| {
        format!("the options of publication {publication} were changed, so changes of table {name} may be lost")
    })
}

fn lacks_published(name: &TableName, column: &str, publication: &str) -> String {
    format!("publication {publication} no longer contains column {column} of table {name}")
}

fn replaced(name: &TableName, was: u32, is: u32) -> String {
    format!("table {name} was replaced: its OID is {is}, but its rows were read from the table with OID {was}")
}

fn identity_lacks(name: &TableName, column: &str) -> String {
    format!(
        "the replica identity of table {name} lacks key column {column}, so deletes and changes of the key do not identify \
         the row"
    )
}

/// The first column that was read and is declared, but is missing in the column list of the publication. A column that no
/// longer exists is missing for another reason.
fn unpublished_column<'d>(declared: &'d Declared, was: &TableRecord, catalog: &Catalog) -> Option<&'d str> {
    let (table, published) = (catalog.table(&declared.name)?, catalog.published(&declared.name)?);
    let list = published.columns.as_ref().filter(|_| published.has_list)?;
    let mut names = declared.columns.iter().map(|column| column.name.as_str());
    names.find(|name| {
        let was_read = was.columns.iter().any(|known| known.name == *name);
        was_read && table.column(name).is_some() && !list.iter().any(|listed| listed == name)
    })
}

fn compare_columns(declared: &Declared, was: &TableRecord, table: &Table) -> Option<String> {
    let name = &declared.name;
    for column in &declared.columns {
        let column_name = &column.name;
        let Some(known) = was.columns.iter().find(|c| c.name == *column_name) else {
            return Some(format!(
                "column {column_name} of table {name} is declared but was not part of the snapshot"
            ));
        };
        let Some(found) = table.column(column_name) else {
            if known.is_dropped() {
                continue;
            }
            return Some(format!("column {column_name} of table {name} was dropped or renamed"));
        };
        if found.number != known.number {
            return Some(format!(
                "column {column_name} of table {name} was replaced by another column of that name"
            ));
        }
        let now = column_record(declared, found);
        if now.mask != known.mask {
            return Some(format!(
                "the mask of column {column_name} of table {name} changed, and its values are published as before"
            ));
        }
        if rewrites(known, &now) {
            return Some(type_changed(name, known, &catalog::sql_type_name(&found.type_name)));
        }
        if table.file_node != was.file_node && now.changed_by != known.changed_by {
            return Some(format!(
                "column {column_name} of table {name} was changed and the table was rewritten (ALTER COLUMN … TYPE), which \
                 may have changed its values"
            ));
        }
        let is_renamed = |(oid, label): &(&u32, &String)| now.labels.get(oid).is_some_and(|now| now != *label);
        if let Some((_, label)) = known.labels.iter().find(is_renamed) {
            return Some(format!(
                "label {label} of the type of column {column_name} of table {name} was renamed, and rows with it are published"
            ));
        }
        let fits = check::fits(&column.pg_type, found) || check::widens(&column.pg_type, &found.type_name);
        if !fits && !declared.hides_type(column_name) {
            return Some(format!(
                "column {column_name} of table {name} is {}, but is declared as {}",
                catalog::sql_type_name(&found.type_name),
                catalog::sql_type_name(&column.pg_type)
            ));
        }
    }
    None
}

fn type_changed(name: &TableName, was: &ColumnRecord, is: &str) -> String {
    format!(
        "the type of column {} of table {name} changed from {} to {is}, which may have changed its values",
        was.name,
        catalog::sql_type_name(&was.type_name)
    )
}

/// Types with the same text format.
fn is_text(type_name: &str) -> bool {
    matches!(type_name, "text" | "varchar")
}

/// Whether a change of a column's type may change stored values. The stream contains no row changes for it.
fn rewrites(was: &ColumnRecord, now: &ColumnRecord) -> bool {
    if was.type_oid != now.type_oid {
        let harmless =
            check::widens(&was.type_name, &now.type_name) || (is_text(&was.type_name) && is_text(&now.type_name));
        return !harmless;
    }
    let (before, after) = (was.type_modifier, now.type_modifier);
    match now.type_name.as_str() {
        // The lower half of the modifier is the scale. Without a modifier, every scale is accepted.
        "numeric" => after != -1 && (before == -1 || (before.wrapping_sub(4) ^ after.wrapping_sub(4)) & 0xffff != 0),
        // Fewer fractional digits of a second, or fewer bits or characters.
        "timestamp" | "timestamptz" | "time" | "timetz" | "interval" | "bit" | "varbit" | "bpchar" => {
            before != after && after != -1
        }
        _ => false,
    }
}

fn compare_partitions(
    name: &TableName,
    was: &BTreeMap<u32, PartitionRecord>,
    is: &BTreeMap<u32, catalog::Partition>,
) -> Option<String> {
    if let Some(oid) = was.keys().find(|oid| !is.contains_key(oid)) {
        return Some(format!(
            "a partition of table {name} (OID {oid}) was detached or dropped, and its rows are still published"
        ));
    }
    let is_attached_again =
        |(oid, p): &(&u32, &catalog::Partition)| was.get(oid).is_some_and(|known| known.attached_by != p.attached_by);
    if let Some((oid, _)) = is.iter().find(is_attached_again) {
        return Some(format!(
            "a partition of table {name} (OID {oid}) was detached and attached again, so changes may be lost"
        ));
    }
    let (oid, _) = is.iter().find(|(oid, p)| !was.contains_key(oid) && !p.began_empty)?;
    Some(format!(
        "a partition with rows (OID {oid}) was attached to table {name}, and its rows are not published"
    ))
}

/// Returns the cause if a partition was truncated or rewritten since its file node was recorded. A recorded 0 means
/// that the file node is unknown because the whole table was truncated; the stream contains that truncation.
pub(super) fn truncated_partition(name: &TableName, was: &TableRecord, catalog: &Catalog) -> Option<Cause> {
    let table = catalog.table(name)?;
    let (oid, _) = table.partitions.iter().find(|(oid, partition)| {
        let known = was.partitions.get(oid).map_or(0, |known| known.file_node);
        known != 0 && known != partition.file_node
    })?;
    Some(Cause::migration(format!(
        "a partition of table {name} (OID {oid}) was truncated or rewritten, and its rows are still published"
    )))
}

/// Records the file nodes of partitions that have none recorded.
pub(super) fn record_file_nodes(record: &mut TableRecord, name: &TableName, catalog: &Catalog) {
    let Some(table) = catalog.table(name) else { return };
    for (oid, known) in record.partitions.iter_mut().filter(|(_, known)| known.file_node == 0) {
        if let Some(partition) = table.partitions.get(oid) {
            (known.file_node, known.settled_below) = (partition.file_node, partition.settled_below);
        }
    }
}

/// Returns the cause if a relation of the stream does not match the table's record. The relation has the name or the
/// OID of the table.
pub(super) fn compare_relation(name: &TableName, was: &TableRecord, relation: &Relation<'_>) -> Option<Cause> {
    if relation.id != was.oid {
        return Some(Cause::other(replaced(name, was.oid, relation.id)));
    }
    let schema = if relation.schema.is_empty() {
        "pg_catalog"
    } else {
        relation.schema
    };
    if (schema, relation.name) != (name.schema(), name.table()) {
        return Some(Cause::other(format!(
            "table {name} was renamed to {schema}.{}",
            relation.name
        )));
    }
    let column = |name: &str| relation.columns.iter().find(|c| c.name == name);
    if let Some(key) = was.key.iter().find(|key| column(key).is_none_or(|c| !c.key)) {
        return Some(Cause::other(identity_lacks(name, key)));
    }
    None
}

/// The cause if a relation of the stream lacks a declared column.
pub(super) fn lacks_column(name: &TableName, was: &TableRecord, column: &str) -> Option<Cause> {
    let known = was.columns.iter().find(|known| known.name == column);
    if known.is_some_and(ColumnRecord::is_dropped) {
        return None;
    }
    Some(Cause::migration(format!(
        "column {column} of table {name} was dropped, renamed or removed from the publication"
    )))
}

/// Returns the cause if the type of a declared column in a relation of the stream does not match the record.
pub(super) fn compare_type(
    name: &TableName,
    was: &TableRecord,
    relation: &Relation<'_>,
    column: &str,
) -> Option<Cause> {
    let sent = relation.columns.iter().find(|c| c.name == column)?;
    let known = was.columns.iter().find(|c| c.name == column)?;
    let now = ColumnRecord {
        type_oid: sent.type_oid,
        type_modifier: sent.type_modifier,
        type_name: if sent.type_oid == known.type_oid {
            known.type_name.clone()
        } else {
            built_in_type(sent.type_oid).unwrap_or_default().to_owned()
        },
        ..known.clone()
    };
    if !rewrites(known, &now) {
        return None;
    }
    let is = match built_in_type(sent.type_oid) {
        Some(name) => name.to_owned(),
        None => format!("a type with OID {}", sent.type_oid),
    };
    Some(Cause::migration(type_changed(name, known, &is)))
}

/// Returns the name of a built-in type to which a column's type may change. The stream contains only OIDs.
fn built_in_type(oid: u32) -> Option<&'static str> {
    Some(match oid {
        20 => "int8",
        21 => "int2",
        23 => "int4",
        25 => "text",
        1043 => "varchar",
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
