//! An Avro schema, compiled: types as a flat table that encoding and decoding walk without a name look-up.
//!
//! Guarantees: a schema that compiles is one that Avro's specification allows (checked by apache-avro); recursive types
//! are kept, as ids. Defaults are ready as Avro bytes. Never: a look at data.

mod compile;

use std::collections::HashMap;
use std::fmt;

/// Property of a column's type with PostgreSQL's name of it.
pub const PG_TYPE: &str = "trunkline.type";
/// Property of a field whose column has a name that Avro does not allow: that name.
pub const PG_COLUMN: &str = "trunkline.column";

/// Why a text is no schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Not JSON, or not Avro.
    #[error("schema is refused: {0}")]
    Invalid(String),
    /// A default that does not fit its field.
    #[error("default of field {field} does not fit its type: {reason}")]
    Default {
        /// The record and field.
        field: String,
        /// What does not fit.
        reason: String,
    },
    /// A record was needed.
    #[error("schema is {0} and not a record")]
    NotARecord(String),
}

/// A type of a schema: an index into its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TypeId(pub(crate) usize);

/// One type.
#[derive(Debug, Clone)]
pub struct Type {
    /// What it is in Avro.
    pub kind: Kind,
    /// What it means beyond that.
    pub logical: Option<Logical>,
    /// PostgreSQL's name of the type (property `trunkline.type`).
    pub pg: Option<Box<str>>,
}

impl Type {
    /// Whether it holds JSON as text (`json`, `jsonb`), which stands in a device's row as the JSON itself.
    pub fn is_json(&self) -> bool {
        matches!(self.kind, Kind::String) && matches!(self.pg.as_deref(), Some("json" | "jsonb"))
    }
}

/// Avro's kinds of types. A union of null and one other type is [`Kind::Optional`].
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the plain kinds are Avro's own words")]
pub enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    /// Bytes of one length.
    Fixed(Box<Fixed>),
    /// One of some symbols.
    Enum(Box<Enum>),
    /// Items of one type.
    Array(TypeId),
    /// Items of one type under string keys.
    Map(TypeId),
    /// Fields.
    Record(Box<Record>),
    /// `null` or one other type.
    Optional {
        /// Whether null is the first branch.
        null_first: bool,
        /// The null.
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
    /// With its namespace: `trunkline.shop.orders`.
    pub full: Box<str>,
    /// Full names under which a reader also takes it.
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
    /// What a reader takes for a symbol that it does not know.
    pub default: Option<Box<str>>,
}

/// A `record` type.
#[derive(Debug, Clone)]
pub struct Record {
    /// Name.
    pub name: Name,
    /// Fields, in order.
    pub fields: Vec<Field>,
    by_name: HashMap<Box<str>, usize>,
}

impl Record {
    /// Index of a field.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

/// A field of a record.
#[derive(Debug, Clone)]
pub struct Field {
    /// Name.
    pub name: Box<str>,
    /// Names under which a reader also takes it.
    pub aliases: Vec<Box<str>>,
    /// Type.
    pub ty: TypeId,
    /// What a reader takes when the writer has no such field, as Avro bytes of this type.
    pub default: Option<Box<[u8]>>,
    /// The column's name, where Avro does not allow it as a field's name.
    pub column: Option<Box<str>>,
}

impl Field {
    /// The column's name: the field's own, unless Avro does not allow it.
    pub fn column(&self) -> &str {
        self.column.as_deref().unwrap_or(&self.name)
    }
}

/// What a type means beyond Avro's kinds. Those not named here are ignored, as Avro's specification wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Avro's own words")]
pub enum Logical {
    Date,
    TimeMillis,
    TimeMicros,
    TimestampMillis,
    TimestampMicros,
    LocalTimestampMillis,
    LocalTimestampMicros,
    Uuid,
    /// Digits after the point.
    Decimal {
        scale: u32,
    },
}

/// A compiled schema. Share it behind an `Arc`.
#[derive(Clone)]
pub struct Schema {
    text: Box<str>,
    avro: apache_avro::Schema,
    types: Vec<Type>,
    root: TypeId,
}

impl Schema {
    /// Compiles a schema from its JSON.
    ///
    /// # Errors
    /// [`SchemaError`] when it is not JSON, not Avro, or a default does not fit.
    pub fn parse(text: &str) -> Result<Self, SchemaError> {
        let invalid = |e: &dyn fmt::Display| SchemaError::Invalid(e.to_string());
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| invalid(&e))?;
        let avro = apache_avro::Schema::parse(&value).map_err(|e| invalid(&e))?;
        let (types, root) = compile::compile(&value)?;
        let mut schema = Schema {
            text: text.into(),
            avro,
            types,
            root,
        };
        compile::fill_defaults(&mut schema, &value)?;
        Ok(schema)
    }

    /// The JSON that it was compiled from, byte for byte.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Avro's parsing canonical form: without documentation, defaults, aliases and properties.
    pub fn canonical_form(&self) -> String {
        self.avro.canonical_form()
    }

    /// CRC-64-AVRO of the canonical form, as 16 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        self.avro.fingerprint::<apache_avro::rabin::Rabin>().to_string()
    }

    /// The schema's own type.
    pub fn root(&self) -> TypeId {
        self.root
    }

    /// A type by its id, which must be of this schema.
    pub fn ty(&self, id: TypeId) -> &Type {
        self.types.get(id.0).expect("a type id is of the schema that gave it")
    }

    /// The type behind an optional one; any other as it is.
    pub fn required(&self, id: TypeId) -> TypeId {
        match self.ty(id).kind {
            Kind::Optional { inner, .. } => inner,
            _ => id,
        }
    }

    /// Whether null fits the type.
    pub fn takes_null(&self, id: TypeId) -> bool {
        match &self.ty(id).kind {
            Kind::Null | Kind::Optional { .. } => true,
            Kind::Union(branches) => branches.iter().any(|b| matches!(self.ty(*b).kind, Kind::Null)),
            _ => false,
        }
    }

    /// The branches of a union, null included; any other type alone.
    pub fn branches(&self, id: TypeId) -> Vec<TypeId> {
        match &self.ty(id).kind {
            Kind::Optional {
                null_first: true,
                null,
                inner,
            } => vec![*null, *inner],
            Kind::Optional {
                null_first: false,
                null,
                inner,
            } => vec![*inner, *null],
            Kind::Union(branches) => branches.clone(),
            _ => vec![id],
        }
    }

    /// The record that the schema is.
    ///
    /// # Errors
    /// [`SchemaError::NotARecord`] when it is something else.
    pub fn record(&self) -> Result<&Record, SchemaError> {
        match &self.ty(self.root).kind {
            Kind::Record(record) => Ok(record),
            _ => Err(SchemaError::NotARecord(self.describe(self.root))),
        }
    }

    /// The record's fields, in order; none when the schema is not a record.
    pub fn fields(&self) -> &[Field] {
        self.record().map(|record| record.fields.as_slice()).unwrap_or_default()
    }

    /// The root's full name; for a type without a name, Avro's word for it.
    pub fn name(&self) -> &str {
        match &self.ty(self.root).kind {
            Kind::Record(record) => &record.name.full,
            Kind::Enum(e) => &e.name.full,
            Kind::Fixed(fixed) => &fixed.name.full,
            _ => self.word(self.root),
        }
    }

    /// Avro's word for a type's kind.
    pub fn word(&self, id: TypeId) -> &'static str {
        match &self.ty(id).kind {
            Kind::Null => "null",
            Kind::Boolean => "boolean",
            Kind::Int => "int",
            Kind::Long => "long",
            Kind::Float => "float",
            Kind::Double => "double",
            Kind::Bytes => "bytes",
            Kind::String => "string",
            Kind::Fixed(_) => "fixed",
            Kind::Enum(_) => "enum",
            Kind::Array(_) => "array",
            Kind::Map(_) => "map",
            Kind::Record(_) => "record",
            Kind::Optional { .. } | Kind::Union(_) => "union",
        }
    }

    /// A type in words, for messages: `long`, `null or string`, `record shop.Order`, `timestamp-micros`.
    pub fn describe(&self, id: TypeId) -> String {
        let ty = self.ty(id);
        match (&ty.kind, ty.logical) {
            (Kind::Record(record), _) => format!("record {}", record.name.full),
            (Kind::Enum(e), _) => format!("enum {} ({})", e.name.full, e.symbols.join(", ")),
            (Kind::Optional { inner, .. }, _) => format!("null or {}", self.describe(*inner)),
            (Kind::Union(branches), _) => branches
                .iter()
                .map(|b| self.describe(*b))
                .collect::<Vec<_>>()
                .join(" or "),
            (Kind::Array(items), _) => format!("array of {}", self.describe_item(*items)),
            (Kind::Map(items), _) => format!("map of {}", self.describe_item(*items)),
            (_, Some(logical)) => logical.word().to_owned(),
            (Kind::Fixed(fixed), None) => format!("fixed {} ({} bytes)", fixed.name.full, fixed.size),
            (_, None) => self.word(id).to_owned(),
        }
    }

    /// As [`Schema::describe`], one level deep, since a type may hold itself.
    fn describe_item(&self, id: TypeId) -> &str {
        match &self.ty(id).kind {
            Kind::Record(record) => &record.name.full,
            Kind::Enum(e) => &e.name.full,
            _ => self.word(id),
        }
    }

    pub(crate) fn set_default(&mut self, id: TypeId, field: usize, bytes: Vec<u8>) {
        if let Some(Type {
            kind: Kind::Record(record),
            ..
        }) = self.types.get_mut(id.0)
            && let Some(field) = record.fields.get_mut(field)
        {
            field.default = Some(bytes.into_boxed_slice());
        }
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({})", self.text)
    }
}

impl Logical {
    /// Avro's word for it.
    pub fn word(self) -> &'static str {
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
