//! Compiles the JSON of a schema to an array of types.
//!
//! apache-avro has validated the JSON, but it drops the properties of primitive types, which contain PostgreSQL's type
//! names. The JSON is therefore traversed again, with only the checks that the traversal itself needs.

use super::error::SchemaError;
use super::types::{Enum, Field, Fixed, Kind, Logical, Name, PG_COLUMN, PG_TYPE, Record, Type, TypeId};
use serde_json::{Map, Value};
use std::collections::HashMap;

type Object = Map<String, Value>;

fn invalid<T>(reason: impl Into<String>) -> Result<T, SchemaError> {
    Err(SchemaError::Invalid(reason.into()))
}

/// The name of the PostgreSQL type.
fn pg_type(object: &Object) -> Option<Box<str>> {
    object.get(PG_TYPE).and_then(Value::as_str).map(Box::from)
}

/// Compiles a schema without its defaults.
pub(super) fn compile(value: &Value) -> Result<(Vec<Type>, TypeId), SchemaError> {
    let mut compiler = Compiler {
        types: Vec::new(),
        names: HashMap::new(),
    };
    let root = compiler.any(value, "")?;
    Ok((compiler.types, root))
}

struct Compiler {
    types: Vec<Type>,
    names: HashMap<String, TypeId>,
}

impl Compiler {
    fn push(&mut self, kind: Kind, logical: Option<Logical>, pg: Option<Box<str>>) -> TypeId {
        self.types.push(Type { kind, logical, pg });
        TypeId(self.types.len() - 1)
    }

    fn any(&mut self, value: &Value, namespace: &str) -> Result<TypeId, SchemaError> {
        match value {
            Value::String(word) => self.word(word, namespace, None),
            Value::Array(branches) => self.union(branches, namespace),
            Value::Object(object) => self.object(object, namespace),
            _ => invalid(format!("{value} is not a type")),
        }
    }

    fn word(&mut self, word: &str, namespace: &str, object: Option<&Object>) -> Result<TypeId, SchemaError> {
        let kind = match word {
            "null" => Kind::Null,
            "boolean" => Kind::Boolean,
            "int" => Kind::Int,
            "long" => Kind::Long,
            "float" => Kind::Float,
            "double" => Kind::Double,
            "bytes" => Kind::Bytes,
            "string" => Kind::String,
            name => {
                let full = full_name(name, namespace);
                // An unqualified name may also refer to a type without a namespace.
                let found = self.names.get(&full).or_else(|| self.names.get(name)).copied();
                return found.map_or_else(|| invalid(format!("{name:?} is not a type")), Ok);
            }
        };
        let logical = object.and_then(|object| logical(&kind, object));
        let pg = object.and_then(pg_type);
        Ok(self.push(kind, logical, pg))
    }

    fn union(&mut self, branches: &[Value], namespace: &str) -> Result<TypeId, SchemaError> {
        let branches = branches
            .iter()
            .map(|b| self.any(b, namespace))
            .collect::<Result<Vec<_>, _>>()?;
        let is_null = |id: &TypeId| self.types.get(id.0).is_some_and(|ty| matches!(ty.kind, Kind::Null));
        let kind = match branches.as_slice() {
            [null, inner] if is_null(null) && !is_null(inner) => Kind::Optional {
                null_first: true,
                null: *null,
                inner: *inner,
            },
            [inner, null] if is_null(null) && !is_null(inner) => Kind::Optional {
                null_first: false,
                null: *null,
                inner: *inner,
            },
            _ => Kind::Union(branches),
        };
        Ok(self.push(kind, None, None))
    }

    fn object(&mut self, object: &Object, namespace: &str) -> Result<TypeId, SchemaError> {
        let word = match object.get("type") {
            Some(Value::String(word)) => word.as_str(),
            // {"type": {"type": …}} is equivalent to the inner type.
            Some(inner) => return self.any(inner, namespace),
            None => return invalid("a type has no \"type\""),
        };
        match word {
            "record" | "error" => self.record(object, namespace),
            "enum" => {
                let name = self.name(object, namespace)?;
                let symbols = strings(object, "symbols");
                let default = object.get("default").and_then(Value::as_str).map(Box::from);
                Ok(self.named(Kind::Enum(Box::new(Enum { name, symbols, default })), None))
            }
            "fixed" => {
                let name = self.name(object, namespace)?;
                let size = object
                    .get("size")
                    .and_then(Value::as_u64)
                    .and_then(|size| usize::try_from(size).ok());
                let Some(size) = size else {
                    return invalid("a fixed type needs a \"size\"");
                };
                let kind = Kind::Fixed(Box::new(Fixed { name, size }));
                let logical = logical(&kind, object);
                Ok(self.named(kind, logical))
            }
            "array" => {
                let items = self.any(object.get("items").unwrap_or(&Value::Null), namespace)?;
                Ok(self.push(Kind::Array(items), None, pg_type(object)))
            }
            "map" => {
                let values = self.any(object.get("values").unwrap_or(&Value::Null), namespace)?;
                Ok(self.push(Kind::Map(values), None, None))
            }
            word => self.word(word, namespace, Some(object)),
        }
    }

    fn name(&self, object: &Object, namespace: &str) -> Result<Name, SchemaError> {
        let Some(name) = object.get("name").and_then(Value::as_str) else {
            return invalid("a named type has no \"name\"");
        };
        let namespace = object.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
        let full = full_name(name, namespace);
        let own = namespace_of(&full).to_owned();
        let aliases = strings(object, "aliases")
            .iter()
            .map(|alias| full_name(alias, &own).into())
            .collect();
        Ok(Name {
            full: full.into(),
            aliases,
        })
    }

    fn named(&mut self, kind: Kind, logical: Option<Logical>) -> TypeId {
        let full = match &kind {
            Kind::Enum(e) => e.name.full.to_string(),
            Kind::Fixed(fixed) => fixed.name.full.to_string(),
            Kind::Record(record) => record.name.full.to_string(),
            _ => String::new(),
        };
        let id = self.push(kind, logical, None);
        self.names.insert(full, id);
        id
    }

    fn record(&mut self, object: &Object, namespace: &str) -> Result<TypeId, SchemaError> {
        let name = self.name(object, namespace)?;
        let namespace = namespace_of(&name.full).to_owned();
        // The id is reserved before the fields are compiled, because they may refer to this record.
        let empty = Record {
            name,
            fields: Vec::new(),
            by_name: HashMap::new(),
        };
        let id = self.named(Kind::Record(Box::new(empty)), None);
        let mut fields = Vec::new();
        for field in object.get("fields").and_then(Value::as_array).into_iter().flatten() {
            fields.push(self.field(field, &namespace)?);
        }
        let by_name = fields
            .iter()
            .enumerate()
            .map(|(at, field)| (field.name.clone(), at))
            .collect();
        if let Some(Type {
            kind: Kind::Record(record),
            ..
        }) = self.types.get_mut(id.0)
        {
            record.fields = fields;
            record.by_name = by_name;
        }
        Ok(id)
    }

    fn field(&mut self, field: &Value, namespace: &str) -> Result<Field, SchemaError> {
        let Some(object) = field.as_object() else {
            return invalid(format!("{field} is not a field"));
        };
        let (Some(name), Some(ty)) = (object.get("name").and_then(Value::as_str), object.get("type")) else {
            return invalid(format!("field {field} needs \"name\" and \"type\""));
        };
        let ty = match ty {
            // A logicalType next to the field's "type" is ignored, as Avro implementations do.
            Value::String(word) => match word.as_str() {
                "record" | "enum" | "fixed" | "array" | "map" => self.object(object, namespace)?,
                word => self.word(word, namespace, None)?,
            },
            ty => self.any(ty, namespace)?,
        };
        Ok(Field {
            name: name.into(),
            aliases: strings(object, "aliases"),
            ty,
            default: None,
            column: object.get(PG_COLUMN).and_then(Value::as_str).map(Box::from),
        })
    }
}

fn strings(object: &Object, property: &str) -> Vec<Box<str>> {
    let list = object.get(property).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Box::from)
        .collect()
}

fn full_name(name: &str, namespace: &str) -> String {
    match name.strip_prefix('.') {
        Some(name) => name.to_owned(),
        None if name.contains('.') || namespace.is_empty() => name.to_owned(),
        None => format!("{namespace}.{name}"),
    }
}

fn namespace_of(full: &str) -> &str {
    full.rsplit_once('.').map_or("", |(namespace, _)| namespace)
}

/// The logical type of an object; `None` if it is absent, unknown or not applicable to the kind.
fn logical(kind: &Kind, object: &Object) -> Option<Logical> {
    let number = |property: &str| object.get(property).and_then(Value::as_u64);
    match (object.get("logicalType")?.as_str()?, kind) {
        ("date", Kind::Int) => Some(Logical::Date),
        ("time-millis", Kind::Int) => Some(Logical::TimeMillis),
        ("time-micros", Kind::Long) => Some(Logical::TimeMicros),
        ("timestamp-millis", Kind::Long) => Some(Logical::TimestampMillis),
        ("timestamp-micros", Kind::Long) => Some(Logical::TimestampMicros),
        ("local-timestamp-millis", Kind::Long) => Some(Logical::LocalTimestampMillis),
        ("local-timestamp-micros", Kind::Long) => Some(Logical::LocalTimestampMicros),
        ("uuid", Kind::String) => Some(Logical::Uuid),
        ("uuid", Kind::Fixed(fixed)) if fixed.size == 16 => Some(Logical::Uuid),
        ("decimal", Kind::Bytes | Kind::Fixed(_)) => {
            let (precision, scale) = (number("precision")?, number("scale").unwrap_or(0));
            let scale = u32::try_from(scale).ok()?;
            (precision > 0 && u64::from(scale) <= precision).then_some(Logical::Decimal { scale })
        }
        _ => None,
    }
}

/// The default of a field, in Avro encoding.
pub(super) struct Default {
    pub(super) record: TypeId,
    pub(super) field: usize,
    pub(super) bytes: Vec<u8>,
}

/// Encodes the default of a field, or returns the reason why it does not match the field's type.
type Encode<'e> = dyn Fn(TypeId, &Value) -> Result<Vec<u8>, String> + 'e;

/// Encodes the defaults of all fields. A default can refer to any type, so all types must be compiled before.
pub(super) fn defaults(types: &[Type], value: &Value, encode: &Encode<'_>) -> Result<Vec<Default>, SchemaError> {
    let mut collector = DefaultCollector {
        types,
        encode,
        found: Vec::new(),
    };
    collector.collect(value, "")?;
    Ok(collector.found)
}

struct DefaultCollector<'c> {
    types: &'c [Type],
    encode: &'c Encode<'c>,
    found: Vec<Default>,
}

impl DefaultCollector<'_> {
    fn collect(&mut self, value: &Value, namespace: &str) -> Result<(), SchemaError> {
        let object = match value {
            Value::Array(branches) => {
                return branches.iter().try_for_each(|branch| self.collect(branch, namespace));
            }
            Value::Object(object) => object,
            _ => return Ok(()),
        };
        for inner in ["type", "items", "values"] {
            if let Some(inner) = object.get(inner) {
                self.collect(inner, namespace)?;
            }
        }
        let name = object.get("name").and_then(Value::as_str);
        let namespace = object.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
        let (Some(name), Some(declared)) = (name, object.get("fields").and_then(Value::as_array)) else {
            return Ok(());
        };
        let full = full_name(name, namespace);
        let types = self.types;
        let record = types.iter().enumerate().find_map(|(id, ty)| match &ty.kind {
            Kind::Record(record) if *record.name.full == *full => Some((TypeId(id), record)),
            _ => None,
        });
        let Some((id, record)) = record else {
            return Ok(());
        };
        for (at, (field, declared)) in record.fields.iter().zip(declared).enumerate() {
            self.collect(declared, namespace_of(&full))?;
            if let Some(default) = declared.get("default") {
                let bytes = (self.encode)(field.ty, default).map_err(|reason| SchemaError::Default {
                    field: format!("{full}.{}", field.name),
                    reason,
                })?;
                self.found.push(Default {
                    record: id,
                    field: at,
                    bytes,
                });
            }
        }
        Ok(())
    }
}
