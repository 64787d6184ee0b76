//! Stores events, and deletes rows of views that read an event topic.
//!
//! Events of requests without an idempotency key are appended to the topic. Those with a key are stored by a source, whose
//! position contains the key, so that a repeated request is stored once, also after a crash.

use super::appender::AppendError;
use super::counts;
use super::reply::{EVENT_TOO_LARGE, Misfit, outcome, rejected, stored, unavailable};
use super::request::Post;
use super::state::{EventTopic, Ingest};
use crate::sources::http::{JsonMismatch, KeyParts, PostOutcome};
use axum::response::Response;
use event_log::{Header, OutBatch, OutRecord};
use schemas::codec::{Datum, UnknownFields};
use schemas::headers;
use schemas::key::KeyWriter;
use schemas::wire;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use service::Problem;
use service::trace::PARENT;

/// Upper bound of what the log adds to a record.
const RECORD_OVERHEAD: usize = 256;

/// An encoded record.
struct Encoded {
    key: Vec<u8>,
    /// `None` deletes the rows with this key.
    value: Option<Vec<u8>>,
}

/// Stores the events of a request. With `partial`, events that do not match the schema do not prevent that the others are
/// stored.
pub(super) async fn store(
    ingest: &Ingest,
    event: &EventTopic,
    post: &Post,
    partial: bool,
) -> Result<Response, Problem> {
    let unknown = ingest.config.unknown_fields;
    let (records, misfits) = encode_all(event, post, |text| encode(event, text, unknown))?;
    if !partial {
        if !misfits.is_empty() {
            return Err(rejected(misfits.into_iter().map(|(_, misfit)| misfit).collect()));
        }
        let scope = event.name.clone();
        let items = None;
        return append(ingest, post, Batch { scope, records, items }).await;
    }
    let mut items: Vec<Value> = (0..records.len() + misfits.len())
        .map(|index| json!({ "index": index, "status": 200 }))
        .collect();
    for (index, misfit) in &misfits {
        if let Some(item) = items.get_mut(*index) {
            *item = misfit.status(*index);
        }
    }
    let batch = Batch {
        scope: event.name.clone(),
        records,
        items: Some(items),
    };
    append(ingest, post, batch).await
}

/// Stores a tombstone for each key of a request.
pub(super) async fn delete(ingest: &Ingest, event: &EventTopic, post: &Post) -> Result<Response, Problem> {
    let (records, misfits) = encode_all(event, post, |text| encode_key(event, text))?;
    if !misfits.is_empty() {
        return Err(rejected(misfits.into_iter().map(|(_, misfit)| misfit).collect()));
    }
    let batch = Batch {
        scope: format!("{}/deletions", event.name),
        records,
        items: None,
    };
    append(ingest, post, batch).await
}

/// Misfits with the indices of their items.
type Misfits = Vec<(usize, Misfit)>;

/// Encodes the items of a request as records.
fn encode_all(
    event: &EventTopic,
    post: &Post,
    encode: impl Fn(&RawValue) -> Result<Encoded, JsonMismatch>,
) -> Result<(OutBatch, Misfits), Box<Problem>> {
    let items = post.items()?;
    let (mut out, mut misfits) = (OutBatch::default(), Misfits::new());
    for (index, text) in items.texts.iter().copied().enumerate() {
        let encoded = match encode(text) {
            Ok(encoded) => encoded,
            Err(mismatch) => {
                misfits.push((index, Misfit::below(&items.path(index), &mismatch, &event.name)));
                continue;
            }
        };
        let id = post.key.as_ref().map(|key| items.key(key, index));
        let size = encoded.key.len() + encoded.value.as_ref().map_or(0, Vec::len) + RECORD_OVERHEAD;
        if size > event.record_bytes_max {
            return Err(Box::new(too_large(size, event.record_bytes_max)));
        }
        let header: Option<Header<'_>> = id.as_ref().map(|id| (headers::IDEMPOTENCY_KEY, Some(id.as_bytes())));
        let trace = post.trace.as_ref().map(|trace| (PARENT, Some(trace.as_bytes())));
        let record = OutRecord {
            topic: &event.topic,
            partition: None,
            timestamp: None,
            key: Some(&encoded.key),
            value: encoded.value.as_deref(),
        };
        out.push(record, header.into_iter().chain(trace));
    }
    Ok((out, misfits))
}

fn too_large(bytes: usize, limit: usize) -> Problem {
    EVENT_TOO_LARGE.detail(format!(
        "an event has {bytes} bytes, but the log accepts at most {limit}; send a smaller event, or raise \
         max.message.bytes of the topic"
    ))
}

/// What is stored for a request.
struct Batch {
    /// Scope of the idempotency key.
    scope: String,
    records: OutBatch,
    /// Statuses of the items, for a batch that is stored partially.
    items: Option<Vec<Value>>,
}

/// Stores the records, exactly once if the request has an idempotency key.
async fn append(ingest: &Ingest, post: &Post, batch: Batch) -> Result<Response, Problem> {
    let Batch { scope, records, items } = batch;
    let (count, bytes) = (records.len(), records.byte_len());
    if let Some(fingerprint) = post.fingerprint(&scope) {
        let Some(handle) = &ingest.keyed_events else {
            return Err(unavailable("events with an Idempotency-Key are not accepted yet"));
        };
        let posted = handle.post_events(records, fingerprint).await;
        if matches!(posted, Ok(PostOutcome::Stored(_))) {
            counts::stored(&post.credential, &post.topic, count, bytes);
        }
        return Ok(outcome(posted, items)?);
    }
    let produced = match ingest.appender.append(records, post.permit.clone()).await {
        Ok(produced) => produced,
        Err(AppendError::Log(event_log::Error::TooLarge { bytes, limit, .. })) => {
            return Err(too_large(bytes, limit));
        }
        Err(error) => return Err(unavailable(&service::chain(&error))),
    };
    counts::stored(&post.credential, &post.topic, count, bytes);
    let at: Vec<Value> = produced
        .iter()
        .map(|p| json!({"partition": p.at.partition, "first_offset": p.first_offset, "next_offset": p.next_offset}))
        .collect();
    Ok(stored(json!({ "stored": count, "at": at }), items))
}

/// Encodes an event: its key, and its value with the schema id.
fn encode(event: &EventTopic, item: &RawValue, unknown: UnknownFields) -> Result<Encoded, JsonMismatch> {
    let mut value = Vec::new();
    wire::frame(event.id, &mut value);
    event
        .schema
        .encode_json_text(item, unknown, &mut value)
        .map_err(|e| JsonMismatch::new(e.path(), e.reason))?;
    let mut row = Vec::new();
    let body = value.get(wire::FRAME_LENGTH..).unwrap_or_default();
    event
        .schema
        .decode(body, &mut row)
        .map_err(|e| JsonMismatch::new("$", e.to_string()))?;
    let key = key_of(event, |at| row.get(at).cloned())?;
    let value = Some(value);
    Ok(Encoded { key, value })
}

/// Encodes the deletion of the rows with a key.
fn encode_key(event: &EventTopic, item: &RawValue) -> Result<Encoded, JsonMismatch> {
    let parts = KeyParts::parse(&event.schema, &event.key, item)?;
    let key = key_of(event, |at| parts.get(&event.schema, at))?;
    Ok(Encoded { key, value: None })
}

fn key_of<'a>(event: &EventTopic, value: impl Fn(usize) -> Option<Datum<'a>>) -> Result<Vec<u8>, JsonMismatch> {
    let mut key = Vec::new();
    let mut writer = KeyWriter::new(&mut key);
    for at in &event.key {
        let Some(field) = event.schema.fields().get(*at) else {
            continue;
        };
        let datum = value(*at).filter(|datum| !matches!(datum, Datum::Null));
        let datum = datum.ok_or_else(|| JsonMismatch::new(format!("$.{}", field.column()), "a key field is null"))?;
        writer = writer.datum(&event.schema, field.ty, &datum);
    }
    writer.finish();
    Ok(key)
}
