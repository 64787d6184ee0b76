//! A first look without another tool: posting orders and customers, and seeing the newest balances.
//!
//! Guarantees: a post is answered when it is stored. Never: a part of the example that a service of one's own needs; there
//! backends write to the topics, and what is told of them is read from them.

use crate::loyalty::Topics;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use event_log::{Isolation, OffsetSpec, OutBatch, OutRecord, RecordBatch, SharedEventLog, StartFrom, TopicPartition};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;

type Refused = (StatusCode, String);

struct Look {
    log: SharedEventLog,
    topics: Topics,
}

/// The routes.
pub fn router(log: SharedEventLog, topics: Topics) -> Router {
    Router::new()
        .route("/orders/{customer}", post(order))
        .route("/customers/{customer}", put(customer))
        .route("/points", get(points))
        .with_state(Arc::new(Look { log, topics }))
}

async fn order(look: State<Arc<Look>>, Path(customer): Path<String>, body: Bytes) -> Result<String, Refused> {
    let topic = look.topics.orders.clone();
    append(look, topic, customer, body).await
}

async fn customer(look: State<Arc<Look>>, Path(customer): Path<String>, body: Bytes) -> Result<String, Refused> {
    let topic = look.topics.customers.clone();
    append(look, topic, customer, body).await
}

/// Appends whatever was posted: what cannot be read is the processor's to give up, as from any producer.
async fn append(
    State(look): State<Arc<Look>>,
    topic: Arc<str>,
    customer: String,
    body: Bytes,
) -> Result<String, Refused> {
    blocking(move || {
        let key = Value::from(vec!["customer".to_owned(), customer]).to_string();
        let record = OutRecord {
            topic: &topic,
            partition: None,
            timestamp: None,
            key: Some(key.as_bytes()),
            value: Some(&body),
        };
        let mut batch = OutBatch::default();
        batch.push(record, []);
        look.log.append(&batch).map(|_| "stored\n".to_owned())
    })
    .await
}

async fn points(State(look): State<Arc<Look>>) -> Result<Json<Map<String, Value>>, Refused> {
    blocking(move || newest(&look)).await.map(Json)
}

/// The newest committed record of each customer.
fn newest(look: &Look) -> event_log::Result<Map<String, Value>> {
    let topic = &look.topics.points;
    let partitions = look.log.describe(topic)?.map_or(0, |info| info.partitions);
    let mut found = Map::new();
    for partition in 0..partitions {
        let at = TopicPartition::new(topic.clone(), partition);
        let end = look.log.offset(&at, OffsetSpec::LastStable)?;
        let mut reader = look.log.reader(Isolation::ReadCommitted)?;
        reader.assign(&[(at.clone(), StartFrom::Earliest)])?;
        let mut batch = RecordBatch::default();
        while reader.position(&at).is_none_or(|next| next < end) {
            reader.poll(&mut batch, 1 << 20, Duration::from_millis(100))?;
            found.extend(batch.iter().map(|record| {
                let key: Result<(String, String), _> = serde_json::from_slice(record.key().unwrap_or_default());
                let value = serde_json::from_slice(record.value().unwrap_or_default());
                (
                    key.map_or_else(|_| "?".to_owned(), |(_, id)| id),
                    value.unwrap_or_default(),
                )
            }));
        }
    }
    Ok(found)
}

/// Runs what blocks on a thread for it.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> event_log::Result<T> + Send + 'static,
) -> Result<T, Refused> {
    let refused = |text| (StatusCode::SERVICE_UNAVAILABLE, text);
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(refused(service::chain(&error))),
        Err(error) => Err(refused(error.to_string())),
    }
}
