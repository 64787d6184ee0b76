//! Checks the database of a source for `trunkline doctor`. It only reads the catalog.

use super::catalog::Catalog;
use super::check;
use super::config::ColumnLists;
use super::declaration::Declaration;
use super::declared::Declared;
use super::publication;
use super::server::{Sql, identifier, literal};
use crate::error::{Error, Result};

const ATTEMPTED: &str = "read the catalog";
/// Retained WAL from which a slot is reported, in bytes.
const RETAINED_MAX: u64 = 1 << 30;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// As required.
    Ok,
    /// Intended, temporary, or not a problem yet.
    Warning,
    /// The connector cannot work.
    Problem,
}

/// Result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How serious it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// The statement or command that corrects it; empty if it is as required.
    pub fix: String,
}

fn good(found: impl Into<String>) -> Finding {
    finding(Severity::Ok, found, "")
}

fn warning(found: impl Into<String>, fix: impl Into<String>) -> Finding {
    finding(Severity::Warning, found, fix)
}

fn problem(found: impl Into<String>, fix: impl Into<String>) -> Finding {
    finding(Severity::Problem, found, fix)
}

fn finding(severity: Severity, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    let (found, fix) = (found.into(), fix.into());
    Finding { severity, found, fix }
}

/// Checks settings and permissions, then slot, publication and tables.
pub(super) async fn inspect(declaration: &Declaration, slot: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = inspect_into(declaration, slot, &mut findings).await {
        findings.push(problem(service::chain(&error), error.fix(&declaration.connector)));
    }
    findings
}

async fn inspect_into(declaration: &Declaration, slot: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let server = &declaration.server;
    let sql = server.connect("trunkline doctor").await?;
    match check::check_server(&sql, server).await {
        Ok(()) => findings.push(good(format!(
            "{server} has a supported version, and wal_level is logical"
        ))),
        Err(Error::Rejected { reason, fix }) => findings.push(problem(reason, fix)),
        Err(error) => return Err(error),
    }
    findings.push(replication_right(&sql, server.user()).await?);
    let found = read_slot(&sql, slot).await?;
    findings.push(check_slot(found.as_ref(), slot, declaration));
    if found.is_none() {
        findings.push(free_slots(&sql).await?);
    }
    let catalog = Catalog::read(&sql, &declaration.names(), &declaration.publication).await?;
    findings.extend(check_publication(&catalog, declaration));
    findings.extend(check_tables(&catalog, declaration));
    findings.extend(check_columns(&catalog, declaration));
    Ok(())
}

/// Whether the user may use replication slots. On Amazon RDS, a role grants it instead of the attribute.
pub(crate) async fn replication_right(sql: &Sql, user: &str) -> Result<Finding> {
    let statement = "SELECT rolreplication OR rolsuper OR EXISTS (SELECT FROM pg_roles rds WHERE rds.rolname = \
         'rds_replication' AND pg_has_role(current_user, rds.oid, 'MEMBER')) FROM pg_roles WHERE rolname = current_user";
    let may_replicate = sql.value(ATTEMPTED, statement).await?.is_some_and(|value| value == "t");
    Ok(match may_replicate {
        true => good(format!("user {user} may replicate")),
        false => problem(
            format!("user {user} lacks the REPLICATION attribute"),
            format!(
                "ALTER ROLE {user} REPLICATION; on Amazon RDS: GRANT rds_replication TO {user};",
                user = identifier(user)
            ),
        ),
    })
}

/// Whether another slot can be created.
pub(crate) async fn free_slots(sql: &Sql) -> Result<Finding> {
    let statement = "SELECT current_setting('max_replication_slots')::int - count(*) FROM pg_replication_slots";
    let free = sql.value(ATTEMPTED, statement).await?.unwrap_or_default();
    let found = format!("{free} replication slots available");
    Ok(match free.parse::<i64>() {
        Ok(1..) => good(found),
        _ => problem(found, "raise max_replication_slots, or drop an unused slot"),
    })
}

/// The slot as the server describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Slot {
    plugin: String,
    database: String,
    is_active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    wal_status: String,
    /// Bytes of WAL that the server keeps for it.
    retained: u64,
}

async fn read_slot(sql: &Sql, name: &str) -> Result<Option<Slot>> {
    let end = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END";
    let statement = format!(
        "SELECT plugin, database, active, to_json(s)->>'wal_status', \
            greatest(pg_wal_lsn_diff({end}, restart_lsn), 0)::bigint \
         FROM pg_replication_slots s WHERE slot_name = {}",
        literal(name)
    );
    let rows = sql.rows(ATTEMPTED, &statement).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let text = |at: usize| row.try_get(at).ok().flatten().unwrap_or_default().to_owned();
    Ok(Some(Slot {
        plugin: text(0),
        database: text(1),
        is_active: text(2) == "t",
        wal_status: text(3),
        retained: text(4).parse().unwrap_or_default(),
    }))
}

fn check_slot(slot: Option<&Slot>, name: &str, declaration: &Declaration) -> Finding {
    let (connector, database) = (&declaration.connector, declaration.server.database());
    let resync = format!("trunkline connect resync {connector}");
    let Some(slot) = slot else {
        return warning(
            format!("slot {name} does not exist"),
            format!("start connector {connector}, which creates it; if the connector has run before: {resync}"),
        );
    };
    if slot.plugin != "pgoutput" || slot.database != database {
        return problem(
            format!("slot {name} uses plugin {} and database {}", slot.plugin, slot.database),
            format!("set another slot for connector {connector}, or drop that slot"),
        );
    }
    if slot.wal_status == "lost" {
        return problem(
            format!("slot {name} has lost WAL that was not read yet (max_slot_wal_keep_size)"),
            resync,
        );
    }
    let retained = format!("retains {} MiB of WAL", slot.retained >> 20);
    if !slot.is_active {
        return warning(
            format!("slot {name} is not active and {retained}: connector {connector} does not read from it"),
            format!(
                "start or resume connector {connector}; if it is no longer needed: SELECT pg_drop_replication_slot({});",
                literal(name)
            ),
        );
    }
    let is_short = matches!(slot.wal_status.as_str(), "unreserved" | "extended");
    if is_short || slot.retained > RETAINED_MAX {
        return warning(
            format!("slot {name} is active and {retained} (wal_status {})", slot.wal_status),
            "see the state and the lag of the connector; end long transactions in the database",
        );
    }
    good(format!("slot {name} is active and {retained}"))
}

fn check_publication(catalog: &Catalog, declaration: &Declaration) -> Option<Finding> {
    let (name, connector) = (&declaration.publication, &declaration.connector);
    match &catalog.publication {
        None => Some(warning(
            format!("publication {name} does not exist"),
            format!(
                "start connector {connector}, which creates it if its user owns the tables; if the connector has run before: \
                 trunkline connect resync {connector}"
            ),
        )),
        Some(publication) if !publication.publishes_all() => Some(problem(
            format!(
                "publication {name} publishes only {}",
                publication.operations.join(", ")
            ),
            format!(
                "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate'); then: trunkline connect resync \
                 {connector}",
                identifier(name)
            ),
        )),
        Some(_) => None,
    }
}

/// Compares the declared tables with the catalog and the publication.
fn check_tables(catalog: &Catalog, declaration: &Declaration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut suitable = 0;
    // Without its publication, the connector has not published anything yet.
    let reading = declaration.reading(catalog.publication.is_none());
    for table in &declaration.tables {
        match check::check(table, catalog, reading) {
            Ok(_) => suitable += 1,
            Err(unsuitable) => findings.push(problem(unsuitable.cause(), unsuitable.fix())),
        }
    }
    if findings.is_empty() {
        let published = match catalog.publication {
            Some(_) => format!(" and publication {}", declaration.publication),
            None => String::new(),
        };
        findings.push(good(format!(
            "{suitable} declared tables match the database{published}"
        )));
    }
    findings
}

/// Reports which columns leave the database although they are not declared.
fn check_columns(catalog: &Catalog, declaration: &Declaration) -> Vec<Finding> {
    if catalog.publication.is_none() {
        return Vec::new();
    }
    let with_columns = |table| (table, publication::undeclared(table, catalog));
    let tables = declaration.tables.iter().map(with_columns);
    let findings: Vec<Finding> = tables
        .filter(|(_, columns)| !columns.is_empty())
        .map(|(table, columns)| published_undeclared(table, &columns, catalog, declaration))
        .collect();
    let dropped = declaration
        .tables
        .iter()
        .filter_map(|table| dropped_columns(table, catalog));
    let findings: Vec<Finding> = findings.into_iter().chain(dropped).collect();
    if findings.is_empty() {
        return vec![good("only declared columns leave the database")];
    }
    findings
}

/// Reports declared columns that do not exist. They were dropped, or else the table is reported as not suitable.
fn dropped_columns(table: &Declared, catalog: &Catalog) -> Option<Finding> {
    let actual = catalog.table(&table.name)?;
    let columns = table
        .columns
        .iter()
        .filter(|c| c.nullable && actual.column(&c.name).is_none());
    let columns: Vec<&str> = columns.map(|column| column.name.as_str()).collect();
    let found = format!(
        "column {} of table {} does not exist, so null is published",
        columns.join(", "),
        table.name
    );
    let fix = format!("remove it from the columns of [[table]] {}", table.name);
    (!columns.is_empty()).then(|| warning(found, fix))
}

fn published_undeclared(table: &Declared, columns: &[String], catalog: &Catalog, declaration: &Declaration) -> Finding {
    let (name, publication) = (&table.name, identifier(&declaration.publication));
    let found = format!(
        "column {} of table {name} leaves the database and is dropped by connector {}",
        columns.join(", "),
        declaration.connector
    );
    let actual = catalog.table(name);
    let list = actual.and_then(|actual| publication::column_list(table, actual, catalog, ColumnLists::WhenNeeded));
    if declaration.column_lists == ColumnLists::Never {
        return good(format!("{found}, because column_lists is never"));
    }
    if !catalog.has_column_lists {
        return warning(
            format!("{found}, because PostgreSQL 14 has no column lists"),
            "upgrade to PostgreSQL 15 or newer",
        );
    }
    let Some(list) = list else {
        return warning(
            format!("{found}, because a table with REPLICA IDENTITY FULL cannot have a column list"),
            format!(
                "ALTER TABLE {} REPLICA IDENTITY DEFAULT, if it has a primary key",
                check::quoted(name)
            ),
        );
    };
    let list: Vec<String> = list.iter().map(|column| identifier(column)).collect();
    let table = check::quoted(name);
    warning(
        found,
        format!(
            "run as the owner of the publication: BEGIN; ALTER PUBLICATION {publication} DROP TABLE {table}; ALTER \
             PUBLICATION {publication} ADD TABLE {table} ({}); COMMIT; then trunkline connect snapshot {} {name}",
            list.join(", "),
            declaration.connector
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::server::{Server, Settings};
    use super::*;
    use crate::source::OnMismatch;
    use service::Secret;

    fn declaration() -> Declaration {
        Declaration {
            connector: "shop".into(),
            server: Server::new(Settings::new(Secret::new("postgres://app@db/shop"))).unwrap(),
            publication: String::from("p"),
            manages_publication: true,
            column_lists: ColumnLists::default(),
            tables: Vec::new(),
            on_mismatch: OnMismatch::Stop,
        }
    }

    #[test]
    fn slots_are_reported_with_the_command_that_helps() {
        let active = Slot {
            plugin: String::from("pgoutput"),
            database: String::from("shop"),
            is_active: true,
            wal_status: String::from("reserved"),
            retained: 5 << 20,
        };
        let cases = [
            (None, Severity::Warning, "slot s does not exist", "connect resync shop"),
            (
                Some(Slot {
                    database: String::from("other"),
                    ..active.clone()
                }),
                Severity::Problem,
                "database other",
                "another slot",
            ),
            (
                Some(Slot {
                    wal_status: String::from("lost"),
                    ..active.clone()
                }),
                Severity::Problem,
                "has lost WAL",
                "trunkline connect resync shop",
            ),
            (
                Some(Slot {
                    is_active: false,
                    ..active.clone()
                }),
                Severity::Warning,
                "is not active and retains 5 MiB",
                "pg_drop_replication_slot('s')",
            ),
            (
                Some(Slot {
                    retained: 2 << 30,
                    ..active.clone()
                }),
                Severity::Warning,
                "retains 2048 MiB",
                "long transactions",
            ),
            (Some(active), Severity::Ok, "is active and retains 5 MiB", ""),
        ];
        for (slot, severity, found, fix) in cases {
            let finding = check_slot(slot.as_ref(), "s", &declaration());
            assert_eq!(finding.severity, severity, "{finding:?}");
            assert!(
                finding.found.contains(found) && finding.fix.contains(fix),
                "{finding:?}"
            );
        }
    }
}
