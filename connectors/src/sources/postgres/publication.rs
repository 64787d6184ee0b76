//! The publication of a source: creates it, adds tables, and lists the declared columns, so that other columns do not
//! leave the database.
//!
//! A publication that is named in the settings belongs to somebody else. Tables are added to it, and nothing else is
//! changed.

use super::catalog::{Catalog, Column, Publication, Table};
use super::check::{Checked, quoted};
use super::config::ColumnLists;
use super::declaration::Declaration;
use super::declared::Declared;
use super::replacements::Replacements;
use super::server::{Sql, identifier, literal};
use crate::error::{Error, Result};
use schemas::ids::TableName;
use std::collections::BTreeSet;

/// In the text of an error: the role lacks a permission, or does not own a table.
const INSUFFICIENT_PRIVILEGE: &str = "SQLSTATE 42501";
const ATTEMPTED: &str = "set up the publication";

/// The column list of a table; `None` if all columns are published.
pub(super) fn column_list(
    declared: &Declared,
    table: &Table,
    catalog: &Catalog,
    lists: ColumnLists,
) -> Option<Vec<String>> {
    if lists == ColumnLists::Never || !catalog.has_column_lists {
        return None;
    }
    let identity = table.listed_identity()?;
    let is_needed = |column: &Column| {
        identity.contains(column.name.as_str()) || declared.columns.iter().any(|c| c.name == column.name)
    };
    let listed: Vec<&Column> = table.columns.iter().filter(|column| is_needed(column)).collect();
    // PostgreSQL rejects generated columns in a list, so with such an identity no list is possible.
    if listed.is_empty() || listed.iter().any(|column| column.generated) {
        return None;
    }
    let hides = table
        .columns
        .iter()
        .any(|column| !column.generated && !is_needed(column));
    (hides || lists == ColumnLists::Always).then(|| listed.iter().map(|column| column.name.clone()).collect())
}

/// A table with its column list, as in CREATE PUBLICATION.
fn clause(declared: &Declared, catalog: &Catalog, lists: ColumnLists) -> String {
    let table = quoted(&declared.name);
    let list = catalog
        .table(&declared.name)
        .and_then(|found| column_list(declared, found, catalog, lists));
    match list {
        Some(list) => {
            let columns: Vec<String> = list.iter().map(|column| identifier(column)).collect();
            format!("{table} ({})", columns.join(", "))
        }
        None => table,
    }
}

/// Creates the publication, or adds missing tables to it.
///
/// Call this only before a snapshot: a table that was temporarily not published has lost changes.
///
/// # Errors
/// [`Error::Rejected`] with the statements to run, if this user lacks the permission.
pub(super) async fn publish(sql: &Sql, declaration: &Declaration, catalog: &Catalog, tables: &[Checked]) -> Result<()> {
    let (server, name) = (&declaration.server, declaration.publication.as_str());
    let quoted_name = identifier(name);
    let clauses = |tables: &mut dyn Iterator<Item = &Checked>| {
        tables
            .map(|t| clause(&t.declared, catalog, declaration.column_lists))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let statement = match &catalog.publication {
        None => {
            // Changes of partitions are published as changes of the declared root table.
            format!(
                "CREATE PUBLICATION {quoted_name} FOR TABLE {} WITH (publish_via_partition_root = true)",
                clauses(&mut tables.iter())
            )
        }
        Some(found) if !found.publishes_all() => {
            return Err(Error::Rejected {
                reason: format!("{server}: publication {name} does not publish all operations"),
                fix: format!("ALTER PUBLICATION {quoted_name} SET (publish = 'insert, update, delete, truncate')"),
            });
        }
        Some(found) => {
            let is_missing = |t: &&Checked| !found.tables.contains_key(&pair(&t.declared.name));
            let missing = clauses(&mut tables.iter().filter(is_missing));
            if missing.is_empty() {
                return Ok(());
            }
            format!("ALTER PUBLICATION {quoted_name} ADD TABLE {missing}")
        }
    };
    let run = sql.run(ATTEMPTED, &statement).await;
    run.map_err(|error| match error {
        Error::Rejected { reason, .. } if reason.contains(INSUFFICIENT_PRIVILEGE) => Error::Rejected {
            reason,
            fix: format!(
                "run as the owner of the tables, in database {}: {statement}; or GRANT CREATE ON DATABASE {} TO {} and \
                 make {} the owner of the tables",
                server.database(),
                identifier(server.database()),
                identifier(server.user()),
                identifier(server.user())
            ),
        },
        other => other,
    })
}

/// Gives the tables of the connector's own publication their column lists, and removes tables that are not declared.
/// Returns whether something was changed. `catalog` is no longer valid in that case.
pub(super) async fn maintain(sql: &Sql, declaration: &Declaration, catalog: &Catalog) -> Result<bool> {
    let Some(found) = own(declaration, catalog) else {
        return Ok(false);
    };
    if Change::of(declaration, catalog, found).removed.is_empty() {
        return Ok(false);
    }
    let changed = change(sql, declaration, found).await;
    if !matches!(changed, Ok(true)) {
        // If this fails too, the connection is closed, which has the same effect.
        let _ = sql.run(ATTEMPTED, "ROLLBACK").await;
    }
    changed
}

/// Changes the publication in a transaction that also stores which entries it has replaced.
async fn change(sql: &Sql, declaration: &Declaration, found: &Publication) -> Result<bool> {
    let name = declaration.publication.as_str();
    let (publication, names) = (identifier(name), declaration.names());
    let comment = |replacements: &Replacements| {
        format!(
            "COMMENT ON PUBLICATION {publication} IS {}",
            literal(&replacements.comment())
        )
    };
    // The comment locks the publication. The entries are read only then: if another session replaced one meanwhile, that
    // was a gap.
    let lock = format!("BEGIN; {}", comment(&found.replacements));
    sql.run(ATTEMPTED, &lock).await?;
    let before = Catalog::read(sql, &names, name).await?;
    let Some(found) = own(declaration, &before) else {
        return Ok(false);
    };
    let change = Change::of(declaration, &before, found);
    if change.removed.is_empty() {
        return Ok(false);
    }
    sql.run(ATTEMPTED, &change.statements(&publication)).await?;
    let after = Catalog::read(sql, &names, name).await?;
    let replacements = change.replacements(&found.replacements, &names, &after);
    sql.run(ATTEMPTED, &format!("{}; COMMIT", comment(&replacements)))
        .await?;
    let (connector, removed, added) = (
        &declaration.connector,
        change.removed.join(", "),
        change.added.join(", "),
    );
    tracing::info!(%connector, publication = name, removed, added, "tables and column lists of the publication changed");
    Ok(true)
}

/// The publication, if the connector may change it.
fn own<'c>(declaration: &Declaration, catalog: &'c Catalog) -> Option<&'c Publication> {
    let found = catalog.publication.as_ref()?;
    let is_own = declaration.manages_publication && found.owned;
    (is_own && !found.all_tables && !found.has_schemas && found.via_root).then_some(found)
}

/// A change of the publication.
struct Change<'d> {
    /// Tables that are removed, also those that are added again.
    removed: Vec<String>,
    /// Tables with their column lists.
    added: Vec<String>,
    /// Tables that are added again, with their entries.
    replaced: Vec<(&'d TableName, BTreeSet<String>)>,
}

impl<'d> Change<'d> {
    fn of(declaration: &'d Declaration, catalog: &Catalog, found: &Publication) -> Self {
        let mut change = Change {
            removed: Vec::new(),
            added: Vec::new(),
            replaced: Vec::new(),
        };
        for declared in &declaration.tables {
            let (Some(table), Some(published)) = (catalog.table(&declared.name), catalog.published(&declared.name))
            else {
                continue;
            };
            let want = column_list(declared, table, catalog, declaration.column_lists);
            let is_as_wanted = match (&want, &published.columns) {
                (None, _) => !published.has_list,
                (Some(want), Some(is)) => {
                    published.has_list && want.len() == is.len() && want.iter().all(|column| is.contains(column))
                }
                (Some(_), None) => false,
            };
            if is_as_wanted || !published.is_named || !table.owned || published.row_filter.is_some() {
                continue;
            }
            change.removed.push(quoted(&declared.name));
            change.added.push(clause(declared, catalog, declaration.column_lists));
            change.replaced.push((&declared.name, published.memberships.clone()));
        }
        let is_declared = |key: &(String, String)| declaration.tables.iter().any(|t| pair(&t.name) == *key);
        for (schema, name) in found.tables.keys().filter(|key| !is_declared(key)) {
            change
                .removed
                .push(format!("{}.{}", identifier(schema), identifier(name)));
        }
        change
    }

    fn statements(&self, publication: &str) -> String {
        let removed = format!("ALTER PUBLICATION {publication} DROP TABLE {}", self.removed.join(", "));
        if self.added.is_empty() {
            return removed;
        }
        format!(
            "{removed}; ALTER PUBLICATION {publication} ADD TABLE {}",
            self.added.join(", ")
        )
    }

    /// What the comment contains after the change.
    fn replacements(&self, before: &Replacements, names: &[TableName], after: &Catalog) -> Replacements {
        let mut replacements = before.clone();
        let entries = |table: &TableName| after.published(table).map(|published| &published.memberships);
        for (table, old) in &self.replaced {
            if let Some(new) = entries(table).and_then(BTreeSet::first) {
                replacements.record(old, new);
            }
        }
        replacements.keep(&names.iter().filter_map(entries).flatten().cloned().collect());
        replacements
    }
}

fn pair(name: &TableName) -> (String, String) {
    (name.schema().to_owned(), name.table().to_owned())
}

/// The columns of a table that are not declared and leave the database.
pub(super) fn undeclared(declared: &Declared, catalog: &Catalog) -> Vec<String> {
    let (Some(table), Some(published)) = (catalog.table(&declared.name), catalog.published(&declared.name)) else {
        return Vec::new();
    };
    let is_published = |column: &&Column| {
        let is_listed = |columns: &Vec<String>| columns.contains(&column.name);
        !column.generated && published.columns.as_ref().is_none_or(is_listed)
    };
    let is_declared = |column: &Column| declared.columns.iter().any(|c| c.name == column.name);
    let columns = table.columns.iter().filter(is_published);
    columns.filter(|c| !is_declared(c)).map(|c| c.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::catalog::samples;
    use super::*;
    use schemas::pg_types::Column as DeclaredColumn;

    fn table(identity: char, columns: &[&str]) -> Table {
        let column = |name: &&str| Column {
            generated: *name == "generated",
            ..samples::column(name, "text")
        };
        Table {
            replica_identity: identity,
            identity_index: vec![String::from("code")],
            ..samples::table("users", columns.iter().map(column).collect())
        }
    }

    #[test]
    fn list_contains_declared_columns_and_the_identity() {
        let declared = |columns: &[&str]| {
            let columns = columns.iter().map(|name| DeclaredColumn::declared(name, "text"));
            Declared::new(TableName::new("users").unwrap(), columns.collect(), None)
        };
        let catalog = Catalog {
            has_column_lists: true,
            ..Catalog::default()
        };
        let all = ["id", "code", "email", "secret"];
        let list = |table: &Table, columns: &[&str], lists| {
            column_list(&declared(columns), table, &catalog, lists).map(|list| list.join(","))
        };
        let listed = |text: &str| Some(text.to_owned());
        let needed = ColumnLists::WhenNeeded;
        assert_eq!(list(&table('d', &all), &["id", "email"], needed), listed("id,email"));
        assert_eq!(
            list(&table('i', &all), &["id", "email"], needed),
            listed("id,code,email")
        );
        assert_eq!(list(&table('f', &all), &["id", "email"], needed), None);
        assert_eq!(list(&table('d', &all), &all, needed), None);
        assert_eq!(
            list(&table('d', &all), &all, ColumnLists::Always),
            listed("id,code,email,secret")
        );
        assert_eq!(list(&table('d', &all), &["id"], ColumnLists::Never), None);
        // A generated column is not published without a list either.
        assert_eq!(list(&table('d', &["id", "generated"]), &["id"], needed), None);
        let partition = Table {
            partition_identity: BTreeSet::from([String::from("code")]),
            ..table('d', &all)
        };
        assert_eq!(list(&partition, &["id"], needed), listed("id,code"));
        let full = Table {
            has_full_partition: true,
            ..table('d', &all)
        };
        assert_eq!(list(&full, &["id"], needed), None);
        let older = Catalog::default();
        assert_eq!(column_list(&declared(&["id"]), &table('d', &all), &older, needed), None);
    }
}
