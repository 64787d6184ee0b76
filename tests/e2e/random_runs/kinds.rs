//! Kinds of changes of tables and publications, and the tables to which they can be applied.

use super::schema::Table;

/// Kinds of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    AddColumn,
    DropUndeclaredColumn,
    DeclareColumn,
    AddLabel,
    ReplicaIdentity,
    VacuumFull,
    TextToVarchar,
    Truncate,
    CreatePartition,
    AttachEmptyPartition,
    WidenInteger,
    RewriteColumn,
    ChangeScale,
    RenameLabel,
    SwapTables,
    DropAndCreate,
    RenameTable,
    DropTable,
    DropColumn,
    RenameColumn,
    ReplaceColumn,
    ChangeKey,
    DeferrableKey,
    IdentityNothing,
    InheritanceChild,
    AttachFilledPartition,
    DetachPartition,
    DropPartition,
    TruncatePartition,
    DetachAndAttach,
    Unpublish,
    PublishAgain,
    RowFilter,
    ColumnList,
    PublicationOptions,
    ReplacePublication,
    RowLevelSecurity,
    OversizedRow,
    DropSlot,
}

impl Kind {
    /// All kinds, with their names in the report.
    pub const ALL: [(Kind, &'static str); 39] = [
        (Kind::AddColumn, "add a column"),
        (Kind::DropUndeclaredColumn, "drop an undeclared column"),
        (Kind::DeclareColumn, "declare another column"),
        (Kind::AddLabel, "add an enum label"),
        (Kind::ReplicaIdentity, "change the replica identity"),
        (Kind::VacuumFull, "VACUUM FULL"),
        (Kind::TextToVarchar, "text to varchar"),
        (Kind::Truncate, "TRUNCATE"),
        (Kind::CreatePartition, "create a partition"),
        (Kind::AttachEmptyPartition, "attach an empty partition"),
        (Kind::WidenInteger, "int4 to int8"),
        (Kind::RewriteColumn, "rewrite a column (USING)"),
        (Kind::ChangeScale, "change the scale of a numeric"),
        (Kind::RenameLabel, "rename an enum label"),
        (Kind::SwapTables, "rename and swap tables"),
        (Kind::DropAndCreate, "drop and create a table"),
        (Kind::RenameTable, "rename a table"),
        (Kind::DropTable, "drop a table"),
        (Kind::DropColumn, "drop a column"),
        (Kind::RenameColumn, "rename a column"),
        (Kind::ReplaceColumn, "replace a column"),
        (Kind::ChangeKey, "change the primary key"),
        (Kind::DeferrableKey, "deferrable primary key"),
        (Kind::IdentityNothing, "REPLICA IDENTITY NOTHING"),
        (Kind::InheritanceChild, "inheritance child"),
        (Kind::AttachFilledPartition, "attach a partition with rows"),
        (Kind::DetachPartition, "detach a partition"),
        (Kind::DropPartition, "drop a partition"),
        (Kind::TruncatePartition, "truncate a partition"),
        (Kind::DetachAndAttach, "detach and attach a partition"),
        (Kind::Unpublish, "remove a table from the publication"),
        (Kind::PublishAgain, "remove and add a table to the publication"),
        (Kind::RowFilter, "row filter"),
        (Kind::ColumnList, "column list"),
        (Kind::PublicationOptions, "publication options"),
        (Kind::ReplacePublication, "drop and create the publication"),
        (Kind::RowLevelSecurity, "row-level security"),
        (Kind::OversizedRow, "row that is too large"),
        (Kind::DropSlot, "drop the slot"),
    ];

    /// Its name in the report.
    pub fn name(self) -> &'static str {
        let mut all = Kind::ALL.iter().filter(|(kind, _)| *kind == self);
        all.next().map_or("", |(_, name)| name)
    }

    /// Whether it affects more than one table, so that a round has no other change.
    pub fn is_global(self) -> bool {
        matches!(
            self,
            Kind::RowFilter | Kind::ColumnList | Kind::PublicationOptions | Kind::ReplacePublication | Kind::DropSlot
        )
    }

    /// Whether it may change the topology, which only the first change of a round does.
    pub fn declares(self) -> bool {
        matches!(self, Kind::DeclareColumn | Kind::DropColumn | Kind::RenameColumn)
    }

    /// Whether it can be applied while another transaction has written to its table: it needs no lock that conflicts.
    pub fn permits_open_transactions(self) -> bool {
        let of_publication = matches!(self, Kind::Unpublish | Kind::PublishAgain | Kind::OversizedRow);
        of_publication || self.is_global()
    }

    /// Whether its unit may be equal although a cause is expected.
    pub fn is_report_optional(self) -> bool {
        matches!(self, Kind::RowLevelSecurity | Kind::TextToVarchar)
    }

    /// Whether it can be applied to a table.
    pub fn applies(self, table: &Table, superuser: bool) -> bool {
        let partitions = table.partitions.as_ref().map(|p| p.attached.len());
        match self {
            Kind::DropUndeclaredColumn | Kind::DeclareColumn => table.columns.iter().any(|column| !column.declared),
            Kind::ReplicaIdentity => !table.deferrable,
            Kind::VacuumFull | Kind::IdentityNothing | Kind::InheritanceChild | Kind::SwapTables => {
                partitions.is_none()
            }
            Kind::DeferrableKey => partitions.is_none() && !table.deferrable && !table.full,
            Kind::CreatePartition | Kind::AttachEmptyPartition | Kind::AttachFilledPartition => partitions.is_some(),
            Kind::DetachPartition | Kind::DropPartition | Kind::TruncatePartition | Kind::DetachAndAttach => {
                partitions.is_some_and(|count| count > 1)
            }
            Kind::DropColumn | Kind::ReplaceColumn => spare_column(table).is_some(),
            Kind::ColumnList => !table.full,
            Kind::RowLevelSecurity => !superuser,
            Kind::WidenInteger | Kind::ChangeScale | Kind::TextToVarchar => !table.done.contains(self.name()),
            _ => true,
        }
    }
}

/// A nullable column that no other change needs.
pub fn spare_column(table: &Table) -> Option<usize> {
    let is_spare = |name: &str| name.starts_with('c') || name.starts_with('C');
    let mut columns = table.columns.iter();
    columns.position(|column| column.declared && column.nullable && is_spare(&column.name))
}
