//! Reads tables, columns, keys, partitions and publications from the system catalog. Domains are resolved to their base
//! types.

use super::server::{Sql, literal};
use crate::error::Result;
use schemas::ids::TableName;
use std::collections::BTreeMap;
use tokio_postgres::SimpleQueryRow;

/// A table in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// OID.
    pub oid: u32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// `d` default, `n` nothing, `f` full, `i` index.
    pub replica_identity: char,
    /// Whether this user has `SELECT` on the table and `USAGE` on its schema.
    pub readable: bool,
    /// Whether the table is partitioned.
    pub partitioned: bool,
    /// Whether tables other than its partitions inherit from the table.
    pub has_children: bool,
    /// Whether row-level security restricts what this user reads.
    pub row_security: bool,
    /// Columns in order.
    pub columns: Vec<Column>,
    /// Columns of the primary key, in key order; empty if there is none.
    pub primary_key: Vec<String>,
    /// Whether the primary key is deferrable. PostgreSQL does not use such a key as replica identity.
    pub deferrable_key: bool,
    /// Columns of the replica identity index, if `replica_identity` is `i`.
    pub identity_index: Vec<String>,
    /// Partitions of the table at all levels, by OID.
    pub partitions: BTreeMap<u32, Partition>,
}

/// A partition in the catalog, at any level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// File node of the partition; 0 if the partition is partitioned itself.
    pub file_node: u32,
    /// Whether the partition has never contained rows that were not written through its parent.
    pub began_empty: bool,
}

/// A column in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: String,
    /// Number.
    pub number: i16,
    /// OID of its type.
    pub type_oid: u32,
    /// Type modifier, -1 for none.
    pub type_modifier: i32,
    /// PostgreSQL's name of the type (`int4`, `_text` for an array of text); of a domain, its base type.
    pub type_name: String,
    /// Whether the column is nullable.
    pub nullable: bool,
    /// Whether the column is generated. The replication stream does not contain generated columns.
    pub generated: bool,
}

impl Table {
    /// The columns whose old values the stream contains for updates and deletes.
    pub fn identity(&self) -> Vec<&str> {
        let names = match self.replica_identity {
            'f' => return self.columns.iter().map(|c| c.name.as_str()).collect(),
            'd' if self.deferrable_key => return Vec::new(),
            'd' => &self.primary_key,
            'i' => &self.identity_index,
            _ => return Vec::new(),
        };
        names.iter().map(String::as_str).collect()
    }

    /// The column with this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }
}

/// A publication in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// OID.
    pub oid: u32,
    /// The published operations.
    pub operations: Vec<String>,
    /// `publish_via_partition_root`.
    pub via_root: bool,
    /// Tables by (schema, name).
    pub tables: BTreeMap<(String, String), Published>,
}

/// A table of a publication.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// Its published columns; `None` for all columns.
    pub columns: Option<Vec<String>>,
    /// The row filter.
    pub row_filter: Option<String>,
}

/// The operations that a connector needs.
const OPERATIONS: [&str; 4] = ["insert", "update", "delete", "truncate"];

impl Publication {
    /// Whether inserts, updates, deletes and truncates are all published.
    pub fn publishes_all(&self) -> bool {
        OPERATIONS
            .iter()
            .all(|needed| self.operations.iter().any(|o| o == needed))
    }
}

const ATTEMPTED: &str = "read the catalog";

/// The catalog's entries for the declared tables of a connector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Catalog {
    pub(super) tables: Tables,
    pub(super) publication: Option<Publication>,
}

impl Catalog {
    /// Reads these tables and the publication.
    ///
    /// The publication is read first: if a table is dropped between the two queries, the table is reported as missing,
    /// and not merely as unpublished. A transaction would not help, because the functions that describe publications
    /// read the newest catalog.
    pub(super) async fn read(sql: &Sql, names: &[TableName], publication_name: &str) -> Result<Self> {
        let publication = publication(sql, publication_name).await?;
        let wanted: Vec<(&str, &str)> = names.iter().map(|t| (t.schema(), t.table())).collect();
        Ok(Catalog {
            tables: tables(sql, Some(&wanted)).await?,
            publication,
        })
    }

    pub(super) fn table(&self, name: &TableName) -> Option<&Table> {
        self.tables.get(&pair(name))
    }

    /// The part of a table that is published; `None` if the publication does not exist or does not contain the table.
    pub(super) fn published(&self, name: &TableName) -> Option<&Published> {
        self.publication.as_ref()?.tables.get(&pair(name))
    }
}

fn pair(name: &TableName) -> (String, String) {
    (name.schema().to_owned(), name.table().to_owned())
}

/// Ordinary and partitioned tables by (schema, name): those in `wanted`, or all tables outside the system schemas.
pub async fn tables(sql: &Sql, wanted: Option<&[(&str, &str)]>) -> Result<Tables> {
    let which = match wanted {
        Some([]) => return Ok(BTreeMap::new()),
        Some(wanted) => {
            let pairs: Vec<String> = wanted
                .iter()
                .map(|(schema, name)| format!("({}, {})", literal(schema), literal(name)))
                .collect();
            format!("(n.nspname, c.relname) IN ({})", pairs.join(", "))
        }
        // Changes of partitions are published as changes of their root table.
        None => String::from(
            "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT c.relispartition \
             AND c.relpersistence = 'p'",
        ),
    };
    let columns = format!(
        "SELECT c.oid, n.nspname, c.relname, c.relreplident, \
            has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') AS readable, \
            c.relkind = 'p' AS partitioned, row_security_active(c.oid) AS row_security, \
            c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits h WHERE h.inhparent = c.oid) AS has_children, \
            a.attnum, a.atttypid, a.atttypmod, a.attname, coalesce(inner_base.typname, base.typname, t.typname) AS type, \
            NOT (a.attnotnull OR t.typnotnull) AS nullable, a.attgenerated <> '' AS generated \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         JOIN pg_type t ON t.oid = a.atttypid \
         LEFT JOIN pg_type base ON t.typtype = 'd' AND base.oid = t.typbasetype \
         LEFT JOIN pg_type inner_base ON base.typtype = 'd' AND inner_base.oid = base.typbasetype \
         WHERE c.relkind IN ('r', 'p') AND {which} ORDER BY n.nspname, c.relname, a.attnum"
    );
    let mut found = BTreeMap::new();
    for row in sql.rows(ATTEMPTED, &columns).await? {
        let key = (text(&row, "nspname"), text(&row, "relname"));
        let table = found.entry(key).or_insert_with(|| Table {
            oid: number(&row, "oid"),
            schema: text(&row, "nspname"),
            name: text(&row, "relname"),
            replica_identity: text(&row, "relreplident").chars().next().unwrap_or('d'),
            readable: is(&row, "readable"),
            partitioned: is(&row, "partitioned"),
            has_children: is(&row, "has_children"),
            row_security: is(&row, "row_security"),
            columns: Vec::new(),
            primary_key: Vec::new(),
            deferrable_key: false,
            identity_index: Vec::new(),
            partitions: BTreeMap::new(),
        });
        table.columns.push(Column {
            name: text(&row, "attname"),
            number: number(&row, "attnum"),
            type_oid: number(&row, "atttypid"),
            type_modifier: number(&row, "atttypmod"),
            type_name: text(&row, "type"),
            nullable: is(&row, "nullable"),
            generated: is(&row, "generated"),
        });
    }
    read_keys(sql, &which, &mut found).await?;
    if found.values().any(|table| table.partitioned) {
        read_partitions(sql, &which, &mut found).await?;
    }
    Ok(found)
}

type Tables = BTreeMap<(String, String), Table>;

/// Adds the primary keys and replica identity indexes to the tables.
async fn read_keys(sql: &Sql, which: &str, found: &mut Tables) -> Result<()> {
    let keys = format!(
        "SELECT n.nspname, c.relname, i.indisprimary, i.indisreplident, NOT i.indimmediate AS deferrable, a.attname \
         FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, ord) \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum \
         WHERE (i.indisprimary OR i.indisreplident) AND k.ord <= i.indnkeyatts AND {which} \
         ORDER BY i.indexrelid, k.ord"
    );
    for row in sql.rows(ATTEMPTED, &keys).await? {
        let Some(table) = found.get_mut(&(text(&row, "nspname"), text(&row, "relname"))) else {
            continue;
        };
        if is(&row, "indisprimary") {
            table.deferrable_key = is(&row, "deferrable");
            table.primary_key.push(text(&row, "attname"));
        }
        if is(&row, "indisreplident") {
            table.identity_index.push(text(&row, "attname"));
        }
    }
    Ok(())
}

/// Adds the partitions to the tables.
///
/// An attached partition may contain rows for which the stream has no inserts. `CREATE TABLE … PARTITION OF` inserts
/// its rows of `pg_type` and `pg_inherits` in one transaction, two command ids apart. If a table was created, filled
/// and attached in one transaction, these command ids differ by more.
async fn read_partitions(sql: &Sql, which: &str, found: &mut Tables) -> Result<()> {
    let partitions = format!(
        "SELECT n.nspname, c.relname, l.oid, coalesce(pg_relation_filenode(l.oid), 0) AS file_node, \
            (h.xmin = t.xmin AND h.cmin::text::int8 - t.cmin::text::int8 <= 2) \
            OR NOT EXISTS (SELECT FROM pg_partition_tree(l.oid) d WHERE pg_relation_size(d.relid) > 0) AS began_empty \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         CROSS JOIN LATERAL pg_partition_tree(c.oid) p \
         JOIN pg_class l ON l.oid = p.relid AND l.oid <> c.oid \
         JOIN pg_inherits h ON h.inhrelid = l.oid JOIN pg_type t ON t.oid = l.reltype \
         WHERE c.relkind = 'p' AND {which}"
    );
    for row in sql.rows(ATTEMPTED, &partitions).await? {
        if let Some(table) = found.get_mut(&(text(&row, "nspname"), text(&row, "relname"))) {
            let partition = Partition {
                file_node: number(&row, "file_node"),
                began_empty: is(&row, "began_empty"),
            };
            table.partitions.insert(number(&row, "oid"), partition);
        }
    }
    Ok(())
}

/// A publication; `None` when it does not exist.
pub async fn publication(sql: &Sql, name: &str) -> Result<Option<Publication>> {
    let name = literal(name);
    let properties = format!(
        "SELECT oid, pubinsert AS insert, pubupdate AS update, pubdelete AS delete, pubtruncate AS truncate, \
            pubviaroot AS via_root FROM pg_publication WHERE pubname = {name}"
    );
    let rows = sql.rows(ATTEMPTED, &properties).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let published = OPERATIONS.iter().filter(|operation| is(row, operation));
    let mut publication = Publication {
        oid: number(row, "oid"),
        operations: published.map(|o| String::from(*o)).collect(),
        via_root: is(row, "via_root"),
        tables: BTreeMap::new(),
    };
    // Column lists and row filters exist since PostgreSQL 15.
    let lists = server_version(sql).await? >= 150_000;
    let properties = if lists {
        "array_to_json(attnames)::text AS columns, rowfilter"
    } else {
        "NULL AS columns, NULL AS rowfilter"
    };
    let members =
        format!("SELECT schemaname, tablename, {properties} FROM pg_publication_tables WHERE pubname = {name}");
    for row in sql.rows(ATTEMPTED, &members).await? {
        let value = |column: &str| row.try_get(column).ok().flatten();
        let published = Published {
            columns: value("columns").and_then(|json| serde_json::from_str(json).ok()),
            row_filter: value("rowfilter").map(str::to_owned),
        };
        let key = (text(&row, "schemaname"), text(&row, "tablename"));
        publication.tables.insert(key, published);
    }
    Ok(Some(publication))
}

/// The server's version as a number: 150004 is 15.4.
pub async fn server_version(sql: &Sql) -> Result<u32> {
    let version = sql
        .value(ATTEMPTED, "SELECT current_setting('server_version_num')")
        .await?;
    Ok(version.and_then(|text| text.parse().ok()).unwrap_or_default())
}

fn text(row: &SimpleQueryRow, column: &str) -> String {
    row.try_get(column).ok().flatten().unwrap_or_default().to_owned()
}

fn number<N: std::str::FromStr + Default>(row: &SimpleQueryRow, column: &str) -> N {
    text(row, column).parse().unwrap_or_default()
}

fn is(row: &SimpleQueryRow, column: &str) -> bool {
    row.try_get(column).ok().flatten() == Some("t")
}

/// Converts PostgreSQL's internal name of a type to SQL notation: `_int4` is `int4[]`.
pub fn sql_type_name(type_name: &str) -> String {
    match type_name.strip_prefix('_') {
        Some(element) => format!("{element}[]"),
        None => type_name.to_owned(),
    }
}
