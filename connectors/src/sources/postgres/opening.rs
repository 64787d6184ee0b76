//! Opens a source: determines which of the declared tables can be streamed or copied, and compiles their encoders.

use super::catalog::Catalog;
use super::check::{self, Checked, Unsuitable};
use super::declaration::Declaration;
use super::declared::Declared;
use super::drift::{self, Cause, Verdict};
use super::publication;
use super::replication::Identity;
use super::rows::Table;
use super::server::Sql;
use super::static_record::{Content, NeedsSnapshot, PublicationRecord, StaticRecord, TableRecord, TableSnapshot};
use crate::error::{Error, Result};
use crate::source;
use schemas::ids::SourceName;
use schemas::pg_types::{self, Column};
use schemas::schema::Schema;
use schemas::wire;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Parameters of opening a source.
pub(super) struct Opener<'o> {
    pub(super) name: &'o SourceName,
    pub(super) declaration: &'o Declaration,
    pub(super) registry: &'o Arc<dyn registry::Registry>,
    pub(super) topic: &'o Arc<str>,
}

/// The tables of an open source.
pub(super) struct Opened {
    pub(super) content: Content,
    /// Encoders of the tables that do not need a snapshot.
    pub(super) tables: Arc<[Arc<Table>]>,
}

impl Opener<'_> {
    /// Prepares to stream: compares the tables with the catalog. A table that no longer matches needs a snapshot; the
    /// others are streamed.
    ///
    /// # Errors
    /// [`Error::NeedsResync`] if the publication does not match the static record.
    pub(super) async fn for_stream(&self, sql: &Sql, stored: &StaticRecord) -> Result<Opened> {
        let declaration = self.declaration;
        let catalog = Catalog::read(sql, &declaration.names(), &declaration.publication).await?;
        let mut content = stored.content().clone();
        declaration.check_publication(&content.publication, &catalog)?;
        let (mut tables, mut records) = (Vec::new(), BTreeMap::new());
        for declared in &declaration.tables {
            let name = declared.name.as_str();
            let stored = content.tables.remove(name);
            let (record, table) = self.open_table(declared, stored, &catalog).await?;
            tables.extend(table.map(Arc::new));
            records.insert(name.to_owned(), record);
        }
        content.tables = records;
        Ok(Opened {
            content,
            tables: tables.into(),
        })
    }

    /// Compares one table with the catalog. Returns its record and, unless it needs a snapshot, its encoder.
    async fn open_table(
        &self,
        declared: &Declared,
        stored: Option<TableRecord>,
        catalog: &Catalog,
    ) -> Result<(TableRecord, Option<Table>)> {
        let (name, declaration) = (&declared.name, self.declaration);
        // A snapshot of a table or column that was declared later needs no decision of an operator.
        let is_new = |c: &Column| {
            stored
                .as_ref()
                .is_none_or(|s| s.columns.iter().all(|known| known.name != c.name))
        };
        let declared_later = declared.columns.iter().any(is_new);
        let stop = |record: TableRecord, cause: Cause, schema_rejected: bool| {
            let connector = &declaration.connector;
            let first = declaration.first_fix(declared, catalog, &record.columns);
            let state = NeedsSnapshot {
                schema_rejected,
                automatic: declared_later || cause.is_migration,
                ..drift::needs_snapshot(connector, name.as_str(), cause.text, first.as_deref())
            };
            tracing::error!(%connector, table = %name, cause = state.cause, fix = state.fix, "table needs a snapshot");
            TableRecord {
                needs_snapshot: Some(state),
                snapshot: record.snapshot.as_ref().map(|_| TableSnapshot::Wanted),
                ..record
            }
        };
        let Some(mut record) = stored else {
            let cause = format!("table {name} is declared but was not part of the snapshot");
            return Ok((stop(TableRecord::default(), Cause::other(cause), false), None));
        };
        if let Some(state) = &mut record.needs_snapshot {
            if state.schema_rejected {
                let checked = check::check(declared, catalog, declaration.reading(false));
                let key = checked.map(|checked| drift::record(&checked, catalog).key);
                let compiled = self.compile(declared, &key.unwrap_or_default()).await;
                state.schema_rejected = compiled.is_err_and(|error| is_of_table(&error));
            }
            return Ok((record, None));
        }
        if let Verdict::NeedsSnapshot(cause) = drift::compare(declared, &record, catalog, &declaration.publication) {
            return Ok((stop(record, cause, false), None));
        }
        match self.compile(declared, &record.key).await {
            Ok(table) => Ok((record, Some(table))),
            Err(error) if is_of_table(&error) => Ok((stop(record, Cause::other(service::chain(&error)), true), None)),
            Err(error) => Err(error),
        }
    }

    /// Prepares a snapshot: checks the tables and sets up the publication. At the first start every problem is an
    /// error. Later, a table that cannot be copied is marked as needing another snapshot, and the other tables
    /// continue.
    ///
    /// # Errors
    /// [`Error::Rejected`] with all problems.
    pub(super) async fn for_snapshot(&self, sql: &Sql, slot: &Slot<'_>, is_first: bool) -> Result<Opened> {
        let declaration = self.declaration;
        let (server, publication_name) = (&declaration.server, declaration.publication.as_str());
        let catalog = Catalog::read(sql, &declaration.names(), publication_name).await?;
        let (mut passed, mut failed) = (Vec::new(), Vec::new());
        for table in &declaration.tables {
            match check::check(table, &catalog, declaration.reading(is_first)) {
                Ok(checked) => passed.push(checked),
                Err(unsuitable) => failed.push(unsuitable),
            }
        }
        if passed.is_empty() || (is_first && !failed.is_empty()) {
            return Err(check::rejected(server, &failed));
        }
        let (mut tables, mut accepted, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
        for checked in passed {
            let key = drift::record(&checked, &catalog).key;
            match self.compile(&checked.declared, &key).await {
                Ok(table) => {
                    tables.push(Arc::new(table));
                    accepted.push(checked);
                }
                Err(error) if is_of_table(&error) && !is_first => rejected.push(self.not_compiled(&checked, &error)),
                Err(error) => return Err(error),
            }
        }
        if accepted.is_empty() {
            return Err(check::rejected(server, &rejected));
        }
        // The database is changed only now, so a start that is refused leaves it as it was.
        publication::publish(sql, declaration, &catalog, &accepted).await?;
        let mut catalog = Catalog::read(sql, &declaration.names(), publication_name).await?;
        if publication::maintain(sql, declaration, &catalog).await? {
            catalog = Catalog::read(sql, &declaration.names(), publication_name).await?;
        }
        let records = accepted.iter().map(|checked| {
            let name = checked.declared.name.as_str().to_owned();
            (name, drift::record(checked, &catalog))
        });
        let mut content = Content {
            system: slot.identity.system.clone(),
            timeline: slot.identity.timeline,
            database: server.database().to_owned(),
            slot: slot.name.to_owned(),
            publication: publication_record(publication_name, &catalog),
            tables: records.collect(),
        };
        let failed = failed.iter().map(|unsuitable| (unsuitable, false));
        for (unsuitable, schema_rejected) in failed.chain(rejected.iter().map(|unsuitable| (unsuitable, true))) {
            let fix = unsuitable.fix();
            let record = TableRecord {
                needs_snapshot: Some(NeedsSnapshot {
                    schema_rejected,
                    ..drift::needs_snapshot(
                        &declaration.connector,
                        unsuitable.name.as_str(),
                        unsuitable.cause(),
                        Some(&fix),
                    )
                }),
                ..TableRecord::default()
            };
            content.tables.insert(unsuitable.name.as_str().to_owned(), record);
        }
        Ok(Opened {
            content,
            tables: tables.into(),
        })
    }

    fn not_compiled(&self, checked: &Checked, error: &Error) -> Unsuitable {
        Unsuitable {
            name: checked.declared.name.clone(),
            problems: vec![check::Problem::new(
                service::chain(error),
                error.fix(&self.declaration.connector),
            )],
        }
    }

    /// Adds the fix to the rejection of a schema with a new column that is not null.
    async fn with_fix(&self, error: Error, declared: &Declared, subject: String) -> Error {
        let Error::Registry {
            subject: of,
            retry: false,
            source,
            ..
        } = error
        else {
            return error;
        };
        let registry = Arc::clone(self.registry);
        let latest = tokio::task::spawn_blocking(move || registry.latest(&subject)).await;
        let latest = latest.ok().and_then(Result::ok);
        Error::Registry {
            subject: of,
            retry: false,
            fix: latest.and_then(|latest| new_column_fix(declared, &latest.schema)),
            source,
        }
    }

    /// Registers a table's schema and compiles its encoder.
    pub(super) async fn compile(&self, declared: &Declared, key: &[String]) -> Result<Table> {
        let name = &declared.name;
        let rejected = |reason: String| Error::Rejected {
            reason,
            fix: format!("correct the columns of [[table]] {name} in the topology"),
        };
        let text = pg_types::table_schema(self.name, name, &declared.columns);
        let text = text.map_err(|e| rejected(e.to_string()))?;
        let subject = wire::subject(self.topic, &pg_types::record_name(self.name, name));
        let registered = source::register(self.registry, subject.clone(), text.clone()).await;
        let id = match registered {
            Ok(id) => id,
            Err(error) => return Err(self.with_fix(error, declared, subject).await),
        };
        let schema = Schema::parse(&text).map_err(|e| rejected(e.to_string()))?;
        let at = |column: &String| declared.columns.iter().position(|c| c.name == *column);
        let key: Option<Vec<usize>> = key.iter().map(at).collect();
        let key = key.ok_or_else(|| rejected(format!("table {name} has a key column that is not declared")))?;
        let table = Table::new(name.clone(), Arc::new(schema), id, key)?;
        Ok(table.masked(|column| declared.masking(column)))
    }
}

/// The slot of a source, and the cluster that it belongs to.
pub(super) struct Slot<'s> {
    pub(super) name: &'s str,
    pub(super) identity: &'s Identity,
}

/// The fix of a schema that was rejected, if columns that are not null are missing in the latest schema of the table. The
/// records of that schema have no value for such a column, so a reader needs a default: null.
fn new_column_fix(declared: &Declared, latest: &str) -> Option<String> {
    let latest: serde_json::Value = serde_json::from_str(latest).ok()?;
    let fields = latest.get("fields")?.as_array()?;
    let is_known = |name: &str| {
        let mut names = fields.iter().filter_map(|field| field.get("name")?.as_str());
        names.any(|known| known == name)
    };
    let columns = declared.columns.iter();
    let new = columns.filter(|column| !column.nullable && !is_known(&column.field_name()));
    let (names, declarations): (Vec<&str>, Vec<String>) = new
        .map(|column| {
            (
                column.name.as_str(),
                format!("{} = \"{}?\"", column.name, column.pg_type),
            )
        })
        .unzip();
    (!names.is_empty()).then(|| {
        format!(
            "declare {} as nullable in [[table]] {}, because earlier records have no value for it: {}; or, if a column was \
             renamed, restore its earlier name",
            names.join(", "),
            declared.name,
            declarations.join(", ")
        )
    })
}

/// Whether an error affects only one table, so that the other tables can be published.
pub(super) fn is_of_table(error: &Error) -> bool {
    matches!(
        error,
        Error::Registry { retry: false, .. } | Error::Rejected { .. } | Error::Unpublishable { .. }
    )
}

fn publication_record(name: &str, catalog: &Catalog) -> PublicationRecord {
    let found = catalog.publication.as_ref();
    PublicationRecord {
        name: name.to_owned(),
        oid: found.map_or(0, |p| p.oid),
        operations: found.map(|p| p.operations.clone()).unwrap_or_default(),
        via_root: found.is_some_and(|p| p.via_root),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::ids::TableName;

    fn declared(columns: &[(&str, &str)]) -> Declared {
        let columns = columns.iter().map(|(name, ty)| Column::declared(name, ty));
        Declared::new(TableName::new("orders").unwrap(), columns.collect(), None)
    }

    /// A column that is renamed is a new one for the registry.
    #[test]
    fn rejected_schema_with_a_new_column_names_the_column_and_the_fix() {
        let before = declared(&[("id", "int8"), ("total", "int4"), ("note", "text?")]);
        let source = SourceName::new("shop").unwrap();
        let latest = pg_types::table_schema(&source, &before.name, &before.columns).unwrap();
        let renamed = declared(&[("id", "int8"), ("order_total", "int4"), ("remark", "text?")]);
        assert_eq!(
            new_column_fix(&renamed, &latest).unwrap(),
            "declare order_total as nullable in [[table]] orders, because earlier records have no value for it: order_total = \
             \"int4?\"; or, if a column was renamed, restore its earlier name"
        );
        let other = declared(&[("id", "text"), ("total", "int4"), ("note", "text?")]);
        assert_eq!(new_column_fix(&other, &latest), None);
    }
}
