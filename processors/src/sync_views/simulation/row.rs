//! The rows of the simulation: their columns, their encoding as records, and records that become dead letters.

use super::bucket_of;
use schemas::headers::{self, Tx};
use std::collections::BTreeMap;
use streams_test::simulation::{Rng, Row};

/// Schema of all rows.
pub const ROW: &str = r#"{"type":"record","name":"row","fields":[
    {"name":"scope","type":["null","string"]},{"name":"name","type":["null","string"]},{"name":"value","type":"long"},
    {"name":"note","type":"string"},{"name":"_unchanged","type":["null",{"type":"array","items":"string"}]},
    {"name":"pad","type":"string"}]}"#;
/// Registry id of the row schema.
pub const ROW_ID: u32 = 7;
/// An id that the registry does not know: such a record becomes a dead letter.
const UNKNOWN_ID: u32 = 99;
/// Bytes of a value that every topic of the simulation rejects.
const PAD: usize = 5_000;

/// The columns of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// Bucket of the row; with `None` the row is in no bucket.
    pub bucket: Option<char>,
    pub number: i64,
    /// Number from which the note is generated.
    pub note: u8,
}

/// A text that is long enough to be omitted if it does not change.
pub fn note_of(note: u8) -> String {
    format!("note {note}, a large column")
}

/// Rows of a source by key.
pub type Rows = BTreeMap<i64, Value>;

pub fn framed(value: Value, omit_note: bool) -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&ROW_ID.to_be_bytes());
    let short = |n: usize| u8::try_from(2 * n).unwrap();
    match value.bucket.map(bucket_of) {
        None => out.extend_from_slice(&[0, 0]),
        Some(bucket) => {
            for text in bucket.split(':') {
                out.extend_from_slice(&[2, short(text.len())]);
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
    out.push(short(usize::try_from(value.number).unwrap()));
    if omit_note {
        out.push(0);
        out.extend_from_slice(b"\x02\x02\x08note\x00");
    } else {
        let note = note_of(value.note);
        out.push(short(note.len()));
        out.extend_from_slice(note.as_bytes());
        out.push(0);
    }
    out.push(0);
    out
}

/// Decodes a framed row.
pub fn unframed(row: &[u8]) -> Value {
    let mut rest = row.get(5..).unwrap_or_default();
    let mut texts = Vec::new();
    for _ in 0..2 {
        let (kind, after) = rest.split_first().expect("a row has two texts");
        rest = after;
        if *kind == 2 {
            let (len, after) = rest.split_first().expect("a text has a length");
            let (text, after) = after.split_at(usize::from(len / 2));
            texts.push(std::str::from_utf8(text).expect("a text is UTF-8").to_owned());
            rest = after;
        }
    }
    let bucket = texts.get(1).and_then(|name| name.chars().next());
    // The number, the length of the note, and the digit in the note.
    let number = i64::from(rest[0] / 2);
    let note = rest[2 + "note ".len()] - b'0';
    Value { bucket, number, note }
}

/// Makes the row a record that becomes a dead letter: its schema id is unknown to the registry, or the row is so large
/// that the log rejects the view row.
pub fn poisoned(mut row: Row, rng: &mut Rng) -> Row {
    let Some(value) = row.value.as_mut() else { return row };
    if rng.chance(0.5) {
        value[1..5].copy_from_slice(&UNKNOWN_ID.to_be_bytes());
        return row;
    }
    value.pop();
    let mut length = 2 * PAD;
    while length > 0x7f {
        value.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    value.push(u8::try_from(length).unwrap());
    value.extend(std::iter::repeat_n(b'x', PAD));
    row
}

pub fn tx_header(tx: &Tx) -> (String, Option<Vec<u8>>) {
    let mut text = Vec::new();
    tx.write(&mut text);
    (headers::TX.to_owned(), Some(text))
}

pub fn replayed(mut row: Row, how: &str) -> Row {
    let header = (headers::REPLAYED.to_owned(), Some(how.as_bytes().to_vec()));
    row.headers.push(header);
    row
}

/// A random value for a row, or its removal.
pub fn any_value(rng: &mut Rng) -> Option<Value> {
    let buckets = [
        Some('a'),
        Some('a'),
        Some('b'),
        Some('b'),
        Some('c'),
        Some('c'),
        Some('d'),
        None,
    ];
    let value = Value {
        bucket: rng.pick(&buckets),
        number: i64::try_from(rng.below(6)).unwrap(),
        note: any_note(rng),
    };
    (!rng.chance(0.25)).then_some(value)
}

pub fn any_note(rng: &mut Rng) -> u8 {
    u8::try_from(rng.below(4)).unwrap()
}
