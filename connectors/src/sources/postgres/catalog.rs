//! Reads tables, columns, keys, partitions and publications from the system catalog. Domains are resolved to their base
//! types.

#[cfg(test)]
pub(super) mod samples;

use super::replacements::Replacements;
use super::server::{Sql, literal};
use crate::error::Result;
use schemas::ids::TableName;
use std::collections::{BTreeMap, BTreeSet};
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
    /// File node; 0 if the table is partitioned.
    pub file_node: u32,
    /// Whether this user has `USAGE` on the table's schema and `SELECT` on a column.
    pub readable: bool,
    /// Whether this user has the rights of the table's owner.
    pub owned: bool,
    /// Whether changes of the table are not written to the WAL (`UNLOGGED`).
    pub unlogged: bool,
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
    /// Columns of each unique index, without partial indexes and indexes of expressions.
    pub unique_keys: Vec<Vec<String>>,
    /// Partitions of the table at all levels, by OID.
    pub partitions: BTreeMap<u32, Partition>,
    /// Columns of the replica identities of its partitions.
    pub partition_identity: BTreeSet<String>,
    /// Whether a partition has `REPLICA IDENTITY FULL`.
    pub has_full_partition: bool,
}

/// A partition in the catalog, at any level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// File node of the partition; 0 if the partition is partitioned itself.
    pub file_node: u32,
    /// Transaction id that attached the partition to its parent. It is another one after the partition was detached and
    /// attached again.
    pub attached_by: u32,
    /// All transactions with a smaller id had ended when the file node was read.
    pub settled_below: u64,
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
    /// Transaction id of the last change of the column's definition.
    pub changed_by: u32,
    /// Labels of an enum by OID, which renaming a label does not change.
    pub labels: BTreeMap<u32, String>,
    /// Whether the column is nullable.
    pub nullable: bool,
    /// Whether the column is generated. The replication stream does not contain generated columns.
    pub generated: bool,
    /// Whether this user has `SELECT` on it.
    pub readable: bool,
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

    /// The columns that a column list must contain, so that updates and deletes are not rejected; `None` if it must
    /// contain all columns.
    pub fn listed_identity(&self) -> Option<BTreeSet<&str>> {
        if self.replica_identity == 'f' || self.has_full_partition {
            return None;
        }
        let of_partitions = self.partition_identity.iter().map(String::as_str);
        Some(self.identity().into_iter().chain(of_partitions).collect())
    }

    /// Whether a unique index ensures that no two rows have the same key.
    pub fn is_unique(&self, key: &[String]) -> bool {
        let covered = |index: &Vec<String>| index.iter().all(|column| key.contains(column));
        self.unique_keys.iter().any(covered)
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
    /// Transaction id of the last change of its options or owner. Adding and removing tables does not change it.
    pub changed_by: u32,
    /// Whether this user has the rights of its owner.
    pub owned: bool,
    /// Whether it is `FOR ALL TABLES`.
    pub all_tables: bool,
    /// The published operations.
    pub operations: Vec<String>,
    /// `publish_via_partition_root`.
    pub via_root: bool,
    /// Whether it contains all tables of a schema. Column lists are then impossible.
    pub has_schemas: bool,
    /// Entries of tables that were replaced at once.
    pub replacements: Replacements,
    /// Tables by (schema, name).
    pub tables: BTreeMap<(String, String), Published>,
}

/// A table of a publication.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// Its published columns; `None` for all columns.
    pub columns: Option<Vec<String>>,
    /// Whether it has a column list. The server reports published columns without one, too.
    pub has_list: bool,
    /// Whether the publication names the table itself.
    pub is_named: bool,
    /// The row filter.
    pub row_filter: Option<String>,
    /// Identities of the entries by which the publication contains the table. An entry that is removed and added again
    /// has another identity.
    pub memberships: BTreeSet<String>,
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
    /// Whether the server has column lists (PostgreSQL 15).
    pub(super) has_column_lists: bool,
    /// What the declared names are that are not tables (`view`, `foreign table`).
    pub(super) other_kinds: BTreeMap<(String, String), String>,
}

impl Catalog {
    /// Reads these tables and the publication.
    ///
    /// The publication is read first: if a table is dropped between the two queries, the table is reported as missing,
    /// and not merely as unpublished. A transaction would not help, because the functions that describe publications
    /// read the newest catalog.
    pub(super) async fn read(sql: &Sql, names: &[TableName], publication_name: &str) -> Result<Self> {
        let wanted: Vec<(&str, &str)> = names.iter().map(|t| (t.schema(), t.table())).collect();
        let has_column_lists = has_column_lists(sql).await?;
        let mut publication = read_publication(sql, publication_name, has_column_lists).await?;
        if let Some(publication) = &mut publication {
            read_memberships(sql, publication, &named(&wanted), has_column_lists).await?;
        }
        let tables = tables(sql, Some(&wanted)).await?;
        let is_missing = |name: &&TableName| !tables.contains_key(&pair(name));
        let missing: Vec<(&str, &str)> = names
            .iter()
            .filter(is_missing)
            .map(|t| (t.schema(), t.table()))
            .collect();
        Ok(Catalog {
            other_kinds: other_kinds(sql, &missing).await?,
            tables,
            publication,
            has_column_lists,
        })
    }

    /// What a declared name is that is not a table, such as `view`; `None` if it does not exist.
    pub(super) fn other_kind(&self, name: &TableName) -> Option<&str> {
        self.other_kinds.get(&pair(name)).map(String::as_str)
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
        Some(wanted) => named(wanted),
        // Changes of partitions are published as changes of their root table.
        None => String::from(
            "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT c.relispartition \
             AND c.relpersistence = 'p'",
        ),
    };
    let mut found = BTreeMap::new();
    for row in sql.rows(ATTEMPTED, &columns_query(&which)).await? {
        let key = (text(&row, "nspname"), text(&row, "relname"));
        found
            .entry(key)
            .or_insert_with(|| table(&row))
            .columns
            .push(column(&row));
    }
    read_keys(sql, &which, &mut found).await?;
    if found.values().any(|table| table.partitioned) {
        read_partitions(sql, &which, &mut found).await?;
    }
    Ok(found)
}

type Tables = BTreeMap<(String, String), Table>;

/// The condition for tables by (schema, name).
fn named(wanted: &[(&str, &str)]) -> String {
    let pairs = wanted
        .iter()
        .map(|(schema, name)| format!("({}, {})", literal(schema), literal(name)));
    format!("(n.nspname, c.relname) IN ({})", pairs.collect::<Vec<_>>().join(", "))
}

/// The query for tables and columns. A domain can be based on a domain, and an array can have items of a domain.
fn columns_query(which: &str) -> String {
    format!(
        "WITH RECURSIVE domains AS ( \
            SELECT oid AS domain, typbasetype AS base, typnotnull AS not_null FROM pg_type WHERE typtype = 'd' \
            UNION ALL SELECT d.domain, t.typbasetype, d.not_null OR t.typnotnull \
            FROM domains d JOIN pg_type t ON t.oid = d.base AND t.typtype = 'd'), \
         bases AS (SELECT d.* FROM domains d JOIN pg_type t ON t.oid = d.base AND t.typtype <> 'd') \
         SELECT c.oid, n.nspname, c.relname, c.relreplident, c.relfilenode, \
            has_any_column_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') AS readable, \
            has_column_privilege(c.oid, a.attnum, 'SELECT') AS column_readable, \
            pg_has_role(c.relowner, 'USAGE') AS owned, c.relpersistence = 'u' AS unlogged, \
            c.relkind = 'p' AS partitioned, row_security_active(c.oid) AS row_security, \
            c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits h WHERE h.inhparent = c.oid) AS has_children, \
            a.attnum, a.atttypid, a.atttypmod, a.attname, a.xmin AS changed_by, \
            CASE WHEN item.oid IS NULL THEN t.typname ELSE '_' || item.typname END AS type, \
            NOT (a.attnotnull OR coalesce(b.not_null, false)) AS nullable, a.attgenerated <> '' AS generated, \
            (SELECT json_object_agg(l.oid, l.enumlabel) FROM pg_enum l \
                WHERE l.enumtypid = coalesce(item.oid, t.oid)) AS labels \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         LEFT JOIN bases b ON b.domain = a.atttypid \
         JOIN pg_type t ON t.oid = coalesce(b.base, a.atttypid) \
         LEFT JOIN pg_type declared_item ON declared_item.typarray = t.oid AND declared_item.oid = t.typelem \
         LEFT JOIN bases item_base ON item_base.domain = declared_item.oid \
         LEFT JOIN pg_type item ON item.oid = coalesce(item_base.base, declared_item.oid) \
         WHERE c.relkind IN ('r', 'p') AND {which} ORDER BY n.nspname, c.relname, a.attnum"
    )
}

fn table(row: &SimpleQueryRow) -> Table {
    Table {
        oid: number(row, "oid"),
        schema: text(row, "nspname"),
        name: text(row, "relname"),
        replica_identity: text(row, "relreplident").chars().next().unwrap_or('d'),
        file_node: number(row, "relfilenode"),
        readable: is(row, "readable"),
        owned: is(row, "owned"),
        unlogged: is(row, "unlogged"),
        partitioned: is(row, "partitioned"),
        has_children: is(row, "has_children"),
        row_security: is(row, "row_security"),
        columns: Vec::new(),
        primary_key: Vec::new(),
        deferrable_key: false,
        identity_index: Vec::new(),
        unique_keys: Vec::new(),
        partitions: BTreeMap::new(),
        partition_identity: BTreeSet::new(),
        has_full_partition: false,
    }
}

fn column(row: &SimpleQueryRow) -> Column {
    let labels: BTreeMap<String, String> = serde_json::from_str(&text(row, "labels")).unwrap_or_default();
    Column {
        name: text(row, "attname"),
        number: number(row, "attnum"),
        type_oid: number(row, "atttypid"),
        type_modifier: number(row, "atttypmod"),
        type_name: text(row, "type"),
        changed_by: number(row, "changed_by"),
        labels: labels
            .into_iter()
            .filter_map(|(oid, label)| Some((oid.parse().ok()?, label)))
            .collect(),
        nullable: is(row, "nullable"),
        generated: is(row, "generated"),
        readable: is(row, "column_readable"),
    }
}

/// What these names are, for names that are not tables.
async fn other_kinds(sql: &Sql, names: &[(&str, &str)]) -> Result<BTreeMap<(String, String), String>> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let query = format!(
        "SELECT n.nspname, c.relname, CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' \
            WHEN 'f' THEN 'foreign table' ELSE 'relation of another kind' END AS kind \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind NOT IN ('r', 'p') AND {}",
        named(names)
    );
    let rows = sql.rows(ATTEMPTED, &query).await?;
    let entry = |row: &SimpleQueryRow| ((text(row, "nspname"), text(row, "relname")), text(row, "kind"));
    Ok(rows.iter().map(entry).collect())
}

/// Relations outside the system schemas whose rows are not replicated, with their kind, without those of extensions.
pub async fn not_replicated(sql: &Sql) -> Result<Vec<((String, String), String)>> {
    let query = "SELECT n.nspname, c.relname, CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' \
            WHEN 'f' THEN 'foreign table' ELSE 'unlogged table' END AS kind \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT c.relispartition \
            AND (c.relkind IN ('v', 'm', 'f') OR (c.relkind IN ('r', 'p') AND c.relpersistence = 'u')) \
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
                AND d.deptype = 'e') \
         ORDER BY n.nspname, c.relname";
    let rows = sql.rows(ATTEMPTED, query).await?;
    let entry = |row: &SimpleQueryRow| ((text(row, "nspname"), text(row, "relname")), text(row, "kind"));
    Ok(rows.iter().map(entry).collect())
}

/// Adds the primary keys, replica identity indexes and unique indexes to the tables.
async fn read_keys(sql: &Sql, which: &str, found: &mut Tables) -> Result<()> {
    let keys = format!(
        "SELECT n.nspname, c.relname, i.indexrelid, i.indisprimary, i.indisreplident, NOT i.indimmediate AS deferrable, \
            i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AS is_unique, a.attname \
         FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, ord) \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum \
         WHERE (i.indisprimary OR i.indisreplident OR i.indisunique) AND k.ord <= i.indnkeyatts AND {which} \
         ORDER BY i.indexrelid, k.ord"
    );
    let mut index = 0_u32;
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
        let id = number(&row, "indexrelid");
        let is_next = std::mem::replace(&mut index, id) != id;
        match table.unique_keys.last_mut().filter(|_| !is_next) {
            _ if !is(&row, "is_unique") => {}
            Some(columns) => columns.push(text(&row, "attname")),
            None => table.unique_keys.push(vec![text(&row, "attname")]),
        }
    }
    Ok(())
}

/// Adds the partitions to the tables.
///
/// An attached partition may contain rows for which the stream has no inserts. Three properties prove that there are
/// none:
///
/// - A column has not changed since the table was created: `CREATE TABLE … PARTITION OF` creates the columns as they
///   are, and `ATTACH PARTITION` changes each of them. A system column never changes, so it has the creating command.
/// - The table was attached by the command that follows its creation, in the same transaction.
/// - The partition is empty.
///
/// A failed update overwrites the command id of the old row, so rows with an `xmax` prove nothing.
async fn read_partitions(sql: &Sql, which: &str, found: &mut Tables) -> Result<()> {
    let partitions = format!(
        "SELECT n.nspname, c.relname, l.oid, coalesce(pg_relation_filenode(l.oid), 0) AS file_node, \
            h.xmin AS attached_by, pg_snapshot_xmin(pg_current_snapshot()) AS settled_below, \
            EXISTS (SELECT FROM pg_attribute a JOIN pg_attribute s ON s.attrelid = a.attrelid AND s.attnum = -1 \
                WHERE a.attrelid = l.oid AND a.attnum > 0 AND NOT a.attisdropped \
                AND a.xmin = s.xmin AND a.cmin = s.cmin AND a.xmax = 0 AND s.xmax = 0) \
            OR (h.xmin = t.xmin AND h.cmin::text::int8 - t.cmin::text::int8 <= 1 AND h.xmax = 0 AND t.xmax = 0) \
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
                attached_by: number(&row, "attached_by"),
                settled_below: number(&row, "settled_below"),
                began_empty: is(&row, "began_empty"),
            };
            table.partitions.insert(number(&row, "oid"), partition);
        }
    }
    read_partition_identities(sql, which, found).await
}

/// Adds the replica identities of the partitions, which differ from that of their root table if they were set for a
/// partition alone.
async fn read_partition_identities(sql: &Sql, which: &str, found: &mut Tables) -> Result<()> {
    let query = format!(
        "SELECT n.nspname, c.relname, l.relreplident = 'f' AS is_full, a.attname \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         CROSS JOIN LATERAL pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid AND p.isleaf \
         LEFT JOIN pg_index i ON i.indrelid = l.oid AND CASE l.relreplident WHEN 'i' THEN i.indisreplident \
            WHEN 'd' THEN i.indisprimary AND i.indimmediate ELSE false END \
         LEFT JOIN pg_attribute a ON a.attrelid = l.oid AND a.attnum = ANY (i.indkey::int2[]) \
         WHERE c.relkind = 'p' AND (a.attname IS NOT NULL OR l.relreplident = 'f') AND {which} \
         GROUP BY n.nspname, c.relname, is_full, a.attname"
    );
    for row in sql.rows(ATTEMPTED, &query).await? {
        if let Some(table) = found.get_mut(&(text(&row, "nspname"), text(&row, "relname"))) {
            table.has_full_partition |= is(&row, "is_full");
            table
                .partition_identity
                .extend(Some(text(&row, "attname")).filter(|name| !name.is_empty()));
        }
    }
    Ok(())
}

/// A publication; `None` when it does not exist.
pub async fn publication(sql: &Sql, name: &str) -> Result<Option<Publication>> {
    read_publication(sql, name, has_column_lists(sql).await?).await
}

async fn read_publication(sql: &Sql, name: &str, lists: bool) -> Result<Option<Publication>> {
    let name = literal(name);
    let schemas = match lists {
        true => "EXISTS (SELECT FROM pg_publication_namespace WHERE pnpubid = pg_publication.oid)",
        false => "false",
    };
    let properties = format!(
        "SELECT oid, xmin AS changed_by, pg_has_role(pubowner, 'USAGE') AS owned, puballtables AS all_tables, pubinsert AS insert, pubupdate AS update, pubdelete AS delete, pubtruncate AS truncate, \
            pubviaroot AS via_root, obj_description(oid, 'pg_publication') AS comment, {schemas} AS has_schemas \
         FROM pg_publication WHERE pubname = {name}"
    );
    let rows = sql.rows(ATTEMPTED, &properties).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let published = OPERATIONS.iter().filter(|operation| is(row, operation));
    let mut publication = Publication {
        oid: number(row, "oid"),
        changed_by: number(row, "changed_by"),
        owned: is(row, "owned"),
        all_tables: is(row, "all_tables"),
        operations: published.map(|o| String::from(*o)).collect(),
        via_root: is(row, "via_root"),
        has_schemas: is(row, "has_schemas"),
        replacements: Replacements::parse(&text(row, "comment")),
        tables: BTreeMap::new(),
    };
    // Row filters exist since PostgreSQL 15, too.
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
            ..Published::default()
        };
        let key = (text(&row, "schemaname"), text(&row, "tablename"));
        publication.tables.insert(key, published);
    }
    Ok(Some(publication))
}

/// Adds the entries by which the publication contains these tables: the table or a table that it is a partition of, its
/// schema, or all tables. `ALTER TABLE … SET SCHEMA` replaces the table's dependency on its schema.
async fn read_memberships(sql: &Sql, publication: &mut Publication, which: &str, lists: bool) -> Result<()> {
    let of_schemas = if lists {
        format!(
            "UNION ALL SELECT n.nspname, c.relname, false, false, concat_ws(' ', 'schema', s.oid, \
                (SELECT max(d.xmin::text::int8) FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
                    AND d.objid = c.oid AND d.objsubid = 0 AND d.refclassid = 'pg_namespace'::regclass)) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             JOIN pg_publication_namespace s ON s.pnnspid = n.oid AND s.pnpubid = {} WHERE {which}",
            publication.oid
        )
    } else {
        String::new()
    };
    let has_list = if lists { "r.prattrs IS NOT NULL" } else { "false" };
    let query = format!(
        "SELECT n.nspname, c.relname, r.prrelid = c.oid AS is_named, {has_list} AS has_list, \
            concat_ws(' ', 'table', r.oid, \
            (SELECT string_agg(h.xmin::text, ' ' ORDER BY h.inhrelid) FROM pg_partition_ancestors(c.oid) a \
                JOIN pg_inherits h ON h.inhrelid = a.relid WHERE r.prrelid <> c.oid)) AS membership \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_publication_rel r ON r.prpubid = {} AND (r.prrelid = c.oid \
            OR r.prrelid IN (SELECT relid FROM pg_partition_ancestors(c.oid))) WHERE {which} {of_schemas}",
        publication.oid
    );
    for row in sql.rows(ATTEMPTED, &query).await? {
        let key = (text(&row, "nspname"), text(&row, "relname"));
        if let Some(published) = publication.tables.get_mut(&key) {
            published.memberships.insert(text(&row, "membership"));
            published.has_list |= is(&row, "has_list");
            published.is_named |= is(&row, "is_named");
        }
    }
    Ok(())
}

/// The server's version as a number: 150004 is 15.4.
pub async fn server_version(sql: &Sql) -> Result<u32> {
    let version = sql
        .value(ATTEMPTED, "SELECT current_setting('server_version_num')")
        .await?;
    Ok(version.and_then(|text| text.parse().ok()).unwrap_or_default())
}

async fn has_column_lists(sql: &Sql) -> Result<bool> {
    Ok(server_version(sql).await? >= 150_000)
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
