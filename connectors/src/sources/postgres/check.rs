//! Checks that a database is set up for its declared tables, and creates or extends the publication.
//!
//! All problems are reported together, each with the statement that fixes it. A table without a usable key is never added
//! to a publication, because PostgreSQL would then reject its updates and deletes. Tables and roles are never changed.

use super::catalog::{self, Column, Table};
use super::server::{Server, Sql, identifier};
use crate::error::{Error, Result};
use schemas::ids::TableName;
use schemas::pg_types::{AvroType, Column as DeclaredColumn};
use std::collections::BTreeMap;

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

/// Checks settings, tables, columns and keys.
///
/// # Errors
/// [`Error::Rejected`] with all problems.
pub(super) async fn check(sql: &Sql, server: &Server, declared: &[Declared]) -> Result<Vec<Checked>> {
    let level = sql
        .value("read the settings", "SELECT current_setting('wal_level')")
        .await?;
    if level.as_deref() != Some("logical") {
        return Err(Error::Rejected {
            reason: format!("{server} has wal_level = {}", level.unwrap_or_default()),
            fix: String::from("ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL"),
        });
    }
    let wanted: Vec<(&str, &str)> = declared.iter().map(|t| (t.name.schema(), t.name.table())).collect();
    let actual = catalog::tables(sql, Some(&wanted)).await?;
    let (mut checked, mut problems) = (Vec::new(), Vec::new());
    for table in declared {
        let key = (table.name.schema().to_owned(), table.name.table().to_owned());
        match actual.get(&key) {
            Some(found) => match check_table(table, found, server.user()) {
                Ok(key) => checked.push(Checked {
                    declared: table.clone(),
                    key,
                }),
                Err(mut found) => problems.append(&mut found),
            },
            None => problems.push(Problem {
                what: format!("table {} does not exist", table.name),
                fix: format!(
                    "create it, or remove [[table]] name = \"{}\" from the topology",
                    table.name
                ),
            }),
        }
    }
    if problems.is_empty() {
        Ok(checked)
    } else {
        Err(rejected(server, &problems))
    }
}

fn rejected(server: &Server, problems: &[Problem]) -> Error {
    let join = |part: fn(&Problem) -> &str| problems.iter().map(part).collect::<Vec<_>>().join("; ");
    Error::Rejected {
        reason: format!("{server}: {}", join(|p| &p.what)),
        fix: join(|p| p.fix.trim_end_matches(';')),
    }
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
    let identity = actual.identity();
    let missing: Vec<&str> = key
        .iter()
        .map(String::as_str)
        .filter(|name| !identity.contains(name))
        .collect();
    if !missing.is_empty() {
        problems.push(Problem {
            what: format!(
                "the replica identity of table {} lacks key column {}, so deletes would not identify the row",
                declared.name,
                missing.join(", ")
            ),
            fix: format!("ALTER TABLE {table} REPLICA IDENTITY FULL"),
        });
    }
    if problems.is_empty() {
        Ok(indices)
    } else {
        Err(problems)
    }
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
fn fits(declared: &str, actual: &Column) -> bool {
    let json = |name| matches!(name, "json" | "jsonb");
    let actual = actual.type_name.as_str();
    AvroType::of(declared) == AvroType::of(actual) && json(declared) == json(actual)
}

/// Creates the publication, or adds missing tables to it.
///
/// # Errors
/// [`Error::Rejected`] with the statements to run, if this user lacks the permission.
pub(super) async fn publish(sql: &Sql, server: &Server, name: &str, tables: &[Checked]) -> Result<()> {
    let quoted_name = identifier(name);
    let list = |tables: &[&Checked]| {
        tables
            .iter()
            .map(|t| quoted(&t.declared.name))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let all: Vec<&Checked> = tables.iter().collect();
    let statement = match catalog::publication(sql, name).await? {
        None => {
            // Changes of partitions are published as changes of the declared root table.
            format!(
                "CREATE PUBLICATION {quoted_name} FOR TABLE {} WITH (publish_via_partition_root = true)",
                list(&all)
            )
        }
        Some(found) => {
            if let Some(problem) = check_publication(name, &found, tables) {
                return Err(rejected(server, &[problem]));
            }
            let missing: Vec<&Checked> = all
                .into_iter()
                .filter(|t| !found.tables.contains_key(&pair(t)))
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

fn pair(table: &Checked) -> (String, String) {
    (
        table.declared.name.schema().to_owned(),
        table.declared.name.table().to_owned(),
    )
}

/// Checks that an existing publication publishes all operations and all declared columns.
fn check_publication(name: &str, found: &catalog::Publication, tables: &[Checked]) -> Option<Problem> {
    let quoted_name = identifier(name);
    if !found.publishes_all {
        return Some(Problem {
            what: format!("publication {name} does not publish all operations"),
            fix: format!("ALTER PUBLICATION {quoted_name} SET (publish = 'insert, update, delete, truncate')"),
        });
    }
    for table in tables {
        let Some(Some(columns)) = found.tables.get(&pair(table)) else {
            continue;
        };
        let lacks = |c: &&DeclaredColumn| !columns.contains(&c.name);
        if let Some(column) = table.declared.columns.iter().find(lacks) {
            return Some(Problem {
                what: format!(
                    "publication {name} does not publish column {} of table {}",
                    column.name, table.declared.name
                ),
                fix: format!(
                    "ALTER PUBLICATION {quoted_name} SET TABLE … with that column, or remove it from [[table]] {}",
                    table.declared.name
                ),
            });
        }
    }
    None
}

/// The tables and columns that a snapshot reads, as stored in the position.
pub(super) fn snapshot_columns(tables: &[Checked]) -> BTreeMap<String, Vec<String>> {
    let columns = |t: &Checked| t.declared.columns.iter().map(|c| c.name.clone()).collect();
    tables
        .iter()
        .map(|t| (t.declared.name.as_str().to_owned(), columns(t)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn publication_must_cover_the_declared_columns() {
        let tables = [Checked {
            declared: declared(&[("id", "int8"), ("note", "text?")], None),
            key: vec![0],
        }];
        let key = (String::from("public"), String::from("orders"));
        let publication = |publishes_all, columns| catalog::Publication {
            publishes_all,
            tables: BTreeMap::from([(key.clone(), columns)]),
        };
        assert_eq!(check_publication("p", &publication(true, None), &tables), None);
        let lacking = publication(true, Some(vec![String::from("id")]));
        assert!(
            check_publication("p", &lacking, &tables)
                .unwrap()
                .what
                .contains("does not publish column note")
        );
        assert!(
            check_publication("p", &publication(false, None), &tables)
                .unwrap()
                .fix
                .contains("truncate")
        );
    }
}
