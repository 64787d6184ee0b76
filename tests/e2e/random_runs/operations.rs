//! Changes of tables and publications: their statements, the causes with which the affected unit may be reported, and what
//! an operator does before the command that the report names.

use super::kinds::{Kind, spare_column};
use super::schema::{Column, ColumnType, PARTITION_IDS, PUBLICATION, Schema, Table, quoted};
use super::values::{INT8, identifier};
use super::workload;
use streams_test::simulation::Rng;

/// What a change affects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    Table(String),
    /// Each table, or the connector.
    All,
    Connector,
}

/// A change, with what is expected of it.
#[derive(Debug, Clone)]
pub struct Operation {
    pub kind: Kind,
    pub unit: Unit,
    /// Statements, each a transaction.
    pub statements: Vec<String>,
    /// The unit may be reported with a cause that contains one of these. It must not be reported if there is none.
    pub causes: &'static [&'static str],
    /// Whether a row is too large, so that its view is stale until the row is corrected.
    pub oversized: bool,
    /// Statements of the operator.
    pub repair: Vec<String>,
    /// Whether the topology changes: with the change, or with its repair.
    pub declares: Declares,
}

/// When the topology changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declares {
    Never,
    WithChange,
    WithRepair,
}

/// Applies a change to the model of a table.
pub fn apply(kind: Kind, schema: &mut Schema, at: usize, rng: &mut Rng) -> Operation {
    let (names, superuser) = (schema.names(), schema.superuser);
    let table = &mut schema.tables[at];
    let add_to_publication = format!("ALTER PUBLICATION {PUBLICATION} ADD TABLE {}", table.name());
    let mut operation = Operation {
        kind,
        unit: Unit::Table(table.name()),
        statements: Vec::new(),
        causes: &[],
        oversized: false,
        repair: Vec::new(),
        declares: Declares::Never,
    };
    if !superuser {
        // A superuser owns the publication, so the connector adds the table itself.
        let leaves = [Kind::SwapTables, Kind::DropAndCreate, Kind::DropTable, Kind::Unpublish];
        operation
            .repair
            .extend(leaves.contains(&kind).then_some(add_to_publication));
    }
    match kind {
        Kind::AddColumn
        | Kind::DropUndeclaredColumn
        | Kind::DeclareColumn
        | Kind::AddLabel
        | Kind::ReplicaIdentity
        | Kind::VacuumFull
        | Kind::TextToVarchar
        | Kind::Truncate => harmless(&mut operation, table, rng),
        Kind::WidenInteger
        | Kind::RewriteColumn
        | Kind::ChangeScale
        | Kind::RenameLabel
        | Kind::DropColumn
        | Kind::RenameColumn
        | Kind::ReplaceColumn => of_column(&mut operation, table, rng),
        Kind::SwapTables
        | Kind::DropAndCreate
        | Kind::RenameTable
        | Kind::DropTable
        | Kind::ChangeKey
        | Kind::DeferrableKey
        | Kind::IdentityNothing
        | Kind::InheritanceChild
        | Kind::RowLevelSecurity
        | Kind::OversizedRow => of_table(&mut operation, table, rng),
        Kind::CreatePartition
        | Kind::AttachEmptyPartition
        | Kind::AttachFilledPartition
        | Kind::DetachPartition
        | Kind::DropPartition
        | Kind::TruncatePartition
        | Kind::DetachAndAttach => of_partition(&mut operation, table, rng),
        Kind::Unpublish
        | Kind::PublishAgain
        | Kind::RowFilter
        | Kind::ColumnList
        | Kind::PublicationOptions
        | Kind::ReplacePublication
        | Kind::DropSlot => of_publication(&mut operation, table, &names),
    }
    operation
}

fn harmless(operation: &mut Operation, table: &mut Table, rng: &mut Rng) {
    let name = table.name();
    let undeclared = table.columns.iter().position(|column| !column.declared);
    match (operation.kind, undeclared) {
        (Kind::AddColumn, _) => {
            let column = format!("x{}", table.unique());
            operation
                .statements
                .push(format!("ALTER TABLE {name} ADD COLUMN {column} int8 DEFAULT 5"));
            table.columns.push(Column {
                name: column,
                column_type: ColumnType::Plain(&INT8),
                nullable: true,
                declared: false,
            });
        }
        (Kind::DropUndeclaredColumn, Some(at)) => {
            let column = table.columns.remove(at).name;
            operation
                .statements
                .push(format!("ALTER TABLE {name} DROP COLUMN {column}"));
        }
        (Kind::DeclareColumn, Some(at)) => {
            table.columns[at].declared = true;
            operation.declares = Declares::WithChange;
        }
        (Kind::AddLabel, _) => {
            let label = format!("late {}", table.unique());
            let statement = format!("ALTER TYPE {} ADD VALUE {}", table.mood(), quoted(&label));
            operation.statements.push(statement);
            table.labels.push(label);
        }
        (Kind::ReplicaIdentity, _) => {
            table.full = !table.full;
            operation.statements.extend(table.set_identity());
        }
        (Kind::VacuumFull, _) => operation.statements.push(format!("VACUUM FULL {name}")),
        (Kind::TextToVarchar, _) => {
            table.done.insert(operation.kind.name());
            // Indistinguishable from a rewrite if the workload truncates the table within the same heartbeat.
            operation.causes = &["and the table was rewritten"];
            operation
                .statements
                .push(format!("ALTER TABLE {name} ALTER COLUMN note TYPE varchar"));
        }
        _ => {
            operation.statements.push(workload::truncate(table));
            operation.statements.push(workload::insert(table, rng));
        }
    }
}

fn of_column(operation: &mut Operation, table: &mut Table, rng: &mut Rng) {
    let name = table.name();
    let alter = |change: &str| format!("ALTER TABLE {name} {change}");
    match operation.kind {
        Kind::WidenInteger => {
            table.done.insert(operation.kind.name());
            operation.causes = &["which may have changed its values", "was truncated or rewritten"];
            operation.statements.push(alter("ALTER COLUMN n TYPE int8"));
        }
        Kind::RewriteColumn => {
            operation.causes = &["which may have changed its values", "was truncated or rewritten"];
            operation
                .statements
                .push(alter("ALTER COLUMN note TYPE text USING upper(note)"));
        }
        Kind::ChangeScale => {
            table.done.insert(operation.kind.name());
            operation.causes = &["the type of column price"];
            operation
                .statements
                .push(alter("ALTER COLUMN price TYPE numeric(20,2)"));
        }
        Kind::RenameLabel => {
            operation.causes = &["was renamed, and rows with it are published"];
            let (at, number) = (rng.below(table.labels.len()), table.unique());
            let new = format!("renamed {number}");
            let old = std::mem::replace(&mut table.labels[at], new.clone());
            operation.statements.push(format!(
                "ALTER TYPE {} RENAME VALUE {} TO {}",
                table.mood(),
                quoted(&old),
                quoted(&new)
            ));
        }
        Kind::RenameColumn => rename_column(operation, table, rng),
        _ => {
            let Some(at) = spare_column(table) else { return };
            let column = table.columns[at].clone();
            let (quoted, type_name) = (identifier(&column.name), table.type_name(&column));
            if operation.kind == Kind::ReplaceColumn {
                operation.causes = &["was replaced by another column", "was dropped"];
                operation
                    .statements
                    .push(alter(&format!("DROP COLUMN {quoted}, ADD COLUMN {quoted} {type_name}")));
                return;
            }
            operation.causes = &["was dropped"];
            operation.statements.push(alter(&format!("DROP COLUMN {quoted}")));
            operation.statements.push(workload::delete_from(&name, rng));
            table.readable = false;
            if rng.chance(0.5) {
                table.columns.remove(at);
                operation.declares = Declares::WithRepair;
            } else {
                operation
                    .repair
                    .push(alter(&format!("ADD COLUMN {quoted} {type_name}")));
            }
        }
    }
}

fn rename_column(operation: &mut Operation, table: &mut Table, rng: &mut Rng) {
    let (name, number) = (table.name(), table.unique());
    let fixed = ["seq", "n", "price", "note"];
    let renamed: Vec<usize> = (0..table.columns.len())
        .filter(|at| table.columns[*at].declared && !fixed.contains(&table.columns[*at].name.as_str()))
        .collect();
    let at = rng.pick(&renamed);
    let old = identifier(&table.columns[at].name);
    let new = format!("renamed{number}");
    operation.causes = &["was dropped"];
    operation
        .statements
        .push(format!("ALTER TABLE {name} RENAME COLUMN {old} TO {new}"));
    operation.statements.push(workload::delete_from(&name, rng));
    table.readable = false;
    if rng.chance(0.5) {
        // A schema with a new column is compatible with the earlier one only if the column may be null.
        operation
            .repair
            .push(format!("ALTER TABLE {name} ALTER COLUMN {new} DROP NOT NULL"));
        table.columns[at].nullable = true;
        table.columns[at].name = new;
        operation.declares = Declares::WithRepair;
    } else {
        operation
            .repair
            .push(format!("ALTER TABLE {name} RENAME COLUMN {new} TO {old}"));
    }
}

/// The causes of a table that is no longer the one that was read.
const REPLACED: &[&str] = &[
    "was replaced",
    "was renamed",
    "no longer exists",
    "no longer contains table",
];

/// Renames, drops or replaces a table.
fn of_replaced_table(operation: &mut Operation, table: &mut Table, rng: &mut Rng) {
    let (name, number) = (table.name(), table.unique());
    operation.causes = REPLACED;
    match operation.kind {
        Kind::SwapTables | Kind::DropAndCreate => {
            let swap = operation.kind == Kind::SwapTables;
            let remove = match swap {
                true => format!("ALTER TABLE {name} RENAME TO {}_old{number}", table.short),
                false => format!("DROP TABLE {name}"),
            };
            table.ids.live.clear();
            table.constraint = format!("{}_key{number}", table.short);
            table.deferrable = false;
            table.done.clear();
            let create = table.create_without_type();
            if rng.chance(0.5) {
                operation.statements = vec![format!("{remove}; {}", create.join("; "))];
            } else {
                operation.statements.push(remove);
                operation.statements.extend(create);
            }
            operation.statements.push(workload::insert(table, rng));
        }
        Kind::RenameTable => {
            let away = table.sibling("_away");
            operation.statements = vec![
                format!("ALTER TABLE {name} RENAME TO {}_away", table.short),
                workload::delete_from(&away, rng),
            ];
            operation
                .repair
                .push(format!("ALTER TABLE {away} RENAME TO {}", table.short));
            table.readable = false;
        }
        _ => {
            operation.statements.push(format!("DROP TABLE {name}"));
            table.ids.live.clear();
            table.deferrable = false;
            table.done.clear();
            table.readable = false;
            let create = table.create_without_type();
            drop(operation.repair.splice(0..0, create));
        }
    }
}

fn of_table(operation: &mut Operation, table: &mut Table, rng: &mut Rng) {
    if matches!(
        operation.kind,
        Kind::SwapTables | Kind::DropAndCreate | Kind::RenameTable | Kind::DropTable
    ) {
        return of_replaced_table(operation, table, rng);
    }
    let (name, number) = (table.name(), table.unique());
    let lacks_key = &["the replica identity of table"];
    match operation.kind {
        Kind::ChangeKey => {
            operation.causes = &["the key of table"];
            let old = std::mem::replace(&mut table.constraint, format!("{}_key{number}", table.short));
            match table.key.iter().position(|column| column == "seq") {
                Some(at) => drop(table.key.remove(at)),
                None => table.key.push("seq".to_owned()),
            }
            let add = table.primary_key();
            operation
                .statements
                .push(format!("ALTER TABLE {name} DROP CONSTRAINT {old}, ADD {add}"));
        }
        Kind::DeferrableKey => {
            operation.causes = lacks_key;
            let old = std::mem::replace(&mut table.constraint, format!("{}_key{number}", table.short));
            table.deferrable = true;
            let add = table.primary_key();
            operation
                .statements
                .push(format!("ALTER TABLE {name} DROP CONSTRAINT {old}, ADD {add}"));
            table.full = true;
            operation.repair.extend(table.set_identity());
        }
        Kind::IdentityNothing => {
            operation.causes = lacks_key;
            operation
                .statements
                .push(format!("ALTER TABLE {name} REPLICA IDENTITY NOTHING"));
            operation.repair.extend(table.set_identity());
        }
        Kind::InheritanceChild => {
            operation.causes = &["inherit from table"];
            let child = table.sibling(&format!("_child{number}"));
            operation
                .statements
                .push(format!("CREATE TABLE {child} () INHERITS ({name})"));
            operation.repair.push(format!("DROP TABLE {child}"));
        }
        Kind::RowLevelSecurity => {
            operation.causes = &["row-level security"];
            operation
                .statements
                .push(format!("ALTER TABLE {name} ENABLE ROW LEVEL SECURITY"));
            operation
                .repair
                .push(format!("ALTER TABLE {name} DISABLE ROW LEVEL SECURITY"));
        }
        _ => {
            operation.oversized = true;
            let id = workload::new_id(table, rng);
            operation.statements.push(workload::insert_into(table, &name, id, rng));
            let row = workload::is(table, id);
            let set = |note: &str| format!("UPDATE {name} SET note = {note} WHERE {row}");
            operation.statements.push(set("repeat('0123456789abcdef', 100000)"));
            operation.repair.push(set("'small'"));
        }
    }
}

fn of_partition(operation: &mut Operation, table: &mut Table, rng: &mut Rng) {
    let name = table.name();
    let Some(partitions) = table.partitions.as_mut() else {
        return;
    };
    if matches!(
        operation.kind,
        Kind::CreatePartition | Kind::AttachEmptyPartition | Kind::AttachFilledPartition
    ) {
        let number = partitions.next;
        partitions.next += 1;
        let partition = table.partition(number);
        if operation.kind == Kind::CreatePartition {
            operation.statements.push(table.create_partition(number));
        } else {
            operation
                .statements
                .push(format!("CREATE TABLE {partition} (LIKE {name} INCLUDING ALL)"));
            if operation.kind == Kind::AttachFilledPartition {
                operation.causes = &["a partition with rows"];
                let id = i64::from(number) * PARTITION_IDS + table.ids.reserve(1);
                operation
                    .statements
                    .push(workload::insert_into(table, &partition, id, rng));
            }
            operation.statements.push(table.attach(number));
        }
        let attached = table.partitions.as_mut().map(|p| &mut p.attached);
        if let Some(attached) = attached {
            attached.push(number);
        }
        if table.full {
            operation.statements.extend(table.set_identity());
        }
        return;
    }
    let at = rng.below(partitions.attached.len());
    let number = partitions.attached[at];
    let partition = table.partition(number);
    let detach = format!("ALTER TABLE {name} DETACH PARTITION {partition}");
    let rows = i64::from(number) * PARTITION_IDS..i64::from(number + 1) * PARTITION_IDS;
    match operation.kind {
        Kind::TruncatePartition => {
            operation.causes = &["was truncated or rewritten"];
            operation.statements.push(format!("TRUNCATE {partition}"));
            table.ids.live.retain(|id| !rows.contains(id));
        }
        Kind::DetachAndAttach => {
            operation.causes = &["was detached and attached again", "was detached or dropped"];
            operation.statements = vec![detach, workload::delete_from(&partition, rng), table.attach(number)];
        }
        _ => {
            operation.causes = &["was detached or dropped"];
            let drop = format!("DROP TABLE {partition}");
            let detaches = operation.kind == Kind::DetachPartition;
            operation.statements.push(if detaches { detach } else { drop });
            table.ids.live.retain(|id| !rows.contains(id));
            table.ids.deleted.retain(|id| !rows.contains(id));
            let attached = table.partitions.as_mut().map(|p| &mut p.attached);
            if let Some(attached) = attached {
                attached.remove(at);
            }
        }
    }
}

fn of_publication(operation: &mut Operation, table: &Table, names: &str) {
    let name = table.name();
    let alter = |change: &str| format!("ALTER PUBLICATION {PUBLICATION} {change}");
    let others: Vec<&str> = names.split(", ").filter(|other| *other != name).collect();
    let others = others.join(", ");
    match operation.kind {
        Kind::Unpublish => {
            operation.causes = &["no longer contains table"];
            operation.statements.push(alter(&format!("DROP TABLE {name}")));
        }
        Kind::PublishAgain => {
            operation.causes = &["was removed from publication", "no longer contains table"];
            operation.statements = vec![
                alter(&format!("DROP TABLE {name}")),
                alter(&format!("ADD TABLE {name}")),
            ];
        }
        Kind::RowFilter => {
            operation.causes = &["row filter"];
            let filter = format!("WHERE ({})", table.id.row_filter());
            operation
                .statements
                .push(alter(&format!("SET TABLE {name} {filter}, {others}")));
            operation.repair.push(alter(&format!("SET TABLE {names}")));
        }
        Kind::ColumnList => {
            // SET TABLE with another column list removes the table and adds it again.
            operation.causes = &[
                "no longer contains column",
                "removed from the publication",
                "was removed from publication",
            ];
            let columns = table.key.join(", ");
            operation
                .statements
                .push(alter(&format!("SET TABLE {name} ({columns}), {others}")));
            operation.repair.push(alter(&format!("SET TABLE {names}")));
        }
        Kind::PublicationOptions => {
            operation.unit = Unit::All;
            operation.causes = &["publication"];
            operation.statements = vec![
                alter("SET (publish = 'insert')"),
                alter("SET (publish = 'insert, update, delete, truncate')"),
            ];
        }
        Kind::ReplacePublication => {
            operation.unit = Unit::Connector;
            operation.causes = &["publication"];
            operation.statements = vec![
                format!("DROP PUBLICATION {PUBLICATION}"),
                format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE {names} WITH (publish_via_partition_root = true)"),
            ];
        }
        _ => {
            operation.unit = Unit::Connector;
            operation.causes = &["slot"];
        }
    }
}
