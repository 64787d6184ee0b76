//! Questions about processors' state on the operators' listener: answered here, or redirected to the process that can.
//!
//! Values of declared processors' state are decoded; those of other layouts are shown as they are.
//! Guarantees: read-only; an answer names the place in the inputs that it contains; a redirect names an address that
//! the other process has told of itself. Never: uncommitted state, a question passed on by this process.

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use processors::declared::readable;
use serde::Deserialize;
use serde_json::{Value, json};
use service::{Problem, chain};
use std::sync::{Arc, Mutex, PoisonError};
use streams::Handle;
use streams::query::{Answer, QueryError, Range, Row};
use topology::Processor;

/// Path of the questions on the operators' listener.
pub const PATH: &str = "/v1/state";
/// Rows of a scan that does not say.
const ROWS: usize = 100;

/// The processors that run in this process.
#[derive(Clone, Default)]
pub struct Running {
    all: Arc<Mutex<Vec<One>>>,
}

/// A processor, with its declaration if it has one.
#[derive(Clone)]
struct One {
    handle: Handle,
    declared: Option<Arc<Processor>>,
}

impl Running {
    /// Adds one that was started; `declared` is what its state is written by, if it is declared.
    pub fn add(&self, handle: Handle, declared: Option<Arc<Processor>>) {
        self.lock().push(One { handle, declared });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<One>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, processor: &str) -> Result<One, Box<Problem>> {
        let all = self.lock();
        let found = all.iter().find(|one| one.handle.application() == processor);
        found.cloned().ok_or_else(|| {
            let known: Vec<&str> = all.iter().map(|one| one.handle.application()).collect();
            let here = if known.is_empty() {
                "it runs none".to_owned()
            } else {
                format!("it runs {}", known.join(", "))
            };
            Box::new(Problem::status(StatusCode::NOT_FOUND).detail(format!(
                "this process does not run processor `{processor}`: {here}; ask a process that does"
            )))
        })
    }

    /// The routes: `/v1/state`, `/v1/state/{processor}/{store}?key=` and `/v1/state/{processor}/{store}/scan`.
    pub fn router(self) -> Router {
        Router::new()
            .route(PATH, get(list))
            .route("/v1/state/{processor}/{store}", get(one))
            .route("/v1/state/{processor}/{store}/scan", get(scan))
            .with_state(self)
    }
}

async fn list(State(running): State<Running>) -> Json<Value> {
    let all = running.lock().clone();
    let shown = all.iter().map(|One { handle, .. }| {
        json!({
            "processor": handle.application(),
            "stores": handle.stores(),
            "tasks": handle.tasks(),
        })
    });
    Json(shown.collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Get {
    key: String,
    partition: Option<i32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scan {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    limit: Option<usize>,
    partition: i32,
}

async fn one(
    State(running): State<Running>,
    Path((processor, store)): Path<(String, String)>,
    asked: Result<Query<Get>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Query(asked) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            return bad(
                &error.body_text(),
                "give key, and partition if the key does not decide it",
            );
        }
    };
    let again = format!("key={}", encoded(&asked.key));
    answered(running, processor, store, again, move |handle, store| {
        let key = asked.key.as_bytes();
        let partition = asked.partition.map_or_else(|| handle.partition_of(store, key), Ok)?;
        Ok((partition, handle.get(store, partition, key)?))
    })
    .await
}

async fn scan(
    State(running): State<Running>,
    Path((processor, store)): Path<(String, String)>,
    asked: Result<Query<Scan>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Query(asked) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            return bad(
                &error.body_text(),
                "give partition; prefix, after and limit may be left out",
            );
        }
    };
    let limit = asked.limit.unwrap_or(ROWS);
    let mut again = format!("prefix={}&limit={limit}", encoded(&asked.prefix));
    if let Some(after) = &asked.after {
        again.push_str(&format!("&after={}", encoded(after)));
    }
    answered(running, processor, store, again, move |handle, store| {
        let range = Range {
            prefix: asked.prefix.clone().into_bytes(),
            after: asked.after.clone().map(String::into_bytes),
            limit,
        };
        Ok((asked.partition, handle.scan(store, asked.partition, &range)?))
    })
    .await
}

/// Asks on a thread that may block, and says what came of it. `again` is the query for another process.
async fn answered(
    running: Running,
    processor: String,
    store: String,
    again: String,
    ask: impl FnOnce(&Handle, &str) -> Result<(i32, Answer), QueryError> + Send + 'static,
) -> Response {
    let One { handle, declared } = match running.find(&processor) {
        Ok(one) => one,
        Err(problem) => return (*problem).into_response(),
    };
    let (path, of) = (
        format!("{PATH}/{}/{}", encoded(&processor), encoded(&store)),
        store.clone(),
    );
    let is_scan = again.starts_with("prefix=");
    let asked = tokio::task::spawn_blocking(move || ask(&handle, &store)).await;
    match asked {
        Ok(Ok((partition, answer))) => Json(shown(partition, &answer, declared.as_deref())).into_response(),
        Ok(Err(QueryError::Elsewhere {
            task,
            admin: Some(admin),
            ..
        })) => {
            let path = if is_scan { format!("{path}/scan") } else { path };
            let to = format!("{admin}{path}?{again}&partition={}", task.partition);
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response()
        }
        Ok(Err(error)) => problem(&error, &of).into_response(),
        Err(_) => Problem::status(StatusCode::INTERNAL_SERVER_ERROR).into_response(),
    }
}

fn problem(error: &QueryError, store: &str) -> Problem {
    let status = match error {
        QueryError::UnknownStore { .. } | QueryError::UnknownPartition { .. } => StatusCode::NOT_FOUND,
        QueryError::Starting(_) | QueryError::NotReady { .. } | QueryError::Log(_) | QueryError::Elsewhere { .. } => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => {
            tracing::error!(store, reason = chain(error), "a question about state failed");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    let said = Problem::status(status).detail(match error {
        QueryError::Elsewhere { .. } => format!("{error}; set `admin.advertise` there, or ask it directly"),
        _ => chain(error),
    });
    if status == StatusCode::SERVICE_UNAVAILABLE {
        said.retry_after(1)
    } else {
        said
    }
}

fn bad(reason: &str, fix: &str) -> Response {
    let problem = Problem::status(StatusCode::BAD_REQUEST).detail(format!("{reason}: {fix}"));
    problem.into_response()
}

fn shown(partition: i32, answer: &Answer, declared: Option<&Processor>) -> Value {
    let value = |row: &Row| {
        let decoded = declared.and_then(|declared| readable(declared, &row.key, &row.value));
        decoded.unwrap_or_else(|| text(&row.value))
    };
    let row = |row: &Row| json!({ "key": text(&row.key), "value": value(row) });
    let place = |(topic, partition, next): &(String, i32, i64)| json!({ "topic": topic, "partition": partition, "next_offset": next });
    json!({
        "partition": partition,
        "rows": answer.rows.iter().map(row).collect::<Vec<_>>(),
        "more": answer.more,
        "contains": answer.place.iter().map(place).collect::<Vec<_>>(),
    })
}

/// JSON as it is, other text as text, and bytes that are no text as `{"hex": …}`.
fn text(bytes: &[u8]) -> Value {
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

/// Percent-encodes what is not plain in a path or a query.
pub fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let each = text.as_bytes().iter().map(|byte| {
        if plain(byte) {
            char::from(*byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_as_json_as_text_or_as_digits() {
        assert_eq!(text(br#"["a",1]"#), json!(["a", 1]));
        assert_eq!(text("späť".as_bytes()), json!("späť"));
        assert_eq!(text(&[0, 0, 0, 7]), json!({ "hex": "00000007" }));
    }

    #[test]
    fn a_key_survives_its_way_through_a_query() {
        assert_eq!(encoded(r#"["a b",1]"#), "%5B%22a%20b%22%2C1%5D");
    }
}
