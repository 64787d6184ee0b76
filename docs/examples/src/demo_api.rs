//! An HTTP API to try the example without other tools: it writes orders and customers, and reads the newest balances.
//!
//! A write is answered when the record has been stored. A real service does not need this module: its backends write to
//! the topics and read from them.

use crate::loyalty::Topics;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use event_log::{Isolation, OffsetSpec, OutBatch, OutRecord, RecordBatch, SharedEventLog, StartFrom, TopicPartition};
use serde_json::{Map, Value};
use service::access::Role;
use service::admin::{Access, Endpoint, Routes};
use std::sync::Arc;
use std::time::Duration;

type ApiError = (StatusCode, String);

struct DemoApi {
    log: SharedEventLog,
    topics: Topics,
}

/// The routes.
pub fn routes(log: SharedEventLog, topics: Topics) -> Routes {
    let api = Arc::new(DemoApi { log, topics });
    let (viewer, operator) = (Access::Role(Role::Viewer), Access::Role(Role::Operator));
    Routes::new()
        .route(Endpoint::post("/orders/{customer}", operator), order, api.clone())
        .route(Endpoint::put("/customers/{customer}", operator), customer, api.clone())
        .route(Endpoint::get("/points", viewer), points, api)
}

async fn order(api: State<Arc<DemoApi>>, Path(customer): Path<String>, body: Bytes) -> Result<String, ApiError> {
    let topic = api.topics.orders.clone();
    append(api, topic, customer, body).await
}

async fn customer(api: State<Arc<DemoApi>>, Path(customer): Path<String>, body: Bytes) -> Result<String, ApiError> {
    let topic = api.topics.customers.clone();
    append(api, topic, customer, body).await
}

/// Appends the body without a check, as any producer could. The processor writes invalid records as dead letters.
async fn append(
    State(api): State<Arc<DemoApi>>,
    topic: Arc<str>,
    customer: String,
    body: Bytes,
) -> Result<String, ApiError> {
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
        api.log.append(&batch).map(|_| "stored\n".to_owned())
    })
    .await
}

async fn points(State(api): State<Arc<DemoApi>>) -> Result<Json<Map<String, Value>>, ApiError> {
    blocking(move || newest(&api)).await.map(Json)
}

/// The newest committed record of each customer.
fn newest(api: &DemoApi) -> event_log::Result<Map<String, Value>> {
    let topic = &api.topics.points;
    let partitions = api.log.describe(topic)?.map_or(0, |info| info.partitions);
    let mut found = Map::new();
    for partition in 0..partitions {
        let at = TopicPartition::new(topic.clone(), partition);
        let end = api.log.offset(&at, OffsetSpec::LastStable)?;
        let mut reader = api.log.reader(Isolation::ReadCommitted)?;
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

/// Runs a blocking call on a thread of the blocking pool.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> event_log::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let unavailable = |text| (StatusCode::SERVICE_UNAVAILABLE, text);
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(unavailable(service::chain(&error))),
        Err(error) => Err(unavailable(error.to_string())),
    }
}
