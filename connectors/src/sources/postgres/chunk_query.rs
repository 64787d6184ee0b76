//! The statements that read chunks of a table in key order.

use super::check::quoted;
use super::rows::Table;
use super::server::{identifier, literal};
use super::window::{InProgress, KeyTexts};
use schemas::ids::TableName;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Which rows a chunk contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Range {
    /// The rows after this key; all rows if it is `None`.
    After(Option<KeyTexts>),
    /// The rows with these keys.
    Keys(Vec<KeyTexts>),
}

/// A key column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyColumn {
    pub(super) name: String,
    /// Whether comparison operators and sort order of the type are those of `pg_catalog`. The search path contains only
    /// that schema, so for a type such as `citext` the operators would be those of another type than the sort order.
    pub(super) is_built_in: bool,
    pub(super) nullable: bool,
}

impl KeyColumn {
    fn expression(&self) -> String {
        let name = identifier(&self.name);
        if self.is_built_in {
            name
        } else {
            format!("{name}::text COLLATE \"C\"")
        }
    }
}

/// Statements for one table.
#[derive(Debug)]
pub(super) struct ChunkQuery {
    pub(super) table: TableName,
    columns: Vec<String>,
    key: Vec<KeyColumn>,
}

impl ChunkQuery {
    /// For the columns of an encoder. `dropped` are those that do not exist any more.
    pub(super) fn new(table: &Table, key: Vec<KeyColumn>, dropped: &BTreeSet<&str>) -> Self {
        let column = |name| match dropped.contains(name) {
            true => String::from("NULL"),
            false => identifier(name),
        };
        ChunkQuery {
            table: table.name.clone(),
            columns: table.names().map(column).collect(),
            key,
        }
    }

    /// Begins the transaction in which a chunk is read, and returns a snapshot.
    ///
    /// The table is locked before a snapshot is taken: TRUNCATE and statements that rewrite a table are not MVCC-safe,
    /// so with an older snapshot the table would look empty after them. LOCK TABLE needs a permission for the whole table,
    /// so an empty query locks it. Every statement of the transaction has its own snapshot. That of the rows is newer than
    /// the returned one, so it sees all transactions that the returned one sees.
    pub(super) fn begin(&self) -> String {
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SELECT FROM {} LIMIT 0; \
             SELECT pg_current_snapshot()::text, (extract(epoch FROM clock_timestamp()) * 1000)::int8::text",
            quoted(&self.table)
        )
    }

    /// Copies up to `limit` rows in key order.
    pub(super) fn rows(&self, range: &Range, limit: usize) -> String {
        let key: Vec<String> = self.key.iter().map(KeyColumn::expression).collect();
        let key = key.join(", ");
        let mut conditions: Vec<String> = self.nullable().map(|name| format!("{name} IS NOT NULL")).collect();
        match range {
            Range::After(None) => {}
            Range::After(Some(after)) => conditions.push(format!("({key}) > ({})", literals(after))),
            Range::Keys(keys) => {
                let keys: Vec<String> = keys.iter().map(|key| format!("({})", literals(key))).collect();
                conditions.push(format!("({key}) IN ({})", keys.join(", ")));
            }
        }
        let mut select = self.select();
        if !conditions.is_empty() {
            let _ = write!(select, " WHERE {}", conditions.join(" AND "));
        }
        format!("COPY ({select} ORDER BY {key} LIMIT {limit}) TO STDOUT")
    }

    /// Copies one row with a null in its key; `None` if the key has no nullable column. A comparison with a key never
    /// finds such a row. It cannot be published either, so it becomes a dead letter.
    pub(super) fn null_key(&self) -> Option<String> {
        let conditions: Vec<String> = self.nullable().map(|name| format!("{name} IS NULL")).collect();
        (!conditions.is_empty()).then(|| {
            format!(
                "COPY ({} WHERE {} LIMIT 1) TO STDOUT",
                self.select(),
                conditions.join(" OR ")
            )
        })
    }

    fn nullable(&self) -> impl Iterator<Item = String> + '_ {
        self.key.iter().filter(|c| c.nullable).map(|c| identifier(&c.name))
    }

    fn select(&self) -> String {
        format!("SELECT {} FROM {}", self.columns.join(", "), quoted(&self.table))
    }
}

fn literals(key: &KeyTexts) -> String {
    let texts: Vec<String> = key.iter().map(|text| literal(text)).collect();
    texts.join(", ")
}

/// The key columns whose types have operators and sort order in `pg_catalog`: built-in types and enums, and domains
/// over them.
pub(super) fn built_in_columns(oid: u32) -> String {
    format!(
        "WITH RECURSIVE base(name, oid, kind, next) AS (\
         SELECT a.attname, t.oid, t.typtype, t.typbasetype FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
         WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped \
         UNION ALL SELECT b.name, t.oid, t.typtype, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.next \
         WHERE b.kind = 'd') \
         SELECT name FROM base WHERE kind = 'e' OR (kind <> 'd' AND oid < 16384)"
    )
}

/// The OIDs of a table and of its partitions.
fn relations(oid: u32) -> String {
    format!("(SELECT relid FROM pg_partition_tree({oid}) UNION ALL SELECT {oid})")
}

/// Estimated number of rows of a table, and its size in bytes.
pub(super) fn estimate(oid: u32) -> String {
    format!(
        "SELECT sum(greatest(reltuples, 0))::int8::text, sum(pg_table_size(oid))::int8::text FROM pg_class \
         WHERE relkind = 'r' AND oid IN {}",
        relations(oid)
    )
}

/// The OIDs of tables, smallest table first; tables of the same size stay in this order. The sizes are those of the last
/// VACUUM or ANALYZE.
pub(super) fn by_size(oids: &[u32]) -> String {
    let oids: Vec<String> = oids.iter().map(u32::to_string).collect();
    format!(
        "SELECT wanted.oid::text FROM unnest(ARRAY[{}]::oid[]) WITH ORDINALITY wanted(oid, number), \
         LATERAL (SELECT relid FROM pg_partition_tree(wanted.oid) UNION SELECT wanted.oid) part, \
         pg_class c WHERE c.oid = part.relid GROUP BY wanted.oid, wanted.number \
         ORDER BY sum(greatest(c.relpages, 0)), wanted.number",
        oids.join(", ")
    )
}

/// The transactions that have written to a table and are still in progress. They hold their locks until they end.
pub(super) fn writers(oid: u32) -> String {
    format!(
        "SELECT DISTINCT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND relation IN {} \
         AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')",
        relations(oid)
    )
}

/// The transactions that the text of a snapshot (`xmin:xmax:xid,…`) shows to be in progress, without their epoch.
pub(super) fn in_progress(snapshot: &str) -> Option<InProgress> {
    let mut parts = snapshot.split(':').skip(1);
    let (xmax, ids) = (parts.next()?, parts.next()?);
    let id = |text: &str| {
        let id: u64 = text.parse().ok()?;
        u32::try_from(id & u64::from(u32::MAX)).ok()
    };
    let listed: Option<Vec<u32>> = ids.split(',').filter(|text| !text.is_empty()).map(id).collect();
    Some(InProgress {
        listed: listed?,
        from: Some(id(xmax)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(key: &[(&str, bool, bool)]) -> ChunkQuery {
        let column = |(name, is_built_in, nullable): &(&str, bool, bool)| KeyColumn {
            name: (*name).to_owned(),
            is_built_in: *is_built_in,
            nullable: *nullable,
        };
        ChunkQuery {
            table: TableName::new("orders").unwrap(),
            columns: vec![String::from("\"id\""), String::from("\"n\"")],
            key: key.iter().map(column).collect(),
        }
    }

    #[test]
    fn chunks_follow_the_key_in_the_order_of_the_database() {
        let two = query(&[("id", true, false), ("n", true, false)]);
        assert_eq!(
            two.rows(&Range::After(None), 5),
            r#"COPY (SELECT "id", "n" FROM "public"."orders" ORDER BY "id", "n" LIMIT 5) TO STDOUT"#
        );
        let after = Range::After(Some(vec![String::from("1"), String::from("it's")]));
        assert_eq!(
            two.rows(&after, 5),
            r#"COPY (SELECT "id", "n" FROM "public"."orders" WHERE ("id", "n") > ('1', 'it''s') ORDER BY "id", "n" LIMIT 5) TO STDOUT"#
        );
        let keys = Range::Keys(vec![vec![String::from("7")], vec![String::from("8")]]);
        let text = query(&[("id", false, false)]).rows(&keys, 2);
        assert!(
            text.contains(r#"("id"::text COLLATE "C") IN (('7'), ('8')) ORDER BY "id"::text COLLATE "C""#),
            "{text}"
        );
        assert_eq!(two.null_key(), None);
    }

    #[test]
    fn row_with_a_null_key_is_read_separately() {
        let nullable = query(&[("id", true, true)]);
        assert!(
            nullable
                .rows(&Range::After(None), 5)
                .contains(r#"WHERE "id" IS NOT NULL ORDER"#)
        );
        assert!(nullable.null_key().unwrap().contains(r#"WHERE "id" IS NULL LIMIT 1"#));
    }

    #[test]
    fn transactions_in_progress_are_those_of_the_snapshot() {
        let found = |listed: &[u32], from| {
            Some(InProgress {
                listed: listed.to_vec(),
                from: Some(from),
            })
        };
        assert_eq!(in_progress("10:20:10,4294967307"), found(&[10, 11], 20));
        assert_eq!(in_progress("10:10:"), found(&[], 10));
        assert_eq!(in_progress("10:"), None);
        assert_eq!(in_progress(""), None);
    }
}
