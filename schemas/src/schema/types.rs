//! The types of a compiled schema.

use std::collections::HashMap;

/// Property of a column's type: PostgreSQL's name of the type.
pub const PG_TYPE: &str = "trunkline.type";
/// Property of a field: the column's name, if it is not a valid field name in Avro.
pub const PG_COLUMN: &str = "trunkline.column";

/// Identifies a type of a schema: an index into the schema's array of types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TypeId(pub(crate) usize);

/// A type.
#[derive(Debug, Clone)]
pub struct Type {
    /// Its Avro type.
    pub kind: Kind,
    /// Its logical type.
    pub logical: Option<Logical>,
    /// PostgreSQL's name of the type (property `trunkline.type`).
    pub pg: Option<Box<str>>,
}

impl Type {
    /// Whether the type is JSON text (`json`, `jsonb`), which is embedded in rows for devices as JSON instead of a
    /// string.
    pub fn is_json(&self) -> bool {
        matches!(self.kind, Kind::String) && matches!(self.pg.as_deref(), Some("json" | "jsonb"))
    }
}

/// Avro types. A union of null and one other type is [`Kind::Optional`].
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the primitive types are named as in Avro")]
pub enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    /// Bytes of a fixed length.
    Fixed(Box<Fixed>),
    /// One of a list of symbols.
    Enum(Box<Enum>),
    /// Items of one type.
    Array(TypeId),
    /// Values of one type with string keys.
    Map(TypeId),
    /// Fields.
    Record(Box<Record>),
    /// `null` or one other type.
    Optional {
        /// Whether null is the first branch.
        null_first: bool,
        /// The null type.
        null: TypeId,
        /// The other type.
        inner: TypeId,
    },
    /// Any other union.
    Union(Vec<TypeId>),
}

/// Full name and aliases of a named type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Name with namespace: `trunkline.shop.orders`.
    pub full: Box<str>,
    /// Further full names under which a reader finds the type.
    pub aliases: Vec<Box<str>>,
}

impl Name {
    /// The name without its namespace.
    pub fn short(&self) -> &str {
        self.full.rsplit('.').next().unwrap_or_default()
    }
}

/// A `fixed` type.
#[derive(Debug, Clone)]
pub struct Fixed {
    /// Name.
    pub name: Name,
    /// Length in bytes.
    pub size: usize,
}

/// An `enum` type.
#[derive(Debug, Clone)]
pub struct Enum {
    /// Name.
    pub name: Name,
    /// Symbols, in order.
    pub symbols: Vec<Box<str>>,
    /// The symbol that a reader substitutes for an unknown symbol.
    pub default: Option<Box<str>>,
}

/// A `record` type.
#[derive(Debug, Clone)]
pub struct Record {
    /// Name.
    pub name: Name,
    /// Fields, in order.
    pub fields: Vec<Field>,
    pub(super) by_name: HashMap<Box<str>, usize>,
}

impl Record {
    /// Index of the field with this name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

/// A field of a record.
#[derive(Debug, Clone)]
pub struct Field {
    /// Name.
    pub name: Box<str>,
    /// Further names under which a reader finds the field.
    pub aliases: Vec<Box<str>>,
    /// Type.
    pub ty: TypeId,
    /// The value that a reader uses if the writer has no such field, in Avro encoding.
    pub default: Option<Box<[u8]>>,
    /// The column's name, if it is not a valid field name in Avro.
    pub column: Option<Box<str>>,
}

impl Field {
    /// The name of the column: the field name unless [`Field::column`] is set.
    pub fn column(&self) -> &str {
        self.column.as_deref().unwrap_or(&self.name)
    }
}

/// Logical types. Unknown logical types are ignored, as required by the Avro specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in Avro")]
pub enum Logical {
    Date,
    TimeMillis,
    TimeMicros,
    TimestampMillis,
    TimestampMicros,
    LocalTimestampMillis,
    LocalTimestampMicros,
    Uuid,
    /// Number of digits after the decimal point.
    Decimal {
        scale: u32,
    },
}

impl Logical {
    /// Avro's name of the logical type.
    pub fn name(self) -> &'static str {
        match self {
            Logical::Date => "date",
            Logical::TimeMillis => "time-millis",
            Logical::TimeMicros => "time-micros",
            Logical::TimestampMillis => "timestamp-millis",
            Logical::TimestampMicros => "timestamp-micros",
            Logical::LocalTimestampMillis => "local-timestamp-millis",
            Logical::LocalTimestampMicros => "local-timestamp-micros",
            Logical::Uuid => "uuid",
            Logical::Decimal { .. } => "decimal",
        }
    }
}
