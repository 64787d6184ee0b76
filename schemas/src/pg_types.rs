//! Maps PostgreSQL column types to Avro types, and the declared columns of a table to an Avro schema
//! (docs/reference/formats.md, "change.<source>").
//!
//! No type loses information: a type without an exact equivalent in Avro is represented by PostgreSQL's text output.
//! The schema depends only on the declaration.

use crate::ids::{SourceName, TableName};
use crate::schema::{PG_COLUMN, PG_TYPE};
use serde_json::{Value, json};

/// The last field of every row: the columns whose unchanged TOAST value the source did not send.
pub const UNCHANGED: &str = "_unchanged";

/// A declared column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name in PostgreSQL.
    pub name: String,
    /// The column's type, as named in the system catalog: `int8`, `timestamptz`, `_text`.
    pub pg_type: String,
    /// Whether it is nullable.
    pub nullable: bool,
}

impl Column {
    /// Creates a column. [`canonical`] lists the notations of types.
    pub fn new(name: &str, pg_type: &str, nullable: bool) -> Self {
        Column {
            name: name.to_owned(),
            pg_type: canonical(pg_type),
            nullable,
        }
    }

    /// Creates a column from a declaration in the topology: a trailing `?` of the type makes it nullable.
    pub fn declared(name: &str, pg_type: &str) -> Self {
        match pg_type.trim_end().strip_suffix('?') {
            Some(required) => Column::new(name, required, true),
            None => Column::new(name, pg_type, false),
        }
    }

    /// The name of the column's Avro field: the column name with every character outside `[A-Za-z0-9_]` replaced by
    /// `_`.
    pub fn field_name(&self) -> String {
        let mut name = escaped(&self.name);
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            name.insert(0, '_');
        }
        name
    }

    /// Its Avro type.
    pub fn avro(&self) -> AvroType {
        AvroType::of(&self.pg_type)
    }
}

/// The Avro types of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AvroType {
    /// `boolean`: `bool`
    Boolean,
    /// `int`: `int2`, `int4`
    Int,
    /// `long`: `int8`
    Long,
    /// `float`: `float4`
    Float,
    /// `double`: `float8`
    Double,
    /// `bytes`: `bytea`
    Bytes,
    /// `int`, `date`: `date`
    Date,
    /// `long`, `local-timestamp-micros`: `timestamp`
    Timestamp,
    /// `long`, `timestamp-micros`: `timestamptz`
    TimestampTz,
    /// `string`, `uuid`: `uuid`
    Uuid,
    /// `array` of nullable items of another type: all arrays, such as `_text`. See [`item_of`].
    Array,
    /// `string`: all other types, as PostgreSQL's text output
    Text,
}

impl AvroType {
    /// The Avro type of a PostgreSQL type, given by its catalog name.
    pub fn of(pg_type: &str) -> Self {
        match pg_type {
            "bool" => AvroType::Boolean,
            "int2" | "int4" => AvroType::Int,
            "int8" => AvroType::Long,
            "float4" => AvroType::Float,
            "float8" => AvroType::Double,
            "bytea" => AvroType::Bytes,
            "date" => AvroType::Date,
            "timestamp" => AvroType::Timestamp,
            "timestamptz" => AvroType::TimestampTz,
            "uuid" => AvroType::Uuid,
            other if item_of(other).is_some() => AvroType::Array,
            _ => AvroType::Text,
        }
    }

    fn words(self) -> (&'static str, Option<&'static str>) {
        match self {
            AvroType::Boolean => ("boolean", None),
            AvroType::Int => ("int", None),
            AvroType::Long => ("long", None),
            AvroType::Float => ("float", None),
            AvroType::Double => ("double", None),
            AvroType::Bytes => ("bytes", None),
            AvroType::Date => ("int", Some("date")),
            AvroType::Timestamp => ("long", Some("local-timestamp-micros")),
            AvroType::TimestampTz => ("long", Some("timestamp-micros")),
            AvroType::Uuid => ("string", Some("uuid")),
            AvroType::Array => ("array", None),
            AvroType::Text => ("string", None),
        }
    }
}

/// The type of an array's items: `_text` has items of type `text`. `None` for other types, and for arrays of `box`, which
/// PostgreSQL prints with another delimiter.
pub fn item_of(pg_type: &str) -> Option<&str> {
    pg_type.strip_prefix('_').filter(|item| !matches!(*item, "" | "box"))
}

/// Converts SQL notation of a type to its catalog name: `bigint` is `int8`, `varchar(40)` is `varchar`, `text[]` is
/// `_text`. Unknown names are returned in lower case.
pub fn canonical(sql: &str) -> String {
    let lower = sql.trim().to_lowercase();
    if let Some(item) = lower.strip_suffix("[]") {
        let item = canonical(item);
        return if item.starts_with('_') {
            item
        } else {
            format!("_{item}")
        };
    }
    // A modifier can be in the middle: timestamp(3) with time zone.
    let mut plain = String::with_capacity(lower.len());
    let mut depth = 0usize;
    for c in lower.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    let words: Vec<&str> = plain.split_whitespace().collect();
    let name = match words.join(" ").as_str() {
        "boolean" => "bool",
        "smallint" | "smallserial" | "serial2" => "int2",
        "int" | "integer" | "serial" | "serial4" => "int4",
        "bigint" | "bigserial" | "serial8" => "int8",
        "real" => "float4",
        "float" | "double precision" => "float8",
        "decimal" | "dec" => "numeric",
        "character varying" | "char varying" => "varchar",
        "character" | "char" => "bpchar",
        "timestamp without time zone" => "timestamp",
        "timestamp with time zone" => "timestamptz",
        "time without time zone" => "time",
        "time with time zone" => "timetz",
        "bit varying" => "varbit",
        other => return other.to_owned(),
    };
    name.to_owned()
}

/// Why columns do not form a schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    /// A column has the reserved name.
    #[error("column {UNCHANGED} of table {table} has a reserved name; omit or rename it")]
    Reserved {
        /// The table.
        table: String,
    },
    /// Two columns map to the same field.
    #[error("columns {first:?} and {second:?} of table {table} both map to field {field}; omit one of them")]
    Collision {
        /// The table.
        table: String,
        /// The field's name.
        field: String,
        /// The first of the two columns.
        first: String,
        /// The second of the two columns.
        second: String,
    },
    /// The table has no columns.
    #[error("table {table} has no columns; declare at least its key")]
    None {
        /// The table.
        table: String,
    },
}

/// The full name of a table's record: `trunkline.<source>.<table>`, with characters outside `[A-Za-z0-9_]` replaced by `_`.
pub fn record_name(source: &SourceName, table: &TableName) -> String {
    format!("trunkline.{}.{}", escaped(source.as_str()), record_short_name(table))
}

fn record_short_name(table: &TableName) -> String {
    let mut name = escaped(table.as_str());
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    name
}

fn escaped(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' })
        .collect()
}

/// The Avro schema of a table's rows, as JSON: the columns in order, then `_unchanged`.
///
/// # Errors
/// [`ColumnError`] if there are no columns, two map to the same field, or one has the reserved name.
pub fn table_schema(source: &SourceName, table: &TableName, columns: &[Column]) -> Result<String, ColumnError> {
    let table_name = || table.to_string();
    if columns.is_empty() {
        return Err(ColumnError::None { table: table_name() });
    }
    let mut fields = Vec::with_capacity(columns.len() + 1);
    for (at, column) in columns.iter().enumerate() {
        let name = column.field_name();
        if name == UNCHANGED {
            return Err(ColumnError::Reserved { table: table_name() });
        }
        if let Some(first) = columns.iter().take(at).find(|other| other.field_name() == name) {
            let (first, second) = (first.name.clone(), column.name.clone());
            return Err(ColumnError::Collision {
                table: table_name(),
                field: name,
                first,
                second,
            });
        }
        fields.push(field(&name, column));
    }
    fields.push(json!({"name": UNCHANGED, "type": ["null", {"type": "array", "items": "string"}], "default": null}));
    let schema = json!({
        "type": "record",
        "name": record_short_name(table),
        "namespace": format!("trunkline.{}", escaped(source.as_str())),
        "fields": fields,
    });
    Ok(schema.to_string())
}

fn type_of(pg_type: &str) -> Value {
    let (kind, logical) = AvroType::of(pg_type).words();
    let mut ty = json!({"type": kind});
    if let Some(object) = ty.as_object_mut() {
        if let Some(logical) = logical {
            object.insert("logicalType".to_owned(), json!(logical));
        }
        object.insert(PG_TYPE.to_owned(), json!(pg_type));
        if let Some(item) = item_of(pg_type) {
            // Each item of a PostgreSQL array can be null.
            object.insert("items".to_owned(), json!(["null", type_of(item)]));
        }
    }
    ty
}

fn field(name: &str, column: &Column) -> Value {
    let ty = type_of(&column.pg_type);
    let mut field = if column.nullable {
        json!({"name": name, "type": ["null", ty], "default": null})
    } else {
        json!({"name": name, "type": ty})
    };
    if name != column.name
        && let Some(object) = field.as_object_mut()
    {
        object.insert(PG_COLUMN.to_owned(), json!(column.name));
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    fn schema(columns: &[Column]) -> Result<String, ColumnError> {
        table_schema(
            &SourceName::new("my-shop").unwrap(),
            &TableName::new("sales.order lines").unwrap(),
            columns,
        )
    }

    #[test]
    fn every_notation_has_one_catalog_name() {
        for (sql, name) in [
            ("BIGINT", "int8"),
            ("integer", "int4"),
            ("serial", "int4"),
            ("numeric(10, 2)", "numeric"),
            ("character varying(40)", "varchar"),
            ("timestamp(3) with time zone", "timestamptz"),
            ("timestamp without time zone", "timestamp"),
            ("double  precision", "float8"),
            ("text[]", "_text"),
            ("integer[][]", "_int4"),
            ("varchar(3)[]", "_varchar"),
            ("citext", "citext"),
        ] {
            assert_eq!(canonical(sql), name);
            assert_eq!(canonical(name), name);
        }
    }

    #[test]
    fn table_schema_is_as_documented() {
        let columns = [
            Column::declared("id", "int8"),
            Column::declared("note", "text?"),
            Column::declared("at", "timestamptz"),
            Column::declared("2nd name", "varchar(10)?"),
            Column::declared("tags", "text[]"),
        ];
        let text = schema(&columns).unwrap();
        let expected = json!({
            "type": "record", "name": "sales_order_lines", "namespace": "trunkline.my_shop", "fields": [
                {"name": "id", "type": {"type": "long", "trunkline.type": "int8"}},
                {"name": "note", "type": ["null", {"type": "string", "trunkline.type": "text"}], "default": null},
                {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros", "trunkline.type": "timestamptz"}},
                {"name": "_2nd_name", "type": ["null", {"type": "string", "trunkline.type": "varchar"}], "default": null,
                 "trunkline.column": "2nd name"},
                {"name": "tags", "type": {"type": "array", "trunkline.type": "_text",
                 "items": ["null", {"type": "string", "trunkline.type": "text"}]}},
                {"name": "_unchanged", "type": ["null", {"type": "array", "items": "string"}], "default": null},
            ]
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        let compiled = Schema::parse(&text).unwrap();
        assert_eq!(compiled.name(), "trunkline.my_shop.sales_order_lines");
        let source = SourceName::new("my-shop").unwrap();
        assert_eq!(
            record_name(&source, &TableName::new("sales.order lines").unwrap()),
            compiled.name()
        );
        let field = &compiled.fields()[1];
        assert_eq!(compiled.ty(compiled.required(field.ty)).pg.as_deref(), Some("text"));
        assert_eq!(field.default.as_deref(), Some([0].as_slice()));
        assert_eq!(compiled.fields()[3].column(), "2nd name");
    }

    #[test]
    fn every_type_compiles_and_keeps_its_name() {
        let types = "bool int2 int4 int8 float4 float8 bytea date timestamp timestamptz uuid numeric json jsonb text varchar bpchar \
            time timetz interval inet cidr macaddr bit varbit money xml tsvector point _text _int4 int4range hstore citext my_enum";
        let columns: Vec<Column> = types
            .split_whitespace()
            .enumerate()
            .map(|(at, ty)| Column::new(&format!("c{at}"), ty, at % 2 == 0))
            .collect();
        let compiled = Schema::parse(&schema(&columns).unwrap()).unwrap();
        for (field, column) in compiled.fields().iter().zip(&columns) {
            assert_eq!(
                compiled.ty(compiled.required(field.ty)).pg.as_deref(),
                Some(column.pg_type.as_str())
            );
            assert_eq!(compiled.takes_null(field.ty), column.nullable);
        }
    }

    #[test]
    fn ambiguous_columns_are_rejected() {
        let error = schema(&[Column::new("a b", "text", false), Column::new("a-b", "text", false)]).unwrap_err();
        assert!(error.to_string().contains("\"a b\" and \"a-b\""), "{error}");
        assert!(matches!(
            schema(&[Column::new("_unchanged", "text", false)]),
            Err(ColumnError::Reserved { .. })
        ));
        assert!(matches!(schema(&[]), Err(ColumnError::None { .. })));
    }
}
