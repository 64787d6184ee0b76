//! Checks that a database is set up for its declared tables, and creates or extends the publication.
//!
//! All problems of a table are reported together, each with the statement that fixes it. A table without a usable key is never added
//! to a publication, because PostgreSQL would then reject its updates and deletes. Tables and roles are never changed.

use super::catalog::{self, Catalog, Column, Publication, Table};
use super::server::{Server, Sql, identifier};
use crate::error::{Error, Result};
use schemas::ids::TableName;
use schemas::pg_types::{AvroType, Column as DeclaredColumn};

/// A table, as declared in the topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: TableName,
    /// The published columns, in order.
    pub columns: Vec<DeclaredColumn>,
    /// The columns of the record key; `None` if it is the table's primary key.
    pub key: Option<Vec<String>>,
}

/// A table that passed the checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The declaration.
    pub declared: Declared,
    /// The key: indices of declared columns, in key order.
    pub key: Vec<usize>,
}

/// A problem and the statement that fixes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) what: String,
    pub(super) fix: String,
}

/// Oldest supported version. Older servers do not support the options that the replication stream needs.
const VERSION_MIN: u32 = 140_000;

/// A table that cannot be published as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unsuitable {
    pub(super) name: TableName,
    pub(super) problems: Vec<Problem>,
}

impl Unsuitable {
    /// Returns the causes, as one text.
    pub(super) fn cause(&self) -> String {
        join(&self.problems, |p| &p.what)
    }

    /// Returns the statements that fix the causes.
    pub(super) fn fix(&self) -> String {
        join(&self.problems, |p| p.fix.trim_end_matches(';'))
    }
}

/// Checks version and settings of the server.
///
/// # Errors
/// [`Error::Rejected`] with the problem.
pub(super) async fn check_server(sql: &Sql, server: &Server) -> Result<()> {
    let version = catalog::server_version(sql).await?;
    if version < VERSION_MIN {
        return Err(Error::Rejected {
            reason: format!(
                "{server} has version {}, but 14 is the oldest supported",
                version / 10_000
            ),
            fix: String::from("upgrade PostgreSQL"),
        });
    }
    let level = sql
        .value("read the settings", "SELECT current_setting('wal_level')")
        .await?;
    if level.as_deref() != Some("logical") {
        return Err(Error::Rejected {
            reason: format!("{server} has wal_level = {}", level.unwrap_or_default()),
            fix: String::from("ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL"),
        });
    }
    Ok(())
}

/// Checks one declared table: its columns, its key, and settings that would make the snapshot or the stream incomplete.
pub(super) fn check(
    table: &Declared,
    catalog: &Catalog,
    server: &Server,
    publication: &str,
) -> std::result::Result<Checked, Unsuitable> {
    let unsuitable = |problems| Unsuitable {
        name: table.name.clone(),
        problems,
    };
    let Some(found) = catalog.table(&table.name) else {
        return Err(unsuitable(vec![Problem {
            what: format!("table {} does not exist", table.name),
            fix: format!(
                "create it, or remove [[table]] name = \"{}\" from the topology",
                table.name
            ),
        }]));
    };
    let checked = check_table(table, found, server.user());
    let published = catalog
        .publication
        .as_ref()
        .and_then(|p| check_published(publication, p, table, found));
    match (checked, published) {
        (Ok(key), None) => Ok(Checked {
            declared: table.clone(),
            key,
        }),
        (Ok(_), Some(problem)) => Err(unsuitable(vec![problem])),
        (Err(mut problems), problem) => {
            problems.extend(problem);
            Err(unsuitable(problems))
        }
    }
}

/// Creates the error for tables that cannot be published.
pub(super) fn rejected(server: &Server, tables: &[Unsuitable]) -> Error {
    let problems: Vec<Problem> = tables.iter().flat_map(|t| t.problems.clone()).collect();
    Error::Rejected {
        reason: format!("{server}: {}", join(&problems, |p| &p.what)),
        fix: join(&problems, |p| p.fix.trim_end_matches(';')),
    }
}

fn join(problems: &[Problem], part: fn(&Problem) -> &str) -> String {
    problems.iter().map(part).collect::<Vec<_>>().join("; ")
}

/// The quoted name of a table.
pub(super) fn quoted(name: &TableName) -> String {
    format!("{}.{}", identifier(name.schema()), identifier(name.table()))
}

/// Checks one table; returns its key as indices of declared columns.
fn check_table(declared: &Declared, actual: &Table, user: &str) -> std::result::Result<Vec<usize>, Vec<Problem>> {
    let mut problems = Vec::new();
    let table = quoted(&declared.name);
    if !actual.readable {
        problems.push(Problem {
            what: format!("user {user} has no permission to read table {}", declared.name),
            fix: format!(
                "GRANT USAGE ON SCHEMA {} TO {user}; GRANT SELECT ON {table} TO {user}",
                identifier(&actual.schema),
                user = identifier(user)
            ),
        });
    }
    problems.extend(check_reading(declared, actual, user));
    for column in &declared.columns {
        problems.extend(check_column(declared, column, actual));
    }
    let key = declared.key.as_ref().unwrap_or(&actual.primary_key);
    if key.is_empty() {
        problems.push(Problem {
            what: format!("table {} has no primary key and no declared key", declared.name),
            fix: format!(
                "ALTER TABLE {table} ADD PRIMARY KEY (…); or declare key = [\"…\"] in the topology and \
                 ALTER TABLE {table} REPLICA IDENTITY FULL"
            ),
        });
        return Err(problems);
    }
    let mut indices = Vec::with_capacity(key.len());
    for name in key {
        match declared.columns.iter().position(|c| c.name == *name) {
            Some(index) => indices.push(index),
            None => problems.push(Problem {
                what: format!(
                    "key column {name} of table {} is missing in the declared columns",
                    declared.name
                ),
                fix: format!(
                    "add {name} to the columns of [[table]] {} in the topology",
                    declared.name
                ),
            }),
        }
    }
    problems.extend(check_identity(declared, actual, key));
    if problems.is_empty() {
        Ok(indices)
    } else {
        Err(problems)
    }
}

/// Checks that deletes and key changes identify their row.
fn check_identity(declared: &Declared, actual: &Table, key: &[String]) -> Option<Problem> {
    let table = quoted(&declared.name);
    let identity = actual.identity();
    let missing: Vec<&str> = key
        .iter()
        .map(String::as_str)
        .filter(|name| !identity.contains(name))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let fix = format!("ALTER TABLE {table} REPLICA IDENTITY FULL");
    let what = if actual.replica_identity == 'd' && actual.deferrable_key {
        format!(
            "the primary key of table {} is deferrable, which PostgreSQL does not use as replica identity: once the table \
             is published, it rejects updates and deletes",
            declared.name
        )
    } else {
        format!(
            "the replica identity of table {} lacks key column {}, so deletes would not identify the row",
            declared.name,
            missing.join(", ")
        )
    };
    Some(Problem { what, fix })
}

/// Checks that the snapshot and the stream contain the same rows.
fn check_reading(declared: &Declared, actual: &Table, user: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    if actual.row_security {
        problems.push(Problem {
            what: format!(
                "row-level security of table {} applies to user {user}, so a snapshot would lack rows",
                declared.name
            ),
            fix: format!("ALTER ROLE {} BYPASSRLS", identifier(user)),
        });
    }
    if actual.has_children {
        problems.push(Problem {
            what: format!(
                "other tables inherit from table {}, and the publication does not publish their changes as changes of that table",
                declared.name
            ),
            fix: format!(
                "convert it to declarative partitioning, or ALTER TABLE … NO INHERIT {}",
                quoted(&declared.name)
            ),
        });
    }
    problems
}

fn check_column(declared: &Declared, column: &DeclaredColumn, actual: &Table) -> Option<Problem> {
    let (name, table) = (&column.name, &declared.name);
    let Some(found) = actual.column(name) else {
        return Some(Problem {
            what: format!("table {table} has no column {name}"),
            fix: format!("remove {name} from the columns of [[table]] {table}"),
        });
    };
    let mark = if found.nullable { "?" } else { "" };
    let declaration = format!(
        "write {name} = \"{}{mark}\" in [[table]] {table}",
        catalog::sql_type_name(&found.type_name)
    );
    if found.generated {
        return Some(Problem {
            what: format!(
                "column {name} of table {table} is generated, and PostgreSQL does not replicate generated columns"
            ),
            fix: format!("remove {name} from the columns of [[table]] {table}"),
        });
    }
    if !fits(&column.pg_type, found) {
        let what = format!(
            "column {name} of table {table} is {}, but is declared as {}",
            catalog::sql_type_name(&found.type_name),
            catalog::sql_type_name(&column.pg_type)
        );
        return Some(Problem { what, fix: declaration });
    }
    if found.nullable && !column.nullable {
        let what = format!("column {name} of table {table} is nullable, but is declared as not null");
        let fix = format!(
            "{declaration}; or ALTER TABLE {} ALTER COLUMN {} SET NOT NULL",
            quoted(table),
            identifier(name)
        );
        return Some(Problem { what, fix });
    }
    None
}

/// Whether values of the actual type have the same representation as the declared type, in Avro and on devices.
pub(super) fn fits(declared: &str, actual: &Column) -> bool {
    let json = |name| matches!(name, "json" | "jsonb");
    let actual = actual.type_name.as_str();
    AvroType::of(declared) == AvroType::of(actual) && json(declared) == json(actual)
}

/// Creates the publication, or adds missing tables to it.
///
/// Call this only before a snapshot: a table that was temporarily not published has lost changes.
///
/// # Errors
/// [`Error::Rejected`] with the statements to run, if this user lacks the permission.
pub(super) async fn publish(
    sql: &Sql,
    server: &Server,
    name: &str,
    found: Option<&Publication>,
    tables: &[Checked],
) -> Result<()> {
    let quoted_name = identifier(name);
    let list = |tables: &[&Checked]| {
        tables
            .iter()
            .map(|t| quoted(&t.declared.name))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let all: Vec<&Checked> = tables.iter().collect();
    let statement = match found {
        None => {
            // Changes of partitions are published as changes of the declared root table.
            format!(
                "CREATE PUBLICATION {quoted_name} FOR TABLE {} WITH (publish_via_partition_root = true)",
                list(&all)
            )
        }
        Some(found) if !found.publishes_all() => {
            return Err(Error::Rejected {
                reason: format!("{server}: publication {name} does not publish all operations"),
                fix: format!("ALTER PUBLICATION {quoted_name} SET (publish = 'insert, update, delete, truncate')"),
            });
        }
        Some(found) => {
            let missing: Vec<&Checked> = all
                .into_iter()
                .filter(|t| !found.tables.contains_key(&pair(&t.declared.name)))
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            format!("ALTER PUBLICATION {quoted_name} ADD TABLE {}", list(&missing))
        }
    };
    let run = sql.run("set up the publication", &statement).await;
    run.map_err(|error| match error {
        Error::Rejected { reason, .. } => Error::Rejected {
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

fn pair(name: &TableName) -> (String, String) {
    (name.schema().to_owned(), name.table().to_owned())
}

/// Checks that an existing publication publishes all declared columns and all rows of a table.
fn check_published(name: &str, found: &Publication, declared: &Declared, actual: &Table) -> Option<Problem> {
    let (quoted_name, table) = (identifier(name), &declared.name);
    if actual.partitioned && !found.via_root {
        return Some(Problem {
            what: format!(
                "publication {name} publishes changes of the partitions of table {table} under the partitions' names"
            ),
            fix: format!("ALTER PUBLICATION {quoted_name} SET (publish_via_partition_root = true)"),
        });
    }
    let published = found.tables.get(&pair(table))?;
    if let Some(filter) = &published.row_filter {
        return Some(Problem {
            what: format!("publication {name} has the row filter {filter} for table {table}, which a snapshot ignores"),
            fix: format!(
                "ALTER PUBLICATION {quoted_name} DROP TABLE {table}; ALTER PUBLICATION {quoted_name} ADD TABLE {table}; and \
                 filter rows by `where` of the views",
                table = quoted(table)
            ),
        });
    }
    let columns = published.columns.as_ref()?;
    let lacks = |c: &&DeclaredColumn| !columns.contains(&c.name);
    let column = declared.columns.iter().find(lacks)?;
    Some(Problem {
        what: format!(
            "publication {name} does not publish column {} of table {table}",
            column.name
        ),
        fix: format!(
            "ALTER PUBLICATION {quoted_name} SET TABLE … with that column, or remove it from [[table]] {table}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::postgres::catalog::Published;
    use std::collections::BTreeMap;

    fn declared(columns: &[(&str, &str)], key: Option<&[&str]>) -> Declared {
        let column = |(name, ty): &(&str, &str)| DeclaredColumn::declared(name, ty);
        Declared {
            name: TableName::new("orders").unwrap(),
            columns: columns.iter().map(column).collect(),
            key: key.map(|k| k.iter().map(|s| (*s).to_owned()).collect()),
        }
    }

    fn actual(identity: char, primary_key: &[&str]) -> Table {
        let column = |name: &str, ty: &str, nullable| Column {
            name: name.to_owned(),
            number: 1,
            type_oid: 0,
            type_modifier: -1,
            type_name: ty.to_owned(),
            nullable,
            generated: name == "total",
        };
        Table {
            oid: 1,
            schema: String::from("public"),
            name: String::from("orders"),
            replica_identity: identity,
            readable: true,
            partitioned: false,
            has_children: false,
            row_security: false,
            deferrable_key: false,
            partitions: BTreeMap::new(),
            columns: vec![
                column("id", "int8", false),
                column("note", "varchar", true),
                column("tags", "_text", true),
                column("total", "int4", true),
            ],
            primary_key: primary_key.iter().map(|s| (*s).to_owned()).collect(),
            identity_index: Vec::new(),
        }
    }

    fn problems(declared: &Declared, actual: &Table) -> Vec<String> {
        let found = check_table(declared, actual, "app").unwrap_err();
        found.into_iter().map(|p| format!("{} -> {}", p.what, p.fix)).collect()
    }

    #[test]
    fn matching_table_yields_its_key() {
        let fits = declared(&[("note", "text?"), ("id", "int8"), ("tags", "text[]?")], None);
        assert_eq!(check_table(&fits, &actual('d', &["id"]), "app"), Ok(vec![1]));
        let keyed = declared(&[("id", "int8"), ("note", "text?")], Some(&["note", "id"]));
        assert_eq!(check_table(&keyed, &actual('f', &[]), "app"), Ok(vec![1, 0]));
    }

    #[test]
    fn missing_key_names_the_statement() {
        let text = problems(&declared(&[("id", "int8")], None), &actual('d', &[]));
        assert_eq!(
            text,
            [
                "table orders has no primary key and no declared key -> ALTER TABLE \"public\".\"orders\" ADD PRIMARY KEY (…); \
              or declare key = [\"…\"] in the topology and ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY FULL"
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

    #[test]
    fn publication_must_cover_columns_rows_and_partitions() {
        let table = declared(&[("id", "int8"), ("note", "text?")], None);
        let key = (String::from("public"), String::from("orders"));
        let problem = |columns: Option<&[&str]>, filter: Option<&str>, partitioned| {
            let published = Published {
                columns: columns.map(|c| c.iter().map(|s| (*s).to_owned()).collect()),
                row_filter: filter.map(str::to_owned),
            };
            let publication = Publication {
                oid: 1,
                operations: Vec::new(),
                via_root: false,
                tables: BTreeMap::from([(key.clone(), published)]),
            };
            let actual = Table {
                partitioned,
                ..actual('d', &["id"])
            };
            check_published("p", &publication, &table, &actual).map(|p| p.what)
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
}
