//! Partitions that got another file without losing rows: VACUUM FULL and CLUSTER.
//!
//! The catalog does not distinguish them from TRUNCATE, which the stream does not contain for a single partition. The rows
//! do: they keep the transaction that wrote them. A row from before the old file was last seen would not exist after a
//! TRUNCATE. Without such a row nothing is proved, and the partition counts as truncated.

use super::catalog::{Catalog, Partition};
use super::server::Sql;
use super::static_record::{PartitionRecord, StaticRecord, TableRecord};
use crate::error::Result;
use std::collections::BTreeMap;

/// Maximum number of rows that are looked at.
const ROWS_MAX: u32 = 100_000;
/// Maximum number of remembered rewrites.
const REWRITES_MAX: usize = 10_000;
/// Half of the transaction ids: the ages of older ones are not comparable.
const AGE_MAX: u64 = 1 << 31;

/// Rewrites of partitions: the new file node by OID and old file node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rewrites {
    by: BTreeMap<(u32, u32), u32>,
}

impl Rewrites {
    /// A table's record with the file nodes that its partitions have after the rewrites.
    pub(super) fn follow(&self, record: &TableRecord) -> TableRecord {
        let mut record = record.clone();
        for (oid, partition) in &mut record.partitions {
            // A file node is not used again for a long time, but a circle must not hang.
            for _ in 0..self.by.len() {
                match self.by.get(&(*oid, partition.file_node)) {
                    Some(next) => partition.file_node = *next,
                    None => break,
                }
            }
        }
        record
    }
}

/// The file nodes of the partitions as they were last seen, and the rewrites since the stream began.
#[derive(Debug, Default)]
pub(super) struct KnownFiles {
    seen: BTreeMap<u32, PartitionRecord>,
    rewrites: Rewrites,
}

impl KnownFiles {
    /// Begins with what a static record contains.
    pub(super) fn new(source: &StaticRecord) -> Self {
        let tables = source.content().tables.values();
        KnownFiles {
            seen: tables.flat_map(|table| table.partitions.clone()).collect(),
            rewrites: Rewrites::default(),
        }
    }

    /// Compares with the catalog, and returns all rewrites.
    ///
    /// # Errors
    /// A query failed. The partitions are then compared again.
    pub(super) async fn observe(&mut self, sql: &Sql, catalog: &Catalog) -> Result<Rewrites> {
        for table in catalog.tables.values() {
            for (oid, now) in &table.partitions {
                let was = self.seen.get(oid).copied();
                if let Some(was) = was.filter(|was| was.file_node != now.file_node)
                    && is_comparable(was, *now)
                    && has_older_row(sql, *oid, was.settled_below).await?
                    && self.rewrites.by.len() < REWRITES_MAX
                {
                    tracing::info!(
                        table = table.name,
                        partition = oid,
                        "partition was rewritten and kept its rows"
                    );
                    self.rewrites.by.insert((*oid, was.file_node), now.file_node);
                }
                let record = PartitionRecord {
                    file_node: now.file_node,
                    attached_by: now.attached_by,
                    settled_below: now.settled_below,
                };
                self.seen.insert(*oid, record);
            }
        }
        Ok(self.rewrites.clone())
    }
}

fn is_comparable(was: PartitionRecord, now: Partition) -> bool {
    let age = now.settled_below.checked_sub(was.settled_below);
    was.file_node != 0 && now.file_node != 0 && was.settled_below != 0 && age.is_some_and(|age| age < AGE_MAX)
}

/// Whether a partition contains a row of a transaction with a smaller id.
async fn has_older_row(sql: &Sql, oid: u32, settled_below: u64) -> Result<bool> {
    let attempted = "look for rows of a rewritten partition";
    let name =
        format!("SELECT oid::regclass::text FROM pg_class WHERE oid = {oid} AND has_table_privilege(oid, 'SELECT')");
    let Some(name) = sql.value(attempted, &name).await? else {
        return Ok(false);
    };
    let xid = settled_below % (1 << 32);
    let query = format!(
        "SELECT EXISTS (SELECT FROM (SELECT xmin FROM ONLY {name} LIMIT {ROWS_MAX}) rows \
         WHERE age(rows.xmin) > age('{xid}'::xid))"
    );
    Ok(sql.value(attempted, &query).await?.as_deref() == Some("t"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(file_node: u32, settled_below: u64) -> PartitionRecord {
        PartitionRecord {
            file_node,
            attached_by: 1,
            settled_below,
        }
    }

    #[test]
    fn rewrites_lead_from_the_recorded_file_to_the_last_one() {
        let record = TableRecord {
            partitions: BTreeMap::from([(7, at(10, 5)), (8, at(10, 5))]),
            ..TableRecord::default()
        };
        let rewrites = Rewrites {
            by: BTreeMap::from([((7, 10), 11), ((7, 11), 12), ((8, 11), 13)]),
        };
        let nodes: Vec<u32> = rewrites
            .follow(&record)
            .partitions
            .values()
            .map(|p| p.file_node)
            .collect();
        assert_eq!(nodes, [12, 10]);
    }

    #[test]
    fn ages_are_compared_only_within_half_of_the_ids() {
        let now = |settled_below| Partition {
            file_node: 11,
            attached_by: 1,
            settled_below,
            began_empty: false,
        };
        assert!(is_comparable(at(10, 5), now(500)));
        assert!(!is_comparable(at(10, 5), now(5 + AGE_MAX)));
        assert!(!is_comparable(at(10, 0), now(500)), "written by an older release");
        assert!(!is_comparable(at(0, 5), now(500)), "the whole table was truncated");
    }
}
