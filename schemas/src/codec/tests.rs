//! Property tests of the codec with random schemas, values and bytes; apache-avro is the oracle. Failures print their seed.
//! Handwritten schemas are in `cases`.

use super::*;
use crate::schema::{Kind, Schema, TypeId};
use apache_avro::types::Value as Avro;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

static NAMES: AtomicUsize = AtomicUsize::new(0);

fn fresh(prefix: &str) -> String {
    format!("{prefix}{}", NAMES.fetch_add(1, Ordering::Relaxed))
}

fn plain() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!("boolean"),
        json!("int"),
        json!("long"),
        json!("float"),
        json!("double"),
        json!("bytes"),
        json!("string"),
        json!({"type": "int", "logicalType": "date"}),
        json!({"type": "long", "logicalType": "time-micros"}),
        json!({"type": "long", "logicalType": "timestamp-micros"}),
        json!({"type": "long", "logicalType": "local-timestamp-micros"}),
        json!({"type": "string", "trunkline.type": "text"}),
    ])
}

/// The JSON of a random type. A union never contains a union, or two types of the same kind.
fn any_type() -> impl Strategy<Value = Value> {
    let named = prop_oneof![
        (1usize..9).prop_map(|size| json!({"type": "fixed", "name": fresh("F"), "size": size})),
        (1usize..5).prop_map(|count| {
            let symbols: Vec<String> = (0..count).map(|at| format!("S{at}")).collect();
            json!({"type": "enum", "name": fresh("E"), "symbols": symbols})
        }),
    ];
    prop_oneof![4 => plain(), 1 => named].prop_recursive(3, 16, 4, |inner| {
        let not_union = inner.clone().prop_filter("a union within a union", |ty| !ty.is_array());
        prop_oneof![
            inner.clone().prop_map(|items| json!({"type": "array", "items": items})),
            inner
                .clone()
                .prop_map(|values| json!({"type": "map", "values": values})),
            prop::collection::vec(inner, 0..4).prop_map(|types| record_of(&types)),
            not_union.clone().prop_map(|ty| json!(["null", ty])),
            not_union.prop_map(|ty| json!([ty, "null"])),
            Just(json!(["null", "int", "string", "bytes"])),
            Just(json!(["string", "double"])),
        ]
    })
}

fn record_of(types: &[Value]) -> Value {
    let fields: Vec<Value> = types
        .iter()
        .enumerate()
        .map(|(at, ty)| json!({"name": format!("f{at}"), "type": ty}))
        .collect();
    json!({"type": "record", "name": fresh("R"), "fields": fields})
}

fn any_schema() -> impl Strategy<Value = Arc<Schema>> {
    prop::collection::vec(any_type(), 0..6)
        .prop_map(|types| Arc::new(Schema::parse(&record_of(&types).to_string()).unwrap()))
}

/// Picks values from a sequence of random numbers, so that the values match any schema.
struct Picker {
    seed: u64,
}

impl Picker {
    fn next(&mut self) -> u64 {
        // xorshift64*: the sequence depends only on proptest's seed.
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }

    fn long(&mut self) -> i64 {
        let shift = self.below(64);
        (self.next() >> shift).cast_signed()
    }

    fn int(&mut self) -> i32 {
        let shift = self.below(32);
        (u32::try_from(self.next() >> 32).unwrap() >> shift).cast_signed()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[3]).collect()
    }

    fn text(&mut self) -> String {
        (0..self.below(6))
            .map(|_| ['a', '"', 'é', '\n', '日', '\0'][self.below(6)])
            .collect()
    }

    fn value(&mut self, schema: &Schema, id: TypeId) -> Avro {
        let ty = schema.ty(id);
        match (&ty.kind, ty.logical.map(crate::schema::Logical::name)) {
            (Kind::Null, _) => Avro::Null,
            (Kind::Boolean, _) => Avro::Boolean(self.below(2) == 0),
            (Kind::Int, Some("date")) => Avro::Date(self.int()),
            (Kind::Int, _) => Avro::Int(self.int()),
            (Kind::Long, Some("time-micros")) => Avro::TimeMicros(self.long().rem_euclid(86_400_000_000)),
            (Kind::Long, Some("timestamp-micros")) => Avro::TimestampMicros(self.long()),
            (Kind::Long, Some("local-timestamp-micros")) => Avro::LocalTimestampMicros(self.long()),
            (Kind::Long, _) => Avro::Long(self.long()),
            (Kind::Float, _) => Avro::Float(f32::from(i16::from_le_bytes([self.next().to_le_bytes()[0], 3])) / 7.0),
            (Kind::Double, _) => Avro::Double(f64::from(self.int()) / 3.0),
            (Kind::Bytes, _) => {
                let length = self.below(9);
                Avro::Bytes(self.bytes(length))
            }
            (Kind::String, _) => Avro::String(self.text()),
            (Kind::Fixed(fixed), _) => Avro::Fixed(fixed.size, self.bytes(fixed.size)),
            (Kind::Enum(e), _) => {
                let at = self.below(e.symbols.len());
                Avro::Enum(u32::try_from(at).unwrap(), e.symbols[at].to_string())
            }
            (Kind::Array(items), _) => Avro::Array((0..self.below(4)).map(|_| self.value(schema, *items)).collect()),
            (Kind::Map(values), _) => Avro::Map(
                (0..self.below(3))
                    .map(|_| (self.text(), self.value(schema, *values)))
                    .collect(),
            ),
            (Kind::Record(record), _) => Avro::Record(
                record
                    .fields
                    .iter()
                    .map(|f| (f.name.to_string(), self.value(schema, f.ty)))
                    .collect(),
            ),
            (Kind::Optional { .. } | Kind::Union(_), _) => {
                let branches = schema.branches(id);
                let at = self.below(branches.len());
                Avro::Union(u32::try_from(at).unwrap(), Box::new(self.value(schema, branches[at])))
            }
        }
    }
}

/// Converts a value of the apache-avro crate to a value of this crate, for comparison.
fn datum<'a>(schema: &Schema, id: TypeId, value: &'a Avro) -> Datum<'a> {
    match (&schema.ty(id).kind, value) {
        (_, Avro::Null) => Datum::Null,
        (_, Avro::Boolean(value)) => Datum::Bool(*value),
        (_, Avro::Int(value) | Avro::Date(value)) => Datum::Int(*value),
        (_, Avro::Long(value) | Avro::TimeMicros(value) | Avro::TimestampMicros(value)) => Datum::Long(*value),
        (_, Avro::LocalTimestampMicros(value)) => Datum::Long(*value),
        (_, Avro::Float(value)) => Datum::Float(*value),
        (_, Avro::Double(value)) => Datum::Double(*value),
        (_, Avro::Bytes(bytes) | Avro::Fixed(_, bytes)) => Datum::Bytes(bytes),
        (_, Avro::String(text) | Avro::Enum(_, text)) => Datum::Str(text),
        (Kind::Array(items), Avro::Array(values)) => {
            Datum::Array(values.iter().map(|value| datum(schema, *items, value)).collect())
        }
        (Kind::Map(values), Avro::Map(entries)) => {
            let mut entries: Vec<_> = entries
                .iter()
                .map(|(k, v)| (k.as_str(), datum(schema, *values, v)))
                .collect();
            entries.sort_by_key(|(key, _)| *key);
            Datum::Map(entries)
        }
        (Kind::Record(record), Avro::Record(values)) => Datum::Record(
            record
                .fields
                .iter()
                .zip(values)
                .map(|(f, (_, v))| datum(schema, f.ty, v))
                .collect(),
        ),
        (Kind::Optional { inner, .. }, Avro::Union(_, value)) => datum(schema, *inner, value),
        (Kind::Union(branches), Avro::Union(at, value)) => {
            let at = usize::try_from(*at).unwrap();
            Datum::Union(at, Box::new(datum(schema, branches[at], value)))
        }
        (kind, value) => panic!("{value:?} for {kind:?}"),
    }
}

/// Maps have no order, so this sorts their entries.
fn sorted(value: Datum<'_>) -> Datum<'_> {
    match value {
        Datum::Array(items) => Datum::Array(items.into_iter().map(sorted).collect()),
        Datum::Record(row) => Datum::Record(row.into_iter().map(sorted).collect()),
        Datum::Union(at, inner) => Datum::Union(at, Box::new(sorted(*inner))),
        Datum::Map(entries) => {
            let mut entries: Vec<_> = entries.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by_key(|(key, _)| *key);
            Datum::Map(entries)
        }
        value => value,
    }
}

fn by_library(schema: &Schema, value: &Avro) -> Vec<u8> {
    let avro = apache_avro::Schema::parse_str(schema.text()).unwrap();
    apache_avro::writer::datum::GenericDatumWriter::builder(&avro)
        .build()
        .unwrap()
        .write_value_to_vec(value.clone())
        .unwrap()
}

fn read_by_library(schema: &Schema, mut body: &[u8]) -> Option<Avro> {
    let avro = apache_avro::Schema::parse_str(schema.text()).unwrap();
    let value = apache_avro::reader::datum::GenericDatumReader::builder(&avro)
        .build()
        .unwrap()
        .read_value(&mut body)
        .ok()?;
    body.is_empty().then_some(value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_library_and_this_codec_read_each_other(schema in any_schema(), seed in 1u64..) {
        let value = Picker { seed }.value(&schema, schema.root());
        let body = by_library(&schema, &value);
        let mut row = Row::new();
        schema.decode(&body, &mut row).unwrap();
        let expected = datum(&schema, schema.root(), &value);
        prop_assert_eq!(sorted(Datum::Record(row.clone())), expected);
        let mut ours = Vec::new();
        schema.encode(&row, &mut ours).unwrap();
        prop_assert_eq!(&ours, &body);
        prop_assert_eq!(read_by_library(&schema, &ours), Some(value));
    }

    #[test]
    fn garbage_is_an_error_or_a_value_that_reads_back(schema in any_schema(), body: Vec<u8>) {
        let mut row = Row::new();
        if schema.decode(&body, &mut row).is_ok() {
            let mut again = Vec::new();
            schema.encode(&row, &mut again).unwrap();
            let mut second = Row::new();
            schema.decode(&again, &mut second).unwrap();
            prop_assert_eq!(format!("{second:?}"), format!("{row:?}"));
        }
    }

    #[test]
    fn a_damaged_body_is_an_error_or_another_value(
        schema in any_schema(), seed in 1u64.., at: prop::sample::Index, byte: u8, cut: prop::sample::Index,
    ) {
        let mut body = by_library(&schema, &Picker { seed }.value(&schema, schema.root()));
        let whole = body.clone();
        let mut row = Row::new();
        let length = cut.index(body.len() + 1);
        if length < body.len() {
            prop_assert!(schema.decode(&body[..length], &mut row).is_err());
        }
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = byte;
            let mut row = Row::new();
            let wanted: Vec<&str> = Vec::new();
            let nothing = Projection::of_fields(schema.clone(), &wanted).unwrap();
            if schema.decode(&body, &mut row).is_ok() {
                // A body that can be decoded completely can also be skipped.
                nothing.decode(&body, &mut Row::new()).unwrap();
            }
        }
        let mut longer = whole;
        longer.push(0);
        prop_assert!(schema.decode(&longer, &mut Row::new()).is_err());
    }

    #[test]
    fn a_projection_gives_the_fields_that_were_asked_for(schema in any_schema(), seed in 1u64.., mask: u8) {
        let value = Picker { seed }.value(&schema, schema.root());
        let mut body = Vec::new();
        schema.encode_value(schema.root(), &datum(&schema, schema.root(), &value), &mut body).unwrap();
        let mut all = Row::new();
        schema.decode(&body, &mut all).unwrap();
        let wanted: Vec<usize> = (0..schema.fields().len()).rev().filter(|at| mask >> at & 1 == 1).collect();
        let names: Vec<&str> = wanted.iter().map(|at| &*schema.fields()[*at].name).collect();
        let projection = Projection::of_fields(schema.clone(), &names).unwrap();
        let mut some = Row::new();
        projection.decode(&body, &mut some).unwrap();
        let expected: Vec<Datum<'_>> = wanted.iter().map(|at| all[*at].clone()).collect();
        prop_assert_eq!(some, expected);
    }

    #[test]
    fn a_device_json_that_is_posted_again_gives_the_same_row(schema in any_schema(), seed in 1u64..) {
        let value = Picker { seed }.value(&schema, schema.root());
        let value = datum(&schema, schema.root(), &value);
        let mut json = Vec::new();
        crate::device_json::write(&schema, schema.root(), &value, &mut json);
        let parsed: Value = serde_json::from_slice(&json).unwrap();
        let mut body = Vec::new();
        // The JSON of a value alone selects the branch of a union, and two branches may have the same JSON.
        if schema.encode_json(&parsed, &mut body).is_ok() {
            let again = schema.decode_value(schema.root(), &body).unwrap();
            let mut second = Vec::new();
            crate::device_json::write(&schema, schema.root(), &again, &mut second);
            if !schema.text().contains(r#"["string","double"]"#) && !schema.text().contains(r#""int","string","bytes""#) {
                prop_assert_eq!(sorted(again), value);
            }
        } else {
            prop_assert!(false, "rejected: {:?}", schema.encode_json(&parsed, &mut Vec::new()));
        }
    }
}

mod cases;
mod resolution;
