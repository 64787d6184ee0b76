//! Compiled Avro schemas: an array of types that encoders and decoders traverse without looking up names.
//!
//! apache-avro validates each schema against the Avro specification. Recursive types refer to each other by [`TypeId`].
//! Defaults are stored in their Avro encoding.

mod compile;
mod error;
mod types;

pub use error::SchemaError;
pub use types::{Enum, Field, Fixed, Kind, Logical, Name, PG_COLUMN, PG_TYPE, Record, Type, TypeId};

use std::fmt;

/// A compiled schema. Share it in an `Arc`.
#[derive(Clone)]
pub struct Schema {
    text: Box<str>,
    avro: apache_avro::Schema,
    types: Vec<Type>,
    root: TypeId,
}

impl Schema {
    /// Compiles a schema from its JSON text.
    ///
    /// # Errors
    /// [`SchemaError`] if the text is not JSON or not an Avro schema, or if a default does not match the type
    /// of its field.
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
        let defaults = compile::defaults(&schema.types, &value, &|ty, default| {
            let mut bytes = Vec::new();
            schema
                .encode_default(ty, default, &mut bytes)
                .map_err(|e| e.to_string())?;
            Ok(bytes)
        })?;
        for default in defaults {
            schema.set_default(default);
        }
        Ok(schema)
    }

    /// The JSON text from which the schema was compiled, unchanged.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Avro's Parsing Canonical Form, without documentation, defaults, aliases and properties.
    pub fn canonical_form(&self) -> String {
        self.avro.canonical_form()
    }

    /// CRC-64-AVRO of the canonical form, as 16 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        self.avro.fingerprint::<apache_avro::rabin::Rabin>().to_string()
    }

    /// The type of the schema itself.
    pub fn root(&self) -> TypeId {
        self.root
    }

    /// The type with this id, which must come from this schema.
    pub fn ty(&self, id: TypeId) -> &Type {
        self.types.get(id.0).expect("type ids come from the same schema")
    }

    /// The inner type of an optional type; any other type unchanged.
    pub fn required(&self, id: TypeId) -> TypeId {
        match self.ty(id).kind {
            Kind::Optional { inner, .. } => inner,
            _ => id,
        }
    }

    /// Whether the type accepts null.
    pub fn takes_null(&self, id: TypeId) -> bool {
        match &self.ty(id).kind {
            Kind::Null | Kind::Optional { .. } => true,
            Kind::Union(branches) => branches.iter().any(|b| matches!(self.ty(*b).kind, Kind::Null)),
            _ => false,
        }
    }

    /// The branches of a union, including null; for any other type the type itself.
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

    /// The root record.
    ///
    /// # Errors
    /// [`SchemaError::NotARecord`] if the root is not a record.
    pub fn record(&self) -> Result<&Record, SchemaError> {
        match &self.ty(self.root).kind {
            Kind::Record(record) => Ok(record),
            _ => Err(SchemaError::NotARecord(self.describe(self.root))),
        }
    }

    /// The fields of the root record, in order; empty if the root is not a record.
    pub fn fields(&self) -> &[Field] {
        self.record().map(|record| record.fields.as_slice()).unwrap_or_default()
    }

    /// The full name of the root type; for an unnamed type, Avro's name of its kind.
    pub fn name(&self) -> &str {
        match &self.ty(self.root).kind {
            Kind::Record(record) => &record.name.full,
            Kind::Enum(e) => &e.name.full,
            Kind::Fixed(fixed) => &fixed.name.full,
            _ => self.type_name(self.root),
        }
    }

    /// Avro's name of a type's kind.
    pub fn type_name(&self, id: TypeId) -> &'static str {
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

    /// A description of a type for messages: `long`, `null or string`, `record shop.Order`, `timestamp-micros`.
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
            (_, Some(logical)) => logical.name().to_owned(),
            (Kind::Fixed(fixed), None) => format!("fixed {} ({} bytes)", fixed.name.full, fixed.size),
            (_, None) => self.type_name(id).to_owned(),
        }
    }

    /// Like [`Schema::describe`], but only one level deep, because types can be recursive.
    fn describe_item(&self, id: TypeId) -> &str {
        match &self.ty(id).kind {
            Kind::Record(record) => &record.name.full,
            Kind::Enum(e) => &e.name.full,
            _ => self.type_name(id),
        }
    }

    fn set_default(&mut self, default: compile::Default) {
        if let Some(Type {
            kind: Kind::Record(record),
            ..
        }) = self.types.get_mut(default.record.0)
            && let Some(field) = record.fields.get_mut(default.field)
        {
            field.default = Some(default.bytes.into_boxed_slice());
        }
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({})", self.text)
    }
}
