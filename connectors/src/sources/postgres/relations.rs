//! Maps a relation of the stream to a declared table and its columns.

use super::drift::{self, Cause};
use super::pgoutput::{Column, Relation, RelationId};
use super::rows::Table;
use super::static_record::StaticRecord;
use schemas::ids::TableName;
use std::sync::Arc;

/// How a relation of the stream relates to the declared tables.
#[derive(Debug, Clone)]
pub(super) enum Mapped {
    /// A declared table whose changes are published.
    Table(Mapping),
    /// A declared table whose changes are skipped, by its declared name.
    Stopped(Arc<str>),
    /// Not declared.
    Undeclared,
}

/// Maps a relation of the stream to a declared table and its columns.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    /// Index of the table's encoder.
    pub(super) table: usize,
    /// Number of declared columns.
    pub(super) columns: usize,
    /// The declared column of each column of the relation.
    pub(super) slots: Arc<[Option<usize>]>,
    /// Whether the declared columns are the first columns of the relation, in the same order.
    pub(super) is_prefix: bool,
}

/// A relation as it was last received. When the snapshot of a stopped table begins, the relation is mapped again.
#[derive(Debug, Clone)]
pub(super) struct KnownRelation {
    id: RelationId,
    schema: Box<str>,
    name: Box<str>,
    replica_identity: u8,
    columns: Vec<KnownColumn>,
}

#[derive(Debug, Clone)]
struct KnownColumn {
    key: bool,
    name: Box<str>,
    type_oid: u32,
    type_modifier: i32,
}

impl KnownRelation {
    pub(super) fn new(relation: &Relation<'_>) -> Self {
        let column = |column: &Column<'_>| KnownColumn {
            key: column.key,
            name: column.name.into(),
            type_oid: column.type_oid,
            type_modifier: column.type_modifier,
        };
        KnownRelation {
            id: relation.id,
            schema: relation.schema.into(),
            name: relation.name.into(),
            replica_identity: relation.replica_identity,
            columns: relation.columns.iter().map(column).collect(),
        }
    }

    pub(super) fn relation(&self) -> Relation<'_> {
        Relation {
            id: self.id,
            schema: &self.schema,
            name: &self.name,
            replica_identity: self.replica_identity,
            columns: self
                .columns
                .iter()
                .map(|column| Column {
                    key: column.key,
                    name: &column.name,
                    type_oid: column.type_oid,
                    type_modifier: column.type_modifier,
                })
                .collect(),
        }
    }
}

/// A declared table that does not match its relation in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Misfit {
    pub(super) table: TableName,
    pub(super) cause: Cause,
}

/// Maps a relation. A declared table is found by its OID, or else by its name. In the second case another table has
/// replaced it.
pub(super) fn map(
    relation: &Relation<'_>,
    declared: &[TableName],
    tables: &[Arc<Table>],
    source: &StaticRecord,
) -> Result<Mapped, Misfit> {
    let record = |name: &TableName| source.table(name.as_str());
    let same_oid = |name: &&TableName| record(name).is_some_and(|record| record.oid == relation.id);
    let same_name = |name: &&TableName| name.table() == relation.name && name.schema() == schema_of(relation);
    let found = declared.iter().find(same_oid);
    let Some(name) = found.or_else(|| declared.iter().find(same_name)) else {
        return Ok(Mapped::Undeclared);
    };
    let encoder = tables.iter().position(|table| table.name == *name);
    let (Some(record), Some(index)) = (record(name).filter(|r| r.needs_snapshot.is_none()), encoder) else {
        return Ok(Mapped::Stopped(name.as_str().into()));
    };
    let misfit = |cause: Cause| Misfit {
        table: name.clone(),
        cause,
    };
    if let Some(cause) = drift::compare_relation(name, record, relation) {
        return Err(misfit(cause));
    }
    let Some(table) = tables.get(index) else {
        return Ok(Mapped::Undeclared);
    };
    let mut slots = vec![None; relation.columns.len()];
    for (declared, column) in table.names().enumerate() {
        let Some(at) = relation.columns.iter().position(|c| c.name == column) else {
            match drift::lacks_column(name, record, column) {
                Some(cause) => return Err(misfit(cause)),
                None => continue,
            }
        };
        if let Some(cause) = drift::compare_type(name, record, relation, column) {
            return Err(misfit(cause));
        }
        if let Some(slot) = slots.get_mut(at) {
            *slot = Some(declared);
        }
    }
    let columns = table.columns();
    let is_prefix = slots
        .iter()
        .take(columns)
        .enumerate()
        .all(|(at, slot)| *slot == Some(at));
    Ok(Mapped::Table(Mapping {
        table: index,
        columns,
        slots: slots.into(),
        is_prefix,
    }))
}

/// The schema of a relation, which the stream leaves out for `pg_catalog`.
fn schema_of<'a>(relation: &Relation<'a>) -> &'a str {
    if relation.schema.is_empty() {
        "pg_catalog"
    } else {
        relation.schema
    }
}
