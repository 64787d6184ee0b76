//! Reads tables, columns, keys and publications from the system catalog. Domains are resolved to their base types.

use super::server::{Sql, literal};
use crate::error::Result;
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
    /// Columns in order.
    pub columns: Vec<Column>,
    /// Columns of the primary key, in key order; empty if there is none.
    pub primary_key: Vec<String>,
    /// Columns of the replica identity index, if `replica_identity` is `i`.
    pub identity_index: Vec<String>,
}

/// A column in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: String,
    /// PostgreSQL's name of the type (`int4`; `_text` for an array of text). For a domain, the name of its base type.
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
    /// Whether inserts, updates, deletes and truncates are all published.
    pub publishes_all: bool,
    /// Tables by (schema, name), each with its published columns; `None` for all columns.
    pub tables: BTreeMap<(String, String), Option<Vec<String>>>,
}

const ATTEMPTED: &str = "read the catalog";

/// Ordinary and partitioned tables by (schema, name): the tables in `wanted`, or all tables outside the system schemas.
pub async fn tables(sql: &Sql, wanted: Option<&[(&str, &str)]>) -> Result<BTreeMap<(String, String), Table>> {
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
            a.attname, coalesce(inner_base.typname, base.typname, t.typname) AS type, \
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
            oid: text(&row, "oid").parse().unwrap_or_default(),
            schema: text(&row, "nspname"),
            name: text(&row, "relname"),
            replica_identity: text(&row, "relreplident").chars().next().unwrap_or('d'),
            readable: is(&row, "readable"),
            columns: Vec::new(),
            primary_key: Vec::new(),
            identity_index: Vec::new(),
        });
        table.columns.push(Column {
            name: text(&row, "attname"),
            type_name: text(&row, "type"),
            nullable: is(&row, "nullable"),
            generated: is(&row, "generated"),
        });
    }
    let keys = format!(
        "SELECT n.nspname, c.relname, i.indisprimary, i.indisreplident, a.attname \
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
            table.primary_key.push(text(&row, "attname"));
        }
        if is(&row, "indisreplident") {
            table.identity_index.push(text(&row, "attname"));
        }
    }
    Ok(found)
}

/// A publication; `None` when it does not exist.
pub async fn publication(sql: &Sql, name: &str) -> Result<Option<Publication>> {
    let name = literal(name);
    let operations = format!(
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication WHERE pubname = {name}"
    );
    let Some(publishes_all) = sql.value(ATTEMPTED, &operations).await? else {
        return Ok(None);
    };
    // Column lists exist since PostgreSQL 15.
    let lists = server_version(sql).await? >= 150_000;
    let columns = if lists { "array_to_json(attnames)::text" } else { "NULL" };
    let members =
        format!("SELECT schemaname, tablename, {columns} AS columns FROM pg_publication_tables WHERE pubname = {name}");
    let mut tables = BTreeMap::new();
    for row in sql.rows(ATTEMPTED, &members).await? {
        let columns = row
            .try_get("columns")
            .ok()
            .flatten()
            .and_then(|json| serde_json::from_str(json).ok());
        tables.insert((text(&row, "schemaname"), text(&row, "tablename")), columns);
    }
    Ok(Some(Publication {
        publishes_all: publishes_all == "t",
        tables,
    }))
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
