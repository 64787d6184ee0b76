//! Random tables: their definition in SQL and in the topology, and what is known about their rows.

use super::values::{INT4, INT8, Json, NUMERIC, TEXT, TYPES, Type, identifier};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use streams_test::simulation::Rng;

/// Name of the connector.
pub const CONNECTOR: &str = "db";
/// Name of the publication.
pub const PUBLICATION: &str = "published";
/// Ids in the range of a partition.
pub const PARTITION_IDS: i64 = 100_000;
/// Partitions at the start.
const PARTITIONS: u32 = 3;

/// Type of the column `id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdType {
    Int8,
    Int4,
    Text,
    Uuid,
}

impl IdType {
    fn name(self) -> &'static str {
        match self {
            IdType::Int8 => "int8",
            IdType::Int4 => "int4",
            IdType::Text => "text",
            IdType::Uuid => "uuid",
        }
    }

    /// The id of a number, which is an SQL expression.
    pub fn expression(self, number: &str) -> String {
        match self {
            IdType::Int8 | IdType::Int4 => number.to_owned(),
            IdType::Text => format!("'k' || {number}"),
            IdType::Uuid => format!("md5(({number})::text)::uuid"),
        }
    }

    /// A condition that is true for about half of the ids, and that a publication accepts.
    pub fn row_filter(self) -> &'static str {
        match self {
            IdType::Int8 | IdType::Int4 => "id % 2 = 0",
            IdType::Text => "hashtext(id) % 2 = 0",
            IdType::Uuid => "uuid_hash(id) % 2 = 0",
        }
    }

    fn json(self) -> Json {
        match self {
            IdType::Int4 => Json::Verbatim,
            IdType::Int8 | IdType::Text | IdType::Uuid => Json::Text,
        }
    }
}

/// Type of another column.
#[derive(Debug, Clone, Copy)]
pub enum ColumnType {
    Plain(&'static Type),
    /// The enum of the table.
    Enum,
    EnumArray,
}

/// A column that is neither part of the first primary key nor generated.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub column_type: ColumnType,
    pub nullable: bool,
    /// Whether the topology declares it.
    pub declared: bool,
}

/// Partitions by the range of ids.
#[derive(Debug, Clone)]
pub struct Partitions {
    /// Numbers of the attached partitions.
    pub attached: Vec<u32>,
    /// The next number.
    pub next: u32,
}

/// Ids of rows. Rejected transactions make them inexact, which only makes some statements affect no row.
#[derive(Debug, Clone, Default)]
pub struct Ids {
    pub live: BTreeSet<i64>,
    pub deleted: Vec<i64>,
    next: i64,
}

impl Ids {
    /// Reserves consecutive ids that were never used, without the offset of a partition.
    pub fn reserve(&mut self, count: i64) -> i64 {
        let first = self.next;
        self.next += count;
        first
    }

    /// A row that probably exists.
    pub fn any(&self, rng: &mut Rng) -> Option<i64> {
        let at = rng.below(self.live.len());
        self.live.iter().nth(at).copied()
    }
}

/// A table.
#[derive(Debug, Clone)]
pub struct Table {
    /// Name without the schema.
    pub short: String,
    /// The schema; `None` for `public`.
    pub schema: Option<&'static str>,
    pub id: IdType,
    /// Key columns, in order.
    pub key: Vec<String>,
    /// Name of the primary key.
    pub constraint: String,
    /// Whether the primary key is deferrable, so that it cannot be the replica identity.
    pub deferrable: bool,
    /// Whether it has the column `region`.
    pub has_region: bool,
    pub columns: Vec<Column>,
    pub partitions: Option<Partitions>,
    /// Whether the replica identity is the whole row.
    pub full: bool,
    /// Labels of its enum.
    pub labels: Vec<String>,
    /// Changes that are made only once.
    pub done: BTreeSet<&'static str>,
    /// Whether it can be read as declared, so that the workload uses it.
    pub readable: bool,
    pub ids: Ids,
    /// Counter for new names.
    pub names: u32,
}

impl Table {
    fn random(number: usize, rng: &mut Rng) -> Table {
        let partitioned = rng.chance(0.35);
        let id = match partitioned {
            true => rng.pick(&[IdType::Int8, IdType::Int4]),
            false => rng.pick(&[IdType::Int8, IdType::Int4, IdType::Text, IdType::Uuid]),
        };
        let has_region = rng.chance(0.4);
        let key = match (has_region, rng.chance(0.5)) {
            (false, _) => vec!["id".to_owned()],
            (true, true) => vec!["region".to_owned(), "id".to_owned()],
            (true, false) => vec!["id".to_owned(), "region".to_owned()],
        };
        let mut columns = vec![
            column("seq", ColumnType::Plain(&INT8), false),
            column("n", ColumnType::Plain(&INT4), true),
            column("price", ColumnType::Plain(&NUMERIC), true),
            column("note", ColumnType::Plain(&TEXT), true),
            column("mood", ColumnType::Enum, rng.chance(0.5)),
        ];
        for at in 0..2 + rng.below(6) {
            let name = match rng.chance(0.15) {
                true => format!("Column {at}"),
                false => format!("c{at}"),
            };
            let random = &TYPES[rng.below(TYPES.len())];
            columns.push(column(&name, ColumnType::Plain(random), rng.chance(0.6)));
        }
        if rng.chance(0.3) {
            columns.push(column("moods", ColumnType::EnumArray, true));
        }
        Table {
            short: format!("t{number}"),
            schema: rng.chance(0.25).then_some("sales"),
            id,
            key,
            constraint: format!("t{number}_key"),
            deferrable: false,
            has_region,
            columns,
            partitions: partitioned.then(|| Partitions {
                attached: (0..PARTITIONS).collect(),
                next: PARTITIONS,
            }),
            full: rng.chance(0.3),
            labels: vec!["open".to_owned(), "very ok".to_owned(), "it's".to_owned()],
            done: BTreeSet::new(),
            readable: true,
            ids: Ids::default(),
            names: 0,
        }
    }

    /// The name in SQL, in the topology and in reports.
    pub fn name(&self) -> String {
        self.sibling("")
    }

    /// The name of a table in the same schema: its own with a suffix.
    pub fn sibling(&self, suffix: &str) -> String {
        match self.schema {
            Some(schema) => format!("{schema}.{}{suffix}", self.short),
            None => format!("{}{suffix}", self.short),
        }
    }

    /// The name of a partition.
    pub fn partition(&self, number: u32) -> String {
        self.sibling(&format!("_p{number}"))
    }

    /// The name of its enum.
    pub fn mood(&self) -> String {
        format!("mood_{}", self.short)
    }

    /// A number that makes a name unique.
    pub fn unique(&mut self) -> u32 {
        self.names += 1;
        self.names
    }

    /// Name of a column's type.
    pub fn type_name(&self, column: &Column) -> String {
        match column.column_type {
            ColumnType::Plain(plain) => plain.name.to_owned(),
            ColumnType::Enum => self.mood(),
            ColumnType::EnumArray => format!("{}[]", self.mood()),
        }
    }

    /// Statements that create it.
    pub fn create(&self) -> Vec<String> {
        let mut statements = vec![format!(
            "CREATE TYPE {} AS ENUM ({})",
            self.mood(),
            self.quoted_labels()
        )];
        statements.extend(self.create_without_type());
        statements
    }

    fn quoted_labels(&self) -> String {
        let labels = self.labels.iter().map(|label| quoted(label));
        labels.collect::<Vec<_>>().join(", ")
    }

    /// Statements that create it if its enum exists.
    pub fn create_without_type(&self) -> Vec<String> {
        let name = self.name();
        let by = if self.partitions.is_some() {
            " PARTITION BY RANGE (id)"
        } else {
            ""
        };
        let mut statements = vec![format!("CREATE TABLE {name} ({}){by}", self.definitions())];
        for number in self.partitions.iter().flat_map(|p| &p.attached) {
            statements.push(self.create_partition(*number));
        }
        statements.push(format!("ALTER TABLE {name} ALTER COLUMN note SET STORAGE EXTERNAL"));
        statements.extend(self.set_identity());
        statements
    }

    /// The columns, with a generated one, and the primary key.
    pub fn definitions(&self) -> String {
        let mut all = vec![format!("id {} NOT NULL", self.id.name())];
        if self.has_region {
            all.push("region text NOT NULL".to_owned());
        }
        for column in &self.columns {
            let null = if column.nullable { "" } else { " NOT NULL" };
            all.push(format!("{} {}{null}", identifier(&column.name), self.type_name(column)));
        }
        all.push("generated numeric GENERATED ALWAYS AS (seq::numeric * 2) STORED".to_owned());
        all.push(self.primary_key());
        all.join(", ")
    }

    /// The constraint that is the primary key.
    pub fn primary_key(&self) -> String {
        let deferrable = if self.deferrable { " DEFERRABLE" } else { "" };
        let columns = self.key.join(", ");
        format!("CONSTRAINT {} PRIMARY KEY ({columns}){deferrable}", self.constraint)
    }

    /// Creates and attaches a partition.
    pub fn create_partition(&self, number: u32) -> String {
        let values = bounds(number);
        format!(
            "CREATE TABLE {} PARTITION OF {} {values}",
            self.partition(number),
            self.name()
        )
    }

    /// Attaches a partition.
    pub fn attach(&self, number: u32) -> String {
        let values = bounds(number);
        format!(
            "ALTER TABLE {} ATTACH PARTITION {} {values}",
            self.name(),
            self.partition(number)
        )
    }

    /// Sets the replica identity, which each partition has for itself.
    pub fn set_identity(&self) -> Vec<String> {
        let identity = if self.full { "FULL" } else { "DEFAULT" };
        let partitions = self.partitions.iter().flat_map(|p| &p.attached);
        let tables = std::iter::once(self.name()).chain(partitions.map(|number| self.partition(*number)));
        tables
            .map(|table| format!("ALTER TABLE {table} REPLICA IDENTITY {identity}"))
            .collect()
    }

    /// The declared columns, with their form on devices.
    pub fn declared(&self) -> Vec<(String, Json)> {
        let mut all = vec![("id".to_owned(), self.id.json())];
        if self.has_region {
            all.push(("region".to_owned(), Json::Native));
        }
        for column in self.columns.iter().filter(|column| column.declared) {
            let json = match column.column_type {
                ColumnType::Plain(plain) => plain.json,
                ColumnType::Enum => Json::Text,
                ColumnType::EnumArray => Json::Native,
            };
            all.push((column.name.clone(), json));
        }
        all
    }

    /// Its part of the topology.
    fn topology(&self) -> String {
        let mut columns = vec![format!("id = \"{}\"", self.id.name())];
        if self.has_region {
            columns.push("region = \"text\"".to_owned());
        }
        for column in self.columns.iter().filter(|column| column.declared) {
            let null = if column.nullable { "?" } else { "" };
            columns.push(format!("\"{}\" = \"{}{null}\"", column.name, self.type_name(column)));
        }
        format!(
            "[[table]]\nsource = \"{CONNECTOR}\"\nname = \"{name}\"\ncolumns = {{ {} }}\n\n\
             [[view]]\nname = \"{}\"\nfrom = \"{CONNECTOR}.{name}\"\nbucket = \"all\"\n\n",
            columns.join(", "),
            self.short,
            name = self.name(),
        )
    }
}

fn column(name: &str, column_type: ColumnType, nullable: bool) -> Column {
    Column {
        name: name.to_owned(),
        column_type,
        nullable,
        declared: true,
    }
}

fn bounds(number: u32) -> String {
    let from = i64::from(number) * PARTITION_IDS;
    format!("FOR VALUES FROM ({from}) TO ({})", from + PARTITION_IDS)
}

/// A string constant.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// All tables of a run.
#[derive(Debug, Clone)]
pub struct Schema {
    /// Name of the topology.
    pub name: String,
    pub tables: Vec<Table>,
    /// Whether the connector's role is a superuser. Otherwise it may only read the tables.
    pub superuser: bool,
}

impl Schema {
    /// A random schema.
    pub fn random(name: &str, rng: &mut Rng) -> Schema {
        let superuser = rng.chance(0.5);
        let count = 2 + rng.below(3);
        Schema {
            name: name.to_owned(),
            tables: (0..count).map(|number| Table::random(number, rng)).collect(),
            superuser,
        }
    }

    /// Statements that create the tables and the publication.
    pub fn create(&self, role: &str) -> Vec<String> {
        let mut statements = vec!["CREATE SCHEMA sales".to_owned()];
        statements.extend(self.tables.iter().flat_map(Table::create));
        statements.push(format!(
            "CREATE PUBLICATION {PUBLICATION} FOR TABLE {} WITH (publish_via_partition_root = true)",
            self.names()
        ));
        if !self.superuser {
            statements.push(format!("CREATE ROLE {role} LOGIN REPLICATION"));
            for schema in ["public", "sales"] {
                statements.push(format!("GRANT USAGE ON SCHEMA {schema} TO {role}"));
                statements.push(format!("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}"));
                statements.push(format!(
                    "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {role}"
                ));
            }
        }
        statements
    }

    /// The names of all tables, separated by commas.
    pub fn names(&self) -> String {
        let names = self.tables.iter().map(Table::name);
        names.collect::<Vec<_>>().join(", ")
    }

    /// The topology: a view for each table, with all columns, in one bucket.
    pub fn topology(&self) -> String {
        let mut text = format!(
            "name = \"{}\"\n\n[[connector]]\nname = \"{CONNECTOR}\"\nkind = \"postgres\"\n\n\
             [view_log]\npartitions = 2\n\n[[bucket]]\nname = \"all\"\n\n[[membership]]\nbucket = \"all\"\n\n",
            self.name
        );
        for table in &self.tables {
            text.push_str(&table.topology());
        }
        for (name, role) in [
            ("connector", "connector:db"),
            ("processor", "processor:sync-views"),
            ("edge", "edge"),
        ] {
            let written = write!(text, "[[node]]\nname = \"{name}\"\nruns = [\"{role}\"]\n\n");
            written.expect("a string takes any text");
        }
        text
    }
}
