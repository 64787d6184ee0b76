//! Records of `view.log`: encoding by the writer and parsing by the replica.
//!
//! Byte formats are specified in docs/reference/formats.md, the meaning of the records in docs/protocol/view-sync.md
//! ("Records of view.log"). Malformed bytes are an error, not a panic. The JSON of rows is not parsed.

use schemas::version::Version;
use std::borrow::Cow;

/// Header with the writer of a row, mark or grant.
pub const WRITER: &str = "w";
/// Header with the version of a row.
pub const VERSION: &str = "v";
/// Format of the records. A reader rejects a newer format.
pub const FORMAT: i64 = 1;

const TRANSACTION_END: &str = "~end";
const TRANSACTION_BEGIN: &str = "~begin";
const GRANT: &str = "~grant";
const STALE: &str = "~stale";
const LOADED: &str = "~loaded";

/// A parsed record of `view.log`, borrowed from its batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewRecord<'a> {
    /// Row of a view in a bucket, or its removal. Pending until the writer's next transaction end marker.
    Row(Row<'a>),
    /// Transaction end marker: earlier records of this writer in this partition become visible.
    TransactionEnd {
        /// The writer.
        writer: Cow<'a, str>,
        /// Source commit time in ms, for latency metrics; 0 if unknown.
        at_ms: i64,
    },
    /// Begin marker: the writer's source transaction continues in its next Kafka transaction. Pending, never visible.
    TransactionBegin {
        /// The writer.
        writer: Cow<'a, str>,
    },
    /// Stale mark: sets or clears the staleness of a view for this writer. Pending like a row.
    Stale {
        /// The writer.
        writer: Cow<'a, str>,
        /// The view.
        view: Cow<'a, str>,
        /// Whether the view is stale.
        stale: bool,
    },
    /// Loaded mark: whether the first snapshot of the view's table has ended. Pending like a row.
    Loaded {
        /// The writer.
        writer: Cow<'a, str>,
        /// The view.
        view: Cow<'a, str>,
        /// Whether the view is loaded.
        loaded: bool,
    },
    /// Grant of a membership from data. Pending, never visible. No writer produces it yet.
    Grant {
        /// The writer.
        writer: Cow<'a, str>,
    },
}

/// A row of a view in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    /// The writer.
    pub writer: Cow<'a, str>,
    /// Version. Equal in all buckets of the row.
    pub version: [u8; 17],
    /// Bucket name.
    pub bucket: Cow<'a, str>,
    /// View name.
    pub view: Cow<'a, str>,
    /// Elements of the row key's JSON array, without brackets: `17` or `"a",3`.
    pub key: &'a str,
    /// Row as JSON; `None` if the row is removed.
    pub json: Option<&'a [u8]>,
}

/// Why bytes cannot be parsed as a record of `view.log`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The key is not a canonical JSON array that starts with a bucket or a reserved name.
    #[error("key is not [\"bucket\",\"view\",…]: {0}")]
    Key(String),
    /// A header is missing or malformed.
    #[error("header {0} is missing or malformed")]
    Header(&'static str),
    /// The value is truncated or has no schema id.
    #[error("value is malformed: {0}")]
    Value(&'static str),
    /// A newer release wrote the record.
    #[error("record has format {found} but this release supports up to {FORMAT}; update this edge first")]
    Newer {
        /// Format of the record.
        found: i64,
    },
}

type Result<T, E = RecordError> = std::result::Result<T, E>;

/// Parses a record.
///
/// # Errors
/// The key, a header or the value is malformed.
pub fn parse<'a>(record: &event_log::RecordRef<'a>) -> Result<ViewRecord<'a>> {
    let key = record.key().ok_or_else(|| RecordError::Key("null".into()))?;
    let key = std::str::from_utf8(key).map_err(|_| RecordError::Key("not UTF-8".into()))?;
    let bad = || RecordError::Key(key.chars().take(80).collect());
    let inside = key
        .strip_prefix('[')
        .and_then(|k| k.strip_suffix(']'))
        .ok_or_else(bad)?;
    let (first, rest) = take_string(inside).ok_or_else(bad)?;
    match first.as_ref() {
        TRANSACTION_END => {
            let (writer, _) = take_string(rest).ok_or_else(bad)?;
            Ok(ViewRecord::TransactionEnd {
                writer,
                at_ms: source_commit_ms(record.value())?,
            })
        }
        TRANSACTION_BEGIN => {
            let (writer, _) = take_string(rest).ok_or_else(bad)?;
            check_format(record.value())?;
            Ok(ViewRecord::TransactionBegin { writer })
        }
        STALE => {
            let (view, _) = take_string(rest).ok_or_else(bad)?;
            let mut body = Body::open(record.value())?;
            Ok(ViewRecord::Stale {
                writer: writer_of(record)?,
                view,
                stale: body.byte()? == 1,
            })
        }
        LOADED => {
            let (view, _) = take_string(rest).ok_or_else(bad)?;
            let mut body = Body::open(record.value())?;
            Ok(ViewRecord::Loaded {
                writer: writer_of(record)?,
                view,
                loaded: body.byte()? == 1,
            })
        }
        GRANT => Ok(ViewRecord::Grant {
            writer: writer_of(record)?,
        }),
        name if name.starts_with('~') => Err(bad()),
        _ => {
            let (view, key) = take_string(rest).ok_or_else(bad)?;
            let json = match record.value() {
                Some(value) => Some(Body::open(Some(value))?.bytes()?),
                None => None,
            };
            let version = record.header(VERSION).and_then(|v| <[u8; 17]>::try_from(v).ok());
            let version = version.ok_or(RecordError::Header(VERSION))?;
            Ok(ViewRecord::Row(Row {
                writer: writer_of(record)?,
                version,
                bucket: first,
                view,
                key,
                json,
            }))
        }
    }
}

fn writer_of<'a>(record: &event_log::RecordRef<'a>) -> Result<Cow<'a, str>> {
    let writer = record.header(WRITER).and_then(|w| std::str::from_utf8(w).ok());
    writer.map(Cow::Borrowed).ok_or(RecordError::Header(WRITER))
}

fn check_format(value: Option<&[u8]>) -> Result<()> {
    Body::open(value).map(drop)
}

fn source_commit_ms(value: Option<&[u8]>) -> Result<i64> {
    let mut body = Body::open(value)?;
    body.bytes()?;
    body.long()
}

/// Splits off a JSON string and the comma after it.
fn take_string(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let body = text.strip_prefix('"')?;
    let mut escaped = false;
    let end = body.bytes().position(|b| {
        let ends = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        ends
    })?;
    let (quoted, rest) = (text.get(..end + 2)?, text.get(end + 2..)?);
    let inner = body.get(..end)?;
    let string = if inner.contains('\\') {
        Cow::Owned(serde_json::from_str::<String>(quoted).ok()?)
    } else {
        Cow::Borrowed(inner)
    };
    match rest.strip_prefix(',') {
        Some(rest) => Some((string, rest)),
        None if rest.is_empty() => Some((string, rest)),
        None => None,
    }
}

/// Avro body of a value, after schema id and format.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn open(value: Option<&'a [u8]>) -> Result<Self> {
        let value = value.ok_or(RecordError::Value("is null"))?;
        match value.split_first_chunk::<5>() {
            Some(([0, _, _, _, _], body)) => {
                let mut body = Body(body);
                match body.long()? {
                    FORMAT => Ok(body),
                    found => Err(RecordError::Newer { found }),
                }
            }
            _ => Err(RecordError::Value("does not start with a schema id")),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        let (byte, rest) = self.0.split_first().ok_or(RecordError::Value("cut short"))?;
        self.0 = rest;
        Ok(*byte)
    }

    /// Avro long: zigzag, variable length.
    fn long(&mut self) -> Result<i64> {
        let mut raw = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            raw |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let magnitude = i64::from_ne_bytes((raw >> 1).to_ne_bytes());
                return Ok(if raw & 1 == 0 { magnitude } else { !magnitude });
            }
        }
        Err(RecordError::Value("a number exceeds 64 bits"))
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = usize::try_from(self.long()?).map_err(|_| RecordError::Value("a negative length"))?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(RecordError::Value("cut short"))?;
        self.0 = rest;
        Ok(bytes)
    }
}

/// Encodes the records of one writer. Reuses its buffers, so that a row needs no allocation.
#[derive(Debug)]
pub struct Writer {
    id: String,
    row_schema: [u8; 5],
    end_key: Vec<u8>,
    end_schema: [u8; 5],
    begin_key: Vec<u8>,
    begin_schema: [u8; 5],
    stale_schema: [u8; 5],
    loaded_schema: [u8; 5],
    key: Vec<u8>,
    value: Vec<u8>,
}

/// Registry ids of the schemas of `view.log`.
#[derive(Debug, Clone, Copy)]
pub struct SchemaIds {
    /// Id of `trunkline.ViewRow`.
    pub row: u32,
    /// Id of `trunkline.TransactionEnd`.
    pub transaction_end: u32,
    /// Id of `trunkline.TransactionBegin`.
    pub transaction_begin: u32,
    /// Id of `trunkline.Stale`.
    pub stale: u32,
    /// Id of `trunkline.Loaded`.
    pub loaded: u32,
}

/// Key and value of an encoded record, borrowed from the [`Writer`].
pub type Written<'a> = (&'a [u8], Option<&'a [u8]>);

impl Writer {
    /// Creates a writer with the id `<processor>/<topic>/<topic id>/<partition>`.
    pub fn new(id: impl Into<String>, schemas: SchemaIds) -> Self {
        let id = id.into();
        let framed = |schema: u32| {
            let [a, b, c, d] = schema.to_be_bytes();
            [0, a, b, c, d]
        };
        Writer {
            end_key: reserved_key(TRANSACTION_END, &id),
            begin_key: reserved_key(TRANSACTION_BEGIN, &id),
            id,
            row_schema: framed(schemas.row),
            end_schema: framed(schemas.transaction_end),
            begin_schema: framed(schemas.transaction_begin),
            stale_schema: framed(schemas.stale),
            loaded_schema: framed(schemas.loaded),
            key: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Id of the writer, the value of the header [`WRITER`].
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Encodes a row. `key` has the elements of the row key's JSON array, without brackets; `json` is `None` to remove the
    /// row.
    pub fn row(&mut self, bucket: &str, view: &str, key: &str, json: Option<&[u8]>) -> Written<'_> {
        self.key.clear();
        self.key.push(b'[');
        push_string(&mut self.key, bucket);
        self.key.push(b',');
        push_string(&mut self.key, view);
        self.key.push(b',');
        self.key.extend_from_slice(key.as_bytes());
        self.key.push(b']');
        let value = json.map(|json| {
            start_value(&mut self.value, &self.row_schema);
            push_bytes(&mut self.value, json);
            self.value.as_slice()
        });
        (&self.key, value)
    }

    /// Encodes a transaction end marker. `version` is that of the source transaction.
    pub fn transaction_end(&mut self, version: Version, at_ms: i64) -> Written<'_> {
        start_value(&mut self.value, &self.end_schema);
        push_bytes(&mut self.value, &version.to_bytes());
        push_long(&mut self.value, at_ms);
        (&self.end_key, Some(&self.value))
    }

    /// Encodes a begin marker, for a Kafka transaction that ends within a source transaction.
    pub fn transaction_begin(&mut self, version: Version) -> Written<'_> {
        start_value(&mut self.value, &self.begin_schema);
        push_bytes(&mut self.value, &version.to_bytes());
        (&self.begin_key, Some(&self.value))
    }

    /// Encodes a stale mark of this writer.
    pub fn stale_mark(&mut self, view: &str, stale: bool) -> Written<'_> {
        let schema = self.stale_schema;
        self.mark(STALE, view, &schema, stale)
    }

    /// Encodes a loaded mark of this writer.
    pub fn loaded_mark(&mut self, view: &str, loaded: bool) -> Written<'_> {
        let schema = self.loaded_schema;
        self.mark(LOADED, view, &schema, loaded)
    }

    fn mark(&mut self, name: &str, view: &str, schema: &[u8; 5], is_set: bool) -> Written<'_> {
        self.key.clear();
        self.key.push(b'[');
        push_string(&mut self.key, name);
        for part in [view, &self.id] {
            self.key.push(b',');
            push_string(&mut self.key, part);
        }
        self.key.push(b']');
        start_value(&mut self.value, schema);
        self.value.push(u8::from(is_set));
        (&self.key, Some(&self.value))
    }
}

fn reserved_key(name: &str, writer: &str) -> Vec<u8> {
    let mut key = vec![b'['];
    push_string(&mut key, name);
    key.push(b',');
    push_string(&mut key, writer);
    key.push(b']');
    key
}

fn start_value(value: &mut Vec<u8>, schema: &[u8; 5]) {
    value.clear();
    value.extend_from_slice(schema);
    push_long(value, FORMAT);
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push_long(
        out,
        i64::try_from(bytes.len()).expect("a record is smaller than 2^63 bytes"),
    );
    out.extend_from_slice(bytes);
}

fn push_long(out: &mut Vec<u8>, value: i64) {
    let mut raw = u64::from_ne_bytes(((value << 1) ^ (value >> 63)).to_ne_bytes());
    loop {
        let low = u8::try_from(raw & 0x7f).expect("seven bits fit a byte");
        raw >>= 7;
        if raw == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Appends a JSON string with the shortest escapes.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let plain = |b: u8| b >= 0x20 && b != b'"' && b != b'\\';
    if text.bytes().all(plain) {
        out.extend_from_slice(text.as_bytes());
    } else {
        let quoted = serde_json::to_string(text).expect("a string has a JSON form");
        out.extend_from_slice(quoted.get(1..quoted.len() - 1).unwrap_or_default().as_bytes());
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_log::{Header, NewRecord, RecordBatch, TimestampType, TopicPartition};

    const IDS: SchemaIds = SchemaIds {
        row: 1,
        transaction_end: 2,
        transaction_begin: 3,
        stale: 4,
        loaded: 5,
    };

    fn batch(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header<'_>]) -> RecordBatch {
        let mut batch = RecordBatch::default();
        let at = batch.intern(&TopicPartition::new("shop.view.log", 0));
        batch.push(
            at,
            NewRecord {
                offset: 7,
                timestamp: 1,
                timestamp_type: TimestampType::LogAppend,
                key,
                value,
            },
            headers.iter().copied(),
        );
        batch
    }

    #[test]
    fn row_round_trips_with_escaped_names() {
        let mut writer = Writer::new("p/t/0/0", IDS);
        let version = [9_u8; 17];
        for json in [Some(br#"{"id":1}"#.as_slice()), None] {
            let (key, value) = writer.row("user:a\"b\\c", "orders", "1,\"x\"", json);
            let headers: [Header<'_>; 2] = [(WRITER, Some(b"p/t/0/0")), (VERSION, Some(&version))];
            let batch = batch(Some(key), value, &headers);
            let ViewRecord::Row(row) = parse(&batch.get(0).unwrap()).unwrap() else {
                panic!("not a row")
            };
            assert_eq!(
                (row.bucket.as_ref(), row.view.as_ref(), row.key),
                ("user:a\"b\\c", "orders", "1,\"x\"")
            );
            assert_eq!((row.json, row.version), (json, version));
        }
    }

    #[test]
    fn transaction_markers_round_trip() {
        let mut writer = Writer::new("p/t/0/0", IDS);
        let (key, value) = writer.transaction_end(Version::default(), 1_732_390_000_123);
        let read = batch(Some(key), value, &[]);
        let want = ViewRecord::TransactionEnd {
            writer: "p/t/0/0".into(),
            at_ms: 1_732_390_000_123,
        };
        assert_eq!(parse(&read.get(0).unwrap()).unwrap(), want);
        let (key, value) = writer.transaction_begin(Version::default());
        let read = batch(Some(key), value, &[]);
        assert_eq!(
            parse(&read.get(0).unwrap()).unwrap(),
            ViewRecord::TransactionBegin {
                writer: "p/t/0/0".into()
            }
        );
    }

    #[test]
    fn marks_round_trip() {
        let mut writer = Writer::new("p/t/0/0", IDS);
        let headers: [Header<'_>; 1] = [(WRITER, Some(b"p/t/0/0"))];
        for is_set in [true, false] {
            let (key, value) = writer.stale_mark("orders", is_set);
            let read = batch(Some(key), value, &headers);
            let stale = ViewRecord::Stale {
                writer: "p/t/0/0".into(),
                view: "orders".into(),
                stale: is_set,
            };
            assert_eq!(parse(&read.get(0).unwrap()).unwrap(), stale);
            let (key, value) = writer.loaded_mark("orders", is_set);
            let read = batch(Some(key), value, &headers);
            let loaded = ViewRecord::Loaded {
                writer: "p/t/0/0".into(),
                view: "orders".into(),
                loaded: is_set,
            };
            assert_eq!(parse(&read.get(0).unwrap()).unwrap(), loaded);
        }
    }

    #[test]
    fn malformed_record_is_an_error() {
        let version = [9_u8; 17];
        let good: [Header<'_>; 2] = [(WRITER, Some(b"w")), (VERSION, Some(&version))];
        let newer = [0, 0, 0, 0, 1, 4, 0];
        type Case<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, &'a [Header<'a>]);
        let cases: [Case<'_>; 8] = [
            (None, None, &good),
            (Some(b"\xff"), None, &good),
            (Some(b"[1,2]"), None, &good),
            (Some(b"[\"~other\",\"x\"]"), None, &good),
            (Some(b"[\"b\",\"v\",1]"), None, &[]),
            (Some(b"[\"b\",\"v\",1]"), Some(b"\x01\x00"), &good),
            (Some(b"[\"b\",\"v\",1]"), Some(&newer), &good),
            (Some(b"[\"~end\",\"w\"]"), None, &[]),
        ];
        let texts: Vec<String> = cases
            .iter()
            .map(|(k, v, h)| parse(&batch(*k, *v, h).get(0).unwrap()).unwrap_err().to_string())
            .collect();
        assert!(texts.iter().all(|t| !t.is_empty()));
        assert_eq!(
            texts[6],
            "record has format 2 but this release supports up to 1; update this edge first"
        );
    }
}
