//! The declaration of a PostgreSQL source, and checks of it against the catalog.

use super::catalog::Catalog;
use super::check::{self, Reading};
use super::config::ColumnLists;
use super::declared::Declared;
use super::server::Server;
use super::static_record::{ColumnRecord, Content, PublicationRecord};
use crate::error::{Error, Result};
use crate::source::OnMismatch;
use schemas::ids::TableName;
use std::sync::Arc;

/// The declaration of a source.
#[derive(Clone)]
pub(super) struct Declaration {
    /// The connector.
    pub(super) connector: Arc<str>,
    pub(super) server: Server,
    /// Name of the publication.
    pub(super) publication: String,
    /// Whether the connector chose the publication's name, so that it may change the publication.
    pub(super) manages_publication: bool,
    pub(super) column_lists: ColumnLists,
    pub(super) tables: Vec<Declared>,
    pub(super) on_mismatch: OnMismatch,
}

impl Declaration {
    /// Names of all declared tables.
    pub(super) fn names(&self) -> Vec<TableName> {
        self.tables.iter().map(|t| t.name.clone()).collect()
    }

    /// The fix that is required before a snapshot of the table; `None` if the table can be published.
    /// `known` are the columns with which the table was read.
    pub(super) fn first_fix(&self, table: &Declared, catalog: &Catalog, known: &[ColumnRecord]) -> Option<String> {
        let reading = Reading {
            known: Some(known),
            ..self.reading(false)
        };
        let checked = check::check(table, catalog, reading);
        checked.err().map(|unsuitable| unsuitable.fix())
    }

    /// How the tables are read; `is_first` before anything was published.
    pub(super) fn reading(&self, is_first: bool) -> Reading<'_> {
        Reading {
            user: self.server.user(),
            publication: &self.publication,
            is_first,
            known: None,
            is_own: self.manages_publication,
        }
    }

    /// Checks the publication. While it did not exist or did not publish all operations, changes of all tables were
    /// lost.
    ///
    /// # Errors
    /// [`Error::NeedsResync`].
    pub(super) fn check_publication(&self, was: &PublicationRecord, catalog: &Catalog) -> Result<()> {
        let name = &self.publication;
        let reason = match &catalog.publication {
            _ if was.name != *name => format!(
                "the declared publication is {name}, but the stored position was written with publication {}",
                was.name
            ),
            None => format!("publication {name} no longer exists"),
            Some(found) if found.oid != was.oid => format!(
                "publication {name} was dropped and created again (its OID is {}, but the stored position was written with OID {})",
                found.oid, was.oid
            ),
            Some(found) if !found.publishes_all() => {
                format!("publication {name} no longer publishes all operations")
            }
            Some(_) => return Ok(()),
        };
        Err(Error::NeedsResync { reason })
    }

    /// Returns the tables that need a snapshot which is taken without a request: it would help, because the table could
    /// now be published, and either `on_mismatch` is `resync`, or the table or a column was declared later, or the table
    /// was changed by a usual migration.
    pub(super) fn repairable<'d>(&'d self, content: &Content, catalog: &Catalog) -> Vec<&'d TableName> {
        let is_repairable = |table: &&Declared| {
            let Some(record) = content.tables.get(table.name.as_str()) else {
                return false;
            };
            record.snapshot.is_none()
                && record.needs_snapshot.as_ref().is_some_and(|state| {
                    let is_automatic = self.on_mismatch == OnMismatch::Resync || state.automatic;
                    is_automatic && !state.schema_rejected && self.first_fix(table, catalog, &record.columns).is_none()
                })
        };
        self.tables
            .iter()
            .filter(is_repairable)
            .map(|table| &table.name)
            .collect()
    }

    /// The declared table of this name.
    pub(super) fn table(&self, name: &str) -> Option<&Declared> {
        self.tables.iter().find(|table| table.name.as_str() == name)
    }
}
