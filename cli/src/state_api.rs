//! Queries of processors' state on the admin listener.
//!
//! A query is answered if this process owns the task, else redirected to the owner, whose address is in the members topic.
//! Queries read committed state only; an answer contains the input offsets up to which it is valid. State of
//! declarative processors is decoded; other values are returned as JSON, text or hexadecimal digits.

use anyhow::Context;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use processors::declarative::readable;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use service::access::Role;
use service::admin::{Access, Endpoint, Parameter, Routes, Success};
use service::problem::{BAD_REQUEST, INTERNAL, Kind, UNAVAILABLE};
use service::{Problem, chain};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use streams::Handle;
use streams::query::{QueryError, QueryResult, Range, Row};
use topology::Processor;

/// Path of the queries on the admin listener.
const PATH: &str = "/v1/state";
/// This process cannot answer the query.
const STATE_NOT_FOUND: Kind = Kind::new("state-not-found", StatusCode::NOT_FOUND, "There is no such state here");
/// Default number of rows of a scan.
const DEFAULT_LIMIT: usize = 100;

/// The URL of a query: `segments` are appended to the path of the API.
pub fn url(base: &str, segments: &[&str], query: &[(&str, &str)]) -> anyhow::Result<Url> {
    let mut url = Url::parse(&format!("{}{PATH}", base.trim_end_matches('/')))
        .with_context(|| format!("`{base}` is not a URL; write it like http://127.0.0.1:8082"))?;
    if let Ok(mut path) = url.path_segments_mut() {
        path.extend(segments);
    }
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    Ok(url)
}

/// The processors that run in this process.
#[derive(Clone, Default)]
pub struct RunningProcessors {
    all: Arc<Mutex<Vec<RunningProcessor>>>,
}

/// A running processor, with its declaration if it is declarative.
#[derive(Clone)]
struct RunningProcessor {
    handle: Handle,
    declaration: Option<Arc<Processor>>,
}

impl RunningProcessors {
    /// Adds a started processor. If its declaration is given, its state is decoded in answers.
    pub fn add(&self, handle: Handle, declaration: Option<Arc<Processor>>) {
        self.lock().push(RunningProcessor { handle, declaration });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<RunningProcessor>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, processor: &str) -> Result<RunningProcessor, Box<Problem>> {
        let all = self.lock();
        let found = all.iter().find(|running| running.handle.application() == processor);
        found.cloned().ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|running| running.handle.application()).collect();
            let names = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            };
            Box::new(STATE_NOT_FOUND.detail(format!(
                "processor `{processor}` does not run in this process (running here: {names}); query a process that runs it"
            )))
        })
    }
}

/// The processors of a process, which start once its log is open.
pub type SharedProcessors = Arc<OnceLock<RunningProcessors>>;

/// The routes: `/v1/state`, `/v1/state/{processor}/{store}?key=` and `/v1/state/{processor}/{store}/scan`.
pub fn routes(running: SharedProcessors) -> Routes {
    let viewer = Access::Role(Role::Viewer);
    let all = Endpoint::get(PATH, viewer)
        .summary("List the processors of the process, their stores and tasks")
        .answers(PROCESSORS)
        .errors(&[503]);
    let row = Endpoint::get("/v1/state/{processor}/{store}", viewer)
        .summary("Get the row with a key")
        .query(KEY)
        .answers(FOUND)
        .errors(&[400, 404, 500, 503]);
    let rows = Endpoint::get("/v1/state/{processor}/{store}/scan", viewer)
        .summary("List rows of a partition")
        .query(RANGE)
        .answers(FOUND)
        .errors(&[400, 404, 500, 503]);
    Routes::new()
        .route(all, list, running.clone())
        .route(row, get_row, running.clone())
        .route(rows, scan, running)
}

const KEY: &[Parameter] = &[
    Parameter::required("key", "string", "State key"),
    Parameter::optional(
        "partition",
        "integer",
        "Partition of the task; default: that of the key",
    ),
];
const RANGE: &[Parameter] = &[
    Parameter::required("partition", "integer", "Partition of the task"),
    Parameter::optional("prefix", "string", "Start of the state keys"),
    Parameter::optional("after", "string", "Last state key of the previous answer"),
    Parameter::optional("limit", "integer", "Maximum number of rows; default 100"),
];
const PROCESSORS: &[Success] = &[Success::text(200, "The processors", "application/json")];
/// Answers to a query.
const FOUND: &[Success] = &[
    Success::text(200, "The rows", "application/json"),
    Success::empty(307, "Another process has the task; Location is the URL there"),
];

fn opened(running: &SharedProcessors) -> Result<RunningProcessors, Box<Problem>> {
    let opened = running.get().cloned();
    opened.ok_or_else(|| {
        let problem = UNAVAILABLE.detail("the log is not open yet; see /readyz");
        Box::new(problem.retry_after(1))
    })
}

async fn list(State(running): State<SharedProcessors>) -> Result<Json<Value>, Problem> {
    let all = opened(&running).map_err(|problem| *problem)?.lock().clone();
    let listed = all.iter().map(|RunningProcessor { handle, .. }| {
        json!({
            "processor": handle.application(),
            "stores": handle.stores(),
            "tasks": handle.tasks(),
        })
    });
    Ok(Json(listed.collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetQuery {
    key: String,
    partition: Option<i32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScanQuery {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    limit: Option<usize>,
    partition: i32,
}

/// A query without its partition, from which the URL of a redirect is derived.
struct Target {
    processor: String,
    store: String,
    /// Path below the store.
    operation: Option<&'static str>,
    /// Query parameters except the partition.
    parameters: Vec<(&'static str, String)>,
}

impl Target {
    /// URL of the same query at another process.
    fn at(&self, admin: &str, partition: i32) -> anyhow::Result<Url> {
        let mut segments = vec![self.processor.as_str(), self.store.as_str()];
        segments.extend(self.operation);
        let partition = partition.to_string();
        let mut query: Vec<(&str, &str)> = self.parameters.iter().map(|(k, v)| (*k, v.as_str())).collect();
        query.push(("partition", &partition));
        url(admin, &segments, &query)
    }
}

async fn get_row(
    State(running): State<SharedProcessors>,
    Path((processor, store)): Path<(String, String)>,
    query: Result<Query<GetQuery>, QueryRejection>,
) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(error) => return bad_request(&error, "the parameters are key (required) and partition"),
    };
    let target = Target {
        processor,
        store,
        operation: None,
        parameters: vec![("key", query.key.clone())],
    };
    answer(running, target, move |handle, store| {
        let key = query.key.as_bytes();
        let partition = query.partition.map_or_else(|| handle.partition_of(store, key), Ok)?;
        Ok((partition, handle.get(store, partition, key)?))
    })
    .await
}

async fn scan(
    State(running): State<SharedProcessors>,
    Path((processor, store)): Path<(String, String)>,
    query: Result<Query<ScanQuery>, QueryRejection>,
) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(error) => {
            return bad_request(
                &error,
                "the parameters are partition (required), prefix, after and limit",
            );
        }
    };
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    let mut parameters = vec![("prefix", query.prefix.clone()), ("limit", limit.to_string())];
    parameters.extend(query.after.clone().map(|after| ("after", after)));
    let target = Target {
        processor,
        store,
        operation: Some("scan"),
        parameters,
    };
    answer(running, target, move |handle, store| {
        let range = Range {
            prefix: query.prefix.into_bytes(),
            after: query.after.map(String::into_bytes),
            limit,
        };
        Ok((query.partition, handle.scan(store, query.partition, &range)?))
    })
    .await
}

/// Runs the query on a blocking thread, because finding the owner of a task reads from the log.
async fn answer(
    running: SharedProcessors,
    target: Target,
    query: impl FnOnce(&Handle, &str) -> Result<(i32, QueryResult), QueryError> + Send + 'static,
) -> Response {
    let running = match opened(&running) {
        Ok(running) => running,
        Err(problem) => return (*problem).into_response(),
    };
    let RunningProcessor { handle, declaration } = match running.find(&target.processor) {
        Ok(running) => running,
        Err(problem) => return (*problem).into_response(),
    };
    let store = target.store.clone();
    let result = tokio::task::spawn_blocking(move || query(&handle, &store)).await;
    match result {
        Ok(Ok((partition, answer))) => Json(rows_json(partition, &answer, declaration.as_deref())).into_response(),
        Ok(Err(QueryError::Elsewhere {
            task,
            admin: Some(admin),
            ..
        })) => match target.at(&admin, task.partition) {
            Ok(to) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to.to_string())]).into_response(),
            Err(error) => {
                tracing::error!(%admin, reason = format!("{error:#}"), "announced admin address is invalid");
                INTERNAL
                    .detail("the announced address of the process with the task is not a URL")
                    .into_response()
            }
        },
        Ok(Err(error)) => problem(&error, &target.store).into_response(),
        Err(_) => INTERNAL.detail("the query failed; see the log").into_response(),
    }
}

fn problem(error: &QueryError, store: &str) -> Problem {
    let kind = match error {
        QueryError::UnknownStore { .. } | QueryError::UnknownPartition { .. } => STATE_NOT_FOUND,
        QueryError::Starting(_) | QueryError::NotReady { .. } | QueryError::Log(_) | QueryError::Elsewhere { .. } => {
            UNAVAILABLE
        }
        _ => {
            tracing::error!(store, reason = chain(error), "state query failed");
            INTERNAL
        }
    };
    let problem = kind.detail(match error {
        QueryError::Elsewhere { .. } => {
            format!("{error}; set `admin.advertise` in the configuration of that process, or query it directly")
        }
        _ => chain(error),
    });
    if kind == UNAVAILABLE {
        problem.retry_after(1)
    } else {
        problem
    }
}

fn bad_request(error: &QueryRejection, fix: &str) -> Response {
    let detail = format!("{}; {fix}", error.body_text());
    BAD_REQUEST.detail(detail).into_response()
}

fn rows_json(partition: i32, answer: &QueryResult, declaration: Option<&Processor>) -> Value {
    let value = |row: &Row| {
        let decoded = declaration.and_then(|declaration| readable(declaration, &row.key, &row.value));
        decoded.unwrap_or_else(|| bytes_json(&row.value))
    };
    let row = |row: &Row| json!({ "key": bytes_json(&row.key), "value": value(row) });
    let input = |(topic, partition, next): &(String, i32, i64)| json!({ "topic": topic, "partition": partition, "next_offset": next });
    json!({
        "partition": partition,
        "rows": answer.rows.iter().map(row).collect::<Vec<_>>(),
        "more": answer.more,
        "contains": answer.positions.iter().map(input).collect::<Vec<_>>(),
    })
}

/// JSON as it is, printable UTF-8 as a string, other bytes as `{"hex": …}`.
fn bytes_json(bytes: &[u8]) -> Value {
    if let Ok(value) = serde_json::from_slice(bytes) {
        return value;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.into(),
        _ => {
            let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
            json!({ "hex": digits.collect::<String>() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_json_text_or_hex() {
        assert_eq!(bytes_json(br#"["a",1]"#), json!(["a", 1]));
        assert_eq!(bytes_json("späť".as_bytes()), json!("späť"));
        assert_eq!(bytes_json(&[0, 0, 0, 7]), json!({ "hex": "00000007" }));
    }

    #[test]
    fn redirect_keeps_key_and_store() {
        let target = Target {
            processor: "totals".to_owned(),
            store: "a/b c".to_owned(),
            operation: None,
            parameters: vec![("key", r#"["a&b",1]"#.to_owned())],
        };
        let url = target.at("http://127.0.0.1:8082/", 3).unwrap();
        assert_eq!(url.path(), "/v1/state/totals/a%2Fb%20c");
        let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let expected = [("key", r#"["a&b",1]"#), ("partition", "3")];
        assert_eq!(query, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert!(super::url("not a url", &[], &[]).is_err());
    }
}
