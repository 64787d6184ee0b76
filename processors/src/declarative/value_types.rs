//! The types of the values in contributions, for contributions that another task has written.
//!
//! A repartition topic may contain records that an earlier release evaluated without comparing the columns' types with
//! the declaration, or that another program wrote. Such values must not reach the state.

use super::delta::Contribution;
use super::values::read_row;
use schemas::codec::Datum;
use schemas::pg_types::AvroType;
use schemas::schema::Kind;
use topology::expr::Scalar;
use topology::{Aggregate, Feed, Function, Processor, Side, Topology, Work};

/// Type of an encoded value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValueType {
    Bool,
    Int32,
    Int64,
    Double,
    Text,
    Bytes,
    /// A type that expressions cannot use as a whole.
    Other,
}

/// Types of the values of one input's contributions.
#[derive(Debug)]
pub struct ValueTypes {
    /// The input.
    pub side: Side,
    /// Type of each value, and whether it may be null.
    values: Vec<(ValueType, bool)>,
}

impl ValueTypes {
    /// The types that the declaration of a processor gives the contributions of an input.
    pub fn new(topology: &Topology, processor: &Processor, side: Side) -> Self {
        let values = match (&processor.work, side) {
            (Work::Aggregate(aggregate), _) => of_aggregate(aggregate),
            (Work::Join(join), Side::Left) => of_feed(topology, &join.left),
            (Work::Join(join), Side::Right) => of_feed(topology, &join.right),
        };
        ValueTypes { side, values }
    }

    /// Whether a contribution has a valid key and values of these types.
    pub fn accept(&self, contribution: &Contribution<'_>) -> bool {
        let row = read_row(contribution.values, self.values.len());
        let values = |row: Vec<Datum<'_>>| {
            row.iter()
                .zip(&self.values)
                .all(|(value, (ty, null))| accepts(*ty, *null, value))
        };
        schemas::key::check(contribution.key).is_ok() && row.is_some_and(values)
    }
}

fn accepts(ty: ValueType, nullable: bool, value: &Datum<'_>) -> bool {
    match (ty, value) {
        (ValueType::Other, _) => true,
        (_, Datum::Null) => nullable,
        (ValueType::Int32, Datum::Long(value)) => i32::try_from(*value).is_ok(),
        (ValueType::Bool, Datum::Bool(_))
        | (ValueType::Int64, Datum::Long(_))
        | (ValueType::Double, Datum::Double(_))
        | (ValueType::Text, Datum::Str(_))
        | (ValueType::Bytes, Datum::Bytes(_)) => true,
        _ => false,
    }
}

fn of_aggregate(aggregate: &Aggregate) -> Vec<(ValueType, bool)> {
    let groups = aggregate.group.iter().map(of_scalar);
    let args = aggregate.fields.iter().filter_map(|field| match &field.arg {
        // Whether the value is present.
        Some(_) if field.function == Function::Count => Some((ValueType::Bool, false)),
        arg => arg.as_ref().map(of_scalar),
    });
    groups.chain(args).collect()
}

fn of_scalar(scalar: &Scalar) -> (ValueType, bool) {
    let ty = match scalar.pg_type().map(AvroType::of) {
        None | Some(AvroType::Array) => ValueType::Other,
        Some(AvroType::Boolean) => ValueType::Bool,
        Some(AvroType::Int | AvroType::Date) => ValueType::Int32,
        Some(AvroType::Long | AvroType::Timestamp | AvroType::TimestampTz) => ValueType::Int64,
        Some(AvroType::Float | AvroType::Double) => ValueType::Double,
        Some(AvroType::Bytes) => ValueType::Bytes,
        Some(AvroType::Uuid | AvroType::Text) => ValueType::Text,
    };
    (ty, scalar.nullable())
}

fn of_feed(topology: &Topology, feed: &Feed) -> Vec<(ValueType, bool)> {
    let schema = topology.schema_of(feed.input);
    let schema = schema.expect("a checked topology declares each input of a processor");
    let of_column = |name: &String| {
        let field = schema.fields().iter().find(|field| field.column() == name.as_str());
        let Some(field) = field else {
            return (ValueType::Other, true);
        };
        let ty = match &schema.ty(schema.required(field.ty)).kind {
            Kind::Boolean => ValueType::Bool,
            Kind::Int => ValueType::Int32,
            Kind::Long => ValueType::Int64,
            Kind::Float | Kind::Double => ValueType::Double,
            Kind::String | Kind::Enum(_) => ValueType::Text,
            Kind::Bytes | Kind::Fixed(_) => ValueType::Bytes,
            _ => ValueType::Other,
        };
        (ty, schema.takes_null(field.ty))
    };
    feed.columns.iter().map(of_column).collect()
}
