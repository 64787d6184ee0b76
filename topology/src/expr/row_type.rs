//! Derives the row type of conditions from an Avro schema. Fields have the order of the schema, so that their indexes
//! are those of decoded rows. Recursive types are expanded to a limited depth.

use super::types::{Field, Form, RowType, Type};
use schemas::schema::{Kind, Logical, Schema, TypeId};
use std::sync::Arc;

/// Maximum depth of nested records that conditions can use.
const LEVELS_MAX: usize = 4;

impl RowType {
    /// The row type of a record schema. Fields have the names of their columns.
    pub fn of(schema: &Schema) -> Self {
        RowType {
            fields: schema
                .fields()
                .iter()
                .map(|f| field(schema, f.column(), f.ty, LEVELS_MAX))
                .collect(),
        }
    }
}

fn field(schema: &Schema, name: &str, id: TypeId, levels: usize) -> Field {
    let required = schema.required(id);
    let (ty, form) = of_type(schema, required, levels);
    let stored = schema.ty(required);
    let declared = match &stored.pg {
        Some(pg) => pg.to_string(),
        None => stored
            .logical
            .map_or(schema.type_name(required), Logical::name)
            .to_string(),
    };
    Field {
        name: name.to_string(),
        ty,
        form,
        nullable: schema.takes_null(id),
        declared,
    }
}

fn of_type(schema: &Schema, id: TypeId, levels: usize) -> (Type, Form) {
    let ty = schema.ty(id);
    let opaque = |word| (Type::Opaque(word), Form::Plain);
    match (&ty.kind, ty.logical) {
        (Kind::Int, Some(Logical::Date)) => (Type::Timestamp, Form::Date),
        (Kind::Long, Some(Logical::TimestampMicros | Logical::LocalTimestampMicros)) => (Type::Timestamp, Form::Micros),
        (Kind::Long, Some(Logical::TimestampMillis | Logical::LocalTimestampMillis)) => (Type::Timestamp, Form::Millis),
        (_, Some(Logical::Decimal { .. })) => opaque("decimal"),
        (_, Some(Logical::TimeMillis | Logical::TimeMicros)) => opaque("time"),
        (Kind::String, _) if ty.is_json() => (Type::Json, Form::Json),
        (Kind::String, _) if ty.pg.as_deref() == Some("numeric") => (Type::Decimal, Form::Decimal),
        (Kind::Boolean, _) => (Type::Bool, Form::Plain),
        (Kind::Int | Kind::Long, _) => (Type::Int, Form::Plain),
        (Kind::Float | Kind::Double, _) => (Type::Double, Form::Plain),
        (Kind::String | Kind::Enum(_), _) => (Type::Text, Form::Plain),
        (Kind::Bytes | Kind::Fixed(_), _) => (Type::Bytes, Form::Plain),
        (Kind::Array(items), _) => {
            let item = field(schema, "items", *items, levels);
            let form = item.form;
            (Type::List(Box::new(item)), form)
        }
        (Kind::Record(record), _) if levels > 0 => {
            let fields = record
                .fields
                .iter()
                .map(|f| field(schema, f.column(), f.ty, levels - 1))
                .collect();
            (Type::Row(Arc::new(RowType { fields })), Form::Plain)
        }
        (Kind::Record(_), _) => opaque("record"),
        (Kind::Map(_), _) => opaque("map"),
        (Kind::Null | Kind::Optional { .. } | Kind::Union(_), _) => opaque("union"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::Program;
    use schemas::codec::Datum;

    #[test]
    fn conditions_use_logical_types_records_and_lists() {
        let schema = Schema::parse(
            r#"{"type": "record", "name": "Moved", "fields": [
                {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
                {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}], "default": null},
                {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["open", "done"]}},
                {"name": "place", "type": {"type": "record", "name": "Place", "fields": [
                    {"name": "city", "type": ["null", "string"], "default": null},
                    {"name": "within", "type": ["null", "Place"], "default": null}]}},
                {"name": "tags", "type": {"type": "array", "items": "string"}},
                {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}}]}"#,
        )
        .unwrap();
        let row_type = RowType::of(&schema);
        let within = Datum::Record(vec![Datum::Str("NRW"), Datum::Null]);
        let row = [
            Datum::Long(1_767_225_600_000),
            Datum::Int(i32::MAX),
            Datum::Str("open"),
            Datum::Record(vec![Datum::Str("Köln"), within]),
            Datum::Array(vec![Datum::Str("gift")]),
            Datum::Bytes(b"\x01"),
        ];
        for condition in [
            "at == timestamp('2026-01-01T00:00:00Z') && state in ['open']",
            "day != null && day > at",
            "place.city == 'Köln' && place.within != null && place.within.city == 'NRW'",
            "has(place.within) && place.within.within == null",
            "'gift' in tags && !('x' in tags)",
        ] {
            let program =
                Program::compile(condition, &row_type).unwrap_or_else(|errors| panic!("{condition}: {errors:?}"));
            assert_eq!(program.matches(&row), Ok(true), "{condition}");
        }
        let deep = "place.within != null && place.within.within != null && place.within.within.within != null && \
                    place.within.within.within.within == null";
        assert_eq!(Program::compile(deep, &row_type).unwrap().matches(&row), Ok(false));
        assert!(Program::compile("price > 3", &row_type).is_err());
    }

    #[test]
    fn conditions_use_arrays_numbers_and_documents_of_declared_columns() {
        let columns = [
            ("tags", "text[]?"),
            ("members", "uuid[]"),
            ("counts", "int8[]"),
            ("seen", "timestamptz[]"),
            ("prices", "numeric[]"),
            ("price", "numeric(10,2)?"),
            ("doc", "jsonb?"),
        ]
        .map(|(name, ty)| schemas::pg_types::Column::declared(name, ty));
        let source = schemas::ids::SourceName::new("shop").unwrap();
        let table = schemas::ids::TableName::new("orders").unwrap();
        let text = schemas::pg_types::table_schema(&source, &table, &columns).unwrap();
        let row_type = RowType::of(&Schema::parse(&text).unwrap());
        let row = [
            Datum::Array(vec![Datum::Str("gift"), Datum::Null]),
            Datum::Array(vec![Datum::Str("6ba7b810-9dad-11d1-80b4-00c04fd430c8")]),
            Datum::Array(vec![Datum::Long(3)]),
            Datum::Array(vec![Datum::Long(1_767_225_600_000_000)]),
            Datum::Array(vec![Datum::Str("9.50")]),
            Datum::Str("10.00"),
            Datum::Str(r#"{"status": "open"}"#),
        ];
        for condition in [
            "tags != null && 'gift' in tags && !('x' in tags) && null in tags",
            "'6ba7b810-9dad-11d1-80b4-00c04fd430c8' in members && size(members) == 1",
            "3 in counts && timestamp('2026-01-01T00:00:00Z') in seen && 9.5 in prices",
            "price != null && price > 9.95 && price == 10",
            "doc.status == 'open'",
        ] {
            let program =
                Program::compile(condition, &row_type).unwrap_or_else(|errors| panic!("{condition}: {errors:?}"));
            assert_eq!(program.matches(&row), Ok(true), "{condition}");
        }
        for condition in ["'gift' in tags", "price == '10.00'", "doc.status + 'x' == 'openx'"] {
            assert!(Program::compile(condition, &row_type).is_err(), "{condition}");
        }
    }
}
