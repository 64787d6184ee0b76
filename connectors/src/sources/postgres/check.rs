//! Judges whether a database is set up for its declared tables, and sets up the publication.
//!
//! Guarantees: everything that is wrong is said at once, each with the exact statement that mends it; a table that has
//! no usable key is never put into a publication, since PostgreSQL would then refuse its updates and deletes.
//! Never: a change of a table or of a role.

use super::catalog::{self, Column, Table};
use super::server::{Server, Sql, identifier};
use crate::error::{Error, Result};
use schemas::ids::TableName;
use schemas::pg_types::{AvroType, Column as DeclaredColumn};
use std::collections::BTreeMap;

/// A table as the topology declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: TableName,
    /// Columns that are published, in order.
    pub columns: Vec<DeclaredColumn>,
    /// Columns of the record's key; `None` is the table's primary key.
    pub key: Option<Vec<String>>,
}

/// A table that can be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// As it is declared.
    pub declared: Declared,
    /// The key: indices into the declared columns, in the key's order.
    pub key: Vec<usize>,
}

/// What is wrong, and the statement that mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) what: String,
    pub(super) mend: String,
}

/// Checks settings, tables, columns and keys.
///
/// # Errors
/// [`Error::Refused`] with everything that is wrong.
pub(super) async fn check(sql: &Sql, server: &Server, declared: &[Declared]) -> Result<Vec<Checked>> {
    let level = sql
        .value("read the settings", "SELECT current_setting('wal_level')")
        .await?;
    if level.as_deref() != Some("logical") {
        return Err(Error::Refused {
            reason: format!("{server} has wal_level = {}", level.unwrap_or_default()),
            next: String::from("ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL"),
        });
    }
    let wanted: Vec<(&str, &str)> = declared.iter().map(|t| (t.name.schema(), t.name.table())).collect();
    let real = catalog::tables(sql, Some(&wanted)).await?;
    let (mut checked, mut problems) = (Vec::new(), Vec::new());
    for table in declared {
        let key = (table.name.schema().to_owned(), table.name.table().to_owned());
        match real.get(&key) {
            Some(found) => match judge(table, found, server.user()) {
                Ok(key) => checked.push(Checked {
                    declared: table.clone(),
                    key,
                }),
                Err(mut found) => problems.append(&mut found),
            },
            None => problems.push(Problem {
                what: format!("table {} does not exist", table.name),
                mend: format!(
                    "create it, or take [[table]] name = \"{}\" out of the topology",
                    table.name
                ),
            }),
        }
    }
    if problems.is_empty() {
        Ok(checked)
    } else {
        Err(refused(server, &problems))
    }
}

fn refused(server: &Server, problems: &[Problem]) -> Error {
    let join = |part: fn(&Problem) -> &str| problems.iter().map(part).collect::<Vec<_>>().join("; ");
    Error::Refused {
        reason: format!("{server}: {}", join(|p| &p.what)),
        next: join(|p| p.mend.trim_end_matches(';')),
    }
}

/// The quoted name of a table.
pub(super) fn quoted(name: &TableName) -> String {
    format!("{}.{}", identifier(name.schema()), identifier(name.table()))
}

/// Judges one table; gives its key as indices into the declared columns.
fn judge(declared: &Declared, real: &Table, user: &str) -> std::result::Result<Vec<usize>, Vec<Problem>> {
    let mut problems = Vec::new();
    let table = quoted(&declared.name);
    if !real.readable {
        problems.push(Problem {
            what: format!("user {user} may not read table {}", declared.name),
            mend: format!(
                "GRANT USAGE ON SCHEMA {} TO {user}; GRANT SELECT ON {table} TO {user}",
                identifier(&real.schema),
                user = identifier(user)
            ),
        });
    }
    for column in &declared.columns {
        problems.extend(judge_column(declared, column, real));
    }
    let key = declared.key.as_ref().unwrap_or(&real.primary_key);
    if key.is_empty() {
        problems.push(Problem {
            what: format!("table {} has no primary key and declares no key", declared.name),
            mend: format!(
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
                    "column {name} of table {} is in its key and not declared",
                    declared.name
                ),
                mend: format!(
                    "add {name} to the columns of [[table]] {} in the topology",
                    declared.name
                ),
            }),
        }
    }
    let identity = real.identity();
    let missing: Vec<&str> = key
        .iter()
        .map(String::as_str)
        .filter(|name| !identity.contains(name))
        .collect();
    if !missing.is_empty() {
        problems.push(Problem {
            what: format!(
                "the replica identity of table {} lacks {} of its key, so deletes would not say which row",
                declared.name,
                missing.join(", ")
            ),
            mend: format!("ALTER TABLE {table} REPLICA IDENTITY FULL"),
        });
    }
    if problems.is_empty() {
        Ok(indices)
    } else {
        Err(problems)
    }
}

fn judge_column(declared: &Declared, column: &DeclaredColumn, real: &Table) -> Option<Problem> {
    let (name, table) = (&column.name, &declared.name);
    let Some(found) = real.column(name) else {
        return Some(Problem {
            what: format!("table {table} has no column {name}"),
            mend: format!("take {name} out of the columns of [[table]] {table}"),
        });
    };
    let mark = if found.nullable { "?" } else { "" };
    let right = format!(
        "write {name} = \"{}{mark}\" in [[table]] {table}",
        catalog::shown(&found.type_name)
    );
    if found.generated {
        return Some(Problem {
            what: format!("column {name} of table {table} is generated, and PostgreSQL does not replicate those"),
            mend: format!("take {name} out of the columns of [[table]] {table}"),
        });
    }
    if !fits(&column.pg_type, found) {
        let what = format!(
            "column {name} of table {table} is {}, declared is {}",
            catalog::shown(&found.type_name),
            catalog::shown(&column.pg_type)
        );
        return Some(Problem { what, mend: right });
    }
    if found.nullable && !column.nullable {
        let what = format!("column {name} of table {table} may be null, declared is that it may not");
        let mend = format!(
            "{right}; or ALTER TABLE {} ALTER COLUMN {} SET NOT NULL",
            quoted(table),
            identifier(name)
        );
        return Some(Problem { what, mend });
    }
    None
}

/// Whether values of the real type have the declared type's form in Avro, and in a device's row.
fn fits(declared: &str, real: &Column) -> bool {
    let json = |name| matches!(name, "json" | "jsonb");
    let real = real.type_name.as_str();
    AvroType::of(declared) == AvroType::of(real) && json(declared) == json(real)
}

/// Makes sure that the publication covers the tables: creates it, or adds what is missing.
///
/// # Errors
/// [`Error::Refused`] with the statements for somebody who may run them.
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
            // A partition's rows come as those of the table that is declared.
            format!(
                "CREATE PUBLICATION {quoted_name} FOR TABLE {} WITH (publish_via_partition_root = true)",
                list(&all)
            )
        }
        Some(found) => {
            if let Some(problem) = judge_publication(name, &found, tables) {
                return Err(refused(server, &[problem]));
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
        Error::Refused { reason, .. } => Error::Refused {
            reason,
            next: format!(
                "run as the owner of the tables, in database {}: {statement}; or GRANT CREATE ON DATABASE {} TO {} and \
                 make {} the tables' owner",
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

/// What an existing publication leaves out.
fn judge_publication(name: &str, found: &catalog::Publication, tables: &[Checked]) -> Option<Problem> {
    let quoted_name = identifier(name);
    if !found.publishes_all {
        return Some(Problem {
            what: format!("publication {name} leaves some operations out"),
            mend: format!("ALTER PUBLICATION {quoted_name} SET (publish = 'insert, update, delete, truncate')"),
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
                    "publication {name} leaves column {} of {} out",
                    column.name, table.declared.name
                ),
                mend: format!(
                    "ALTER PUBLICATION {quoted_name} SET TABLE … with that column, or take it out of [[table]] {}",
                    table.declared.name
                ),
            });
        }
    }
    None
}

/// What the snapshot of these tables reads, as the position keeps it.
pub(super) fn read_by_snapshot(tables: &[Checked]) -> BTreeMap<String, Vec<String>> {
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

    fn real(identity: char, primary_key: &[&str]) -> Table {
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

    fn problems(declared: &Declared, real: &Table) -> Vec<String> {
        let found = judge(declared, real, "app").unwrap_err();
        found.into_iter().map(|p| format!("{} -> {}", p.what, p.mend)).collect()
    }

    #[test]
    fn a_table_as_it_is_declared_gives_its_key() {
        let fits = declared(&[("note", "text?"), ("id", "int8"), ("tags", "text[]?")], None);
        assert_eq!(judge(&fits, &real('d', &["id"]), "app"), Ok(vec![1]));
        let keyed = declared(&[("id", "int8"), ("note", "text?")], Some(&["note", "id"]));
        assert_eq!(judge(&keyed, &real('f', &[]), "app"), Ok(vec![1, 0]));
    }

    #[test]
    fn a_table_without_a_key_is_told_what_to_run() {
        let text = problems(&declared(&[("id", "int8")], None), &real('d', &[]));
        assert_eq!(
            text,
            [
                "table orders has no primary key and declares no key -> ALTER TABLE \"public\".\"orders\" ADD PRIMARY KEY (…); \
              or declare key = [\"…\"] in the topology and ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY FULL"
            ]
        );
        let text = problems(&declared(&[("id", "int8")], Some(&["id"])), &real('d', &[]));
        assert!(
            text[0].ends_with("-> ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY FULL"),
            "{text:?}"
        );
    }

    #[test]
    fn every_column_that_differs_is_named_with_what_to_write() {
        let wrong = declared(
            &[("id", "int4"), ("note", "text"), ("total", "int4?"), ("gone", "text?")],
            None,
        );
        assert_eq!(
            problems(&wrong, &real('d', &["id"])),
            [
                "column id of table orders is int8, declared is int4 -> write id = \"int8\" in [[table]] orders",
                "column note of table orders may be null, declared is that it may not -> write note = \"varchar?\" in \
                 [[table]] orders; or ALTER TABLE \"public\".\"orders\" ALTER COLUMN \"note\" SET NOT NULL",
                "column total of table orders is generated, and PostgreSQL does not replicate those -> take total out of \
                 the columns of [[table]] orders",
                "table orders has no column gone -> take gone out of the columns of [[table]] orders",
            ]
        );
        let undeclared_key = declared(&[("note", "text?")], None);
        assert!(problems(&undeclared_key, &real('d', &["id"]))[0].contains("is in its key and not declared"));
    }

    #[test]
    fn a_publication_must_publish_everything_declared() {
        let tables = [Checked {
            declared: declared(&[("id", "int8"), ("note", "text?")], None),
            key: vec![0],
        }];
        let key = (String::from("public"), String::from("orders"));
        let publication = |publishes_all, columns| catalog::Publication {
            publishes_all,
            tables: BTreeMap::from([(key.clone(), columns)]),
        };
        assert_eq!(judge_publication("p", &publication(true, None), &tables), None);
        let lacking = publication(true, Some(vec![String::from("id")]));
        assert!(
            judge_publication("p", &lacking, &tables)
                .unwrap()
                .what
                .contains("leaves column note")
        );
        assert!(
            judge_publication("p", &publication(false, None), &tables)
                .unwrap()
                .mend
                .contains("truncate")
        );
    }
}
