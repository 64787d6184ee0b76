//! Scalar expressions: the columns of a declarative processor's output.
//!
//! An expression that is only a column keeps the type of the column; any other expression is computed and has the type
//! of its result. Values have the representation of the corresponding PostgreSQL type: dates in days and timestamps in
//! microseconds, regardless of the unit in the schema of an event.

use super::error::ExprError;
use super::eval::{EvalError, EvalErrorKind, Fail, Node};
use super::types::{Field, Form, RowType, Type};
use super::value::Value;
use super::{check, parse};
use schemas::codec::Datum;
use std::borrow::Cow;
use std::sync::Arc;

/// A value of an output column.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'v> {
    /// Null.
    Null,
    /// `bool`.
    Bool(bool),
    /// Integers, days of a `date`, microseconds of a `timestamp` or `timestamptz`.
    Int(i64),
    /// `float4`, `float8`.
    Double(f64),
    /// All types that are published as text.
    Text(Cow<'v, str>),
    /// `bytea`.
    Bytes(Cow<'v, [u8]>),
}

impl Cell<'_> {
    /// Converts to an owned value.
    pub fn into_owned(self) -> Cell<'static> {
        match self {
            Cell::Null => Cell::Null,
            Cell::Bool(value) => Cell::Bool(value),
            Cell::Int(value) => Cell::Int(value),
            Cell::Double(value) => Cell::Double(value),
            Cell::Text(text) => Cell::Text(Cow::Owned(text.into_owned())),
            Cell::Bytes(bytes) => Cell::Bytes(Cow::Owned(bytes.into_owned())),
        }
    }

    /// Whether the value is null.
    pub fn is_null(&self) -> bool {
        matches!(self, Cell::Null)
    }
}

#[derive(Debug)]
enum Kind {
    /// A column, or a field of a nested record, as indexes starting at the row.
    Path(Vec<usize>, Form),
    Computed(Node),
}

/// A compiled scalar expression.
#[derive(Debug, Clone)]
pub struct Scalar {
    text: Arc<str>,
    kind: Arc<Kind>,
    ty: Type,
    pg_type: Option<Arc<str>>,
    nullable: bool,
    paths: Arc<[Vec<usize>]>,
    warnings: Arc<[ExprError]>,
}

impl Scalar {
    /// Compiles an expression over rows of a type.
    ///
    /// # Errors
    /// All errors of the text, with positions.
    pub fn compile(text: &str, row: &RowType) -> Result<Self, Vec<ExprError>> {
        let tree = parse::parse(text)?;
        if let Some((path, field, nullable)) = check::plain_path(&tree, row) {
            return Ok(Scalar {
                text: Arc::from(text),
                ty: field.ty.clone(),
                pg_type: pg_type_of(field).map(Arc::from),
                nullable,
                paths: Arc::from([path.clone()]),
                kind: Arc::new(Kind::Path(path, field.form)),
                warnings: Arc::from([]),
            });
        }
        let checked = check::value(text, &tree, row)?;
        let pg_type = match &checked.ty {
            Type::Bool => "bool",
            Type::Int => "int8",
            Type::Double => "float8",
            Type::Text => "text",
            Type::Decimal => "numeric",
            Type::Bytes => "bytea",
            Type::Timestamp => "timestamptz",
            other => {
                let message = format!("`{text}` is {}, which cannot be a column", other.with_article());
                let help = "the expression must result in a bool, number, string, bytes or timestamp";
                return Err(vec![ExprError::new(0..text.len(), message, help)]);
            }
        };
        Ok(Scalar {
            text: Arc::from(text),
            kind: Arc::new(Kind::Computed(checked.node)),
            ty: checked.ty,
            pg_type: Some(Arc::from(pg_type)),
            nullable: checked.nullable,
            paths: checked.paths.into(),
            warnings: checked.warnings.into(),
        })
    }

    /// The value for a row, which contains the fields of the row type by index. Missing fields are null.
    ///
    /// # Errors
    /// As [`super::Program::matches`], and if a value does not have its declared type.
    pub fn eval<'v>(&'v self, row: &'v [Datum<'v>]) -> Result<Cell<'v>, EvalError> {
        let fail = |kind| Fail::at(&(0..self.text.len()), kind).in_text(&self.text);
        match &*self.kind {
            Kind::Path(path, form) => read(follow(row, path), *form).ok_or_else(|| fail(EvalErrorKind::Type)),
            Kind::Computed(node) => match node.eval(row).map_err(|e| e.in_text(&self.text))? {
                Value::Null => Ok(Cell::Null),
                Value::Bool(value) => Ok(Cell::Bool(value)),
                Value::Int(value) | Value::Timestamp(value) => Ok(Cell::Int(value)),
                Value::Double(value) => Ok(Cell::Double(value)),
                Value::Text(text) => Ok(Cell::Text(text)),
                Value::Decimal(text) => Ok(Cell::Text(Cow::Borrowed(text))),
                Value::Bytes(bytes) => Ok(Cell::Bytes(bytes)),
                Value::Duration(_)
                | Value::Row(_)
                | Value::List(..)
                | Value::JsonText(_)
                | Value::Json(_)
                | Value::Opaque => Err(fail(EvalErrorKind::Type)),
            },
        }
    }

    /// Whether the value for a row is not null, for any type.
    ///
    /// # Errors
    /// As [`Scalar::eval`].
    pub fn is_present(&self, row: &[Datum<'_>]) -> Result<bool, EvalError> {
        match &*self.kind {
            Kind::Path(path, _) => Ok(follow(row, path).is_some_and(|datum| !datum.is_null())),
            Kind::Computed(node) => {
                let value = node.eval(row).map_err(|e| e.in_text(&self.text))?;
                Ok(value != Value::Null)
            }
        }
    }

    /// The source text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its type.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Name of the PostgreSQL type; `None` if there is none, as for a list.
    pub fn pg_type(&self) -> Option<&str> {
        self.pg_type.as_deref()
    }

    /// Whether the value can be null.
    pub fn nullable(&self) -> bool {
        self.nullable
    }

    /// Paths of the fields that the expression reads. A path is a list of field indexes, from the row to the field.
    pub fn paths(&self) -> &[Vec<usize>] {
        &self.paths
    }

    /// The column, if the expression consists only of a top-level column.
    pub fn as_column(&self) -> Option<usize> {
        match &*self.kind {
            Kind::Path(path, _) => match path.as_slice() {
                [column] => Some(*column),
                _ => None,
            },
            Kind::Computed(_) => None,
        }
    }

    /// Warnings about likely mistakes.
    pub fn warnings(&self) -> &[ExprError] {
        &self.warnings
    }
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

fn follow<'v>(row: &'v [Datum<'v>], path: &[usize]) -> Option<&'v Datum<'v>> {
    let (first, rest) = path.split_first()?;
    let mut at = row.get(*first)?;
    for step in rest {
        match at {
            Datum::Record(fields) => at = fields.get(*step)?,
            _ => return None,
        }
    }
    Some(at)
}

fn read<'v>(datum: Option<&'v Datum<'v>>, form: Form) -> Option<Cell<'v>> {
    Some(match datum {
        None | Some(Datum::Null) => Cell::Null,
        Some(Datum::Bool(value)) => Cell::Bool(*value),
        Some(Datum::Int(value)) => Cell::Int(i64::from(*value)),
        Some(Datum::Long(value)) if form == Form::Millis => Cell::Int(value.saturating_mul(1000)),
        Some(Datum::Long(value)) => Cell::Int(*value),
        Some(Datum::Float(value)) => Cell::Double(f64::from(*value)),
        Some(Datum::Double(value)) => Cell::Double(*value),
        Some(Datum::Str(text)) => Cell::Text(Cow::Borrowed(text)),
        Some(Datum::Bytes(bytes)) => Cell::Bytes(Cow::Borrowed(bytes)),
        Some(Datum::Array(_) | Datum::Map(_) | Datum::Record(_) | Datum::Union(..)) => return None,
    })
}

/// Name of the PostgreSQL type of a field: its declared type, or the one that corresponds to its Avro type.
fn pg_type_of(field: &Field) -> Option<&str> {
    let declared = field.declared.as_str();
    Some(match (&field.ty, field.form) {
        (Type::Bool, _) => "bool",
        (Type::Int, _) => match declared {
            "int2" | "int4" => declared,
            "int" => "int4",
            _ => "int8",
        },
        (Type::Double, _) if matches!(declared, "float4" | "float") => "float4",
        (Type::Double, _) => "float8",
        (Type::Text, _) if matches!(declared, "string" | "enum") => "text",
        (Type::Text | Type::Decimal | Type::Json, _) => declared,
        (Type::Bytes, _) if declared != "uuid" => "bytea",
        (Type::Timestamp, Form::Date) => "date",
        (Type::Timestamp, _) if declared.starts_with("local-") || declared == "timestamp" => "timestamp",
        (Type::Timestamp, _) => "timestamptz",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::schema::Schema;

    fn row() -> RowType {
        let schema = r#"{"type": "record", "name": "A", "fields": [
            {"name": "id", "type": "int"},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "price", "type": ["null", {"type": "string", "trunkline.type": "numeric"}], "default": null},
            {"name": "place", "type": ["null", {"type": "record", "name": "P", "fields": [
                {"name": "city", "type": "string"}]}], "default": null},
            {"name": "tags", "type": {"type": "array", "items": "string"}}]}"#;
        RowType::of(&Schema::parse(schema).unwrap())
    }

    #[test]
    fn plain_columns_keep_their_type() {
        let row_type = row();
        let place = Datum::Record(vec![Datum::Str("Ulm")]);
        let row = [
            Datum::Int(7),
            Datum::Long(5),
            Datum::Null,
            place,
            Datum::Array(Vec::new()),
        ];
        let text = |text: &'static str| Cell::Text(Cow::Borrowed(text));
        let cases = [
            ("id", "int4", false, Cell::Int(7)),
            ("id * 2", "int8", false, Cell::Int(14)),
            ("at", "timestamptz", false, Cell::Int(5000)),
            ("price", "numeric", true, Cell::Null),
            ("place.city", "text", true, text("Ulm")),
            ("row.id", "int4", false, Cell::Int(7)),
            ("id > 3 ? \"much\" : \"little\"", "text", false, text("much")),
        ];
        for (expression, pg_type, nullable, value) in cases {
            let scalar = Scalar::compile(expression, &row_type).unwrap();
            assert_eq!(
                (scalar.pg_type(), scalar.nullable()),
                (Some(pg_type), nullable),
                "{expression}"
            );
            assert_eq!(scalar.eval(&row), Ok(value), "{expression}");
        }
        assert_eq!(Scalar::compile("tags", &row_type).unwrap().pg_type(), None);
        assert!(Scalar::compile("nothing", &row_type).is_err());
        assert!(Scalar::compile("price + 1", &row_type).is_err());
        assert!(Scalar::compile("at - at", &row_type).is_err());
    }

    #[test]
    fn failed_evaluation_names_its_part() {
        let scalar = Scalar::compile("100 / id", &row()).unwrap();
        let error = scalar.eval(&[Datum::Int(0)]).unwrap_err();
        assert_eq!(error.to_string(), "cannot evaluate `100 / id`: division by zero");
    }
}
